"""What "mpc-dealer" and "mpc-outsourced" have in common: set-up, deals and predictions of a mode with a dealer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError
from confide.ideal import Backend, Kit, Matrix
from confide.model.graph import Graph, Problem
from confide.mpc import holdings, lowering
from confide.mpc.agreed import agreed
from confide.mpc.deals import deal_at_dealer, deal_at_party, hold_ready
from confide.mpc.keys import Mode, setup_dealer, setup_party
from confide.mpc.kits import AnyKit, ModelKit, PublicKit, read_kit
from confide.mpc.planner import Link, name_of, plan
from confide.mpc.predictions import in_stock, predict_at_client, predict_at_party
from confide.mpc.ranges import Ranges
from confide.mpc.recipe import GraphRecipe
from confide.wire import Party, Store

#: Seeds of 125 bits, at most 2^25 of them under one key: docs/protocols/mpc-dealer.md.
SECURITY_BITS = 100


class Dealt(Backend):
    """A mode in which two hold shares and a dealer, who takes no part in predictions, makes what they consume.

    Args:
        ranges: how large values become before each layer (`confide.mpc.ranges`); None takes windows of 12 whole bits.
    """

    mode: ClassVar[Mode]
    public_role = "client"

    def __init__(self, *, ranges: Ranges | None = None) -> None:
        self._ranges = ranges

    def check(self, graph: Graph) -> list[Problem]:
        return lowering.check(graph, self._ranges)

    def decode_kit(self, role: str, body: bytes) -> Kit:
        recipe, model = read_kit(body)
        if role not in self.roles or _has_model(self.mode, role) != (model is not None):
            raise ProtocolError(f"Expected a kit for role={role!r}: with a model at a server, without one elsewhere")
        read, owned = GraphRecipe.decode(recipe), self.mode.owned
        return PublicKit(read, owned=owned) if model is None else ModelKit(read, owned=owned, model=model)

    def setup(self, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
        own = checked_kit(self.mode, role, kit)
        return (
            setup_dealer(self.mode, own, store, rng) if role == "dealer" else setup_party(self.mode, role, own, store)
        )

    def deal(self, role: str, kit: Kit, store: Store, rng: Randomness, *, rows: int, count: int) -> Party:
        """Return the party that puts correlations for `count` later predictions of `rows` rows into the stores.

        The client asks. Everyone but the dealer returns how many predictions of so many rows are in stock.
        """
        own = checked_kit(self.mode, role, kit)
        if role == "dealer":
            return deal_at_dealer(self.mode, own, store, awaited=True, count=count, rows=rows)
        return deal_at_party(self.mode, role, own, store, rows=rows, count=count)

    def needs_dealer(self, kit: Kit, store: Store, *, rows: int) -> bool:
        """Return whether the client's next prediction of `rows` rows asks the dealer, since its stock is empty."""
        return self.in_stock(kit, store, rows=rows) == 0

    def in_stock(self, kit: Kit, store: Store, *, rows: int) -> int:
        """Return for how many predictions of `rows` rows a client that was set up holds correlations."""
        return in_stock(self.mode, checked_kit(self.mode, "client", kit), store, rows=rows)

    def hold_ready(self, role: str, kit: Kit, store: Store, run: bytes, *, rows: int) -> int:
        """Make the next deals in stock ready in memory, between predictions; return how many are."""
        return hold_ready(self.mode, role, checked_kit(self.mode, role, kit), store, run, rows=rows)

    def predict(self, role: str, kit: Kit, x: Matrix | None, store: Store, rng: Randomness) -> Party:
        own = checked_kit(self.mode, role, kit)
        if role == "dealer":
            return deal_at_dealer(self.mode, own, store, awaited=False)
        if role == "client":
            if x is None:
                raise UsageError("Expected x at the client")
            return predict_at_client(self.mode, own, x, store, rng)
        party = predict_at_party(self.mode, role, own, store)
        return party if self.mode.owned else agreed(self.mode, role, party)

    # --- what it takes ------------------------------------------------------------------------------------------------

    def rows_at_a_time(self, kit: Kit) -> int:
        """Return how many rows one prediction is best asked for: what its correlations leave room for."""
        return holdings.rows_within(checked_kit(self.mode, "client", kit), holdings.PROGRAM_BYTES)

    def most_rows(self, kit: Kit, *, session_bytes: int) -> int:
        """Return how many rows one prediction has at most, where one may send another so many bytes in a session."""
        return holdings.rows_within(checked_kit(self.mode, "client", kit), session_bytes)

    def deals_at_a_time(self, kit: Kit, *, rows: int) -> int:
        """Return for how many predictions of `rows` rows the client best orders correlations at a time."""
        return holdings.deals_at_a_time(checked_kit(self.mode, "client", kit), rows=rows)

    def planned(self, kit: Kit, *, rows: int) -> tuple[int, Mapping[Link, int]]:
        """Return the rounds of a prediction from stock, and the bytes that roles send each other in it."""
        total = plan(checked_kit(self.mode, "client", kit).recipe.program(rows), name_of(self.mode.name)).total
        return total.rounds, total.sent

    def order_bytes(self, role: str, kit: Kit, kind: str, *, rows: int, count: int) -> int:
        """Return what a session of a kind ("setup", "deal") leaves in a role's store."""
        return holdings.order_bytes(self.mode, role, checked_kit(self.mode, role, kit), kind, rows=rows, count=count)

    def held_bytes(self, role: str, kit: Kit, store: Store) -> int:
        """Return what a role keeps of one client: masked weights, and correlations in stock."""
        return holdings.held_bytes(self.mode, role, checked_kit(self.mode, role, kit), store)

    def outlived(self, role: str, store: Store, run: bytes) -> Mapping[str, None]:
        """Return the change that clears away what a role keeps of a client's set-ups before `run`."""
        return holdings.outlived(self.mode, role, store, run)


def checked_kit(mode: Mode, role: str, kit: Kit) -> AnyKit:
    """Return a role's kit. Raises UsageError if it is another's."""
    if role not in mode.roles or not isinstance(kit, ModelKit if _has_model(mode, role) else PublicKit):
        raise UsageError(f"Expected role={role!r} with the kit that prepare made for it")
    return kit


def _has_model(mode: Mode, role: str) -> bool:
    return role in mode.holders and role != "client"
