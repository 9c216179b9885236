"""Set-up, stock and predictions: ids serve once, whatever is sent, lost or restarted; the dealer sees no weight."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

import numpy as np
import pytest

from confide.errors import AskAgain, ConfideError, ModelError, ProtocolError, SetUpAgain, StoreError, UsageError
from confide.model.graph import Graph
from confide.mpc.kits import ModelKit, PublicKit
from confide.mpc.messages import Ask, Header, Query, Request
from confide.mpc.outsourced import Outsourced
from confide.mpc.stock import Shelf
from confide.mpc.two_party import WithDealer
from confide.wire import MemoryStore, Message, alter, decode, drop, encode, truncate
from he.oracle import corners, forest, mlp
from mpc.sessions import RNG, Session, ready

GRAPH = mlp(3, 6, 4, 2)
X = corners(2, 6)


def both(test):
    return pytest.mark.parametrize("backend", [WithDealer(), Outsourced()], ids=["dealer", "outsourced"])(test)


def holders(session: Session) -> list[str]:
    return ["client", "server"] if session.backend.name == "mpc-dealer" else ["server", "helper"]


def close(session: Session, y: Any) -> bool:
    return bool(np.abs(y - session.graph.apply(X)).max() < 1e-3)


# --- stock and ids ----------------------------------------------------------------------------------------------------


@both
def test_stock_serves_once_and_then_the_dealer_is_asked(backend):
    session = ready(backend, GRAPH)
    assert session.deal(rows=2, count=2).output("client") == 2
    used = []
    for _ in range(2):
        assert not backend.needs_dealer(session.client, session.stores["client"], rows=2)
        transcript = session.predict(X)
        assert close(session, transcript.output("client"))
        used.append(asked(transcript).counter)
    assert used == [0, 1]
    assert backend.needs_dealer(session.client, session.stores["client"], rows=2)
    transcript = session.predict(X)
    assert close(session, transcript.output("client"))
    assert asked(transcript).counter == 2
    assert session.deal(rows=2).output("server") == 1
    assert asked(session.predict(X)).counter == 3
    assert not any(
        "/stock/" in key or "/whole/" in key
        for role in holders(session)
        for key in session.stores[role].keys(backend.name)
    )


@both
def test_what_is_ready_is_the_next_in_stock_and_no_more_than_fits(backend, monkeypatch):
    session = ready(backend, GRAPH)
    role = holders(session)[-1]
    session.deal(rows=2, count=6)
    held = session.kits[role].prepared._ready
    assert [key[2] for key in held] == [0, 1, 2, 3]
    session.predict(X)
    run = next(iter(held))[1]
    backend.hold_ready(role, session.kits[role], session.stores[role], run, rows=2)
    assert [key[2] for key in held] == [1, 2, 3, 4]
    monkeypatch.setattr("confide.mpc.stock.MOST_READY_BYTES", 2 * held[role, run, 1].ready.size_bytes)
    session.deal(rows=1, count=2)
    assert 1 <= len(held) < 6
    assert sum(one.ready.size_bytes for one in held.values()) <= 2 * max(one.ready.size_bytes for one in held.values())
    for _ in range(5):  # what was let go is made ready again from the store
        assert close(session, session.predict(X).output("client"))


@both
def test_what_an_interrupted_deal_left_is_cleared_and_whole_deals_stay(backend):
    session = ready(backend, GRAPH)
    role = holders(session)[-1]
    session.deal(rows=2, count=2)
    store = session.stores[role]
    (one, two) = [key for key in store.keys(backend.name) if "/whole/" in key]
    shelf = Shelf(backend.name, role, bytes.fromhex(one.split("/")[2]))
    assert shelf.broken(store) == {}
    store.commit({two: None})
    broken = shelf.broken(store)
    assert broken
    assert all(f"/stock/2/{1:016x}/" in key and value is None for key, value in broken.items())


@both
def test_stock_is_for_so_many_rows(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=1, count=1)
    assert backend.needs_dealer(session.client, session.stores["client"], rows=2)
    assert close(session, session.predict(X).output("client"))
    assert np.abs(session.predict(X[:1]).output("client") - GRAPH.apply(X[:1])).max() < 1e-3


def asked(transcript: Any) -> Ask:
    body = next(message.body for message in transcript.messages if message.tag.endswith("/ask"))
    try:
        return decode(body, Ask, max_bytes=4096)
    except ProtocolError:
        return decode(body, Query, max_bytes=1 << 20).ask


def renumbered(change):
    """A fault on the first message of a prediction."""

    def altered(body: bytes) -> bytes:
        try:
            return encode(change(decode(body, Ask, max_bytes=4096)))
        except ProtocolError:
            query = decode(body, Query, max_bytes=1 << 20)
            return encode(Query(change(query.ask), query.share))

    return altered


def masked_bytes(session: Session, transcript: Any, src: str) -> int:
    run = f"{session.backend.name}/run/"
    return sum(len(m.body) for m in transcript.messages if m.src == src and m.tag.startswith(run))


@both
def test_an_id_that_was_used_is_refused_before_anything_is_sent(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=3)
    session.predict(X)

    def replayed(ask: Ask) -> Ask:
        return Ask(ask.format, ask.run, 0, ask.rows, ask.binding, ask.on_demand)

    transcript = session.predict(X, fault=alter(renumbered(replayed), tag=f"{backend.name}/ask", dst="server"))
    assert isinstance(transcript.failures["server"], ProtocolError)
    assert masked_bytes(session, transcript, "server") == 0
    demanded = session.predict(
        X,
        fault=alter(
            renumbered(lambda a: Ask(a.format, a.run, 0, a.rows, a.binding, True)),
            tag=f"{backend.name}/ask",
            dst="server",
        ),
    )
    assert isinstance(demanded.failures["server"], ProtocolError)
    assert masked_bytes(session, demanded, "server") == 0


@both
@pytest.mark.parametrize(
    "change",
    [
        lambda a: Ask(a.format + 1, a.run, a.counter, a.rows, a.binding, a.on_demand),
        lambda a: Ask(a.format, bytes(16), a.counter, a.rows, a.binding, a.on_demand),
        lambda a: Ask(a.format, a.run, a.counter + 9, a.rows, a.binding, a.on_demand),
        lambda a: Ask(a.format, a.run, a.counter, a.rows + 1, a.binding, a.on_demand),
        lambda a: Ask(a.format, a.run, a.counter, a.rows, bytes(32), a.on_demand),
    ],
    ids=["format", "run", "counter", "rows", "program"],
)
def test_a_first_message_that_does_not_fit_ends_it(backend, change):
    session = ready(backend, GRAPH)
    session.deal(rows=2)
    transcript = session.predict(X, fault=alter(renumbered(change), tag=f"{backend.name}/ask", dst="server"))
    assert isinstance(transcript.failures["server"], ProtocolError)
    assert masked_bytes(session, transcript, "server") == 0


@both
def test_an_id_is_marked_before_the_first_masked_byte_and_a_crash_skips_it(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=3)
    lost = session.predict(X, fault=drop(tag=f"{backend.name}/run/2"))
    assert lost.failures
    for role in holders(session):
        assert not any(f"{0:016x}" in key for key in session.stores[role].keys(f"{backend.name}/{role}/"))
    session.kits = {role: backend.decode_kit(role, kit.encode()) for role, kit in session.kits.items()}  # restarted
    refused = session.predict(X)  # id 1 was struck off, and went with the memory of the process that held it
    assert asked(refused).counter == 1
    assert isinstance(refused.failures["server"], AskAgain)
    assert sum(masked_bytes(session, refused, role) for role in holders(session)) == 0
    transcript = session.predict(X)
    assert asked(transcript).counter == 2
    assert close(session, transcript.output("client"))


def restarted(session: Session, role: str) -> None:
    session.kits[role] = session.backend.decode_kit(role, session.kits[role].encode())


def who_answer(session: Session) -> list[str]:
    return [role for role in holders(session) if role != "client"]


class Counting(MemoryStore):
    """A store that keeps what was committed, and may refuse."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._entries, self.commits, self.works = store._entries, [], True

    def commit(self, changes: Any) -> None:
        if not self.works:
            raise StoreError("Expected room on the disk")
        self.commits.append(dict(changes))
        super().commit(changes)


