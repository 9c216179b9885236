"""Client-level canaries through the real code: a whole client put in or left out, over all rounds and their multiples.

A canary is a client with records that push its update far along one direction whenever it is on; left out, it has no
records and sends its noise. The auditor reads the sums of all rounds and scores a run by its projection on what the
canary would send, the best test there is. Scores are N(mu, 1) or N(0, 1) up to scale, with mu = joint sensitivity over
deviation. False-alarm budget, had the seeds been drawn afresh: 1e-4 for the audit of honest code. Seeded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.dp.audit import Scores, draw_coins, gaussian_bound
from confide.dp.client_plan import ClientPlan
from confide.dp.factorisation import Bands, banded, independent
from confide.model.zoo import logistic
from confide.train.client_level import ClientUpdates
from confide.train.learner import GraphLearner
from confide.train.local import Silo
from confide.train.sections import TrainSection
from confide.wire import MemoryStore

CANARIES, ROUNDS, CLAIM, DELTA, SURE = 3000, 4, 1.0, 1e-5, 1 - 1e-4
START = logistic(1)
SETTINGS = TrainSection(rounds=ROUNDS, local_steps=2, momentum=0.0, weight_decay=0.0)
IN = Silo("canary", np.array([[1e6]]), np.array([1]))
OUT = Silo("canary", np.zeros((0, 1)), np.zeros(0, np.int64))
Share = Callable[[np.ndarray, np.ndarray], np.ndarray]


def honest(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return signal + noise


def half_noise(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return signal + noise // 2


def twice_as_long(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return 2 * signal + noise


def plan_of(bands: Bands) -> ClientPlan:
    """Two shares carry the claim: the canary's own and another client's."""
    return ClientPlan.calibrate(
        epsilon=CLAIM, delta=DELTA, clip_norm=0.5, bands=bands, length=2, clients=4, quorum=3, colluding=1
    )


def run(plan: ClientPlan, silo: Silo, share: Share, seed: str) -> np.ndarray:
    """Return the sums of a run as the server knows them, shape (rounds, 2): colluders' noise is taken away."""
    encoding, store = ClientUpdates(GraphLearner(START, SETTINGS), plan, ["canary", "b", "c", "d"]), MemoryStore()
    sums = []
    for number in range(1, ROUNDS + 1):
        vector = encoding.contribution(START_PARAMETERS, silo, number, SeededRandomness(f"{seed} {number}"), store)
        noise = plan.release(0, number, None, SeededRandomness(f"{seed} {number}"))
        store.commit(encoding.charge(store))
        encoding.settle(store, member=True)
        other = plan.release(1, number, None, SeededRandomness(f"{seed} {number} other"))
        sums.append(share(vector - noise, noise) + share(np.zeros_like(other), other))
    return np.array(sums, np.float64)


START_PARAMETERS = GraphLearner(START, SETTINGS).start


def audit(bands: Bands, share: Share, canaries: int = CANARIES) -> Scores:
    """Return one score for each canary."""
    plan = plan_of(bands)
    sent = run(plan, IN, lambda signal, noise: signal, "signal")
    coins = draw_coins(canaries, SeededRandomness("coins"))
    values = [
        float((run(plan, IN if coin else OUT, share, f"{share.__name__} {place}") * sent).sum())
        for place, coin in enumerate(coins)
    ]
    return Scores(np.array(values), coins)


@pytest.mark.parametrize("bands", [banded(ROUNDS, 2, 2), pytest.param(independent(ROUNDS), marks=pytest.mark.slow)])
def test_honest_code_stays_within_its_claim_and_the_audit_sees_it(bands):
    scores = audit(bands, honest, CANARIES // 2)
    assert gaussian_bound(scores, delta=DELTA, confidence=0.95).epsilon > 0.3
    assert not gaussian_bound(scores, delta=DELTA, confidence=SURE).refutes(CLAIM)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [half_noise, twice_as_long])
def test_less_noise_than_claimed_is_detected(wrong):
    assert gaussian_bound(audit(banded(ROUNDS, 2, 2), wrong), delta=DELTA, confidence=SURE).refutes(CLAIM)


@pytest.mark.slow
def test_a_client_that_is_on_in_every_round_is_detected():
    """The accounting is for every second round: twice the participations, and their bands overlap."""
    plan = plan_of(Bands(steps=(256, 256), rounds=ROUNDS, period=2))

    def overlapping(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return 2 * signal + noise  # x_t + x_(t-1) with the same x in every round

    assert gaussian_bound(audit(plan.bands, overlapping), delta=DELTA, confidence=SURE).refutes(CLAIM)
