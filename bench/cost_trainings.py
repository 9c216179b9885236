"""Trainings that see records, for bench/costs.py: on shares, and at one place; the records are made up.

The seconds of a training at one place are one party's local work in a federation as well: it takes the same steps.
"""

from __future__ import annotations

import csv
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from confide.compare.costs import Training
from confide.compare.links import LINKS
from confide.crypto.random import Randomness
from confide.mpc.training_plan import Rates, Task
from confide.train.job import parse
from confide.train.run import load_data, pooled_model
from confide.train.sections import TreesSection
from confide.train.shares.course import Course, Piece
from confide.train.shares.run import starting_weights
from confide.train.shares.simulate import simulate
from confide.wire import Transcript

BATCH = 128
#: parties, records, features, outputs, hidden units (0: a linear model), passes
ON_SHARES = [
    (4, 569, 30, 1, 0, 2), (4, 569, 30, 1, 0, 6), (4, 2000, 30, 1, 0, 2), (2, 300, 10, 1, 0, 8),
    (10, 4000, 60, 1, 0, 1), (4, 1000, 300, 1, 0, 2), (30, 1500, 30, 1, 0, 2), (4, 512, 784, 10, 0, 1),
    (4, 1500, 60, 1, 0, 4), (4, 3000, 200, 1, 0, 1), (4, 640, 60, 3, 0, 2), (4, 256, 784, 1, 0, 3),
    (4, 400, 30, 1, 16, 2), (4, 1000, 30, 1, 32, 1), (4, 256, 60, 1, 24, 4), (6, 640, 200, 3, 16, 1),
    (4, 512, 100, 1, 64, 1), (4, 256, 196, 10, 64, 1), (3, 384, 400, 10, 32, 2),
]  # fmt: skip
#: kind, records, features, hidden units, rounds (of trees: trees and depth)
AT_ONE_PLACE = [
    ("logistic", 250, 10, 0, (30,)), ("logistic", 1000, 30, 0, (30,)), ("logistic", 4000, 30, 0, (30,)),
    ("logistic", 1000, 100, 0, (60,)), ("logistic", 8000, 60, 0, (15,)), ("logistic", 2000, 300, 0, (30,)),
    ("mlp, square", 250, 10, 8, (30,)), ("mlp, square", 1000, 30, 16, (30,)), ("mlp, square", 4000, 30, 16, (60,)),
    ("mlp, square", 1000, 100, 64, (30,)), ("mlp, square", 8000, 30, 32, (15,)), ("mlp, square", 2000, 200, 32, (30,)),
    ("trees", 250, 10, 0, (10, 3)), ("trees", 1000, 30, 0, (20, 3)), ("trees", 4000, 30, 0, (20, 3)),
    ("trees", 1000, 30, 0, (20, 5)), ("trees", 4000, 10, 0, (50, 3)), ("trees", 1000, 60, 0, (10, 2)),
]  # fmt: skip


def on_shares(size: tuple[int, ...], rng: Randomness, repeats: int) -> dict[str, Any]:
    """Return the costs of one training on shares: dealing, sharing, every step, the opened model."""
    parties, records, features, outputs, hidden, passes = size
    task = Task(
        features=features, hidden=(hidden,) if hidden else (), outputs=outputs, loss="logistic",
        rates=Rates.of(learning_rate=1 / 16, batch=min(BATCH, records)),
    )  # fmt: skip
    stream, columns, given, pieces = np.random.default_rng(1), np.arange(features), {}, {}
    for number, rows in enumerate(np.array_split(np.arange(records), parties), 1):
        name = f"party-{number}"
        pieces[name] = Piece(rows, columns, targets=True)
        given[name] = stream.uniform(-1, 1, (len(rows), features)), stream.integers(0, 2, (len(rows), outputs)) * 1.0
    course = Course(task=task, pieces=pieces, rows=records, batch=min(BATCH, records), passes=passes, opened=True)
    done = [simulate(course, given, rng, start=starting_weights(task, 1)).transcript for _ in range(repeats)]
    products = features * hidden + hidden * outputs if hidden else features * outputs
    layers, nonlinear = (2, hidden + outputs) if hidden else (1, outputs)
    told = Training(parties, records, features, outputs, products, nonlinear, layers, passes, min(BATCH, records))
    return row_of("mpc", told, done)


