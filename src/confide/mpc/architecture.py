"""What is public of a model that is computed on shares: its layers' kinds, shapes and windows, and no number of it.

It comes from the server to the client and the dealer, so everyone writes the same program for any number of rows. A
window is a number of bits: that values before a sign stay below 2^bits tells about the weights what those few bits say,
and nothing where all windows are `WHOLE_BITS`. The series of smooth functions depend on such bounds alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.model.graph import AveragePool, Conv, Graph, Layer, Linear, MaxPool, Polynomial, Relu, Residual, sigmoid
from confide.mpc.operations import MOST_ELEMENTS
from confide.structs import known

Matrix = NDArray[np.float64]

#: Bits k of a window unless a layer needs more: |values before a sign| < 2^k = 4096.
WHOLE_BITS = 12
#: Fewest and most bits of a window, and the largest degree of a polynomial.
LEAST_BITS, MOST_BITS, MOST_DEGREE = 1, 29, 16

_FORMAT = 1
_MOST_PARTS, _MOST_DEPTH, _MOST_BYTES = 1000, 8, 1 << 22

Image = tuple[int, int, int]
Pair = tuple[int, int]
Sides = tuple[int, int, int, int]


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One layer, without its numbers. Shapes are those of `confide.model.layers`."""


class LinearPart(Part, frozen=True, tag="linear"):
    """A matrix and a bias."""

    inputs: int
    outputs: int


class ConvPart(Part, frozen=True, tag="conv"):
    """A convolution of an image (channels, height, width), with a bias for each of `outputs` channels."""

    image: Image
    outputs: int
    kernel: Pair
    stride: Pair
    padding: Sides


class AveragePart(Part, frozen=True, tag="average"):
    """An average pool."""

    image: Image
    kernel: Pair
    stride: Pair


class MaxPart(Part, frozen=True, tag="max"):
    """A max pool of |values| < 2^whole_bits."""

    image: Image
    kernel: Pair
    stride: Pair
    padding: Sides
    whole_bits: int


class ReluPart(Part, frozen=True, tag="relu"):
    """max(x, 0) of |x| < 2^whole_bits."""

    whole_bits: int


class SquarePart(Part, frozen=True, tag="square"):
    """x²."""


class PolynomialPart(Part, frozen=True, tag="polynomial"):
    """A polynomial in (x - middle) / 2^exponent with private coefficients."""

    degree: int
    middle: float
    exponent: int


class SmoothPart(Part, frozen=True, tag="smooth"):
    """A public Fourier series of x at scale 16: a sigmoid, say, on the interval that it was fitted to."""

    kind: str
    period: int
    cosines: tuple[int, ...]
    sines: tuple[int, ...]


class ResidualPart(Part, frozen=True, tag="residual"):
    """The sum of two chains of parts."""

    body: tuple[AnyPart, ...]
    shortcut: tuple[AnyPart, ...]


AnyPart = (
    LinearPart | ConvPart | AveragePart | MaxPart | ReluPart | SquarePart | PolynomialPart | SmoothPart | ResidualPart
)


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model without its numbers.

    Args:
        features, outputs: of a record.
        parts: the layers, in an order in which they are cheap (`arranged`).
        end: what the receiver does to the values that it is told: "sigmoid", or "" for nothing.
        format: of this description.
    """

    features: int
    outputs: int
    parts: tuple[AnyPart, ...]
    end: Literal["", "sigmoid"] = ""
    format: int = _FORMAT

    def encode(self) -> bytes:
        """Return the description as MessagePack."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(body: bytes) -> Architecture:
        """Return the description that `encode` wrote. Raises ProtocolError on anything else."""
        if len(body) > _MOST_BYTES:
            raise ProtocolError(f"Expected a description of at most {_MOST_BYTES} bytes")
        try:
            read = cast(Architecture, msgspec.msgpack.decode(body, type=known(Architecture)))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProtocolError("Expected the description of a model") from None
        read.require()
        return read

    def require(self) -> None:
        """Raise ProtocolError if a number is out of range; whether shapes fit shows when a program is written."""
        parts = list(_flat(self.parts, 0))
        bounded = 1 <= self.features <= MOST_ELEMENTS and 1 <= self.outputs <= MOST_ELEMENTS
        if self.format != _FORMAT or not bounded or not 1 <= len(parts) <= _MOST_PARTS:
            raise ProtocolError(f"Expected a model of format={_FORMAT} with up to {_MOST_PARTS} layers")
        for part in parts:
            if not _bounded(part):
                raise ProtocolError(f"Expected a layer whose sizes are bounded: {type(part).__name__}")

    def finish(self, y: Matrix) -> Matrix:
        """Return predictions from what was told, shape (rows, outputs)."""
        return sigmoid(y) if self.end == "sigmoid" else y


