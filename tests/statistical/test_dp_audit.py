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
from confide.dp.plan import PrivacyPlan
from confide.model.zoo import logistic
from confide.secagg.amortised import Amortised
from confide.secagg.masked import Masked
from confide.train.encodings import PrivateGradients
from confide.train.learner import GraphLearner
from confide.train.linear_head import LinearHead
from confide.train.local import Silo
from confide.train.rounds import federate
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
FEATURES = 1000  # canaries of one job, each with a direction of its own
ROUNDS = 2
CLAIM, DELTA = 1.0, 1e-5
SURE = 1 - 1e-6
START = logistic(FEATURES)
AGGREGATORS = {"masked": Masked, "amortised": lambda: Amortised(hybrid=False)}


def canaries(name: str, chosen: np.ndarray) -> Silo:
    """Return a silo of one record for each chosen direction: its gradient is a long multiple of that direction."""
    return Silo(name, -1e6 * np.eye(FEATURES)[chosen], np.ones(int(chosen.sum()), np.int64))


def job(share: Share, seed: str, how: str, accounted: int, coin: np.ndarray, holder: np.ndarray) -> np.ndarray:
    """Return the projections on all canaries of what the server and west know after a job of `ROUNDS` rounds."""
    aggregator, _, path = how.partition(", ")
    head = None if path else LinearHead(START, row_norm=100.0, clip_norm=0.5)
    plan = plan_of(START.parameters, rounds=accounted, grid=head.sums.grid if head else None)
    encoding = PrivateGradients(GraphLearner(START, TrainSection()), plan, TrainSection(), head=head)
    hospitals = Hospitals(plan, seed, AGGREGATORS[aggregator](), encoding)
    silos = {name: canaries(name, coin & (holder == number)) for number, name in enumerate(CLIENTS)}
    seen = np.zeros(FEATURES)
    for _ in range(ROUNDS):
        opened, noise = hospitals.release(silos, share=share, missing="east")
        known = share("west", np.zeros(plan.length, np.int64), noise["west"])  # west sides with the server
        seen += plan.decode(opened - known)[:FEATURES]
    return seen


@cache
def audit(share: Share, how: str, accounted: int = ROUNDS) -> Scores:
    """Return one score of each of 20,000 canaries; noise is what the plan for `accounted` rounds asks for.

    Args:
        how: the aggregator; gradients are summed as a linear head's, or "record by record" if it says so.
    """
    values, present = [], []
    for number in range(-(-CANARIES * 4 // 3 // FEATURES)):  # a quarter are the dropout's and in no sum
        coin = draw_coins(FEATURES, SeededRandomness(f"coins {number}"))
        holder = np.arange(FEATURES) % len(CLIENTS)
        scores = job(share, f"{share.__name__} {number}", how, accounted, coin, holder)
        seen = holder != CLIENTS.index("east")
        values.append(scores[seen])
        present.append(coin[seen])
    return Scores(np.concatenate(values)[:CANARIES], np.concatenate(present)[:CANARIES])


@pytest.mark.parametrize("how", [*AGGREGATORS, "masked, record by record"])
def test_honest_code_stays_within_its_claim_and_the_audit_sees_it(how):
    scores = audit(honest, how)
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


# --- whole trainings --------------------------------------------------------------------------------------------------

RUNS, RETRAINED = 400, TrainSection(rounds=4, learning_rate=1e-6, momentum=0.0, average=0.0, weight_decay=0.0, quorum=3)


class HalfTheNoise(PrivateGradients):
    """Private training with noise half as wide."""

    def contribution(self, parameters, silo, number, rng, store):
        clipped = self._plan.clipped_sum(self._gradients(parameters, silo)).total
        return clipped + (super().contribution(parameters, silo, number, rng, store) - clipped) // 2


def retrained(kind: type[PrivateGradients], plan) -> Scores:
    """Return how far each run's final model lies on the side to which one record of full norm pulls it."""
    empty = np.zeros((0, 2)), np.zeros(0, np.int64)
    canary = np.array([[-1e6, 0.0]]), np.ones(1, np.int64)
    coins, moved = draw_coins(RUNS, SeededRandomness("runs")), []
    for number, coin in enumerate(coins):
        silos = [Silo(name, *(canary if coin and name == "north" else empty)) for name in CLIENTS]
        encoding = kind(GraphLearner(logistic(2), RETRAINED), plan, RETRAINED)
        *_, last = federate(silos, encoding, RETRAINED, aggregator=Masked(), rng=SeededRandomness(f"run {number}"))
        moved.append(-float(last.parameters[0]))
    return Scores(np.array(moved), coins)


@pytest.mark.slow
def test_whole_trainings_with_and_without_a_record_stay_within_the_claim():
    """Rounds, retries, the server's steps and averaging included: epsilon of those who see the final model alone."""
    plan = PrivacyPlan.calibrate(
        epsilon=8.0, delta=DELTA, clip_norm=0.5, rounds=RETRAINED.rounds, length=3, grid=1024,
        silos=4, quorum=4, colluding=0, expected_records=455,
    )  # fmt: skip
    honest_bound, wrong_bound = (
        gaussian_bound(retrained(kind, plan), delta=DELTA) for kind in (PrivateGradients, HalfTheNoise)
    )
    assert plan.epsilon / 2 < honest_bound.epsilon <= plan.epsilon
    assert wrong_bound.refutes(plan.epsilon)
