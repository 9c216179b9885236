"""The masked sum: every row of the dropout table, liars with names, the ring at its edges, what late vectors show."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from scipy import stats

from confide.cohort.roster import identity, pinned
from confide.crypto.keys import AgreementKey
from confide.crypto.random import SeededRandomness
from confide.crypto.ring import unpack
from confide.crypto.shamir import PRIME
from confide.errors import Aborted, UsageError
from confide.guarantee import Adversary
from confide.ideal import Cohort, Session, Vector
from confide.secagg import Masked, MaskedSums, masked_client
from confide.secagg.masked_terms import (
    CONFIRM,
    KEYS,
    SHARES,
    UNMASK,
    VECTOR,
    Advert,
    Confirmation,
    MaskedVector,
    Parcels,
    Shares,
    Terms,
)
from confide.wire import LATE_TICKS, Fault, MemoryStore, Message, Transcript, decode, delay, encode, lose, run
from conformance.cases import Federation, assert_is_sum, bytes_are_uniform
from secagg.tamper import flip, tamper

UP = (KEYS, SHARES, VECTOR, CONFIRM, UNMASK)
AFTER_VECTOR = (CONFIRM, UNMASK)


def federation(clients: int = 4, quorum: int = 3) -> Federation:
    return Federation(Masked(unsafe_quorum=quorum < 3), clients, quorum)


def all_of(*faults: Fault) -> Fault:
    """Let every message pass through all faults in turn."""

    def fault(message: Message) -> list[tuple[int, Message]]:
        passed = [(0, message)]
        for one in faults:
            passed = [(before + after, m) for before, inner in passed for after, m in one(inner)]
        return passed

    return fault


def sums(parties: Federation, fault: Fault | None = None, number: int = 1) -> tuple[MaskedSums, Transcript]:
    """Run one sum and check its values against the plain sum over the members that it names."""
    session = parties.session(number)
    vectors = parties.vectors(session)
    done = parties.sum(session, vectors, fault)
    output: MaskedSums = done.output("server")
    assert_is_sum(output, parties.aggregator, vectors)
    return output, done


def terms(parties: Federation, session: Session) -> Terms:
    return Terms(session, pinned(parties.stores["server"]), degree=parties.clients - 1, colluding=0)


# --- dropouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "counts"), [(KEYS, False), (SHARES, False), (VECTOR, False), (CONFIRM, True), (UNMASK, True)]
)
def test_every_row_of_the_dropout_table_at_every_position(tag: str, counts: bool) -> None:
    """Whoever left before its vector is out of the sum; whoever left after it is in."""
    parties = federation()
    for number, name in enumerate(parties.cohort.clients):
        output, _ = sums(parties, lose(name, tag=tag), number)
        assert output.members == (frozenset(parties.cohort.clients) - (set() if counts else {name}),)
        assert output.blamed == {}  # silence is no lie


def test_every_pattern_of_two_dropouts_among_five_clients() -> None:
    """Every pair of clients, each leaving at any of the five stages."""
    parties = federation(5, quorum=3)
    number = 0
    for first, second in combinations(parties.cohort.clients, 2):
        for one, two in product(UP, UP):
            number += 1
            output, _ = sums(parties, all_of(lose(first, tag=one), lose(second, tag=two)), number)
            gone = {name for name, tag in ((first, one), (second, two)) if tag not in AFTER_VECTOR}
            assert output.members == (frozenset(parties.cohort.clients) - gone,)


@pytest.mark.parametrize("tag", UP)
def test_exactly_the_quorum_is_enough_and_one_less_is_not(tag: str) -> None:
    parties = federation(5, quorum=3)
    names = parties.cohort.clients
    output, _ = sums(parties, all_of(*(lose(name, tag=tag) for name in names[1:3])), 1)
    assert len(output.members[0]) == (5 if tag in AFTER_VECTOR else 3)
    session = parties.session(2)
    fault = all_of(*(lose(name, tag=tag) for name in names[1:4]))
    done = parties.sum(session, parties.vectors(session), fault)
    assert set(done.failures) == ({"server"} if tag == UNMASK else set(parties.roles))
    with pytest.raises(Aborted, match="quorum=3"):
        done.output("server")
    if tag != UNMASK:
        assert not [message for message in done.messages if message.tag == UNMASK]
        with pytest.raises(Aborted, match="missing: silo-1, silo-2, silo-3"):
            done.output("server")


def test_the_server_does_not_wait_for_more_shares_than_it_needs() -> None:
    output, done = sums(federation(), delay(5, src="silo-0", tag=UNMASK))
    assert len(output.members[0]) == 4
    answers = [event for event in done.events if (event.party, event.tag) == ("server", UNMASK)]
    assert len(answers) == 3


def test_a_quorum_of_one_and_a_cohort_of_one_work() -> None:
    output, _ = sums(federation(3, quorum=1), all_of(lose("silo-0", tag=VECTOR), lose("silo-2", tag=VECTOR)))
    assert output.members == (frozenset({"silo-1"}),)
    output, _ = sums(federation(1, quorum=1))
    assert output.members == (frozenset({"silo-0"}),)


def test_the_next_attempt_succeeds_after_a_lost_quorum() -> None:
    parties = federation(3, quorum=3)
    vectors = parties.vectors(parties.session())
    failed = parties.sum(parties.session(), vectors, lose("silo-1", tag=VECTOR))
    assert isinstance(failed.failures["server"], Aborted)
    done = parties.sum(parties.session(attempt=1), vectors)
    assert_is_sum(done.output("server"), parties.aggregator, vectors)


def late_vector(parties: Federation, number: int) -> tuple[Transcript, Vector, np.ndarray]:
    """Let the vector of silo-1 miss the deadline; return it as sent, and again without its pairwise masks.

    The server has opened the mask seed by then, so it can take every pairwise mask away: here by that very seed.
    """
    session = parties.session(number, length=30_000, bound=(2**32 - 1) // (2 * parties.clients))
    vectors = {name: np.zeros(session.length, np.int64) for name in parties.cohort.clients}
    done = parties.sum(session, vectors, delay(2 * LATE_TICKS, src="silo-1", tag=VECTOR))
    agreed = terms(parties, session)
    bodies = {(m.src, m.tag): m.body for m in done.messages}
    adverts = {name: decode(bodies[name, KEYS], Advert, max_bytes=1 << 20).mask_key for name in parties.cohort.clients}
    answers = {
        parties.cohort.clients.index(name) + 1: decode(bodies[name, UNMASK], Shares, max_bytes=1 << 20).shares["silo-1"]
        for name in ("silo-0", "silo-2", "silo-3")
    }
    seed = lagrange_at_zero(answers)
    key: AgreementKey = agreed.mask_key("silo-1", seed)
    assert key.public == adverts.pop("silo-1")
    words = unpack(decode(bodies["silo-1", VECTOR], MaskedVector, max_bytes=1 << 20).words, 32, session.length).copy()
    sent = words.copy()
    half = np.zeros_like(words)
    agreed.add_pairwise_masks(half, "silo-1", key, adverts)
    return done, sent, words - half


def lagrange_at_zero(points: dict[int, bytes]) -> bytes:
    """Interpolate with plain fractions modulo p, written apart from the code under test."""
    total = 0
    for x, share in points.items():
        term = int.from_bytes(share, "little")
        for other in points:
            if other != x:
                term = term * -other * pow(x - other, -1, PRIME) % PRIME
        total += term
    return (total % PRIME).to_bytes(32, "little")


def test_a_late_vector_is_noise_even_to_a_server_that_opened_its_mask_seed() -> None:
    """The reason for the second mask. The control: with the self mask gone as well, the zeros of the vector show."""
    parties = federation()
    done, sent, unmasked = late_vector(parties, 1)
    assert done.output("server").members == (frozenset({"silo-0", "silo-2", "silo-3"}),)
    assert bytes_are_uniform(sent.tobytes())
    assert bytes_are_uniform(unmasked.tobytes())
    session = parties.session(1, length=30_000, bound=(2**32 - 1) // (2 * parties.clients))
    replayed = SeededRandomness(
        "conformance/silo-1"
    )  # identity, box key, mask seed, self seed: in the order of drawing
    replayed.bytes(64)
    replayed.below(PRIME)
    self_seed = replayed.below(PRIME).to_bytes(32, "little")
    control = unmasked.copy()
    terms(parties, session).add_self_mask(control, "silo-1", self_seed, undo=True)
    assert not control.any()


# --- what the server sees ---------------------------------------------------------------------------------------------


def vector_body(parties: Federation, number: int, value: int) -> np.ndarray:
    session = parties.session(number, length=30_000, bound=(2**32 - 1) // (2 * parties.clients))
    vectors = {name: np.full(session.length, value, np.int64) for name in parties.cohort.clients}
    done = parties.sum(session, vectors)
    body = next(m.body for m in done.messages if m.src == "silo-2" and m.tag == VECTOR)
    return unpack(decode(body, MaskedVector, max_bytes=1 << 20).words, 32, session.length)


def test_the_difference_of_two_masked_vectors_of_one_client_is_uniform() -> None:
    """Each byte of the words by itself, 255 degrees, two-sided, false alarm 2e-6 each; an offset mask would fail."""
    parties = federation()
    difference = vector_body(parties, 1, 0) - vector_body(parties, 2, 0)
    for byte in difference.view(np.uint8).reshape(-1, 4).T:
        assert bytes_are_uniform(byte.tobytes())
    one_scalar_for_all = np.full(30_000, difference[0], np.uint32)
    assert not bytes_are_uniform(one_scalar_for_all.tobytes())


def test_every_residue_of_the_tiniest_ring_occurs_as_often() -> None:
    """One client and bound 1 make the ring of m = 4; chi-square, 3 degrees, two-sided, false alarm 2e-6."""
    parties = federation(1, quorum=1)
    session = parties.session(length=100_000, bound=1)
    assert session.ring_bits == 2
    done = parties.sum(session, {"silo-0": np.ones(session.length, np.int64)})
    body = next(m.body for m in done.messages if m.tag == VECTOR)
    words = unpack(decode(body, MaskedVector, max_bytes=1 << 20).words, 2, session.length)
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=3)
    assert low < stats.chisquare(np.bincount(words, minlength=4)).statistic < high


def test_no_share_of_the_wrong_kind_and_no_two_shares_of_one_client_leave() -> None:
    """Of each client either the self seed or the mask seed can be opened from all that was ever revealed."""
    parties = federation(5, quorum=3)
    _, done = sums(parties, lose("silo-3", tag=VECTOR))
    replies = {m.src: decode(m.body, Shares, max_bytes=1 << 20).shares for m in done.messages if m.tag == UNMASK}
    agreed = terms(parties, parties.session())
    dealt = {m.src: decode(m.body, Parcels, max_bytes=1 << 20).parcels for m in done.messages if m.tag == SHARES}
    for holder, shares in replies.items():
        assert set(shares) == set(parties.cohort.clients)
        for dealer, share in shares.items():
            parcel = dealt[dealer][holder]
            opened_mask = agreed.share_commitment("mask seed", dealer, holder, share) == parcel.of_mask_seed
            opened_self = agreed.share_commitment("self seed", dealer, holder, share) == parcel.of_self_seed
            assert (opened_mask, opened_self) == (dealer == "silo-3", dealer != "silo-3")


# --- the ring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 4, 7, 8, 9, 20, 31, 32, 33, 40, 62, 63, 64])
def test_sums_at_the_edge_of_every_ring_are_exact(bits: int) -> None:
    parties = federation(3, quorum=2)
    bound = (2**bits - 1) // 6
    for number, (sign, lost) in enumerate(product((1, -1), (UNMASK, VECTOR))):
        session = parties.session(number, length=4, bound=bound)
        assert session.ring_bits == bits
        vectors = {name: sign * np.array([bound, bound, 0, 1]) for name in parties.cohort.clients}
        output = parties.sum(session, vectors, lose("silo-0", tag=lost)).output("server")
        count = 3 if lost == UNMASK else 2
        assert output.values.tolist() == [[sign * count * bound, sign * count * bound, 0, sign * count]]


def test_a_bound_of_zero_needs_no_more_than_one_bit() -> None:
    parties = federation()
    session = parties.session(bound=0)
    output = parties.sum(session, dict.fromkeys(parties.cohort.clients, np.zeros(12, np.int64))).output("server")
    assert not output.values.any()


def test_a_ring_wider_than_a_word_is_refused() -> None:
    parties = federation(3)
    session = parties.session(bound=2**62)
    for name in parties.roles:
        with pytest.raises(UsageError, match="lower the bound"):
            parties.party(name, session, {name: np.zeros(12, np.int64)})


def test_the_wire_carries_exactly_the_bits_of_the_ring() -> None:
    """50 clients' 22-bit ring costs 2.75 bytes per value; everything else is a few bytes per peer."""
    parties = federation()
    session = parties.session(length=8000, bound=2**18)
    assert session.ring_bits == 22
    done = parties.sum(session, parties.vectors(session))
    sizes = {m.tag: len(m.body) for m in done.messages if m.src == "silo-0"}
    assert sizes[VECTOR] - 8000 * 22 // 8 in range(40)
    assert sum(sizes.values()) - sizes[VECTOR] < 200 * (parties.clients + 3)
    assert done.depth == 9


