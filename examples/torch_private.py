"""Four hospitals train a network on handwritten digits with differential privacy: no record can be told from the model.

    python examples/torch_private.py

Each round every hospital draws a sample of its images by coins of its own, clips each image's gradient, and adds its
share of integer noise; the server sees one noisy sum over three hospitals or more. The settings are those of nobody's
search: taken from the documentation.
"""

import numpy as np
from sklearn.datasets import load_digits
from torch import manual_seed, nn, set_num_threads

from confide.train import PrivateTorchLearner, Silo, fit_privately, outputs, private_label, train_section


def hospitals() -> tuple[list[Silo], np.ndarray, np.ndarray]:
    """Return four silos and test records."""
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 1, 8, 8).astype(np.float32) / 8 - 1  # public bounds: pixels are 0 to 16
    order = np.random.default_rng(1).permutation(len(x))
    train, test = order[360:], order[:360]
    return [Silo(f"hospital-{n}", x[train[n::4]], y[train[n::4]]) for n in range(4)], x[test], y[test]


def network() -> nn.Module:
    manual_seed(1)
    convolution = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.Tanh(), nn.AvgPool2d(2))
    return nn.Sequential(convolution, nn.Flatten(), nn.Linear(128, 10))


def main() -> None:
    set_num_threads(1)  # more of them only wait for each other on networks this small
    silos, x, y = hospitals()
    settings = train_section(
        aggregate="masked", rounds=16, learning_rate=2.0, momentum=0.5, average=0.3, quorum=4, expected_records=360
    )
    learner = PrivateTorchLearner(network(), settings)
    plan = learner.plan(settings, parties=4, epsilon=4.0, clip_norm=1.0, expected_batch=720, expected_records=1440)
    print(f"noise: {plan.noise_multiplier:.2f} times the clip norm; each image is in half of the samples")
    for done in fit_privately(learner, silos, settings, plan):
        if done.number % 4 == 0:
            right = (outputs(done.model, x).argmax(axis=1) == y).mean()
            print(f"round {done.number}: epsilon {done.epsilon:.2f}, accuracy {right:.3f}")
    print(private_label(plan, settings, silos, done).sentence())


if __name__ == "__main__":
    main()
