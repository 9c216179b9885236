"""Batches for a driver that moves requests and replies, without I/O: Flower asks a node, and the node answers once.

Flower gives a node no way to speak first. So everything that is for one node leaves in one request, the node runs its
parties until each of them waits for the coordinator again, and everything that they sent comes back in the one reply:

1. hello      coordinator -> node    a nonce. Whoever answers is admitted by its signature, not by Flower's node id
              node -> coordinator    name, role, the nonce, a nonce of its own
2. exchange   coordinator -> node    envelopes, the nonce that the node sent last, a new nonce
              node -> coordinator    envelopes, the nonce that the coordinator sent last, a new nonce
              ... and so on; whatever is lost or does not fit begins again at 1, and both sides hear `Joined`

Every batch is signed with the long-lived Ed25519 identity of its sender and names both ends. Each nonce is answered
once. So whoever carries the batches (SuperLink, SuperNode, what they start) may read, delay and drop them, and can
neither alter nor replay one.

One exchange per node is under way at a time; what is sent meanwhile leaves with the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from confide.crypto.keys import SigningKey, label, verify
from confide.crypto.random import Randomness
from confide.errors import ProtocolError
from confide.net.exchange import Envelope
from confide.net.link import Arrived, Event, Joined, Left
from confide.wire import Message, decode, encode

#: Bytes of a nonce: nobody meets one twice.
_NONCE_BYTES = 16

_PURPOSE = "confide batch v1"

#: Of a member.
_LONGEST_NAME = 64

#: Largest batch that either side takes apart: a model of a hundred million values in 8 bytes, and some more.
MAX_BATCH_BYTES = 1 << 30


class _Line(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    session: str
    src: str
    dst: str
    tag: str
    body: bytes


class _Batch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    src: str
    dst: str  # "" in a hello: the coordinator does not know yet whom it asks
    role: str
    nonce: bytes
    answers: bytes  # the nonce that the other side sent last; b"" in a hello
    lines: tuple[_Line, ...]


class _Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    batch: bytes
    signature: bytes


def _seal(key: SigningKey, batch: _Batch) -> bytes:
    body = encode(batch)
    return encode(_Signed(body, key.sign(label(_PURPOSE, body))))


def _lines(envelopes: Iterable[Envelope]) -> tuple[_Line, ...]:
    return tuple(_Line(e.session, m.src, m.dst, m.tag, m.body) for e in envelopes for m in (e.message,))


def _envelope(line: _Line) -> Envelope:
    return Envelope(line.session, Message(line.src, line.dst, line.tag, line.body))


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who may answer for a name.

    Args:
        role: what it is let in as: "node", "helper" or "analyst".
        identity: its Ed25519 public key, 32 bytes.
    """

    role: str
    identity: bytes


@dataclass(slots=True)
class _Route:
    """A place that can be asked, by Flower's node id, and who turned out to be there."""

    name: str = ""
    nonce: bytes = b""  # what the reply that is under way must answer; b"" when nothing is under way
    token: bytes = b""  # what the next request must answer
    asked_at: float = float("-inf")
    reason: str = "not asked yet"  # why nobody has joined there


