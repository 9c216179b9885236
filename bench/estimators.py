"""One holder's estimators and statistics at epsilon = 1, beside IBM Diffprivlib's and scikit-learn's without privacy.

    python bench/estimators.py [--seeds 20] [--only NAME] [--json FILE]

Every estimator is told the same public bounds, and columns lie in [-1, 1] by them. Ours keep (1, n^-1.1) for adding or
removing a record with exact integer noise; Diffprivlib's (0.6.6, in bench/peers/diffprivlib/.venv, which `confide peers
install diffprivlib --folder bench/peers` makes) claim (1, 0) for replacing one. A seed fixes split and noise so that
figures repeat; for that reason these runs make no claim.

    trees                   accuracy of boosted trees and of a random forest on the same two sets, categories as such
    breast-cancer, Adult    accuracy of logistic regression and naive Bayes; Diffprivlib's logistic regression as it is
                            documented and on rows of length 1, the better of the two
    line                    coefficient of determination of least squares: 10,000 records, 5 columns
    blobs                   mean squared distance to the nearest of 5 centres: 10,000 records, 2 columns
    digits                  share of the variance that 8 of 64 components keep, in percent
    ages                    1, 10 or 100 statistics of Adult's ages under one budget: root mean squared errors
    sensitivity             the replay of tests/statistical/test_queries_sensitivity.py on Diffprivlib's own functions
"""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import tempfile
import tomllib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, at_least, command_line, interval, write
from learning import PEER, SHARED, place_of
from sklearn.datasets import load_digits, make_blobs
from sklearn.ensemble import HistGradientBoostingClassifier as GradientTrees

from confide.crypto.random import SeededRandomness
from confide.data.sets import load_set
from confide.dp import quantiles, queries
from confide.dp.plan import default_delta
from confide.dp.spending import Budget
from confide.model.preprocess import Preprocess
from confide.sklearn import (
    PCA,
    GaussianNB,
    GradientBoostingClassifier,
    KMeans,
    LinearRegression,
    LogisticRegression,
    RandomForestClassifier,
)
from confide.train import load_data, parse
from confide.train.parts import preprocess_of
from sklearn import cluster, decomposition, ensemble, linear_model, naive_bayes

BAR_POINTS = 3.0  # of logistic regression, above Diffprivlib's
BOUNDS = (-1.0, 1.0)


@dataclass(frozen=True)
class Task:
    """Records, and which of them are each seed's test part, shape (seeds, n)."""

    kind: str
    x: np.ndarray
    y: np.ndarray
    test: np.ndarray
    y_bounds: tuple[float, float] | None = None
    categories: dict[int, tuple[str, ...]] = field(default_factory=dict)


def parted(count: int, seeds: int, fraction: float = 0.2) -> np.ndarray:
    """Return a test part of the same size for each seed."""
    order = [np.random.default_rng(seed).permutation(count) for seed in range(seeds)]
    return np.array([one < fraction * count for one in order])


def breast_cancer(seeds: int) -> Task:
    schema, table = load_set("breast-cancer")
    x = preprocess_of(schema, parse({"job": {"name": "table"}, "data": {"set": "breast-cancer"}})).apply(table.columns)
    return Task("classify", x, table.labels, parted(len(x), seeds))


def adult_parts() -> tuple[Preprocess, np.ndarray, np.ndarray, int] | None:
    """Return the preparation of Adult, x and y, and how many records at the end are the test part."""
    with tempfile.TemporaryDirectory() as folder:
        place = place_of("adult", Path(folder))
        if place is None:
            return None
        table: dict[str, Any] = tomllib.loads(place.read_text())
        plain = {"job": table["job"], "data": {**table["data"], "standardise": False}, "train": {"quorum": 4}}
        data = load_data(parse(plain, base=place.parent))
    silos = (*data.silos, data.test)
    x, y = (np.concatenate([getattr(silo, part) for silo in silos]) for part in ("x", "y"))
    return data.preprocess, x, y, len(data.test.y)


def adult(seeds: int) -> Task | None:
    if (found := adult_parts()) is None:
        return None
    _, x, y, last = found
    return Task("classify", x, y, np.array([np.arange(len(x)) >= len(x) - last] * seeds))


def breast_cancer_trees(seeds: int) -> Task:
    return replace(breast_cancer(seeds), kind="trees")


def adult_trees(seeds: int) -> Task | None:
    """Return Adult with one column for each category, its place in the public list."""
    if (found := adult_parts()) is None:
        return None
    preprocess, x, y, last = found
    columns, categories, first = [], {}, 0
    for place, rule in enumerate(preprocess.rules):
        own = x[:, first : first + rule.count]
        if rule.count > 1:  # categories, or the intervals of a number
            categories[place] = rule.features
        columns.append(own.argmax(axis=1) if rule.count > 1 else own[:, 0])
        first += rule.count
    test = np.array([np.arange(len(x)) >= len(x) - last] * seeds)
    return Task("trees", np.stack(columns, axis=1), y, test, categories=categories)


