"""Fully linear proofs: right ones hold in shares, wrong ones do not, and what is opened says nothing."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError
from confide.secagg.norm_proof import (
    PRIME,
    Proofs,
    Query,
    _at,
    _at_integer,
    elements,
    pack_elements,
    subtract,
    unpack_elements,
)
from conformance.cases import bytes_are_uniform

RNG = SeededRandomness("norm proof")


def field(count: int) -> list[int]:
    return [RNG.below(PRIME) for _ in range(count)]


def split(values: list[int]) -> tuple[list[int], list[int]]:
    helper = field(len(values))
    return subtract(values, helper), helper


def opened(proofs: Proofs, u: list[int], v: list[int], target: int, proof: list[int], t: int) -> tuple[Query, Query]:
    """Return both servers' shares of the check of a proof that is shared at random."""
    at = proofs.at(t)
    halves = zip(split(u), split(v), split([target]), split(proof), strict=True)
    first, second = (at.query(us, vs, targets[0], proofs_) for us, vs, targets, proofs_ in halves)
    return first, second


def holds(proofs: Proofs, u: list[int], v: list[int], target: int, proof: list[int]) -> bool:
    t = proofs.point(RNG.below(2**256))
    return proofs.at(t).holds(*opened(proofs, u, v, target, proof, t))


def inner(u: list[int], v: list[int]) -> int:
    return sum(a * b for a, b in zip(u, v, strict=True)) % PRIME


@given(length=st.integers(1, 60), edge=st.sampled_from([0, 1, PRIME - 1]))
def test_right_proofs_hold_and_wrong_targets_do_not(length: int, edge: int) -> None:
    proofs, u, v = Proofs(length), field(length), field(length)
    u[0] = v[-1] = edge
    proof = proofs.prove(u, v, field(proofs.masks))
    assert len(proof) == proofs.elements
    assert holds(proofs, u, v, inner(u, v), proof)
    assert not holds(proofs, u, v, inner(u, v) + 1, proof)


@pytest.mark.parametrize("length", [1, 2, 9, 30])
def test_every_changed_element_is_seen(length: int) -> None:
    proofs, u, v = Proofs(length), field(length), field(length)
    proof = proofs.prove(u, v, field(proofs.masks))
    for place in range(proofs.elements):
        changed = [*proof[:place], (proof[place] + 1) % PRIME, *proof[place + 1 :]]
        assert not holds(proofs, u, v, inner(u, v), changed)
    for side in (u, v):
        for place in range(length):
            before, side[place] = side[place], side[place] + 1
            assert not holds(proofs, u, v, inner(u, v), proof)
            side[place] = before


def test_a_proof_made_to_fit_a_wrong_target_passes_at_its_roots_and_nowhere_else() -> None:
    """The best that a liar can do: P + E with E of degree 2 m, as many roots, and the right sum for a wrong target."""
    proofs, u, v = Proofs(16), field(16), field(16)
    proof = proofs.prove(u, v, field(proofs.masks))
    roots = field(2 * proofs.chunks)
    shape = [math.prod(node - root for root in roots) % PRIME for node in range(2 * proofs.chunks + 1)]
    scale = 5 * pow(sum(shape[1 : proofs.chunks + 1]), -1, PRIME)
    values = [value + scale * error for value, error in zip(proof[proofs.masks :], shape, strict=True)]
    lie, target = [*proof[: proofs.masks], *values], inner(u, v) + 5
    assert all(proofs.at(t).holds(*opened(proofs, u, v, target, lie, t)) for t in roots)
    assert not any(holds(proofs, u, v, target, lie) for _ in range(20))
    assert proofs.soundness_bits == pytest.approx(math.log2(PRIME / len(roots)))


