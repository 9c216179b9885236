"""Set-up and predictions of "mpc-3pc": what the client and three servers say around a program.

    client -> servers   mpc-3pc/hello      the recipe's hash, and a name for the client
    servers -> client   mpc-3pc/welcome    the name, and which sharing of the model the server has
    client -> servers   mpc-3pc/query      names, rows, seeds; x_1 to server and helper
    third -> others     mpc-3pc/run/0      a key each, and what it deals first
    server <-> helper   mpc-3pc/run/{t}    round t (`replicated_holders`)
    third -> helper     mpc-3pc/run/{t}    what it deals next
    both -> client      mpc-3pc/run/result shares of y

Keys are fresh in every run, so a query that is sent twice is answered under other masks, and nothing but the client's
name and the sharing has to be kept.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError
from confide.ideal import Matrix
from confide.mpc.kits import Recipe
from confide.mpc.messages import MOST_ROWS
from confide.mpc.operations import Kind, Load, Program, Reveal
from confide.mpc.replicated_holders import Place, run_holder
from confide.mpc.replicated_kits import FORMAT, NAME_BYTES, AskerKit, ShareKit, recipe_id
from confide.mpc.replicated_plan import AGREEMENT_BYTES, HELPER, KEY_BYTES, SERVER, THIRD, Plan
from confide.mpc.replicated_shares import Part
from confide.mpc.replicated_third import run_third
from confide.mpc.streams import stream
from confide.wire import Message, Party, Step, Store, decode, encode

NAME = "mpc-3pc"
SERVERS = (SERVER, HELPER, THIRD)
#: Largest absolute input: what a word holds at an input's scale, with room for a first product.
LARGEST_INPUT = float(1 << 15)

_SMALL_BYTES = 4096
_RUN = f"{NAME}/run"

_Name = Annotated[bytes, msgspec.Meta(min_length=NAME_BYTES, max_length=NAME_BYTES)]
_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Seed = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From the client, once: the recipe's hash, and the name under which it will ask."""

    format: int
    recipe: _Hash
    client: _Name


class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From each server: the name again, and the sharing that it computes with."""

    client: _Name
    sharing: _Name


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From the client to one server.

    Args:
        format: FORMAT.
        client: the name of the set-up.
        query: a fresh name of this prediction.
        rows: how many.
        program: hash of the program.
        seeds: of x_0 at the server, of x_2 at the helper, both at the third.
        masked: x_1 as little-endian words; b"" at the third.
    """

    format: int
    client: _Name
    query: _Name
    rows: Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)]
    program: _Hash
    seeds: Annotated[tuple[_Seed, ...], msgspec.Meta(min_length=1, max_length=2)]
    masked: bytes

    def __repr__(self) -> str:
        return f"Query({self.rows} rows)"


# --- set-up -----------------------------------------------------------------------------------------------------------


def setup_client(kit: AskerKit, rng: Randomness) -> Party:
    """Return the client's party of a set-up; it returns the client's name, in hex."""
    me, recipe = rng.bytes(NAME_BYTES), recipe_id(kit.recipe)
    hello = encode(Hello(FORMAT, recipe, me))
    received = yield Step(
        tuple(Message("client", role, f"{NAME}/hello", hello) for role in SERVERS),
        await_tag=f"{NAME}/welcome",
        wait_for=SERVERS,
    )
    answers = [decode(received[role].body, Welcome, max_bytes=_SMALL_BYTES) for role in SERVERS]
    if any(one.client != me for one in answers):
        raise ProtocolError("Expected servers to welcome the name that was sent")
    if len({one.sharing for one in answers}) != 1:
        raise ProtocolError("Expected servers with shares of one model; give all three kits of one `prepare`")
    yield Step(save={_latest(recipe): me})
    return me.hex()


def setup_server(kit: ShareKit) -> Party:
    """Return a server's party of a set-up; it returns the client's name, in hex."""
    received = yield Step(await_tag=f"{NAME}/hello", wait_for=("client",))
    hello = decode(received["client"].body, Hello, max_bytes=_SMALL_BYTES)
    if hello.format != FORMAT or hello.recipe != recipe_id(kit.recipe):
        raise ProtocolError(f"Expected the recipe of the model that is served here, format={FORMAT}")
    welcome = Message(kit.role, "client", f"{NAME}/welcome", encode(Welcome(hello.client, kit.sharing)))
    yield Step((welcome,), save={_known(kit, hello.client): kit.sharing})
    return hello.client.hex()


def _latest(recipe: bytes) -> str:
    return f"{NAME}/client/{recipe.hex()[:16]}"


def _known(kit: ShareKit, client: bytes) -> str:
    return f"{NAME}/{kit.role}/{client.hex()}"


# --- predictions ------------------------------------------------------------------------------------------------------


def predict_at_client(kit: AskerKit, x: Matrix, store: Store, rng: Randomness) -> Party:
    """Return the client's party of one prediction; it returns y.

    Raises:
        UsageError: x does not fit, or no set-up is in the store.
    """
    checked_rows(x, kit.recipe)
    me = store.get(_latest(recipe_id(kit.recipe)))
    if me is None:
        raise UsageError("Expected a set-up for this model in the store; run setup first")
    return _ask(kit, x, me, rng)