# --- lying clients ----------------------------------------------------------------------------------------------------


def low_order(advert: Advert) -> Advert:
    return replace(advert, mask_key=bytes(32))


def only_three(parcels: Parcels) -> Parcels:
    return Parcels(dict(list(parcels.parcels.items())[:3]))


def short_box(parcels: Parcels) -> Parcels:
    return Parcels({name: replace(parcel, box=parcel.box[:-1]) for name, parcel in parcels.parcels.items()})


def short_commitment(parcels: Parcels) -> Parcels:
    return Parcels({name: replace(parcel, of_mask_seed=b"") for name, parcel in parcels.parcels.items()})


def renamed(parcels: Parcels) -> Parcels:
    return Parcels({name.replace("3", "9"): parcel for name, parcel in parcels.parcels.items()})


def shorter(vector: MaskedVector) -> MaskedVector:
    return replace(vector, words=vector.words[:-4])


LIES: list[tuple[str, Callable[[Any], Any]]] = [
    (KEYS, low_order),
    (KEYS, lambda advert: replace(advert, box_key=b"short")),
    (KEYS, lambda advert: replace(advert, signature=flip(advert.signature))),
    (KEYS, lambda advert: replace(advert, commitment=flip(advert.commitment))),
    (KEYS, lambda advert: replace(advert, box_key=AgreementKey(b"\7" * 32).public)),
    (SHARES, only_three),
    (SHARES, short_box),
    (SHARES, short_commitment),
    (SHARES, renamed),
    (VECTOR, shorter),
    (VECTOR, lambda vector: replace(vector, words=vector.words + b"\0")),
]


