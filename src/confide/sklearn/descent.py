"""Logistic regression of one holder: a charged middle, then the descent that docs/private-learning.md measures.

    release 1       a tenth of mu^2: the middle of every column, and how many records there are (columns.py)
    then            many records   sums of products once, then 16 gradients that these precondition (train/newton.py)
                    few            40 gradients with long steps, the last half averaged

Rows are measured from the middle and brought to length 1, so a record's gradient has a known length and none is cut by
a guess. How many steps there are and how long they are follows from the noisy count, which is public by then.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.accountant import LARGEST_EPSILON, gaussian_epsilon
from confide.dp.plan import GRADIENTS, NEWTON, PrivacyPlan
from confide.dp.release import Portion
from confide.dp.spending import Allowance
from confide.ideal import Sums
from confide.model.graph import Linear
from confide.model.zoo import logistic
from confide.sklearn.columns import middle_of, unit_rows
from confide.train.course import Course
from confide.train.encodings import Encoding, PrivateGradients
from confide.train.learner import GraphLearner
from confide.train.linear_head import LinearHead
from confide.train.local import Silo
from confide.train.newton import Newton
from confide.train.sections import PrivacySection, TrainSection
from confide.train.statistics import Statistics, moments_of
from confide.wire import MemoryStore

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

_MIDDLE = 0.1  # of mu^2
_STATISTICS = 0.4  # of what is left, under Newton's method
_STATISTICS_PAY = 3000.0  # as train/job.py has it for mechanism = "auto"
_CLIP = 0.5
_MOST_RECORDS = 1 << 30


def plan_for(records: float, features: int, outputs: int, taken: Allowance) -> tuple[PrivacyPlan, TrainSection]:
    """Return what the descent releases, and its settings: from public numbers alone.

    Args:
        records: how many there are, about.
        taken: what is left for the descent, all of which is spent.
    """
    start = logistic(features, outputs)
    told = 0.6 * records * taken.mu
    newton = told >= _STATISTICS_PAY and features <= told ** (2 / 3)
    expected = max(1, min(_MOST_RECORDS, round(records)))
    head = LinearHead(start, row_norm=1.0, clip_norm=_CLIP)
    if newton:
        train = TrainSection(algorithm="newton", rounds=17, learning_rate=0.5, momentum=0.0, expected_records=expected)
        moments = moments_of(start, train, PrivacySection(expected_records=expected))
        statistics = Portion(
            share=_STATISTICS, length=moments.length, clip_norm=moments.clip_norm, grid=moments.sensitivity
        )
    else:
        rate = 0.5 * max(4.0, records * taken.mu) ** 0.75
        train = TrainSection(rounds=40, learning_rate=rate, momentum=0.0, weight_decay=0.0, expected_records=expected)
        statistics = None
    delta = taken.budget.delta
    epsilon = min(gaussian_epsilon(taken.mu * (1 - 1e-7), delta), LARGEST_EPSILON)
    plan = PrivacyPlan.calibrate(
        epsilon=epsilon * (1 - 1e-7),
        delta=delta,
        clip_norm=_CLIP,
        rounds=train.rounds - (1 if newton else 0),
        length=start.parameters,
        grid=head.sums.grid,
        expected_records=expected,
        max_records=_MOST_RECORDS,
        statistics=statistics,
        mechanism=NEWTON if newton else GRADIENTS,
    )
    return plan, train


def descended(x: Matrix, y: Vector, outputs: int, plan: PrivacyPlan, train: TrainSection, rng: Randomness) -> Linear:
    """Return the model's linear layer, for a sigmoid. Its releases are the plan's, charged before.

    Args:
        x: float64, shape (n, d), rows of length at most 1.
        y: classes by their places, shape (n,).
        outputs: 1 for two classes, else as many as classes.
    """
    start = logistic(x.shape[1], outputs)
    head, learner = LinearHead(start, row_norm=1.0, clip_norm=_CLIP), GraphLearner(start, train)
    encoding: Encoding
    if plan.statistics is not None:
        privacy = PrivacySection(expected_records=plan.expected_records)
        first = Statistics(learner, train, moments_of(start, train, privacy), plan=plan)
        encoding = Newton(learner, train, first, head, plan=plan)
    else:
        encoding = PrivateGradients(learner, plan, train, head=head)
    course, silo, store = Course(encoding, train), Silo("holder", x, y), MemoryStore()
    while course.number < course.rounds:
        vector = encoding.contribution(course.parameters, silo, course.number + 1, rng, store)
        store.commit(encoding.charge(store))
        course.advance(Sums(vector[None], (frozenset({silo.name}),)))
    layer = learner.model(course.kept).layers[0]
    assert isinstance(layer, Linear)
    return layer


def private_logistic(
    x: Matrix, y: Vector, outputs: int, taken: Allowance, rng: Randomness, *, records: int | None
) -> tuple[Matrix, Linear, PrivacyPlan]:
    """Return the middle of the columns, the layer for rows measured from it and brought to length 1, and the plan.

    Args:
        x: float64, shape (n, d), in [-1, 1]: the records that count.
        y: as in `descended`.
        taken: what is spent.
        records: a public number of records, if there is one.
    """
    middle = middle_of(x, taken.part(_MIDDLE), rng)
    left = taken.part(1 - _MIDDLE)
    plan, train = plan_for(float(records or middle.records), x.shape[1], outputs, left)
    left.budget.charge(*plan.composition(1).parts, of="gradients of a logistic model")
    return middle.centre, descended(unit_rows(x - middle.centre), y, outputs, plan, train, rng), plan
