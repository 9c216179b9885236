"""Three nodes behind three SuperNodes of a real Flower, with TLS and node authentication."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from confide.net.batch import Member
from confide.net.exchange import Envelope
from confide.net.flower import FlowerHost
from confide.net.link import Event, Left
from net import parties
from net.flower_federation import FLOWER, Federation
from net.parties import key_of

NAMES = ("north", "south", "west")

pytestmark = pytest.mark.skipif(not FLOWER.is_dir(), reason="Flower has an environment of its own: make setup-flower")


@pytest.fixture
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with Federation(tmp_path_factory.mktemp("f"), NAMES) as federation:
        yield federation


class Host:
    """A coordinator over Flower that gives up, with every log, where it would wait for ever."""

    def __init__(self, federation: Federation, folder: Path, *, patience_seconds: float = 600) -> None:
        self.federation = federation
        self.deadline = time.monotonic() + patience_seconds
        members = {name: Member("node", key_of(name).public) for name in NAMES}
        self.link = FlowerHost(folder / "coordinator.sock", key_of("server"), members, retry_seconds=1.0)
        self.left: list[Left] = []
        self.coordinator = parties.Coordinator(self.send, self.receive)

    def send(self, peer: str, envelope: Envelope) -> None:
        self.link.send(peer, envelope)

    def receive(self) -> Event | None:
        assert time.monotonic() < self.deadline, self.federation.logs()
        event = self.link.receive(0.5)
        if isinstance(event, Left):
            self.left.append(event)
        return event


def test_sums_over_three_supernodes_are_those_of_one_process(flower):
    first = Host(flower, flower.folder)
    first.coordinator.wait_for(set(NAMES))
    assert first.link.requests == 3

    terms = parties.rounds("plain", NAMES, quorum=3, sums=1, length=1000)[1]
    have = first.coordinator.sum(terms)
    np.testing.assert_array_equal(have.values, parties.in_one_process([terms])[0].values)
    assert first.link.requests == 6
    first.link.close(end_run=False)  # as a coordinator that dies; the run at the SuperLink goes on

    second = Host(flower, flower.folder)
    flower.kill("west")
    flower.start_node("west")
    second.coordinator.wait_for(set(NAMES))
    asked = []
    terms = parties.rounds("amortised", NAMES, quorum=3, sums=1, length=1000)
    for each in terms:
        before = second.link.requests
        have = second.coordinator.sum(each)
        asked.append(second.link.requests - before)
    expected = parties.in_one_process(terms)[-1]
    np.testing.assert_array_equal(have.values, expected.values)
    assert have.members == expected.members
    assert asked[1] == 2 * len(NAMES)
    second.link.close()
    wait_until_finished(flower)


def wait_until_finished(flower: Federation) -> None:
    for _ in range(60):
        if '"finished:completed"' in (listed := flower.flwr("ls", "here", "--format", "json")):
            return
        time.sleep(1)
    raise AssertionError(listed + flower.logs())
