"""A forest that is drawn before any record is seen, and the classes that one noisy release counts in its leaves.

    release 1, 2    moments of the numbers, so that questions lie where records are (columns.py)
    release 3       how many records of each class are in each leaf of each tree, all trees together

Every question is drawn from a public stream: a column, and a threshold about the noisy mean. A record is in one leaf of
each of the trees, so its marks have the norm sqrt(trees), and the trees share the noise. What a leaf has too little of
is taken from the node above it: the fraction of a class there is the guess, and the noisy counts move it as far as
their variance allows. That costs nothing, for counts of inner nodes are sums of what was released.

Model: random decision trees (Fan, Wang, Yu, Ma, Is random model better? 2003); with noise in their counts:
Jagannathan, Pillaipakkamnatt, Wright, A practical differentially private random decision tree classifier (2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness, public_stream
from confide.dp.mechanisms import count_step, counted
from confide.dp.queries import Asked
from confide.dp.spending import Allowance
from confide.sklearn.columns import class_moments

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

_MOMENTS = 0.2  # of mu^2
_GRID = 1 << 20
_REACH = 1.5  # deviations from the mean where thresholds end
_APART = 0.3  # deviation of a node's fractions from those above it, a priori
_TOLD = 2.0  # deviations of its noise that a node's count needs to say anything
_LEAST = 1e-3  # fraction of a class


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The nodes of one level in all trees.

    Args:
        fractions: of the classes, above 0 with a sum of 1, shape (trees, nodes, classes).
        records: about how many there are, 0 where noise is all that is seen, shape (trees, nodes).
    """

    fractions: Matrix
    records: Matrix


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Perfect trees over columns in [-1, 1]: public, but for the moments that were released.

    Args:
        feature: int64, shape (trees, 2^depth - 1): the column that a node asks about; level after level.
        threshold: float64, the same shape: what is not above it goes left.
        orders: of a column with categories, where each lies in [-1, 1] in each tree: shape (trees, categories).
    """

    feature: Vector
    threshold: Matrix
    orders: Mapping[int, Matrix]

    @property
    def depth(self) -> int:
        """Return how many questions a record is asked in each tree."""
        return (self.feature.shape[1] + 1).bit_length() - 1

    def reached(self, x: Matrix) -> Vector:
        """Return the leaf of each record in each tree, from 0, int64, shape (n, trees).

        Args:
            x: float64, shape (n, d): numbers scaled to [-1, 1], and places of categories, -1 where there is none.
        """
        found = np.empty((len(x), len(self.feature)), np.int64)
        for tree, (feature, threshold) in enumerate(zip(self.feature, self.threshold, strict=True)):
            own, at = x.copy(), np.zeros(len(x), np.int64)
            for column, order in self.orders.items():
                place = x[:, column].astype(np.int64)
                own[:, column] = np.where(place >= 0, order[tree][place], 0.0)
            for _ in range(self.depth):
                above = own[np.arange(len(own)), feature[at]] > threshold[at]
                at = 2 * at + 1 + above
            found[:, tree] = at - len(feature)
        return found


def drawn(trees: int, depth: int, mean: Matrix, deviation: Matrix, categories: Mapping[int, int]) -> Forest:
    """Return a forest, the same every time.

    Args:
        mean, deviation: of every column, shape (d,); not read of those with categories.
        categories: how many, by the column.
    """
    draw = public_stream(0, "questions of a forest")
    inner, columns = (1 << depth) - 1, len(mean)
    feature = draw.integers(0, columns, (trees, inner))
    where = draw.uniform(-_REACH, _REACH, (trees, inner))
    middle, reach = mean.copy(), deviation.copy()
    orders = dict[int, Matrix]()
    for column, count in sorted(categories.items()):
        middle[column], reach[column] = 0.0, 1.0
        place = np.argsort(draw.uniform(size=(trees, count)), axis=1)
        orders[column] = (2.0 * place + 1.0) / count - 1.0
    threshold = np.clip(middle[feature] + reach[feature] * where, -1.0, 1.0)
    return Forest(feature.astype(np.int64), threshold, orders)


def grown(
    x: Matrix,
    y: Vector,
    classes: int,
    categories: Mapping[int, int],
    taken: Allowance,
    rng: Randomness,
    *,
    trees: int,
    depth: int,
) -> tuple[Forest, list[Nodes]]:
    """Return a forest and what its nodes say of the classes, level after level; the last ones are the leaves.

    Args:
        x: as in `Forest.reached`, the records that count.
        y: their classes by place, int64, shape (n,).
        taken: what is spent.
    """
    numbers = [place for place in range(x.shape[1]) if place not in categories]
    mean, deviation, left = np.zeros(x.shape[1]), np.ones(x.shape[1]), taken
    if numbers:
        part, left = taken.part(_MOMENTS), taken.part(1 - _MOMENTS)
        moments = class_moments(x[:, numbers], np.zeros(len(x), np.int64), 1, part, rng)
        mean[numbers], deviation[numbers] = moments.means[0], np.sqrt(moments.variances[0])
    forest = drawn(trees, depth, mean, deviation, categories)
    leaves, step = 1 << depth, count_step(trees, _GRID)
    length = trees * leaves * classes

    def total() -> Vector:
        cells = (forest.reached(x) + np.arange(trees) * leaves) * classes + y[:, None]
        return counted(cells, length=length, grid=_GRID).total

    asked = Asked("classes in the leaves of a forest", left, rng)
    noisy = asked.released(total, length=length, sensitivity=_GRID) / step
    return forest, fractions(noisy.reshape(trees, leaves, classes), asked.deviation / step)


def fractions(counts: Matrix, deviation: float) -> list[Nodes]:
    """Return the fractions of the classes in the nodes of every level from noisy counts of the leaves.

    Args:
        counts: shape (trees, leaves, classes); leaves are a power of two.
        deviation: of the noise in each count.

    Returns:
        From the roots, which all trees share, to the leaves.
    """
    levels, classes = [counts], counts.shape[2]
    while levels[0].shape[1] > 1:
        levels.insert(0, levels[0][:, 0::2] + levels[0][:, 1::2])
    levels[0] = np.broadcast_to(levels[0].mean(axis=0), levels[0].shape)  # every tree has counted all records
    found = list[Nodes]()
    for level, own in enumerate(levels):
        noise = deviation * math.sqrt(counts.shape[1] / own.shape[1] / (1 if level else len(counts)))
        guess = np.repeat(found[-1].fractions, 2, axis=1) if level else np.full(own.shape, 1.0 / classes)
        total = own.sum(axis=2, keepdims=True)
        told = total > _TOLD * noise * math.sqrt(classes)
        size = np.where(told, total, 1.0)
        spread = (noise / size) ** 2 * classes + 0.25 / size
        gain = np.where(told, 1.0 / (1.0 + spread / (_APART if level else 1.0) ** 2), 0.0)
        moved = np.clip(guess + gain * (own / size - guess), _LEAST, 1.0)
        found.append(Nodes(moved / moved.sum(axis=2, keepdims=True), np.where(told, total, 0.0)[..., 0]))
    return found


def importances(forest: Forest, nodes: list[Nodes], columns: int) -> Matrix:
    """Return how much a question about each column takes from Gini's impurity, with a sum of 1, or all alike."""
    found = np.zeros(columns)
    for level, (above, below) in enumerate(pairwise(nodes)):
        apart = below.fractions - np.repeat(above.fractions, 2, axis=1)
        gain = (below.records * (apart * apart).sum(axis=2)).reshape(len(forest.feature), -1, 2).sum(axis=2)
        asked = forest.feature[:, (1 << level) - 1 : (2 << level) - 1]
        found += np.bincount(asked.ravel(), weights=gain.ravel(), minlength=columns)
    total = float(found.sum())
    return found / total if total > 0 else np.full(columns, 1 / columns)