@both
def test_what_is_ready_was_struck_off_before_and_a_question_waits_for_no_commit(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=3)
    for role in who_answer(session):
        session.stores[role] = Counting(session.stores[role])
    session.hold_ready = lambda rows: None
    transcript = session.predict(X)
    assert close(session, transcript.output("client"))
    assert asked(transcript).counter == 0
    assert not any(any(session.stores[role].commits) for role in who_answer(session))
    assert asked(session.predict(X)).counter == 1  # not struck off ahead: in the question, before the first masked byte
    assert all(None in commit.values() for role in who_answer(session) for commit in session.stores[role].commits[-1:])


@both
@pytest.mark.parametrize("who", [0, -1])
def test_a_process_that_ends_between_strike_off_and_question_uses_nothing_twice(backend, who):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=3)
    role = who_answer(session)[who]
    restarted(session, role)
    refused = session.predict(X)
    assert asked(refused).counter == 0
    assert isinstance(refused.failures[role], AskAgain)
    assert masked_bytes(session, refused, role) == 0
    transcript = session.predict(X)
    assert asked(transcript).counter == 1
    assert close(session, transcript.output("client"))
    assert not any(f"{0:016x}" in key for key in session.stores[role].keys(f"{backend.name}/{role}/"))

    def replayed(ask: Ask) -> Ask:
        return Ask(ask.format, ask.run, 0, ask.rows, ask.binding, ask.on_demand)

    again = session.predict(X, fault=alter(renumbered(replayed), tag=f"{backend.name}/ask", dst=role))
    assert isinstance(again.failures[role], ProtocolError)
    assert masked_bytes(session, again, role) == 0


