"""An event loop in a thread of its own, and the mailbox through which it talks to the thread of the parties."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from confide.errors import ConfideError
from confide.net.exchange import Envelope
from confide.net.frames import check_envelope
from confide.net.limits import Account, Limits
from confide.net.link import Arrived, Event
from confide.wire import MESSAGE_COST_BYTES

_Output = TypeVar("_Output")


class LoopThread:
    """A thread that runs an event loop until `close`.

    Args:
        name: of the thread.
        broken: told of exceptions that nobody expected.
    """

    def __init__(self, name: str, broken: Callable[[BaseException], None]) -> None:
        self.loop = asyncio.new_event_loop()
        self._broken = broken
        self.loop.set_exception_handler(self._unexpected)
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self._lock = threading.Lock()
        self._closed = False

    def call(self, work: Coroutine[Any, Any, _Output]) -> _Output:
        """Run `work` in the loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def post(self, work: Callable[..., object], *arguments: object) -> None:
        """Call `work` in the loop soon; nothing happens if the loop has ended."""
        with self._lock:
            if not self._closed:
                self.loop.call_soon_threadsafe(work, *arguments)

    def close(self, last: Coroutine[Any, Any, object] | None) -> None:
        """Run `last`, end the loop, and wait for the thread. Only the first call does something."""
        with self._lock:
            first, self._closed = not self._closed, True
        if not first:
            if last is not None:
                last.close()
            return
        if last is not None:
            self.call(last)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, OSError):  # the network's errors are the connection's ending
            self._broken(error)


class Mail(Protocol):
    """Where a listener and a caller put what happens on their connections, in the loop's thread."""

    def put(self, event: Event | BaseException, account: Account | None = None) -> None:
        """Take an event; a message counts on its peer's account until somebody has taken it."""
        ...


class Mailbox:
    """What a link's thread has for the thread of the parties."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Event | BaseException, Account | None]] = queue.SimpleQueue()

    def put(self, event: Event | BaseException, account: Account | None = None) -> None:
        """Append an event; a message counts on its peer's account until it is taken."""
        self._queue.put((event, account))

    def take(self, timeout_seconds: float, thread: LoopThread) -> Event | None:
        """Return the next event, or None if there is none within the time.

        Raises:
            BaseException: the link's thread met something that it did not expect.
        """
        try:
            event, account = self._queue.get(timeout=max(0.0, timeout_seconds))
        except queue.Empty:
            return None
        if isinstance(event, BaseException):
            raise event
        if account is not None and isinstance(event, Arrived):
            account.taken_bytes += len(event.envelope.message.body) + MESSAGE_COST_BYTES
            if (resume := account.resume) is not None:
                thread.post(resume)
        return event


class Sender:
    """Envelopes on their way from the parties' thread into the loop.

    Args:
        thread: the loop's.
        deliver: hands one to its connection, in the loop.
        limits: what the other side would refuse is refused here.
    """

    def __init__(self, thread: LoopThread, deliver: Callable[[str, Envelope], None], limits: Limits) -> None:
        self._thread, self._deliver, self._limits = thread, deliver, limits
        self._queue: deque[tuple[str, Envelope]] = deque()
        self._posted = False

    def send(self, peer: str, envelope: Envelope) -> None:
        """Queue an envelope; the loop is woken once for many.

        Raises:
            UsageError: it does not fit the wire.
        """
        check_envelope(envelope, self._limits)
        self._queue.append((peer, envelope))
        if not self._posted:
            self._posted = True
            self._thread.post(self._drain)

    def _drain(self) -> None:
        self._posted = False  # before the queue is read: who appends from now on posts again
        while self._queue:
            self._deliver(*self._queue.popleft())


def reason_of(work: Callable[[], str | None]) -> str | None:
    """Return the reason that `work` returns or raises."""
    try:
        return work()
    except ConfideError as error:
        return str(error)
