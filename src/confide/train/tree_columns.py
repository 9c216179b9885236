"""What trees see of a record: one code for each column, and the splits that codes allow.

A number's code is its interval, a category's its place among the categories. Features of x follow from codes: one for a
number, two where missing ones are kept apart, one for each category. A split sends some codes of one column left:

    a number      those below a cut
    with missing  the same, the missing ones with the lower or with the upper side
    a category    all but one

so a node is one comparison of one feature, and gradient sums of codes are all that its choice needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError, JobError
from confide.model.preprocess import OneHot, Preprocess, Scale, level_values

Matrix = NDArray[np.float64]
Codes = NDArray[np.uint8]
Indices = NDArray[np.int64]

#: Codes of one column fit one byte.
MOST_LEVELS = 256


@dataclass(frozen=True, slots=True)
class TreeColumn:
    """One column.

    Args:
        name: the raw column.
        first: its first feature in x.
        levels: how many codes it has.
        kind: what its codes are.
        rises: 1 if the model may only rise with it, -1 if it may only fall, 0 for any.
    """

    name: str
    first: int
    levels: int
    kind: Literal["number", "missing", "category"]
    rises: int = 0

    @property
    def values(self) -> Matrix:
        """Return the values that its features take, shape (features, levels), one column for each code."""
        if self.kind == "category":
            return np.eye(self.levels)
        below = level_values(self.levels)
        if self.kind == "number":
            return below[None]
        return np.stack([below, np.roll(below, 1)])  # its highest value stands for code 0

    def codes(self, x: Matrix) -> Codes:
        """Return the code of each record from its features x, shape (n, features of all columns)."""
        if self.kind == "category":
            return x[:, self.first : self.first + self.levels].argmax(axis=1).astype(np.uint8)
        return np.rint((x[:, self.first] + 1.0) * ((self.levels - 1) / 2.0)).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Every split of every column: the codes from `low` to below `high`, among all columns' codes, make up one side.

    Args:
        low, high: int64, shape (splits,).
        right: bool, whether that side is the right one.
        column: int64, index of the column.
        feature, threshold: the comparison that a node makes, whose left side is x <= threshold.
        rises: int8, of the column.
    """

    low: Indices
    high: Indices
    right: NDArray[np.bool_]
    column: Indices
    feature: Indices
    threshold: Matrix
    rises: NDArray[np.int8]


def columns_of(
    preprocess: Preprocess, rises: dict[str, int] | None = None, *, most_levels: int = MOST_LEVELS
) -> tuple[TreeColumn, ...]:
    """Return the columns that a preparation for trees gives.

    Args:
        rises: 1 or -1 for each column that the model may only rise or fall with.
        most_levels: of one column; `codes_of` takes no more than MOST_LEVELS.

    Raises:
        JobError: a column that trees do not take: an image, a number without intervals, too many categories.
    """
    rises, found, first = rises or {}, list[TreeColumn](), 0
    if preprocess.unit_rows or preprocess.centre or preprocess.projection is not None:
        raise JobError("Expected columns as they are for trees; leave out unit_rows, project and standardise")
    for rule in preprocess.rules:
        match rule:
            case Scale(ordinal=True):
                kind, levels = "missing" if rule.missing == "level" else "number", rule.levels
            case OneHot():
                kind, levels = "category", rule.count
            case _:
                raise JobError(f"Expected numbers in intervals and categories for trees, got column {rule.name!r}")
        if levels > most_levels:
            raise JobError(
                f"Expected at most {most_levels} levels of column {rule.name!r} for trees, got {levels}; let the "
                "schema give rare categories a common name, or take fewer bins"
            )
        rising = rises.get(rule.name, 0)
        if rising and kind == "category":
            raise JobError(f"Expected numbers in trees.monotone, got the category {rule.name!r}")
        found.append(TreeColumn(rule.name, first, levels, kind, rising))
        first += rule.count
    if unknown := sorted(set(rises) - {column.name for column in found}):
        raise JobError(f"Expected columns of the schema in trees.monotone, got {', '.join(map(repr, unknown))}")
    return tuple(found)


def starts_of(columns: Sequence[TreeColumn]) -> Indices:
    """Return where each column's codes start among all columns' codes, and how many there are in all."""
    return np.array([0, *itertools.accumulate(column.levels for column in columns)], np.int64)


def codes_of(columns: Sequence[TreeColumn], x: Matrix) -> Codes:
    """Return the codes of records x, shape (n, columns), C-contiguous, each below its column's levels.

    Raises:
        DataError: features that no preparation gives.
    """
    if x.shape[1:] != (sum(len(column.values) for column in columns),) or not (np.abs(x) <= 1.0).all():
        raise DataError("Expected features from -1 to 1, as the preparation of trees gives them")
    return np.ascontiguousarray(np.stack([column.codes(x) for column in columns], axis=1))


def candidates_of(columns: Sequence[TreeColumn]) -> Candidates:
    """Return every split, in the order in which the first of equally good ones wins."""
    rows = [
        (low + start, high + start, right, place, column.first + feature, threshold, column.rises)
        for place, (column, start) in enumerate(zip(columns, starts_of(columns).tolist(), strict=False))
        for low, high, right, feature, threshold in _splits(column)
    ]
    parts: list[list[float]] = [list(part) for part in zip(*rows, strict=True)] or [[]] * 7
    low, high, right, column, feature, threshold, rises = parts
    return Candidates(
        low=np.array(low, np.int64),
        high=np.array(high, np.int64),
        right=np.array(right, np.bool_),
        column=np.array(column, np.int64),
        feature=np.array(feature, np.int64),
        threshold=np.array(threshold, np.float64),
        rises=np.array(rises, np.int8),
    )


def _splits(column: TreeColumn) -> Iterator[tuple[int, int, bool, int, float]]:
    """Yield (low, high, whether that side is the right one, feature, threshold) among the column's own codes."""
    if column.kind == "category":
        if column.levels > 1:
            yield from ((code, code + 1, True, code, 0.5) for code in range(column.levels))
        return
    values = level_values(column.levels)
    between = ((values[1:] + values[:-1]) / 2.0).tolist()
    yield from ((0, cut, False, 0, between[cut - 1]) for cut in range(1, column.levels))
    if column.kind == "missing":
        yield from ((1, cut, False, 1, between[cut - 2]) for cut in range(2, column.levels))
