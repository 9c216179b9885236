"""SEAL's serialised form: our reader takes SEAL's own bytes and nothing else."""

import struct

import numpy as np
import pytest
import seal
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he import seal_format
from confide.he.parameters import Parameters
from confide.he.seal import Context, Needs, PublicKeys, ntt_primes

BFV = Context(Parameters(scheme="bfv", degree=2048, primes=ntt_primes(2048, (27, 26)), plain_modulus=257))
CKKS = Context(Parameters(scheme="ckks", degree=4096, primes=ntt_primes(4096, (36, 36, 37))))
STEPS = (1, 2, 64)
INDICES = tuple(CKKS.galois_index(step) for step in STEPS)


def keys() -> PublicKeys:
    """SEAL's own bytes."""
    maker, rotation = seal.KeyGenerator(CKKS.seal), seal.GaloisKeys()
    maker.create_galois_keys(list(STEPS), rotation)
    return PublicKeys(
        nonce=bytes(16),
        encryption=maker.create_public_key().to_string(),
        relinearisation=maker.create_relin_keys().to_string(),
        rotation=rotation.to_string(),
    )


PUBLIC = keys()


def fresh() -> tuple[bytes, seal_format.Form]:
    secret, _ = BFV.generate(bytes(16), Needs())
    plain = BFV.polynomial(np.arange(2048, dtype=np.uint64) % 257)
    return secret.encrypt(plain).value.to_string(), BFV.form(limbs=1, ntt=False)


CIPHER, FORM = fresh()
MINOR = (4, 93)  # minor versions in the outer and the inner header


def test_seals_ciphertexts_are_read_and_written_byte_by_byte():
    seal_format.check_ciphertext(CIPHER, FORM)
    residues = seal_format.read_ciphertext(CIPHER, FORM)
    assert residues.shape == (2, 1, 2048)
    assert seal_format.write_ciphertext(residues, FORM) == CIPHER
    assert len(CIPHER) == FORM.size_bytes == 16 * 2048 + 113


def test_plaintexts_go_through_seal_and_back():
    coefficients = np.zeros(2048, np.uint64)
    coefficients[[0, 5, 40]] = [1, 256, 7]
    assert (BFV.coefficients(BFV.polynomial(coefficients)) == coefficients).all()
    assert (BFV.coefficients(BFV.polynomial(np.zeros(2048, np.uint64))) == 0).all()


def test_public_keys_of_seal_are_read():
    seal_format.check_ciphertext(PUBLIC.encryption, CKKS.key_form)
    seal_format.check_key_set(PUBLIC.relinearisation, CKKS.key_form, digits=2, indices=(0,))
    seal_format.check_key_set(PUBLIC.rotation, CKKS.key_form, digits=2, indices=INDICES)


def refused(body: bytes, form: seal_format.Form = FORM) -> None:
    with pytest.raises(ProtocolError):
        seal_format.check_ciphertext(body, form)


@given(st.integers(0, len(CIPHER) - 1))
def test_truncated_ciphertexts_are_refused(length):
    refused(CIPHER[:length])


@pytest.mark.parametrize("place", range(113))
def test_every_bit_of_the_headers_counts(place):
    for bit in range(8):
        flipped = bytearray(CIPHER)
        flipped[place] ^= 1 << bit
        if place in MINOR and flipped[place] <= 4:  # SEAL 4.4 reads what 4.0 wrote
            seal_format.check_ciphertext(bytes(flipped), FORM)
        else:
            refused(bytes(flipped))


def test_more_bytes_are_refused():
    refused(CIPHER + b"\0")
    refused(b"")


@given(st.integers(0, 4095), st.integers(FORM.primes[0], (1 << 64) - 1))
def test_numbers_from_the_prime_on_are_refused(place, value):
    body = bytearray(CIPHER)
    struct.pack_into("<Q", body, 113 + 8 * place, value)
    refused(bytes(body))


def test_another_level_form_or_scale_is_refused():
    refused(CIPHER, BFV.form(limbs=1, ntt=True))
    refused(CIPHER, BFV.form(limbs=1, ntt=False, scale=2.0))
    refused(PUBLIC.encryption, CKKS.form(limbs=2, ntt=True))


@given(st.binary(max_size=400))
def test_garbage_is_refused(body):
    refused(body)
    with pytest.raises(ProtocolError):
        seal_format.check_key_set(body, CKKS.key_form, digits=2, indices=INDICES)


@pytest.mark.parametrize("indices", [(INDICES[0],), (*INDICES, 3), (0, *INDICES[1:]), (2047,)])
def test_keys_at_other_places_are_refused(indices):
    with pytest.raises(ProtocolError):
        seal_format.check_key_set(PUBLIC.rotation, CKKS.key_form, digits=2, indices=indices)


@given(st.integers(0, len(PUBLIC.rotation) - 1))
def test_truncated_key_sets_are_refused(length):
    with pytest.raises(ProtocolError):
        seal_format.check_key_set(PUBLIC.rotation[:length], CKKS.key_form, digits=2, indices=INDICES)


def test_every_count_and_header_of_a_key_set_counts():
    body = PUBLIC.relinearisation
    part = CKKS.key_form.size_bytes
    structure = [*range(64), *range(64, 64 + 113), *range(64 + part, 64 + part + 113)]
    for place in structure:
        flipped = bytearray(body)
        flipped[place] ^= 0x80
        with pytest.raises(ProtocolError):
            seal_format.check_key_set(bytes(flipped), CKKS.key_form, digits=2, indices=(0,))


def test_large_numbers_in_a_key_are_refused():
    body = bytearray(PUBLIC.relinearisation)
    struct.pack_into("<Q", body, len(body) - 8, (1 << 64) - 1)
    with pytest.raises(ProtocolError, match="primes"):
        seal_format.check_key_set(bytes(body), CKKS.key_form, digits=2, indices=(0,))
