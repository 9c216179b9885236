"""Gradients of a linear head over a silo's records, in integers from the record to the sum.

A head is one linear layer and a sigmoid on features fixed in advance. Its gradient is residual x features for each
record, so `confide.dp.outer` sums it by one matrix product. The features are rounded once; the logits of rounded
features under rounded weights are sums of whole numbers, so no record's logit depends on how a library groups its
additions, and hence on no other record.

The bias is the weight of a feature that every record has, `CONSTANT`, times `CONSTANT`: smaller than 1, so that the
bias takes a smaller share of a record's norm.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from confide.dp.mechanisms import Clipped
from confide.dp.outer import OuterSums, Rounded
from confide.model.graph import Graph, Linear, Sigmoid
from confide.train.local import Silo, sigmoid_by_record

Matrix = NDArray[np.float64]

#: The feature that every record has.
CONSTANT = 0.5

#: How much finer the grids are where no noise makes a finer one pointless.
_FINER = 16

#: Whole numbers whose products with a record's sum up to less than this are exact in float64.
_EXACT = 2.0**51


def is_head(graph: Graph) -> bool:
    """Return whether a graph is one linear layer and a sigmoid."""
    return len(graph.layers) == 2 and isinstance(graph.layers[0], Linear) and isinstance(graph.layers[1], Sigmoid)


def is_hazard(graph: Graph) -> bool:
    """Return whether a graph is one linear layer that gives a log hazard."""
    return len(graph.layers) == 1 and graph.outputs == 1


class LinearHead:
    """What a silo's records add to the gradient of a head.

    Args:
        graph: one linear layer and a sigmoid, k outputs from d features.
        row_norm: largest norm of a row of features; longer ones are scaled down.
        clip_norm: largest norm of one record's gradient; None clips nothing.
        class_weights: public factor of each class's records in the loss, from 0 to 1; empty weighs all alike.
    """

    def __init__(
        self, graph: Graph, *, row_norm: float, clip_norm: float | None, class_weights: tuple[float, ...] = ()
    ) -> None:
        self._outputs, self._weights = graph.outputs, class_weights
        norm = math.hypot(row_norm, CONSTANT)
        self.sums = OuterSums(
            rows=graph.outputs,
            columns=graph.features + 1,
            right_norm=norm,
            clip_norm=norm * math.sqrt(graph.outputs) if clip_norm is None else clip_norm,
            finer=_FINER if clip_norm is None else 1,
        )
        self._rounded: dict[Silo, Rounded] = {}  # of silos of this process; features do not change during a run

    def gradient_sum(self, parameters: Matrix, silo: Silo) -> Clipped:
        """Return the clipped sum over the silo's records, `OuterSums.length` integers; `gradient` reads it."""
        right = self._features(silo)
        return self.sums.summed(self._residuals(parameters, silo, right), right)

    def gradient(self, decoded: Matrix) -> Matrix:
        """Return a decoded sum as the gradient of flat parameters: weights row by row, then biases."""
        found = decoded.reshape(self.sums.rows, self.sums.columns)
        return np.concatenate([found[:, :-1].ravel(), found[:, -1] * CONSTANT])

    def rows(self, parameters: Matrix) -> Matrix:
        """Return flat parameters as one row of weights for each output, that of the constant feature last."""
        weights, biases = np.split(parameters, [-self._outputs])
        return np.concatenate([weights.reshape(self._outputs, -1), biases[:, None] / CONSTANT], axis=1)

    def _features(self, silo: Silo) -> Rounded:
        if silo not in self._rounded:
            constant = np.full((len(silo.x), 1), CONSTANT)
            self._rounded[silo] = self.sums.rounded(np.concatenate([silo.x, constant], axis=1))
        return self._rounded[silo]

    def _logits(self, parameters: Matrix, right: Rounded) -> Matrix:
        """Return the logits, shape (k, n), each column from its own record."""
        rows = self.rows(parameters)
        norms = np.maximum(np.sqrt((rows * rows).sum(axis=1)), 1e-200)  # of zeros, any
        bits = np.floor(np.log2(_EXACT / (norms * self.sums.right_grid))).clip(-1000, 1000)
        whole = np.rint(rows * np.exp2(bits)[:, None])
        logits = whole @ right.steps.T
        logits *= (self.sums.step * np.exp2(-bits))[:, None]
        return logits

    def _residuals(self, parameters: Matrix, silo: Silo, right: Rounded) -> Matrix:
        """Return the loss gradient at the logits, shape (k, n), each column from its own record."""
        found = sigmoid_by_record(self._logits(parameters, right))
        if self._outputs == 1:
            found[0] -= silo.y == 1
        else:
            found[silo.y, np.arange(len(silo.y))] -= 1.0
        if self._weights:
            found *= np.array(self._weights)[silo.y]
        return found
