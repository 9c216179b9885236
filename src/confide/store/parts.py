"""Stores made of stores: a part of one, and one whose commits wait."""

from __future__ import annotations

from collections.abc import Mapping

from confide.wire import Store


class Prefixed:
    """A part of a store: every key gets `prefix`, so that two users of one store cannot meet."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def get(self, key: str) -> bytes | None:
        return self._store.get(self._prefix + key)

    def keys(self, prefix: str = "") -> list[str]:
        return [key[len(self._prefix) :] for key in self._store.keys(self._prefix + prefix)]

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        self._store.commit({self._prefix + key: value for key, value in changes.items()})


class Staged:
    """Holds a party's commits back, so that the caller can write them together with its own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.changes: dict[str, bytes | None] = {}

    def get(self, key: str) -> bytes | None:
        return self.changes[key] if key in self.changes else self._store.get(key)

    def keys(self, prefix: str = "") -> list[str]:
        held = {key for key in self._store.keys(prefix) if key not in self.changes}
        return sorted(
            held | {key for key, value in self.changes.items() if value is not None and key.startswith(prefix)}
        )

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        self.changes.update(changes)
