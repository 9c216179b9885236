"""What parties compute together, as data: operations on tensors over the ring Z_2^64, in the order in which they run.

A `Program` is public: it holds shapes, scales and windows and no number of a model or of an input. Everyone who takes
part holds the same one and compares its hash first. Each technique reads it in its own way (a party computes on its
shares, a dealer makes the correlations, a planner counts), with one rule for each kind of operation.

Every operation makes one value, named by its place in the program. A value has a shape, a scale (a real number v is
held as round(v 2^scale) mod 2^64) and a kind:

    kind      what two parties with a dealer hold                       what three servers hold
    SHARED    [v], additive shares                                      shares whose sum is v, replicated or not yet
    OPEN      v^ = v + r, known to both, and [r]; the dealer knows r    shares, or v^ at two of them and r at the third
    BIT       g = bit xor beta, known to both, and shares of beta       shares of the bit

Local operations are linear; they keep the kind of their operands (two kinds meet as SHARED) and cost nothing. Messages
leave in `Load` of an input, in `Open`, `Sign` and `Reveal` alone: the depth of a program in these is its rounds, and
what does not depend on each other shares a round (`confide.mpc.schedule`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import msgspec

from confide.errors import ProtocolError
from confide.structs import known

#: Fraction bits of inputs and activations, and the fewest of weights.
SCALE = 16
#: Fraction bits of what `Periodic` gives.
PERIODIC_SCALE = 48
#: Largest rank, elements of one value and operations of one program that are accepted.
MOST_AXES, MOST_ELEMENTS, MOST_OPERATIONS = 6, 1 << 26, 1 << 16
#: Bits of a word.
WORD_BITS = 64

Shape = tuple[int, ...]


class Kind(StrEnum):
    """In which form a value is held; see the module's head."""

    SHARED = "shared"
    OPEN = "open"
    BIT = "bit"


