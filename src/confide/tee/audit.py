"""A file of JSON lines that only grows, and whose line is on the disk before what it tells of happens.

Guarantees:
    `append` returns once the line is on the disk, or raises; then it is there wholly or not at all, unless the machine
    stopped meanwhile: what a cut power left of a line is followed by a line break, and the next line is whole.
    Several processes may write one file.

The file is opened anew for each line, so that it may be moved away at any time; the next line begins a new one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from confide.errors import StoreError, UsageError

#: How long another process may hold the file; a line takes milliseconds.
WAIT_SECONDS = 5.0


class AuditFile:
    """The lines.

    Args:
        path: made with mode 0600 if absent; its folder is there.

    Raises:
        UsageError: it cannot be written, or is no file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            os.close(self._opened())
        except (OSError, StoreError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or "it is no file"
            raise UsageError(f"Expected an audit file that can be written at {self._path}; {why}") from None

    def append(self, line: Mapping[str, object]) -> None:
        """Write one line. Raises StoreError if it is not on the disk for certain; act as if it had not happened."""
        body = msgspec.json.encode(line) + b"\n"
        try:
            descriptor = self._opened()
            try:
                _lock(descriptor)
                self._write(descriptor, body)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(f"Expected to write the audit file {self._path.name}; {error.strerror}") from None

    def _write(self, descriptor: int, body: bytes) -> None:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a line that a crash has torn
            body = b"\n" + body
        written = 0
        try:
            while written < len(body):
                written += os.write(descriptor, body[written:])
        except OSError:
            with suppress(OSError):  # as above, then
                os.ftruncate(descriptor, size)
            raise

    def _opened(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # which a pipe would wait for
        try:
            descriptor = os.open(self._path, flags)
        except FileNotFoundError:
            descriptor = os.open(self._path, flags | os.O_CREAT, 0o600)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the new name itself
            finally:
                os.close(folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StoreError(f"Expected the audit file {self._path.name} to be a file")
        return descriptor


def _lock(descriptor: int) -> None:
    """Hold the file until it is closed. Raises OSError where another process holds it for longer than a line takes."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise OSError(errno.EBUSY, "another process holds it; stop that one") from None
            time.sleep(0.01)
