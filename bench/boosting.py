"""Boosted trees over four silos: their speed and their accuracy beside the same records in one place, without privacy.

    python bench/boosting.py [--rows 100000] [--trees 100] [--repeats 3] [--seeds 20] [--only PART] [--json FILE]

speed: --trees trees of depth 6 over four silos of --rows records, 30 columns of 255 intervals, in one process, from raw
numbers to the model, under plain, amortised and masked sums. The peer is scikit-learn's histogram gradient boosting
with the same depth, leaves, rate and ridge on the pooled records. Both may use all cores. Repeats take turns after one
small run of each, so that a busy minute hits all alike; the figure is the ratio of the medians. Processor seconds stand
beside them: a busy machine changes those less. One more run under the profiler says what takes the time.

adult, fraud: one tree of the default [trees] after the other over four silos, against our trees of the pooled records
(which must be the same bits) and against scikit-learn's at its defaults on the same columns before any preparation.
Adult has a test part of its own; fraud is split anew for each seed, 70 to 30, and who holds which record is drawn too.
No setting was chosen by these records.

Peers: LightGBM at its defaults where bench/peers/lightgbm/.venv exists, and Flower's strategies for XGBoost, where
bench/peers/flower_xgboost/.venv does: bagging and cyclic, with our depth and rate, and as many trees; "4 x", on Adult,
has as many rounds as we have trees. Categories are one column each for XGBoost: Flower's examples know numbers only.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, at_most, command_line, interval, spread, write
from fraud_tables import BANKS, fraud_tables
from learning import PARTIES, place_of
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, roc_auc_score

from confide.crypto.random import SystemRandomness
from confide.data.schema import Category, Schema
from confide.data.table import Table, read_table
from confide.model.graph import Graph
from confide.model.preprocess import Preprocess, Scale
from confide.model.zoo import boosted
from confide.train import load_data, parse, pooled_model, train
from confide.train.boosting import Boosting
from confide.train.local import Silo, flatten
from confide.train.parts import aggregator_named, even_edges
from confide.train.rounds import federate
from confide.train.sections import TrainSection, TreesSection

HERE = Path(__file__).parent
SILOS, COLUMNS, DEPTH, BINS, RATE = 4, 30, 6, 255, 0.1

#: Largest times, in those of the pooled peer, by who sums.
SPEED_BARS = {"plain": 3.0, "amortised": 6.0, "masked": 6.0}

#: Largest loss of the area under the curve against the pooled peer.
AUC_BAR = 0.002

#: What takes the time: functions whose own calls count with them, by the end of their file and their name.
PARTS = {
    "sums of gradients": [("train/histograms.py", "histograms")],
    "records on their way down": [("train/tree_records.py", "_descend")],
    "gradients": [("train/tree_records.py", "_derive")],
    "codes of the records": [("train/tree_columns.py", "codes_of"), ("model/preprocess.py", "apply")],
    "choosing splits": [("train/tree_splits.py", "best")],
    "hashing": [("train/course.py", "parameters_hash")],
    "encoding": [("confide/wire.py", "encode"), ("confide/wire.py", "decode")],
}

Peer = Callable[[], dict[str, float] | None]


@dataclass(frozen=True)
class Pooled:
    """Records in one place, as peers take them.

    Args:
        x, x_test: numbers and codes of categories, shape (n, columns); NaN where missing.
        y, y_test: classes, shape (n,).
        silo: who holds each record, shape (n,).
        levels: of each column of categories; 0 for numbers.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    silo: np.ndarray
    levels: tuple[int, ...]

    @property
    def category(self) -> np.ndarray:
        return np.array(self.levels) > 0

    def one_hot(self, x: np.ndarray) -> np.ndarray:
        """Return x with a column for each category."""
        parts = [
            (own[:, None] == np.arange(levels)).astype(float) if levels else own[:, None]
            for own, levels in zip(x.T, self.levels, strict=True)
        ]
        return np.concatenate(parts, axis=1)


# --- speed ------------------------------------------------------------------------------------------------------------


