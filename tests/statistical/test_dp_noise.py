"""The noise that is really in a released sum: as wide as claimed for every set of survivors, and from every silo.

Seeded, so nothing flakes. False-alarm budget, had the seeds been drawn afresh: each test alarms with probability 1e-6,
45 tests, 4.5e-5 in all. Each has its teeth shown: the same test on 2/3 or 3/2 of the noise, on a tenth more or less, on
one seed for all silos, or on a silo that cheats.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from confide.crypto.noise import discrete_gaussian
from confide.crypto.random import SeededRandomness
from confide.dp.plan import PrivacyPlan
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


def independent(shares: list[np.ndarray]) -> bool:
    """True unless two of the vectors are correlated beyond doubt; Bonferroni over the pairs."""
    pairs = list(combinations(shares, 2))
    bound = stats.norm.isf(ALARM / 2 / len(pairs)) / len(shares[0]) ** 0.5
    return all(abs(np.corrcoef(first, second)[0, 1]) < bound for first, second in pairs)


def shares_of(hospitals: Hospitals, rounds: int) -> list[np.ndarray]:
    """Return the noise of every silo in every round."""
    empty = {name: np.empty((0, hospitals.plan.length)) for name in CLIENTS}
    return [noise[name] for _, noise in (hospitals.release(empty) for _ in range(rounds)) for name in CLIENTS]


def test_shares_of_different_silos_and_rounds_are_independent(plan):
    assert independent(shares_of(Hospitals(plan, "independence"), 3))


def test_one_seed_for_all_silos_or_for_all_rounds_is_noticed(plan):
    shares = shares_of(Hospitals(plan, "one seed", one_stream=True), 2)
    assert not independent(shares[:4])  # of one round
    assert independent([shares[0], shares[4]])  # of one silo
    again = [shares_of(Hospitals(plan, "the same seed again"), 1)[0] for _ in range(2)]
    assert not independent(again)
    assert not has_variance(shares[0] + shares[1], 2 * plan.share_variance)


# --- the law itself, on a grid so coarse that single integers show ----------------------------------------------------


def follows(sample: np.ndarray, variance: float) -> bool:
    """Chi-square test that integers are drawn from the discrete Gaussian, P(k) proportional to exp(-k^2 / 2 variance).

    Cells are single integers or runs of them with about 1/60 of the probability each.
    """
    reach = int(12 * variance**0.5)
    k = np.arange(-reach, reach + 1)
    law = np.exp(-(k.astype(np.float64) ** 2) / (2 * variance))
    law /= law.sum()
    cell = np.minimum((np.cumsum(law) * 60).astype(int), 59)
    _, cell = np.unique(cell, return_inverse=True)
    expected = np.bincount(cell, law) * len(sample)
    assert expected.min() > 20
    seen = np.bincount(cell[sample + reach], minlength=len(expected))
    return stats.chisquare(seen, expected).pvalue > ALARM


@pytest.fixture(scope="module")
def coarse():
    """The shares of eight rounds, and what the server opened, where a share deviates by 16 grid steps."""
    plan = PrivacyPlan.calibrate(
        epsilon=15.0, delta=1e-5, clip_norm=0.5, rounds=8, length=1000, grid=32,
        silos=4, quorum=4, colluding=0, expected_records=455,
    )  # fmt: skip
    hospitals = Hospitals(plan, "the law")
    empty = {name: np.empty((0, plan.length)) for name in CLIENTS}
    taken = [hospitals.release(empty) for _ in range(plan.rounds)]
    shares = np.concatenate([noise[name] for _, noise in taken for name in CLIENTS])
    return plan, shares, np.concatenate([opened for opened, _ in taken])


def test_shares_and_opened_sums_follow_the_exact_law(coarse):
    plan, shares, opened = coarse
    assert 3 < plan.share_variance**0.5 < 30
    assert follows(shares, plan.share_variance)
    assert follows(opened, 4 * plan.share_variance)  # a sum of shares is one discrete Gaussian (lemma 3 of the proof)
    assert abs(shares.mean()) < stats.norm.isf(ALARM / 2) * (plan.share_variance / len(shares)) ** 0.5
    assert has_variance(shares, plan.share_variance)


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_a_variance_wrong_by_a_tenth_is_noticed(coarse, scale):
    plan, shares, _ = coarse
    wrong = discrete_gaussian(scale * plan.share_variance, len(shares), SeededRandomness("a tenth"))
    assert not follows(wrong, plan.share_variance)
    assert not has_variance(wrong, plan.share_variance)


def test_other_laws_of_the_same_variance_are_noticed(coarse):
    plan, shares, _ = coarse
    draw, deviation = np.random.Generator(np.random.PCG64(2)), plan.share_variance**0.5
    laplace = np.rint(draw.laplace(0, deviation / 2**0.5, len(shares))).astype(np.int64)
    cut = np.rint(1.1 * np.clip(draw.normal(0, deviation, len(shares)), -1.5 * deviation, 1.5 * deviation))
    for wrong in (laplace, cut.astype(np.int64), 2 * (shares // 2)):
        assert not follows(np.clip(wrong, -int(12 * deviation), int(12 * deviation)), plan.share_variance)
