"""Clipping: what it leaves, how it follows a quantile, and how little a liar moves it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.train.clip import Clip

numbers = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=8)


@given(numbers, st.floats(1e-3, 1e6))
def test_a_clipped_vector_keeps_its_direction_and_not_more_than_the_norm(values, norm):
    vector = np.array(values)
    clipped, within = Clip(norm=norm).apply(vector)
    length = math.sqrt(math.fsum(value * value for value in values))
    assert np.linalg.norm(clipped) <= norm * (1 + 1e-12)
    if length < norm * (1 - 1e-9):
        assert within
        np.testing.assert_array_equal(clipped, vector)
    if length > norm * (1 + 1e-9):
        assert not within
        np.testing.assert_allclose(clipped, vector * (norm / length), rtol=1e-9, atol=1e-300)


def test_the_norm_itself_is_within_and_nothing_is_nothing():
    for vector in (np.array([3.0, -4.0]), np.zeros(2)):
        clipped, within = Clip(norm=5.0).apply(vector)
        assert within
        np.testing.assert_array_equal(clipped, vector)


def test_without_a_norm_nothing_is_clipped_and_nothing_is_asked():
    clip = Clip()
    clipped, within = clip.apply(np.array([1e100, -1e-100]))
    assert clipped.tolist() == [1e100, -1e-100]
    assert within
    assert not clip.follows


def test_what_is_no_number_stays_none():
    """min(1, C / norm) would let it pass as it is or turn infinity into it; the encoding then refuses it."""
    clipped, within = Clip(norm=1.0).apply(np.array([math.nan, 1.0]))
    assert np.isnan(clipped).all()
    assert not within


@pytest.mark.parametrize(("quantile", "low", "high"), [(0.5, 4.0, 7.0), (0.9, 8.0, 11.0), (0.1, 0.8, 3.0)])
def test_it_comes_to_the_quantile_of_the_norms_from_either_side(quantile, low, high):
    """Ten parties whose norms are 1 to 10; the oracle is the quantile itself."""
    for start in (0.01, 1000.0):
        clip, places = Clip(norm=start, quantile=quantile, rate=0.2), []
        for _ in range(400):
            clip = clip.followed(sum(norm <= clip.norm for norm in range(1, 11)), 10)
            places.append(clip.norm)
        assert low <= np.exp(np.log(places[200:]).mean()) <= high


def test_it_moves_as_the_paper_says():
    """Andrew et al., algorithm 1: C exp(-rate (share - quantile)), written out."""
    clip = Clip(norm=2.0, quantile=0.75, rate=0.3)
    clip = clip.followed(1, 4)
    assert clip.norm == pytest.approx(2.0 * math.exp(-0.3 * (0.25 - 0.75)))
    clip = clip.followed(4, 4)
    assert clip.norm == pytest.approx(2.0 * math.exp(-0.3 * (0.25 - 0.75)) * math.exp(-0.3 * 0.25))


@given(st.integers(-(2**62), 2**62), st.integers(1, 1000), st.floats(0.01, 0.99), st.floats(0.01, 10))
def test_no_answer_moves_it_further_than_the_rate(forged, members, quantile, rate):
    clip = Clip(norm=3.0, quantile=quantile, rate=rate)
    clip = clip.followed(forged, members)
    assert abs(math.log(clip.norm / 3.0)) <= rate * (1 + 1e-6) + 1e-6


def test_it_shrinks_to_nothing_never():
    clip = Clip(norm=1.0, quantile=0.5, rate=1.0)
    for _ in range(10_000):
        clip = clip.followed(4, 4)
    assert clip.norm == 2.0**-20
    for _ in range(10_000):
        clip = clip.followed(0, 4)
    assert clip.norm == 2.0**20
