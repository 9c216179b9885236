"""Real numbers as integers with a proved error, and integers as coefficients of polynomials.

A row of a linear model is divided by 2^e, the smallest power of two that no output of that row exceeds on the input
box. What a client must know beforehand therefore depends on no weight: the exponents come with each reply.

    x'_i = x_i / bound               in [-1, 1]           x̂_i = round(2^f x'_i)
    w'_i = w_i · bound / 2^e         Σ|w'_i| + |b'| <= 1    ŵ_i = round(2^a w'_i)        b̂ = round(2^(a+f) b')
    z    = Σ ŵ_i x̂_i + b̂            an exact integer      y   = z · 2^(e-a-f)

    |y - (w·x + b)| <= 2^e · (Σ|w'_i| · 2^-(f+1) + Σ|ŵ_i 2^-a - w'_i| + 2^-(a+f+1))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError, ModelError
from confide.model.graph import Linear

Matrix = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Relative error of the few float64 operations around the integers, generously.
FLOAT_ERROR = 2.0**-44

#: Outputs of a model stay below 2^512 on the box, so that no power of two overflows on the way back to reals.
LARGEST_EXPONENT = 512


class FixedPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How reals become integers; public and the same for every model of a shape.

    Args:
        input_bound: largest absolute value of a feature, the half side of the input box.
        input_bits: f above, 1 to 40.
        weight_bits: a above, 1 to 40.
    """

    input_bound: float
    input_bits: int
    weight_bits: int

    def inputs(self, x: Matrix) -> Integers:
        """Return the integers of `x`, which lies in the box (`in_box`), shape (rows, features)."""
        return np.rint(np.ldexp(x / self.input_bound, self.input_bits)).astype(np.int64)

    def outputs(self, z: NDArray[np.float64], exponents: Integers) -> Matrix:
        """Return the reals of exact results `z`, shape (rows, outputs)."""
        return np.ldexp(z, exponents - (self.input_bits + self.weight_bits))


def in_box(x: Matrix, features: int, input_bound: float) -> Matrix:
    """Return `x` if every feature lies in the certified box.

    Raises:
        DataError: another shape, or a feature that is not a number in the box; the text names no value.
    """
    if x.ndim != 2 or x.shape[1] != features or not len(x):
        raise DataError(f"Expected x of shape (rows, {features}) with at least one row, got {x.shape}")
    inside = np.abs(x) <= input_bound  # False for NaN
    if not inside.all():
        row, column = np.argwhere(~inside)[0]
        raise DataError(
            f"Expected features within input_bound={input_bound:g}, not so in row {row}, feature {column}; "
            "clip the feature to its public bounds"
        )
    return np.asarray(x, np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """A linear layer as integers; private.

    Args:
        weights: ŵ, shape (outputs, features).
        biases: b̂, one Python integer per output.
        exponents: e, shape (outputs,).
        error: largest |y - (w·x + b)| over the box, shape (outputs,).
    """

    weights: Integers
    biases: tuple[int, ...]
    exponents: Integers
    error: Matrix

    def __repr__(self) -> str:
        return f"Quantised({self.weights.shape[1]} -> {self.weights.shape[0]})"


def quantise(layer: Linear, fixed: FixedPoint) -> Quantised:
    """Return the integers of `layer` and the error that they cause."""
    scaled = layer.weight * fixed.input_bound
    exponents = exponents_of(np.abs(scaled).sum(axis=1) + np.abs(layer.bias))
    normal = np.ldexp(scaled, -exponents[:, None])
    weights = np.rint(np.ldexp(normal, fixed.weight_bits)).astype(np.int64)
    weights[~weights.any(axis=1), 0] = 1  # a product with zero would be an encryption of nothing, for all to see
    total_bits = fixed.input_bits + fixed.weight_bits
    biases = tuple(
        round(math.ldexp(bias, total_bits - exponent))
        for bias, exponent in zip(layer.bias.tolist(), exponents.tolist(), strict=True)
    )
    error = (
        np.abs(normal).sum(axis=1) * 2.0 ** -(fixed.input_bits + 1)
        + np.abs(np.ldexp(weights.astype(np.float64), -fixed.weight_bits) - normal).sum(axis=1)
        + 2.0 ** -(total_bits + 1)
        + FLOAT_ERROR
    )
    return Quantised(weights, biases, exponents, np.ldexp(error, exponents))


def exponents_of(ranges: Matrix) -> Integers:
    """Return the exponents e of the smallest powers of two above `ranges`, at least -512.

    Raises:
        ModelError: a range is 2^512 or more.
    """
    exponents = np.maximum(np.frexp(ranges)[1], -LARGEST_EXPONENT).astype(np.int64)
    if not np.isfinite(ranges).all() or exponents.max() > LARGEST_EXPONENT:
        raise ModelError(f"Expected outputs below 2^{LARGEST_EXPONENT} on the input box; scale the weights down")
    return exponents


class Blocks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where inputs, weights and results stand in polynomials, so that one product gives all dot products.

    Polynomials have N coefficients.

    With d features and m outputs per block, feature i of row r stands at r·m·d + i, weight i of output j at
    j·d + d-1-i, and their dot product at r·m·d + j·d + d-1. Two different pairs (r, j) never meet there: their places
    differ by a multiple of d, and a row and weights overlap by less than d. Terms beyond N wrap to places below d-1.

    Args:
        degree: N.
        features: d, at most N.
        outputs: of the model.
    """

    degree: int
    features: int
    outputs: int

    @property
    def width(self) -> int:
        """Return m, the outputs in one product."""
        return min(self.outputs, self.degree // self.features)

    @property
    def products(self) -> int:
        """Return the products, and so the replies, per ciphertext."""
        return -(-self.outputs // self.width)

    @property
    def rows(self) -> int:
        """Return the rows in one ciphertext."""
        return self.degree // (self.width * self.features)

    def ciphertexts(self, rows: int) -> int:
        """Return the ciphertexts that `rows` rows take."""
        return -(-rows // self.rows)

    def inputs(self, x: Integers) -> Integers:
        """Return the coefficients of rows, from shape (rows, features) to (ciphertexts, N)."""
        count, stride = self.ciphertexts(len(x)), self.width * self.features
        padded = np.zeros((count * self.rows, stride), np.int64)
        padded[: len(x), : self.features] = x
        packed = np.zeros((count, self.degree), np.int64)
        packed[:, : self.rows * stride] = padded.reshape(count, -1)
        return packed

    def weights(self, w: Integers) -> Integers:
        """Return the coefficients of weights, from shape (outputs, features) to (products, N)."""
        padded = np.zeros((self.products * self.width, self.features), np.int64)
        padded[: len(w)] = w[:, ::-1]
        packed = np.zeros((self.products, self.degree), np.int64)
        packed[:, : self.width * self.features] = padded.reshape(self.products, -1)
        return packed

    def places(self, rows: int, product: int) -> NDArray[np.intp]:
        """Return where the results of the first `rows` rows stand in one product, shape (rows, its outputs)."""
        outputs = min(self.width, self.outputs - product * self.width)
        row = np.arange(rows)[:, None] * (self.width * self.features)
        return row + np.arange(outputs)[None, :] * self.features + self.features - 1
