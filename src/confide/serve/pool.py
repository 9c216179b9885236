"""Worker processes: predictions run in them, because Microsoft SEAL's Python binding keeps the interpreter to itself.

Every worker is started afresh (no fork), prepares the models once and then answers one request at a time. A worker that
dies is replaced, and its request is answered 503; one that has not answered at its request's deadline is ended, and so
is one that has not prepared the models within `start_seconds`. A replacement that cannot be started is tried again, at
growing intervals. Requests of one key id go to the worker that has those keys loaded, where it is free.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from confide.crypto.random import SystemRandomness
from confide.errors import ConfideError, UsageError
from confide.serve.access import ApiKeys
from confide.serve.keys import open_stores
from confide.serve.limits import Limits, busy, late
from confide.serve.observe import Observer
from confide.serve.process import Worker
from confide.serve.protocol import JSON_BYTES, Refusal
from confide.serve.served import About, Answered
from confide.serve.server import Server, check_callers
from confide.serve.source import Source
from confide.serve.work import Failed, Figures, place_of
from confide.serve.worker import Done, Job, Start
from confide.structs import known

_SOON_BYTES = 1 << 20  # of a question that is handed over without a thread: copied at once
_STOP_SECONDS = 5.0  # for a worker that has nothing to do
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 30.0
_SHORT_LIFE_SECONDS = 10.0


class _Asked(msgspec.Struct, frozen=True):
    parameters: dict[str, object] = {}


class Pool:
    """The work of a server, done in processes.

    Args:
        source: of the models; every worker makes the same of it.
        store: where keys and counts are kept, as `open_stores` takes it; a file or a database, which they share.
        limits: the server's; `workers` is how many processes.
        tell: is told why a worker could not be replaced, from any thread; it is tried again.

    Raises:
        ModelError, UsageError, StoreError: what kept the first workers from starting.
    """

    def __init__(
        self, source: Source, *, store: str, limits: Limits, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self._start = Start(path=tuple(sys.path), source=source, store=store, limits=limits)
        self._limits = limits
        self._changed = threading.Condition()
        self._free: list[Worker] = []  # the one that has waited longest stands first
        self._starting: set[Worker] = set()
        self._alive: set[Worker] = set()  # ready or at work
        self._tell = tell
        self.abouts: tuple[About, ...] = ()
        self._restarts = self._waiting = 0
        self._closing = threading.Event()
        try:
            with ThreadPoolExecutor(limits.workers) as starting:
                launched = [starting.submit(self._launch) for _ in range(limits.workers)]
            first = [one.result() for one in launched]
            self.abouts = first[0].abouts
            if any(worker.abouts != self.abouts for worker in first):
                raise UsageError("Expected a backend whose kits are the same in every process; serve without workers")
        except BaseException:
            self.close()
            raise
        self._keepers = [threading.Thread(target=self._keep, args=(worker,), daemon=True) for worker in first]
        for keeper in self._keepers:
            keeper.start()

    # --- the work -----------------------------------------------------------------------------------------------------

    def register(self, about: About, body: bytes, caller: str, *, deadline: float) -> Answered:
        job = Job(kind="register", model=about.model, backend=about.backend, caller=caller)
        return self._do(job, body, "", deadline)

    def infer(self, about: About, body: bytes, header_length: int | None, caller: str, *, deadline: float) -> Answered:
        job = Job(kind="infer", model=about.model, backend=about.backend, caller=caller, header_length=header_length)
        size = len(body) if header_length is None else header_length
        named = about.needs_keys and size <= self._limits.json_bytes  # the worker refuses what is beyond, unread
        return self._do(job, body, _key_id(body, header_length) if named else "", deadline)

    async def infer_soon(
        self, about: About, body: bytes, header_length: int | None, caller: str, *, deadline: float
    ) -> Answered | None:
        most = min(JSON_BYTES, self._limits.json_bytes)
        if header_length is None or header_length > most or len(body) > _SOON_BYTES:
            return None
        key_id = _key_id(body, header_length) if about.needs_keys else ""
        worker = self._take_free(key_id)
        if worker is None:
            return None
        job = Job(kind="infer", model=about.model, backend=about.backend, caller=caller, header_length=header_length)
        with self._at(worker):
            async with asyncio.timeout(deadline - time.monotonic()):
                head, reply = await worker.pipe.exchange(msgspec.msgpack.encode(job), body)
        return self._answered(worker, key_id, msgspec.msgpack.decode(head, type=known(Done)), reply)

    def figures(self) -> Figures:
        with self._changed:
            alive = list(self._alive)
            return Figures(
                self._limits.workers,
                len(alive),
                self._restarts,
                sum(worker.loaded_keys for worker in alive),
                sum(worker.loaded_bytes for worker in alive),
            )

    def _do(self, job: Job, body: bytes, key_id: str, deadline: float) -> Answered:
        worker = self._take(key_id, deadline)
        with self._at(worker):
            worker.pipe.send(msgspec.msgpack.encode(job), body, deadline=deadline)
            head, reply = worker.pipe.recv(deadline=deadline)
        return self._answered(worker, key_id, msgspec.msgpack.decode(head, type=known(Done)), reply)

    @contextmanager
    def _at(self, worker: Worker) -> Generator[None]:
        """End a worker that does not answer, wherever it hangs: it may not even read the body. Tell the client why."""
        try:
            yield
        except BaseException as error:  # whatever is still on its way would be the answer to somebody else
            worker.process.kill()
            worker.pipe.close()
            if isinstance(error, TimeoutError):
                raise late(f"the answer took longer than {self._limits.answer_seconds:g} s") from None
            if isinstance(error, EOFError | OSError):
                text = "Expected the worker process to live until its answer; ask again later"
                raise Refusal(503, "worker_ended", text, retry_after_seconds=1) from None
            raise

    def _answered(self, worker: Worker, key_id: str, done: Done, reply: bytes) -> Answered:
        worker.note(key_id, done)
        self._give_back(worker)
        if done.refused is None:
            return Answered(reply, done.header_length, done.seconds)
        if done.refused.place:
            raise Failed(done.refused.place)
        refused = done.refused
        raise Refusal(refused.status, refused.code, refused.text, retry_after_seconds=refused.retry_after_seconds)

    def _take(self, key_id: str, deadline: float) -> Worker:
        """Return a worker, after waiting for one."""
        with self._changed:
            self._waiting += 1
            try:
                while (left := deadline - time.monotonic()) > 0 and not self._closing.is_set():
                    if self._free:
                        return self._best(key_id)
                    self._changed.wait(left)
                raise busy("no worker is free")
            finally:
                self._waiting -= 1

    def _take_free(self, key_id: str) -> Worker | None:
        """Return a worker that is free and that nobody waits for."""
        with self._changed:
            return self._best(key_id) if len(self._free) > self._waiting else None

    def _best(self, key_id: str) -> Worker:
        holder = next((worker for worker in self._free if key_id and key_id in worker.loaded), self._free[0])
        self._free.remove(holder)
        return holder

    def _give_back(self, worker: Worker) -> None:
        with self._changed:
            if worker in self._alive:
                self._free.append(worker)
                self._changed.notify()
            else:
                worker.pipe.close()

    # --- the processes ------------------------------------------------------------------------------------------------

    def _launch(self) -> Worker:
        """Start a process and return it, free, once its models are prepared: the same as everybody's."""
        worker = Worker()
        with self._changed:
            self._starting.add(worker)  # from here on `close` finds it
        try:
            if self._closing.is_set():
                raise busy("the server is stopping")
            worker.prepare(self._start, seconds=self._limits.start_seconds)
            if self.abouts and worker.abouts != self.abouts:
                raise UsageError("Expected the models that are served already, got others; restart the server for them")
            with self._changed:
                if self._closing.is_set():
                    raise busy("the server is stopping")
                self._alive.add(worker)
                self._free.append(worker)
                self._changed.notify()
        except BaseException:
            worker.end()
            worker.pipe.close()
            raise
        finally:
            with self._changed:
                self._starting.discard(worker)
        return worker

    def _lose(self, worker: Worker) -> None:
        """Forget a process that has ended. Its pipe is closed by who uses it: us if it is free."""
        with self._changed:
            self._alive.discard(worker)
            free = worker in self._free
            if free:
                self._free.remove(worker)
        if free:
            worker.pipe.close()

    def _keep(self, worker: Worker) -> None:
        """Replace a process whenever it ends, at growing intervals if it does so at once; until `close`."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            worker.process.wait()
            self._lose(worker)
            if time.monotonic() - worker.began > _SHORT_LIFE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            replacement = None
            while replacement is None:
                if self._closing.wait(pause):
                    return
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                replacement = self._replacement()
            worker = replacement

    def _replacement(self) -> Worker | None:
        """Start a process instead of one that was lost; None, and somebody is told, if that fails in any way."""
        try:
            worker = self._launch()
        except Exception as error:  # with the thread that called, the worker would be lost for ever
            if not self._closing.is_set():
                self._tell(str(error) if isinstance(error, ConfideError) else place_of(error))
            return None
        with self._changed:
            self._restarts += 1
        return worker

    def close(self) -> None:
        """Let the workers that have nothing to do end by themselves, and end the others."""
        self._closing.set()
        with self._changed:
            free, self._free = self._free, []
            alive = [*self._alive, *self._starting]
            self._changed.notify_all()
        for worker in alive:
            if worker in free:
                worker.pipe.close()
            else:
                worker.process.kill()
        for worker in alive:
            try:
                worker.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.end()
        with self._changed:
            self._alive.clear()


def create_pooled_app(
    source: Source,
    *,
    store: str | Path,
    limits: Limits | None = None,
    api_keys: Mapping[str, str] | None = None,
    certificates: bool = False,
    log: TextIO | None = None,
    metrics: bool = False,
) -> Server:
    """Start `limits.workers` processes that prepare the models of `source`, and return the application before them.

    `Server.close`, which the end of the application calls, ends them.

    Args:
        source: of the models (`confide.serve.source`).
        store: where keys and counts are kept, for all processes: an SQLite file or `postgresql://user@host/database`.
        limits, api_keys, certificates, log, metrics: as in `create_app`.

    Raises:
        ModelError, UsageError, MissingExtra: as in `create_app`.
        StoreError: the database does not answer.
    """
    limits = limits or Limits()
    check_callers(limits, api_keys, certificates)
    observer = Observer(log, metrics=metrics)
    holders = ApiKeys(api_keys) if api_keys else None
    keys = open_stores(store, limits).keys
    work = Pool(source, store=str(store), limits=limits, tell=observer.not_replaced)
    return Server(
        work,
        keys=keys,
        limits=limits,
        api_keys=holders,
        certificates=certificates,
        rng=SystemRandomness(),
        observer=observer,
    )


def _key_id(body: bytes, header_length: int | None) -> str:
    """Return the key id that a question names, "" if it does not: only to choose a worker, which reads it again."""
    try:
        asked: _Asked = msgspec.json.decode(body[:header_length], type=known(_Asked))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return str(asked.parameters.get("key_id", ""))[:64]
