"""The broker of keys (`confide.tee.broker`) as an ASGI application.

    POST /v1/challenge          {"nonce": 64 hex digits, "expires_seconds": 60}
    POST /v1/release/KEY_ID     a bundle over that nonce -> the file's key, sealed to the key in the bundle's claims
    GET  /v2/health/live, /v2/health/ready

The event loop reads and writes; evidence is verified, and the audit written, on a bounded number of threads.

Guarantees:
    No refusal and no log line contains a byte of a body, a path or a header; a refusal of evidence names the check that
    failed. (The audit has more.)
    Bodies are bounded before they are read, one by one and together; callers by address, a /64 of IPv6 being one.
    Every answer of a broker that takes simulated evidence says so in `X-Confide-Protection`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

import msgspec

from confide.crypto.random import Randomness
from confide.errors import AttestationError, StoreError
from confide.serve.access import RateLimit
from confide.serve.limits import Bodies, Disconnected, Limits, busy
from confide.serve.observe import Observed, Observer
from confide.serve.protocol import Refusal
from confide.serve.work import place_of
from confide.tee.broker import NONCE_SECONDS, Broker
from confide.tee.evidence import MAX_BUNDLE_BYTES

_Event = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]

PROTECTION = "x-confide-protection"
UNPROTECTED = "none (simulated)"
PROTECTED = "hardware"

REQUESTS_PER_SECOND = 10.0
#: Two threads verify, a minute at most stands in line; a bundle is at most 1 MiB.
LIMITS = Limits(
    query_bytes=MAX_BUNDLE_BYTES,
    keys_bytes=MAX_BUNDLE_BYTES,
    reply_bytes=1 << 16,
    buffered_bytes=32 << 20,
    workers=2,
    waiting=64,
    connections=256,
    body_seconds=20.0,
    answer_seconds=60.0,
    reply_seconds=20.0,
    requests_per_second=REQUESTS_PER_SECOND,
)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class BrokerServer:
    """The ASGI application.

    Args:
        broker: what answers.
        rng: for the ids of requests.
        limits: `requests_per_second` is for each address.
        log: where one JSON line per request goes; None writes none.
    """

    certificates = False

    def __init__(self, broker: Broker, *, rng: Randomness, limits: Limits = LIMITS, log: TextIO | None = None) -> None:
        self.limits = limits
        self._broker = broker
        self._rng = rng
        self._observer = Observer(log, metrics=False)
        self._rate = RateLimit(limits.requests_per_second) if limits.requests_per_second else None
        self._bodies = Bodies(limits)
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="confide-broker")
        self._working = 0
        self._closing = False

    async def __call__(self, scope: _Event, receive: _Receive, send: _Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            self.close()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await self._handle(scope, receive, send)

    def close(self) -> None:
        """Take no more work; what has begun is finished."""
        self._closing = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _handle(self, scope: _Event, receive: _Receive, send: _Send) -> None:
        seen = Observed(self._rng.bytes(8).hex(), scope["method"], time.perf_counter())
        seen.protection = "simulated" if self._broker.allow_simulated else "hardware"
        try:
            answer = await self._respond(scope, receive, seen)
            seen.code = "ok"
        except Disconnected:
            return self._observer.finish(seen)
        except Exception as error:
            answer = self._refused(error, seen)
        seen.status, seen.reply_bytes = answer.status, len(answer.body)
        protection = UNPROTECTED if self._broker.allow_simulated else PROTECTED
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
            (b"cache-control", b"no-store"),
            (PROTECTION.encode(), protection.encode()),
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
        self._observer.finish(seen)

    def _refused(self, error: Exception, seen: Observed) -> _Answer:
        refusal = refusal_of(error)
        if refusal.status == 500:  # a bug: the server learns the request id, the log learns where
            seen.failure = place_of(error)
        seen.code = refusal.code
        headers: list[tuple[bytes, bytes]] = [(b"connection", b"close")]  # a body may not have been read
        if refusal.retry_after_seconds is not None:
            headers.append((b"retry-after", b"%d" % refusal.retry_after_seconds))
        if refusal.status == 405:
            headers.append((b"allow", b"POST" if seen.route in ("challenge", "release") else b"GET, HEAD"))
        return _Answer(refusal.status, refusal.body(seen.request_id), headers=tuple(headers))

    async def _respond(self, scope: _Event, receive: _Receive, seen: Observed) -> _Answer:
        route, key_id = _route(scope["path"])
        if not route:
            raise Refusal(404, "unknown_path", "Expected a path of a broker, /v1/...; see docs/broker.md")
        seen.route = route
        if scope["method"] not in (("POST",) if route in ("challenge", "release") else ("GET", "HEAD")):
            raise Refusal(405, "method", "Expected another method; the header Allow names it")
        if route in ("live", "ready"):
            return self._health(route)
        address = str((scope.get("client") or ("",))[0])
        if self._rate is not None:
            self._rate.take(network_of(address))
        if route == "challenge":
            self._bodies.release(len(await self._body(scope, receive, 0)))
            nonce = self._broker.challenge().hex()
            return _Answer(200, msgspec.json.encode({"nonce": nonce, "expires_seconds": NONCE_SECONDS}))
        return await self._release(scope, receive, seen, key_id, address)

    def _health(self, route: str) -> _Answer:
        if route == "ready" and self._closing:
            raise busy("the broker is stopping")
        return _Answer(200, msgspec.json.encode({"live": True} | ({"ready": True} if route == "ready" else {})))

    async def _release(self, scope: _Event, receive: _Receive, seen: Observed, key_id: str, address: str) -> _Answer:
        body = await self._body(scope, receive, self.limits.query_bytes)
        seen.request_bytes = len(body)
        job = partial(self._broker.release, key_id, body, address=address)
        sealed = await self._work(job, len(body))
        return _Answer(200, sealed, b"application/octet-stream")

    async def _body(self, scope: _Event, receive: _Receive, max_bytes: int) -> bytes:
        """Return the body; its bytes are given back to `Bodies` later."""
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Refusal(415, "encoding", "Expected a body without Content-Encoding; send it uncompressed")
        declared = headers.get(b"content-length")
        if declared is not None and not re.fullmatch(rb"[0-9]{1,12}", declared):
            raise Refusal(400, "malformed", "Expected the header content-length to be a number of bytes")
        try:
            return await self._bodies.read(
                receive, declared_bytes=None if declared is None else int(declared), max_bytes=max_bytes
            )
        except Refusal as refusal:
            if refusal.code != "too_large":
                raise
            raise Refusal(413, "too_large", f"Expected a body of at most {max_bytes} bytes") from None

    async def _work(self, job: Callable[[], bytes], held_bytes: int) -> bytes:
        if self._closing or self._working >= self.limits.waiting:
            self._bodies.release(held_bytes)
            raise busy("the broker is stopping" if self._closing else "its queue is full")
        self._working += 1
        deadline = time.monotonic() + self.limits.answer_seconds
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, _in_time, job, deadline)
        except asyncio.CancelledError:
            if not self._closing:
                raise
            raise busy("the broker is stopping") from None
        finally:
            self._working -= 1
            self._bodies.release(held_bytes)


def _in_time(job: Callable[[], bytes], deadline: float) -> bytes:
    if time.monotonic() >= deadline:
        raise busy("its turn came too late")
    return job()


def refusal_of(error: Exception) -> Refusal:
    """Return what a server is told: of evidence the name of the check that failed, of everything else what to mend."""
    match error:
        case Refusal():
            return error
        case AttestationError():
            text = f"Expected evidence that the broker's policy accepts; what fails is: {error.check}"
            return Refusal(403, "refused", text)
        case StoreError():
            return Refusal(503, "unavailable", "Expected a broker whose audit and keys can be written and read")
        case _:
            return Refusal(500, "internal", "Something went wrong here; tell the operator the request_id")


def network_of(address: str) -> str:
    """Return whom the rate limit counts: an address, or 64 bits of IPv6, of which one host may have all."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def _route(path: str) -> tuple[str, str]:
    """Return the endpoint's name and the key's id; "" where there is none."""
    match path.split("/"):
        case ["", "v1", "challenge"]:
            return "challenge", ""
        case ["", "v1", "release", key_id]:
            return "release", key_id
        case ["", "v2", "health", ("live" | "ready") as which]:
            return which, ""
        case _:
            return "", ""
