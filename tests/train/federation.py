"""A federation in one process: coordinator and nodes on a network that can be cut, each in a thread of its own."""

from __future__ import annotations

import csv
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from confide.cohort.roster import Roster
from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness, SeededRandomness
from confide.net.exchange import Envelope
from confide.net.link import Arrived, Event, Joined, Left, Link
from confide.tee.aggregate import Enclaves
from confide.train.attendance import Patience
from confide.train.coordinator import Coordinator
from confide.train.job import parse
from confide.train.ledger import Ledger
from confide.train.node import Decision, Gate, Member, Node
from confide.wire import MemoryStore, Store
from tee.aggregators import enclaves

NAMES = ("north", "east", "south", "west")

#: Its identity.
COORDINATOR = SigningKey(b"coordinator".ljust(32, b"."))

#: Who runs the second server, keeps the key, or is the enclave.
HELPER = "notary"

SCHEMA = """
[label]
name = "ill"
classes = ["no", "yes"]

[columns.age]
type = "number"
low = 0
high = 100

[columns.pressure]
type = "number"
low = 80
high = 220
"""

#: Quick for tests; nobody is waited for long.
QUICK = Patience(stage_seconds=20.0, grace_seconds=0.4, gather_seconds=2.0)


def tables(folder: Path, names: tuple[str, ...] = NAMES) -> dict[str, Path]:
    """Write a schema and one table for each node."""
    (folder / "schema.toml").write_text(SCHEMA)
    rng, paths = np.random.default_rng(5), {}
    for place, name in enumerate(names):
        size = 40 + 15 * place
        age, pressure = rng.uniform(20, 90, size), rng.uniform(90, 200, size)
        ill = (age / 100 + pressure / 220 + rng.normal(0, 0.2, size) > 1.2).astype(int)
        paths[name] = folder / f"{name}.csv"
        with paths[name].open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["age", "pressure", "ill"])
            rows.writerows(
                [f"{a:.2f}", f"{p:.2f}", ("no", "yes")[i]] for a, p, i in zip(age, pressure, ill, strict=True)
            )
    return paths


def job_of(folder: Path, names: tuple[str, ...] = NAMES, **sections: Mapping[str, object]):
    """Return a job over the tables in `folder`."""
    table = {
        "job": {"name": "trial"},
        "data": {"schema": "schema.toml", "tables": {name: f"{name}.csv" for name in names}}
        | dict(sections.get("data", {})),
        "train": {"rounds": 4, "aggregate": "masked", "quorum": 3, "expected_records": 60}
        | dict(sections.get("train", {})),
    }
    table |= {name: dict(sections[name]) for name in ("model", "trees", "privacy") if name in sections}
    return parse(table, base=folder)


class Wire:
    """Links between one coordinator and its nodes; a cut loses what is on the way, as TCP does."""

    def __init__(self) -> None:
        self.host: queue.Queue[Event] = queue.Queue()
        self.nodes: dict[str, queue.Queue[Event]] = {}
        self.roles: dict[str, str] = {}
        self.joined: set[str] = set()
        self.lock = threading.Lock()
        #: called with (peer, envelope, up?): returns the envelopes that get through
        self.fault: Callable[[str, Envelope, bool], list[Envelope]] = lambda peer, envelope, up: [envelope]

    def join(self, name: str, role: str = "node") -> None:
        with self.lock:
            self.roles[name] = role
            self.nodes.setdefault(name, queue.Queue())
            self.joined.add(name)
            self.nodes[name].put(Joined("server", "coordinator"))
            self.host.put(Joined(name, role))

    def cut(self, name: str) -> None:
        with self.lock:
            if name not in self.joined:
                return
            self.joined.discard(name)
            _drain(self.nodes[name])
            self.nodes[name].put(Left("server", "cut"))
            self.host.put(Left(name, "cut"))

    def restart_host(self) -> None:
        """Forget what was on the way to a coordinator that died, and let every node join the next one."""
        with self.lock:
            joined = set(self.joined)
        for name in joined:
            self.cut(name)
        _drain(self.host)
        for name in joined:
            self.join(name, self.roles[name])

    def carry(self, peer: str, envelope: Envelope, *, up: bool) -> None:
        with self.lock:
            if peer not in self.joined:
                return
            for found in self.fault(peer, envelope, up):
                (self.host if up else self.nodes[peer]).put(Arrived(peer if up else "server", found))


def _drain(one: queue.Queue[Event]) -> None:
    while True:
        try:
            one.get_nowait()
        except queue.Empty:
            return


class HostLink:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def send(self, peer: str, envelope: Envelope) -> None:
        self.wire.carry(peer, envelope, up=False)

    def receive(self, timeout_seconds: float) -> Event | None:
        try:
            return self.wire.host.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def close(self) -> None:
        pass


