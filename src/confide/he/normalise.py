"""A network's weights scaled for a plan: typical values are about 1, the largest ones stay within the plan's room.

Each register holds its value divided by a unit (the value's typical size, or more where the largest value over the
input box would not fit the plan's room otherwise). Units go into the weights, so they cost nothing; the last one is a
power of two and comes with each reply.

    certified   interval arithmetic over the whole input box shows that no value leaves the room
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import public_stream
from confide.errors import ModelError
from confide.he.encode import LARGEST_EXPONENT
from confide.he.network import Network, Operation
from confide.he.shapes import Dense, LinearMap, Shape
from confide.model.graph import Polynomial

Matrix = NDArray[np.float64]
Integers = NDArray[np.int64]

_SAFE = 1 + 2.0**-40  # for float64's own rounding
_SAMPLES = 64
_BEYOND = 1e-6  # how far outside of [-1, 1] a polynomial is still followed: the slack of earlier intervals adds up
_COARSE = 6
_LOW = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """What a combination multiplies its terms by, and adds; private."""

    factors: tuple[float, ...]
    offset: float

    def __repr__(self) -> str:
        return "Constants()"


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A network for a plan; private.

    Args:
        parts: of each stage: the map, the constants, or None for a product.
        exponent: outputs of the model are 2^exponent times those of the last stage.
        largest: of each register, the largest absolute value of each number over the box, as far as it is known.
        certified: whether `largest` stays within the room, so that every input in the box gets a right answer.
        exact: whether typical values are still about 1, so that the errors of the plan hold.
    """

    parts: tuple[LinearMap | Constants | None, ...]
    exponent: int
    largest: tuple[Matrix, ...]
    certified: bool
    exact: bool

    def __repr__(self) -> str:
        return f"Ready({len(self.parts)} stages)"


@dataclass(slots=True)
class _Values:
    """A register in the making: what 1 stands for, its interval over the box and its values on samples, in units.

    The interval is not `known` behind a polynomial whose argument can leave the interval that it was fitted on.
    """

    unit: float
    low: Matrix
    high: Matrix
    samples: Matrix
    known: bool = True

    @property
    def largest(self) -> Matrix:
        return np.maximum(np.abs(self.low), np.abs(self.high)) * _SAFE

    def scaled(self, factor: float) -> _Values:
        return _Values(self.unit / factor, self.low * factor, self.high * factor, self.samples * factor, self.known)


def samples(shape: Shape, input_bound: float, rows: Matrix | None = None) -> Matrix:
    """Return inputs to judge typical values by, shape (rows, features).

    Given ones; or points of the box, drawn from a public stream. Where the first map is a convolution they are smooth
    images, coarse grids made finer: what networks of images are trained for; noise excites them far more.

    Args:
        shape: of the first map.
        input_bound: features lie in [-input_bound, input_bound].
        rows: given ones, or None.
    """
    if rows is not None:
        return rows
    stream = public_stream("confide", "typical inputs")
    if isinstance(shape, Dense):
        return input_bound * _half_sparse(stream.uniform(-1.0, 1.0, (_SAMPLES, shape.inputs)))
    (height, width), channels = shape.image, shape.channels[0]
    grid = stream.uniform(-1.0, 1.0, (_SAMPLES, 1, _COARSE, _COARSE))
    grid = 0.75 * grid + 0.25 * stream.uniform(-1.0, 1.0, (_SAMPLES, channels, _COARSE, _COARSE))
    fine = np.einsum("yi,ncij,xj->ncyx", _stretched(height), grid, _stretched(width))
    return input_bound * _half_sparse(fine.reshape(_SAMPLES, -1))


def _half_sparse(x: Matrix) -> Matrix:
    """Return `x` with every other row mostly at the lower bound: strokes on a background, rare events in a table."""
    x[::2] = np.clip(3.0 * x[::2] - 2.0, -1.0, 1.0)
    return x


def _stretched(size: int) -> Matrix:
    """Return the matrix that interpolates `_COARSE` points linearly to `size`, shape (size, _COARSE)."""
    place = np.linspace(0.0, _COARSE - 1.0, size)
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(_COARSE)))


def normalise(
    net: Network, rooms: Sequence[float], input_bound: float, inputs: Matrix, *, certify: bool = True
) -> Ready:
    """Return `net` scaled.

    Args:
        net: the network.
        rooms: bits above 1 that each register's largest value may have, of the plan.
        certify: whether values are scaled down until the largest fit; otherwise typical ones stay about 1.
        input_bound: features lie in [-input_bound, input_bound].
        inputs: `samples`, shape (rows, features).

    Raises:
        ModelError: outputs can be 2^512 or more.
    """
    ones = np.ones(inputs.shape[1])
    registers = [_Values(input_bound, -ones, ones, inputs / input_bound)]
    parts: list[LinearMap | Constants | None] = []
    certified, exact = True, True
    for number, operation in enumerate(net.operations):
        after = net.operations[number + 1] if number + 1 < len(net.operations) else None
        read = [registers[source] for source in operation.sources]
        values, part = _computed(operation, read)
        values.known &= all(one.known for one in read)
        room = 2.0 ** min(rooms[number + 1], LARGEST_EXPONENT)
        fitted = room if certify else math.inf
        polynomial = _polynomial(net.operations, number + 1)
        if polynomial is not None:
            values, part = _centred(values, part, polynomial)
        elif operation.kind != "product":
            unit = _unit(values, fitted, last=after is None)
            exact &= unit <= 4 * _typical(values)
            values, part = values.scaled(1 / unit), _scaled(part, 1 / unit)
        certified &= values.known and bool((values.largest <= room * _SAFE**2).all())
        registers.append(values)
        parts.append(part)
    exponent = registers[-1].unit
    largest = tuple(values.largest for values in registers)
    return Ready(tuple(parts), round(math.log2(exponent)), largest, certified, exact)


