"""Where the command line prints: data on standard output, everything else on standard error."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_AGAIN_SECONDS = 0.05

out = Console(soft_wrap=True, markup=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def progress_bars() -> Progress:
    """Return progress bars on standard error, so that standard output stays data."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=err)


@contextmanager
def warnings_as_lines() -> Generator[None]:
    """Print warnings as one line each, without the source line that Python adds."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        err.print(f"warning: {one_line(str(warning.message))}")


@contextmanager
def stops_cleanly() -> Generator[None]:
    """Take SIGTERM, by which services are stopped, as Ctrl-C is taken: what is open is closed, and peers are told.

    Python drops an exception that a signal raises while an object is deleted; here that signal is sent again.
    """

    def stop(number: int, _: object) -> None:
        raise typer.Exit(128 + number)

    def dropped(what: sys.UnraisableHookArgs) -> None:
        match what.exc_value:
            case KeyboardInterrupt():
                number = signal.SIGINT
            case typer.Exit(exit_code=code) if code == 128 + signal.SIGTERM:
                number = signal.SIGTERM
            case _:
                return hook(what)
        again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return None

    if threading.current_thread() is not threading.main_thread():  # signals are not this thread's
        yield
        return
    before, hook = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


#: Python arguments that are options here, where a text names one.
_ARGUMENTS = (
    r"\b(api_keys\b|ca_file\b|insecure_plain_http\b|kit_sha256\b|private_key\b|query_quota\b|trust(?==))"
    r"(?=[= ,;:]|$)"
)


def one_line(text: str) -> str:
    """Return a text as one line that speaks of options instead of Python's arguments."""
    lines = [line.strip().rstrip(";") for line in text.splitlines()]
    line = "; ".join(line for line in lines if line).replace(":;", ":")
    return re.sub(_ARGUMENTS, lambda found: f"--{found[1].replace('_', '-')}", line)


def plain(text: str) -> str:
    """Return a text of somebody else's without what could move a cursor, turn letters around or break the line."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
