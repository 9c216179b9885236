"""Additive trees: one function of each column, and where its values lie among the parameters.

The model is an offset plus one step function of every column, so its structure is public before anything is learnt: a
number's function is one tree that finds its interval, a category's is one tree of a single question for each category.
Only the leaves' values are learnt, one for each code of each column.

Model: generalised additive models (Hastie, Tibshirani, 1986); as trees: Lou, Caruana, Gehrke, Intelligible models for
classification and regression (2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from confide.model.graph import Graph, Sigmoid
from confide.model.preprocess import Preprocess, Scale
from confide.model.trees import Trees
from confide.train.tree_columns import TreeColumn, columns_of, starts_of

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Intervals of one number.
MOST_LEVELS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class AdditiveColumns:
    """What an additive model sees of a record: one code of each column.

    Args:
        columns: in the order of the features.
        starts: int64, shape (columns + 1,): where each column's codes start among all codes.
        known: bool, shape (codes,): whether a code is an interval of a number, and not a category or a missing value.
    """

    columns: tuple[TreeColumn, ...]
    starts: Indices
    known: NDArray[np.bool_]

    @staticmethod
    def of(preprocess: Preprocess) -> AdditiveColumns:
        """Return the columns that a preparation for trees gives.

        Raises:
            JobError: as `tree_columns.columns_of` says.
        """
        columns = columns_of(preprocess, most_levels=MOST_LEVELS)
        starts = starts_of(columns)
        known = np.zeros(int(starts[-1]), np.bool_)
        for rule, start, end in zip(preprocess.rules, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if isinstance(rule, Scale):
                known[start + (rule.missing == "level") : end] = True  # a missing value has code 0
        return AdditiveColumns(columns, starts, known)

    @property
    def codes(self) -> int:
        """Return how many codes all columns have together."""
        return int(self.starts[-1])

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return the places of the columns of numbers."""
        return tuple(place for place, column in enumerate(self.columns) if column.kind != "category")

    def part(self, place: int) -> slice:
        """Return where the codes of a column lie among all codes."""
        return slice(int(self.starts[place]), int(self.starts[place + 1]))

    def read(self, x: Matrix) -> Indices:
        """Return the code of each record in each column, among all codes: int64, shape (n, columns)."""
        found = np.empty((len(x), len(self.columns)), np.int64)
        for place, column in enumerate(self.columns):
            if column.kind == "category":
                own = x[:, column.first : column.first + column.levels].argmax(axis=1)
            else:
                own = np.rint((x[:, column.first] + 1.0) * ((column.levels - 1) / 2.0))
            found[:, place] = np.clip(own, 0, column.levels - 1) + int(self.starts[place])
        return found


def additive(preprocess: Preprocess, *, classes: tuple[str, ...] = ()) -> Graph:
    """Return additive trees whose functions are all zero: what a private training starts from."""
    found = AdditiveColumns.of(preprocess)
    return Graph((_trees(found.columns, preprocess.features), Sigmoid()), classes)


def leaves_of(columns: Sequence[TreeColumn]) -> Indices:
    """Return the leaf that holds the value of each code, int64, shape (codes,)."""
    found, leaf = list[int](), 0
    for column in columns:
        if column.kind == "category":
            found += [leaf + 2 * code + 1 for code in range(column.levels)]
            leaf += 2 * column.levels
        else:
            found += range(leaf, leaf + column.levels)
            leaf += column.levels
    return np.array(found, np.int64)


def with_values(layer: Trees, columns: Sequence[TreeColumn], values: Matrix, offset: float) -> Trees:
    """Return the trees with these values of the codes."""
    found = layer.value.copy()
    found[leaves_of(columns)] = values
    return replace(layer, value=found, offset=np.array([offset]))


def _trees(columns: Sequence[TreeColumn], features: int) -> Trees:
    roots, nodes, leaves = list[int](), list[tuple[int, float, int, int]](), 0
    for column in columns:
        if column.kind == "category":
            for code in range(column.levels):
                roots.append(len(nodes))
                nodes.append((column.first + code, 0.5, -1 - leaves, -2 - leaves))
                leaves += 2
        else:
            roots.append(_balanced(nodes, column, leaves))
            leaves += column.levels
    feature, threshold, left, right = zip(*nodes, strict=True) if nodes else ((), (), (), ())
    return Trees(
        features=features,
        roots=np.array(roots, np.int64),
        outputs=np.zeros(len(roots), np.int64),
        feature=np.array(feature, np.int64),
        threshold=np.array(threshold, np.float64),
        left=np.array(left, np.int64),
        right=np.array(right, np.int64),
        value=np.zeros(leaves),
        offset=np.zeros(1),
    )


def _balanced(nodes: list[tuple[int, float, int, int]], column: TreeColumn, leaf: int) -> int:
    """Add a tree that tells every code of a number apart, its leaves from `leaf`; return its root."""
    step = 2.0 / max(1, column.levels - 1)

    def grown(low: int, high: int) -> int:
        if high - low == 1:
            return -1 - (leaf + low)
        place, cut = len(nodes), (low + high) // 2
        nodes.append((column.first, (cut - 0.5) * step - 1.0, 0, 0))
        left, right = grown(low, cut), grown(cut, high)
        nodes[place] = (column.first, (cut - 0.5) * step - 1.0, left, right)
        return place

    return grown(0, column.levels)