def made_records(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers from 0 to 1, shape (rows, COLUMNS), and classes that depend on five of them."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (rows, COLUMNS))
    logit = 4 * (x[:, 0] - 0.5) + 3 * np.sin(6 * x[:, 1]) * x[:, 2] + 2 * (x[:, 3] > 0.5) * (x[:, 4] - 0.5)
    return x, (rng.uniform(size=rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)


def ours(x: np.ndarray, y: np.ndarray, trees: int, aggregate: str) -> Callable[[np.ndarray], np.ndarray]:
    """Train over four silos, from raw numbers; return what scores records."""
    names = [f"c{number}" for number in range(COLUMNS)]
    edges = even_edges(0, 1, BINS)
    rules = tuple(Scale(name=name, low=0.0, high=1.0, bins=edges, ordinal=True) for name in names)
    preprocess = Preprocess(rules)
    settings = TrainSection(
        rounds=1 + trees * DEPTH,
        learning_rate=RATE,
        momentum=0.0,
        average=0.0,
        weight_decay=0.0,
        algorithm="boosting",
        expected_records=len(x) // SILOS,
        aggregate=aggregate,
    )

    def features(rows: np.ndarray) -> np.ndarray:
        return preprocess.apply(dict(zip(names, rows.T, strict=True)))

    silos = [Silo(f"s{k}", features(x[k::SILOS]), y[k::SILOS]) for k in range(SILOS)]
    asked = TreesSection(count=trees, depth=DEPTH, bins=BINS)
    encoding = Boosting(boosted(COLUMNS, trees, DEPTH), settings, asked, preprocess)
    aggregator = aggregator_named(settings, SILOS, of_updates=False)
    *_, done = federate(silos, encoding, settings, aggregator=aggregator, rng=SystemRandomness())
    return lambda rows: done.model.apply(features(rows))[:, 0]


def pooled_peer(x: np.ndarray, y: np.ndarray, trees: int) -> Callable[[np.ndarray], np.ndarray]:
    """Train scikit-learn's trees on all records; return what scores records."""
    model = HistGradientBoostingClassifier(
        max_iter=trees,
        max_depth=DEPTH,
        max_leaf_nodes=2**DEPTH,
        max_bins=BINS,
        learning_rate=RATE,
        l2_regularization=1.0,
        early_stopping=False,
    ).fit(x, y)
    return lambda rows: model.predict_proba(rows)[:, 1]


def speed(rows: int, trees: int, repeats: int) -> list[Figure]:
    """Print and return what 100 trees take."""
    x, y = made_records(rows * SILOS)
    new, new_y = made_records(rows * SILOS + 20_000)
    new, new_y = new[-20_000:], new_y[-20_000:]
    sides: dict[str, Callable[[np.ndarray, np.ndarray, int], Callable[[np.ndarray], np.ndarray]]] = {
        "scikit-learn": pooled_peer,
        **{name: lambda x, y, trees, name=name: ours(x, y, trees, name) for name in SPEED_BARS},
    }
    for side in sides.values():
        side(x[:4000], y[:4000], 2)
    wall: dict[str, list[float]] = {name: [] for name in sides}
    busy: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, float] = {}
    for _ in range(repeats):
        for name, side in sides.items():
            begin, used = time.perf_counter(), time.process_time()
            apply = side(x, y, trees)
            wall[name].append(time.perf_counter() - begin)
            busy[name].append(time.process_time() - used)
            scores[name] = roc_auc_score(new_y, apply(new))
    load = os.getloadavg()[0]
    print(
        f"{trees} trees of depth {DEPTH}, {SILOS} x {rows} records, {COLUMNS} columns, load of the machine {load:.1f}"
    )
    print(f"{'':14}{'seconds [fastest to slowest]':>30}{'processor':>11}{'ratio':>7}{'bar':>5}{'AUC':>8}")
    figures: list[Figure] = []
    peer = statistics.median(wall["scikit-learn"])
    for name, found in wall.items():
        middle, ratio, bar = statistics.median(found), statistics.median(found) / peer, SPEED_BARS.get(name)
        times = f"{middle:.2f} [{spread(found)}]"
        limit = "" if bar is None else f"{bar:g}"
        print(f"{name:14}{times:>30}{statistics.median(busy[name]):11.2f}{ratio:7.2f}{limit:>5}{scores[name]:8.4f}")
        if bar is not None:
            figures += [
                Figure(f"{trees} trees, {SILOS} silos, {name}, time", middle, "s", "scikit-learn, pooled", peer),
                Figure(
                    f"{trees} trees, {SILOS} silos, {name}, ratio", ratio, "times", bar=bar, met=at_most(ratio, bar)
                ),
                Figure(
                    f"{trees} trees, {SILOS} silos, {name}, time of processors",
                    statistics.median(busy[name]),
                    "s",
                    "scikit-learn, pooled",
                    statistics.median(busy["scikit-learn"]),
                ),
            ]
    for name in SPEED_BARS:
        show_parts(name, lambda name=name: ours(x, y, trees, name))
    return figures


def show_parts(name: str, work: Callable[[], object]) -> None:
    """Print which part of the time is what, from one run under the profiler."""
    profile = cProfile.Profile()
    profile.runcall(work)
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    whole = sum(own[2] for own in stats.values())
    shares = {
        part: sum(
            row[3] for (file, _, function), row in stats.items() for end, call in calls
            if file.endswith(end) and function == call
        )
        for part, calls in PARTS.items()
    }  # fmt: skip
    shares["the rest: sums, masks, checks, the loop"] = whole - sum(shares.values())
    told = ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in shares.items())
    print(f"{name}, {whole:.1f} s under the profiler: {told}")


