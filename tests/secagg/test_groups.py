"""Sums per group: the draw that nobody owns, rows against the plain sum, groups that fall out, robust rules on top."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from msgspec.structs import replace
from scipy import stats

from confide.cohort import robust
from confide.crypto.random import SeededRandomness, public_stream
from confide.errors import Aborted, ConfideError, ProtocolError, UsageError
from confide.guarantee import Adversary
from confide.ideal import Cohort, PlainSum, Session, Vector
from confide.secagg import Groups, GroupSums, Shares, groups, groups_of
from confide.secagg.groups import COMMITS, DRAW, REVEAL, REVEALS, Commitments, Nonce, Nonces
from confide.secagg.masked_terms import KEYS, UNMASK, VECTOR
from confide.wire import LATE_TICKS, Fault, MemoryStore, Message, Step, alter, decode, delay, drop, encode, lose, run
from conformance.cases import Federation, assert_is_sum
from secagg.tamper import flip

NINE = tuple(f"silo-{index}" for index in range(9))


def federation(clients: int = 9, quorum: int = 3, size: int = 3) -> Federation:
    return Federation(Groups(size), clients, quorum)


def partition(parties: Federation, size: int = 3) -> tuple[tuple[str, ...], ...]:
    return groups_of(parties.cohort.clients, groups.drawn(parties.stores["server"]), size)


def sums(parties: Federation, fault: Fault | None = None, number: int = 1) -> GroupSums:
    session = parties.session(number)
    vectors = parties.vectors(session)
    output: GroupSums = parties.sum(session, vectors, fault).output("server")
    assert_is_sum(output, parties.aggregator, vectors)
    return output


def gone(*names: str, tag: str) -> Fault:
    """Let all of `names` die before their first message tagged `tag`."""
    faults = [lose(name, tag=tag) for name in names]
    return lambda message: [(0, message)] if len(passed(message, faults)) == len(faults) else []


def passed(message: Message, faults: list[Fault]) -> list[Fault]:
    """Return the faults that let `message` pass; each one sees it, for they remember."""
    return [fault for fault in faults if list(fault(message))]


# --- the groups -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clients", "size", "parts"), [(3, 3, [3]), (5, 3, [5]), (6, 3, [3, 3]), (11, 3, [4, 4, 3])])
def test_groups_cover_everybody_once_and_none_is_too_small(clients: int, size: int, parts: list[int]) -> None:
    names = tuple(map(str, range(clients)))
    found = groups_of(names, bytes(32), size)
    assert [len(group) for group in found] == parts
    assert sorted(name for group in found for name in group) == sorted(names)
    assert all(list(group) == sorted(group, key=names.index) for group in found)


def test_any_two_clients_meet_equally_often() -> None:
    """9 clients in threes: each other client shares the group with probability 1/4. Chi-square, false alarm 1e-6."""
    met = np.zeros(8)
    for number in range(4000):
        group = next(g for g in groups_of(NINE, number.to_bytes(32, "little"), 3) if "silo-0" in g)
        met += [f"silo-{index}" in group for index in range(1, 9)]
    assert met.sum() == 8000
    assert stats.chisquare(met).pvalue > 1e-6


def test_everybody_draws_the_same_and_each_nonce_counts() -> None:
    one = federation()
    assert len(set(one.setup.outputs.values())) == 1
    seeds = {store.get(DRAW) for store in one.stores.values()}
    assert len(seeds) == 1
    assert seeds != {Federation(Groups(3), 9, 3, seed="other").stores["server"].get(DRAW)}


def drawn(fault: Fault | None, clients: int = 4):
    cohort = Cohort(NINE[:clients], 3)
    roles = cohort.parties(Groups.roles)
    stores = {name: MemoryStore() for name in roles}
    rng = {name: SeededRandomness(f"draw/{name}") for name in roles}
    return run(
        {n: Groups(3).setup(r, n, cohort, stores[n], rng[n]) for n, r in roles.items()}, stores=stores, fault=fault
    )


def edited(tag: str, kind: type, edit: Callable, **where: str) -> Fault:
    return alter(lambda body: encode(edit(decode(body, kind, max_bytes=1 << 20))), tag=tag, **where)


def other(nonces: Mapping[str, Nonce]) -> Nonces:
    return Nonces({**nonces, "silo-1": replace(nonces["silo-1"], nonce=bytes(32))})


@pytest.mark.parametrize(
    ("fault", "who"),
    [
        (edited(REVEAL, Nonce, lambda body: replace(body, nonce=bytes(32)), src="silo-1"), "server"),
        (edited(REVEAL, Nonce, lambda body: replace(body, signature=flip(body.signature)), src="silo-1"), "server"),
        (edited(REVEALS, Nonces, lambda body: other(body.nonces), dst="silo-0"), "silo-0"),
        (edited(REVEALS, Nonces, lambda body: other(body.nonces), dst="silo-1"), "silo-1"),
        (edited(REVEALS, Nonces, lambda body: Nonces(dict(list(body.nonces.items())[:2])), dst="silo-0"), "silo-0"),
        (edited(COMMITS, Commitments, lambda body: Commitments({}), dst="silo-0"), "silo-0"),
    ],
)
def test_a_nonce_that_was_changed_after_its_commitment_ends_the_draw(fault: Fault, who: str) -> None:
    assert isinstance(drawn(fault).failures[who], ProtocolError)


def test_a_server_that_shows_different_commitments_is_noticed() -> None:
    """silo-0 is shown a commitment that silo-1 never made: its signature no longer fits the others' view."""
    swap = edited(COMMITS, Commitments, lambda body: Commitments({**body.digests, "silo-1": bytes(32)}), dst="silo-0")
    assert isinstance(drawn(swap).failures["server"], ProtocolError)
    assert not drawn(None).failures


