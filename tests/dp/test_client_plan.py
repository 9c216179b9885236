"""The client plan: calibrated to the safe side, exact in integers, and what a client sends never more than planned."""

from __future__ import annotations

import math
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness
from confide.dp import client_plan
from confide.dp.accountant import NoisySums
from confide.dp.client_plan import ClientPlan, Participation, fewest_clients, noise_of_mean
from confide.dp.factorisation import Bands, banded, independent
from confide.errors import PrivacyError, UsageError
from confide.guarantee import PrivacyLabel
from dp import exact

ASKED = {
    "epsilon": 1.0,
    "delta": 1e-5,
    "clip_norm": 0.5,
    "bands": banded(12, 4, 4),
    "length": 20,
    "clients": 300,
    "quorum": 200,
    "colluding": 20,
}


@pytest.fixture
def plan():
    return ClientPlan.calibrate(**ASKED)


@pytest.fixture
def silent(monkeypatch):
    """No noise at all."""
    monkeypatch.setattr(client_plan, "discrete_gaussian", lambda variance, count, rng: np.zeros(count, np.int64))


@pytest.mark.parametrize(
    "bands", [independent(1), independent(20), independent(20, 5), banded(20, 5, 5), banded(64, 16, 4)]
)
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 8.0])
def test_the_noise_is_what_a_gaussian_of_the_joint_sensitivity_needs(bands, epsilon):
    """dp-accounting knows nothing of bands: its exact Gaussian gets the norm of the worst column alone."""
    plan = ClientPlan.calibrate(**ASKED | {"bands": bands, "epsilon": epsilon})
    assert epsilon * (1 - 1e-9) <= plan.epsilon_server <= epsilon
    assert plan.epsilon_outsiders <= plan.epsilon_server
    worst = max(
        sum(
            bands.steps[lag] ** 2
            for number in range(1, bands.rounds + 1)
            if (lag := bands.lag(place, number)) is not None
        )
        for place in range(bands.period)
    )
    deviation = math.sqrt(plan.shares * plan.share_variance) / (plan.grid * math.sqrt(worst))
    needed = dp_accounting.get_sigma_gaussian(epsilon, 1e-5)
    assert needed * (1 - 1e-9) <= deviation <= needed * 1.001
    with pytest.raises(PrivacyError, match="Expected noise for epsilon"):
        replace(plan, share_variance=plan.share_variance * (1 - 1e-6))


def test_what_the_first_rounds_spend_grows_and_ends_at_epsilon(plan):
    spent = [plan.spent(number) for number in range(plan.rounds + 1)]
    assert spent[0] == 0
    assert spent == sorted(spent)
    assert spent[-1] == plan.epsilon_server
    with pytest.raises(PrivacyError):
        plan.spent(plan.rounds + 1)


@pytest.mark.parametrize("moves", [(2, 1), (2, 2)])
def test_integer_noise_over_rounds_costs_at_most_what_theorem_3_says(moves):
    """The exact divergence of vectors that neighbours move by different amounts in different rounds."""
    joint = sum(move * move for move in moves)
    event = NoisySums(sensitivity=max(moves), share_variance=9.0, shares=1, length=1, rounds=len(moves), joint=joint)
    for epsilon in (0.3, 1.0):
        truth = exact.delta(exact.shares(9, 1), moves, epsilon)
        nearer = exact.delta(exact.shares(9, 1), moves, epsilon - 2 * event.surcharge)
        assert truth <= event.delta(epsilon) <= 1.12 * float(nearer)
    whole = NoisySums(sensitivity=max(moves), share_variance=9.0, shares=1, length=1, rounds=len(moves))
    assert event.delta(0.5) <= whole.delta(0.5)
    with pytest.raises(UsageError, match="joint"):
        replace(event, joint=len(moves) * max(moves) ** 2 + 1)


