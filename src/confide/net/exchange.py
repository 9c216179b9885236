"""The sessions of one process, without I/O: parties moved by the messages that a driver brings.

A driver opens sessions, puts in what arrives, says when a stage's time is over, and sends what `take` returns. Network
drivers, both sides of a federation and tests with a clock of their own share this one machine, so they cannot differ.

Nothing leaves before it is durable: `take` commits, in one transaction, what the parties save, what the caller adds
(`on_step`) and, with `journal=True`, what arrived; only then it returns the messages. A process that was killed opens
the same sessions again, replays the journal and re-sends the same bytes, which `Inbox` takes for the repeats they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from confide.errors import Aborted, ConfideError, ProtocolError, StoreError
from confide.wire import Inbox, MemoryStore, Message, Party, Step, Store, decode, encode

#: What a caller adds to the commit of a step, seen before the step's messages leave.
OnStep = Callable[[str, Step], Mapping[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message of one session, as it travels."""

    session: str
    message: Message


@dataclass(slots=True)
class Figures:
    """What one session cost here: seconds of work, body bytes that left and arrived."""

    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: dict[str, int] = field(default_factory=dict[str, int])


class _Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One line of a session's journal: a message that arrived, or, without a source, that the time was over."""

    src: str
    tag: str
    body: bytes


class _Session:
    def __init__(self, me: str, party: Party, prefix: str, journal: bool, resend: bool) -> None:
        self.me, self.party, self.prefix, self.journal, self.resend = me, party, prefix, journal, resend
        self.inbox, self.step, self.lines = Inbox(), Step(), 0
        self.sent: list[Message] = []
        self.figures = Figures()


@dataclass(frozen=True, slots=True)
class _Outcome:
    error: ConfideError | None
    output: Any
    sent: list[Message]
    lines: int
    figures: Figures


def journal_key(session: str, line: int) -> str:
    """Return where line `line` (from 0) of a session's journal lies in the store."""
    return f"journal/{session}/{line}"


class _View:
    """A store below a prefix, read through changes that are not committed yet."""

    def __init__(self, store: Store, changes: dict[str, bytes | None], prefix: str) -> None:
        self._store, self._changes, self._prefix = store, changes, prefix

    def get(self, key: str) -> bytes | None:
        key = self._prefix + key
        return self._changes[key] if key in self._changes else self._store.get(key)

    def keys(self, prefix: str = "") -> list[str]:
        prefix = self._prefix + prefix
        found = {key for key in self._store.keys(prefix) if key not in self._changes}
        found |= {key for key, value in self._changes.items() if value is not None and key.startswith(prefix)}
        return sorted(key.removeprefix(self._prefix) for key in found)

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        below = {self._prefix + key: value for key, value in changes.items()}
        self._store.commit(below)
        for key in below:  # or an older value would be written over it
            self._changes.pop(key, None)


