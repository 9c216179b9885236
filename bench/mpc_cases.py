"""The bars of private inference and training on shares, and the data that bench/mpc.py measures them on.

Bars in milliseconds for a batch of one, in MB of 10^6 bytes. A bar holds on a machine of two cores that does nothing
else, with the material of a prediction made ahead unless the row says "nothing cached".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from mpc_nets import INPUTS, Arrays, drawn

MNIST_IMAGES = Path(__file__).parents[1] / "../shared/data/mnist/mnist.npz"
BATCH = 128


@dataclass(frozen=True)
class Case:
    """One network in one mode.

    Args:
        name: for --only; `title` opens its lines.
        backend: `Backend.name`.
        bars: the most milliseconds by link, end to end, material made ahead.
        on_demand: the same with nothing cached.
        online_mb: the most that all parties send in the online phase of one prediction.
        offline_mb: the most that the dealer sends to each party for one prediction.
        dealer_ms: the most CPU time of the dealer for one prediction.
    """

    name: str
    title: str
    net: str
    backend: str
    bars: Mapping[str, float]
    on_demand: Mapping[str, float] = field(default_factory=dict[str, float])
    online_mb: float | None = None
    offline_mb: float | None = None
    dealer_ms: float | None = None

    @property
    def task(self) -> str:
        """Return what is computed, without the mode: what a peer does as well."""
        return self.title.rpartition(", ")[0]


CASES = {
    case.name: case
    for case in (
        Case(
            "mnist",
            "MNIST CNN, dealer",
            "mnist",
            "mpc-dealer",
            bars={"loopback": 10, "LAN": 30, "WAN": 450},
            on_demand={"LAN": 120, "WAN": 900},
            online_mb=0.8,
            offline_mb=10,
            dealer_ms=15,
        ),
        Case(
            "resnet20",
            "ResNet-20, dealer",
            "resnet20",
            "mpc-dealer",
            bars={"loopback": 60, "LAN": 120, "WAN": 1500},
            on_demand={"LAN": 1200, "WAN": 6000},
            online_mb=7,
        ),
        Case(
            "mnist-3pc", "MNIST CNN, three servers", "mnist", "mpc-3pc", bars={"loopback": 40, "LAN": 90, "WAN": 1900}
        ),
        Case("logistic", "logistic, 30 features, dealer", "logistic", "mpc-dealer", bars={"loopback": 3}),
    )
}


@dataclass(frozen=True)
class Training:
    """One training step on a batch of 128, by its bar in milliseconds on loopback; `batches` make an epoch."""

    name: str
    title: str
    widths: tuple[int, ...]
    bar: float
    batches: int

    @property
    def task(self) -> str:
        """Return SPU's name of it."""
        return self.name.replace("-", "_")


STEPS = {
    step.name: step
    for step in (
        Training("logistic-step", "logistic step, 128 x 30", (30, 1), 8, 100),
        Training("mlp-step", "MLP step, 784-128-128-10, 128 rows", (784, 128, 128, 10), 60, 469),
    )
}
#: Limits that hold for every network.
MOST_ERROR, MOST_ACCURACY_POINTS, LEAST_GEMM, IMAGES = 1e-3, 0.2, 30.0, 1000


def numbers(net: str, folder: Path | None) -> tuple[Arrays, bool]:
    """Return a network's numbers, and whether they were trained: those of train_relu.py, or drawn by a fixed seed."""
    path = None if folder is None else folder / f"{net}.npz"
    if path is None or not path.exists():
        return drawn(net), False
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files if name != "accuracy"}, True


def rows_of(net: str, count: int, cifar: Path | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return inputs (count, *shape), and their labels where they are real: test images, in [-1, 1]."""
    path = {"mnist": MNIST_IMAGES, "resnet20": cifar}.get(net)
    if path is None or not path.exists():
        return np.random.default_rng(1).uniform(-1, 1, (count, *INPUTS[net])), None
    channels, height, width = INPUTS[net]
    with np.load(path) as archive:
        x, y = archive["x_test"][:count], archive["y_test"][:count].reshape(-1)
    x = x.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
    return x.astype(np.float64) / 127.5 - 1, y


def operands(step: Training) -> tuple[Arrays, np.ndarray]:
    """Return the weights and targets of a step by SPU's names, and its rows; drawn by a fixed seed."""
    rng = np.random.default_rng(3)
    if step.name == "logistic-step":
        arrays: Arrays = {"w": rng.normal(0, 0.1, 30), "b": np.zeros(())}
        return arrays | {"y": rng.integers(0, 2, BATCH).astype(float)}, rng.normal(0, 1, (BATCH, 30))
    arrays = {"y": np.eye(step.widths[-1])[rng.integers(0, step.widths[-1], BATCH)]}
    for place, (inner, outer) in enumerate(pairwise(step.widths)):
        arrays[f"w{place}"] = rng.normal(0, np.sqrt(2 / inner), (inner, outer))
        arrays[f"b{place}"] = np.zeros(outer)
    return arrays, rng.uniform(0, 1, (BATCH, step.widths[0]))


def stepped(step: Training, arrays: Arrays, x: np.ndarray, *, rate: float, cut: bool) -> dict[str, np.ndarray]:
    """Return weights and biases after one step in float64, by their names: the oracle.

    Args:
        cut: each output's probability is the line min(max(z + 1/2, 0), 1), as ours trains; else the sigmoid, or the
            softmax of several outputs, as SPU's side does.
    """
    count = len(step.widths) - 1
    names = [("w", "b")] if count == 1 else [(f"w{place}", f"b{place}") for place in range(count)]
    weights = [arrays[weight].reshape(shape) for (weight, _), shape in zip(names, pairwise(step.widths), strict=True)]
    kept, sums = [x], []
    for weight, (_, bias) in zip(weights, names, strict=True):
        sums.append(kept[-1] @ weight + arrays[bias])
        kept.append(np.maximum(sums[-1], 0))
    error, found = (probability(sums[-1], cut) - arrays["y"].reshape(len(x), -1)) / len(x), Arrays()
    for place in reversed(range(count)):
        weight, bias = names[place]
        found[weight] = arrays[weight] - (rate * kept[place].T @ error).reshape(arrays[weight].shape)
        found[bias] = arrays[bias] - (rate * error.sum(0)).reshape(arrays[bias].shape)
        if place:
            error = (error @ weights[place].T) * (sums[place - 1] > 0)
    return found


def probability(z: np.ndarray, cut: bool) -> np.ndarray:
    """Return what a last layer's sums stand for."""
    if cut:
        return np.clip(z + 0.5, 0, 1)
    if z.shape[1] == 1:
        return 1 / (1 + np.exp(-z))
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
