"""A store whose caller waits when it is gone: a database that restarts, a disk that somebody clears."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from confide.errors import StoreError
from confide.wire import Store

_Found = TypeVar("_Found")


class Patient:
    """Tries again until the store is there.

    Args:
        store: behind it.
        seconds: how long, before the error is the caller's.
        say: told in one line that it waits, and that it goes on.
        sleep: waits that many seconds.

    Raises:
        StoreError: from every call, after that time; nothing was written.
    """

    def __init__(
        self,
        store: Store,
        *,
        seconds: float = 120.0,
        say: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store, self._seconds, self._say, self._sleep = store, seconds, say, sleep

    def get(self, key: str) -> bytes | None:
        return self.patiently(lambda: self._store.get(key))

    def keys(self, prefix: str = "") -> list[str]:
        return self.patiently(lambda: self._store.keys(prefix))

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        if changes:
            self.patiently(lambda: self._store.commit(changes))

    def patiently(self, call: Callable[[], _Found]) -> _Found:
        """Return what `call` does, which is tried again after a StoreError."""
        waited, pause = 0.0, 0.1
        while True:
            try:
                found = call()
            except StoreError as error:
                if waited >= self._seconds:
                    raise
                if not waited:
                    self._say(f"waiting for the store: {error}")
                self._sleep(pause)
                waited, pause = waited + pause, min(2 * pause, 5.0)
            else:
                if waited:
                    self._say("the store is back")
                return found
