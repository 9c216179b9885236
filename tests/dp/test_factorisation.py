"""Banded factorisations: sensitivity by brute force over participations and dropouts, error by written-out matrices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.dp.factorisation import Bands, banded, independent, least_error, square_root
from confide.errors import UsageError


def matrix(bands: Bands) -> np.ndarray:
    """C in steps, written out: the oracle that nothing in the module builds."""
    found = np.zeros((bands.rounds, bands.rounds))
    for row, column in itertools.product(range(bands.rounds), repeat=2):
        if 0 <= row - column < len(bands.steps):
            found[row, column] = bands.steps[row - column]
    return found


def schedules(bands: Bands):
    """Every set of rounds that a client of the rotation can be on in: a schedule or, where it drops out, less."""
    for place in range(bands.period):
        rounds = range(place, bands.rounds, bands.period)
        for kept in itertools.product([0, 1], repeat=len(rounds)):
            yield [number for number, keep in zip(rounds, kept, strict=True) if keep]


def largest_move(c: np.ndarray, on: list[int]) -> float:
    """The largest |C x|^2 over x with x_t in [-1, 1] where `on` and 0 elsewhere: at a corner, for it is convex in x."""
    moves = [0.0]
    for signs in itertools.product([-1, 1], repeat=len(on)):
        x = np.zeros(len(c))
        x[on] = signs
        moves.append(float(((c @ x) ** 2).sum()))
    return max(moves)


SMALL = st.integers(1, 4).flatmap(
    lambda period: st.builds(
        Bands,
        steps=st.lists(st.integers(0, 9), min_size=1, max_size=period).map(lambda rest: (rest[0] + 1, *rest[1:])),
        rounds=st.integers(1, 9),
        period=st.just(period),
    )
)


@settings(deadline=None, max_examples=60)
@given(SMALL)
def test_sensitivity_is_the_largest_move_over_all_participations(bands):
    c = matrix(bands)
    truth = max(largest_move(c, on) for on in schedules(bands))
    assert bands.squared_norm() == pytest.approx(truth, abs=1e-9)
    for rounds in range(1, bands.rounds + 1):
        first = max(largest_move(c[:rounds, :rounds], [t for t in on if t < rounds]) for on in schedules(bands))
        assert bands.squared_norm(rounds) == pytest.approx(first, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(SMALL, st.data())
def test_no_pattern_of_dropouts_moves_more(bands, data):
    """Rounds that a client misses take rows of its own column away, for whichever of its updates."""
    c = matrix(bands)
    mask = np.array(data.draw(st.lists(st.sampled_from([0, 1]), min_size=bands.rounds, max_size=bands.rounds)))
    for on in schedules(bands):
        assert largest_move(c * mask[:, None], on) <= bands.squared_norm() + 1e-9


def test_a_client_that_is_on_twice_within_the_bands_exceeds_the_sensitivity():
    """Negative control: the brute force sees what the rotation prevents."""
    bands = Bands(steps=(4, 3, 2), rounds=8, period=3)
    assert largest_move(matrix(bands), [0, 3, 6]) <= bands.squared_norm()
    assert largest_move(matrix(bands), [0, 2, 5]) > bands.squared_norm()
    assert largest_move(matrix(bands), [0, 1, 2]) > bands.squared_norm()
    with pytest.raises(UsageError, match="participations overlap"):
        Bands(steps=(4, 3, 2), rounds=8, period=2)


@given(SMALL, st.integers(0, 8))
def test_lag_and_latest_say_the_same_as_the_matrix(bands, place):
    place %= bands.period
    for number in range(1, bands.rounds + 1):
        column = list(range(place, number, bands.period))  # rounds so far in which it was on, from 0
        lags = [number - 1 - t for t in column if number - 1 - t < len(bands.steps)]
        assert bands.lag(place, number) == (lags[-1] if lags else None)
        assert len(lags) <= 1
        if column:
            assert bands.latest(place, number) == column[-1] + 1


def test_everybody_is_on_equally_often():
    bands = independent(12, 4)
    for number in range(1, 13):
        assert bands.on(number, 10) == sum(bands.lag(place, number) == 0 for place in range(10))


@pytest.mark.parametrize(("rounds", "period", "bands"), [(16, 4, 4), (16, 16, 16), (40, 8, 5), (9, 3, 1)])
def test_error_is_that_of_the_matrices(rounds, period, bands):
    made = banded(rounds, period, bands)
    c = matrix(made) / made.steps[0]
    noise = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(c)
    assert made.prefix_deviations() == pytest.approx(np.sqrt((noise**2).sum(axis=1)))
    norm = math.sqrt(made.squared_norm()) / made.steps[0]
    assert made.error() == pytest.approx(norm * math.sqrt((noise**2).sum() / rounds))


def test_the_square_root_squares_to_prefix_sums():
    found = square_root(12)
    assert np.convolve(found, found)[:12] == pytest.approx(np.ones(12))


@pytest.mark.parametrize(("rounds", "period", "bands"), [(16, 4, 4), (64, 16, 16), (64, 16, 4)])
def test_the_search_ends_in_a_minimum_that_scipy_finds_too(rounds, period, bands):
    from scipy.optimize import minimize

    counts = np.array([len(range(0, rounds - lag, period)) for lag in range(bands)])

    def cost(rest):
        c = np.zeros((rounds, rounds))
        for lag, value in enumerate([1.0, *rest]):
            c += value * np.eye(rounds, k=-lag)
        noise = np.linalg.solve(c.T, np.tril(np.ones((rounds, rounds))).T)
        return float((noise**2).sum() * (counts @ np.array([1.0, *rest]) ** 2))

    ours = least_error(rounds, period, bands)
    assert ours[0] == 1
    theirs = minimize(lambda rest: math.log(cost(rest)), square_root(bands)[1:], method="BFGS")
    assert cost(ours[1:]) <= math.exp(theirs.fun) * (1 + 1e-6)
    assert cost(ours[1:]) <= cost(square_root(bands)[1:])


@pytest.mark.parametrize("rounds", [16, 64, 256])
def test_more_bands_never_lose_and_the_gain_is_what_was_published(rounds):
    """At one rotation more bands are better; against everybody in every round no rotation is (docs/client-level.md)."""
    errors = [banded(rounds, 16, bands).error() for bands in (1, 4, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.5 * errors[-1]
    assert 16 * errors[-1] > independent(rounds).error()


def test_one_client_that_leaves_out_its_multiples_counts_less_and_never_against_itself():
    """The weight of an update in every decoded prefix sum stays between 0 and 1, whichever multiples are missing."""
    for made in (banded(24, 4, 4), banded(24, 8, 8), banded(64, 16, 16)):
        c = matrix(made) / made.steps[0]
        prefix = np.tril(np.ones((made.rounds, made.rounds))) @ np.linalg.inv(c)
        assert (prefix >= -1e-12).all()  # hence every partial sum of c_j times a column is within [0, 1]


def test_what_makes_no_sense_is_refused():
    for arguments in ((8, 2, 3), (8, 2, 0), (0, 1, 1), (20_000, 2, 2)):
        with pytest.raises(UsageError):
            banded(*arguments)
    with pytest.raises(UsageError):
        Bands(steps=(0, 1), rounds=3, period=2)
    with pytest.raises(UsageError):
        Bands(steps=(2, -1), rounds=3, period=2)
