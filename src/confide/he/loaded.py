"""Clients' public keys as a server works with them: parsed once, and forgotten in the order of their last use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from confide.he.ahead import HoldsAhead

#: Bytes of parsed keys for each byte of an upload, for keys that do not state their own.
EXPANSION = 2


@runtime_checkable
class HoldsMemory(Protocol):
    """Parsed keys that know their size: an upload's says little, since what is not used of a key does not travel."""

    @property
    def memory_bytes(self) -> int:
        """Return the memory that their numbers take."""
        ...


_DEFAULT_BYTES = 512 << 20


class LoadedKeys:
    """Parsed keys up to a number of bytes; several models of a process may share one.

    Args:
        max_bytes: of memory; the keys that were used longest ago leave first, those just asked for never do.
    """

    def __init__(self, max_bytes: int = _DEFAULT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[tuple[int, str], tuple[object, int]] = {}
        self._held_bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Return how much memory the numbers of the keys take, and what is made ahead."""
        return self._held_bytes

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, owner: object, key_id: str, load: Callable[[], tuple[object, int]]) -> object:
        """Return the keys called `key_id`, from `load` if they are not here.

        Args:
            owner: keys for different owners (kits) do not meet.
            key_id: their name.
            load: returns them parsed, and the bytes of the upload; whatever it raises, nothing is kept.
        """
        place = (id(owner), key_id)
        with self._lock:
            found = self._kept.pop(place, None)
            if found is not None:
                self._kept[place] = found  # the latest stands last
                return found[0]
        keys, size = load()
        held = keys.memory_bytes if isinstance(keys, HoldsMemory) else EXPANSION * size
        held += keys.ahead_bytes if isinstance(keys, HoldsAhead) else 0
        with self._lock:
            self._drop(place)  # another thread may have loaded them meanwhile
            self._kept[place] = (keys, held)
            self._held_bytes += held
            for oldest in list(self._kept)[:-1]:
                if self._held_bytes <= self._max_bytes:
                    break
                self._drop(oldest)
        return keys

    def prepare_ahead(self) -> bool:
        """Do one piece of work for a later question, for the keys used last first. Returns False if there is none."""
        with self._lock:
            latest = [keys for keys, _ in reversed(self._kept.values())]
        return any(keys.prepare_ahead() for keys in latest if isinstance(keys, HoldsAhead))

    def forget(self, owner: object, key_id: str) -> None:
        """Forget keys that their store does not have any more."""
        with self._lock:
            self._drop((id(owner), key_id))

    def _drop(self, place: tuple[int, str]) -> None:
        _, size = self._kept.pop(place, (None, 0))
        self._held_bytes -= size
