"""HTTP as both clients do it: where to connect, bodies that leave in pieces, replies of bounded size."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2

from confide.errors import ProtocolError, UsageError
from confide.net.http import is_loopback
from confide.serve.effects import Received, Send

PIECE_BYTES = 1 << 18  # small enough that progress is seen on a slow line

#: Called with (done, total) while a body leaves.
Sent = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and how it is spoken to.

    Args:
        url: "https://HOST[:PORT]"; plain "http://" only to this machine.
        api_key: if the server asks for one.
        ca_file: PEM file with the authority that signed the server's certificate; the system's by default.
        insecure_plain_http: True allows "http://" to another machine.
        timeout_seconds: for each request.
        certificate, private_key: PEM files by which this client says who it is; both or none.
    """

    url: str
    api_key: str | None
    ca_file: str | Path | None
    insecure_plain_http: bool
    timeout_seconds: float
    certificate: str | Path | None = None
    private_key: str | Path | None = None

    def settings(self) -> dict[str, Any]:
        """Return the arguments of `httpx2.Client` and `httpx2.AsyncClient`. Raises UsageError."""
        try:
            parsed = httpx2.URL(self.url)
        except httpx2.InvalidURL:
            raise UsageError("Expected url as https://HOST[:PORT]") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query:
            raise UsageError("Expected url as https://HOST[:PORT], without user, password and query")
        if parsed.scheme == "http" and not is_loopback(parsed.host) and not self.insecure_plain_http:
            raise UsageError(f"Expected https:// for host={parsed.host}; insist on http:// with insecure_plain_http")
        headers = {"accept-encoding": "identity", "user-agent": "confide"}
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        verify: ssl.SSLContext | bool = parsed.scheme == "https"  # the authorities are slow to load if none is asked
        if self.ca_file is not None or self.certificate is not None or self.private_key is not None:
            verify = self._context()
        return {
            "base_url": self.url,
            "headers": headers,
            "verify": verify,
            "timeout": self.timeout_seconds,
            "trust_env": False,
        }

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError):
            name = Path(self.ca_file or "").name
            raise UsageError(f"Expected ca_file={name} to be a PEM file with certificates") from None
        if self.certificate is None and self.private_key is None:
            return context
        if self.certificate is None or self.private_key is None:
            raise UsageError("Expected certificate and private_key together; name both files, or none")
        try:
            context.load_cert_chain(self.certificate, self.private_key, password="")  # never asks at the terminal
        except (OSError, ssl.SSLError):
            raise UsageError(
                "Expected certificate and private_key as PEM files that belong together, the key without a password"
            ) from None
        return context


class Carrier(Protocol):
    """What carries requests to one server."""

    def send(self, what: Send, sent: Sent) -> Received:
        """Return the answer. Raises httpx2.TransportError, and ProtocolError for one that is too large."""
        ...

    def close(self) -> None:
        """Close its connections."""
        ...


class Through:
    """Carries requests through a transport of httpx2."""

    def __init__(self, address: Address, transport: httpx2.BaseTransport) -> None:
        self._http = httpx2.Client(**address.settings(), transport=transport)

    def send(self, what: Send, sent: Sent) -> Received:
        content = None if what.content is None else _pieces(what, what.content, sent)
        with self._http.stream(what.method, what.path, content=content, headers=_headers(what)) as response:
            body = _Body(response, what.max_bytes)
            for chunk in response.iter_bytes():
                body.add(chunk)
            return body.received(response)

    def close(self) -> None:
        self._http.close()


async def send_async(http: httpx2.AsyncClient, what: Send, sent: Sent) -> Received:
    """Do the same on an event loop."""
    content = None if what.content is None else _async_pieces(what, what.content, sent)
    async with http.stream(what.method, what.path, content=content, headers=_headers(what)) as response:
        body = _Body(response, what.max_bytes)
        async for chunk in response.aiter_bytes():
            body.add(chunk)
        return body.received(response)


def _headers(what: Send) -> Mapping[str, str]:
    """Return the headers with the size of the body: one that comes in pieces has none by itself."""
    return what.headers if what.content is None else {**what.headers, "content-length": str(len(what.content))}


def _pieces(what: Send, content: bytes, sent: Sent) -> Iterator[bytes]:
    yield from _cut(content, sent)
    if what.meanwhile is not None:
        what.meanwhile()


async def _async_pieces(what: Send, content: bytes, sent: Sent) -> AsyncIterator[bytes]:
    for piece in _cut(content, sent):
        yield piece
    if what.meanwhile is not None:
        await asyncio.to_thread(what.meanwhile)


def _cut(content: bytes, sent: Sent) -> Iterator[bytes]:
    view = memoryview(content)
    for begin in range(0, len(content), PIECE_BYTES):
        yield bytes(view[begin : begin + PIECE_BYTES])
        sent(min(begin + PIECE_BYTES, len(content)), len(content))


def check_encoding(headers: Mapping[str, str]) -> None:
    """Raise ProtocolError for an answer that is compressed, which no request asks for."""
    if headers.get("content-encoding", "identity") != "identity":
        raise ProtocolError("Expected a reply that is not compressed, as the request says")


def too_large(max_bytes: int) -> ProtocolError:
    """Return the error of an answer beyond its bound."""
    return ProtocolError(f"Expected a reply of at most {max_bytes} bytes")


class _Body:
    """A reply as it arrives, of bounded size."""

    def __init__(self, response: httpx2.Response, max_bytes: int) -> None:
        check_encoding(response.headers)
        self._max_bytes = max_bytes
        self._size = 0
        self._chunks: list[bytes] = []

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise too_large(self._max_bytes)
        self._chunks.append(chunk)

    def received(self, response: httpx2.Response) -> Received:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Received(response.status_code, headers, b"".join(self._chunks))
