"""The noise that is really in a released sum: as wide as claimed for every set of survivors, and from every silo.

Seeded, so nothing flakes. False-alarm budget, had the seeds been drawn afresh: each test alarms with probability 1e-6,
40 tests, 4e-5 in all. Each has its teeth shown: the same test on 2/3 or 3/2 of the noise, or on a silo that cheats.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from confide.crypto.noise import discrete_gaussian
from confide.crypto.random import SeededRandomness
from statistical.federation import CLIENTS, Hospitals, half_noise, honest, north_leaves_out, plan_of

ALARM = 1e-6
LENGTH = 4000
SURVIVORS = [None, *CLIENTS]  # who is missing


@pytest.fixture(scope="module")
def plan():
    return plan_of(LENGTH)


def records() -> dict[str, np.ndarray]:
    draw = np.random.Generator(np.random.PCG64(1))
    return {name: draw.normal(0, 1, (3, LENGTH)) for name in CLIENTS}


def has_variance(sample: np.ndarray, variance: float) -> bool:
    """Two-sided chi-square test that zero-mean, near-normal draws have `variance`."""
    statistic = float((sample.astype(np.float64) ** 2).sum()) / variance
    return stats.chi2.ppf(ALARM / 2, len(sample)) < statistic < stats.chi2.isf(ALARM / 2, len(sample))


def carries(sample: np.ndarray, variance: float) -> bool:
    """One-sided: True unless the draws have less than `variance` beyond doubt."""
    return float((sample.astype(np.float64) ** 2).sum()) / variance > stats.chi2.ppf(ALARM, len(sample))


@pytest.mark.parametrize("silo", CLIENTS)
def test_one_share_is_as_wide_as_the_plan_says_and_no_other_width(plan, silo):
    share = plan.noise(SeededRandomness(f"share of {silo}"))
    assert has_variance(share, plan.share_variance)
    for scale in (2 / 3, 3 / 2):
        assert not has_variance(scale * share, plan.share_variance)
    assert stats.kstest(share / plan.share_variance**0.5, "norm").pvalue > ALARM
    assert abs(share.mean()) < 5 * (plan.share_variance / LENGTH) ** 0.5


def test_a_width_wrong_by_a_tenth_is_noticed(plan):
    share = discrete_gaussian(plan.share_variance * 1.1**2, 4 * LENGTH, SeededRandomness("a tenth"))
    assert not has_variance(share, plan.share_variance)


@pytest.mark.parametrize("missing", SURVIVORS)
def test_the_opened_sum_carries_the_noise_of_every_survivor(plan, missing):
    hospitals = Hospitals(plan, f"without {missing}")
    opened, _ = hospitals.release(records(), missing=missing)
    survivors = [name for name in CLIENTS if name != missing]
    truth = sum(plan.clipped_sum(records()[name]).total for name in survivors)
    assert has_variance(opened - truth, len(survivors) * plan.share_variance)


@pytest.mark.parametrize("missing", SURVIVORS)
@pytest.mark.parametrize("cheat", [honest, north_leaves_out, half_noise])
def test_whoever_colludes_the_rest_carries_the_claim_exactly_when_two_shares_are_left(plan, missing, cheat):
    """Take away what a colluding silo knows, its own noise; the rest must be at least the calibrated variance."""
    hospitals = Hospitals(plan, f"{cheat.__name__} without {missing}")
    opened, noise = hospitals.release(records(), missing=missing, share=cheat)
    survivors = [name for name in CLIENTS if name != missing]
    truth = sum(plan.clipped_sum(records()[name]).total for name in survivors)
    claimed = plan.shares * plan.share_variance
    assert claimed == pytest.approx((plan.noise_multiplier * plan.grid) ** 2)
    width = dict.fromkeys(CLIENTS, 0.25 if cheat is half_noise else 1.0)
    width["north"] *= cheat is not north_leaves_out
    for colluder in survivors:
        known = cheat(colluder, np.zeros(LENGTH, np.int64), noise[colluder])
        left = sum(width[name] for name in survivors if name != colluder)
        assert carries(opened - truth - known, claimed) == (left >= plan.shares)
        if cheat is honest:
            assert left >= plan.shares


def test_shares_of_different_silos_and_rounds_are_independent(plan):
    hospitals = Hospitals(plan, "independence")
    empty = {name: np.empty((0, LENGTH)) for name in CLIENTS}
    shares = [noise[name] for _, noise in (hospitals.release(empty) for _ in range(2)) for name in CLIENTS]
    bound = stats.norm.isf(ALARM / 2 / 28) / LENGTH**0.5
    for first, second in combinations(shares, 2):
        assert abs(np.corrcoef(first, second)[0, 1]) < bound


def test_a_shared_seed_is_noticed(plan):
    first, second = (plan.noise(SeededRandomness("the same everywhere")) for _ in range(2))
    assert np.corrcoef(first, second)[0, 1] > 0.99
    assert not has_variance(first + second, 2 * plan.share_variance)
