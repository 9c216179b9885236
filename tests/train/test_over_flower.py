"""A whole federation over the Flower app: the model of one process bit for bit, and no Flower message too many."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from confide.crypto.keys import SigningKey
from confide.net.batch import Member as Place
from confide.net.flower import FlowerHost, FlowerJoin
from confide.train.attendance import Patience
from confide.train.ledger import Ledger, verify
from confide.train.node import Member, Node
from confide.train.operate import take_part
from net import fake_flower
from train.federation import COORDINATOR, HELPER, NAMES, Federation, Killed, Mortal, job_of, tables
from train.test_coordinator import PRIVATE, in_process

PATIENT = Patience(stage_seconds=60.0, grace_seconds=20.0, gather_seconds=20.0)


class Organisation(threading.Thread):
    """A node's process, as a thread; one whose store kills it is followed by the next, which has what was committed."""

    def __init__(self, world: World, name: str, store: Any) -> None:
        super().__init__()
        self.world, self.me, self.store, self.deaths, self.ended = world, name, store, 0, False
        self.start()

    def release(self, offer: object, model: bytes) -> None:
        self.world.federation.models[self.me] = model

    def run(self) -> None:
        while not self.ended:
            federation, role = self.world.federation, "helper" if self.me == HELPER else "node"
            key = federation.keys[self.me]
            link = FlowerJoin(
                self.world.folder / f"{self.me}.sock", self.me, SigningKey(key), COORDINATOR.public, role=role
            )
            node = Node(
                Member(self.me, role, key),
                None if role == "helper" else federation.folder / f"{self.me}.csv",
                federation.gates[self.me],
                self.store,
                rng=federation.rng(),
                release=self.release,
            )
            try:
                take_part(node, link, federation.folder, ended=lambda node=node: self.ended or node.ended is not None)
            except Killed:
                self.deaths += 1
                link._listener.close(linger_seconds=0)  # no last reply
            else:
                link.close()
                return


class World:
    """The run at the SuperLink with its app in a thread, and the organisations behind it."""

    def __init__(self, app: Any, folder: Path, federation: Federation) -> None:
        self.folder, self.federation = folder, federation
        self.grid = fake_flower.Grid(app, {})
        self.nodes: dict[str, Organisation] = {}
        self.hosts: list[FlowerHost] = []
        config = {"confide-socket": str(folder / "host.sock"), "patience-seconds": 20.0, "answer-seconds": 60.0}
        self.run = threading.Thread(target=app.main, args=(self.grid, SimpleNamespace(run_config=config)))
        self.run.start()

    def start(self, name: str, store: Any = None) -> None:
        self.nodes[name] = Organisation(self, name, store or self.federation.stores[name])
        self.grid.sockets[1 << 62 | len(self.nodes)] = self.folder / f"{name}.sock"

    def host(self, **settings: float) -> FlowerHost:
        role = {HELPER: "helper"}
        members = {
            name: Place(role.get(name, "node"), SigningKey(seed).public) for name, seed in self.federation.keys.items()
        }
        settings = {"retry_seconds": 0.1, "beat_seconds": 600.0} | settings
        self.hosts.append(FlowerHost(self.folder / "host.sock", COORDINATOR, lambda: members, **settings))
        return self.hosts[-1]

    def end(self) -> None:
        for host in self.hosts:  # those of a test that has failed
            host.close(end_run=False)
        for node in self.nodes.values():
            node.ended = True
        for node in self.nodes.values():
            node.join()
        if self.run.is_alive():  # a last coordinator, for whom the run waits
            self.grid.sockets = {1: self.folder / "nobody.sock"}
            last = self.host()
            while not last.requests and self.run.is_alive():  # it may have lost its patience meanwhile
                last.receive(0.1)
            last.close()
        self.run.join()
        for thread in self.grid.threads:
            thread.join()


class Counted(Ledger):
    """A ledger that notes how many Flower messages there had been at each line of a kind."""

    def __init__(self, path: Path, host: FlowerHost, *, signer: SigningKey = COORDINATOR) -> None:
        super().__init__(path, signer=signer)
        self.host, self.at = host, dict[str, list[int]]()

    def append(self, event, fields):
        self.at.setdefault(event, []).append(self.host.requests)
        return super().append(event, fields)


