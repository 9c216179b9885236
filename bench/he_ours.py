"""Our side of bench/he.py, by the public API alone: a server with two workers, and `confide.Client` over HTTP."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from he_cases import Case, backend_of

from confide.guarantee import PrivacyLabel
from confide.he.ahead import MOST_AHEAD
from confide.he.backend import Homomorphic
from confide.he.plan_linear import LinearPlan
from confide.he.seal import Context, Evaluation, Needs
from confide.model.graph import Sigmoid
from confide.model.onnx import from_onnx, to_onnx
from confide.net.relay import Relay
from confide.serve.client import Client
from confide.serve.limits import Limits
from confide.serve.listen import serve
from confide.serve.pool import create_pooled_app
from confide.serve.protocol import Refusal
from confide.serve.served import Model
from confide.serve.server import create_app
from confide.serve.source import Source
from confide.wire import MemoryStore, Store

#: One way, each direction: what bench/he.py calls LAN and WAN.
LINES = {"LAN": (0.25e-3, 1e9), "WAN": (20e-3, 100e6)}
CROWDS = (1, 8, 64)
LIMITS = Limits(
    keys_bytes=(256 << 20) - 1024,  # the most that a store takes
    buffered_bytes=1 << 30,
    loaded_keys_bytes=2 << 30,
    answer_seconds=3600.0,
    waiting=256,
)


@dataclass
class Measured:
    """What one case took: milliseconds, bytes, the largest error of an output."""

    end_to_end: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    keys_ms: float = 0.0
    zero_ms: float | None = None  # an encryption of zero at the server, made ahead of the question that takes it
    blank_ms: float | None = None  # the part of an encryption at the client that needs no row, made during a wait
    plain: float = 0.0
    crowd: dict[int, list[float]] = field(default_factory=dict)
    crowd_refused: dict[int, int] = field(default_factory=dict)
    lines: dict[str, tuple[float, float]] = field(default_factory=dict)
    keys_bytes: int = 0
    query_bytes: int = 0
    reply_bytes: int = 0
    memory_bytes: int = 0
    error: float = 0.0


# --- the server -------------------------------------------------------------------------------------------------------


class Served(msgspec.Struct):
    """What a worker process makes the case's model of."""

    name: str
    onnx: bytes
    backend: str
    settings: dict[str, Any]

    @staticmethod
    def of(case: Case) -> Served:
        assert case.graph is not None
        assert case.backend is not None
        return Served(case.name, to_onnx(case.graph), case.backend.name, dict(case.settings))


def models_of(argument: bytes) -> list[Model]:
    """Return the model of a case: called in each worker process."""
    made = msgspec.msgpack.decode(argument, type=Served)
    label = PrivacyLabel(aggregator="pooled", parties=("bench",), quorum=1, colluding=0, rounds=1)
    return [Model(made.name, from_onnx(made.onnx), label, (backend_of(made.backend, made.settings),))]


def _serve(made: Served, pipe: Connection, limits: Limits) -> None:
    end_with_parent(pipe)
    argument = msgspec.msgpack.encode(made)
    with tempfile.TemporaryDirectory() as folder:
        if made.backend == "he":
            app = create_pooled_app(
                Source("he_ours:models_of", argument), store=str(Path(folder) / "keys.sqlite"), limits=limits
            )
        else:  # its kits hold a key, so no two processes have the same
            app = create_app(models_of(argument), limits=limits)
        serve(app, port=0, ready=pipe.send)


