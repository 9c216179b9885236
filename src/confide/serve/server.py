"""The server: an ASGI application that speaks the Open Inference Protocol v2, and confide's two endpoints beside it.

    GET  /v2                                        server metadata, with the names of the models
    GET  /v2/health/live, /v2/health/ready          for orchestrators; never ask for an API key
    GET  /v2/models/M[/versions/B]                  model metadata: tensors, guarantee, privacy label
    GET  /v2/models/M[/versions/B]/ready
    POST /v2/models/M[/versions/B]/infer            a prediction
    GET  /v2/models/M[/versions/B]/kit              what a client needs to ask, once
    POST /v2/models/M[/versions/B]/keys             public keys, once; the reply names their id
    GET  /v2/models/M[/versions/B]/keys/ID          200 if the keys are here, else 404
    DELETE of the same                              forgets them
    GET  /metrics                                   Prometheus, if asked for

M is a model, B one of its backends (the protocol's version of a model); without B the model's first backend answers.
The event loop reads and writes; everything else runs on a bounded pool of threads, which hand predictions to as many
processes (`pool`) or make them (`work.Local`, for tests and simulation), so that health checks go through.

Guarantees:
    No refusal and no log line contains a byte of a request body, a path or a header. An answer repeats the request's id
    (at most 128 characters), as the protocol has it, to whoever sent it.
    A body is counted from its first byte until nothing works on it any more, though its client may have been refused by
    then; a reply until it is taken. More than their bound is never held.
    What has not begun `answer_seconds` after its body was there is neither done nor charged.
    A client that does not take its reply in time is cut off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any, TextIO, TypeVar

import msgspec

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import ProtocolError, UsageError, nearest
from confide.net.oip import HEADER_LENGTH
from confide.serve.access import ApiKeys, RateLimit, certificate_holder
from confide.serve.keys import CountingStore, KeyStore, Uploads, key_store, unknown_key, usage_store
from confide.serve.limits import Bodies, Disconnected, Limits, busy, late
from confide.serve.observe import Observed, Observer, Standing
from confide.serve.protocol import Refusal
from confide.serve.routes import route
from confide.serve.served import About, Answered, Model
from confide.serve.work import Local, Work, place_of, refusal_of

_Event = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]
_Result = TypeVar("_Result")

_JSON = b"application/json"
_BINARY = b"application/octet-stream"
_PIECE_BYTES = 1 << 16  # a reply leaves in pieces: what lies in a transport is counted nowhere
_PROTECTION = b"x-confide-protection"
_PROTECTIONS: Mapping[str, bytes] = {"hardware": b"hardware", "simulated": b"none (simulated)"}
_MOST_EVIDENCE, _MOST_NONCE_BYTES = 16, 4096  # requests that wait for evidence, and the size of one
_OPEN_ROUTES = frozenset({"live", "ready"})
_MOST_NAMED = 20  # models in a refusal


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    body: bytes
    content_type: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True)
class _Call:
    """One request on its way through the server."""

    scope: _Event
    receive: _Receive
    seen: Observed
    headers: dict[bytes, bytes]
    argument: str = ""  # the last part of the path, where the endpoint takes one
    complete: bool = False  # the body was read to its end
    held_bytes: int = 0  # of the reply

    def header(self, name: str) -> str | None:
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    def integer(self, name: str) -> int | None:
        """Return a header's value as a number, None if it is absent. Raises ProtocolError if it is no number."""
        value = self.header(name)
        if value is not None and not (value.isascii() and value.isdigit() and len(value) <= 12):
            raise ProtocolError(f"Expected the header {name} to be a number of bytes")
        return None if value is None else int(value)


