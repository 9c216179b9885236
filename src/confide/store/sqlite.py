"""A store in one SQLite file: the default of every role.

The settings, and what each is for: write-ahead log with synchronous EXTRA, so that a commit is one synchronous write
and survives a power cut; secure_delete, so that deleted bytes are overwritten in the file; pages of 16 kB, because the
sums of a round are large and their overflow chains short then. Freed pages are used again before the file grows.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from itertools import takewhile
from pathlib import Path

from confide.errors import StoreError, UsageError
from confide.store.entries import check_changes, encode_key
from confide.store.lease import Lease, check_name, lock_file, refusal

_PAGE_BYTES = 16 << 10
_CACHE_KILOBYTES = 512  # of memory: the entries that are asked for again are few
_LOG_BYTES = 16 << 20  # size of the log at which it is written back into the file


class SqliteStore:
    """A `DurableStore` in one SQLite file, safe for threads, for several processes and for processes that are killed.

    Args:
        path: the file; made with mode 0600 if absent. None keeps everything in memory, within the same bounds.
        table: lower-case letters and '_'; the tables of one file share nothing but the file.
        max_uploads: commits whose entries are kept; None keeps all. The oldest leave first.
        max_bytes: bytes of values that are kept; None keeps all.
        lifetime_seconds: age at which entries are forgotten; None keeps them.
        wait_seconds: how long to wait for another process that is writing.
        clock: seconds since the epoch.

    Raises:
        UsageError: the file is something else, cannot be written, or others can read it.

    Guarantees:
        A commit is on disk, whole, before `commit` returns; a crash or a power cut leaves all of it or none.
        Entries of one commit are forgotten together.
        Nobody but the file's owner can read it.
        After `scrub` and after `close`, nothing that was deleted is left in its files.
        A file that was moved or replaced meanwhile takes no commit that would be lost.
    """

    def __init__(
        self,
        path: str | Path | None,
        *,
        table: str = "entries",
        max_uploads: int | None = None,
        max_bytes: int | None = None,
        lifetime_seconds: float | None = None,
        wait_seconds: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not re.fullmatch("[a-z][a-z_]{0,30}", table):
            raise UsageError(f"Expected table={table!r} to be lower-case letters and '_'")
        self._table = table
        self._max_uploads = max_uploads
        self._max_bytes = max_bytes
        self._lifetime_seconds = lifetime_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._leases: set[str] = set()
        try:
            self._path = None if path is None else Path(path).resolve()
        except (OSError, RuntimeError):  # links in a circle
            raise UsageError(
                f"Expected a path to a file, got {path}, whose links lead nowhere; name the file"
            ) from None
        self._name = ":memory:" if self._path is None else self._path.name
        self._connection = _open(self._path, self._name, table, wait_seconds)
        self._identity = _identity(self._path)

    def get(self, key: str) -> bytes | None:
        encode_key(key)
        sql = f"SELECT value FROM {self._table} WHERE key = ? AND written > ?"  # noqa: S608
        with self._lock, self._errors("nothing was read"):
            row = self._connection.execute(sql, (key, self._oldest())).fetchone()
            return None if row is None else self._value(row)

    def keys(self, prefix: str = "") -> list[str]:
        encode_key(prefix)
        sql = f"SELECT key FROM {self._table} WHERE key >= ? AND written > ? ORDER BY key"  # noqa: S608
        with self._lock, self._errors("nothing was read"):
            rows = self._connection.execute(sql, (prefix, self._oldest()))
            with closing(rows):  # the end of the reading: what follows the prefix is never looked at
                return list(takewhile(lambda key: key.startswith(prefix), (str(row[0]) for row in rows)))

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes` or none of it; None deletes.

        Raises:
            UsageError: a key that some store cannot hold.
            StoreError: the file does not take it, or one commit is larger than the whole store may be.
        """
        size = check_changes(changes)
        if self._max_bytes is not None and size > self._max_bytes:
            raise StoreError(f"Expected values of at most {self._max_bytes} bytes together, got {size}")
        with self._lock, self._errors("nothing was written"), self._transaction():
            self._put(changes)

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace the value under `key` by what `change` makes of it; no other process writes in between.

        Raises:
            UsageError, StoreError: as `commit`; and whatever `change` raises, then nothing is written.
        """
        encode_key(key)
        sql = f"SELECT value FROM {self._table} WHERE key = ? AND written > ?"  # noqa: S608
        with self._lock, self._errors("nothing was written"), self._transaction():
            row = self._connection.execute(sql, (key, self._oldest())).fetchone()
            changes = {key: change(None if row is None else self._value(row))}
            check_changes(changes)
            self._put(changes)

    def stored_bytes(self) -> int:
        """Return how many bytes the values have together."""
        with self._lock, self._errors("nothing was read"):
            row = self._connection.execute(f"SELECT sum(size) FROM {self._table}").fetchone()  # noqa: S608
        return row[0] or 0

    def exclusive(self, name: str) -> Lease:
        """Return the lease called `name`: nobody else gets it until it is released or this process has ended.

        Raises:
            UsageError: somebody holds it; the text names the process.
        """
        if self._path is not None:
            return lock_file(Path(f"{self._path}.{check_name(name)}.lease"), name)
        if check_name(name) in self._leases:
            raise refusal(name, f"process {os.getpid()}")
        self._leases.add(name)
        return Lease(name, lambda: self._leases.discard(name))

    def scrub(self) -> None:
        """Leave nothing of what was deleted in the files, the log included: some milliseconds, best between rounds.

        Raises:
            StoreError: the file cannot be written, or another process reads it just now.
        """
        with self._lock, self._errors("deleted entries may still be in its log"):
            busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise StoreError(f"Expected {self._name} not to be read meanwhile; deleted entries may still be in its log")

    def close(self) -> None:
        """Close the file. Leases stay with whoever holds them."""
        with self._lock:
            self._connection.close()

    def _value(self, row: tuple[object, ...]) -> bytes:
        if not isinstance(row[0], bytes):  # the table takes nothing else
            raise StoreError(_damaged(self._name, "nothing was read"))
        return row[0]

    def _oldest(self) -> float:
        return -1.0 if self._lifetime_seconds is None else self._clock() - self._lifetime_seconds

    def _put(self, changes: Mapping[str, bytes | None]) -> None:
        upload = self._next_upload()
        for key, value in changes.items():
            self._connection.execute(f"DELETE FROM {self._table} WHERE key = ?", (key,))  # noqa: S608
            if value is not None:
                row = (key, len(value), upload, self._clock(), value)
                columns = "(key, size, upload, written, value)"
                self._connection.execute(
                    f"INSERT INTO {self._table} {columns} VALUES (?, ?, ?, ?, ?)",  # noqa: S608
                    row,
                )
        self._forget()

    def _next_upload(self) -> int:
        row = self._connection.execute(f"SELECT max(upload) FROM {self._table}").fetchone()  # noqa: S608
        return (row[0] or 0) + 1

    def _forget(self) -> None:
        """Delete what is too old, then whole uploads, oldest first, until the bounds hold."""
        if self._lifetime_seconds is not None:
            self._connection.execute(f"DELETE FROM {self._table} WHERE written <= ?", (self._oldest(),))  # noqa: S608
        if self._max_uploads is None and self._max_bytes is None:
            return
        sql = f"SELECT upload, sum(size) FROM {self._table} GROUP BY upload ORDER BY upload DESC"  # noqa: S608
        total = 0
        for kept, (upload, size) in enumerate(self._connection.execute(sql).fetchall(), start=1):
            total += size
            too_many = self._max_uploads is not None and kept > self._max_uploads
            if too_many or (self._max_bytes is not None and total > self._max_bytes):
                self._connection.execute(f"DELETE FROM {self._table} WHERE upload <= ?", (upload,))  # noqa: S608
                return

    @contextmanager
    def _transaction(self) -> Generator[None]:
        if _identity(self._path) != self._identity:
            raise StoreError(
                f"Expected {self._name} where it was opened, but it was moved or replaced; nothing was written. Put it "
                "back, then start again"
            )
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # some errors have rolled back already
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self, consequence: str) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(_explain(error, self._name, consequence)) from None
        except UnicodeDecodeError:  # SQLite says what is wrong in the bytes of a damaged file
            raise StoreError(_damaged(self._name, consequence)) from None


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Return what tells a file from another one of the same name."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _explain(error: sqlite3.Error, name: str, consequence: str) -> str:
    code = getattr(error, "sqlite_errorcode", 0)
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return f"Expected room on the disk of {name}; {consequence}. Make room, then go on"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f"Expected {name} and its folder to be writable; {consequence}. Allow that, then go on"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"Expected {name} to be free, but another process kept writing; {consequence}. Stop it, then go on"
        case sqlite3.SQLITE_IOERR:
            return (
                f"Expected the disk of {name} to work; after a crash now the commit would be there wholly or not at "
                "all. Check the disk and its free space, then go on"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _damaged(name, consequence)
        case _:
            return f"Expected {name} to take this, but SQLite says {type(error).__name__}; {consequence}"


def _damaged(name: str, consequence: str) -> str:
    return f"Expected {name} to be whole, but it is damaged; {consequence}. Restore it from a backup"


def _open(path: Path | None, name: str, table: str, wait_seconds: float) -> sqlite3.Connection:
    try:
        if path is not None:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
                raise UsageError(
                    f"Expected {name} to be readable by its owner alone, since it may hold keys; run chmod 600 on it"
                )
        place = path or ":memory:"
        connection = sqlite3.connect(place, isolation_level=None, check_same_thread=False, timeout=wait_seconds)
        try:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # of a new file; an old one keeps its own
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KILOBYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = EXTRA")  # FULL, and also where a file system has no such log
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_BYTES // _PAGE_BYTES}")
            connection.execute(f"PRAGMA journal_size_limit = {4 * _LOG_BYTES}")
            connection.execute(
                # The value last: what stands behind a large one is only reached by reading all of it.
                f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, size INTEGER NOT NULL,"
                " upload INTEGER NOT NULL, written REAL NOT NULL, value BLOB NOT NULL) STRICT"
            )
            connection.execute(f"CREATE INDEX IF NOT EXISTS {table}_by_upload ON {table} (upload, size)")
        except BaseException:
            connection.close()
            raise
    except (OSError, sqlite3.DatabaseError, UnicodeDecodeError):
        raise UsageError(f"Expected {name} to be a store, or a new file in a folder that can be written") from None
    return connection
