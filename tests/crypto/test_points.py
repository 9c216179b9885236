"""Blinded points against P-256's own arithmetic, and what is no point."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.points import POINT_BYTES, BlindingKey
from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError

# SEC 2, section 2.4.2
P = 2**256 - 2**224 + 2**192 + 2**96 - 1
A, B = P - 3, 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Known:
    """A randomness whose only draw is known."""

    origin = "test"

    def __init__(self, factor):
        self.factor = factor

    def below(self, bound):
        assert bound == ORDER - 1
        return self.factor - 1


def add(one, other):
    if one is None or other is None:
        return one or other
    if one[0] == other[0]:
        if (one[1] + other[1]) % P == 0:
            return None
        slope = (3 * one[0] ** 2 + A) * pow(2 * one[1], -1, P)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, P)
    x = (slope * slope - one[0] - other[0]) % P
    return x, (slope * (one[0] - x) - one[1]) % P


def times(factor, point):
    found = None
    while factor:
        if factor & 1:
            found = add(found, point)
        point, factor = add(point, point), factor >> 1
    return found


def lifted(x):
    """A point with this x, or None."""
    square = (x**3 + A * x + B) % P
    root = pow(square, (P + 1) // 4, P)
    return (x, root) if x < P and root * root % P == square else None


def hashed(text):
    for number in range(256):
        point = lifted(int.from_bytes(hashlib.sha256(bytes([number]) + text).digest(), "big"))
        if point:
            return point
    raise AssertionError


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=40), st.integers(1, ORDER - 1), st.integers(1, ORDER - 1))
def test_a_blinded_text_is_the_multiple_of_its_point_and_blindings_commute(text, one, other):
    first, second = BlindingKey(Known(one)), BlindingKey(Known(other))
    assert int.from_bytes(first.of_text(text), "big") == times(one, hashed(text))[0]
    both = times(one * other % ORDER, hashed(text))[0].to_bytes(32, "big")
    assert first.of_point(second.of_text(text)) == second.of_point(first.of_text(text)) == both


@settings(max_examples=60)
@given(st.integers(0, 2**256 - 1))
def test_what_is_no_x_coordinate_is_refused_and_every_other_is_not(x):
    key, body = BlindingKey(SeededRandomness("key")), x.to_bytes(32, "big")
    if lifted(x):
        assert len(key.of_point(body)) == POINT_BYTES
    else:
        with pytest.raises(ProtocolError, match="P-256"):
            key.of_point(body)


@pytest.mark.parametrize("body", [b"", bytes(31), bytes(33), b"\xff" * 32, P.to_bytes(32, "big"), bytes(64)])
def test_nothing_else_is_a_point(body):
    with pytest.raises(ProtocolError):
        BlindingKey(SeededRandomness("key")).of_point(body)


def test_a_key_shows_nothing():
    assert repr(BlindingKey(SeededRandomness("key"))) == "BlindingKey(secret)"
