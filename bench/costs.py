"""What a prediction, a sum and a training take under every technique over a grid of sizes, parties in one process.

    python bench/costs.py [--out FILE] [--only NAME ...] [--repeats 5] [--json FILE]

Writes the measurements that `confide.compare.costs` fits its models to: the work on the longest path, the bytes that
such a path carries, its one-way trips, and the seconds over each link (`Transcript.cost`). Correlations of predictions
on shares are dealt ahead, keys are made before, evidence is checked before. An enclave here is simulated: its work is
measured, nothing is protected. Prints the error of the models on sizes that were held out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from cost_trainings import measured as trainings
from figures import Figure, command_line, write

from confide.compare.costs import PLACE, dump, grouped, held_out, left_out_by_link
from confide.compare.described import graph_of, size_of
from confide.compare.links import LINKS
from confide.compare.planned import planned
from confide.compare.record import machine, version
from confide.compare.scenario import parse
from confide.crypto.random import SystemRandomness
from confide.errors import ConfideError
from confide.he.backend import Homomorphic
from confide.ideal import Backend, Cohort, Session
from confide.model.graph import AveragePool, Conv, Graph, Layer, Linear, Relu, Residual
from confide.serve import BACKENDS, load_backend
from confide.tee import simulated
from confide.tee.aggregate import Tee, simulated_enclaves
from confide.tee.attest import load_attester
from confide.tee.backend import Accept, Enclaved, graph_sha256
from confide.tee.policy import Policy, SimulatedRules
from confide.train.parts import AGGREGATORS
from confide.wire import MemoryStore, Transcript, run

RNG = SystemRandomness()
LINEAR = [
    (10, 1), (30, 1), (60, 1), (100, 1), (100, 10), (200, 1), (300, 1), (784, 10), (1500, 1), (3000, 1),
]  # fmt: skip
NETWORKS = [
    (30, (8,), 1), (30, (16,), 1), (30, (64,), 1), (100, (32,), 1), (100, (64, 32), 2), (196, (64,), 10),
    (784, (32,), 10), (784, (128,), 10),
]  # fmt: skip
IMAGES = [(196, 3, 32), (784, 2, 32), (784, 5, 100), (400, 4, 48), (784, 8, 64), (1024, 4, 32)]
TREES = [
    (10, 10, 2), (30, 10, 3), (30, 20, 3), (30, 50, 2), (30, 50, 3), (30, 100, 3), (30, 50, 4), (30, 30, 5),
    (60, 200, 2),
]  # fmt: skip
#: Deeper ones, which no key of a scenario describes: rounds of (channels, stride), and the side of the image.
DEEP = [(28, (4, 8)), (28, (8, 16)), (32, (8, 8, 16)), (32, (16, 16, 16, 32, 32))]
LENGTHS, PARTIES = (31, 513, 4000, 30_000), (4, 10, 30, 100)
BOUND = 1 << 20
BAR = 0.25
#: A short protocol is run again and again for so long: its median is what load disturbs most.
LEAST_SECONDS, MOST_REPEATS = 0.4, 60


def models() -> Iterator[dict[str, Any]]:
    """Yield the [model] of each size."""
    for features, outputs in LINEAR:
        yield {"kind": "logistic", "features": features, "outputs": outputs}
    for activation in ("square", "relu"):
        for features, hidden, outputs in NETWORKS:
            yield {
                "kind": "mlp", "features": features, "hidden": hidden, "outputs": outputs, "activation": activation,
            }  # fmt: skip
        for features, channels, units in IMAGES:
            yield {
                "kind": "cnn", "features": features, "channels": channels, "hidden": (units,), "outputs": 10,
                "activation": activation,
            }  # fmt: skip
    for features, count, depth in TREES:
        yield {"kind": "trees", "features": features, "trees": count, "depth": depth}
    for number, (side, _) in enumerate(DEEP):
        yield {"kind": "network", "features": side * side, "outputs": 10, "number": number}


def network(model: dict[str, Any]) -> Graph:
    """Return the network of a [model]; a deep one has residual blocks with ReLU and ends in a mean of each channel."""
    if model["kind"] != "network":
        return graph_of(parse({"model": {k: list(v) if isinstance(v, tuple) else v for k, v in model.items()}}).model)
    stream, (side, widths) = np.random.default_rng(5), DEEP[model["number"]]

    def conv(inputs: int, outputs: int, size: int, stride: int) -> Conv:
        weight = stream.normal(0, 1 / math.sqrt(9 * inputs), (outputs, inputs, 3, 3))
        return Conv(weight, np.zeros(outputs), size, size, (stride, stride), (1, 1, 1, 1))

    layers: list[Layer] = [conv(1, widths[0], side, 2), Relu()]
    size, channels = side // 2, widths[0]
    for width in widths:
        if width != channels:
            layers += [conv(channels, width, size, 2), Relu()]
            size, channels = size // 2, width
        layers += [Residual((conv(width, width, size, 1), Relu(), conv(width, width, size, 1))), Relu()]
    layers += [AveragePool(channels, size, size, (size, size), (1, 1))]
    return Graph((*layers, Linear(stream.normal(0, 0.3, (10, channels)), np.zeros(10))))


def choices() -> dict[str, Backend]:
    """Return every backend, with both forms of "he"; the enclave is simulated."""
    made = {name: load_backend(name) for name in BACKENDS if name != "tee"}
    return made | {"he-open": Homomorphic(protect_model=False), "tee": Enclaved(attester=load_attester("simulated"))}


def costs(transcripts: list[Transcript], **more: Any) -> dict[str, Any]:
    """Return the medians over some runs of one protocol."""

    def middle(delay: float, rate: float) -> float:
        return statistics.median(one.cost(latency_seconds=delay, bandwidth_bps=rate) for one in transcripts)

    work = middle(0.0, 1e18)
    one = transcripts[-1]
    slow = one.cost(latency_seconds=0.0, bandwidth_bps=8.0) - one.cost(latency_seconds=0.0, bandwidth_bps=1e18)
    far = one.cost(latency_seconds=1e3, bandwidth_bps=1e18) - one.cost(latency_seconds=0.0, bandwidth_bps=1e18)
    return more | {
        "compute_seconds": work,
        "bytes": round(slow),
        "trips": round(far / 1e3),
        "seconds": {link.name: middle(link.delay_seconds, link.bits_per_second) for link in LINKS.values()},
    }


def failed(transcript: Transcript) -> Transcript:
    """Return it, or raise what ended a party."""
    for failure in transcript.failures.values():
        raise failure
    return transcript


def prediction(choice: str, backend: Backend, model: dict[str, Any], repeats: int) -> dict[str, Any] | None:
    """Return the costs of one row, or None where the backend does not take the model."""
    graph = network(model)
    if backend.check(graph):
        return None
    if choice == "tee":  # the client's side, which accepts this model in a simulated enclave
        policy = Policy(
            model_sha256=(graph_sha256(graph),), simulated=SimulatedRules(measurements=(simulated.measure_code(),))
        )
        accept = Accept(policy, allow_simulated=True)
        backend = Enclaved(attester=load_attester("simulated"), accept=accept)
    kits = backend.prepare(graph, RNG)
    stores = {role: MemoryStore() for role in backend.roles}

    def parties(verb: str, **more: Any) -> dict[str, Any]:
        return {
            role: getattr(backend, verb)(role, kits[role], store=stores[role], rng=RNG, **more)
            for role in backend.roles
        }

    set_up = failed(run(parties("setup"), stores=stores, keep_bodies=False))
    x = np.random.default_rng(1).uniform(-1, 1, (1, graph.features))
    done: list[Transcript] = []
    begin = time.perf_counter()
    while len(done) <= repeats or (time.perf_counter() - begin < LEAST_SECONDS and len(done) < MOST_REPEATS):
        if hasattr(backend, "deal"):
            failed(run(parties("deal", rows=1, count=1), stores=stores, keep_bodies=False))
        asked = {
            role: backend.predict(role, kits[role], x if role == "client" else None, stores[role], RNG)
            for role in backend.roles
        }
        done.append(failed(run(asked, stores=stores, keep_bodies=False)))
    return costs(
        done[1:],
        task="inference",
        choice=choice,
        model=model,
        size=asdict(size_of(graph)),
        **({} if choice == "tee" else plan_of(backend, graph)),
        setup_seconds=set_up.cost(latency_seconds=0.0, bandwidth_bps=1e18),
        error=float(np.abs(np.asarray(done[-1].outputs["client"]) - graph.apply(x)).max()),
    )


def plan_of(backend: Backend, graph: Graph) -> dict[str, Any]:
    """Return what the backend's planner says, under the name by which `costs` reads it."""
    found = planned(backend, graph)
    return {} if found is None else {"plan": list(found)}


