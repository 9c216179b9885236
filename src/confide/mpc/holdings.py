"""What predictions with a dealer take: bytes in a role's store for one client, and rows that fit into one program.

What a program of many rows takes is counted as that many programs of one row, which is never less.
"""

from __future__ import annotations

from collections.abc import Mapping

from confide.mpc.correlations import MOST_BATCH_BYTES
from confide.mpc.keys import Mode
from confide.mpc.kits import AnyKit
from confide.mpc.messages import MOST_ROWS
from confide.mpc.operations import Kind
from confide.wire import Store

#: Bytes from one to another for one prediction, where a client may choose how many rows it asks for at a time.
PROGRAM_BYTES = 64 << 20
#: Correlations of one order, where they are for several predictions.
ORDER_BYTES = 256 << 20
#: What a run or a deal takes in a store beside its numbers.
_NOTE_BYTES = 256


def rows_within(kit: AnyKit, most_bytes: int) -> int:
    """Return for how many rows a program is made within so many bytes from the dealer to one party; at least 1."""
    layout = kit.plans.of(1).layout
    largest = max((batch.size_bytes for batch in layout.batches), default=0)
    rows = min(most_bytes // max(1, _dealt_bytes(kit)), MOST_BATCH_BYTES // max(1, largest), MOST_ROWS)
    return max(1, rows)


def deals_at_a_time(kit: AnyKit, *, rows: int) -> int:
    """Return for how many predictions of `rows` rows correlations are best ordered at a time; at least 1."""
    return max(1, ORDER_BYTES // max(1, rows * _dealt_bytes(kit)))


def _dealt_bytes(kit: AnyKit) -> int:
    """Return what the dealer sends P1 for one row, or what the input of one row takes if that is more."""
    layout = kit.plans.of(1).layout
    return max(layout.words_bytes + layout.keys_bytes, 8 * kit.recipe.features)


def order_bytes(mode: Mode, role: str, kit: AnyKit, kind: str, *, rows: int, count: int) -> int:
    """Return what a session leaves in a role's store.

    Args:
        mode, role, kit: whose.
        kind: "setup" or "deal"; anything else leaves nothing.
        rows: of one prediction.
        count: predictions that are dealt for.
    """
    if kind == "setup":
        return _NOTE_BYTES + _model_bytes(mode, role, kit)
    return count * (_NOTE_BYTES + rows * _row_bytes(mode, role, kit)) if kind == "deal" else 0


def held_bytes(mode: Mode, role: str, kit: AnyKit, store: Store) -> int:
    """Return what a role's store holds for one client, under all of its set-ups."""
    root, total = f"{mode.name}/{role}/", 0
    deals: set[tuple[str, str, str]] = set()
    for key in store.keys(root):
        match key.removeprefix(root).split("/"):
            case [_, "record"]:
                total += _NOTE_BYTES
            case [_, "opened"]:
                total += _model_bytes(mode, role, kit)
            case [run, "stock" | "whole", rows, counter, *_]:
                deals.add((run, rows, counter))
            case _:
                pass
    each = _row_bytes(mode, role, kit)
    return total + sum(_NOTE_BYTES + int(rows) * each for _, rows, _ in deals)


def outlived(mode: Mode, role: str, store: Store, run: bytes) -> Mapping[str, None]:
    """Return the change that clears away stock and masked weights of a client's set-ups other than `run`.

    Their records stay: no run is set up twice.
    """
    root = f"{mode.name}/{role}/"
    parts = {key: key.removeprefix(root).split("/") for key in store.keys(root)}
    return {
        key: None
        for key, part in parts.items()
        if part[0] != run.hex() and part[1:2] in (["opened"], ["stock"], ["whole"])
    }


def _row_bytes(mode: Mode, role: str, kit: AnyKit) -> int:
    party, layout = mode.party(role), kit.plans.of(1).layout
    if party is None:
        return 0
    return layout.keys_bytes + (layout.words_bytes if party else 0)


def _model_bytes(mode: Mode, role: str, kit: AnyKit) -> int:
    if mode.party(role) is None:
        return 0
    layout = kit.plans.of(1).layout
    return 8 * sum(layout.program.values[number].count for number, _ in layout.model(Kind.OPEN))
