"""A process among the others of its mode: links that stay, who is at their ends, and the sessions that run over them.

`Circle` is what the server, its partners and the client have in common. Everything but the constructor, `listen` and
`close` runs in the loop's thread of its mesh, where messages arrive.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from confide.errors import ConfideError, ProtocolError
from confide.net.certificates import read_member
from confide.net.exchange import Envelope
from confide.net.limits import Limits
from confide.net.link import Arrived, Event, Joined, Left
from confide.net.mesh import Mesh
from confide.serve.parties.deferred import Deferred
from confide.serve.parties.messages import (
    ABORT,
    NO_SESSION,
    ORDER,
    VERSION,
    Abort,
    Hello,
    Order,
    check_session,
    letter,
    owner_of,
    read,
    short,
)
from confide.serve.parties.seats import MEMBER_ROLES, Facts, refusal, together
from confide.serve.parties.sessions import Bounds, Cast, Ended, Figures, Sessions
from confide.wire import Message, Party, Store

TICK_SECONDS = 0.2
#: Sessions of one client and model that wait for the one before them.
_MOST_WAITING = 64

#: Rounds are many and correlations are large: a link of these processes takes more than one of a federation's rounds.
PARTY_LIMITS = Limits(
    frames_per_second=50_000.0, frames_burst=200_000.0, bytes_per_second=4e9, bytes_burst=8e9, arrived_bytes=512 << 20
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """This process.

    Args:
        name: the member's; "server" for the server.
        role: as its certificate has it.
        url: where it is dialled, "" if it is not.
        machine: `seats.machine_digest`.
        identity: Ed25519 public key, 32 bytes.
        stock: as `Hello` has it.
        one_machine: accept that roles which must not collude share a machine; everything then says INSECURE.
    """

    name: str
    role: str
    url: str
    machine: bytes
    identity: bytes
    one_machine: bool
    stock: int = 0


class Hears(Protocol):
    """What a process does with what it hears; a ConfideError is told to the peer, and ends its connection."""

    def greeted(self, peer: str) -> None:
        """A peer has said hello: see `Circle.facts` and `Circle.hello`."""
        ...

    def told(self, peer: str, body: msgspec.Struct) -> None:
        """A peer says something that belongs to no session."""
        ...

    def ordered(self, peer: str, session: str, order: Order) -> None:
        """A peer orders a session."""
        ...

    def lost(self, peer: str, reason: str) -> None:
        """A link, or an attempt to dial, has ended."""
        ...


@dataclass(slots=True)
class _There:
    role: str
    hello: Hello | None = None
    facts: Facts | None = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    session: str
    build: Callable[[], Party]
    cast: Cast
    prefix: str
    kind: str
    done: Callable[[Ended], None]


@dataclass(slots=True)
class _Turns:
    """What is open and what waits for one model and client.

    Parties that read the same correlations at the same time would use them twice: one prediction runs at a time, one
    deal beside it, and a set-up alone.
    """

    open: set[str] = field(default_factory=set[str])
    waiting: list[_Waiting] = field(default_factory=list[_Waiting])

    def free(self, kind: str, before: Sequence[_Waiting]) -> bool:
        """Return whether a session may begin, with `before` waiting ahead of it."""
        taken = self.open | {one.kind for one in before}
        return not taken if kind == "setup" else not {"setup", kind} & taken


class Circle:
    """One process.

    Args:
        me: who it is.
        store: its store; each session's party has a part of it.
        bounds: what sessions may take.
        hears: what it does.
        say: told in one line what happens.
        broken: told of exceptions that nobody expected.
        seen: told of every message of a party, by session.
        limits: of its links.
    """

    def __init__(
        self,
        me: Me,
        store: Store,
        hears: Hears,
        *,
        bounds: Bounds | None = None,
        say: Callable[[str], None] = lambda text: None,
        broken: Callable[[BaseException], None] = lambda error: None,
        seen: Callable[[str, Message], None] | None = None,
        limits: Limits = PARTY_LIMITS,
    ) -> None:
        self.me, self.say, self.store, self.broken = me, say, store, broken
        #: What has been found of members who must not collude and share a machine, if that was accepted.
        self.insecure = ""
        self._hears = hears
        self._there: dict[str, _There] = {}
        self._turns: dict[str, _Turns] = {}
        self.mesh = Mesh(self._receive, broken=broken, limits=limits, longest_seconds=5.0)
        self._deferred = Deferred(store)
        self.sessions = Sessions(
            me.name, self.mesh.send, self._deferred, bounds=bounds or Bounds(), broken=broken, seen=seen
        )
        self.mesh.post(self._tick)

    def located(self, url: str) -> None:
        """Say where this process is dialled, once its port is known and before anybody is dialled."""
        self.me = replace(self.me, url=url)

    def close(self) -> None:
        """End every session, which the others are told, and every link."""
        self.mesh.call(lambda: self.sessions.stop(f"{self.me.name} stops"))
        self.mesh.close()

    # --- links --------------------------------------------------------------------------------------------------------

    def dial(self, name: str, role: str, url: str, context: ssl.SSLContext, proxy: str | None = None) -> None:
        """Keep a link to somebody who listens, unless there is one."""
        if not self.mesh.dials(name):
            self.mesh.dial(name, url, context, role=role, proxy=proxy)

    def tell(self, peer: str, body: msgspec.Struct) -> None:
        """Say something that belongs to no session."""
        self.mesh.send(peer, letter(self.me.name, peer, body))

    def order(self, peer: str, session: str, order: Order) -> None:
        """Have a peer begin a session."""
        self.mesh.send(peer, letter(self.me.name, peer, order, session=session))

    def facts(self, peer: str) -> Facts | None:
        """Return what is known of a peer who is there and has said hello."""
        there = self._there.get(peer)
        return None if there is None else there.facts

    def hello(self, peer: str) -> Hello | None:
        """Return what a peer who is there has said of itself."""
        there = self._there.get(peer)
        return None if there is None else there.hello

    @property
    def peers(self) -> tuple[str, ...]:
        """Return who is there and has said hello."""
        return tuple(name for name, there in self._there.items() if there.hello is not None)

    # --- sessions -----------------------------------------------------------------------------------------------------

    def begin(
        self,
        session: str,
        build: Callable[[], Party],
        cast: Cast,
        *,
        prefix: str,
        kind: str,
        done: Callable[[Ended], None],
    ) -> None:
        """Begin a session, or let it wait for its turn; see `_Turns`.

        Args:
            session: its id.
            build: makes the party, when its turn has come.
            cast: who is who.
            prefix: of the party's store.
            kind: "setup", "deal" or "predict"; what is dealt may come while predictions are made.
            done: told how it ended, once; also if it could not begin, of which the other members are told.
        """
        turns = self._turns.setdefault(prefix, _Turns())
        one = _Waiting(session, build, cast, prefix, kind, done)
        if len(turns.waiting) >= _MOST_WAITING:
            error = ProtocolError("Expected less at a time; wait for the answers to the questions before this one")
            self._not_begun(one, error)
        elif turns.free(kind, turns.waiting):
            self._start(one)
        else:
            turns.waiting.append(one)

    def refuse(self, peer: str, session: str, error: ConfideError) -> None:
        """Tell who ordered a session why it does not take place here, and throw away what still comes of it."""
        self.sessions.shut(session)
        self.mesh.send(peer, letter(self.me.name, peer, Abort.of(error), session=session))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _start(self, one: _Waiting) -> None:
        turns = self._turns[one.prefix]

        def done(ended: Ended) -> None:
            turns.open.discard(one.kind)
            try:
                one.done(ended)
            finally:
                self._next(one.prefix)

        try:
            if absent := [name for name in one.cast.others() if self.hello(name) is None]:
                raise ProtocolError(f"Expected {', '.join(absent)} to be connected to {self.me.name}; ask again later")
            party = one.build()
            turns.open.add(one.kind)
            self.sessions.open(one.session, party, one.cast, prefix=one.prefix, done=done)
        except ConfideError as error:
            self._not_begun(replace(one, done=done), error)

    def _not_begun(self, one: _Waiting, error: ConfideError) -> None:
        for name in one.cast.others():
            self.refuse(name, one.session, error)
        one.done(Ended(one.session, one.cast, error, None, Figures()))

    def _next(self, prefix: str) -> None:
        """Begin what has waited and may begin now."""
        turns = self._turns.get(prefix)
        if turns is None:
            return None
        for place, one in enumerate(turns.waiting):
            if turns.free(one.kind, turns.waiting[:place]):
                del turns.waiting[place]
                self._start(one)
                return self._next(prefix)
        if not turns.waiting and not turns.open:
            self._turns.pop(prefix, None)
        return None

    def _receive(self, event: Event) -> None:
        try:
            self._heard(event)
        except ProtocolError:
            raise
        except Exception as error:  # the peer's connection ends, the process goes on
            self.broken(error)
            raise ProtocolError(f"{self.me.name} failed") from None

    def _heard(self, event: Event) -> None:
        match event:
            case Joined(peer, role):
                self._there[peer] = _There(role)
                me = self.me
                self.tell(peer, Hello(VERSION, me.url, me.machine, me.one_machine, me.stock))
            case Left(peer, reason):
                self._there.pop(peer, None)
                self.sessions.left(peer)
                self._hears.lost(peer, reason)
            case Arrived(peer, envelope):
                self._arrived(peer, envelope)

    def _arrived(self, peer: str, envelope: Envelope) -> None:
        there = self._there.get(peer)
        if there is None:
            return
        message, session = envelope.message, envelope.session
        if there.hello is not None and session != NO_SESSION and message.tag != ORDER:
            owner = owner_of(session)
            if _asks(there.role) and owner != peer:
                raise ProtocolError("Expected messages of its own sessions")
            if owner == self.me.name or owner in self._there:  # who is not here orders nothing here
                self.sessions.arrived(peer, envelope)
            return
        body = read(message)
        if isinstance(body, Hello):
            self._greeted(peer, there, body)
        elif there.hello is None:
            raise ProtocolError("Expected a hello before anything else")
        elif isinstance(body, Order):
            self._ordered(peer, session, body)
        elif message.tag != ABORT:
            self._refusing(lambda: self._hears.told(peer, body))

    def _greeted(self, peer: str, there: _There, hello: Hello) -> None:
        shown = self.mesh.peer(peer)
        if hello.version != VERSION or shown is None:
            raise ProtocolError(f"Expected version {VERSION} of these messages; install one version of confide at all")
        identity = read_member(shown.certificate).identity
        facts = Facts(there.role, peer, hello.machine, self.mesh.address(peer), identity)
        me = Facts(self.me.role, self.me.name, self.me.machine, "", self.me.identity)
        others = [one.facts for name, one in self._there.items() if one.facts is not None and name != peer]
        for other in (me, *others):
            if common := together(facts, other):
                if not self.me.one_machine:
                    goes = other.name if other is not me and _asks(other.role) and not _asks(facts.role) else peer
                    self.say(f"refused {goes}: {refusal(common)}")
                    if goes == peer:
                        raise ProtocolError(str(refusal(common)))
                    self.mesh.drop(goes, str(refusal(common)))  # who asks cannot keep a partner out
                    continue
                if not self.insecure:
                    self.insecure = common
        there.hello, there.facts = hello, facts
        self._refusing(lambda: self._hears.greeted(peer))

    def _ordered(self, peer: str, session: str, order: Order) -> None:
        try:
            check_session(session, order)
            self._hears.ordered(peer, session, order)
        except ConfideError as error:
            self.refuse(peer, session, error)

    def _refusing(self, work: Callable[[], None]) -> None:
        """Do something for a peer; what it refuses ends the peer's connection."""
        try:
            work()
        except ProtocolError:
            raise
        except ConfideError as error:
            raise ProtocolError(short(str(error))) from None

    def _tick(self) -> None:
        self.sessions.tick()
        if not self.sessions.count:
            try:
                self._deferred.sweep()
            except ConfideError as error:
                self.say(f"used correlations could not be cleared away: {error}")
        self.mesh.later(TICK_SECONDS, self._tick)


def _asks(role: str) -> bool:
    """Return whether members in a role ask, and are no part of the service."""
    return role not in MEMBER_ROLES.values()
