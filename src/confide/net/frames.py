"""Envelopes as frames: large bodies are cut, sessions take turns, and what comes is put together within limits.

    message of at most 1 MiB   First(stream, session, src, dst, tag, size, body)
    larger                     First(..., its first 1 MiB), then Next(stream, 1 MiB) ..., the last one may be shorter

Frames are MessagePack by `msgspec`, typed and never pickle; no I/O happens here. A limit is checked before anything is
kept: a frame that breaks one raises ProtocolError, and the connection on which it came is closed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from confide.errors import ProtocolError, UsageError
from confide.net.exchange import Envelope
from confide.net.limits import Limits
from confide.wire import MESSAGE_COST_BYTES, Message

FRAME_BYTES = 1 << 20
#: Largest WebSocket message: one frame's data and its header.
LARGEST_FRAME_BYTES = FRAME_BYTES + 2048
#: Large messages that one side has begun and not finished, at most.
UNFINISHED = 8
LONGEST_NAME, LONGEST_TEXT = 64, 256


_Name = Annotated[str, msgspec.Meta(max_length=LONGEST_NAME)]
_Text = Annotated[str, msgspec.Meta(max_length=LONGEST_TEXT)]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class _First(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    stream: _Count
    session: _Text
    src: _Name
    dst: _Name
    label: _Text
    size: _Count
    data: memoryview


class _Next(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    stream: _Count
    data: memoryview


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_First | _Next)


def check_envelope(envelope: Envelope, limits: Limits) -> None:
    """Refuse what the other side would refuse.

    Raises:
        UsageError: a name, a tag or a body that is too long for the wire.
    """
    message = envelope.message
    if max(len(message.src), len(message.dst)) > LONGEST_NAME:
        raise UsageError(f"Expected names of at most {LONGEST_NAME} characters")
    if max(len(envelope.session), len(message.tag)) > LONGEST_TEXT:
        raise UsageError(f"Expected a session's id and a tag of at most {LONGEST_TEXT} characters")
    if len(message.body) > limits.message_bytes:
        raise UsageError(
            f"Expected a body of at most message_bytes={limits.message_bytes}, got {len(message.body)}; raise the "
            "limit on both sides"
        )


@dataclass(slots=True)
class _Leaving:
    envelope: Envelope
    offset: int = 0
    stream: int = 0

    @property
    def large(self) -> bool:
        return len(self.envelope.message.body) > FRAME_BYTES


class Outbox:
    """What waits to leave over one connection: sessions take turns, frame by frame; within one the order is kept.

    Args:
        limits: `message_bytes` bounds the large messages that have begun, as `Assembly` does at the other side.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sessions: dict[str, deque[_Leaving]] = {}
        self._turns: deque[str] = deque()
        self._begun = self._begun_bytes = self._streams = 0
        self.bytes = 0

    def put(self, envelope: Envelope) -> None:
        """Append an envelope to its session's queue."""
        queue = self._sessions.get(envelope.session)
        if queue is None:
            queue = self._sessions[envelope.session] = deque()
            self._turns.append(envelope.session)
        queue.append(_Leaving(envelope))
        self.bytes += len(envelope.message.body) + MESSAGE_COST_BYTES

    def take(self) -> bytes | None:
        """Return the next frame, or None if nothing waits."""
        for _ in range(len(self._turns)):
            session = self._turns[0]
            queue = self._sessions[session]
            self._turns.rotate(-1)
            if (frame := self._frame(queue[0])) is not None:
                if queue[0].offset >= len(queue[0].envelope.message.body):
                    self._finish(session, queue)
                return frame
        return None

    def _frame(self, leaving: _Leaving) -> bytes | None:
        message = leaving.envelope.message
        size = len(message.body)
        part = memoryview(message.body)[leaving.offset : leaving.offset + FRAME_BYTES]
        if leaving.offset:
            leaving.offset += len(part)
            return _ENCODER.encode(_Next(leaving.stream, part))
        if leaving.large:
            full = self._begun >= UNFINISHED or self._begun_bytes + size > self._limits.message_bytes
            if self._begun and full:
                return None
            self._begun += 1
            self._begun_bytes += size
            self._streams += 1
            leaving.stream = self._streams
        leaving.offset = len(part)
        session = leaving.envelope.session
        return _ENCODER.encode(_First(leaving.stream, session, message.src, message.dst, message.tag, size, part))

    def _finish(self, session: str, queue: deque[_Leaving]) -> None:
        done = queue.popleft()
        size = len(done.envelope.message.body)
        self.bytes -= size + MESSAGE_COST_BYTES
        if done.large:
            self._begun -= 1
            self._begun_bytes -= size
        if not queue:
            del self._sessions[session]
            self._turns.remove(session)


@dataclass(slots=True)
class _Begun:
    head: _First
    parts: list[bytes] = field(default_factory=list[bytes])
    bytes: int = 0


class Assembly:
    """What has begun to arrive over one connection.

    Args:
        limits: `message_bytes` is the largest body, and what all unfinished ones may announce together.

    **Guarantees**: what is kept never exceeds what has come, nor `message_bytes`; a message comes out once, whole.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._begun: dict[int, _Begun] = {}
        self._announced = 0
        self.bytes = 0

    def put(self, frame: bytes | bytearray) -> Envelope | None:
        """Take a frame; return the envelope that it completes, or None.

        Raises:
            ProtocolError: no honest peer sends this frame now.
        """
        try:
            part = _DECODER.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProtocolError("Expected a well-formed frame") from None
        return self._next(part) if isinstance(part, _Next) else self._first(part)

    def _first(self, first: _First) -> Envelope | None:
        if first.size > self._limits.message_bytes:
            raise ProtocolError(f"Expected a body of at most {self._limits.message_bytes} bytes")
        if len(first.data) != min(first.size, FRAME_BYTES):
            raise ProtocolError("Expected a first frame that is full, or the whole body")
        if first.size <= FRAME_BYTES:
            return _envelope(first, bytes(first.data))
        if first.stream in self._begun or len(self._begun) >= UNFINISHED:
            raise ProtocolError(f"Expected at most {UNFINISHED} unfinished messages, each with its own number")
        if self._begun and self._announced + first.size > self._limits.message_bytes:
            raise ProtocolError(f"Expected unfinished messages of at most {self._limits.message_bytes} bytes together")
        self._announced += first.size
        begun = self._begun[first.stream] = _Begun(msgspec.structs.replace(first, data=memoryview(b"")))
        self._keep(begun, first.data)
        return None

    def _next(self, part: _Next) -> Envelope | None:
        begun = self._begun.get(part.stream)
        if begun is None:
            raise ProtocolError("Expected the continuation of a message that has begun")
        size = begun.head.size
        if len(part.data) != min(size - begun.bytes, FRAME_BYTES):
            raise ProtocolError("Expected a continuation that is full, or the last one")
        self._keep(begun, part.data)
        if begun.bytes < size:
            return None
        del self._begun[part.stream]
        self._announced -= size
        self.bytes -= size
        return _envelope(begun.head, b"".join(begun.parts))

    def _keep(self, begun: _Begun, data: memoryview) -> None:
        begun.parts.append(bytes(data))
        begun.bytes += len(data)
        self.bytes += len(data)


def _envelope(head: _First, body: bytes) -> Envelope:
    return Envelope(head.session, Message(head.src, head.dst, head.label, body))