def test_a_second_draw_is_refused() -> None:
    parties = federation()
    for name, role in parties.roles.items():
        with pytest.raises(UsageError, match="no draw"):
            Groups(3).setup(role, name, parties.cohort, parties.stores[name], parties.rngs[name])


def test_misuse_is_named() -> None:
    parties, rng = federation(), SeededRandomness("x")
    for wrong in (lambda: Groups(2), lambda: Groups(3, Shares())):
        with pytest.raises(UsageError, match="size="):
            wrong()
    with pytest.raises(UsageError, match="at least 3"):
        Groups().setup("server", "server", Cohort(("a", "b"), 1), MemoryStore(), rng)
    with pytest.raises(UsageError, match="setup"):
        Groups().party("server", "server", parties.session(), None, MemoryStore(), rng)
    fewer = Session("run", 1, Cohort(NINE[:6], 3), 4, 10)
    with pytest.raises(UsageError, match="drawn for"):
        Groups(3).party("server", "server", fewer, None, parties.stores["server"], rng)
    with pytest.raises(UsageError, match="me=stranger"):
        Groups(3).party("client", "stranger", parties.session(), None, parties.stores["silo-0"], rng)


def test_the_guarantee_states_the_anonymity_set() -> None:
    guarantee = Groups(4).guarantee
    assert "at least 4 clients" in guarantee.leaks
    assert "never fewer than 3" in guarantee.leaks
    assert guarantee.hides("update", "server")
    plain = Groups(3, PlainSum()).guarantee
    assert not plain.claims
    assert plain.adversary is Adversary.NONE


# --- the rows ---------------------------------------------------------------------------------------------------------


def test_one_row_per_group_and_each_is_the_plain_sum_over_its_group() -> None:
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    output: GroupSums = parties.sum(session, vectors).output("server")
    expected = [sum(vectors[name].astype(object) for name in group) for group in partition(parties)]
    np.testing.assert_array_equal(output.values, np.array(expected, np.int64))
    assert output.members == tuple(map(frozenset, partition(parties)))
    assert not output.left_out
    assert [row.values.tolist() for row in output.inner] == output.values[:, None].tolist()


@pytest.mark.parametrize("tag", [KEYS, VECTOR, UNMASK])
def test_a_group_below_its_quorum_is_left_out_and_named(tag: str) -> None:
    parties = federation()
    first, second, third = partition(parties)
    output = sums(parties, gone(second[1], tag=tag))
    assert output.members == (frozenset(first), frozenset(third))
    assert list(output.left_out) == [second]
    assert "quorum=3" in output.left_out[second]


