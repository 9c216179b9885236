"""Programs as they are written down: methods that add an operation and give back its number.

What a layer, a function or a training step is, is a composition of these. Numbers that methods take and give are those
of the program's operations. Besides the operations there are the few compositions that most layers are made of.

    f        fraction bits of activations, 16
    scale    fraction bits of one value; products of two activations have 2f
    drop     low bits that a sign does not look at: below 2^-16, so that a wrong sign there moves a result by less
"""

from __future__ import annotations

from collections.abc import Sequence

from confide.errors import ModelError
from confide.mpc.operations import (
    SCALE,
    Add,
    AnyOperation,
    Broadcast,
    Concatenate,
    Convolve,
    Keep,
    Kind,
    Load,
    MatMul,
    Multiply,
    Number,
    Open,
    Periodic,
    Program,
    Reshape,
    Reveal,
    Select,
    Shape,
    Shift,
    Sign,
    Slice,
    Subtract,
    Sum,
    Times,
    Transpose,
    Truncate,
    Value,
    made_by,
)
from confide.mpc.periodic import Series

#: Most bits of a window.
MOST_WINDOW = 62


class Builder:
    """A program that grows.

    Attributes:
        label: the layer that operations belong to from now on, for reports.
    """

    def __init__(self, label: str = "") -> None:
        self.label = label
        self._operations: list[AnyOperation] = []
        self._labels: list[str] = []
        self._values: list[Value] = []

    def __call__(self, operation: AnyOperation) -> int:
        """Append an operation and return its number.

        Raises:
            ProtocolError: it does not fit what is there.
        """
        number = len(self._operations)
        self._values.append(made_by(operation, self._values, number))
        self._operations.append(operation)
        self._labels.append(self.label)
        return number

    def program(self) -> Program:
        """Return the program that was written so far. Raises ProtocolError if it is too large."""
        return Program(tuple(self._operations), tuple(self._labels))

    def value(self, number: int) -> Value:
        """Return what an operation makes."""
        return self._values[number]

    def shape(self, a: int) -> Shape:
        """Return the shape of a value."""
        return self._values[a].shape

    def scale(self, a: int) -> int:
        """Return the fraction bits of a value."""
        return self._values[a].scale

    def kind(self, a: int) -> Kind:
        """Return the kind of a value."""
        return self._values[a].kind

    # --- what comes and goes ------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Shape, *, scale: int = SCALE, kind: Kind = Kind.OPEN) -> int:
        """Load what comes with each run."""
        return self(Load(name, shape, scale, kind, "input"))

    def weight(self, name: str, shape: Shape, *, scale: int = SCALE) -> int:
        """Load what belongs to the model and takes part in products: OPEN, masked once for all runs."""
        return self(Load(name, shape, scale, Kind.OPEN, "model"))

    def bias(self, name: str, shape: Shape, *, scale: int = 2 * SCALE) -> int:
        """Load what belongs to the model and is only added: SHARED, never masked."""
        return self(Load(name, shape, scale, Kind.SHARED, "model"))

    def state(self, name: str, shape: Shape, *, scale: int = SCALE, kind: Kind = Kind.OPEN) -> int:
        """Load what an earlier program kept."""
        return self(Load(name, shape, scale, kind, "state"))

    def keep(self, a: int, name: str) -> int:
        """Keep a value under a name, for later programs."""
        return self(Keep(a, name))

    def reveal(self, a: int, name: str = "y", *, bits: int = 0) -> int:
        """Tell a value to whoever receives the output, its lowest `bits` left out."""
        return self(Reveal(a, name, bits))

    # --- what sends, and what opened values are for -------------------------------------------------------------------

    def open(self, a: int) -> int:
        """Return a value as OPEN; one that is OPEN already stays as it is. One round."""
        return a if self.kind(a) is Kind.OPEN else self(Open(a))

    def matmul(self, a: int, b: int, *, transpose_a: bool = False, transpose_b: bool = False) -> int:
        """Return the product of matrices in the last two axes; both are opened if they are not."""
        return self(MatMul(self.open(a), self.open(b), transpose_a, transpose_b))

    def convolve(self, a: int, b: int, *, stride: tuple[int, int], padding: tuple[int, int, int, int]) -> int:
        """Return the convolution of images with kernels; both are opened if they are not."""
        return self(Convolve(self.open(a), self.open(b), stride, padding))

    def multiply(self, a: int, b: int) -> int:
        """Return the product elementwise; both are opened if they are not."""
        a = self.open(a)
        return self(Multiply(a, self.open(b)))

    def truncate(self, a: int, bits: int, *, rescaled: int | None = None) -> int:
        """Return a value divided by 2^bits; opened first if it is not. The scale falls by `rescaled`, or by bits."""
        return self(Truncate(self.open(a), bits, rescaled)) if bits else a

    def sign(self, a: int, *, window: int, drop: int) -> int:
        """Return the bit whether a value is at least 0; opened first if it is not. One round."""
        return self(Sign(self.open(a), window, drop))

    def select(self, bit: int, a: int, *, bits: int = 0) -> int:
        """Return bit times a, truncated by `bits`; opened first if it is not."""
        return self(Select(bit, self.open(a), bits))

    def number(self, bit: int) -> int:
        """Return a bit as 0 or 1 at scale 0."""
        return self(Number(bit))

    def periodic(self, a: int, series: Series) -> int:
        """Return a Fourier series of a value; opened first if it is not."""
        return self(Periodic(self.open(a), series.period, series.cosines, series.sines))

    # --- what is local ------------------------------------------------------------------------------------------------

    def plus(self, a: int, b: int) -> int:
        """Return a + b, of one shape and one scale."""
        return self(Add(a, b))

    def minus(self, a: int, b: int) -> int:
        """Return a - b, of one shape and one scale."""
        return self(Subtract(a, b))

    def shift(self, a: int, by: float) -> int:
        """Return a plus a public real number, rounded to the scale of `a`."""
        return self(Shift(a, round(by * 2.0 ** self.scale(a))))

    def times(self, a: int, by: int, *, rescaled: int = 0) -> int:
        """Return a times a public integer; the scale grows by `rescaled`."""
        return a if by == 1 and not rescaled else self(Times(a, by, rescaled))

    def reshape(self, a: int, shape: Shape) -> int:
        """Return a in another shape, rows first."""
        return a if shape == self.shape(a) else self(Reshape(a, shape))

    def transpose(self, a: int, axes: tuple[int, ...]) -> int:
        """Return a with its axes in another order."""
        return a if axes == tuple(range(len(axes))) else self(Transpose(a, axes))

    def part(self, a: int, axis: int, start: int, stop: int, step: int = 1) -> int:
        """Return a[start:stop:step] along one axis."""
        shape = self.shape(a)
        if (start, stop, step) == (0, shape[axis], 1):
            return a
        starts = tuple(start if each == axis else 0 for each in range(len(shape)))
        stops = tuple(stop if each == axis else size for each, size in enumerate(shape))
        return self(Slice(a, starts, stops, tuple(step if each == axis else 1 for each in range(len(shape)))))

    def concatenate(self, parts: Sequence[int], axis: int) -> int:
        """Return values of one kind and scale, one after the other along an axis."""
        return parts[0] if len(parts) == 1 else self(Concatenate(tuple(parts), axis))

    def broadcast(self, a: int, shape: Shape) -> int:
        """Return a repeated to a shape, as numpy broadcasts."""
        return a if shape == self.shape(a) else self(Broadcast(a, shape))

    def sum(self, a: int, axis: int) -> int:
        """Return the sum along an axis, which goes."""
        return self(Sum(a, axis))

    # --- compositions -------------------------------------------------------------------------------------------------

    def at_scale(self, a: int, scale: int) -> int:
        """Return the same real numbers at another scale: exact upwards, opened and truncated downwards."""
        more = scale - self.scale(a)
        return self.truncate(a, -more) if more < 0 else self.times(a, 1 << more, rescaled=more) if more else a

    def times_real(self, a: int, by: float, *, bits: int = SCALE) -> int:
        """Return a times a public real number, rounded to `bits` fraction bits, by which the scale grows."""
        return self(Times(a, round(by * 2.0**bits), bits))

    def is_positive(self, a: int, *, whole_bits: int) -> int:
        """Return the bit whether a real number, |a| < 2^whole_bits, is at least 0; -2^-16 < a < 0 may be taken for 0.

        Raises:
            ModelError: the window is too large.
        """
        scale = self.scale(a)
        window = scale + whole_bits
        if window > MOST_WINDOW:
            raise ModelError(f"Expected values below 2^{MOST_WINDOW - scale} where signs are asked; scale weights down")
        return self.sign(a, window=window, drop=max(scale - SCALE, 0))

    def relu(self, a: int, *, whole_bits: int, scale: int = SCALE) -> int:
        """Return max(a, 0) at a scale, SHARED, of |a| < 2^whole_bits: opened if it is not, one round for the sign."""
        a = self.open(a)
        return self.select(self.is_positive(a, whole_bits=whole_bits), a, bits=self.scale(a) - scale)

    def maximum(self, candidates: Sequence[int], *, whole_bits: int) -> int:
        """Return the largest of values of one shape and scale, elementwise, OPEN: two rounds for each halving.

        Args:
            candidates: at least one, |each| < 2^whole_bits: differences get one bit more.
        """
        left = [self.open(each) for each in candidates]
        while len(left) > 1:
            pairs = [(left[place], left[place + 1]) for place in range(0, len(left) - 1, 2)]
            rest = left[2 * len(pairs) :]
            left = [self._larger(a, b, whole_bits + 1) for a, b in pairs] + rest
        return left[0]

    def _larger(self, a: int, b: int, whole_bits: int) -> int:
        more = self.minus(a, b)
        return self.open(self.plus(b, self.select(self.is_positive(more, whole_bits=whole_bits), more)))
