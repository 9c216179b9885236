"""Shamir's sharing against a linear solver that knows nothing of Lagrange, and its secrecy by counting."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from confide.crypto.random import SeededRandomness
from confide.crypto.shamir import PRIME, Recovery, draw_secret, split
from confide.errors import ProtocolError

P = 57896044618658097711785492504343953926634992332820282019728792003956564819949


def solve_constant_term(points: list[tuple[int, int]]) -> int:
    """Return a_0 of the polynomial through `points`: Gauss-Jordan on the Vandermonde system modulo P."""
    rows = [[pow(x, power, P) for power in range(len(points))] + [y] for x, y in points]
    for column in range(len(rows)):
        pivot = next(row for row in range(column, len(rows)) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], P - 2, P)
        rows[column] = [value * inverse % P for value in rows[column]]
        for row in range(len(rows)):
            if row != column and (factor := rows[row][column]):
                rows[row] = [(a - factor * b) % P for a, b in zip(rows[row], rows[column], strict=True)]
    return rows[0][-1]


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def test_the_field_is_that_of_curve25519() -> None:
    assert PRIME == P == 2**255 - 19


@given(st.integers(0, P - 1), st.integers(1, 7), st.data())
@settings(max_examples=40, deadline=None)
def test_any_threshold_shares_give_the_secret_that_the_linear_solver_finds(
    secret: int, threshold: int, data: st.DataObject
) -> None:
    indices = data.draw(st.lists(st.integers(1, 2**40), min_size=threshold, max_size=threshold + 3, unique=True))
    body = secret.to_bytes(32, "little")
    shares = split(body, threshold=threshold, indices=indices, rng=SeededRandomness("shares"))
    by_index = dict(zip(indices, shares, strict=True))
    chosen = data.draw(st.permutations(indices))[:threshold]
    assert solve_constant_term([(index, number(by_index[index])) for index in chosen]) == secret
    assert Recovery(chosen).secret([by_index[index] for index in chosen]) == body


def test_every_subset_of_the_threshold_agrees_and_more_shares_do_too() -> None:
    secret = draw_secret(SeededRandomness("secret"))
    indices = [3, 1, 4, 5, 9]
    shares = dict(zip(indices, split(secret, threshold=3, indices=indices, rng=SeededRandomness("s")), strict=True))
    for count in (3, 4, 5):
        for chosen in combinations(indices, count):
            assert Recovery(chosen).secret([shares[index] for index in chosen]) == secret


def test_fewer_shares_fit_every_secret() -> None:
    """t - 1 shares and any candidate for the secret lie on one polynomial: the solver finds it for each candidate."""
    dealt = split((7).to_bytes(32, "little"), threshold=3, indices=[1, 2, 3], rng=SeededRandomness("s"))
    for candidate in (0, 7, P - 1):
        third = solve_constant_term(
            [(x - 3, y) for x, y in ((1, number(dealt[0])), (2, number(dealt[1])))] + [(-3, candidate)]
        )
        assert solve_constant_term([(1, number(dealt[0])), (2, number(dealt[1])), (3, third)]) == candidate


def test_a_share_below_the_threshold_is_uniform_whatever_the_secret() -> None:
    """Low bytes of 4,000 shares of a fixed secret: chi-square, two-sided, false alarm 2e-6; a 1-of-n sharing fails."""
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=255)

    def statistic(threshold: int) -> float:
        rng = SeededRandomness("uniform")
        shares = [split(bytes(32), threshold=threshold, indices=[5, 6], rng=rng)[0][0] for _ in range(4000)]
        return float(stats.chisquare(np.bincount(shares, minlength=256)).statistic)

    assert low < statistic(2) < high
    assert statistic(1) > high


def test_secrets_lie_in_the_field_and_differ() -> None:
    rng = SeededRandomness("draw")
    drawn = [draw_secret(rng) for _ in range(100)]
    assert len(set(drawn)) == 100
    assert all(len(secret) == 32 and number(secret) < P for secret in drawn)


@pytest.mark.parametrize("threshold", [0, 4, -1])
def test_a_threshold_outside_the_shares_is_refused(threshold: int) -> None:
    with pytest.raises(ValueError, match="Expected threshold="):
        split(bytes(32), threshold=threshold, indices=[1, 2, 3], rng=SeededRandomness("s"))


@pytest.mark.parametrize("indices", [[0, 1], [1, 1], [-1, 2], [P, 1], [1, P + 1]])
def test_indices_that_are_zero_in_the_field_or_repeat_are_refused(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="different positive indices"):
        split(bytes(32), threshold=1, indices=indices, rng=SeededRandomness("s"))
    with pytest.raises(ValueError, match="different positive indices"):
        Recovery(indices)


@pytest.mark.parametrize("data", [b"", bytes(31), bytes(33), P.to_bytes(32, "little"), b"\xff" * 32])
def test_bytes_that_are_no_field_element_are_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="below 2\\^255 - 19"):
        Recovery([1]).secret([data])
    with pytest.raises(ProtocolError, match="below 2\\^255 - 19"):
        split(data, threshold=1, indices=[1], rng=SeededRandomness("s"))


def test_a_recovery_needs_a_share_for_each_index() -> None:
    with pytest.raises(ValueError):
        Recovery([1, 2]).secret([bytes(32)])
