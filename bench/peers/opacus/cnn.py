"""Print the test accuracy of a plain CNN on PneumoniaMNIST under Opacus at its defaults. Runs in its own environment.

    env/bin/python cnn.py ARRAYS.npz SEEDS

What a newcomer writes: two convolutions with ReLU and max-pooling, batches of 64, SGD at 0.05, 10 epochs, clip norm 1,
`make_private_with_epsilon` for epsilon = 1 at delta = n^-1.1, and nothing tuned. As one JSON line: the accuracy of each
seed with and without privacy, and Opacus' own epsilon.
"""

import json
import sys
import warnings

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, BATCH, RATE = 10, 64, 0.05


def network() -> nn.Module:
    """Return the usual small CNN of tutorials."""
    first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(first, second, nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 2))


def trained(x: torch.Tensor, y: torch.Tensor, seed: int, private: bool) -> tuple[nn.Module, float | None]:
    """Return the network after its epochs and what Opacus says was spent."""
    torch.manual_seed(seed)
    module = network()
    optimiser = torch.optim.SGD(module.parameters(), lr=RATE)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    engine, delta = PrivacyEngine(), len(x) ** -1.1
    if private:
        module, optimiser, loader = engine.make_private_with_epsilon(
            module=module,
            optimizer=optimiser,
            data_loader=loader,
            epochs=EPOCHS,
            target_epsilon=1.0,
            target_delta=delta,
            max_grad_norm=1.0,
        )
    for _ in range(EPOCHS):
        for rows, wanted in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(rows), wanted).backward()
            optimiser.step()
    return module, engine.get_epsilon(delta) if private else None


def main() -> None:
    """Print the figures."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    arrays, seeds = np.load(sys.argv[1]), int(sys.argv[2])
    x, y, x_test, y_test = (torch.from_numpy(arrays[name]) for name in ("x", "y", "x_test", "y_test"))
    found: dict[str, list[float]] = {"private": [], "open": [], "epsilon": []}
    for seed in range(seeds):
        for kind in ("private", "open"):
            module, epsilon = trained(x, y, seed, kind == "private")
            with torch.no_grad():
                found[kind].append(float((module(x_test).argmax(1) == y_test).double().mean()))
            found["epsilon"] += [] if epsilon is None else [epsilon]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
