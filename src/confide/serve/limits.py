"""How much of a server one stranger may take: sizes, counts and seconds, each counted before it is allocated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from confide.errors import UsageError
from confide.serve.protocol import Refusal
from confide.store.entries import LARGEST_VALUE_BYTES

_LARGEST_KEYS_BYTES = LARGEST_VALUE_BYTES - 1024  # a store keeps its own notes beside a value


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one server.

    Args:
        query_bytes: body of one question; bounds the memory of a plain batch, too.
        keys_bytes: body of one upload of public keys.
        json_bytes: JSON part of a question, whose numbers take tens of times its size in memory.
        reply_bytes: one reply of a model; clients are told to send no more rows than that takes.
        buffered_bytes: bodies of all requests and replies together that are in memory at one time.
        batch_rows: rows of one question under every backend; clients are told.
        keys: uploads that the key store holds; the oldest leave first and their owners upload again.
        key_store_bytes: bytes that the key store holds.
        key_lifetime_seconds: age at which uploaded keys are forgotten.
        loaded_keys_bytes: memory for parsed keys in each worker process; those used longest ago are parsed again.
        workers: predictions at one time: worker processes, or threads where there are none.
        waiting: requests that wait for a worker or are at one, before new ones are told to come back.
        connections: open connections.
        header_bytes: request line and headers of one request; as much may stand behind its body or frame its chunks.
        header_seconds, body_seconds: time for a request's headers and for its body to arrive.
        start_seconds: time for a worker process to prepare the models.
        answer_seconds: time for a worker's turn and its work together.
        reply_seconds: time for a client to take its reply; after that the connection is cut.
        idle_seconds: time that a connection may stay open between two requests.
        drain_seconds: time that requests get to finish when the server is stopped.
        requests_per_second: for each caller (the holder of an API key, the subject of a client certificate, else the
            address) and server process; None does not limit.
        query_quota: rows answered for each caller and model, ever; None does not count. About `features + 1` answers
            determine a linear model under every technique, so a quota below that is what keeps such a model private.
        total_quota: rows answered for each caller over all models, ever; None does not count.
    """

    query_bytes: int = 16 << 20
    keys_bytes: int = 64 << 20
    json_bytes: int = 1 << 20
    reply_bytes: int = 32 << 20
    buffered_bytes: int = 256 << 20
    batch_rows: int = 4096
    keys: int = 1000
    key_store_bytes: int = 4 << 30
    key_lifetime_seconds: float = 7 * 86400.0
    loaded_keys_bytes: int = 512 << 20
    workers: int = 2
    waiting: int = 64
    connections: int = 512
    header_bytes: int = 32 << 10
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    start_seconds: float = 600.0
    answer_seconds: float = 120.0
    reply_seconds: float = 60.0
    idle_seconds: float = 30.0
    drain_seconds: float = 30.0
    requests_per_second: float | None = None
    query_quota: int | None = None
    total_quota: int | None = None

    @property
    def counts(self) -> bool:
        """Return True if rows are counted, which needs callers who are known."""
        return self.query_quota is not None or self.total_quota is not None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise UsageError(f"Expected {field.name}={value} to be more than 0")
        if self.buffered_bytes < max(self.query_bytes, self.keys_bytes, self.reply_bytes):
            raise UsageError(
                f"Expected buffered_bytes={self.buffered_bytes} to hold one body; raise it, or lower query_bytes, "
                "keys_bytes and reply_bytes"
            )
        if self.keys_bytes > _LARGEST_KEYS_BYTES:
            raise UsageError(
                f"Expected keys_bytes={self.keys_bytes} of at most {_LARGEST_KEYS_BYTES}, which every store takes"
            )
        if self.key_store_bytes < 2 * self.keys_bytes:
            raise UsageError(
                f"Expected key_store_bytes={self.key_store_bytes} to hold two uploads; raise it or lower keys_bytes"
            )


class Disconnected(Exception):
    """The client went away before its request was complete; there is nobody to answer."""


class Bodies:
    """Reads request bodies: each bounded by size and time, all together and with the replies bounded by size.

    Chunks are counted as they arrive, so neither a missing nor a lying Content-Length lets more in.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held_bytes = 0

    async def read(
        self, receive: Callable[[], Awaitable[Mapping[str, Any]]], *, declared_bytes: int | None, max_bytes: int
    ) -> bytes:
        """Return the body; the caller gives its bytes back with `release`.

        Raises:
            Refusal: 413 too large, 408 too slow, 503 no memory left for bodies.
            Disconnected: the client went away.
        """
        if declared_bytes is not None and declared_bytes > max_bytes:
            raise _too_large(max_bytes)
        chunks: list[bytes] = []
        taken = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = True
                while more:
                    event = await receive()
                    if event["type"] != "http.request":
                        raise Disconnected
                    chunk: bytes = event.get("body", b"")
                    more = event.get("more_body", False)
                    if taken + len(chunk) > max_bytes:
                        raise _too_large(max_bytes)
                    self.hold(len(chunk))
                    taken += len(chunk)
                    chunks.append(chunk)
        except BaseException as error:
            self.held_bytes -= taken
            if isinstance(error, TimeoutError):
                seconds = self._limits.body_seconds
                raise Refusal(
                    408, "too_slow", f"Expected the whole body within {seconds:g} s; send it faster"
                ) from None
            raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def hold(self, size_bytes: int) -> None:
        """Count bytes that stay in memory until `release`. Raises Refusal (503) if there is no room for them."""
        if self.held_bytes + size_bytes > self._limits.buffered_bytes:
            raise busy("the server holds as many bodies as it may")
        self.held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Give back bytes that are no longer needed."""
        self.held_bytes -= size_bytes


def busy(reason: str) -> Refusal:
    """Return the refusal of a server that has too much to do just now."""
    return Refusal(503, "busy", f"Expected less to do: {reason}; ask again later", retry_after_seconds=1)


def late(reason: str) -> Refusal:
    """Return the refusal of a question that the server may have counted; a client does not repeat it by itself."""
    return Refusal(503, "late", f"Expected less to do: {reason}; the question may count", retry_after_seconds=1)


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, "too_large", f"Expected a body of at most {max_bytes} bytes; send fewer rows at a time")
