"""Sessions without I/O: whatever the network does, and whenever a process dies, the same sums and the same bytes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from confide.crypto.random import SystemRandomness
from confide.errors import Aborted, ProtocolError, StoreError
from confide.ideal import Cohort, PlainSum, Session
from confide.net.exchange import Envelope, Exchange
from confide.secagg import Amortised, Masked
from confide.wire import MemoryStore, Message, Step, run

COHORT = Cohort(("a", "b", "c", "d"), 3)
SESSION = Session("run", 1, COHORT, length=5, bound=1000)
VECTORS = {name: np.arange(5, dtype=np.int64) * (place + 1) - 7 for place, name in enumerate(COHORT.clients)}
TOTAL = sum(VECTORS.values())
RNG = SystemRandomness()


def prepared(aggregator):
    """Stores after set-up, by the oracle driver."""
    roles = COHORT.parties(aggregator.roles)
    stores = {name: MemoryStore() for name in roles}
    done = run({me: aggregator.setup(role, me, COHORT, stores[me], RNG) for me, role in roles.items()}, stores=stores)
    for name in roles:
        done.output(name)
    return stores


def opened(aggregator, name, stores, **more):
    role = "server" if name == "server" else "client"
    exchange = Exchange(stores[name])
    party = aggregator.party(role, name, SESSION, VECTORS.get(name), stores[name], RNG)
    exchange.open("s", party, me=name, **more)
    return exchange


class Net:
    """Everything that is on the way, delivered in any order, and every body that ever left."""

    def __init__(self, seed: int) -> None:
        self.random, self.waiting, self.left = random.Random(seed), [], {}

    def send(self, envelopes) -> None:
        for envelope in envelopes:
            message = envelope.message
            known = self.left.setdefault((message.src, message.dst, message.tag), message.body)
            assert known == message.body, f"two bodies under {message.tag} of {message.src}"
            self.waiting.append(envelope)

    def next(self):
        return self.waiting.pop(self.random.randrange(len(self.waiting)))


@pytest.mark.parametrize("aggregator", [PlainSum(), Masked(), Amortised()], ids=lambda one: one.name)
@pytest.mark.parametrize("seed", range(8))
def test_any_order_and_any_repeats_give_the_sum(aggregator, seed):
    stores, net = prepared(aggregator), Net(seed)
    exchanges = {name: opened(aggregator, name, stores) for name in (*COHORT.clients, "server")}
    while exchanges["server"].is_open("s"):
        for exchange in exchanges.values():
            net.send(exchange.take())
        envelope = net.next()
        for _ in range(net.random.choice([1, 1, 2, 3])):
            exchanges[envelope.message.dst].put(envelope)
        if net.random.random() < 0.2:  # a connection came back: everything is sent again
            name = net.random.choice(COHORT.clients)
            if exchanges[name].knows("s"):
                net.send(exchanges[name].sent("s", "server"))
                net.send(exchanges["server"].sent("s", name))
    sums = exchanges["server"].output("s")
    assert (sums.values[0] == TOTAL).all()
    assert sums.members == (frozenset(COHORT.clients),)


@pytest.mark.parametrize("aggregator", [PlainSum(), Masked(), Amortised()], ids=lambda one: one.name)
def test_a_server_that_dies_anywhere_goes_on_from_its_journal_with_the_same_bytes(aggregator):
    deaths = 0
    while True:
        stores, net = prepared(aggregator), Net(deaths)
        clients = {name: opened(aggregator, name, stores) for name in COHORT.clients}
        server, lives = opened(aggregator, "server", stores, journal=True), deaths
        while server.is_open("s"):
            for exchange in clients.values():
                net.send(exchange.take())
            if lives == 0:  # it dies; what it had not committed is gone, and so is what was on the way to it
                server = opened(aggregator, "server", stores, journal=True)
                net.waiting = [envelope for envelope in net.waiting if envelope.message.dst != "server"]
                for name, exchange in clients.items():
                    net.send(exchange.sent("s", "server"))
                    net.send(server.sent("s", name))
            lives -= 1
            net.send(server.take())
            if net.waiting:
                envelope = net.next()
                {**clients, "server": server}[envelope.message.dst].put(envelope)
        assert (server.output("s").values[0] == TOTAL).all()
        server.forget("s")
        server.take()
        assert not [key for key in stores["server"]._entries if key.startswith("journal/")]
        deaths += 1
        if lives > 0:  # it was over before this death
            break
    assert deaths > 5


def two_steps():
    received = yield Step(
        send=(Message("me", "you", "first", b"1"),), await_tag="answer", wait_for=("you",), save={"key": b"saved"}
    )
    yield Step(send=(Message("me", "you", "second", received["you"].body),))
    return "done"


class Broken(MemoryStore):
    broken = True

    def commit(self, changes):
        if self.broken:
            raise StoreError("Expected room on the disk; nothing was written")
        super().commit(changes)


def test_nothing_leaves_before_it_is_durable():
    store = Broken()
    exchange = Exchange(store)
    exchange.open("s", two_steps(), me="me", prefix="p/")
    for _ in range(2):
        with pytest.raises(StoreError):
            exchange.take()
    store.broken = False
    assert [envelope.message.tag for envelope in exchange.take()] == ["first"]
    assert store.get("p/key") == b"saved"
    assert exchange.take() == []


def test_what_the_caller_refuses_never_leaves():
    def refuse(session, step):
        if any(message.tag == "second" for message in step.send):
            raise Aborted("Expected a budget")
        return {"seen": session.encode()}

    store = MemoryStore()
    exchange = Exchange(store, on_step=refuse)
    exchange.open("s", two_steps(), me="me")
    assert [envelope.message.tag for envelope in exchange.take()] == ["first"]
    exchange.put(Envelope("s", Message("you", "me", "answer", b"x")))
    assert exchange.take() == []
    with pytest.raises(Aborted, match="budget"):
        exchange.output("s")
    assert exchange.ended() == ["s"]
    assert store.get("seen") == b"s"


def test_messages_of_no_session_or_to_somebody_else_are_refused():
    exchange = Exchange()
    with pytest.raises(ProtocolError, match="open session"):
        exchange.put(Envelope("s", Message("you", "me", "answer", b"x")))
    exchange.open("s", two_steps(), me="me")
    with pytest.raises(ProtocolError, match="to me"):
        exchange.put(Envelope("s", Message("you", "another", "answer", b"x")))
    exchange.put(Envelope("s", Message("you", "me", "answer", b"x")))
    assert exchange.output("s") == "done"
    exchange.put(Envelope("s", Message("you", "me", "answer", b"x")))  # a repeat to a session that has ended
    late = Exchange()
    late.open("s", two_steps(), me="me")
    late.put(Envelope("s", Message("you", "me", "other", b"x")))
    with pytest.raises(ProtocolError, match="different"):
        late.put(Envelope("s", Message("you", "me", "other", b"y")))


def test_a_stage_that_is_closed_goes_on_with_whom_it_has_or_fails():
    stores = prepared(PlainSum())
    exchange = opened(PlainSum(), "server", stores)
    for name in COHORT.clients[:3]:
        client = opened(PlainSum(), name, stores)
        for envelope in client.take():
            exchange.put(envelope)
    assert exchange.waiting_for("s") == ("plain/vector", frozenset({"d"}))
    exchange.close_stage("s")
    assert exchange.output("s").members == (frozenset(COHORT.clients[:3]),)
    waiting = Exchange()
    waiting.open("s", two_steps(), me="me")
    waiting.close_stage("s")
    with pytest.raises(Aborted, match="answer"):
        waiting.output("s")


def test_a_session_that_ended_and_was_forgotten_is_not_told_of():
    exchange = Exchange()

    def party():
        return 7
        yield Step()

    for session in ("kept", "forgotten"):
        exchange.open(session, party(), me="a")
    exchange.forget("forgotten")
    assert exchange.ended() == ["kept"]
    assert exchange.output("kept") == 7


def test_what_is_discarded_is_never_committed_nor_sent():
    def party(name):
        yield Step(send=(Message(name, "other", "x", b""),), save={"a": b"1"})
        yield Step(await_tag="never", wait_for=("other",))

    store = MemoryStore()
    exchange = Exchange(store)
    for name in ("left", "right"):
        exchange.open(name, party(name), me=name, prefix=f"{name}/")
    exchange.discard("left")
    assert [envelope.session for envelope in exchange.take()] == ["right"]
    assert store.keys() == ["right/a"]
    exchange.discard("right")  # what is committed stays
    exchange.take()
    assert store.keys() == ["right/a"]


def test_what_waits_is_counted_by_who_sent_it_until_it_is_asked_for():
    def party():
        for tag in ("first", "second"):
            yield Step(await_tag=tag, wait_for=("a", "b"))
        return "done"

    exchange = Exchange()
    exchange.open("s", party(), me="me")
    exchange.put(Envelope("s", Message("a", "me", "second", bytes(100))))
    assert exchange.waiting_bytes("s", "a") == exchange.waiting_bytes("s") == 100 + len("second") + 512
    assert exchange.waiting_bytes("s", "b") == 0
    for src in ("a", "b"):
        exchange.put(Envelope("s", Message(src, "me", "first", b"")))
    assert exchange.waiting_bytes("s") == 100 + len("second") + 512
    exchange.put(Envelope("s", Message("b", "me", "second", b"")))
    assert exchange.output("s") == "done"
    assert exchange.waiting_bytes("s") == 0
