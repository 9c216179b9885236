"""What bench/he.py measures: the models, the rows that are asked for, the backends and the bars of each case.

Networks come from bench/models/*.onnx; the linear models are trained here on scikit-learn's breast-cancer data (30
features, scaled to [-1, 1]). What cannot run yet is a case with a reason instead of a backend.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer

from confide.errors import ConfideError
from confide.he import Homomorphic, Paillier
from confide.ideal import Backend
from confide.model import zoo
from confide.model.graph import Graph, Linear, Square
from confide.model.onnx import from_onnx
from confide.train.local import descend

MODELS = Path(__file__).parent / "models"
MNIST = Path(__file__).parents[1] / "../shared/data/mnist/mnist.npz"
LINEAR = ("logistic", "logistic-open", "logistic-ckks", "paillier", "network", "bulk")
MANY = ("lola-many", "mlp-many")
NAMES = (*LINEAR, "mlp", "lola", "lenet", *MANY, "cifar", "trees")
TRAINED = 400  # rows of the breast-cancer data; the other 169 are held out


@dataclass(frozen=True)
class Rows:
    """Rows in [-1, 1] to ask for, and what they are, -1 where nobody knows."""

    x: Any
    labels: Any


@dataclass(frozen=True)
class Case:
    """One model under one backend; `why` says what is missing where there is no backend.

    `bars` are upper bounds by figure, in its unit; that of "rows/s" is a lower bound.
    """

    name: str
    title: str
    rows: Rows
    graph: Graph | None = None
    backend: Backend | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    bars: Mapping[str, float] = field(default_factory=dict)
    peers: str = ""


# --- data -------------------------------------------------------------------------------------------------------------


def breast_cancer() -> tuple[Rows, Rows]:
    """Return the rows to train with and those that are held out."""
    raw = load_breast_cancer()
    low, high = raw.data.min(axis=0), raw.data.max(axis=0)
    x, y = 2 * (raw.data - low) / (high - low) - 1, raw.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    first, last = order[:TRAINED], order[TRAINED:]
    return Rows(x[first], y[first]), Rows(x[last], y[last])


def within_bounds(held: Rows, count: int) -> Rows:
    """Return the held-out rows, then rows drawn uniformly within the bounds, `count` in all; those have no labels."""
    drawn = np.random.default_rng(1).uniform(-1, 1, (count - len(held.x), held.x.shape[1]))
    return Rows(np.concatenate([held.x, drawn]), np.concatenate([held.labels, np.full(len(drawn), -1)]))


def images(path: Path | None, shape: tuple[int, int, int]) -> Rows:
    """Return test images, channel by channel, in [-1, 1]; drawn ones without labels where there is no file."""
    channels, height, width = shape
    if path is None or not path.is_file():
        x = np.random.default_rng(2).uniform(-1, 1, (20, channels * height * width))
        return Rows(x, np.full(len(x), -1))
    with np.load(path) as archive:
        x, labels = archive["x_test"], archive["y_test"]
    x = x.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).reshape(len(x), -1)
    return Rows(x / 127.5 - 1, labels.reshape(-1).astype(np.int64))


# --- cases ------------------------------------------------------------------------------------------------------------


def backend_of(name: str, settings: Mapping[str, Any]) -> Backend:
    """Return a backend with some settings of its own."""
    return {"he": Homomorphic, "paillier": Paillier}[name](**settings)


def ready(case: Case, name: str = "he", **settings: Any) -> Case:
    """Return `case` with its backend, or with everything that keeps it from running."""
    assert case.graph is not None
    try:
        backend = backend_of(name, settings)
        problems = backend.check(case.graph)
    except (TypeError, ConfideError, NotImplementedError) as error:
        return _without(case, f"not yet: {error}")
    if problems:
        return _without(case, "not yet: " + "; ".join(map(str, problems[:3])))
    return replace(case, backend=backend, settings=settings)


def _without(case: Case, why: str) -> Case:
    return replace(case, why=" ".join(why.split()))


def network_of(name: str) -> Graph | str:
    """Return the network of bench/models, or why there is none."""
    path = MODELS / f"{name}.onnx"
    if not path.is_file():
        return f"not yet: no {path.name} in bench/models"
    try:
        return from_onnx(path.read_bytes())
    except ConfideError as error:
        return f"not yet: {error}"


def linear_cases() -> list[Case]:
    """Return the logistic regression under each backend, and a small network."""
    train, held = breast_cancer()
    options: dict[str, Any] = {"steps": 300, "momentum": 0.9, "weight_decay": 1e-4}
    logistic = descend(zoo.logistic(30), train.x, train.labels, learning_rate=1.0, **options)
    small = descend(zoo.mlp(30, 16, seed=1), train.x, train.labels, learning_rate=0.01, **options)
    listed: tuple[tuple[str, str, dict[str, float], str, dict[str, Any]], ...] = (
        ("logistic", "logistic 30, BFV, protected", {"server": 0.4, "end to end": 3.0}, "he", {}),
        ("logistic-open", "logistic 30, BFV, open", {"end to end": 2.0}, "he", {"protect_model": False}),
        (
            "logistic-ckks",
            "logistic 30, CKKS, protected",
            {"server": 5.0, "end to end": 12.0},
            "he",
            {"scheme": "ckks"},
        ),
        ("paillier", "logistic 30, Paillier 3072", {}, "paillier", {}),
    )
    found = [
        ready(Case(name, title, held, logistic, bars=bars, peers="logistic"), kind, **settings)
        for name, title, bars, kind, settings in listed
    ]
    network = Case("network", "network 30-16-1", held, small, bars={"end to end": 60.0}, peers="network")
    bulk = Case("bulk", "bulk scoring, logistic 30", within_bounds(held, 65536), logistic, bars={"rows/s": 20_000})
    return [*found, ready(network), ready(bulk)]


def network_cases(cifar: Path | None, only: Collection[str]) -> list[Case]:
    """Return the networks of bench/models that are called `only`."""
    digit, photo = (1, 28, 28), (3, 32, 32)
    sizes = {"keys kB": 60_000.0, "query kB": 500.0, "reply kB": 150.0}
    found: list[Case] = []
    for name, title, shape, bars in (
        ("mlp", "MLP 784-128-128-10", digit, {"end to end": 200.0}),
        ("lola", "MNIST, LoLa network", digit, {"end to end": 120.0} | sizes),
        ("lenet", "MNIST, LeNet", digit, {"end to end": 1200.0}),
        ("cifar", "CIFAR-10 network", photo, {"end to end": 60_000.0, "server memory MB": 12_000.0}),
    ):
        if name not in only:
            continue
        rows = images(MNIST if shape == digit else cifar, shape)
        graph = network_of(name)
        case = Case(name, title, rows, None if isinstance(graph, str) else graph, bars=bars, peers=name)
        found.append(_without(case, graph) if isinstance(graph, str) else ready(case))
    return found


def many_cases(only: Collection[str]) -> list[Case]:
    """Return the networks of MNIST in batches, those that are called `only`."""
    found: list[Case] = []
    for name, title in zip(MANY, ("LoLa network", "MLP 784-128-128-10"), strict=True):
        if name not in only:
            continue
        graph = network_of(name.removesuffix("-many"))
        bars = {"server ms/image": 4.0, "points between them": 0.1}
        case = Case(name, f"MNIST, many images at once, {title}", images(MNIST, (1, 28, 28)), bars=bars)
        if isinstance(graph, str):
            found.append(_without(case, graph))
        else:
            found.append(ready(replace(case, graph=graph), goal="throughput"))
    return found


def tree_cases() -> list[Case]:
    """Return the boosted trees, whose decisions are compared on 10,000 rows."""
    _, held = breast_cancer()
    graph = network_of("xgboost")
    bars = {"end to end": 500.0}
    case = Case("trees", "XGBoost, 20 trees of depth 3", within_bounds(held, 10_000), bars=bars, peers="trees")
    if isinstance(graph, str):
        return [_without(case, graph)]
    return [ready(replace(case, graph=graph))]


def cases(cifar: Path | None = None, only: Collection[str] = NAMES) -> list[Case]:
    """Return the cases called `only`, those that cannot run yet among them; no other is planned."""
    trees = tree_cases() if "trees" in only else []
    found = [
        *(linear_cases() if set(LINEAR) & set(only) else []),
        *network_cases(cifar, only),
        *many_cases(only),
        *trees,
    ]
    return [case for case in found if case.name in only]


def chain_of(width: int, depth: int, outputs: int = 10) -> Graph:
    """Return a network of `depth` squares between dense layers of one width, its weights drawn: for growth curves."""
    rng = np.random.default_rng(3)
    layers: list[Any] = []
    for _ in range(depth):
        layers += [Linear(rng.normal(0, 0.5 / np.sqrt(width), (width, width)), np.zeros(width)), Square()]
    layers.append(Linear(rng.normal(0, 1 / np.sqrt(width), (outputs, width)), np.zeros(outputs)))
    return Graph(tuple(layers))
