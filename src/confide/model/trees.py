"""A layer of decision trees: every tree sends a record to one of its leaves, and the leaves' values add up.

A node compares one feature with a threshold and goes left if the feature is not above it. Features are finite, missing
values among them: what a missing value means is the preparation's business (`preprocess.Scale`), so a node needs no
rule for it, and what runs trees under encryption needs comparisons alone.

The nodes of all trees lie in one set of arrays. A child, and a root, is a number: from 0 the place of a node, below 0
the leaf -1 - number. A child comes after its parent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Most nodes and leaves of all trees together.
MOST_NODES = 1 << 22

_BLOCK_NUMBERS = 1 << 20  # records times trees that are walked at once


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """y = offset + the value of the leaf that x reaches in each tree, added to the tree's output.

    Args:
        features: columns of x, at least 1.
        roots: int64, shape (trees,): the first node of each tree, or its only leaf.
        outputs: int64, shape (trees,): the column of y that a tree adds to.
        feature: int64, shape (nodes,): the column of x that a node compares.
        threshold: float64, shape (nodes,): x not above it goes left.
        left, right: int64, shape (nodes,): children.
        value: float64, shape (leaves,).
        offset: float64, shape (columns of y,).

    Raises:
        ModelError: arrays that do not make up trees, or parameters that are not finite.
    """

    features: int
    roots: Indices
    outputs: Indices
    feature: Indices
    threshold: Matrix
    left: Indices
    right: Indices
    value: Matrix
    offset: Matrix

    def __post_init__(self) -> None:
        nodes, leaves = len(self.feature), len(self.value)
        shapes = [array.shape for array in (self.feature, self.threshold, self.left, self.right)]
        if any(shape != (nodes,) for shape in shapes) or self.roots.shape != self.outputs.shape or self.roots.ndim != 1:
            raise ModelError("Expected one feature, threshold, left and right child for each node, one output a tree")
        if self.value.ndim != 1 or self.offset.ndim != 1 or not len(self.offset) or not leaves or not len(self.roots):
            raise ModelError("Expected at least one tree with a leaf, and one output")
        if nodes + leaves > MOST_NODES:
            raise ModelError(f"Expected at most {MOST_NODES} nodes and leaves, got {nodes + leaves}; take fewer trees")
        if not (np.isfinite(self.threshold).all() and np.isfinite(self.value).all() and np.isfinite(self.offset).all()):
            raise ModelError("Expected finite thresholds and values; the training diverged: lower the learning rate")
        if not _within(self.feature, self.features) or not _within(self.outputs, len(self.offset)):
            raise ModelError("Expected nodes that compare features that there are, and trees of outputs that there are")
        places, children = np.arange(nodes), np.stack([self.left, self.right])
        rising = ((children > places) & (children < nodes)) | ((children < 0) & (children >= -leaves))
        if not rising.all() or not ((self.roots < nodes) & (self.roots >= -leaves)).all():
            raise ModelError("Expected children that are leaves or come after their node; nothing else is a tree")

    def __repr__(self) -> str:  # parameters are private, the shape is not
        return f"Trees({self.features} -> {len(self.offset)}, {len(self.roots)} trees, {len(self.value)} leaves)"

    def apply(self, x: Matrix) -> Matrix:
        """Return the sums, shape (n, outputs), of records x, shape (n, features); each row from itself alone."""
        step = max(1, _BLOCK_NUMBERS // len(self.roots))
        blocks = [self._sums(x[start : start + step]) for start in range(0, len(x), step)]
        return np.concatenate(blocks) if blocks else np.zeros((0, len(self.offset)))

    def reached(self, x: Matrix) -> Indices:
        """Return the leaf that each record reaches in each tree, shape (n, trees)."""
        at = np.broadcast_to(self.roots, (len(x), len(self.roots)))
        while (inner := at >= 0).any():
            node = np.where(inner, at, 0)
            goes_left = np.take_along_axis(x, self.feature[node], axis=1) <= self.threshold[node]
            at = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), at)
        return -1 - at

    def _sums(self, x: Matrix) -> Matrix:
        found = self.value[self.reached(x)]
        # numpy adds a row in one order where rows lie one after the other, and by how many there are elsewhere
        own = [np.ascontiguousarray(found[:, self.outputs == output]) for output in range(len(self.offset))]
        return np.stack([part.sum(axis=1) for part in own], axis=1) + self.offset

    def splits(self) -> Iterator[tuple[int, int, float]]:
        """Yield (tree, feature, threshold) of every node whose two sides differ."""
        for tree, root in enumerate(self.roots.tolist()):
            below = [root]
            while below:
                if (node := below.pop()) < 0:
                    continue
                if self._leaves_differ(node):
                    yield tree, int(self.feature[node]), float(self.threshold[node])
                below += [int(self.right[node]), int(self.left[node])]

    def _leaves_differ(self, node: int) -> bool:
        found: set[float] = set()
        below = [node]
        while below and len(found) < 2:
            if (at := below.pop()) < 0:
                found.add(float(self.value[-1 - at]))
            else:
                below += [int(self.right[at]), int(self.left[at])]
        return len(found) > 1


def _within(places: Indices, count: int) -> bool:
    return bool(((places >= 0) & (places < count)).all())


def perfect(trees: int, depth: int, *, features: int, outputs: int = 1) -> Trees:
    """Return trees of zeros with every node down to `depth`: what a training starts from.

    Tree t adds to output t mod outputs. Its nodes lie one level after the other, and so do its leaves.

    Args:
        trees, depth, features, outputs: each at least 1.
    """
    inner, leaves = (1 << depth) - 1, 1 << depth
    if trees * (inner + leaves) > MOST_NODES:
        raise ModelError(f"Expected at most {MOST_NODES} nodes and leaves; take fewer trees or a smaller depth")
    tree = np.arange(trees, dtype=np.int64)

    def children(side: int) -> Indices:
        owner = tree.repeat(inner)
        child = 2 * (np.arange(trees * inner, dtype=np.int64) - owner * inner) + side
        found, last = owner * inner + child, child >= inner
        found[last] = -1 - (owner * leaves + child - inner)[last]
        return found

    return Trees(
        features=features,
        roots=tree * inner,
        outputs=tree % outputs,
        feature=np.zeros(trees * inner, np.int64),
        threshold=np.zeros(trees * inner),
        left=children(1),
        right=children(2),
        value=np.zeros(trees * leaves),
        offset=np.zeros(outputs),
    )
