"""The plan: calibrated to the safe side, one object for everything, and closed to what it was not made for."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from itertools import product

import dp_accounting
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.dp.mechanisms import Clipped
from confide.dp.plan import PrivacyPlan, Releases
from confide.errors import PrivacyError, UsageError
from confide.guarantee import PrivacyLabel
from confide.ideal import Cohort, Session

HOSPITALS = {
    "epsilon": 1.0,
    "delta": 1e-5,
    "clip_norm": 0.5,
    "rounds": 20,
    "length": 31,
    "silos": 4,
    "quorum": 3,
    "colluding": 1,
    "expected_records": 455,
}


@pytest.fixture
def plan():
    return PrivacyPlan.calibrate(**HOSPITALS)


@pytest.mark.parametrize(
    ("epsilon", "delta", "rounds", "length", "parties"),
    list(product([0.1, 1.0, 8.0], [1e-5, 1e-9], [1, 50], [31, 40_000], [(1, 1, 0), (4, 3, 1), (10, 7, 3)])),
)
def test_calibration_ends_on_the_safe_side_and_close(epsilon, delta, rounds, length, parties):
    silos, quorum, colluding = parties
    changes = {"epsilon": epsilon, "delta": delta, "rounds": rounds, "length": length}
    changes |= {"silos": silos, "quorum": quorum, "colluding": colluding}
    plan = PrivacyPlan.calibrate(**HOSPITALS | changes)
    assert epsilon * (1 - 1e-9) <= plan.epsilon_server <= epsilon
    assert plan.epsilon_outsiders <= plan.epsilon_server
    needed = dp_accounting.get_sigma_gaussian(epsilon, delta) * math.sqrt(rounds)
    assert needed * (1 - 1e-9) <= plan.noise_multiplier <= needed * 1.001
    with pytest.raises(PrivacyError, match="Expected noise for epsilon"):
        replace(plan, share_variance=plan.share_variance * (1 - 1e-6))


def test_the_promise_holds_by_an_accountant_of_somebody_else(plan):
    accountant = dp_accounting.pld.PLDAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4
    )
    accountant.compose(dp_accounting.GaussianDpEvent(plan.noise_multiplier), plan.rounds)
    assert accountant.get_epsilon(plan.delta) == pytest.approx(plan.epsilon_server, rel=2e-3)


def test_who_sees_more_noise_learns_less(plan):
    assert plan.shares == 2
    outsiders = dp_accounting.get_epsilon_gaussian(
        plan.noise_multiplier * math.sqrt(3 / 2) / math.sqrt(plan.rounds), plan.delta
    )
    assert plan.epsilon_outsiders == pytest.approx(outsiders, rel=1e-6)


def test_the_central_model_is_the_default():
    central = PrivacyPlan.calibrate(epsilon=1.0, clip_norm=1.0, rounds=1, length=10, expected_records=1000)
    assert (central.silos, central.quorum, central.colluding, central.shares) == (1, 1, 0, 1)
    assert central.delta == pytest.approx(1000**-1.1)
    assert central.epsilon_outsiders == central.epsilon_server


def test_the_split_costs_what_the_shares_missing_cost():
    split = PrivacyPlan.calibrate(**HOSPITALS)
    central = PrivacyPlan.calibrate(**HOSPITALS | {"silos": 1, "quorum": 1, "colluding": 0})
    assert split.shares * split.share_variance == pytest.approx(central.share_variance, rel=1e-9)


def test_a_plan_is_frozen(plan):
    with pytest.raises(FrozenInstanceError):
        plan.epsilon = 2.0  # type: ignore[misc]


@given(count=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_what_is_released_is_the_clipped_sum_plus_the_noise(count, seed):
    plan = PrivacyPlan.calibrate(**HOSPITALS)
    rows = np.random.Generator(np.random.PCG64(seed)).normal(0, 0.1, (count, 31))
    clipped = plan.clipped_sum(rows)
    released = plan.release(clipped, SeededRandomness(str(seed)))
    assert released.dtype == np.int64
    assert np.array_equal(released - plan.noise(SeededRandomness(str(seed))), clipped.total)
    norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    truth = (rows * np.minimum(1, plan.clip_norm / norms)).sum(axis=0)
    # one record loses at most sqrt(d) / 2s of its norm to clipping and half a grid step per entry to rounding
    error = count * plan.clip_norm * (math.sqrt(31) / 2 + 0.5) / plan.grid
    assert np.abs(plan.decode(clipped.total) - truth).max() <= error + 1e-9


def test_every_release_draws_fresh_noise(plan):
    clipped, rng = plan.clipped_sum(np.zeros((1, 31))), SystemRandomness()
    assert not np.array_equal(plan.release(clipped, rng), plan.release(clipped, rng))


def test_the_bound_fits_a_session_and_is_never_exceeded(plan):
    session = Session("run", 1, Cohort(("a", "b", "c", "d"), 3), plan.length, plan.bound)
    assert plan.bound >= plan.max_records * plan.grid + 12 * math.sqrt(plan.share_variance)
    assert session.ring_bits <= 32
    rows = np.full((plan.max_records + 1000, 31), 1.0)
    rows[:, 1:] = 0.0  # a silo with more records than agreed, all pulling the same way
    clipped = plan.clipped_sum(rows)
    assert clipped.total[0] > plan.max_records * plan.grid
    session.checked(plan.release(clipped, SeededRandomness("bound")))


def test_cutting_a_large_sum_does_not_move_neighbours_apart():
    plan = PrivacyPlan.calibrate(**HOSPITALS | {"max_records": 3})
    draw = np.random.Generator(np.random.PCG64(5))
    for _ in range(200):
        rows = draw.normal(0.2, 0.3, (8, 31))
        first, second = (plan.release(plan.clipped_sum(part), SeededRandomness("frozen")) for part in (rows, rows[:-1]))
        assert math.sqrt(float(((first - second) ** 2).sum())) <= plan.grid


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(31, np.int64),
        None,
        Clipped(np.zeros(31, np.int64), 511, 0.5, 0),
        Clipped(np.zeros(31, np.int64), 512, 1.0, 0),
        Clipped(np.zeros(30, np.int64), 512, 0.5, 0),
    ],
)
def test_only_this_plan_s_clipped_sum_is_released(plan, wrong):
    with pytest.raises(PrivacyError, match="clipped_sum of this plan"):
        plan.release(wrong, SystemRandomness())


@pytest.mark.parametrize("shape", [(3, 30), (31,), (3, 31, 1)])
def test_rows_of_another_length_are_refused(plan, shape):
    with pytest.raises(UsageError, match="length=31"):
        plan.clipped_sum(np.zeros(shape))


def test_releases_are_counted_and_stop(plan):
    clipped = plan.clipped_sum(np.zeros((2, 31)))
    releases, rng = Releases(plan), SystemRandomness()
    for _ in range(plan.rounds):
        releases.release(clipped, rng)
    assert releases.done == plan.rounds == plan.event(plan.shares).rounds
    with pytest.raises(PrivacyError, match="at most releases=20, got 21"):
        releases.release(clipped, rng)
    assert releases.done == plan.rounds


def test_a_restarted_silo_goes_on_counting(plan):
    releases = Releases(plan, done=19)
    releases.release(plan.clipped_sum(np.zeros((0, 31))), SystemRandomness())
    with pytest.raises(PrivacyError, match="got 21"):
        releases.release(plan.clipped_sum(np.zeros((0, 31))), SystemRandomness())
    for done in (-1, 21):
        with pytest.raises(PrivacyError, match="at most releases=20"):
            Releases(plan, done=done)


def test_a_refused_sum_counts_all_the_same(plan):
    releases = Releases(plan)
    with pytest.raises(PrivacyError, match="clipped_sum of this plan"):
        releases.release(None, SystemRandomness())  # type: ignore[arg-type]
    assert releases.done == 1


def test_what_was_spent_grows_to_the_promise(plan):
    spent = [plan.spent(count) for count in range(plan.rounds + 1)]
    assert spent[0] == 0.0
    assert spent == sorted(spent)
    assert spent[-1] == plan.epsilon_server
    single = dp_accounting.get_epsilon_gaussian(plan.noise_multiplier, plan.delta)
    assert spent[1] == pytest.approx(single, rel=1e-6)
    with pytest.raises(PrivacyError, match="got 21"):
        plan.spent(21)


def test_the_label_states_the_plan(plan):
    label = PrivacyLabel(
        aggregator="masked", parties=("a", "b", "c", "d"), quorum=3, colluding=1, rounds=20, **plan.label_fields()
    )
    assert (label.epsilon, label.delta, label.clip_norm) == (1.0, 1e-5, 0.5)
    assert label.epsilon_outsiders == plan.epsilon_outsiders
    assert label.mu == pytest.approx(math.sqrt(20) / plan.noise_multiplier, rel=1e-6)
    assert "2 of 4 shares" in label.mechanism
    assert "theorem 1" in label.accountant
    assert "epsilon=1 at delta=1e-05 per record (add or remove one)" in label.sentence()


def test_a_fixed_seed_reaches_the_label(plan):
    rng = SeededRandomness("test")
    label = PrivacyLabel(
        aggregator="plain", parties=("a",), quorum=1, colluding=0, rounds=1, seed=rng.origin, **plan.label_fields()
    )
    assert "no privacy claim" in label.sentence()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"epsilon": 0.0}, UsageError, "epsilon=0.0"),
        ({"epsilon": math.inf}, UsageError, "epsilon=inf"),
        ({"delta": 0.0}, UsageError, "delta=0.0"),
        ({"delta": 1.0}, UsageError, "delta=1.0"),
        ({"delta": 1e-28}, PrivacyError, "larger delta"),
        ({"clip_norm": 0.0}, UsageError, "clip_norm=0.0"),
        ({"clip_norm": math.nan}, UsageError, "clip_norm=nan"),
        ({"rounds": 0}, UsageError, "rounds=0"),
        ({"length": 0}, UsageError, "length=0"),
        ({"expected_records": 0}, UsageError, "expected_records=0"),
        ({"max_records": 0}, UsageError, "max_records=0"),
        ({"quorum": 5}, UsageError, "quorum=5"),
        ({"quorum": 0}, UsageError, "quorum=0"),
        ({"colluding": 3}, PrivacyError, "somebody honest"),
        ({"colluding": -1}, PrivacyError, "colluding=-1"),
        ({"grid": 5}, UsageError, "grid=5"),
        ({"grid": 1 << 31}, UsageError, "grid="),
        ({"grid": 6, "epsilon": 30.0, "rounds": 1}, PrivacyError, "finer grid"),
        ({"grid": 6, "epsilon": 8.0, "rounds": 1, "quorum": 4}, PrivacyError, "finer grid"),
        ({"grid": 1 << 30, "epsilon": 0.01, "rounds": 50}, PrivacyError, "coarser grid"),
        ({"grid": 1 << 30, "max_records": 1 << 31}, PrivacyError, "sums below 2"),
    ],
)
def test_what_cannot_hold_is_refused(change, error, text):
    with pytest.raises(error, match=text):
        PrivacyPlan.calibrate(**HOSPITALS | change)


def test_a_plan_made_by_hand_must_keep_its_promise_too(plan):
    assert replace(plan, share_variance=plan.share_variance * 2).epsilon_server < 1
    with pytest.raises(PrivacyError, match=r"use PrivacyPlan\.calibrate"):
        replace(plan, rounds=21)
    with pytest.raises(PrivacyError, match="finer grid"):
        replace(plan, share_variance=1.0)
    with pytest.raises(PrivacyError, match="coarser grid"):
        replace(plan, share_variance=2.0**81)
