"""The backend "mpc-dealer": client and server compute on shares, with correlations from a dealer."""

from __future__ import annotations

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.ideal import Backend, Kit, Matrix
from confide.model.graph import Graph, Problem
from confide.mpc import lowering, weights
from confide.mpc.deals import deal_at_dealer, deal_at_party, hold_ready
from confide.mpc.keys import Mode, setup_dealer, setup_party
from confide.mpc.kits import AnyKit, ModelKit, PublicKit, read_kit
from confide.mpc.predictions import in_stock, predict_at_client, predict_at_party
from confide.mpc.ranges import Ranges
from confide.mpc.recipe import GraphRecipe
from confide.wire import Party, Store

#: Seeds of 125 bits, at most 2^25 of them under one key: docs/protocols/mpc-dealer.md.
SECURITY_BITS = 100

_MODE = Mode("mpc-dealer", ("client", "server"), owned=True)


class WithDealer(Backend):
    """Predictions by client and server on shares; a dealer, who takes no part in them, makes what they consume.

    Roles: the client has rows, the server has the model, the dealer has neither. `setup` takes all three, once for a
    client and a version of the weights. `deal` takes all three and puts correlations for later predictions into the
    stores; `predict` takes client and server, and the dealer too where stock is empty (`needs_dealer`).

    Args:
        ranges: how large values become before each layer (`confide.mpc.ranges`); None takes windows of 12 whole bits.

    **Guarantees**: against parties that follow the protocol and study what they see, and as long as the dealer pools
    nothing with either of the others: the server learns nothing of rows and predictions, the client nothing of the
    weights beyond the predictions, and the dealer nothing of all of them.

    **Leaks**: the architecture, its windows and the number of rows, to all three; to the dealer the number of deals,
    and when they are asked for. The rounding of a truncated value depends on the mask, and on a public uniform value.

    Paper: Boyle et al., ePrint 2020/1392 (comparison by function secret sharing); docs/protocols/mpc.md has the gates.
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
        return {
            "client": PublicKit(recipe, owned=True),
            "server": ModelKit(recipe, owned=True, model=model),
            "dealer": PublicKit(recipe, owned=True),
        }

    def decode_kit(self, role: str, body: bytes) -> Kit:
        recipe, model = read_kit(body)
        if role not in self.roles or (role == "server") != (model is not None):
            raise ProtocolError(f"Expected a kit for role={role!r}: with a model at the server, without one elsewhere")
        read = GraphRecipe.decode(recipe)
        return PublicKit(read, owned=True) if model is None else ModelKit(read, owned=True, model=model)

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
        if role == "server":
            return predict_at_party(_MODE, role, own, store)
        if x is None:
            raise UsageError("Expected x at the client")
        return predict_at_client(_MODE, own, x, store, rng)


def checked_kit(mode: Mode, role: str, kit: Kit) -> AnyKit:
    """Return a role's kit. Raises UsageError if it is another's."""
    has_model = role in mode.holders and role != "client"
    if role not in mode.roles or not isinstance(kit, ModelKit if has_model else PublicKit):
        raise UsageError(f"Expected role={role!r} with the kit that prepare made for it")
    return kit


_GUARANTEE = Guarantee(
    claims=frozenset(
        {
            Claim("query", "server", ("dealer",)),
            Claim("prediction", "server", ("dealer",)),
            Claim("weights", "client", ("dealer",)),
            Claim("query", "dealer", ("server",)),
            Claim("prediction", "dealer", ("server",)),
            Claim("weights", "dealer", ("client",)),
        }
    ),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.NON_COLLUSION,
    security_bits=SECURITY_BITS,
    post_quantum=True,
    verified_result=False,
    leaks=(
        "All three know the layers' sizes and windows and how many rows are asked; the dealer knows how many "
        "predictions it made correlations for and when, which is when they are asked unless dealt ahead. The dealer "
        "together with the client reads the weights, together with the server the rows. All are taken to follow the "
        "protocol: results are not verified, and values outside their windows give wrong results. The client learns "
        "what predictions say of the weights."
    ),
    primary="additive shares mod 2^64, distributed comparison functions and streams from AES-128",
    paper="ePrint 2020/1392 (comparison); ePrint 2019/1095 (gates on masked values); gates: docs/protocols/mpc.md",
)
