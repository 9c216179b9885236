"""How parties talk: messages, steps, an inbox, the deterministic driver and the transcript it returns.

A party is a generator. It yields a `Step` (what to send, what to wait for) and is resumed with the messages that
arrived; what it returns is its output. It does no I/O, reads no clock and keeps no global state, so the same code runs
under `run` here (one process, deterministic, faults on request) and under the network drivers in `confide.net`.

A driver commits `Step.save` to the party's store before any message of that step leaves: after a crash the factory
rebuilds the party from its store, and it re-sends the saved bytes or drops out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import Aborted, ConfideError, ProtocolError
from confide.structs import known

#: What one message is counted for beyond its body, so that empty ones are not free.
MESSAGE_COST_BYTES = 512


@dataclass(frozen=True, slots=True)
class Message:
    """One message: who sends, who receives, which stage it belongs to, and its bytes."""

    src: str
    dst: str
    tag: str
    body: bytes

    @property
    def cost_bytes(self) -> int:
        """Return what it is counted for where it waits: an empty one is not free."""
        return len(self.body) + len(self.tag) + MESSAGE_COST_BYTES

    def __repr__(self) -> str:  # a body may be private; its size is not
        return f"Message({self.src!r} -> {self.dst!r}, {self.tag!r}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class Step:
    """What a party wants next: `send` leaves, then messages tagged `await_tag` from `wait_for` are collected.

    Args:
        send: messages that leave now, in this order.
        await_tag: the tag to wait for; ignored if `wait_for` is empty (the party is resumed at once with {}).
        wait_for: whom to wait for.
        at_least: None waits for all of `wait_for`; a number lets the driver's deadline close the stage with that many.
        each: resume with one message at a time, so that a server can sum as they come; {} says that the driver's
            deadline closed the stage.
        save: committed to the party's store before `send` leaves.
    """

    send: tuple[Message, ...] = ()
    await_tag: str = ""
    wait_for: tuple[str, ...] = ()
    at_least: int | None = None
    each: bool = False
    save: Mapping[str, bytes | None] = field(default_factory=dict[str, "bytes | None"])


#: A party yields steps, is resumed with the messages that arrived by sender and returns its output; an abort arrives
#: by throw().
Party = Generator[Step, Mapping[str, Message], Any]


class Store(Protocol):
    """What must outlive a process: evaluation keys, shares, journals, one-time ids. Keys are paths like "he/secret"."""

    def get(self, key: str) -> bytes | None:
        """Return the bytes under `key`, or None."""
        ...

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, in the order of their characters."""
        ...

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes` or none of it; None deletes."""
        ...


class MemoryStore:
    """A store that lives as long as the process: for simulation and tests."""

    def __init__(self) -> None:
        self._entries: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self._entries.get(key)

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._entries if key.startswith(prefix))

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        for key, value in changes.items():
            if value is None:
                self._entries.pop(key, None)
            else:
                self._entries[key] = value


# --- bodies -----------------------------------------------------------------------------------------------------------

_Body = TypeVar("_Body", bound=msgspec.Struct)
_ENCODER = msgspec.msgpack.Encoder()


class Array(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array as raw little-endian bytes: a body is typed, and its size is known before anything is allocated."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @staticmethod
    def of(values: NDArray[Any]) -> Array:
        """Wrap `values` (integer or float, any shape)."""
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        return Array(little.dtype.str, little.shape, little.tobytes())

    def numpy(self, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
        """Return the array, read-only; None in `shape` allows any length along that axis.

        Raises:
            ProtocolError: if dtype, shape or size differ from what was expected.
        """
        expected = np.dtype(dtype).newbyteorder("<")
        fits = len(self.shape) == len(shape) and all(
            have >= 0 and want in (None, have) for have, want in zip(self.shape, shape, strict=True)
        )
        if self.dtype != expected.str or not fits:
            raise ProtocolError(f"Expected an array of {expected.str} with shape {shape}")
        if math.prod(self.shape) * expected.itemsize != len(self.data):
            raise ProtocolError("Expected an array whose bytes fill its shape")
        try:
            return np.frombuffer(self.data, dtype=expected).reshape(self.shape)
        except ValueError:  # an empty array may claim an axis that numpy cannot hold
            raise ProtocolError("Expected an array whose shape numpy can hold") from None


def encode(body: msgspec.Struct) -> bytes:
    """Return `body` as MessagePack."""
    return _ENCODER.encode(body)


def decode(body: bytes, kind: type[_Body], *, max_bytes: int) -> _Body:
    """Return the struct in `body`.

    Raises:
        ProtocolError: if the body is larger than `max_bytes` or is not exactly a `kind`; the text names no content.
    """
    if len(body) > max_bytes:
        raise ProtocolError(f"Expected a body of at most {max_bytes} bytes, got {len(body)}")
    try:
        return msgspec.msgpack.decode(body, type=known(kind))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProtocolError(f"Expected a well-formed {kind.__name__}") from None


# --- the inbox, shared by every driver --------------------------------------------------------------------------------


class Inbox:
    """What has arrived for one party: keeps early messages, refuses late ones and second, different ones."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], Message] = {}
        # Python's keyed hash stands for a body: memory stays small, and a collision would only hide a complaint.
        self._seen: dict[tuple[str, str], int] = {}
        self._closed: set[str] = set()
        self._tag = ""
        #: What waits of each sender: `Message.cost_bytes`.
        self.waiting_bytes: dict[str, int] = {}

    def put(self, message: Message) -> None:
        """Accept one message; an identical repeat (a re-send after a reconnect) is ignored.

        Raises:
            ProtocolError: a second, different message of one sender under one tag, or one for a closed stage.
        """
        key = (message.tag, message.src)
        earlier = self._seen.get(key)
        if earlier is not None:
            if earlier == hash(message.body):
                return
            raise ProtocolError(f"{message.src} sent two different messages tagged {message.tag!r}")
        if message.tag in self._closed:
            raise ProtocolError(f"{message.src} sent {message.tag!r} after that stage had closed")
        self._seen[key] = hash(message.body)
        self._waiting[key] = message
        self.waiting_bytes[message.src] = self.waiting_bytes.get(message.src, 0) + message.cost_bytes

    def knows(self, message: Message) -> bool:
        """Return whether something of this sender under this tag has arrived."""
        return (message.tag, message.src) in self._seen

    def missing(self, step: Step) -> list[str]:
        """Return the sources of `step` from which nothing waits here."""
        return [src for src in step.wait_for if (step.await_tag, src) not in self._waiting]

    def await_step(self, step: Step) -> None:
        """Move on to `step`: the stage before it is closed for latecomers."""
        if self._tag and self._tag != step.await_tag:
            self._closed.add(self._tag)
        self._tag = step.await_tag if step.wait_for else self._tag

    def ready(self, step: Step) -> dict[str, Message] | None:
        """Return the messages to resume with, or None if the party must go on waiting."""
        if not step.wait_for:
            return {}
        tag, waiting = step.await_tag, self._waiting
        for src in step.wait_for:
            if ((tag, src) in waiting) == step.each:  # one is enough, or one is missing
                return self._take(tag, [src]) if step.each else None
        return None if step.each else self._take(tag, step.wait_for)

    def close(self, step: Step) -> dict[str, Message]:
        """Return what the deadline leaves: {} for an `each` step, else at least `at_least` messages.

        Raises:
            Aborted: fewer messages than the step needs.
        """
        if step.each:
            return {}
        have = [src for src in step.wait_for if (step.await_tag, src) in self._waiting]
        needed = len(step.wait_for) if step.at_least is None else step.at_least
        if len(have) < needed:
            raise Aborted(f"Expected {needed} messages tagged {step.await_tag!r}, got {len(have)} before the deadline")
        return self._take(step.await_tag, have)

    def _take(self, tag: str, sources: Sequence[str]) -> dict[str, Message]:
        taken = {src: self._waiting.pop((tag, src)) for src in sources}
        for src, message in taken.items():
            self.waiting_bytes[src] -= message.cost_bytes
        return taken


# --- transcript -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One resume of one party: what it had consumed, how long it worked, what it sent (indices into the messages)."""

    party: str
    tag: str
    seconds: float
    consumed: tuple[int, ...]
    sent: tuple[int, ...]


@dataclass(slots=True)
class Transcript:
    """Everything a run did: outputs, failures, messages, work. Every figure that confide prints comes from one.

    Args:
        outputs: what each party returned.
        failures: the error of each party that did not return.
        messages: every message sent, in order; bodies may have been dropped (`sizes` stays).
        sizes: body bytes of each message.
        events: the resumes, in the order in which they ran.
        rejected: messages that an inbox refused, with the reason.
    """

    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    failures: dict[str, ConfideError] = field(default_factory=dict[str, ConfideError])
    messages: list[Message] = field(default_factory=list[Message])
    sizes: list[int] = field(default_factory=list[int])
    events: list[Event] = field(default_factory=list[Event])
    rejected: list[tuple[Message, str]] = field(default_factory=list[tuple[Message, str]])

    def output(self, party: str) -> Any:
        """Return the output of `party`, or raise the error that ended it."""
        if party in self.failures:
            raise self.failures[party]
        return self.outputs[party]

    def add(self, message: Message, *, keep_body: bool = True) -> int:
        """Append a message and return its index."""
        self.messages.append(message if keep_body else Message(message.src, message.dst, message.tag, b""))
        self.sizes.append(len(message.body))
        return len(self.messages) - 1

    def view(self, party: str) -> list[Message]:
        """Return what `party` received, in order: what it could try to learn from."""
        return [message for message in self.messages if message.dst == party]

    def bytes_sent(self, party: str) -> int:
        """Return the body bytes that `party` sent."""
        return sum(size for message, size in zip(self.messages, self.sizes, strict=True) if message.src == party)

    def bytes_received(self, party: str) -> int:
        """Return the body bytes sent to `party`."""
        return sum(size for message, size in zip(self.messages, self.sizes, strict=True) if message.dst == party)

    def seconds(self, party: str) -> float:
        """Return the seconds that `party` worked."""
        return sum(event.seconds for event in self.events if event.party == party)

    @property
    def depth(self) -> int:
        """Return the longest chain of messages that depend on each other: the one-way trips of the protocol."""
        of_message = [0] * len(self.messages)
        of_party: dict[str, int] = {}
        for event in self.events:
            seen = [of_message[index] for index in event.consumed]
            of_party[event.party] = max([of_party.get(event.party, 0), *seen])
            for index in event.sent:
                of_message[index] = of_party[event.party] + 1
        return max(of_message, default=0)

    def cost(self, *, latency_seconds: float, bandwidth_bps: float) -> float:
        """Return the seconds that this run would take over a modelled network.

        Every party has one uplink of `bandwidth_bps` bits per second and reaches the others after `latency_seconds`
        one way; parties work at the same time, each on the work measured here.
        """
        free: dict[str, float] = {}
        uplink: dict[str, float] = {}
        arrival = [0.0] * len(self.messages)
        for event in self.events:
            start = max([free.get(event.party, 0.0), *(arrival[index] for index in event.consumed)])
            free[event.party] = start + event.seconds
            for index in event.sent:
                begin = max(uplink.get(event.party, 0.0), free[event.party])
                uplink[event.party] = begin + 8 * self.sizes[index] / bandwidth_bps
                arrival[index] = uplink[event.party] + latency_seconds
        return max([*free.values(), *arrival], default=0.0)

    def merge(self, other: Transcript) -> Transcript:
        """Return this run followed by `other`: the parties' later outputs win, everything else adds up."""
        shift = len(self.messages)
        moved = [
            Event(e.party, e.tag, e.seconds, tuple(i + shift for i in e.consumed), tuple(i + shift for i in e.sent))
            for e in other.events
        ]
        failures = {party: error for party, error in self.failures.items() if party not in other.outputs}
        return Transcript(
            self.outputs | other.outputs,
            failures | other.failures,
            self.messages + other.messages,
            self.sizes + other.sizes,
            self.events + moved,
            self.rejected + other.rejected,
        )


# --- faults -----------------------------------------------------------------------------------------------------------

#: How many ticks a stage that may close early waits for the next message.
LATE_TICKS = 1000

#: A fault maps each message to what the network delivers instead: (delay in ticks, message) pairs, none to drop it.
Fault = Callable[[Message], Iterable[tuple[int, Message]]]


def _matches(message: Message, src: str | None, dst: str | None, tag: str | None) -> bool:
    return src in (None, message.src) and dst in (None, message.dst) and tag in (None, message.tag)


def drop(*, src: str | None = None, dst: str | None = None, tag: str | None = None) -> Fault:
    """Lose every matching message."""
    return lambda message: [] if _matches(message, src, dst, tag) else [(0, message)]


def lose(src: str, *, tag: str) -> Fault:
    """Let `src` die just before it sends its first message tagged `tag`."""
    dead: list[bool] = []

    def fault(message: Message) -> list[tuple[int, Message]]:
        if message.src == src and message.tag == tag:
            dead.append(True)
        return [] if dead and src in (message.src, message.dst) else [(0, message)]

    return fault


def delay(ticks: int, *, src: str | None = None, dst: str | None = None, tag: str | None = None) -> Fault:
    """Deliver matching messages `ticks` deliveries later: 1 swaps neighbours, `2 * LATE_TICKS` misses a deadline."""
    return lambda message: [(ticks if _matches(message, src, dst, tag) else 0, message)]


def repeat(*, src: str | None = None, dst: str | None = None, tag: str | None = None) -> Fault:
    """Deliver matching messages twice."""
    return lambda message: [(0, message)] * (2 if _matches(message, src, dst, tag) else 1)


def alter(
    change: Callable[[bytes], bytes], *, src: str | None = None, dst: str | None = None, tag: str | None = None
) -> Fault:
    """Deliver matching messages with `change` applied to their bodies."""

    def fault(message: Message) -> list[tuple[int, Message]]:
        if not _matches(message, src, dst, tag):
            return [(0, message)]
        return [(0, Message(message.src, message.dst, message.tag, change(message.body)))]

    return fault


def truncate(keep: int, *, src: str | None = None, dst: str | None = None, tag: str | None = None) -> Fault:
    """Cut the bodies of matching messages to their first `keep` bytes."""
    return alter(lambda body: body[:keep], src=src, dst=dst, tag=tag)


# --- the deterministic driver -----------------------------------------------------------------------------------------


class _Running:
    """One party under the driver: its generator, the step it waits at, its inbox."""

    def __init__(self, party: Party) -> None:
        self.party = party
        self.step: Step | None = None
        self.inbox = Inbox()
        self.index: dict[tuple[str, str], int] = {}


class _Driver:
    def __init__(
        self,
        stores: Mapping[str, Store],
        fault: Fault | None,
        keep_bodies: bool,
        leaving: Callable[[str, Step], None] | None,
    ) -> None:
        self.leaving = leaving
        self.running: dict[str, _Running] = {}
        self.stores = stores
        self.fault = fault
        self.keep_bodies = keep_bodies
        self.transcript = Transcript()
        self.tick = 0
        self.queue: list[tuple[int, Message, int]] = []  # when, what, which of the transcript

    def resume(self, name: str, received: Mapping[str, Message] | Exception | None) -> None:
        state = self.running[name]
        tag = state.step.await_tag if state.step else ""
        consumed: tuple[int, ...] = ()
        if isinstance(received, Mapping):
            consumed = tuple(state.index[message.tag, message.src] for message in received.values())
        begin = time.perf_counter()
        step: Step | None = None
        try:
            if received is None:
                step = next(state.party)
            elif isinstance(received, Exception):
                step = state.party.throw(received)
            else:
                step = state.party.send(received)
        except StopIteration as stop:
            self.transcript.outputs[name] = stop.value
        except ConfideError as error:
            self.transcript.failures[name] = error
        seconds = time.perf_counter() - begin
        sent = self.leave(name, step) if step else ()
        self.transcript.events.append(Event(name, tag, seconds, consumed, sent))
        state.step = step
        if step:
            state.inbox.await_step(step)
        else:
            del self.running[name]

    def leave(self, name: str, step: Step) -> tuple[int, ...]:
        if self.leaving:
            self.leaving(name, step)
        if step.save and name in self.stores:
            self.stores[name].commit(step.save)
        sent: list[int] = []
        for message in step.send:
            if message.src != name:
                raise ProtocolError(f"{name} tried to send as {message.src}")
            index = self.transcript.add(message, keep_body=self.keep_bodies)
            sent.append(index)
            for ticks, delivered in self.fault(message) if self.fault else [(0, message)]:
                self.queue.append((self.tick + ticks, delivered, index))
        return tuple(sent)

    def deliver(self) -> bool:
        """Deliver every message that is due; if none is, let time pass to the next one or to a stage's deadline."""
        if not self.queue:
            return False
        soonest = min(entry[0] for entry in self.queue)
        if soonest - self.tick >= LATE_TICKS and self.closable():
            self.tick += LATE_TICKS
            return False
        self.tick = max(self.tick, soonest)
        due = [entry for entry in self.queue if entry[0] <= self.tick]  # all of one tick, in the order of sending
        self.queue = [entry for entry in self.queue if entry[0] > self.tick]
        for _, message, index in due:
            state = self.running.get(message.dst)
            if state is None:
                self.transcript.rejected.append((message, f"{message.dst} has ended"))
                continue
            try:
                state.inbox.put(message)
                state.index.setdefault((message.tag, message.src), index)
            except ProtocolError as error:
                self.transcript.rejected.append((message, str(error)))
        self.tick += 1
        return True

    def advance(self) -> bool:
        """Resume every party whose messages are there."""
        moved = False
        for name in list(self.running):
            while (state := self.running.get(name)) and state.step is not None:
                received = state.inbox.ready(state.step)
                if received is None:
                    break
                moved = True
                self.resume(name, received)
        return moved

    def closable(self) -> dict[str, Step]:
        """Return who waits at a stage that may close early, and at which."""
        steps = {name: state.step for name, state in self.running.items() if state.step}
        return {name: step for name, step in steps.items() if step.each or step.at_least is not None}

    def deadline(self) -> None:
        """Nothing moves any more: close the first stage that may close early, else abort everyone who still waits."""
        for name, step in self.closable().items():
            try:
                received: Mapping[str, Message] | Exception = self.running[name].inbox.close(step)
            except Aborted as error:
                received = error
            return self.resume(name, received)
        for name, state in list(self.running.items()):
            tag = state.step.await_tag if state.step else ""
            self.resume(name, Aborted(f"{name} waited for {tag!r} in vain: the others have ended"))


def run(
    parties: Mapping[str, Party],
    *,
    stores: Mapping[str, Store] | None = None,
    fault: Fault | None = None,
    keep_bodies: bool = True,
    leaving: Callable[[str, Step], None] | None = None,
) -> Transcript:
    """Run `parties` in this process until each has returned or failed, always in the same order.

    Deadlines are simulated: when nothing more can arrive, the first stage that may close early is closed.

    Args:
        parties: the generators by name; a message's `dst` is one of these names.
        stores: where each party's `Step.save` is committed.
        fault: what the network does to each message; see `drop`, `lose`, `delay`, `repeat`, `truncate`, `alter`.
        keep_bodies: False drops the bodies from the transcript (long runs), their sizes stay.
        leaving: told of each party's step before anything of it leaves.

    Returns:
        The transcript; a party's ConfideError is in `failures`, any other exception is a bug and propagates.
    """
    driver = _Driver(stores or {}, fault, keep_bodies, leaving)
    driver.running = {name: _Running(party) for name, party in parties.items()}
    for name in list(parties):
        driver.resume(name, None)
    while driver.running:
        if not driver.advance() and not driver.deliver():
            driver.deadline()
    return driver.transcript
