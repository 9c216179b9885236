"""A server process of `confide serve` for as long as a measurement lasts, on a free port of this machine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO

from confide.errors import ServiceError

_STOP_SECONDS = 10.0


@contextlib.contextmanager
def hosted(model: Path, backends: Sequence[str], *options: str) -> Generator[str]:
    """Serve `model` in a process of its own and give its URL; the process is stopped at the end.

    Args:
        model: a model file.
        backends: names, the default first.
        options: further options of `confide serve`.

    Raises:
        ServiceError: the server did not start; the text is its own last line.
    """
    command = [sys.executable, "-m", "confide", "serve", str(model), "--port", "0", *options]
    for backend in backends:
        command += ["--backend", backend]
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(  # noqa: S603 (this interpreter, our own program)
            command, stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as process,
    ):
        try:
            yield _url(process, complaints)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _url(process: subprocess.Popen[str], complaints: IO[str]) -> str:
    """Return the URL that the server prints once it accepts connections."""
    for line in process.stdout or ():
        word = line.split()[-1] if line.split() else ""
        if word.startswith(("http://", "https://")):
            return word
    process.wait(_STOP_SECONDS)
    complaints.seek(0)
    lines = complaints.read().strip().splitlines()
    raise ServiceError(503, lines[-1] if lines else "the server ended before it listened")
