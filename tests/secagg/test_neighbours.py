"""The sparse graph: what it looks like, when it holds together, and sums over it against servers that cut it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from confide.cohort.roster import pinned
from confide.crypto.random import public_stream
from confide.errors import Aborted, ProtocolError, UsageError
from confide.ideal import Cohort, Session
from confide.secagg import Masked, masked_client, masked_server
from confide.secagg.masked_terms import (
    BOXES,
    CONFIRM,
    PEERS,
    SHARES,
    SURVIVORS,
    UNMASK,
    VECTOR,
    Adverts,
    Parcels,
    Survivors,
    Terms,
)
from confide.secagg.neighbours import LARGEST_COMPLETE, Neighbours, degree_for
from confide.wire import Fault, Message, Transcript, decode, encode, lose
from conformance.cases import Federation, assert_is_sum
from secagg.tamper import flip, tamper


def names(count: int) -> tuple[str, ...]:
    return tuple(f"silo-{index}" for index in range(count))


def in_one_piece(graph: Neighbours, left: Iterable[str]) -> bool:
    """Walk the graph over `left`: an oracle that knows no matrix."""
    left = set(left)
    seen, border = set[str](), [min(left)] if left else []
    while border:
        name = border.pop()
        if name not in seen:
            seen.add(name)
            border += [other for other in graph.of(name) if other in left]
    return seen == left


# --- the graph --------------------------------------------------------------------------------------------------------


@given(count=st.integers(2, 70), degree=st.integers(2, 20), seed=st.binary(min_size=32, max_size=32))
@settings(max_examples=60, deadline=None)
def test_a_graph_is_symmetric_and_nobody_has_more_than_its_degree(count: int, degree: int, seed: bytes) -> None:
    graph = Neighbours(names(count), degree, seed)
    assert graph.complete == (degree >= count - 1)
    for name in names(count):
        near = graph.of(name)
        assert name not in near
        assert len(set(near)) == len(near) <= max(degree, 1)
        assert all(name in graph.of(other) for other in near)
        if graph.complete:
            assert len(near) == count - 1


@pytest.mark.parametrize(("count", "degree"), [(50, 13), (51, 12), (100, 29), (200, 31)])
def test_nearly_everybody_has_its_full_degree(count: int, degree: int) -> None:
    for seed in range(5):
        graph = Neighbours(names(count), degree, seed.to_bytes(32, "big"))
        degrees = [len(graph.of(name)) for name in names(count)]
        assert np.mean(degrees) > degree - 0.5
        assert min(degrees) >= degree - 3


def test_everybody_draws_the_same_and_another_seed_another_graph() -> None:
    clients = names(40)
    first, again, other = (Neighbours(clients, 8, seed) for seed in (b"\1" * 32, b"\1" * 32, b"\2" * 32))
    assert all(first.of(name) == again.of(name) for name in clients)
    assert any(first.of(name) != other.of(name) for name in clients)
    assert first.of("silo-0") == PINNED  # a change would split a federation of two releases


PINNED = ("silo-1", "silo-3", "silo-10", "silo-15", "silo-18", "silo-20", "silo-29", "silo-33")


def test_any_two_clients_are_neighbours_equally_often() -> None:
    """2,000 graphs of 9 clients and degree 4: chi-square over the 36 pairs, two-sided, false alarm 2e-6.

    The counts of one graph are not independent of each other (a fixed number of edges), which makes the statistic
    smaller, not larger; the control is a graph whose cycle never moves.
    """
    clients, pairs = names(9), list(combinations(names(9), 2))
    counts = dict.fromkeys(pairs, 0)
    for number in range(2000):
        graph = Neighbours(clients, 4, number.to_bytes(32, "little"))
        for one, other in pairs:
            counts[one, other] += other in graph.of(one)
    high = stats.chi2.ppf(1 - 1e-6, df=len(pairs) - 1)
    assert stats.chisquare(list(counts.values())).statistic < high
    fixed = [2000.0 * (abs(int(one[5:]) - int(other[5:])) in (1, 8)) for one, other in pairs]
    assert stats.chisquare(fixed).statistic > high


@pytest.mark.parametrize(("dropouts", "sessions"), [(0.1, 1e-6), (0.2, 1 / 50)])
def test_the_default_degree_survives_random_dropouts(dropouts: float, sessions: float) -> None:
    """A seed is lost when fewer than half of the neighbours are left; the union bound over all clients."""
    for count in (LARGEST_COMPLETE + 1, 100, 200, 1000, 10_000):
        degree = degree_for(count)
        lost = stats.binom.cdf(degree // 2 + 1 - 2, degree, 1 - dropouts)
        assert count * lost < sessions
    assert degree_for(LARGEST_COMPLETE) == LARGEST_COMPLETE - 1


@given(
    count=st.integers(4, 12), degree=st.integers(2, 7), without=st.integers(0, 3), seed=st.integers(0, 10**6),
    gone=st.integers(0, 4),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_what_holds_together_does_so_without_any_few(
    count: int, degree: int, without: int, seed: int, gone: int
) -> None:
    """Every subset that may leave is tried: a graph that passes is never taken apart."""
    graph = Neighbours(names(count), degree, seed.to_bytes(32, "big"))
    left = names(count)[gone:]
    if left and graph.hold_together(left, without):
        for leaving in combinations(left, without):
            assert in_one_piece(graph, set(left) - set(leaving))


def test_a_graph_in_two_pieces_never_holds_and_a_good_one_does() -> None:
    graph = Neighbours(names(60), 12, bytes(32))
    victim = "silo-7"
    cut = set(names(60)) - set(graph.of(victim))
    assert not in_one_piece(graph, cut)
    assert not graph.hold_together(cut, 0)
    assert graph.hold_together(names(60), 3)
    assert not graph.hold_together(names(60), 12)  # the neighbours of any one


def test_the_bound_is_the_second_eigenvalue() -> None:
    """Beside the eigenvalues themselves, which numpy computes in another way."""
    for seed in range(10):
        graph = Neighbours(names(30), 8, seed.to_bytes(32, "big"))
        matrix = np.array([[float(other in graph.of(one)) for other in names(30)] for one in names(30)])
        second = float(np.linalg.eigvalsh(np.diag(matrix.sum(axis=1)) - matrix)[1])
        for without in range(9):
            if abs(second - without) > 1e-4:
                assert graph.hold_together(names(30), without) == (second > without)


# --- sums over it -----------------------------------------------------------------------------------------------------


def federation(clients: int = 24, quorum: int = 14, *, neighbours: int = 8, colluding: int = 0) -> Federation:
    return Federation(Masked(neighbours=neighbours, colluding=colluding), clients, quorum)


def terms(parties: Federation, session: Session, *, degree: int = 8, colluding: int = 0) -> Terms:
    return Terms(session, pinned(parties.stores["server"]), degree=degree, colluding=colluding)


def all_of(*faults: Fault) -> Fault:
    def fault(message: Message) -> list[tuple[int, Message]]:
        passed = [(0, message)]
        for one in faults:
            passed = [(before + after, m) for before, inner in passed for after, m in one(inner)]
        return passed

    return fault


def play(parties: Federation, fault: Fault | None = None, number: int = 1) -> Transcript:
    session = parties.session(number)
    vectors = parties.vectors(session)
    done = parties.sum(session, vectors, fault)
    if "server" in done.outputs:
        assert_is_sum(done.output("server"), parties.aggregator, vectors)
    return done


def test_without_dropouts_everybody_is_in_the_sum() -> None:
    parties = federation()
    assert play(parties).output("server").members == (frozenset(parties.cohort.clients),)


@pytest.mark.parametrize("seed", range(12))
def test_random_dropouts_at_random_stages(seed: int) -> None:
    """Up to a sixth leaves anywhere: the right sum, or a refusal that says what to do, and then the next attempt."""
    parties = federation()
    draw, tags = public_stream(seed, "dropouts"), parties.client_tags()
    gone = draw.choice(parties.clients, size=int(draw.integers(0, 5)), replace=False)
    faults = [lose(parties.cohort.clients[index], tag=tags[int(draw.integers(len(tags)))]) for index in gone]
    done = play(parties, all_of(*faults))
    if "server" in done.failures:
        assert "neighbours" in str(done.failures["server"])
        done = play(parties, number=2)
    assert len(done.output("server").members[0]) >= parties.clients - len(gone)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_clients_with_a_tenth_gone(seed: int) -> None:
    parties = Federation(Masked(colluding=5), 200, 120)
    draw, tags = public_stream(seed, "large"), parties.client_tags()
    gone = [parties.cohort.clients[index] for index in draw.choice(200, size=20, replace=False)]
    done = play(parties, all_of(*(lose(name, tag=tags[int(draw.integers(len(tags)))]) for name in gone)))
    assert done.output("server").members[0] >= set(parties.cohort.clients) - set(gone)


def test_what_a_client_sends_and_gets_grows_with_its_neighbours_and_not_with_the_cohort() -> None:
    """Names, and one bit for each client, do grow: 24 and 48 clients, the same degree."""
    costs = []
    for clients in (24, 48):
        parties = federation(clients, clients // 2 + 1)
        done = play(parties)
        costs.append((done.bytes_sent("silo-1"), done.bytes_received("silo-1") - 64 * parties.quorum))
    (sent, got), (sent_by_more, got_by_more) = costs
    assert sent_by_more < 1.05 * sent
    assert got_by_more < 1.3 * got


def test_one_more_than_colluding_may_take_the_graph_apart_and_the_guarantee_says_so() -> None:
    """Survivors that pass for no colluders, and that one client holds together: its key opens the sums of two parts."""
    parties = federation(16, 11, neighbours=4)
    graph = terms(parties, parties.session(), degree=4).graph
    cut = [
        (left, single)
        for size in (13, 12)
        for left in combinations(parties.cohort.clients, size)
        for single in left
        if graph.hold_together(left, 0) and not in_one_piece(graph, set(left) - {single})
    ]
    assert cut
    assert not any(graph.hold_together(left, 1) for left, _ in cut)
    for unsafe in (False, True):
        for colluding in (0, 1):
            sentences = Masked(neighbours=4, colluding=colluding, unsafe_quorum=unsafe).guarantee.sentences()
            assert any(f"in a sparse graph all but colluding={colluding}" in sentence for sentence in sentences)


def test_an_unsafe_quorum_opens_no_seed_to_the_colluding() -> None:
    parties = federation(24, 20, neighbours=6, colluding=4)
    parties.aggregator = Masked(neighbours=6, colluding=4, unsafe_quorum=True)
    with pytest.raises(UsageError, match="take at least 8 neighbours"):
        parties.party("server", parties.session(), {})
    complete = Federation(Masked(colluding=4, unsafe_quorum=True), 5, 3)
    complete.party("server", complete.session(), {})


def test_a_degree_is_part_of_the_session() -> None:
    """Parties that disagree about the graph, or about how many collude, make no sum together."""
    parties = federation()
    session = parties.session()
    contexts = {
        terms(parties, session, degree=degree, colluding=colluding).context
        for degree, colluding in ((8, 0), (9, 0), (8, 1), (23, 0), (40, 0))
    }
    assert len(contexts) == 4  # 23 and 40 are the complete graph


def test_misuse_is_named() -> None:
    with pytest.raises(UsageError, match="neighbours=1"):
        Masked(neighbours=1)
    parties = federation(24, 20, neighbours=6, colluding=4)
    session = parties.session()
    with pytest.raises(UsageError, match="take at least 8 neighbours"):
        parties.party("server", session, {})


# --- clients that lie -------------------------------------------------------------------------------------------------


def test_a_vector_signed_for_other_peers_is_left_out_and_named() -> None:
    parties = federation()
    lie = tamper(VECTOR, lambda vector: type(vector)(vector.words, flip(vector.signature)), src="silo-3")
    output = play(parties, lie).output("server")
    assert output.members == (frozenset(parties.cohort.clients) - {"silo-3"},)
    assert "pinned identity" in output.blamed["silo-3"]


def test_parcels_for_others_than_the_neighbours_are_refused() -> None:
    parties = federation()
    graph = terms(parties, parties.session()).graph
    stranger = next(name for name in parties.cohort.clients if name not in (*graph.of("silo-3"), "silo-3"))
    near = graph.of("silo-3")[0]

    def renamed(parcels: Parcels) -> Parcels:
        return Parcels({stranger if name == near else name: parcel for name, parcel in parcels.parcels.items()})

    output = play(parties, tamper(SHARES, renamed, src="silo-3")).output("server")
    assert list(output.blamed) == ["silo-3"]


# --- servers that lie -------------------------------------------------------------------------------------------------


def refused(parties: Federation, tag: str, lie: Callable[[object], object], victim: str) -> str:
    """Return what `victim` says when the server lies to it in `tag`; it says nothing more on the wire."""
    done = play(parties, tamper(tag, lie, src="server", dst=victim))
    failure = done.failures[victim]
    assert isinstance(failure, ProtocolError)
    after = {PEERS: SHARES, BOXES: VECTOR, SURVIVORS: CONFIRM}[tag]
    assert not [m for m in done.messages if m.src == victim and m.tag == after]
    return str(failure)


def test_a_client_refuses_keys_and_boxes_of_others_and_too_few_of_its_neighbours() -> None:
    parties = federation()
    graph = terms(parties, parties.session()).graph
    near = graph.of("silo-0")
    few = {"silo-0", *near[:3]}
    assert "neighbours'" in refused(
        parties, PEERS, lambda body: Adverts({n: a for n, a in body.adverts.items() if n in few}), "silo-0"
    )

    def without_one(body: Parcels) -> Parcels:
        """Withhold a parcel of a neighbour that the list names."""
        return Parcels({n: p for n, p in body.parcels.items() if n != near[0]}, body.peers)

    assert "all neighbours" in refused(federation(), BOXES, without_one, "silo-0")


def told(parties: Federation, survivors: Iterable[str], tag: str = SURVIVORS) -> Fault:
    """Show everybody the same `survivors`, with whatever signatures the server has."""
    session = parties.session()
    members = terms(parties, session).bitmap(tuple(survivors))

    def fault(message: Message) -> list[tuple[int, Message]]:
        if message.tag != tag:
            return [(0, message)]
        body = decode(message.body, Survivors, max_bytes=1 << 20)
        return [(0, Message(message.src, message.dst, tag, encode(Survivors(members, body.signatures))))]

    return fault


def test_a_victim_whose_neighbours_are_all_called_dropouts_says_nothing() -> None:
    parties = federation()
    graph = terms(parties, parties.session()).graph
    alone = set(parties.cohort.clients) - set(graph.of("silo-0"))
    done = play(parties, told(parties, alone))
    assert "survivors" in str(done.failures["silo-0"])
    assert not [m for m in done.messages if m.tag == UNMASK]


def separated(parties: Federation, graph: Neighbours) -> tuple[set[str], set[str], set[str]]:
    """Return two sides with no edge between them, and who must be called a dropout for that."""
    left: set[str] = {"silo-0", *graph.of("silo-0")}
    border = {other for name in left for other in graph.of(name)} - left
    return left, border, set(parties.cohort.clients) - left - border


def test_a_cut_through_the_graph_gives_two_sums_and_so_every_client_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 clients of degree 4, a quarter of them called dropouts. The control: without the check all shares leave."""
    parties = federation(60, 31, neighbours=4)
    graph = terms(parties, parties.session(), degree=4).graph
    left, border, right = separated(parties, graph)
    survivors = left | right
    assert len(survivors) >= 31
    assert not in_one_piece(graph, survivors)
    monkeypatch.setattr(masked_server, "verify", lambda *_: None)
    done = play(parties, told(parties, survivors))
    assert not [m for m in done.messages if m.tag in (CONFIRM, UNMASK)]
    assert any("holds together" in str(done.failures[name]) for name in survivors)

    with monkeypatch.context() as patched:
        patched.setattr(Neighbours, "hold_together", lambda *_: True)
        patched.setattr(masked_client, "_check_neighbourhood", lambda *_: None)
        confirmed = {
            m.src for m in play(federation(60, 31, neighbours=4), told(parties, survivors)).messages if m.tag == CONFIRM
        }
    assert confirmed == survivors
    assert border.isdisjoint(confirmed)


