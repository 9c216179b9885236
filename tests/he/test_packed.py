"""Packed numbers: plain integers as the oracle, and everything that is not what `pack` writes."""

import tracemalloc
from contextlib import nullcontext

import numpy as np
import pytest
import seal
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he import packed
from confide.he.parameters import Parameters
from confide.he.seal import Context, Evaluation, Needs, PublicKeys, ntt_primes

PRIMES = ntt_primes(4096, (36, 36, 37))
CONTEXT = Context(Parameters(scheme="ckks", degree=4096, primes=PRIMES))
STEPS = (1, 5, 64)
NEEDS = Needs(encryption=True, relinearisation=True, steps=STEPS)
SECRET, PUBLIC = CONTEXT.generate(bytes(16), NEEDS)
FORM = CONTEXT.form(limbs=2, ntt=True, scale=2.0**30)


def as_integers(residues: np.ndarray, primes) -> bytes:
    """One big integer for each run of numbers, from Python alone."""
    out = b""
    for row in residues.tolist():
        for numbers, prime in zip(row, primes, strict=True):
            bits = len(bin(prime - 1)) - 2
            whole = sum(number << (bits * place) for place, number in enumerate(numbers))
            out += whole.to_bytes(-(-bits * len(numbers) // 8), "little")
    return out


moduli = st.lists(st.integers(2, (1 << 61) - 1), min_size=1, max_size=4).map(tuple)


@given(moduli, st.integers(1, 3), st.integers(0, 70), st.randoms())
def test_numbers_are_packed_as_integers_are_written_and_come_back(primes, rows, count, random):
    values = [[[random.randrange(q) for _ in range(count)] for q in primes] for _ in range(rows)]
    residues = np.array(values, np.uint64).reshape(rows, len(primes), count)
    body = packed.pack(residues, primes)
    assert body == as_integers(residues, primes)
    assert len(body) == packed.packed_bytes(primes, rows=rows, count=count)
    assert (packed.unpack(body, residues.shape, primes) == residues).all()


@given(moduli, st.integers(1, 20), st.data())
def test_numbers_from_the_modulus_on_and_other_lengths_are_refused(primes, count, data):
    residues = np.zeros((len(primes), count), np.uint64)
    place = data.draw(st.integers(0, len(primes) - 1)), data.draw(st.integers(0, count - 1))
    prime = primes[place[0]]
    residues[place] = prime - 1
    residues = residues[None]
    body = packed.pack(residues, primes)
    packed.unpack(body, residues.shape, primes)
    most = (1 << packed.residue_bits(prime)) - 1
    if most >= prime:
        residues[0][place] = data.draw(st.integers(prime, most))
        with pytest.raises(ProtocolError, match="below"):
            packed.unpack(as_integers(residues, [1 << packed.residue_bits(q) for q in primes]), residues.shape, primes)
    for other in (body[:-1], body + b"\0", b""):
        with pytest.raises(ProtocolError):
            packed.unpack(other, residues.shape, primes)


def test_ones_behind_the_last_number_are_refused():
    assert packed.unpack(b"\x07", (1, 1), (9,)).tolist() == [[7]]
    with pytest.raises(ProtocolError):
        packed.unpack(b"\x17", (1, 1), (9,))


def fresh(values) -> object:
    return SECRET.encrypt(CONTEXT.encode(np.asarray(values, float), limbs=2, scale=2.0**30))


def test_ciphertexts_come_back_as_seal_wrote_them():
    cipher = fresh(np.linspace(-1, 1, 2048))
    body = CONTEXT.to_bytes(cipher)
    assert len(body) == packed.ciphertext_bytes(FORM) == 2 * 4096 * (36 + 36) // 8
    assert bytes(packed.unpack_ciphertext(body, FORM)) == cipher.value.to_string()
    assert CONTEXT.to_bytes(CONTEXT.load(body, FORM)) == body


def test_keys_come_back_as_seal_wrote_them():
    maker, made = seal.KeyGenerator(CONTEXT.seal), seal.GaloisKeys()
    maker.create_galois_keys(list(STEPS), made)
    indices = frozenset(map(CONTEXT.galois_index, STEPS))
    for body, places in ((made.to_string(), indices), (maker.create_relin_keys().to_string(), (0,))):
        short = packed.pack_key_set(body, CONTEXT.key_form, digits=2, levels=dict.fromkeys(places, 2))
        assert len(short) == packed.key_set_bytes(CONTEXT.key_form, levels=[2] * len(places))
        assert len(short) == len(places) * 2 * 2 * 4096 * (36 + 36 + 37) // 8
        whole = bytes(packed.unpack_key_set(short, CONTEXT.key_form, digits=2, levels=dict.fromkeys(places, 2)))
        assert whole[56:] == body[56 : len(whole)]  # behind the sizes: SEAL goes on with empty places
        assert set(body[len(whole) :]) <= {0}


def test_a_key_set_at_other_places_is_not_packed():
    with pytest.raises(ProtocolError):
        packed.pack_key_set(bytes(100), CONTEXT.key_form, digits=2, levels={0: 2})


# --- hostile bodies ---------------------------------------------------------------------------------------------------

lengths = st.one_of(st.integers(0, 300), st.integers(0, 2 * len(PUBLIC.rotation)))
PARTS = ("encryption", "relinearisation", "rotation")


@given(st.sampled_from(PARTS), lengths, st.sampled_from([b"\0", b"\xff", b"\x5e\xa1"]))
def test_keys_of_another_length_or_with_large_numbers_are_refused(part, length, filler):
    body = (filler * (length // len(filler) + 1))[:length]
    if filler == b"\0" and length == len(getattr(PUBLIC, part)):
        return
    parts = {name: getattr(PUBLIC, name) for name in PARTS} | {part: body}
    with pytest.raises(ProtocolError):
        Evaluation(CONTEXT, PublicKeys(nonce=bytes(16), **parts), NEEDS)


@given(st.binary(max_size=200), st.sampled_from(["front", "back", "alone"]))
def test_garbage_is_no_ciphertext(junk, where):
    good = CONTEXT.to_bytes(fresh(np.zeros(2048)))
    body = {"front": junk + b"!" + good, "back": good + junk + b"!", "alone": junk}[where]
    with pytest.raises(ProtocolError):
        CONTEXT.load(body, FORM)


@given(st.integers(0, 2 * 2 * 4096 - 1), st.data())
def test_one_large_number_anywhere_is_found(place, data):
    residues = np.zeros((2, 2, 4096), np.uint64)
    prime = PRIMES[place // 4096 % 2]
    residues.reshape(-1)[place] = data.draw(st.integers(prime, (1 << 36) - 1))
    with pytest.raises(ProtocolError, match="below"):
        CONTEXT.load(packed.pack(residues, PRIMES[:2]), FORM)


def peak_bytes(work, *, refused: bool = True) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError) if refused else nullcontext():
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_key_of_a_lower_level_travels_as_what_is_read_of_it():
    """The rest comes back as zeros, and rotations at that level are the same bits."""
    needs = Needs(steps=(1, 5), limbs=(2, 1))
    secret, public = CONTEXT.generate(bytes(16), needs)
    degree, primes = CONTEXT.parameters.degree, CONTEXT.parameters.primes
    sizes = [2 * packed.packed_bytes(primes, rows=2, count=degree)]
    sizes.append(packed.packed_bytes((primes[0], primes[-1]), rows=2, count=degree))
    assert len(public.rotation) == sum(sizes)
    keys = Evaluation(CONTEXT, public, needs)
    x = np.random.default_rng(1).normal(size=degree // 2)
    for step, limbs in ((1, 2), (1, 1), (5, 1)):
        cipher = secret.encrypt(CONTEXT.encode(x, limbs=limbs, scale=2.0**30))
        moved = CONTEXT.decode(secret.decrypt(keys.rotate(cipher, step)))
        assert np.abs(moved - np.roll(x, -step)).max() < 0.05
    cipher = secret.encrypt(CONTEXT.encode(x, limbs=2, scale=2.0**30))
    above = CONTEXT.decode(secret.decrypt(keys.rotate(cipher, 5)))  # the control: half of that key is not there
    assert np.abs(above - np.roll(x, -5)).max() > 1
    with pytest.raises(ProtocolError):
        Evaluation(CONTEXT, public, Needs(steps=(1, 5)))


def test_nothing_is_allocated_for_a_body_of_another_length():
    """A plan may imply a gigabyte of keys; a few bytes that claim to be them cost nothing."""
    form = Context(Parameters(scheme="ckks", degree=32768, primes=ntt_primes(32768, (50,) * 16))).key_form
    levels = dict.fromkeys(range(64), 15)
    assert packed.key_set_bytes(form, levels=levels.values()) > 1 << 32
    for body in (b"", bytes(1000)):
        assert peak_bytes(lambda b=body: packed.unpack_key_set(b, form, digits=15, levels=levels)) < 1 << 16
        assert peak_bytes(lambda b=body: packed.unpack_ciphertext(b, form)) < 1 << 16
        assert peak_bytes(lambda b=body: packed.unpack(b, (1 << 20, 16, 32768), form.primes)) < 1 << 16


def test_the_control_a_body_of_the_right_length_is_allocated():
    body = bytes(packed.ciphertext_bytes(FORM))
    assert peak_bytes(lambda: packed.unpack_ciphertext(body, FORM), refused=False) >= FORM.size_bytes