def damaged_confirmation(confirmation: Confirmation) -> Confirmation:
    return Confirmation(flip(confirmation.signature))


def test_a_confirmation_of_another_view_counts_for_nothing_and_is_named() -> None:
    output, done = sums(federation(), tamper(CONFIRM, damaged_confirmation, src="silo-1"))
    assert len(output.members[0]) == 4
    assert list(output.blamed) == ["silo-1"]
    assert not [m for m in done.messages if (m.src, m.tag) == ("silo-1", UNMASK)]


@pytest.mark.parametrize(("tag", "lie"), LIES)
def test_a_malformed_message_makes_its_sender_a_named_dropout(tag: str, lie: Callable[[Any], Any]) -> None:
    output, _ = sums(federation(), tamper(tag, lie, src="silo-1"))
    assert output.members == (frozenset({"silo-0", "silo-2", "silo-3"}),)
    assert list(output.blamed) == ["silo-1"]
    assert tag in output.blamed["silo-1"]


def test_bodies_larger_than_any_honest_one_are_refused_unread() -> None:
    parties = federation()
    for number, tag in enumerate(UP):
        padding = [(0, Message("silo-1", "server", tag, encode(MaskedVector(bytes(100_000), b""))))]
        output, _ = sums(
            parties, lambda m, t=tag, p=padding: p if (m.src, m.tag) == ("silo-1", t) else [(0, m)], number
        )
        assert list(output.blamed) == ["silo-1"]
        assert "at most" in output.blamed["silo-1"]


