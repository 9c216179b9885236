"""Our side of bench/mpc.py: one small function for each kind of row. What cannot run yet is None, never a number.

`in_process` runs all parties in one process through `confide.wire.run`: loopback without a socket, one core for all.
`over_tls` starts each party as a process of its own, as its organisation would.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from mpc_cases import Case, Training
from mpc_houses import predictions
from mpc_links import LOOPBACK, Link
from mpc_nets import NETS, Arrays, Layer

from confide.crypto.random import Randomness, SystemRandomness
from confide.ideal import Backend
from confide.model import layers as model_layers
from confide.model.graph import Graph
from confide.wire import MemoryStore, Transcript, run

#: Where each backend is, by its name.
BACKENDS = {
    "mpc-dealer": ("confide.mpc.two_party", "WithDealer"),
    "mpc-outsourced": ("confide.mpc.outsourced", "Outsourced"),
    "mpc-3pc": ("confide.mpc.replicated", "Replicated"),
}
WARM = 3


@dataclass(frozen=True)
class Ours:
    """What predictions or steps took.

    Args:
        seconds: of each, without the first ones.
        outputs: one for each call, the first ones included.
        online_bytes, offline_bytes: of one call; online of all parties, offline to each party by its role.
        trips: the longest chain of messages that depend on each other, the dealer's included.
        dealer_seconds: of work for one call; 0 without a dealer.
        setup_seconds: once for a model.
    """

    seconds: tuple[float, ...]
    outputs: tuple[np.ndarray, ...]
    online_bytes: float = 0.0
    offline_bytes: Mapping[str, float] = field(default_factory=dict[str, float])
    trips: int | None = None
    dealer_seconds: float = 0.0
    setup_seconds: float = 0.0


# --- what is there ----------------------------------------------------------------------------------------------------


def backend(case: Case, numbers: Arrays) -> Backend | None:
    """Return a case's backend, or None where it is not there yet or cannot run the network yet."""
    module, kind = BACKENDS[case.backend]
    try:
        found: Backend = getattr(importlib.import_module(module), kind)()
    except (ImportError, AttributeError):
        return None
    graph = graph_of(case.net, numbers)
    return None if graph is None or found.check(graph) else found


def graph_of(net: str, numbers: Arrays) -> Graph | None:
    """Return a network as a graph of ours, or None where a kind of layer is not there yet."""
    channels = {"mnist": (16, 28, 32, 14)}.get(net, ())
    pools = iter(list(zip(channels[::2], channels[1::2], strict=True)))

    def one(layer: Layer) -> Any:
        name = layer.get("number")
        weight, bias = (numbers.get(f"{name}.{part}") for part in ("weight", "bias"))
        match layer["kind"]:
            case "conv":
                steps, pads = (layer["stride"],) * 2, (layer["padding"],) * 4
                size = layer["height"], layer["width"]
                return model_layers.Conv(np.float64(weight), np.float64(bias), *size, steps, pads)
            case "linear":
                return model_layers.Linear(np.float64(weight), np.float64(bias))
            case "maxpool":
                count, side = next(pools)
                return model_layers.MaxPool(count, side, side, (layer["size"],) * 2, (layer["size"],) * 2)
            case "mean":
                size = layer["height"], layer["width"]
                return model_layers.AveragePool(layer["channels"], *size, size, size)
            case "residual":
                return model_layers.Residual(*(tuple(map(one, layer[part])) for part in ("body", "shortcut")))
            case kind:
                return {"relu": model_layers.Relu, "sigmoid": model_layers.Sigmoid}[kind]()

    try:
        return Graph(tuple(map(one, NETS[net]())))
    except AttributeError:  # no MaxPool
        return None


# --- inference --------------------------------------------------------------------------------------------------------