@both
def test_a_store_that_was_turned_back_to_before_the_strike_off_gives_no_id_that_memory_gave(backend):
    """One store alone: the client's stands, so it asks under no id twice, whatever the other has."""
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=3)
    role = who_answer(session)[0]
    store, free = session.stores[role], {}
    for key in store.keys(""):
        if "/whole/" in key:
            free[key] = b"\1"
    used = [asked(session.predict(X)).counter]
    store.commit(free)
    restarted(session, role)
    for _ in range(2):
        used.append(asked(session.predict(X)).counter)
    assert used == [0, 1, 2]


@both
def test_a_strike_off_that_was_not_written_holds_nothing(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=3)
    for role in who_answer(session):
        session.stores[role] = Counting(session.stores[role])
        session.stores[role].works = False
    session.predict(X)  # id 0 needs no commit; striking off id 1 after it fails
    for role in who_answer(session):
        session.stores[role].works = True
    transcript = session.predict(X)
    assert asked(transcript).counter == 1
    assert close(session, transcript.output("client"))
    for role in who_answer(session):
        assert any(value is None and f"{1:016x}" in key for key, value in session.stores[role].commits[0].items())


@both
def test_what_memory_has_no_room_for_is_put_back_and_serves_once(backend, monkeypatch):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=2)
    role = who_answer(session)[0]
    whole = [key for key in session.stores[role].keys("") if "/whole/2/" in key]
    assert [session.stores[role].get(key) for key in whole] == [b"\2", b"\1"]
    monkeypatch.setattr("confide.mpc.stock.MOST_READY_BYTES", 0)
    session.deal(rows=1, count=1)
    assert [session.stores[role].get(key) for key in whole] == [b"\1", b"\1"]
    for counter in (0, 1):
        transcript = session.predict(X)
        assert asked(transcript).counter == counter
        assert close(session, transcript.output("client"))
        assert isinstance(replay(session, counter, role), ProtocolError)


@both
def test_what_a_client_skips_is_cleared_away_and_the_next_is_struck_off(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=3)
    client = session.stores["client"]
    client.commit(
        {key: None for key in client.keys("") if key.endswith(f"/whole/2/{0:016x}")}
    )  # killed before it asked
    assert asked(session.predict(X)).counter == 1
    for role in who_answer(session):
        store = session.stores[role]
        assert [store.get(key) for key in store.keys("") if "/whole/2/" in key] == [b"\2"]  # id 2
        assert not session.kits[role].prepared._asked
    assert asked(session.predict(X)).counter == 2


