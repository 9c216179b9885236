"""Mechanism audit with 20,000 canaries: the real gradients, clipping, noise and secure sum, measured from outside.

Canaries are training records whose gradients have full norm and are orthogonal. A fair coin puts each in or leaves it
out for all rounds of a job; its one score is its projection of what the server opened. Scores are N(mu, 1) or N(0, 1)
up to scale with mu = sqrt(rounds) * sensitivity / deviation, and the bounds of `confide.dp.audit` turn them into
an epsilon that must not exceed the claim. A low bound says "no gross bug", never "guaranteed".

The auditor knows what a colluding silo knows: it takes that silo's own noise away. A second silo drops out, so that two
shares are left, no more than the claim rests on.
False-alarm budget, had the seeds been drawn afresh: 1e-6 for each audit of honest code. Seeded, so nothing flakes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.dp.audit import Scores, draw_coins, gaussian_bound, threshold_bound
from confide.model.zoo import logistic
from confide.secagg.amortised import Amortised
from confide.secagg.masked import Masked
from confide.train.encodings import PrivateGradients
from confide.train.learner import GraphLearner
from confide.train.local import Silo
from confide.train.sections import TrainSection
from statistical.federation import (
    CLIENTS,
    Hospitals,
    Share,
    half_noise,
    hardly_any_noise,
    honest,
    north_leaves_out,
    plan_of,
    twice_as_long,
)

CANARIES = 20_000
FEATURES = 2000  # canaries of one job, each with a direction of its own
ROUNDS = 2
CLAIM, DELTA = 1.0, 1e-5
SURE = 1 - 1e-6
START = logistic(FEATURES)
AGGREGATORS = {"masked": Masked, "amortised": lambda: Amortised(hybrid=False)}


def canaries(name: str, chosen: np.ndarray) -> Silo:
    """Return a silo of one record for each chosen direction: its gradient is a long multiple of that direction."""
    return Silo(name, -1e6 * np.eye(FEATURES)[chosen], np.ones(int(chosen.sum()), np.int64))


def job(share: Share, seed: str, aggregator: str, accounted: int, coin: np.ndarray, holder: np.ndarray) -> np.ndarray:
    """Return the projections on all canaries of what the server and west know after a job of `ROUNDS` rounds."""
    plan = plan_of(START.parameters, rounds=accounted)
    encoding = PrivateGradients(GraphLearner(START, TrainSection()), plan, TrainSection())
    hospitals = Hospitals(plan, seed, AGGREGATORS[aggregator](), encoding)
    silos = {name: canaries(name, coin & (holder == number)) for number, name in enumerate(CLIENTS)}
    seen = np.zeros(FEATURES)
    for _ in range(ROUNDS):
        opened, noise = hospitals.release(silos, share=share, missing="east")
        known = share("west", np.zeros(plan.length, np.int64), noise["west"])  # west sides with the server
        seen += plan.decode(opened - known)[:FEATURES]
    return seen


@cache
def audit(share: Share, aggregator: str, accounted: int = ROUNDS) -> Scores:
    """Return one score of each of 20,000 canaries; noise is what the plan for `accounted` rounds asks for."""
    values, present = [], []
    for number in range(-(-CANARIES * 4 // 3 // FEATURES)):  # a quarter are the dropout's and in no sum
        coin = draw_coins(FEATURES, SeededRandomness(f"coins {number}"))
        holder = np.arange(FEATURES) % len(CLIENTS)
        scores = job(share, f"{share.__name__} {number}", aggregator, accounted, coin, holder)
        seen = holder != CLIENTS.index("east")
        values.append(scores[seen])
        present.append(coin[seen])
    return Scores(np.concatenate(values)[:CANARIES], np.concatenate(present)[:CANARIES])


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_honest_code_stays_within_its_claim_and_the_audit_sees_it(aggregator):
    scores = audit(honest, aggregator)
    sure, usual = (gaussian_bound(scores, delta=DELTA, confidence=confidence) for confidence in (SURE, 0.95))
    assert 0.6 < sure.epsilon < usual.epsilon <= CLAIM
    assert 0 < threshold_bound(scores, delta=DELTA, confidence=0.95).epsilon <= CLAIM


@pytest.mark.parametrize("wrong", [half_noise, north_leaves_out, twice_as_long])
@pytest.mark.parametrize("aggregator", ["masked", pytest.param("amortised", marks=pytest.mark.slow)])
def test_less_noise_than_claimed_is_detected(wrong, aggregator):
    assert gaussian_bound(audit(wrong, aggregator), delta=DELTA, confidence=SURE).refutes(CLAIM)


@pytest.mark.slow
def test_rounds_that_are_not_accounted_for_are_detected():
    assert gaussian_bound(audit(honest, "masked", accounted=1), delta=DELTA, confidence=SURE).refutes(CLAIM)


@pytest.mark.slow
def test_without_assuming_a_law_only_gross_lacks_of_noise_are_detected():
    """The price of assuming nothing: half of the noise is beyond what 20,000 canaries can show."""
    assert threshold_bound(audit(hardly_any_noise, "amortised"), delta=DELTA, confidence=SURE).refutes(CLAIM)
    assert not threshold_bound(audit(half_noise, "masked"), delta=DELTA, confidence=SURE).refutes(CLAIM)
