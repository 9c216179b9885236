"""Objective perturbation: its account against exact distributions, its solver against scipy, canaries against noise."""

from __future__ import annotations

import math
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm as normal

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.dp.audit import Scores, draw_coins, gaussian_bound
from confide.dp.objective import ObjectivePlan
from confide.errors import PrivacyError, UsageError


def plan(**changed):
    given = {"epsilon": 1.0, "delta": 1e-5, "features": 3, "expected_records": 200}
    return ObjectivePlan.calibrate(**given | changed)


# --- the account --------------------------------------------------------------------------------------------------


def gradient(theta, records, ridge):
    """Return the objective's gradient without its noise, in one dimension; it rises with theta."""
    found = ridge * theta
    for x, y in records:
        found = found + (expit(x * theta) - y) * x
    return found


def worst(records, one, *, ridge, deviation, epsilon):
    """Return a delta below the true one, and near it: exact probabilities of fine cells under neighbours.

    theta <= t exactly when the noise is at least minus the gradient at t; no density, no determinant is used.
    """
    t = np.sinh(np.linspace(-9, 9, 40_001)) * (12 * deviation / ridge / math.sinh(9))

    def cells(data):
        signed = gradient(t, data, ridge) / deviation
        below, above = normal.cdf(signed), normal.sf(signed)
        exact = np.where(signed[1:] < 0, np.diff(below), -np.diff(above))
        return np.concatenate([[below[0]], exact, [above[-1]]])

    without, having = cells(records), cells([*records, one])
    ratio = math.exp(epsilon)
    return max(float(np.maximum(p - ratio * q, 0).sum()) for p, q in ((without, having), (having, without)))


PLACES = [[], [(1.0, 0)], [(1.0, 1)] * 3, [(1.0, 0)] * 40, [(-1.0, 0), (0.3, 1)] * 10, [(1.0, 0), (1.0, 1)] * 30]


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
@pytest.mark.parametrize("records", PLACES)
def test_no_neighbour_in_one_dimension_tells_more_than_the_account_says(epsilon, delta, records):
    made = plan(epsilon=epsilon, delta=delta, features=1, constant=0.0)
    for x in (1.0, -1.0, 0.5):
        for label in (0, 1):
            found = worst(records, (x, label), ridge=made.ridge, deviation=made.deviation, epsilon=epsilon)
            assert found <= delta


def test_the_account_is_nearly_reached_and_half_the_noise_or_no_ridge_passes_it():
    """The tightness that makes the test above one: the worst neighbour there is has most of delta."""
    made = plan(features=1, constant=0.0)
    setting = {"ridge": made.ridge, "deviation": made.deviation, "epsilon": made.epsilon}
    crowd = [(1.0, 0)] * 100  # they push p to 0, where a record of the other label has the longest gradient
    assert 0.8 * made.delta < worst(crowd, (1.0, 1), **setting) <= made.delta
    assert worst(crowd, (1.0, 1), **setting | {"deviation": made.deviation / 2}) > 10 * made.delta
    lonely = {"deviation": made.deviation, "epsilon": made.epsilon}
    assert worst([], (1.0, 1), ridge=made.ridge / 20, **lonely) > made.delta
    with pytest.raises(PrivacyError, match="ridge"):
        replace(made, ridge=made.ridge / 20)


@settings(max_examples=60, deadline=None)
@given(
    epsilon=st.floats(0.05, 8.0),
    exponent=st.floats(2.0, 9.0),
    data=st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 1)), max_size=12),
    one=st.tuples(st.sampled_from([1.0, -1.0]), st.integers(0, 1)),
)
def test_random_neighbours_in_one_dimension(epsilon, exponent, data, one):
    made = plan(epsilon=epsilon, delta=10**-exponent, features=1, constant=0.0, expected_records=10**6)
    setting = {"ridge": made.ridge, "deviation": made.deviation, "epsilon": epsilon}
    assert worst(data, one, **setting) <= made.delta


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_the_noise_is_that_of_one_gaussian_release_and_a_little_more(epsilon, delta):
    made = plan(epsilon=epsilon, delta=delta)
    multiplier = made.deviation / made.norm
    needed = dp_accounting.get_sigma_gaussian(epsilon, delta)
    assert needed < multiplier < 1.03 * needed
    assert made.delta_at(epsilon) <= delta
    assert 0.99 * epsilon < made.epsilon_spent <= epsilon
    output = math.sqrt(made.output_variance) / made.output_sensitivity
    assert dp_accounting.get_epsilon_gaussian(output, delta / 100) <= epsilon / 100


def test_the_output_s_noise_is_small_beside_the_objective_s():
    for features, records in ((31, 455), (130, 32_561)):
        made = plan(features=features, expected_records=records)
        output = math.sqrt(made.output_variance) * made.output_step
        assert output < 0.02 * made.deviation / (made.ridge + 0.25 * records / features)


# --- the minimiser ------------------------------------------------------------------------------------------------


def rows_of(seed, n=150, features=3, scale=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) * scale
    return x, (x[:, 0] + 0.3 * rng.normal(size=n) > 0).astype(np.int64)


@pytest.mark.parametrize("scale", [1e-6, 0.3, 100.0])
def test_what_is_released_is_near_the_minimiser_that_scipy_finds(scale):
    made, (x, y) = plan(), rows_of(1, scale=scale)
    weights, bias = made.minimise(x, y, SeededRandomness("same"))
    from confide.crypto.noise import discrete_gaussian

    noise = discrete_gaussian(made.variance, 4, SeededRandomness("same")) * made.step
    length = np.linalg.norm(x, axis=1)[:, None]
    short = np.concatenate([x * np.minimum(1, 1 / length), np.full((len(x), 1), 0.5)], axis=1)

    def objective(theta):
        margin = short @ theta
        return np.logaddexp(0, margin).sum() - y @ margin + made.ridge / 2 * theta @ theta + noise @ theta

    found = minimize(objective, np.zeros(4), method="BFGS", options={"gtol": 1e-7}).x
    np.testing.assert_allclose(np.append(weights, bias / 0.5), found, atol=1e-4)


