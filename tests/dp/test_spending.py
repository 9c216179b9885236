from __future__ import annotations

import copy
import math
import multiprocessing
import pickle
import threading

import dp_accounting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.dp.accountant import NoisySums
from confide.dp.queries import count, mean
from confide.dp.spending import Allowance, Budget, allowance
from confide.errors import PrivacyError, UsageError


def exact_epsilon(mus, delta):
    """The oracle: Google's accountant of one Gaussian whose mu^2 is the sum."""
    return dp_accounting.get_epsilon_gaussian(1 / math.sqrt(sum(mu * mu for mu in mus)), delta)


class Untouched:
    """Records that notice being looked at."""

    def __init__(self):
        self.seen = 0

    def __array__(self, *_, **__):
        self.seen += 1
        return np.ones(10)


# --- the account ------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    shares=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=12),
    epsilon=st.floats(0.05, 8.0),
    exponent=st.floats(3.0, 9.0),
)
def test_what_is_spent_is_what_an_independent_accountant_says(shares, epsilon, exponent):
    delta = 10**-exponent
    whole = math.fsum(shares)
    budget = Budget(epsilon, delta)
    for share in shares:
        count([], budget=budget, share=min(1.0, share / whole))
    made = exact_epsilon([one.mu for one in budget.releases], delta)
    assert made <= epsilon * (1 + 1e-9)
    assert abs(budget.spent - made) <= 1e-3 * epsilon
    assert 0.999 * epsilon < budget.spent <= epsilon  # the shares add up to the whole
    assert budget.left < 0.01 * epsilon
    with pytest.raises(PrivacyError, match="left"):
        count([], budget=budget, share=0.01)


def test_ten_releases_of_epsilon_0_3_cost_1_and_not_3():
    budget = Budget(1.0, 1e-6)
    for _ in range(10):
        count([1.0], budget=budget, epsilon=0.28)
    assert 0.94 < budget.spent < 1.0
    assert abs(budget.spent - exact_epsilon([dp_mu(0.28, 1e-6)] * 10, 1e-6)) < 2e-3


def dp_mu(epsilon, delta):
    return 1 / dp_accounting.get_sigma_gaussian(epsilon, delta)


@given(epsilon=st.floats(0.05, 8.0), exponent=st.floats(3.0, 9.0))
def test_one_release_of_the_whole_epsilon_fits_and_has_the_exact_gaussian_s_noise(epsilon, exponent):
    delta = 10**-exponent
    budget = Budget(epsilon, delta)
    assert budget.left == epsilon
    found = count([], budget=budget, epsilon=epsilon)
    assert found.standard_error >= 1 / dp_mu(epsilon, delta) * (1 - 1e-6)  # not less than it takes
    assert found.standard_error <= 1 / dp_mu(epsilon, delta) * (1 + 2e-3)  # nor much more


def test_beyond_epsilon_10_the_claim_holds_where_the_classic_formula_fails():
    """sqrt(2 ln(1.25/delta)) / epsilon, as in Flower's local DP, claims 10 and keeps 10.39."""
    classic = math.sqrt(2 * math.log(1.25 / 1e-5)) / 10
    assert dp_accounting.get_epsilon_gaussian(classic, 1e-5) > 10.3
    found = count([], epsilon=10.0, delta=1e-5)
    assert dp_accounting.get_epsilon_gaussian(found.standard_error, 1e-5) <= 10.0


def test_left_is_what_fits_and_hardly_less():
    budget = Budget(1.0, 1e-6)
    count([], budget=budget, share=0.4)
    left = budget.left
    assert 0.7 < left < 0.8  # the rest of 0.6 in mu^2
    with pytest.raises(PrivacyError):
        count([], budget=budget, epsilon=left * 1.001)
    count([], budget=budget, epsilon=left)
    assert budget.spent <= 1.0


