"""Worker processes: predictions run in them, because Microsoft SEAL's Python binding keeps the interpreter to itself.

Every worker is started afresh (no fork), prepares the models once and then answers one request at a time. A worker that
dies is replaced, and its request is answered 503; one that works longer than `answer_seconds` is ended. Requests of
one key id go to the worker that has those keys loaded, where it is free.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import msgspec

from confide import errors
from confide.crypto.random import SystemRandomness
from confide.errors import UsageError
from confide.serve.access import ApiKeys
from confide.serve.keys import open_stores
from confide.serve.limits import Limits, busy, late
from confide.serve.observe import Observer
from confide.serve.pipe import Pipe
from confide.serve.protocol import JSON_BYTES, Refusal
from confide.serve.served import About, Answered
from confide.serve.server import Server, check_callers
from confide.serve.source import Source
from confide.serve.work import Failed, Figures
from confide.serve.worker import Done, Job, NotReady, Ready, Start
from confide.structs import known

_SOON_BYTES = 1 << 20  # of a question that is handed over without a thread: copied at once
_STOP_SECONDS = 5.0  # for a worker that has nothing to do
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 30.0
_SHORT_LIFE_SECONDS = 10.0
_WORKER = "import sys; from confide.serve.worker import main; main(int(sys.argv[1]))"


class _Asked(msgspec.Struct, frozen=True):
    parameters: dict[str, object] = {}


class _Worker:
    """One process and the socket to it."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: Pipe) -> None:
        self.process = process
        self.pipe = pipe
        self.abouts: tuple[About, ...] = ()
        self.began = time.monotonic()
        self.loaded: OrderedDict[str, None] = OrderedDict()  # key ids, as far as we know; the latest stands last
        self.loaded_keys = self.loaded_bytes = 0

    def note(self, key_id: str, done: Done) -> None:
        """Follow what the worker holds: the same keys in the same order, cut to the same number."""
        self.loaded_keys, self.loaded_bytes = done.loaded_keys, done.loaded_bytes
        if key_id and not done.refused:
            self.loaded.pop(key_id, None)
            self.loaded[key_id] = None
        while len(self.loaded) > done.loaded_keys:
            self.loaded.popitem(last=False)