def _typical(values: _Values) -> float:
    """Return the root mean square of a sample, a low one of them so that errors stay small for most; never 0."""
    squares = np.nan_to_num(values.samples**2, nan=0.0, posinf=0.0).mean(axis=1)
    return max(math.sqrt(float(np.quantile(squares, _LOW))), 2.0**-LARGEST_EXPONENT)


def _unit(values: _Values, room: float, *, last: bool) -> float:
    """Return the unit of a register: typical values, or more, so that the largest fit the room."""
    most = float(values.largest.max()) if values.known else 0.0
    if not math.isfinite(most) and last:
        raise ModelError(f"Expected outputs below 2^{LARGEST_EXPONENT} on the input box; scale the weights down")
    unit = max(_typical(values), most / room if math.isfinite(most) else 0.0)
    if not last:
        return unit
    exponent = math.ceil(math.log2(values.unit * unit))
    if abs(exponent) > LARGEST_EXPONENT:
        raise ModelError(f"Expected outputs below 2^{LARGEST_EXPONENT} on the input box; scale the weights down")
    return 2.0**exponent / values.unit


def _computed(operation: Operation, read: Sequence[_Values]) -> tuple[_Values, LinearMap | Constants | None]:
    """Return a register's values in units of 1, and the private part of its stage for that."""
    with np.errstate(over="ignore", invalid="ignore"):
        match operation.part:
            case LinearMap() as linear:
                (values,) = read
                part = linear.of_scaled(values.unit)
                low, high = part.range(values.low, values.high)
                return _Values(1.0, low, high, part.apply(values.samples)), part
            case Polynomial():
                return _powers(operation.part, read)
            case None if operation.kind == "product":
                left, right = read
                ends = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
                low, high = np.minimum.reduce(ends), np.maximum.reduce(ends)
                if left is right:
                    low = np.where((left.low < 0) & (left.high > 0), 0.0, np.minimum(left.low**2, left.high**2))
                return _Values(left.unit * right.unit, low, high, left.samples * right.samples), None
            case None:
                units = tuple(values.unit for values in read)
                low = sum((values.low * values.unit for values in read), np.zeros(1))
                high = sum((values.high * values.unit for values in read), np.zeros(1))
                total = sum((values.samples * values.unit for values in read), np.zeros(1))
                return _Values(1.0, low, high, total), Constants(units, 0.0)


def _powers(polynomial: Polynomial, read: Sequence[_Values]) -> tuple[_Values, Constants]:
    """Return p(u) of the powers u, u² ... that the registers hold; u stays about in [-1, 1] if it is certified."""
    constant, *factors = np.polynomial.chebyshev.cheb2poly(polynomial.coefficients)
    most = 1 + _BEYOND
    inside = np.clip(read[0].low, -most, most), np.clip(read[0].high, -most, most)
    low, high = _interval(polynomial.coefficients, *inside)
    known = bool((read[0].low >= -most).all() and (read[0].high <= most).all())
    values = np.asarray(np.polynomial.chebyshev.chebval(read[0].samples, polynomial.coefficients), np.float64)
    return _Values(1.0, low, high, values, known), Constants(tuple(map(float, factors)), float(constant))


def _interval(coefficients: Matrix, low: Matrix, high: Matrix) -> tuple[Matrix, Matrix]:
    """Return bounds of a polynomial over intervals about [-1, 1]: its values at the ends and at its turning points."""
    turning = np.polynomial.chebyshev.chebroots(np.polynomial.chebyshev.chebder(coefficients))
    real = turning.real[np.abs(turning.imag) < 1e-9] if len(turning) else np.zeros(0)
    ends = [np.polynomial.chebyshev.chebval(end, coefficients) for end in (low, high)]
    least, most = np.minimum(*ends), np.maximum(*ends)
    for point, value in zip(real, np.polynomial.chebyshev.chebval(real, coefficients), strict=True):
        inside = (low <= point) & (point <= high)
        least, most = np.where(inside, np.minimum(least, value), least), np.where(inside, np.maximum(most, value), most)
    slack = 1e-9 * float(np.abs(coefficients).sum())
    return least - slack, most + slack


def _polynomial(operations: Sequence[Operation], register: int) -> Polynomial | None:
    """Return the polynomial that takes a register's value, which then is u itself; None if none does."""
    for operation in operations:
        if isinstance(operation.part, Polynomial) and operation.sources[0] == register:
            return operation.part
    return None


def _centred(
    values: _Values, part: LinearMap | Constants | None, polynomial: Polynomial
) -> tuple[_Values, LinearMap | Constants]:
    """Return u = (x - middle) / half instead of x."""
    middle, half = (polynomial.low + polynomial.high) / 2, (polynomial.high - polynomial.low) / 2
    assert part is not None
    ends = values.low - middle, values.high - middle
    moved = _Values(values.unit, *ends, values.samples - middle, values.known)
    if isinstance(part, LinearMap):
        part = LinearMap(part.shape, part.weight, part.bias - middle)
    else:
        part = Constants(part.factors, part.offset - middle)
    return moved.scaled(1 / half), _scaled(part, 1 / half)


def _scaled(part: LinearMap | Constants | None, factor: float) -> LinearMap | Constants:
    assert part is not None
    if isinstance(part, LinearMap):
        return part.scaled(factor)
    return Constants(tuple(value * factor for value in part.factors), part.offset * factor)
