"""What a process keeps for clients of correlations and masked weights, and how much of it is too much.

A client orders what lies in others' stores until it asks. So an order is counted before it is taken: for the client,
and for all of them. What is in the way and of no use goes first: stock of a client's earlier set-ups, then what belongs
to models that are not served any more; whoever still had it sets up again.

    stocked/{prefix}    what is kept below a prefix, and under which key its set-up is written down; MessagePack
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec

from confide.errors import ProtocolError, UsageError
from confide.ideal import Backend, Kit
from confide.serve.parties.messages import Order
from confide.wire import Store, decode, encode

_PREFIX = "stocked/"
_LARGEST_NOTE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class StockLimits:
    """How many bytes a process keeps: for one client, over all models, and for all clients together.

    Raises:
        UsageError: less than 1, or a client that may have more than all together.
    """

    client_bytes: int = 4 << 30
    total_bytes: int = 32 << 30

    def __post_init__(self) -> None:
        if not 1 <= self.client_bytes <= self.total_bytes:
            raise UsageError(
                f"Expected client_stock_bytes={self.client_bytes} from 1 to stock_bytes={self.total_bytes}; raise "
                "--stock-bytes or lower --client-stock-bytes"
            )


@runtime_checkable
class KeepsStock(Protocol):
    """A backend whose parties keep correlations and masked weights in their stores."""

    def order_bytes(self, role: str, kit: Kit, kind: str, *, rows: int, count: int) -> int:
        """Return what a session of a kind leaves in a role's store."""
        ...

    def held_bytes(self, role: str, kit: Kit, store: Store) -> int:
        """Return what a role keeps of one client."""
        ...

    def outlived(self, role: str, store: Store, run: bytes) -> Mapping[str, None]:
        """Return the change that clears away what a role keeps of a client's set-ups before `run`."""
        ...


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    bytes: int
    client: str
    mark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one client's part of one model lies at this process.

    Args:
        prefix: of the store.
        client: the member's name.
        backend, role, kit: of this process.
        mark: key under which the set-up is written down.
        run: returns what that is called, b"" if there is none; asked where room must be made.
    """

    prefix: str
    client: str
    backend: Backend
    role: str
    kit: Kit
    mark: str
    run: Callable[[], bytes] = bytes


class Stockroom:
    """Counts what is kept.

    Args:
        me: this process's name.
        store: the process's own; what an earlier process counted is taken over.
        view: returns the part of the store below a prefix.
        limits: what is too much.
        served: whether what lies below a prefix belongs to a model that is served.
    """

    def __init__(
        self,
        me: str,
        store: Store,
        view: Callable[[str], Store],
        limits: StockLimits,
        served: Callable[[str], bool],
    ) -> None:
        self._me, self._store, self._view, self._limits, self._served = me, store, view, limits, served
        self._kept: dict[str, _Kept] = {}
        self._places: dict[str, Place] = {}  # of who ordered while this process runs
        self._coming: Counter[str] = Counter()  # by prefix: what was ordered and has not come
        for key in store.keys(_PREFIX):
            self._kept[key.removeprefix(_PREFIX)] = decode(store.get(key) or b"", _Kept, max_bytes=_LARGEST_NOTE_BYTES)

    def admit(self, place: Place, order: Order) -> int:
        """Return the bytes that an order will take, which are counted until `came` gives them back.

        Raises:
            ProtocolError: they are too many.
        """
        if not isinstance(place.backend, KeepsStock):
            return 0
        more = place.backend.order_bytes(place.role, place.kit, order.kind, rows=order.rows, count=order.count)
        if more:
            self._places[place.prefix] = place
            self._make_room(place, place.backend, more)
            self._coming[place.prefix] += more
        return more

    def came(self, place: Place, taken: int) -> None:
        """Give back what `admit` returned, once the order has ended, and count what it left."""
        if taken:
            self._coming[place.prefix] -= taken
            self._count(place)

    def kept_bytes(self, client: str | None = None) -> int:
        """Return what is kept and on its way, for one client or for all."""
        prefixes = {prefix for prefix, kept in self._kept.items() if client in (None, kept.client)}
        return sum(self._kept[prefix].bytes + self._coming[prefix] for prefix in prefixes)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _make_room(self, place: Place, backend: KeepsStock, more: int) -> None:
        limits, view = self._limits, self._view(place.prefix)
        self._count(place)
        if self._fits(place.client, more):
            return
        if gone := backend.outlived(place.role, view, place.run()):
            self._clear(place.prefix, gone)
            self._count(place)
        if not self._fits(place.client, more):
            for one in self._places.values():  # what was used since it was ordered counts no more
                self._count(one)
        for prefix, kept in list(self._kept.items()):
            if not self._served(prefix) and not self._fits(place.client, more):
                self._drop(prefix, kept)
        if self._fits(place.client, more):
            return
        own, all_ = self.kept_bytes(place.client), self.kept_bytes()
        if own + more > limits.client_bytes:
            raise ProtocolError(
                f"Expected at most {limits.client_bytes} bytes in stock for one client at {self._me}; {place.client} "
                f"has {own}, and this takes {more}: order fewer ahead, or have --client-stock-bytes raised there"
            )
        raise ProtocolError(
            f"Expected at most {limits.total_bytes} bytes in stock at {self._me}; {all_} are taken, and this takes "
            f"{more}: ask without correlations ahead, or have --stock-bytes raised there"
        )

    def _fits(self, client: str, more: int) -> bool:
        limits = self._limits
        return self.kept_bytes(client) + more <= limits.client_bytes and self.kept_bytes() + more <= limits.total_bytes

    def _count(self, place: Place) -> None:
        assert isinstance(place.backend, KeepsStock)
        held = place.backend.held_bytes(place.role, place.kit, self._view(place.prefix))
        kept = _Kept(held, place.client, place.mark)
        if self._kept.get(place.prefix) != kept:
            self._store.commit({_PREFIX + place.prefix: encode(kept)})
            self._kept[place.prefix] = kept

    def _clear(self, prefix: str, keys: Iterable[str]) -> None:
        """Delete at once: a view of the store may put off clearing what it deletes, and room is needed now."""
        self._store.commit({prefix + key: None for key in keys})

    def _drop(self, prefix: str, kept: _Kept) -> None:
        """Clear away a client's part of a model that is not served: if it comes back, the client sets up again."""
        self._store.commit({kept.mark: None, _PREFIX + prefix: None})
        self._clear("", self._store.keys(prefix))
        self._kept.pop(prefix)
        self._places.pop(prefix, None)