class Exchange:
    """Parties by session.

    Args:
        store: where everything is committed; keys of a party's `save` get the session's prefix.
        on_step: called for each step that sends something or waits for somebody, before anything of it leaves; what
            it returns is committed with the step. An exception from it ends the session.
        rests: a party that sends and waits for nobody goes on when `go_on` is called, after what it sent has left:
            nobody waits for what it does then. Else it goes on at once.

    **Guarantees**: messages leave after the commit of everything that led to them; if the commit fails nothing leaves,
    and the next `take` tries again.
    """

    def __init__(self, store: Store | None = None, *, on_step: OnStep | None = None, rests: bool = False) -> None:
        self._store = MemoryStore() if store is None else store
        self._on_step, self._rests = on_step, rests
        self._resting: dict[str, None] = {}
        self._sessions: dict[str, _Session] = {}
        self._outcomes: dict[str, _Outcome] = {}
        self._changes: dict[str, bytes | None] = {}
        self._saved: dict[str, set[str]] = {}  # by session, the keys of what it saved and nothing has committed
        self._outgoing: list[Envelope] = []
        self._ended: list[str] = []

    # --- a session's life ---------------------------------------------------------------------------------------------

    def open(
        self, session: str, party: Party, *, me: str, prefix: str = "", journal: bool = False, resend: bool = True
    ) -> None:
        """Start a party; with a journal, bring it to where it was when the process ended.

        Args:
            session: its id, the same at all its parties.
            me: the party's name, the source of all that it sends.
            prefix: of the party's keys in the store.
            journal: keep what arrives until `forget`, for parties that do the same again when they are told the same.
            resend: keep what was sent until `forget`, for `sent`.
        """
        one = self._sessions[session] = _Session(me, party, prefix, journal, resend)
        self._outcomes.pop(session, None)
        self._resume(session, one, None)
        while journal and session in self._sessions:
            body = self._store.get(journal_key(session, one.lines))
            if body is None:
                return
            entry = decode(body, _Entry, max_bytes=len(body))
            one.lines += 1
            if entry.src:
                one.inbox.put(Message(entry.src, me, entry.tag, entry.body))
                self._advance(session, one)
            else:
                self._close_stage(session, one)

    def put(self, envelope: Envelope) -> None:
        """Hand a message to its session.

        Raises:
            ProtocolError: there is no such session here, or its inbox refuses the message.
        """
        session, message = envelope.session, envelope.message
        one = self._sessions.get(session)
        if one is None:
            if session in self._outcomes:
                return  # a re-send to a session that has ended
            raise ProtocolError(f"Expected a message of an open session from {message.src}")
        if message.dst != one.me:
            raise ProtocolError(f"Expected a message to {one.me} from {message.src}")
        known = one.inbox.knows(message)
        one.inbox.put(message)
        if known:
            return
        down = one.figures.bytes_down
        down[message.src] = down.get(message.src, 0) + len(message.body)
        if one.journal:
            self._record(session, one, _Entry(message.src, message.tag, message.body))
        self._advance(session, one)

    def go_on(self) -> bool:
        """Move the parties whose messages have left and who wait for nobody; return whether there were any."""
        resting, self._resting = self._resting, {}
        for session in resting:
            if one := self._sessions.get(session):
                self._resume(session, one, {})
                self._advance(session, one)
        return bool(resting)

    def close_stage(self, session: str) -> None:
        """Say that the time of the stage at which a session waits is over: it goes on with whom it has, or fails."""
        if one := self._sessions.get(session):
            if one.journal:
                self._record(session, one, _Entry("", "", b""))
            self._close_stage(session, one)

    def abort(self, session: str, reason: str) -> None:
        """End a session with an error; it is not journaled, the caller must not open it again."""
        if one := self._sessions.get(session):
            one.party.close()
            self._end(session, Aborted(reason))

    def discard(self, session: str) -> None:
        """Drop what a session saved and sent since the last commit: nobody has seen it, and nobody will."""
        for key in self._saved.pop(session, ()):
            self._changes.pop(key, None)
        self._outgoing = [envelope for envelope in self._outgoing if envelope.session != session]

    def forget(self, session: str) -> None:
        """Drop a session that has ended, with its journal (at the next commit) and what it would re-send."""
        if one := self._sessions.pop(session, None):
            one.party.close()
        outcome = self._outcomes.pop(session, None)
        lines = one.lines if one else outcome.lines if outcome else 0
        for line in range(lines):
            if self._changes.pop(journal_key(session, line), None) is None:  # it is in the store
                self._changes[journal_key(session, line)] = None
        self._outgoing = [envelope for envelope in self._outgoing if envelope.session != session]
        self._ended = [ended for ended in self._ended if ended != session]

    def change(self, changes: Mapping[str, bytes | None]) -> None:
        """Add to what the next `take` commits."""
        self._changes.update(changes)

    def view(self, prefix: str = "") -> Store:
        """Return a part of the store as its parties must see it: with what the next `take` will commit.

        What is committed through it is durable at once.
        """
        return _View(self._store, self._changes, prefix)

    # --- what the driver asks -----------------------------------------------------------------------------------------

    def take(self) -> list[Envelope]:
        """Commit, then return what may leave, in order."""
        if self._changes:
            self._store.commit(self._changes)
            self._changes.clear()
            self._saved.clear()
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    @property
    def pending(self) -> bool:
        """Return whether something waits to leave; what merely arrived need not be durable yet, peers send it again."""
        return bool(self._outgoing)

    def sent(self, session: str, peer: str) -> list[Envelope]:
        """Return everything that a session has sent to `peer`, to send again after a connection was lost."""
        one = self._sessions.get(session)
        messages = one.sent if one else self._outcomes[session].sent if session in self._outcomes else []
        waiting = {id(envelope.message) for envelope in self._outgoing}
        return [Envelope(session, m) for m in messages if m.dst == peer and id(m) not in waiting]

    def waiting_for(self, session: str) -> tuple[str, frozenset[str]]:
        """Return the tag at which an open session waits, and from whom nothing has arrived."""
        one = self._sessions[session]
        return one.step.await_tag, frozenset(one.inbox.missing(one.step))

    def is_open(self, session: str) -> bool:
        """Return whether the session's party has not ended."""
        return session in self._sessions

    @property
    def open_sessions(self) -> tuple[str, ...]:
        """Return the ids of the sessions whose parties have not ended."""
        return tuple(self._sessions)

    def ended(self) -> list[str]:
        """Return the sessions that have ended since this was last asked."""
        ended, self._ended = self._ended, []
        return ended

    def knows(self, session: str) -> bool:
        """Return whether the session is open, or has ended and was not forgotten."""
        return session in self._sessions or session in self._outcomes

    def output(self, session: str) -> Any:
        """Return what an ended session's party returned, or raise the error that ended it."""
        outcome = self._outcomes[session]
        if outcome.error is not None:
            raise outcome.error
        return outcome.output

    def waiting_bytes(self, session: str, src: str | None = None) -> int:
        """Return what has come, from one party or all, and the session's party has not asked for yet."""
        one = self._sessions.get(session)
        waiting = {} if one is None else one.inbox.waiting_bytes
        return sum(waiting.values()) if src is None else waiting.get(src, 0)

    def figures(self, session: str) -> Figures:
        """Return what a session has cost here so far."""
        one = self._sessions.get(session)
        return one.figures if one else self._outcomes[session].figures

    # --- inside -------------------------------------------------------------------------------------------------------

    def _record(self, session: str, one: _Session, entry: _Entry) -> None:
        self._changes[journal_key(session, one.lines)] = encode(entry)
        one.lines += 1

    def _advance(self, session: str, one: _Session) -> None:
        while session in self._sessions and (received := one.inbox.ready(one.step)) is not None:
            if self._rests and one.step.send and not one.step.wait_for:
                self._resting[session] = None
                return
            self._resume(session, one, received)

    def _close_stage(self, session: str, one: _Session) -> None:
        try:
            received: Mapping[str, Message] | Exception = one.inbox.close(one.step)
        except Aborted as error:
            received = error
        self._resume(session, one, received)
        self._advance(session, one)

    def _resume(self, session: str, one: _Session, received: Mapping[str, Message] | Exception | None) -> None:
        begin = time.perf_counter()
        try:
            if received is None:
                step = next(one.party)
            elif isinstance(received, Exception):
                step = one.party.throw(received)
            else:
                step = one.party.send(received)
            one.figures.seconds += time.perf_counter() - begin
            one.step = step
            self._leave(session, one, step)
        except StopIteration as stop:
            one.figures.seconds += time.perf_counter() - begin
            self._end(session, None, stop.value)
        except StoreError:
            raise  # nothing is wrong with the session: the process must end, and go on from its store
        except ConfideError as error:
            one.party.close()
            self._end(session, error)
        else:
            one.inbox.await_step(step)
            if received is None:
                self._advance(session, one)

    def _leave(self, session: str, one: _Session, step: Step) -> None:
        if self._on_step:
            self._changes.update(self._on_step(session, step))
        if step.save:
            changes = {one.prefix + key: value for key, value in step.save.items()}
            self._changes.update(changes)
            self._saved.setdefault(session, set()).update(changes)
        for message in step.send:
            if message.src != one.me:
                raise ProtocolError(f"{one.me} tried to send as {message.src}")
            one.figures.bytes_up += len(message.body)
            if one.resend:
                one.sent.append(message)
            self._outgoing.append(Envelope(session, message))

    def _end(self, session: str, error: ConfideError | None, output: Any = None) -> None:
        one = self._sessions.pop(session)
        self._ended.append(session)
        self._outcomes[session] = _Outcome(error, output, one.sent, one.lines, one.figures)
