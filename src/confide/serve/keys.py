"""What a server keeps over restarts and shares with other processes: clients' public keys and the quota's counts.

The keys forget by age and by size; what one upload wrote leaves together, so no half of it is ever found. In an SQLite
file they have a table of their own; in PostgreSQL (`Bounded`) they share the store's table, and an index says what one
upload wrote, when, and how large it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import StoreError
from confide.serve.limits import Limits
from confide.serve.protocol import KEY_ID, Refusal
from confide.store import DurableStore, Prefixed, SqliteStore, open_store
from confide.structs import known
from confide.wire import Store

_INDEX = "uploads/"
_NAME_BYTES = 61  # of an upload: "uploads/", 20 digits, 15 digits, 16 hex digits, two dashes


class CountingStore(Store, Protocol):
    """A store in which several processes can count together."""

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace the value under `key` by what `change` makes of it; nobody else's `update` comes in between."""
        ...


class KeyStore(Store, Protocol):
    """A store within bounds."""

    def stored_bytes(self) -> int:
        """Return how many bytes the values have together."""
        ...


@dataclass(frozen=True, slots=True)
class Stores:
    """What one process of a server opens.

    Args:
        keys: clients' public keys, within the limits.
        usage: counts of the query quota; never forgets.
        close: closes both.
    """

    keys: KeyStore
    usage: CountingStore
    close: Callable[[], None]


def open_stores(where: str | Path | None, limits: Limits) -> Stores:
    """Return a server's stores at `where`: an SQLite file, `postgresql://user@host/database`, or None for memory.

    Raises:
        UsageError, MissingExtra, StoreError: as `open_store`.
    """
    if where is not None and "://" in str(where):
        whole = open_store(str(where))
        return Stores(Bounded(Prefixed(whole, "serve/keys/"), limits), Counts(whole, "serve/usage/"), whole.close)
    keys, usage = key_store(where, limits), usage_store(where)

    def close() -> None:
        keys.close()
        usage.close()

    return Stores(keys, usage, close)


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


