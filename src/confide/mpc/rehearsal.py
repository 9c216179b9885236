"""A program in the clear, as whoever has the model can run it before anybody takes part: what fixed point costs.

Words are those of the ring, and products and sums are exact. A truncation rounds to the nearest where parties round up
or down by chance, by less than a unit. So errors are those of rounded weights, inputs and series, and about those of
truncations, which are small in a deep network. Windows are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from confide.model.graph import Graph
from confide.mpc.architecture import Architecture
from confide.mpc.gates import linear, product, word
from confide.mpc.lowering import program_for
from confide.mpc.operations import (
    PERIODIC_SCALE,
    AnyOperation,
    Convolve,
    Keep,
    Load,
    MatMul,
    Multiply,
    Number,
    Open,
    Periodic,
    Program,
    Reveal,
    Select,
    Shape,
    Shift,
    Sign,
    Truncate,
    operands,
)
from confide.mpc.periodic import Series
from confide.mpc.predictions import LARGEST_INPUT
from confide.mpc.weights import encoded

Matrix = NDArray[np.float64]
Words = NDArray[np.uint64]

#: Rows of a plan's calibration that are rehearsed: one at a time, as they are asked.
MOST_ROWS = 32


def rehearsed(graph: Graph, architecture: Architecture, x: Matrix) -> Matrix:
    """Return the predictions of rows in the ring, shape (rows, outputs).

    Args:
        graph: the model; its numbers stay here.
        architecture: of this graph.
        x: float64, shape (rows, features), bounded as inputs are.
    """
    program, model = program_for(architecture, 1), encoded(graph, architecture)
    rows = [_told(program, model, row) for row in x]
    return architecture.finish(np.array(rows, np.float64).reshape(len(x), architecture.outputs))


def largest_error(graph: Graph, architecture: Architecture, x: Matrix) -> tuple[float, int]:
    """Return by how much predictions are off at most, against floating point, and over how many rows.

    Args:
        x: float64, shape (rows, features); of those that a client could ask, the first `MOST_ROWS` are taken.
    """
    x = x[(np.abs(x) <= LARGEST_INPUT).all(axis=1)][:MOST_ROWS]
    return float(np.abs(rehearsed(graph, architecture, x) - graph.apply(x)).max(initial=0.0)), len(x)


def _told(program: Program, model: Mapping[str, Words], row: Matrix) -> Matrix:
    found: list[Words] = []
    for number, operation in enumerate(program.operations):
        given = [found[one] for one in operands(operation)]
        if isinstance(operation, Load):
            loaded = model[operation.name] if operation.origin == "model" else _words(row * 2.0**operation.scale)
            found.append(loaded.reshape(operation.shape))
        elif isinstance(operation, Reveal):
            told = _cut(given[0], operation.bits).view(np.int64).astype(np.float64)
            return told * 2.0 ** -program.values[number].scale
        else:
            found.append(_made(operation, given, [program.values[one].shape for one in operands(operation)]))
    raise AssertionError("a program that tells nothing")


def _made(operation: AnyOperation, given: Sequence[Words], shapes: Sequence[Shape]) -> Words:
    first = given[0]
    match operation:
        case Open() | Number() | Keep():
            return first
        case MatMul() | Convolve() | Multiply():
            return product(operation, first, given[1])
        case Truncate(_, bits):
            return _cut(first, bits)
        case Sign():
            return (first.view(np.int64) >= 0).astype(np.uint64)
        case Select(_, _, bits):
            return first * _cut(given[1], bits)
        case Shift(_, by):
            return first + word(by)
        case Periodic(_, period, cosines, sines):
            values = Series(period, cosines, sines).apply(first.view(np.int64).astype(np.float64), 0)
            return _words(values * 2.0**PERIODIC_SCALE)
        case Load() | Reveal():
            raise AssertionError("loaded and told elsewhere")
        case _:
            made = linear(operation, given, shapes)
            assert made is not None
            return np.ascontiguousarray(made)


def _words(values: Matrix) -> Words:
    return np.rint(values).astype(np.int64).view(np.uint64)


def _cut(words: Words, bits: int) -> Words:
    """Return words divided by 2^bits, rounded to the nearest."""
    half = np.int64(1 << bits >> 1)
    return ((np.ascontiguousarray(words).view(np.int64) + half) >> np.int64(bits)).view(np.uint64)
