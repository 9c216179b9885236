"""The union: what silos release together is what one holder of all records would, sum for sum and noise for noise.

And the epsilon of a plan, computed again by accountants that are not ours, from the noise that was measured.
False-alarm budget, had the seeds been drawn afresh: 1e-6 for each verdict on honest code.
"""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from scipy import stats

from confide.crypto.random import SeededRandomness
from confide.dp.plan import PrivacyPlan
from confide.guarantee import worst_true_positive_rate
from confide.ideal import Aggregator
from confide.secagg.amortised import Amortised
from confide.secagg.masked import Masked
from statistical.federation import CLIENTS, Hospitals, honest, north_leaves_out

ALARM = 1e-6
LENGTH = 20_000
ADD_OR_REMOVE = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


def plan_of(*, silos: int = 1, quorum: int = 1, colluding: int = 0, epsilon: float = 1.0, rounds: int = 1):
    return PrivacyPlan.calibrate(
        epsilon=epsilon, delta=1e-5, clip_norm=0.5, rounds=rounds, length=LENGTH,
        silos=silos, quorum=quorum, colluding=colluding, expected_records=455,
    )  # fmt: skip


def records() -> dict[str, np.ndarray]:
    draw = np.random.Generator(np.random.PCG64(1))
    return {name: draw.normal(0, 1, (3, LENGTH)) for name in CLIENTS}


def central_noise() -> np.ndarray:
    """Return the noise of one holder of all records, in clip norms."""
    plan = plan_of()
    pooled = plan.clipped_sum(np.concatenate(list(records().values())))
    return (plan.release(pooled, SeededRandomness("central")) - pooled.total) / plan.grid


def federated_noise(plan: PrivacyPlan, aggregator: Aggregator, share=honest) -> np.ndarray:
    """Return the noise in the sum that the server opens, in clip norms; its records are those of the union, exactly."""
    pooled = plan.clipped_sum(np.concatenate(list(records().values())))
    opened, _ = Hospitals(plan, "union", aggregator).release(records(), share=share)
    return (opened - pooled.total) / plan.grid