def test_grids_too_coarse_or_noise_too_large_are_refused():
    budget = Budget(1.0, 1e-6)
    with pytest.raises(PrivacyError, match="finer"):
        Allowance(budget, 1.0).sums(sensitivity=2, length=1)
    with pytest.raises(PrivacyError, match="larger share"):
        Allowance(budget, 1e-9).sums(sensitivity=1 << 20, length=1)
    with pytest.raises(PrivacyError, match="integers"):
        budget.charge(
            NoisySums(sensitivity=4, share_variance=2000.0, shares=1, length=1000, rounds=1), of="a coarse sum"
        )
    assert budget.spent == 0
    assert not budget.releases


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_the_records_are_looked_at_and_spends_nothing():
    records, budget = Untouched(), Budget(1.0, 1e-6)
    mean(records, bounds=(0, 1), budget=budget, share=0.9)
    assert records.seen == 1
    before = budget.releases
    with pytest.raises(PrivacyError, match=r"it asks for 0.2 .* 0.1 of it is left"):
        mean(records, bounds=(0, 1), budget=budget, share=0.2)
    assert records.seen == 1
    assert budget.releases == before


def test_a_closed_budget_refuses():
    with Budget(1.0, 1e-6) as budget:
        count([], budget=budget, share=0.1)
    with pytest.raises(PrivacyError, match="closed"):
        count([], budget=budget, share=0.1)
    assert len(budget.releases) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"epsilon": 1.0},
        {"delta": 1e-6},
        {"epsilon": 1.0, "delta": 1e-6, "share": 0.5},
        {"budget": Budget(1.0)},
        {"budget": Budget(1.0), "delta": 1e-6, "epsilon": 0.5},
        {"budget": Budget(1.0), "share": 0.5, "epsilon": 0.5},
        {"budget": Budget(1.0), "share": 0.0},
        {"budget": Budget(1.0), "share": 1.1},
        {"budget": Budget(1.0), "share": float("nan")},
        {"epsilon": 0.0, "delta": 1e-6},
        {"epsilon": -1.0, "delta": 1e-6},
        {"epsilon": float("nan"), "delta": 1e-6},
        {"epsilon": 1.0, "delta": 0.0},
        {"epsilon": 1.0, "delta": 1.0},
    ],
)
def test_arguments_that_say_nothing_or_two_things_are_refused(wrong):
    with pytest.raises(UsageError):
        allowance(**wrong)


# --- one object -------------------------------------------------------------------------------------------------------


def test_copies_are_the_budget_itself_and_no_process_gets_one():
    budget = Budget(1.0, 1e-6)
    assert copy.copy(budget) is budget
    assert copy.deepcopy({"a": [budget]})["a"][0] is budget
    with pytest.raises(PrivacyError, match="process"):
        pickle.dumps(budget)


def _charged_in_child(budget, said):
    try:
        said.put(budget.mu_left)
    except PrivacyError as refused:
        said.put(str(refused))


def test_a_fork_has_no_budget():
    context, budget = multiprocessing.get_context("fork"), Budget(1.0)
    said = context.SimpleQueue()
    child = context.Process(target=_charged_in_child, args=(budget, said))
    child.start()
    child.join(60)
    assert "fork" in said.get()
    assert budget.mu_left == budget.mu


@pytest.mark.parametrize("wrong", [("1",), (1.0, "a"), (None,), (True,)])
def test_a_budget_is_two_numbers(wrong):
    with pytest.raises(UsageError):
        Budget(*wrong)


def test_threads_that_race_never_spend_more_than_there_is():
    budget, done, barrier = Budget(1.0, 1e-6), [], threading.Barrier(8)

    def spend():
        barrier.wait()
        for _ in range(50):
            try:
                count([1.0], budget=budget, share=0.01)
            except PrivacyError:
                continue
            done.append(1)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(done) == len(budget.releases) == 100
    assert exact_epsilon([one.mu for one in budget.releases], 1e-6) <= 1.0


def test_a_budget_says_what_was_spent_on_what():
    budget = Budget(1.0, 1e-6)
    mean([1.0], bounds=(0, 2), budget=budget, share=0.25)
    assert repr(budget) == "Budget(epsilon=1, delta=1e-06)"
    assert "mean" in str(budget)
    assert "spent" in str(budget)
    assert "left" in str(budget)
