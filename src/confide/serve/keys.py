"""What a server keeps over restarts: clients' public keys within bounds, and the counts of the query quota.

The keys' table forgets by age and by size; what one upload wrote leaves together, so no half of it is ever found.
"""

from __future__ import annotations

from pathlib import Path

from confide.serve.limits import Limits
from confide.store import SqliteStore


def key_store(path: str | Path | None, limits: Limits) -> SqliteStore:
    """Return a server's store for clients' public keys, within `limits`; None keeps it in memory."""
    return SqliteStore(
        path,
        table="keys",
        max_uploads=limits.keys,
        max_bytes=limits.key_store_bytes,
        lifetime_seconds=limits.key_lifetime_seconds,
    )


def usage_store(path: str | Path | None) -> SqliteStore:
    """Return a server's store for the counts of the query quota, which may share the file of the keys."""
    return SqliteStore(path, table="usage")
