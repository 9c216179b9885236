"""One-round parties over HTTP: the client sends one message, the server answers with one.

`answer` drives the server's party inside a request handler, `converse` drives the client's around one call. Both keep
the rules of `wire.run`: a party is resumed with what it waits for, and `Step.save` is committed to the party's store
before anything leaves. The one message that arrives needs no `Inbox`, which would hash all of it. `InProcess` lets a
client talk to an ASGI application without a port: same bytes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import threading
import time
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import httpx2

from confide.errors import ProtocolError
from confide.wire import Event, Message, Party, Step, Store, Transcript


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server's party did with one message: the body of its reply, and its output."""

    body: bytes
    output: Any


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one message: the body, and the seconds that the other side worked on it."""

    body: bytes
    seconds: float


class _Driven:
    """One party: resumed until it waits or ends; what it saves is committed before what it sends is handed out."""

    def __init__(self, party: Party, me: str, store: Store) -> None:
        self.party = party
        self.me = me
        self.store = store
        self.step: Step | None = None
        self.output: Any = None
        self.seconds = 0.0  # of the last advance

    def advance(self, message: Message | None) -> list[Message]:
        """Resume with `message` (None starts the party) and return what leaves until the party waits or ends."""
        begin = time.perf_counter()
        received: dict[str, Message] | None = None if message is None else {message.src: message}
        leaving: list[Message] = []
        while True:
            try:
                self.step = next(self.party) if received is None else self.party.send(received)
            except StopIteration as stop:
                self.step, self.output = None, stop.value
                break
            if self.step.save:
                self.store.commit(self.step.save)
            leaving += self.step.send
            if self.step.wait_for:
                break
            received = {}
        self.seconds = time.perf_counter() - begin
        return leaving

    def incoming(self, body: bytes) -> Message:
        """Return `body` as the message that the party waits for: the endpoint fixes who sent it and its tag."""
        step = self._waiting()
        if len(step.wait_for) != 1:
            raise ProtocolError(f"Expected a party of two that waits for one message, not for {len(step.wait_for)}")
        return Message(step.wait_for[0], self.me, step.await_tag, body)

    def _waiting(self) -> Step:
        if self.step is None:
            raise ProtocolError(f"Expected no message: {self.me} has nothing to wait for here")
        return self.step


def answer(party: Party, body: bytes, *, store: Store, me: str = "server") -> Answer:
    """Drive the server's `party` through its one round.

    Args:
        party: waits for one message, sends one reply, ends.
        body: the body of the message.
        store: the server's; what the party saves is there before this returns.

    Raises:
        ProtocolError: the message is refused, or the party needs more than one round.
    """
    driven = _Driven(party, me, store)
    if driven.advance(None):
        raise ProtocolError("Expected a server that waits before it speaks")
    leaving = driven.advance(driven.incoming(body))
    if driven.step is not None or len(leaving) != 1:
        raise ProtocolError(f"Expected one round; {me} sent {len(leaving)} messages and did not end")
    return Answer(leaving[0].body, driven.output)


def expects_message(party: Party) -> bool:
    """Return True if `party` waits for a message; False if it ends at once. The party is used up."""
    try:
        return bool(next(party).wait_for)
    except StopIteration:
        return False
    finally:
        party.close()


Conversation = Generator[Message, Reply, Transcript]


def converse(party: Party, *, store: Store, me: str = "client") -> Conversation:
    """Drive the client's `party` through its one round, or through none if it ends without asking; no I/O here.

    Args:
        party: sends one message, waits for its reply, ends.
        store: the client's; what the party saves is there before its message is yielded.

    Yields:
        The message to carry to the server; to be resumed with the reply.

    Returns:
        The transcript with both messages, their bytes and each side's seconds; the output is under `me`.

    Raises:
        ProtocolError: the reply is refused, or the party needs more than one round.
    """
    transcript = Transcript()
    driven = _Driven(party, me, store)
    leaving = driven.advance(None)
    sent = tuple(transcript.add(message) for message in leaving)
    transcript.events.append(Event(me, "", driven.seconds, (), sent))
    if leaving:
        if len(leaving) != 1:
            raise ProtocolError(f"Expected one message per round, not {len(leaving)}")
        message = leaving[0]
        reply = yield message
        incoming = driven.incoming(reply.body)
        came = transcript.add(incoming)
        transcript.events.append(Event(message.dst, message.tag, reply.seconds, sent, (came,)))
        if driven.advance(incoming) or driven.step is not None:
            raise ProtocolError("Expected a party that ends with its reply")
        transcript.events.append(Event(me, incoming.tag, driven.seconds, (came,), ()))
    elif driven.step is not None:
        raise ProtocolError("Expected a client that speaks first")
    transcript.outputs[me] = driven.output
    return transcript


def resume(conversation: Conversation, reply: Reply | None = None) -> Message | Transcript:
    """Return what a conversation says next: the message to carry, or at its end the transcript. None starts it."""
    try:
        return next(conversation) if reply is None else conversation.send(reply)
    except StopIteration as stop:
        return stop.value


def ask(party: Party, post: Callable[[Message], Reply], *, store: Store, me: str = "client") -> Transcript:
    """Drive `party` as `converse` says; `post` carries its message to the server and returns the reply."""
    conversation = converse(party, store=store, me=me)
    said = resume(conversation)
    while isinstance(said, Message):
        said = resume(conversation, post(said))
    return said


def is_loopback(host: str) -> bool:
    """Return True if `host` names this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


# --- without a port ---------------------------------------------------------------------------------------------------

_Event = MutableMapping[str, Any]
Application = Callable[[_Event, Callable[[], Awaitable[_Event]], Callable[[_Event], Awaitable[None]]], Awaitable[None]]


class InProcess(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """A transport that hands requests to an ASGI application in this process, on an event loop of its own.

    Args:
        app: the application; its lifespan events are not sent.

    Example:
        >>> client = httpx2.Client(transport=InProcess(app), base_url="http://localhost")  # doctest: +SKIP
    """

    def __init__(self, app: Application) -> None:
        self._transport = httpx2.ASGITransport(app)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="confide in-process", daemon=True)
        self._thread.start()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Run the application on `request` and return its whole response."""
        return self._submit(request, request.read()).result()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Run the application on `request`, on its own loop, and return its whole response."""
        return await asyncio.wrap_future(self._submit(request, await request.aread()))

    def _submit(self, request: httpx2.Request, body: bytes) -> Future[httpx2.Response]:
        return asyncio.run_coroutine_threadsafe(self._handle(request, body), self._loop)

    async def _handle(self, request: httpx2.Request, body: bytes) -> httpx2.Response:
        replayed = httpx2.Request(request.method, request.url, headers=request.headers, content=body)
        response = await self._transport.handle_async_request(replayed)
        content = await response.aread()
        return httpx2.Response(response.status_code, headers=response.headers, content=content)

    def close(self) -> None:
        """Stop the event loop; the application is not told."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def aclose(self) -> None:
        """Stop the event loop; the application is not told."""
        self.close()
