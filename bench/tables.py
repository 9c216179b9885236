"""Trees for tables: private trees over four silos at epsilon 1 and 3, beside pooled trees without privacy.

    python bench/tables.py [--only adult fraud] [--epsilon 1 3] [--seeds 20] [--json FILE]

Prints, with 95 % intervals over the seeds: the AUC on Adult's test file and the average precision (AUPRC) on 30 % of
the fraud records, of

    ours            a whole job: model.kind = "trees" with [privacy], four silos, quorum 4, one colluding
    scikit-learn    HistGradientBoostingClassifier on the pooled records, without privacy: what the bars are against
    Diffprivlib     its random forest on the pooled records, where bench/peers/diffprivlib/.venv exists (as
                    bench/learning.py says), 5 seeds; its claim is (epsilon, 0), which is stronger, for one holder

and the drop, seed by seed. Adult's records are fixed, so its seeds are of the noise; fraud's are of the split as well.
The bars are drops of at most .015 (Adult) and .05 (fraud) at epsilon 1, half of that at epsilon 3.

The records are read from ../shared/data and left there; what is absent is left out with a line that says so.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, at_most, command_line, interval, verdict, write
from learning import PARTIES, place_of
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, roc_auc_score

from confide.crypto.random import SeededRandomness
from confide.train.job import parse
from confide.train.run import load_data, train

FRAUD = Path(__file__).parents[1] / "../shared/data/creditcard_fraud/creditcard_fraud_subset.npz"

PEER = Path(__file__).parent / "peers" / "diffprivlib"

#: Largest drops against trees without privacy, at epsilon 1; at 3 it is half.
BARS = {"adult": 0.015, "fraud": 0.05}

#: Records of a training, public.
RECORDS = {"adult": 32_561, "fraud": 9_328}

_TEST_SHARE = 0.3
_PEER_SEEDS = 5  # of 100 trees, which take a minute each


@dataclass(frozen=True)
class Row:
    """A line of the table: what the mean is of, over how many seeds, and half of its 95 % interval."""

    what: str
    data: str
    epsilon: float
    mean: float
    half_width: float
    seeds: int
    bar: float | None = None
    met: bool | None = None

    def figures(self) -> list[Figure]:
        title = f"{self.data}, epsilon {self.epsilon:g}, {self.what}"
        return [
            Figure(title, self.mean, "share", bar=self.bar, met=self.met),
            Figure(f"{title}, half of the 95 % interval", self.half_width, "share"),
        ]


def row_of(what: str, data: str, epsilon: float, values: list[float], bar: float | None = None) -> Row:
    """Return the row of a score of each seed; a bar is the most that the mean may be."""
    mean = float(np.mean(values))
    return Row(what, data, epsilon, mean, interval(values), len(values), bar, at_most(mean, bar))


def adult_place(folder: Path) -> Path | None:
    """Write Adult's tables, and its schema without bins: even intervals between the bounds are enough."""
    place = place_of("adult", folder)
    if place is None:
        return None
    schema = folder / "adult.schema.toml"
    schema.write_text(re.sub(r", bins = \[[^]]*\]", "", schema.read_text()))
    return schema


def fraud_place(folder: Path, seed: int) -> Path | None:
    """Write four banks' tables and a test table of a random split."""
    if not FRAUD.is_file():
        return None
    archive = np.load(FRAUD)
    x, y = archive["X"], archive["y"].astype(int)
    order = np.random.default_rng(seed).permutation(len(y))
    cut = int((1 - _TEST_SHARE) * len(y))
    names = ["time", *(f"v{number}" for number in range(1, 29)), "amount"]
    parts = {party: order[:cut][number::4] for number, party in enumerate(PARTIES)} | {"test": order[cut:]}
    for name, rows in parts.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*names, "fraud"])
            writer.writerows([*(f"{value:.6g}" for value in x[row].tolist()), int(y[row])] for row in rows)
    schema = folder / "fraud.schema.toml"
    columns = [f'{name} = {{ type = "number", low = -50, high = 50, outside = "clip" }}' for name in names[1:-1]]
    lines = [
        'name = "fraud"',
        'source = "principal components without units: wide round bounds; two days in seconds; euros"',
        '[label]\nname = "fraud"\nclasses = ["0", "1"]\n[columns]',
        'time = { type = "number", low = 0, high = 172800, outside = "clip" }',
        *columns,
        'amount = { type = "number", low = 0, high = 25000, outside = "clip" }',
    ]
    schema.write_text("\n".join(lines) + "\n")
    return schema