def replay(session: Session, counter: int, role: str) -> Any:
    """Return how a role ends that is asked under an id again."""
    kit, name = session.kits[role], session.backend.name
    run_id = next(key.split("/")[2] for key in session.stores[role].keys(f"{name}/{role}/") if key.endswith("/record"))
    ask = Ask(1, bytes.fromhex(run_id), counter, 2, kit.plans.of(2).layout.binding, False)
    body = encode(ask if name == "mpc-dealer" else Query(ask, bytes(16)))
    party = session.backend.predict(role, kit, None, session.stores[role], RNG)
    next(party)
    try:
        party.send({"client": Message("client", role, f"{name}/ask", body)})
    except ConfideError as error:
        return error
    return None


def test_a_client_whose_store_was_turned_back_sends_nothing_under_an_id_twice():
    backend = WithDealer()
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=3)
    client = session.stores["client"]
    before = {key: client.get(key) for key in client.keys("")}
    asked_first = [session.predict(X) for _ in range(2)]
    assert not any(message.tag.endswith("/go") for one in asked_first for message in one.messages)  # dealt just now
    client.commit(dict.fromkeys(client.keys("")) | before)
    session.kits["client"] = backend.decode_kit("client", session.client.encode())  # another process
    transcript = session.predict(-X)
    assert isinstance(transcript.failures["server"], SetUpAgain)
    assert [message.tag for message in transcript.messages if message.src == "client"] == ["mpc-dealer/ask"]
    session.setup().output("client")
    assert close(session, session.predict(X).output("client"))


def test_a_process_asks_before_the_first_of_what_an_earlier_one_left_and_no_more():
    backend = WithDealer()
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=4)
    session.predict(X)
    session.kits["client"] = backend.decode_kit("client", session.client.encode())
    told = []
    for _ in range(3):
        transcript = session.predict(X)
        assert close(session, transcript.output("client"))
        told.append([message.tag for message in transcript.messages if message.tag.endswith("/go")])
    assert told == [["mpc-dealer/go"], [], []]


@both
def test_two_predictions_at_once_do_not_share_an_id(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=2)
    store = session.stores["client"]
    parties = [backend.predict("client", session.client, X, store, RNG) for _ in range(2)]
    steps = [next(party) for party in parties]
    counters = [asked(type("T", (), {"messages": step.send})).counter for step in steps]
    assert sorted(counters) == [0, 1]


@both
def test_the_dealer_never_gives_an_id_twice(backend):
    session = ready(backend, GRAPH)
    seen: list[int] = []

    def listen(body: bytes) -> bytes:
        header = decode(body, Header, max_bytes=4096)
        seen.extend(one.counter for one in header.ids())
        return body

    fault = alter(listen, tag=f"{backend.name}/header", dst="server")
    session.deal(rows=2, count=2, fault=fault)
    session.deal(rows=1, count=1, fault=fault)
    session.deal(
        rows=2, count=1, fault=lambda m: [] if "corrections" in m.tag or "words" in m.tag else fault(m)
    )  # lost
    session.predict(X, fault=fault)
    session.predict(X, fault=fault)
    session.predict(X, fault=fault)
    assert seen == sorted(set(seen))
    assert len(seen) == 5


@both
@pytest.mark.parametrize("role", ["client", "server"])
def test_a_mark_never_falls_when_a_deal_overtakes_a_prediction(backend, role):
    """A prediction on demand has id 0; a deal with ids 1 and 2 is taken in before its first masked byte."""
    session = ready(backend, GRAPH)
    name, store = backend.name, session.stores[role]
    run_id = bytes.fromhex(next(key.split("/")[2] for key in store.keys(f"{name}/{role}/") if key.endswith("/record")))
    shelf, binding = Shelf(name, role, run_id), session.client.plans.of(2).layout.binding
    header = Message("dealer", role, f"{name}/header", encode(Header(run_id, 0, 1, 2, binding)))
    party = backend.predict(role, session.kits[role], X if role == "client" else None, store, RNG)
    step = next(party)
    if role == "server":
        ask, words = Ask(1, run_id, 0, 2, binding, True), bytes(16)
        body = encode(ask if name == "mpc-dealer" else Query(ask, words))
        step = party.send({"client": Message("client", role, f"{name}/ask", body)})
    else:
        step = party.send({"dealer": header})
    store.commit(step.save)
    store.commit(shelf.raised(store, 1, 2))
    saved = dict(party.send({"dealer": header} if step.wait_for else {}).save)
    store.commit(saved)
    assert shelf.mark(store) == 3