class Pool:
    """The work of a server, done in processes.

    Args:
        source: of the models; every worker makes the same of it.
        store: where keys and counts are kept, as `open_stores` takes it; a file or a database, which they share.
        limits: the server's; `workers` is how many processes.

    Raises:
        ModelError, UsageError, StoreError: what kept the first workers from starting.
    """

    def __init__(self, source: Source, *, store: str, limits: Limits) -> None:
        self._start = Start(path=tuple(sys.path), source=source, store=store, limits=limits)
        self._limits = limits
        self._changed = threading.Condition()
        self._free: list[_Worker] = []  # the one that has waited longest stands first
        self._alive: set[_Worker] = set()
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

    def register(self, about: About, body: bytes, caller: str) -> Answered:
        return self._do(Job(kind="register", model=about.model, backend=about.backend, caller=caller), body, "")

    def infer(self, about: About, body: bytes, header_length: int | None, caller: str) -> Answered:
        job = Job(kind="infer", model=about.model, backend=about.backend, caller=caller, header_length=header_length)
        size = len(body) if header_length is None else header_length
        named = about.needs_keys and size <= self._limits.json_bytes  # the worker refuses what is beyond, unread
        return self._do(job, body, _key_id(body, header_length) if named else "")

    async def infer_soon(self, about: About, body: bytes, header_length: int | None, caller: str) -> Answered | None:
        most = min(JSON_BYTES, self._limits.json_bytes)
        if header_length is None or header_length > most or len(body) > _SOON_BYTES:
            return None
        key_id = _key_id(body, header_length) if about.needs_keys else ""
        worker = self._take_free(key_id)
        if worker is None:
            return None
        job = Job(kind="infer", model=about.model, backend=about.backend, caller=caller, header_length=header_length)
        with self._at(worker):
            async with asyncio.timeout(self._limits.answer_seconds):
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

    def _do(self, job: Job, body: bytes, key_id: str) -> Answered:
        worker = self._take(key_id)
        deadline = time.monotonic() + self._limits.answer_seconds
        with self._at(worker):
            worker.pipe.send(msgspec.msgpack.encode(job), body, deadline=deadline)
            head, reply = worker.pipe.recv(deadline=deadline)
        return self._answered(worker, key_id, msgspec.msgpack.decode(head, type=known(Done)), reply)

    @contextmanager
    def _at(self, worker: _Worker) -> Generator[None]:
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

    def _answered(self, worker: _Worker, key_id: str, done: Done, reply: bytes) -> Answered:
        worker.note(key_id, done)
        self._give_back(worker)
        if done.refused is None:
            return Answered(reply, done.header_length, done.seconds)
        if done.refused.place:
            raise Failed(done.refused.place)
        refused = done.refused
        raise Refusal(refused.status, refused.code, refused.text, retry_after_seconds=refused.retry_after_seconds)

    def _take(self, key_id: str) -> _Worker:
        """Return a worker, after waiting for one."""
        deadline = time.monotonic() + self._limits.answer_seconds
        with self._changed:
            self._waiting += 1
            try:
                while not self._free:
                    left = deadline - time.monotonic()
                    if self._closing.is_set() or left <= 0 or not self._changed.wait(left):
                        raise busy("no worker is free")
                return self._best(key_id)
            finally:
                self._waiting -= 1

    def _take_free(self, key_id: str) -> _Worker | None:
        """Return a worker that is free and that nobody waits for."""
        with self._changed:
            return self._best(key_id) if len(self._free) > self._waiting else None

    def _best(self, key_id: str) -> _Worker:
        holder = next((worker for worker in self._free if key_id and key_id in worker.loaded), self._free[0])
        self._free.remove(holder)
        return holder

    def _give_back(self, worker: _Worker) -> None:
        with self._changed:
            if worker in self._alive:
                self._free.append(worker)
                self._changed.notify()
            else:
                worker.pipe.close()

    # --- the processes ------------------------------------------------------------------------------------------------

    def _launch(self) -> _Worker:
        """Start a process and return it once its models are prepared."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: S603 (this interpreter, our own words)
                [sys.executable, "-P", "-c", _WORKER, str(theirs.fileno())],  # -P: not from the working directory
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for the server, which ends its workers in order
            )
        worker = _Worker(process, Pipe(ours))
        with self._changed:
            self._alive.add(worker)
        try:
            worker.pipe.send(msgspec.msgpack.encode(self._start))
            answer = msgspec.msgpack.decode(worker.pipe.recv()[0], type=known(Ready | NotReady))
        except (EOFError, OSError):
            answer = NotReady("", "ended")
        except BaseException:
            self._lose(worker, ours=True)
            raise
        if isinstance(answer, NotReady):
            self._lose(worker, ours=True)
            raise _why(answer)
        worker.abouts = answer.abouts
        with self._changed:
            if not self._closing.is_set():
                self._free.append(worker)
                self._changed.notify()
                return worker
        self._lose(worker, ours=True)
        raise busy("the server is stopping")

    def _lose(self, worker: _Worker, *, ours: bool = False) -> None:
        """Forget a process that has ended, or end it. Its pipe is closed by who uses it: us if it is free or `ours`."""
        with self._changed:
            self._alive.discard(worker)
            if worker in self._free:
                self._free.remove(worker)
                ours = True
        worker.process.kill()
        worker.process.wait()
        if ours:
            worker.pipe.close()

    def _keep(self, worker: _Worker) -> None:
        """Replace a process whenever it ends, at growing intervals if it does so at once; until `close`."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            worker.process.wait()
            if self._closing.is_set():
                return
            self._lose(worker)
            if time.monotonic() - worker.began > _SHORT_LIFE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            while not self._closing.wait(pause):
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                with suppress(errors.ConfideError):
                    worker = self._launch()
                    self._restarts += 1
                    break
            else:
                return

    def close(self) -> None:
        """Let the workers that have nothing to do end by themselves, and end the others."""
        self._closing.set()
        with self._changed:
            free, self._free = self._free, []
            alive = list(self._alive)
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
                worker.process.kill()
                worker.process.wait()
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
    work = Pool(source, store=str(store), limits=limits)
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


def _why(answer: NotReady) -> Exception:
    """Return the error of a worker that could not start, as its server raises it."""
    kind = getattr(errors, answer.kind, None)
    if isinstance(kind, type) and issubclass(kind, errors.ConfideError):
        made = kind.__new__(kind)  # without the constructor, which for some takes more than the text
        made.args = (answer.text,)
        return made
    return UsageError(f"Expected a worker process to start, got {answer.text}; see standard error")
