"""The auditor audited: its bounds stay below the truth as often as they say, are not vacuous, and fail when misused.

Seeded, so nothing flakes. False-alarm budget, had the seeds been drawn afresh: 1e-6 for each coverage test.
"""

from __future__ import annotations

import math
from functools import cache

import dp_accounting
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from confide.crypto.random import SeededRandomness
from confide.dp import audit
from confide.dp.audit import (
    Scores,
    draw_coins,
    gaussian_bound,
    one_run_bound,
    threshold_bound,
)
from confide.errors import UsageError
from confide.guarantee import worst_true_positive_rate

ALARM = 1e-6
DELTA = 1e-5
DRAWS = 200


def gaussian_scores(draw, count, mu):
    """Ideal scores of a Gaussian mechanism, of a width and a place that the auditor is not told."""
    present = draw.random(count) < 0.5
    return Scores(3.0 * (draw.normal(0, 1, count) + mu * present) - 7, present)


def answers(draw, count, epsilon, delta=0.0):
    """Scores of randomised response, which spends all of its epsilon on every canary; with delta it tells the truth."""
    present = draw.random(count) < 0.5
    honest = draw.random(count) < 1 / (1 + math.exp(-epsilon))
    told = draw.random(count) < delta
    return Scores(np.where(told, 2.0 * present, (present == honest).astype(np.float64)), present)


def too_often(failures, draws, share=0.05):
    """True if a bound of confidence 1 - share cannot have failed so often."""
    return failures > stats.binom.isf(ALARM, draws, share)


@cache
def true_epsilon(mu):
    return dp_accounting.get_epsilon_gaussian(1 / mu, DELTA)


GAUSSIAN = {
    "width measured": lambda scores: gaussian_bound(scores, delta=DELTA),
    "width known": lambda scores: gaussian_bound(scores, delta=DELTA, deviation=3.0),
    "fixed thresholds": lambda scores: threshold_bound(scores, delta=DELTA, thresholds=(-7.0, -4.0, -1.0, 2.0)),
    "chosen threshold": lambda scores: threshold_bound(scores, delta=DELTA),
    "one run": lambda scores: one_run_bound(scores, guesses=100, delta=DELTA),
}


@pytest.mark.parametrize("mu", [0.02, 0.268, 1.5])
@pytest.mark.parametrize("bound", GAUSSIAN.values(), ids=GAUSSIAN)
def test_a_bound_stays_below_the_truth_as_often_as_it_says(bound, mu):
    draw = np.random.Generator(np.random.PCG64(1))
    failures = sum(bound(gaussian_scores(draw, 400, mu)).refutes(true_epsilon(mu)) for _ in range(DRAWS))
    assert not too_often(failures, DRAWS)
    assert failures <= 0.07 * DRAWS  # 95 % of these very draws, but for what chance explains


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("delta", [0.0, 0.05])
def test_bounds_for_any_law_stay_below_the_truth_of_randomised_response(epsilon, delta):
    draw = np.random.Generator(np.random.PCG64(2))
    failures = {"threshold": 0, "chosen": 0, "one run": 0}
    for _ in range(200):
        scores = answers(draw, 400, epsilon, delta)
        found = {
            "threshold": threshold_bound(scores, delta=delta, thresholds=(0.5,)),
            "chosen": threshold_bound(scores, delta=delta),
            "one run": one_run_bound(scores, guesses=400, delta=delta),
        }
        failures = {name: count + found[name].refutes(epsilon) for name, count in failures.items()}
    assert not any(too_often(count, 200) for count in failures.values()), failures


@pytest.mark.parametrize(
    ("bound", "least"),
    [("width measured", 0.7), ("width known", 0.7), ("fixed thresholds", 0.2), ("chosen threshold", 0.2)],
)
def test_a_bound_is_not_vacuous_at_a_true_epsilon_of_one(bound, least):
    draw = np.random.Generator(np.random.PCG64(3))
    mu = 1 / dp_accounting.get_sigma_gaussian(1.0, DELTA)
    found = [GAUSSIAN[bound](gaussian_scores(draw, 20_000, mu)).epsilon for _ in range(5)]
    assert least < np.mean(found) < 1


def test_one_run_is_not_vacuous_on_randomised_response():
    draw = np.random.Generator(np.random.PCG64(4))
    found = [one_run_bound(answers(draw, 2000, 1.0), guesses=2000, delta=0.0).epsilon for _ in range(5)]
    assert 0.8 < np.mean(found) < 1


