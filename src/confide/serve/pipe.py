"""Messages between a server and its worker processes: a head of fixed structs and a body, in one piece over a socket.

    4 bytes   length of the head, little-endian
    8 bytes   length of the body
    head, body

Both ends are this program's, so lengths are taken as they come.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import time

_LENGTHS = struct.Struct("<IQ")
_READ_BYTES = 1 << 16


class Pipe:
    """One end of a connected stream socket, for one thread at a time.

    Args:
        end: the socket; closing the pipe closes it.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._rest = b""  # of what was read: the beginning of the next message

    def send(self, head: bytes, body: bytes = b"", *, deadline: float | None = None) -> None:
        """Send one message.

        Args:
            head, body: of any length; nothing is copied.
            deadline: by `time.monotonic`; None waits for ever.

        Raises:
            TimeoutError: the other end did not take it in time.
            OSError: the other end has gone.
        """
        parts = [memoryview(_LENGTHS.pack(len(head), len(body))), memoryview(head), memoryview(body)]
        while parts:
            self._wait_until(deadline)
            left = self._end.sendmsg(parts)
            while parts and left >= len(parts[0]):
                left -= len(parts.pop(0))
            if parts:
                parts[0] = parts[0][left:]

    def recv(self, *, deadline: float | None = None) -> tuple[bytes, bytes]:
        """Return the head and the body of the next message.

        Raises:
            EOFError: the other end has gone.
            TimeoutError, OSError: as in `send`.
        """
        first = self._rest
        while len(first) < _LENGTHS.size:
            first += self._some(_READ_BYTES, deadline)
        size = _size(first)
        first, self._rest = first[:size], first[size:]
        whole = bytearray(size)
        whole[: len(first)] = first
        view, at = memoryview(whole), len(first)
        while at < size:
            self._wait_until(deadline)
            count = self._end.recv_into(view[at:])
            if not count:
                raise EOFError
            at += count
        middle = _LENGTHS.size + _LENGTHS.unpack_from(whole)[0]
        return bytes(view[_LENGTHS.size : middle]), bytes(view[middle:])

    async def exchange(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Send a message and return the next one, on an event loop; who is cancelled meanwhile closes the pipe.

        Raises:
            EOFError, OSError: as in `send` and `recv`.
        """
        loop = asyncio.get_running_loop()
        self._end.setblocking(False)
        left = self._sent_at_once([memoryview(_LENGTHS.pack(len(head), len(body)) + head), memoryview(body)])
        for part in left:
            await loop.sock_sendall(self._end, part)
        found = bytearray(self._rest)
        self._rest = b""
        size = _LENGTHS.size
        while len(found) < size or (size := _size(found)) > len(found):
            data = await loop.sock_recv(self._end, max(_READ_BYTES, size - len(found)))
            if not data:
                raise EOFError
            found += data
        self._rest = bytes(found[size:])
        middle = _LENGTHS.size + _LENGTHS.unpack_from(found)[0]
        view = memoryview(found)
        return bytes(view[_LENGTHS.size : middle]), bytes(view[middle:size])

    def _sent_at_once(self, parts: list[memoryview]) -> list[memoryview]:
        """Send what the socket takes without waiting, and without a copy of our own; returns what is left."""
        try:
            sent = self._end.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            return parts
        left: list[memoryview] = []
        for part in parts:
            if sent < len(part):
                left.append(part[sent:])
            sent = max(0, sent - len(part))
        return left

    def poll(self) -> bool:
        """Return whether something has come: a message, or the end."""
        if self._rest:
            return True
        waiting = select.poll()
        waiting.register(self._end, select.POLLIN)
        return bool(waiting.poll(0))

    def close(self) -> None:
        """Close the socket; for whoever uses the pipe, since its number may be another socket's at once."""
        self._end.close()

    def _some(self, size: int, deadline: float | None) -> bytes:
        self._wait_until(deadline)
        data = self._end.recv(size)
        if not data:
            raise EOFError
        return data

    def _wait_until(self, deadline: float | None) -> None:
        """Let the next call wait until `deadline` at most. Raises TimeoutError once it is over."""
        if deadline is None:
            self._end.settimeout(None)
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._end.settimeout(left)


def _size(begin: bytes | bytearray) -> int:
    """Return the length of the message that begins so."""
    return _LENGTHS.size + sum(_LENGTHS.unpack_from(begin))