class InProcess:
    """All parties of one model in this process, after their setup."""

    def __init__(self, chosen: Backend, graph: Graph, rng: Randomness) -> None:
        self.backend, self.rng = chosen, rng
        self.kits = chosen.prepare(graph, rng)
        self.stores = {role: MemoryStore() for role in chosen.roles}
        begin = time.perf_counter()
        self.run("setup")
        self.setup_seconds = time.perf_counter() - begin

    def run(self, verb: str, **more: Any) -> Transcript:
        """Run `setup` or `deal` at every role."""
        parties = {
            role: getattr(self.backend, verb)(role, self.kits[role], store=self.stores[role], rng=self.rng, **more)
            for role in self.backend.roles
        }
        return _without_failures(run(parties, stores=self.stores, keep_bodies=False))

    def predict(self, x: np.ndarray) -> tuple[Transcript, float]:
        """Return the transcript of one prediction, and its seconds."""
        begin = time.perf_counter()
        parties = {
            role: self.backend.predict(
                role, self.kits[role], x if role == "client" else None, self.stores[role], self.rng
            )
            for role in self.backend.roles
        }
        found = run(parties, stores=self.stores, keep_bodies=False)
        return _without_failures(found), time.perf_counter() - begin


def _without_failures(transcript: Transcript) -> Transcript:
    for failure in transcript.failures.values():
        raise failure
    return transcript


def _sent(transcript: Transcript, *, dealer: bool) -> dict[str, float]:
    """Return the bytes to each party: what the dealer sent, or what everybody else did."""
    found: dict[str, float] = {}
    for message, size in zip(transcript.messages, transcript.sizes, strict=True):
        if (message.src == "dealer") == dealer:
            found[message.dst] = found.get(message.dst, 0) + size
    return found


def in_process(case: Case, numbers: Arrays, x: np.ndarray, *, repeats: int, ahead: bool = True) -> Ours | None:
    """Return what predictions take in this process; `ahead`: on material that was made before."""
    chosen, graph = backend(case, numbers), graph_of(case.net, numbers)
    if chosen is None or graph is None:
        return None
    parties = InProcess(chosen, graph, SystemRandomness())
    offline = parties.run("deal", rows=1, count=repeats + WARM) if ahead and hasattr(chosen, "deal") else None
    calls = [parties.predict(x[n % len(x)].reshape(1, -1)) for n in range(repeats + WARM)]
    count, last = repeats + WARM, calls[-1][0]
    dealt = _sent(last, dealer=True) if offline is None else _sent(offline, dealer=True)
    return Ours(
        tuple(seconds for _, seconds in calls[WARM:]),
        tuple(np.asarray(transcript.outputs["client"]) for transcript, _ in calls),
        sum(_sent(last, dealer=False).values()),
        {role: size / (1 if offline is None else count) for role, size in dealt.items()},
        last.depth,
        (last if offline is None else offline).seconds("dealer") / (1 if offline is None else count),
        parties.setup_seconds,
    )


def over_tls(
    case: Case, link: Link, numbers: Arrays, x: np.ndarray, *, repeats: int, ahead: bool = True
) -> Ours | None:
    """Return what predictions take with a process for each party over TLS, or None where that cannot run yet.

    Bytes and the dealer's work are those of `in_process`: the same parties say the same.
    """
    chosen = backend(case, numbers)
    if chosen is None:
        return None
    calls = repeats + WARM
    most, pause = (4, 1.5) if case.net == "resnet20" else (24, 0.2)  # time for what was used to be dealt anew
    stock = min(2 * calls, most) if ahead and "dealer" in chosen.roles else 0
    found = _asked(case, chosen, link, numbers, x, calls=calls, stock=stock, pause_seconds=pause)
    if found is None:
        return None
    without_dealer = "dealer" not in chosen.roles
    kept = [n for n in range(WARM, calls) if without_dealer or found["stocked"][n] == ahead]
    if len(kept) < repeats // 2:
        print(
            f"{case.title}, {link.name}: {len(kept)} of {repeats} predictions were {'' if ahead else 'not '}from stock"
        )
        return None
    return Ours(
        tuple(found["seconds"][n] for n in kept),
        tuple(np.array(one) for one in found["outputs"]),
        setup_seconds=found["setup_seconds"],
    )


def sustained(case: Case, numbers: Arrays, x: np.ndarray, *, calls: int) -> float | None:
    """Return predictions a second of one client on loopback who never pauses, with the dealer running beside."""
    chosen = backend(case, numbers)
    if chosen is None:
        return None
    found = _asked(case, chosen, LOOPBACK, numbers, x, calls=calls + WARM, stock=8, pause_seconds=0.0)
    return None if found is None else calls / sum(found["seconds"][WARM:])