def test_the_bound_on_the_gradient_is_one():
    """In twice the digits: the true gradient is below what floats said, wherever they stopped."""
    from mpmath import mp, mpf

    made, (x, y) = plan(), rows_of(2, n=60)
    rows, labels = made._rows(x, y), y.astype(float)
    noise = np.array([1.5, -2.0, 0.3, 4.0])
    rng = np.random.default_rng(0)
    with mp.workdps(50):
        for theta in (made._minimum(rows, labels, noise), rng.normal(size=4), rng.normal(size=4) * 1e3):
            exact = [mpf(float(made.ridge)) * mpf(float(t)) + mpf(float(b)) for t, b in zip(theta, noise, strict=True)]
            for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
                margin = mp.fsum(mpf(a) * mpf(float(t)) for a, t in zip(row, theta, strict=True))
                residual = 1 / (1 + mp.exp(-margin)) - mpf(label)
                exact = [e + residual * mpf(a) for e, a in zip(exact, row, strict=True)]
            true = mp.sqrt(mp.fsum(e * e for e in exact))
            assert true <= made._gradient(rows, labels, noise, theta)
    assert made._gradient(rows, labels, noise, made._minimum(rows, labels, noise)) <= made.slack


def test_rows_have_the_norm_that_is_accounted_whatever_they_hold():
    made = plan()
    x, y = rows_of(3, n=40, scale=1e200)
    x[0], x[1, 2], x[2] = np.nan, np.inf, 0.0
    rows = made._rows(x, y)
    assert (np.linalg.norm(rows, axis=1) <= made.norm).all()
    np.testing.assert_array_equal(rows[:2], 0.0)
    np.testing.assert_array_equal(rows[2], [0, 0, 0, 0.5])
    weights, bias = made.minimise(x, y, SystemRandomness())
    assert np.isfinite(weights).all()
    assert math.isfinite(bias)


def test_no_records_give_noise():
    weights, _ = plan().minimise(np.zeros((0, 3)), np.zeros(0, np.int64), SystemRandomness())
    assert np.isfinite(weights).all()


def test_it_learns():
    x, y = rows_of(4, n=4000, features=10)
    made = plan(features=10, expected_records=4000)
    weights, bias = made.minimise(x, y, SystemRandomness())
    assert np.mean((x @ weights + bias > 0) == y) > 0.8


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"ridge": 0.5}, PrivacyError),
        ({"epsilon": 0.0}, UsageError),
        ({"delta": 1.0}, UsageError),
        ({"features": -1}, UsageError),
        ({"clip_norm": math.inf}, UsageError),
        ({"expected_records": 0}, UsageError),
    ],
)
def test_plans_that_promise_too_much_or_nothing_are_refused(changed, error):
    with pytest.raises(error):
        plan(**changed)


def test_a_plan_with_less_noise_is_refused():
    made = plan()
    for less in ({"variance": made.variance * 0.99}, {"output_variance": made.output_variance * 0.9}):
        with pytest.raises(PrivacyError):
            replace(made, **less)


def test_records_of_another_shape_are_refused():
    made = plan()
    x, y = rows_of(5)
    for wrong in ((x[:, :2], y), (x, y[:3]), (x, y + 1), (x.astype(np.float32), y)):
        with pytest.raises(UsageError):
            made.minimise(*wrong, SystemRandomness())


# --- canaries -----------------------------------------------------------------------------------------------------

_CANARIES = 6_000
_AT_ONCE = 20


def audited(made, *, seed="audit"):
    """Return a lower bound on epsilon from canaries of the other label on axes where everybody knows 40 records.

    On each axis the problem is one of its own, and the known records push p to 0: a canary moves the gradient by nearly
    its whole norm. The score is the known part of the gradient at the released weight, minus the noise if it was alone.
    """
    rng = SeededRandomness(seed)
    coins = draw_coins(_CANARIES, rng)
    known_x = np.repeat(np.eye(_AT_ONCE), 40, axis=0)
    scores = np.zeros(_CANARIES)
    for start in range(0, _CANARIES, _AT_ONCE):
        there = coins[start : start + _AT_ONCE]
        x = np.concatenate([known_x, np.eye(_AT_ONCE)[there]])
        y = np.concatenate([np.zeros(len(known_x), np.int64), np.ones(int(there.sum()), np.int64)])
        theta, _ = made.minimise(x, y, rng.branch())
        known = 40 * expit(theta) + made.ridge * theta
        scores[start : start + _AT_ONCE] = known
    return gaussian_bound(Scores(scores, coins), delta=made.delta)


@pytest.fixture(scope="module")
def canary_plan():
    return plan(features=_AT_ONCE, constant=0.0, expected_records=800)


def test_canaries_do_not_refute_the_claim_and_come_near_it(canary_plan):
    bound = audited(canary_plan)
    assert 0.3 < bound.epsilon <= canary_plan.epsilon


def test_half_the_noise_is_refuted_by_canaries(canary_plan):
    half = object.__new__(ObjectivePlan)
    for name in canary_plan.__dataclass_fields__:
        object.__setattr__(half, name, getattr(canary_plan, name))
    object.__setattr__(half, "variance", canary_plan.variance / 4)
    assert audited(half).refutes(canary_plan.epsilon)
