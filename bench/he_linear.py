"""What an encrypted prediction costs, end to end over HTTP on loopback, beside TenSEAL in the same run.

    python bench/he_linear.py [--repeats 200] [--json FILE] [--no-peer] [--no-paillier]

The models are trained here on scikit-learn's breast-cancer data (30 features, scaled to [-1, 1]): a logistic regression
and a network 30-16-1 with squares. The server is a process of its own; the keys are uploaded before; each repeat asks
for one row with `confide.Client` and is timed from the features to the probability. "compute" leaves HTTP out: the
parties of the same backend in one process, client and server together.

TenSEAL is timed without any network, so its figures stand beside "compute", and beside the whole of ours with an
advantage for TenSEAL: with the parameters that its users take (N = 8192), and with the smallest that do the job, those
of its own tutorial (N = 4096, [40, 20, 40]). It needs bench/peers/tenseal/.venv (see requirements.txt there).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer

from confide.crypto.random import SystemRandomness
from confide.guarantee import PrivacyLabel
from confide.he import Homomorphic, Paillier
from confide.ideal import Backend, PlainPredict
from confide.model import zoo
from confide.model.graph import Graph, Linear
from confide.serve.client import Client
from confide.serve.listen import serve
from confide.serve.served import Model
from confide.serve.server import create_app
from confide.train.local import descend
from confide.wire import MemoryStore, run

PEER = Path(__file__).parent / "peers" / "tenseal"
WARM = 20


@dataclass(frozen=True)
class Job:
    """One model under one backend, with its bar in milliseconds."""

    title: str
    model: str
    backend: Backend
    graph: Graph
    bar_ms: float | None = None


@dataclass(frozen=True)
class Figure:
    """One line of the table and one record of the file, which leaves the note out."""

    figure: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    bar: float | None = None
    met: bool | None = None
    note: str = ""


def data() -> tuple[Any, Any]:
    """Return the features in [-1, 1] and the labels."""
    raw = load_breast_cancer()
    low, high = raw.data.min(axis=0), raw.data.max(axis=0)
    return 2 * (raw.data - low) / (high - low) - 1, raw.target.astype(np.int64)


def models() -> dict[str, Graph]:
    """Return the two trained models."""
    x, y = data()
    options: dict[str, Any] = {"steps": 300, "momentum": 0.9, "weight_decay": 1e-4}
    logistic = descend(zoo.logistic(30), x, y, learning_rate=1.0, **options)
    network = descend(zoo.mlp(30, 16, seed=1), x, y, learning_rate=0.01, **options)
    for name, graph in (("logistic regression", logistic), ("network 30-16-1", network)):
        accuracy = ((graph.apply(x)[:, 0] > 0.5) == y).mean()
        print(f"{name}: accuracy {accuracy:.3f} on its training data")
    return {"logistic": logistic, "network": network}


def jobs(graphs: dict[str, Graph]) -> list[Job]:
    protected, visible = Homomorphic(), Homomorphic(protect_model=False)
    return [
        Job("plain, for comparison", "plain", PlainPredict(), graphs["logistic"]),
        Job("logistic, open", "open", visible, graphs["logistic"], bar_ms=3.0),
        Job("logistic, model protected", "protected", protected, graphs["logistic"], bar_ms=6.0),
        Job("network 30-16-1", "network", protected, graphs["network"], bar_ms=60.0),
    ]


# --- our side ---------------------------------------------------------------------------------------------------------


def _serve(served: Sequence[Job], pipe: Connection) -> None:
    label = PrivacyLabel(aggregator="pooled", parties=("bench",), quorum=1, colluding=0, rounds=1)
    app = create_app([Model(job.model, job.graph, label, (job.backend,)) for job in served])
    serve(app, port=0, ready=pipe.send)


@contextmanager
def server(served: Sequence[Job]) -> Iterator[str]:
    """Serve every job in a process of its own and yield the URL."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(served, there), daemon=True)
    process.start()
    try:
        if not here.poll(60):
            raise SystemExit("the server did not start")
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def timed(ask: Callable[[int], Any], repeats: int) -> list[float]:
    """Return the milliseconds of each call, after some that warm up."""
    for number in range(WARM):
        ask(number)
    found: list[float] = []
    for number in range(repeats):
        begin = time.perf_counter()
        ask(number)
        found.append(1e3 * (time.perf_counter() - begin))
    return found


