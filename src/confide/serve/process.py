"""One worker process as its server sees it: started, given its models to prepare, followed, ended."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import OrderedDict

import msgspec

from confide import errors
from confide.errors import UsageError
from confide.serve.pipe import Pipe
from confide.serve.served import About
from confide.serve.worker import Done, NotReady, Ready, Start
from confide.structs import known

_WORKER = "import sys; from confide.serve.worker import main; main(int(sys.argv[1]))"


class Worker:
    """One process and the socket to it; whoever uses the pipe closes it.

    Raises:
        UsageError: the system gives no more processes, files or memory; nothing is left open.
    """

    def __init__(self) -> None:
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    self.process = _started(theirs)
                except BaseException:
                    ours.close()
                    raise
        except OSError as error:
            raise UsageError(
                f"Expected room for a worker process, got {error.strerror}; allow more processes, files or memory"
            ) from None
        self.pipe = Pipe(ours)
        self.abouts: tuple[About, ...] = ()
        self.began = time.monotonic()
        self.loaded: OrderedDict[str, None] = OrderedDict()  # key ids, as far as we know; the latest stands last
        self.loaded_keys = self.loaded_bytes = 0

    def prepare(self, start: Start, *, seconds: float) -> None:
        """Wait until the models are prepared.

        Raises:
            ModelError, StoreError, UsageError: what kept it from that, as its server raises it; the process is to be
                ended then.
        """
        deadline = time.monotonic() + seconds
        try:
            self.pipe.send(msgspec.msgpack.encode(start), deadline=deadline)
            answer = msgspec.msgpack.decode(self.pipe.recv(deadline=deadline)[0], type=known(Ready | NotReady))
        except TimeoutError:
            answer = NotReady("", f"nothing within start_seconds={seconds:g}")
        except (EOFError, OSError):
            answer = NotReady("", "ended")
        if isinstance(answer, NotReady):
            raise _why(answer)
        self.abouts = answer.abouts
        self.began = time.monotonic()

    def note(self, key_id: str, done: Done) -> None:
        """Follow what the worker holds: the same keys in the same order, cut to the same number."""
        self.loaded_keys, self.loaded_bytes = done.loaded_keys, done.loaded_bytes
        if key_id and not done.refused:
            self.loaded.pop(key_id, None)
            self.loaded[key_id] = None
        while len(self.loaded) > done.loaded_keys:
            self.loaded.popitem(last=False)

    def end(self) -> None:
        """Kill the process and wait for its end; the pipe stays."""
        self.process.kill()
        self.process.wait()


def _started(theirs: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (this interpreter, our own words)
        [sys.executable, "-P", "-c", _WORKER, str(theirs.fileno())],  # -P: not from the working directory
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        process_group=0,  # Ctrl-C is for the server, which ends its workers in order
    )


def _why(answer: NotReady) -> Exception:
    """Return the error of a worker that could not start, as its server raises it."""
    kind = getattr(errors, answer.kind, None)
    if isinstance(kind, type) and issubclass(kind, errors.ConfideError):
        made = kind.__new__(kind)  # without the constructor, which for some takes more than the text
        made.args = (answer.text,)
        return made
    return UsageError(f"Expected a worker process to start, got {answer.text}; see standard error")
