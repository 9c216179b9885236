"""What outlives a process: keys, journals, budgets and ledgers, in one SQLite file or one PostgreSQL database.

A store's commit is whole or absent and durable when it returns; a `Lease` keeps a second process off. Which store holds
what, and what an operator should set, is in docs/stores.md. `PostgresStore` is in `confide.store.postgres`, because it
needs an extra.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from confide.errors import MissingExtra, UsageError
from confide.store.lease import Lease
from confide.store.parts import Prefixed, Staged
from confide.store.patient import Patient
from confide.store.sqlite import SqliteStore
from confide.wire import Store

__all__ = ["DurableStore", "Lease", "Patient", "Prefixed", "SqliteStore", "Staged", "open_store"]


class DurableStore(Store, Protocol):
    """A store that outlives the process; `get`, `keys` and `commit` raise StoreError when it does not work."""

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace the value under `key` by what `change` makes of it, so that no two processes count from the same."""
        ...

    def exclusive(self, name: str) -> Lease:
        """Return the lease called `name`, or raise UsageError while somebody else holds it."""
        ...

    def scrub(self) -> None:
        """Clear away what deleted entries have left behind, as far as the store can."""
        ...

    def close(self) -> None:
        """Close it; the store cannot be used any more."""
        ...


def open_store(where: str | Path) -> DurableStore:
    """Return the store at `where`: the path of an SQLite file, made if absent, or `postgresql://user@host/database`.

    Raises:
        UsageError: it cannot be used; the text says what to change.
        MissingExtra: PostgreSQL without the extra "postgres".
        StoreError: the database does not answer.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", str(where))
    if isinstance(where, Path) or scheme is None:
        return SqliteStore(where)
    if scheme[1] not in {"postgres", "postgresql"}:
        raise UsageError(f"Expected a file or postgresql://user@host/database, got a URL of scheme {scheme[1]!r}")
    try:
        from confide.store.postgres import PostgresStore
    except ImportError:
        raise MissingExtra("psycopg", "postgres") from None
    return PostgresStore(where)
