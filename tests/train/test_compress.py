"""The maps: linear, right on average, with the error that each states; beside each law what breaks it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.linalg import hadamard as table_of_signs
from scipy.stats import norm as normal

from confide.crypto.fixed import RandomRounding
from confide.crypto.random import SeededRandomness
from confide.errors import UsageError
from confide.train.compress import CountSketch, Rotation, Subset, Whole, compression_of, hadamard
from confide.train.sections import TrainSection

#: Two-sided; seeds are fixed, so this is how likely a new seed would have failed.
FALSE_ALARM = 1e-6
Z = float(normal.isf(FALSE_ALARM / 2))

#: 1500 coordinates: two blocks of 1024, whose factor 1/32 is exact in binary.
LENGTH = 1500
MAPS = {
    "none": Whole(length=LENGTH),
    "rotate": Rotation(length=LENGTH, seed=1, bits=8),
    "rand-k": Subset(length=LENGTH, seed=1, kept=100),
    "sketch": CountSketch(length=LENGTH, seed=1, columns=60),
}
every_map = pytest.mark.parametrize("name", MAPS)


def vectors(count, length=LENGTH, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, size=(count, length)).astype(float)


def mean_is(sample, expected):
    """Whether the mean of `sample`, shape (draws, coordinates), is `expected`: the z test of every coordinate."""
    level = normal.isf(FALSE_ALARM / 2 / sample.shape[1])
    deviation = sample.std(axis=0, ddof=1) / math.sqrt(len(sample))
    return bool((np.abs(sample.mean(axis=0) - expected) <= level * deviation + 1e-9).all())


# --- linear -----------------------------------------------------------------------------------------------------------


@every_map
def test_the_sum_of_what_is_sent_is_what_is_sent_of_the_sum(name):
    """Whole numbers stay exact in float64 under every map here, so this is equality of integers."""
    parts = vectors(7)
    sent = [MAPS[name].forward(part, 3) for part in parts]
    np.testing.assert_array_equal(sum(sent), MAPS[name].forward(parts.sum(axis=0), 3))
    assert all(len(each) == MAPS[name].size for each in sent)
    np.testing.assert_array_equal(MAPS[name].forward(-4 * parts[0], 3), -4 * sent[0])


@pytest.mark.parametrize("name", ["rotate", "rand-k", "sketch"])
def test_parties_with_maps_of_their_own_do_not_add_up(name):
    parts, kind = vectors(7), type(MAPS[name])
    fields = {field: getattr(MAPS[name], field) for field in kind.__dataclass_fields__}
    own = [kind(**fields | {"seed": seed}) for seed in range(len(parts))]
    total = sum(each.forward(part, 3) for each, part in zip(own, parts, strict=True))
    back, common = MAPS[name].backward(total, 3), MAPS[name].backward(MAPS[name].forward(parts.sum(axis=0), 3), 3)
    assert np.linalg.norm(back - common) > 0.5 * np.linalg.norm(common)


@pytest.mark.parametrize("name", ["rotate", "rand-k", "sketch"])
def test_every_round_and_seed_has_its_own_map_and_repeats_it(name):
    part, kind = vectors(1)[0], type(MAPS[name])
    fields = {field: getattr(MAPS[name], field) for field in kind.__dataclass_fields__}
    same, other = kind(**fields), kind(**fields | {"seed": 2})
    np.testing.assert_array_equal(same.forward(part, 3), MAPS[name].forward(part, 3))
    assert (MAPS[name].forward(part, 3) != MAPS[name].forward(part, 4)).any()
    assert (MAPS[name].forward(part, 3) != other.forward(part, 3)).any()


def test_the_job_names_the_map():
    def made(**keys):
        return compression_of(TrainSection(**keys), 1000, 5)

    assert made() == Whole(length=1000)
    assert made(compress="rotate", compress_bits=4) == Rotation(length=1000, seed=5, bits=4)
    assert made(compress="rand-k", compress_share=0.02) == Subset(length=1000, seed=5, kept=20)
    assert made(compress="sketch", compress_share=0.5) == CountSketch(length=1000, seed=5, columns=100)
    assert made(compress="rand-k", compress_share=1e-9).size == 1
    assert made(compress="sketch", compress_share=1e-9).size == 5


# --- rounding by chance -----------------------------------------------------------------------------------------------

GRID = RandomRounding(bits=4, reach=3.5)
VALUES = np.array([0.0, 0.1, 0.25, -0.25, 1.3, -2.9, 3.5, -3.5, 3.49, 1e-9])


def draws(count=40_000):
    integers = GRID.encode(np.tile(VALUES, (count, 1)), SeededRandomness("rounding"))
    return GRID.decode(integers)


def test_rounding_by_chance_is_right_on_average_where_the_nearest_is_not():
    assert mean_is(draws(), VALUES)
    nearest = np.tile(np.rint(VALUES / GRID.step) * GRID.step, (100, 1))
    assert not mean_is(nearest, VALUES)
    assert not mean_is(draws() + 0.02 * GRID.step, VALUES)  # the test sees a fiftieth of a step


def test_rounding_by_chance_has_the_stated_variance():
    above = VALUES / GRID.step - np.floor(VALUES / GRID.step)
    expected = GRID.step**2 * above * (1 - above)
    squares = (draws() - VALUES) ** 2
    assert mean_is(squares, expected)
    assert (expected <= GRID.step**2 / 4).all()
    uniform = np.full(len(VALUES), GRID.step**2 / 12)  # what rounding to the nearest of spread-out values has
    assert not mean_is(squares, uniform)


@given(st.lists(st.floats(allow_nan=False), max_size=20), st.integers(2, 16), st.floats(1e-3, 1e6))
def test_rounded_values_are_neighbours_within_the_bound(values, bits, reach):
    grid = RandomRounding(bits=bits, reach=reach)
    integers = grid.encode(np.array(values, float), SeededRandomness("property"))
    assert integers.dtype == np.int64
    for value, integer in zip(values, integers.tolist(), strict=True):
        assert abs(integer) <= grid.largest == 2 ** (bits - 1) - 1
        assert abs(integer - max(-reach, min(reach, value)) / grid.step) < 1 + 1e-6


@pytest.mark.parametrize("fields", [{"bits": 1}, {"bits": 17}, {"reach": 0.0}, {"reach": -1.0}, {"reach": math.inf}])
def test_a_grid_that_cannot_be_is_refused(fields):
    with pytest.raises(UsageError, match=next(iter(fields))):
        RandomRounding(**{"bits": 8, "reach": 1.0} | fields)


def test_what_is_no_number_is_refused_without_naming_it():
    with pytest.raises(UsageError, match="NaN"):
        GRID.encode(np.array([1.0, math.nan]), SeededRandomness("nan"))


# --- rotate -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(11))
def test_the_transform_is_sylvesters_table(bits):
    values = vectors(1, 1 << bits)[0]
    expected = table_of_signs(1 << bits) @ values / math.sqrt(1 << bits)
    np.testing.assert_allclose(hadamard(values), expected, atol=1e-8)
    np.testing.assert_allclose(hadamard(hadamard(values)), values, atol=1e-8)


def test_the_transform_takes_powers_of_two_only():
    with pytest.raises(UsageError, match="length=3"):
        hadamard(np.ones(3))


@given(st.integers(1, 70), st.integers(1, 1000))
@settings(deadline=None)
def test_a_rotation_is_orthogonal_and_adds_no_coordinate(length, number):
    rotation = Rotation(length=length, seed=1, bits=8)
    table = np.stack([rotation.forward(unit, number) for unit in np.eye(length)], axis=1)
    np.testing.assert_allclose(table @ table.T, np.eye(length), atol=1e-12)
    back = np.stack([rotation.backward(unit, number) for unit in np.eye(length)], axis=1)
    np.testing.assert_allclose(back, table.T, atol=1e-12)


def test_the_cut_that_is_stated_is_the_integral_of_the_tail():
    for bits in range(2, 17):
        t, largest = Rotation(length=2**20, seed=1, bits=bits).deviations, 2 ** (bits - 1) - 1
        price = {}
        for at in (t - 0.1, t):
            tail, _ = quad(lambda u, at=at: 2 * (u - at) * 2 * math.exp(-(u**2) / 2), at, at + 40, epsabs=1e-14)
            price[at] = tail / (at**2 / (6 * largest**2))
        assert price[t] <= 0.1 * (1 + 1e-3) < price[t - 0.1]


def worst(length):
    """Return vectors of norm 1 that a rotation might spread badly: one coordinate, the tail alone, a Gaussian."""
    tail = np.zeros(length)
    tail[-length // 4 :] = 1.0
    gaussian = np.random.default_rng(0).normal(size=length)
    return [np.eye(length)[0], np.eye(length)[-1], tail / np.linalg.norm(tail), gaussian / np.linalg.norm(gaussian)]


@pytest.mark.parametrize("place", range(4))
def test_rotated_coordinates_stay_within_the_stated_tail(place):
    """4 bits: t = 3.1, where at most 1.6 % may lie beyond. A vector that is not turned lies beyond with all it has."""
    rotation, vector = Rotation(length=LENGTH, seed=1, bits=4), worst(LENGTH)[place]
    reach, rounds = rotation.reach(1.0), 300
    turned = np.array([rotation.forward(vector, number) for number in range(rounds)])
    assert (np.abs(turned) > reach).mean() <= 2 * math.exp(-(rotation.deviations**2) / 2)
    cut = np.maximum(np.abs(turned) - reach, 0)
    stated = 4 * (
        math.exp(-(rotation.deviations**2) / 2)
        - rotation.deviations * math.sqrt(2 * math.pi) * normal.sf(rotation.deviations)
    )
    assert (cut**2).sum(axis=1).mean() <= LENGTH / rotation.block * stated
    assert turned.var(axis=0).max() <= 1.6 / rotation.block  # every coordinate's variance is at most ||v||^2 / m
    if place < 2:
        assert (np.maximum(np.abs(vector) - reach, 0) ** 2).sum() > 0.8


def test_every_coordinate_has_the_stated_variance_in_one_block():
    rotation = Rotation(length=256, seed=1, bits=8)
    vector = np.random.default_rng(1).normal(size=256)
    squares = np.array([rotation.forward(vector, number) ** 2 for number in range(4000)])
    assert mean_is(squares, np.full(256, (vector**2).sum() / 256))
    assert not mean_is(squares, vector**2)  # without turning


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_a_rotated_mean_has_the_stated_error(bits):
    """The mean of n vectors through rotation, rounding, exact sum and back: variance at most d s^2 / 4 n, no bias."""
    parties, rounds = 10, 60
    rotation, rng = Rotation(length=LENGTH, seed=1, bits=bits), SeededRandomness("mean")
    parts = np.random.default_rng(2).normal(size=(parties, LENGTH))
    parts /= np.linalg.norm(parts, axis=1)[:, None]
    grid = RandomRounding(bits=bits, reach=rotation.reach(1.0))

    def once(number, encode):
        total = sum(encode(rotation.forward(part, number)) for part in parts)
        return rotation.backward(grid.decode(total) / parties, number)

    errors = np.array([once(n, lambda v: grid.encode(v, rng)) - parts.mean(axis=0) for n in range(rounds)])
    squared = (errors**2).sum(axis=1).mean()
    most = LENGTH * grid.step**2 / 4 / parties
    assert 0.3 * most < squared < most
    assert (errors.mean(axis=0) ** 2).sum() < 2 * squared / rounds  # errors of different rounds cancel


def test_rounding_by_chance_cancels_between_parties_that_agree_where_the_nearest_does_not():
    rotation, rng = Rotation(length=LENGTH, seed=1, bits=4), SeededRandomness("alike")
    vector = worst(LENGTH)[3]
    grid = RandomRounding(bits=4, reach=rotation.reach(1.0))

    def squared(parties, encode):
        found = []
        for number in range(20):
            turned = rotation.forward(vector, number)
            total = sum(encode(turned) for _ in range(parties))
            found.append(((rotation.backward(grid.decode(total) / parties, number) - vector) ** 2).sum())
        return np.mean(found)

    def nearest(turned):
        return np.clip(np.rint(turned / grid.step), -grid.largest, grid.largest).astype(np.int64)

    def chance(turned):
        return grid.encode(turned, rng)

    assert squared(20, chance) == pytest.approx(squared(1, chance) / 20, rel=0.15)
    assert squared(20, nearest) == pytest.approx(squared(1, nearest))
    assert squared(20, nearest) > 5 * squared(20, chance)


# --- rand-k -----------------------------------------------------------------------------------------------------------


def test_subsets_have_the_stated_mean_and_error_over_a_shuffle_exactly():
    subset, vector = MAPS["rand-k"], vectors(1)[0]
    turns = LENGTH // subset.kept
    back = np.array([subset.backward(subset.forward(vector, n), n) for n in range(1, turns + 1)])
    np.testing.assert_allclose(back.mean(axis=0), vector)
    squared = ((back - vector) ** 2).sum(axis=1).mean()
    assert squared == pytest.approx((LENGTH / subset.kept - 1) * (vector**2).sum())
    unscaled = back * subset.kept / LENGTH
    assert np.abs(unscaled.mean(axis=0) - vector).max() > 1


def test_a_round_alone_has_a_uniform_subset():
    """First rounds of many seeds: mean and squared error as stated, which the first k coordinates would not give."""
    vector = np.random.default_rng(3).normal(size=20)
    subsets = [Subset(length=20, seed=seed, kept=6) for seed in range(20_000)]
    back = np.array([subset.backward(subset.forward(vector, 1), 1) for subset in subsets])
    assert mean_is(back, vector)
    squared = ((back - vector) ** 2).sum(axis=1)[:, None]
    assert mean_is(squared, np.array([(20 / 6 - 1) * (vector**2).sum()]))
    first = np.where(np.arange(20) < 6, vector * 20 / 6, 0)
    assert not mean_is(np.tile(first, (100, 1)), vector)


@given(st.integers(1, 60).flatmap(lambda d: st.tuples(st.just(d), st.integers(1, d))), st.integers(1, 200))
def test_a_round_has_as_many_different_coordinates_as_stated_and_none_waits_long(sizes, number):
    length, kept = sizes
    subset, turns = Subset(length=length, seed=1, kept=kept), -(-length // kept)
    assert len(set(subset.forward(np.arange(length, dtype=float), number))) == kept
    start = (number - 1) // turns * turns + 1
    seen = [subset.forward(np.arange(length, dtype=float), n) for n in range(start, start + turns)]
    assert set(np.concatenate(seen)) == set(range(length))


# --- sketch -----------------------------------------------------------------------------------------------------------


def estimates(rows, rounds=3000, columns=12, length=40):
    sketch = CountSketch(length=length, seed=1, rows=rows, columns=columns)
    vector = np.random.default_rng(4).normal(size=length)
    return vector, np.array([sketch.backward(sketch.forward(vector, n), n) for n in range(rounds)])


def test_a_row_has_the_stated_mean_and_variance():
    vector, found = estimates(rows=1)
    assert mean_is(found, vector)
    expected = ((vector**2).sum() - vector**2) / 12
    assert mean_is((found - vector) ** 2, expected)
    assert not mean_is((found - vector) ** 2, expected * 1.3)
    assert not mean_is(np.tile(found[0], (100, 1)), vector)  # the same hashes every round never cancel


def test_the_median_of_rows_is_right_on_average_and_rarely_far_off():
    vector, found = estimates(rows=5)
    assert mean_is(found, vector)
    far = 2 * np.linalg.norm(vector) / math.sqrt(12)
    chance = sum(math.comb(5, k) * 0.25**k * 0.75 ** (5 - k) for k in (3, 4, 5))
    assert chance < 0.104
    assert (np.abs(found - vector) > far).mean() <= chance
    assert ((found - vector) ** 2).mean() < ((estimates(rows=1)[1] - vector) ** 2).mean()


def test_few_large_coordinates_come_back_where_a_subset_loses_them():
    length, vector = 20_000, np.zeros(20_000)
    vector[[5, 700, 19_999]] = [3.0, -1.0, 2.0]
    sketch = CountSketch(length=length, seed=1, columns=400)
    subset = Subset(length=length, seed=1, kept=sketch.size)
    off = {
        each: np.mean([np.linalg.norm(each.backward(each.forward(vector, n), n) - vector) for n in range(1, 11)])
        for each in (sketch, subset)
    }
    assert off[sketch] < 0.01 * np.linalg.norm(vector)
    assert off[subset] > np.linalg.norm(vector)


def test_an_even_number_of_rows_has_no_median():
    with pytest.raises(UsageError, match="rows=4"):
        CountSketch(length=10, seed=1, rows=4, columns=3)
