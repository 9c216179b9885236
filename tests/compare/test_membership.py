"""Membership: who is in an overfitted model is found, who is in none is not, and noise keeps its bound."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats

from confide.compare.membership import confidences, likelihood_ratios, membership, rates, share
from confide.compare.shadows import Pool, Shadow, opens_exact_sums, pool_of, retrained, shadows
from confide.crypto.random import SeededRandomness
from confide.dp.audit import Scores, draw_coins
from confide.errors import UsageError
from confide.guarantee import worst_true_positive_rate
from confide.model.graph import Graph, Linear, Sigmoid
from confide.train.job import parse
from confide.train.local import Silo, descend
from confide.train.run import load_data

RECORDS, FEATURES, MODELS = 120, 1000, 10


@cache
def random_labels() -> tuple[np.ndarray, np.ndarray]:
    """Return records whose class is a coin: whatever a model knows of it, it has learnt by heart."""
    draw = np.random.default_rng(1)
    return draw.normal(size=(RECORDS, FEATURES)) / 10, draw.integers(2, size=RECORDS)


@cache
def overfitted() -> tuple[Shadow, ...]:
    x, y = random_labels()
    start = Graph((Linear(np.zeros((1, FEATURES)), np.zeros(1)), Sigmoid()))
    found = []
    for number in range(MODELS):
        coins = draw_coins(RECORDS, SeededRandomness(f"coins {number}"))
        graph = descend(start, x[coins], y[coins], steps=300, learning_rate=4.0, momentum=0.9, weight_decay=0.0)
        found.append(Shadow(graph, coins))
    return tuple(found)


def test_an_overfitted_model_of_random_labels_is_found_out():
    found = membership(overfitted(), *random_labels(), delta=1e-5)
    assert found.hits.low > 0.2  # guessing: 0.01
    assert found.alarms.value <= 0.01
    assert found.area.low > 0.9
    assert found.bound.epsilon > 0.8
    assert found.refutes(mu=0.27)  # what epsilon = 1 claims


def test_models_that_never_saw_the_records_give_chance():
    """The same models, against coins that decided nothing."""
    unseen = [
        replace(shadow, seen=draw_coins(RECORDS, SeededRandomness(f"other coins {number}")))
        for number, shadow in enumerate(overfitted())
    ]
    found = membership(unseen, *random_labels(), delta=1e-5)
    assert found.area.low < 0.5 < found.area.high
    assert found.hits.low <= found.alarms.high
    assert found.bound.epsilon < 0.5
    assert not found.refutes(mu=0.27)


def job(**privacy):
    table = {
        "data": {"set": "breast-cancer", "parties": 3, "split": "even"},
        "train": {"rounds": 5, "quorum": 3},
    }
    return parse(table | ({"privacy": privacy} if privacy else {}))


def test_a_private_job_stays_under_its_bound():
    private = job(epsilon=0.5, delta=1e-5, expected_records=340)
    data = load_data(private)
    pool = pool_of(data)
    rng = SeededRandomness("private")
    trained = list(shadows(private, data, pool, models=6, rng=rng))
    found = membership(trained, pool.x, pool.y, delta=1e-5)
    mu = 0.15  # epsilon = 0.5 at delta = 1e-5 is mu = 0.142
    assert not found.refutes(mu)
    assert not found.bound.refutes(0.5)
    allowed = worst_true_positive_rate(mu, 0.02)
    assert found.hits.value * len(found.scores.inside) <= stats.binom.isf(1e-6, len(found.scores.inside), allowed)


def test_ratios_tell_the_two_laws_apart():
    """Against scipy's normal densities, of laws with known means and one width."""
    seen = np.array([[True], [True], [False], [False]])
    known = np.array([[3.0], [5.0], [-1.0], [1.0]])  # means 4 and 0, width 1
    for target in (-2.0, 0.0, 2.0, 4.5):
        expected = stats.norm.logpdf(target, 4, 1) - stats.norm.logpdf(target, 0, 1)
        np.testing.assert_allclose(likelihood_ratios(seen, known, np.array([target])), expected, rtol=1e-6)


def test_a_record_that_every_shadow_saw_gets_a_constant():
    seen = np.array([[True, True], [True, False]])
    scores = likelihood_ratios(seen, np.array([[9.0, 1.0], [8.0, 0.0]]), np.array([5.0, 1.0]))
    assert scores[0] == 0.0 != scores[1]


def test_confidence_is_the_logit_of_the_likelihood():
    graph = Graph((Linear(np.array([[2.0]]), np.array([0.5])), Sigmoid()))
    x = np.array([[1.0], [-3.0]])
    np.testing.assert_allclose(confidences(graph, x, np.array([1, 1])), [2.5, -5.5])
    np.testing.assert_allclose(confidences(graph, x, np.array([0, 0])), [-2.5, 5.5])


def test_rates_are_those_of_one_percent_false_alarms():
    values = np.concatenate([np.arange(1000.0), np.full(1000, 989.5)])
    present = np.arange(2000) >= 1000
    true, false = rates(Scores(values, present))
    assert false.value == 0.01
    assert true.value == 1.0  # above 989, as ten of the others are
    true, _ = rates(Scores(np.where(present, 988.5, values), present))
    assert true.value == 0.0


@pytest.mark.parametrize(("hits", "trials"), [(0, 50), (3, 50), (50, 50)])
def test_intervals_are_exact(hits, trials):
    found, truth = share(hits, trials), stats.binomtest(hits, trials).proportion_ci(0.95, "exact")
    np.testing.assert_allclose([found.low, found.high], [truth.low, truth.high], atol=1e-9)


def test_too_few_models_are_refused():
    with pytest.raises(UsageError, match="4 models or more"):
        membership(overfitted()[:3], *random_labels(), delta=1e-5)


# --- shadow models ----------------------------------------------------------------------------------------------------


def test_a_pool_puts_in_what_the_coins_say_and_one_record_of_each_party():
    silos = tuple(Silo(name, np.arange(3.0)[:, None] + 10 * at, np.arange(3)) for at, name in enumerate("ab"))
    pool = Pool(silos, np.array([False, True, True] * 2))
    assert pool.x.ravel().tolist() == [1, 2, 11, 12]
    first, second = pool.drawn(np.array([False, True, False, False]))
    assert first.x.ravel().tolist() == [0, 2]
    assert second.x.ravel().tolist() == [10]
    assert pool.attacked.sum() == pool.count == 4


def test_units_of_both_sides_stay_apart():
    plain = load_data(job())
    silos = tuple(replace(silo, units=np.arange(len(silo.y))) for silo in plain.silos)
    held = tuple(replace(silo, units=np.arange(len(silo.y))) for silo in plain.held)
    for silo in pool_of(replace(plain, silos=silos, held=held)).silos:
        assert len(np.unique(silo.units)) == len(silo.y)


def test_a_shadow_is_the_job_s_own_model():
    """Over the same records a plain sum leads to the model of the masked one, to the bit."""
    from confide.train.run import train

    plain, data = job(), load_data(job())
    assert opens_exact_sums(plain)
    *_, last = train(plain, data)
    np.testing.assert_array_equal(
        retrained(plain, data, data.silos, SeededRandomness("shadow")).parameters, last.parameters
    )