@both
def test_correlations_that_came_before_are_refused(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=2)

    def old(body: bytes) -> bytes:
        header = decode(body, Header, max_bytes=4096)
        return encode(Header(header.run, 0, header.count, header.rows, header.binding))

    transcript = session.deal(rows=2, count=1, fault=alter(old, tag=f"{backend.name}/header", dst="server"))
    assert isinstance(transcript.failures["server"], ProtocolError)


@both
@pytest.mark.parametrize("keep", [0, 5])
def test_correlations_of_another_length_are_refused(backend, keep):
    session = ready(backend, GRAPH)
    party = holders(session)[1]
    tag = f"{backend.name}/deal/0/words"
    for fault in (truncate(keep, tag=tag), alter(lambda body: body + b"\0", tag=tag)):
        assert isinstance(session.deal(rows=2, fault=fault).failures[party], ProtocolError)
        assert isinstance(session.predict(X, fault=fault).failures[party], ProtocolError)


# --- set-up -----------------------------------------------------------------------------------------------------------


@both
def test_other_weights_need_another_set_up(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=2)
    other = Session(backend, mlp(9, 6, 4, 2), **session.stores)
    transcript = other.predict(X)
    assert isinstance(transcript.failures["server"], ProtocolError)
    assert masked_bytes(other, transcript, "server") == 0
    first = opened(session.setup())
    again = opened(session.setup())
    assert first != again  # a new A each time


@both
def test_a_run_is_set_up_once_so_no_mask_of_the_weights_serves_twice(backend):
    session = ready(backend, GRAPH)
    keys: dict[str, bytes] = {}

    def same(message: Any) -> Any:
        if message.tag.endswith("/keys"):
            message = dataclasses.replace(message, body=keys.setdefault(message.dst, message.body))
        return [(0, message)]

    assert not session.setup(fault=same).failures
    other = Session(backend, mlp(9, 6, 4, 2), **session.stores)
    transcript = other.setup(fault=same)  # a dealer that begins an old run again
    assert all(isinstance(transcript.failures[role], ProtocolError) for role in holders(session))
    assert not any(message.tag.endswith("/model") for message in transcript.messages)


@both
@pytest.mark.parametrize("more", [{"count": 2}, {"count": 1 << 16}, {"rows": 4096}])
def test_a_dealer_makes_no_more_than_was_ordered(backend, more):
    session = ready(backend, GRAPH)
    session.kits["dealer"].limit_rows(8)

    def greedy(body: bytes) -> bytes:
        request = decode(body, Request, max_bytes=4096)
        fields = {"rows": request.rows, "count": request.count} | more
        return encode(Request(request.run, fields["rows"], fields["count"]))

    fault = alter(greedy, tag=f"{backend.name}/request")
    for transcript in (session.predict(X, fault=fault), session.deal(rows=2, fault=fault)):
        assert isinstance(transcript.failures["dealer"], ProtocolError)
        assert transcript.bytes_sent("dealer") == 0
    assert close(session, session.predict(X).output("client"))


@both
def test_whoever_computes_refuses_more_rows_than_it_serves(backend):
    session = ready(backend, GRAPH)
    session.kits["server"].limit_rows(1)
    transcript = session.predict(X)
    assert isinstance(transcript.failures["server"], ProtocolError)
    assert masked_bytes(session, transcript, "server") == 0


def opened(transcript: Any) -> bytes:
    return next(message.body for message in transcript.messages if message.tag.endswith("/model"))


@both
def test_nothing_of_the_weights_reaches_the_dealer_or_stands_in_the_opening(backend):
    session = Session(backend, GRAPH)
    transcript = session.setup()
    assert [m.tag.rpartition("/")[2] for m in transcript.view("dealer")] == ["hello"] * (len(backend.roles) - 1)
    assert all(len(m.body) < 100 for m in transcript.view("dealer"))
    zeros = Graph(
        tuple(dataclasses.replace(x, weight=0 * x.weight) if hasattr(x, "weight") else x for x in GRAPH.layers)
    )
    words = np.frombuffer(opened(Session(backend, zeros).setup()), np.uint64)
    assert len(set(words.tolist())) == len(words)  # masked, each by its own
    session.deal(rows=2)
    asked_of = session.predict(np.vstack([X, X])).view("dealer")
    assert [m.tag.rpartition("/")[2] for m in asked_of] == ["request"]