def ratio_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the interval of var(first) / var(second) for zero-mean, near-normal draws."""
    ratio = float((first**2).mean() / (second**2).mean())
    bounds = stats.f.isf([ALARM / 2, 1 - ALARM / 2], len(first), len(second))
    return ratio / bounds[0], ratio / bounds[1]


@pytest.mark.parametrize("aggregator", [Masked, lambda: Amortised(hybrid=False)], ids=["masked", "amortised"])
def test_noise_split_among_honest_silos_is_the_central_noise(aggregator):
    low, high = ratio_interval(federated_noise(plan_of(silos=4, quorum=4), aggregator()), central_noise())
    assert low < 1 < high
    assert high / low < 1.25  # the interval has teeth


@pytest.mark.parametrize(("quorum", "colluding"), [(3, 0), (3, 1), (4, 1)])
def test_dropouts_and_collusion_cost_the_computed_factor_and_no_more(quorum, colluding):
    plan = plan_of(silos=4, quorum=quorum, colluding=colluding)
    low, high = ratio_interval(federated_noise(plan, Masked()), central_noise())
    assert low < 4 / (quorum - colluding) < high
    assert high < 4  # what every silo adding all of the noise would cost


def test_a_share_missing_or_one_too_many_is_noticed():
    central, plan = central_noise(), plan_of(silos=4, quorum=4)
    low, high = ratio_interval(federated_noise(plan, Masked(), north_leaves_out), central)
    assert high < 1
    low, high = ratio_interval(federated_noise(plan_of(silos=4, quorum=3), Masked()), central)  # made for three of four
    assert low > 1


@pytest.mark.parametrize(("silos", "quorum", "colluding"), [(1, 1, 0), (4, 4, 0), (4, 3, 1), (10, 7, 3)])
@pytest.mark.parametrize("rounds", [1, 20])
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 8.0])
def test_epsilon_by_three_accountants_of_somebody_else(silos, quorum, colluding, rounds, epsilon):
    plan = plan_of(silos=silos, quorum=quorum, colluding=colluding, epsilon=epsilon, rounds=rounds)
    sigma = math.sqrt((quorum - colluding) * plan.share_variance) / plan.grid
    exact = dp_accounting.get_epsilon_gaussian(sigma / math.sqrt(rounds), plan.delta)
    assert exact <= plan.epsilon_server * (1 + 1e-9) <= epsilon * (1 + 2e-9)
    assert plan.epsilon_server == pytest.approx(exact, rel=1e-5)
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(sigma), rounds)
    renyi = rdp.RdpAccountant(neighboring_relation=ADD_OR_REMOVE).compose(event).get_epsilon(plan.delta)
    assert plan.epsilon_server < renyi < 1.25 * plan.epsilon_server


def test_epsilon_by_privacy_loss_distributions():
    plan = plan_of(silos=4, quorum=3, colluding=1, rounds=20)
    accountant = pld.PLDAccountant(neighboring_relation=ADD_OR_REMOVE, value_discretization_interval=1e-4)
    accountant.compose(dp_accounting.GaussianDpEvent(plan.noise_multiplier), plan.rounds)
    assert plan.epsilon_server <= accountant.get_epsilon(plan.delta) * (1 + 1e-9)
    assert accountant.get_epsilon(plan.delta) == pytest.approx(plan.epsilon_server, rel=2e-3)


def test_the_usual_bound_for_integer_noise_is_never_below_ours():
    """Kairouz, Liu, Steinke (arXiv 2102.06387), for sums of discrete Gaussians, by Renyi divergence."""
    for shares, grid in ((1, 8), (2, 4), (4, 64)):
        plan = PrivacyPlan.calibrate(
            epsilon=1.0, delta=1e-5, clip_norm=1.0, rounds=10, length=16, grid=grid * 8,
            silos=shares, quorum=shares, expected_records=455,
        )  # fmt: skip
        v, orders = plan.share_variance, np.arange(2, 400).astype(float)
        tau = 10 * sum(math.exp(-2 * math.pi**2 * v * k / (k + 1)) for k in range(1, shares))
        curve = 10 * (orders * plan.grid**2 / (2 * shares * v) + tau * 16)
        assert rdp.compute_epsilon(orders, curve, plan.delta)[0] >= plan.epsilon_server


def test_the_epsilon_of_the_noise_that_was_measured_is_the_claim():
    """From 20,000 draws of the opened sum: the claim lies in the interval, and half of the variance would not."""
    plan = plan_of(silos=4, quorum=4)
    noise = federated_noise(plan, Masked())
    square, count = float((noise**2).sum()), len(noise)

    def interval(scale: float) -> list[float]:
        deviations = [math.sqrt(scale * square / stats.chi2.isf(tail, count)) for tail in (ALARM / 2, 1 - ALARM / 2)]
        return [dp_accounting.get_epsilon_gaussian(deviation, plan.delta) for deviation in reversed(deviations)]

    low, high = interval(1.0)
    assert low < plan.epsilon <= high < low + 0.1
    assert interval(0.5)[0] > plan.epsilon


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 8.0])
def test_the_worst_attack_of_the_label_is_that_of_the_plan(epsilon):
    """The true-positive rate that mu allows keeps the inequality of (epsilon, delta) at every false-positive rate."""
    plan = plan_of(epsilon=epsilon)
    for rate in np.geomspace(1e-6, 0.999, 50):
        worst = worst_true_positive_rate(plan.event(1).mu, rate)
        assert worst <= math.exp(epsilon) * rate + plan.delta
    touched = max(
        worst_true_positive_rate(plan.event(1).mu, rate) - math.exp(epsilon) * rate
        for rate in np.geomspace(1e-12, 1, 4000)
    )
    assert touched == pytest.approx(plan.delta, rel=1e-3)  # and reaches it: mu is not too small
