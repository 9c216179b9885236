"""Membership attacks on a small model, with and without differential privacy: who was among the training records?

For each of 300 digits and each model a fair coin decides whether the model was trained on it. Two attacks guess from
the model alone: a threshold on the record's loss (Yeom et al., arXiv 1709.01604), and the likelihood ratio of the loss
under shadow models with and without the record (LiRA; Carlini et al., arXiv 2112.03570).

A model trained with noise must not leak beyond what its mu allows; one trained without must leak, or the attack shows
nothing. That end-to-end attacks find so little at epsilon = 1 says little about the code: `test_dp_audit.py` does.
False-alarm budget, had the seeds been drawn afresh: 1e-6 for each verdict on the private model.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from confide.crypto.random import SeededRandomness
from confide.dp.audit import Scores, draw_coins, threshold_bound
from confide.dp.plan import PrivacyPlan
from confide.guarantee import worst_true_positive_rate
from confide.model.graph import Graph
from confide.model.zoo import logistic
from confide.train.encodings import PrivateGradients
from confide.train.learner import GraphLearner
from confide.train.local import Silo, descend, targets, unflatten
from confide.train.sections import TrainSection
from confide.wire import MemoryStore

RECORDS, SHADOWS, TARGETS, ROUNDS = 300, 16, 8, 10
START = logistic(64, 10)
TRAIN = TrainSection(learning_rate=2.0, weight_decay=0.0)
PLAN = PrivacyPlan.calibrate(
    epsilon=1.0, delta=1e-5, clip_norm=0.5, rounds=ROUNDS, length=START.parameters, expected_records=RECORDS // 2
)
MU = PLAN.event(PLAN.shares).mu
ALARM = 1e-6


@cache
def records() -> Silo:
    found = load_digits()
    chosen = np.random.Generator(np.random.PCG64(3)).permutation(len(found.data))[:RECORDS]
    return Silo("all", found.data[chosen] / 16, found.target[chosen].astype(np.int64))


def without_noise(part: Silo, seed: str) -> Graph:
    return descend(START, part.x, part.y, steps=400, learning_rate=2.0, momentum=0.9, weight_decay=0.0)


def with_noise(part: Silo, seed: str) -> Graph:
    """Train as a private job does: the silo's releases, and the server's steps."""
    encoding = PrivateGradients(GraphLearner(START, TRAIN), PLAN, TRAIN)
    parameters, rng, store = encoding.learner.start, SeededRandomness(seed), MemoryStore()
    for number in range(1, ROUNDS + 1):
        released = encoding.contribution(parameters, part, number, rng, store)
        store.commit(encoding.charge(store))
        parameters = parameters + encoding.update(parameters, released, frozenset("a"), number)
    return unflatten(START, parameters)


def clipped_only(part: Silo, seed: str) -> Graph:
    """Train to the end with clipped gradients and no noise: what looks private and is not."""
    encoding = PrivateGradients(GraphLearner(START, TRAIN), PLAN, TRAIN)
    parameters = encoding.learner.start
    for number in range(1, 201):
        total = PLAN.clipped_sum(encoding.learner.record_gradients(parameters, part)).total
        parameters = parameters + encoding.update(parameters, total, frozenset("a"), number)
    return unflatten(START, parameters)


def confidence_of(graph: Graph) -> np.ndarray:
    """Return log(p / (1 - p)) of each record, with -log p its loss: near normal over models, as LiRA wants it."""
    all_of_them = records()
    y = graph.apply(all_of_them.x)
    likelihood = np.clip(np.where(targets(all_of_them.y, 10) == 1, y, 1 - y), 1e-300, 1)
    loss = np.maximum(-np.log(likelihood).sum(axis=1), 1e-12)
    return -loss - np.log(-np.expm1(-loss))


@cache
def models(train, shadows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which records each model has seen, and its confidence in each: shapes (models, records)."""
    seen, known = [], []
    for number in range(shadows + TARGETS):
        coin = draw_coins(RECORDS, SeededRandomness(f"members {number}"))
        part = Silo("members", records().x[coin], records().y[coin])
        seen.append(coin)
        known.append(confidence_of(train(part, f"noise {number}")))
    return np.array(seen), np.array(known)