# --- accuracy ---------------------------------------------------------------------------------------------------------


def raw(table: Table, schema: Schema) -> np.ndarray:
    """Return a table's columns as numbers and codes, NaN where missing."""
    found: list[np.ndarray] = []
    for column in schema.columns:
        values = table.columns[column.name]
        if isinstance(column, Category):
            place = {category: float(code) for code, category in enumerate(column.categories)}
            found.append(np.array([place.get(str(value), np.nan) for value in values]))
        else:
            found.append(np.asarray(values, float))
    return np.stack(found, axis=1)


def pooled_records(folder: Path, schema: Schema, tables: dict[str, str], test: str) -> Pooled:
    """Read what peers are given."""
    parts, last = [read_table(folder / name, schema) for name in tables.values()], read_table(folder / test, schema)
    return Pooled(
        x=np.concatenate([raw(part, schema) for part in parts]),
        y=np.concatenate([part.labels for part in parts]),
        x_test=raw(last, schema),
        y_test=last.labels,
        silo=np.repeat(np.arange(len(parts)), [part.n for part in parts]),
        levels=tuple(len(one.categories) if isinstance(one, Category) else 0 for one in schema.columns),
    )


def measured(scores: np.ndarray, y: np.ndarray, seconds: float) -> dict[str, float]:
    return {"auc": roc_auc_score(y, scores), "auprc": average_precision_score(y, scores), "seconds": seconds}


