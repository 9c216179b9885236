"""Many sessions of one process: parties moved by the messages that arrive, in the thread in which they arrive.

A party speaks of roles ("client", "server", "dealer"); on the wire stand the names of members. A session knows which
member has which role, and takes messages from no one else. Nothing leaves before the party's `save` is durable: the
sessions stand on `net.exchange`, as a federation's do.

**Guarantees**: a session ends: with its party, with an abort from any of its members, with the loss of a link to one,
or when nothing moved for `step_seconds`. However it ends, every other member is told, and later messages of it are
thrown away. What waits for a session that nobody has opened yet is bounded in bytes and time, for each peer and each
member who orders sessions; so is what waits in one that its party does not ask for.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from confide.errors import Aborted, ConfideError, ProtocolError, StoreError
from confide.net.exchange import Envelope, Exchange
from confide.serve.parties.messages import ABORT, Abort, letter, owner_of, read, short
from confide.wire import Message, Party, Step, Store

#: Ids of sessions that are over, kept to recognise what comes late.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the sessions of one process put up with.

    Args:
        step_seconds: time for the next step of a session.
        session_seconds: time for a whole session.
        session_bytes: what one peer may send in one session.
        early_bytes, early_sessions: what one peer may send ahead of the orders of one member that open sessions.
        sessions: open at once that one member ordered.
        waiting_bytes: what the member who ordered a session may have waiting in it that its party does not ask for.
        total_waiting_bytes: what may wait in all sessions together; beyond it the one where most waits ends.
    """

    step_seconds: float = 30.0
    session_seconds: float = 600.0
    session_bytes: int = 1 << 30
    early_bytes: int = 128 << 20
    early_sessions: int = 64
    sessions: int = 64
    waiting_bytes: int = 128 << 20
    total_waiting_bytes: int = 4 << 30


@dataclass(frozen=True, slots=True)
class Cast:
    """Who is who in one session.

    Args:
        role: of this process.
        names: the member of each role, this one's too.
    """

    role: str
    names: Mapping[str, str]

    def others(self) -> list[str]:
        """Return the members besides this one."""
        return [name for role, name in self.names.items() if role != self.role]

    def role_of(self, name: str) -> str | None:
        """Return the role of another member, or None."""
        for role, one in self.names.items():
            if one == name and role != self.role:
                return role
        return None


@dataclass(slots=True)
class Figures:
    """What one session was, seen from one of its members.

    Args:
        seconds: from its beginning to its end.
        worked_seconds: of them, at work here.
        rounds: how often the party waited.
        sent, received: body bytes by role.
    """

    seconds: float = 0.0
    worked_seconds: float = 0.0
    rounds: int = 0
    sent: dict[str, int] = field(default_factory=dict[str, int])
    received: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Ended:
    """How a session ended; `error` is None if its party returned `output`."""

    session: str
    cast: Cast
    error: ConfideError | None
    output: Any
    figures: Figures


@dataclass(slots=True)
class _Open:
    cast: Cast
    done: Callable[[Ended], None]
    begun: float
    due: float
    late: float
    figures: Figures = field(default_factory=Figures)
    heard: dict[str, int] = field(default_factory=dict[str, int])  # by role, what its messages cost


@dataclass(slots=True)
class _Early:
    due: float
    bytes: int = 0
    envelopes: list[Envelope] = field(default_factory=list[Envelope])


