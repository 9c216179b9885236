"""What epsilon = 1 costs: private models beside the same ones without privacy and the best without privacy.

    python bench/learning.py [--seeds 20] [--only NAME] [--json FILE]

Every row runs a job file of examples/learning/, the federated loop over four parties with the integer noise split among
them, in plain sums: the same integers as under masks, faster. A seed fixes split and noise so that figures repeat; for
that reason these runs make no claim, they compute what one that does computes. Where a set has a fixed test part the
seeds change the noise alone. The settings were fixed without the test records (docs/private-learning.md says how).

"Same" is the same model on the same features without noise, over the pooled records: the better of the job's own steps
and of Newton's method for 40 rounds. "Best" is the better of logistic regression on
standardised features, a random forest and histogram gradient boosting, at scikit-learn's defaults, which see records
that nothing private may.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from confide.crypto.random import SeededRandomness
from confide.train import Job, load_data, parse, pooled_model, train
from confide.train.evaluate import accuracy

EXAMPLES = Path(__file__).parents[1] / "examples" / "learning"
SHARED = Path(__file__).parents[1] / "../shared/data"
PARTIES = ("north", "east", "south", "west")


@dataclass(frozen=True)
class Bars:
    """Largest losses in percentage points: against the same model, against the best, and the stretch of the first."""

    same: float
    best: float
    stretch: float


BARS = {
    "breast_cancer": Bars(4.0, 5.0, 2.0),
    "digits": Bars(8.0, 10.0, 5.0),
    "adult": Bars(1.0, 1.5, 0.5),
}


@dataclass(frozen=True)
class Figure:
    """One line of the table and one record of the file."""

    figure: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    bar: float | None = None
    met: bool | None = None


def place_of(name: str, folder: Path) -> Path | None:
    """Return where the job of a set can be run, with its tables beside it; None where its records are absent."""
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


def runs(place: Path, seeds: int) -> Iterator[tuple[float, float, float]]:
    """Yield the accuracy of the private model, of the same without privacy and of the best, for each seed."""
    table: dict[str, Any] = tomllib.loads(place.read_text())
    table["train"]["aggregate"] = "plain" if "privacy" not in table else table["train"].get("aggregate", "masked")
    fixed = "test" in table["data"]
    best = same = float("nan")
    for seed in range(seeds):
        table["job"]["seed"] = seed
        rng = SeededRandomness(f"learning {seed}")
        job = parse(table, base=place.parent)
        data = load_data(job, rng=rng)
        *_, done = train(job, data, rng=rng)
        if not fixed or seed == 0:
            open_table = {key: value for key, value in table.items() if key != "privacy"}
            same = max(_without_privacy(open_table, job, algorithm, place) for algorithm in ("as it is", "newton"))
            plain = {**open_table, "data": {**table["data"], "standardise": False}, "model": {}}
            if fixed:  # trees find their own bins
                whole = (place.parent / table["data"]["schema"]).read_text()
                (place.parent / "plain.schema.toml").write_text(re.sub(r", bins = \[[^]]*\]", "", whole))
                plain["data"]["schema"] = "plain.schema.toml"
            best = best_of(load_data(parse(plain, base=place.parent), rng=rng))
        yield accuracy(done.model, data.test.x, data.test.y), same, best


def _without_privacy(table: dict[str, Any], private: Job, algorithm: str, place: Path) -> float:
    """Return the accuracy of the pooled model without privacy, by a job's own steps or by another algorithm's."""
    own = {key: getattr(private.train, key) for key in ("rounds", "learning_rate") if algorithm == "as it is"}
    if private.train.algorithm == "fedavg" and own:
        own["momentum"] = private.train.momentum
    other = {} if own else {"algorithm": algorithm, "rounds": 40}
    given = {key: value for key, value in table["train"].items() if own or key not in ("learning_rate", "solver")}
    if private.train.algorithm == "statistics" and own:
        own = {}
    job = parse({**table, "train": {**given, **own, **other}}, base=place.parent)
    data = load_data(job, rng=SeededRandomness("without privacy"))
    return accuracy(pooled_model(job, data), data.test.x, data.test.y)


def best_of(data: Any) -> float:
    """Return the best accuracy of three models that see everything."""
    x, y = (np.concatenate([getattr(silo, part) for silo in data.silos]) for part in ("x", "y"))
    models = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        RandomForestClassifier(random_state=0),
        HistGradientBoostingClassifier(random_state=0),
    )
    return max(float(model.fit(x, y).score(data.test.x, data.test.y)) for model in models)


def interval(values: np.ndarray) -> float:
    """Return half of the 95 % interval of a mean."""
    return float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))


def measure(name: str, place: Path, seeds: int) -> list[Figure]:
    """Run one set, print its line, and return its figures."""
    found = 100 * np.array(list(runs(place, seeds)))
    private, same, best = found.mean(axis=0)
    lost, further = found[:, 1] - found[:, 0], found[:, 2] - found[:, 0]
    bars = BARS[name]
    print(
        f"{name:15}{private:8.2f} +- {interval(found[:, 0]):4.2f}{same:9.2f}{best:9.2f}"
        f"{lost.mean():9.2f} +- {interval(lost):4.2f} (bar {bars.same:g}, stretch {bars.stretch:g})"
        f"{further.mean():9.2f} (bar {bars.best:g})",
        flush=True,
    )
    less, more = float(lost.mean()), float(further.mean())
    return [
        Figure(f"{name}, accuracy at epsilon 1", float(private), "%", "the same without privacy", float(same)),
        Figure(f"{name}, lost against the same", less, "points", None, None, bars.same, less <= bars.same),
        Figure(f"{name}, lost against the best", more, "points", "best", float(best), bars.best, more <= bars.best),
        Figure(f"{name}, half of the 95 % interval of the loss", interval(lost), "points"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", choices=sorted(BARS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{'set':15}{'private %':>16}{'same':>9}{'best':>9}{'lost, same':>17}{'lost, best':>40}")
    figures: list[Figure] = []
    for name in [options.only] if options.only else BARS:
        with tempfile.TemporaryDirectory() as folder:
            place = place_of(name, Path(folder))
            if place is None:
                print(f"{name:15} left out: its records are not in ../shared/data")
                continue
            figures += measure(name, place, options.seeds)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