def spread(values: Sequence[float]) -> str:
    ranked = sorted(values)
    return f"p5 {ranked[len(ranked) // 20]:.2f}, p95 {ranked[-1 - len(ranked) // 20]:.2f}"


def over_http(job: Job, url: str, x: Any, repeats: int, peers: Sequence[tuple[str, float]]) -> list[Figure]:
    """Return the end-to-end figures of one job, one beside each peer."""
    worst = 0.0
    with Client(url, model=job.model, backend=job.backend.name) as client:

        def ask(number: int) -> None:
            nonlocal worst
            row = x[number % len(x)][None, :]
            worst = max(worst, float(np.abs(client.predict(row) - job.graph.apply(row)).max()))

        values = timed(ask, repeats)
    value = round(statistics.median(values), 2)
    met = None if job.bar_ms is None else value <= job.bar_ms
    note = f"{spread(values)}; largest error {worst:.1e}"
    title = f"{job.title}, end to end over HTTP"
    return [Figure(title, value, "ms", name, round(theirs, 2), job.bar_ms, met, note) for name, theirs in peers] or [
        Figure(title, value, "ms", None, None, job.bar_ms, met, note)
    ]


def in_process(job: Job, x: Any, repeats: int, peer: tuple[str, float] | None) -> list[Figure]:
    """Return what the parties of one job compute, without a network, and the bytes that they send."""
    rng, stores = SystemRandomness(), {"client": MemoryStore(), "server": MemoryStore()}
    kits = job.backend.prepare(job.graph, rng)
    begin = time.perf_counter()
    keys = run({role: job.backend.setup(role, kits[role], stores[role], rng) for role in kits}, stores=stores)
    setup_ms = 1e3 * (time.perf_counter() - begin)
    client, server_side = [], []
    transcript = keys
    for number in range(repeats + WARM):
        row = x[number % len(x)][None, :]
        parties = {
            role: job.backend.predict(role, kits[role], row if role == "client" else None, stores[role], rng)
            for role in kits
        }
        transcript = run(parties, stores=stores)
        transcript.output("client")
        client.append(1e3 * transcript.seconds("client"))
        server_side.append(1e3 * transcript.seconds("server"))
    both = [one + other for one, other in zip(client[WARM:], server_side[WARM:], strict=True)]
    parts = f"client {statistics.median(client[WARM:]):.2f} + server {statistics.median(server_side[WARM:]):.2f}"
    name, theirs = peer or (None, None)
    figures = [
        Figure(
            f"{job.title}, compute",
            round(statistics.median(both), 2),
            "ms",
            name,
            theirs,
            note=f"{parts}; {spread(both)}",
        ),
        Figure(f"{job.title}, query", transcript.bytes_sent("client") / 1e3, "kB"),
        Figure(f"{job.title}, reply", transcript.bytes_sent("server") / 1e3, "kB"),
    ]
    if keys.messages:
        figures.append(Figure(f"{job.title}, keys", keys.bytes_sent("client") / 1e3, "kB"))
        figures.append(Figure(f"{job.title}, set-up compute", round(setup_ms, 2), "ms"))
    return figures


# --- the peer ---------------------------------------------------------------------------------------------------------

PEER_SETTINGS = {
    "logistic": (("N=8192 [60,40,40,60]", 8192, (60, 40, 40, 60), 40), ("N=4096 [40,20,40]", 4096, (40, 20, 40), 20)),
    "network": (("N=8192 [45,38,38,38,45]", 8192, (45, 38, 38, 38, 45), 38),),
}