def test_clients_that_advertise_one_key_are_both_out() -> None:
    parties = federation(5, quorum=3)
    parties.rngs["silo-1"] = SeededRandomness("cloned machine")
    parties.rngs["silo-3"] = SeededRandomness("cloned machine")
    output, _ = sums(parties)
    assert output.members == (frozenset({"silo-0", "silo-2", "silo-4"}),)
    assert set(output.blamed) == {"silo-1", "silo-3"}


def test_a_client_whose_two_keys_are_one_is_out() -> None:
    parties = federation()
    agreed = terms(parties, parties.session())
    signer = identity(parties.stores["silo-1"])

    def twice(advert: Advert) -> Advert:
        signature = signer.sign(agreed.signed("silo-1", advert.box_key, advert.box_key, advert.commitment))
        return replace(advert, mask_key=advert.box_key, signature=signature)

    output, _ = sums(parties, tamper(KEYS, twice, src="silo-1"))
    assert output.members == (frozenset({"silo-0", "silo-2", "silo-3"}),)
    assert list(output.blamed) == ["silo-1"]


def wrong_share(shares: Shares) -> Shares:
    return Shares(shares.shares | {"silo-2": flip(shares.shares["silo-2"])})


@pytest.mark.parametrize("lost", [None, "silo-2"])
def test_a_wrong_share_is_caught_and_its_sender_named(lost: str | None) -> None:
    fault = lose(lost, tag=VECTOR) if lost else None
    lie = tamper(UNMASK, wrong_share, src="silo-0")
    output, _ = sums(federation(5, quorum=3), all_of(fault, lie) if fault else lie)
    seed = "mask seed" if lost else "self seed"
    assert output.blamed == {"silo-0": f"answered with a wrong share of silo-2's {seed}"}
    assert len(output.members[0]) == (4 if lost else 5)