class Open(Gate):
    """A gate that lets everything through and remembers it."""

    def __init__(self) -> None:
        self.charges: list[tuple[int, int, float]] = []

    def decide(self, offer, setting) -> Decision:
        return Decision("accepted")

    def charge(self, offer, *, number, attempt, epsilon, delta):
        self.charges.append((number, attempt, epsilon))
        return {}


class Killed(BaseException):
    """kill -9: nothing that is not in the store survives."""


class Mortal:
    """A store whose process dies at its commit number `at`, before or after it is written."""

    def __init__(self, store: Store, at: int, *, after: bool) -> None:
        self.store, self.left, self.after = store, at, after

    def get(self, key: str) -> bytes | None:
        return self.store.get(key)

    def keys(self, prefix: str = "") -> list[str]:
        return self.store.keys(prefix)

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        self.store.commit(changes)
        if self.left == 0:
            raise Killed


class Member_(threading.Thread):
    """A node in a thread; `stop` is its kill -9: whatever it has not committed is gone."""

    def __init__(self, wire: Wire, node: Node, revive: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.wire, self.node, self.stopping, self.revive = wire, node, threading.Event(), revive
        self.start()

    def run(self) -> None:
        name = self.node.member.name
        try:
            while not self.stopping.is_set():
                try:
                    event = self.wire.nodes[name].get(timeout=0.02)
                except queue.Empty:
                    event = None
                self.node.handle(event)
                while event is not None and not self.wire.nodes[name].empty():  # as `take_part`: one commit for all
                    self.node.handle(self.wire.nodes[name].get())
                for envelope in self.node.take():
                    if self.stopping.is_set():
                        return
                    self.wire.carry(name, envelope, up=True)
        except Killed:
            self.stopping.set()
            self.wire.cut(name)
            self.revive()

    def stop(self) -> None:
        self.stopping.set()
        self.join(10)


class Federation:
    """Names, identities, stores and threads of one federation; `with` stops them."""

    def __init__(
        self, folder: Path, job, names: tuple[str, ...] = NAMES, *, seed: str | None = None, schema: str = SCHEMA
    ) -> None:
        self.folder, self.job, self.names, self.seed, self.schema = folder, job, names, seed, schema
        self.keys = {name: SigningKey.draw_seed(SeededRandomness(f"identity {name}")) for name in (*names, HELPER)}
        self.roster = Roster(tuple((name, SigningKey(self.keys[name]).public) for name in names))
        self.wire, self.stores = Wire(), {name: MemoryStore() for name in (*names, HELPER, "server")}
        self.gates: dict[str, Gate] = {name: Open() for name in (*names, HELPER)}
        self.models: dict[str, bytes] = {}
        self.enclaves: dict[str, Enclaves] = {}
        if job.train.aggregate == "tee":
            brought = enclaves()
            self.enclaves = {name: replace(brought, attester=None) for name in names}
            self.enclaves[HELPER] = Enclaves(attester=brought.attester, now=brought.now)
        self.threads: dict[str, Member_] = {}
        self.said: list[str] = []
        self.ledger_path = folder / "ledger.jsonl"

    def rng(self) -> Randomness | None:
        return SeededRandomness(self.seed) if self.seed else None

    def start(self, name: str, *, join: bool = True, store: Store | None = None) -> Node:
        node = Node(
            Member(name, "helper" if name == HELPER else "node", self.keys[name]),
            None if name == HELPER else self.folder / f"{name}.csv",
            self.gates[name],
            store or self.stores[name],
            rng=self.rng(),
            say=lambda text: self.said.append(f"{name}: {text}"),
            release=lambda offer, model: self.models.__setitem__(name, model),
            enclaves=self.enclaves.get(name),
        )
        self.wire.nodes[name] = queue.Queue()
        self.threads[name] = Member_(self.wire, node, lambda: self.start(name))
        if join:
            self.wire.join(name, node.member.role)
        return node

    def kill(self, name: str) -> None:
        self.threads.pop(name).stop()
        self.wire.cut(name)

    def coordinator(
        self,
        *,
        link: Link | None = None,
        store: Store | None = None,
        patience: Patience = QUICK,
        ledger: Ledger | None = None,
        **more,
    ) -> Coordinator:
        return Coordinator(
            self.job,
            self.schema,
            roster=self.roster,
            identity=COORDINATOR.public,
            helper=SigningKey(self.keys[HELPER]).public if self.job.train.aggregate in ("shares", "he", "tee") else b"",
            link=link or HostLink(self.wire),
            store=store or self.stores["server"],
            ledger=ledger or Ledger(self.ledger_path, signer=COORDINATOR),
            patience=patience,
            rng=self.rng(),
            say=lambda text: self.said.append(f"server: {text}"),
            **more,
        )

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.threads):
            self.kill(name)
