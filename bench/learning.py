"""What epsilon = 1 costs: private models beside the same ones without privacy and the best without privacy.

    python bench/learning.py [--seeds 20] [--only NAME] [--json FILE]

Every row runs a job file of examples/learning/: the federated loop over four parties, masked sums, the integer noise
split among them. A seed fixes split and noise so that figures repeat; for
that reason these runs make no claim, they compute what one that does computes. Where a set has a fixed test part the
seeds change the noise alone. The settings were fixed without the test records (docs/private-learning.md says how).

Of the hospitals the figure is the mean of their accuracies on patients of their own, as FLamby's.

"Same" is the same model on the same features without noise, over the pooled records: the better of the job's own steps
and of Newton's method for 40 rounds. "Best" is the better of logistic regression on
standardised features, a random forest and histogram gradient boosting, at scikit-learn's defaults, which see records
that nothing private may.

Beside them, where bench/peers/diffprivlib/.venv exists (`confide peers install diffprivlib --folder
bench/peers`), Diffprivlib's logistic regression on the same columns; the naive network on images is in bench/dpsgd.py.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, at_least, at_most, command_line, interval, write
from hospital_tables import hospital_tables
from image_tables import SOURCES, image_tables
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from confide.crypto.random import SeededRandomness
from confide.model.graph import Graph
from confide.train import Job, Prepared, load_data, parse, pooled_model, train
from confide.train.evaluate import accuracy
from confide.train.local import Silo

EXAMPLES = Path(__file__).parents[1] / "examples" / "learning"
SHARED = Path(__file__).parents[1] / "../shared/data"
PEER = Path(__file__).parent / "peers" / "diffprivlib"
PARTIES = ("north", "east", "south", "west")


@dataclass(frozen=True)
class Bars:
    """Largest losses in percentage points: against the same model, against the best, and the stretch of the first.

    Args:
        auc: largest loss of the area under the curve against the same model; None where there is no such bar.
    """

    same: float
    best: float
    stretch: float
    auc: float | None = None


BARS = {
    "breast_cancer": Bars(4.0, 5.0, 2.0),
    "digits": Bars(8.0, 10.0, 5.0),
    "adult": Bars(1.0, 1.5, 0.5),
    "pneumonia": Bars(3.0, 5.0, 2.0, auc=0.03),
}

#: Least accuracies in percent, bar and stretch, of sets whose bar is one; what costs hours is not run beside them.
LEAST = {"heart": (74.0, 77.0), "mnist": (97.5, 98.0)}

#: Whose accuracies are averaged, however many patients each has.
HOSPITALS = {"cleveland", "hungarian", "switzerland", "va"}


def place_of(name: str, folder: Path) -> Path | None:
    """Return where the job of a set can be run, with its tables beside it; None where its records are absent."""
    if name in SOURCES:
        return image_tables(name, folder, PARTIES)
    if name == "heart":
        return hospital_tables(folder)
    if name != "adult":
        return EXAMPLES / f"{name}.toml"
    source = SHARED / "adult"
    if not source.is_dir():
        return None
    for one in ("adult.toml", "adult.schema.toml"):
        shutil.copy(EXAMPLES / one, folder / one)
    heading = [*_adult_columns(), "income"]
    rows = list(_adult_rows(source / "adult.data.gz"))
    for number, party in enumerate(PARTIES):
        _write(folder / f"{party}.csv", heading, rows[number::4])
    _write(folder / "test.csv", heading, list(_adult_rows(source / "adult.test.gz")))
    return folder / "adult.toml"


def _adult_columns() -> list[str]:
    return [
        *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"),
        *("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country"),
    ]


def _adult_rows(path: Path) -> Iterator[list[str]]:
    with gzip.open(path, "rt") as file:
        yield from (row for row in csv.reader(file, skipinitialspace=True) if len(row) == 15)


def _write(path: Path, heading: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        writer.writerows(rows)


def private_runs(table: dict[str, Any], place: Path, seeds: int) -> Iterator[tuple[Job, Prepared, Graph]]:
    """Yield the job, its data and the private model for each seed."""
    for seed in range(seeds):
        table["job"]["seed"] = seed
        rng = SeededRandomness(f"learning {seed}")
        job = parse(table, base=place.parent)
        data = load_data(job, rng=rng)
        *_, done = train(job, data, rng=rng)
        yield job, data, done.model


def runs(place: Path, seeds: int) -> Iterator[tuple[float, ...]]:
    """Yield the accuracy of the private model, of the same without privacy and of the best, for each seed.

    After them the area under the curve of the first two, where there are two classes.
    """
    table: dict[str, Any] = tomllib.loads(place.read_text())
    fixed = "test" in table["data"]
    best, same = float("nan"), (float("nan"),) * 2
    for seed, (job, data, model) in enumerate(private_runs(table, place, seeds)):
        if not fixed or seed == 0:
            open_table = {key: value for key, value in table.items() if key != "privacy"}
            open_models = (_without_privacy(open_table, job, algorithm, place) for algorithm in ("as it is", "newton"))
            same = max((hits(model, open_data), area(model, open_data.test)) for model, open_data in open_models)
            kept = {key: value for key, value in table["train"].items() if key != "class_weights"}
            plain = {**open_table, "data": {**table["data"], "standardise": False}, "model": {}, "train": kept}
            if fixed:  # trees find their own bins
                whole = (place.parent / table["data"]["schema"]).read_text()
                (place.parent / "plain.schema.toml").write_text(re.sub(r", bins = \[[^]]*\]", "", whole))
                plain["data"]["schema"] = "plain.schema.toml"
            best = best_of(load_data(parse(plain, base=place.parent)))
        yield hits(model, data), same[0], best, area(model, data.test), same[1]


def hits(model: Graph, data: Prepared) -> float:
    """Return the accuracy on the test records: where parties set aside their own, the mean of the parties'."""
    if {silo.name for silo in data.held} >= HOSPITALS:
        return float(np.mean([accuracy(model, silo.x, silo.y) for silo in data.held]))
    return accuracy(model, data.test.x, data.test.y)


