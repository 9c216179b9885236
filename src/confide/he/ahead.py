"""Encryptions that hold nothing yet, made while nobody waits: fresh randomness costs more than what is done with it.

A stock belongs to one key and lives with it in memory. Each item leaves once, for one use: an encryption of zero that
was added to two ciphertexts would show their difference. Whoever finds the stock empty makes an item there and then, so
results never depend on what was prepared; only times do. A process that forks leaves its child none of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import Generic, NoReturn, Protocol, TypeVar, runtime_checkable

#: Items that a stock keeps at most.
MOST_AHEAD = 4

Form = TypeVar("Form", bound=Hashable)
Item = TypeVar("Item")


@runtime_checkable
class PreparesAhead(Protocol):
    """Keys, or a kit that holds some, with work that can be done before it is asked for."""

    def prepare_ahead(self) -> bool:
        """Do one piece of it, which takes milliseconds. Returns False if there was nothing to do."""
        ...


@runtime_checkable
class HoldsAhead(PreparesAhead, Protocol):
    """The same, and how much it may hold."""

    @property
    def ahead_bytes(self) -> int:
        """Return a bound of the memory that takes."""
        ...


class Stock(Generic[Form, Item]):
    """Items by form, each handed out once; safe for threads.

    Args:
        make: makes a fresh item of a form, with its own randomness; called without any lock held.
        most: items that are kept, of all forms together.

    Only forms that were taken before are prepared, the latest first, so that a stock without use stays empty.
    """

    __slots__ = ("__weakref__", "_items", "_kept", "_lock", "_make", "_making", "_most", "_process")

    def __init__(self, make: Callable[[Form], Item], *, most: int = MOST_AHEAD) -> None:
        self._make = make
        self._most = most
        self._empty()

    def _empty(self) -> None:
        self._items: dict[Form, list[Item]] = {}  # the form that was taken last stands last
        self._kept = self._making = 0
        self._lock = threading.Lock()
        self._process = os.getpid()

    def _leave_behind(self) -> None:
        """Drop what a process that forked left here: it hands the same items out, and may hold the lock."""
        if self._process != os.getpid():
            self._empty()

    def __len__(self) -> int:
        return self._kept

    def __repr__(self) -> str:
        return f"Stock({self._kept})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stock is not pickled: two copies would use an item twice")

    def take(self, form: Form) -> Item:
        """Return an item that nobody else gets: a prepared one, or a new one."""
        self._leave_behind()
        with self._lock:
            items = self._items[form] = self._items.pop(form, [])
            if items:
                self._kept -= 1
                return items.pop()
        return self._make(form)

    def prepare(self) -> bool:
        """Make one item ahead. Returns False if the stock is full, or nothing was ever taken."""
        self._leave_behind()
        with self._lock:
            if not self._items or self._kept + self._making >= self._most:
                return False
            form = next(reversed(self._items))
            self._making += 1
        try:
            item = self._make(form)
            with self._lock:
                self._items[form].append(item)
                self._kept += 1
        finally:
            with self._lock:
                self._making -= 1
        return True
