"""The Fourier series that layers are computed by, made once from public bounds where the model is.

Fits are of floating point and differ in their last bits between machines, so they are part of a model's description and
nobody makes them twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.graph import Gelu, Sigmoid, Tanh, gelu, sigmoid
from confide.mpc.operations import PERIODIC_SCALE, SCALE
from confide.mpc.periodic import MOST_PERIOD, Series, fit

Matrix = NDArray[np.float64]

#: Largest error of a series on its interval.
ERROR = 5e-5
#: Scale of what a softmax compares and takes powers of.
SCORE_SCALE = 2 * SCALE
#: Largest power of 2 that a root is multiplied by, or divided.
MOST_SHIFT = 8

_COARSE = 40  # scale of squares whose bound and fraction bits together are no period


def activation_series(layer: Sigmoid | Tanh | Gelu, low: float, high: float) -> Series:
    """Return the series of a smooth layer on an interval. Raises ModelError if there is none as near."""
    function: Callable[[Matrix], Matrix]
    match layer:
        case Sigmoid():
            function = sigmoid
        case Tanh():
            function = np.tanh
        case Gelu():
            function = gelu
    return fit(function, low, high, error=ERROR, scale=SCALE)


def power_series(spread: float, factor: float = 1.0, scale: int = SCORE_SCALE) -> Series:
    """Return exp(factor x) of x at a scale, -spread <= x <= 0; a slip of a sign goes above 0, and is allowed for.

    Raises:
        ModelError: the spread is too large.
    """
    return fit(lambda x: np.exp(factor * x), -spread, 2.0**-8, error=ERROR, scale=scale)


def reciprocal_series(count: int) -> Series:
    """Return 1 / x of a sum of `count` powers, the largest of which is 1. Raises ModelError if they are too many."""
    return fit(lambda x: 1 / x, 1.0 - 2**-6, max(count, 2) + 2**-6, error=ERROR, scale=PERIODIC_SCALE)


def root_series(count: int, low: float, high: float, epsilon: float) -> tuple[Series, int, int]:
    """Return 2^k / sqrt(variance + epsilon) of what `functions.normalised` makes of `count` numbers, its scale, and k.

    At the largest variance the series is about 1, so its error is that of results, whatever size layers have. At small
    variances the root multiplies small numbers, and may be less near.

    Args:
        low, high: bounds of the variance, 0 <= low < high.

    Raises:
        ModelError: no series is as near, or squares do not fit 62 bits.
    """
    extra, ratio = bits_of(count), norm_ratio(count)
    if (
        high <= 0
        or 2 * SCALE + math.log2(count**3 * high) > 61
        or abs(shift := round(math.log2(high) / 2)) > MOST_SHIFT
    ):
        raise ModelError("Expected variances whose squares fit 62 bits; scale the layer before it to values about 1")
    scale = 2 * SCALE + 3 * extra
    if scale + math.ceil(math.log2(max(high * ratio, 1))) >= MOST_PERIOD:
        scale = _COARSE  # a fit wants the bound's bits, and one more
    root = fit(
        lambda x: 2.0**shift / np.sqrt(x / ratio + epsilon),
        low * ratio,
        high * ratio,
        error=ERROR,
        scale=scale,
        allowed=lambda x: np.sqrt((high + epsilon) / (x / ratio + epsilon)),
    )
    return root, scale, shift


def bits_of(count: int) -> int:
    """Return the least e with 2^e >= count."""
    return (count - 1).bit_length()


def norm_ratio(count: int) -> float:
    """Return count^3 over the power of 8 at or above it: what the variance is held as a multiple of."""
    return count**3 / 8.0 ** bits_of(count)
