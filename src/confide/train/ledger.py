"""The record of a run: JSON lines, each carrying the hash of the line before it.

    {"previous": hex, "event": "round", ..., "hash": SHA-256(canonical JSON of everything but "hash")}

Whoever holds the last hash (the saved model's label carries it) can tell whether any earlier line was changed, removed,
added or reordered. A ledger holds names, counts of parties, bytes, hashes and epsilons; never a value computed from
records without noise.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from confide.errors import IntegrityError, UsageError

Value = str | int | float | bool | None | list[str] | dict[str, float]

#: What the first line of every ledger names as its predecessor.
GENESIS = "0" * 64

#: A line longer than this was not written by confide.
MAX_LINE_BYTES = 1 << 20


def _digest(entry: Mapping[str, Value]) -> str:
    """Return SHA-256 over the entry as JSON with sorted keys and no spaces."""
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Ledger:
    """An append-only chain, in memory and, if a path is given, on disk before `append` returns.

    Args:
        path: the file to write, or None. An existing file is verified and continued; a last line without its end was
            never acknowledged (a full disk, a crash) and is dropped.

    Raises:
        IntegrityError: the existing file's chain does not hold.
        UsageError: the file cannot be read or written to.

    **Guarantees**: an entry is on disk, whole, when `append` returns, or not there at all; of two runs that write to
    one file, the later writer is refused.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._size_bytes = 0
        self.head = GENESIS
        self.entries = 0
        self.spent: float | None = None  # by runs that are in the file already
        if path is not None and path.exists():
            self._size_bytes = _without_torn_line(path)
            before = verify(path)
            self.entries, self.head, self.spent = before.entries, before.head, before.epsilon

    def append(self, event: str, fields: Mapping[str, Value]) -> str:
        """Add one entry and return its hash.

        Raises:
            UsageError: another run wrote to the file, or there is no room for the entry; the file is as it was.
        """
        entry: dict[str, Value] = {"previous": self.head, "event": event, **fields}
        digest = _digest(entry)
        if self._path is not None:
            line = json.dumps(entry | {"hash": digest}, sort_keys=True, allow_nan=False) + "\n"
            self._size_bytes = _append_whole(self._path, line.encode(), self._size_bytes)
        self.head = digest
        self.entries += 1
        return digest


def _without_torn_line(path: Path) -> int:
    """Cut off a last line without its end, and return the size of the file."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            body = file.read()
            whole = body.rfind(b"\n") + 1
            if whole < len(body):
                file.truncate(whole)
            return whole
    except OSError as error:
        raise UsageError(f"Expected a ledger that can be written to at {path}; {error.strerror}") from None


def _append_whole(path: Path, line: bytes, size_bytes: int) -> int:
    """Append a line to a file of `size_bytes`, or leave the file as it was; return its new size."""
    try:
        with path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size != size_bytes:
                raise UsageError(f"Expected no other run to write to {path}; start again, or name another ledger")
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size_bytes)
                raise
    except OSError as error:
        raise UsageError(f"Expected to add a line to the ledger {path}; {error.strerror}") from None
    return size_bytes + len(line)


@dataclass(frozen=True, slots=True)
class Verified:
    """A ledger whose chain holds.

    Args:
        entries: lines.
        head: hash of the last line.
        later: lines after the one that was asked for, of later runs; 0 if none was asked for.
        runs: trainings that were begun.
        epsilon: of all runs together by basic composition, as far as they share records; None without any.
    """

    entries: int
    head: str
    later: int
    runs: int
    epsilon: float | None


def verify(path: Path, *, head: str | None = None) -> Verified:
    """Check a ledger from its first line to its last.

    Args:
        path: the file.
        head: the hash of a line that must be there (from a model's label), if known. Without it a ledger whose last
            lines were cut off still verifies; with it, every line up to that model's is there.

    Raises:
        UsageError: the file is absent or unreadable.
        IntegrityError: naming the first line that does not hold.
    """
    previous, count, found, runs = GENESIS, 0, None, 0
    spent: dict[int, float] = {}  # by run: what its last round had spent, also if it never ended
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                count += 1
                entry = _verified(line, count, previous)
                previous = str(entry["hash"])
                found = count if previous == head else found
                runs += entry.get("event") == "job"
                epsilon = entry.get("epsilon")
                if isinstance(epsilon, float | int):
                    spent[runs] = float(epsilon)
    except OSError as error:
        raise UsageError(f"Expected a readable ledger at {path}; {error.strerror}") from None
    if head is not None and found is None:
        raise IntegrityError(f"Expected a line with the hash {head[:16]}... in the ledger; its last lines were cut off")
    return Verified(count, previous, count - found if found else 0, runs, sum(spent.values()) if spent else None)


def _verified(line: bytes, number: int, previous: str) -> dict[str, object]:
    """Return one line after checking it against its hash and its predecessor."""
    try:
        if len(line) > MAX_LINE_BYTES or not line.endswith(b"\n"):
            raise ValueError
        entry = json.loads(line)
        stated = entry.pop("hash")
        if entry["previous"] != previous or _digest(entry) != stated:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise IntegrityError(
            f"Line {number} of the ledger does not hold: it was changed, removed or reordered"
        ) from None
    return entry | {"hash": stated}