class Operation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One step. Fields that are numbers of other operations come first."""


class Load(Operation, frozen=True, tag="load"):
    """A value that somebody brings.

    Args:
        name: which value; differs from all others of the program.
        shape, scale: of the value.
        kind: OPEN or SHARED.
        origin: "input" comes with each run from whoever holds the query, masked (OPEN) or as shares;
            "model" is fixed as long as the model is: an OPEN one is masked once for all runs, a SHARED one is never
            opened (a bias); "state" are shares (SHARED), or a masked value (OPEN), that an earlier program kept by
            `Keep`, or that were loaded before training began.
    """

    name: str
    shape: Shape
    scale: int
    kind: Kind
    origin: Literal["input", "model", "state"]


class Open(Operation, frozen=True, tag="open"):
    """OPEN: a SHARED value `a`, plus a fresh uniform mask, told to both. One round."""

    a: int


class MatMul(Operation, frozen=True, tag="matmul"):
    """SHARED: the product of two OPEN values, matrices in the last two axes, as numpy's matmul; `b` may be a matrix.

    Args:
        transpose_a, transpose_b: whether the last two axes are swapped first.
    """

    a: int
    b: int
    transpose_a: bool = False
    transpose_b: bool = False


class Convolve(Operation, frozen=True, tag="convolve"):
    """SHARED: the convolution of OPEN images `a` (n, c, h, w) with OPEN kernels `b` (o, c, kh, kw), as `model` has it.

    Args:
        stride: (down, right).
        padding: (top, left, bottom, right) rows and columns of zeros.
    """

    a: int
    b: int
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]


class Multiply(Operation, frozen=True, tag="multiply"):
    """SHARED: the product of two OPEN values of one shape, elementwise; `a` = `b` is a square."""

    a: int
    b: int


class Truncate(Operation, frozen=True, tag="truncate"):
    """SHARED: an OPEN value `a` in [-2^62, 2^62), divided by 2^bits: floor plus 0 or 1, without bias. Local.

    Args:
        bits: 1 to 62; the scale falls by as much (a division by 2^k may be meant: see `rescaled`).
        rescaled: by how much the scale falls, bits if None. bits > rescaled divides by 2^(bits - rescaled) as well.
    """

    a: int
    bits: int
    rescaled: int | None = None


class Sign(Operation, frozen=True, tag="sign"):
    """BIT: whether an OPEN value `a` is at least 0. One round.

    Exact for a >= 0 and for a <= -2^drop, for -2^window <= a < 2^window - 2^drop; between, -2^drop < a < 0 is taken as
    at least 0 with probability 1 - |a| / 2^drop. Outside the window the answer is wrong, and nothing leaks.

    Args:
        window: the bits of |a|, at most 62.
        drop: low bits that are not looked at.
    """

    a: int
    window: int
    drop: int


class Select(Operation, frozen=True, tag="select"):
    """SHARED: `bit` times an OPEN value `a` of its shape, truncated by `bits` (0: not at all). Local.

    Of a BIT that was made from `a`, or from any other value of the same shape.
    """

    bit: int
    a: int
    bits: int = 0


class Periodic(Operation, frozen=True, tag="periodic"):
    """SHARED: a public smooth function of an OPEN value `a`, elementwise, as a Fourier series; see `periodic`. Local.

    The scale of the result is `PERIODIC_SCALE`, whatever that of `a` is.

    Args:
        period: bits p, 1 to 56: the function has period 2^p units of `a`.
        cosines: c_0 .. c_m, |c_j| <= 2^31, in units of 2^-20.
        sines: s_1 .. s_m likewise, m from 1 to 96.
    """

    a: int
    period: int
    cosines: tuple[int, ...]
    sines: tuple[int, ...]


class Number(Operation, frozen=True, tag="number"):
    """SHARED: a BIT as 0 or 1, at scale 0. Local."""

    bit: int


class Add(Operation, frozen=True, tag="add"):
    """The sum of two values of one shape and one scale; OPEN if both are, else SHARED. Local."""

    a: int
    b: int


class Subtract(Operation, frozen=True, tag="subtract"):
    """The difference a - b of two values of one shape and one scale; OPEN if both are, else SHARED. Local."""

    a: int
    b: int


class Shift(Operation, frozen=True, tag="shift"):
    """`a` plus a public integer, the same for all elements, in units of 2^-scale. Local."""

    a: int
    by: int


class Times(Operation, frozen=True, tag="times"):
    """`a` times a public integer; the scale grows by `rescaled` bits (Times(a, 2^16, 16) is `a`, held finer). Local."""

    a: int
    by: int
    rescaled: int = 0


class Reshape(Operation, frozen=True, tag="reshape"):
    """`a` in another shape of as many elements, rows first. Also of a BIT."""

    a: int
    shape: Shape


class Transpose(Operation, frozen=True, tag="transpose"):
    """`a` with its axes in another order."""

    a: int
    axes: tuple[int, ...]


class Slice(Operation, frozen=True, tag="slice"):
    """`a`[start:stop:step] in each axis, 0 <= start < stop <= size, step >= 1. Also of a BIT."""

    a: int
    start: Shape
    stop: Shape
    step: Shape


class Concatenate(Operation, frozen=True, tag="concatenate"):
    """Values of one kind and scale, one after the other along an axis."""

    parts: tuple[int, ...]
    axis: int


class Broadcast(Operation, frozen=True, tag="broadcast"):
    """`a` repeated to a shape, as numpy broadcasts."""

    a: int
    shape: Shape


class Sum(Operation, frozen=True, tag="sum"):
    """The sum of `a` along one axis, which goes."""

    a: int
    axis: int


class Keep(Operation, frozen=True, tag="keep"):
    """`a`, SHARED or OPEN, kept by the parties under a name, for programs that run later. Local."""

    a: int
    name: str


class Reveal(Operation, frozen=True, tag="reveal"):
    """`a`, SHARED or a BIT, told to whoever receives the output, and to nobody else. One round; the value is final.

    With `bits` above 0 each share s leaves as floor(s / 2^bits), 0 <= s < 2^64, and the receiver adds them up and 1:
    modulo 2^(64 - bits) it has floor(a / 2^bits) plus 0 or 1, as `Truncate` gives, without an opening; the low bits of
    `a` stay hidden but for that rounding.

    Args:
        bits: 0 of a BIT, at most 62; the scale falls by as much.
    """

    a: int
    name: str = "y"
    bits: int = 0


AnyOperation = (
    Load
    | Open
    | MatMul
    | Convolve
    | Multiply
    | Truncate
    | Sign
    | Select
    | Number
    | Periodic
    | Add
    | Subtract
    | Shift
    | Times
    | Reshape
    | Transpose
    | Slice
    | Concatenate
    | Broadcast
    | Sum
    | Keep
    | Reveal
)


class Value(msgspec.Struct, frozen=True):
    """What an operation makes: its shape, scale and kind."""

    shape: Shape
    scale: int
    kind: Kind

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Program:
    """Operations, and what each makes.

    Args:
        operations: at least one; each names earlier ones alone.
        labels: for each operation the layer it belongs to, for reports ("conv 1", "relu 2"); () or as many. Not hashed.

    Raises:
        ProtocolError: operations that do not fit together: a program can come from a peer.
    """

    operations: tuple[AnyOperation, ...]
    labels: tuple[str, ...] = ()
    values: tuple[Value, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.operations) <= MOST_OPERATIONS or len(self.labels) not in (0, len(self.operations)):
            raise ProtocolError(f"Expected a program of 1 to {MOST_OPERATIONS} operations, got {len(self.operations)}")
        made: list[Value] = []
        for number, operation in enumerate(self.operations):
            value = made_by(operation, made, number)
            axes_fit = len(value.shape) <= MOST_AXES and all(size >= 1 for size in value.shape)
            if not (axes_fit and value.count <= MOST_ELEMENTS and 0 <= value.scale < WORD_BITS):
                raise ProtocolError(f"Expected operation {number} to make a value of a bounded shape and scale")
            made.append(value)
        for kinds in (Load, Keep, Reveal):
            names = [operation.name for operation in self.operations if isinstance(operation, kinds)]
            if len(set(names)) != len(names):
                raise ProtocolError("Expected what a program loads, keeps or reveals to have names of their own")
        object.__setattr__(self, "values", tuple(made))

    def encode(self) -> bytes:
        """Return the operations as MessagePack; `Program.decode` reads it."""
        return msgspec.msgpack.encode(self.operations)

    @staticmethod
    def decode(body: bytes) -> Program:
        """Return the program that `encode` wrote. Raises ProtocolError on anything else."""
        try:
            return Program(msgspec.msgpack.decode(body, type=known(tuple[AnyOperation, ...])))
        except (msgspec.DecodeError, UnicodeDecodeError):  # the second for text that is no UTF-8
            raise ProtocolError("Expected a program of known operations") from None

    @property
    def hash(self) -> bytes:
        """Return SHA-256 of the operations (32 bytes)."""
        return hashlib.sha256(b"confide mpc program v1\0" + self.encode()).digest()


def operands(operation: AnyOperation) -> tuple[int, ...]:
    """Return the numbers of the operations whose values an operation takes."""
    match operation:
        case Load():
            return ()
        case MatMul() | Convolve() | Multiply() | Add() | Subtract():
            return operation.a, operation.b
        case Select():
            return operation.bit, operation.a
        case Number():
            return (operation.bit,)
        case Concatenate():
            return operation.parts
        case _:
            return (operation.a,)


# --- what an operation makes ------------------------------------------------------------------------------------------


def made_by(operation: AnyOperation, made: Sequence[Value], number: int) -> Value:
    """Return what operation `number` makes of earlier values. Raises ProtocolError if they do not fit."""
    taken = operands(operation)
    if not all(0 <= earlier < number for earlier in taken):
        raise ProtocolError(f"Expected operation {number} to take values of earlier ones")
    given = [made[earlier] for earlier in taken]
    value = _interactive(operation, given) or _local(operation, given)
    if value is None:
        kinds = ", ".join(f"{one.kind} {one.shape}" for one in given)
        raise ProtocolError(f"Expected operands that fit operation {number}, {type(operation).__name__}; got {kinds}")
    return value


def _interactive(operation: AnyOperation, given: Sequence[Value]) -> Value | None:
    """Return the value of a load, a product, or an operation on opened values and bits; None if it does not fit."""
    first = given[0] if given else None
    match operation:
        case Load(_, shape, scale, kind):
            return None if kind is Kind.BIT else Value(shape, scale, kind)
        case Open() if first and first.kind is Kind.SHARED:
            return Value(first.shape, first.scale, Kind.OPEN)
        case MatMul() | Convolve() | Multiply() if all(one.kind is Kind.OPEN for one in given):
            shape = _product_shape(operation, given[0].shape, given[1].shape)
            return None if shape is None else Value(shape, given[0].scale + given[1].scale, Kind.SHARED)
        case Truncate(_, bits, rescaled) if first and first.kind is Kind.OPEN and 1 <= bits <= 62:
            return Value(first.shape, first.scale - (bits if rescaled is None else rescaled), Kind.SHARED)
        case Sign(_, window, drop) if first and first.kind is Kind.OPEN and 0 <= drop < window <= 62:
            return Value(first.shape, 0, Kind.BIT)
        case Select(_, _, bits) if [one.kind for one in given] == [Kind.BIT, Kind.OPEN] and 0 <= bits <= 62:
            return Value(given[1].shape, given[1].scale - bits, Kind.SHARED) if _alike(given) else None
        case Periodic(_, period, cosines, sines) if first and first.kind is Kind.OPEN and 1 <= period <= 56:
            terms_fit = 1 <= len(sines) <= 96 and len(cosines) == len(sines) + 1
            fits = terms_fit and all(abs(each) <= 1 << 31 for each in (*cosines, *sines))
            return Value(first.shape, PERIODIC_SCALE, Kind.SHARED) if fits else None
        case Number() if first and first.kind is Kind.BIT:
            return Value(first.shape, 0, Kind.SHARED)
        case Reveal(_, _, bits) if first and first.kind is not Kind.OPEN and 0 <= bits <= 62:
            return None if bits and first.kind is Kind.BIT else Value(first.shape, first.scale - bits, first.kind)
        case _:
            return None


def _local(operation: AnyOperation, given: Sequence[Value]) -> Value | None:
    """Return the value of a linear operation; None if its operands do not fit."""
    if not given:
        return None
    first = given[0]
    bits_too = isinstance(operation, Reshape | Slice)
    if not bits_too and any(one.kind is Kind.BIT for one in given):
        return None
    shape: Shape | None = first.shape
    scale, kind = first.scale, first.kind
    match operation:
        case Add() | Subtract() if _alike(given) and given[1].scale == scale:
            kind = Kind.OPEN if all(one.kind is Kind.OPEN for one in given) else Kind.SHARED
        case Shift() | Keep():
            pass
        case Times(_, _, rescaled) if 0 <= rescaled < WORD_BITS:
            scale += rescaled
        case Reshape(_, wanted) if min(wanted, default=1) >= 1 and math.prod(wanted) == first.count:
            shape = wanted
        case Transpose(_, axes) if sorted(axes) == list(range(len(shape))):
            shape = tuple(shape[axis] for axis in axes)
        case Slice(_, start, stop, step):
            shape = _sliced(first.shape, start, stop, step)
        case Concatenate(_, axis):
            shape = _joined(given, axis)
        case Broadcast(_, wanted):
            shape = wanted if _broadcasts(first.shape, wanted) else None
        case Sum(_, axis) if 0 <= axis < len(first.shape):
            shape = first.shape[:axis] + first.shape[axis + 1 :]
        case _:
            shape = None
    return None if shape is None else Value(shape, scale, kind)


def _alike(given: Sequence[Value]) -> bool:
    return all(one.shape == given[0].shape for one in given)


def _product_shape(operation: MatMul | Convolve | Multiply, a: Shape, b: Shape) -> Shape | None:
    match operation:
        case Multiply():
            return a if a == b else None
        case MatMul(_, _, transpose_a, transpose_b):
            if len(a) < 2 or len(b) < 2 or (len(b) > 2 and a[:-2] != b[:-2]):
                return None
            (m, k), (inner, n) = a[-2:], b[-2:]
            if transpose_a:
                m, k = k, m
            if transpose_b:
                inner, n = n, inner
            return (*a[:-2], m, n) if k == inner else None
        case Convolve(_, _, (down, right), (top, left, bottom, right_pad)):
            if len(a) != 4 or len(b) != 4 or a[1] != b[1] or min(down, right) < 1:
                return None
            if not all(0 <= pad <= MOST_ELEMENTS for pad in (top, left, bottom, right_pad)):
                return None
            height, width = a[2] + top + bottom - b[2], a[3] + left + right_pad - b[3]
            return None if min(height, width) < 0 else (a[0], b[0], height // down + 1, width // right + 1)


def _sliced(shape: Shape, start: Shape, stop: Shape, step: Shape) -> Shape | None:
    if not len(shape) == len(start) == len(stop) == len(step):
        return None
    if not all(0 <= a < b <= n and s >= 1 for n, a, b, s in zip(shape, start, stop, step, strict=True)):
        return None
    return tuple(-(-(b - a) // s) for a, b, s in zip(start, stop, step, strict=True))


def _joined(given: Sequence[Value], axis: int) -> Shape | None:
    first = given[0]
    if not 0 <= axis < len(first.shape):
        return None
    rest = [(one.kind, one.scale, one.shape[:axis], one.shape[axis + 1 :]) for one in given]
    if any(one != rest[0] for one in rest) or any(len(one.shape) != len(first.shape) for one in given):
        return None
    return (*first.shape[:axis], sum(one.shape[axis] for one in given), *first.shape[axis + 1 :])


def _broadcasts(shape: Shape, wanted: Shape) -> bool:
    if len(wanted) < len(shape):
        return False
    return all(size in (1, target) for size, target in zip(shape[::-1], wanted[::-1], strict=False))
