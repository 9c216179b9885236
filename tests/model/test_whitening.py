"""Whitening against scipy's matrix functions, and how much of a row it lets depend on anything else: nothing."""

import msgspec
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ModelError
from confide.model.exact import DIGITS
from confide.model.pixels import Pixels
from confide.model.preprocess import Preprocess, Scale
from confide.model.scattering import Scattering
from confide.model.synthetic import synthetic
from confide.model.whitening import (
    _DEVIATIONS,
    _MATRIX_BITS,
    _ROW_BITS,
    MOST_WHITENED,
    Whitener,
    Whitening,
)

seeds = st.integers(0, 2**32)
RECIPE = Whitening(images="natural", count=200, seed=5)
SCAN = Pixels(name="scan", height=16, width=12, low=0, high=255, scales=2, angles=4, frequencies=2, whitening=RECIPE)


def correlated(seed, n=400, features=9):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, features)) @ rng.normal(size=(features, features)) + 3.0 * rng.normal(size=features)


def by_scipy(rows, x):
    """Return what the module promises, by other functions."""
    deviation = np.std(rows, axis=0)
    scaled = lambda y: (y - np.mean(rows, axis=0)) / (deviation + 1e-3 * np.mean(deviation))  # noqa: E731
    matrix = scipy.linalg.inv(scipy.linalg.sqrtm(np.corrcoef(rows.T) + np.eye(rows.shape[1])))
    length = np.median(np.linalg.norm(scaled(rows) @ matrix, axis=1))
    return np.clip(scaled(x) @ matrix / length, -1.0, 1.0)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_rows_are_centred_scaled_and_whitened(seed):
    rows, x = correlated(seed), correlated(seed + 1, n=7)
    np.testing.assert_allclose(Whitener.of(rows).apply(x), by_scipy(rows, x), atol=1e-4)


def test_common_directions_are_levelled_and_the_median_length_is_one():
    rows = correlated(3, n=4000)
    found = Whitener.of(rows).apply(rows)
    assert abs(np.median(np.linalg.norm(found, axis=1)) - 1.0) < 0.02
    spread = lambda x: np.linalg.eigvalsh(np.corrcoef(x.T))  # noqa: E731
    before, after = spread(rows), np.linalg.eigvalsh(np.cov(found.T))
    assert after[-1] / after[len(after) // 2] < 0.7 * before[-1] / before[len(before) // 2]


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_the_units_of_features_do_not_matter(seed):
    """Up to the small number that is added to the deviations."""
    rng = np.random.default_rng(seed)
    rows, x = correlated(seed), correlated(seed + 1, n=5)
    unit, zero = rng.uniform(0.5, 2.0, 9), rng.normal(size=9)
    other = Whitener.of(rows * unit + zero).apply(x * unit + zero)
    np.testing.assert_allclose(other, Whitener.of(rows).apply(x), atol=0.02)


def test_a_feature_that_synthetic_images_never_show_stays_within_bounds():
    rows = correlated(1)
    rows[:, 4] = 0.25
    whitener = Whitener.of(rows)
    x = np.full((2, 9), 0.25)
    x[1, 4] = 1e9
    found = whitener.apply(x)
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 1.0).all()


@given(seeds, st.integers(1, 70), st.integers(0, 69))
@settings(max_examples=30, deadline=None)
def test_a_row_depends_on_itself_alone_bit_by_bit(seed, n, place):
    whitener, x = Whitener.of(correlated(0, features=60)), correlated(seed, n=n, features=60)
    place %= n
    alone = whitener.apply(x[place, None])[0]
    assert np.array_equal(alone, whitener.apply(x)[place])
    x[np.arange(n) != place] = 1e30
    assert np.array_equal(alone, whitener.apply(x[::-1])[n - 1 - place])


@pytest.mark.parametrize("features", [3, 60, 400])
def test_no_partial_sum_leaves_the_digits(features):
    """By Cauchy and Schwarz: the longest row times the longest column of the matrix, in steps of both grids."""
    matrix = Whitener.of(correlated(2, n=features // 2 + 5, features=features)).matrix
    columns = float(np.linalg.norm(matrix, axis=0).max())
    assert columns < 1.001
    assert _DEVIATIONS * MOST_WHITENED**0.5 * columns < 2.0 ** (DIGITS - _ROW_BITS - _MATRIX_BITS)


# --- as a rule of images ----------------------------------------------------------------------------------------------


def pictures(seed, n):
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 12)).astype(np.uint8)


def waves_by_hand(images):
    maps = Scattering(16, 12, 2, 4).apply(images).reshape(len(images), -1, 4, 3)
    roots = (maps + 0.01) ** 0.25
    whole = scipy.fft.dctn(roots, type=2, axes=(2, 3))
    return np.stack([whole[:, :, 0, 0], whole[:, :, 0, 1], whole[:, :, 1, 0]], axis=2).reshape(len(images), -1)


