"""Ten clinics train one convolutional network on handwritten digits, and nobody sees an update of any of them.

    python examples/torch_digits.py

Each clinic holds about 144 images and normalises for itself: its batch normalisation stays with it. Everything else
travels as one masked sum per round.
"""

import numpy as np
from sklearn.datasets import load_digits
from torch import manual_seed, nn, set_num_threads

from confide.train import Silo, TorchLearner, fit, outputs, personal_models, train_section
from confide.wire import MemoryStore


def clinics() -> tuple[list[Silo], Silo]:
    """Return ten silos, each with its own contrast, and test records of the same kinds."""
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    order = np.random.default_rng(1).permutation(len(x))
    contrast = np.linspace(0.3, 3.0, 10, dtype=np.float32)
    parts = np.array_split(order, 10)
    silos = [Silo(f"clinic-{place}", contrast[place] * x[part[36:]], y[part[36:]]) for place, part in enumerate(parts)]
    x_test = np.concatenate([contrast[place] * x[part[:36]] for place, part in enumerate(parts)])
    return silos, Silo("test", x_test, np.concatenate([y[part[:36]] for part in parts]))


def network() -> nn.Module:
    manual_seed(1)
    convolution = nn.Conv2d(1, 16, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 10))


def main() -> None:
    set_num_threads(1)  # more of them only wait for each other on networks this small
    silos, test = clinics()
    settings = train_section(aggregate="masked", rounds=4, local_steps=1, learning_rate=0.1, expected_records=150)
    learner = TorchLearner(network(), settings, batch_size=16, private=("1.*",))
    stores = {silo.name: MemoryStore() for silo in silos}
    print(f"{len(learner.start)} parameters travel")
    for done in fit(learner, silos, settings, stores=stores):
        right = [
            outputs(model, x).argmax(axis=1) == y
            for model, x, y in zip(
                personal_models(learner, done.parameters, stores).values(),
                np.array_split(test.x, 10),
                np.array_split(test.y, 10),
                strict=True,
            )
        ]
        kilobytes = done.bytes_up["clinic-0"] / 1e3
        print(f"round {done.number}: accuracy {np.mean(right):.3f}, {kilobytes:.0f} kB sent by each clinic")


if __name__ == "__main__":
    main()