def loss_threshold(train, shadows: int) -> Scores:
    seen, known = models(train, shadows)
    return Scores(known[-TARGETS:].ravel(), seen[-TARGETS:].ravel())


def likelihood_ratio(train, shadows: int) -> Scores:
    """Score each record by the shadow models that have seen it and those that have not, with one width for both."""
    seen, known = models(train, shadows)
    shown, believed = seen[:shadows], known[:shadows]

    def mean(where: np.ndarray) -> np.ndarray:
        return (believed * where).sum(axis=0) / np.maximum(1, where.sum(axis=0))

    inside, outside = mean(shown), mean(~shown)
    width = np.sqrt(((believed - np.where(shown, inside, outside)) ** 2).mean(axis=0)) + 1e-9
    target = known[-TARGETS:]
    ratio = (((target - outside) / width) ** 2 - ((target - inside) / width) ** 2) / 2
    return Scores(ratio.ravel(), seen[-TARGETS:].ravel())


def auc(scores: Scores) -> tuple[float, float]:
    """Return the area under the curve and its standard error (Hanley and McNeil's bound: the larger side decides)."""
    inside, outside = scores.inside, scores.outside
    area = stats.mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside))
    return area, math.sqrt(area * (1 - area) / min(len(inside), len(outside)))


def hits_at_one_percent(scores: Scores) -> tuple[int, int]:
    """Return how many members score above all but 1 % of the others, and of how many."""
    return int((scores.inside > np.quantile(scores.outside, 0.99)).sum()), len(scores.inside)


def leaks_more_than(mu: float, scores: Scores) -> bool:
    """Return True if the attack's area lies beyond what mu-GDP allows any attack, Phi(mu / sqrt(2)), beyond doubt."""
    area, error = auc(scores)
    return area - stats.norm.isf(ALARM) * error > stats.norm.cdf(mu / 2**0.5)


@pytest.mark.parametrize("attack", [loss_threshold, likelihood_ratio])
def test_a_private_model_leaks_no_more_than_its_epsilon_allows(attack):
    scores = attack(with_noise, SHADOWS)
    assert not threshold_bound(scores, delta=PLAN.delta, confidence=1 - ALARM).refutes(PLAN.epsilon)
    assert not leaks_more_than(MU, scores)
    hits, members = hits_at_one_percent(scores)
    assert hits <= stats.binom.isf(ALARM, members, worst_true_positive_rate(MU, 0.02))  # 1 % in 1,200 may be 2 %


@pytest.mark.parametrize("attack", [loss_threshold, likelihood_ratio])
def test_a_model_without_noise_leaks_and_the_attack_sees_it(attack):
    scores = attack(without_noise, SHADOWS)
    assert threshold_bound(scores, delta=PLAN.delta, confidence=1 - ALARM).refutes(PLAN.epsilon)
    assert leaks_more_than(MU, scores)


def test_the_likelihood_ratio_finds_members_without_false_alarms():
    hits, members = hits_at_one_percent(likelihood_ratio(without_noise, SHADOWS))
    assert hits > stats.binom.isf(ALARM, members, worst_true_positive_rate(MU, 0.02))


@pytest.mark.slow
@pytest.mark.parametrize("attack", [loss_threshold, likelihood_ratio])
def test_clipping_without_noise_leaks(attack):
    assert leaks_more_than(MU / 2, attack(clipped_only, SHADOWS))


def test_the_attack_finds_nothing_where_there_is_nothing():
    """Against coins that no model has seen."""
    scores = likelihood_ratio(without_noise, SHADOWS)
    other = draw_coins(len(scores.values), SeededRandomness("other coins"))
    area, error = auc(Scores(scores.values, other))
    assert abs(area - 0.5) < stats.norm.isf(ALARM) * error
