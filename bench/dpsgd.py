"""What DP-SGD costs: time against plain SGD, and accuracy on PneumoniaMNIST at epsilon = 1.

    python bench/dpsgd.py [--only cost|utility] [--seeds 5] [--json FILE]

Cost: one silo's step (sample, gradients of single records, clipping, integers, noise, update) against a step of plain
SGD in torch on the same module and the same number of records, one thread, in processor time, which other programs on
the machine disturb less than the clock; after a warm-up the two take turns, and the ratio is of medians. The linear
head of a job is full batch in float64 (docs/private-learning.md), against the same two products without privacy.

Utility: a CNN of 15,426 parameters, central, against itself without privacy (same start; plain momentum SGD for as many
steps as it needs). Settings were chosen on the validation part by six runs, never on the test part. Seeds change start,
samples and noise; they are fixed so that figures repeat, so these runs make no claim and compute what one that
does computes. Beside it, where bench/peers/opacus/.venv exists (`confide peers install opacus
--folder bench/peers`), what a newcomer gets from Opacus: a plain CNN and every setting at its default.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from figures import Figure, at_most, command_line, interval, write
from torch import nn
from torch.nn import functional

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.dp.plan import PrivacyPlan
from confide.ideal import PlainSum
from confide.model.zoo import logistic
from confide.train import PrivateTorchLearner, Silo, fit_privately, outputs, train_section
from confide.train.linear_head import LinearHead
from confide.train.local import flatten, unflatten
from confide.train.private_torch import SampledGradients
from confide.wire import MemoryStore

HERE = Path(__file__).parent
IMAGES = HERE.parent / "../shared/data/pneumoniamnist"
PEER = HERE / "peers" / "opacus"

ROUNDS, BATCH, RATE, MOMENTUM, CLIP = 80, 1177, 0.3, 0.9, 1.0


# --- time -------------------------------------------------------------------------------------------------------------


def head() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 10))


def small_cnn() -> nn.Module:
    """The CNN of Papernot et al. (arXiv 2007.14191) for MNIST, 26,010 parameters."""
    body = nn.Sequential(nn.Conv2d(1, 16, 8, 2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1))
    body = nn.Sequential(body, nn.Conv2d(16, 32, 4, 2), nn.Tanh(), nn.MaxPool2d(2, 1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, 10))


def processor_seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def cost(name: str, module: nn.Module, bar: float, batch: int, slots: int, repeats: int) -> Iterator[Figure]:
    """Yield the ratio of a private step to a plain one, and what the noise alone takes."""
    draw = np.random.Generator(np.random.PCG64(1))
    x, y = draw.normal(size=(batch, 1, 28, 28)).astype(np.float32), draw.integers(0, 10, batch)
    settings = train_section(aggregate="plain", rounds=1000, learning_rate=1e-3, quorum=1)
    learner = PrivateTorchLearner(module, settings, slots=slots)
    # samples of exactly `batch` records, the same as the plain step has
    plan = learner.plan(settings, parties=1, epsilon=8.0, expected_batch=batch, expected_records=batch)
    encoding, silo, rng = SampledGradients(learner, plan, settings), Silo("one", x, y), SystemRandomness()
    parameters = learner.start

    def private() -> None:
        nonlocal parameters
        sums = encoding.contribution(parameters, silo, 1, rng, MemoryStore())
        parameters = parameters + encoding.update(parameters, sums, frozenset("a"), 1)

    inputs, wanted = torch.from_numpy(x), torch.from_numpy(y)
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-3)

    def plain() -> None:
        optimiser.zero_grad()
        functional.cross_entropy(module(inputs), wanted).backward()
        optimiser.step()

    for _ in range(3):
        private(), plain()
    seconds = np.array([[processor_seconds(private), processor_seconds(plain)] for _ in range(repeats)])
    noise = np.median([processor_seconds(lambda: plan.release_of.noise(rng)) for _ in range(5)])
    ours, theirs = np.median(seconds, axis=0)
    low, high = np.quantile(seconds[:, 0] / theirs, (0.25, 0.75))
    title = f"{name}, {len(learner.start)} parameters, {batch} records"
    print(
        f"{title:<48} plain {1e3 * theirs:7.2f} ms  private {1e3 * ours:7.2f} ms  ratio {ours / theirs:5.2f} "
        f"[{low:.2f}, {high:.2f}]  bar {bar}  of it noise {noise / theirs:.2f}"
    )
    yield Figure(title, float(ours / theirs), "ratio", "SGD (torch)", 1.0, bar, at_most(ours / theirs, bar))
    yield Figure(f"{title}, noise alone", float(noise / theirs), "ratio")


def of_jobs(records: int, repeats: int) -> Iterator[Figure]:
    """Yield the ratio for a linear head as jobs train it: full batch, in float64, against the same two products."""
    draw = np.random.Generator(np.random.PCG64(2))
    x, y = draw.normal(size=(records, 784)), draw.integers(0, 10, records)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    graph = unflatten(logistic(784, 10), draw.normal(size=7850))
    head, silo = LinearHead(graph, row_norm=1.0, clip_norm=0.5), Silo("one", x, y)
    rng, parameters = SystemRandomness(), flatten(graph)
    plan = PrivacyPlan.calibrate(
        epsilon=1.0, clip_norm=0.5, rounds=40, length=7850, grid=head.sums.grid, expected_records=records
    )
    weight, bias, wanted = graph.layers[0].weight, graph.layers[0].bias, np.eye(10)[y].T.copy()

    def private() -> None:
        plan.release(head.gradient_sum(parameters, silo), rng)

    def plain() -> None:
        gradient = 1 / (1 + np.exp(-(weight @ x.T + bias[:, None]))) - wanted  # in the faster of the two layouts
        gradient @ x, gradient.sum(axis=1)

    private(), plain()
    seconds = np.array([[processor_seconds(private), processor_seconds(plain)] for _ in range(repeats)])
    ours, theirs = np.median(seconds, axis=0)
    low, high = np.quantile(seconds[:, 0] / theirs, (0.25, 0.75))
    title = f"linear head of a job, 7850 parameters, {records} records"
    print(
        f"{title:<48} plain {1e3 * theirs:7.2f} ms  private {1e3 * ours:7.2f} ms  ratio {ours / theirs:5.2f} "
        f"[{low:.2f}, {high:.2f}]  bar 1.1"
    )
    yield Figure(
        title, float(ours / theirs), "ratio", "gradient in numpy, float64", 1.0, 1.1, at_most(ours / theirs, 1.1)
    )


# --- accuracy ---------------------------------------------------------------------------------------------------------


def network(seed: int) -> nn.Module:
    """Three convolutions with GroupNorm and tanh, 15,426 parameters."""
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Conv2d(1, 16, 5, 2, padding=2), nn.GroupNorm(4, 16), nn.Tanh())
    second = nn.Sequential(nn.Conv2d(16, 32, 3, 2, padding=1), nn.GroupNorm(4, 32), nn.Tanh())
    return nn.Sequential(first, second, nn.Conv2d(32, 32, 3, 2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(512, 2))


def images() -> dict[str, np.ndarray] | None:
    """Return the images scaled by public constants, and classes; None where they are absent."""
    files = sorted(IMAGES.glob("*.npz"))
    if not files:
        return None
    found = np.load(files[0])

    def scaled(name: str) -> np.ndarray:
        return (found[name][:, None].astype(np.float32) / 255 - 0.5) / 0.25

    return {
        "x": scaled("train_images"),
        "y": found["train_labels"].ravel().astype(np.int64),
        "x_test": scaled("test_images"),
        "y_test": found["test_labels"].ravel().astype(np.int64),
    }


def area(scores: np.ndarray, y: np.ndarray) -> float:
    """Return the area under the ROC curve; scores without ties."""
    ranks, positive = np.argsort(np.argsort(scores)) + 1, int(y.sum())
    return float((ranks[y == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(y) - positive)))


def private_model(data: dict[str, np.ndarray], seed: int) -> nn.Module:
    silo = Silo("central", data["x"], data["y"])
    settings = train_section(
        aggregate="plain", rounds=ROUNDS, learning_rate=RATE, momentum=MOMENTUM, quorum=1, average=0.3
    )
    learner = PrivateTorchLearner(network(seed), settings, slots=256)
    plan = learner.plan(
        settings, parties=1, epsilon=1.0, clip_norm=CLIP, expected_batch=BATCH, expected_records=len(data["x"])
    )
    rng = SeededRandomness(f"dpsgd {seed}")
    *_, done = fit_privately(learner, [silo], settings, plan, aggregator=PlainSum(), rng=rng)
    return done.model


def open_model(data: dict[str, np.ndarray], seed: int) -> nn.Module:
    """The same network without privacy: momentum SGD from the same start, in batches of about 256, 400 steps."""
    module, draw = network(seed), np.random.Generator(np.random.PCG64(seed))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=MOMENTUM)
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    for _ in range(ROUNDS * 5):
        rows = torch.from_numpy(np.flatnonzero(draw.random(len(x)) < 256 / len(x)))
        optimiser.zero_grad()
        functional.cross_entropy(module(x[rows]), y[rows]).backward()
        optimiser.step()
    return module


def utility(seeds: int) -> Iterator[Figure]:
    """Yield the accuracy with and without privacy, and the peer's."""
    data = images()
    if data is None:
        print("PneumoniaMNIST is absent: no figures of accuracy")
        return
    rows = []
    for seed in range(seeds):
        scores = []
        for model in (private_model(data, seed), open_model(data, seed)):
            out = outputs(model, data["x_test"])
            margin = out[:, 1] - out[:, 0]
            scores += [100 * float(((margin > 0) == data["y_test"]).mean()), area(margin, data["y_test"])]
        rows.append(scores)
        print(f"seed {seed}: private {scores[0]:.1f} % AUC {scores[1]:.3f}; open {scores[2]:.1f} % AUC {scores[3]:.3f}")
    found = np.array(rows)
    lost, drop = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    print(f"private {found[:, 0].mean():.2f} ± {interval(found[:, 0]):.2f} %")
    print(f"lost {lost.mean():.2f} ± {interval(lost):.2f} points")
    print(f"AUC {found[:, 1].mean():.3f}, drop {drop.mean():.3f} ± {interval(drop):.3f}")
    peer = peer_accuracy(data, seeds)
    theirs = None if peer is None else float(np.mean(peer["private"]) * 100)
    if peer is not None:
        naive = 100 * (np.array(peer["open"]) - np.array(peer["private"]))
        print(
            f"Opacus at its defaults: {theirs:.2f} ± {100 * interval(peer['private']):.2f} %, loses "
            f"{naive.mean():.2f} ± {interval(naive):.2f} points; its epsilon {max(peer['epsilon']):.3f}"
        )
    yield Figure(
        "PneumoniaMNIST, CNN by DP-SGD, epsilon 1", float(found[:, 0].mean()), "accuracy %", "Opacus, defaults", theirs
    )
    yield Figure("points lost against itself", float(lost.mean()), "points", bar=8.0, met=at_most(lost.mean(), 8))
    yield Figure("AUC lost against itself", float(drop.mean()), "AUC", bar=0.03, met=at_most(drop.mean(), 0.03))


def peer_accuracy(data: dict[str, np.ndarray], seeds: int) -> dict[str, list[float]] | None:
    """Return what the peer prints; None where it is not installed."""
    python = PEER / ".venv" / "bin" / "python"
    if not python.exists():
        print("no environment in bench/peers/opacus/.venv: the peer is left out")
        return None
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        np.savez(arrays, **data)
        command = [str(python), str(PEER / "cnn.py"), str(arrays), str(seeds)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", choices=("cost", "utility"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=15)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    figures: list[Figure] = []
    if chosen.only != "utility":
        for batch in (512, 2048):
            figures += cost("linear head", head(), 1.1, batch, batch, chosen.repeats)
            figures += cost("MLP", mlp(), 1.4, batch, batch, chosen.repeats)
            figures += cost("small CNN", small_cnn(), 1.6, batch, 256, chosen.repeats)
        for records in (2048, 15_000):
            figures += of_jobs(records, chosen.repeats)
    if chosen.only != "cost":
        figures += utility(chosen.seeds)
    write(figures, chosen.json)


if __name__ == "__main__":
    main()
