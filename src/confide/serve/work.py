"""The work behind a server: checking keys and answering questions, in this process (`Local`) or in others (`pool`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from traceback import extract_tb
from typing import Protocol

from confide.crypto.random import Randomness
from confide.errors import ModelError, PrivacyError, ProtocolError, SetUpAgain, StoreError, UsageError
from confide.he.loaded import LoadedKeys
from confide.serve.access import Quota
from confide.serve.keys import CountingStore, unknown_key
from confide.serve.limits import Limits, busy
from confide.serve.protocol import Refusal
from confide.serve.served import About, Answered, Model, Served
from confide.wire import Store

_SOON_BYTES = 1 << 15  # of a question that is answered on the event loop where it takes no longer than
_SOON_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Figures:
    """How the work stands.

    Args:
        workers: processes that there should be; 0 where the work is done in the server's own.
        alive: processes that are ready or at work.
        restarts: processes that were replaced so far.
        loaded_keys: clients' keys that are parsed, in all processes together.
        loaded_bytes: the memory that they take.
    """

    workers: int
    alive: int
    restarts: int
    loaded_keys: int
    loaded_bytes: int


class Failed(Exception):
    """A bug, seen in a worker: where it was, never what it said."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


class Work(Protocol):
    """What a server's threads call; every call may take long.

    `deadline`, by `time.monotonic`, is when nobody waits for the answer any more: what has not begun by then is refused
    (503, busy) without a charge, and what has begun may be given up.
    """

    abouts: tuple[About, ...]

    def register(self, about: About, body: bytes, caller: str, *, deadline: float) -> Answered:
        """Take public keys. Raises as `Served.register`, and Refusal (503) if nobody is there to do it."""
        ...

    def infer(self, about: About, body: bytes, header_length: int | None, caller: str, *, deadline: float) -> Answered:
        """Answer a question. Raises as `Served.infer`, and Refusal (503) if nobody is there to do it."""
        ...

    async def infer_soon(
        self, about: About, body: bytes, header_length: int | None, caller: str, *, deadline: float
    ) -> Answered | None:
        """Do the same on the server's event loop, if nothing there would wait for it; None if `infer` must do it."""
        ...

    def figures(self) -> Figures:
        """Return how it stands."""
        ...

    def close(self) -> None:
        """Stop; what is under way may be lost."""
        ...


class Local:
    """The work, done in this process.

    Args:
        models: at least one; their names differ.
        store: clients' public keys.
        usage: counts of the quotas.
        limits: of the server.
        rng: for the backends' secrets.

    Raises:
        ModelError: a model that its backend cannot run, with every problem and its replacement.
        UsageError: no models, or two of one name.
    """

    def __init__(
        self, models: Sequence[Model], *, store: Store, usage: CountingStore, limits: Limits, rng: Randomness
    ) -> None:
        if not models or len({model.name for model in models}) != len(models):
            raise UsageError("Expected at least one model, and models with different names")
        self._loaded = LoadedKeys(limits.loaded_keys_bytes)
        self.served = {
            (model.name, backend.name): Served(model, backend, store=store, limits=limits, rng=rng, loaded=self._loaded)
            for model in models
            for backend in model.backends
        }
        self.abouts = tuple(one.about for one in self.served.values())
        self._taken: dict[tuple[str, str], float] = {}  # seconds for each byte of a small question, of late
        self._quota = Quota(limits.query_quota, usage, total_rows=limits.total_quota) if limits.counts else None

    def register(self, about: About, body: bytes, caller: str, *, deadline: float = math.inf) -> Answered:
        begin = time.perf_counter()
        reply = self.served[about.model, about.backend].register(body, caller)
        return Answered(reply, None, time.perf_counter() - begin)

    def infer(
        self, about: About, body: bytes, header_length: int | None, caller: str, *, deadline: float = math.inf
    ) -> Answered:
        charge: Callable[[int], None] = partial(self._charge, caller, about.model)
        answered = self.served[about.model, about.backend].infer(body, header_length, charge=charge)
        if len(body) <= _SOON_BYTES:
            taken = answered.seconds / max(1, len(body))
            before = self._taken.get((about.model, about.backend), taken)
            self._taken[about.model, about.backend] = 0.8 * before + 0.2 * taken
        return answered

    async def infer_soon(
        self, about: About, body: bytes, header_length: int | None, caller: str, *, deadline: float = math.inf
    ) -> Answered | None:
        served = self.served[about.model, about.backend]
        if self._quota or not served.keeps_no_keys or len(body) > _SOON_BYTES:
            return None  # it would wait for a store, or others for it
        if self._taken.get((about.model, about.backend), math.inf) * len(body) > _SOON_SECONDS:
            return None
        return self.infer(about, body, header_length, caller, deadline=deadline)

    def figures(self) -> Figures:
        return Figures(0, 0, 0, len(self._loaded), self._loaded.held_bytes)

    def prepare_ahead(self) -> bool:
        """Do one piece of work for a later question, of milliseconds. Returns False if there is none."""
        return self._loaded.prepare_ahead()

    def close(self) -> None:
        if self._quota:
            self._quota.close()

    def _charge(self, caller: str, model: str, rows: int) -> None:
        if self._quota:
            self._quota.charge(caller, model, rows)


def refusal_of(error: Exception) -> Refusal:
    """Return what the client is told; texts of these classes never contain an input."""
    match error:
        case Refusal():
            return error
        case SetUpAgain():
            return unknown_key("set up again")
        case ProtocolError() | ModelError():
            return Refusal(400, "malformed", str(error))
        case PrivacyError():
            return Refusal(403, "privacy", str(error))
        case StoreError():
            return busy("the store of keys and counts does not answer")
        case _:
            return Refusal(500, "internal", "Something went wrong here; tell the operator the request_id")


def place_of(error: BaseException) -> str:
    """Return type and place of an unexpected exception, never its text."""
    if isinstance(error, Failed):
        return error.place
    place = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {place.name}:{place.lineno}"
