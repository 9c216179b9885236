"""Fixed point: real numbers as integers on a grid, with the error that this costs.

Whatever is summed under cryptography is an integer; this is the one place where reals become integers and sums become
reals again. A value v stands for round(v 2^f), ties to even. Scaling a float64 by a power of two is exact and so is the
rounding, so the error of one value is at most half a grid step, 2^-(f+1), and the error of a sum of n values at most n
of them: the sum itself is exact in the ring. `RandomRounding` is for coarse grids: its errors have mean 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import UsageError

_MOST_FRACTION_BITS = 62
_EXACT_FLOAT_INTEGER = 2**53
_LARGEST_INTEGER = 2**62
_BLOCK = 1 << 15
_MOST_ROUNDED_BITS = 16
_CHANCE_BITS = 32


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomRounding:
    """A coarse grid over [-reach, reach], on which a value goes up or down by chance so that its mean stays.

        symbol   here                      meaning
        L        largest                   2^(bits - 1) - 1
        s        step                      reach / L
        f        fraction                  how far a value lies above the grid point below it, in steps

    A value becomes the grid point above with probability f and the one below otherwise. Its error has mean 0 and
    variance s^2 f (1 - f) <= s^2 / 4, so errors of different parties cancel in a sum: after n of them the mean is off
    by s / (2 sqrt(n)) at most in root mean square, where rounding to the nearest could be off by s / 2 in every one.

    Args:
        bits: bits of one integer, sign included, 2 to 16.
        reach: largest absolute value on the grid, > 0; a value beyond it counts as that far.

    Example:
        >>> from confide.crypto.random import SeededRandomness
        >>> grid = RandomRounding(bits=3, reach=6.0)
        >>> grid.largest, grid.step
        (3, 2.0)
        >>> grid.encode(np.array([4.0, -9.0]), SeededRandomness("doc"))
        array([ 2, -3])

    **Guarantees**: integers within [-largest, largest]; within the reach the mean of a decoded value is the value, up
    to 2^-32 of a step.
    """

    bits: int
    reach: float

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= _MOST_ROUNDED_BITS:
            raise UsageError(f"Expected bits={self.bits} between 2 and {_MOST_ROUNDED_BITS}")
        if not (math.isfinite(self.reach) and self.step > 0):
            raise UsageError(f"Expected reach={self.reach} to be finite and above 0")

    @property
    def largest(self) -> int:
        """Return the largest absolute integer that `encode` gives."""
        return (1 << (self.bits - 1)) - 1

    @property
    def step(self) -> float:
        """Return the distance of neighbouring grid points."""
        return self.reach / self.largest

    def encode(self, values: NDArray[np.float64], rng: Randomness) -> NDArray[np.int64]:
        """Return a neighbouring grid point of each value.

        Args:
            values: float64, any shape.
            rng: the party's own secret randomness; who knows it can tell more of a value than its integer does.

        Returns:
            int64, the shape of `values`.

        Raises:
            UsageError: a value is not a number; the text does not name it.
        """
        values = np.asarray(values, np.float64)
        if np.isnan(values).any():
            raise UsageError("Expected values that are numbers, got NaN; the training diverged or a value is missing")
        steps = np.clip(values, -self.reach, self.reach) * (self.largest / self.reach)
        steps = np.clip(steps, -self.largest, self.largest)  # the product may round beyond
        chance = np.frombuffer(rng.bytes(values.size * _CHANCE_BITS // 8), "<u4").reshape(values.shape)
        return np.floor(steps + np.ldexp(chance.astype(np.float64), -_CHANCE_BITS)).astype(np.int64)

    def decode(self, sums: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the reals that grid points, or sums of them, stand for."""
        return np.asarray(sums, np.int64).astype(np.float64) * self.step


def _float_above(value: Fraction) -> float:
    """Return the smallest float64 that is not below `value`."""
    near = float(value)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)
