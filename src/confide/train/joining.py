"""Whether joining helped a party: the common model beside the one that it trains alone, on its own held-out records.

Both models answer the same records, so they are compared pair by pair: a record on which both are right or both are
wrong says nothing about which is better. On m records of n one alone is right, on b of these the common model. The
difference of the two accuracies over all records of this kind is q (2 p - 1): q the chance that one alone is right, p
the chance that it is then the common one. Exact (Clopper-Pearson) intervals of p at 96 % and of q at 99 % give one of
the difference that fails at most 5 times in 100, whatever n; it lies above 0 only if b of m by itself is too many for
chance (the exact sign test, which McNemar's approximates). Small tables say "cannot tell", as they should.

All of it stays with the party: nothing here is sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import SystemRandomness
from confide.errors import DataError, JobError
from confide.model.graph import Graph
from confide.model.preprocess import Preprocess
from confide.train.boosting import boosted_alone
from confide.train.cox import cox_alone
from confide.train.evaluate import decide
from confide.train.figures import Evaluation, Figure
from confide.train.linear_head import is_hazard
from confide.train.local import Silo, descend, scores_by_record
from confide.train.newton import newton_alone
from confide.train.sections import Job
from confide.train.statistics import solved
from confide.train.tally import BINS, Tally

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

_TAIL_OF_P, _TAIL_OF_Q = 0.02, 0.005


@dataclass(frozen=True, slots=True)
class Joining:
    """What one party sees, and nobody else.

    Args:
        party: who.
        common, alone: each model on the party's held-out records.
        only_common, only_alone: records on which one of the two alone is right.
        gain: accuracy of the common model minus that of its own, with an interval for all records of this kind.
    """

    party: str
    common: Evaluation
    alone: Evaluation
    only_common: int
    only_alone: int
    gain: Figure

    @property
    def verdict(self) -> Literal["helped", "hurt", "cannot tell"]:
        """Return what the interval allows to say."""
        if self.gain.low > 0:
            return "helped"
        return "hurt" if self.gain.high < 0 else "cannot tell"

    @property
    def fall_back(self) -> bool:
        """Return whether the party should use its own model: only if joining hurt beyond doubt."""
        return self.verdict == "hurt"

    def sentences(self) -> list[str]:
        """Return the comparison as lines for the party's own eyes."""
        words = {
            "helped": "joining helped",
            "hurt": "joining hurt",
            "cannot tell": "cannot tell whether joining helped",
        }
        return [
            f"{self.party}, {self.common.records.value:.0f} held-out records: common model {self.common.accuracy}, own "
            f"model alone {self.alone.accuracy}",
            f"{words[self.verdict]}: accuracy {100 * self.gain.value:+.1f} points, between {100 * self.gain.low:+.1f} "
            f"and {100 * self.gain.high:+.1f} ({self.only_common} records only the common model gets right, "
            f"{self.only_alone} only the own)",
        ]


def trained_alone(
    job: Job,
    preprocess: Preprocess,
    start: Graph,
    x: Matrix,
    y: Labels,
    *,
    class_weights: tuple[float, ...] = (),
) -> Graph:
    """Return the model of these records alone, after as many steps as a job takes: the fall-back of a federation.

    Args:
        job: whose steps.
        preprocess: whose features x are.
        start: of the job.
        x, y: the records, shapes (n, features) and (n,).
        class_weights: of the job's preparation.

    Raises:
        JobError: private trees, which nothing without noise corresponds to.
    """
    train = job.train
    if train.algorithm == "additive":
        raise JobError("Expected no [privacy] to train trees alone; leave it out, and they are grown")
    if job.trees is not None:
        return boosted_alone(train, job.trees, preprocess, start, x, y, class_weights=class_weights)
    if is_hazard(start):
        return cox_alone(train, start, x, y.astype(np.float64), intervals=job.model.intervals)
    if train.algorithm == "statistics":
        return solved(train, start, x, y)
    if train.algorithm == "newton":
        return newton_alone(train, start, x, y, class_weights=class_weights)
    return descend(
        start,
        x,
        y,
        steps=train.rounds * train.local_steps,
        learning_rate=train.learning_rate,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        average=train.average,
        class_weights=class_weights,
    )


def compare(common: Graph, alone: Graph, held: Silo) -> Joining:
    """Return what a party sees of two models on its held-out records.

    Args:
        common: the federation's model.
        alone: the party's own, from `trained_alone`.
        held: the party with records that neither was trained on.

    Raises:
        DataError: there are none.
    """
    if not len(held.x):
        raise DataError(f"Expected at least one held-out record at {held.name} to compare models on")
    scores = [scores_by_record(model, held.x) for model in (common, alone)]
    right = [decide(found) == held.y for found in scores]
    only_common, only_alone = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return Joining(
        party=held.name,
        common=_own(scores[0], held),
        alone=_own(scores[1], held),
        only_common=only_common,
        only_alone=only_alone,
        gain=paired_gain(only_common, only_alone, len(held.y)),
    )


def paired_gain(only_first: int, only_second: int, records: int) -> Figure:
    """Return the difference of two accuracies on the same records, with its 95 % interval.

    Args:
        only_first, only_second: records on which one alone is right.
        records: how many there are, >= 1.
    """
    differ = only_first + only_second
    p_low, p_high = clopper_pearson(only_first, differ, _TAIL_OF_P)
    q_low, q_high = clopper_pearson(differ, records, _TAIL_OF_Q)
    low, high = (share * (2 * p - 1) for p, share in ((p_low, q_low), (p_high, q_high)))
    if p_low < 0.5:
        low = q_high * (2 * p_low - 1)
    if p_high < 0.5:
        high = q_low * (2 * p_high - 1)
    return Figure((only_first - only_second) / records, low, high)


def clopper_pearson(hits: int, trials: int, tail: float) -> tuple[float, float]:
    """Return the exact interval of a probability; each end fails with a chance of at most `tail`."""
    low = 0.0 if hits == 0 else _solve(lambda p: 1 - _at_most(hits - 1, trials, p), tail)
    high = 1.0 if hits == trials else _solve(lambda p: 1 - _at_most(hits, trials, p), 1 - tail)
    return low, high


def _solve(rising: Callable[[float], float], goal: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < goal else (low, middle)
    return (low + high) / 2


def _at_most(hits: int, trials: int, p: float) -> float:
    """Return the chance of at most `hits` in `trials`."""
    if not 0 < p < 1:
        return float(p <= 0 or hits >= trials)
    k = np.arange(hits + 1)
    log_choose = np.array([math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in k])
    return min(1.0, float(np.exp(log_choose + k * math.log(p) + (trials - k) * math.log1p(-p)).sum()))


def _own(scores: Matrix, held: Silo) -> Evaluation:
    outputs = scores.shape[1]
    tally = Tally(2 if outputs == 1 else outputs, BINS, len(held.y))
    cells = tally.contribution(scores, held.y, SystemRandomness(), name=held.name)
    return Evaluation.of(tally, cells.astype(np.float64), (frozenset({held.name}),))
