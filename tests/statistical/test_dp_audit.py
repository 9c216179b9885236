"""Mechanism audit with canaries: the real clipping, noise and masked sum, measured from outside.

Orthogonal records of full norm are put in or left out by a coin each; the opened sum gives one score per canary.
Scores are N(mu, 1) or N(0, 1) up to scale with mu = sensitivity / deviation, so the difference of means, over the
deviation that the scores themselves show, estimates mu with standard error sqrt(4 / m). Its lower confidence bound,
turned into an epsilon, must not exceed the claim. A low bound says "no gross bug", never "guaranteed".

The auditor knows what a colluding silo knows: it takes that silo's own noise away, so two shares are left to measure.
False-alarm budget, had the seeds been drawn afresh: 1e-6 for each audit of honest code. Seeded, so nothing flakes.
"""

from __future__ import annotations

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from statistical.federation import CLIENTS, Hospitals, Share, half_noise, honest, north_leaves_out, plan_of

CANARIES = 2000
RUNS = 20
ALARM = 1e-6


def lower_bound(inside: np.ndarray, outside: np.ndarray) -> float:
    """Return a lower confidence bound of mu from the scores of canaries put in and left out."""
    deviation = np.sqrt((inside.var() * len(inside) + outside.var() * len(outside)) / (len(inside) + len(outside)))
    estimate = (inside.mean() - outside.mean()) / deviation
    return float(estimate - stats.norm.isf(ALARM) * np.sqrt(1 / len(inside) + 1 / len(outside)))


def epsilon_of(mu: float, delta: float) -> float:
    return dp_accounting.get_epsilon_gaussian(1 / mu, delta) if mu > 1e-3 else 0.0


def audit(share: Share, seed: str) -> float:
    """Return the largest epsilon that the audit can show, at the plan's delta."""
    plan = plan_of(CANARIES)
    coins = np.random.Generator(np.random.PCG64(11))
    canaries = plan.clip_norm * np.eye(CANARIES)
    inside, outside = [], []
    hospitals = Hospitals(plan, seed)
    for _ in range(RUNS):
        coin = coins.random(CANARIES) < 0.5
        holder = coins.integers(0, len(CLIENTS), CANARIES)
        records = {name: canaries[coin & (holder == number)] for number, name in enumerate(CLIENTS)}
        opened, noise = hospitals.release(records, share=share, missing="east")
        known = share("west", np.zeros(CANARIES, np.int64), noise["west"])  # west sides with the server
        seen = holder != CLIENTS.index("east")  # a canary at the silo that dropped out is in no sum
        score = plan.decode(opened - known)
        inside.append(score[seen & coin])
        outside.append(score[seen & ~coin])
    return epsilon_of(lower_bound(np.concatenate(inside), np.concatenate(outside)), plan.delta)


def test_honest_code_stays_within_its_claim_and_the_audit_sees_it():
    assert 0.5 < audit(honest, "audit") <= 1.0


@pytest.mark.parametrize("wrong", [half_noise, north_leaves_out])
def test_less_noise_than_claimed_is_detected(wrong):
    assert audit(wrong, "audit") > 1.0


@pytest.mark.parametrize("mu", [0.1, 0.268, 1.0, 2.0])
def test_the_auditor_itself_is_below_the_truth_and_not_by_much(mu):
    draw = np.random.Generator(np.random.PCG64(5))
    for _ in range(50):
        scores = draw.normal(0, 3.0, 30_000)
        bound = lower_bound(scores[:15_000] + 3.0 * mu, scores[15_000:])
        assert mu - 0.15 < bound <= mu
