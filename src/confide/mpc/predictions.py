"""Predictions with a dealer: which correlations they take, and the first message that says so.

    client -> who computes   {name}/ask      the id, the program's hash, how many rows; in "mpc-outsourced" a share of x
    server -> client         {name}/go       empty; where the client asks under an id that an earlier process of it left
    P0 <-> P1                {name}/run/{k}  round k of the program (`party`)
    who computes -> client   {name}/y        in "mpc-outsourced": shares of the predictions

An id is taken in the commit that comes before the first masked byte. Where stock is empty the client asks the dealer,
and what it deals comes while the program runs.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np

from confide.crypto.random import Randomness
from confide.errors import AskAgain, ProtocolError, SetUpAgain, UsageError
from confide.ideal import Matrix
from confide.mpc.ahead import Fixed, Ready
from confide.mpc.correlations import DealId, Words
from confide.mpc.deals import checked_header, deal_tag, from_stock, from_words
from confide.mpc.keys import Mode, Record, fixed_of, known_record, own_record
from confide.mpc.kits import AnyKit, Plan
from confide.mpc.messages import FORMAT, SMALL_BYTES, Ask, Header, Query, Request, expect_binding, expect_format
from confide.mpc.operations import SCALE
from confide.mpc.party import Outcome, Place, run_program, told
from confide.mpc.stock import FREE, HELD, Shelf, piece_names
from confide.mpc.streams import KEY_BYTES, stream
from confide.wire import Message, Party, Step, Store, decode, encode

#: Largest absolute input: what a word holds at an input's scale, with room for a first product.
LARGEST_INPUT = float(1 << 15)


@dataclass(slots=True)
class Taken:
    """Correlations that a prediction has taken: not yet ready where none are made ready here.

    Args:
        ask: what the first message says of them.
        save: the change that comes before the first masked byte.
        ready: at who computes.
    """

    ask: Ask
    save: Mapping[str, bytes | None]
    ready: Ready | None


# --- the client -------------------------------------------------------------------------------------------------------


def predict_at_client(mode: Mode, kit: AnyKit, x: Matrix, store: Store, rng: Randomness) -> Party:
    """Return the client's party of one prediction; it returns y.

    Raises:
        UsageError: rows that do not fit, or a client that was not set up.
    """
    return _predicting(mode, kit, encoded(x, kit), len(x), own_record(mode, "client", kit, store), store, rng)


def _predicting(
    mode: Mode, kit: AnyKit, words: Words, rows: int, record: Record, store: Store, rng: Randomness
) -> Party:
    plan = kit.plans.of(rows)
    taken = yield from _take(mode, kit, store, record, plan, rows)
    try:
        if mode.owned:
            assert taken.ready is not None
            asking = tuple(Message("client", role, f"{mode.name}/ask", encode(taken.ask)) for role in mode.askers)
            fixed, first = fixed_of(mode, "client", kit, store, record, rows), Step(asking, save=taken.save)
            if taken.ask.waits:
                yield Step(asking, f"{mode.name}/go", mode.askers, save=taken.save)
                kit.prepared.unused_from(record.run, rows, taken.ask.counter)
                first = Step()
            outcome = yield from _run(mode, "client", plan, fixed, taken.ready, words, first)
            revealed = outcome.outputs["y"]
        else:
            revealed = yield from _share_out(mode, plan, taken, words, rng)
    finally:
        kit.prepared.release("client", taken.ask.deal_id)
    y: Matrix = revealed.reshape(rows, -1).view(np.int64).astype(np.float64)
    return kit.recipe.finish(y * 2.0**-plan.output.scale)


def in_stock(mode: Mode, kit: AnyKit, store: Store, *, rows: int) -> int:
    """Return how many predictions of `rows` rows a client's stock is good for. Raises UsageError before set-up."""
    return len(Shelf(mode.name, "client", own_record(mode, "client", kit, store).run).counters(store, rows))


