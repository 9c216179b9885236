"""The backend "mpc-outsourced": two servers hold shares of the model and answer on shares of the rows."""

from __future__ import annotations

import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.ideal import Kit
from confide.model.graph import Graph
from confide.mpc import lowering, weights
from confide.mpc.correlations import Words
from confide.mpc.dealt import SECURITY_BITS, Dealt
from confide.mpc.halves import Elsewhere, Half, check_elsewhere, is_elsewhere
from confide.mpc.keys import Mode
from confide.mpc.kits import ModelKit, PublicKit
from confide.mpc.ranges import Ranges
from confide.mpc.recipe import GraphRecipe

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
        "All know the layers' sizes and windows (ranges of values), how many rows are asked and when. Any two of "
        "server, helper and "
        "dealer together read weights, rows and predictions. All are taken to follow the protocol: results are not "
        "verified, and values outside their windows give wrong results. The client learns what predictions say of the "
        "weights."
    ),
    primary="additive shares mod 2^64, distributed comparison functions and streams from AES-128",
    paper="ePrint 2020/1392 (comparison); ePrint 2019/1095 (gates on masked values); gates: docs/protocols/mpc.md",
)


class Outsourced(Dealt):
    """Predictions at two servers, neither of which sees the model, the rows or the predictions.

    Roles: whoever owns the model runs `prepare`, and sends each server its kit, a share; the client sends shares of
    its rows to "server" and "helper" and adds up what they send back; the dealer is as in "mpc-dealer".

    A model that was trained on shares has no owner: server and helper bring a half each, and send no part of a model.

    Args:
        ranges: how large values become before each layer (`confide.mpc.ranges`); None takes windows of 12 whole bits.
        half: what this party brings of such a model; None where the owner shares it out.

    **Guarantees**: against parties that follow the protocol and study what they see, and as long as no two of server,
    helper and dealer pool what they have: none of them learns anything of weights, rows and predictions; the client
    learns nothing of the weights beyond the predictions.

    **Leaks**: the architecture, its windows, the number of rows, and when they are asked, to all.

    Paper: as for "mpc-dealer".
    """

    mode = Mode("mpc-outsourced", ("server", "helper"), owned=False)
    name = mode.name
    roles = mode.roles
    guarantee = _GUARANTEE

    def __init__(self, *, ranges: Ranges | None = None, half: Half | None = None) -> None:
        self._ranges, self._half = ranges, half

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        """Return the kits. With a half of its own a server takes the numbers from there, and none from `graph`."""
        if self._half is not None:
            return _apart(self._half)
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
        if role != "helper" or (self._half is None and not is_elsewhere(body)):
            return Dealt.decode_kit(self, role, body)
        if self._half is None:
            raise ProtocolError(
                "Expected this helper's own half of a model that was trained on shares, the server sends none; start "
                "it with --shares FOLDER"
            )
        if not is_elsewhere(body):
            raise ProtocolError(
                "Expected the server to bring its half of the training, it shares out a model of its own; leave "
                "--shares out if that is meant"
            )
        check_elsewhere(body, self._half)
        return self._half.kit


def _apart(half: Half) -> dict[str, Kit]:
    if half.role != "server":
        raise UsageError("Expected the half of the server")
    recipe = half.public.recipe
    return {
        "client": PublicKit(recipe, owned=False),
        "server": half.kit,
        "helper": Elsewhere(half.public),
        "dealer": PublicKit(recipe, owned=False),
    }


def _uniform(words: Words, rng: Randomness) -> Words:
    return np.frombuffer(rng.bytes(words.nbytes), "<u8").astype(np.uint64, copy=False).reshape(words.shape)
