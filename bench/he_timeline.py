"""Where one small question's time goes, over the client, the server's process and its worker: bench/he.py --timeline.

The medians are those of the fastest tenth of many questions, whom nothing else on the machine was in the way of.

Functions of each process are wrapped to note when they begin and end, by a clock that all processes of a machine share.
Each note costs about a microsecond, and so the whole is a little slower than without.
"""

from __future__ import annotations

import importlib
import inspect
import mmap
import multiprocessing
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from he_cases import Case
from he_ours import LIMITS, Served, client_of, end_with_parent, models_of

from confide.serve.listen import serve
from confide.serve.pool import create_pooled_app
from confide.serve.source import Source

#: What is watched: process, label, module, and the function in it.
WATCHED = (
    ("client", "encrypt", "confide.he.linear", "LinearClient.encrypt"),
    ("client", "seal the question", "confide.he.envelope", "Channel.query"),
    ("client", "request", "confide.serve.direct", "Direct.send"),
    ("client", "write", "confide.serve.direct", "_write"),
    ("client", "prepare the next encryption", "confide.serve.session", "Session.prepare_ahead"),
    ("client", "read the answer", "confide.serve.direct", "_read"),
    ("client", "check the envelope", "confide.he.envelope", "Channel.answer"),
    ("client", "decrypt", "confide.he.linear", "LinearClient.decrypt"),
    ("server", "request", "confide.serve.server", "Server._handle"),
    ("server", "read the body", "confide.serve.limits", "Bodies.read"),
    ("server", "exchange with the worker", "confide.serve.pipe", "Pipe.exchange"),
    ("server", "answer", "confide.serve.server", "Server._reply"),
    ("worker", "receive", "confide.serve.pipe", "Pipe.recv"),
    ("worker", "answer", "confide.serve.served", "Served.infer"),
    ("worker", "keys known", "confide.serve.keys", "Uploads.knows"),
    ("worker", "open the envelope", "confide.he.envelope", "Channel.opened"),
    ("worker", "the model", "confide.he.linear", "LinearServer.answer"),
    ("worker", "seal the reply", "confide.he.envelope", "Channel.reply"),
    ("worker", "send", "confide.serve.pipe", "Pipe.send"),
    ("worker", "prepare the next zero", "confide.serve.work", "Local.prepare_ahead"),
)

_NOTE = struct.Struct("<Id")
_MOST_NOTES = 1 << 17
_FOLDER = "CONFIDE_BENCH_NOTES"


class _Notes:
    """A process's notes in a file that outlives it."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            file.truncate(_NOTE.size * _MOST_NOTES)
            self._map = mmap.mmap(file.fileno(), 0)
        self._count = 0

    def add(self, number: int) -> None:
        if self._count < _MOST_NOTES:
            _NOTE.pack_into(self._map, self._count * _NOTE.size, number, time.perf_counter())
            self._count += 1


def watch(process: str) -> _Notes:
    """Wrap what is watched in this process."""
    notes = _Notes(Path(os.environ[_FOLDER]) / f"{process}-{os.getpid()}")
    for number, (where, _, module, name) in enumerate(WATCHED):
        if where == process:
            owner: Any = importlib.import_module(module)
            *outer, last = name.split(".")
            for part in outer:
                owner = getattr(owner, part)
            setattr(owner, last, _wrapped(getattr(owner, last), partial(notes.add, 2 * number + 2)))
    return notes


def _wrapped(function: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def awaited(*args: Any, **named: Any) -> Any:
            note()
            try:
                return await function(*args, **named)
            finally:
                note()

        return awaited

    @wraps(function)
    def called(*args: Any, **named: Any) -> Any:
        note()
        try:
            return function(*args, **named)
        finally:
            note()

    return called


def watched_models(argument: bytes) -> Any:
    """Return the model of a case, in a worker process whose functions are watched from now on."""
    watch("worker")
    return models_of(argument)


def _serve(made: Served, pipe: Any) -> None:
    end_with_parent(pipe)
    watch("server")
    with tempfile.TemporaryDirectory() as folder:
        source = Source("he_timeline:watched_models", msgspec.msgpack.encode(made))
        app = create_pooled_app(source, store=str(Path(folder) / "keys.sqlite"), limits=LIMITS)
        serve(app, port=0, ready=pipe.send)


@contextmanager
def _server(case: Case) -> Iterator[str]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(Served.of(case), there))
    process.start()
    there.close()
    try:
        if not here.poll(600):
            raise SystemExit("the server did not start in time")
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def timeline(case: Case, repeats: int) -> list[str]:
    """Return the lines of a case's table: when each part begins and ends, in microseconds from the question's begin."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_FOLDER] = folder
        with _server(case) as url, client_of(case, url) as client:
            client.setup()
            notes = watch("client")
            for number in range(repeats + 20):
                row = case.rows.x[number % len(case.rows.x)][None, :]
                notes.add(0)
                client.ask(row)
                notes.add(1)
        found = np.concatenate(
            [np.frombuffer(path.read_bytes(), [("number", "<u4"), ("time", "<f8")]) for path in Path(folder).iterdir()]
        )
    return list(_lines(np.sort(found[found["time"] > 0], order="time"), repeats))


def _lines(notes: Any, repeats: int) -> Iterator[str]:
    begins = notes["time"][notes["number"] == 0][-repeats:]
    ends = notes["time"][notes["number"] == 1][-repeats:]
    fastest = np.argsort(ends - begins)[: max(1, repeats // 10)]
    begins, ends = begins[fastest], ends[fastest]
    rows: list[tuple[float, float, str, str]] = []
    for number, (process, label, _, _) in enumerate(WATCHED):
        times = notes["time"][notes["number"] == 2 * number + 2]
        spans = [_span(times, begin, end) for begin, end in zip(begins, ends, strict=True)]
        kept = [span for span in spans if span is not None]
        if kept:
            first, last = (statistics.median(column) for column in zip(*kept, strict=True))
            rows.append((first, last, process, label))
    yield f"{'process':<8} {'part':<28} {'begin':>7} {'end':>7} {'us':>6}"
    for first, last, process, label in sorted(rows):
        yield f"{process:<8} {label:<28} {first:>7.0f} {last:>7.0f} {last - first:>6.0f}"
    yield f"{'':<8} {'whole':<28} {0:>7} {1e6 * statistics.median(ends - begins):>7.0f}"


def _span(times: Any, begin: float, end: float) -> tuple[float, float] | None:
    """Return when a part that ended within a question began and ended, in microseconds; the longest of several."""
    pairs = times[: len(times) // 2 * 2].reshape(-1, 2)
    within = pairs[(pairs[:, 1] > begin) & (pairs[:, 0] < end)]
    if not len(within):
        return None
    first, last = within[np.argmax(within[:, 1] - within[:, 0])]
    return 1e6 * (first - begin), 1e6 * (last - begin)


def show(cases: Sequence[Case], repeats: int) -> None:
    for case in cases:
        print(f"\n== {case.title}")
        print("\n".join(timeline(case, repeats)), flush=True)
