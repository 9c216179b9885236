"""How encrypted boosted trees grow with their number, depth and bins, and how often they decide as the plain ones.

    python bench/he_trees.py [--repeats 10] [--json FILE]

scikit-learn's GradientBoostingClassifier on one half of its breast-cancer data; features are scaled by public bounds of
0 and 1.1 times the largest value. Decisions are compared with scikit-learn's own on the other half and on 10,000 rows
drawn uniformly from the box, by the moved thresholds in plain, which is what the encrypted prediction computes up to
its error bound. Times are the server's, from the bytes of a query to the bytes of a reply: medians, and the least, for
a busy machine. The bar and the peers of 20 trees of depth 3 are rows of bench/he.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from figures import Figure, command_line, write
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier

from confide.crypto.random import SystemRandomness
from confide.he import Homomorphic
from confide.he.plan_trees import TreesPlan
from confide.he.trees import moved
from confide.model.graph import Graph, Sigmoid
from confide.model.trees import Trees
from confide.wire import MemoryStore, run

Matrix = NDArray[np.float64]

DRAWN = 10_000
SIZES = (
    *((20, 3, bins) for bins in (64, 128, 256, 512, 1024)),
    *((20, depth, 256) for depth in (1, 2, 4, 5, 6)),
    *((count, 3, 256) for count in (5, 50, 100, 200)),
)


@dataclass(frozen=True)
class Data:
    """Rows of both halves, features in [-1, 1] as float32 would hold them: scikit-learn's trees compare those."""

    train: Matrix
    labels: NDArray[np.int64]
    held_out: Matrix
    drawn: Matrix


def data() -> Data:
    x, y = load_breast_cancer(return_X_y=True)
    x = as_float32(2 * x / (1.1 * x.max(axis=0)) - 1)
    drawn = as_float32(np.random.default_rng(1).uniform(-1, 1, (DRAWN, x.shape[1])))
    return Data(x[::2], y[::2], x[1::2], drawn)


def as_float32(x: Matrix) -> Matrix:
    return x.astype(np.float32).astype(np.float64)


def trees_of(model: GradientBoostingClassifier) -> Trees:
    """Return the trees of a model of two classes."""
    feature, threshold, left, right, value, roots = [], [], [], [], [], []
    for estimator in model.estimators_.ravel():
        tree = estimator.tree_
        inner = np.flatnonzero(tree.children_left >= 0)
        numbers = {int(node): len(feature) + place for place, node in enumerate(inner)}
        for node in np.flatnonzero(tree.children_left < 0).tolist():
            numbers[node] = -1 - len(value)
            value.append(tree.value[node, 0, 0] * model.learning_rate)
        feature += tree.feature[inner].tolist()
        threshold += tree.threshold[inner].tolist()
        left += [numbers[node] for node in tree.children_left[inner].tolist()]
        right += [numbers[node] for node in tree.children_right[inner].tolist()]
        roots.append(numbers[0])
    share = float(np.asarray(model.init_.class_prior_)[1])
    return Trees(
        features=model.n_features_in_,
        roots=np.array(roots),
        outputs=np.zeros(len(roots), np.int64),
        feature=np.array(feature),
        threshold=np.array(threshold, np.float64),
        left=np.array(left),
        right=np.array(right),
        value=np.array(value, np.float64),
        offset=np.array([np.log(share / (1 - share))]),
    )


def growth(repeats: int) -> Iterator[dict[str, Any]]:
    """Yield one record for each size: what it costs, and how often it decides as the trees."""
    rows = data()
    x = np.concatenate([rows.held_out, rows.drawn])
    for count, depth, bins in SIZES:
        model = GradientBoostingClassifier(n_estimators=count, max_depth=depth, random_state=0)
        trees = trees_of(model.fit(rows.train, rows.labels))
        graph, backend = Graph((trees, Sigmoid())), Homomorphic(tree_bins=bins)
        if problems := backend.check(graph):
            print(f"{count} trees, depth {depth}, {bins} bins: {problems[0]}")
            continue
        plan = backend.plan(graph)
        assert isinstance(plan, TreesPlan)
        servers, query = asked(backend, graph, rows.drawn[:repeats])
        share = float(((moved(trees, bins, 1.0).apply(x)[:, 0] > 0) == (model.predict(x) == 1)).mean())
        yield {
            "trees": count,
            "depth": depth,
            "D": bins,
            "W": plan.leaves,
            "N": plan.parameters.degree,
            "primes": len(plan.parameters.data_primes),
            "ciphertexts": plan.ciphertexts,
            "products": plan.products,
            "rotations": plan.rotations,
            "keys MB": round(plan.key_bytes / 1e6),
            "query kB": round(query / 1e3),
            "server ms": round(1e3 * median(servers), 1),
            "least ms": round(1e3 * min(servers), 1),
            "equal": round(share, 4),
        }


def figures_of(record: dict[str, Any]) -> list[Figure]:
    """Return what one size costs as figures; a unit is the last word of a name."""
    sizes = ("trees", "depth", "D")
    title = "{trees} trees of depth {depth}, D = {D}".format_map(record)
    found: list[Figure] = []
    for name, value in record.items():
        what, _, unit = name.rpartition(" ")
        if name not in sizes:
            found.append(Figure(f"{title}, {what or name}", value, unit if what else ""))
    return found


def asked(backend: Homomorphic, graph: Graph, x: Matrix) -> tuple[list[float], int]:
    """Return the seconds of the server for each row, the first left out, and the bytes of a query."""
    rng = SystemRandomness()
    kits, stores = backend.prepare(graph, rng), {"client": MemoryStore(), "server": MemoryStore()}
    run({role: backend.setup(role, kits[role], stores[role], rng) for role in kits}, stores=stores).output("client")
    seconds, query = [], 0
    for row in x:
        rows = {"client": row[None], "server": None}
        parties = {role: backend.predict(role, kits[role], rows[role], stores[role], rng) for role in kits}
        transcript = run(parties, stores=stores)
        transcript.output("client")
        seconds.append(transcript.seconds("server"))
        query = transcript.bytes_sent("client")
    return seconds[1:], query


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    found: list[Figure] = []
    for record in growth(options.repeats):
        if not found:
            print("| " + " | ".join(record) + " |\n" + "|---" * len(record) + "|")
        print("| " + " | ".join(map(str, record.values())) + " |", flush=True)
        found += figures_of(record)
    write(found, options.json)


if __name__ == "__main__":
    main()
