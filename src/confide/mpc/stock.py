"""Correlations that wait in the stores of the parties, under ids that serve once, and those made ready in memory.

A deal lies in a store in pieces, its words and the corrections of each batch, and counts once it is complete. It is
struck off in a commit before its first use: deleted in the commit before the first message, or, at who answers, written
down as held while it lies ready in memory and nobody has asked, after which that memory alone serves it. After a crash
it is gone, used or not, and what is left of it is cleared away. Ids only rise: the commit that brings stock also moves
the run's high-water mark beyond it, and no id below the mark is ever taken in again.

    {name}/{role}/{run}/mark                              the lowest id that may still come, 8 bytes
    {name}/{role}/{run}/whole/{rows}/{counter}            1 byte: all pieces of it are there (1), or it is held (2)
    {name}/{role}/{run}/stock/{rows}/{counter}/{piece}    bytes as they came
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from confide.errors import ProtocolError, SetUpAgain
from confide.mpc.ahead import Ready
from confide.mpc.correlations import DealId, Layout
from confide.wire import Store

#: Deals of one run that are made ready at most, and bytes that all of a process may take.
MOST_READY, MOST_READY_BYTES = 4, 1 << 30
#: What stands under the name of a deal: it may be taken from the store, or by whoever holds it in memory alone.
FREE, HELD = b"\1", b"\2"


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where a role keeps the stock of one run."""

    name: str
    role: str
    run: bytes

    @property
    def root(self) -> str:
        """Return the prefix of everything here."""
        return f"{self.name}/{self.role}/{self.run.hex()}"

    def place(self, rows: int, counter: int) -> str:
        """Return the prefix of one deal."""
        return f"{self.root}/stock/{rows}/{counter:016x}"

    def mark(self, store: Store) -> int:
        """Return the lowest id that may still come."""
        body = store.get(f"{self.root}/mark")
        return 0 if body is None else int.from_bytes(body, "little")

    def raised(self, store: Store, first: int, count: int) -> dict[str, bytes | None]:
        """Return the change that takes ids in: they are never taken in again.

        Raises:
            SetUpAgain: one of them may have been here before: somebody's store was turned back.
        """
        if first < self.mark(store):
            raise SetUpAgain("Expected correlations under ids that were never given before; set up again")
        return {f"{self.root}/mark": (first + count).to_bytes(8, "little")}

    def whole(self, rows: int, counter: int) -> str:
        """Return the key that says of a deal that all of it is there."""
        return f"{self.root}/whole/{rows}/{counter:016x}"

    def counters(self, store: Store, rows: int) -> list[int]:
        """Return the ids of complete stock, lowest first."""
        return sorted(int(key.rpartition("/")[2], 16) for key in store.keys(f"{self.root}/whole/{rows}/"))

    def state(self, store: Store, rows: int, counter: int) -> bytes | None:
        """Return whether a deal is `FREE` or `HELD`; None if it is not in stock."""
        return store.get(self.whole(rows, counter))

    def pieces(self, store: Store, rows: int, counter: int, names: list[str]) -> list[bytes]:
        """Return the pieces of a deal in stock. Raises ProtocolError if one is missing."""
        found = [store.get(f"{self.place(rows, counter)}/{name}") for name in names]
        if any(body is None for body in found):
            raise ProtocolError("Expected correlations that are in stock; deal again")
        return [body for body in found if body is not None]

    def taken(self, rows: int, counter: int, names: list[str]) -> dict[str, bytes | None]:
        """Return the change that takes a deal of these pieces out of stock, before its first use."""
        place = self.place(rows, counter)
        return dict.fromkeys([self.whole(rows, counter), *(f"{place}/{name}" for name in names)])

    def broken(self, store: Store) -> dict[str, bytes | None]:
        """Return the change that clears what an interrupted deal left."""
        prefix, wholes = f"{self.root}/stock/", f"{self.root}/whole/"
        whole = {key.removeprefix(wholes) for key in store.keys(wholes)}  # rows/counter
        return dict.fromkeys(
            key for key in store.keys(prefix) if "/".join(key.removeprefix(prefix).split("/")[:2]) not in whole
        )


def piece_names(layout: Layout, party: int | None) -> list[str]:
    """Return the pieces of a deal at a party, in the order in which they come; none at who only asks."""
    if party is None:
        return []
    corrections = [f"corrections/{place:05}" for place in range(len(layout.batches))]
    return ["words", *corrections] if party else corrections


