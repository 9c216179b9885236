"""Predictions under load: several clients ask one technique at the same time, all processes as they really are.

A process for each role that serves, a process for each client, over HTTP, or over TLS between organisations. Everything
runs on this one machine and shares its cores, clients too: what others would add with machines of their own is not in
these figures, and what HTTP, TLS, durable stores and dealing take is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.compare.caller import READY, Task, Told
from confide.compare.cells import VARIANTS
from confide.compare.hosted import Hosts, artifact_bytes, serving
from confide.compare.resources import process_peak_bytes, process_seconds
from confide.errors import ServiceError
from confide.model.graph import Graph
from confide.model.preprocess import Preprocess
from confide.structs import known
from confide.tee.backend import graph_sha256
from confide.tee.simulated import measure_code

Matrix = NDArray[np.float64]

_CALLER = "from confide.compare.caller import main; main()"
#: How long a technique is asked under load, unless it is slow.
SECONDS = 2.0
_FEWEST = 3
_MOST_SECONDS = 20.0
#: A client that says nothing for so long has failed.
_SILENT_SECONDS = 300.0
#: Parts of the time whose rates show the spread.
_PARTS = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a technique did under load.

    Args:
        figures: as in `Record.figures`.
        samples: of each part of the time.
    """

    figures: dict[str, float]
    samples: dict[str, tuple[float, ...]]


def words(clients: int) -> str:
    """Return in words how load is made."""
    return (
        f"under load: {clients} clients at once, a process each, against a process for each role that serves, all on "
        "this machine and its cores; over HTTP, between organisations over TLS"
    )


def loaded(
    choice: str, graph: Graph, preprocess: Preprocess, x: Matrix, *, clients: int, seconds: float = SECONDS
) -> Loaded:
    """Serve a model by one technique and let several clients ask at once.

    Args:
        choice: out of `cells.inference_choices`; it runs the model.
        graph, preprocess: of the model.
        x: the queries, float64, shape (queries, features).
        clients: how many, >= 1.
        seconds: how long; a slow technique takes longer, until each client has a few answers.

    Raises:
        ServiceError: a process did not start, or a client had no answer.
    """
    with tempfile.TemporaryDirectory(prefix="confide-compare-") as place, ExitStack() as stack:
        folder = Path(place)
        model, rows = folder / "model.confide", folder / "rows.npy"
        model.write_bytes(artifact_bytes(graph, preprocess))
        np.save(rows, x)
        (folder / "served").mkdir()
        callers = [stack.enter_context(_Caller()) for _ in range(clients)]  # they load their code meanwhile
        hosts = stack.enter_context(serving(choice, model, folder / "served", clients=clients))
        sha = (graph_sha256(graph),) if choice == "tee" else ()
        for place, caller in enumerate(callers):
            task = Task(
                url=hosts.url, backend=VARIANTS.get(choice, choice), rows=str(rows), first=place * len(x) // clients,
                identity=str(hosts.identities[place]) if hosts.identities else None, model_sha256=sha,
                measurements=(measure_code(),) if choice == "tee" else (), seconds=seconds, fewest=_FEWEST,
                most_seconds=max(seconds, _MOST_SECONDS),
            )  # fmt: skip
            caller.say(msgspec.json.encode(task).decode())
        return _asked(hosts, callers)


class _Caller:
    """One client's process."""

    def __init__(self) -> None:
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        self._process = subprocess.Popen(  # noqa: S603 (this interpreter, our own words)
            [sys.executable, "-P", "-c", _CALLER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, text=True,
        )  # fmt: skip
        self._watch = threading.Timer(_SILENT_SECONDS, self._process.kill)
        self._watch.daemon = True
        self._watch.start()

    def __enter__(self) -> _Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.cancel()
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def say(self, line: str) -> None:
        """Give it a line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it has ended, and its output says why

    def told(self) -> Told | None:
        """Return what it says next; None is "ready". Raises ServiceError if it failed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line == READY:
            return None
        if not line:
            self._complaints.seek(0)
            said = self._complaints.read().strip().splitlines()
            raise ServiceError(503, f"a client under load ended: {said[-1] if said else 'without a word'}")
        found = msgspec.json.decode(line, type=known(Told))
        if found.error:
            raise ServiceError(503, f"a client under load ended: {found.error}")
        return found


def _asked(hosts: Hosts, callers: Sequence[_Caller]) -> Loaded:
    for caller in callers:
        if caller.told() is not None:
            raise ServiceError(503, "a client under load said nothing of being ready")
    before = _of_roles(hosts, process_seconds)
    for caller in callers:
        caller.say("go")
    told = [found for caller in callers if (found := caller.told()) is not None]
    after = _of_roles(hosts, process_seconds)
    window(told)  # refuses what tells nothing
    count = sum(len(one.took) for one in told)
    figures = {
        f"load_cpu_of_{role}_seconds": (after[role] - seconds) / count
        for role, seconds in before.items()
        if role in after
    }
    figures |= {f"peak_memory_of_{role}_bytes": size for role, size in _of_roles(hosts, process_peak_bytes).items()}
    work = [one.cpu_seconds for one in told if one.cpu_seconds is not None]
    memory = [one.peak_bytes for one in told if one.peak_bytes is not None]
    figures |= {"load_cpu_of_client_seconds": sum(work) / count} if work else {}
    figures |= {"peak_memory_of_client_bytes": max(memory)} if memory else {}
    return Loaded(figures | figures_of(told), {"requests_per_second_rate": rates(told)})


def _of_roles(hosts: Hosts, ask: Callable[[int], float | None]) -> dict[str, float]:
    found = {role: ask(process) for role, process in hosts.processes.items()}
    return {role: value for role, value in found.items() if value is not None}


def window(told: Sequence[Told]) -> tuple[float, float]:
    """Return from when to when every client asked. Raises ServiceError if there is no such time."""
    begin, end = max(one.begin for one in told), min((one.ends[-1] for one in told if one.ends), default=0.0)
    if begin >= end or not all(one.ends for one in told):
        raise ServiceError(503, "clients did not ask at the same time: this machine is too busy to tell load")
    return begin, end


def rates(told: Sequence[Told], *, parts: int = _PARTS) -> tuple[float, ...]:
    """Return answers per second in each part of the time in which every client asked.

    A part has at least two answers of each client, or the whole is one part.
    """
    begin, end = window(told)
    ends = np.array([moment for one in told for moment in one.ends if begin < moment <= end])
    parts = parts if len(ends) >= 2 * parts * len(told) else 1
    counts, edges = np.histogram(ends, bins=parts, range=(begin, end))
    return tuple(float(count / width) for count, width in zip(counts, np.diff(edges), strict=True))


def figures_of(told: Sequence[Told]) -> dict[str, float]:
    """Return latencies over all answers of all clients, and how many there were."""
    took = np.array([seconds for one in told for seconds in one.took])
    p50, p95, p99 = (float(value) for value in np.percentile(took, [50, 95, 99]))
    begin, end = window(told)
    return {
        "load_p50_seconds": p50,
        "load_p95_seconds": p95,
        "load_p99_seconds": p99,
        "load_clients_count": float(len(told)),
        "load_answers_count": float(len(took)),
        "load_window_seconds": end - begin,
    }