def test_a_wrong_share_of_the_client_s_own_seed_is_caught_as_well() -> None:
    output, _ = sums(federation(5, quorum=3), tamper(UNMASK, wrong_share, src="silo-2"))
    assert list(output.blamed) == ["silo-2"]


def test_a_wrong_share_at_the_exact_quorum_ends_the_sum_and_names_the_liar() -> None:
    parties = federation(3, quorum=3)
    done = parties.sum(parties.session(), parties.vectors(parties.session()), tamper(UNMASK, wrong_share, src="silo-0"))
    with pytest.raises(Aborted, match="silo-0 answered with a wrong share of silo-2's self seed"):
        done.output("server")


@pytest.mark.parametrize(
    "lie",
    [
        lambda shares: Shares(shares.shares | {"stranger": bytes(32)}),
        lambda shares: Shares(shares.shares | {"silo-1": b"short"}),
        lambda shares: Shares({name: bytes(32) for name in shares.shares}),
    ],
)
def test_answers_with_strangers_or_nonsense_do_not_spoil_the_sum(lie: Callable[[Shares], Shares]) -> None:
    output, _ = sums(federation(), tamper(UNMASK, lie, src="silo-0"))
    assert list(output.blamed) == ["silo-0"]


def damaged(parcels: Parcels) -> Parcels:
    return Parcels({name: replace(parcel, box=flip(parcel.box)) for name, parcel in parcels.parcels.items()})


