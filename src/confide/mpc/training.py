"""Training on shares, as programs: rows come in, a step moves the weights, the weights leave or stay.

Nobody sees a row, an activation, an error, a gradient or a weight. Between programs the parties hold, by name:

    x, y             rows of one batch, masked once for all epochs (OPEN), and their targets (SHARED), both at scale 16
    w1, w2 ...       weights of each layer, (columns in, columns out), masked afresh by every step (OPEN, scale 16)
    sum1, sum2 ...   the same weights as the sum of all steps (SHARED, scale 32 + shift; see `training_plan`)
    b1, b2 ...       biases, never masked (SHARED, scale 32)
    v1, u1 ...       velocities of weights and biases, with momentum alone (SHARED, scales 32 and 16)
    n1               noise of the weights, fresh for every step, with noise alone (SHARED, scale 32)

Each operand of a product is opened once and used in all products that need it: x and w in Z = X W, x and e in X^T E,
w and e in E W^T. A product of two opened values is local. A logistic step takes five rounds:

    1  z = X w + b                                    opened at scale 32
    2  the signs of z + 1/2 and z - 1/2               both from one mask
    3  e = relu(z + 1/2) - relu(z - 1/2) - y          opened; each relu is a selection, truncated to scale 16
    4  sum - factor X^T e                             opened, then truncated to the scale of weights
    5  w                                              opened under a fresh mask

Biases cost nothing: their sum of errors is local. A hidden layer adds three rounds forward (opened, signs, selected
and opened) and two backward, where the forward bit selects: relu'(z) is that bit.

Source: step by step in docs/protocols/mpc-training.md; products after ABY3 (Mohassel, Rindal, ePrint 2018/403) with
masks known to a dealer; sigmoid3 is that paper's piecewise function (section 5.4, equation 6).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from confide.mpc.operations import (
    SCALE,
    Add,
    AnyOperation,
    Broadcast,
    Keep,
    Kind,
    Load,
    MatMul,
    Open,
    Program,
    Reveal,
    Select,
    Shape,
    Shift,
    Sign,
    Subtract,
    Sum,
    Times,
    Truncate,
)
from confide.mpc.training_plan import MOMENTUM_BITS, Task

#: What signs are taken in: |z| < 4096 at the scale of products, 16 low bits not looked at.
WINDOW, DROP = 44, SCALE
_DOUBLE = 2 * SCALE


@dataclass(slots=True)
class _Writer:
    """Operations as they are written down, and the layer that each belongs to."""

    operations: list[AnyOperation] = field(default_factory=list[AnyOperation])
    labels: list[str] = field(default_factory=list[str])
    label: str = ""

    def __call__(self, operation: AnyOperation) -> int:
        self.operations.append(operation)
        self.labels.append(self.label)
        return len(self.operations) - 1

    def state(self, name: str, shape: Shape, scale: int, kind: Kind) -> int:
        """Load what the parties hold under a name."""
        return self(Load(name, shape, scale, kind, "state"))

    def program(self) -> Program:
        return Program(tuple(self.operations), tuple(self.labels))


def admission(task: Task, rows: int) -> Program:
    """Return how one batch comes in: as shares of its rows and targets, which are masked once and kept. One round.

    Args:
        rows: of the batch, >= 1.
    """
    write = _Writer(label="rows")
    x = write(Load("x", (rows, task.features), SCALE, Kind.SHARED, "input"))
    y = write(Load("y", (rows, task.outputs), SCALE, Kind.SHARED, "input"))
    write(Keep(write(Open(x)), "x"))
    write(Keep(y, "y"))
    return write.program()


def beginning(task: Task) -> Program:
    """Return how the weights come in, as shares of public or private starting values. One round."""
    write = _Writer(label="start")
    for layer, (inner, outer) in enumerate(pairwise(task.widths), 1):
        total = write(Load(f"sum{layer}", (inner, outer), task.rates.sum_scale, Kind.SHARED, "input"))
        weight = write(Load(f"w{layer}", (inner, outer), SCALE, Kind.SHARED, "input"))
        write(Keep(total, f"sum{layer}"))
        write(Keep(write(Open(weight)), f"w{layer}"))
        parts: list[tuple[str, Shape, int]] = [(f"b{layer}", (outer,), _DOUBLE)] if task.biases else []
        if task.rates.momentum:
            parts.append((f"v{layer}", (inner, outer), _DOUBLE))
            parts += [(f"u{layer}", (outer,), SCALE)] if task.biases else []
        for name, shape, scale in parts:
            write(Keep(write(Load(name, shape, scale, Kind.SHARED, "input")), name))
    return write.program()


def step(task: Task, rows: int) -> Program:
    """Return one step over a batch.

    Args:
        rows: of the batch; the rates are those of `task`, whatever it is.
    """
    write = _Writer(label="load")
    x = write.state("x", (rows, task.features), SCALE, Kind.OPEN)
    y = write.state("y", (rows, task.outputs), SCALE, Kind.SHARED)
    weights = [
        write.state(f"w{layer}", shape, SCALE, Kind.OPEN) for layer, shape in enumerate(pairwise(task.widths), 1)
    ]
    biases = [
        write.state(f"b{layer}", (outer,), _DOUBLE, Kind.SHARED) if task.biases else None
        for layer, outer in enumerate(task.widths[1:], 1)
    ]
    inputs, bits, z = [x], list[int](), x
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
        write.label = f"layer {layer}"
        z = write(MatMul(inputs[-1], weight))
        if bias is not None:
            z = write(Add(z, write(Broadcast(bias, (rows, task.widths[layer])))))
        if layer < len(weights):
            opened = write(Open(z))
            bits.append(write(Sign(opened, WINDOW, DROP)))
            inputs.append(write(Open(write(Select(bits[-1], opened, SCALE)))))
    write.label = task.loss
    error = _error(write, task, z, y)
    for layer in range(len(weights), 0, -1):
        write.label = f"layer {layer} back"
        before = inputs[layer - 1]
        following = 0
        if layer > 1:
            slope = write(MatMul(error, weights[layer - 1], transpose_b=True))
            following = write(Open(write(Select(bits[layer - 2], write(Open(slope)), SCALE))))
        _move(write, task, layer, before, error, (weights[layer - 1], biases[layer - 1]))
        error = following
    return write.program()


def revelation(task: Task) -> Program:
    """Return how the weights leave: told to whoever receives the output, as sums of all steps. One round."""
    write = _Writer(label="model")
    for layer, (inner, outer) in enumerate(pairwise(task.widths), 1):
        total = write.state(f"sum{layer}", (inner, outer), task.rates.sum_scale, Kind.SHARED)
        write(Reveal(total, f"sum{layer}"))
        if task.biases:
            write(Reveal(write.state(f"b{layer}", (outer,), _DOUBLE, Kind.SHARED), f"b{layer}"))
    return write.program()


def _error(write: _Writer, task: Task, z: int, y: int) -> int:
    """Write what the last layer is off by, OPEN at scale 16."""
    if task.loss == "squared":
        opened = write(Open(z))
        return write(Open(write(Subtract(write(Truncate(opened, SCALE)), y))))
    opened = write(Open(z))
    half = 1 << (_DOUBLE - 1)
    above, below = write(Shift(opened, half)), write(Shift(opened, -half))
    rising = write(Select(write(Sign(above, WINDOW, DROP)), above, SCALE))
    levelling = write(Select(write(Sign(below, WINDOW, DROP)), below, SCALE))
    return write(Open(write(Subtract(write(Subtract(rising, levelling)), y))))


def _move(write: _Writer, task: Task, layer: int, before: int, error: int, held: tuple[int, int | None]) -> None:
    """Write how one layer's weights and biases, `held`, follow from its inputs and its errors."""
    inner, outer = task.widths[layer - 1 : layer + 1]
    rates, (weight, bias) = task.rates, held
    slope = write(MatMul(before, error, transpose_a=True))
    if task.noise:
        slope = write(Add(slope, write.state(f"n{layer}", (inner, outer), _DOUBLE, Kind.SHARED)))
    if rates.momentum:
        velocity = write.state(f"v{layer}", (inner, outer), _DOUBLE, Kind.SHARED)
        slope = _with_inertia(write, task, velocity, f"v{layer}", slope)
    total = write.state(f"sum{layer}", (inner, outer), rates.sum_scale, Kind.SHARED)
    total = write(Subtract(total, write(Times(slope, rates.factor, rates.shift))))
    if rates.decay:
        total = write(Subtract(total, write(Times(weight, rates.decay, SCALE + rates.shift))))
    write(Keep(total, f"sum{layer}"))
    divided = write(Truncate(write(Open(total)), rates.sum_scale - SCALE))
    write(Keep(write(Open(divided)), f"w{layer}"))
    if bias is None:
        return
    level = write(Sum(error, 0))
    if rates.momentum:
        velocity = write.state(f"u{layer}", (outer,), SCALE, Kind.SHARED)
        level = _with_inertia(write, task, velocity, f"u{layer}", level)
    moved = write(Times(level, rates.factor << (SCALE - rates.shift), SCALE))
    write(Keep(write(Subtract(bias, moved)), f"b{layer}"))


def _with_inertia(write: _Writer, task: Task, old: int, name: str, slope: int) -> int:
    """Write velocity = mu velocity + slope; its opening waits for nothing in the step."""
    slowed = write(Truncate(write(Open(write(Times(old, task.rates.momentum, MOMENTUM_BITS)))), MOMENTUM_BITS))
    new = write(Add(slowed, slope))
    write(Keep(new, name))
    return new
