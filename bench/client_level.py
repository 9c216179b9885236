"""Hiding whole clients: the error of prefix sums under banded noise, and what a thousand clients learn.

    python bench/client_level.py [--errors] [--seeds 5] [--epsilon 1 4 8] [--rotation 1 4 16] [--json FILE]

First table: root mean square error of the sums of mean updates up to each of T rounds, against everybody in every round
with noise of its own, at equal privacy and equal total clients. `rotation` p trains a client in every p-th round; its
noise is independent (1 band) or correlated over b = p rounds.

Second table: MNIST (../shared/data/mnist), its images averaged over 2 x 2 pixels, split evenly among 1,000 clients of
60 images; one-vs-rest logistic regression by federated averaging, 64 rounds of 5 local steps, clip 2, delta 1e-5. The
noise is sized for 900 honest clients of 1,000, and 5 % of the clients, others in each round, drop out. Rounds are those
of `confide.train.client_simulation` with a fixed seed, so these runs make no claim. Steps, rate, rounds and clip were
chosen by training on 900 of the clients and looking at the images of the other 100, never at the test images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from figures import Figure, command_line, interval, write

from confide.crypto.random import SeededRandomness
from confide.dp.client_plan import ClientPlan
from confide.dp.factorisation import banded, independent
from confide.model.zoo import logistic
from confide.train.client_simulation import simulated
from confide.train.evaluate import accuracy
from confide.train.learner import GraphLearner
from confide.train.local import Silo
from confide.train.sections import TrainSection
from confide.wire import MemoryStore

MNIST = Path(__file__).parents[1] / "../shared/data/mnist/mnist.npz"
CLIENTS, SURE, DELTA, CLASSES = 1000, 900, 1e-5, 10
ROUNDS, CLIP = 64, 2.0
SETTINGS = TrainSection(rounds=ROUNDS, local_steps=5, learning_rate=2.0, momentum=0.0, weight_decay=0.0, average=0.0)

#: (rotation, bands) of the second table.
PLANS = ((1, 1), (4, 1), (4, 4), (16, 1), (16, 16))

Figures = tuple[np.ndarray, np.ndarray]


def errors() -> Iterator[Figure]:
    """Print the first table and yield its figures: errors over that of everybody in every round."""
    print(f"{'rounds':>7}{'rotation':>10}{'1 band':>10}{'4 bands':>10}{'16 bands':>10}{'best gain':>12}")
    for rounds in (16, 64, 256):
        everybody = independent(rounds).error()
        for rotation in (1, 4, 16):
            alone = independent(rounds, rotation).error() * rotation / everybody
            row = [
                banded(rounds, rotation, bands).error() * rotation / everybody for bands in (4, 16) if bands <= rotation
            ]
            cells = "".join(f"{value:10.2f}" for value in (alone, *row)).ljust(30)
            print(f"{rounds:7}{rotation:10}{cells}{alone / min([alone, *row]):12.2f}")
            for bands, value in zip((1, 4, 16), (alone, *row), strict=False):
                name = f"prefix error, T={rounds}, rotation {rotation}, {bands} bands, over everybody each round"
                yield Figure(name, round(value, 4), "ratio", "1 band, same rotation", round(alone, 4))


def load(path: Path) -> tuple[list[Silo], Figures]:
    """Return the clients and the test images, pixels averaged over 2 x 2 and scaled to [0, 1]."""
    with np.load(path) as file:
        parts = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    x, y, test_x, test_y = (
        values.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196) / 255 if values.ndim > 1 else values.astype(int)
        for values in parts.values()
    )
    order = np.random.default_rng(7).permutation(len(x)).reshape(CLIENTS, -1)
    return [Silo(f"client-{place}", x[rows], y[rows]) for place, rows in enumerate(order)], (test_x, test_y)


def run(silos: Sequence[Silo], test: Figures, plan: ClientPlan, seed: int, *, drop: float = 0.05) -> float:
    """Return the accuracy in % after all rounds."""
    learner = GraphLearner(logistic(silos[0].x.shape[1], CLASSES), SETTINGS)
    chance = np.random.default_rng(seed)

    def present(number: int) -> list[int]:
        return np.flatnonzero(chance.random(CLIENTS) >= drop).tolist()

    rng = SeededRandomness(f"client level {seed}")
    *_, parameters = simulated(silos, learner, plan, SETTINGS, rng=rng, present=present)
    return 100 * accuracy(learner.model(parameters), *test)


def without_privacy(silos: Sequence[Silo], test: Figures) -> float:
    """Return the accuracy in % of the same averaging of everybody in every round, without clip and noise."""
    learner = GraphLearner(logistic(silos[0].x.shape[1], CLASSES), SETTINGS)
    parameters = learner.start
    for number in range(1, ROUNDS + 1):
        changes = [learner.change(parameters, silo, MemoryStore(), number=number) for silo in silos]
        parameters = parameters + np.mean(changes, axis=0)
    return 100 * accuracy(learner.model(parameters), *test)


def plan_for(epsilon: float, rotation: int, bands: int) -> ClientPlan:
    """Return the plan of one cell of the second table."""
    return ClientPlan.calibrate(
        epsilon=epsilon,
        delta=DELTA,
        clip_norm=CLIP,
        bands=banded(ROUNDS, rotation, bands),
        length=197 * CLASSES,
        clients=CLIENTS,
        quorum=SURE,
    )


def accuracies(
    silos: Sequence[Silo], test: Figures, epsilons: Sequence[float], rotations: Sequence[int], seeds: int
) -> Iterator[Figure]:
    """Print the second table and yield its figures."""
    print(
        f"\n{'rotation':>8}{'bands':>7}" + "".join(f"{'epsilon ' + format(epsilon, 'g'):>18}" for epsilon in epsilons)
    )
    same = without_privacy(silos, test)
    print(f"no privacy, everybody in every round: {same:.2f}")
    yield Figure(f"MNIST, {CLIENTS} clients, accuracy without privacy", round(same, 3), "%")
    for rotation, bands in [plan for plan in PLANS if plan[0] in rotations]:
        print(f"{rotation:8}{bands:7}", end="", flush=True)
        for epsilon in epsilons:
            plan = plan_for(epsilon, rotation, bands)
            found = [run(silos, test, plan, seed) for seed in range(seeds)]
            print(f"{np.mean(found):11.2f} +- {interval(found):4.2f}", end="", flush=True)
            name = f"MNIST, {CLIENTS} clients, accuracy at epsilon {epsilon:g}, rotation {rotation}, {bands} bands"
            yield Figure(name, round(float(np.mean(found)), 3), "%", "without privacy", round(same, 3))
            yield Figure(f"{name}, half of the 95 % interval", round(interval(found), 3), "points")
        print()


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--errors", action="store_true", help="the first table alone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 4.0, 8.0])
    parser.add_argument("--rotation", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    figures = list(errors())
    if not options.errors and not MNIST.is_file():
        print("\nno accuracies: MNIST is not in ../shared/data")
    elif not options.errors:
        figures += accuracies(*load(MNIST), options.epsilon, options.rotation, options.seeds)
    write(figures, options.json)


if __name__ == "__main__":
    main()
