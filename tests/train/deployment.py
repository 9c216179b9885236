"""A federation as it is deployed: a coordinator and nodes in processes of their own, over TLS on loopback.

`Deployment` makes the folders; `coordinate` and `take_parts` are what the processes run: `run_job` and `take_part` as
the commands run them. They write what they measure as JSON lines, which a kill -9 leaves readable.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from confide.crypto.keys import SigningKey
from confide.errors import ConfideError
from confide.model.artifact import write_whole
from confide.net.asking import asking
from confide.net.contexts import client_context
from confide.net.folders import identity_seed
from confide.net.founding import found
from confide.net.membership import join, membership, own, renew, trusted
from confide.net.registrar import Registrar
from confide.store import Patient, open_store
from confide.train import load
from confide.train.approval import Approvals
from confide.train.attendance import Patience
from confide.train.desk import Desk
from confide.train.gate import PolicyGate
from confide.train.ledger import Ledger
from confide.train.node import Member, Node
from confide.train.node_run import Part
from confide.train.operate import hosting, joining, run_job, take_part
from confide.train.policy import load_policy

POLICY = """
[allow]
models = ["logistic", "mlp"]
aggregates = ["amortised", "masked"]
[limits]
require_privacy = false
most_rounds = 100000
greatest_epsilon = 100.0
most_epsilon_per_job = 100.0
[approval]
by = "policy"
"""


@dataclass(frozen=True)
class Deployment:
    """The folders of one federation, below `folder`.

    Args:
        folder: where they are.
        names: the nodes.
        port: of the coordinator.
    """

    folder: Path
    names: tuple[str, ...]
    port: int

    @classmethod
    def make(cls, folder: Path, nodes: int, *, features: int, records: int, job: str) -> Deployment:
        """Found a federation, let its nodes join, and write tables, schema, policy and job.

        Args:
            folder: an empty one.
            nodes: how many.
            features, records: of each node's table.
            job: the job's text without [job] and [data].
        """
        made = cls(folder, tuple(f"n{number:03}" for number in range(nodes)), _free_port())
        found(made.federation, name="bench", address=f"127.0.0.1:{made.port}")
        registrar = Registrar(made.federation)
        for name in made.names:
            join(folder / name, registrar.invite(name), registrar.reply)
        columns = [f"c{number}" for number in range(features)]
        label = '[label]\nname = "ill"\nclasses = ["no", "yes"]\n'
        numbers = "".join(f'[columns.{name}]\ntype = "number"\nlow = -4\nhigh = 4\n' for name in columns)
        (folder / "schema.toml").write_text(label + numbers)
        (folder / "policy.toml").write_text(POLICY)
        quoted = ", ".join(f'"{name}"' for name in made.names)
        heading = f'[job]\nname = "bench"\n[data]\nschema = "schema.toml"\nnodes = [{quoted}]\n'
        made.job.write_text(heading + job)
        rng = np.random.default_rng(7)
        slope = rng.normal(size=features)
        for name in made.names:
            _write_table(made.table(name), columns, rng, slope, records)
        return made

    @property
    def federation(self) -> Path:
        return self.folder / "federation"

    @property
    def job(self) -> Path:
        return self.folder / "job.toml"

    def table(self, name: str) -> Path:
        return self.folder / f"{name}.csv"

    @property
    def figures(self) -> Path:
        """Where the coordinator writes what it measures."""
        return self.folder / "coordinator.jsonl"

    def lines(self) -> list[dict[str, Any]]:
        """Return what the coordinator's processes have written so far."""
        body = self.figures.read_text() if self.figures.exists() else ""
        return [json.loads(line) for line in body.splitlines(keepends=True) if line.endswith("\n")]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _write_table(path: Path, columns: list[str], rng: np.random.Generator, slope: np.ndarray, records: int) -> None:
    x = np.clip(rng.normal(size=(records, len(columns))), -4, 4)
    ill = x @ slope / np.linalg.norm(slope) + rng.normal(0, 0.4, records) > 0
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*columns, "ill"])
        rows.writerows(
            [*(f"{value:.3f}" for value in row), ("no", "yes")[int(sick)]] for row, sick in zip(x, ill, strict=True)
        )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- the coordinator's process ----------------------------------------------------------------------------------------


class _Measured(Desk):
    """A desk that writes a line for each round, since the run tells its desk of each."""

    def begin_writing(self, place: Path) -> None:
        self._file, self._begun, self._number = place.open("a", buffering=1), time.perf_counter(), 0

    def progress(self, text: str) -> None:
        super().progress(text)
        if (found := re.match(r"round (\d+) of", text)) is None:
            return
        now = time.perf_counter()
        line = {
            "pid": os.getpid(),
            "round": int(found[1]),
            "seconds": now - self._begun,
            "cpu": time.process_time(),
            "rss": resident_bytes(),
        }
        self._begun = now
        self._file.write(json.dumps(line) + "\n")

    def end_writing(self) -> None:
        self._file.close()