class HostBatches:
    """The coordinator's side.

    Args:
        key: the coordinator's identity.
        members: who may join, by name.
        rng: draws nonces.
        me: the coordinator's name.
        beat_seconds: a node that has had no exchange for so long is asked whether it has anything to say.
        retry_seconds: between two hellos to a place where nobody has joined.
        max_bytes: of a reply.

    **Guarantees**: a reply is taken from a node only if the member of that name signed it, and only once.
    **Leaks**: to whoever carries it: names, roles, sessions, tags, sizes, and bodies, which protocols seal themselves.
    """

    def __init__(
        self,
        key: SigningKey,
        members: Mapping[str, Member],
        rng: Randomness,
        *,
        me: str = "server",
        beat_seconds: float = 30.0,
        retry_seconds: float = 10.0,
        max_bytes: int = MAX_BATCH_BYTES,
    ) -> None:
        self._key, self._members, self._rng, self._me = key, dict(members), rng, me
        self._beat_seconds, self._retry_seconds, self._max_bytes = beat_seconds, retry_seconds, max_bytes
        self._routes: dict[int, _Route] = {}
        self._queues: dict[str, list[Envelope]] = {}  # of those who have joined
        self._events: deque[Event] = deque()
        #: How many requests have been made, hellos included.
        self.requests = 0

    def places(self, node_ids: Iterable[int]) -> None:
        """Say which places can be asked now; whoever was at one that is gone has left."""
        present = set(node_ids)
        for node_id in [known for known in self._routes if known not in present]:
            self._leave(self._routes.pop(node_id), "Flower says that its SuperNode is offline")
        for node_id in sorted(present - set(self._routes)):
            self._routes[node_id] = _Route()

    def admit(self, members: Mapping[str, Member]) -> None:
        """Say who may join from now on; whoever has joined and is not among them any more has left."""
        before, self._members = self._members, dict(members)
        for route in self._routes.values():
            if route.name and self._members.get(route.name) != before.get(route.name):
                self._leave(route, f"{route.name} is no member any more")

    def send(self, peer: str, envelope: Envelope) -> None:
        """Queue a message for the peer's next exchange; it is lost if the peer is not there."""
        if (queue := self._queues.get(peer)) is not None:
            queue.append(envelope)

    def requests_due(self, now: float) -> list[tuple[int, bytes]]:
        """Return what shall be asked now: (node id, batch), at most one per place that is not busy already."""
        due: list[tuple[int, bytes]] = []
        for node_id, route in self._routes.items():
            if route.nonce or now < self._due_at(route):
                continue
            envelopes: list[Envelope] = []
            if route.name:
                envelopes, self._queues[route.name] = self._queues[route.name], []
            route.nonce, route.asked_at = self._rng.bytes(_NONCE_BYTES), now
            batch = _Batch(self._me, route.name, "coordinator", route.nonce, route.token, _lines(envelopes))
            due.append((node_id, _seal(self._key, batch)))
        self.requests += len(due)
        return due

    def wait_seconds(self, now: float) -> float:
        """Return how long nothing will be due if nothing arrives and nothing is sent, at most `beat_seconds`."""
        idle = [self._due_at(route) - now for route in self._routes.values() if not route.nonce]
        return max(0.0, min([self._beat_seconds, *idle]))

    def replied(self, node_id: int, reply: bytes) -> None:
        """Take a reply; one that is not what was asked for makes its place one where nobody has joined."""
        route = self._routes.get(node_id)
        if route is None or not route.nonce:
            return  # an answer to a process before this one, or to a request that was given up
        expected, route.nonce = route.nonce, b""
        try:
            signed = decode(reply, _Signed, max_bytes=self._max_bytes)
            batch = decode(signed.batch, _Batch, max_bytes=self._max_bytes)
            self._check(batch, signed, route, expected)
        except ProtocolError as error:
            self._leave(route, str(error))
            return
        route.token = batch.nonce
        if not route.name:
            self._join(route, batch)
        self._events += [Arrived(batch.src, _envelope(line)) for line in batch.lines]

    def failed(self, node_id: int, reason: str) -> None:
        """Say that a request got no answer; the next one to that place is a hello."""
        route = self._routes.get(node_id)
        if route is not None and route.nonce:
            route.nonce = b""
            self._leave(route, reason)

    def next_event(self) -> Event | None:
        """Return what happened next, or None."""
        return self._events.popleft() if self._events else None

    @property
    def busy(self) -> bool:
        """Return whether something waits for a member who has joined, or is on its way there or back."""
        return any(self._queues.values()) or any(route.nonce for route in self._routes.values() if route.name)

    @property
    def strangers(self) -> dict[int, str]:
        """Return why nobody has joined, by place, for people: a node without its process, another federation's."""
        return {node_id: route.reason for node_id, route in self._routes.items() if not route.name}

    def _due_at(self, route: _Route) -> float:
        if not route.name:
            return route.asked_at + self._retry_seconds
        return float("-inf") if self._queues[route.name] else route.asked_at + self._beat_seconds

    def _check(self, batch: _Batch, signed: _Signed, route: _Route, expected: bytes) -> None:
        member = self._members.get(batch.src)
        if member is None:
            who = batch.src if batch.src.isprintable() and len(batch.src) <= _LONGEST_NAME else "whoever is there"
            raise ProtocolError(f"Expected a reply from a member of this federation, {who} is none or was revoked")
        verify(member.identity, label(_PURPOSE, signed.batch), signed.signature)
        if batch.dst != self._me or batch.answers != expected or len(batch.nonce) != _NONCE_BYTES:
            raise ProtocolError(f"Expected {batch.src} to answer the request that was made")
        if batch.role != member.role or route.name not in ("", batch.src):
            raise ProtocolError(f"Expected the {member.role} {batch.src} to answer under its own name and role")
        if any(line.src != batch.src for line in batch.lines):
            raise ProtocolError(f"Expected {batch.src} to send under its own name")

    def _join(self, route: _Route, batch: _Batch) -> None:
        for other in self._routes.values():
            if other.name == batch.src:  # a SuperNode that was started again has another id, and the newest is right
                self._leave(other, "it has joined again from another place")
        route.name = batch.src
        self._queues[batch.src] = []
        self._events.append(Joined(batch.src, batch.role))

    def _leave(self, route: _Route, reason: str) -> None:
        if route.name:
            del self._queues[route.name]
            self._events.append(Left(route.name, reason))
        route.name, route.nonce, route.token, route.reason = "", b"", b"", reason


