"""The federated loop under a privacy plan: the noise is really in the model, and the budget is really the end."""

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import chi2

from confide.crypto.random import SeededRandomness
from confide.dp.plan import PrivacyPlan
from confide.ideal import PlainSum
from confide.model.graph import Graph, Linear, Sigmoid
from confide.secagg.masked import Masked
from confide.train.encodings import PrivateGradients
from confide.train.learner import GraphLearner
from confide.train.ledger import Ledger
from confide.train.local import Silo, flatten
from confide.train.rounds import federate
from confide.train.sections import TrainSection
from confide.wire import MemoryStore, drop

FEATURES, ROUNDS = 20, 40
START = Graph((Linear(np.zeros((1, FEATURES)), np.zeros(1)), Sigmoid()))
SETTINGS = TrainSection(average=0.0, rounds=ROUNDS, learning_rate=1.0, momentum=0.0, weight_decay=0.0, quorum=3)
PLAN = PrivacyPlan.calibrate(
    epsilon=1.0,
    clip_norm=0.5,
    rounds=ROUNDS,
    length=START.parameters,
    silos=4,
    quorum=3,
    colluding=1,
    expected_records=400,
)
EMPTY = [Silo(f"h{n}", np.zeros((0, FEATURES)), np.zeros(0, np.int64)) for n in range(4)]

#: Two-sided; the seeds are fixed, so this is how likely a new seed would have failed.
FALSE_ALARM = 1e-6


def moves(silos, aggregator, seed, fault=None):
    """Return what each round added to the parameters, shape (rounds, parameters)."""
    rng = SeededRandomness(seed)
    encoding = PrivateGradients(GraphLearner(START, SETTINGS), PLAN, SETTINGS)
    done = federate(silos, encoding, SETTINGS, aggregator=aggregator, rng=rng, fault=fault)
    weights = np.array([flatten(START), *(flatten(r.model) for r in done)])
    return np.diff(weights, axis=0)


def has_deviation(sample, deviation):
    """The chi-square test that zero-mean normal draws have the given standard deviation."""
    statistic = float((sample**2).sum()) / deviation**2
    return chi2.ppf(FALSE_ALARM / 2, sample.size) < statistic < chi2.isf(FALSE_ALARM / 2, sample.size)


@pytest.mark.parametrize(("fault", "silos"), [(None, 4), (drop(src="h2"), 3)])
def test_the_model_carries_the_noise_of_every_survivor(fault, silos):
    """Silos without records send noise alone, so the moves are the noise: right scale, not 2/3, not 3/2 of it."""
    sample = np.concatenate([moves(EMPTY, Masked(), seed, fault) for seed in ("noise", "more noise")])
    # what one release must carry for h = 2 honest shares, in units of the mean gradient, times what survivors add
    claimed = PLAN.noise_multiplier * PLAN.clip_norm / PLAN.expected_records
    expected = claimed * np.sqrt(silos / PLAN.shares)
    assert has_deviation(sample, expected)
    assert not has_deviation(sample * 2 / 3, expected)
    assert not has_deviation(sample * 3 / 2, expected)
    assert not has_deviation(sample, claimed * np.sqrt((silos - 1) / PLAN.shares))  # one share left out is noticed


def test_the_claimed_noise_is_a_gaussian_mechanism_by_another_library():
    """dp-accounting, given the deviation that h honest shares really have, agrees with the plan's epsilon."""
    from dp_accounting import get_epsilon_gaussian

    theirs = get_epsilon_gaussian(PLAN.noise_multiplier / np.sqrt(ROUNDS), PLAN.delta)
    assert theirs <= PLAN.epsilon_server <= 1.0
    assert PLAN.epsilon_server == pytest.approx(theirs, rel=2e-3)


def test_one_record_moves_the_model_by_at_most_its_clip():
    """With the same noise, models with and without one record differ by at most clip / expected per round."""
    wild = Silo("h0", np.full((1, FEATURES), 1e6), np.array([1]))
    without, with_it = (moves([first, *EMPTY[1:]], PlainSum(), "same") for first in (EMPTY[0], wild))
    distances = np.linalg.norm(with_it - without, axis=1) * PLAN.expected_records
    assert distances[0] == pytest.approx(PLAN.clip_norm, rel=0.02)
    assert distances.max() <= PLAN.clip_norm * (1 + 1e-9)


def test_a_repeated_round_spends_a_release_and_the_budget_is_the_end():
    lost = []

    def first_attempt(message):
        if message.tag == "plain/vector" and len(lost) < 2:
            lost.append(message)
            return []
        return [(0, message)]

    encoding = PrivateGradients(GraphLearner(START, SETTINGS), PLAN, SETTINGS)
    run = federate(EMPTY, encoding, SETTINGS, aggregator=PlainSum(), rng=SeededRandomness("retry"), fault=first_attempt)
    done = list(run)
    assert done[0].attempts == 2
    assert len(done) == ROUNDS - 1  # one release went to the attempt that failed
    assert done[-1].epsilon == pytest.approx(PLAN.epsilon_server)
    assert all(a.epsilon < b.epsilon for a, b in pairwise(done))


def test_a_silo_refuses_more_rounds_than_the_plan_has():
    from confide.errors import PrivacyError

    encoding = PrivateGradients(GraphLearner(START, SETTINGS), PLAN, SETTINGS)
    rng, store = SeededRandomness("more"), MemoryStore()
    for _ in range(ROUNDS):
        encoding.contribution(encoding.learner.start, EMPTY[0], 1, rng, store)
        store.commit(encoding.charge(store))
    with pytest.raises(PrivacyError, match="releases=40, got 41"):
        encoding.contribution(encoding.learner.start, EMPTY[0], 1, rng, store)


def test_an_attempt_is_charged_from_the_moment_when_vectors_leave(tmp_path):
    """From then on enough of the others can open the sum; before it there is nothing to open."""
    for tag, charged in (("masked/shares", 0), ("masked/vector", 1)):
        lost = []

        def first_attempt(message, tag=tag, lost=lost):
            if message.tag == tag and len(lost) < len(EMPTY):
                lost.append(message)
                return []
            return [(0, message)]

        encoding = PrivateGradients(GraphLearner(START, SETTINGS), PLAN, SETTINGS)
        ledger = Ledger(tmp_path / f"{charged}.jsonl")
        rng = SeededRandomness("retry")
        run = federate(EMPTY, encoding, SETTINGS, aggregator=Masked(), rng=rng, fault=first_attempt, ledger=ledger)
        done = list(run)
        assert done[0].attempts == 2
        assert len(done) == ROUNDS - charged
        events = [json.loads(line) for line in (tmp_path / f"{charged}.jsonl").read_text().splitlines()]
        assert sum(event["event"] == "release" for event in events) == len(done) + charged == ROUNDS