class Sessions:
    """The sessions of one process; everything runs in one thread.

    Args:
        me: this member's name.
        send: takes what leaves, by peer.
        store: where the parties' `save` is committed, below each session's prefix.
        bounds: what peers may do.
        broken: told of exceptions that nobody expected; the session they came from is over by then.
        seen: told of every message of a party that leaves or arrives, by session; for transcripts.
    """

    def __init__(
        self,
        me: str,
        send: Callable[[str, Envelope], None],
        store: Store,
        *,
        bounds: Bounds,
        broken: Callable[[BaseException], None],
        seen: Callable[[str, Message], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.me, self.bounds = me, bounds
        self._send, self._broken, self._seen, self._clock = send, broken, seen, clock
        self._exchange = Exchange(store, on_step=self._stepped, rests=True)
        self._open: dict[str, _Open] = {}
        self._early: dict[tuple[str, str], _Early] = {}
        self._over: OrderedDict[str, None] = OrderedDict()

    # --- a session's life ---------------------------------------------------------------------------------------------

    def open(self, session: str, party: Party, cast: Cast, *, prefix: str, done: Callable[[Ended], None]) -> None:
        """Begin a session; what has come for it early is looked at now.

        Args:
            session: its id, the same at all members.
            party: this member's.
            cast: who is who.
            prefix: of the party's store.
            done: told how it ended, once.

        Raises:
            ProtocolError: the id is in use, or was, or its member has too many.
        """
        bounds, owner, now = self.bounds, owner_of(session), self._clock()
        if self.knows(session):
            party.close()
            raise ProtocolError("Expected a session with an id of its own")
        if sum(owner_of(one) == owner for one in self._open) >= bounds.sessions:
            party.close()
            raise ProtocolError(f"Expected at most {bounds.sessions} sessions at a time; wait for the answers")
        self._open[session] = _Open(cast, done, now, now + bounds.step_seconds, now + bounds.session_seconds)
        self._guarded(session, lambda: self._exchange.open(session, party, me=cast.role, prefix=prefix, resend=False))
        for key in [key for key in self._early if key[1] == session]:
            for envelope in self._early.pop(key).envelopes:
                self.arrived(key[0], envelope)

    def shut(self, session: str) -> None:
        """Throw away what comes of a session that was refused."""
        if session not in self._open:
            self._remember(session)

    def view(self, prefix: str) -> Store:
        """Return the part of the store that a party reads: with what it has saved and the next commit will hold."""
        return self._exchange.view(prefix)

    def is_open(self, session: str) -> bool:
        """Return whether a session of that id is open."""
        return session in self._open

    def knows(self, session: str) -> bool:
        """Return whether a session of that id is open, or was lately."""
        return session in self._open or session in self._over

    def arrived(self, peer: str, envelope: Envelope) -> None:
        """Take a message of a session.

        Raises:
            ProtocolError: more came early, of sessions that the peer orders itself, than it may send; drop the peer.
        """
        session, message = envelope.session, envelope.message
        if session in self._over:
            return None
        one = self._open.get(session)
        if one is None:
            return self._keep_early(peer, envelope)
        role = one.cast.role_of(peer)
        if role is None or message.dst != self.me:
            return None  # of somebody who takes no part: it changes nothing for those who do
        if message.tag == ABORT:
            return self._aborted(session, peer, message)
        received, heard = one.figures.received, one.heard
        received[role] = received.get(role, 0) + len(message.body)
        heard[role] = heard.get(role, 0) + message.cost_bytes
        if heard[role] > self.bounds.session_bytes:
            return self.abort(session, f"{peer} sent more than {self.bounds.session_bytes} bytes in one session")
        inner = Envelope(session, Message(role, one.cast.role, message.tag, message.body))
        if self._seen is not None:
            self._seen(session, inner.message)
        self._guarded(session, lambda: self._exchange.put(inner))
        return self._bound_waiting(session, peer, role)

    def turn(self, session: str, tag: str) -> None:
        """Let a party go on that waits for its own role under `tag`: it left the thread to others meanwhile."""
        one = self._open.get(session)
        if one is not None:
            to_itself = Envelope(session, Message(one.cast.role, one.cast.role, tag, b""))
            self._guarded(session, lambda: self._exchange.put(to_itself))

    def abort(self, session: str, reason: str) -> None:
        """End a session with an error, here and at every other member."""
        if session in self._open:
            self._exchange.discard(session)
            self._exchange.abort(session, reason)
            self._finish(session, Aborted(reason), None, said=Abort(short(reason)))

    def left(self, peer: str) -> None:
        """End every session in which `peer` takes part: its link is gone."""
        for key in [key for key in self._early if key[0] == peer]:
            del self._early[key]
        for session, one in list(self._open.items()):
            if one.cast.role_of(peer) is not None:
                self.abort(session, f"the connection to {peer} ({one.cast.role_of(peer)}) was lost")

    def tick(self) -> None:
        """End what is late; to be called some times a second."""
        now = self._clock()
        for key in [key for key, early in self._early.items() if now > early.due]:
            del self._early[key]
        for session, one in list(self._open.items()):
            if now > min(one.due, one.late):
                self.abort(session, self._waited(session, one))

    def stop(self, reason: str) -> None:
        """End every session."""
        for session in list(self._open):
            self.abort(session, reason)

    @property
    def count(self) -> int:
        """Return how many sessions are open."""
        return len(self._open)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _guarded(self, session: str, work: Callable[[], None]) -> None:
        """Do something that moves a session's party, then send what may leave, and see whether it has ended."""
        try:
            work()
            self._leave()
            while self._exchange.go_on():
                self._leave()
        except StoreError as error:
            self.abort(session, f"the store of {self.me} does not work: {error}")
        except ConfideError as error:
            self.abort(session, short(str(error)))
        except Exception as error:
            # Whatever a peer's bytes have met, the others are served; its text may hold an input, so nobody gets it.
            self.abort(session, f"{self.me} failed")
            self._broken(error)
        for ended in self._exchange.ended():
            if ended in self._open:
                self._settle(ended)

    def _settle(self, session: str) -> None:
        try:
            output = self._exchange.output(session)
        except ConfideError as error:
            return self._finish(session, error, None, said=Abort.of(error))
        return self._finish(session, None, output)

    def _finish(
        self, session: str, error: ConfideError | None, output: Any, *, said: Abort | None = None, knows: str = ""
    ) -> None:
        """End a session, and say so to the other members, but for one who `knows`."""
        one = self._open.pop(session)
        figures = one.figures
        figures.seconds = self._clock() - one.begun
        if self._exchange.knows(session):
            figures.worked_seconds = self._exchange.figures(session).seconds
            self._exchange.forget(session)
        self._exchange.ended()
        self._remember(session)
        for name in one.cast.others():
            if said is not None and name != knows:
                self._send(name, letter(self.me, name, said, session=session))
        one.done(Ended(session, one.cast, error, output, figures))

    def _remember(self, session: str) -> None:
        for key in [key for key in self._early if key[1] == session]:
            del self._early[key]
        self._over[session] = None
        while len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)

    def _leave(self) -> None:
        for envelope in self._exchange.take():
            session, message = envelope.session, envelope.message
            one = self._open.get(session)
            if one is None:
                continue  # it ended while it sent: a link that took too much is gone
            name = one.cast.names.get(message.dst)
            if name is None:
                raise ProtocolError("Expected a message to a role that takes part")
            sent = one.figures.sent
            sent[message.dst] = sent.get(message.dst, 0) + len(message.body)
            if self._seen is not None:
                self._seen(session, message)
            self._send(name, Envelope(session, Message(self.me, name, message.tag, message.body)))

    def _stepped(self, session: str, step: Step) -> Mapping[str, bytes | None]:
        one = self._open[session]
        one.figures.rounds += bool(step.wait_for)
        one.due = self._clock() + self.bounds.step_seconds
        return {}

    def _aborted(self, session: str, peer: str, message: Message) -> None:
        try:
            said = read(message)
        except ProtocolError:
            said = Abort("no reason given")
        assert isinstance(said, Abort)
        by = said.by if said.by in self._open[session].cast.others() else peer
        reason = f"{by} ended it: {short(said.reason)}"
        self._exchange.abort(session, reason)
        # Whoever ended it may know of us alone: of a set-up, partners are told by the server.
        told = Abort(short(said.reason), said.set_up, by, said.again)
        self._finish(session, said.error(reason), None, said=told, knows=peer)

    def _bound_waiting(self, session: str, peer: str, role: str) -> None:
        bounds, waiting = self.bounds, self._exchange.waiting_bytes
        if not waiting(session):
            return None
        if peer == owner_of(session) and waiting(session, role) > bounds.waiting_bytes:
            return self.abort(session, f"{peer} sent more than {bounds.waiting_bytes} bytes that were not asked for")
        if self._early_bytes() + sum(map(waiting, self._open)) > bounds.total_waiting_bytes:
            self.abort(max(self._open, key=waiting), f"{self.me} has no room for what waits; ask again later")
        return None

    def _early_bytes(self) -> int:
        return sum(early.bytes for early in self._early.values())

    def _keep_early(self, peer: str, envelope: Envelope) -> None:
        if envelope.message.tag == ABORT:
            self._early.pop((peer, envelope.session), None)
            return
        owner = owner_of(envelope.session)
        held = [early for key, early in self._early.items() if key[0] == peer and owner_of(key[1]) == owner]
        bounds, size = self.bounds, envelope.message.cost_bytes
        early = self._early.get((peer, envelope.session))
        too_many = early is None and len(held) >= bounds.early_sessions
        too_large = sum(one.bytes for one in held) + size > bounds.early_bytes
        if too_many or too_large or self._early_bytes() + size > bounds.total_waiting_bytes:
            if owner == peer:
                raise ProtocolError("Expected an order ahead of the messages of a session")
            return  # of somebody else's session: what is missing of it ends that session, and not this link
        if early is None:
            early = self._early[peer, envelope.session] = _Early(self._clock() + bounds.step_seconds)
        early.bytes += size
        early.envelopes.append(envelope)

    def _waited(self, session: str, one: _Open) -> str:
        _, roles = self._exchange.waiting_for(session)
        names = ", ".join(sorted(one.cast.names.get(role, role) for role in roles)) or "the others"
        return f"{self.me} waited too long for {names}"
