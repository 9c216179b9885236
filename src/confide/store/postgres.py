"""A store in a PostgreSQL database, for coordinators whose operators run, replicate and back up a server anyway.

Two tables, `confide_entries` and `confide_leases`, made at the first connection in the first schema of the search path.

One connection carries the statements and the leases (session-level advisory locks). So a commit goes through only while
the lease is held: when the connection breaks, the server drops both together. A new connection takes the leases again
before anything else, and only if nobody had them meanwhile, which a number says that grows with every holder.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from confide.errors import ConfideError, StoreError, UsageError
from confide.store.entries import check_changes, encode_key
from confide.store.lease import Lease, check_name, refusal

_Connection = psycopg.Connection[TupleRow]
_Result = TypeVar("_Result")

_POLL_SECONDS = 0.02
_RELEASE_SECONDS = 1.0  # for the server to notice that a holder's process has ended
_END_SECONDS = 5.0  # for the server to end a session of ours that it still believes in

_TABLES = (
    # Keys are UTF-8 in bytea: their order and their characters do not depend on the database's locale and encoding.
    "CREATE TABLE IF NOT EXISTS confide_entries (key bytea PRIMARY KEY, value bytea NOT NULL)",
    "ALTER TABLE confide_entries ALTER COLUMN value SET STORAGE EXTERNAL",  # sums and ciphertexts do not compress
    # Rounds replace a few large values: the server is to count their bytes (pieces of 2 kB), not the rows.
    "ALTER TABLE confide_entries SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,"
    " toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 20000)",
    "CREATE TABLE IF NOT EXISTS confide_leases (name text PRIMARY KEY, generation bigint NOT NULL)",
)
_SETTINGS = """
    SELECT set_config(name, wanted.value, false) FROM pg_settings JOIN (VALUES
        ('client_min_messages', 'warning'), ('lock_timeout', %s), ('statement_timeout', '0'),
        ('idle_session_timeout', '0'), ('idle_in_transaction_session_timeout', '60000'),
        ('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3')
    ) AS wanted(name, value) USING (name)
"""
_DURABLE = """
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')
"""
_SESSION = """
    SELECT pid, extract(epoch FROM backend_start)::text, current_schema(), current_setting('fsync'), pg_is_in_recovery()
    FROM pg_stat_activity WHERE pid = pg_backend_pid()
"""
_SESSION_IS_THERE = "FROM pg_stat_activity WHERE pid = %s AND extract(epoch FROM backend_start)::text = %s"
_DELETE = "DELETE FROM confide_entries WHERE key = %b"
_WRITE = "INSERT INTO confide_entries VALUES (%b, %b) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_NEXT_GENERATION = """
    INSERT INTO confide_leases VALUES (%s, 1)
    ON CONFLICT (name) DO UPDATE SET generation = confide_leases.generation + 1 RETURNING generation
"""
_HOLDER = """
    SELECT pid, coalesce(' from ' || host(client_addr), '') FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND (classid::bigint << 32 | objid::bigint) = %s
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class _Session:
    """What tells one session of the server from all others."""

    pid: int
    started: str