def test_dropouts_inside_groups_are_survived_down_to_the_groups_quorum() -> None:
    parties = federation(clients=10, quorum=5, size=5)
    first, second = partition(parties, 5)
    output = sums(parties, gone(first[0], first[4], second[2], tag=VECTOR))
    assert output.members == (frozenset(first[1:4]), frozenset(second) - {second[2]})
    output = sums(parties, gone(*first[:3], tag=VECTOR), 2)
    assert output.members == (frozenset(second),)


def test_too_few_groups_are_an_abort() -> None:
    parties = federation(quorum=7)
    session = parties.session()
    done = parties.sum(session, parties.vectors(session), drop(src="silo-4"))
    assert isinstance(done.failures["server"], Aborted)
    assert "silo-4" in str(done.failures["server"])


def test_a_slow_group_does_not_disturb_the_others() -> None:
    parties = federation()
    slow = partition(parties)[0][0]
    assert len(sums(parties, delay(7, src=slow)).members) == 3
    assert len(sums(parties, delay(2 * LATE_TICKS, src=slow, tag=VECTOR), 2).members) == 2


def test_no_message_passes_between_groups() -> None:
    """What a client receives names nobody of another group."""
    parties = federation()
    session = parties.session()
    done = parties.sum(session, parties.vectors(session))
    for group in partition(parties):
        for name in group:
            seen = b"".join(message.body for message in done.view(name))
            assert not [peer for peer in NINE if peer.encode() in seen and peer not in group]


# --- liars, and the rules that outvote them ---------------------------------------------------------------------------

LENGTH, SCALE = 40, 1000
Attack = Callable[[Vector, int], Vector]


def sign_flip(vector: Vector, bound: int) -> Vector:
    return np.clip(-100 * vector, -bound, bound)


def scaling(vector: Vector, bound: int) -> Vector:
    return np.clip(vector * 1000, -bound, bound)


def outlier(vector: Vector, bound: int) -> Vector:
    return np.full_like(vector, bound)


@pytest.mark.parametrize("attack", [sign_flip, scaling, outlier])
@pytest.mark.parametrize(
    "rule", [robust.median, robust.trimmed_mean, robust.multi_krum], ids=lambda rule: rule.__name__
)
def test_robust_rules_over_group_means_hold_where_the_mean_is_destroyed(rule: Callable, attack: Attack) -> None:
    """One liar among 15 clients in 5 groups; the bound is the spread of the honest groups' means, from numpy."""
    parties = Federation(Groups(3), 15, 3)
    session = Session("run", 1, parties.cohort, LENGTH, 2**30)
    rng = public_stream(1, "robust")
    centre = rng.integers(-SCALE, SCALE, LENGTH)
    honest = {name: centre + rng.integers(-100, 101, LENGTH) for name in parties.cohort.clients}
    vectors = honest | {"silo-3": attack(honest["silo-3"], session.bound)}
    output = parties.sum(session, vectors).output("server")
    means = output.values / np.array([[len(members)] for members in output.members])
    clean = np.array([np.mean([honest[name] for name in members], axis=0) for members in output.members])
    target = np.mean(list(honest.values()), axis=0)
    good = np.array([row for row, who in zip(clean, output.members, strict=True) if "silo-3" not in who])
    spread = np.linalg.norm(np.abs(good - target).max(axis=0))  # what any point between honest means keeps to
    assert np.linalg.norm(rule(means, liars=1) - target) <= spread
    assert np.linalg.norm(robust.mean(means) - target) > 10 * spread


def test_garbage_in_one_group_leaves_the_others() -> None:
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    fault = alter(lambda body: body[:5], src="silo-5", tag=VECTOR)
    done = parties.sum(session, vectors, fault)
    assert len(assert_is_sum(done.output("server"), parties.aggregator, vectors)) == 6
    assert all(isinstance(error, ConfideError) for error in done.failures.values())


def test_inner_servers_that_only_send_are_resumed_at_once() -> None:
    def inner():
        yield Step(send=(Message("server", "a", "x", b""),))
        return "done"

    together = groups._Together({("a",): inner()})
    assert together.sums == {("a",): "done"}
    assert [message.dst for message in together.send] == ["a"]