def federated(folder: Path, schema: str, tables: dict[str, str], test: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what our trees reach over the silos and pooled."""
    records = sum(read_table(folder / name, Schema.load(folder / schema)).n for name in tables.values())
    job = parse(
        {
            "data": {"schema": schema, "tables": tables, "test": test},
            "model": {"kind": "trees"},
            "train": {"expected_records": records // SILOS, "aggregate": "plain"},  # others give the same bits
        },
        base=folder,
    )
    begin = time.perf_counter()
    data = load_data(job)
    *_, done = train(job, data)
    seconds = time.perf_counter() - begin
    yield "four silos", measured(done.model.apply(data.test.x)[:, 0], data.test.y, seconds)
    begin = time.perf_counter()
    together: Graph = pooled_model(job, data)
    seconds = time.perf_counter() - begin
    if not np.array_equal(flatten(together), flatten(done.model)):
        raise SystemExit("The trees of the silos are not those of the pooled records")
    yield "the same, pooled", measured(together.apply(data.test.x)[:, 0], data.test.y, seconds)


def scikit(pooled: Pooled) -> dict[str, float]:
    """Return what scikit-learn's trees reach at their defaults."""
    begin = time.perf_counter()
    model = HistGradientBoostingClassifier(categorical_features=pooled.category, random_state=0)
    model.fit(pooled.x, pooled.y)
    seconds = time.perf_counter() - begin
    return measured(model.predict_proba(pooled.x_test)[:, 1], pooled.y_test, seconds)


def elsewhere(folder: str, script: str, arrays: dict[str, np.ndarray], settings: dict[str, Any], y: np.ndarray):
    """Return what a peer of another environment reaches; None where that is not installed."""
    python = HERE / "peers" / folder / ".venv" / "bin" / "python"
    if not python.exists():
        return None
    with tempfile.TemporaryDirectory() as place:
        given, scores = Path(place) / "arrays.npz", Path(place) / "scores.npy"
        np.savez(given, **arrays)
        command = [python, HERE / "peers" / folder / script, given, json.dumps(settings), scores]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode:
            raise SystemExit(f"{folder} failed:\n{done.stderr[-2000:]}")
        return measured(np.load(scores), y, json.loads(done.stdout.splitlines()[-1])["seconds"])


def peers(pooled: Pooled, *, longest: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what others reach.

    Args:
        longest: also what takes a minute.
    """
    yield "scikit-learn, pooled", scikit(pooled)
    arrays = {"x": pooled.x, "y": pooled.y, "x_test": pooled.x_test, "category": pooled.category}
    found = elsewhere("lightgbm", "trees.py", arrays, {"num_iterations": 100, "seed": 0}, pooled.y_test)
    if found:
        yield "LightGBM, pooled", found
    arrays = {"x": pooled.one_hot(pooled.x), "y": pooled.y, "x_test": pooled.one_hot(pooled.x_test)}
    asked, arrays["silo"] = TreesSection(), pooled.silo
    settings = {"eta": RATE, "max_depth": asked.depth, "tree_method": "hist"}
    runs = [("Flower, bagging", "bagging", asked.count // SILOS), ("Flower, cyclic", "cyclic", asked.count)]
    runs += [("Flower, bagging, 4 x", "bagging", asked.count)] if longest else []
    for name, strategy, rounds in runs:
        more = {"strategy": strategy, "rounds": rounds, "xgboost": settings}
        if found := elsewhere("flower_xgboost", "boost.py", arrays, more, pooled.y_test):
            yield f"{name}, four silos", found


def adult(folder: Path) -> list[tuple[str, dict[str, float]]] | None:
    """Return what each side reaches on Adult; None where it is absent."""
    if place_of("adult", folder) is None:
        return None
    place = folder / "adult.schema.toml"
    lines = [
        line.split(", bins = [")[0] + (" }" if ", bins = [" in line else "") for line in place.read_text().split("\n")
    ]
    place.write_text("\n".join(lines))
    tables = {name: f"{name}.csv" for name in PARTIES}
    pooled = pooled_records(folder, Schema.load(place), tables, "test.csv")
    return [*federated(folder, place.name, tables, "test.csv"), *peers(pooled, longest=True)]


def fraud(folder: Path, seed: int) -> list[tuple[str, dict[str, float]]] | None:
    """Return what each side reaches on one split of the card payments; None where they are absent."""
    if not fraud_tables(folder, seed):
        return None
    tables = {name: f"{name}.npz" for name in BANKS}
    pooled = pooled_records(folder, Schema.load(folder / "schema.toml"), tables, "test.npz")
    return [*federated(folder, "schema.toml", tables, "test.npz"), *peers(pooled, longest=False)]


def accuracy(name: str, seeds: int) -> list[Figure]:
    """Print and return what the sides reach on a data set."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as place:
            sides = adult(Path(place)) if name == "adult" else fraud(Path(place), seed)
        if sides is None:
            print(f"{name} is left out: its records are absent")
            return []
        for side, values in sides:
            found.setdefault(side, []).append(values)
    many = f"means of {seeds} splits, +- half of the 95 % interval" if seeds > 1 else "its own test part"
    print(f"\n{name}, {many}, load of the machine {os.getloadavg()[0]:.1f}")
    print(f"{'':34}{'AUC':>18}{'loss to ours':>20}{'AUPRC':>18}{'loss to ours':>20}{'seconds':>9}")
    own, figures = found["four silos"], list[Figure]()
    for side, rows in found.items():
        cells = [cell(rows, own, key) for key in ("auc", "auprc")]
        print(f"{side:34}{''.join(cells)}{statistics.median(row['seconds'] for row in rows):9.1f}")
        if side == "four silos":
            continue
        for key in ("auc", "auprc") if name == "fraud" else ("auc",):
            value, theirs = (float(np.mean([row[key] for row in part])) for part in (own, rows))
            bar = AUC_BAR if key == "auc" and side.startswith(("scikit", "the same")) else None
            met = at_most(theirs - value, bar)
            figures.append(Figure(f"{name}, {key.upper()}, four silos", value, "share", side, theirs, bar, met))
    return figures


def cell(rows: list[dict[str, float]], own: list[dict[str, float]], key: str) -> str:
    """Return a mean and how far ours is below it, with intervals where there are several."""
    values = np.array([row[key] for row in rows])
    lost = values - np.array([row[key] for row in own])
    told = [f"{one.mean():.4f}" + (f" +- {interval(one):.4f}" if len(one) > 1 else "") for one in (values, lost)]
    return f"{told[0]:>18}{told[1]:>20}"


def wait_calmly() -> None:
    """Begin anew with OpenMP's threads told not to spin while they wait, which peers take minutes for where others run.

    On an idle machine it makes no difference; on a busy one scikit-learn and XGBoost are up to ten times as fast so.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})


def main() -> None:
    """Run it."""
    wait_calmly()
    parser = command_line(__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="of each silo")
    parser.add_argument("--trees", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", choices=["speed", "adult", "fraud"])
    options = parser.parse_args()
    figures: list[Figure] = []
    if options.only in (None, "speed"):
        figures += speed(options.rows, options.trees, options.repeats)
    for name, seeds in (("adult", 1), ("fraud", options.seeds)):
        if options.only in (None, name):
            figures += accuracy(name, seeds)
    write(figures, options.json)


if __name__ == "__main__":
    main()
