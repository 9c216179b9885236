"""Series of masked values against the functions themselves, and tables of whole numbers against numpy's sine."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ModelError
from confide.mpc import periodic

ERF = np.vectorize(math.erf)
FUNCTIONS = {
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -16.0, 16.0),
    "tanh": (np.tanh, -8.0, 8.0),
    "gelu": (lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2, -8.0, 8.0),
    "exponential": (np.exp, -16.0, 0.0),
    "reciprocal": (lambda x: 1 / x, 1.0, 32.0),
    "reciprocal root": (lambda x: x**-0.5, 0.25, 16.0),
}


def uniform(rng: np.random.Generator, shape) -> np.ndarray:
    return rng.integers(0, 1 << 64, shape, dtype=np.uint64)


def shared(series: periodic.Series, x: np.ndarray, seed: int, scale: int = 16) -> np.ndarray:
    """What two parties and a dealer make of x: the sum of both shares as a real number."""
    rng = np.random.default_rng(seed)
    mask = uniform(rng, x.shape)
    masked = np.rint(x * 2.0**scale).astype(np.int64).view(np.uint64) + mask
    whole = periodic.dealt(series, mask)
    first = tuple(uniform(rng, part.shape) for part in whole)
    second = tuple(part - one for part, one in zip(whole, first, strict=True))
    waves = periodic.factors(series, masked)
    total = periodic.share(series, 0, waves, first) + periodic.share(series, 1, waves, second)
    return total.view(np.int64) * 2.0**-periodic.PRODUCT_BITS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_shares_add_up_to_the_function(name):
    function, low, high = FUNCTIONS[name]
    series = periodic.fit(function, low, high, error=1e-4, scale=16)
    x = np.random.default_rng(1).uniform(low, high, 4000)
    x[:2] = low, high
    assert np.abs(shared(series, x, 2) - function(x)).max() <= 1e-4 + 2.0**-16 * 4  # and x is rounded to 2^-17


def test_a_value_may_have_the_scale_of_a_product():
    function, low, high = FUNCTIONS["sigmoid"]
    series = periodic.fit(function, low, high, error=1e-4, scale=32)
    x = np.random.default_rng(1).uniform(low, high, 4000)
    assert np.abs(shared(series, x, 2, scale=32) - function(x)).max() <= 1e-4 + 2.0**-16


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 56), st.integers(0, 1 << 30), st.data())
def test_any_series_is_evaluated_exactly(period, seed, data):
    terms = data.draw(st.integers(1, 6))
    numbers = st.lists(st.integers(-(1 << 20), 1 << 20), min_size=terms, max_size=terms)
    series = periodic.Series(period, (data.draw(st.integers(-9, 9)), *data.draw(numbers)), tuple(data.draw(numbers)))
    x = np.random.default_rng(seed).uniform(-100, 100, 64).round(3)
    held = np.rint(x * 2**16) / 2**16
    largest = sum(map(abs, (*series.cosines, *series.sines))) * 2.0**-20
    assert np.abs(shared(series, x, seed) - series.apply(held, 16)).max() <= largest * 2.0**-22 + terms * 2.0**-18


def test_beyond_its_bound_a_series_is_wrong():
    """The negative control: the bound says something."""
    function, low, high = FUNCTIONS["sigmoid"]
    series = periodic.fit(function, low, high, error=1e-4, scale=16)
    assert np.abs(shared(series, np.array([30.0, 40.0]), 1) - 1.0).max() > 1e-2


def test_a_kink_is_refused():
    with pytest.raises(ModelError, match="96 frequencies"):
        periodic.fit(np.abs, -8.0, 8.0, error=1e-4, scale=16)


def test_waves_of_whole_numbers_are_cosines_and_sines():
    phase = np.concatenate([np.arange(5000), np.random.default_rng(3).integers(0, 1 << 24, 20000)])
    cosine, sine = periodic.whole_waves(phase)
    angle = 2 * np.pi * phase / (1 << 24)
    assert np.abs(cosine - 2**30 * np.cos(angle)).max() <= 2
    assert np.abs(sine - 2**30 * np.sin(angle)).max() <= 2


def test_waves_of_whole_numbers_are_the_same_everywhere():
    """Both parties must agree to the last bit, whatever their machines are."""
    cosine, sine = periodic.whole_waves(np.arange(0, 1 << 24, 9973))
    assert zlib.crc32(cosine.astype("<i8").tobytes() + sine.astype("<i8").tobytes()) == 1944458154