def test_points_where_shares_would_stand_unmasked_are_refused() -> None:
    proofs = Proofs(30)
    for t in (0, 1, proofs.chunks, 2 * proofs.chunks, PRIME, PRIME + 1):
        with pytest.raises(ProtocolError, match="point"):
            proofs.at(t)
    for uniform in (0, 1, PRIME, 2**256 - 1):
        assert 2 * proofs.chunks < proofs.at(proofs.point(uniform)).t < PRIME


@given(degree=st.integers(0, 12), t=st.integers(13, 40) | st.integers(13, PRIME - 1), data=st.data())
def test_weights_are_lagrange_s(degree: int, t: int, data: st.DataObject) -> None:
    """The oracle evaluates the polynomial from its coefficients, in rational numbers where the point is an integer."""
    coefficients = data.draw(st.lists(st.integers(-9, 9), min_size=degree + 1, max_size=degree + 1))
    at = lambda x: sum(c * x**power for power, c in enumerate(coefficients))  # noqa: E731
    values = [at(x) for x in range(degree + 1)]
    assert inner(_at(degree, t), values) == sum(c * pow(t, k, PRIME) for k, c in enumerate(coefficients)) % PRIME
    if t <= 40:
        assert inner(_at_integer(degree, t), values) == Fraction(at(t)) % PRIME


# --- zero knowledge ---------------------------------------------------------------------------------------------------


def what_is_opened(secret: int, *, masked: bool) -> bytes:
    """Return the low bytes of what 150 proofs about the same secret vector open at one point."""
    proofs, found = Proofs(30), bytearray()
    t = proofs.point(12345)
    for _ in range(150):
        u = v = [secret] * 30
        masks = field(proofs.masks) if masked else [0] * proofs.masks
        target = inner(u, v)
        first, second = opened(proofs, u, v, target, proofs.prove(u, v, masks), t)
        sums = [(a + b) % PRIME for a, b in zip(first.wires, second.wires, strict=True)]
        assert (first.residue + second.residue) % PRIME == 0
        found += b"".join(value.to_bytes(16, "little")[:15] for value in sums)
    return bytes(found)


@pytest.mark.parametrize("secret", [0, 1, 12345])
def test_what_is_opened_is_uniform_whatever_the_vector(secret: int) -> None:
    assert bytes_are_uniform(what_is_opened(secret, masked=True))
    assert not bytes_are_uniform(what_is_opened(secret, masked=False))  # the control


def test_two_points_would_tell_and_one_does_not() -> None:
    """Why the server's point must not change: from two points the masks cancel and the vector is left."""
    proofs, u = Proofs(1), [7]
    proof = proofs.prove(u, u, field(2))
    wires = []
    for t in (100, 200):
        first, second = opened(proofs, u, u, 49, proof, t)
        wires.append((first.wires[0] + second.wires[0]) % PRIME)
    # one chunk: U(t) = (1 - t) mask + t u, so U(100) * 199 - U(200) * 99 = u * (100 * 199 - 200 * 99)
    assert (wires[0] * 199 - wires[1] * 99) * pow(100 * 199 - 200 * 99, -1, PRIME) % PRIME == 7


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_elements_travel_in_sixteen_bytes_and_only_reduced() -> None:
    values = [0, 1, PRIME - 1]
    body = pack_elements(values)
    assert unpack_elements(body, 3) == values
    assert unpack_elements(b"", 0) == []
    for wrong in (body[:-1], body + b"\0", body[16:], b"", PRIME.to_bytes(16, "little") + body[16:]):
        with pytest.raises(ProtocolError, match="3 elements"):
            unpack_elements(wrong, 3)


def test_expanded_elements_are_spread_over_the_field() -> None:
    values = elements(bytes(32), 4000)
    assert max(values) < PRIME
    assert bytes_are_uniform(b"".join(value.to_bytes(16, "little")[:15] for value in values))
    tops = np.array([value >> 120 for value in values])
    assert tops.min() == 0
    assert tops.max() == 127
    assert elements(bytes(32), 5) == values[:5]