class Counts:
    """A part of a durable store in which several processes count together."""

    def __init__(self, store: DurableStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._part = Prefixed(store, prefix)
        self.get, self.keys, self.commit = self._part.get, self._part.keys, self._part.commit

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:
        self._store.update(self._prefix + key, change)


class Bounded:
    """Keeps a store within the limits for keys: each commit is an upload, the oldest leave first, whole.

    Args:
        store: of its own, or a part of one; a commit must be whole or absent.
        limits: `keys`, `key_store_bytes` and `key_lifetime_seconds`.
        clock: seconds since the epoch.
        rng: names uploads.

    Paths: an upload is `uploads/MICROSECONDS-BYTES-NAME` with the list of its entries; an entry's value begins with the
    path of its upload, so that nothing too old is given out and a deletion finds the upload.
    """

    def __init__(
        self,
        store: Store,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.time,
        rng: Randomness | None = None,
    ) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock
        self._rng = rng or SystemRandomness()

    def get(self, key: str) -> bytes | None:
        value = self._store.get(f"entries/{key}")
        if value is None or _time(value[:_NAME_BYTES].decode()) <= self._oldest():
            return None
        return value[_NAME_BYTES:]

    def keys(self, prefix: str = "") -> list[str]:
        return [key.removeprefix("entries/") for key in self._store.keys(f"entries/{prefix}")]

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes` or none of it, as one upload; then forget what goes beyond the limits."""
        now = int(self._clock() * 1e6)
        kept = {key: value for key, value in changes.items() if value is not None}
        size = sum(map(len, kept.values()))
        if size > self._limits.key_store_bytes:
            raise StoreError(f"Expected values of at most {self._limits.key_store_bytes} bytes together, got {size}")
        name = f"{_INDEX}{now:020}-{size:015}-{self._rng.bytes(8).hex()}"
        entries = {f"entries/{key}": name.encode() + value for key, value in kept.items()}
        self._store.commit({**self._without(set(changes)), **entries, name: _list(kept) if kept else None})
        self._forget()

    def stored_bytes(self) -> int:
        return sum(_size(name) for name in self._store.keys(_INDEX))

    def _without(self, gone: set[str]) -> dict[str, bytes | None]:
        """Return the changes that delete entries and take them out of their uploads, lest those take new ones along."""
        values = {key: self._store.get(f"entries/{key}") for key in gone}
        uploads = {value[:_NAME_BYTES].decode() for value in values.values() if value is not None}
        changes: dict[str, bytes | None] = {f"entries/{key}": None for key in gone}
        for name in uploads:
            rest = [key for key in self._entries(name) if key not in gone]
            changes[name] = _list(rest) if rest else None
        return changes

    def _entries(self, name: str) -> list[str]:
        body = self._store.get(name)  # another process may have dropped it
        return [] if body is None else msgspec.msgpack.decode(body, type=known(list[str]))

    def _oldest(self) -> float:
        return (self._clock() - self._limits.key_lifetime_seconds) * 1e6

    def _forget(self) -> None:
        total, oldest = 0, self._oldest()
        for number, name in enumerate(reversed(self._store.keys(_INDEX)), start=1):
            total += _size(name)
            if number > self._limits.keys or total > self._limits.key_store_bytes or _time(name) <= oldest:
                self._store.commit({**{f"entries/{key}": None for key in self._entries(name)}, name: None})


def _list(keys: Iterable[str]) -> bytes:
    return msgspec.msgpack.encode(list(keys))


def _time(name: str) -> int:
    return int(name.removeprefix(_INDEX).split("-")[0])


def _size(name: str) -> int:
    return int(name.removeprefix(_INDEX).split("-")[1])


# --- whose keys they are ----------------------------------------------------------------------------------------------


class _Upload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is remembered of an upload: who sent it, and what the backend wrote."""

    owner: str
    entries: tuple[str, ...]


class Uploads:
    """The keys of one model under one backend.

    Whoever uploaded keys may delete them: the same holder of an API key or of a client certificate. Keys that came
    without either belong to whoever knows their id, which is a hash of the keys: only the client, the server and who
    listens between them without TLS can know it, and what a deletion costs is another upload.

    Args:
        store: the server's; this model and backend get a part of their own.
        model, backend: names.
        max_bytes: of one upload.
    """

    def __init__(self, store: Store, model: str, backend: str, *, max_bytes: int) -> None:
        self._store = Prefixed(store, f"{model}/{backend}/")
        self._max_bytes = max_bytes
        self.keys = Prefixed(self._store, "keys/")

    def knows(self, key_id: str) -> bool:
        """Return True if the keys called `key_id` are here."""
        return self._find(key_id) is not None

    def keep(self, key_id: str, changes: Mapping[str, bytes | None], owner: str) -> None:
        """Store what a backend wrote for an upload, in one commit, so that all of it is forgotten together.

        Keys that are here already stay as they are, and their owner's. Raises Refusal (413) beyond `max_bytes`.
        """
        if self.knows(key_id):
            return
        upload = msgspec.msgpack.encode(_Upload(owner, tuple(changes)))
        entries = {**{f"keys/{key}": value for key, value in changes.items()}, f"known/{key_id}": upload}
        if sum(len(value or b"") for value in entries.values()) > self._max_bytes:
            raise Refusal(413, "too_large", f"Expected keys of at most {self._max_bytes} bytes with what names them")
        self._store.commit(entries)

    def delete(self, key_id: str, caller: str) -> None:
        """Delete the keys called `key_id` from the store.

        Raises:
            Refusal: 404 they are not here, 403 somebody else uploaded them.
        """
        upload = self._find(key_id)
        if upload is None:
            raise unknown_key("nothing was deleted")
        if upload.owner not in ("", caller):
            raise Refusal(403, "not_owner", "Expected the caller who uploaded these keys; ask as that one")
        self._store.commit({**{f"keys/{key}": None for key in upload.entries}, f"known/{key_id}": None})

    def _find(self, key_id: str) -> _Upload | None:
        body = self._store.get(f"known/{key_id}") if KEY_ID.fullmatch(key_id) else None
        if body is not None:
            with suppress(msgspec.MsgspecError):  # of an earlier version: the client uploads again
                return msgspec.msgpack.decode(body, type=known(_Upload))
        return None


def unknown_key(what_to_do: str) -> Refusal:
    """Return the refusal of a key id that is not (or no longer) here."""
    return Refusal(404, "unknown_key", f"Expected the id of keys that are here; {what_to_do}")
