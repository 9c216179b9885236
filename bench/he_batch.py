"""Rows a second of encrypted networks, in batches beside one by one: processor time of both sides, without a network.

    python bench/he_batch.py [--json FILE]

Each is the fastest of some calls; a question holds as many rows as its plan has room for, and 4 of those one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from figures import Figure, command_line, write
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from confide.crypto.random import SystemRandomness
from confide.he.backend import Homomorphic
from confide.he.kits import ClientKit, ServerKit
from confide.he.plan_batch import BatchPlan
from confide.model.graph import Graph, Linear, Square
from confide.wire import MemoryStore, run

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Result = TypeVar("Result")

GOALS = ("latency", "throughput")


def small() -> tuple[Graph, Matrix]:
    """Return a network 30-16-1 with random weights, and rows within the box."""
    stream = np.random.default_rng(1)
    first, last = stream.normal(size=(16, 30)) / np.sqrt(30), stream.normal(size=(1, 16)) / 4
    graph = Graph((Linear(first, np.zeros(16)), Square(), Linear(last, np.zeros(1))))
    return graph, stream.uniform(-1, 1, (4096, 30))


def digits() -> tuple[Graph, Matrix]:
    """Return a network 64-32-10 and the digits of scikit-learn; trained with ReLU: its squares serve for times only."""
    images, labels = load_digits(return_X_y=True)
    images = images / 8 - 1
    found = MLPClassifier((32,), activation="relu", max_iter=60, random_state=1).fit(images, labels)
    first, last = (Linear(w.T, b) for w, b in zip(found.coefs_, found.intercepts_, strict=True))
    return Graph((first, Square(), last)), np.tile(images, (5, 1))[:8192]


CASES = {"30-16-1": small, "64-32-10, digits": digits}


def timed(job: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Return the processor seconds of the fastest call, and what it gave."""
    best, result = float("inf"), job()
    for _ in range(repeats):
        begin = time.process_time()
        result = job()
        best = min(best, time.process_time() - begin)
    return best, result


@dataclass(frozen=True)
class Measured:
    """Rows a second, by the server alone and by both; rows and bytes of a question; how near the outputs are."""

    server: float
    both: float
    rows: int
    query_bytes: int
    error: float
    same_class: float


def measure(graph: Graph, x: Matrix, goal: str, *, repeats: int = 5) -> Measured:
    """Ask as many rows at once as a question holds, and compare the outputs with the plain network's."""
    rng, store = SystemRandomness(), MemoryStore()
    backend = Homomorphic(goal="throughput" if goal == "throughput" else "latency")
    kits = backend.prepare(graph, rng)
    server, client = kits["server"], kits["client"]
    assert isinstance(server, ServerKit)
    assert isinstance(client, ClientKit)
    stores = {"client": store, "server": MemoryStore()}
    parties = {role: backend.setup(role, kits[role], stores[role], rng) for role in stores}
    run(parties, stores=stores).output("client")
    rows = x[: server.plan.slots if isinstance(server.plan, BatchPlan) else 4]

    def ask() -> Any:
        parties = {
            "client": backend.predict("client", client, rows, stores["client"], rng),
            "server": backend.predict("server", server, None, stores["server"], rng),
        }
        return run(parties, stores=stores)

    whole, transcript = timed(ask, repeats)
    secret, public = client.engine.context.generate(bytes(16), server.plan.needs)
    keys = server.engine.keys(public)
    query = client.engine.encrypt(secret, rows)
    alone, _ = timed(lambda: server.engine.answer(keys, query, rng), repeats)  # type: ignore[call-arg, arg-type]
    expected, outputs = graph.apply(rows), transcript.output("client")
    return Measured(
        server=len(rows) / alone,
        both=len(rows) / whole,
        rows=len(rows),
        query_bytes=transcript.sizes[0],
        error=float(np.abs(outputs - expected).max()),
        same_class=float((outputs.argmax(axis=1) == expected.argmax(axis=1)).mean()),
    )


def figures(title: str, found: Measured) -> list[Figure]:
    """Return the figures of one network and goal."""
    return [
        Figure(f"{title}, server", found.server, "rows/s"),
        Figure(f"{title}, server and client", found.both, "rows/s"),
        Figure(f"{title}, a question", found.rows, "rows"),
        Figure(f"{title}, a question of all its rows", found.query_bytes / 1e6, "MB"),
        Figure(f"{title}, largest error of an output", found.error, ""),
        Figure(f"{title}, the plain network's class", 100 * found.same_class, "%"),
    ]


def main() -> None:
    parser = command_line(__doc__)
    chosen = parser.parse_args()
    written: list[Figure] = []
    for name, case in CASES.items():
        graph, x = case()
        for goal in GOALS:
            found = measure(graph, x, goal)
            print(
                f"{name:<18} {goal:<11} server {found.server:9.0f} rows/s, both {found.both:9.0f} rows/s; "
                f"{found.rows} rows in {found.query_bytes / 1e6:.2f} MB; largest error {found.error:.1e}, "
                f"same class {found.same_class:.2%}",
                flush=True,
            )
            written += figures(f"{name}, {goal}", found)
    write(written, chosen.json)


if __name__ == "__main__":
    main()