def _flat(parts: tuple[AnyPart, ...], depth: int) -> Iterator[AnyPart]:
    if depth > _MOST_DEPTH:
        raise ProtocolError(f"Expected residual blocks within each other at most {_MOST_DEPTH} deep")
    for part in parts:
        yield part
        if isinstance(part, ResidualPart):
            yield from _flat(part.body, depth + 1)
            yield from _flat(part.shortcut, depth + 1)


def _bounded(part: AnyPart) -> bool:
    match part:
        case LinearPart():
            return min(part.inputs, part.outputs) >= 1 and part.inputs * part.outputs <= MOST_ELEMENTS
        case ConvPart() | AveragePart() | MaxPart():
            padding = (0, 0, 0, 0) if isinstance(part, AveragePart) else part.padding
            least = min(*part.image, *part.kernel, *part.stride) >= 1 and min(padding) >= 0
            most = max(*part.image, *part.kernel, *part.stride, *padding) <= MOST_ELEMENTS
            padded = part.image[1] + padding[0] + padding[2], part.image[2] + padding[1] + padding[3]
            fits = part.kernel[0] <= padded[0] and part.kernel[1] <= padded[1]
            few = part.image[0] * padded[0] * padded[1] <= MOST_ELEMENTS
            if isinstance(part, MaxPart):
                least = least and LEAST_BITS <= part.whole_bits <= MOST_BITS
                fits = fits and all(a < b for a, b in zip(padding, (*part.kernel, *part.kernel), strict=True))
            if not isinstance(part, ConvPart):
                few = few and math.prod(part.kernel) <= 1 << 16
            return least and most and fits and few
        case ReluPart(bits):
            return LEAST_BITS <= bits <= MOST_BITS
        case PolynomialPart():
            in_range = -30 <= part.exponent <= 30 and abs(part.middle) < 2.0**30
            return 1 <= part.degree <= MOST_DEGREE and in_range
        case _:
            return True  # their operations are checked with the program


# --- graphs in the order in which they are computed -------------------------------------------------------------------


def arranged(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return layers that compute the same, with each ReLU after the max pools behind it.

    relu(max(x)) = max(relu(x)), and there are fewer numbers after a pool.
    """
    done: list[Layer] = []
    for layer in layers:
        made = Residual(arranged(layer.body), arranged(layer.shortcut)) if isinstance(layer, Residual) else layer
        place = len(done)
        while isinstance(made, MaxPool) and place and isinstance(done[place - 1], Relu):
            place -= 1
        done.insert(place, made)
    return tuple(done)


def named(layers: tuple[Layer, ...], prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield every layer of an arranged chain with its name: "0", "3", then what is inside: "3.body.0"."""
    for number, layer in enumerate(layers):
        name = f"{prefix}{number}"
        yield name, layer
        if isinstance(layer, Residual):
            yield from named(layer.body, f"{name}.body.")
            yield from named(layer.shortcut, f"{name}.shortcut.")


def computed(graph: Graph) -> tuple[Layer, ...]:
    """Return the layers that are computed on shares, arranged: all but a sigmoid at the end, which the receiver does.

    It has an inverse, so its argument tells the receiver no more.
    """
    return arranged(graph.layers[:-1] if ends_in_sigmoid(graph) else graph.layers)


def ends_in_sigmoid(graph: Graph) -> bool:
    """Return whether the receiver applies a sigmoid."""
    return type(graph.layers[-1]).__name__ == "Sigmoid" and len(graph.layers) > 1


def image_of(layer: Conv | AveragePool | MaxPool) -> Image:
    """Return (channels, height, width) of a layer's input."""
    return layer.channels, layer.height, layer.width


def private_of(layer: Layer) -> dict[str, Any]:
    """Return the numbers of a layer by the last part of their names; a polynomial's by powers of its variable."""
    match layer:
        case Linear(weight, bias) | Conv(weight, bias):
            return {"weight": weight, "bias": bias}
        case Polynomial():
            middle, exponent = variable_of(layer)
            chebyshev = np.polynomial.chebyshev.Chebyshev(layer.coefficients, [layer.low, layer.high])
            powers = chebyshev.convert(kind=np.polynomial.Polynomial)(
                np.polynomial.Polynomial([middle, 2.0**exponent])
            ).coef
            coefficients = np.zeros(layer.degree + 1)
            coefficients[: len(powers)] = powers
            return {"weight": coefficients[1:, None], "bias": coefficients[:1]}
        case _:
            return {}


def variable_of(layer: Polynomial) -> tuple[float, int]:
    """Return the middle of a polynomial's interval, and the power of 2 that is at least half of its size."""
    middle = round((layer.low + layer.high) * 2.0**15) * 2.0**-16
    return middle, math.ceil(math.log2((layer.high - layer.low) / 2))
