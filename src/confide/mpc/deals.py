"""Deals: correlations for later predictions go into the parties' stores, those of one prediction to whoever needs them.

    client -> dealer         {name}/request                  rows, and for how many predictions
    dealer -> everyone       {name}/header                   the ids, never given before
    dealer -> P1             {name}/deal/{k}/words           P1's words of the k-th deal
    dealer -> P0, P1         {name}/deal/{k}/corrections/{i} of the i-th batch of comparison keys, the same for both
    who computes -> client   {name}/stored                   unless the client asked for a prediction that waits

The dealer's mark of what it gave out is durable before a header leaves.
"""

from __future__ import annotations

from collections.abc import Mapping

from confide.errors import ProtocolError, UsageError
from confide.mpc.ahead import Ready, add_corrections, prepare
from confide.mpc.correlations import DealId, Layout
from confide.mpc.dealer import deal, model_masks
from confide.mpc.keys import Mode, Record, dealer_record, fixed_of, known_record, own_record
from confide.mpc.kits import AnyKit
from confide.mpc.messages import MOST_DEALS, MOST_ROWS, SMALL_BYTES, Header, Request, Stored, expect_binding
from confide.mpc.stock import FREE, HELD, MOST_READY, Shelf, piece_names
from confide.wire import Message, Party, Step, Store, decode, encode


def deal_tag(mode: Mode, place: int) -> str:
    """Return what the tags of the pieces of a deal begin with."""
    return f"{mode.name}/deal/{place}"


# --- the dealer -------------------------------------------------------------------------------------------------------


def deal_at_dealer(
    mode: Mode, kit: AnyKit, store: Store, *, awaited: bool, count: int = 1, rows: int | None = None
) -> Party:
    """Return the dealer's party of one request.

    Args:
        mode, kit, store: the dealer's.
        awaited: False where the client may need nothing, as in a prediction from stock.
        count: most deals that are made.
        rows: of each; None takes what the client asks for, as far as the kit allows.

    Returns:
        How many deals were made; 0 if nobody asked.

    Raises:
        ProtocolError: the client asks for more.
    """
    tag = f"{mode.name}/request"
    received = yield Step(await_tag=tag, wait_for=("client",), at_least=None if awaited else 0)
    if not received:
        return 0
    request = decode(received["client"].body, Request, max_bytes=SMALL_BYTES)
    if request.count > count or rows not in (None, request.rows):
        raise ProtocolError(f"Expected a request for at most {count} deals, and of as many rows as were ordered")
    seeds = dealer_record(mode, store, request.run).seeds
    layout = kit.plans.of(request.rows).layout
    path = f"{mode.name}/dealer/{request.run.hex()}/next"
    body = store.get(path)
    first = 0 if body is None else int.from_bytes(body, "little")
    header = Header(request.run, first, request.count, request.rows, layout.binding)
    save: dict[str, bytes | None] = {path: (first + request.count).to_bytes(8, "little")}
    send = [Message("dealer", role, f"{mode.name}/header", encode(header)) for role in mode.enrolled]
    model = model_masks(layout, seeds, request.run)
    for place, deal_id in enumerate(header.ids()):
        parts = deal(layout, seeds, deal_id, model=model)
        send.append(Message("dealer", mode.holders[1], f"{deal_tag(mode, place)}/words", next(parts)))
        for batch, part in enumerate(parts):
            yield Step(tuple(send), save=save)  # the words leave before the first keys are made
            tag, save = f"{deal_tag(mode, place)}/corrections/{batch}", {}
            send = [Message("dealer", role, tag, part) for role in mode.holders]
    yield Step(tuple(send), save=save)
    return request.count


# --- the others -------------------------------------------------------------------------------------------------------


