"""Shares with a norm bound: honest clients pass, long vectors and every lie about them are left out and named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy import stats

from confide.cohort import roster
from confide.crypto.keys import AgreementKey, commit, label
from confide.crypto.projection import project
from confide.crypto.random import SeededRandomness
from confide.crypto.ring import add_words, pack
from confide.errors import Aborted, ProtocolError, UsageError
from confide.ideal import Cohort, Session
from confide.secagg import NormBound, Shares, norm_check
from confide.secagg.norm_check import Evidence, NormCheck, Opening
from confide.secagg.norm_proof import PRIME, Point, pack_elements, subtract, unpack_elements
from confide.secagg.shares_terms import HELPER_SEED, MASKS, POINT_SEED, RECEIVED, UPLOAD, Masks, Received, Terms, Upload
from confide.wire import Fault, MemoryStore, Message, alter, decode, encode, run
from conformance.cases import Federation, assert_is_sum, bytes_are_uniform
from secagg.tamper import flip

NORM, LENGTH, LIAR = 1000, 40, "silo-2"
BOUND = NormBound(NORM)
MODULUS = 1 << BOUND.ring_bits
FAILED, MALFORMED = "beyond norm_bound", "malformed"


def federation(bound: NormBound | int = NORM, clients: int = 5) -> Federation:
    return Federation(Shares(norm_bound=bound), clients, 3)


def honest(parties: Federation, session: Session) -> dict[str, np.ndarray]:
    """Return vectors of exactly the bound's norm: 600 and 800 at two places of each."""
    vectors = {name: np.zeros(session.length, np.int64) for name in parties.cohort.clients}
    for place, vector in enumerate(vectors.values()):
        vector[place], vector[-1 - place] = 3 * NORM // 5, -4 * NORM // 5
    return vectors


def change(tag: str, kind: type, edit: Callable, *, src: str | None = None) -> Fault:
    return alter(lambda body: encode(edit(decode(body, kind, max_bytes=1 << 30))), src=src, tag=tag)


def left_out(parties: Federation, fault: Fault, why: str, number: int = 1) -> None:
    """Check that under `fault` the sum is that of all but the liar, who is named, and nobody else."""
    session = parties.session(number, length=LENGTH)
    vectors = honest(parties, session)
    sums = parties.sum(session, vectors, fault).output("server")
    assert assert_is_sum(sums, parties.aggregator, vectors) == frozenset(vectors) - {LIAR}
    assert set(sums.blamed) == {LIAR}
    assert why in sums.blamed[LIAR]


# --- a client that lies as well as it can -----------------------------------------------------------------------------


def same(values: list[int]) -> list[int]:
    return values


@dataclass(frozen=True)
class Lie:
    """How a forged upload differs from an honest one; each function gets the values themselves, not shares.

    Args:
        carries: of the carries, given them and the sums a + b.
        slack: of the slack's bits, given them, what T - sum z^2 really is, and the weights that a client would know
            in advance if they did not depend on its inputs.
        proof: of the elements of the proof.
        evidence: of what is sent, before the client signs it.
    """

    carries: Callable[[list[int], list[int]], list[int]] = lambda carries, _: carries
    slack: Callable[[list[int], int, list[int]], list[int]] = lambda bits, *_: bits
    proof: Callable[[list[int]], list[int]] = field(default=same)
    evidence: Callable[[Evidence], Evidence] = lambda evidence: evidence


