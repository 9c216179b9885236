"""HTTP/1.1 to one server over connections that are kept open: what `Client` sends its requests with.

A request with its answer takes 0.06 ms of work here and 0.4 ms through httpx2, which has far more to offer than one
client of one server needs: here are no redirects, cookies, proxies or encodings. Answers are parsed by llhttp
(httptools); errors are those of httpx2, by which the steps know what may be repeated.

Guarantees: what was sent is never sent twice from here. A connection serves one request at a time, and is used again
only after an answer that ended where its length said. A certificate is checked against the host of the URL.
"""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

import httptools
import httpx2

from confide.errors import ProtocolError
from confide.serve.connect import PIECE_BYTES, Address, Sent, check_encoding, too_large
from confide.serve.effects import Received, Send

_READ_BYTES = 1 << 16
_MOST_HEAD_BYTES = 1 << 16
_KEPT_SECONDS = 5.0  # less than any server waits; a connection that it closes meanwhile would cost a question
_MOST_KEPT = 20
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"/[\x21-\x7e]*")


class Direct:
    """Sends requests to one server; safe for threads, each of which gets a connection of its own.

    Args:
        address: the server's.

    Raises:
        UsageError: as `Address.settings`.
    """

    def __init__(self, address: Address) -> None:
        settings = address.settings()
        url = httpx2.URL(address.url)
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._base = url.raw_path.decode("ascii").rstrip("/")
        self._tls = httpx2.create_ssl_context(settings["verify"], trust_env=False) if url.scheme == "https" else None
        if self._tls is not None:
            self._tls.set_alpn_protocols(["http/1.1"])
        self._seconds = address.timeout_seconds
        self._headers = {"host": url.netloc.decode("ascii"), "accept": "*/*", **settings["headers"]}
        self._kept: list[tuple[socket.socket, float]] = []  # the latest stands last
        self._closed = False
        self._lock = threading.Lock()

    def send(self, what: Send, sent: Sent) -> Received:
        """Send one request and return its answer.

        Raises:
            httpx2.TransportError: no answer.
            ProtocolError: an answer that is too large, or compressed.
        """
        head = self._head(what)
        connection = self._taken() or self._connected()
        reusable = False
        try:
            lost = _write(connection, head, what, sent)
            if what.meanwhile is not None and lost is None:
                what.meanwhile()
            answer = _Answer(what.max_bytes)
            _read(connection, answer, lost)
            reusable = answer.reusable and lost is None
            return answer.received()
        finally:
            if reusable:
                self._keep(connection)
            else:
                _drop(connection)

    def close(self) -> None:
        """Close the connections that wait; those at work end after their answer."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
        for connection, _ in kept:
            _drop(connection)

    def _head(self, what: Send) -> bytes:
        headers: dict[str, str] = {**self._headers, **what.headers}
        if what.content is not None:
            headers["content-length"] = str(len(what.content))
        target = self._base + what.path
        if not _TARGET.fullmatch(target):
            raise httpx2.LocalProtocolError("Expected a path of printable characters")
        if not all(_TOKEN.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers.items()):
            raise httpx2.LocalProtocolError("Expected headers of one line")
        lines = [f"{what.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    # --- connections --------------------------------------------------------------------------------------------------

    def _taken(self) -> socket.socket | None:
        """Return a connection that waits and is still good, None if there is none."""
        while True:
            with self._lock:
                if not self._kept:
                    return None
                connection, since = self._kept.pop()
            if time.monotonic() - since < _KEPT_SECONDS and not _readable(connection):
                return connection
            _drop(connection)  # the server has closed it, or may just now

    def _keep(self, connection: socket.socket) -> None:
        with self._lock:
            if not self._closed and len(self._kept) < _MOST_KEPT:
                self._kept.append((connection, time.monotonic()))
                return
        _drop(connection)

    def _connected(self) -> socket.socket:
        connection = None
        with _as(httpx2.ConnectTimeout, httpx2.ConnectError):
            try:
                connection = socket.create_connection((self._host.strip("[]"), self._port), self._seconds)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_hostname=self._host.strip("[]"))
                return connection
            except BaseException:
                if connection is not None:
                    _drop(connection)
                raise


class _Answer:
    """An answer as it arrives, of bounded size; llhttp calls its methods."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._status = 0
        self._chunks: list[bytes] = []
        self._size = self._bare = 0  # bytes of the body; all bytes since the last of them
        self._begun = self._lasts = self._ends_with_connection = False
        self.complete = self.reusable = False

    def feed(self, data: bytes) -> None:
        """Take what has arrived; b"" says that the connection has ended.

        Raises:
            httpx2.RemoteProtocolError: no answer in HTTP.
            ProtocolError: too much of it.
        """
        if not data:
            if not self._ends_with_connection:
                raise httpx2.RemoteProtocolError("Server disconnected without a whole answer.")
            self.complete = True
            return
        self._bare += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, ProtocolError):  # what a callback raises comes wrapped
                raise error.__context__ from None
            raise httpx2.RemoteProtocolError("Expected an answer in HTTP/1.1") from None
        if self._bare > _MOST_HEAD_BYTES:
            raise httpx2.RemoteProtocolError("Expected shorter headers")

    def received(self) -> Received:
        return Received(self._status, self._headers, b"".join(self._chunks))

    def on_message_begin(self) -> None:
        if self.complete:  # bytes behind the answer, which nobody asked for
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._begun:  # what stands behind a body in chunks
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self._status = self._parser.get_status_code()
        if self._status < 200:
            return
        self._begun = True
        self._lasts = self._parser.should_keep_alive()
        check_encoding(self._headers)
        sized = "content-length" in self._headers or "chunked" in self._headers.get("transfer-encoding", "").lower()
        self._ends_with_connection = not sized

    def on_body(self, body: bytes) -> None:
        if self.complete:
            return
        self._bare = 0
        self._size += len(body)
        if self._size > self._max_bytes:
            raise too_large(self._max_bytes)
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._status < 200:  # "100 Continue" and the like: the answer is still to come
            self._headers = {}
        elif not self.complete:
            self.complete, self.reusable = True, self._lasts


