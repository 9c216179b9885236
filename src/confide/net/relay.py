"""A shaped link in user space: a TCP relay that delays, limits the rate, cuts and blocks, for figures over LAN and WAN.

Each direction of each connection is a line of its own: bytes leave it at `bits_per_second`, in order, `delay_seconds`
later. It stands on loopback between two ends that need not know of it; what goes through is not looked at. Bytes of
TCP and IP headers are not counted, and losses are not modelled: what a cut loses is lost, nothing else.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar, cast

from confide.crypto.random import Randomness, SystemRandomness

#: What a line holds besides what is on its way: a router's queue.
_QUEUE_BYTES = 1 << 20
_CHUNK_BYTES = 16 << 10

_Output = TypeVar("_Output")


class Relay:
    """Listens on a free port of loopback and passes everything on; a context manager.

    Args:
        target_host, target_port: where connections go.
        delay_seconds: one way, in both directions.
        bits_per_second: of each direction of each connection; None for as fast as it goes.
        jitter_seconds: each chunk is late by up to this much more, uniformly; TCP keeps the order.
        address: what to listen on.
        rng: of the jitter.

    Raises:
        ValueError: a negative delay or jitter, or a rate that is not positive.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        delay_seconds: float,
        bits_per_second: float | None = None,
        jitter_seconds: float = 0.0,
        address: str = "127.0.0.1",
        rng: Randomness | None = None,
    ) -> None:
        if delay_seconds < 0 or jitter_seconds < 0 or (bits_per_second is not None and bits_per_second <= 0):
            raise ValueError("Expected delay_seconds >= 0, jitter_seconds >= 0 and bits_per_second > 0 or None")
        self._target = target_host, target_port
        self._delay, self._rate, self._jitter = delay_seconds, bits_per_second, jitter_seconds
        self._rng = rng or SystemRandomness()
        self._blocked = False
        self._ends: set[_End] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # select() waits to the microsecond, epoll only to the next millisecond.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="confide relay", daemon=True)
        self._thread.start()
        try:
            self._server = self._call(self._listen(address))
        except OSError:
            self._end_loop()
            raise
        #: Where it listens.
        self.port = int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Kill every connection, as if a wire broke; new ones can be made."""
        self._call(self._cut())

    def block(self) -> None:
        """Kill every new connection at once, until `unblock`."""
        self._blocked = True

    def unblock(self) -> None:
        """Let new connections pass again."""
        self._blocked = False

    def connections(self) -> int:
        """Return how many connections pass through now."""
        return len(self._ends) // 2

    def close(self) -> None:
        """Kill every connection and end the thread."""
        if not self._loop.is_closed():
            self._call(self._stop())
            self._end_loop()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- in the loop's thread -----------------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, _Output]) -> _Output:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self, address: str) -> asyncio.Server:
        return await self._loop.create_server(lambda: _End(self._ends, self._came), address, 0, family=socket.AF_INET)

    async def _cut(self) -> None:
        for end in list(self._ends):
            end.kill()

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        while self._ends:
            await self._cut()
            await asyncio.sleep(0.001)
        await self._server.wait_closed()

    def _came(self, near: _End) -> None:
        if self._blocked:
            return near.kill()
        near.pause()
        task = self._loop.create_task(self._connect(near))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, near: _End) -> None:
        try:
            _, far = await self._loop.create_connection(lambda: _End(self._ends, None), *self._target)
        except OSError:
            return near.kill()
        near.line, far.line = self._line(near, far), self._line(far, near)
        near.other, far.other = far, near
        near.resume()

    def _line(self, source: _End, sink: _End) -> _Line:
        return _Line(self._loop, source, sink, self._delay, self._rate, self._late)

    def _late(self) -> float:
        return self._jitter * self._rng.below(1 << 16) / (1 << 16) if self._jitter else 0.0


class _Line:
    """One direction: what has come from `source` and is not yet due at `sink`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: _End,
        sink: _End,
        delay: float,
        rate: float | None,
        late: Callable[[], float],
    ) -> None:
        self._loop, self._source, self._sink = loop, source, sink
        self._delay, self._rate, self._late = delay, rate, late
        self._capacity = _QUEUE_BYTES + int((rate or 1e9) * delay / 8)
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._free = self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, data: bytes) -> None:
        """Take bytes; b"" says that no more will come."""
        now = self._loop.time()
        for start in range(0, len(data), _CHUNK_BYTES) if data else (0,):
            chunk = data[start : start + _CHUNK_BYTES]
            self._free = max(now, self._free) + (8 * len(chunk) / self._rate if self._rate else 0.0)
            self._last = max(self._last, self._free + self._delay + self._late())
            self._waiting.append((self._last, chunk))
            self._bytes += len(chunk)
        if self._bytes > self._capacity:
            self._source.pause()
        self.release()

    def release(self) -> None:
        """Hand over what is due, and come back for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._sink.can_take:
            due, chunk = self._waiting[0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self.release)
                break
            self._waiting.popleft()
            self._bytes -= len(chunk)
            self._sink.write(chunk)
        if self._bytes <= self._capacity // 2:
            self._source.resume()

    def drop(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()


class _End(asyncio.Protocol):
    """One socket."""

    def __init__(self, ends: set[_End], came: Callable[[_End], None] | None) -> None:
        self._ends, self._came = ends, came
        self._transport: asyncio.Transport | None = None
        self._early = b""
        self.line: _Line | None = None
        self.other: _End | None = None
        self.can_take = True
        self._heard_all = self._said_all = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ends.add(self)
        if self._came is not None:
            self._came(self)

    def data_received(self, data: bytes) -> None:
        if self.line is None:  # the near end is paused until there is a line; the far end's comes at once
            self._early += data
        else:
            self.line.put(self._early + data if self._early else data)
            self._early = b""

    def eof_received(self) -> bool:
        self._heard_all = True
        if self.line is not None:
            self.line.put(b"")
        self._close_if_done()
        return True  # the other direction lives on

    def connection_lost(self, exc: Exception | None) -> None:
        self._ends.discard(self)
        self._transport = None
        if self._heard_all and self._said_all:
            return  # in order: what is on its way to the other end still arrives
        if self.line is not None:
            self.line.drop()
        if self.other is not None:
            self.other.kill()

    def pause_writing(self) -> None:
        self.can_take = False

    def resume_writing(self) -> None:
        self.can_take = True
        if self.other is not None and self.other.line is not None:
            self.other.line.release()

    def write(self, data: bytes) -> None:
        """Send bytes; b"" ends this direction."""
        if self._transport is not None and data:
            self._transport.write(data)
        elif self._transport is not None:
            with suppress(OSError):  # reset from the other side, and the loop has not told us yet
                self._transport.write_eof()
            self._said_all = True
            self._close_if_done()

    def pause(self) -> None:
        """Read no more."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _close_if_done(self) -> None:
        if self._heard_all and self._said_all and self._transport is not None:
            self._transport.close()

    def kill(self) -> None:
        """Reset the connection."""
        if self._transport is not None:
            linger = struct.pack("ii", 1, 0)  # a reset, not an orderly end
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
