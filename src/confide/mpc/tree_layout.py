"""Trees as perfect trees of one depth, so that their number and depth are all that is public of their shape.

A leaf that lies higher becomes nodes whose both sides have its value. What such a node compares does not matter: it
compares nothing with a threshold above 0, and goes left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.model.trees import Trees

Matrix = NDArray[np.float64]

#: Fraction bits of an input.
_INPUT_BITS = 16


@dataclass(frozen=True, slots=True, eq=False)
class TreeLayout:
    """What `functions.trees` takes.

    Args:
        count, depth: of the trees, each at least 1.
        selection: float64, (features, nodes), 1 where a node compares a feature; nodes level after level, in a level
            tree after tree.
        thresholds: float64, (nodes,), odd multiples of 2^-17: an input, a multiple of 2^-16, is not above one if and
            only if it is not above the tree's own.
        leaves: float64, (count 2^depth, outputs).
        offset: float64, (outputs,).
    """

    count: int
    depth: int
    selection: Matrix
    thresholds: Matrix
    leaves: Matrix
    offset: Matrix

    def __repr__(self) -> str:  # its numbers are private
        return f"TreeLayout({self.count} trees of depth {self.depth})"

    @property
    def private(self) -> dict[str, Matrix]:
        """Return its numbers by name."""
        return {
            "selection": self.selection,
            "thresholds": self.thresholds,
            "leaves": self.leaves,
            "bias": self.offset,
        }


def depth_of(trees: Trees) -> int:
    """Return the most nodes on a way down, at least 1."""
    below = np.zeros(len(trees.feature), np.int64)

    def of(child: int) -> int:
        return int(below[child]) if child >= 0 else 0

    for node in range(len(below) - 1, -1, -1):  # children come after their parent
        below[node] = 1 + max(of(int(trees.left[node])), of(int(trees.right[node])))
    return max(1, *(of(int(root)) for root in trees.roots))


def laid_out(trees: Trees) -> TreeLayout:
    """Return trees as perfect ones; there are count (2^depth - 1) nodes, so ask `depth_of` first."""
    count, depth = len(trees.roots), depth_of(trees)
    nodes = count * ((1 << depth) - 1)
    selection, thresholds = np.zeros((trees.features, nodes)), np.full(nodes, 1 + 0.5 / 2.0**_INPUT_BITS)
    leaves = np.zeros((count << depth, len(trees.offset)))
    at, start = [int(root) for root in trees.roots], 0
    for level in range(depth):
        children: list[int] = []
        for place, child in enumerate(at):
            if child < 0:
                children += [child, child]
                continue
            selection[trees.feature[child], start + place] = 1.0
            thresholds[start + place] = _between_inputs(float(trees.threshold[child]))
            children += [int(trees.left[child]), int(trees.right[child])]
        at, start = children, start + (count << level)
    for place, leaf in enumerate(at):
        leaves[place, trees.outputs[place >> depth]] = trees.value[-1 - leaf]
    return TreeLayout(count, depth, selection, thresholds, leaves, trees.offset)


def _between_inputs(threshold: float) -> float:
    """Return the odd multiple of 2^-17 above the largest input that is not above a threshold."""
    if abs(threshold) >= 2.0 ** (52 - _INPUT_BITS):
        return threshold  # such a threshold is refused
    return (math.floor(threshold * 2.0**_INPUT_BITS) + 0.5) / 2.0**_INPUT_BITS