def forged(parties: Federation, session: Session, vector: np.ndarray, lie: Lie, name: str = LIAR) -> Upload:
    """Return what `name` sends about `vector`, whatever its norm: all of its own computations are free to lie."""
    terms = Terms(session, parties.stores[name], parties.aggregator._bound)
    norm, rng = terms.norm, SeededRandomness(f"forged/{name}/{session.round}")
    seed, blind, mask = rng.bytes(32), rng.bytes(32), np.zeros(session.length, terms.dtype)
    terms.add_share(mask, name, seed)
    words = vector.astype(terms.dtype)
    add_words(words, mask, negate=True)
    packed = pack(words, terms.bits)
    words_digest, seed_digest = norm._words_digest(name, blind, packed), norm._seed_digest(name, seed)
    projection, modulus = norm._projection(name, words_digest, seed_digest), norm._modulus
    shares = project(projection, [words, mask], norm.bound.rows)
    sums = [a + b for a, b in zip(norm._main(shares[0]), norm._helper(shares[1]), strict=True)]
    carries = lie.carries([int(value >= modulus) for value in sums], sums)
    z = [value - modulus * carry - modulus // 2 for value, carry in zip(sums, carries, strict=True)]
    slack = (norm.bound.threshold - sum(value * value for value in z)) % PRIME
    ahead = norm._weights(projection, b"")[norm.bound.rows :]
    inputs = carries + lie.slack([slack >> bit & 1 for bit in range(norm._slack_bits)], slack, ahead)
    own = pack_elements(subtract(inputs, norm._helper_inputs(name, seed)))
    inputs_digest = norm._inputs_digest(name, blind, own)
    u, v, _ = norm._statement(inputs, sums, norm._weights(projection, inputs_digest), leads=True)
    masks = [rng.below(PRIME) for _ in range(norm._proofs.masks)]
    proof = lie.proof(norm._proofs.prove(u, v, masks))
    evidence = Evidence(blind, seed_digest, own, pack_elements(subtract(proof, norm._helper_proof(name, seed))))
    evidence = lie.evidence(evidence)
    signed = norm.claims(name, packed, evidence).signed
    return Upload(
        terms.seal_seed(name, seed, roster.identity(parties.stores[name]), rng, signed=signed), packed, evidence
    )


def sends(upload: Upload) -> Fault:
    return alter(lambda _: encode(upload), src=LIAR, tag=UPLOAD)


def try_on(vector: np.ndarray, lie: Lie, why: str = FAILED, bound: NormBound | int = NORM) -> None:
    parties = federation(bound)
    left_out(parties, sends(forged(parties, parties.session(length=LENGTH), vector, lie)), why)


def one_long() -> np.ndarray:
    vector = np.zeros(LENGTH, np.int64)
    vector[3] = 3 * NORM
    return vector


LONG = {
    "at the ratio, one coordinate": np.eye(1, LENGTH, 5, dtype=np.int64)[0] * (5 * NORM // 2),
    "at the ratio, spread": np.full(LENGTH, 396),
    "scaled": honest(federation(), federation().session(length=LENGTH))[LIAR] * -3,
    "half the ring": np.eye(1, LENGTH, 5, dtype=np.int64)[0] * (MODULUS // 2),
    "half the ring everywhere": np.full(LENGTH, MODULUS // 2),
    "quarters": np.full(LENGTH, MODULUS // 4),
    "thirds of both signs": np.resize([MODULUS // 3, -MODULUS // 3], LENGTH),
    "two that cancel": np.resize([MODULUS // 2 - 1, 0, 0, 1 - MODULUS // 2], LENGTH),
    "many that wrap": np.arange(LENGTH) * 7919 % MODULUS,
}


@pytest.mark.parametrize("vector", LONG.values(), ids=LONG)
def test_long_vectors_are_left_out_and_named(vector: np.ndarray) -> None:
    try_on(vector.astype(np.int64), Lie())


def test_a_forged_upload_about_an_honest_vector_passes() -> None:
    """The control of all the others: the forger computes as the protocol does."""
    parties = federation()
    session = parties.session(length=LENGTH)
    vectors = honest(parties, session)
    fault = sends(forged(parties, session, vectors[LIAR], Lie()))
    sums = parties.sum(session, vectors, fault).output("server")
    assert assert_is_sum(sums, parties.aggregator, vectors) == frozenset(vectors)
    assert sums.blamed == {}


def to_zero(_: list[int], sums: list[int]) -> list[int]:
    """Return carries that are no bits and make every z zero over the field."""
    return [(value - MODULUS // 2) * pow(MODULUS, -1, PRIME) % PRIME for value in sums]


def as_one_element(place: int) -> Callable[[list[int], int, list[int]], list[int]]:
    """Return a lie that puts the whole slack, whatever its sign, into one element that is no bit."""

    def lie(bits: list[int], slack: int, _: list[int]) -> list[int]:
        chosen = place % len(bits)
        return [slack * pow(2, -chosen, PRIME) % PRIME if at == chosen else 0 for at in range(len(bits))]

    return lie


def solved(bits: list[int], slack: int, ahead: list[int]) -> list[int]:
    """Return a slack whose lie about one bit cancels its lie about the sum, if `ahead` are the weights that will hold.

    With e in place of bit i: weight (e^2 - e) + 2^i e - slack = 0, a quadratic equation modulo p = 3 mod 4.
    """
    for place, weight in enumerate(ahead):
        half = (2**place - weight) * pow(2 * weight, -1, PRIME) % PRIME
        square = (half * half + slack * pow(weight, -1, PRIME)) % PRIME
        root = pow(square, (PRIME + 1) // 4, PRIME)
        if root * root % PRIME == square:
            return [(root - half) % PRIME if at == place else 0 for at in range(len(bits))]
    raise AssertionError("no weight had a solution")


def bumped(values: list[int], place: int) -> list[int]:
    return [*values[:place], (values[place] + 1) % PRIME, *values[place + 1 :]]


HIDDEN = {
    "carries that are no bits": Lie(carries=to_zero),
    "a slack that is no bits": Lie(slack=as_one_element(0)),
    "a slack that is one highest bit": Lie(slack=as_one_element(-1)),
    "a slack that solves for weights known ahead": Lie(slack=solved),
    "carries of two": Lie(carries=lambda carries, _: [2 * carry for carry in carries]),
    "no carries": Lie(carries=lambda carries, _: [0] * len(carries)),
    "no slack": Lie(slack=lambda bits, *_: [0] * len(bits)),
}


@pytest.mark.parametrize("lie", HIDDEN.values(), ids=HIDDEN)
def test_lies_that_shorten_a_long_vector_are_left_out_and_named(lie: Lie) -> None:
    try_on(one_long(), lie)


@pytest.mark.parametrize("name", ["carries that are no bits", "a slack that is no bits"])
def test_without_the_check_of_bits_the_same_lies_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: servers that weight the lines of bits with zero take 3 B for B, so the tests above do catch it."""
    monkeypatch.setattr(NormCheck, "_weights", lambda self, *_: [0] * self._inputs)
    with pytest.raises(AssertionError):
        try_on(one_long(), HIDDEN[name])


def test_with_weights_that_ignore_the_inputs_the_solved_lie_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a client that knows rho before it chooses its bits chooses them to fit."""
    weights = NormCheck._weights
    monkeypatch.setattr(NormCheck, "_weights", lambda self, projection, _: weights(self, projection, b""))
    with pytest.raises(AssertionError):
        try_on(one_long(), HIDDEN["a slack that solves for weights known ahead"])


@pytest.mark.parametrize("place", [0, 1, 159, 318, 319])
def test_every_carry_must_be_a_bit(place: int) -> None:
    """One carry makes one z zero; everything else is honest, and the slack is the right one."""

    def one_to_zero(carries: list[int], sums: list[int]) -> list[int]:
        return [*carries[:place], to_zero(carries, sums)[place], *carries[place + 1 :]]

    try_on(np.full(LENGTH, 7), Lie(carries=one_to_zero))


@pytest.mark.parametrize("place", [0, 1, 14, -2, -1])
def test_every_bit_of_the_slack_must_be_one(place: int) -> None:
    try_on(np.full(LENGTH, 7), Lie(slack=as_one_element(place)))


@pytest.mark.parametrize("place", [0, 1, 27, 53, 54, 55, -1])
def test_a_changed_proof_of_an_honest_vector_is_left_out(place: int) -> None:
    vector = np.full(LENGTH, 7)
    try_on(vector, Lie(proof=lambda proof: bumped(proof, place % len(proof))))


def test_changed_inputs_of_an_honest_vector_are_left_out() -> None:
    vector = np.full(LENGTH, 7)
    try_on(vector, Lie(slack=lambda bits, *_: [1 - bits[0], *bits[1:]]))
    try_on(vector, Lie(carries=lambda carries, _: [1 - carries[0], *carries[1:]]))


def test_a_client_cannot_choose_the_main_server_s_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another digest of the seed would give the two servers different rows, one set of them the client's choice.

    The digest itself is compared: the client is left out even where every proof holds.
    """
    monkeypatch.setattr(Point, "holds", lambda *_: True)
    with pytest.raises(AssertionError):
        try_on(one_long(), Lie())  # the control: without proofs a long vector passes
    try_on(np.full(LENGTH, 7), Lie(evidence=lambda evidence: replace(evidence, seed_digest=bytes(32))))


@pytest.mark.parametrize(
    "edit",
    [
        lambda evidence: replace(evidence, blind=b"short"),
        lambda evidence: replace(evidence, seed_digest=bytes(31)),
        lambda evidence: replace(evidence, inputs=evidence.inputs[16:]),
        lambda evidence: replace(evidence, proof=evidence.proof + bytes(16)),
        lambda evidence: replace(evidence, proof=PRIME.to_bytes(16, "little") + evidence.proof[16:]),
    ],
    ids=["blind", "digest", "inputs", "proof", "not reduced"],
)
def test_malformed_evidence_is_left_out_and_named(edit: Callable[[Evidence], Evidence]) -> None:
    try_on(np.full(LENGTH, 7), Lie(evidence=edit), MALFORMED)


def test_a_toy_check_is_fooled_as_often_as_coins_fall_and_proofs_add_nothing() -> None:
    """Sixteen rows: 2.5 B in one coordinate passes if at most three rows hit it, by the binomial law; 400 uploads.

    Whoever the projections let pass is accepted, everybody else is refused whatever the slack says. A false alarm has
    probability 1e-6; the control is the law for 2 B.
    """
    toy, passed = NormBound(NORM, rows=16, excess_percent=200), 0
    norm, mask_of = NormCheck(bytes(32), toy, toy.ring_bits), np.random.default_rng(1)
    vector = np.zeros(LENGTH, np.uint32)
    vector[3] = 5 * NORM // 2
    point = norm.draw_point(bytes(32))
    for number in range(400):
        mask = mask_of.integers(0, 2**32, LENGTH, dtype=np.uint32)
        words, seed = vector - mask, number.to_bytes(32, "little")
        packed = pack(words, toy.ring_bits)
        proved = norm.prove("a", seed, words, packed, mask, SeededRandomness(f"toy/{number}"))
        if proved is not None:
            passed += 1
            opening = norm.open("a", words, proved[0], norm.claims("a", packed, proved[0]), point)
            assert norm.accepts("a", seed, mask, opening, point)
    law = stats.binom.cdf(3, 16, 0.5)
    assert law < 2.0**-toy.soundness_bits
    assert stats.binomtest(passed, 400, law).pvalue > 1e-6
    assert stats.binomtest(passed, 400, stats.binom.cdf(6, 16, 0.5)).pvalue < 1e-6


# --- what others sent -------------------------------------------------------------------------------------------------


def test_evidence_of_another_client_or_session_does_not_fit() -> None:
    parties = federation()
    earlier = parties.session(1, length=LENGTH)
    first = parties.sum(earlier, honest(parties, earlier))
    uploads = {m.src: decode(m.body, Upload, max_bytes=1 << 20) for m in first.messages if m.tag == UPLOAD}
    left_out(parties, sends(uploads[LIAR]), MALFORMED, 2)  # a replay: signed for another session
    left_out(parties, sends(uploads["silo-1"]), MALFORMED, 3)  # signed by somebody else
    for number, src in ((4, LIAR), (5, "silo-1")):  # signed anew, the proof is about another vector
        session = parties.session(number, length=LENGTH)
        stolen = uploads[src].evidence
        lie = Lie(evidence=lambda own, stolen=stolen: replace(stolen, seed_digest=own.seed_digest))
        left_out(parties, sends(forged(parties, session, one_long(), lie)), FAILED, number)


@pytest.mark.parametrize("part", ["words", "blind", "seed_digest", "inputs"])
def test_what_the_network_changed_is_not_what_the_client_signed(part: str) -> None:
    def edit(upload: Upload) -> Upload:
        if part == "words":
            return replace(upload, words=flip(upload.words, 5))
        return replace(upload, evidence=replace(upload.evidence, **{part: flip(getattr(upload.evidence, part), 5)}))

    left_out(federation(), change(UPLOAD, Upload, edit, src=LIAR), MALFORMED)


def test_evidence_comes_with_a_bound_and_only_then() -> None:
    left_out(federation(), change(UPLOAD, Upload, lambda body: replace(body, evidence=None), src=LIAR), MALFORMED)
    plain = Federation(Shares(), 5, 3)
    session = plain.session(length=LENGTH)
    vectors = honest(plain, session)
    extra = Evidence(b"", b"", b"", b"")
    fault = change(UPLOAD, Upload, lambda body: replace(body, evidence=extra), src=LIAR)
    assert LIAR in plain.sum(session, vectors, fault).output("server").blamed


def test_a_box_that_does_not_open_is_named() -> None:
    parties = federation()
    session = parties.session(length=LENGTH)
    store = parties.stores[LIAR]
    terms = Terms(session, store, BOUND)
    terms.helper_key = bytes([9]) + bytes(31)
    upload = forged(parties, session, np.full(LENGTH, 7), Lie())
    signed = terms.norm.claims(LIAR, upload.words, upload.evidence).signed
    parcel = terms.seal_seed(LIAR, bytes(32), roster.identity(store), SeededRandomness("box"), signed=signed)
    left_out(parties, sends(replace(upload, parcel=parcel)), "cannot open")


def test_too_few_that_pass_are_no_sum() -> None:
    parties = federation(clients=3)
    session = parties.session(length=LENGTH)
    done = parties.sum(session, honest(parties, session), sends(forged(parties, session, one_long(), Lie())))
    assert isinstance(done.failures["helper"], Aborted)
    assert isinstance(done.failures["server"], Aborted)
    assert not [message for message in done.messages if message.tag == MASKS]


# --- honest clients ---------------------------------------------------------------------------------------------------


@given(data=st.data(), norm=st.sampled_from([1, 5, NORM, 10**7, 2**45]), length=st.integers(1, 30))
@settings(max_examples=25)
def test_honest_vectors_pass_and_the_sum_is_exact(data: st.DataObject, norm: int, length: int) -> None:
    parties = federation(norm, 3)
    session = parties.session(length=length, bound=norm)
    each = int(norm / length**0.5)
    values = st.lists(st.sampled_from([each, -each, 0, each // 2]), min_size=length, max_size=length)
    vectors = {name: np.array(data.draw(values), np.int64) for name in parties.cohort.clients}
    vectors["silo-0"][:] = 0
    vectors["silo-0"][-1] = -norm
    sums = parties.sum(session, vectors).output("server")
    assert assert_is_sum(sums, parties.aggregator, vectors) == frozenset(vectors)
    assert sums.blamed == {}


def test_an_honest_client_draws_again_until_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    parties, draws = federation(NormBound(NORM, rows=16, excess_percent=1)), []
    prove = NormCheck.prove

    def counted(self, *args):
        draws.append(prove(self, *args))
        return draws[-1]

    monkeypatch.setattr(NormCheck, "prove", counted)
    for number in range(1, 5):
        session = parties.session(number, length=LENGTH)
        vectors = honest(parties, session)
        sums = parties.sum(session, vectors).output("server")
        assert assert_is_sum(sums, parties.aggregator, vectors) == frozenset(vectors)
    assert len(draws) > 20  # 20 uploads; about every second draw is too long
    assert sum(draw is None for draw in draws) == len(draws) - 20


def test_a_client_s_own_vector_beyond_the_bound_is_refused() -> None:
    parties = federation()
    session = parties.session(length=LENGTH, bound=2**40)
    for vector in (one_long(), np.full(LENGTH, 159), np.full(LENGTH, -(2**40))):
        with pytest.raises(UsageError, match="norm_bound=1000"):
            parties.party("silo-0", session, {"silo-0": vector})
    assert parties.party("silo-0", session, {"silo-0": np.full(LENGTH, 158)})


def test_long_names_fit() -> None:
    """A name stands in the helper's request twice, with its parcel and with its opening."""
    parties = federation()
    parties.cohort = Cohort(tuple(f"{number}-" + "n" * 250 for number in range(4)), 3)
    parties.roles = parties.cohort.parties(Shares.roles)
    parties.stores = {name: MemoryStore() for name in parties.roles}
    parties.rngs = {name: SeededRandomness(name) for name in parties.roles}
    setup = {
        name: parties.aggregator.setup(role, name, parties.cohort, parties.stores[name], parties.rngs[name])
        for name, role in parties.roles.items()
    }
    run(setup, stores=parties.stores)
    session = parties.session(length=LENGTH)
    vectors = honest(parties, session)
    sums = parties.sum(session, vectors).output("server")
    assert assert_is_sum(sums, parties.aggregator, vectors) == frozenset(vectors)


# --- set-up and terms -------------------------------------------------------------------------------------------------


def test_rings_are_widened_for_the_bound_and_refused_beyond_the_field() -> None:
    parties = federation()
    store = parties.stores["silo-0"]
    narrow, wide = parties.session(bound=1), parties.session(bound=2**53)
    assert Terms(narrow, store).bits < Terms(narrow, store, BOUND).bits == BOUND.ring_bits
    assert Terms(wide, store, BOUND).bits == Terms(wide, store).bits == 57
    with pytest.raises(UsageError, match="field of 127 bits"):
        Terms(parties.session(bound=2**55), store, BOUND)
    with pytest.raises(UsageError, match="norm_bound"):
        Shares(norm_bound=2**55)
    with pytest.raises(UsageError, match="ring"):
        NormCheck(bytes(32), BOUND, BOUND.ring_bits - 1)


def test_nothing_wraps_in_the_field_at_the_widest_ring() -> None:
    widest = next(bits for bits in range(64, 0, -1) if fits(bits))
    assert widest == 58
    assert BOUND.rows * (3 * 2**widest // 2) ** 2 + 2 * BOUND.threshold < PRIME


def fits(bits: int) -> bool:
    try:
        return bool(NormCheck(bytes(32), BOUND, bits))
    except UsageError:
        return False


def test_parties_with_different_bounds_have_no_sum() -> None:
    parties = federation()
    session = parties.session(length=LENGTH)
    vectors = honest(parties, session)
    built = parties.parties(session, vectors)
    built[LIAR] = Shares(norm_bound=NORM + 1).party(
        "client", LIAR, session, vectors[LIAR], parties.stores[LIAR], parties.rngs[LIAR]
    )
    sums = run(built, stores=parties.stores).output("server")
    assert set(sums.blamed) == {LIAR}


def test_a_server_that_was_set_up_without_bounds_says_so() -> None:
    parties = federation()
    parties.stores["server"].commit({POINT_SEED: None})
    with pytest.raises(UsageError, match="setup again"):
        parties.party("server", parties.session(), {})


def test_set_up_again_keeps_the_point() -> None:
    parties = federation()
    before = parties.stores["server"].get(POINT_SEED)
    built = {
        name: parties.aggregator.setup(role, name, parties.cohort, parties.stores[name], SeededRandomness(name))
        for name, role in parties.roles.items()
    }
    assert run(built, stores=parties.stores).outputs == parties.setup.outputs
    assert parties.stores["server"].get(POINT_SEED) == before
    assert Federation(Shares(), 3, 3).stores["server"].get(POINT_SEED) is None


def test_the_guarantee_states_what_is_checked_in_numbers_that_are_computed() -> None:
    bounded = Shares(norm_bound=NORM).guarantee
    check = NormCheck(bytes(32), BOUND, BOUND.ring_bits)
    assert check.soundness_bits < min(BOUND.soundness_bits, check._proofs.soundness_bits)
    assert 117 < check.soundness_bits
    assert f"2^-{int(check.soundness_bits)} for each hash" in bounded.leaks
    assert "No check bounds" in Shares.guarantee.leaks
    assert "No check" not in bounded.leaks
    assert bounded.claims == Shares.guarantee.claims


# --- servers ----------------------------------------------------------------------------------------------------------


def test_a_server_that_is_built_again_asks_at_the_same_point() -> None:
    """Two points would open the proofs; another session has another point."""
    parties, asked = federation(), []
    for number in (1, 1, 2):
        session = parties.session(number, length=LENGTH)
        vector = np.full(LENGTH, 7)
        uploads = {name: encode(forged(parties, session, vector, Lie(), name)) for name in parties.cohort.clients}
        server = parties.party("server", session, {})
        step = next(server)
        while step.await_tag == UPLOAD:
            name = step.wait_for[0]
            step = server.send({name: Message(name, "server", UPLOAD, uploads[name])})
        asked.append(decode(step.send[0].body, Received, max_bytes=1 << 20))
    assert asked[0] == asked[1]
    assert asked[0].point != asked[2].point


@pytest.mark.parametrize(
    "edit",
    [
        lambda masks: replace(masks, failed=("stranger",)),
        lambda masks: replace(masks, failed=masks.names[:1]),
        lambda masks: replace(masks, names=masks.names[2:], failed=masks.names[1::-1]),
    ],
    ids=["stranger", "both", "order"],
)
def test_sets_that_no_helper_reports_are_refused(edit: Callable[[Masks], Masks]) -> None:
    parties = federation()
    session = parties.session(length=LENGTH)
    done = parties.sum(session, honest(parties, session), change(MASKS, Masks, edit))
    assert isinstance(done.failures["server"], Aborted)


@pytest.mark.parametrize(
    "edit",
    [
        lambda opening: None,
        lambda opening: replace(opening, query=opening.query[16:]),
        lambda opening: replace(opening, words_digest=bytes(32)),
    ],
    ids=["missing", "short", "unsigned"],
)
def test_the_helper_leaves_out_what_the_server_does_not_open(edit: Callable[[Opening], Opening | None]) -> None:
    def at_helper(body: Received) -> Received:
        openings = body.openings | {LIAR: edit(body.openings[LIAR])}
        return replace(body, openings={name: opening for name, opening in openings.items() if opening})

    left_out(federation(), change(RECEIVED, Received, at_helper), "cannot open")


@pytest.mark.parametrize("t", [0, 1, 27, 54, PRIME])
def test_the_helper_opens_nothing_at_a_point_where_shares_stand_unmasked(t: int) -> None:
    parties = federation()
    session = parties.session(length=LENGTH)
    fault = change(RECEIVED, Received, lambda body: replace(body, point=t.to_bytes(16, "little")))
    assert isinstance(parties.sum(session, honest(parties, session), fault).failures["helper"], Aborted)


# --- what the servers see ---------------------------------------------------------------------------------------------

SECRETS = {"zero": 0, "long": 10**5 // 142}


def views(secret: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return what the servers see of 60 uploads about one vector, and what they open together, joined by kind."""
    parties, found = federation(10**5), {"words": b"", "inputs": b"", "proof": b"", "query": b"", "opened": b""}
    holds = Point.holds

    def seen(self: Point, first, second) -> bool:
        sums = [(one + other) % PRIME for one, other in zip(first.wires, second.wires, strict=True)]
        found["opened"] += low(pack_elements(sums))
        return holds(self, first, second)

    monkeypatch.setattr(Point, "holds", seen)
    for number in range(1, 13):
        session = parties.session(number, length=20_000 // 60, bound=10**6)
        vectors = {name: np.full(session.length, secret, np.int64) for name in parties.cohort.clients}
        for message in parties.sum(session, vectors).messages:
            if message.tag == UPLOAD:
                upload = decode(message.body, Upload, max_bytes=1 << 20)
                found["words"] += upload.words[:800]
                found["inputs"] += low(upload.evidence.inputs)
                found["proof"] += low(upload.evidence.proof)
            elif message.tag == RECEIVED:
                openings = decode(message.body, Received, max_bytes=1 << 20).openings
                found["query"] += b"".join(low(opening.query) for opening in openings.values())
    monkeypatch.undo()
    return found


def low(data: bytes) -> bytes:
    """Return the lowest 15 bytes of each element: the highest lacks a bit, which the field explains."""
    return np.frombuffer(data, np.uint8).reshape(-1, 16)[:, :15].tobytes()


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_what_each_server_sees_is_uniform_whatever_the_vector(secret: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, seen in views(secret, monkeypatch).items():
        assert bytes_are_uniform(seen), kind


def test_values_that_are_not_shared_are_not_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control; that of what is opened stands in test_norm_proof: one vector, proved again and again."""
    monkeypatch.setattr(norm_check, "subtract", lambda values, _: list(values))
    assert not bytes_are_uniform(views(0, monkeypatch)["inputs"])
    assert not bytes_are_uniform(np.full(12_000, 704, np.int64).tobytes())


def test_the_helper_cannot_try_vectors_on_the_digest_it_sees() -> None:
    """With the blind, which it never sees, it could: the right guess gives the digest."""
    parties = federation()
    session = parties.session(length=LENGTH)
    done = parties.sum(session, honest(parties, session))
    upload = decode(next(m.body for m in done.messages if m.src == LIAR), Upload, max_bytes=1 << 20)
    seen = decode(next(m.body for m in done.view("helper")), Received, max_bytes=1 << 20)
    terms = Terms(session, parties.stores["helper"], BOUND)
    info = label("norm", terms.context, "words", LIAR)
    assert commit(upload.words, label(info, upload.evidence.blind)) == seen.openings[LIAR].words_digest
    for blind in (b"", bytes(32)):
        assert commit(upload.words, label(info, blind)) != seen.openings[LIAR].words_digest
    bodies = b"".join(message.body for message in done.view("helper"))
    assert upload.evidence.blind not in bodies
    assert hashlib.sha256(upload.words).digest() not in bodies


def test_no_element_repeats_between_uploads_neither_shared_nor_masks() -> None:
    """Shares are fresh for every client and session, and so are the masks once both shares are put together."""
    parties, seen = federation(), []
    key = AgreementKey(parties.stores["helper"].get(HELPER_SEED))
    for number in (1, 2):
        session = parties.session(number, length=LENGTH)
        terms = Terms(session, parties.stores["helper"], BOUND)
        for message in parties.sum(session, honest(parties, session)).messages:
            if message.tag == UPLOAD:
                upload = decode(message.body, Upload, max_bytes=1 << 20)
                signed = terms.norm.claims(message.src, upload.words, upload.evidence).signed
                seed = terms.open_seed(message.src, upload.parcel, key, signed=signed)
                inputs = unpack_elements(upload.evidence.inputs, terms.norm._inputs)
                proof = unpack_elements(upload.evidence.proof, terms.norm._proofs.elements)
                both = zip(proof, terms.norm._helper_proof(message.src, seed), strict=True)
                masks = [(one + other) % PRIME for one, other in both][: terms.norm._proofs.masks]
                seen += inputs + proof + masks
    assert len(set(seen)) == len(seen)


def test_errors_of_the_check_are_protocol_errors() -> None:
    check = NormCheck(bytes(32), BOUND, BOUND.ring_bits)
    mask = np.zeros(LENGTH, np.uint32)
    with pytest.raises(ProtocolError):
        check.accepts("a", bytes(32), mask, Opening(bytes(32), bytes(32), bytes(32), b"1"), bytes(16))