def peers(name: str, graph: Graph, x: Any, repeats: int) -> list[tuple[str, float]]:
    """Return TenSEAL's median milliseconds per setting, network excluded; none where it is not installed."""
    python = PEER / ".venv" / "bin" / "python"
    if not python.exists():
        print("TenSEAL is not installed: see bench/peers/tenseal/requirements.txt")
        return []
    layers = [
        {"weight": layer.weight.tolist(), "bias": layer.bias.tolist()}
        for layer in graph.layers
        if isinstance(layer, Linear)
    ]
    found: list[tuple[str, float]] = []
    for title, degree, bits, scale_bits in PEER_SETTINGS[name]:
        job = {
            "poly_modulus_degree": degree,
            "coeff_mod_bit_sizes": bits,
            "scale_bits": scale_bits,
            "layers": layers,
            "rows": x[:20].tolist(),
            "repeats": repeats + WARM,
        }
        done = subprocess.run(
            [str(python), str(PEER / "linear.py")], input=json.dumps(job), capture_output=True, text=True, check=True
        )
        answer = json.loads(done.stdout)
        client, server_side = (answer[f"{role}_seconds"][WARM:] for role in ("client", "server"))
        both = [1e3 * (one + other) for one, other in zip(client, server_side, strict=True)]
        logits = Graph(graph.layers[:-1]).apply(x[:20])
        error = max(abs(output[0] - logits[place % 20, 0]) for place, output in enumerate(answer["outputs"]))
        print(
            f"TenSEAL 0.3.18 {title}, {name}: client {1e3 * statistics.median(client):.2f} + "
            f"server {1e3 * statistics.median(server_side):.2f} ms; query {answer['query_bytes'] / 1e3:.0f}, "
            f"reply {answer['reply_bytes'] / 1e3:.0f}, keys {answer['keys_bytes'] / 1e3:.0f} kB; "
            f"largest error of the logit {error:.1e}"
        )
        found.append((f"TenSEAL 0.3.18 {title}", round(statistics.median(both), 2)))
    return found


def best_peers(name: str, graph: Graph, x: Any, repeats: int) -> list[tuple[str, float]]:
    """Return TenSEAL's figures, each the better of two runs: a busy moment of the machine is not held against it."""
    return [
        min(pair, key=lambda entry: entry[1])
        for pair in zip(*(peers(name, graph, x, repeats) for _ in "12"), strict=True)
    ]


# --- the table --------------------------------------------------------------------------------------------------------


def show(figures: Sequence[Figure]) -> None:
    print()
    for one in figures:
        line = f"{one.figure:<46} {one.value:>9.2f} {one.unit:<3}"
        if one.peer_value is not None:
            line += f" {one.peer}: {one.peer_value:.2f} ({one.peer_value / one.value:.1f}x)"
        if one.bar is not None:
            line += f"  bar {one.bar:g}: {'met' if one.met else 'MISSED'}"
        print(line + (f"  [{one.note}]" if one.note else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-paillier", action="store_true")
    args = parser.parse_args()
    graphs, (x, _) = models(), data()
    theirs = {
        name: [] if args.no_peer else best_peers(name, graph, x, args.repeats // 4) for name, graph in graphs.items()
    }
    found: list[Figure] = []
    served = jobs(graphs)
    with server(served) as url:
        for job in served:
            name = "network" if job.graph is graphs["network"] else "logistic"
            beside = [] if job.bar_ms is None else theirs[name]
            found += over_http(job, url, x, args.repeats, beside)
            best = min(beside, key=lambda entry: entry[1], default=None)
            found += in_process(job, x, args.repeats // 2, best)
    if not args.no_paillier:
        found += in_process(Job("logistic, paillier 3072", "paillier", Paillier(), graphs["logistic"]), x, 20, None)
    show(found)
    if args.json:
        records = [{key: value for key, value in asdict(one).items() if key != "note"} for one in found]
        args.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
