"""The app between the sockets, over a Flower of threads: sums, losses, restarts; and what the links refuse."""

from __future__ import annotations

import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from confide.errors import UsageError
from confide.net.batch import Member
from confide.net.exchange import Envelope
from confide.net.flower import FlowerHost, FlowerJoin, write_app
from confide.net.link import Event, Joined, Left
from confide.net.local import pack
from confide.wire import Message
from net import fake_flower, parties
from net.parties import key_of

NAMES = ("north", "south", "west", "helper")
MEMBERS = {name: Member("helper" if name == "helper" else "node", key_of(name).public) for name in NAMES}


class Node:
    """A node's process, as a thread."""

    def __init__(self, folder: Path, name: str) -> None:
        role = MEMBERS[name].role
        self.link = FlowerJoin(folder / f"{name}.sock", name, key_of(name), key_of("server").public, role=role)
        self.member, self.ended = parties.Member(name), threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.ended.is_set():
            if event := self.link.receive(0.02):
                for envelope in self.member.handle(event):
                    self.link.send("server", envelope)
        self.link.close()

    def end(self) -> None:
        self.ended.set()
        self.thread.join()


class World:
    """A run at a SuperLink, its app in a thread, and nodes behind it."""

    def __init__(self, app: Any, folder: Path) -> None:
        self.folder, self.app = folder, app
        self.grid = fake_flower.Grid(app, {})
        self.nodes: dict[str, Node] = {}
        config = {"confide-socket": str(folder / "host.sock"), "patience-seconds": 10.0, "answer-seconds": 60.0}
        context = SimpleNamespace(run_config=config)
        self.run = threading.Thread(target=app.main, args=(self.grid, context))
        self.run.start()

    def start(self, *names: str) -> None:
        for name in names:
            self.nodes[name] = Node(self.folder, name)
            self.grid.sockets[1 << 63 | NAMES.index(name)] = self.folder / f"{name}.sock"

    def host(self) -> FlowerHost:
        return FlowerHost(
            self.folder / "host.sock", key_of("server"), lambda: MEMBERS, retry_seconds=0.1, beat_seconds=0.5
        )

    def end(self) -> None:
        if self.run.is_alive():  # a last coordinator, which waits until the app has called
            self.grid.sockets[1] = self.folder / "nobody.sock"
            last = self.host()
            until(last, lambda _: last.requests)
            last.close()
        self.run.join()
        for node in self.nodes.values():
            node.end()
        for thread in self.grid.threads:
            thread.join()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    one = World(fake_flower.load_app(monkeypatch), tmp_path)
    yield one
    one.end()


def until(link: FlowerHost | FlowerJoin, happened: Any) -> list[Event]:
    """Return the events up to the one for which `happened` holds."""
    have: list[Event] = []
    for _ in range(1000):
        event = link.receive(0.02)
        have += [event] if event else []
        if happened(event):
            return have
    raise AssertionError(have)


def joined(name: str) -> Any:
    return lambda event: isinstance(event, Joined) and event.peer == name


def coordinator(link: FlowerHost) -> parties.Coordinator:
    return parties.Coordinator(link.send, lambda: link.receive(5))


@pytest.mark.parametrize("aggregator", ["amortised", "masked", "plain", "shares"])
def test_sums_are_those_of_one_process(world, aggregator):
    world.start(*NAMES)
    terms = parties.rounds(aggregator, NAMES[:3], quorum=3, sums=2, length=50)
    expected = parties.in_one_process(terms)
    link = world.host()
    one = coordinator(link)
    one.wait_for(set(NAMES))
    have = [one.sum(each) for each in terms]
    for ours, theirs in zip(have[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
        assert ours.members == theirs.members
    assert world.grid.pushed == link.requests
    link.close()
    world.run.join(10)
    assert not world.run.is_alive()


def test_a_coordinator_that_died_is_followed_by_the_next_in_the_same_run(world):
    world.start("north")
    first = world.host()
    until(first, joined("north"))
    first.send("north", Envelope("session", Message("server", "north", "tag", b"")))
    first.close(end_run=False)
    assert world.run.is_alive()
    second = world.host()
    assert until(second, joined("north")) == [Joined("north", "node")]
    second.close(end_run=False)


def test_a_node_that_died_is_met_again(world):
    world.start("north")
    link = world.host()
    until(link, joined("north"))
    world.nodes["north"].end()
    (left,) = until(link, lambda event: isinstance(event, Left))
    assert "no confide node listens" in left.reason
    world.nodes["north"] = Node(world.folder, "north")
    until(link, joined("north"))
    link.close(end_run=False)


def test_a_message_that_the_superlink_does_not_take_is_a_loss_and_no_more(world):
    world.grid.lost = 2
    world.start("north")
    link = world.host()
    assert until(link, joined("north")) == [Joined("north", "node")]
    assert link.requests == world.grid.pushed + 2
    link.close(end_run=False)


def test_a_node_of_another_federation_is_refused_with_the_reason(world):
    world.start("north")
    other = FlowerHost(world.folder / "host.sock", key_of("somebody"), lambda: MEMBERS, retry_seconds=0.1)
    assert until(other, lambda _: "signature" in "".join(other.strangers.values())) == []
    assert set(other.strangers) == set(world.grid.sockets)
    other.close(end_run=False)


def test_a_supernode_that_goes_offline_has_left(world):
    world.start("north")
    link = world.host()
    until(link, joined("north"))
    world.grid.sockets.clear()
    until(link, lambda event: isinstance(event, Left))
    link.close(end_run=False)


def test_a_second_run_takes_over_and_noise_does_not(world):
    link = world.host()
    with socket.socket(socket.AF_UNIX) as noise, socket.socket(socket.AF_UNIX) as second:
        noise.connect(str(world.folder / "host.sock"))
        noise.sendall(pack(b"not json", b""))
        second.connect(str(world.folder / "host.sock"))
        second.sendall(pack(b'{"kind":"reply","node":5}', b""))  # it has not said who is online: nothing was asked
        assert link.receive(0.3) is None
        world.start("north")
        until(link, joined("north"))
        second.sendall(pack(b'{"kind":"places","places":[]}', b""))
        assert [type(event) for event in until(link, lambda event: isinstance(event, Left))] == [Left]
    link.close(end_run=False)


def test_nothing_within_the_time_is_none(tmp_path):
    link = FlowerHost(tmp_path / "host.sock", key_of("server"), lambda: MEMBERS)
    node = FlowerJoin(tmp_path / "node.sock", "north", key_of("north"), key_of("server").public)
    node.send("south", Envelope("session", Message("north", "south", "tag", b"")))
    assert (link.receive(0), node.receive(0), link.receive(0.02), node.receive(0.02)) == (None, None, None, None)
    link.close()
    node.close()


def test_the_app_is_written_once_and_is_what_flower_asks_for(tmp_path):
    write_app(tmp_path / "app")
    assert sorted(path.name for path in (tmp_path / "app").iterdir()) == ["flower_app.py", "pyproject.toml"]
    app = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    text = (tmp_path / "app" / "flower_app.py").read_text()
    for component in app["components"].values():
        module, _, attribute = component.partition(":")
        assert module == "flower_app"
        assert f"\n{attribute} = " in text
    assert all(f'config["{name}"]' in text for name in app["config"])
    with pytest.raises(UsageError, match="empty folder"):
        write_app(tmp_path / "app")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="empty folder"):
        write_app(tmp_path / "file")
