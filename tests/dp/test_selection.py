"""The cost of a search against exact distributions and another accountant; its number of runs against its law."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import dp_event, rdp
from scipy.stats import chisquare, geom, norm

from confide.crypto.random import SeededRandomness
from confide.dp.accountant import gaussian_epsilon, gaussian_mu
from confide.dp.selection import Selection, affordable_mu
from confide.errors import PrivacyError, UsageError


def exact_delta(mu, runs, epsilon):
    """Return the exact delta of the largest of a geometric number of normal draws, shifted by mu or not.

    The score is the release itself, which is the worst that a score can do: P(largest <= t) = g F / (1 - (1 - g) F).
    """
    t = np.linspace(-12, 14, 400_001)
    stop = 1 / runs

    def cells(shift):
        above = norm.sf(t - shift)  # 1 - F, for precision where the largest lie
        tail = above / (stop + (1 - stop) * above)
        return -np.diff(np.concatenate([[1.0], tail, [0.0]]))

    there, gone = cells(mu), cells(0.0)
    ratio = math.exp(epsilon)
    return max(float(np.maximum(p - ratio * q, 0).sum()) for p, q in ((there, gone), (gone, there)))


@pytest.mark.parametrize("runs", [1, 4, 30, 500])
@pytest.mark.parametrize("base", [0.2, 1.0, 3.0])
def test_the_best_of_many_tells_no_more_than_the_account_says(runs, base):
    mu = gaussian_mu(base, 1e-5)
    made = Selection(mean_runs=runs, mu=mu, delta=1e-5)
    assert exact_delta(mu, runs, made.epsilon) <= 1e-5


def test_the_epsilon_of_one_run_is_refuted_by_the_best_of_many():
    mu = gaussian_mu(1.0, 1e-5)
    assert exact_delta(mu, 30, 1.0) > 2e-5
    assert exact_delta(mu, 1, 1.0) <= 1.001e-5


@pytest.mark.parametrize("runs", [1.0, 5.0, 10.0, 100.0])
@pytest.mark.parametrize("sigma", [1.0, 4.0455, 20.0])
def test_an_independent_accountant_agrees(runs, sigma):
    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    event = dp_event.RepeatAndSelectDpEvent(dp_event.GaussianDpEvent(sigma), mean=runs, shape=1)
    theirs = accountant.compose(event).get_epsilon(1e-5)
    ours = Selection(mean_runs=runs, mu=1 / sigma, delta=1e-5).epsilon
    assert ours == pytest.approx(theirs, rel=0.03)  # both take the best of their own orders


def test_integers_cost_what_they_add():
    exact = Selection(mean_runs=10, mu=0.2, delta=1e-5).epsilon
    assert exact < Selection(mean_runs=10, mu=0.2, delta=1e-5, surcharge=1e-3).epsilon < exact + 0.01
    assert exact < Selection(mean_runs=10, mu=0.2, delta=1e-5, tail=1e-7).epsilon
    with pytest.raises(PrivacyError, match="tails"):
        _ = Selection(mean_runs=10, mu=0.2, delta=1e-5, tail=2e-6).epsilon


def test_the_number_of_runs_is_geometric():
    made, rng = Selection(mean_runs=5, mu=0.2, delta=1e-5), SeededRandomness("runs")
    drawn = np.bincount([min(made.draw_runs(rng), 20) for _ in range(20_000)], minlength=21)[1:]
    law = geom(1 / 5).pmf(np.arange(1, 21))
    law[-1] = geom(1 / 5).sf(19)
    assert chisquare(drawn, 20_000 * law).pvalue > 1e-4
    wrong = geom(1 / 4).pmf(np.arange(1, 21))
    assert chisquare(drawn, 20_000 * wrong / wrong.sum()).pvalue < 1e-9
    assert Selection(mean_runs=1, mu=0.2, delta=1e-5).draw_runs(rng) == 1


@pytest.mark.parametrize("runs", [1, 8, 100])
def test_what_a_run_may_spend_is_the_most_that_fits(runs):
    mu = affordable_mu(1.0, 1e-5, mean_runs=runs)
    assert Selection(mean_runs=runs, mu=mu, delta=1e-5).epsilon <= 1.0
    assert Selection(mean_runs=runs, mu=mu * 1.001, delta=1e-5).epsilon > 1.0
    assert gaussian_epsilon(mu, 1e-5) < 1.0  # never more than the whole


@pytest.mark.parametrize("changed", [{"mean_runs": 0.5}, {"mu": 0.0}, {"delta": 0.0}, {"mean_runs": math.inf}])
def test_what_means_nothing_is_refused(changed):
    with pytest.raises(UsageError):
        Selection(**{"mean_runs": 5, "mu": 0.2, "delta": 1e-5} | changed)
    with pytest.raises(PrivacyError):
        _ = Selection(mean_runs=100, mu=9.0, delta=1e-5).epsilon