def foreign_commitments(parcels: Parcels) -> Parcels:
    return Parcels({name: replace(parcel, of_self_seed=bytes(32)) for name, parcel in parcels.parcels.items()})


@pytest.mark.parametrize("lie", [damaged, foreign_commitments])
def test_a_dealer_whose_parcels_do_not_hold_is_named_by_their_receivers(lie: Callable[[Parcels], Parcels]) -> None:
    parties = federation()
    done = parties.sum(parties.session(), parties.vectors(parties.session()), tamper(SHARES, lie, src="silo-1"))
    with pytest.raises(
        Aborted, match=r"shares of silo-1's self seed, got 0.*silo-1 dealt silo-0 a parcel that did not"
    ):
        done.output("server")


def test_one_damaged_parcel_costs_nothing_but_a_share() -> None:
    def damage(parcels: Parcels) -> Parcels:
        one = parcels.parcels["silo-0"]
        return Parcels(parcels.parcels | {"silo-0": replace(one, box=flip(one.box, 40))})

    output, _ = sums(federation(), tamper(SHARES, damage, src="silo-1"))
    assert len(output.members[0]) == 4
    assert output.blamed == {"silo-1": "dealt silo-0 a parcel that did not hold, as silo-0 says"}


@pytest.mark.parametrize("garbage", [bytes(32), b"\xff" * 32])
@pytest.mark.parametrize("lost", [True, False])
def test_a_dealer_of_shares_that_open_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, garbage: bytes, lost: bool
) -> None:
    """The boxes open and the commitments agree: only the commitment to the seed itself tells. One share is no integer
    below p, the other makes another seed."""
    parties = federation(5, quorum=3)
    honest = masked_client.split

    def lying(secret: bytes, *, threshold: int, indices: list[int], rng: SeededRandomness) -> list[bytes]:
        shares = honest(secret, threshold=threshold, indices=indices, rng=rng)
        return [garbage] * len(shares) if rng is parties.rngs["silo-3"] else shares

    monkeypatch.setattr(masked_client, "split", lying)
    fault = lose("silo-3", tag=VECTOR) if lost else None
    done = parties.sum(parties.session(), parties.vectors(parties.session()), fault)
    seed = "mask seed" if lost else "self seed"
    with pytest.raises(Aborted, match=f"silo-3 dealt shares that do not open its {seed}"):
        done.output("server")


def test_a_vector_beyond_its_bound_is_a_failed_sum_and_no_silent_number() -> None:
    parties = federation()
    session = parties.session(bound=10)
    zeros = dict.fromkeys(parties.cohort.clients, np.zeros(session.length, np.int64))
    half = 1 << (session.ring_bits - 1)  # the first word moves by half of the ring: no honest sum lies there
    top = tamper(
        VECTOR, lambda vector: replace(vector, words=bytes([vector.words[0] ^ half]) + vector.words[1:]), src="silo-1"
    )
    with pytest.raises(Aborted, match="broke its bound"):
        parties.sum(session, zeros, top).output("server")


def test_a_client_of_another_model_is_left_out_by_name() -> None:
    """The model's hash is in the context, and every signature is over the context."""
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    clients = parties.parties(session, vectors)
    crafted = Session("run", 1, parties.cohort, 12, 1000, 0, model_hash=b"\1" * 32)
    clients["silo-2"] = parties.party("silo-2", crafted, vectors)
    done = run(clients, stores=parties.stores)
    output = done.output("server")
    assert output.members == (frozenset({"silo-0", "silo-1", "silo-3"}),)
    assert "pinned identity" in output.blamed["silo-2"]


