"""A silo's records on their way down the trees: what it adds to a sum, between one split and the next.

All of it follows from the records and the model, so it is worked out anew where it was not kept.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from confide.model.trees import Trees
from confide.train.histograms import histograms, route
from confide.train.local import sigmoid_by_record
from confide.train.tree_columns import TreeColumn, codes_of, starts_of

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
Vector = NDArray[np.int64]

#: A gradient of the loss is a whole number of steps of 2^-20; its absolute value is at most 1.
STEPS = 1 << 20

#: The loss of one record counts up to this, in steps of 2^-16.
LARGEST_LOSS = 16.0


class TreeRecords:
    """One silo's records under a model that grows.

    Args:
        columns: what trees see.
        x: float64, shape (n, features).
        y: int64 classes, shape (n,).
        outputs: columns of the model's sums.
        weights: of each class's records in the loss, in (0, 1]; empty weighs all alike.
        held_out: share of the records that no tree is grown from, for a score; by their own content.
    """

    def __init__(
        self,
        columns: tuple[TreeColumn, ...],
        x: Matrix,
        y: Labels,
        *,
        outputs: int,
        weights: tuple[float, ...] = (),
        held_out: float = 0.0,
    ) -> None:
        self._columns, self._starts = columns, starts_of(columns)
        codes = codes_of(columns, x)
        aside = _aside(codes, y, held_out)
        self._codes, self._y = np.ascontiguousarray(codes[~aside]), _targets(y[~aside], outputs)
        self._weights = np.array(weights)[y[~aside]] if weights else np.ones(len(self._y))
        self._held, self._held_y = np.ascontiguousarray(codes[aside]), _targets(y[aside], outputs)
        self._features = _feature_values(columns)
        self._begin()

    def _begin(self) -> None:
        """Forget how far the records are."""
        self._tree, self._level = 0, 0
        self._seen: Matrix = np.zeros(0)
        self._sums = {"grown": np.zeros(self._y.shape), "held": np.zeros(self._held_y.shape)}
        self._slots = np.zeros(len(self._y), np.int32)
        self._gradients = np.zeros((0, 2), np.int32)

    def __len__(self) -> int:
        return len(self._y)

    def prior(self) -> Vector:
        """Return the weighted count of all records, and of each output's own, in steps."""
        counts = [self._weights.sum(), *(self._weights @ self._y)]
        return np.rint(np.array(counts) * STEPS).astype(np.int64)

    def histograms(self, trees: Trees, parameters: Matrix, tree: int, level: int, wanted: NDArray[np.int32]) -> Vector:
        """Return the sums of gradients by slot, column and code, flat.

        Args:
            trees: the model, perfect trees of one depth.
            parameters: its own, to tell whether it has grown from what was seen.
            tree, level: what is grown next.
            wanted: int32, shape (2^level,), as in `histograms.histograms`.
        """
        self._follow(trees, parameters, tree, level)
        return histograms(self._codes, self._gradients, self._slots, wanted, self._starts).ravel()

    def score(self, trees: Trees, parameters: Matrix, tree: int) -> Vector:
        """Return (loss, count) of the records that were held out, in steps of 2^-16."""
        self._follow(trees, parameters, tree, 0)
        sums = self._sums["held"] + trees.offset
        losses = np.logaddexp(0.0, np.where(self._held_y > 0, -sums, sums)).sum(axis=1)
        steps = np.rint(np.clip(losses, 0.0, LARGEST_LOSS) * (1 << 16)).astype(np.int64)
        return np.array([steps.sum(), len(steps) << 16], np.int64)

    def _follow(self, trees: Trees, parameters: Matrix, tree: int, level: int) -> None:
        """Bring the records to where `level` of `tree` is grown from."""
        grown = self._seen[: len(parameters)]
        known = len(grown) == 0 or bool(((grown == 0.0) | (grown == parameters)).all())
        if not known or (self._tree, self._level) > (tree, level):
            self._begin()
        depth = len(trees.value) // len(trees.roots)
        while (self._tree, self._level) < (tree, level):
            self._descend(trees, depth.bit_length() - 1)
        if not len(self._gradients):
            self._derive(trees)
        self._seen = parameters

    def _descend(self, trees: Trees, depth: int) -> None:
        """Take the records one level down, and on to the next tree behind the last."""
        self._slots = route(self._codes, self._slots, *self._routes(trees, self._level))
        self._level += 1
        if self._level < depth:
            return
        output = int(trees.outputs[self._tree])
        values = trees.value[self._tree << depth : (self._tree + 1) << depth]
        self._sums["grown"][:, output] += values[self._slots]
        if len(self._held):
            slots, self._level = np.zeros(len(self._held), np.int32), 0
            for level in range(depth):
                slots = route(self._held, slots, *self._routes(trees, level))
            self._sums["held"][:, output] += values[slots]
        self._tree, self._level = self._tree + 1, 0
        self._slots, self._gradients = np.zeros(len(self._y), np.int32), np.zeros((0, 2), np.int32)

    def _routes(self, trees: Trees, level: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Return the column that each node of a level looks at, and the codes that go left there."""
        nodes = len(trees.feature) // len(trees.roots)
        first = self._tree * nodes + (1 << level) - 1
        features = trees.feature[first : first + (1 << level)]
        column, values = self._features
        left = values[features] <= trees.threshold[first : first + (1 << level), None]
        return column[features], left.astype(np.uint8)

    def _derive(self, trees: Trees) -> None:
        """Work out the gradients that the next tree is grown from."""
        output = int(trees.outputs[self._tree])
        p = sigmoid_by_record(self._sums["grown"][:, output] + trees.offset[output])
        g, h = self._weights * (p - self._y[:, output]), self._weights * p * (1.0 - p)
        self._gradients = np.rint(np.stack([g, h], axis=1) * STEPS).astype(np.int32)


def _targets(y: Labels, outputs: int) -> Matrix:
    """Return 1 where a record is of an output's class, shape (n, outputs)."""
    wanted = np.array([1]) if outputs == 1 else np.arange(outputs)
    return (y[:, None] == wanted).astype(np.float64)


def _feature_values(columns: tuple[TreeColumn, ...]) -> tuple[NDArray[np.int32], Matrix]:
    """Return each feature's column, and the value that each of its codes gives it, shape (features, 256)."""
    column = np.concatenate([np.full(len(found.values), place) for place, found in enumerate(columns)])
    values = np.full((len(column), 256), np.inf)
    for found in columns:
        values[found.first : found.first + len(found.values), : found.levels] = found.values
    return column.astype(np.int32), values


def _aside(codes: NDArray[np.uint8], y: Labels, share: float) -> NDArray[np.bool_]:
    """Return which records are held out: each by its own content, so that none decides where another goes."""
    if not share:
        return np.zeros(len(y), np.bool_)
    limit = int(share * 2**64)
    rows = np.concatenate([codes, y[:, None].astype("<i8").view(np.uint8).reshape(len(y), 8)], axis=1)
    told = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.fromiter((int.from_bytes(digest, "little") < limit for digest in told), np.bool_, len(y))