def area(model: Graph, test: Silo) -> float:
    """Return the area under the curve of a model's score for the second of two classes; NaN if there are more."""
    scores = model.apply(test.x)
    return float(roc_auc_score(test.y, scores[:, 0])) if scores.shape[1] == 1 else float("nan")


def _without_privacy(table: dict[str, Any], private: Job, algorithm: str, place: Path) -> tuple[Graph, Prepared]:
    """Return the pooled model without privacy, by a job's own steps or by another algorithm's, and its data."""
    own = {key: getattr(private.train, key) for key in ("rounds", "learning_rate") if algorithm == "as it is"}
    if private.train.algorithm == "fedavg" and own:
        own["momentum"] = private.train.momentum
    other = {} if own else {"algorithm": algorithm, "rounds": 40}
    given = {key: value for key, value in table["train"].items() if own or key not in ("learning_rate", "solver")}
    if private.train.algorithm == "statistics" and own:
        own = {}
    job = parse({**table, "train": {**given, **own, **other}}, base=place.parent)
    data = load_data(job, rng=SeededRandomness("without privacy"))
    return pooled_model(job, data), data


def best_of(data: Any) -> float:
    """Return the best accuracy of three models that see everything."""
    x, y = (np.concatenate([getattr(silo, part) for silo in data.silos]) for part in ("x", "y"))
    models = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        RandomForestClassifier(random_state=0),
        HistGradientBoostingClassifier(random_state=0),
    )
    tests = data.held if {silo.name for silo in data.held} >= HOSPITALS else (data.test,)
    fitted = [model.fit(x, y) for model in models]
    return max(float(np.mean([model.score(one.x, one.y) for one in tests])) for model in fitted)


def naive(name: str, place: Path, seeds: int) -> list[Figure]:
    """Return what Diffprivlib's logistic regression gives, where bench/peers/diffprivlib/.venv is; columns only."""
    python = PEER / ".venv" / "bin" / "python"
    if name in SOURCES or not python.exists():
        return []
    table: dict[str, Any] = tomllib.loads(place.read_text())
    plain = {"job": table["job"], "data": {**table["data"], "standardise": False}, "train": {"quorum": 4}}
    data = load_data(parse(plain, base=place.parent))
    x, y = (np.concatenate([getattr(silo, part) for silo in data.silos]) for part in ("x", "y"))
    tests = data.held if name == "heart" else (data.test,)
    arrays = {"x": x, "y": y, "tests": np.repeat(np.arange(len(tests)), [len(one.y) for one in tests])}
    arrays |= {f"{part}_test": np.concatenate([getattr(one, part) for one in tests]) for part in ("x", "y")}
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **arrays)
        file.flush()
        done = subprocess.run([python, PEER / "logistic.py", file.name, str(seeds)], capture_output=True, check=True)
    found = 100 * np.array(json.loads(done.stdout))
    print(f"{'':15}Diffprivlib's logistic regression at epsilon 1: {found.mean():.2f} +- {interval(found):.2f}")
    return [Figure(f"{name}, Diffprivlib at epsilon 1", float(found.mean()), "%", "Diffprivlib 0.6.6")]