@both
def test_a_dealers_kit_has_no_place_for_a_weight(backend):
    kits = backend.prepare(GRAPH, RNG)
    assert isinstance(kits["dealer"], PublicKit)
    assert not isinstance(kits["dealer"], ModelKit)
    assert (
        kits["dealer"].encode() == kits["client"].encode() == backend.prepare(mlp(8, 6, 4, 2), RNG)["dealer"].encode()
    )
    assert "model" not in get_type_hints(PublicKit.__init__)
    with pytest.raises(ProtocolError):
        backend.decode_kit("dealer", kits["server"].encode())


def test_shares_of_a_model_say_nothing_each():
    kits = [Outsourced().prepare(GRAPH, RNG) for _ in range(2)]
    for role in ("server", "helper"):
        one, other = (kit[role].encode() for kit in kits)
        assert one != other
    zeros = Graph(
        tuple(dataclasses.replace(x, weight=0 * x.weight) if hasattr(x, "weight") else x for x in GRAPH.layers)
    )
    kit = Outsourced().prepare(zeros, RNG)["helper"]
    assert isinstance(kit, ModelKit)
    assert all(words.all() for name, words in kit.model.items() if "weight" in name)


@both
def test_whoever_is_not_set_up_is_told(backend):
    with pytest.raises(UsageError, match="setup"):
        Session(backend, GRAPH).predict(X, dealer=False)
    session = ready(backend, GRAPH)
    stranger = Session(backend, GRAPH, client=session.stores["client"])
    assert isinstance(stranger.predict(X, dealer=False).failures.get("server", ProtocolError()), ProtocolError)


@both
def test_kits_of_other_roles_and_models_that_cannot_run_are_refused(backend):
    session = Session(backend, GRAPH)
    for role in backend.roles:
        wrong = session.kits["client" if role in ("server", "helper") else "server"]
        with pytest.raises(UsageError):
            backend.setup(role, wrong, MemoryStore(), RNG)
    graph = Graph((forest(5, 6, 1, 9),))  # deeper than trees on shares may be
    assert backend.check(graph)
    with pytest.raises(ModelError):
        backend.prepare(graph, RNG)


@both
@pytest.mark.parametrize("x", [np.zeros((1, 5)), np.full((1, 6), np.nan), np.full((1, 6), 1e9), np.zeros((0, 6))])
def test_rows_that_do_not_fit_are_refused_before_anything_is_sent(backend, x):
    session = ready(backend, GRAPH)
    with pytest.raises(UsageError):
        session.predict(x, dealer=True)


# --- what is seen -----------------------------------------------------------------------------------------------------


@both
def test_rounds_bytes_and_messages_do_not_depend_on_the_rows(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=2, count=2)
    one, other = session.predict(X), session.predict(np.zeros_like(X))
    assert one.sizes == other.sizes
    assert [m.tag for m in one.messages] == [m.tag for m in other.messages]
    assert all(a.body != b.body for a, b in zip(one.messages, other.messages, strict=True))


@both
def test_no_repr_shows_a_secret(backend):
    session = ready(backend, GRAPH)
    session.deal(rows=2)
    for role, kit in session.kits.items():
        assert "array" not in repr(kit), role
        assert "prepared" not in repr(kit)


@both
def test_garbage_anywhere_is_a_protocol_error(backend):
    """Every message of set-up, deal and prediction, replaced: whoever reads it says ProtocolError, and nobody hangs."""
    stream = np.random.default_rng(1)
    for size in (0, 3, 200):
        junk = stream.bytes(size)
        for tag in ("hello", "keys", "model", "request", "header", "ask"):
            session = Session(backend, GRAPH) if tag in ("hello", "keys", "model") else ready(backend, GRAPH)
            ask = session.setup if tag in ("hello", "keys", "model") else lambda one=session, **k: one.predict(X, **k)
            transcript = ask(fault=alter(lambda _, j=junk: j, tag=f"{backend.name}/{tag}"))
            assert transcript.failures, tag
            assert all(isinstance(error, ConfideError) for error in transcript.failures.values())
            assert any(isinstance(error, ProtocolError) for error in transcript.failures.values()), tag
