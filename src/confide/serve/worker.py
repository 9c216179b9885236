"""A worker process: prepares the models once, then answers one job after the other over a socket to its server.

    server -> worker   Start
    worker -> server   Ready, or NotReady and the end
    server -> worker   Job with its body
    worker -> server   Done with its body

Heads are MessagePack of fixed structs, bodies are bytes as the client sent them (`pipe`). The worker reads nothing
else, ignores the signals that are meant for its server, and ends when the server does. Between two jobs it prepares
what the next one may need, piece by piece.
"""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import suppress

import msgspec

from confide.crypto.random import SystemRandomness
from confide.errors import ConfideError
from confide.serve.keys import open_stores
from confide.serve.limits import Limits
from confide.serve.pipe import Pipe
from confide.serve.served import About, Answered
from confide.serve.source import Source
from confide.serve.work import Local, place_of, refusal_of
from confide.structs import known


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a worker needs.

    Args:
        path: where modules are looked for.
        source: of the models.
        store: where the keys and counts are, as `open_stores` takes it.
        limits: the server's.
    """

    path: tuple[str, ...]
    source: Source
    store: str
    limits: Limits


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The models are prepared."""

    abouts: tuple[About, ...]


class NotReady(msgspec.Struct, frozen=True, tag=True):
    """They cannot be; `kind` is the error's class, "" for a bug."""

    kind: str
    text: str


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One request; its body follows."""

    kind: str  # "register" or "infer"
    model: str
    backend: str
    caller: str
    header_length: int | None = None


class Refused(msgspec.Struct, frozen=True):
    """A `Refusal`, and where the bug was if it is one."""

    status: int
    code: str
    text: str
    retry_after_seconds: int | None
    place: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The outcome of a job; the reply's body follows, empty where it was refused.

    Args:
        header_length, seconds: as in `Answered`.
        refused: instead of an answer.
        loaded_keys, loaded_bytes: what this process holds now.
    """

    header_length: int | None = None
    seconds: float = 0.0
    refused: Refused | None = None
    loaded_keys: int
    loaded_bytes: int


def main(descriptor: int) -> None:
    """Work for the server at the other end of the socket `descriptor` until it closes it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal or a service manager: the server ends us in order
        signal.signal(number, signal.SIG_IGN)
    pipe = Pipe(socket.socket(fileno=descriptor))
    with suppress(EOFError, OSError):  # the server has ended, or wants us to
        start: Start = msgspec.msgpack.decode(pipe.recv()[0], type=known(Start))
        sys.path[:] = start.path
        if work := _prepared(start, pipe):
            try:
                _serve(work, pipe)
            finally:
                work.close()


def _serve(work: Local, pipe: Pipe) -> None:
    while True:
        while not pipe.poll() and work.prepare_ahead():
            pass  # for as long as nobody asks
        head, body = pipe.recv()
        done, reply = _answer(work, msgspec.msgpack.decode(head, type=known(Job)), body)
        pipe.send(msgspec.msgpack.encode(done), reply)
        del head, body, reply  # of many megabytes, until the next job


def _prepared(start: Start, pipe: Pipe) -> Local | None:
    """Return the work, or None after telling the server why there is none."""
    answer: Ready | NotReady
    work = None
    try:
        stores = open_stores(start.store, start.limits)
        work = Local(
            start.source.models(),
            store=stores.keys,
            usage=stores.usage,
            limits=start.limits,
            rng=SystemRandomness(),
        )
        answer = Ready(work.abouts)
    except ConfideError as error:
        answer = NotReady(type(error).__name__, str(error))
    except Exception as error:
        answer = NotReady("", place_of(error))
    pipe.send(msgspec.msgpack.encode(answer))
    return work


def _answer(work: Local, job: Job, body: bytes) -> tuple[Done, bytes]:
    refused, answered = None, Answered(b"", None, 0.0)
    try:
        about = work.served[job.model, job.backend].about
        if job.kind == "register":
            answered = work.register(about, body, job.caller)
        else:
            answered = work.infer(about, body, job.header_length, job.caller)
    except Exception as error:
        refusal = refusal_of(error)
        place = place_of(error) if refusal.status == 500 else ""
        refused = Refused(refusal.status, refusal.code, refusal.text, refusal.retry_after_seconds, place)
    figures = work.figures()
    done = Done(
        header_length=answered.header_length,
        seconds=answered.seconds,
        refused=refused,
        loaded_keys=figures.loaded_keys,
        loaded_bytes=figures.loaded_bytes,
    )
    return done, answered.body


if __name__ == "__main__":
    main(int(sys.argv[1]))