def coordinate(made: Deployment, patience: Patience, quiet: bool = True) -> None:
    """Run the job, as `confide coordinator` does, and write the model."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job, federation = load(made.job), made.federation

    def say(text: str) -> None:
        with (made.folder / "coordinator.log").open("a") as file:
            file.write(f"{time.time():.3f} {text}\n")

    with ExitStack() as stack:
        store = open_store(federation / "coordinator.db")
        stack.callback(store.close)
        stack.enter_context(store.exclusive("coordinator"))
        kept = Patient(store)
        ledger = Ledger(federation / "ledger.jsonl", signer=SigningKey(identity_seed(federation)))
        host, registrar = stack.enter_context(hosting(federation, address="127.0.0.1", port=made.port, say=say))
        desk = _Measured(host, kept, say=say)
        desk.begin_writing(made.figures)
        stack.callback(desk.end_writing)
        schema = (made.folder / "schema.toml").read_text()
        _, body = run_job(
            job,
            schema,
            registrar=registrar,
            desk=desk,
            store=kept,
            ledger=ledger,
            patience=patience,
            say=say,
            progress=desk.progress,
        )
        write_whole(made.folder / "model.confide", body)


# --- the nodes' processes ---------------------------------------------------------------------------------------------


class Playing(threading.Thread):
    """One node, as `confide node` runs it, in a thread of its own."""

    def __init__(self, made: Deployment, name: str, url: str | None) -> None:
        super().__init__(name=f"node {name}", daemon=True)
        self.folder, self.data, self.url = made.folder / name, made.table(name), url
        self.rules = load_policy(made.folder / "policy.toml")
        self.leaving, self.renewing = threading.Event(), threading.Event()
        self.failure = ""
        self.start()

    def run(self) -> None:
        try:
            with ExitStack() as stack:
                self._play(stack)
        except ConfideError as error:
            self.failure = str(error)

    def _play(self, stack: ExitStack) -> None:
        store = open_store(self.folder / "node.db")
        stack.callback(store.close)
        stack.enter_context(store.exclusive("node"))
        kept, me = Patient(store), own(self.folder)
        connection, said = stack.enter_context(joining(self.folder, url=self.url))
        gate = PolicyGate(self.rules, kept, Approvals(self.folder), self.data, coordinator=said.coordinator_identity)
        node = Node(Member(me.name, me.role, identity_seed(self.folder)), self.data, gate, kept)

        def shown() -> None:
            if self.renewing.is_set():
                self.renewing.clear()
                told = membership(self.folder)
                ask = asking(told.coordinator, trusted(self.folder), bytes.fromhex(told.coordinator_identity))
                try:
                    renew(self.folder, ask)
                except ConfideError:
                    return  # as `take_part`: the coordinator may be away
                connection.renewed(client_context(self.folder), reconnect=True)

        take_part(
            node,
            connection,
            self.folder,
            ended=lambda: self.leaving.is_set() or node.ended is not None,
            shown=shown,
        )


def _timed(spent: list[tuple[float, float]]) -> None:
    """Let every vector of this process note its seconds: on the wall, and of its own thread."""
    plain: Callable[..., Any] = Part.vector

    def vector(self: Any, order: Any) -> Any:
        wall, work = time.perf_counter(), time.thread_time()
        try:
            return plain(self, order)
        finally:
            spent.append((time.perf_counter() - wall, time.thread_time() - work))

    Part.vector = vector


def take_parts(made: Deployment, names: Sequence[str], url: str | None, pipe: Connection) -> None:
    """Run nodes until told "end": "leave", "return" and "renew" a name, "figures" of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spent: list[tuple[float, float]] = []
    _timed(spent)
    playing = {name: Playing(made, name, url) for name in names}
    while True:
        what, *arguments = pipe.recv()
        if what == "end":
            break
        if what == "figures":
            answer: Any = {
                "rss": resident_bytes(),
                "cpu": time.process_time(),
                "training": spent[:],
                "failures": {name: one.failure for name, one in playing.items() if one.failure},
                "playing": sum(one.is_alive() for one in playing.values()),
            }
            spent.clear()
        else:
            answer = _moved(made, playing, what, arguments[0], url)
        pipe.send(answer)
    for one in playing.values():
        one.leaving.set()
    for one in playing.values():
        one.join()


def _moved(made: Deployment, playing: dict[str, Playing], what: str, name: str, url: str | None) -> bool:
    one = playing[name]
    if what == "leave":
        one.leaving.set()
        one.join()
    elif what == "return" and not one.is_alive():
        playing[name] = Playing(made, name, url)
    elif what == "renew":
        one.renewing.set()
    return one.is_alive()


class Nodes:
    """A process with nodes in it."""

    def __init__(self, made: Deployment, names: Sequence[str], url: str | None = None) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.names = tuple(names)
        self.pipe, far = spawn.Pipe()
        self.process = spawn.Process(target=take_parts, args=(made, self.names, url, far))
        self.process.start()

    def tell(self, what: str, *arguments: str) -> Any:
        self.pipe.send((what, *arguments))
        return self.pipe.recv()

    def end(self) -> None:
        try:
            self.pipe.send(("end",))
        except OSError:
            self.process.kill()
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()


def start_coordinator(made: Deployment, patience: Patience) -> Any:
    """Start `coordinate` in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=coordinate, args=(made, patience))
    process.start()
    return process


def finished(coordinator: Any, running: Sequence[Nodes]) -> None:
    """Wait for a coordinator's end.

    Raises:
        SystemExit: it failed, or a process of nodes ended.
    """
    while coordinator.is_alive():
        coordinator.join(1)
        if ended := [one.names for one in running if not one.process.is_alive()]:
            raise SystemExit(f"nodes ended before the run did: {ended}")
    if coordinator.exitcode:
        raise SystemExit(f"the coordinator ended with {coordinator.exitcode}")