def test_images_are_whitened_by_the_synthetic_ones_of_the_recipe():
    images = pictures(1, 6)
    expected = by_scipy(waves_by_hand(synthetic("natural", 200, 16, 12, 5)), waves_by_hand(images / 255.0))
    np.testing.assert_allclose(SCAN.apply(images), expected, atol=2e-3)
    other = msgspec.structs.replace(SCAN, whitening=Whitening(images="strokes", count=200, seed=5))
    assert np.abs(other.apply(images) - expected).max() > 0.05  # a control: other images would be noticed


def test_the_recipe_travels_and_not_the_matrix():
    prepare = Preprocess((SCAN,), unit_rows=True)
    before, images = prepare.encode(), pictures(2, 3)
    x = prepare.apply({"scan": images})
    assert prepare.encode() == before
    assert len(before) < 500
    again = Preprocess.decode(before)
    assert again == prepare
    np.testing.assert_array_equal(again.apply({"scan": images}), x)


def test_features_beside_others_are_within_bounds_and_have_names():
    prepare = Preprocess((Scale(name="age", low=0, high=120), SCAN))
    x = prepare.apply({"age": np.full(40, 50.0), "scan": pictures(3, 40)})
    assert x.shape == (40, prepare.features) == (40, 1 + 25 * 3)
    assert len(set(prepare.names)) == prepare.features
    assert prepare.names[1:5] == ("scan[0,0,0]", "scan[0,0,1]", "scan[0,1,0]", "scan[1,0,0]")
    assert (np.abs(x) <= 1.0).all()


@given(seeds, st.integers(2, 30))
@settings(max_examples=10, deadline=None)
def test_a_record_s_features_do_not_depend_on_the_other_records(seed, n):
    prepare = Preprocess((SCAN,), unit_rows=True, centre=(0.01,) * SCAN.count)
    images = pictures(seed, n)
    order = np.random.default_rng(seed).permutation(n)
    whole = prepare.apply({"scan": images})
    assert np.array_equal(prepare.apply({"scan": images[order]}), whole[order])
    assert np.array_equal(prepare.apply({"scan": images[:1]})[0], whole[0])


def test_whole_maps_and_means_may_be_whitened_too():
    for form in ({"averaged": True}, {"groups": 5}, {}):
        rule = msgspec.structs.replace(SCAN, frequencies=0, **form)
        x = rule.apply(pictures(4, 3))
        assert x.shape == (3, rule.count)
        assert (np.abs(x) <= 1.0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"frequencies": -1},
        {"frequencies": 4},  # the maps have 4 x 3 places
        {"frequencies": 10**18},
        {"frequencies": 1, "averaged": True},
        {"frequencies": 1, "groups": 5},
        {"scales": 0},
        {"scales": 0, "frequencies": 0},
        {"height": 128, "width": 128, "frequencies": 0},  # more features than are whitened
        {"height": 256, "width": 256, "whitening": {"images": "natural", "count": 4096, "seed": 0}},
        {"whitening": {"images": "natural", "count": 10**12, "seed": 0}},
        {"whitening": {"images": "natural", "count": 1, "seed": 0}},
        {"whitening": {"images": "natural", "count": 9, "seed": 2**63}},
        {"whitening": {"images": "photographs", "count": 9, "seed": 0}},
        {"whitening": {"images": "natural", "count": 9, "seed": 0, "unknown": 1}},
    ],
    ids=str,
)
def test_hostile_recipes_are_refused_before_anything_is_made(changes):
    good = msgspec.to_builtins(Preprocess((SCAN,)))
    assert Preprocess.decode(msgspec.msgpack.encode(good)).features == 75
    good["rules"] = [good["rules"][0] | changes]
    with pytest.raises(ModelError):
        Preprocess.decode(msgspec.msgpack.encode(good))


@pytest.mark.parametrize("sides", [(28, 28), (256, 256), (64, 200), (8, 8)], ids=str)
def test_the_usual_recipe_fits_every_size(sides):
    recipe = Whitening.usual("strokes", *sides)
    recipe.check(100, *sides)
    assert 200 < recipe.count <= 4096


def test_a_recipe_that_would_take_minutes_is_refused():
    """121 bytes of a model file asked for ten minutes: whoever opens it must not pay for them."""
    rule = {"rule": "pixels", "name": "i", "low": 0, "high": 1, "height": 64, "width": 64, "scales": 5, "angles": 14}
    rule |= {"averaged": True, "whitening": {"images": "natural", "count": 4096, "seed": 1}}
    with pytest.raises(ModelError):
        Preprocess.decode(msgspec.msgpack.encode({"rules": [rule]}))
    small = {**rule, "scales": 2, "angles": 8, "height": 28, "width": 28}
    many = {"rules": [{**small, "name": f"i{place}"} for place in range(5)]}
    with pytest.raises(ModelError, match="at most 4 columns"):
        Preprocess.decode(msgspec.msgpack.encode(many))
    assert Preprocess.decode(msgspec.msgpack.encode({"rules": [small]})).features == 81
