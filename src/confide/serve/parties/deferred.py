"""A store in which what is deleted is gone at once, durably, and its bytes are cleared away when there is time.

Correlations of one prediction are megabytes that are deleted before its first masked byte leaves. To clear them takes a
database far longer than the prediction; to write down that they are gone takes one small commit.

    deferred/{number}    the keys that are gone, MessagePack; deleted with the last of them

**Guarantees**: after a commit that deletes a key, nobody reads it through this store again, kill -9 included.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from confide.wire import Store

_PREFIX = "deferred/"
#: Deletions that wait at most; beyond it they are cleared away in the commit itself.
_MOST_WAITING = 256


class Deferred:
    """The store.

    Args:
        store: where everything lies; what an earlier process left uncleared is taken over.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, list[str]] = {}
        for number in store.keys(_PREFIX):
            self._waiting[number] = msgspec.msgpack.decode(store.get(number) or b"\x90", type=list[str])
        self._gone = {key for keys in self._waiting.values() for key in keys}
        self._next = max((int(number.removeprefix(_PREFIX)) for number in self._waiting), default=-1) + 1

    def get(self, key: str) -> bytes | None:
        return None if key in self._gone else self._store.get(key)

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key in self._store.keys(prefix) if key not in self._gone and not key.startswith(_PREFIX)]

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        deleted = [key for key, value in changes.items() if value is None]
        kept = {key: value for key, value in changes.items() if value is not None}
        lists = self._without(set(changes) & self._gone)
        if len(deleted) >= 2 and len(self._waiting) < _MOST_WAITING:
            lists[f"{_PREFIX}{self._next:012}"] = deleted
            self._next += 1
            changes = kept
        more = {number: msgspec.msgpack.encode(keys) if keys else None for number, keys in lists.items()}
        self._store.commit({**changes, **more})
        self._waiting = {number: keys for number, keys in (self._waiting | lists).items() if keys}
        self._gone = {key for keys in self._waiting.values() for key in keys}

    def _without(self, again: set[str]) -> dict[str, list[str]]:
        """Return the lists that change when keys are written anew, or deleted at once."""
        return {
            number: [key for key in keys if key not in again]
            for number, keys in self._waiting.items()
            if not again.isdisjoint(keys)
        }

    def sweep(self) -> bool:
        """Clear one deleted entry away; return False if there was none."""
        if not self._waiting:
            return False
        keys = next(iter(self._waiting.values()))
        self.commit({keys[-1]: None})
        return True
