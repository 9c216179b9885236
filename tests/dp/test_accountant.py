"""The accountant against integrals, exact sums and dp-accounting; never below the truth, and tighter than Renyi."""

from __future__ import annotations

import math
from dataclasses import replace

import dp_accounting
import mpmath
import pytest
from dp_accounting import pld, rdp
from hypothesis import given
from hypothesis import strategies as st

from confide.dp.accountant import NoisySums, gaussian_delta, gaussian_epsilon, gaussian_mu
from confide.errors import PrivacyError, UsageError
from dp import exact

ADD_OR_REMOVE = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


@pytest.mark.parametrize("mu", [0.01, 0.268, 1.0, 3.0, 7.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 8.0])
def test_gaussian_delta_is_the_integral_rounded_up(mu, epsilon):
    truth = exact.gaussian_delta(mu, epsilon)
    ours = gaussian_delta(mu, epsilon)
    assert truth <= ours <= truth * (1 + mpmath.mpf("1e-6")) + mpmath.mpf("1e-13")


@given(st.floats(0.05, 10), st.floats(-12, -2))
def test_gaussian_epsilon_and_mu_agree_with_dp_accounting(epsilon, exponent):
    delta = 10.0**exponent
    mu = gaussian_mu(epsilon, delta)
    assert mu == pytest.approx(1 / dp_accounting.get_sigma_gaussian(epsilon, delta), rel=1e-8)
    assert gaussian_epsilon(mu, delta) == pytest.approx(dp_accounting.get_epsilon_gaussian(1 / mu, delta), rel=1e-8)
    assert gaussian_delta(mu, epsilon) <= delta


@pytest.mark.parametrize(("rounds", "multiplier"), [(1, 3.7306), (20, 16.684), (50, 10.0)])
def test_rounds_compose_as_the_pld_accountant_says(rounds, multiplier):
    accountant = pld.PLDAccountant(neighboring_relation=ADD_OR_REMOVE, value_discretization_interval=1e-4)
    accountant.compose(dp_accounting.GaussianDpEvent(multiplier), rounds)
    ours = gaussian_epsilon(math.sqrt(rounds) / multiplier, 1e-5)
    assert accountant.get_epsilon(1e-5) == pytest.approx(ours, rel=2e-3)
    assert ours <= accountant.get_epsilon(1e-5) * (1 + 1e-9)  # PLD rounds up by its interval


@pytest.mark.parametrize(("variance", "count"), [(9, 1), (9, 2), (9, 3), (25, 1), (25, 2), (100, 1), (100, 2)])
@pytest.mark.parametrize("steps", [2, 6])
def test_integer_noise_costs_at_most_what_theorem_1_says_and_hardly_less(variance, count, steps):
    event = NoisySums(sensitivity=steps, share_variance=float(variance), shares=count, length=1, rounds=1)
    for epsilon in (0.2, 0.7, 2.0):
        truth = exact.delta(exact.shares(variance, count), (steps,), epsilon)
        ours = event.delta(epsilon)
        assert truth <= ours
        nearer = exact.delta(exact.shares(variance, count), (steps,), epsilon - 2 * event.surcharge)
        if truth > 1e-9:
            assert ours <= 1.12 * nearer  # the surcharge explains the gap; what is left is the grid's own ripple


def test_the_continuous_formula_alone_would_claim_too_little():
    law = exact.shares(9, 1)
    assert gaussian_delta(1 / 3, 2.0) < 0.9 * exact.delta(law, (1,), 2.0)


@pytest.mark.parametrize("shifts", [(3, 4), (5, 0), (4, -3)])
def test_coordinates_and_rounds_cost_their_joint_distance(shifts):
    event = NoisySums(sensitivity=5, share_variance=16.0, shares=1, length=2, rounds=1)
    for epsilon in (0.5, 1.5):
        assert exact.delta(exact.shares(16, 1), shifts, epsilon) <= event.delta(epsilon)
    twice = NoisySums(sensitivity=5, share_variance=16.0, shares=1, length=1, rounds=2)
    assert exact.delta(exact.shares(16, 1), (5, 5), 1.0) <= twice.delta(1.0)