def _asked(
    case: Case,
    chosen: Backend,
    link: Link,
    numbers: Arrays,
    x: np.ndarray,
    *,
    calls: int,
    stock: int,
    pause_seconds: float,
) -> dict[str, Any] | None:
    """Return what a client found, or None, saying why."""
    try:
        return predictions(
            case.backend,
            chosen.roles,
            link,
            net=case.net,
            numbers=numbers,
            x=x,
            calls=calls,
            stock=stock,
            pause_seconds=pause_seconds,
            seconds=300.0,
        )
    except RuntimeError as error:
        print(f"{case.title}, {link.name}, over TLS: {str(error).strip().splitlines()[-1:]}")
        return None


# --- training and products --------------------------------------------------------------------------------------------


def step_in_process(step: Training, arrays: Arrays, x: np.ndarray, *, rate: float, repeats: int) -> Ours | None:
    """Return what training steps take with both servers on this thread; the dealer's work is apart.

    What only the beginning costs falls out: a training of few steps is taken from one of more, five times. The outputs
    are the weights after one step, then the biases, layer by layer.
    """
    try:
        shares = importlib.import_module("confide.train.shares.simulate")
    except ImportError:
        return None
    few, more = 2, 2 + max(4, repeats if step.widths[-1] == 1 else repeats // 4)
    seconds, worked, runs = [], [], {}
    for _ in range(5):
        for passes in (few, more):
            runs[passes] = trained(step, arrays, x, rate=rate, passes=passes).transcript
        steps = more - few
        seconds.append(sum(_more(runs[more], runs[few], name) for name in shares.SERVERS) / steps)
        worked.append(_more(runs[more], runs[few], shares.DEALER) / steps)
    opened = trained(step, arrays, x, rate=rate, passes=1).opened
    dealt = [_sent(runs[passes], dealer=True) for passes in (more, few)]
    told = [sum(_sent(runs[passes], dealer=False).values()) for passes in (more, few)]
    return Ours(
        tuple(seconds),
        (*opened.weights, *opened.biases),
        (told[0] - told[1]) / steps,
        {name: (size - dealt[1][name]) / steps for name, size in dealt[0].items()},
        (runs[more].depth - runs[few].depth) // steps,
        median(worked),
    )


def _more(one: Transcript, other: Transcript, party: str) -> float:
    return one.seconds(party) - other.seconds(party)


def trained(step: Training, arrays: Arrays, x: np.ndarray, *, rate: float, passes: int) -> Any:
    """Return a training on shares of one owner's batch, `passes` steps, the weights opened."""
    shares, course, plans = (
        importlib.import_module(name)
        for name in ("confide.train.shares.simulate", "confide.train.shares.course", "confide.mpc.training_plan")
    )
    rows, (features, *hidden, outputs) = len(x), step.widths
    rates = plans.Rates.of(learning_rate=rate, batch=rows)
    task = plans.Task(features=features, hidden=tuple(hidden), outputs=outputs, rates=rates)
    piece = course.Piece(np.arange(rows), np.arange(features), True)
    whole = course.Course(task=task, pieces={"owner": piece}, rows=rows, batch=rows, passes=passes, opened=True)
    names = ["w"] if len(step.widths) == 2 else [f"w{place}" for place in range(len(step.widths) - 1)]
    start = [arrays[name].reshape(shape) for name, shape in zip(names, pairwise(step.widths), strict=True)]
    targets = arrays["y"].reshape(rows, outputs)
    return shares.simulate(whole, {"owner": (x, targets)}, SystemRandomness(), start=start)


def products(repeats: int, *, size: tuple[int, int, int] = (384, 512, 512)) -> float | None:
    """Return multiply-adds mod 2^64 a second, in units of 10^9, of one thread; None until there are products."""
    try:
        matmul = importlib.import_module("confide.mpc.products").matmul
    except ImportError:
        return None
    rows, inner, columns = size
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 1 << 64, shape, np.uint64) for shape in ((rows, inner), (inner, columns)))
    best = float("inf")
    for _ in range(repeats):
        begin = time.thread_time()
        matmul(a, b)
        best = min(best, time.thread_time() - begin)
    return rows * inner * columns / best / 1e9
