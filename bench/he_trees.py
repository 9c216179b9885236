"""What an encrypted prediction of boosted trees costs, and how often it decides as the trees themselves.

    python bench/he_trees.py [--repeats 30] [--encrypted 500] [--growth] [--json FILE]

Twenty trees of depth 3 (scikit-learn's GradientBoostingClassifier) on one half of its breast-cancer data; features are
scaled by public bounds of 0 and 1.1 times the largest value. Decisions are compared with scikit-learn's own on the
other half and on 10,000 rows drawn uniformly from the box: by the moved thresholds in plain for all rows, which is what
the encrypted prediction computes up to its error bound, and encrypted for the first of them. Times are of one process
that uses one core; "server" is from the bytes of a query to the bytes of a reply, "server_cpu" the same without waiting
for a busy machine. `--growth` goes through bins, depths and numbers of trees.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier

from confide.crypto.random import SystemRandomness
from confide.he.engine_trees import TreesClient, TreesServer
from confide.he.machines import Keys
from confide.he.plan_trees import TreesPlan, plan_trees
from confide.he.seal import SecretKey
from confide.he.trees import leaves_of, moved, shape_of
from confide.model.trees import Trees

Matrix = NDArray[np.float64]

BAR_MS = 500.0
BAR_SHARE = 0.99
DRAWN = 10_000


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


@dataclass(frozen=True)
class Party:
    """Both sides of one model, with keys."""

    plan: TreesPlan
    client: TreesClient
    server: TreesServer
    secret: SecretKey
    keys: Keys
    keygen_seconds: float

    @staticmethod
    def of(trees: Trees, bins: int) -> Party:
        plan = plan_trees(shape_of(trees), bins=bins, sigmoid=True, protected=True, input_bound=1.0, precision_bits=10)
        if plan is None:
            raise SystemExit("Expected trees that have a plan; take fewer")
        server, client = TreesServer(plan, leaves_of(trees, plan)), TreesClient(plan)
        start = time.perf_counter()
        secret, public = client.context.generate(bytes(16), plan.needs)
        seconds = time.perf_counter() - start
        return Party(plan, client, server, secret, server.keys(public), seconds)

    def asked(self, x: Matrix) -> tuple[Matrix, dict[str, float]]:
        """Return the outputs of rows, one by one, and medians of times in ms, and bytes."""
        times: dict[str, list[float]] = {"encrypt_ms": [], "server_ms": [], "server_cpu_ms": [], "decrypt_ms": []}
        found = []
        for row in x:
            start = time.perf_counter()
            query = self.client.encrypt(self.secret, row[None])
            times["encrypt_ms"].append(time.perf_counter() - start)
            start, used = time.perf_counter(), time.process_time()
            reply = self.server.answer(self.keys, query, SystemRandomness())
            times["server_ms"].append(time.perf_counter() - start)
            times["server_cpu_ms"].append(time.process_time() - used)
            start = time.perf_counter()
            found.append(np.ldexp(self.client.decrypt(self.secret, reply)[0], self.server.exponents))
            times["decrypt_ms"].append(time.perf_counter() - start)
        figures = {name: 1000 * statistics.median(values) for name, values in times.items()}
        return np.array(found), figures | {"query_kB": sum(map(len, query)) / 1e3, "reply_kB": len(reply[0]) / 1e3}


def main_row(repeats: int, encrypted: int) -> Iterator[dict[str, object]]:
    """Yield the figures of the bar."""
    rows = data()
    model = GradientBoostingClassifier(n_estimators=20, max_depth=3, random_state=0).fit(rows.train, rows.labels)
    trees = trees_of(model)
    party = Party.of(trees, 256)
    print(party.plan)
    for name, x in (("held-out", rows.held_out), ("drawn", rows.drawn)):
        decided = moved(trees, party.plan.bins, 1.0).apply(x)[:, 0] > 0
        share = float((decided == (model.predict(x) == 1)).mean())
        yield {"figure": f"equal decisions, {name}", "value": share, "unit": "share", "bar": BAR_SHARE}
    half = encrypted // 2
    x = np.concatenate([rows.held_out[:half], rows.drawn[: encrypted - min(half, len(rows.held_out))]])
    found, figures = party.asked(x[: max(repeats, encrypted)])
    equal = (found[:, 0] > 0) == (model.predict(x) == 1)
    error = np.abs(found - moved(trees, party.plan.bins, 1.0).apply(x)).max()
    yield {
        "figure": f"equal decisions, {len(x)} encrypted",
        "value": float(equal.mean()),
        "unit": "share",
        "bar": BAR_SHARE,
    }
    yield {"figure": "largest error of a logit", "value": float(error), "unit": "", "bar": float(party.server.error[0])}
    for name, value in figures.items():
        bar = BAR_MS if name == "server_ms" else None
        yield {"figure": name.rsplit("_", 1)[0], "value": value, "unit": name.rsplit("_", 1)[1], "bar": bar}
    yield {"figure": "key generation", "value": party.keygen_seconds, "unit": "s"}
    yield {"figure": "evaluation keys", "value": party.plan.key_bytes / 1e6, "unit": "MB"}


def growth() -> Iterator[str]:
    """Yield one line for each size: what it costs, and how often it decides as the trees."""
    rows = data()
    for count, depth, bins in (
        *((20, 3, bins) for bins in (64, 128, 256, 512, 1024)),
        *((20, depth, 256) for depth in (1, 2, 4, 5, 6)),
        *((count, 3, 256) for count in (5, 50, 100, 200)),
    ):
        model = GradientBoostingClassifier(n_estimators=count, max_depth=depth, random_state=0)
        trees = trees_of(model.fit(rows.train, rows.labels))
        party = Party.of(trees, bins)
        _, figures = party.asked(rows.drawn[:5])
        plan = party.plan
        x = np.concatenate([rows.held_out, rows.drawn])
        share = ((moved(trees, bins, 1.0).apply(x)[:, 0] > 0) == (model.predict(x) == 1)).mean()
        yield (
            f"| {count} | {depth} | {bins} | {plan.leaves} | {plan.parameters.degree} | "
            f"{len(plan.parameters.data_primes)} | {plan.ciphertexts} | {plan.products} | {plan.rotations} | "
            f"{plan.key_bytes / 1e6:.0f} | {figures['query_kB']:.0f} | {figures['server_cpu_ms']:.0f} | {share:.4f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--encrypted", type=int, default=500)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = []
    for figure in main_row(arguments.repeats, arguments.encrypted):
        bar, value = figure.get("bar"), figure["value"]
        assert isinstance(value, float)
        met = None if not isinstance(bar, float) else value >= bar if figure["unit"] == "share" else value <= bar
        figures.append({"peer": None, "peer_value": None, "bar": None} | figure | {"met": met})
        print(
            f"{figure['figure']:35} {value:10.4g} {figure['unit']:6} bar {bar} {'' if met is None else met}", flush=True
        )
    if arguments.growth:
        sizes = ("trees", "depth", "bins", "labels", "N", "primes", "ciphertexts", "products", "rotations")
        print(f"| {' | '.join((*sizes, 'keys MB', 'query kB', 'server cpu ms', 'equal'))} |")
        for line in growth():
            print(line, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
