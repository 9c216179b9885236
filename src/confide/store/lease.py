"""Leases: that one process, and no second one, works on something."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

from confide.errors import StoreError, UsageError


class Lease:
    """Held from `exclusive` until `release`, the end of a `with` block, or the end of the process, kill -9 included.

    Args:
        name: what it is about.
        end: gives it back.
    """

    def __init__(self, name: str, end: Callable[[], None]) -> None:
        self.name = name
        self._end: Callable[[], None] | None = end

    def release(self) -> None:
        """Let the next one have it; a second call does nothing."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def check_name(name: str) -> str:
    """Return `name`. Raises UsageError unless it is letters, digits, '-', '_' and '.', at most 64."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise UsageError(f"Expected name={name!r} to be 1 to 64 letters, digits, '-', '_' and '.'")
    return name


def refusal(name: str, holder: str) -> UsageError:
    """Return the error for whoever asks for a lease that somebody holds."""
    return UsageError(
        f"Expected nobody else to hold {name!r} of this store, but {holder} does; stop it first, or give this one a "
        "store of its own"
    )


def lock_file(path: Path, name: str) -> Lease:
    """Take the lease that a lock on a side file stands for; the kernel drops it with the process.

    The file stays: whoever removed it could not know that nobody else has just opened it.

    Raises:
        UsageError: somebody holds it.
        StoreError: the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"Expected to write {path.name} beside the store: {error.strerror}; mend that first") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _note_holder(descriptor)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise refusal(name, f"process {holder}" if holder.isdigit() else "another process") from None
    except OSError as error:
        os.close(descriptor)
        raise StoreError(f"Expected {path.name} on a file system with locks: {error.strerror}") from None
    return Lease(name, lambda: os.close(descriptor))


def _note_holder(descriptor: int) -> None:
    """Write this process's id, for the text of a refusal only; on a full disk the lock holds without it."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except OSError:
        return
