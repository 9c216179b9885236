"""What the two sides of a prediction under "he" hold: the plan at the client, the plan and the model at the server."""

from __future__ import annotations

from functools import cached_property

import msgspec

from confide.errors import ProtocolError, UsageError
from confide.he.encode import quantise
from confide.he.engine_batch import BatchClient, BatchServer
from confide.he.engine_native import Engine
from confide.he.engine_seal import NetworkClient, NetworkServer
from confide.he.engine_trees import TreesClient, TreesServer
from confide.he.enrolment import Channels, Mine, mine, public_keys, uploaded
from confide.he.linear import LinearClient, LinearServer
from confide.he.machines import Keys
from confide.he.message_bytes import (
    MOST_QUERY_BYTES,
    block_rows,
    keys_bytes,
    query_bytes,
    reply_bytes,
    whole_key_bytes,
)
from confide.he.network import Network
from confide.he.normalise import Ready
from confide.he.plan import Plan
from confide.he.plan_batch import BatchPlan
from confide.he.plan_linear import LinearPlan
from confide.he.plan_network import NetworkPlan
from confide.he.plan_trees import TreesPlan
from confide.he.seal import Needs
from confide.he.setup import Owned, Registered
from confide.he.trees import leaves_of
from confide.ideal import Matrix
from confide.model.trees import Trees
from confide.wire import decode, encode

CkksClient = NetworkClient | BatchClient | TreesClient
CkksServer = NetworkServer | BatchServer | TreesServer

#: Version of kits and messages.
FORMAT = 2

_MAX_KIT_BYTES = 1 << 16
_MOST_KEYS_BYTES = 1 << 28  # that a client uploads for a stranger's plan, and that a server's store takes
_MOST_MADE_BYTES = 1 << 33  # of keys at all primes, which a client makes one by one: minutes


class _Public(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client kit on the wire; `needs` follows from the plan, and stands there for clients that are not ours."""

    format: int
    plan: Plan
    needs: Needs


class _Rows(msgspec.Struct, frozen=True):
    """The one field of a question that tells what it costs; the rest is skipped, not copied."""

    rows: int


class ClientKit:
    """Public: the plan, and tables that are built from it once.

    Args:
        plan: checked.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._parsed: tuple[Owned, Mine] | None = None

    def encode(self) -> bytes:
        return encode(_Public(FORMAT, self.plan, self.plan.needs))

    @cached_property
    def encoded(self) -> bytes:
        """Return `encode()`, once."""
        return self.encode()

    @cached_property
    def engine(self) -> LinearClient | CkksClient:
        """Return the client's half of the plan's engine."""
        match self.plan:
            case LinearPlan():
                return LinearClient(self.plan)
            case NetworkPlan():
                return NetworkClient(self.plan)
            case BatchPlan():
                return BatchClient(self.plan)
            case TreesPlan():
                return TreesClient(self.plan)

    @property
    def block_rows(self) -> int:
        """Return the rows that a question carries at the cost of one."""
        return block_rows(self.plan)

    def keys(self, kept: Owned) -> Mine:
        """Return the keys in `kept`, parsed once."""
        if self._parsed is None or self._parsed[0] != kept:
            self._parsed = kept, mine(kept, self.engine.context, kit=self.encoded)
        return self._parsed[1]

    def prepare_ahead(self) -> bool:
        """Do a part of the next encryption, of a millisecond. Returns False if there is nothing to do."""
        return self._parsed is not None and self._parsed[1].secret.prepare_ahead()


class ServerKit:
    """Private: the plan and the encoded model. It stays in the server's memory.

    Args:
        plan: of the model's shape.
        net: the model.
        ready: its scaled weights, for a network.
        engine: what executes plans under CKKS.
        threads: that one answer may take.
    """

    def __init__(
        self, plan: Plan, net: Network | Trees, ready: Ready | None, engine: Engine = "auto", threads: int = 1
    ) -> None:
        self.plan = plan
        self.engine: LinearServer | CkksServer
        if isinstance(plan, TreesPlan):
            assert isinstance(net, Trees)
            self.engine = TreesServer(plan, leaves_of(net, plan), engine, threads)
        elif isinstance(plan, LinearPlan):
            assert isinstance(net, Network)
            assert net.linear is not None
            self.engine = LinearServer(plan, quantise(net.linear, plan.fixed))
        else:
            assert ready is not None
            if isinstance(plan, BatchPlan):
                self.engine = BatchServer(plan, ready, engine, threads)
            else:
                self.engine = NetworkServer(plan, ready, engine, threads)
        self.keys = Registered("he", self.parse_keys)
        self.public = ClientKit(plan).encode()
        self.channels = Channels("he", self.public)

    def __repr__(self) -> str:
        return f"ServerKit({self.plan})"

    def encode(self) -> bytes:
        raise UsageError("Expected a client kit; the server's holds the model and is not written")

    @property
    def error_bound(self) -> Matrix:
        """Return the largest error of each output for every input in the box, shape (outputs,).

        For a model that ends in a sigmoid it is the error of the probability: a quarter of the logit's.
        """
        return self.engine.error / 4 if self.plan.sigmoid else self.engine.error

    def rows(self, query: bytes) -> int:
        """Return how many rows a query asks for, before any work on it; in a batch all that it has room for count.

        No more are answered to who made its keys honestly: of each ciphertext of a reply one row's results leave, in a
        batch one for each slot (`traces`; of BFV, coefficients at the places of these rows).

        Raises:
            ProtocolError: it does not say.
        """
        rows = decode(query, _Rows, max_bytes=MOST_QUERY_BYTES).rows
        return -(-rows // self.block_rows) * self.block_rows

    @property
    def block_rows(self) -> int:
        """Return the rows that a question carries at the cost of one."""
        return block_rows(self.plan)

    def query_bytes(self, rows: int) -> int:
        """Return a bound of the size of a query of `rows` rows."""
        return query_bytes(self.plan, rows)

    def reply_bytes(self, rows: int) -> int:
        """Return a bound of the size of a reply to `rows` rows."""
        return reply_bytes(self.plan, rows)

    @property
    def keys_bytes(self) -> int:
        """Return a bound of the size of one client's public keys as they are uploaded."""
        return keys_bytes(self.plan)

    def parse_keys(self, body: bytes) -> Keys:
        """Return a client's public keys. Raises ProtocolError on anything else."""
        if isinstance(self.engine, LinearServer):
            return public_keys(body, self.engine.context, self.plan.needs)
        return self.engine.keys(uploaded(body, self.engine.context, self.plan.needs))


def client_kit(body: bytes) -> ClientKit:
    """Return the kit in `body`, a stranger's, checked. Raises ProtocolError if it is none."""
    public = decode(body, _Public, max_bytes=_MAX_KIT_BYTES)
    if public.format != FORMAT:
        raise ProtocolError(f"Expected a client kit of format={FORMAT}")
    kit = ClientKit(public.plan.checked())
    if public.needs != kit.plan.needs:
        raise ProtocolError("Expected a kit that asks for the keys of its plan")
    if keys_bytes(kit.plan) > _MOST_KEYS_BYTES:
        raise ProtocolError(f"Expected a plan with keys of at most {_MOST_KEYS_BYTES} bytes")
    if whole_key_bytes(kit.plan) > _MOST_MADE_BYTES:
        raise ProtocolError(f"Expected a plan whose keys at all primes have at most {_MOST_MADE_BYTES} bytes")
    if kit.plan.needs.relinearisation or kit.plan.needs.steps:
        kit.plan.parameters.check_switching()
    _ = kit.engine  # SEAL takes the parameters, or this raises ProtocolError
    return kit