def encoded(x: Matrix, kit: AnyKit) -> Words:
    """Return inputs in fixed point. Raises UsageError if they are not rows of bounded numbers."""
    if x.ndim != 2 or len(x) < 1 or x.shape[1] != kit.recipe.features:
        raise UsageError(f"Expected x of shape (rows, {kit.recipe.features}), got {x.shape}")
    if not (np.abs(x) <= LARGEST_INPUT).all():
        raise UsageError(f"Expected finite features of at most {LARGEST_INPUT:g}; scale them as the model was trained")
    return np.rint(x * 2.0**SCALE).astype(np.int64).view(np.uint64)


def _take(
    mode: Mode, kit: AnyKit, store: Store, record: Record, plan: Plan, rows: int
) -> Generator[Step, Mapping[str, Message], Taken]:
    """Take the lowest id in stock, or ask the dealer."""
    shelf, computes = Shelf(mode.name, "client", record.run), mode.owned
    for counter in shelf.counters(store, rows):
        deal_id = DealId(record.run, counter)
        if kit.prepared.reserve("client", deal_id):
            ready = kit.prepared.take("client", deal_id) if computes else None
            if computes and ready is None:
                ready = from_stock(mode, "client", kit, store, record, deal_id, rows=rows)
            # A store that was turned back has ids that were used: the first of a process is asked for before its use.
            waits = computes and not kit.prepared.is_unused(record.run, rows, counter)
            ask = Ask(FORMAT, record.run, counter, rows, plan.layout.binding, False, waits)
            return Taken(ask, shelf.taken(rows, counter, piece_names(plan.layout, mode.party("client"))), ready)
    request = Message("client", "dealer", f"{mode.name}/request", encode(Request(record.run, rows, 1)))
    received = yield Step((request,), await_tag=f"{mode.name}/header", wait_for=("dealer",))
    header = decode(received["dealer"].body, Header, max_bytes=SMALL_BYTES)
    checked_header(header, kit, run=record.run, rows=rows, count=1)
    deal_id = header.ids()[0]
    # Struck off at once: a deal beside this prediction may raise the mark meanwhile, and it must not fall.
    yield Step(save=shelf.raised(store, deal_id.counter, 1))
    ready = from_words(mode, "client", kit, store, record, deal_id, b"", rows=rows) if computes else None
    asked = Ask(FORMAT, record.run, deal_id.counter, rows, plan.layout.binding, True)
    kit.prepared.reserve("client", deal_id)
    return Taken(asked, {}, ready)


def _share_out(
    mode: Mode, plan: Plan, taken: Taken, words: Words, rng: Randomness
) -> Generator[Step, Mapping[str, Message], Words]:
    """Send a seed to P0 and x minus its stream to P1; return the sum of what they send back."""
    seed = rng.bytes(KEY_BYTES)
    rest = np.subtract(words.reshape(-1), stream(seed, 0, words.size)).astype("<u8", copy=False).tobytes()
    send = tuple(
        Message("client", role, f"{mode.name}/ask", encode(Query(taken.ask, share)))
        for role, share in zip(mode.holders, (seed, rest), strict=True)
    )
    received = yield Step(send, await_tag=f"{mode.name}/y", wait_for=mode.holders, save=taken.save)
    shares: list[Words] = []
    for role in mode.holders:
        body, count = received[role].body, plan.output.count
        if len(body) != 8 * count:
            raise ProtocolError(f"Expected {8 * count} bytes of predictions, got {len(body)}")
        shares.append(np.frombuffer(body, "<u8").astype(np.uint64, copy=False))
    return told(shares[0], shares[1], plan.dropped_bits)


# --- who computes -----------------------------------------------------------------------------------------------------