def test_moves_that_are_chosen_by_what_was_released_leak_no_more():
    """Theorem 3's step for adaptive streams: the privacy loss of a padded stream is normal, whoever chooses how.

    An adversary splits a squared distance of 1 over 6 releases by the signs and sizes of what it has seen; the loss
    must have mean 1/2 and variance 1 as if there were one release (Kolmogorov-Smirnov, one draw in 10^6 fails).
    """
    from scipy.stats import kstest

    rng = np.random.default_rng(5)
    count, left, loss = 40_000, np.ones(40_000), np.zeros(40_000)
    seen = np.zeros(count)
    for number in range(6):
        part = left if number == 5 else left * np.where(seen > 0.3 * number, 0.9, np.abs(np.sin(seen)) / 3)
        z = rng.normal(size=count)
        loss += np.sqrt(part) * z + part / 2
        left = left - part
        seen += z * np.where(part > 0.2, 1.0, -0.5)
    assert kstest(loss, "norm", args=(0.5, 1.0)).pvalue > 1e-6
    assert kstest(loss * 1.06, "norm", args=(0.5, 1.0)).pvalue < 1e-6  # the test has teeth


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_what_one_client_sends_stays_within_its_sensitivity_whatever_it_learnt(data):
    """In integers, through the real code, with huge, tiny and broken updates and every pattern of absences."""
    period = data.draw(st.integers(1, 4))
    bands = banded(data.draw(st.integers(1, 9)), period, data.draw(st.integers(1, period)))
    plan = ClientPlan.calibrate(**ASKED | {"bands": bands, "clients": 10, "quorum": 10, "colluding": 0})
    place, own, squares = data.draw(st.integers(0, 9)), None, 0
    for number in range(1, plan.rounds + 1):
        if bands.lag(place, number) == 0:
            update = np.full(20, data.draw(st.sampled_from([0.0, 1e-9, 0.3, -1e300, np.nan, np.inf])))
            kept = plan.participation(update, number)
            own = kept if data.draw(st.booleans()) else own
        moved = sent(plan, place, number, own)
        squares += sum(value * value for value in moved.tolist()) * data.draw(st.sampled_from([0, 1]))
    assert squares <= plan.bands.squared_norm() * plan.grid**2


def sent(plan: ClientPlan, place: int, number: int, own: Participation | None) -> np.ndarray:
    """What a client submits with its noise taken away."""
    noise = plan.release(place, number, None, SeededRandomness("same"))
    return plan.release(place, number, own, SeededRandomness("same")) - noise


def test_a_client_without_its_clip_would_exceed_the_sensitivity_and_is_refused(plan):
    """Negative control: an update longer than the clip is caught where it would be sent."""
    values = np.zeros(20, np.int64)
    values[0] = plan.grid
    assert sent(plan, 0, 1, Participation(1, values))[0] == plan.grid * plan.bands.steps[0]
    values[1] = 1
    with pytest.raises(PrivacyError, match="as `participation`"):
        plan.release(0, 1, Participation(1, values), SeededRandomness("x"))
    with pytest.raises(PrivacyError, match="as `participation`"):
        plan.release(0, 1, Participation(1, np.full(20, 2**40)), SeededRandomness("x"))  # squares beyond int64


def test_an_update_of_another_round_is_never_sent(plan):
    values = np.full(20, 3, np.int64)
    for number in (1, 2, 3, 4):
        assert sent(plan, 0, number, Participation(1, values))[0] == 3 * plan.bands.steps[number - 1]
        assert not sent(plan, 1, number, Participation(1, values)).any()
    assert not sent(plan, 0, 5, Participation(1, values)).any()  # on again, and missed it


def test_without_noise_the_server_decodes_the_plain_sums(silent):
    """Post-processing is exact but for floats: C^-1 C x = x."""
    rng = np.random.default_rng(3)
    for bands in (independent(10), independent(10, 3), banded(10, 3, 3), banded(10, 5, 2)):
        plan = ClientPlan.calibrate(**ASKED | {"bands": bands, "clients": 12, "quorum": 12, "colluding": 0})
        own: dict[int, Participation] = {}
        earlier = np.zeros((len(bands.steps) - 1, 20))
        for number in range(1, 11):
            on = [place for place in range(12) if bands.lag(place, number) == 0]
            own |= {place: plan.participation(rng.normal(size=20), number) for place in on}
            total = sum(plan.release(place, number, own.get(place), SeededRandomness("x")) for place in range(12))
            decoded = plan.decode(total, earlier)
            plain = sum(own[place].values for place in on)
            assert decoded == pytest.approx(plain, abs=1e-6)
            assert plan.mean(decoded, number) == pytest.approx(plain * plan.clip_norm / plan.grid / len(on), abs=1e-9)
            earlier = np.concatenate([decoded[None], earlier])[: len(earlier)]