class Server:
    """The ASGI application; `create_app` makes one.

    Args:
        work: what prepares the models and answers; `Local`, or a `Pool` of processes.
        keys: the store of clients' public keys, which `work` uses too.
        limits: sizes, counts and times.
        api_keys: of the callers; None asks for none.
        certificates: True takes the subject of a client certificate for the caller and refuses who has none.
        rng: for request ids.
        observer: of requests.

    `pins` has the SHA-256 of each kit by (model, backend).
    """

    def __init__(
        self,
        work: Work,
        *,
        keys: KeyStore,
        limits: Limits,
        api_keys: ApiKeys | None,
        certificates: bool,
        rng: Randomness,
        observer: Observer,
    ) -> None:
        self.limits = limits
        self.certificates = certificates
        self.abouts = work.abouts
        self._abouts: dict[str, dict[str, About]] = {}
        self._uploads: dict[tuple[str, str], Uploads] = {}
        for about in work.abouts:
            self._abouts.setdefault(about.model, {})[about.backend] = about
            self._uploads[about.model, about.backend] = Uploads(
                keys, about.model, about.backend, max_bytes=limits.key_store_bytes
            )
        self.pins = {(about.model, about.backend): about.pin for about in work.abouts}
        self._done = work
        self._keys = keys
        self._api_keys = api_keys
        self._rate = RateLimit(limits.requests_per_second) if limits.requests_per_second else None
        self._rng = rng
        self._observer = observer
        self._bodies = Bodies(limits)
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="confide")
        self._attesting = ThreadPoolExecutor(1, thread_name_prefix="confide evidence")  # hardware signs one at a time
        self._working = self._evidence = 0
        self._closing = False
        self._routes: dict[str, dict[str, Callable[[_Call, About], Awaitable[_Response]]]] = {
            "model": {"GET": self._model},
            "model_ready": {"GET": self._model_ready},
            "infer": {"POST": self._infer},
            "kit": {"GET": self._kit},
            "keys": {"POST": self._upload},
            "key": {"GET": self._known, "DELETE": self._delete},
        }
        self._plain_routes: dict[str, Callable[[], Awaitable[_Response]]] = {
            "server": self._metadata,
            "live": self._live,
            "ready": self._ready,
            "metrics": self._metrics,
        }

    async def __call__(self, scope: _Event, receive: _Receive, send: _Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._handle(scope, receive, send)

    def close(self) -> None:
        """Stop the work; requests that wait are dropped."""
        self._closing = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._attesting.shutdown(wait=False, cancel_futures=True)
        self._done.close()

    async def _lifespan(self, receive: _Receive, send: _Send) -> None:
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _handle(self, scope: _Event, receive: _Receive, send: _Send) -> None:
        seen = Observed(self._rng.bytes(8).hex(), scope["method"], time.perf_counter())
        call = _Call(scope, receive, seen, dict(scope["headers"]))
        try:
            response = await self._respond(call)
            seen.code = "ok"
        except Disconnected:
            return self._observer.finish(seen)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status == 500:  # a bug: the client learns the request id, the log learns where
                seen.failure = place_of(error)
            response = self._refuse(call, refusal)
        if seen.protection:
            response = replace(response, headers=(*response.headers, (_PROTECTION, _PROTECTIONS[seen.protection])))
        seen.status, seen.reply_bytes = response.status, len(response.body)
        try:
            async with asyncio.timeout(self.limits.reply_seconds):
                await self._reply(response, send)
        except TimeoutError:  # what is left is not sent, and so the connection ends
            seen.code = "unread"
        finally:
            self._bodies.release(call.held_bytes)
        self._observer.finish(seen)

    async def _reply(self, response: _Response, send: _Send) -> None:
        body = response.body
        headers = [
            (b"content-type", response.content_type),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            *response.headers,
        ]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        for begin in range(0, max(1, len(body)), _PIECE_BYTES):
            end = begin + _PIECE_BYTES
            await send({"type": "http.response.body", "body": body[begin:end], "more_body": end < len(body)})

    def _refuse(self, call: _Call, refusal: Refusal) -> _Response:
        call.seen.code = refusal.code
        headers: list[tuple[bytes, bytes]] = []
        if refusal.retry_after_seconds is not None:
            headers.append((b"retry-after", b"%d" % refusal.retry_after_seconds))
        if refusal.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if refusal.status == 405:
            allowed = self._routes.get(call.seen.route, {"GET": None})
            headers.append((b"allow", ", ".join([*allowed, *(["HEAD"] if "GET" in allowed else [])]).encode()))
        if not call.complete and call.scope["method"] not in ("GET", "HEAD"):
            headers.append((b"connection", b"close"))  # the rest of the body is not worth receiving
        return _Response(refusal.status, refusal.body(call.seen.request_id), _JSON, tuple(headers))

    # --- routing ------------------------------------------------------------------------------------------------------

    async def _respond(self, call: _Call) -> _Response:
        endpoint, name, version, call.argument = route(call.scope["path"])
        method = "GET" if call.scope["method"] == "HEAD" else call.scope["method"]
        if endpoint in self._plain_routes or endpoint in self._routes:
            call.seen.route = endpoint
        else:
            raise Refusal(
                404, "unknown_path", "Expected a path of the Open Inference Protocol, /v2/...; see docs/serve.md"
            )
        if method not in self._routes.get(endpoint, {"GET"}):
            raise Refusal(405, "method", "Expected another method; the header Allow names it")
        if endpoint not in _OPEN_ROUTES:
            self._admit(call)
        if endpoint in self._plain_routes:
            return await self._plain_routes[endpoint]()
        about = self._find(name, version)
        call.seen.model, call.seen.backend, call.seen.protection = about.model, about.backend, about.protection
        return await self._routes[endpoint][method](call, about)

    def _admit(self, call: _Call) -> None:
        if self._api_keys:
            call.seen.caller = self._api_keys.holder(call.header("authorization"))
        elif self.certificates:
            call.seen.caller = certificate_holder(call.scope)
        if self._rate:
            address = call.scope.get("client") or ("",)
            self._rate.take(call.seen.caller or f"address {address[0]}")

    def _find(self, name: str, version: str) -> About:
        backends = self._abouts.get(name)
        if backends is None:
            there = ", ".join(list(self._abouts)[:_MOST_NAMED]) + (", ..." if len(self._abouts) > _MOST_NAMED else "")
            meant = nearest(name, self._abouts)
            raise Refusal(404, "unknown_model", f"Expected a model that is served here{meant}: {there}")
        if version and version not in backends:
            known = ", ".join(backends)
            raise Refusal(404, "unknown_version", f"Expected a version (backend) of this model: {known}")
        return backends[version] if version else next(iter(backends.values()))

    # --- endpoints ----------------------------------------------------------------------------------------------------

    async def _metadata(self) -> _Response:
        extensions = ["binary_tensor_data", "confide_kit", "confide_keys"]
        return _json({"name": "confide", "version": _version(), "extensions": extensions, "models": list(self._abouts)})

    async def _live(self) -> _Response:
        return _json({"live": True})

    async def _ready(self) -> _Response:
        if reason := self._idle_because():
            raise busy(reason)
        return _json({"live": True, "ready": True})

    async def _metrics(self) -> _Response:
        if not self._observer.counts:
            raise Refusal(404, "unknown_path", "Expected a server with metrics; start it with metrics on")
        stored = await asyncio.to_thread(self._keys.stored_bytes)  # not behind the requests that wait
        text = self._observer.exposition(Standing(self._working, stored, self._done.figures()))
        return _Response(200, text, b"text/plain; version=0.0.4; charset=utf-8")

    async def _model(self, call: _Call, about: About) -> _Response:
        return _Response(200, about.metadata)

    async def _model_ready(self, call: _Call, about: About) -> _Response:
        return _json({"name": about.model, "ready": not self._idle_because()})

    def _idle_because(self) -> str:
        """Return why nothing can be answered now, "" if it can."""
        figures = self._done.figures()
        if self._closing:
            return "the server is stopping"
        return "no worker process is alive" if figures.workers and not figures.alive else ""

    async def _kit(self, call: _Call, about: About) -> _Response:
        return _Response(200, about.client_kit, b"application/msgpack")

    async def _known(self, call: _Call, about: About) -> _Response:
        uploads = self._uploads[about.model, about.backend]
        if not await self._work(lambda _: uploads.knows(call.argument)):
            raise unknown_key("upload the keys")
        return _json({"known": True})

    async def _delete(self, call: _Call, about: About) -> _Response:
        uploads = self._uploads[about.model, about.backend]
        await self._work(lambda _: uploads.delete(call.argument, call.seen.caller))
        return _json({"deleted": True})

    async def _upload(self, call: _Call, about: About) -> _Response:
        job = partial(self._register, about, call.seen.caller)
        if not about.protection:
            return await self._with_body(call, self.limits.keys_bytes, job)
        if self._evidence >= _MOST_EVIDENCE:  # who asks for evidence keeps nobody from an answer
            raise busy("many ask for evidence")
        self._evidence += 1
        try:
            return await self._with_body(call, _MOST_NONCE_BYTES, job, partial(self._attested, about, call.seen.caller))
        finally:
            self._evidence -= 1

    async def _attested(self, about: About, caller: str, body: bytes, deadline: float) -> _Response:
        job = partial(self._register, about, caller, body)
        return await asyncio.get_running_loop().run_in_executor(self._attesting, _in_time, job, deadline)

    async def _infer(self, call: _Call, about: About) -> _Response:
        length, caller = call.integer(HEADER_LENGTH), call.seen.caller

        async def soon(body: bytes, deadline: float) -> _Response | None:
            answered = await self._done.infer_soon(about, body, length, caller, deadline=deadline)
            return None if answered is None else _prediction(answered)

        job = partial(self._predict, about, length, caller)
        return await self._with_body(call, self.limits.query_bytes, job, soon)

    def _register(self, about: About, caller: str, body: bytes, deadline: float) -> _Response:
        answered = self._done.register(about, body, caller, deadline=deadline)
        return _Response(200, answered.body, about.setup_type.encode(), (_timing(answered.seconds),))

    def _predict(self, about: About, length: int | None, caller: str, body: bytes, deadline: float) -> _Response:
        return _prediction(self._done.infer(about, body, length, caller, deadline=deadline))

    # --- work ---------------------------------------------------------------------------------------------------------

    async def _with_body(
        self,
        call: _Call,
        max_bytes: int,
        job: Callable[[bytes, float], _Response],
        soon: Callable[[bytes, float], Awaitable[_Response | None]] | None = None,
    ) -> _Response:
        """Read the body, hand it to a worker, and count the reply's memory."""
        if call.header("content-encoding") not in (None, "identity"):
            raise Refusal(415, "encoding", "Expected a body without Content-Encoding; send it uncompressed")
        declared = call.integer("content-length")
        body = await self._bodies.read(call.receive, declared_bytes=declared, max_bytes=max_bytes)
        call.complete = True
        call.seen.request_bytes = len(body)
        early = None if soon is None else partial(soon, body)
        response = await self._work(partial(job, body), early, body_bytes=len(body))
        try:
            self._bodies.hold(len(response.body))
        except Refusal:
            raise late("the server holds as many replies as it may") from None
        call.held_bytes = len(response.body)
        return response

    async def _work(
        self,
        job: Callable[[float], _Result],
        soon: Callable[[float], Awaitable[_Result | None]] | None = None,
        *,
        body_bytes: int = 0,
    ) -> _Result:
        """Return what `job` does on a thread, or `soon` on the event loop where that can.

        Both are told the deadline of the turn and the work together. `body_bytes` that were held are given back once
        neither can read them any more, which is after the deadline where a thread is busy with them.
        """
        if self._closing or self._working >= self.limits.waiting:
            self._bodies.release(body_bytes)
            raise busy("the server is stopping" if self._closing else "its queue is full")
        self._working += 1
        deadline = time.monotonic() + self.limits.answer_seconds
        future = asyncio.ensure_future(self._done_somewhere(job, soon, deadline))
        future.add_done_callback(partial(self._worked, body_bytes))  # not here: after a timeout it still goes on
        timeout = asyncio.timeout(self.limits.answer_seconds)
        try:
            async with timeout:
                return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.cancelled():
                raise  # the request's own
            raise busy("the server is stopping") from None
        except TimeoutError:
            if not timeout.expired():
                raise  # the job's own
            raise late(f"the answer took longer than {self.limits.answer_seconds:g} s") from None

    async def _done_somewhere(
        self,
        job: Callable[[float], _Result],
        soon: Callable[[float], Awaitable[_Result | None]] | None,
        deadline: float,
    ) -> _Result:
        found = await soon(deadline) if soon is not None else None
        if found is not None:
            return found
        return await asyncio.get_running_loop().run_in_executor(self._pool, _in_time, job, deadline)

    def _worked(self, body_bytes: int, future: asyncio.Future[Any]) -> None:
        self._working -= 1
        self._bodies.release(body_bytes)
        if not future.cancelled():
            future.exception()  # seen, also where nobody waits any more


def _in_time(job: Callable[[float], _Result], deadline: float) -> _Result:
    """Do the job, unless its turn comes when nobody waits for it any more."""
    if time.monotonic() >= deadline:
        raise busy("its turn came too late")
    return job(deadline)


def create_app(
    models: Sequence[Model],
    *,
    store: KeyStore | None = None,
    usage: CountingStore | None = None,
    limits: Limits | None = None,
    api_keys: Mapping[str, str] | None = None,
    certificates: bool = False,
    rng: Randomness | None = None,
    log: TextIO | None = None,
    metrics: bool = False,
) -> Server:
    """Prepare `models` and return the ASGI application that serves them, all in this process.

    Args:
        models: at least one; their names differ.
        store: where clients' public keys are kept (`key_store`); in memory by default.
        usage: where the counts of the query quota are kept (`usage_store`); in memory by default.
        limits: sizes, counts and times; `workers` is a number of threads here.
        api_keys: hex SHA-256 of each API key by its holder (`hash_api_key`); None lets everybody ask.
        certificates: True takes the subject of the client's certificate for the caller (`serve(client_ca=...)`), unless
            there are API keys, which then name the caller.
        rng: for the backends' secrets and the request ids; the operating system's by default.
        log: where one JSON line per request goes; None writes none.
        metrics: True serves /metrics.

    Raises:
        ModelError: a model that its backend cannot run, with every problem and its replacement.
        UsageError: settings that do not fit each other.
        MissingExtra: metrics without prometheus-client.
    """
    limits, rng = limits or Limits(), rng or SystemRandomness()
    check_callers(limits, api_keys, certificates)
    store = key_store(None, limits) if store is None else store
    usage = usage_store(None) if usage is None else usage
    work = Local(models, store=store, usage=usage, limits=limits, rng=rng)
    return Server(
        work,
        keys=store,
        limits=limits,
        api_keys=ApiKeys(api_keys) if api_keys else None,
        certificates=certificates,
        rng=rng,
        observer=Observer(log, metrics=metrics),
    )


def check_callers(limits: Limits, api_keys: Mapping[str, str] | None, certificates: bool) -> None:
    """Raise UsageError for a quota without callers to count for."""
    if limits.counts and not api_keys and not certificates:
        raise UsageError(
            "Expected api_keys or client certificates with a quota: a caller without either starts afresh at will"
        )


def _json(value: Mapping[str, Any]) -> _Response:
    return _Response(200, msgspec.json.encode(value))


def _prediction(answered: Answered) -> _Response:
    if answered.header_length is None:
        return _Response(200, answered.body, _JSON, (_timing(answered.seconds),))
    header = (HEADER_LENGTH.encode(), b"%d" % answered.header_length)
    return _Response(200, answered.body, _BINARY, (header, _timing(answered.seconds)))


def _timing(seconds: float) -> tuple[bytes, bytes]:
    """Return the standard header that tells the client how long the server worked, in milliseconds."""
    return b"server-timing", b"work;dur=%.3f" % (seconds * 1e3)


def _version() -> str:
    try:
        return metadata.version("confide")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "0"