def federated(name: str, place: Path) -> list[Figure]:
    """Compare the federation's model with that of the pooled records, both without privacy, after as many passes."""
    table: dict[str, Any] = tomllib.loads(place.read_text())
    job = parse({key: value for key, value in table.items() if key != "privacy"}, base=place.parent)
    data = load_data(job)
    *_, done = train(job, data)
    apart, passes = 100 * (hits(pooled_model(job, data), data) - hits(done.model, data)), done.number / job.train.rounds
    print(
        f"{'':15}without privacy the federation is {apart:.2f} points from pooled (bar 1), {passes:g} x its passes "
        "(bar 2)"
    )
    return [
        Figure(
            f"{name}, federated from pooled, without privacy", apart, "points", None, None, 1.0, at_most(apart, 1.0)
        ),
        Figure(f"{name}, passes of the federation", passes, "x pooled", None, None, 2.0, at_most(passes, 2.0)),
    ]


def measure(name: str, place: Path, seeds: int) -> list[Figure]:
    """Run one set, print its line, and return its figures."""
    if name in LEAST:
        return measure_alone(name, place, seeds)
    found = 100 * np.array(list(runs(place, seeds)))
    private, same, best = found.mean(axis=0)[:3]
    lost, further = found[:, 1] - found[:, 0], found[:, 2] - found[:, 0]
    bars = BARS[name]
    print(
        f"{name:15}{private:8.2f} +- {interval(found[:, 0]):4.2f}{same:9.2f}{best:9.2f}"
        f"{lost.mean():9.2f} +- {interval(lost):4.2f} (bar {bars.same:g}, stretch {bars.stretch:g})"
        f"{further.mean():9.2f} (bar {bars.best:g})",
        flush=True,
    )
    less, more = float(lost.mean()), float(further.mean())
    areas: list[Figure] = []
    if bars.auc is not None:
        smaller = (found[:, 4] - found[:, 3]) / 100
        drop = float(smaller.mean())
        print(f"{'':15}area under the curve lost {drop:.4f} +- {interval(smaller):.4f} (bar {bars.auc:g})", flush=True)
        areas = [Figure(f"{name}, area lost against the same", drop, "", None, None, bars.auc, at_most(drop, bars.auc))]
    return [
        *areas,
        Figure(f"{name}, accuracy at epsilon 1", float(private), "%", "the same without privacy", float(same)),
        Figure(f"{name}, lost against the same", less, "points", None, None, bars.same, at_most(less, bars.same)),
        Figure(
            f"{name}, lost against the best", more, "points", "best", float(best), bars.best, at_most(more, bars.best)
        ),
        Figure(f"{name}, half of the 95 % interval of the loss", interval(lost), "points"),
    ]


def measure_alone(name: str, place: Path, seeds: int) -> list[Figure]:
    """Run the private model of a set whose bar is an accuracy, print its line, and return its figures."""
    table: dict[str, Any] = tomllib.loads(place.read_text())
    found = np.array([100 * hits(model, data) for _, data, model in private_runs(table, place, seeds)])
    private, (bar, stretch) = float(found.mean()), LEAST[name]
    print(f"{name:15}{private:8.2f} +- {interval(found):4.2f} (bar {bar:g}, stretch {stretch:g})", flush=True)
    return [
        Figure(f"{name}, accuracy at epsilon 1", private, "%", None, None, bar, at_least(private, bar)),
        Figure(f"{name}, half of the 95 % interval", interval(found), "%"),
    ]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", choices=[*BARS, *LEAST])
    options = parser.parse_args()
    print(f"{'set':15}{'private %':>16}{'same':>9}{'best':>9}{'lost, same':>17}{'lost, best':>40}")
    figures: list[Figure] = []
    for name in [options.only] if options.only else [*BARS, *LEAST]:
        with tempfile.TemporaryDirectory() as folder:
            place = place_of(name, Path(folder))
            if place is None:
                print(f"{name:15} left out: its records are not in ../shared/data")
                continue
            figures += measure(name, place, options.seeds)
            figures += federated(name, place)
            figures += naive(name, place, options.seeds)
    write(figures, options.json)


if __name__ == "__main__":
    main()
