"""The private trees of `train/private_trees.py` for one holder: a charged count, then one function of each column.

    release 1       a hundredth of mu^2: how many records there are, unless a public number says so
    release 2       counts of the codes of every column
    then            20 sums of gradients; where numbers have trends, the first is of products

It is what a job with [privacy] and model.kind = "trees" trains, with one silo, whose noise is all there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.accountant import LARGEST_EPSILON, gaussian_epsilon
from confide.dp.mechanisms import count_step
from confide.dp.plan import PrivacyPlan
from confide.dp.queries import Asked
from confide.dp.spending import Allowance
from confide.ideal import Sums
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.train.additive_columns import AdditiveColumns, additive, leaves_of
from confide.train.boosting import TreesLearner
from confide.train.course import Course
from confide.train.local import Silo
from confide.train.private_trees import COUNTS_GRID, PrivateTrees, releases_of
from confide.train.quantiles import even_edges
from confide.train.sections import TrainSection
from confide.wire import MemoryStore

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

_COUNT = 0.01  # of mu^2
_COUNT_GRID = 1 << 20
_ROUNDS = 21
_COUNTS = 0.05  # of what is left of mu^2
_BINS = 1024  # noise is the same however many there are
_MOST_RECORDS = 1 << 30
_TOLD = 2.0  # deviations of the noise from which a code's count is taken for one


@dataclass(frozen=True, slots=True, eq=False)
class Effects:
    """A fitted model: log odds = offset + the value of each column's code.

    Args:
        values: of all codes, shape (codes,); a column's values are 0 on average.
        offset: log odds where nothing is known.
        importances: mean absolute value of each column, by what the noisy counts say, brought to a sum of 1.
        plan: what was released after the count.
    """

    values: Matrix
    offset: float
    importances: Matrix
    plan: PrivacyPlan


def prepared(names: list[str], low: Matrix, high: Matrix, categories: Mapping[int, tuple[str, ...]]) -> Preprocess:
    """Return what turns raw columns into what the trees take, from public arguments alone.

    Raises:
        ModelError: names that are not different, or bounds too near each other for intervals between them.
    """
    return Preprocess(
        tuple(
            OneHot(name=name, categories=categories[place])
            if place in categories
            else Scale(
                name=name,
                low=float(low[place]),
                high=float(high[place]),
                outside="clip",
                bins=even_edges(float(low[place]), float(high[place]), _BINS),
                ordinal=True,
            )
            for place, name in enumerate(names)
        )
    )


def features_of(rows: Matrix, known: NDArray[np.bool_], preprocess: Preprocess) -> Matrix:
    """Return the features of rows, a category's value being its place; of cells that are not `known`, any."""
    found: list[Matrix] = []
    for place, rule in enumerate(preprocess.rules):
        if isinstance(rule, Scale):
            found.append(rule.apply(np.where(known[:, place], rows[:, place], rule.low)))
        else:
            own = np.where(known[:, place], rows[:, place], 0.0).astype(np.int64)
            found.append(np.eye(rule.count)[own])
    return np.concatenate(found, axis=1)


def scores(rows: Matrix, known: NDArray[np.bool_], preprocess: Preprocess, values: Matrix, offset: float) -> Matrix:
    """Return log odds, shape (n,); what is not known of a row adds nothing."""
    codes = AdditiveColumns.of(preprocess).read(features_of(rows, known, preprocess))
    return np.where(known, values[codes], 0.0).sum(axis=1) + offset


def plan_for(records: float, columns: AdditiveColumns, taken: Allowance) -> PrivacyPlan:
    """Return what is released after the count, which spends all of `taken`: from public numbers alone."""
    delta = taken.budget.delta
    epsilon = min(gaussian_epsilon(taken.mu * (1 - 1e-7), delta), LARGEST_EPSILON)
    return PrivacyPlan.calibrate(
        **releases_of(columns, rounds=_ROUNDS, counts_share=_COUNTS),
        epsilon=epsilon * (1 - 1e-7),
        delta=delta,
        expected_records=max(1, min(_MOST_RECORDS, round(records))),
        max_records=_MOST_RECORDS,
    )


def private_additive(
    x: Matrix,
    y: Vector,
    preprocess: Preprocess,
    taken: Allowance,
    rng: Randomness,
    *,
    records: int | None,
    effects: str = "auto",
) -> Effects:
    """Return the fitted model of two classes.

    Args:
        x: from `features_of`, the records that count.
        y: 0 or 1, shape (n,).
        taken: what is spent.
        records: a public number of records, if there is one.
        effects: "steps", "trends" or "auto".
    """
    columns, left = AdditiveColumns.of(preprocess), taken
    expected = float(records or 0)
    if not expected:
        asked, left = Asked("number of records", taken.part(_COUNT), rng), taken.part(1 - _COUNT)
        noisy = asked.released(lambda: np.array([len(x) * _COUNT_GRID], np.int64), length=1, sensitivity=_COUNT_GRID)
        expected = float(noisy[0]) / _COUNT_GRID
    plan = plan_for(expected, columns, left)
    left.budget.charge(*plan.composition(1).parts, of="sums for trees")
    encoding = PrivateTrees(additive(preprocess), columns, plan, effects=effects)
    train = TrainSection(
        algorithm="additive",
        rounds=_ROUNDS,
        momentum=0.0,
        average=0.0,
        weight_decay=0.0,
        expected_records=plan.expected_records,
    )
    course, silo, store = Course(encoding, train), Silo("holder", x, y), MemoryStore()
    while course.number < course.rounds:
        vector = encoding.contribution(course.parameters, silo, course.number + 1, rng, store)
        store.commit(encoding.charge(store))
        course.advance(Sums(vector[None], (frozenset({silo.name}),)))
    layer = cast("TreesLearner", encoding.learner).trees(course.kept)
    values = layer.value[leaves_of(columns.columns)]
    return Effects(values, float(layer.offset[0]), _importances(values, encoding.moved["counts"], columns, plan), plan)


def _importances(values: Matrix, counts: Matrix, columns: AdditiveColumns, plan: PrivacyPlan) -> Matrix:
    """Return the mean absolute value of each column's codes over records, from noisy counts; all alike if all are 0."""
    assert plan.statistics is not None
    least = _TOLD * math.sqrt(plan.statistics.share_variance) / count_step(len(columns.columns), COUNTS_GRID)
    found = np.zeros(len(columns.columns))
    for place in range(len(found)):
        part = columns.part(place)
        weights = np.where(counts[part] > least, counts[part], 0.0)
        weights = weights if weights.any() else np.ones(len(weights))
        found[place] = float((weights * np.abs(values[part])).sum() / weights.sum())
    total = float(found.sum())
    return found / total if total > 0 else np.full(len(found), 1 / len(found))
