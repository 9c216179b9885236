"""Slow waves against scipy's discrete cosine transform."""

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ModelError
from confide.model.frequencies import Frequencies

seeds = st.integers(0, 2**32)
SIZES = [(3, 7, 7, 3), (5, 4, 6, 4), (1, 1, 1, 1), (2, 9, 2, 2)]


def maps(seed, n, channels, height, width):
    return np.random.default_rng(seed).uniform(0, 1, (n, channels * height * width)) ** 4


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_waves_are_those_of_a_cosine_transform(size):
    channels, height, width, kept = size
    x = maps(1, 5, channels, height, width)
    roots = (x.reshape(5, channels, height, width) + 0.01) ** 0.25
    whole = scipy.fft.dctn(roots, type=2, axes=(2, 3)) / (4 * height * width)
    low = np.add.outer(np.arange(height), np.arange(width)) < kept
    transform = Frequencies(*size)
    assert transform.features == channels * kept * (kept + 1) // 2 == channels * low.sum()
    np.testing.assert_allclose(transform.apply(x), whole[:, :, low].reshape(5, -1), atol=1e-7)


def test_a_flat_map_has_its_mean_and_no_wave():
    found = Frequencies(2, 7, 7, 4).apply(np.full((1, 98), 0.5)).reshape(2, 10)
    np.testing.assert_allclose(found[:, 0], 0.51**0.25, atol=1e-7)
    np.testing.assert_allclose(found[:, 1:], 0.0, atol=1e-7)


@given(seeds, st.integers(1, 70), st.integers(0, 69))
@settings(max_examples=30, deadline=None)
def test_a_row_depends_on_its_own_maps_alone(seed, n, place):
    transform, x = Frequencies(3, 7, 7, 5), maps(seed, n, 3, 7, 7)
    place %= n
    alone = transform.apply(x[place, None])[0]
    assert np.array_equal(alone, transform.apply(x)[place])
    x[np.arange(n) != place] = 1.0
    assert np.array_equal(alone, transform.apply(x[::-1])[n - 1 - place])


@given(seeds)
def test_features_keep_their_bound_whatever_the_maps_are(seed):
    x = np.random.default_rng(seed).normal(0, 3, (4, 50)).round()
    assert (np.abs(Frequencies(2, 5, 5, 5).apply(x)) <= 1.01).all()


@pytest.mark.parametrize("kept", [-1, 0, 8, 10**18])
def test_more_waves_than_places_are_refused(kept):
    with pytest.raises(ModelError, match="from 1 to 7, the shorter side"):
        Frequencies(2, 9, 7, kept)
