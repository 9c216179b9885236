"""Fixed point: real numbers as integers on a grid, with the error that this costs.

Whatever is summed under cryptography is an integer; this is the one place where reals become integers and sums become
reals again. A value v stands for round(v 2^f), ties to even. Scaling a float64 by a power of two is exact and so is the
rounding, so the error of one value is at most half a grid step, 2^-(f+1), and the error of a sum of n values at most n
of them: the sum itself is exact in the ring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from confide.errors import UsageError

_MOST_FRACTION_BITS = 62
_EXACT_FLOAT_INTEGER = 2**53
_LARGEST_INTEGER = 2**62
_BLOCK = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPoint:
    """A grid of step 2^-fraction_bits over [-bound, bound].

    Args:
        fraction_bits: bits after the point, 0 to 62.
        bound: largest absolute value that can be encoded, > 0.

    Example:
        >>> import numpy as np
        >>> fixed = FixedPoint(fraction_bits=2, bound=4.0)
        >>> fixed.encode(np.array([0.3, -1.5]))
        array([ 1, -6])
        >>> fixed.decode(np.array([1 - 6]))
        array([-1.25])
        >>> fixed.error(values=2)
        0.25

    **Guarantees**: encoded values lie within [-largest, largest]; the decoded sum of any n encoded values differs from
    the real sum by at most `error(values=n)`.
    """

    fraction_bits: int
    bound: float

    def __post_init__(self) -> None:
        if not 0 <= self.fraction_bits <= _MOST_FRACTION_BITS:
            raise UsageError(f"Expected fraction_bits={self.fraction_bits} between 0 and {_MOST_FRACTION_BITS}")
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise UsageError(f"Expected bound={self.bound} to be finite and above 0")
        if not 1 <= self.largest <= _LARGEST_INTEGER:
            raise UsageError(
                f"Expected bound={self.bound} to be from 1 to 2^62 steps of 2^-{self.fraction_bits}; "
                "change fraction_bits or the bound"
            )

    @property
    def largest(self) -> int:
        """Return the largest absolute integer that `encode` gives."""
        return round(Fraction(self.bound) * 2**self.fraction_bits)

    def encode(self, values: NDArray[np.float64], *, clip: bool = False) -> NDArray[np.int64]:
        """Return the nearest grid points, ties to even.

        Args:
            values: float64, any shape, within [-bound, bound].
            clip: take the nearest bound for a value beyond it, an infinite one included, instead of refusing.

        Returns:
            int64, the shape of `values`, within [-largest, largest].

        Raises:
            UsageError: a value is not a number, or beyond the bound without `clip`; the text does not name it.
        """
        values = np.asarray(values, np.float64)
        largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))  # NaN if any value is
        if math.isnan(largest):
            raise UsageError("Expected values that are numbers, got NaN; the training diverged or a value is missing")
        if largest > self.bound:
            if not clip:
                raise UsageError(f"Expected values within bound={self.bound}; clip them or raise the bound")
            values = np.clip(values, -self.bound, self.bound)
        encoded = np.empty(values.shape, np.int64)
        flat, into, scaled = values.reshape(-1), encoded.reshape(-1), np.empty(min(values.size, _BLOCK))
        for at in range(0, len(flat), _BLOCK):  # blocks stay in the cache
            part = flat[at : at + _BLOCK]
            part = np.multiply(part, 2.0**self.fraction_bits, out=scaled[: len(part)])  # exact, as `ldexp` is
            into[at : at + _BLOCK] = np.rint(part, out=part)
        return encoded

    def decode(self, sums: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the reals that grid points, or sums of them, stand for.

        Args:
            sums: int64, any shape.
        """
        return np.asarray(sums, np.int64).astype(np.float64) * 2.0**-self.fraction_bits

    def error(self, *, values: int = 1) -> float:
        """Return the largest absolute difference between a sum of `values` reals and its decoded image.

        Half a step for each value; beyond 2^53 steps float64 cannot hold every sum, which adds its rounding.
        """
        steps = Fraction(values, 2)
        total = values * self.largest
        if total > _EXACT_FLOAT_INTEGER:
            steps += Fraction(total, _EXACT_FLOAT_INTEGER)
        return _float_above(steps / 2**self.fraction_bits)

    def ring_bits(self, *, values: int) -> int:
        """Return the smallest k for which sums of `values` encoded values do not wrap modulo 2^k.

        Raises:
            UsageError: more than 64 bits would be needed.
        """
        bits = (2 * values * self.largest).bit_length()
        if bits > 64:
            raise UsageError(f"Expected a sum of values={values} within 64 bits, got {bits}; take fewer fraction_bits")
        return bits


def _float_above(value: Fraction) -> float:
    """Return the smallest float64 that is not below `value`."""
    near = float(value)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)
