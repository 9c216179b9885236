"""The record of a run: JSON lines, each carrying the hash of the line before it and, if somebody signs, a signature.

Whoever holds the last hash (the saved model's label carries it, nodes keep it) can tell whether any earlier line was
changed, removed, added or reordered. A chain alone does not stop its own author, who can write another one: nodes
countersign its lines (`confide.train.witness`), and the author appends what they signed. `confide.train.ledger_check`
reads all of it back.

A ledger holds names, counts of parties, bytes, seconds, hashes and epsilons; never a value computed from records
without the protection that the job asked for.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from confide.crypto.keys import SigningKey
from confide.errors import IntegrityError, StoreError, UsageError
from confide.train.ledger_check import verify
from confide.train.ledger_lines import BEGINS, COUNTERSIGNED, GENESIS, Line, Value, read_line, write_line

__all__ = ["GENESIS", "Ledger", "Value", "verify"]


class Ledger:
    """An append-only chain, in memory or, if a path is given, on disk before `append` returns.

    Args:
        path: the file to write, or None. An existing file is verified and continued; a last line without its end was
            never acknowledged (a full disk, a crash) and is dropped.
        signer: signs every line; the first line of a run names its public key. Nobody signs if None.
        patiently: calls what adds a line, again if it likes after a StoreError (`confide.store.Patient.patiently`).

    Its attributes: `head`, the last line's hash; `entries`, lines; `spent`, the epsilon of the runs that were in the
    file already.

    **Guarantees**: an entry is on disk, whole, when `append` returns, or not there at all; of two runs that write to
    one file, the later writer is refused.

    Raises:
        IntegrityError: the existing file does not hold.
        UsageError: the file cannot be read or written to.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        signer: SigningKey | None = None,
        patiently: Callable[[Callable[[], int]], int] = lambda call: call(),
    ) -> None:
        self._path, self._signer, self._patiently = path, signer, patiently
        self._kept: list[bytes] = []  # in memory only where there is no file: a run of months would fill it
        self._size_bytes = 0
        self._last: Line | None = None
        self._author: bytes | None = None  # who must sign the next line, unless it begins a run
        self.head = GENESIS
        self.entries = 0
        self.spent: float | None = None
        if path is not None and path.exists():
            self._size_bytes = _without_torn_line(path)
            before = verify(path)
            self.entries, self.head, self.spent = before.entries, before.head, before.epsilon
            self._author, self._last = before.signer, before.last

    def append(self, event: str, fields: Mapping[str, Value]) -> str:
        """Add one entry and return its hash; an entry that is the last one already is not added again.

        Raises:
            IntegrityError: the run was begun by another signer, and only a new run may change that.
            StoreError: there is no room for the entry, or no file; what is there is as it was.
            UsageError: another run wrote to the file.
        """
        if event in BEGINS and self._signer is not None:
            fields = {**fields, "signer": self._signer.public.hex()}
        if self._last is not None and self._last.says(event, fields) and len(self._last.entry) == len(fields) + 2:
            return self.head
        mine = self._signer.public if self._signer else None
        if event not in BEGINS and mine != self._author:
            raise IntegrityError(
                f"Expected the signer who began this run; a line {' or '.join(BEGINS)} begins one for another key"
            )
        line, digest = write_line(self.head, event, fields, self._signer)
        if self._path is not None:
            path, size_bytes = self._path, self._size_bytes
            self._size_bytes = self._patiently(lambda: _append_whole(path, line, size_bytes))
        else:
            self._kept.append(line)
        self._last, self._author = read_line(line), mine
        self.head = digest
        self.entries += 1
        return digest

    def countersigned(self, line: str, by: Mapping[str, bytes]) -> str:
        """Add the signatures that nodes gave for an earlier line, and return the new entry's hash.

        Args:
            line: the hash of the line that they signed.
            by: signatures of 64 bytes by node, from `Witness.see`.
        """
        return self.append(COUNTERSIGNED, {"line": line, "by": {name: by[name].hex() for name in sorted(by)}})

    def lines_after(self, head: str | None = None) -> Iterator[bytes]:
        """Yield the lines after the one with the hash `head`, whole and in order, as a `Witness` reads them.

        Args:
            head: the last line that somebody has seen; None or GENESIS starts at the first.

        Raises:
            UsageError: no line has that hash, or the file cannot be read.
        """
        known = head in (None, GENESIS)
        for body in self._lines():
            if known:
                yield body
            known = known or (str(head).encode() in body and read_line(body).hash == head)
        if not known:
            raise UsageError(f"Expected a line with the hash {str(head)[:16]}... in the ledger; it keeps another one")

    def lines_from(self, place: int) -> tuple[list[bytes], int]:
        """Return the lines from `place` on and the place after them; 0 is the first line's.

        Raises:
            UsageError: the file cannot be read.
        """
        if self._path is None:
            return self._kept[place:], len(self._kept)
        try:
            with self._path.open("rb") as file:
                file.seek(place)
                body = file.read(self._size_bytes - place)
        except OSError as error:
            raise UsageError(f"Expected a readable ledger at {self._path}; {error.strerror}") from None
        return body.splitlines(keepends=True), place + len(body)

    def width(self, body: bytes) -> int:
        """Return how far the place after a line is from its own."""
        return 1 if self._path is None else len(body)

    def run_place(self) -> int:
        """Return the place of the latest run's first line, for `lines_from`."""
        place = found = 0
        for body in self._lines():
            if read_line(body).begins:
                found = place
            place += self.width(body)
        return found

    def run_lines(self) -> list[bytes]:
        """Return the lines of the latest run, from its first: what a node without a head is sent."""
        found: list[bytes] = []
        for body in self._lines():
            if read_line(body).begins:
                found = []
            found.append(body)
        return found

    def find(self, event: str, **fields: Value) -> Line | None:
        """Return the last line of the latest run that records `event` with these fields, or None."""
        found = None
        for body in self._lines():
            line = read_line(body)
            if line.begins:
                found = None
            if line.says(event, fields):
                found = line
        return found

    def _lines(self) -> Iterator[bytes]:
        if self._path is None:
            yield from self._kept
            return
        try:
            if self.entries:
                with self._path.open("rb") as file:
                    for _ in range(self.entries):
                        yield file.readline()
        except OSError as error:
            raise UsageError(f"Expected a readable ledger at {self._path}; {error.strerror}") from None


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
        if not size_bytes:
            _sync_folder(path.parent)  # that there is such a file must outlive a crash as well
    except OSError as error:
        raise StoreError(f"Expected to add a line to the ledger {path}; {error.strerror}") from None
    return size_bytes + len(line)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
