"""What epsilon = 1 costs on breast-cancer: four hospitals, quorum 3, one colluding, against training on pooled records.

    python bench/dp_breast_cancer.py [--seeds 20] [--json FILE]

Every row runs the real thing: the schema's public bounds, uneven hospitals (Dirichlet over the classes), per-record
clipping, integer noise split among the hospitals, the federated loop. The first row sums under masks, the others in the
clear, which gives the same integers faster. A seed fixes split and noise, so figures repeat; for that reason this run
makes no privacy claim, it only computes what one that does computes.

The recipe is the flat middle of a grid over four sets (this one, heart disease, 1,000 records of Adult, a synthetic set
of 455 x 30), rounded: 30 rounds, clip 0.5, learning rate 1, momentum 0.9, the last half averaged. On breast-cancer
alone other settings do up to a point better. `--nearby` changes one setting at a time; where ../shared/data is present,
the same recipe runs on heart disease in its four real hospitals.

Ceilings, both pooled and without privacy: the same features, and features standardised by the data's own mean and
deviation, which nothing private may use. The bar is held against the better of the two.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from figures import Figure, at_most, command_line, interval, write

from confide.crypto.random import SeededRandomness
from confide.data.sets import load_set
from confide.data.split import by_label, holdout
from confide.data.table import Table
from confide.dp.plan import PrivacyPlan
from confide.ideal import Aggregator, PlainSum
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.model.zoo import logistic
from confide.secagg.masked import Masked
from confide.train.encodings import PrivateGradients
from confide.train.evaluate import accuracy
from confide.train.learner import GraphLearner
from confide.train.local import Silo
from confide.train.parts import preprocess_of
from confide.train.rounds import federate
from confide.train.sections import Job, ModelSection, TrainSection

HOSPITALS = ("north", "east", "south", "west")
HEART = Path(__file__).parents[1] / "../shared/data/heart_disease/heart_all4.csv.gz"
BAR_POINTS = 5.0


@dataclass(frozen=True)
class Recipe:
    """The settings: the same for every split and set; the head says how they were chosen."""

    epsilon: float = 1.0
    delta: float | None = 1e-5
    rounds: int = 30
    clip_norm: float = 0.5
    learning_rate: float = 1.0
    momentum: float = 0.9
    average: float = 0.5
    expected_records: int = 455
    unit_rows: bool = False


@dataclass(frozen=True)
class Problem:
    """One split: hospitals, test records, and the training records pooled."""

    silos: tuple[Silo, ...]
    test: Silo
    pooled: Silo


Make = Callable[[int, Recipe], Problem]


def breast_cancer(seed: int, recipe: Recipe, *, test_fraction: float = 0.2) -> Problem:
    schema, table = load_set("breast-cancer")
    rest, test = holdout(table, fraction=test_fraction, seed=seed)
    prepare = preprocess_of(schema, Job(model=ModelSection(unit_rows=recipe.unit_rows)))
    parts = by_label(rest, HOSPITALS, alpha=1.0, seed=seed)
    return problem(prepare, parts, test)


def heart(seed: int, recipe: Recipe) -> Problem:
    """Return UCI heart disease in its four hospitals: the ten columns that all of them filled in."""
    bounds = {"age": (20, 90), "trestbps": (80, 210), "chol": (0, 600), "thalach": (60, 210), "oldpeak": (-3, 7)}
    bounds |= {"sex": (0, 1), "fbs": (0, 1), "exang": (0, 1)}
    categories = {"cp": ("1.0", "2.0", "3.0", "4.0"), "restecg": ("0.0", "1.0", "2.0")}
    rules = [Scale(name=name, low=low, high=high, outside="clip") for name, (low, high) in bounds.items()]
    rules += [OneHot(name=name, categories=levels) for name, levels in categories.items()]
    with gzip.open(HEART, "rt") as file:
        rows = [row for row in csv.DictReader(file) if all(row[key] for key in (*bounds, *categories))]
    parts, tests = {}, []
    for name in sorted({row["hospital"] for row in rows}):
        own = [row for row in rows if row["hospital"] == name]
        columns = {key: np.array([float(row[key]) for row in own]) for key in bounds}
        columns |= {key: np.array([row[key] for row in own]) for key in categories}
        labels = np.array([float(row["num"]) > 0 for row in own], np.int64)
        parts[name], test = holdout(Table(columns, labels), fraction=0.2, seed=seed)
        tests.append(test)
    return problem(Preprocess(tuple(rules), recipe.unit_rows), parts, Table.concatenate(tests))


def problem(prepare: Preprocess, parts: dict[str, Table], test: Table) -> Problem:
    silos = tuple(Silo(name, prepare.apply(part.columns), part.labels) for name, part in parts.items())
    pooled = Silo("pooled", np.concatenate([s.x for s in silos]), np.concatenate([s.y for s in silos]))
    return Problem(silos, Silo("test", prepare.apply(test.columns), test.labels), pooled)


def private(split: Problem, recipe: Recipe, seed: int, aggregator: Aggregator) -> float:
    start = logistic(split.test.x.shape[1])
    plan = PrivacyPlan.calibrate(
        epsilon=recipe.epsilon,
        delta=recipe.delta,
        clip_norm=recipe.clip_norm,
        rounds=recipe.rounds,
        length=start.parameters,
        silos=len(HOSPITALS),
        quorum=3,
        colluding=1,
        expected_records=recipe.expected_records,
    )
    settings = TrainSection(
        rounds=recipe.rounds,
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        average=recipe.average,
        weight_decay=0.0,
        quorum=3,
    )
    rng = SeededRandomness(f"bench/dp/{seed}")
    encoding = PrivateGradients(GraphLearner(start, settings), plan, settings)
    *_, last = federate(split.silos, encoding, settings, aggregator=aggregator, rng=rng)
    assert last.number == recipe.rounds
    return accuracy(last.model, split.test.x, split.test.y)


def pooled(split: Problem, *, standardised: bool) -> float:
    """Return the accuracy of ridge logistic regression (coefficient 1, as scikit-learn's default) by Newton steps."""
    mean, deviation = (split.pooled.x.mean(axis=0), split.pooled.x.std(axis=0)) if standardised else (0.0, 1.0)
    x = np.c_[(split.pooled.x - mean) / deviation, np.ones(len(split.pooled.x))]
    ridge = np.diag([1.0] * (x.shape[1] - 1) + [1e-9])
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-(x @ weights)))
        gradient = x.T @ (p - split.pooled.y) + ridge @ weights
        weights = weights - np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge, gradient)
    assert np.abs(gradient).max() < 1e-6
    graph = Graph((Linear(weights[None, :-1], weights[-1:]), Sigmoid()))
    return accuracy(graph, (split.test.x - mean) / deviation, split.test.y)


