"""The enclave's key: how long it lives, who is shown which, and that evidence is about it."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from confide.errors import ProtocolError, SetUpAgain, UsageError
from confide.tee.channel import context_of, seal
from confide.tee.enclave import Enclave, key_id_of
from confide.tee.evidence import Bundle, Quoted, report_data
from confide.tee.simulated import Simulated, read
from tee.enclaves import RNG, Clock

MODEL = "ab" * 32


def enclave(clock: Clock, *, lifetime_seconds: float = 1000.0, endorse=None) -> Enclave:
    return Enclave(
        Simulated(), purpose="predict", model_sha256=MODEL, rng=RNG, clock=clock, lifetime_seconds=lifetime_seconds,
        endorse=endorse,
    )  # fmt: skip


def sealed_to(bundle: Bundle, body: bytes = b"question") -> tuple[str, bytes]:
    public = bytes.fromhex(bundle.read_claims().public_key)
    return key_id_of(public), seal(body, public, context=context_of("predict", MODEL), rng=RNG)[0]


def test_evidence_is_about_the_key_the_model_and_the_nonce():
    clock = Clock()
    bundle = enclave(clock).bundle(bytes(range(32)))
    claims = bundle.read_claims()
    bound = hashlib.sha512(b"confide-attest-v1\0" + bundle.claims).digest()
    assert bytes.fromhex(read(bundle.evidence).report_data) == bound == report_data(bundle.claims)
    assert claims.nonce == bytes(range(32)).hex()
    assert claims.model_sha256 == MODEL
    assert claims.not_before <= clock.now < claims.not_after == clock.now + 1000


def test_a_key_is_shown_for_half_its_life_and_opens_for_all_of_it():
    clock = Clock()
    ours = enclave(clock)
    key_id, sealed = sealed_to(ours.bundle(bytes(32)))
    clock.now += 499
    assert sealed_to(ours.bundle(bytes(32)))[0] == key_id
    clock.now += 2
    newer, _ = sealed_to(ours.bundle(bytes(32)))
    assert newer != key_id
    clock.now += 490  # 991 s
    assert ours.open(key_id, sealed).body == b"question"
    clock.now += 10  # 1001 s
    assert ours.holds(newer)
    assert not ours.holds(key_id)
    with pytest.raises(SetUpAgain):
        ours.open(key_id, sealed)


def test_the_end_that_evidence_states_is_never_beyond_the_key():
    clock = Clock()
    ours = enclave(clock)
    for _ in range(40):
        bundle = ours.bundle(bytes(32))
        key_id, sealed = sealed_to(bundle)
        later = Clock(bundle.read_claims().not_after - 0.5)
        held = ours._clock
        ours._clock = later
        assert ours.open(key_id, sealed).body == b"question"
        ours._clock = held
        clock.now += 137


def test_many_who_ask_at_once_are_shown_one_key():
    ours = enclave(Clock())
    with ThreadPoolExecutor(16) as threads:
        keys = {key for key, _ in threads.map(lambda _: sealed_to(ours.bundle(bytes(32))), range(32))}
    assert len(keys) == 1


def test_what_was_sealed_to_another_enclave_is_refused():
    clock = Clock()
    one, other = enclave(clock), enclave(clock)
    key_id, _ = sealed_to(one.bundle(bytes(32)))
    foreign, sealed = sealed_to(other.bundle(bytes(32)))
    with pytest.raises(SetUpAgain):
        one.open(foreign, sealed)
    with pytest.raises(ProtocolError, match="sealed"):
        one.open(key_id, sealed)


def test_what_endorses_is_asked_for_each_quote():
    asked: list[Quoted] = []

    def endorse(quoted: Quoted) -> Quoted:
        asked.append(quoted)
        return Quoted(quoted.evidence, {"crl.der": b"list"})

    ours = enclave(Clock(), endorse=endorse)
    assert ours.bundle(b"").endorsements == ours.bundle(bytes(32)).endorsements == {"crl.der": b"list"}
    assert len(asked) == 2


@pytest.mark.parametrize("lifetime_seconds", [0, -1, 24 * 3600 + 1])
def test_a_key_lives_a_day_at_most(lifetime_seconds):
    with pytest.raises(UsageError, match="lifetime_seconds"):
        enclave(Clock(), lifetime_seconds=lifetime_seconds)


def test_no_repr_shows_a_secret():
    ours = enclave(Clock())
    ours.bundle(bytes(32))
    key = ours._epochs[-1].key
    assert repr(key) == "EnclaveKey(secret)"
    sealed, _ = seal(b"x", key.public, context=b"", rng=RNG)
    assert repr(key.open(sealed, context=b"").reply) == "ReplyKey(secret)"


def test_a_key_ends_by_a_clock_that_nobody_sets_back():
    clock, ticks = Clock(), Clock(0.0)
    ours = Enclave(
        Simulated(), purpose="predict", model_sha256=MODEL, rng=RNG, clock=clock, ticks=ticks, lifetime_seconds=1000
    )
    key_id, sealed = sealed_to(ours.bundle(bytes(32)))
    ticks.now += 1001
    clock.now -= 500  # the host sets its clock back
    with pytest.raises(SetUpAgain):
        ours.open(key_id, sealed)
    assert not ours._epochs  # it is forgotten, not hidden
