"""A peer's script as a process of its own: what it is given, how long it may take, and that nothing of it stays.

The process gets a folder with `task.json` and `arrays.npz`, and leaves `answer.json` there. It sees nothing of this
process's environment, has no standard input, and stands in a group of its own that is ended as one, whatever happens
here. Its answer and what it prints are bounded while it runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    with tempfile.TemporaryDirectory(prefix="confide-peer-") as place:
        folder = Path(place)
        (folder / "task.json").write_bytes(msgspec.json.encode(task))
        np.savez(folder / "arrays.npz", **arrays)  # pyright: ignore[reportArgumentType]
        begin = time.monotonic()
        _run(python, runner, folder, seconds)
        took = time.monotonic() - begin
        answer = folder / "answer.json"
        if answer.is_symlink() or not answer.is_file() or answer.stat().st_size > MOST_ANSWER_BYTES:
            raise ProtocolError(f"Expected an answer of at most {MOST_ANSWER_BYTES} bytes{_said(folder)}")
        return answer.read_bytes(), took


def _run(python: Path, runner: Path, folder: Path, seconds: float) -> None:
    surroundings = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 (the peer's interpreter, our script)
            [str(python), "-E", "-s", "-B", str(runner), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=surroundings,
            start_new_session=True,
        )
    end_at = time.monotonic() + seconds
    try:
        while process.poll() is None:
            if time.monotonic() > end_at:
                raise ProtocolError(f"Expected an answer within {seconds:g} s{_said(folder)}")
            for name, most in (("log", _MOST_LOG_BYTES), ("answer.json", MOST_ANSWER_BYTES)):
                if _size(folder / name) > most:
                    raise ProtocolError(f"Expected at most {most} bytes in {name}")
            time.sleep(_POLL_SECONDS)
    finally:
        end(process)
    if process.returncode:
        raise ProtocolError(f"the peer ended with {process.returncode}{_said(folder)}")


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _said(folder: Path) -> str:
    """Return the last lines that a process has printed, as the end of a sentence."""
    with (folder / "log").open("rb") as log:
        log.seek(max(0, _size(folder / "log") - 4096))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    last = "; ".join([line for line in lines if line][-_LAST_LINES:])
    return f": {printable(last)}" if last else ""