def predict_at_party(mode: Mode, role: str, kit: AnyKit, store: Store) -> Party:
    """Return the party of one prediction at a server; it returns how many rows it answered."""
    party = mode.party(role)
    assert party is not None
    received = yield Step(await_tag=f"{mode.name}/ask", wait_for=("client",))
    ask, share = _asked(mode, party, kit, received["client"].body)
    record = known_record(mode, role, kit, store, ask.run)
    plan, deal_id = kit.plans.of(ask.rows), ask.deal_id
    if not kit.prepared.reserve(role, deal_id):
        raise ProtocolError("Expected an id that no prediction has")
    try:
        ready, save = yield from _obtain(mode, role, kit, store, record, plan, ask)
        fixed, first = fixed_of(mode, role, kit, store, record, ask.rows), Step(save=save)
        if ask.waits and mode.owned:
            yield Step((Message(role, "client", f"{mode.name}/go", b""),), save=save)
            first = Step()
        outcome = yield from _run(mode, role, plan, fixed, ready, share, first)
    finally:
        kit.prepared.release(role, deal_id)
    if not mode.owned:
        body = outcome.outputs["y"].astype("<u8", copy=False).tobytes()
        yield Step((Message(role, "client", f"{mode.name}/y", body),))
    return ask.rows


def _asked(mode: Mode, party: int, kit: AnyKit, body: bytes) -> tuple[Ask, Words | None]:
    """Return what a client asks, and its share of x where it sends one."""
    if mode.owned:
        ask, share = decode(body, Ask, max_bytes=SMALL_BYTES), None
    else:
        query = decode(body, Query, max_bytes=1 << 30)
        ask, share = query.ask, query.share
    expect_format(ask.format)
    plan = kit.plans.of(ask.rows)
    expect_binding(ask.binding, plan.layout.binding)
    if share is None:
        return ask, None
    count = ask.rows * kit.recipe.features
    expected = 8 * count if party else KEY_BYTES
    if len(share) != expected:
        raise ProtocolError(f"Expected {expected} bytes of a share of x, got {len(share)}")
    words = np.frombuffer(share, "<u8").astype(np.uint64, copy=False) if party else stream(share, 0, count)
    return ask, words


def _obtain(
    mode: Mode, role: str, kit: AnyKit, store: Store, record: Record, plan: Plan, ask: Ask
) -> Generator[Step, Mapping[str, Message], tuple[Ready, Mapping[str, bytes | None]]]:
    """Return the correlations that are asked for, and the change that takes them."""
    shelf, deal_id = Shelf(mode.name, role, record.run), ask.deal_id
    if not ask.on_demand:
        state = shelf.state(store, ask.rows, ask.counter)
        if state is not None:
            kit.prepared.asked(role, deal_id, ask.rows)
        ready = kit.prepared.take(role, deal_id)
        if state == HELD and ready is not None:
            return ready, {}  # struck off when it was made ready
        if ready is not None and state != FREE:
            ready.wipe()
        if state == HELD:
            raise AskAgain(
                "Expected correlations that this process holds, they were lost with an earlier one; ask again"
            )
        if state != FREE:
            raise SetUpAgain("Expected the id of correlations that are in stock and were not used; set up again")
        if ready is None:
            ready = from_stock(mode, role, kit, store, record, deal_id, rows=ask.rows)
        return ready, shelf.taken(ask.rows, ask.counter, piece_names(plan.layout, mode.party(role)))
    struck = shelf.raised(store, ask.counter, 1)
    received = yield Step(await_tag=f"{mode.name}/header", wait_for=("dealer",), save=struck)
    header = decode(received["dealer"].body, Header, max_bytes=SMALL_BYTES)
    checked_header(header, kit, run=ask.run, rows=ask.rows, count=1)
    if header.first != ask.counter:
        raise ProtocolError("Expected the client to ask under the id that was dealt")
    words = b""
    if mode.party(role) == 1:
        received = yield Step(await_tag=f"{deal_tag(mode, 0)}/words", wait_for=("dealer",))
        words = received["dealer"].body
    return from_words(mode, role, kit, store, record, deal_id, words, rows=ask.rows), {}


def _run(
    mode: Mode, role: str, plan: Plan, fixed: Fixed, ready: Ready, x: Words | None, first: Step
) -> Generator[Step, Mapping[str, Message], Outcome]:
    party = mode.party(role)
    assert party is not None
    place = Place(party, mode.holders, f"{mode.name}/run", deal_tag(mode, 0))
    inputs = {} if x is None else {"x": x.reshape(plan.entry.shape)}
    return (yield from run_program(place, plan.layout, plan.schedule, fixed, ready, inputs, first=first))
