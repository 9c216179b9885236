"""A peer's script as a process of its own: what it is given, how long it may take, and what is believed of it.

The process gets a folder with `task.json` and `arrays.npz`, and leaves `answer.json` there. It sees nothing of this
process's environment, has no standard input, and stands in a group of its own that is ended as one, whatever happens
here. Its answer and what it prints are bounded while it runs, and read from the files that were opened here or that are
no links. A peer is other people's code that runs as this user all the same: a child that leaves the group is not ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError

#: Bytes of an answer and of what a peer prints, at most.
MOST_ANSWER_BYTES = 64 << 20
_MOST_LOG_BYTES = 64 << 20
_POLL_SECONDS = 0.02
_LAST_LINES = 3


def printable(text: str, *, most: int = 600) -> str:
    """Return somebody else's text without what could move a cursor, and cut to a length."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text)
    return kept if len(kept) <= most else f"{kept[: most // 2]} ... {kept[-most // 2 :]}"


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group, and wait for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def ask(
    python: Path, runner: Path, task: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], *, seconds: float
) -> tuple[bytes, float]:
    """Return what a peer's script answers, unread, and the seconds that its process took.

    Args:
        python: of its environment.
        runner: the script.
        task: of JSON types.
        arrays: by name.
        seconds: after which it is ended.

    Raises:
        ProtocolError: it failed, took too long, wrote too much or left no answer; with its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="confide-peer-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        (folder / "task.json").write_bytes(msgspec.json.encode(task))
        np.savez(folder / "arrays.npz", **arrays)  # pyright: ignore[reportArgumentType]
        with (folder / "log").open("w+b") as log:
            begin = time.monotonic()
            _run([str(python), "-E", "-s", "-B", str(runner), str(folder)], folder, log, seconds)
            took = time.monotonic() - begin
            return _answer(folder / "answer.json", log), took


def _answer(path: Path, log: BinaryIO) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # no link, no pipe
            state = os.fstat(file.fileno())
            body = file.read(MOST_ANSWER_BYTES + 1) if stat.S_ISREG(state.st_mode) else None
    except OSError:
        body = None
    if body is None or len(body) > MOST_ANSWER_BYTES:
        raise ProtocolError(f"Expected an answer of at most {MOST_ANSWER_BYTES} bytes{_said(log)}")
    return body


def _run(command: list[str], folder: Path, log: BinaryIO, seconds: float) -> None:
    surroundings = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder)}
    try:
        process = subprocess.Popen(  # noqa: S603 (the peer's interpreter, our script)
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=surroundings,
            start_new_session=True,
        )
    except OSError as error:
        raise ProtocolError(
            f"Expected an interpreter at {command[0]}; {error.strerror}; `confide peers install --again` makes it anew"
        ) from None
    end_at = time.monotonic() + seconds
    try:
        while process.poll() is None:
            if time.monotonic() > end_at:
                raise ProtocolError(f"Expected an answer within {seconds:g} s{_said(log)}")
            if os.fstat(log.fileno()).st_size > _MOST_LOG_BYTES:
                raise ProtocolError(f"Expected at most {_MOST_LOG_BYTES} bytes in log")
            if _size(folder / "answer.json") > MOST_ANSWER_BYTES:
                raise ProtocolError(f"Expected at most {MOST_ANSWER_BYTES} bytes in answer.json")
            time.sleep(_POLL_SECONDS)
    finally:
        end(process)
    if process.returncode:
        raise ProtocolError(f"the peer ended with {process.returncode}{_said(log)}")


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _said(log: BinaryIO) -> str:
    """Return the last lines that a process has printed, as the end of a sentence."""
    size = os.fstat(log.fileno()).st_size
    body = os.pread(log.fileno(), 4096, max(0, size - 4096))
    lines = [line.strip() for line in body.decode(errors="replace").splitlines()]
    last = "; ".join([line for line in lines if line][-_LAST_LINES:])
    return f": {printable(last)}" if last else ""
