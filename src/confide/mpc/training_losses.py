"""What the last layer is off by, as programs: the gradient of a loss in its scores z, for targets y.

    loss        e                                          rounds   what is nonlinear
    squared     z - y                                      2        nothing
    logistic    sigmoid3(z) - y                            3        two signs on one mask
    sigmoid     1 / (1 + exp(-z)) - y                      5        two signs that cut z to [-8, 8], one Fourier series
    softmax     exp(z) / sum(exp(z)) - y                   16 of 10 a tournament for the maximum, a sign, two series

sigmoid3(z) = relu(z + 1/2) - relu(z - 1/2) is another function than the sigmoid: a line of slope 1 through (0, 1/2),
cut at 0 and 1. Its error is at most 1 in size whatever z is, by construction, which is what noise is sized by.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.mpc.functions import Builder, divided, maximum, smooth
from confide.mpc.operations import SCALE, Broadcast, Open, Select, Shift, Sign, Subtract, Truncate
from confide.mpc.training_plan import Task

#: Low bits of a score that a sign does not look at.
DROP = SCALE
#: Where scores of the sigmoid are cut: it is within 4e-4 of 0 and 1 there.
SIGMOID_BOUND = 8
#: How far below a row's largest score one still counts: exp(-12) is 6e-6.
SOFTMAX_SPREAD = 12
_DOUBLE = 2 * SCALE


def error(build: Builder, task: Task, z: int, y: int) -> int:
    """Return the error, OPEN at scale 16.

    Args:
        z: scores, SHARED at scale 32, shape (rows, outputs).
        y: targets, SHARED at scale 16.
    """
    match task.loss:
        case "squared":
            found = build(Truncate(build(Open(z)), SCALE))
        case "logistic":
            found = _cut(build, task, z, 1 << (_DOUBLE - 1), SCALE)
        case "sigmoid":
            bound = SIGMOID_BOUND << _DOUBLE
            inside = build(Open(build(Shift(_cut(build, task, z, bound, 0), -bound))))
            found = _coarser(build, smooth(build, inside, _sigmoid, -SIGMOID_BOUND - 2.0**-8, SIGMOID_BOUND + 2.0**-8))
        case "softmax":
            found = _coarser(build, _softmax(build, task, z))
    return build(Open(build(Subtract(found, y))))


def _cut(build: Builder, task: Task, z: int, bound: int, bits: int) -> int:
    """Return relu(z + bound) - relu(z - bound), truncated by `bits`: two rounds, and the opening of z."""
    opened = build(Open(z))
    above, below = build(Shift(opened, bound)), build(Shift(opened, -bound))
    rising = build(Select(build(Sign(above, task.window, DROP)), above, bits))
    levelling = build(Select(build(Sign(below, task.window, DROP)), below, bits))
    return build(Subtract(rising, levelling))


def _softmax(build: Builder, task: Task, z: int) -> int:
    """Return exp(z) over its sum along a row, SHARED at scale 32; what lies 12 below the largest counts as if at 12."""
    opened = build(Open(z))
    shape, spread = build.value(z).shape, SOFTMAX_SPREAD << _DOUBLE
    largest = build(Broadcast(maximum(build, opened, task.window + 1, DROP), shape))
    above = build(Shift(build(Subtract(opened, largest)), spread))
    inside = build(Open(build(Select(build(Sign(above, task.window + 1, DROP)), above))))
    powers = smooth(build, inside, _falling, -(2.0**-8), SOFTMAX_SPREAD + 2.0**-8)
    return divided(build, powers, shape[-1])


def _coarser(build: Builder, a: int) -> int:
    return build(Truncate(build(Open(a)), build.value(a).scale - SCALE))


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-z))


def _falling(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(z - SOFTMAX_SPREAD)
