"""Stores that outlive a process: one SQLite file for a server's public keys, or for a client's secrets.

A server's file forgets by age and by size; what one upload wrote leaves together, so no half of it is ever found.
A client's file forgets nothing. Both are readable by their owner alone.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from confide.errors import UsageError
from confide.serve.limits import Limits
from confide.serve.protocol import Refusal
from confide.wire import Store

_TABLES = ("keys", "usage")


class SqliteStore:
    """A `wire.Store` in one SQLite file, safe for threads and for processes that are killed.

    Args:
        path: the file; made with mode 0600 if absent. None keeps everything in memory, within the same bounds.
        table: "keys" or "usage"; the two share a file and nothing else.
        max_uploads: commits whose entries are kept; None keeps all. The oldest leave first.
        max_bytes: bytes of values that are kept; None keeps all.
        lifetime_seconds: age at which entries are forgotten; None keeps them.
        clock: seconds since the epoch.

    Guarantees:
        A commit is on disk, whole, before `commit` returns; a crash leaves all of it or none.
        Entries of one commit are forgotten together.
        Nobody but the file's owner can read it.
    """

    def __init__(
        self,
        path: str | Path | None,
        *,
        table: str = "keys",
        max_uploads: int | None = None,
        max_bytes: int | None = None,
        lifetime_seconds: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if table not in _TABLES:
            raise UsageError(f"Expected table={table!r} to be one of {', '.join(_TABLES)}")
        self._table = table
        self._max_uploads = max_uploads
        self._max_bytes = max_bytes
        self._lifetime_seconds = lifetime_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._connection = _open(path, table)

    def get(self, key: str) -> bytes | None:
        sql = f"SELECT value FROM {self._table} WHERE key = ? AND written > ?"  # noqa: S608
        with self._lock:
            row = self._connection.execute(sql, (key, self._oldest())).fetchone()
        return None if row is None else bytes(row[0])

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes` or none of it; None deletes.

        Raises:
            Refusal: 413, one commit is larger than the whole store may be.
        """
        size = sum(len(value) for value in changes.values() if value is not None)
        if self._max_bytes is not None and size > self._max_bytes:
            raise Refusal(413, "too_large", f"Expected keys of at most {self._max_bytes} bytes")
        with self._lock, self._connection:  # the connection commits, or rolls back on an exception
            self._connection.execute("BEGIN IMMEDIATE")
            upload = self._next_upload()
            for key, value in changes.items():
                self._connection.execute(f"DELETE FROM {self._table} WHERE key = ?", (key,))  # noqa: S608
                if value is not None:
                    row = (key, value, len(value), upload, self._clock())
                    self._connection.execute(f"INSERT INTO {self._table} VALUES (?, ?, ?, ?, ?)", row)  # noqa: S608
            self._forget()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _oldest(self) -> float:
        return -1.0 if self._lifetime_seconds is None else self._clock() - self._lifetime_seconds

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


class Prefixed:
    """A part of a store: every key gets `prefix`, so that two users of one store cannot meet."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def get(self, key: str) -> bytes | None:
        return self._store.get(self._prefix + key)

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        self._store.commit({self._prefix + key: value for key, value in changes.items()})


class Staged:
    """Holds a party's commits back, so that the caller can write them together with its own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.changes: dict[str, bytes | None] = {}

    def get(self, key: str) -> bytes | None:
        return self.changes[key] if key in self.changes else self._store.get(key)

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        self.changes.update(changes)


def key_store(path: str | Path | None, limits: Limits) -> SqliteStore:
    """Return a server's store for clients' public keys, within `limits`; None keeps it in memory."""
    return SqliteStore(
        path,
        max_uploads=limits.keys,
        max_bytes=limits.key_store_bytes,
        lifetime_seconds=limits.key_lifetime_seconds,
    )


def usage_store(path: str | Path | None) -> SqliteStore:
    """Return a server's store for the counts of the query quota, which may share the file of the keys."""
    return SqliteStore(path, table="usage")


def _open(path: str | Path | None, table: str) -> sqlite3.Connection:
    name = ":memory:" if path is None else Path(path).name
    try:
        if path is not None:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
                raise UsageError(
                    f"Expected {name} to be readable by its owner alone, since it may hold keys; run chmod 600 on it"
                )
        connection = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False, timeout=30)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # on disk before the reply leaves, power cut included
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, value BLOB NOT NULL, size INTEGER NOT NULL,"
            " upload INTEGER NOT NULL, written REAL NOT NULL) STRICT"
        )
        connection.execute(f"CREATE INDEX IF NOT EXISTS {table}_by_upload ON {table} (upload, size)")
    except (OSError, sqlite3.DatabaseError):
        raise UsageError(f"Expected {name} to be a key store, or a new file in a folder that can be written") from None
    return connection