def line(seeds: int) -> Task:
    draw = np.random.default_rng(0)
    x = np.clip(draw.normal(0, 0.4, (12_500, 5)), -1, 1)
    y = x @ [2.0, -1.0, 0.5, 0.0, 1.0] + 1 + draw.normal(0, 0.5, len(x))
    return Task("regress", x, y, parted(len(x), seeds), y_bounds=(-4.0, 6.0))


def blobs(seeds: int) -> Task:
    x, y = make_blobs(12_500, 2, centers=5, cluster_std=0.1, center_box=(-0.8, 0.8), random_state=3)
    return Task("cluster", np.clip(x, -1, 1), y, parted(len(x), seeds))


def digits(seeds: int) -> Task:
    x, y = load_digits(return_X_y=True)
    return Task("components", x / 8 - 1, y, parted(len(x), seeds))


TASKS: dict[str, Callable[[int], Task | None]] = {
    "breast-cancer": breast_cancer,
    "Adult": adult,
    "breast-cancer trees": breast_cancer_trees,
    "Adult trees": adult_trees,
    "line": line,
    "blobs": blobs,
    "digits": digits,
}


# --- ours and scikit-learn's ------------------------------------------------------------------------------------------


def reached(task: Task, test: np.ndarray, spending: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield what was fitted, our figure and the one without privacy."""
    x, y, x_test, y_test = task.x[~test], task.y[~test], task.x[test], task.y[test]
    given = {"bounds": BOUNDS, **spending}
    if task.kind == "classify":
        for name, model, plain in (
            ("logistic", LogisticRegression(classes=(0, 1), **given), linear_model.LogisticRegression(max_iter=1000)),
            ("naive Bayes", GaussianNB(classes=(0, 1), **given), naive_bayes.GaussianNB()),
        ):
            yield name, *(100 * one.fit(x, y).score(x_test, y_test) for one in (model, plain))
    elif task.kind == "trees":
        given |= {"classes": (0, 1), "categories": task.categories}
        places = list(task.categories)
        for name, model, plain in (
            ("boosted trees", GradientBoostingClassifier(**given), GradientTrees(categorical_features=places)),
            ("random forest", RandomForestClassifier(**given), ensemble.RandomForestClassifier(random_state=0)),
        ):
            yield name, *(100 * one.fit(x, y).score(x_test, y_test) for one in (model, plain))
    elif task.kind == "regress":
        models = LinearRegression(y_bounds=task.y_bounds, **given), linear_model.LinearRegression()
        yield "least squares", *(one.fit(x, y).score(x_test, y_test) for one in models)
    elif task.kind == "cluster":
        count = len(np.unique(y))
        models = KMeans(count, **given), cluster.KMeans(count, n_init=3, random_state=0)
        yield "k-means", *(float((one.fit(x).transform(x_test).min(axis=1) ** 2).mean()) for one in models)
    else:
        centred = x_test - x_test.mean(axis=0)
        kept = (centred @ one.fit(x).components_.T for one in (PCA(8, **given), decomposition.PCA(8)))
        yield "PCA", *(100 * float((one * one).sum() / (centred * centred).sum()) for one in kept)


def peer(task: Task) -> dict[str, list[float]]:
    """Return Diffprivlib's figures of each seed, nothing where its environment is not."""
    arrays = {"x": task.x, "y": task.y, "test": task.test}
    if task.y_bounds is not None:
        arrays["y_bounds"] = np.array(task.y_bounds)
    if task.kind == "trees":
        last = [len(task.categories.get(place, ())) - 1 for place in range(task.x.shape[1])]
        arrays["low"] = np.array([BOUNDS[0] if one < 0 else 0.0 for one in last])
        arrays["high"] = np.array([BOUNDS[1] if one < 0 else one for one in last])
    return asked("estimators.py", arrays, task.kind) or {}


def asked(script: str, arrays: dict[str, np.ndarray], *arguments: str) -> Any:
    python = PEER / ".venv" / "bin" / "python"
    if not python.exists():
        return None
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **arrays)
        file.flush()
        given = [file.name] if arrays else []
        done = subprocess.run([python, PEER / script, *given, *arguments], capture_output=True, check=True)
    return json.loads(done.stdout)