def end_with_parent(pipe: Connection) -> None:
    """Have this process end when the one that started it has ended, however that came."""

    def wait() -> None:
        with suppress(EOFError, OSError):
            pipe.recv()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def server(case: Case, *, limits: Limits = LIMITS, start_seconds: float = 600.0) -> Iterator[tuple[str, int]]:
    """Serve one case in a process of its own; yields the URL and the process's number."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(Served.of(case), there, limits))
    process.start()
    there.close()
    try:
        if not here.poll(start_seconds):
            raise SystemExit("the server did not start in time")
        assert process.pid is not None
        yield here.recv(), process.pid
    finally:
        process.terminate()
        process.join()


def peak_memory(pid: int) -> int:
    """Return the bytes of memory that a process and those below it held at most, added up."""
    task = Path(f"/proc/{pid}")
    try:
        lines = (task / "status").read_text().splitlines()
        children = (task / "task" / str(pid) / "children").read_text().split()
    except OSError:
        return 0
    own = sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return own + sum(peak_memory(int(child)) for child in children)


# --- times ------------------------------------------------------------------------------------------------------------


def timed(ask: Callable[[int], Any], repeats: int, seconds: float, warm: int = 3) -> list[float]:
    """Return the milliseconds of each call after some that warm up: `repeats`, or fewer once `seconds` are over."""
    begin = time.perf_counter()
    for number in range(warm):
        ask(number)
        if time.perf_counter() - begin > seconds / 4:
            break
    found: list[float] = []
    while len(found) < repeats and (not found or time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        ask(len(found))
        found.append(1e3 * (time.perf_counter() - start))
    return found


def client_of(case: Case, url: str, store: Store | None = None) -> Client:
    assert case.backend is not None
    return Client(url, model=case.name, backend=case.backend.name, store=store, timeout_seconds=3600.0)


def plain_ms(case: Case, repeats: int = 200) -> float:
    """Return the median milliseconds of one row of the plain model under onnxruntime, two threads."""
    import onnxruntime

    assert case.graph is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(to_onnx(case.graph), options, providers=["CPUExecutionProvider"])
    wanted = session.get_inputs()[0]
    kind = np.float64 if "double" in wanted.type else np.float32
    rows = case.rows.x[:64].astype(kind)
    return statistics.median(timed(lambda n: session.run(None, {wanted.name: rows[n % len(rows)][None]}), repeats, 10))


def ahead_ms(case: Case, repeats: int = 50) -> tuple[float | None, float | None]:
    """Return the milliseconds of what is made ahead: once for each question, outside the time from row to prediction.

    None where nothing is. It is in no other figure, except where a question came before it was done.
    """
    assert isinstance(case.backend, Homomorphic)
    assert case.graph is not None
    plan = case.backend.plan(case.graph)
    context, needs = Context(plan.parameters), Needs(encryption=plan.needs.encryption)
    secret, public = context.generate(bytes(16), needs)
    zero = blank = None
    if needs.encryption:
        keys = Evaluation(context, public, needs)
        limbs = len(plan.parameters.data_primes) if isinstance(plan, LinearPlan) else plan.reply_limbs
        zero = statistics.median(timed(lambda _: keys.zero(limbs=limbs), repeats, 10))
    if isinstance(plan, LinearPlan):
        plain = context.polynomial(np.zeros(1, np.uint64))
        whole = statistics.median(timed(lambda _: secret.encrypt_packed(plain), repeats, 10))
        while secret.prepare_ahead():
            pass
        rest = statistics.median(timed(lambda _: secret.encrypt_packed(plain), MOST_AHEAD - 1, 10, warm=1))
        blank = whole - rest
    return zero, blank


def measure(case: Case, *, repeats: int, seconds: float, crowds: Sequence[int] = CROWDS) -> Measured:
    """Return all figures of one case; no part of it takes much longer than `seconds`."""
    found = Measured()
    found.plain = plain_ms(case)
    if case.backend is not None and case.backend.name == "he":
        found.zero_ms, found.blank_ms = ahead_ms(case)
    with server(case) as (url, pid):
        _cold(case, url, found, repeats=min(repeats, 30), seconds=seconds / 2)
        store = MemoryStore()
        _warm(case, url, store, found, repeats=repeats, seconds=seconds)
        for clients in crowds:
            if clients * statistics.median(found.end_to_end) / 2e3 < seconds:
                found.crowd[clients], found.crowd_refused[clients] = crowd(case, url, store, clients, seconds / 2)
        for name, (delay, rate) in LINES.items():
            found.lines[name] = over_line(case, url, delay, rate, min(repeats, 30), seconds / 2)
        found.memory_bytes = peak_memory(pid)
    return found


def _cold(case: Case, url: str, found: Measured, *, repeats: int, seconds: float) -> None:
    """Time the first answer of clients that have no keys yet: the kit, key generation, the upload and one question."""
    keys: list[float] = []

    def first(number: int) -> None:
        with client_of(case, url) as client:
            begin = time.perf_counter()
            transcript = client.setup()
            keys.append(1e3 * (time.perf_counter() - begin))
            found.keys_bytes = transcript.bytes_sent("client")
            client.predict(_row(case, number))

    found.cold = timed(first, repeats, seconds, warm=1)
    found.keys_ms = statistics.median(keys)


def _warm(case: Case, url: str, store: Store, found: Measured, *, repeats: int, seconds: float) -> None:
    servers: list[float] = []
    with client_of(case, url, store) as client:
        client.setup()

        def ask(number: int) -> None:
            row = _row(case, number)
            transcript = client.ask(row)
            servers.append(1e3 * transcript.seconds("server"))
            found.query_bytes, found.reply_bytes = transcript.bytes_sent("client"), transcript.bytes_sent("server")
            found.error = max(found.error, error_of(case, row, transcript.output("client")))

        found.end_to_end = timed(ask, repeats, seconds)
        found.server = servers[-len(found.end_to_end) :]


def error_of(case: Case, x: Any, outputs: Any) -> float:
    """Return the largest error of an output, of the logit where the model ends in a sigmoid."""
    assert case.graph is not None
    expected = case.graph.apply(x)
    if isinstance(case.graph.layers[-1], Sigmoid):
        outputs, expected = (np.log(one) - np.log1p(-one) for one in (outputs, expected))
    return float(np.abs(outputs - expected).max())


def _row(case: Case, number: int) -> Any:
    return case.rows.x[number % len(case.rows.x)][None, :]


def crowd(case: Case, url: str, store: Store, clients: int, seconds: float) -> tuple[list[float], int]:
    """Return the milliseconds of the questions of `clients` that ask at once, one after the other, and the refusals.

    They share one key set and this process, so the work of the clients is in the figures.
    """
    taken: list[float] = []
    refused: list[int] = []
    end = time.perf_counter() + seconds

    def work(place: int) -> None:
        with client_of(case, url, store) as client:
            client.kit  # noqa: B018 - fetched before the clock starts
            gate.wait()
            number = place
            while time.perf_counter() < end or number == place:
                begin = time.perf_counter()
                try:
                    client.predict(_row(case, number))
                except Refusal:
                    refused.append(place)
                    time.sleep(1.0)
                    continue
                taken.append(1e3 * (time.perf_counter() - begin))
                number += clients
                if number // clients >= 30:
                    break

    gate = threading.Barrier(clients)
    threads = [threading.Thread(target=work, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken, len(refused)


def over_line(case: Case, url: str, delay: float, rate: float, repeats: int, seconds: float) -> tuple[float, float]:
    """Return the milliseconds of the first answer and the median of later ones over a shaped line."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with Relay(host, int(port), delay_seconds=delay, bits_per_second=rate) as relay:
        shaped = f"http://127.0.0.1:{relay.port}"
        with client_of(case, shaped) as client:
            begin = time.perf_counter()
            client.predict(_row(case, 0))
            first = 1e3 * (time.perf_counter() - begin)
            later = timed(lambda number: client.predict(_row(case, number)), repeats, seconds, warm=1)
    return first, statistics.median(later)


def bulk_rate(case: Case, seconds: float) -> tuple[float, float]:
    """Return rows a second, end to end by one client, and the largest error."""
    x, rows, worst = case.rows.x, 0, 0.0
    with server(case) as (url, _), client_of(case, url) as client:
        client.predict(x)  # learns how many rows fit into one question
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds or not rows:
            worst = max(worst, error_of(case, x, client.predict(x)))
            rows += len(x)
        taken = time.perf_counter() - begin
    return rows / taken, worst
