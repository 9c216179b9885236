"""Paillier keys: decryption against the textbook, keys against the conditions of the paper."""

import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he import paillier_keys
from confide.he.paillier_keys import SecretKey, generate
from confide.he.pypaillier import PublicKey

BITS = 2048
SECRET = generate(BITS)
PUBLIC = PublicKey(SECRET.modulus, BITS)


def factors() -> tuple[int, int]:
    body = SECRET.to_bytes()
    return int.from_bytes(body[: len(body) // 2], "big"), int.from_bytes(body[len(body) // 2 :], "big")


def textbook(cipher: bytes) -> int:
    """Paillier 1999, scheme 1: L(c^λ mod n²) / L(g^λ mod n²) mod n, with λ = lcm(p - 1, q - 1) and g = 1 + n."""
    p, q = factors()
    n, order = p * q, math.lcm(p - 1, q - 1)

    def logarithm(u: int) -> int:
        return (pow(u, order, n * n) - 1) // n

    value = logarithm(int.from_bytes(cipher[1:], "big")) * pow(logarithm(1 + n), -1, n) % n
    return value - n if 2 * value > n else value


@given(st.lists(st.integers(-(2**2020), 2**2020), min_size=1, max_size=3))
@settings(max_examples=5, deadline=None)
def test_decryption_is_the_textbooks(values):
    ciphertexts = PUBLIC.encrypt(values)
    assert SECRET.decrypt(PUBLIC, ciphertexts) == values
    assert [textbook(cipher) for cipher in ciphertexts] == values


def test_keys_meet_the_conditions_of_the_paper():
    p, q = factors()
    n = p * q
    assert p != q
    assert n.bit_length() == BITS
    assert p % 4 == q % 4 == 3
    assert math.gcd(p - 1, q - 1) == 2
    assert all(pow(base, r - 1, r) == 1 for r in (p, q) for base in (2, 3, 5, 7, 11))
    assert not any(r % f == 1 for r in (p, q) for f in range(3, 1024, 2))
    assert abs(p - q).bit_length() > BITS // 2 - 100  # not so close that Fermat finds them


def test_keys_differ():
    assert generate(BITS).modulus != SECRET.modulus


def test_a_secret_key_shows_nothing_and_comes_back_from_its_bytes():
    assert repr(SECRET) == "SecretKey()"
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(SECRET)
    again = SecretKey.from_bytes(SECRET.to_bytes())
    assert again.modulus == SECRET.modulus
    assert again.decrypt(PUBLIC, PUBLIC.encrypt([-5])) == [-5]


@pytest.mark.parametrize("body", [b"", b"\0" * 255, b"\1" * 256, SECRET.to_bytes()[:128] * 2])
def test_other_bytes_are_no_secret_key(body):
    with pytest.raises((ProtocolError, ValueError)):
        SecretKey.from_bytes(body)


def test_decryption_is_blinded(monkeypatch):
    """The number that is raised to a secret power is never the one that the server sent."""
    seen: list[int] = []
    original = paillier_keys._logarithm

    def watched(value: int, prime: int) -> int:
        seen.append(value)
        return original(value, prime)

    monkeypatch.setattr(paillier_keys, "_logarithm", watched)
    (cipher,) = PUBLIC.encrypt([7])
    assert SECRET.decrypt(PUBLIC, [cipher]) == [7]
    assert int.from_bytes(cipher[1:], "big") not in seen


# --- public keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "modulus",
    [b"", b"\1", SECRET.modulus[:-1], b"\0" + SECRET.modulus, bytes(256), (2**2048 - 2).to_bytes(256, "big")],
)
def test_other_moduli_are_refused(modulus):
    with pytest.raises(ProtocolError):
        PublicKey(modulus, BITS)


def test_a_key_has_the_length_that_is_asked_for():
    with pytest.raises(ProtocolError):
        PublicKey(SECRET.modulus, 3072)


def test_arithmetic_under_encryption():
    five, seven = PUBLIC.encrypt([5, 7])
    scaled = PUBLIC.scale([five, seven], [-3, 11], bits=8)
    total = PUBLIC.add([*scaled, *PUBLIC.scale_public([five], 1 << 100)])
    assert SECRET.decrypt(PUBLIC, [total]) == [-15 + 77 + (5 << 100)]
    fresh = PUBLIC.rerandomise([five])
    assert fresh[0] != five
    assert SECRET.decrypt(PUBLIC, fresh) == [5]
    assert PUBLIC.plaintext_bits > 2000


def test_a_strangers_ciphertexts_are_checked():
    (good,) = PUBLIC.encrypt([1])
    p, q = factors()
    square = (p * q) ** 2
    PUBLIC.check([good])
    for bad in (b"", b"\0", b"\1" + good[1:], b"\0\0" + good[1:], good + b"\0", b"\0" + square.to_bytes(512, "big")):
        with pytest.raises(ProtocolError):
            PUBLIC.check([bad])
    shared = b"\0" + p.to_bytes(128, "big")
    with pytest.raises(ProtocolError):
        PUBLIC.scale([shared], [-2], bits=8)