@dataclass(slots=True)
class _Asked:
    """The exchange that is under way at a node: where its answer goes, and the nonce that it answers."""

    caller: int
    nonce: bytes


@dataclass(slots=True)
class NodeBatches:
    """A node's side.

    Args:
        me, role: the node's name, and "node", "helper" or "analyst".
        key: its identity.
        coordinator: the coordinator's public identity key, 32 bytes.
        rng: draws nonces.
        server: the coordinator's name.
        max_bytes: of a request.

    **Guarantees**: envelopes are taken only from batches that the coordinator signed for this node, and only once.
    **Leaks**: as `HostBatches`.
    """

    me: str
    role: str
    key: SigningKey
    coordinator: bytes
    rng: Randomness
    server: str = "server"
    max_bytes: int = MAX_BATCH_BYTES
    _token: bytes = b""
    _asked: _Asked | None = None
    _queue: list[Envelope] = field(default_factory=list[Envelope])
    _events: deque[Event] = field(default_factory=deque[Event])

    def request(self, caller: int, request: bytes) -> int | None:
        """Take a request from `caller`, a number for who brought it.

        Returns:
            The caller of the exchange that was under way until now, who gets no answer any more; else None.

        Raises:
            ProtocolError: it is not the coordinator's, not for this node, or not new.
        """
        signed = decode(request, _Signed, max_bytes=self.max_bytes)
        batch = decode(signed.batch, _Batch, max_bytes=self.max_bytes)
        verify(self.coordinator, label(_PURPOSE, signed.batch), signed.signature)
        if batch.src != self.server or batch.role != "coordinator" or len(batch.nonce) != _NONCE_BYTES:
            raise ProtocolError(f"Expected a batch from {self.server}")
        if not batch.dst and not batch.answers and not batch.lines:  # a hello: what was under way before it is lost
            self._queue.clear()
            self._events.append(Joined(self.server, "coordinator"))
        elif batch.dst != self.me or not self._token or batch.answers != self._token:
            raise ProtocolError(f"Expected a batch for {self.me} that answers its last one")
        given_up = self._asked.caller if self._asked else None
        self._token = b""
        self._asked = _Asked(caller, batch.nonce)
        self._events += [Arrived(self.server, _envelope(line)) for line in batch.lines]
        return given_up

    def send(self, envelope: Envelope) -> None:
        """Queue a message for the next reply."""
        self._queue.append(envelope)

    def next_event(self) -> Event | None:
        """Return what happened next, or None: then everything that was asked has been handed over."""
        return self._events.popleft() if self._events else None

    def reply_due(self) -> tuple[int, bytes] | None:
        """Return (caller, batch) if an exchange is under way and everything in it has been handed over."""
        if self._asked is None or self._events:
            return None
        asked, self._asked = self._asked, None
        lines, self._queue = _lines(self._queue), []
        self._token = self.rng.bytes(_NONCE_BYTES)
        batch = _Batch(self.me, self.server, self.role, self._token, asked.nonce, lines)
        return asked.caller, _seal(self.key, batch)

    def gone(self, caller: int) -> None:
        """Say that `caller` went away: what it asked gets no answer, and the coordinator will say hello."""
        if self._asked is not None and self._asked.caller == caller:
            self._asked = None
