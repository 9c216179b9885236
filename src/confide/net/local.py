"""Frames over a Unix socket on one machine, without threads: what carries batches between us and Flower's processes.

A frame is `header bytes (u32) | body bytes (u64) | header | body`, lengths little-endian, the header JSON. The listener
trusts a caller no further than the socket's mode does: frames are bounded, callers are few, and one that is slow, or
does not read what it is sent, delays nobody else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from confide.errors import UsageError

_LENGTHS = struct.Struct("<IQ")
_MAX_HEADER_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
#: Linux has 108 bytes for the path of a Unix socket, its end mark included.
_MAX_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class Frame:
    """What a caller sent: which caller, and the two parts of the frame."""

    caller: int
    header: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Gone:
    """A caller's connection has ended."""

    caller: int


@dataclass(slots=True)
class _Caller:
    number: int
    sock: socket.socket
    received: bytearray = field(default_factory=bytearray)
    unsent: deque[memoryview] = field(default_factory=deque[memoryview])


def pack(header: bytes, body: bytes) -> bytes:
    """Return a frame."""
    return b"".join((_LENGTHS.pack(len(header), len(body)), header, body))


class Listener:
    """Takes frames from few local callers.

    Args:
        path: of the socket; a stale one that nobody listens on is replaced.
        mode: of the socket's file: who may call. 0o600 is whoever runs this process.
        max_bytes: of a frame's body; a caller that announces more is hung up on.
        most_callers: at the same time; the one who has waited longest makes room.

    Raises:
        UsageError: the path is too long, its folder is not there, or another process listens on it.
    """

    def __init__(self, path: Path, *, mode: int = 0o600, max_bytes: int, most_callers: int = 8) -> None:
        self._path, self._max_bytes, self._most = path, max_bytes, most_callers
        self._callers: dict[int, _Caller] = {}
        self._events: deque[Frame | Gone] = deque()
        self._count = 0
        self._sock = _bind(path, mode)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._sock, selectors.EVENT_READ, None)

    def poll(self, timeout_seconds: float) -> Iterator[Frame | Gone]:
        """Move bytes for at most `timeout_seconds`, or until a frame is whole; yield what happened."""
        end = time.monotonic() + timeout_seconds
        while not self._events:
            for key, mask in self._selector.select(max(0.0, end - time.monotonic())):
                self._serve(key.data, mask)
            if time.monotonic() >= end:
                break
        while self._events:
            yield self._events.popleft()

    def send(self, caller: int, header: bytes, body: bytes) -> None:
        """Queue a frame to a caller, who may have gone; it leaves while `poll` runs."""
        if one := self._callers.get(caller):
            one.unsent.append(memoryview(pack(header, body)))
            self._write(one)

    def hang_up(self, caller: int) -> None:
        """End a connection without an event."""
        if one := self._callers.pop(caller, None):
            self._selector.unregister(one.sock)
            one.sock.close()

    def close(self, *, linger_seconds: float = 2.0) -> None:
        """Send what is queued if callers take it in time, end every connection and remove the socket."""
        end = time.monotonic() + linger_seconds
        while time.monotonic() < end and any(one.unsent for one in self._callers.values()):
            for key, mask in self._selector.select(0.1):
                if key.data is not None:
                    self._serve(key.data, mask)
        for caller in list(self._callers):
            self.hang_up(caller)
        self._selector.close()
        self._sock.close()
        self._path.unlink(missing_ok=True)

    def _serve(self, one: _Caller | None, mask: int) -> None:
        if one is None:
            self._accept()
            return
        if mask & selectors.EVENT_WRITE:
            self._write(one)
        if mask & selectors.EVENT_READ and one.number in self._callers:
            self._read(one)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:  # it has hung up already
            return
        sock.setblocking(False)
        self._count += 1
        one = self._callers[self._count] = _Caller(self._count, sock)
        self._selector.register(sock, selectors.EVENT_READ, one)
        if len(self._callers) > self._most:
            self._end(next(iter(self._callers.values())))

    def _read(self, one: _Caller) -> None:
        try:
            data = one.sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(one)
            return
        one.received += data
        while len(one.received) >= _LENGTHS.size:
            header_bytes, body_bytes = _LENGTHS.unpack_from(one.received)
            if header_bytes > _MAX_HEADER_BYTES or body_bytes > self._max_bytes:
                self._end(one)
                return
            start, end = _LENGTHS.size + header_bytes, _LENGTHS.size + header_bytes + body_bytes
            if len(one.received) < end:
                return
            header, body = bytes(one.received[_LENGTHS.size : start]), bytes(one.received[start:end])
            del one.received[:end]
            self._events.append(Frame(one.number, header, body))

    def _write(self, one: _Caller) -> None:
        try:
            while one.unsent:
                rest = one.unsent[0]
                rest = rest[one.sock.send(rest) :]
                if rest:
                    one.unsent[0] = rest
                else:
                    one.unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._end(one)
            return
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if one.unsent else 0)
        self._selector.modify(one.sock, interest, one)

    def _end(self, one: _Caller) -> None:
        self.hang_up(one.number)
        self._events.append(Gone(one.number))


def _bind(path: Path, mode: int) -> socket.socket:
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise UsageError(f"Expected the socket {path.name} under a path of at most {_MAX_PATH_BYTES} bytes; move it")
    if not path.parent.is_dir():
        raise UsageError(f"Expected the folder of the socket {path.name} to exist; make it first")
    if path.exists():
        _refuse_a_second(path)
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(path))
        path.chmod(mode)  # nobody can connect before `listen`
        sock.listen(16)
    except OSError as error:
        sock.close()
        raise UsageError(f"Expected to listen on the socket {path.name}; {error.strerror}") from None
    sock.setblocking(False)
    return sock


def _refuse_a_second(path: Path) -> None:
    if not path.is_socket():
        raise UsageError(f"Expected {path.name} to be a socket or absent; choose another path")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)  # a listener that is busy refuses in another way than one that is gone
        if probe.connect_ex(os.fspath(path)) in (errno.ECONNREFUSED, errno.ENOENT):
            return
    raise UsageError(f"Expected nobody on the socket {path.name}; another process listens there, stop it first")
