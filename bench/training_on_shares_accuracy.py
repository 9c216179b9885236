"""Accuracy of logistic regression trained on shares, on held-out records of six splits, beside scikit-learn pooled.

    python bench/training_on_shares_accuracy.py [--splits 6] [--json FILE]

Every figure is of models that were trained on shares and opened: four owners, two servers and the dealer, all their
messages. What the job says is printed before each table. Heart disease needs the shared data set; without it that row
is left out.

Under [privacy] passes and rate are chosen on records that are made up here, before any real one is read: as many of
them as the real set has, as many columns, the classes drawn from a logistic model of random weights. All tries are
printed. Settings without privacy are not chosen on these splits either by this script, but see the page of docs: they
were taken after six tries on the same heart splits.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, command_line, interval, machine, show, write
from hospital_tables import hospital_tables
from sklearn.linear_model import LogisticRegression

from confide.crypto.random import SystemRandomness
from confide.train.evaluate import accuracy
from confide.train.job import load, parse
from confide.train.shares import Rows, load_rows, prepare

#: Without privacy: the settings of one job for both sets and both losses.
TRAIN = {"aggregate": "mpc", "rounds": 30, "learning_rate": 0.25, "momentum": 0.75}
SHARES = {"batch": 128}
#: Under privacy the first of these by accuracy on records that are made up.
TRIES = tuple((passes, rate) for passes in (10, 20, 40) for rate in (0.5, 1.0, 2.0))
EPSILON, DELTA = 1.0, 1e-4

Sections = dict[str, dict[str, Any]]


def sets(folder: Path) -> dict[str, tuple[Sections, int]]:
    """Return [data] and the expected records of each set."""
    found: dict[str, tuple[Sections, int]] = {
        "breast cancer": ({"data": {"set": "breast-cancer", "parties": 4}}, 455),
    }
    job_file = hospital_tables(folder)
    if job_file is not None:
        tables = {name: str(folder / path) for name, path in load(job_file).data.tables.items()}
        schema = str(folder / "heart.schema.toml")
        found["heart disease"] = ({"data": {"schema": schema, "tables": tables, "test_fraction": 0.34}}, 488)
    return found


def open_job(data: Sections, loss: str) -> Sections:
    """Return the sections of a job without privacy."""
    return copy.deepcopy(data) | {"train": dict(TRAIN), "shares": SHARES | {"loss": loss}}


def private_job(data: Sections, records: int, passes: int, rate: float) -> Sections:
    """Return the sections of a job under [privacy]."""
    return copy.deepcopy(data) | {
        "model": {"unit_rows": True},
        "train": {"aggregate": "mpc", "rounds": passes, "learning_rate": rate},
        "privacy": {"epsilon": EPSILON, "delta": DELTA, "expected_records": records},
    }


def trained(sections: Mapping[str, Any], split: int, *, made_up: bool = False) -> tuple[float, float]:
    """Return the accuracy of the model that was trained on shares, and of scikit-learn's on the pooled rows.

    Args:
        split: the job's seed.
        made_up: put records that are made up in the place of the real ones.
    """
    job, rng = parse(copy.deepcopy(dict(sections)) | {"job": {"seed": split}}), SystemRandomness()
    rows = load_rows(job, rng)
    if made_up:
        rows = invented(rows, split, unit=job.model.unit_rows)
    finished = prepare(job, rows).run(rng=rng)
    assert finished.graph is not None
    x, y = np.concatenate(list(rows.features.values())), np.concatenate(list(rows.labels.values()))
    theirs = LogisticRegression(C=1e3, max_iter=5000).fit(x, y)
    return accuracy(finished.graph, rows.test_x, rows.test_y), float(theirs.score(rows.test_x, rows.test_y))


def invented(rows: Rows, seed: int, *, unit: bool) -> Rows:
    """Return made-up records of the sizes of real ones: a few hidden factors, classes from a logistic model of them."""
    rng, width = np.random.default_rng(seed), rows.preprocess.features
    mix, weights = rng.normal(size=(5, width)), rng.normal(size=5)

    def some(count: int) -> tuple[np.ndarray, np.ndarray]:
        hidden = rng.normal(size=(count, 5))
        x = np.clip(0.2 * hidden @ mix + 0.2 * rng.normal(size=(count, width)), -1, 1)
        y = rng.random(count) < 1 / (1 + np.exp(-2 * hidden @ weights))
        return (x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x), y.astype(np.int64)

    made = {name: some(len(labels)) for name, labels in rows.labels.items()}
    test_x, test_y = some(len(rows.test_y))
    return replace(
        rows,
        features={name: x for name, (x, _) in made.items()},
        labels={name: y for name, (_, y) in made.items()},
        test_x=test_x,
        test_y=test_y,
    )


def chosen(found: Mapping[str, tuple[Sections, int]], splits: range) -> tuple[int, float]:
    """Return passes and rate by mean accuracy on made-up records of all sets' sizes, and print every try."""
    means: dict[tuple[int, float], float] = {}
    for passes, rate in TRIES:
        right = [
            trained(private_job(data, records, passes, rate), split, made_up=True)[0]
            for data, records in found.values()
            for split in splits
        ]
        means[passes, rate] = float(np.mean(right))
        print(f"made-up records: {passes} passes at rate {rate:g}: {100 * means[passes, rate]:.1f} %", flush=True)
    return max(means, key=lambda one: means[one])


def row(name: str, sections: Mapping[str, Any], splits: range) -> Figure:
    """Return the mean accuracy over the splits beside scikit-learn's on the same records."""
    both = 100 * np.array([trained(sections, split) for split in splits])
    note = f"+- {interval(both[:, 0]):.1f}, difference {np.mean(both[:, 0] - both[:, 1]):+.1f}"
    return Figure(name, float(both[:, 0].mean()), "%", "scikit-learn, pooled", float(both[:, 1].mean()), note=note)


def main() -> None:
    """Choose, train, print, write."""
    parser = command_line(__doc__)
    parser.add_argument("--splits", type=int, default=6)
    given = parser.parse_args()
    splits = range(1, given.splits + 1)
    print(machine())
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as place:
        found = sets(Path(place))
        print(f"without privacy: {TRAIN}, {SHARES}")
        for name, (data, _) in found.items():
            for loss in ("logistic", "sigmoid"):
                figures.append(row(f"{name}, {loss}", open_job(data, loss), splits))
                show(figures[-1:], digits=1)
        passes, rate = chosen(found, splits)
        print(f"epsilon = {EPSILON:g}, delta = {DELTA:g}, unit rows, full batches: {passes} passes at rate {rate:g}")
        for name, (data, records) in found.items():
            figures.append(row(f"{name}, epsilon {EPSILON:g}", private_job(data, records, passes, rate), splits))
            show(figures[-1:], digits=1)
    write(figures, given.json)


if __name__ == "__main__":
    main()
