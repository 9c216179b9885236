"""One process among several that all talk to each other: it listens, dials, and hears all in its loop's thread.

`stream` hands what arrives to another thread, which suits parties that compute for minutes. Here `receive` is called
where a message arrived, in the thread of the event loop, and what it sends leaves from there: a protocol of many short
rounds pays for no change of threads. Who listens and who dials is the caller's business; links stay open and are opened
again, so that a session pays for no handshake.

**Guarantees**: as `stream`: who a peer is comes from its certificate; what it sends under another's name ends its
connection; memory stays within `Limits`.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import UsageError
from confide.net.caller import COORDINATOR_ROLE, Caller, Dialled, Waits
from confide.net.dial import Address, Proxy
from confide.net.ending import Code
from confide.net.exchange import Envelope
from confide.net.limits import Account, Limits
from confide.net.link import Arrived, Event
from confide.net.listener import Admit, Enrol, Listener
from confide.net.loop import LoopThread
from confide.net.tls import Peer
from confide.wire import MESSAGE_COST_BYTES

_Output = TypeVar("_Output")


class Mesh:
    """The links of one process.

    Args:
        receive: told of each event, in the loop's thread; a ProtocolError of it drops the peer's connection.
        broken: told of exceptions that nobody expected.
        limits: what peers may do.
        first_seconds, longest_seconds: waits between attempts to dial, as `Join` has them.
        rng: of their spread.
    """

    def __init__(
        self,
        receive: Callable[[Event], None],
        *,
        broken: Callable[[BaseException], None],
        limits: Limits | None = None,
        first_seconds: float = 0.2,
        longest_seconds: float = 30.0,
        rng: Randomness | None = None,
    ) -> None:
        self._receive, self._broken, self.limits = receive, broken, limits or Limits()
        self._waits = Waits(first_seconds, longest_seconds, rng or SystemRandomness())
        self._thread = LoopThread("confide mesh", broken)
        self._listener: Listener | None = None
        self._callers: dict[str, Caller] = {}

    # --- from any thread ----------------------------------------------------------------------------------------------

    def listen(
        self, address: str, port: int, context: ssl.SSLContext, *, admit: Admit, enrol: Enrol | None = None
    ) -> int:
        """Listen, and return the port; the arguments are those of `Host`.

        Raises:
            UsageError: nothing can listen there.
        """
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED if enrol is None else ssl.CERT_OPTIONAL
        listener = self._listener = Listener(context, admit, enrol, self.limits, self)  # before somebody comes
        try:
            return self._thread.call(listener.start(address, port))
        except OSError as error:
            self._listener = None
            raise UsageError(f"Expected to listen at {address}:{port}; {error.strerror or error}") from None

    def call(self, work: Callable[[], _Output]) -> _Output:
        """Run `work` in the loop's thread and return what it returns."""

        async def inside() -> _Output:
            return work()

        return self._thread.call(inside())

    def post(self, work: Callable[..., object], *arguments: object) -> None:
        """Call `work` in the loop's thread soon."""
        self._thread.post(work, *arguments)

    def close(self) -> None:
        """End every link and the loop."""
        self._thread.close(self._stop())

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- in the loop's thread -----------------------------------------------------------------------------------------

    def dial(
        self, name: str, url: str, context: ssl.SSLContext, *, role: str = COORDINATOR_ROLE, proxy: str | None = None
    ) -> None:
        """Keep a connection to somebody who listens; again for the same name replaces the address.

        Args:
            name: what the peer is called here; of a member, what its certificate must say.
            url: "wss://host:port".
            context: with this member's certificate (`contexts.client_context`).
            role: what the peer's certificate must say.
            proxy: "http://host:port" of an HTTP proxy on the way.

        Raises:
            UsageError: a URL or a proxy of another kind.
        """
        to = Dialled(Address.parse(url), None if proxy is None else Proxy.parse(proxy), name, role)
        earlier = self._callers.get(name)
        caller = self._callers[name] = Caller(to, context, self.limits, self._waits, self)
        if earlier is not None:
            asyncio.get_running_loop().create_task(earlier.stop()).add_done_callback(lambda _: caller.start())
        else:
            caller.start()

    def dials(self, name: str) -> bool:
        """Return whether a connection to `name` is kept from this side."""
        return name in self._callers

    def renewed(self, context: ssl.SSLContext) -> None:
        """Show another certificate from the next connections on; those that are open stay."""
        for caller in self._callers.values():
            caller.renewed(context, False)

    def given_up(self, name: str) -> str | None:
        """Return why `name` is not dialled any more, or None."""
        caller = self._callers.get(name)
        return None if caller is None else caller.given_up

    def send(self, peer: str, envelope: Envelope) -> None:
        """Send an envelope; it is lost if the peer is not there."""
        if caller := self._callers.get(peer):
            caller.deliver(peer, envelope)
        elif self._listener is not None:
            self._listener.deliver(peer, envelope)

    def waiting_bytes(self, peer: str) -> int:
        """Return what waits to leave for a peer, 0 if it is not there."""
        if caller := self._callers.get(peer):
            return caller.waiting_bytes
        return 0 if self._listener is None else self._listener.waiting_bytes(peer)

    def peer(self, name: str) -> Peer | None:
        """Return whom the certificate of a peer who is there is for."""
        if caller := self._callers.get(name):
            return caller.peer
        return None if self._listener is None else self._listener.peer(name)

    def address(self, name: str) -> str:
        """Return the address at the other end of a link, "" if there is none or a proxy stands between."""
        if caller := self._callers.get(name):
            return caller.peer_address
        return "" if self._listener is None else self._listener.address(name)

    def drop(self, peer: str, reason: str) -> None:
        """End the connection of a peer who has come; it may come again."""
        if self._listener is not None:
            self._listener.drop(peer, reason, Code.DROPPED)

    def recheck(self) -> None:
        """Ask `admit` again about everybody who has come, and drop whom it refuses now."""
        if self._listener is not None:
            self._listener.recheck()

    def later(self, seconds: float, work: Callable[[], object]) -> asyncio.TimerHandle:
        """Call `work` after some seconds."""
        return asyncio.get_running_loop().call_later(seconds, work)

    def put(self, event: Event | BaseException, account: Account | None = None) -> None:
        """Hear of an event: `Listener` and `Caller` call it."""
        if isinstance(event, BaseException):
            return self._broken(event)
        if account is not None and isinstance(event, Arrived):
            account.taken_bytes += len(event.envelope.message.body) + MESSAGE_COST_BYTES
        self._receive(event)

    def _stop(self) -> Coroutine[Any, Any, None]:
        async def stop() -> None:
            ends = [caller.stop() for caller in self._callers.values()]
            if self._listener is not None:
                ends.append(self._listener.stop())
            await asyncio.gather(*ends)

        return stop()


class Answer(Generic[_Output]):
    """What a thread waits for while the loop works on it; the first result counts."""

    def __init__(self) -> None:
        self._future: Future[_Output] = Future()
        self._alone = threading.Lock()

    def give(self, output: _Output) -> None:
        """Answer, unless that was done."""
        with self._alone:
            if not self._future.done():
                self._future.set_result(output)

    def fail(self, error: BaseException) -> None:
        """Answer with an error, unless it was answered."""
        with self._alone:
            if not self._future.done():
                self._future.set_exception(error)

    def result(self, timeout_seconds: float) -> _Output:
        """Return the answer, or raise the error; TimeoutError if there is none in time."""
        return self._future.result(timeout_seconds)
