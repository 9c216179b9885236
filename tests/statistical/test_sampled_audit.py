"""Audit of DP-SGD with 20,000 canaries: the real sampler, gradients of a torch module, integers and noise.

Each canary is a record with a direction of its own. A fair coin puts it in or leaves it out; its score is its
projection of the released sum: with probability q a normal draw around the clip norm, else around 0. The bounds hold
for every true epsilon with the stated confidence; seeded, so nothing flakes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from confide.crypto.random import SeededRandomness
from confide.dp.audit import Scores, draw_coins, gaussian_bound, threshold_bound
from confide.train import PrivateTorchLearner, Silo, train_section
from confide.train.private_torch import SampledGradients
from confide.wire import MemoryStore

CANARIES, DIRECTIONS, RECORDS = 20_000, 1000, 1000
CLAIM, DELTA, SURE = 1.0, 1e-5, 1 - 1e-6
TRAIN = train_section(aggregate="plain", rounds=1, learning_rate=1.0, quorum=1)


def pull(outputs: Tensor, y: Tensor) -> Tensor:
    """A loss whose gradient is the record itself."""
    return outputs[:, 0]


@cache
def setting():
    torch.manual_seed(1)
    learner = PrivateTorchLearner(nn.Sequential(nn.Linear(DIRECTIONS, 1, bias=False)), TRAIN, loss=pull)
    plan = learner.plan(TRAIN, parties=1, epsilon=CLAIM, delta=DELTA, expected_batch=200, expected_records=RECORDS)
    return learner, plan


def honest(plan):
    return plan


def a_quarter_of_the_noise(plan):
    """Half of it is beyond what 20,000 canaries can show of samples; `test_private_torch` measures it at its law."""
    return hacked(plan, share_variance=plan.share_variance / 16)


def every_record_each_time(plan):
    return hacked(plan, coin=1 << 64)


def four_times_the_rate(plan):
    return hacked(plan, coin=4 * plan.coin)


def hacked(plan, **other):
    """Return a plan whose run is not what it was accounted for."""
    return replace(plan, **other, epsilon=32.0)


@cache
def audit(wrong) -> Scores:
    learner, plan = setting()
    plan = wrong(plan)
    values, present = [], []
    for number in range(CANARIES // DIRECTIONS):
        coins = draw_coins(DIRECTIONS, SeededRandomness(f"coins {number}"))
        x = 5 * np.eye(DIRECTIONS, dtype=np.float32)[coins]
        encoding = SampledGradients(learner, plan, TRAIN)
        silo, rng = Silo("one", x, np.zeros(len(x), np.int64)), SeededRandomness(f"{wrong.__name__} {number}")
        seen = encoding.contribution(learner.start, silo, 1, rng, MemoryStore())
        values.append(plan.release_of.decode(seen))
        present.append(coins)
    return Scores(np.concatenate(values), np.concatenate(present))


def test_honest_code_stays_within_its_claim_and_the_audit_sees_it():
    bound = threshold_bound(audit(honest), delta=DELTA, confidence=0.95)
    assert 0.05 < bound.epsilon <= CLAIM
    assert not gaussian_bound(audit(honest), delta=DELTA, confidence=SURE).refutes(CLAIM)


@pytest.mark.parametrize("wrong", [a_quarter_of_the_noise, every_record_each_time, four_times_the_rate])
def test_less_noise_or_more_records_than_claimed_are_detected(wrong):
    bounds = [of(audit(wrong), delta=DELTA, confidence=SURE) for of in (threshold_bound, gaussian_bound)]
    assert any(bound.refutes(CLAIM) for bound in bounds), bounds
