"""How a connection is opened: directly, or through an HTTP proxy (CONNECT, RFC 9110 section 9.3.6)."""

from __future__ import annotations

import asyncio
import base64
import os
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote, urlsplit

from confide.errors import ProtocolError, UsageError
from confide.net.connection import Connection

_LARGEST_HEAD_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; `authorization` is what it is told about the user, "" for nothing."""

    host: str
    port: int
    authorization: str = ""

    @staticmethod
    def parse(url: str) -> Proxy:
        """Return the proxy at `url`, "http://[user:password@]host[:port]"; a host alone is taken for one.

        Raises:
            UsageError: another scheme, or no host. The text does not contain the URL, which may hold a password.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host, port, parts = None, 0, urlsplit("")
        if parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query:
            raise UsageError("Expected a proxy as http://host:port; others are not spoken")
        authorization = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        return Proxy(host, port, authorization)

    def __repr__(self) -> str:  # without the password
        return f"Proxy({self.host!r}, {self.port})"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a coordinator listens.

    Args:
        url: as it was given.
        host, port: from it.
    """

    url: str
    host: str
    port: int

    @staticmethod
    def parse(url: str) -> Address:
        """Return the address in "wss://host[:port]".

        Raises:
            UsageError: not a URL of that kind.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 443
        except ValueError:
            parts, host, port = urlsplit(""), None, 0
        if parts.scheme != "wss" or not host or parts.username or parts.query or parts.fragment:
            raise UsageError(f"Expected the coordinator's address as wss://host:port; got {url[:200]!r}")
        return Address(url, host, port)


async def dial(connection: Connection, address: Address, proxy: Proxy | None) -> None:
    """Give `connection` its socket.

    Raises:
        OSError: nobody answers.
        ProtocolError: the proxy does not let it pass.
    """
    loop = asyncio.get_running_loop()
    if proxy is None:
        await loop.create_connection(lambda: connection, address.host, address.port)
        return
    opened: asyncio.Future[None] = loop.create_future()
    transport, _ = await loop.create_connection(lambda: _Tunnel(address, proxy, opened), proxy.host, proxy.port)
    try:
        await opened
    except BaseException:
        transport.abort()
        raise
    transport.set_protocol(connection)
    connection.connection_made(transport)
    transport.resume_reading()


class _Tunnel(asyncio.Protocol):
    """Asks a proxy to connect; the proxy says nothing after its answer until we speak."""

    def __init__(self, address: Address, proxy: Proxy, opened: asyncio.Future[None]) -> None:
        self._address, self._proxy, self._opened = address, proxy, opened
        self._head = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        place = f"{host}:{self._address.port}"
        lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
        if self._proxy.authorization:
            lines.append(f"Proxy-Authorization: {self._proxy.authorization}")
        self._transport.write("\r\n".join([*lines, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if self._opened.done() or (not end and len(self._head) <= _LARGEST_HEAD_BYTES):
            return
        status = head.split(b"\r\n", 1)[0].split(b" ")
        number = status[1].decode(errors="replace") if len(status) > 1 and status[0].startswith(b"HTTP/1.") else ""
        if end and not rest and len(number) == 3 and number.startswith("2"):
            assert self._transport is not None
            self._transport.pause_reading()  # what comes next is for the connection
            self._opened.set_result(None)
        else:
            answer = f"answered {number}" if number.isdigit() else "does not speak HTTP"
            self._fail(f"the proxy {answer}; it lets nothing pass to the coordinator")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the proxy hung up")

    def _fail(self, text: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(ProtocolError(text))


def why(error: OSError | ProtocolError, place: str) -> str:
    """Return one line about a connection that did not come about."""
    if isinstance(error, ProtocolError):
        return str(error)
    word = (
        os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    )  # asyncio's repeats the place
    return f"nobody answers at {place} ({word or type(error).__name__})"