# --- cohorts and misuse -----------------------------------------------------------------------------------------------


def test_a_cohort_may_be_part_of_the_roster_in_another_order() -> None:
    parties = federation(5, quorum=2)
    parties.cohort = Cohort(("silo-4", "silo-0", "silo-2"), quorum=2)
    parties.roles = {"server": "server"} | dict.fromkeys(parties.cohort.clients, "client")
    output, _ = sums(parties, lose("silo-0", tag=VECTOR))
    assert output.members == (frozenset({"silo-4", "silo-2"}),)


def test_a_cohort_with_a_stranger_is_refused_by_everybody() -> None:
    parties = federation()
    session = Session("run", 1, Cohort((*parties.cohort.clients, "stranger"), 3), 4, 10)
    for name in parties.roles:
        with pytest.raises(UsageError, match="not stranger; run setup with them"):
            parties.party(name, session, {name: np.zeros(4, np.int64)})


def test_parties_without_set_up_are_refused() -> None:
    parties = federation()
    session = parties.session()
    for name in parties.roles:
        parties.stores[name] = MemoryStore()  # type: ignore[assignment]
        with pytest.raises(UsageError, match="run the aggregator's setup first"):
            parties.party(name, session, parties.vectors(session))


def test_unknown_roles_strangers_and_missing_vectors_are_refused() -> None:
    parties, masked = federation(), Masked()
    session, rng = parties.session(), SeededRandomness("misuse")
    store = parties.stores["silo-0"]
    with pytest.raises(UsageError, match="role=auditor"):
        masked.party("auditor", "silo-0", session, None, store, rng)
    with pytest.raises(UsageError, match="me=nobody"):
        masked.setup("client", "nobody", parties.cohort, store, rng)
    with pytest.raises(UsageError, match="Expected a vector"):
        masked.party("client", "silo-0", session, None, store, rng)


def test_the_guarantee_claims_no_more_than_it_holds() -> None:
    guarantee = Masked.guarantee
    assert guarantee.adversary is Adversary.MALICIOUS
    assert guarantee.hides("update", "server")
    assert not guarantee.post_quantum
    assert not guarantee.verified_result
    assert any("2 * quorum - clients - 1" in sentence for sentence in guarantee.sentences())


# --- which quorum is enough -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clients", "quorum", "colluding", "enough"),
    [
        (3, 3, 0, True),
        (4, 3, 0, True),
        (4, 3, 1, True),
        (4, 3, 2, False),
        (5, 3, 0, True),
        (5, 3, 1, False),
        (6, 3, 0, False),
        (6, 4, 0, True),
        (50, 30, 9, True),
        (50, 30, 10, False),
        (3, 2, 0, False),
        (2, 2, 0, False),
        (1, 1, 0, False),
        (4, 4, 4, False),
    ],
)
def test_every_party_refuses_a_quorum_that_two_stories_can_reach_or_a_sum_of_two(
    clients: int, quorum: int, colluding: int, enough: bool
) -> None:
    """2 t > n + c and t >= 3, written out by hand in the table."""
    parties = federation(clients, quorum)
    parties.aggregator = Masked(colluding=colluding)
    session = parties.session()
    for name in parties.roles:
        if enough:
            parties.party(name, session, parties.vectors(session))
        else:
            with pytest.raises(UsageError, match=rf"quorum={quorum} of clients={clients} with colluding={colluding}"):
                parties.party(name, session, parties.vectors(session))


def test_an_unsafe_quorum_says_so_in_its_guarantee() -> None:
    guarantee = Masked(unsafe_quorum=True).guarantee
    assert guarantee.adversary is Adversary.SEMI_HONEST
    assert any("all clients but quorum - 1" in sentence for sentence in guarantee.sentences())
    with pytest.raises(UsageError, match="colluding=-1"):
        Masked(colluding=-1)
