"""Sampled accounting against two other accountants and exact mixtures of integer noise; the law of the sampler."""

from __future__ import annotations

import math
from dataclasses import replace

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting import pld, rdp
from scipy.stats import binom, chi2

from confide.crypto.random import SeededRandomness
from confide.dp.accountant import NoisySums
from confide.dp.mechanisms import clipped_sum
from confide.dp.plan import PrivacyPlan
from confide.dp.sampled_plan import SampledPlan
from confide.dp.sampling import SampledComposition, SampledSums
from confide.errors import PrivacyError, UsageError
from dp import exact

ADD_OR_REMOVE = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
SETTING = {"epsilon": 1.0, "clip_norm": 1.0, "rounds": 100, "length": 31, "expected_records": 4708}
PLAN = SampledPlan.calibrate(**SETTING, rate=0.1, silos=4, quorum=3, colluding=1)


def theirs(accountant, plan, *, factor=1.0, rate=None):
    """Return epsilon by an accountant of dp-accounting, told what the plan does."""
    gaussian = dp_accounting.GaussianDpEvent(plan.noise_multiplier * factor)
    event = dp_accounting.PoissonSampledDpEvent(rate or plan.rate, gaussian)
    return accountant.compose(event, plan.rounds).get_epsilon(plan.delta)


@pytest.mark.parametrize(("rate", "rounds"), [(0.1, 100), (0.3, 40), (0.01, 1000)])
def test_epsilon_agrees_with_two_other_accountants(rate, rounds):
    plan = SampledPlan.calibrate(**SETTING | {"rounds": rounds}, rate=rate)
    losses = theirs(pld.PLDAccountant(ADD_OR_REMOVE, value_discretization_interval=1e-4), plan)
    assert losses - 1e-9 <= plan.epsilon_server <= 1.0
    assert plan.epsilon_server == pytest.approx(losses, abs=1e-3)
    assert plan.epsilon_server > 0.995  # no noise is wasted
    renyi = theirs(rdp.RdpAccountant(neighboring_relation=ADD_OR_REMOVE), plan)
    assert renyi > plan.epsilon_server  # Renyi is never below


def test_wrong_rates_and_halved_noise_do_not_pass_for_the_claim():
    def losses():
        return pld.PLDAccountant(ADD_OR_REMOVE, value_discretization_interval=1e-3)

    assert theirs(losses(), PLAN, factor=0.5) > 1.5
    assert theirs(losses(), PLAN, rate=1.5 * PLAN.rate) > 1.3
    with pytest.raises(PrivacyError, match="calibrate"):
        replace(PLAN, share_variance=PLAN.share_variance / 4)
    with pytest.raises(PrivacyError, match="calibrate"):
        replace(PLAN, coin=2 * PLAN.coin)
    with pytest.raises(PrivacyError, match="calibrate"):
        replace(PLAN, rounds=PLAN.rounds + 5)


def sampled_delta(law, shift, rate, epsilon):
    """Return the larger of both hockey-stick divergences of (1 - q) N + q (N + shift) and N, exactly."""
    with mpmath.workdps(exact.DIGITS):
        scale, q, zero = mpmath.exp(epsilon), mpmath.mpf(rate), mpmath.mpf(0)
        wide = [zero] * shift + list(law) + [zero] * shift
        pairs = [((1 - q) * p + q * (wide[k - shift] if k >= shift else zero), p) for k, p in enumerate(wide)]
        return max(
            mpmath.fsum(max(a - scale * b, zero) for a, b in pairs),
            mpmath.fsum(max(b - scale * a, zero) for a, b in pairs),
        )


@pytest.mark.parametrize(("variance", "count", "steps"), [(9, 1, 2), (9, 2, 6), (100, 1, 6), (100, 2, 20)])
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_integer_noise_on_samples_costs_at_most_what_theorem_3_says(variance, count, steps, rate):
    sums = NoisySums(sensitivity=steps, share_variance=float(variance), shares=count, length=1, rounds=1)
    event = SampledComposition((SampledSums(sums, rate),))
    for epsilon in (0.1, 0.3, 1.0):
        truth = sampled_delta(exact.shares(variance, count), steps, rate, epsilon)
        assert truth <= event.delta(epsilon)
        nearer = sampled_delta(exact.shares(variance, count), steps, rate, epsilon - 2 * event.surcharge)
        if truth > 1e-7 and epsilon > 2 * event.surcharge:
            assert event.delta(epsilon) <= 1.15 * nearer + 1e-9


def test_without_sampling_it_is_the_exact_account_of_full_batches():
    parties = {"silos": 4, "quorum": 3, "colluding": 1}
    full, sampled = PrivacyPlan.calibrate(**SETTING, **parties), SampledPlan.calibrate(**SETTING, rate=1.0, **parties)
    assert sampled.share_variance == full.share_variance
    assert sampled.epsilon_server == full.epsilon_server
    assert sampled.epsilon_outsiders == full.epsilon_outsiders
    assert sampled.composition(2).mu == full.composition(2).mu
    assert sampled.spent(7) == full.spent(7)
    assert "full batch" in sampled.label_fields()["sampling"]
    assert sampled.sample(5, SeededRandomness("all")).tolist() == [0, 1, 2, 3, 4]