def test_prefix_sums_carry_the_noise_that_is_computed():
    """Chi-square over many coordinates; 2/3 and 3/2 of the deviation are refused."""
    from scipy.stats import chi2

    for bands in (independent(8), banded(8, 4, 4)):
        plan = ClientPlan.calibrate(
            **ASKED | {"bands": bands, "length": 400, "clients": 6, "quorum": 4, "colluding": 1}
        )
        rng = SeededRandomness("prefix")
        earlier, prefix = np.zeros((len(bands.steps) - 1, 400)), np.zeros(400)
        sums = []
        for number in range(1, 9):
            decoded = plan.decode(sum(plan.release(place, number, None, rng) for place in range(6)), earlier)
            earlier = np.concatenate([decoded[None], earlier])[: len(earlier)]
            prefix = prefix + decoded
            sums.append(prefix)
        unit = math.sqrt(6 * plan.share_variance) / bands.steps[0]
        for number, deviation in enumerate(bands.prefix_deviations()):
            statistic = float((sums[number] ** 2).sum()) / (unit * deviation) ** 2
            low, high = chi2.ppf(5e-7, 400), chi2.isf(5e-7, 400)
            assert low < statistic < high
            assert not low < statistic * 4 / 9 < high
            assert not low < statistic * 9 / 4 < high
        measured = math.sqrt(float(np.mean(np.square(sums)))) * plan.clip_norm / plan.grid * bands.period / 6
        assert measured == pytest.approx(plan.prefix_deviation(6), rel=0.15)


def test_few_clients_are_drowned_and_the_number_says_so():
    assert noise_of_mean(1.0, 1e-5, clients=10, shares=10) == pytest.approx(0.373, abs=1e-3)
    assert noise_of_mean(1.0, 1e-5, clients=200, shares=200) < 0.02 < noise_of_mean(1.0, 1e-5, clients=180, shares=180)
    for epsilon, honest in ((1.0, 1.0), (1.0, 0.5), (4.0, 0.8)):
        needed = fewest_clients(epsilon, 1e-5, honest=honest)
        assert noise_of_mean(epsilon, 1e-5, clients=needed, shares=honest * needed) <= 0.02
        assert noise_of_mean(epsilon, 1e-5, clients=needed - 1, shares=honest * (needed - 1)) > 0.02


def test_label_fields_are_those_of_a_label(plan):
    label = PrivacyLabel(
        aggregator="masked", parties=("a",), quorum=200, colluding=20, rounds=12, **plan.label_fields()
    )
    assert label.unit == "client"
    assert "nothing" in (label.relation or "")
    assert 0 < (label.epsilon_party or 0) <= plan.epsilon_server
    assert "bands (1, " in (label.mechanism or "")
    assert "of 4" in (label.mechanism or "")
    assert "theorem 3" in (label.accountant or "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"quorum": 301},
        {"colluding": 200},
        {"clip_norm": 0.0},
        {"clip_norm": math.inf},
        {"length": 0},
        {"grid": 1},
        {"epsilon": 0.0},
        {"bands": Bands(steps=(1,), rounds=4, period=301)},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises((UsageError, PrivacyError), match="Expected"):
        ClientPlan.calibrate(**ASKED | wrong)


def test_rounds_and_updates_that_the_plan_does_not_have_are_refused(plan):
    for number in (0, 13):
        with pytest.raises(PrivacyError, match="no other"):
            plan.release(0, number, None, SeededRandomness("x"))
    with pytest.raises(UsageError, match="length=20"):
        plan.participation(np.zeros(19), 1)
    assert "values" not in repr(plan.participation(np.ones(20), 1))
