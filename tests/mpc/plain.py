"""Programs in the clear: what a program means, on integers, without shares, masks or rounding by chance.

Truncation is the floor and a sign is exact, so a technique's results differ from these by its stated errors alone. In
`checked` runs each value has to keep the range that its operation asks for: a program that passes is good for parties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.mpc import operations as op
from confide.mpc.operations import Kind, Program
from confide.mpc.periodic import Series

Integers = NDArray[np.int64]

EDGE = 1 << 62


@dataclass
class Run:
    """What a program made.

    Args:
        values: the integer of each operation, int64; a bit is 0 or 1.
        outputs: what `Reveal` told, by name. kept: what `Keep` kept, by name.
        worst: for each Sign the bits of its largest operand, by the operation's number: how wide its window has to be.
    """

    program: Program
    values: list[Integers] = field(default_factory=list)
    outputs: dict[str, Integers] = field(default_factory=dict)
    kept: dict[str, Integers] = field(default_factory=dict)
    worst: dict[int, int] = field(default_factory=dict)

    def number(self, at: int) -> NDArray[np.float64]:
        """Return the real numbers of an operation."""
        return decoded(self.values[at], self.program.values[at].scale)

    def output(self, name: str = "y") -> NDArray[np.float64]:
        """Return what was told under a name, as real numbers."""
        scales = [
            value.scale
            for operation, value in zip(self.program.operations, self.program.values, strict=True)
            if isinstance(operation, op.Reveal) and operation.name == name
        ]
        return decoded(self.outputs[name], scales[0])


def encoded(x: Any, scale: int) -> Integers:
    """Return round(x 2^scale)."""
    return np.rint(np.asarray(x, np.float64) * 2.0**scale).astype(np.int64)


def decoded(x: Integers, scale: int) -> NDArray[np.float64]:
    return x.astype(np.float64) / 2.0**scale


def run(program: Program, loaded: Mapping[str, Any], *, checked: bool = True) -> Run:
    """Run a program.

    Args:
        loaded: for each `Load` its integer (int64, or uint64 modulo 2^64) of any shape that reshapes to the load's, or
            real numbers (float64), which are put at the load's scale.
        checked: whether a value outside the range of a Truncate, Select or Sign is an AssertionError.
    """
    done = Run(program)
    for number, operation in enumerate(program.operations):
        given = [done.values[one] for one in op.operands(operation)]
        with np.errstate(over="ignore"):
            made = _made(operation, given, loaded)
        if checked:
            _check(done, number, operation, given)
        value = program.values[number]
        assert made.shape == value.shape, f"operation {number}, {operation}: {made.shape} for {value.shape}"
        assert made.dtype == np.int64
        assert value.kind is not Kind.BIT or set(np.unique(made)) <= {0, 1}
        done.values.append(made)
        if isinstance(operation, op.Reveal):
            done.outputs[operation.name] = made
        if isinstance(operation, op.Keep):
            done.kept[operation.name] = made
    return done


def _check(done: Run, number: int, operation: Any, given: list[Integers]) -> None:
    where = f"operation {number}, {operation}"
    match operation:
        case op.Truncate():
            assert given[0].min() >= -EDGE, where
            assert given[0].max() < EDGE, where
        case op.Select(_, _, bits) if bits:
            assert given[1].min() >= -EDGE, where
            assert given[1].max() < EDGE, where
        case op.Sign(_, window, drop):
            low, high = int(given[0].min()), int(given[0].max())
            done.worst[number] = max(abs(low), abs(high)).bit_length()
            assert low >= -(1 << window), f"{where}: {low}"
            assert high < (1 << window) - (1 << drop), f"{where}: {high}"


def _made(operation: Any, given: list[Integers], loaded: Mapping[str, Any]) -> Integers:
    match operation:
        case op.Load(name, shape, scale):
            return _loaded(loaded[name], shape, scale)
        case op.MatMul(_, _, transpose_a, transpose_b):
            a, b = given
            return np.matmul(a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b)
        case op.Convolve(_, _, stride, padding):
            return _convolved(given[0], given[1], stride, padding)
        case op.Multiply():
            return given[0] * given[1]
        case op.Truncate(_, bits):
            return given[0] >> bits
        case op.Sign():
            return (given[0] >= 0).astype(np.int64)
        case op.Select(_, _, bits):
            return given[0] * (given[1] >> bits)
        case op.Reveal(_, _, bits):
            return given[0] >> bits
        case op.Periodic(_, period, cosines, sines):
            series = Series(period, cosines, sines)
            return encoded(series.apply(given[0].astype(np.float64), 0), op.PERIODIC_SCALE)
        case op.Add():
            return given[0] + given[1]
        case op.Subtract():
            return given[0] - given[1]
        case op.Shift(_, by):
            return given[0] + _word(by)
        case op.Times(_, by):
            return given[0] * _word(by)
        case op.Concatenate(_, axis):
            return np.concatenate(given, axis)
        case op.Sum(_, axis):
            return given[0].sum(axis, dtype=np.int64)
        case _:
            return _moved(operation, given[0])


def _moved(operation: Any, a: Integers) -> Integers:
    match operation:
        case op.Open() | op.Number() | op.Keep():
            return a
        case op.Reshape(_, shape):
            return a.reshape(shape)
        case op.Transpose(_, axes):
            return a.transpose(axes)
        case op.Slice(_, start, stop, step):
            return a[tuple(slice(*one) for one in zip(start, stop, step, strict=True))]
        case op.Broadcast(_, shape):
            return np.broadcast_to(a, shape)
        case op.Periodic(_, period, cosines, sines):
            return encoded(Series(period, cosines, sines).apply(a.astype(np.float64), 0), op.PERIODIC_SCALE)
    raise AssertionError(f"no rule for {operation}")


def _loaded(given: Any, shape: tuple[int, ...], scale: int) -> Integers:
    array = np.asarray(given)
    if array.dtype.kind == "f":
        array = encoded(array, scale)
    return array.astype(np.uint64).view(np.int64).reshape(shape) if array.dtype.kind == "u" else array.reshape(shape)


def _word(by: int) -> np.int64:
    return np.array(by % (1 << 64), np.uint64).view(np.int64)[()]


def _convolved(x: Integers, w: Integers, stride: tuple[int, int], padding: tuple[int, int, int, int]) -> Integers:
    top, left, bottom, right = padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))[:, :, :: stride[0], :: stride[1]]
    n, _, height, width, *_ = windows.shape
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * height * width, -1)
    out = columns @ w.reshape(len(w), -1).T
    return out.reshape(n, height, width, len(w)).transpose(0, 3, 1, 2)
