"""The backend "mpc-3pc": three servers hold replicated shares of the model and of the rows, and need no dealer."""

from __future__ import annotations

from collections.abc import Mapping

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.ideal import Backend, Kit, Matrix
from confide.model.graph import Graph, Problem
from confide.mpc import lowering, weights
from confide.mpc.holdings import PROGRAM_BYTES
from confide.mpc.messages import MOST_ROWS
from confide.mpc.planner import Link, plan
from confide.mpc.ranges import Ranges
from confide.mpc.recipe import GraphRecipe
from confide.mpc.replicated_kits import AskerKit, ReadShare, ShareKit, read_client_kit, shared_model
from confide.mpc.replicated_sessions import (
    NAME,
    SERVERS,
    predict_at_client,
    predict_at_server,
    setup_client,
    setup_server,
)
from confide.wire import Party, Store

#: Streams under AES-128.
SECURITY_BITS = 128


class Replicated(Backend):
    """Predictions at three servers, none of which sees the model, the rows or the predictions.

    Roles: whoever owns the model runs `prepare`, and sends each server its kit, a replicated share; the client sends
    shares of its rows to "server", "helper" and "third", and adds up what the first two send back.

    Args:
        ranges: how large values become before each layer (`confide.mpc.ranges`); None takes windows of 12 whole bits.

    **Guarantees**: against parties that follow the protocol and study what they see, as long as no two of the three
    servers pool what they have: none of them learns anything of weights, rows and predictions; the client learns
    nothing of the weights beyond the predictions. Messages are those of `replicated_plan`, their lengths follow from
    the architecture and the number of rows.

    **Leaks**: the architecture, its windows, the number of rows, and when they are asked, to all.

    Paper: Araki, Furukawa, Lindell, Nof, Ohara (CCS 2016): replicated shares, products with one
    element from each server, shares of zero from keys of pairs. We deviate: what the third holds is drawn before the
    input is known, as in Chaudhari, Choudhury, Patra, Suresh, "ASTRA" (CCSW 2019), so that it sends ahead and is sent
    nothing. Truncation and signs are those of docs/protocols/mpc-3pc.md, which states the functionality.
    """

    name = NAME
    roles = ("client", *SERVERS)
    public_role = "client"

    def __init__(self, *, ranges: Ranges | None = None) -> None:
        self._ranges = ranges
        self.guarantee = _GUARANTEE

    def check(self, graph: Graph) -> list[Problem]:
        return lowering.check(graph, self._ranges)

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        architecture = lowering.architecture_of(graph, self._ranges)
        kits = shared_model(GraphRecipe(architecture), weights.encoded(graph, architecture), rng)
        return {role: kits[role] for role in self.roles}

    def decode_kit(self, role: str, body: bytes) -> Kit:
        if role == "client":
            return AskerKit(GraphRecipe.decode(read_client_kit(body)))
        if role not in SERVERS:
            raise ProtocolError(f"Expected role={role!r} to be one of {', '.join(self.roles)}")
        read = ReadShare(role, body)
        return read.kit(GraphRecipe.decode(read.recipe))

    def setup(self, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
        if isinstance(kit, ShareKit) and kit.role == role:
            return setup_server(kit)
        return setup_client(_asker(role, kit), rng)

    def rows_at_a_time(self, kit: Kit) -> int:
        """Return how many rows one prediction is best asked for: what the servers' messages leave room for."""
        return self.most_rows(kit, session_bytes=PROGRAM_BYTES)

    def most_rows(self, kit: Kit, *, session_bytes: int) -> int:
        """Return how many rows one prediction has at most, where one may send another so many bytes in a session."""
        largest = plan(_asker("client", kit).recipe.program(1), NAME).total.largest
        return max(1, min(session_bytes // max(1, largest), MOST_ROWS))

    def planned(self, kit: Kit, *, rows: int) -> tuple[int, Mapping[Link, int]]:
        """Return the rounds of a prediction, and the bytes that roles send each other in it."""
        total = plan(_asker("client", kit).recipe.program(rows), NAME).total
        return total.rounds, total.sent

    def predict(self, role: str, kit: Kit, x: Matrix | None, store: Store, rng: Randomness) -> Party:
        if isinstance(kit, ShareKit) and kit.role == role:
            return predict_at_server(kit, store, rng)
        asker = _asker(role, kit)
        if x is None:
            raise UsageError("Expected x at the client")
        return predict_at_client(asker, x, store, rng)


def _asker(role: str, kit: Kit) -> AskerKit:
    if role != "client" or not isinstance(kit, AskerKit):
        raise UsageError(f"Expected role={role!r} with the kit that prepare made for it")
    return kit


def _others(role: str) -> tuple[str, ...]:
    return tuple(one for one in SERVERS if one != role)


_GUARANTEE = Guarantee(
    claims=frozenset(
        {
            *(Claim(asset, one, _others(one)) for asset in ("query", "prediction", "weights") for one in SERVERS),
            Claim("weights", "client", SERVERS),
        }
    ),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.NON_COLLUSION,
    security_bits=SECURITY_BITS,
    post_quantum=True,
    verified_result=False,
    leaks=(
        "All know the layers' sizes and windows (ranges of values), how many rows are asked and when. Any two of the "
        "three servers "
        "together read weights, rows and predictions. All are taken to follow the protocol: results are not verified, "
        "and values outside their windows give wrong results. How a truncation rounds, and a sign near zero, depends "
        "on masks that one server or two know. The client learns what predictions say of the weights."
    ),
    primary="replicated shares mod 2^64, streams from AES-128",
    paper="Araki et al., CCS 2016 (ePrint 2016/768); ASTRA, CCSW 2019 (ePrint 2019/429); docs/protocols/mpc-3pc.md",
)