def test_without_noise_every_bound_is_large():
    draw = np.random.Generator(np.random.PCG64(5))
    present = draw.random(1000) < 0.5
    scores = Scores(present.astype(np.float64), present)
    assert threshold_bound(scores, delta=DELTA, thresholds=(0.5,)).epsilon > 4
    assert one_run_bound(scores, guesses=1000, delta=DELTA).epsilon > 3
    nearly = Scores(present + 1e-6 * draw.normal(0, 1, 1000), present)
    assert 31.9 < gaussian_bound(nearly, delta=DELTA).epsilon <= audit.LARGEST


# --- what must not be done: the same coverage test catches it ---------------------------------------------------------


def test_the_absolute_difference_would_be_no_bound():
    draw, failures = np.random.Generator(np.random.PCG64(6)), {"absolute": 0, "signed": 0}
    for _ in range(800):
        scores = gaussian_scores(draw, 100, 0.001)
        turned = Scores(scores.values, ~scores.present)
        signed, other = (gaussian_bound(s, delta=DELTA, confidence=0.9, deviation=3.0) for s in (scores, turned))
        failures["signed"] += signed.refutes(true_epsilon(0.001))
        failures["absolute"] += max(signed.epsilon, other.epsilon) > true_epsilon(0.001)
    assert too_often(failures["absolute"], 800, 0.1)
    assert not too_often(failures["signed"], 800, 0.1)


def test_the_best_of_twenty_audits_would_be_no_bound():
    """Each at confidence 0.5 is none at 0.5; with Bonferroni's share of the failures each, it is one."""
    draw = np.random.Generator(np.random.PCG64(10))
    failures = {0.5: 0, 1 - 0.5 / 20: 0}
    for _ in range(40):
        drawn = [gaussian_scores(draw, 200, 0.001) for _ in range(20)]
        for confidence in failures:
            found = (threshold_bound(s, delta=DELTA, confidence=confidence, thresholds=(-7.0,)) for s in drawn)
            failures[confidence] += any(bound.refutes(true_epsilon(0.001)) for bound in found)
    bare, corrected = failures.values()
    assert too_often(bare, 40, 0.5)
    assert not too_often(corrected, 40, 0.5)


def test_leaving_delta_out_would_be_no_bound():
    draw = np.random.Generator(np.random.PCG64(7))
    drawn = [answers(draw, 2000, 0.2, 0.1) for _ in range(100)]
    with_delta, without = (
        sum(threshold_bound(scores, delta=delta, thresholds=(1.5,)).refutes(0.2) for scores in drawn)
        for delta in (0.1, 0.0)
    )
    assert not too_often(with_delta, 100)
    assert too_often(without, 100)


def test_the_same_canary_scored_five_times_would_feign_certainty():
    draw, mu, present = np.random.Generator(np.random.PCG64(9)), 0.268, np.arange(400) % 2 == 0
    failures = {1: 0, 5: 0}
    for _ in range(100):
        values = draw.normal(0, 1, 400) + mu * present
        for copies in failures:
            scores = Scores(np.repeat(values, copies), np.repeat(present, copies))
            failures[copies] += gaussian_bound(scores, delta=DELTA, deviation=1.0).refutes(true_epsilon(mu))
    assert too_often(failures[5], 100)
    assert not too_often(failures[1], 100)


def test_a_width_taken_from_the_claim_hides_half_of_the_noise():
    draw = np.random.Generator(np.random.PCG64(8))
    present = draw.random(20_000) < 0.5
    claimed = 1 / dp_accounting.get_sigma_gaussian(1.0, DELTA)
    scores = Scores(draw.normal(0, 0.5, 20_000) + claimed * present, present)  # the noise should be 1
    assert gaussian_bound(scores, delta=DELTA).refutes(1.0)
    assert not gaussian_bound(scores, delta=DELTA, deviation=1.0).refutes(1.0)


# --- the numbers inside, against other libraries and papers -----------------------------------------------------------


@given(st.integers(18, 3000), st.floats(0.1, 60), st.sampled_from([0.05, 1e-3, 1e-6]))
def test_the_noncentrality_is_that_of_scipy(freedom, statistic, alpha):
    found = audit._least_noncentrality(statistic, freedom, alpha)
    if found > 0.01:
        assert stats.nct.sf(statistic, freedom, found) == pytest.approx(alpha, rel=1e-4)
    else:
        assert stats.t.sf(statistic, freedom) > alpha * 0.9