class PostgresStore:
    """A `DurableStore` in a PostgreSQL database (13 or later), safe for threads and for processes that are killed.

    Args:
        url: `postgresql://user@host/database`, as libpq reads it; a password belongs into `~/.pgpass`. To another
            machine the server's certificate is checked (`sslmode=verify-full`) unless the URL says otherwise.
        wait_seconds: how long to wait for another process that is writing the same entries.

    Raises:
        UsageError: a URL that cannot be read, or a server that promises no durability (`fsync = off`).
        StoreError: the database does not answer.

    Guarantees:
        A commit is on the server's disk, whole, before `commit` returns; a crash leaves all of it or none.
        After a lost connection the next call connects again by itself.
        Nothing is read or written through a store that has lost one of its leases.
    """

    def __init__(self, url: str, *, wait_seconds: float = 30.0) -> None:
        self._conninfo, self._name = _conninfo(url)
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._leases: dict[str, int] = {}  # the generation of each, as it was taken
        self._lost: set[str] = set()
        self._connection: _Connection | None = None
        self._session: _Session | None = None
        self._schema = ""
        self._closed = False
        with self._lock:
            self._connected()

    def get(self, key: str) -> bytes | None:
        encoded, sql = encode_key(key), "SELECT value FROM confide_entries WHERE key = %b"
        row = self._run(lambda connection: connection.execute(sql, (encoded,), binary=True).fetchone())
        return None if row is None else bytes(row[0])

    def keys(self, prefix: str = "") -> list[str]:
        first = encode_key(prefix)
        beyond = first[:-1] + bytes([first[-1] + 1]) if first else b"\xff"  # no byte of UTF-8 is 255
        sql = "SELECT key FROM confide_entries WHERE key >= %b AND key < %b ORDER BY key"
        rows = self._run(lambda connection: connection.execute(sql, (first, beyond), binary=True).fetchall())
        return [bytes(row[0]).decode() for row in rows]

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes` or none of it; None deletes.

        Raises:
            UsageError: a key that some store cannot hold.
            StoreError: the database does not take it. The text says whether nothing was written, or that the connection
                broke while the answer was on its way: then commit the same again, which is harmless.
        """
        check_changes(changes)
        ordered = [(key.encode(), changes[key]) for key in sorted(changes)]  # so no two writers wait for each other
        self._run(lambda connection: self._transact(connection, lambda inside: _put(inside, ordered)))

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace the value under `key` by what `change` makes of it; no other `update` of it comes in between.

        Raises:
            UsageError, StoreError: as `commit`; and whatever `change` raises, then nothing is written.
        """
        encoded, sql = encode_key(key), "SELECT value FROM confide_entries WHERE key = %b"

        def work(connection: _Connection) -> None:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_lock_number(self._schema, f"update {key}"),))
            row = connection.execute(sql, (encoded,), binary=True).fetchone()
            value = change(None if row is None else bytes(row[0]))
            check_changes({key: value})
            _put(connection, [(encoded, value)])

        self._run(lambda connection: self._transact(connection, work))

    def exclusive(self, name: str) -> Lease:
        """Return the lease called `name`: nobody else gets it until it is released or this process has ended.

        Raises:
            UsageError: somebody holds it; the text says from where.
            StoreError: the database does not answer.
        """
        check_name(name)
        self._run(lambda connection: self._take(connection, name))
        return Lease(name, lambda: self._give_back(name))

    def scrub(self) -> None:
        """Do nothing: the server clears up by itself, and its disk, log, replicas and backups keep deleted bytes."""

    def close(self) -> None:
        """Close the connection; its leases end with it."""
        with self._lock:
            self._closed = True
            self._drop()

    # --- the connection -----------------------------------------------------------------------------------------------

    def _run(self, job: Callable[[_Connection], _Result]) -> _Result:
        """Do a job that is either done or not when its connection breaks; once more, if that was broken before."""
        with self._lock:
            for attempt in (1, 2):
                connection = self._connected()
                try:
                    return job(connection)
                except psycopg.Error as error:
                    if gone := _is_gone(connection, error):
                        self._drop()
                    if not gone or attempt == 2:
                        raise StoreError(_explain(error, self._name, gone=gone)) from None
                finally:
                    if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                        self._drop()  # broken, or interrupted at a moment that nobody knows
        raise AssertionError

    def _connected(self) -> _Connection:
        """Return the connection, a new one if it has broken, with every lease held."""
        if self._closed:
            raise StoreError(f"Expected an open store, but {self._name} was closed here")
        if self._connection is None or self._connection.closed:
            self._drop()
            try:
                self._connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
                self._begin_session(self._connection)
            except psycopg.Error as error:
                self._drop()
                raise StoreError(_explain(error, self._name, gone=True)) from None
            except BaseException:
                self._drop()
                raise
        if self._lost:
            raise StoreError(
                f"Expected to hold {', '.join(sorted(self._lost))} of {self._name}, but another process took it while "
                "the connection was broken; nothing was written. Stop one of the two, then start again"
            )
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _begin_session(self, connection: _Connection) -> None:
        connection.execute(_SETTINGS, (f"{self._wait_seconds:.3f}s",))
        connection.execute(_DURABLE)
        row = connection.execute(_SESSION).fetchone()
        assert row is not None
        pid, started, schema, fsync, standby = row
        if fsync != "on":
            raise UsageError("Expected a server with fsync = on; without it a power cut loses what was committed")
        if standby:
            raise StoreError(f"Expected {self._name} to be the primary, not a standby; nothing was written")
        if self._session is not None and not _end(connection, self._session):
            raise StoreError(f"Expected {self._name} to end this process's earlier session; nothing was written. Wait")
        self._schema = schema or ""
        _make_tables(connection, _lock_number(self._schema, ""))
        for name, generation in self._leases.items():
            if not self._take_again(connection, name, generation):
                self._lost.add(name)
        self._session = _Session(pid, started)

    # --- what is done on it -------------------------------------------------------------------------------------------

    def _transact(self, connection: _Connection, work: Callable[[_Connection], None]) -> None:
        asked = False
        try:
            connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            work(connection)
            asked = True
            connection.execute("COMMIT")
        except ConfideError:  # the caller's own: nothing is wrong with the connection
            connection.execute("ROLLBACK")
            raise
        except psycopg.Error as error:
            if not _is_gone(connection, error):
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
            elif asked:
                raise StoreError(
                    f"Expected {self._name} to acknowledge a commit, but the connection broke: it is there wholly or "
                    "not at all. Commit the same again"
                ) from None
            raise

    def _take(self, connection: _Connection, name: str) -> None:
        if name in self._leases:
            raise refusal(name, "this process")
        number = _lock_number(self._schema, name)
        if not _try_lock(connection, number, seconds=_RELEASE_SECONDS):
            holder = connection.execute(_HOLDER, (number,)).fetchone()
            raise refusal(name, f"session {holder[0]}{holder[1]}" if holder else "another process")
        try:
            row = connection.execute(_NEXT_GENERATION, (name,)).fetchone()
        except psycopg.Error:
            _unlock(connection, number)
            raise
        assert row is not None
        self._leases[name] = row[0]

    def _take_again(self, connection: _Connection, name: str, generation: int) -> bool:
        """Return whether the lease could be had again, and nobody had it meanwhile."""
        number = _lock_number(self._schema, name)
        if not _try_lock(connection, number, seconds=0):
            return False
        row = connection.execute("SELECT generation FROM confide_leases WHERE name = %s", (name,)).fetchone()
        if row is not None and row[0] == generation:
            return True
        _unlock(connection, number)
        return False

    def _give_back(self, name: str) -> None:
        with self._lock:
            self._leases.pop(name, None)
            if name in self._lost:
                self._lost.discard(name)
            elif self._connection is not None:
                _unlock(self._connection, _lock_number(self._schema, name))


def _put(connection: _Connection, ordered: list[tuple[bytes, bytes | None]]) -> None:
    with connection.cursor() as cursor:
        for gone, entries in groupby(ordered, lambda entry: entry[1] is None):
            if gone:
                cursor.executemany(_DELETE, [(key,) for key, _ in entries])
            else:
                cursor.executemany(_WRITE, list(entries))


def _conninfo(url: str) -> tuple[str, str]:
    """Return what libpq takes, with our defaults, and the database's name for texts; no text repeats the URL."""
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    except psycopg.Error:
        raise UsageError(
            "Expected a URL like postgresql://user@host/database?sslrootcert=authority.pem; %-escape what is special"
        ) from None
    hosts = [host for name in ("host", "hostaddr") for host in given.get(name, "").split(",") if host]
    local = all(re.match(r"[/@]|(localhost|127\.0\.0\.1|::1)$", host) for host in hosts)
    wanted = {
        "application_name": "confide",
        "connect_timeout": "10",
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "30000",
    }
    if not local and not given.keys() & {"sslmode", "service"}:
        wanted["sslmode"] = "verify-full"
    where = f" at {', '.join(hosts)}" if hosts else ""
    return make_conninfo(
        **{**wanted, **given, "client_encoding": "UTF8"}
    ), f"the database {given.get('dbname', '')!r}{where}"


def _lock_number(schema: str, name: str) -> int:
    """Return the advisory lock that stands for a name; the server keeps the locks of its databases apart itself."""
    digest = hashlib.sha256(f"confide lease\0{schema}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _try_lock(connection: _Connection, number: int, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while (row := connection.execute("SELECT pg_try_advisory_lock(%s)", (number,)).fetchone()) and not row[0]:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _unlock(connection: _Connection, number: int) -> None:
    with suppress(psycopg.Error):  # a connection that has broken holds nothing any more
        connection.execute("SELECT pg_advisory_unlock(%s)", (number,))


def _make_tables(connection: _Connection, number: int) -> None:
    row = connection.execute("SELECT to_regclass('confide_leases') IS NULL").fetchone()
    if row is None or not row[0]:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (number,))  # two first connections
        for statement in _TABLES:
            connection.execute(statement)


def _end(connection: _Connection, session: _Session) -> bool:
    """End a session of ours that the server may still believe in: its client is gone, and it may hold our leases."""
    who = (session.pid, session.started)
    connection.execute("SELECT pg_terminate_backend(pid) " + _SESSION_IS_THERE, who)
    deadline = time.monotonic() + _END_SECONDS
    while connection.execute("SELECT 1 " + _SESSION_IS_THERE, who).fetchone():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _is_gone(connection: _Connection, error: psycopg.Error) -> bool:
    """Return whether the connection has ended, or is being ended: classes 08 and 57P of SQLSTATE."""
    return connection.closed or (error.sqlstate or "").startswith(("08", "57P"))


def _explain(error: psycopg.Error, name: str, *, gone: bool) -> str:
    """Return one line for a person. The server's own words are quoted only where they cannot speak of an entry."""
    reasons: Mapping[str, str] = {
        "25006": "to be writable, but it is read-only; nothing was written. Connect to the primary",
        "40P01": "to be free, but two writers waited for each other; nothing was written. Commit again",
        "42501": "to let this user create tables and write; nothing was written. Grant that, then go on",
        "42P01": "to have its tables, but somebody dropped them; nothing was written. Restore them from a backup",
        "53100": "to have room on its disk; nothing was written. Make room, then go on",
        "55P03": "to be free, but another process kept writing; nothing was written. Stop it, then go on",
    }
    if (reason := reasons.get(error.sqlstate or "")) is not None:
        return f"Expected {name} {reason}"
    if gone:
        said = re.sub(r"[^\x20-\x7e]", " ", str(error).partition("\n")[0])[:200]
        return (
            f"Expected {name} to answer ({said}); nothing was written. Start it or mend the way to it; the next call "
            "connects again"
        )
    return f"Expected {name} to take this, but it says {type(error).__name__} {error.sqlstate}; nothing was written"