def _write(connection: socket.socket, head: bytes, what: Send, sent: Sent) -> httpx2.TransportError | None:
    """Send a request. Returns the error if the server has hung up: it may have answered before."""
    content = memoryview(what.content or b"")
    try:
        with _as(httpx2.WriteTimeout, httpx2.WriteError):
            connection.sendall(b"".join([head, content[:PIECE_BYTES]]))
            if what.content is not None:
                sent(min(PIECE_BYTES, len(content)), len(content))
            for begin in range(PIECE_BYTES, len(content), PIECE_BYTES):
                connection.sendall(content[begin : begin + PIECE_BYTES])
                sent(min(begin + PIECE_BYTES, len(content)), len(content))
    except httpx2.WriteError as error:
        return error
    return None


def _read(connection: socket.socket, answer: _Answer, lost: httpx2.TransportError | None) -> None:
    try:
        with _as(httpx2.ReadTimeout, httpx2.ReadError):
            while not answer.complete:
                answer.feed(connection.recv(_READ_BYTES))
    except httpx2.TransportError as error:
        raise lost or error from None


@contextmanager
def _as(late: type[httpx2.TransportError], broken: type[httpx2.TransportError]) -> Generator[None]:
    """Turn the errors of sockets into those of httpx2, with the reason that TLS gives."""
    try:
        yield
    except TimeoutError:
        raise late("timed out") from None
    except (OSError, ValueError) as error:  # ValueError: a host name that is none
        raise broken(str(error)) from error


def _readable(connection: socket.socket) -> bool:
    """Return whether a connection that nobody uses has something to say: that it ends."""
    try:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True


def _drop(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.close()