def report(name: str, recipe: Recipe, seeds: range, aggregator: Aggregator, make: Make, bar: float | None) -> Figure:
    """Run `recipe` on each seed, print one line and return its figure."""
    private_runs, ceilings = [], {"same features": [], "standardised": []}
    for seed in seeds:
        split = make(seed, recipe)
        private_runs.append(100 * private(split, recipe, seed, aggregator))
        ceilings["same features"].append(100 * pooled(split, standardised=False))
        ceilings["standardised"].append(100 * pooled(split, standardised=True))
    best = max(ceilings, key=lambda ceiling: np.mean(ceilings[ceiling]))
    loss = np.array(ceilings[best]) - np.array(private_runs)
    width = interval(loss)
    means = "  ".join(f"{np.mean(values):6.2f}" for values in ceilings.values())
    print(f"{name:34s} {np.mean(private_runs):7.2f}   {loss.mean():5.2f} +- {width:4.2f}     {means}", flush=True)
    return Figure(
        f"accuracy lost at epsilon={recipe.epsilon:g}, {name}",
        round(float(loss.mean()), 3),
        "points",
        f"pooled logistic regression, {best}",
        round(float(np.mean(ceilings[best])), 3),
        bar,
        at_most(loss.mean() + width, bar),
    )


NEARBY = (
    {"learning_rate": 0.5},
    {"learning_rate": 2.0},
    {"clip_norm": 0.25},
    {"clip_norm": 1.0},
    {"rounds": 15},
    {"rounds": 60},
    {"momentum": 0.0, "learning_rate": 10.0},
    {"average": 0.0},
    {"unit_rows": True},
    {"expected_records": 300},
    {"expected_records": 700},
    {"epsilon": 0.5},
    {"epsilon": 2.0},
    {"epsilon": 32.0},
)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--nearby", action="store_true", help="also halve and double each setting")
    options = parser.parse_args()
    seeds, recipe, plain = range(options.seeds), Recipe(), PlainSum()
    print(f"{f'{options.seeds} seeds':34s} private    lost (95 % CI)   pooled: same, standardised")
    quarter = partial(breast_cancer, test_fraction=0.25)
    rows = [
        report("delta 1e-5, masked sums", recipe, seeds, Masked(), breast_cancer, BAR_POINTS),
        report("delta 455^-1.1", replace(recipe, delta=None), seeds, plain, breast_cancer, BAR_POINTS),
        report("25 % test records", replace(recipe, expected_records=427), seeds, plain, quarter, BAR_POINTS),
    ]
    if HEART.exists():
        rows.append(report("heart disease", replace(recipe, expected_records=592), seeds, plain, heart, None))
    for change in NEARBY if options.nearby else ():
        name = ", ".join(f"{key} {value:g}" for key, value in change.items())
        rows.append(report(name, replace(recipe, **change), seeds, plain, breast_cancer, None))
    write(rows, options.json)


if __name__ == "__main__":
    main()