def job_table(name: str, schema: Path, epsilon: float, seed: int) -> dict[str, Any]:
    """Return the whole job: all that a user writes."""
    return {
        "job": {"name": name, "seed": seed},
        "data": {"schema": schema.name, "tables": {party: f"{party}.csv" for party in PARTIES}, "test": "test.csv"},
        "model": {"kind": "trees"},
        "train": {"expected_records": RECORDS[name] // 4, "quorum": 4},
        "privacy": {"epsilon": epsilon, "expected_records": RECORDS[name], "colluding": 1},
    }


def scores(name: str, epsilons: list[float], seeds: int) -> Iterator[tuple[float, int, float, float]]:
    """Yield (epsilon, seed, the private score, the score without privacy)."""
    judge = roc_auc_score if name == "adult" else average_precision_score
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            place = Path(folder) / (name if name == "adult" else f"{name}-{seed}")
            place.mkdir(exist_ok=True)
            if seed and name == "adult":
                schema: Path | None = place / "adult.schema.toml"
            else:
                schema = adult_place(place) if name == "adult" else fraud_place(place, seed)
                best = math.nan
            if schema is None:
                print(f"{name}: no records beside this repository; left out", file=sys.stderr)
                return
            data = None
            for epsilon in epsilons:
                job = parse(job_table(name, schema, epsilon, seed), base=place)
                if data is None:
                    data = load_data(job, rng=SeededRandomness(f"tables {seed}"))
                if math.isnan(best):
                    best = judge(*_without_privacy(name, place, seed))
                *_, done = train(job, data, rng=SeededRandomness(f"tables {seed} {epsilon}"))
                yield epsilon, seed, float(judge(data.test.y, done.model.apply(data.test.x)[:, 0])), float(best)


def _without_privacy(name: str, place: Path, seed: int) -> tuple[Any, Any]:
    """Return the test labels and the scores of pooled trees, from the raw columns."""
    tables = [_raw(place / f"{part}.csv") for part in (*PARTIES, "test")]
    columns = list(zip(*(row for table in tables for row in table), strict=True))
    numeric = [_is_number(column) for column in columns[:-1]]
    codes = [
        np.array(column, float) if number else np.unique(column, return_inverse=True)[1].astype(float)
        for column, number in zip(columns[:-1], numeric, strict=True)
    ]
    x, y = np.stack(codes, axis=1), np.array([label.startswith((">50K", "1")) for label in columns[-1]])
    cut = len(x) - len(tables[-1])
    model = HistGradientBoostingClassifier(categorical_features=[not number for number in numeric], random_state=seed)
    return y[cut:], model.fit(x[:cut], y[:cut]).predict_proba(x[cut:])[:, 1]


def _raw(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def _is_number(column: tuple[str, ...]) -> bool:
    try:
        np.array(column, float)
    except ValueError:
        return False
    return True


def peer(name: str, folder: Path, epsilon: float, seeds: int) -> Iterator[Row]:
    """Yield what Diffprivlib's forests reach on the records of the first seed."""
    if not (PEER / ".venv").is_dir():
        print("no environment in bench/peers/diffprivlib/.venv: the peer is left out", file=sys.stderr)
        return
    schema = adult_place(folder) if name == "adult" else fraud_place(folder, 0)
    if schema is None:
        return
    data = load_data(parse(job_table(name, schema, epsilon, 0), base=folder), rng=SeededRandomness("peer"))
    arrays = folder / "arrays.npz"
    x, y = (np.concatenate([getattr(silo, part) for silo in data.silos]) for part in ("x", "y"))
    np.savez(arrays, x=x, y=y, x_test=data.test.x, y_test=data.test.y)
    command = [PEER / ".venv/bin/python", PEER / "forest.py", arrays, str(epsilon), str(seeds)]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    for forest, pairs in json.loads(told.stdout).items():
        measure, place = ("AUC", 0) if name == "adult" else ("AUPRC", 1)
        yield row_of(f"{measure}, Diffprivlib, {forest}", name, epsilon, [pair[place] for pair in pairs])


def rows_of(name: str, found: list[tuple[float, int, float, float]]) -> Iterator[Row]:
    """Yield the rows of a data set."""
    measure = "AUC" if name == "adult" else "AUPRC"
    for epsilon in sorted({row[0] for row in found}):
        pairs = [(ours, best) for asked, _, ours, best in found if asked == epsilon]
        bar = BARS[name] * (1.0 if epsilon <= 1 else 0.5)
        yield row_of(measure, name, epsilon, [ours for ours, _ in pairs])
        yield row_of(f"{measure} without privacy", name, epsilon, [best for _, best in pairs])
        yield row_of("drop", name, epsilon, [best - ours for ours, best in pairs], bar)


def peers(name: str, asked: argparse.Namespace) -> Iterator[Row]:
    """Yield the peer's rows at every epsilon."""
    with tempfile.TemporaryDirectory() as folder:
        for epsilon in asked.epsilon:
            yield from peer(name, Path(folder), epsilon, min(_PEER_SEEDS, asked.seeds))


def main() -> None:
    """Run the table."""
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--epsilon", nargs="+", type=float, default=[1.0, 3.0])
    parser.add_argument("--seeds", type=int, default=20)
    asked = parser.parse_args()
    kept = list[Figure]()
    for name in asked.only:
        begin = time.perf_counter()
        ours = rows_of(name, list(scores(name, asked.epsilon, asked.seeds)))
        for row in itertools.chain(ours, peers(name, asked)):
            told = "" if row.bar is None else f"  {verdict(row.bar, row.met)}"
            print(
                f"{name:6} epsilon {row.epsilon:g}  {row.what:44} {row.mean:.4f} +- {row.half_width:.4f}"
                f"  {row.seeds} seeds{told}",
                flush=True,
            )
            kept += row.figures()
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
    write(kept, asked.json)


if __name__ == "__main__":
    main()
