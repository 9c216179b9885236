"""A status page for the people of one machine: one HTML page, its data as JSON, live events, figures for Prometheus.

The server knows nothing of what it shows: it calls `snapshot` and passes the bytes on. It answers GET alone, keeps no
connection after an answer, and every connection ends by itself: headers are bounded in size and time, and a reader that
does not read is cut off.

**Guarantees**: a page of another site learns nothing from it: names that point here but are not ours (DNS rebinding)
and requests that another site's page makes are refused, and no answer allows another origin to read it. The page runs
no script and loads nothing but its own.

**Leaks**: everything in `snapshot`, to whoever can open a connection: on a loopback address all users of this machine.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from confide.errors import UsageError
from confide.net.http import is_loopback

Snapshot = Callable[[], bytes]

_JSON, _HTML, _TEXT = "application/json", "text/html; charset=utf-8", "text/plain; charset=utf-8"
_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
_REASONS: Mapping[int, str] = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
_SAFE_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLimits:
    """What a status page spends on strangers.

    Args:
        connections: open at once; more are told to come back.
        header_bytes, header_seconds: of one request; `crowded_seconds` if there are too many.
        write_seconds: until a reader must have taken what was sent.
        poll_seconds: between two looks at the snapshot; what is new reaches a browser within this time.
        silence_seconds: after which a comment is sent to a listener, so that a dead one is noticed.
    """

    connections: int = 64
    header_bytes: int = 8192
    header_seconds: float = 5.0
    crowded_seconds: float = 0.2
    write_seconds: float = 10.0
    poll_seconds: float = 0.25
    silence_seconds: float = 15.0


class StatusPage:
    """Serves a page in a thread of its own until it is closed; usable in a `with` statement.

    Args:
        snapshot: returns what `/status.json` answers and `/events` repeats whenever it has changed; called in the
            page's thread.
        metrics: returns what `/metrics` answers; None leaves that out.
        host, port: where to listen; 0 takes a free port.
        names: further host names under which browsers may ask for it, such as the one of a proxy before it.
        open_to_network: True allows another address than loopback, where everybody who can reach it may look.
        limits: see there.

    Raises:
        UsageError: the address is not loopback, or cannot be taken.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        metrics: Snapshot | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        names: tuple[str, ...] = (),
        open_to_network: bool = False,
        limits: PageLimits | None = None,
    ) -> None:
        if not is_loopback(host) and not open_to_network:
            raise UsageError(
                f"Expected host={host} to be a loopback address: a status page asks nobody who they are; look at it "
                "through a tunnel, or insist with open_to_network"
            )
        listener = _listen(host, port)
        self.port: int = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/"
        server = _Server(snapshot, metrics, (shown, *names), limits or PageLimits())
        ready = threading.Event()
        self._thread = threading.Thread(target=server.run, args=(listener, ready), name="status page", daemon=True)
        self._server = server
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        """End every connection and the thread."""
        self._server.stop()
        self._thread.join()

    def __enter__(self) -> StatusPage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise UsageError(f"Expected port={port} from 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError:
        raise UsageError(f"Expected host={host} and port={port} to be free and ours; choose another port") from None


class _Refusal(Exception):
    """A request that is answered by a status and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(frozen=True, slots=True)
class _Request:
    path: str
    host: str
    site: str


class _Server:
    """The loop of the page's thread."""

    def __init__(
        self, snapshot: Snapshot, metrics: Snapshot | None, names: tuple[str, ...], limits: PageLimits
    ) -> None:
        self._limits = limits
        self._snapshot = snapshot
        self._names = frozenset(name.lower() for name in ("127.0.0.1", "localhost", "[::1]", *names))
        page = (files("confide.net") / "page.html").read_bytes()
        self._page_policy = {"Content-Security-Policy": _content_policy(page.decode())}
        self._documents: Mapping[str, tuple[str, Snapshot]] = {
            "/": (_HTML, lambda: page),
            "/status.json": (_JSON, snapshot),
            **({"/metrics": (_EXPOSITION, metrics)} if metrics else {}),
        }
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._end = asyncio.Event()

    def run(self, listener: socket.socket, ready: threading.Event) -> None:
        """Serve until `stop`."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listener, ready))

    def stop(self) -> None:
        """Make `run` return; may be called from any thread, and more than once."""
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._end.set)

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._accept, sock=listener, limit=self._limits.header_bytes)
        ready.set()
        async with server:
            await self._end.wait()
            server.close()
            for task in tuple(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Coroutine[Any, Any, None]:
        return self._connection(reader, writer)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writer.transport.set_write_buffer_limits(high=0)  # drain() waits until the reader has taken everything
        try:
            await self._answer(reader, writer, crowded=len(self._connections) > self._limits.connections)
            writer.close()
            async with asyncio.timeout(self._limits.write_seconds):
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):  # gone, does not read, or the page is closed
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, crowded: bool) -> None:
        try:
            if crowded:
                with suppress(TimeoutError):  # an answer to a request that nobody has read would be lost
                    async with asyncio.timeout(self._limits.crowded_seconds):
                        await reader.read(self._limits.header_bytes)
                raise _Refusal(503, "Expected fewer open connections; try again in a moment.")
            request = await self._read(reader)
            self._check_origin(request)
            if request.path == "/events":
                await self._events(reader, writer)
                return
            if request.path not in self._documents:
                raise _Refusal(
                    404, "Expected one of / /status.json /events" + " /metrics" * ("/metrics" in self._documents)
                )
            kind, document = self._documents[request.path]
            extra = self._page_policy if kind == _HTML else {}
            await self._write(writer, _head(200, kind, extra, body := document()) + body)
        except _Refusal as refusal:
            body = f"{refusal.text}\n".encode()
            extra = {"Allow": "GET"} if refusal.status == 405 else {}
            await self._write(writer, _head(refusal.status, _TEXT, extra, body) + body)

    async def _read(self, reader: asyncio.StreamReader) -> _Request:
        """Return the one request of a connection."""
        try:
            async with asyncio.timeout(self._limits.header_seconds):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise _Refusal(431, "Expected shorter headers.") from None
        except TimeoutError:
            raise _Refusal(408, "Expected the headers sooner.") from None
        except asyncio.IncompleteReadError:
            raise _Refusal(400, "Expected whole headers.") from None
        return _parsed(head)

    def _check_origin(self, request: _Request) -> None:
        name, _, port = request.host.lower().rpartition(":")
        if not name or not port.isdigit():
            name = request.host.lower()
        if name not in self._names:
            raise _Refusal(421, "Expected the name of this machine in Host; open the address that confide printed.")
        if request.path != "/" and request.site not in ("", "same-origin", "none"):
            raise _Refusal(403, "Expected a request of this page, not of another site.")

    async def _events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send the snapshot now and whenever it has changed; the id of an event is the time here in seconds."""
        head = _head(200, "text/event-stream", {}, None)
        await self._write(writer, head + b"retry: 1000\n\n")
        gone = asyncio.ensure_future(reader.read(1))  # a listener has nothing to say: it ends, or is ended
        try:
            sent, silent_seconds = None, 0.0
            while not gone.done():
                body = self._snapshot()
                if body != sent:
                    sent, silent_seconds = body, 0.0
                    await self._write(writer, _event(body, time.time()))
                elif silent_seconds >= self._limits.silence_seconds:
                    silent_seconds = 0.0
                    await self._write(writer, _event(None, time.time()))
                await asyncio.wait({gone}, timeout=self._limits.poll_seconds)
                silent_seconds += self._limits.poll_seconds
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _write(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(body)
        async with asyncio.timeout(self._limits.write_seconds):
            await writer.drain()


def _parsed(head: bytes) -> _Request:
    """Return what counts of a request's head."""
    first, *lines = head[:-4].split(b"\r\n")
    line = re.fullmatch(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]", first)
    if line is None:
        raise _Refusal(400, "Expected a request line such as GET / HTTP/1.1.")
    if line[1] != b"GET":
        raise _Refusal(405, "Expected GET.")
    fields: dict[bytes, bytes] = {}
    for text in lines:
        name, colon, value = text.partition(b":")
        name = name.lower()
        if not colon or not re.fullmatch(rb"[!#-'*+.0-9^_`a-z|~-]+", name) or (name == b"host" and name in fields):
            raise _Refusal(400, "Expected well-formed headers.")
        fields[name] = value.strip(b" \t")
    path = line[2].decode().partition("?")[0]
    return _Request(path, *(fields.get(name, b"").decode("latin-1") for name in (b"host", b"sec-fetch-site")))


def _head(status: int, kind: str, extra: Mapping[str, str], body: bytes | None) -> bytes:
    """Return the head of an answer; without a body it lasts until the connection ends."""
    fields = {
        "Content-Type": kind,
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Connection": "close",
        **_SAFE_HEADERS,
        **extra,
        **({} if body is None else {"Content-Length": str(len(body))}),
    }
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _event(body: bytes | None, now_seconds: float) -> bytes:
    """Return one event: the status, or a sign of life."""
    if body is None:
        return f"event: alive\nid: {now_seconds:.3f}\ndata: \n\n".encode()
    # a line break inside would end the event; JSON has none
    return f"id: {now_seconds:.3f}\ndata: ".encode() + body.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n\n"


def _content_policy(page: str) -> str:
    """Return the policy under which only what stands in the page runs: scripts and styles by their hashes."""

    def hashes(element: str) -> str:
        texts = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
