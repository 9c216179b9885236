"""Whole sums between threads that share nothing but a network: the ones that come out are those of `wire.run`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError
from confide.ideal import Aggregator, Cohort, PlainSum, Session, Sums, Vector
from confide.net.exchange import Envelope, Exchange
from confide.net.link import Arrived, Joined, Link
from confide.net.relay import Relay
from confide.secagg import Masked
from confide.wire import MemoryStore, Party, run
from net.federation import Federation

NAMES = ("a", "b", "c", "d")
COHORT = Cohort(NAMES, quorum=4)
SESSION = Session("run", 1, COHORT, length=50_000, bound=1 << 20)
SECONDS = 30.0


class End:
    """A party's machine: its sessions over its link; what comes for a session that is not open yet waits.

    Args:
        me: its name; the coordinator forwards what is for others.
        resend: send again after each `Joined`; without it a cut is for ever.
    """

    def __init__(self, me: str, link: Link, aggregator: Aggregator, vector: Vector | None, *, resend: bool) -> None:
        self.me, self.link, self.resend = me, link, resend
        self.aggregator, self.vector = aggregator, vector
        self.store = MemoryStore()
        self.exchange = Exchange(self.store)
        self.role = "server" if me == "server" else "client"
        self.early: list[Envelope] = []
        self.heard: Callable[[Arrived], None] = lambda arrived: None

    def make(self, session: str) -> Party:
        rng = SeededRandomness(f"{self.me} {session}")
        if session == "setup":
            return self.aggregator.setup(self.role, self.me, COHORT, self.store, rng)
        return self.aggregator.party(self.role, self.me, SESSION, self.vector, self.store, rng)

    def run(self, over: threading.Event) -> None:
        """Run both sessions, then serve re-sends until it is over."""
        for session in ("setup", "sum"):
            self.exchange.open(session, self.make(session), me=self.me)
            for envelope in self.early:
                self.exchange.put(envelope)
            self.early = []
            while self.exchange.is_open(session) and not over.is_set():
                self.turn()
            self.send()
            if over.is_set():
                return
        while self.me != "server" and not over.is_set():
            self.turn()

    def turn(self) -> None:
        self.send()
        event = self.link.receive(0.02)
        if isinstance(event, Joined) and self.resend:
            for session in ("setup", "sum"):
                for envelope in self.exchange.sent(session, event.peer):
                    self.link.send(event.peer, envelope)
        elif isinstance(event, Arrived):
            self.heard(event)
            self.take(event.envelope)

    def take(self, envelope: Envelope) -> None:
        if envelope.message.dst != self.me:
            self.link.send(envelope.message.dst, envelope)
        elif self.exchange.knows(envelope.session):
            self.exchange.put(envelope)
        else:
            self.early.append(envelope)

    def send(self) -> None:
        for envelope in self.exchange.take():
            self.link.send(envelope.message.dst if self.me == "server" else "server", envelope)


def over_the_network(
    folder: Path,
    aggregator: Callable[[], Aggregator],
    vectors: Mapping[str, Vector],
    *,
    cuts: int = 0,
    resend: bool = True,
    seconds: float = SECONDS,
) -> tuple[Sums | None, int]:
    """Run set-up and one sum; node "b" sits behind a relay that is cut at its next messages.

    Returns:
        The server's sums, None if there are none in time; how many cuts were made.
    """
    with Federation(folder) as federation, Relay("127.0.0.1", federation.host.port, delay_seconds=0.02) as relay:
        made, over = 0, threading.Event()
        urls = {"b": f"wss://127.0.0.1:{relay.port}"}
        ends = [
            End(name, federation.joined(name, url=urls.get(name, "")), aggregator(), vector, resend=resend)
            for name, vector in vectors.items()
        ]
        server = End("server", federation.host, aggregator(), None, resend=resend)

        def cut(arrived: Arrived) -> None:
            nonlocal made
            if made < cuts and (arrived.envelope.session == "sum" or isinstance(server.aggregator, Masked)):
                made += 1
                server.send()  # what is on its way to "b" now is lost
                relay.cut()

        server.heard = cut
        failures: list[ProtocolError] = []

        def work(end: End) -> None:
            try:
                end.run(over)
            except ProtocolError as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(end,)) for end in ends]
        timer = threading.Timer(seconds, over.set)
        for thread in (*threads, timer):
            thread.start()
        server.run(over)
        over.set()
        timer.cancel()
        for thread in (*threads, timer):
            thread.join()
        assert not failures
        done = server.exchange.knows("sum") and not server.exchange.is_open("sum")
        return server.exchange.output("sum") if done else None, made


def in_process(aggregator: Callable[[], Aggregator], vectors: Mapping[str, Vector]) -> Sums:
    """Return the same sum by the deterministic driver."""
    one, stores = aggregator(), {name: MemoryStore() for name in ("server", *NAMES)}
    roles = COHORT.parties(one.roles)

    def rng(name: str) -> SeededRandomness:
        return SeededRandomness(f"in process {name}")

    makers = {name: one.setup(role, name, COHORT, stores[name], rng(name)) for name, role in roles.items()}
    setup = run(makers, stores=stores)
    assert not setup.failures
    parties = {
        name: one.party(role, name, SESSION, vectors.get(name), stores[name], rng(name)) for name, role in roles.items()
    }
    return run(parties, stores=stores).output("server")


def some_vectors() -> dict[str, Vector]:
    rng = np.random.default_rng(4)
    return {name: rng.integers(-SESSION.bound, SESSION.bound, SESSION.length, endpoint=True) for name in NAMES}


every_aggregator = pytest.mark.parametrize("aggregator", [PlainSum, Masked])


@every_aggregator
@pytest.mark.parametrize("cuts", [0, 1, 4])
def test_the_sum_is_that_of_the_deterministic_driver(
    tmp_path: Path, aggregator: Callable[[], Aggregator], cuts: int
) -> None:
    vectors = some_vectors()
    sums, made = over_the_network(tmp_path, aggregator, vectors, cuts=cuts)
    assert sums is not None
    assert made == cuts
    expected = in_process(aggregator, vectors)
    np.testing.assert_array_equal(sums.values, expected.values)
    np.testing.assert_array_equal(sums.values[0], np.sum(list(vectors.values()), axis=0))
    assert sums.members == expected.members == (frozenset(NAMES),)


def test_without_a_resend_a_cut_is_for_ever(tmp_path: Path) -> None:
    """Shows that the cut of the test above does lose something."""
    sums, made = over_the_network(tmp_path, Masked, some_vectors(), cuts=1, resend=False, seconds=3.0)
    assert made == 1
    assert sums is None