def row_of(choice: str, size: Training, done: list[Transcript]) -> dict[str, Any]:
    """Return the medians over some runs."""

    def middle(delay: float, rate: float) -> float:
        return statistics.median(one.cost(latency_seconds=delay, bandwidth_bps=rate) for one in done)

    work, one = middle(0.0, 1e18), done[-1]
    still = one.cost(latency_seconds=0.0, bandwidth_bps=1e18)
    return asdict(size) | {
        "task": "training",
        "choice": choice,
        "compute_seconds": work,
        "bytes": round(one.cost(latency_seconds=0.0, bandwidth_bps=8.0) - still),
        "trips": round((one.cost(latency_seconds=1e3, bandwidth_bps=1e18) - still) / 1e3),
        "seconds": {link.name: middle(link.delay_seconds, link.bits_per_second) for link in LINKS.values()},
    }


def at_one_place(kind: str, records: int, features: int, hidden: int, rounds: tuple[int, ...], repeats: int) -> Any:
    """Return the seconds of a training on all records in the clear, which nothing is sent for."""
    with tempfile.TemporaryDirectory() as folder:
        write_tables(Path(folder), 2, records, features)
        model: dict[str, Any] = {"kind": kind.partition(",")[0]} | ({"hidden": hidden} if hidden else {})
        table: dict[str, Any] = {
            "data": {
                "schema": "schema.toml",
                "tables": {f"party-{n}": f"party-{n}.csv" for n in (1, 2)},
                "test_fraction": 0.1,
            },
            "model": model,
            "train": {"aggregate": "plain"},
        }
        if kind == "trees":
            table["trees"] = {"count": rounds[0], "depth": rounds[1]}
        else:
            table["train"]["rounds"] = rounds[0]
        job = parse(table, base=Path(folder))
        data = load_data(job)
        seconds = list[float]()
        for _ in range(repeats):
            begin = time.perf_counter()
            pooled_model(job, data)
            seconds.append(time.perf_counter() - begin)
    trees = kind == "trees"
    size = Training(
        parties=1,
        records=sum(len(silo.y) for silo in data.silos),
        features=features,
        outputs=1,
        products=TreesSection().bins * features if trees else (features + 1) * hidden if hidden else features,
        nonlinear=1 + hidden,
        layers=rounds[1] if trees else 1 + (hidden > 0),
        rounds=rounds[0] * rounds[1] if trees else rounds[0],
        batch=1 << 60,
    )
    middle = statistics.median(seconds)
    told = asdict(size) | {"task": "training", "choice": "local", "model": {"kind": model["kind"]}}
    if hidden:
        told["model"]["activation"] = "square"
    over = dict.fromkeys(LINKS, middle)
    return told | {"compute_seconds": middle, "bytes": 0, "trips": 0, "seconds": over}


def write_tables(folder: Path, parties: int, records: int, features: int) -> None:
    """Write a schema and made-up tables of so many records in all, whose first columns tell the class."""
    stream, names = np.random.default_rng(3), [f"x{number}" for number in range(features)]
    columns = "".join(f'{name} = {{ type = "number", low = -1, high = 1 }}\n' for name in names)
    classes = '[{ name = "no", values = ["0"] }, { name = "yes", values = ["1"] }]'
    head = f'name = "made up"\n\n[label]\nname = "y"\nclasses = {classes}\n\n[columns]\n'
    (folder / "schema.toml").write_text(head + columns)
    for number, count in enumerate(np.diff(np.linspace(0, records, parties + 1).astype(int)), 1):
        x = stream.uniform(-1, 1, (count, features))
        y = (x[:, : min(5, features)].sum(axis=1) + stream.normal(0, 0.3, count) > 0).astype(int)
        with (folder / f"party-{number}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*names, "y"])
            writer.writerows([*map(float, row), int(label)] for row, label in zip(x, y, strict=True))


def measured(rng: Randomness, repeats: int, only: list[str]) -> Iterator[dict[str, Any]]:
    """Yield every row of both grids."""
    few, more = min(repeats, 3), 2 * repeats + 1
    rows = []
    if not only or "mpc" in only:
        rows += [(size, lambda size=size: on_shares(size, rng, few)) for size in ON_SHARES]
    if not only or "local" in only:
        rows += [(size, lambda size=size: at_one_place(*size, more)) for size in AT_ONE_PLACE]
    for size, take in rows:
        row = take()
        print(f"{row['choice']:15s} {json.dumps(size)}: {1e3 * row['compute_seconds']:.2f} ms", flush=True)
        yield row
