"""The coordinator's desk: who is connected between runs, and analysts with their jobs.

An analyst hands in a job, hears what happens to it, and receives the released model: no update, no sum, no table. A job
that was handed in is in the store until it has ended, so neither side's restart loses it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable

import msgspec

from confide.data.schema import LARGEST_SCHEMA_BYTES
from confide.errors import ConfideError, ProtocolError
from confide.net.exchange import Envelope
from confide.net.link import Arrived, Event, Joined, Left, Link
from confide.train.control import PROGRESS, RELEASE, SUBMIT, Reason, Release, Submission, control
from confide.train.offer import LARGEST_JOB_BYTES
from confide.wire import Store, decode, encode

_QUEUE = "desk/queue"

#: Jobs that wait at once, in all and of one analyst.
_MOST_WAITING, _MOST_OF_ONE = 100, 10

#: What finished jobs of one analyst came to is kept for so many of them, the newest.
_MOST_KEPT = 20

#: A job and its schema are smaller than this.
_LARGEST_SUBMISSION_BYTES = LARGEST_JOB_BYTES + LARGEST_SCHEMA_BYTES + 1024


class _Queue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    waiting: tuple[tuple[str, bytes], ...] = ()  # who handed it in, and the submission


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    places: tuple[str, ...] = ()  # of an analyst's releases, the oldest first


class Desk:
    """A link that remembers who is there and keeps analysts apart from the run.

    Args:
        link: of the host.
        store: the coordinator's.
        server: the coordinator's name.
        say: told in one line what happens.
    """

    def __init__(
        self, link: Link, store: Store, *, server: str = "server", say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._link, self._store, self._server, self._say = link, store, server, say
        self._here: dict[str, str] = {}
        self._again: deque[Event] = deque()

    # --- the run's side -----------------------------------------------------------------------------------------------

    def begin_run(self) -> None:
        """Let the next `receive` calls tell of everybody who is here, as a new run must hear."""
        self._again.extend(Joined(name, role) for name, role in self._here.items() if role != "analyst")

    def send(self, peer: str, envelope: Envelope) -> None:
        self._link.send(peer, envelope)

    def receive(self, timeout_seconds: float) -> Event | None:
        """Return the next event of a node or helper; an analyst's are dealt with here."""
        if self._again:
            return self._again.popleft()
        event = self._link.receive(timeout_seconds)
        match event:
            case Joined(name, role):
                self._here[name] = role
                return event if role != "analyst" else None
            case Left(name, _):
                return event if self._here.pop(name, "") != "analyst" else None
            case Arrived(name, envelope) if self._here.get(name) == "analyst":
                try:
                    self._asked(name, envelope)
                except ConfideError as error:
                    self._tell(name, RELEASE, Release(str(error)))
                return None
            case _:
                return event

    def close(self) -> None:
        self._link.close()

    # --- analysts -----------------------------------------------------------------------------------------------------

    @property
    def next(self) -> tuple[str, Submission] | None:
        """Return who waits longest and with what, or None."""
        waiting = self._queue().waiting
        if not waiting:
            return None
        name, body = waiting[0]
        return name, decode(body, Submission, max_bytes=len(body))

    def progress(self, text: str) -> None:
        """Tell the analyst whose job is on its way what happens, if connected."""
        if self.next and self._here.get(self.next[0]) == "analyst":
            self._tell(self.next[0], PROGRESS, Reason(text))

    def done(self, release: Release) -> None:
        """End the job that waits longest: keep what it came to for its analyst, and hand it over if connected."""
        (name, body), *rest = self._queue().waiting
        place, index = _place(name, body), f"desk/kept/{name}"
        saved = self._store.get(index)
        kept = decode(saved, _Kept, max_bytes=len(saved)).places if saved else ()
        kept = (*(one for one in kept if one != place), place)
        changes: dict[str, bytes | None] = dict.fromkeys(kept[:-_MOST_KEPT])
        changes |= {index: encode(_Kept(kept[-_MOST_KEPT:])), place: encode(release)}
        self._store.commit({_QUEUE: encode(_Queue(tuple(rest))), **changes})
        if self._here.get(name) == "analyst":
            self._tell(name, RELEASE, release)

    def _asked(self, name: str, envelope: Envelope) -> None:
        message = envelope.message
        if message.tag != SUBMIT:
            raise ProtocolError("Expected a job from an analyst")
        decode(message.body, Submission, max_bytes=_LARGEST_SUBMISSION_BYTES)
        kept = self._store.get(_place(name, message.body))
        waiting = self._queue().waiting
        if kept is not None:
            self._tell(name, RELEASE, decode(kept, Release, max_bytes=len(kept)))
        elif (name, message.body) in waiting:
            self._tell(name, PROGRESS, Reason(f"number {waiting.index((name, message.body)) + 1} in the queue"))
        elif len(waiting) >= _MOST_WAITING or sum(who == name for who, _ in waiting) >= _MOST_OF_ONE:
            raise ProtocolError(
                f"Expected fewer than {_MOST_WAITING} waiting jobs, and {_MOST_OF_ONE} of one analyst; try again later"
            )
        else:
            self._store.commit({_QUEUE: encode(_Queue((*waiting, (name, message.body))))})
            self._tell(name, PROGRESS, Reason(f"number {len(waiting) + 1} in the queue"))
            self._say(f"{name} handed in a job")

    def _queue(self) -> _Queue:
        body = self._store.get(_QUEUE)
        return decode(body, _Queue, max_bytes=len(body)) if body else _Queue()

    def _tell(self, name: str, tag: str, body: msgspec.Struct) -> None:
        self._link.send(name, control(self._server, name, tag, body))


def _place(name: str, submission: bytes) -> str:
    return f"desk/release/{name}/{hashlib.sha256(submission).hexdigest()}"