def measure(name: str, task: Task) -> list[Figure]:
    """Run one set, print a line for each estimator, and return its figures."""
    ours, plain = defaultdict(list), defaultdict(list)
    expected = int((~task.test[0]).sum())
    for seed, test in enumerate(task.test):
        spending = {"epsilon": 1.0, "delta": default_delta(expected), "random_state": seed}
        for what, private, without in reached(task, test, spending):
            ours[what].append(private)
            plain[what].append(without)
    theirs, found = peer(task), []
    for what, values in ours.items():
        variants = {one: np.array(figures) for one, figures in theirs.items() if one.partition(",")[0] == what}
        best = max(variants.values(), key=np.mean, default=None)
        apart = None if best is None else np.array(values) - best
        mine, bare = np.array(values), float(np.mean(plain[what]))
        text = f"{name + ', ' + what:32}{mine.mean():10.4g} +- {interval(mine):<9.3g}{bare:10.4g}"
        if best is not None and apart is not None:
            text += f"{best.mean():12.4g}{apart.mean():12.4g} +- {interval(apart):.3g}"
        print(text, flush=True)
        for one, figures in variants.items():
            print(f"{'':32}Diffprivlib, {one}: {figures.mean():.4g} +- {interval(figures):.3g}", flush=True)
        bar = BAR_POINTS if what == "logistic" else None
        met = None if apart is None else at_least(apart.mean() - interval(apart), bar)
        found.append(
            Figure(
                f"{name}, {what} at epsilon 1",
                float(np.mean(values)),
                UNITS[task.kind],
                "Diffprivlib 0.6.6",
                None if best is None else float(best.mean()),
                bar,
                met,
            )
        )
        found.append(Figure(f"{name}, {what} without privacy", float(np.mean(plain[what])), UNITS[task.kind]))
    return found


UNITS = {"classify": "%", "trees": "%", "regress": "R2", "cluster": "squared distance", "components": "% of variance"}


# --- statistics -------------------------------------------------------------------------------------------------------


def ages(seeds: int) -> list[Figure]:
    """Print the errors of statistics that share a budget, ours and Diffprivlib's."""
    source = SHARED / "adult" / "adult.data.gz"
    if not source.exists():
        print("ages: left out, its records are not in ../shared/data")
        return []
    with gzip.open(source, "rt") as file:
        x = np.array([float(row[0]) for row in csv.reader(file) if len(row) == 15])
    found = []
    for count in (1, 10, 100):
        theirs = asked("queries.py", {"x": x}, str(count), str(seeds)) or {}
        for what, ours in errors(x, count, seeds).items():
            other = theirs.get(what)
            ratio = "" if other is None else f"{other:12.4g}{other / ours:12.2f} x"
            print(f"{f'ages, {what}, {count} statistics':40}{ours:12.4g}{ratio}", flush=True)
            named = f"ages, error of the {what}, one of {count} statistics"
            found.append(Figure(named, ours, "rms", "Diffprivlib 0.6.6", other))
    return found


def errors(x: np.ndarray, count: int, seeds: int) -> dict[str, float]:
    edges, bounds = np.linspace(0, 100, 11), (0.0, 100.0)
    cells, found = np.histogram(x, edges)[0], defaultdict(list)
    for seed in range(seeds):
        given = {"budget": Budget(4.0, 1e-6), "rng": SeededRandomness(f"ages {seed}")}
        each = Budget(1.0, 1e-6).mu / count**0.5 / given["budget"].mu
        given["share"] = each * each  # what one of so many statistics has of a budget of epsilon 1
        found["mean"].append(queries.mean(x, bounds=bounds, **given).value - x.mean())
        found["variance"].append(queries.variance(x, bounds=bounds, **given).value - x.var())
        found["median"].append(quantiles.median(x, bounds=bounds, **given).value - np.median(x))
        apart = queries.histogram(x, edges=edges, **given).value - cells
        found["histogram"].append(float(np.sqrt((apart * apart).mean())))
    return {what: float(np.sqrt(np.mean(np.square(one)))) for what, one in found.items()}


def sensitivity() -> list[Figure]:
    """Print what the replay finds in Diffprivlib: above 1 a record moves more than the noise was made for."""
    found = asked("sensitivity.py", {}, "200") or {}
    for name, worst in found.items():
        text = "an error for some records" if worst is None else "infinite" if worst >= 1e300 else f"{worst:.3g}"
        print(f"Diffprivlib's {name}: neighbours apart / sensitivity = {text}", flush=True)
    return [
        Figure(f"Diffprivlib's {name}, distance of neighbours over sensitivity", worst, "ratio")
        for name, worst in found.items()
        if worst is not None
    ]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", choices=[*TASKS, "ages", "sensitivity"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    figures: list[Figure] = []
    print(f"{'':32}{'ours at epsilon 1':>22}{'no privacy':>10}{'Diffprivlib':>12}{'ours above':>16}")
    for name in [options.only] if options.only else [*TASKS, "ages", "sensitivity"]:
        if name == "ages":
            figures += ages(options.seeds)
        elif name == "sensitivity":
            figures += sensitivity()
        elif (task := TASKS[name](options.seeds)) is None:
            print(f"{name}: left out, its records are not in ../shared/data")
        else:
            figures += measure(name, task)
    write(figures, options.json)


if __name__ == "__main__":
    main()