def test_what_was_released_before_is_accounted_together():
    before = SampledSums(NoisySums(sensitivity=512, share_variance=1e8, shares=1, length=9, rounds=1), 1.0)
    plan = SampledPlan.calibrate(**SETTING, rate=0.1, before=(before,))
    accountant = pld.PLDAccountant(ADD_OR_REMOVE, value_discretization_interval=1e-4)
    accountant.compose(dp_accounting.GaussianDpEvent(1e4 / 512))
    together = theirs(accountant, plan)
    assert together - 1e-9 <= plan.epsilon_server <= 1.0
    assert plan.epsilon_server == pytest.approx(together, abs=1e-3)
    assert 0 < plan.spent(0) < plan.spent(1) < plan.spent(100) == plan.epsilon_server
    assert plan.share_variance > SampledPlan.calibrate(**SETTING, rate=0.1).share_variance
    whole = replace(before, sums=replace(before.sums, share_variance=1e5))
    with pytest.raises(PrivacyError, match="before"):
        SampledPlan.calibrate(**SETTING, rate=0.1, before=(whole,))


def samples(plan, records, draws, seed="coins"):
    rng = SeededRandomness(seed)
    found = np.zeros((draws, records), bool)
    for row in found:
        row[plan.sample(records, rng)] = True
    return found


def within(statistic, freedom, alarm=1e-6):
    return chi2.ppf(alarm / 2, freedom) < statistic < chi2.isf(alarm / 2, freedom)


def pearson(counts, law):
    expected = counts.sum() * law
    return float(((counts - expected) ** 2 / expected).sum())


def test_each_record_is_in_a_sample_by_a_coin_of_its_own():
    """The sizes are binomial, each record is there equally often, and no two records' coins go together."""
    records, draws = 8, 40_000
    plan = SampledPlan.calibrate(**SETTING, rate=0.3)
    found = samples(plan, records, draws)
    sizes = np.bincount(found.sum(1), minlength=records + 1)
    law = binom.pmf(np.arange(records + 1), records, 0.3)
    pooled = np.append(sizes[:7], sizes[7:].sum()), np.append(law[:7], law[7:].sum())
    assert within(pearson(*pooled), 7)
    for wrong in (0.28, 0.32):  # a rate beside it is noticed
        law = binom.pmf(np.arange(records + 1), records, wrong)
        assert not within(pearson(pooled[0], np.append(law[:7], law[7:].sum())), 7)
    assert not within(pearson(np.bincount([2, 3] * (draws // 2), minlength=8), pooled[1]), 7)  # nor do fixed sizes pass
    cells = np.bincount(found @ (1 << np.arange(records)), minlength=256)
    bits = np.array([bin(k).count("1") for k in range(256)])
    expected = draws * 0.3**bits * 0.7 ** (records - bits)
    likely = expected > 5
    statistic = ((cells - expected)[likely] ** 2 / expected[likely]).sum()
    assert within(float(statistic), int(likely.sum()))


def test_the_coin_is_compared_as_an_integer():
    class Words:
        origin = "test"

        def __init__(self, *words):
            self.words = words

        def bytes(self, count):
            return b"".join(word.to_bytes(8, "little") for word in self.words)

    plan = SampledPlan.calibrate(**SETTING, rate=0.25)
    assert plan.coin == 1 << 62
    assert plan.sample(3, Words(plan.coin - 1, plan.coin, 0)).tolist() == [0, 2]


def test_no_public_number_depends_on_the_records():
    rows = np.ones((7, 31))
    for end in (0, 6, 7):
        clipped = PLAN.clipped_sum(rows[:end])
        assert (clipped.sensitivity, clipped.clip_norm) == (PLAN.grid, PLAN.clip_norm)
        assert PLAN.release(clipped, SeededRandomness("one"), done=0).shape == (31,)
    assert PLAN.expected_batch == pytest.approx(470.8)
    assert PLAN.sample(0, SeededRandomness("none")).shape == (0,)


def test_a_spent_plan_releases_nothing():
    clipped = PLAN.clipped_sum(np.ones((1, 31)))
    PLAN.release(clipped, SeededRandomness("last"), done=PLAN.rounds - 1)
    with pytest.raises(PrivacyError, match="rounds"):
        PLAN.release(clipped, SeededRandomness("more"), done=PLAN.rounds)
    with pytest.raises(PrivacyError, match="clipped_sum"):
        PLAN.release(clipped_sum(np.ones((1, 31)), clip_norm=2.0, grid=PLAN.grid), SeededRandomness("x"), done=0)
    with pytest.raises(PrivacyError, match="releases"):
        PLAN.spent(PLAN.rounds + 1)


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0.0}, {"rate": 1.1}, {"rate": math.nan}, {"rate": 0.1, "clip_norm": 0.0}, {"rate": 0.1, "grid": 5}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        SampledPlan.calibrate(**SETTING | wrong)


def test_a_delta_beyond_floating_point_is_refused():
    with pytest.raises(PrivacyError, match="delta"):
        SampledPlan.calibrate(**SETTING, rate=0.1, delta=1e-12)


@pytest.mark.parametrize("clip_norm", [0.0, 1e-30, 1e-310, 1e30, math.inf, math.nan])
def test_norms_that_single_precision_cannot_divide_by_are_refused(clip_norm):
    with pytest.raises(UsageError, match="from 1e-6 to 1e6"):
        SampledPlan.calibrate(**SETTING | {"clip_norm": clip_norm}, rate=0.1)
