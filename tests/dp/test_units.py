"""Units larger than a record: what adding or removing one moves, at several silos together, by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness
from confide.dp.mechanisms import clipped_sum, clipped_unit_sum, unit_sums
from confide.dp.moments import Moments
from confide.dp.plan import PrivacyPlan
from confide.errors import PrivacyError, UsageError

LENGTH = 6


def plan(parties=1, **changed):
    given = {"epsilon": 1.0, "delta": 1e-5, "clip_norm": 0.5, "rounds": 3, "length": LENGTH, "expected_records": 100}
    given |= {"silos": 4, "quorum": 4, "unit": "patient", "parties_per_unit": parties}
    return PrivacyPlan.calibrate(**given | changed)


def silos_of(rng, *, parties):
    """Return (rows, units) of four silos: unit 0 has records in `parties` of them, far longer than the clip."""
    found = []
    for place in range(4):
        n = int(rng.integers(0, 12))
        rows = rng.normal(size=(n, LENGTH)) * rng.choice([1e-6, 0.1, 1e3], size=(n, 1))
        if n and rng.random() < 0.3:
            rows[0, 0] = rng.choice([np.nan, np.inf])
        units = rng.integers(1, 5, n)
        if place < parties:
            mine = np.abs(rng.normal(size=(int(rng.integers(1, 9)), LENGTH))) * rng.choice(
                [0.2, 1e4]
            )  # all point one way
            order = rng.permutation(n + len(mine))
            rows = np.concatenate([rows, mine])[order]
            units = np.concatenate([units, np.zeros(len(mine), np.int64)])[order]
        found.append((rows, units.astype(np.int64)))
    return found


def per_record(made, rows, units):
    """The wrong one: every record is clipped by itself, so that a unit moves the sum once for each of its records."""
    return clipped_sum(rows, clip_norm=made.clip_norm, grid=made.grid).total


def whole_clip_at_each(made, rows, units):
    """The wrong one: a unit at k silos moves the sum k times."""
    return clipped_unit_sum(rows, units, clip_norm=made.clip_norm, grid=made.grid).total


def right(made, rows, units):
    return made.clipped_sum(rows, units).total


def furthest(mechanism, parties, *, trials=80):
    """Return the most, in grid steps over the declared sensitivity, by which removing one unit moved the sum."""
    made, most = plan(parties), 0.0
    for trial in range(trials):
        rng = np.random.default_rng([parties, trial])
        data = silos_of(rng, parties=parties)
        whole = sum(mechanism(made, *silo) for silo in data)
        less = sum(mechanism(made, rows[units != 0], units[units != 0]) for rows, units in data)
        moved = math.sqrt(sum(int(value) ** 2 for value in (whole - less)))
        most = max(most, moved / made.event(1).sensitivity)
    return most


@pytest.mark.parametrize("parties", [1, 2, 3, 4])
def test_removing_a_unit_with_all_its_records_everywhere_moves_the_sum_by_what_is_declared(parties):
    assert 0.9 < furthest(right, parties) <= 1.0


def test_clipping_each_record_fails_that_test():
    assert furthest(per_record, 1) > 2


def test_the_whole_clip_at_each_silo_fails_that_test():
    assert furthest(whole_clip_at_each, 1) <= 1
    assert furthest(whole_clip_at_each, 3) > 2


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(0, 30))
def test_a_units_sum_is_bit_for_bit_the_same_whatever_the_others_are(seed, n):
    rng = np.random.default_rng(seed)
    rows, units = rng.normal(size=(n, 5)), rng.integers(0, 4, n)
    sums = unit_sums(rows, units)
    for place, unit in enumerate(np.unique(units)):
        alone = unit_sums(rows[units == unit], units[units == unit])
        np.testing.assert_array_equal(sums[place : place + 1], alone)
        np.testing.assert_allclose(alone[0], rows[units == unit].sum(axis=0), atol=1e-12)


def test_a_record_that_is_no_number_takes_nobody_with_it():
    rows = np.array([[1.0, 2.0], [np.nan, 1.0], [3.0, 3.0]])
    np.testing.assert_array_equal(unit_sums(rows, np.array([7, 7, 3])), [[3.0, 3.0], [1.0, 2.0]])


def moments(**changed):
    return Moments(**{"features": 4, "targets": 2, "norm": 1.0, "grid": 128, "parts": 256} | changed)


def moved_by_one_unit(made, parties, records, *, weights=True):
    """Return the most by which a unit with so many records at each of `parties` silos moves the sums, over s."""
    most = 0.0
    for trial in range(40):
        rng = np.random.default_rng([parties, records, trial])
        whole = np.zeros(made.length, np.int64)
        for _ in range(parties):
            x = np.repeat(rng.normal(size=(1, made.features)) * 10, records, axis=0)  # all alike: nothing cancels
            places, signs = np.zeros(records, np.int64), np.ones(records, np.int64)
            units = np.zeros(records, np.int64) if weights else np.arange(records)
            others = rng.normal(size=(5, made.features)), rng.integers(0, 2, 5), rng.choice([-1, 1], 5)
            both = [np.concatenate(pair) for pair in zip((x, places, signs), others, strict=True)]
            ids = np.concatenate([units, 1000 + np.arange(5)])
            rest = made.summed(*others, ids[records:], parties=parties).total
            whole += made.summed(*both, ids, parties=parties).total - rest
        most = max(most, math.sqrt(sum(int(value) ** 2 for value in whole)) / made.sensitivity)
    return most


@pytest.mark.parametrize("parties", [1, 2, 3])
@pytest.mark.parametrize("records", [1, 3, 100, 300])
def test_a_unit_moves_statistics_by_their_sensitivity_however_many_records_it_has(parties, records):
    assert 0.75 < moved_by_one_unit(moments(), parties, records) <= 1.0


def test_records_that_each_count_as_a_unit_fail_that_test():
    assert moved_by_one_unit(moments(), 1, 3, weights=False) > 2


def test_statistics_of_units_are_those_of_their_mean_records():
    rng = np.random.default_rng(5)
    x, places = rng.normal(size=(60, 4)) * 0.3, rng.integers(0, 2, 60)
    x /= np.maximum(1, np.linalg.norm(x, axis=1))[:, None]
    units = np.repeat(np.arange(20), 3)
    made = moments(grid=1 << 11)
    clipped = made.summed(x, places, np.ones(60, np.int64), units)
    gram, cross = made.split(clipped.total * (clipped.clip_norm / clipped.sensitivity))
    np.testing.assert_allclose(gram, x.T @ x / 3, atol=0.05)
    np.testing.assert_allclose(cross, x.T @ np.eye(2)[places] / 3, atol=0.05)


def test_the_plan_says_whose_presence_it_is_about():
    fields = plan(2).label_fields()
    assert fields["unit"] == "patient"
    for said in ("all its records", "2 parties", "assumed"):
        assert said in fields["relation"]
    assert plan(2).noise_multiplier == pytest.approx(
        plan(1).noise_multiplier, rel=1e-6
    )  # the clip is shared, not more noise


def test_units_and_plans_that_do_not_fit_are_refused():
    rows, units = np.ones((3, LENGTH)), np.zeros(3, np.int64)
    with pytest.raises(PrivacyError, match="units"):
        plan().clipped_sum(rows)
    with pytest.raises(PrivacyError, match="units"):
        plan(unit="record").clipped_sum(rows, units)
    for changed in ({"parties_per_unit": 5}, {"parties_per_unit": 0}, {"unit": "record", "parties_per_unit": 2}):
        with pytest.raises(UsageError, match="parties_per_unit"):
            plan(**changed)
    with pytest.raises(UsageError, match="one unit"):
        unit_sums(rows, units[:2])
    with pytest.raises(UsageError, match="parts"):
        moments().summed(np.ones((3, 4)), units, units + 1)
    with pytest.raises(UsageError, match="parts"):
        moments(parts=1).summed(np.ones((3, 4)), units, units + 1, units)


def test_what_is_released_is_the_units_sum_with_the_noise():
    made, rng = plan(), np.random.default_rng(3)
    clipped = made.clipped_sum(rng.normal(size=(9, LENGTH)), np.repeat([4, 5, 6], 3))
    released = np.stack([made.release(clipped, SeededRandomness(str(k))) for k in range(200)])
    spread = np.std(released - clipped.total) / math.sqrt(made.share_variance)
    assert 0.9 < spread < 1.1