@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.025, 1e-3, 1e-7]))
def test_the_rate_is_that_of_clopper_and_pearson(hits, misses, alpha):
    count = hits + misses
    expected = stats.beta.ppf(alpha, hits, misses + 1) if hits else 0.0
    assert audit._least_rate(hits, count, alpha) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_one_run_gives_what_its_authors_print(canaries, guesses, right, delta, published):
    """Arxiv 2305.08846, appendix D and section 7; the second figure is cut, not rounded."""
    present = np.arange(canaries) % 2 == 0
    values = np.zeros(canaries)
    sure = np.concatenate([np.flatnonzero(present)[:right], np.flatnonzero(~present)[: guesses - right]])
    values[sure] = 1.0  # half of the guesses say "in"; make those the right and wrong ones asked for
    half = guesses // 2
    values[:] = 0.5
    ins, outs = np.flatnonzero(present), np.flatnonzero(~present)
    right_in = (right + 1) // 2
    values[ins[:right_in]] = values[outs[: half - right_in]] = 1.0
    values[outs[-(right - right_in) :]] = values[ins[canaries // 2 - (half - (right - right_in)) :]] = 0.0
    found = one_run_bound(Scores(values, present), guesses=guesses, delta=delta)
    assert found.epsilon == pytest.approx(published, abs=1e-3)


@given(st.floats(0, 5), st.floats(0, 1))
def test_the_worst_test_is_the_most_powerful_one_between_two_normals(mu, rate):
    expected = stats.norm.sf(stats.norm.isf(rate) - mu)
    assert worst_true_positive_rate(mu, rate) == pytest.approx(expected, abs=1e-9)


def test_the_coins_are_fair_and_repeat_from_a_seed():
    coins = draw_coins(40_001, SeededRandomness("coins"))
    assert coins.dtype == np.bool_
    assert coins.shape == (40_001,)
    assert abs(coins.mean() - 0.5) < 5 * 0.5 / 200
    assert np.array_equal(coins, draw_coins(40_001, SeededRandomness("coins")))
    assert draw_coins(0, SeededRandomness("coins")).shape == (0,)


def test_the_sentence_says_what_it_is():
    present = np.arange(100) % 2 == 0
    bound = threshold_bound(Scores(present * 1.0, present), delta=DELTA, thresholds=(0.5,))
    assert "at least" in bound.sentence()
    assert "no guarantee" in bound.sentence()


FAIR = np.arange(100) % 2 == 0


@pytest.mark.parametrize(
    ("values", "present", "text"),
    [
        (np.zeros(100), FAIR[:99], "one score and one coin"),
        (np.zeros((10, 10)), FAIR.reshape(10, 10), "one score and one coin"),
        (np.zeros(100, np.float32), FAIR, "one score and one coin"),
        (np.zeros(100), FAIR.astype(np.int64), "one score and one coin"),
        (np.full(100, np.nan), FAIR, "finite"),
        (np.zeros(18), FAIR[:18], "at least 10"),
        (np.zeros(1000), np.arange(1000) < 300, "fair coin"),
    ],
)
def test_scores_that_no_audit_can_rest_on_are_refused(values, present, text):
    with pytest.raises(UsageError, match=text):
        Scores(values, present)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda scores: gaussian_bound(scores, delta=0.0), "delta"),
        (lambda scores: gaussian_bound(scores, delta=DELTA, confidence=1.0), "confidence"),
        (lambda scores: gaussian_bound(scores, delta=DELTA, deviation=0.0), "deviation"),
        (lambda scores: gaussian_bound(scores, delta=DELTA), "differ"),
        (lambda scores: threshold_bound(scores, delta=-1.0), "delta"),
        (lambda scores: threshold_bound(scores, delta=DELTA, thresholds=()), "threshold"),
        (lambda scores: one_run_bound(scores, guesses=1, delta=DELTA), "guesses"),
        (lambda scores: one_run_bound(scores, guesses=101, delta=DELTA), "guesses"),
        (lambda scores: worst_true_positive_rate(-1.0, 0.5), "mu"),
        (lambda scores: worst_true_positive_rate(1.0, 1.5), "false_positive_rate"),
    ],
)
def test_arguments_out_of_range_are_refused(call, text):
    with pytest.raises(UsageError, match=text):
        call(Scores(np.zeros(100), FAIR))