def test_an_honest_server_asks_for_no_shares_over_a_graph_that_fell_apart() -> None:
    parties = federation()
    graph = terms(parties, parties.session()).graph
    lonely = all_of(*(lose(name, tag=VECTOR) for name in graph.of("silo-0")[:5]))
    done = play(parties, lonely)
    with pytest.raises(Aborted, match="take the next attempt, or more neighbours"):
        done.output("server")
    assert not [m for m in done.messages if m.tag == SURVIVORS]
    assert "server" in play(parties, number=2).outputs


def test_who_was_told_other_peers_gets_no_confirmation_from_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack of two stories: the victim masks with few, who are called dropouts later. Its neighbours see that its
    vector was signed for another U2; the control is a client that takes any signature.
    """
    monkeypatch.setattr(masked_server, "verify", lambda *_: None)

    def attacked(parties: Federation) -> tuple[set[str], tuple[str, ...]]:
        agreed = terms(parties, parties.session())
        near = agreed.graph.of("silo-0")
        others = [name for name in parties.cohort.clients if name not in (*near[5:], "silo-0")]
        shown = agreed.bitmap(("silo-0", *others))

        def lie(body: Parcels) -> Parcels:
            return Parcels({name: body.parcels[name] for name in body.parcels if name not in near[5:]}, shown)

        done = play(parties, tamper(BOXES, lie, src="server", dst="silo-0"))
        return {m.src for m in done.messages if m.tag == CONFIRM}, near

    confirmed, near = attacked(federation())
    assert confirmed.isdisjoint(near)
    monkeypatch.setattr(masked_client, "_holds", lambda *_: True)
    confirmed, near = attacked(federation())
    assert confirmed >= set(near)


def test_a_large_cohort_is_sparse_by_itself_and_a_small_one_complete() -> None:
    for clients, complete in ((10, True), (LARGEST_COMPLETE, True), (LARGEST_COMPLETE + 1, False)):
        parties = Federation(Masked(), clients, clients // 2 + 1)
        session = Session("run", 1, Cohort(parties.cohort.clients, parties.quorum), 3, 10)
        shared = {m.src: m.body for m in parties.sum(session, parties.vectors(session)).messages if m.tag == SHARES}
        parcels = decode(shared["silo-0"], Parcels, max_bytes=1 << 20).parcels
        assert (len(parcels) == clients) == complete
