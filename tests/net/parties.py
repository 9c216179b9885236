"""Aggregators over links: a node that opens what it is told to, and a coordinator that tells. No test lives here.

Stands for the federated loop where a driver is what is tested: no policy, no journal, no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from confide.crypto.keys import SigningKey
from confide.crypto.random import SeededRandomness, public_stream
from confide.ideal import Cohort, Session, Vector
from confide.net.exchange import Envelope, Exchange
from confide.net.link import Arrived, Event, Joined, Left
from confide.train.parts import AGGREGATORS
from confide.wire import MemoryStore, Message, Party, Step, Transcript, run
from tee.aggregators import MADE, as_on_hardware

OPEN = "federation/open"


def key_of(name: str) -> SigningKey:
    """Return the identity of `name`."""
    return SigningKey(SigningKey.draw_seed(SeededRandomness(f"identity/{name}")))


def cohort_of(terms: Mapping[str, Any]) -> Cohort:
    return Cohort(tuple(terms["clients"]), terms["quorum"])


def roles_of(terms: Mapping[str, Any]) -> dict[str, str]:
    """Return the role of everybody who takes part, by name."""
    return cohort_of(terms).parties(MADE[terms["aggregator"]]().roles)


def vector_of(terms: Mapping[str, Any], name: str) -> Vector:
    drawn = public_stream(f"{terms['round']}/{name}", "vectors")
    return drawn.integers(-terms["bound"], terms["bound"] + 1, terms["length"]).astype(np.int64)


class Member:
    """What one process keeps: its store, its randomness by aggregator, and the sessions."""

    def __init__(self, me: str) -> None:
        self.me = me
        self.store = MemoryStore()
        self.exchange = Exchange(on_step=self.save)
        self.rngs: dict[str, SeededRandomness] = {}
        self.enclave = as_on_hardware()  # whose keys are in memory alone

    def save(self, session: str, step: Step) -> Mapping[str, bytes | None]:
        """Commit at once: a party that waits for nobody goes on, and may read what it has just saved."""
        self.store.commit(step.save)
        return {}

    def party(self, terms: Mapping[str, Any]) -> Party:
        name = terms["aggregator"]
        aggregator = self.enclave if name == "tee" else AGGREGATORS[name]()
        cohort, role = cohort_of(terms), roles_of(terms)[self.me]
        rng = self.rngs.setdefault(name, SeededRandomness(f"{name}/{self.me}"))
        if not terms["round"]:
            return aggregator.setup(role, self.me, cohort, self.store, rng)
        session = Session("run", terms["round"], cohort, terms["length"], terms["bound"], model_hash=bytes(32))
        vector = vector_of(terms, self.me) if role == "client" else None
        return aggregator.party(role, self.me, session, vector, self.store, rng)

    def handle(self, event: Event) -> list[Envelope]:
        """Do what an event asks for, and return what shall leave."""
        if isinstance(event, Joined):
            return [e for session in self.exchange.open_sessions for e in self.exchange.sent(session, event.peer)]
        if isinstance(event, Left):
            return []
        envelope = event.envelope
        if envelope.message.tag != OPEN:
            self.exchange.put(envelope)
        elif not self.exchange.knows(envelope.session):
            terms = json.loads(envelope.message.body)
            self.exchange.open(envelope.session, self.party(terms), me=self.me)
        return self.exchange.take()


class Coordinator(Member):
    """Opens sessions everywhere, forwards what members send each other, and returns the server's output.

    Args:
        send: hands an envelope to a peer.
        receive: returns the next event.
    """

    def __init__(self, send: Callable[[str, Envelope], None], receive: Callable[[], Event | None]) -> None:
        super().__init__("server")
        self.send, self.receive = send, receive
        self.joined: set[str] = set()
        self.opened: dict[str, Mapping[str, Any]] = {}

    def wait_for(self, names: set[str]) -> None:
        while not names <= self.joined:
            self.pump()

    def sum(self, terms: Mapping[str, Any]) -> Any:
        """Run one session, set-up for round 0, at everybody who has a role in it."""
        session = f"{terms['aggregator']}/{terms['round']}"
        self.opened[session] = terms
        for name in roles_of(terms):
            if name != self.me:
                self.send(name, self.opening(session, name))
        self.exchange.open(session, self.party(terms), me=self.me)
        self.leave(self.exchange.take())
        while self.exchange.is_open(session):
            self.pump()
        return self.exchange.output(session)

    def opening(self, session: str, name: str) -> Envelope:
        return Envelope(session, Message(self.me, name, OPEN, json.dumps(self.opened[session]).encode()))

    def leave(self, envelopes: list[Envelope]) -> None:
        for envelope in envelopes:
            self.send(envelope.message.dst, envelope)

    def pump(self) -> None:
        event = self.receive()
        if isinstance(event, Joined):
            self.joined.add(event.peer)
            for session in self.exchange.open_sessions:
                self.send(event.peer, self.opening(session, event.peer))
        elif isinstance(event, Left):
            self.joined.discard(event.peer)
        if isinstance(event, Arrived) and event.envelope.message.dst != self.me:
            self.send(event.envelope.message.dst, event.envelope)
        elif event is not None:
            self.leave(self.handle(event))


def rounds(aggregator: str, clients: tuple[str, ...], *, quorum: int, sums: int, length: int) -> list[dict[str, Any]]:
    """Return the terms of a set-up and of `sums` sums."""
    common = {"aggregator": aggregator, "clients": clients, "quorum": quorum, "length": length, "bound": 1 << 20}
    return [common | {"round": number} for number in range(sums + 1)]


def in_one_process(terms: list[dict[str, Any]]) -> list[Any]:
    """Return the outputs of the server under `wire.run`, from the same seeds."""
    members = {name: Member(name) for name in roles_of(terms[0])}
    outputs: list[Any] = []
    for each in terms:
        parties = {name: member.party(each) for name, member in members.items()}
        done: Transcript = run(parties, stores={name: member.store for name, member in members.items()})
        for name in members:
            done.output(name)
        outputs.append(done.output("server"))
    return outputs