def total(choice: str, parties: int, length: int, repeats: int) -> dict[str, Any] | None:
    """Return the costs of one sum, or None where the aggregator does not take so many parties."""
    names = tuple(f"party-{number}" for number in range(1, parties + 1))
    aggregator = Tee(simulated=True, enclaves=simulated_enclaves()) if choice == "tee" else AGGREGATORS[choice]()
    cohort = Cohort(names, parties // 2 + 1 if parties > 4 else 3)
    roles = cohort.parties(aggregator.roles)
    stores = {me: MemoryStore() for me in roles}
    set_up = {me: aggregator.setup(role, me, cohort, stores[me], RNG) for me, role in roles.items()}
    ready = failed(run(set_up, stores=stores, keep_bodies=False))
    rng = np.random.default_rng(2)
    done: list[Transcript] = []
    begin, number = time.perf_counter(), 0
    while len(done) <= repeats or (time.perf_counter() - begin < LEAST_SECONDS and len(done) < MOST_REPEATS):
        number += 1
        session = Session("bench", number, cohort, length, BOUND)
        vectors = {name: rng.integers(-BOUND, BOUND, length) for name in names}
        running = {
            me: aggregator.party(role, me, session, vectors.get(me), stores[me], RNG) for me, role in roles.items()
        }
        done.append(failed(run(running, stores=stores, keep_bodies=False)))
    return costs(
        done[1:],
        task="training",
        choice=choice,
        parties=parties,
        length=length,
        setup_seconds=ready.cost(latency_seconds=0.0, bandwidth_bps=1e18),
    )


def measured(only: list[str], repeats: int) -> Iterator[dict[str, Any]]:
    """Yield every row of the grid."""
    for choice, backend in choices().items():
        for model in models():
            if (only and choice not in only) or (choice == "he-open" and model["kind"] != "logistic"):
                continue
            try:
                row = prediction(choice, backend, model, min(repeats, 2) if choice == "paillier" else repeats)
            except ConfideError as error:
                print(f"{choice} {model}: {str(error).splitlines()[0]}", flush=True)
                continue
            if row:
                print(f"{choice:15s} {model}: {1e3 * row['compute_seconds']:.2f} ms", flush=True)
                yield row
    for choice in AGGREGATORS:
        for parties in PARTIES:
            for length in LENGTHS:
                if only and choice not in only:
                    continue
                try:
                    row = total(choice, parties, length, repeats)
                except ConfideError as error:
                    print(f"{choice} {parties} {length}: {str(error).splitlines()[0]}", flush=True)
                    continue
                if row:
                    print(f"{choice:15s} {parties} x {length}: {1e3 * row['compute_seconds']:.2f} ms", flush=True)
                    yield row
    yield from trainings(RNG, repeats, only)


def by_link(rows: list[dict[str, Any]]) -> None:
    """Print the median error over each link of each model."""
    for (task, choice, kind), own in grouped(rows).items():
        found = {name: f"{100 * statistics.median(each):.0f} %" for name, each in left_out_by_link(own).items()}
        print(f"  {task}, {choice}{f', {kind}' if kind else ''}, {len(own)} measurements: {found}")


def errors(rows: list[dict[str, Any]]) -> list[Figure]:
    """Return the error of each model on sizes that it was not fitted to."""
    found: list[Figure] = []
    for (task, choice), error in held_out(rows).items():
        name = f"median relative error on held-out sizes, {task}, {choice}"
        found.append(Figure(name, round(error, 4), "share", bar=BAR, met=error <= BAR))
        print(f"{name}: {100 * error:.0f} %")
    return found


def main() -> None:
    parser: argparse.ArgumentParser = command_line(__doc__)
    parser.add_argument("--out", type=Path, help="where the measurements go")
    parser.add_argument("--read", type=Path, help="measure nothing, take these")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.read:
        rows = json.loads(options.read.read_text())["rows"]
    else:
        rows = list(measured(options.only, options.repeats))
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        text = dump(rows, machine=machine(), date=today, version=version())
        (options.out or Path(PLACE.name)).write_text(text)
    by_link(rows)
    write(errors(rows), options.json)


if __name__ == "__main__":
    main()