def deal_at_party(mode: Mode, role: str, kit: AnyKit, store: Store, *, rows: int, count: int) -> Party:
    """Return the party of everyone else in a deal for later; the client's asks for it.

    Returns:
        How many deals are in stock now.

    Raises:
        UsageError: numbers out of range, or a client that was not set up.
    """
    if not (1 <= rows <= MOST_ROWS and 1 <= count <= MOST_DEALS):
        raise UsageError(f"Expected rows={rows} from 1 to {MOST_ROWS} and count={count} from 1 to {MOST_DEALS}")
    request: tuple[Message, ...] = ()
    if role == "client":
        run = own_record(mode, role, kit, store).run
        request = (Message(role, "dealer", f"{mode.name}/request", encode(Request(run, rows, count))),)
    return _stocking(mode, role, kit, store, request, rows=rows, count=count)


def _stocking(
    mode: Mode, role: str, kit: AnyKit, store: Store, request: tuple[Message, ...], *, rows: int, count: int
) -> Party:
    party = mode.party(role)
    received = yield Step(request, await_tag=f"{mode.name}/header", wait_for=("dealer",))
    header = decode(received["dealer"].body, Header, max_bytes=SMALL_BYTES)
    record = known_record(mode, role, kit, store, header.run)
    layout = checked_header(header, kit, run=record.run, rows=rows, count=count)
    shelf = Shelf(mode.name, role, header.run)
    # Struck off at once: a prediction beside this deal may raise the mark meanwhile, and it must not fall.
    yield Step(save=shelf.broken(store) | shelf.raised(store, header.first, count))
    save: dict[str, bytes | None] = {}
    for place, deal_id in enumerate(header.ids()):
        for name, expected in zip(piece_names(layout, party), _piece_bytes(layout, party), strict=True):
            tag = f"{deal_tag(mode, place)}/{name}" if name == "words" else _wire_tag(mode, place, name)
            received = yield Step(await_tag=tag, wait_for=("dealer",), save=save)
            body = received["dealer"].body
            if len(body) != expected:
                raise ProtocolError(f"Expected {expected} bytes of correlations, got {len(body)}")
            save = {f"{shelf.place(rows, deal_id.counter)}/{name}": body}
    save = save | {shelf.whole(rows, deal_id.counter): FREE for deal_id in header.ids()}
    yield from _both_have_it(mode, role, header, save)
    if role == "client":  # who asks; the others look into their stores
        kit.prepared.unused_from(header.run, rows, header.first)
    hold_ready(mode, role, kit, store, header.run, rows=rows)
    return len(shelf.counters(store, rows))


def checked_header(header: Header, kit: AnyKit, *, run: bytes, rows: int, count: int) -> Layout:
    """Return the layout of what is dealt. Raises ProtocolError if that is not what was asked for."""
    if (header.run, header.rows, header.count) != (run, rows, count):
        raise ProtocolError("Expected the correlations that were asked for")
    layout = kit.plans.of(rows).layout
    expect_binding(header.binding, layout.binding)
    return layout


def _both_have_it(mode: Mode, role: str, header: Header, save: Mapping[str, bytes | None]) -> Party:
    """Complete stock at who computes first, then at the client, which counts on theirs."""
    stored, tag = Stored(header.run, header.first, header.count), f"{mode.name}/stored"
    if role != "client":
        yield Step((Message(role, "client", tag, encode(stored)),), save=save)
        return
    received = yield Step(await_tag=tag, wait_for=mode.askers)
    for message in received.values():
        if decode(message.body, Stored, max_bytes=SMALL_BYTES) != stored:
            raise ProtocolError("Expected the others to have stored what was dealt")
    yield Step(save=save)


def _piece_bytes(layout: Layout, party: int | None) -> list[int]:
    if party is None:
        return []
    corrections = [batch.size_bytes for batch in layout.batches]
    return [layout.words_bytes, *corrections] if party else corrections


def _wire_tag(mode: Mode, place: int, name: str) -> str:
    kind, _, batch = name.partition("/")
    return f"{deal_tag(mode, place)}/{kind}/{int(batch)}"


# --- from stock to memory ---------------------------------------------------------------------------------------------


