"""Sufficient statistics: their sensitivity for every neighbour, their exactness, and the noise on them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.dp.moments import Moments
from confide.dp.plan import PrivacyPlan
from confide.errors import UsageError


def records(rng, n, features, targets):
    x = rng.normal(size=(n, features)) * rng.choice([1e-9, 0.1, 1.0, 1e6], size=(n, 1))
    return x, rng.integers(0, targets, n), rng.choice([-1, 1], n)


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("cross_weight", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("features", "grid"), [(1, 3), (2, 64), (31, 512), (60, 8192)])
def test_one_record_moves_the_sums_by_the_sensitivity_at_most(features, grid, targets, cross_weight):
    rng = np.random.default_rng(features)
    moments = Moments(features=features, targets=targets, norm=2.0, grid=grid, cross_weight=cross_weight)
    furthest = 0.0
    for kind in range(60):
        x, places, signs = records(rng, 5, features, targets)
        if kind < 10:  # one coordinate, two, ...: where the products of one record are largest
            x[0] = 0.0
            x[0, : 1 + kind % features] = 1e3
        if kind == 10:
            x[0] = np.nan
        if kind == 11:
            x[0, 0] = np.inf
        whole = moments.summed(x, places, signs).total
        without = moments.summed(x[1:], places[1:], signs[1:]).total
        alone = moments.summed(x[:1], places[:1], signs[:1]).total
        np.testing.assert_array_equal(whole - without, alone)  # nothing but the record itself
        moved = math.sqrt(sum(int(value) ** 2 for value in alone))
        assert moved <= moments.sensitivity
        furthest = max(furthest, moved)
    assert furthest > 0.97 * moments.sensitivity or grid < 64  # the bound is no larger than it must be


def test_the_sums_are_those_of_the_clipped_records():
    rng = np.random.default_rng(2)
    x, places, signs = rng.normal(size=(300, 7)), rng.integers(0, 2, 300), rng.choice([-1, 1], 300)
    moments = Moments(features=7, targets=2, norm=2.0, grid=1 << 13)
    clipped = moments.summed(x, places, signs)
    gram, cross = moments.split(clipped.total * (clipped.clip_norm / clipped.sensitivity))
    short = x * np.minimum(1.0, 2.0 / np.linalg.norm(x, axis=1))[:, None]
    y = np.zeros((300, 2))
    y[np.arange(300), places] = signs
    np.testing.assert_allclose(gram, short.T @ short, rtol=0, atol=0.3)  # 300 roundings of half a step in each factor
    np.testing.assert_allclose(cross, short.T @ y, rtol=0, atol=0.1)
    assert clipped.ignored == 0


def test_the_sums_do_not_depend_on_the_order_or_the_blocks():
    rng = np.random.default_rng(3)
    x, places, signs = records(rng, 9000, 4, 2)
    moments = Moments(features=4, targets=2, norm=1.0, grid=1 << 18)
    order = rng.permutation(9000)
    total = moments.summed(x, places, signs).total
    np.testing.assert_array_equal(total, moments.summed(x[order], places[order], signs[order]).total)
    parts = [slice(0, 1000), slice(1000, 1001), slice(1001, 9000)]
    np.testing.assert_array_equal(total, sum(moments.summed(x[one], places[one], signs[one]).total for one in parts))
    assert moments.summed(x[:0], places[:0], signs[:0]).total.any() == 0


def test_a_plan_releases_them_and_the_noise_is_what_deviations_say():
    moments = Moments(features=5, targets=1, norm=1.0, grid=1 << 11, cross_weight=0.7)
    plan = PrivacyPlan.calibrate(
        epsilon=1.0,
        delta=1e-5,
        clip_norm=moments.clip_norm,
        rounds=1,
        length=moments.length,
        expected_records=100,
        grid=moments.sensitivity,
    )
    rng = SeededRandomness("moments")
    nothing = moments.summed(np.zeros((0, 5)), np.zeros(0, np.int64), np.zeros(0, np.int64))
    beside, cross = np.array([]), np.array([])
    for _ in range(300):
        gram, right = moments.split(plan.decode(plan.release(nothing, rng)))
        beside, cross = np.append(beside, gram[np.triu_indices(5, 1)]), np.append(cross, right)
    expected = moments.deviations(plan.noise_multiplier)
    assert beside.std() == pytest.approx(expected[0], rel=0.06)
    assert cross.std() == pytest.approx(expected[1], rel=0.08)


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": 0},
        {"targets": 0},
        {"norm": 0.0},
        {"norm": math.nan},
        {"grid": 1},
        {"grid": 1 << 19},
        {"cross_weight": -1.0},
    ],
)
def test_sizes_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError):
        Moments(**{"features": 4, "targets": 1, "norm": 1.0, "grid": 64} | wrong)


def test_records_of_another_shape_are_refused():
    moments = Moments(features=2, targets=2, norm=1.0, grid=64)
    one, zero = np.ones(3, np.int64), np.zeros(3, np.int64)
    for x, places, signs in [
        (np.ones((3, 3)), zero, one),
        (np.ones((3, 2)), zero[:2], one),
        (np.ones((3, 2)), zero + 2, one),
        (np.ones((3, 2)), zero, one + 1),
    ]:
        with pytest.raises(UsageError):
            moments.summed(x, places, signs)
