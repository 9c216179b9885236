"""The backend "mpc-dealer": client and server compute on shares, with correlations from a dealer."""

from __future__ import annotations

from confide.crypto.random import Randomness
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.ideal import Kit
from confide.model.graph import Graph
from confide.mpc import lowering, weights
from confide.mpc.dealt import SECURITY_BITS, Dealt
from confide.mpc.keys import Mode
from confide.mpc.kits import ModelKit, PublicKit
from confide.mpc.recipe import GraphRecipe

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
        "All three know the layers' sizes and windows (ranges of values) and how many rows are asked; the dealer knows "
        "how many predictions it made correlations for and when, which is when they are asked unless dealt ahead. "
        "The dealer "
        "together with the client reads the weights, together with the server the rows. All are taken to follow the "
        "protocol: results are not verified, and values outside their windows give wrong results. The client learns "
        "what predictions say of the weights."
    ),
    primary="additive shares mod 2^64, distributed comparison functions and streams from AES-128",
    paper="ePrint 2020/1392 (comparison); ePrint 2019/1095 (gates on masked values); gates: docs/protocols/mpc.md",
)


class WithDealer(Dealt):
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

    mode = Mode("mpc-dealer", ("client", "server"), owned=True)
    name = mode.name
    roles = mode.roles
    guarantee = _GUARANTEE

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        architecture = lowering.architecture_of(graph, self._ranges)
        recipe, model = GraphRecipe(architecture), weights.encoded(graph, architecture)
        return {
            "client": PublicKit(recipe, owned=True),
            "server": ModelKit(recipe, owned=True, model=model),
            "dealer": PublicKit(recipe, owned=True),
        }