@pytest.fixture
def begin(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what begins a federation over Flower for a job."""
    worlds: list[World] = []
    tables(tmp_path)
    app = fake_flower.load_app(monkeypatch)

    def of(job: Any, **settings: Any) -> World:
        worlds.append(World(app, tmp_path_factory.mktemp("f"), Federation(tmp_path, job, **settings)))
        return worlds[-1]

    yield of
    for world in worlds:
        world.end()


#: Flower messages to all four nodes and the helper for one sum, and for the set-up; docs/flower.md has them for each.
MESSAGES = {"plain": 4, "amortised": 8, "masked": 20, "shares": 6}
SET_UP = {"plain": 4, "amortised": 16, "masked": 8, "shares": 14}


@pytest.mark.parametrize("aggregate", MESSAGES)
def test_a_round_takes_no_flower_message_but_those_of_its_sum(tmp_path, begin, aggregate):
    """News, orders, the ledger's lines, countersignatures and ends of sessions travel with what must travel anyway."""
    helper = (HELPER,) if aggregate == "shares" else ()
    train = {"aggregate": aggregate, "quorum": 4} | ({"helper": HELPER} if helper else {})
    job = job_of(tmp_path, train=train, data={"evaluate": "federated"})
    world = begin(job)
    for name in (*NAMES, *helper):
        world.start(name)
    host = world.host()
    ledger = Counted(tmp_path / "ledger.jsonl", host)
    coordinator = world.federation.coordinator(link=host, patience=PATIENT, ledger=ledger)
    done = list(coordinator.rounds())
    coordinator.evaluate()
    before = host.requests
    coordinator.finish(reason="over")
    host.close()
    expected = in_process(job)
    assert [one.parameters.tobytes() for one in done] == [one.parameters.tobytes() for one in expected]
    everybody = len(world.nodes)
    ends = [*ledger.at["round"], *ledger.at["evaluation"]]
    assert [after - earlier for earlier, after in itertools.pairwise(ends)] == [MESSAGES[aggregate]] * 4
    assert ends[0] == 2 * everybody + SET_UP[aggregate] + MESSAGES[aggregate]  # each joins, and answers the offer
    assert host.requests - before == everybody  # the end, with the last lines of the ledger
    assert world.grid.pushed == host.requests
    world.run.join(10)
    assert not world.run.is_alive()
    whole = verify(tmp_path / "ledger.jsonl", roster=world.federation.roster)
    assert {one.up_to for one in whole.countersigned.values()} == {whole.entries - 1}


def test_a_private_job_under_test_seeds_has_the_noise_of_one_process(tmp_path, begin):
    job = job_of(tmp_path, train={"rounds": 2, "aggregate": "amortised"}, privacy=PRIVATE)
    world = begin(job, seed="same")
    for name in NAMES:
        world.start(name)
    host = world.host()
    done = list(world.federation.coordinator(link=host, patience=PATIENT).rounds())
    host.close(end_run=False)
    assert [one.parameters.tobytes() for one in done] == [one.parameters.tobytes() for one in in_process(job, "same")]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [9, 12])
def test_coordinator_and_node_are_killed_and_the_model_is_the_same(tmp_path, begin, at, after):
    job = job_of(tmp_path, train={"rounds": 3, "aggregate": "amortised", "quorum": 4})
    world = begin(job)
    federation = world.federation
    for name in NAMES[1:]:
        world.start(name)
    world.start("north", Mortal(federation.stores["north"], at, after=after))
    store: Any = Mortal(federation.stores["server"], at + 1, after=after)
    deaths, done = 0, None
    while done is None:
        host = world.host()
        try:
            coordinator = federation.coordinator(link=host, patience=PATIENT, store=store)
            list(coordinator.rounds())
            coordinator.finish(reason="over")
            done = coordinator.final()
        except Killed:
            deaths, store = deaths + 1, federation.stores["server"]
        host.close(end_run=done is not None)
    assert (deaths, world.nodes["north"].deaths) == (1, 1)
    assert done.parameters.tobytes() == in_process(job)[-1].parameters.tobytes()
    assert verify(tmp_path / "ledger.jsonl").signer == COORDINATOR.public