def _ask(kit: AskerKit, x: Matrix, me: bytes, rng: Randomness) -> Party:
    plan = kit.plans.of(len(x))
    seeds = rng.bytes(KEY_BYTES), rng.bytes(KEY_BYTES)
    flat = np.rint(x * 2.0 ** entry(plan.program).scale).astype(np.int64).view(np.uint64).reshape(-1)
    masked = np.subtract(np.subtract(flat, stream(seeds[0], 0, flat.size)), stream(seeds[1], 0, flat.size))
    body = masked.astype("<u8", copy=False).tobytes()
    query = rng.bytes(NAME_BYTES)
    shares = {SERVER: ((seeds[0],), body), HELPER: ((seeds[1],), body), THIRD: (seeds, b"")}
    send = tuple(
        Message("client", role, f"{NAME}/query", encode(Query(FORMAT, me, query, len(x), plan.hash, *share)))
        for role, share in shares.items()
    )
    received = yield Step(send, await_tag=f"{_RUN}/result", wait_for=(SERVER, HELPER))
    y = joined(plan, [received[role].body for role in (SERVER, HELPER)])["y"]
    real = np.asarray(y.reshape(len(x), -1) * 2.0**-plan.output_scale, np.float64)
    return kit.recipe.finish(real)


def predict_at_server(kit: ShareKit, store: Store, rng: Randomness) -> Party:
    """Return a server's party of one prediction; it returns how many rows it answered."""
    received = yield Step(await_tag=f"{NAME}/query", wait_for=("client",))
    body = received["client"].body
    query = decode(body, Query, max_bytes=8 * kit.recipe.features * MOST_ROWS + _SMALL_BYTES)
    if query.format != FORMAT:
        raise ProtocolError(f"Expected format={FORMAT}; all sides must run the same version")
    if store.get(_known(kit, query.client)) != kit.sharing:
        raise ProtocolError("Expected a client that was set up here, for the weights that are served now")
    plan = kit.plans.of(query.rows)
    if query.program != plan.hash:
        raise ProtocolError("Expected the program of the same model; fetch the kit again")
    loads = kit.model | {"x": _input_part(kit.role, plan.program, query)}
    agreement = _agreement(plan, kit.sharing, query)
    if kit.role == THIRD:
        yield from run_third(plan, loads, tag=_RUN, agreement=agreement, rng=rng)
    else:
        yield from run_holder(Place(int(kit.role == HELPER), _RUN, agreement), plan, loads, rng)
    return query.rows


def joined(plan: Plan, shares: list[bytes]) -> dict[str, NDArray[np.int64]]:
    """Return what was revealed, by name, as integers of its scale; bits are 0 and 1.

    Args:
        plan: of the program.
        shares: what server and helper sent.

    Raises:
        ProtocolError: a share of another length.
    """
    if any(len(one) != plan.result_bytes for one in shares):
        raise ProtocolError(f"Expected {plan.result_bytes} bytes of results from each of two servers")
    found: dict[str, NDArray[np.int64]] = {}
    offset = 0
    for number, length, _ in plan.reveals:
        operation, value = plan.program.operations[number], plan.program.values[number]
        assert isinstance(operation, Reveal)
        if value.kind is Kind.BIT:
            first, second = (np.frombuffer(one, np.uint8, length, offset) for one in shares)
            bits = np.unpackbits(np.bitwise_xor(first, second), count=value.count, bitorder="little")
            found[operation.name] = bits.astype(np.int64).reshape(value.shape)
        else:
            first, second = (np.frombuffer(one, "<u8", value.count, offset) for one in shares)
            total = first + second + np.uint64(operation.bits > 0)  # two floors lose up to one
            whole = (total << np.uint64(operation.bits)).view(np.int64) >> operation.bits
            found[operation.name] = whole.reshape(value.shape)
        offset += length
    return found


def checked_rows(x: Matrix, recipe: Recipe) -> None:
    """Refuse what is no matrix of bounded numbers. Raises UsageError."""
    if x.ndim != 2 or not 1 <= len(x) <= MOST_ROWS or x.shape[1] != recipe.features:
        raise UsageError(f"Expected x of shape (1 to {MOST_ROWS} rows, {recipe.features}), got {x.shape}")
    if not (np.abs(x) <= LARGEST_INPUT).all():
        raise UsageError(f"Expected finite features of at most {LARGEST_INPUT:g}; scale them as the model was trained")


def entry(program: Program) -> Load:
    """Return the input of a program. Raises ProtocolError if it has another one than an OPEN x."""
    found = [one for one in program.operations if isinstance(one, Load) and one.origin == "input"]
    if len(found) != 1 or found[0].kind is not Kind.OPEN or found[0].name != "x":
        raise ProtocolError("Expected a program with one OPEN input, x")
    return found[0]


def _input_part(role: str, program: Program, query: Query) -> Part:
    """Return a server's part of x. Raises ProtocolError if the query has other seeds or another length than its."""
    load = entry(program)
    count = int(np.prod(load.shape, dtype=np.int64))
    if len(query.seeds) != (2 if role == THIRD else 1) or len(query.masked) != (0 if role == THIRD else 8 * count):
        raise ProtocolError(f"Expected the {role}'s share of {query.rows} rows")
    drawn = [stream(seed, 0, count).reshape(load.shape) for seed in query.seeds]
    if role == THIRD:
        return Part(None, np.add(*drawn))
    return Part(np.frombuffer(query.masked, "<u8").astype(np.uint64, copy=False).reshape(load.shape), drawn[0])


def _agreement(plan: Plan, sharing: bytes, query: Query) -> bytes:
    """Return what the servers' first messages have to agree in."""
    fields = plan.hash + sharing + query.client + query.query
    return hashlib.sha256(b"confide mpc-3pc run v1\0" + fields).digest()[:AGREEMENT_BYTES]
