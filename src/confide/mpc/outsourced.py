"""The backend "mpc-outsourced": two servers hold shares of the model and answer on shares of the rows."""

from __future__ import annotations

import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.ideal import Backend, Kit, Matrix
from confide.model.graph import Graph, Problem
from confide.mpc import lowering, weights
from confide.mpc.correlations import Words
from confide.mpc.deals import deal_at_dealer, deal_at_party, hold_ready
from confide.mpc.keys import Mode, setup_dealer, setup_party
from confide.mpc.kits import ModelKit, PublicKit, read_kit
from confide.mpc.predictions import in_stock, predict_at_client, predict_at_party
from confide.mpc.ranges import Ranges
from confide.mpc.recipe import GraphRecipe
from confide.mpc.two_party import SECURITY_BITS, checked_kit
from confide.wire import Party, Store

_MODE = Mode("mpc-outsourced", ("server", "helper"), owned=False)


class Outsourced(Backend):
    """Predictions at two servers, neither of which sees the model, the rows or the predictions.

    Roles: whoever owns the model runs `prepare`, and sends each server its kit, a share; the client sends shares of
    its rows to "server" and "helper" and adds up what they send back; the dealer is as in "mpc-dealer".

    Args:
        ranges: how large values become before each layer (`confide.mpc.ranges`); None takes windows of 12 whole bits.

    **Guarantees**: against parties that follow the protocol and study what they see, and as long as no two of server,
    helper and dealer pool what they have: none of them learns anything of weights, rows and predictions; the client
    learns nothing of the weights beyond the predictions.

    **Leaks**: the architecture, its windows, the number of rows, and when they are asked, to all.

    Paper: as for "mpc-dealer".
    """

    name = _MODE.name
    roles = _MODE.roles
    public_role = "client"

    def __init__(self, *, ranges: Ranges | None = None) -> None:
        self._ranges = ranges
        self.guarantee = _GUARANTEE

    def check(self, graph: Graph) -> list[Problem]:
        return lowering.check(graph, self._ranges)

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        architecture = lowering.architecture_of(graph, self._ranges)
        recipe, model = GraphRecipe(architecture), weights.encoded(graph, architecture)
        mine: dict[str, Words] = {name: _uniform(words, rng) for name, words in model.items()}
        theirs = {name: np.subtract(words, mine[name]) for name, words in model.items()}
        return {
            "client": PublicKit(recipe, owned=False),
            "server": ModelKit(recipe, owned=False, model=mine),
            "helper": ModelKit(recipe, owned=False, model=theirs),
            "dealer": PublicKit(recipe, owned=False),
        }

    def decode_kit(self, role: str, body: bytes) -> Kit:
        recipe, model = read_kit(body)
        if role not in self.roles or (role in _MODE.holders) != (model is not None):
            raise ProtocolError(f"Expected a kit for role={role!r}: with a share at a server, without one elsewhere")
        read = GraphRecipe.decode(recipe)
        return PublicKit(read, owned=False) if model is None else ModelKit(read, owned=False, model=model)

    def setup(self, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
        own = checked_kit(_MODE, role, kit)
        return setup_dealer(_MODE, own, store, rng) if role == "dealer" else setup_party(_MODE, role, own, store)

    def deal(self, role: str, kit: Kit, store: Store, rng: Randomness, *, rows: int, count: int) -> Party:
        """Return the party that puts correlations for `count` later predictions of `rows` rows into the stores.

        The client asks. Everyone but the dealer returns how many predictions of so many rows are in stock.
        """
        own = checked_kit(_MODE, role, kit)
        if role == "dealer":
            return deal_at_dealer(_MODE, own, store, awaited=True, count=count, rows=rows)
        return deal_at_party(_MODE, role, own, store, rows=rows, count=count)

    def needs_dealer(self, kit: Kit, store: Store, *, rows: int) -> bool:
        """Return whether the client's next prediction of `rows` rows asks the dealer, since its stock is empty."""
        return in_stock(_MODE, checked_kit(_MODE, "client", kit), store, rows=rows) == 0

    def hold_ready(self, role: str, kit: Kit, store: Store, run: bytes, *, rows: int) -> int:
        """Make the next deals in stock ready in memory, between predictions; return how many are."""
        return hold_ready(_MODE, role, checked_kit(_MODE, role, kit), store, run, rows=rows)

    def predict(self, role: str, kit: Kit, x: Matrix | None, store: Store, rng: Randomness) -> Party:
        own = checked_kit(_MODE, role, kit)
        if role == "dealer":
            return deal_at_dealer(_MODE, own, store, awaited=False)
        if role in _MODE.holders:
            return predict_at_party(_MODE, role, own, store)
        if x is None:
            raise UsageError("Expected x at the client")
        return predict_at_client(_MODE, own, x, store, rng)


def _uniform(words: Words, rng: Randomness) -> Words:
    return np.frombuffer(rng.bytes(words.nbytes), "<u8").astype(np.uint64, copy=False).reshape(words.shape)


_GUARANTEE = Guarantee(
    claims=frozenset(
        {
            *(
                Claim(asset, one, tuple(other for other in ("server", "helper", "dealer") if other != one))
                for asset in ("query", "prediction", "weights")
                for one in ("server", "helper", "dealer")
            ),
            Claim("weights", "client", ("server", "helper", "dealer")),
        }
    ),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.NON_COLLUSION,
    security_bits=SECURITY_BITS,
    post_quantum=True,
    verified_result=False,
    leaks=(
        "All know the layers' sizes and windows, how many rows are asked and when. Any two of server, helper and "
        "dealer together read weights, rows and predictions. All are taken to follow the protocol: results are not "
        "verified, and values outside their windows give wrong results. The client learns what predictions say of the "
        "weights."
    ),
    primary="additive shares mod 2^64, distributed comparison functions and streams from AES-128",
    paper="ePrint 2020/1392 (comparison); ePrint 2019/1095 (gates on masked values); gates: docs/protocols/mpc.md",
)
