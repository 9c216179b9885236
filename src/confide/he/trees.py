"""The leaves of an ensemble of trees as weights of an encrypted prediction.

What a row is compared with is exact on the intervals of the plan, so the result is, up to the stated noise, that of the
same trees with each threshold moved to the nearest edge between two intervals. It is that of the trees themselves for
every row that has no feature between a threshold and its edge: for every row if features take at most `bins` evenly
spread values with thresholds halfway between, as those of `confide train`. A row on an edge goes left, as in the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from confide.he.encode import Integers, exponents_of
from confide.he.plan_trees import TreesPlan, edges
from confide.he.trees_levels import leaf_factor
from confide.model.trees import Trees

Matrix = NDArray[np.float64]

#: A condition: the feature, the threshold, and whether a row must not be above it.
Condition = tuple[int, float, bool]


def shape_of(trees: Trees) -> tuple[int, int, int, int]:
    """Return features, outputs, the most conditions of a leaf, and the leaves of the output that has most."""
    found = list(_leaves(trees))
    depth = max(len(conditions) for _, _, _, conditions in found)
    counts = np.bincount([output for _, output, _, _ in found], minlength=len(trees.offset))
    return trees.features, len(trees.offset), max(depth, 1), max(int(counts.max()), 1)


def moved(trees: Trees, bins: int, input_bound: float) -> Trees:
    """Return `trees` with each threshold at the edge that an encrypted prediction compares with.

    A threshold within the box stays within: values at the lower end of the box, such as 0 of a 0/1 feature or a missing
    one, stay below it, and values at the upper end above it.
    """
    between = edges(bins, input_bound)
    width = 2 * input_bound / bins
    place = np.clip(np.rint((trees.threshold + input_bound) / width).astype(np.int64), 1, bins - 1)
    threshold = np.where(
        trees.threshold < -input_bound,
        -2 * input_bound,
        np.where(trees.threshold >= input_bound, 2 * input_bound, between[place - 1]),
    )
    return replace(trees, threshold=threshold)


def _leaves(trees: Trees) -> Iterator[tuple[int, int, int, tuple[Condition, ...]]]:
    """Yield (tree, output, leaf, conditions on the way) of every leaf."""
    for tree, root in enumerate(trees.roots.tolist()):
        below: list[tuple[int, tuple[Condition, ...]]] = [(root, ())]
        while below:
            node, way = below.pop()
            if node < 0:
                yield tree, int(trees.outputs[tree]), -1 - node, way
                continue
            feature, threshold = int(trees.feature[node]), float(trees.threshold[node])
            below.append((int(trees.right[node]), (*way, (feature, threshold, False))))
            below.append((int(trees.left[node]), (*way, (feature, threshold, True))))


@dataclass(frozen=True, slots=True, eq=False)
class Leaves:
    """An ensemble as the engine takes it; private.

    Args:
        broken: int8, shape (W, features, bins): how many conditions of a leaf a feature in a bin breaks.
        values: shape (W,): normalised leaf values times F, each tree's around 0; 0 where there is no leaf.
        offsets: shape (outputs,): the rest of each output, normalised.
        exponents: outputs of the model are 2^e times the normalised ones, shape (outputs,).
        trees: shape (W,): the tree of a leaf, -1 where there is none.
    """

    broken: NDArray[np.int8]
    values: Matrix
    offsets: Matrix
    exponents: Integers
    trees: Integers

    def __repr__(self) -> str:
        return f"Leaves({self.broken.shape})"


def leaves_of(trees: Trees, plan: TreesPlan) -> Leaves:
    """Return the leaves of `trees`, whose shape is the plan's.

    Raises:
        ModelError: outputs of 2^512 or more.
    """
    compared = moved(trees, plan.bins, plan.input_bound)
    between = edges(plan.bins, plan.input_bound)
    broken = np.zeros((plan.leaves, plan.features, plan.bins), np.int8)
    broken[:, 0, :] = 1  # places without a leaf break a condition
    owners, values, outputs = np.full(plan.leaves, -1, np.int64), np.zeros(plan.leaves), np.zeros(plan.leaves, np.int64)
    used = [0] * plan.outputs
    for tree, output, leaf, conditions in _leaves(compared):
        label = used[output] * plan.outputs_padded + output
        used[output] += 1
        broken[label] = 0
        for feature, threshold, left in conditions:
            below = int(np.searchsorted(between, threshold, side="right")) + (threshold > plan.input_bound)
            broken[label, feature, below if left else 0 : plan.bins if left else below] += 1
        owners[label], values[label], outputs[label] = tree, compared.value[leaf], output
    offsets, halves = trees.offset.copy(), np.abs(trees.offset)
    for tree in range(len(trees.roots)):
        own = owners == tree
        low, high = values[own].min(), values[own].max()
        values[own] -= (low + high) / 2
        offsets[trees.outputs[tree]] += (low + high) / 2
        halves[trees.outputs[tree]] += (high - low) / 2
    exponents = exponents_of(np.maximum(halves, np.abs(offsets) + halves - np.abs(trees.offset)))
    values = np.ldexp(values, -exponents[outputs]) * leaf_factor(plan.depth)
    return Leaves(broken, values, np.ldexp(offsets, -exponents), exponents, owners)
