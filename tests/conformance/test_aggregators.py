"""Every aggregator of the registry realises the ideal sum, survives what it must and refuses the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import combinations, product

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import Aborted, ConfideError, ProtocolError, UsageError
from confide.ideal import Aggregator, Session, Vector
from confide.secagg import Amortised, Shares
from confide.tee import aggregate_enclave
from confide.train.parts import AGGREGATORS
from confide.wire import (
    LATE_TICKS,
    Fault,
    Message,
    Party,
    Transcript,
    delay,
    drop,
    lose,
    repeat,
    run,
    truncate,
)
from conformance.cases import (
    Federation,
    assert_is_sum,
    bytes_are_uniform,
    crashing,
    largest_body,
    windows,
)
from tee.aggregators import as_on_hardware


def shares_with_a_bound() -> Shares:
    """Return two-server shares with a bound that no vector of this suite exceeds."""
    return Shares(norm_bound=2**46)


#: What jobs can name, and what they can set up.
TRIED = {**AGGREGATORS, "shares-norm": shares_with_a_bound, "tee": as_on_hardware}

every_aggregator = pytest.mark.parametrize("aggregator", [kind() for kind in TRIED.values()], ids=TRIED)


def outcome(federation: Federation, fault: Fault | None, number: int = 1) -> tuple[Transcript, frozenset[str] | None]:
    """Run one sum under `fault`; return the members of the sum, checked, or None if the server aborted."""
    session = federation.session(number)
    vectors = federation.vectors(session)
    done = federation.sum(session, vectors, fault)
    failure = done.failures.get("server")
    if failure is not None:
        assert isinstance(failure, Aborted)
        return done, None
    members = assert_is_sum(done.output("server"), federation.aggregator, vectors)
    assert len(members) >= federation.quorum
    return done, members


# --- the right sum ----------------------------------------------------------------------------------------------------


@every_aggregator
@given(clients=st.integers(3, 5), length=st.integers(0, 40), bound=st.integers(0, 2**40), data=st.data())
@settings(max_examples=20, deadline=None)
def test_the_output_is_the_ideal_sum(
    aggregator: Aggregator, clients: int, length: int, bound: int, data: st.DataObject
) -> None:
    federation = Federation(aggregator, clients, quorum=3)
    session = federation.session(length=length, bound=bound)
    values = st.lists(st.sampled_from([-bound, bound, 0, bound // 3]), min_size=length, max_size=length)
    vectors = {name: np.array(data.draw(values), np.int64) for name in federation.cohort.clients}
    done = federation.sum(session, vectors)
    ideal = aggregator.ideal(vectors)
    sums = done.output("server")
    np.testing.assert_array_equal(sums.values.sum(axis=0), ideal.values.sum(axis=0))
    assert assert_is_sum(sums, aggregator, vectors) == frozenset(vectors)


@every_aggregator
def test_clients_have_no_output(aggregator: Aggregator) -> None:
    federation = Federation(aggregator)
    done, _ = outcome(federation, None)
    assert all(done.output(name) is None for name in federation.cohort.clients)


@every_aggregator
def test_many_rounds_and_attempts_follow_each_other(aggregator: Aggregator) -> None:
    federation = Federation(aggregator)
    for number, attempt in ((1, 0), (1, 1), (2, 0), (5, 3), (6, 0)):
        session = federation.session(number, attempt=attempt)
        vectors = federation.vectors(session)  # the same in each attempt at a round, as training draws them
        assert_is_sum(federation.sum(session, vectors).output("server"), aggregator, vectors)


# --- dropouts ---------------------------------------------------------------------------------------------------------


@every_aggregator
def test_the_upload_is_what_no_sum_is_made_without(aggregator: Aggregator) -> None:
    """What a budget is charged before: each client sends it once, and without it there is nothing to sum."""
    federation = Federation(aggregator)
    done, members = outcome(federation, None)
    assert members == frozenset(federation.cohort.clients)
    for name in federation.cohort.clients:
        assert sum(message.src == name and message.tag == aggregator.upload for message in done.messages) == 1
    _, members = outcome(Federation(aggregator), drop(tag=aggregator.upload))
    assert members is None


@every_aggregator
def test_any_client_may_leave_before_any_of_its_messages(aggregator: Aggregator) -> None:
    federation = Federation(aggregator)
    pairs = product(federation.cohort.clients, federation.client_tags())
    for number, (name, tag) in enumerate(pairs, start=1):
        _, members = outcome(federation, lose(name, tag=tag), number)
        assert members is not None
        assert members >= frozenset(federation.cohort.clients) - {name}


@every_aggregator
def test_dropouts_down_to_the_quorum_at_any_stages(aggregator: Aggregator) -> None:
    federation = Federation(aggregator, clients=5, quorum=3)
    first, _, third, _, fifth = federation.cohort.clients
    tags, number = federation.client_tags(), 0
    for one, two in product(tags, tags):
        number += 1
        _, members = outcome(federation, both(lose(first, tag=one), lose(fifth, tag=two)), number)
        assert members is not None
    for tag in tags:
        number += 1
        fault = both(both(lose(first, tag=tag), lose(third, tag=tag)), lose(fifth, tag=tags[0]))
        done, members = outcome(federation, fault, number)
        assert members is None
        assert "server" not in done.outputs


def both(first: Fault, second: Fault) -> Fault:
    """Deliver what both let pass."""

    def fault(message: Message) -> list[tuple[int, Message]]:
        passed, kept = list(first(message)), list(second(message))
        return passed if kept else []

    return fault


@every_aggregator
def test_silent_clients_are_an_abort(aggregator: Aggregator) -> None:
    done, members = outcome(Federation(aggregator), drop(dst="server"))
    assert members is None
    assert isinstance(done.failures["server"], Aborted)


# --- the network ------------------------------------------------------------------------------------------------------


@every_aggregator
@pytest.mark.parametrize("fault", [repeat(), delay(1, src="silo-1"), delay(3, src="silo-0"), delay(2, dst="silo-2")])
def test_repeats_and_reordering_change_nothing(aggregator: Aggregator, fault: Fault) -> None:
    _, members = outcome(Federation(aggregator), fault)
    assert members == frozenset(Federation(aggregator).cohort.clients)


@every_aggregator
def test_late_messages_leave_the_sum_right(aggregator: Aggregator) -> None:
    federation = Federation(aggregator)
    for number, tag in enumerate(federation.client_tags(), start=1):
        _, members = outcome(federation, delay(2 * LATE_TICKS, src="silo-1", tag=tag), number)
        assert members is not None
        assert members >= {"silo-0", "silo-2", "silo-3"}


@every_aggregator
@pytest.mark.parametrize("keep", [0, 1, 20])
def test_truncated_messages_of_a_client_make_it_a_dropout(aggregator: Aggregator, keep: int) -> None:
    federation = Federation(aggregator)
    for number, tag in enumerate(federation.client_tags(), start=1):
        _, members = outcome(federation, truncate(keep, src="silo-2", tag=tag), number)
        assert members is not None
        assert members >= {"silo-0", "silo-1", "silo-3"}


@every_aggregator
@pytest.mark.parametrize("keep", [0, 1, 20])
def test_truncated_messages_to_a_client_end_it_with_a_protocol_error(aggregator: Aggregator, keep: int) -> None:
    federation = Federation(aggregator)
    session = federation.session(0)
    plain = federation.sum(session, federation.vectors(session))
    tags = list(dict.fromkeys(message.tag for message in plain.view("silo-2")))
    for number, tag in enumerate(tags, start=1):
        done, members = outcome(federation, truncate(keep, dst="silo-2", tag=tag), number)
        assert isinstance(done.failures["silo-2"], ProtocolError)
        assert members is not None
        assert members >= {"silo-0", "silo-1", "silo-3"}


@every_aggregator
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_garbage_never_raises_anything_but_confide_s_errors(aggregator: Aggregator, data: st.DataObject) -> None:
    """Random bytes, another client's body, another stage's body: a wrong number is possible, another error is not."""
    federation = Federation(aggregator)
    session = federation.session(0)
    vectors = federation.vectors(session)
    bodies = [message.body for message in federation.sum(session, vectors).messages]
    body = data.draw(st.one_of(st.binary(max_size=300), st.sampled_from(bodies)))
    target = data.draw(st.sampled_from(["server", "silo-0", "silo-1"]))
    tag = data.draw(st.sampled_from(federation.client_tags()))

    def fault(message: Message) -> list[tuple[int, Message]]:
        hit = message.dst == target if target != "server" else (message.src, message.tag) == ("silo-1", tag)
        return [(0, Message(message.src, message.dst, message.tag, body if hit else message.body))]

    later = federation.session(3)
    done = federation.sum(later, vectors, fault)
    assert all(isinstance(error, ConfideError) for error in done.failures.values())


# --- crashes ----------------------------------------------------------------------------------------------------------


@every_aggregator
@pytest.mark.parametrize("sent", [True, False])
def test_a_crashed_client_never_sends_two_different_bodies(aggregator: Aggregator, sent: bool) -> None:
    """Where there is something to hide, the rebuilt client is even given another vector."""
    federation = Federation(aggregator)
    for at in range(7):
        session = federation.session(at)
        vectors = federation.vectors(session)
        parties = federation.parties(session, vectors)
        sign = -1 if aggregator.guarantee.hides("update", "server") else 1
        other = vectors | {"silo-1": sign * vectors["silo-1"]}
        builds = iter((vectors, other))

        def build(session: Session = session, builds: Iterator[Mapping[str, Vector]] = builds) -> Party:
            return federation.party("silo-1", session, next(builds))

        parties["silo-1"] = crashing(build, at, sent=sent)
        done = run(parties, stores=federation.stores)
        assert_is_sum(done.output("server"), aggregator, vectors)
        sent_bodies = {(m.tag, m.body) for m in done.messages if m.src == "silo-1"}
        assert len({tag for tag, _ in sent_bodies}) == len(sent_bodies)


# --- secrecy ----------------------------------------------------------------------------------------------------------


@every_aggregator
@pytest.mark.usefixtures("seeded_encapsulation")
def test_what_the_server_sees_is_uniform_where_the_guarantee_says_so(
    aggregator: Aggregator,
) -> None:
    """Constant vectors, and the difference of two sums' messages: the plain sum must fail both."""
    federation = Federation(aggregator)
    bodies: list[bytes] = []
    for number in (1, 2):
        session = federation.session(number, length=20_000, bound=(2**32 - 1) // (2 * federation.clients))
        vectors = {name: np.full(session.length, 7, np.int64) for name in federation.cohort.clients}
        bodies.append(largest_body(federation.sum(session, vectors), "silo-1"))
    hidden = aggregator.guarantee.hides("update", "server")
    assert [bytes_are_uniform(body) for body in bodies] == [hidden, hidden]
    first, second = (np.frombuffer(body[-60_000:], np.uint8) for body in bodies)
    assert bytes_are_uniform((first - second).tobytes()) == hidden


@every_aggregator
def test_no_two_clients_ever_store_the_same_secret(aggregator: Aggregator) -> None:
    """Whatever 16 bytes two clients have both stored at any time, everybody could read on the wire."""
    federation = Federation(aggregator, seed="stores")
    session = federation.session()
    done = federation.sum(session, federation.vectors(session), lose("silo-3", tag=federation.client_tags()[-1]))
    public = set[bytes]().union(*(windows(message.body) for message in federation.setup.merge(done).messages))
    kept = {name: federation.stores[name].secrets() for name in federation.cohort.clients}
    for first, second in combinations(kept, 2):
        assert not (kept[first] & kept[second]) - public
    if aggregator.guarantee.hides("update", "server"):
        assert all(secrets - public for secrets in kept.values())  # there was something to compare


@every_aggregator
def test_every_guarantee_says_what_the_sum_reveals_and_whether_a_quantum_computer_opens_the_record(
    aggregator: Aggregator,
) -> None:
    """Written out here: a guarantee that loses one of these sentences claims more than it holds."""
    guarantee = aggregator.guarantee
    assert "sum can reveal records unless noise is added" in guarantee.leaks
    assert "the more so when the server crafts models or varies the cohort" in guarantee.leaks
    falls = "messages recorded today fall to a quantum computer" in guarantee.leaks
    stays = "recorded today stay closed to a quantum computer; identities are Ed25519" in guarantee.leaks
    hidden = aggregator.guarantee.hides("update", "server")
    assert (falls, stays) == (hidden and not guarantee.post_quantum, hidden and guarantee.post_quantum)
    assert guarantee.post_quantum == any(name in guarantee.primary for name in ("ML-KEM", "BFV"))


# --- the wire format --------------------------------------------------------------------------------------------------

#: SHA-256 over every message of set-up and one sum with two dropouts, from seeds; a change belongs in the changelog.
GOLDEN = {
    "amortised": "1ff25b499955c43fde862bc76134cf4983a678682dbc13317dbc75f404ef22f7",
    "he": "e92c65f8e14855b00584743687fd927cb6969888649842887beae4da28d31cde",
    "plain": "f9a15addacefc3a577c5e531d46244d5708d007e250ed5f68f77e14e383eac99",
    "masked": "2f7c34018a957e91f1071540eeca8ee0464a48b61fca37f60603fa8f1959346d",
    "shares": "e1ca5df2ded5641b0bd58510a8dbf44f84fd6dc79420bff6fd9f2ebf01549ca1",
    "shares-norm": "39bac77730dc29f7e5369a61a4d3bb7fe09d0e2f71ceb9e00d2165e60b2adb90",
    "tee": "a3c0cbca9e65fb77f3671182ff6ff9b9ec1797f3e054f11c962f43ee917eed3d",
    "groups": "46363d943fbe31e62a7eba88a95d33b4aae9ebd863c4bdba5eee67021081a9b1",
}
GOLDEN_CLASSICAL = "22acca145128e02cc1a98402330d9043bde1c4ff9294f8f8ce17582a3cc70132"


def golden(aggregator: Aggregator) -> list[Message]:
    """Return every message of set-up and one sum with two dropouts, from seeds."""
    federation = Federation(aggregator, clients=5, seed="golden")
    session = federation.session()
    tags = federation.client_tags()
    fault = both(lose("silo-1", tag=tags[0]), lose("silo-3", tag=tags[-1]))
    return federation.setup.merge(federation.sum(session, federation.vectors(session), fault)).messages


def kept(one: object, other: object) -> object:
    """Return what two bodies have in common: fields, sizes, and the bytes that are the same."""
    if isinstance(one, bytes) and isinstance(other, bytes) and one != other:
        return len(one) if len(one) == len(other) else None
    if isinstance(one, list) and isinstance(other, list):
        return [kept(*pair) for pair in zip(one, other, strict=True)]
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: kept(one[name], other[name]) for name in one}
    return one


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [(kind(), GOLDEN.get(name, "the hash of the first run")) for name, kind in TRIED.items()]
    + [(Amortised(hybrid=False), GOLDEN_CLASSICAL)],
    ids=[*TRIED, "amortised without ML-KEM"],
)
def test_the_wire_format_is_what_it_was(aggregator: Aggregator, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All randomness comes through the argument: one hash pins every byte of every message.

    A library that draws its own leaves bytes that change from run to run: of those the hash pins fields and sizes.
    """
    monkeypatch.setattr(aggregate_enclave, "code_version", lambda: "0")
    digest = hashlib.sha256()
    for message, again in zip(golden(aggregator), golden(aggregator), strict=True):
        body = message.body
        if body != again.body:
            body = repr(kept(msgspec.msgpack.decode(body), msgspec.msgpack.decode(again.body))).encode()
        for part in (message.src.encode(), message.dst.encode(), message.tag.encode(), body):
            digest.update(len(part).to_bytes(8, "little") + part)
    assert digest.hexdigest() == expected


# --- misuse -----------------------------------------------------------------------------------------------------------


@every_aggregator
def test_vectors_that_do_not_fit_are_refused_before_anything_leaves(aggregator: Aggregator) -> None:
    federation = Federation(aggregator)
    session = federation.session(length=3, bound=10)
    wrong = [
        np.zeros(2, np.int64),
        np.zeros(3, np.int32),
        np.zeros((3, 1), np.int64),
        np.array([0, 11, 0]),
        np.array([0, -11, 0]),
        np.array([0, np.iinfo(np.int64).min, 0]),
    ]
    for vector in wrong:
        with pytest.raises(UsageError, match="Expected"):
            federation.party("silo-0", session, {"silo-0": vector})