def hold_ready(mode: Mode, role: str, kit: AnyKit, store: Store, run: bytes, *, rows: int) -> int:
    """Make stock ready in memory, the deals that come next, as many as are kept; return how many were looked at.

    Who answers strikes the next one off, so that no question waits for a commit, and clears away what was used. What an
    earlier process struck off stays until it is asked for, and refused, or a later one is. A client strikes nothing off
    ahead: another process may go on with its stock.
    """
    if mode.party(role) is None:
        return 0
    record = known_record(mode, role, kit, store, run)
    shelf, prepared = Shelf(mode.name, role, record.run), kit.prepared
    last = prepared.last_asked(role, record.run, rows)
    names = piece_names(kit.plans.of(rows).layout, mode.party(role))
    counters, used = list[int](), dict[str, bytes | None]()
    for counter in shelf.counters(store, rows):
        if len(counters) == MOST_READY:
            break
        if counter <= last:  # ids are taken in their order: it was used, or lost, or the client has lost it
            used |= shelf.taken(rows, counter, names)
            if (ready := prepared.take(role, DealId(record.run, counter))) is not None:
                ready.wipe()
        elif shelf.state(store, rows, counter) == FREE or prepared.is_ready(role, DealId(record.run, counter)):
            counters.append(counter)
    for counter in counters:
        deal_id = DealId(record.run, counter)
        prepared.ahead(role, deal_id, lambda one=deal_id: from_stock(mode, role, kit, store, record, one, rows=rows))
    if role != "client":
        _strike_off(shelf, kit, store, counters[:1], used, rows=rows)
        prepared.settled(role, record.run, rows)
    return len(counters)


def _strike_off(
    shelf: Shelf, kit: AnyKit, store: Store, counters: list[int], changes: dict[str, bytes | None], *, rows: int
) -> None:
    """Write down that a deal in memory is held, in one durable commit with other changes."""
    prepared, held = kit.prepared, list[DealId]()
    reserved = [one for one in (DealId(shelf.run, c) for c in counters) if prepared.reserve(shelf.role, one)]
    try:
        for one in reserved:  # looked at while nobody else can take it
            if prepared.is_ready(shelf.role, one) and shelf.state(store, rows, one.counter) == FREE:
                held.append(one)
        changes |= {shelf.whole(rows, one.counter): HELD for one in held}
        if changes:
            store.commit(changes)
        for one in held:
            prepared.held(shelf.role, one, lambda one=one: _free(shelf, store, rows, one.counter))
    finally:
        for one in reserved:
            prepared.release(shelf.role, one)


def _free(shelf: Shelf, store: Store, rows: int, counter: int) -> None:
    """Write that a deal which was struck off and never taken is in stock, unless that was cleared away meanwhile."""
    if shelf.state(store, rows, counter) == HELD:
        store.commit({shelf.whole(rows, counter): FREE})


def from_stock(
    mode: Mode, role: str, kit: AnyKit, store: Store, record: Record, deal_id: DealId, *, rows: int
) -> Ready:
    """Return a deal that is in the store, made ready. Raises ProtocolError if it is not there."""
    party = mode.party(role)
    assert party is not None
    plan = kit.plans.of(rows)
    shelf = Shelf(mode.name, role, record.run)
    pieces = shelf.pieces(store, rows, deal_id.counter, piece_names(plan.layout, party))
    words = pieces.pop(0) if party else b""
    ready = from_words(mode, role, kit, store, record, deal_id, words, rows=rows)
    for place, body in enumerate(pieces):
        add_corrections(plan.layout, ready, place, body)
    return ready


def from_words(
    mode: Mode, role: str, kit: AnyKit, store: Store, record: Record, deal_id: DealId, words: bytes, *, rows: int
) -> Ready:
    """Return a deal made ready but for its corrections."""
    party = mode.party(role)
    assert party is not None
    fixed = fixed_of(mode, role, kit, store, record, rows)
    return prepare(kit.plans.of(rows).layout, party, record.key, deal_id, words, fixed)