@pytest.mark.parametrize("rounded", [9, 16, 100, 10_000])
def test_lemma_4_holds_for_every_integer(rounded):
    event = NoisySums(sensitivity=1, share_variance=float(rounded), shares=1, length=1, rounds=1)
    with mpmath.workdps(60):
        big = mpmath.mpf(rounded)
        u = big * (1 + mpmath.sqrt(1 - 1 / (3 * big))) / 2
        assert float(u) == pytest.approx(event.rounded_variance, rel=1e-14)
        reach = int(17 * rounded**0.5)
        normaliser = mpmath.fsum(mpmath.exp(-mpmath.mpf(k * k) / (2 * big)) for k in range(-reach, reach + 1))
        r = normaliser / mpmath.sqrt(2 * mpmath.pi * big) - 1
        for k in {0, 1, 2, rounded, *range(0, int(14 * rounded**0.5), max(1, rounded // 40))}:
            halves = [(mpmath.mpf(k) + side) / mpmath.sqrt(2 * u) for side in (-0.5, 0.5)]
            cell = (mpmath.erfc(halves[0]) - mpmath.erfc(halves[1])) / 2
            loss = mpmath.log(mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * big)) / normaliser / cell)
            x = mpmath.mpf(k) ** 2 / u
            assert -loss <= 1 / (280 * u**2) + r
            assert loss <= (x**2 + 10 * x) / (2880 * u**2)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_lemma_3_holds_for_every_integer(count):
    with mpmath.workdps(60):
        law, one = exact.shares(9, count), exact.discrete_gaussian(9 * count)
        tau = 8 * count * mpmath.exp(-9 * mpmath.pi**2)
        middle, centre = len(law) // 2, len(one) // 2
        for k in range(12):
            ratio = law[middle + k] / one[centre + k]
            assert abs(mpmath.log(ratio)) <= tau + mpmath.mpf("1e-35")  # the oracle works with 40 digits


@pytest.mark.parametrize(("rounds", "grid", "length"), [(1, 64, 1), (20, 512, 31), (50, 16_384, 40_000)])
def test_this_accounting_is_tighter_than_renyi(rounds, grid, length):
    sigma = math.sqrt(rounds) / gaussian_mu(1.0, 1e-5)
    event = NoisySums(sensitivity=grid, share_variance=(sigma * grid) ** 2 / 2, shares=2, length=length, rounds=rounds)
    accountant = rdp.RdpAccountant(neighboring_relation=ADD_OR_REMOVE)
    accountant.compose(dp_accounting.ZCDpEvent(1 / (2 * sigma**2)), rounds)
    renyi = accountant.get_epsilon(1e-5)
    assert 1.0 <= event.epsilon(1e-5) <= 1.0 + 1e-3
    assert renyi > 1.07 * event.epsilon(1e-5)


def test_the_surcharge_vanishes_on_the_default_grid_and_falls_as_the_square():
    event = NoisySums(sensitivity=512, share_variance=3.6e7, shares=2, length=31, rounds=20)
    assert 0 < event.surcharge < 1e-11
    assert event.surcharge / replace(event, share_variance=7.2e7).surcharge == pytest.approx(4, rel=1e-6)


@given(
    st.integers(1, 10**6), st.floats(9, 1e20), st.integers(1, 9), st.integers(1, 10**6), st.integers(1, 1000),
    st.floats(-12, -1),
)  # fmt: skip
def test_epsilon_satisfies_its_delta_and_more_shares_never_cost(
    sensitivity, variance, shares, length, rounds, exponent
):
    event = NoisySums(sensitivity=sensitivity, share_variance=variance, shares=shares, length=length, rounds=rounds)
    delta = 10.0**exponent
    epsilon = event.epsilon(delta)
    assert epsilon == math.inf or event.delta(epsilon) <= delta
    # both are rounded up by bisection, so they compare up to the rounding of tiny differences only
    assert epsilon >= gaussian_epsilon(event.mu, delta) * (1 - 1e-6) - 1e-9
    assert replace(event, shares=shares + 1).epsilon(delta) <= epsilon * (1 + 1e-6) + 1e-9
    assert 0 <= event.delta(0.5) <= 1


def test_the_tail_of_the_sampler_is_charged():
    event = NoisySums(sensitivity=1, share_variance=1e12, shares=3, length=1000, rounds=10)
    assert event.delta(1.0) == pytest.approx(2 * math.exp(-72) * 10_000 * (1 + 3 * (1 + math.e)), rel=1e-9)


def test_epsilon_below_the_surcharge_claims_nothing():
    event = NoisySums(sensitivity=1, share_variance=9.0, shares=1, length=50, rounds=1)
    assert event.surcharge > 1
    assert event.delta(1.0) == 1.0
    assert event.delta(33.0) == 1.0


def test_hopeless_targets_give_infinity_or_a_refusal():
    assert gaussian_epsilon(40.0, 1e-9) == math.inf
    assert gaussian_delta(1.0, 1000.0) == gaussian_delta(1.0, 32.0)
    assert gaussian_epsilon(0.1, 0.5) == 0.0
    with pytest.raises(PrivacyError, match="reachable delta"):
        gaussian_mu(1.0, 1e-310)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, -0.1), (1.0, math.nan)])
def test_gaussian_delta_refuses_what_has_no_meaning(mu, epsilon):
    with pytest.raises(ValueError, match="Expected mu="):
        gaussian_delta(mu, epsilon)


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0.0, 0.1), (-1.0, 0.1), (33.0, 0.1), (math.nan, 0.1), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)],
)
def test_targets_out_of_range_are_refused(epsilon, delta):
    with pytest.raises(UsageError, match="Expected (epsilon|delta)="):
        gaussian_mu(epsilon, delta)


@pytest.mark.parametrize("name", ["sensitivity", "shares", "length", "rounds"])
def test_an_event_without_substance_is_refused(name):
    fields = {"sensitivity": 1, "share_variance": 9.0, "shares": 1, "length": 1, "rounds": 1} | {name: 0}
    with pytest.raises(UsageError, match="at least 1"):
        NoisySums(**fields)


@pytest.mark.parametrize("variance", [0.0, 8.9, math.nan])
def test_shares_too_small_for_the_theorem_are_refused(variance):
    with pytest.raises(PrivacyError, match="finer grid"):
        NoisySums(sensitivity=1, share_variance=variance, shares=1, length=1, rounds=1)