@dataclass(slots=True)
class _Kept:
    """A deal made ready; `free`, if it was struck off, writes that it may be taken from the store again."""

    ready: Ready = field(repr=False)
    free: Callable[[], None] | None = None


@dataclass(slots=True)
class Prepared:
    """Correlations made ready ahead, and the ids in use, of one process. No repr shows any of them."""

    _ready: OrderedDict[tuple[str, bytes, int], _Kept] = field(
        default_factory=OrderedDict[tuple[str, bytes, int], _Kept], repr=False
    )
    _taken: set[tuple[str, bytes, int]] = field(default_factory=set[tuple[str, bytes, int]], repr=False)
    _unused: dict[tuple[bytes, int], int] = field(default_factory=dict[tuple[bytes, int], int], repr=False)
    _asked: dict[tuple[str, bytes, int], int] = field(default_factory=dict[tuple[str, bytes, int], int], repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def reserve(self, role: str, deal_id: DealId) -> bool:
        """Return whether an id is free in this process, and take it: two predictions at once must not share one."""
        key = role, deal_id.run, deal_id.counter
        with self._lock:
            if key in self._taken:
                return False
            self._taken.add(key)
            return True

    def release(self, role: str, deal_id: DealId) -> None:
        """Give an id back: by now the store says that it is used, or nothing was sent under it."""
        with self._lock:
            self._taken.discard((role, deal_id.run, deal_id.counter))

    def unused_from(self, run: bytes, rows: int, counter: int) -> None:
        """Note that stock from an id on was never used before: it came now, or who computes said so."""
        with self._lock:
            self._unused[run, rows] = min(counter, self._unused.get((run, rows), counter))

    def is_unused(self, run: bytes, rows: int, counter: int) -> bool:
        """Return whether this process knows that an id in stock was not used by an earlier one."""
        with self._lock:
            return self._unused.get((run, rows), counter + 1) <= counter

    def ahead(self, role: str, deal_id: DealId, make: Callable[[], Ready]) -> None:
        """Make a deal ready and keep it; beyond the limit the oldest goes, and is made again when it is taken."""
        key = role, deal_id.run, deal_id.counter
        with self._lock:
            if key in self._taken or key in self._ready:
                return
        made = make()
        with self._lock:
            self._ready[key] = _Kept(made)
        while (gone := self._beyond()) is not None:
            gone.ready.wipe()
            if gone.free is not None:
                gone.free()

    def asked(self, role: str, deal_id: DealId, rows: int) -> None:
        """Note that a deal in stock was asked for, until `settled`."""
        key = role, deal_id.run, rows
        with self._lock:
            self._asked[key] = max(deal_id.counter, self._asked.get(key, -1))

    def last_asked(self, role: str, run: bytes, rows: int) -> int:
        """Return the highest id that was asked for and is not settled, -1 if there is none."""
        with self._lock:
            return self._asked.get((role, run, rows), -1)

    def settled(self, role: str, run: bytes, rows: int) -> None:
        """Forget what was asked for: what it left is cleared away."""
        with self._lock:
            self._asked.pop((role, run, rows), None)

    def is_ready(self, role: str, deal_id: DealId) -> bool:
        """Return whether a deal is kept in memory."""
        with self._lock:
            return (role, deal_id.run, deal_id.counter) in self._ready

    def held(self, role: str, deal_id: DealId, free: Callable[[], None]) -> None:
        """Note that a deal which is ready was struck off; `free` writes that it may be taken from the store again."""
        with self._lock:
            if kept := self._ready.get((role, deal_id.run, deal_id.counter)):
                kept.free = free

    def take(self, role: str, deal_id: DealId) -> Ready | None:
        """Return what was made ready under an id, once."""
        with self._lock:
            kept = self._ready.pop((role, deal_id.run, deal_id.counter), None)
        return None if kept is None else kept.ready

    def _beyond(self) -> _Kept | None:
        """Return the oldest, which nobody can take any more, if too much is kept."""
        with self._lock:
            total = sum(one.ready.size_bytes for one in self._ready.values())
            return self._ready.popitem(last=False)[1] if len(self._ready) > 1 and total > MOST_READY_BYTES else None
