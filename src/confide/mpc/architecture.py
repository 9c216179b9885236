"""What is public of a model that is computed on shares: its layers' kinds, shapes and windows, and no number of it.

It comes from the server to the client and the dealer, so everyone writes the same program for any number of rows. A
window is a number of bits: that values before a sign stay below 2^bits tells about the weights what those few bits say,
and nothing where all windows are `WHOLE_BITS`. The series of smooth functions depend on such bounds alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError, ProtocolError
from confide.model.attention import softmax
from confide.model.graph import (
    AveragePool,
    Conv,
    Graph,
    Layer,
    LayerNorm,
    Linear,
    MaxPool,
    Polynomial,
    Relu,
    Residual,
    Sigmoid,
    Softmax,
    Trees,
    sigmoid,
)
from confide.mpc.operations import MOST_ELEMENTS, SCALE, WORD_BITS
from confide.mpc.series import MOST_SHIFT
from confide.mpc.tree_layout import laid_out
from confide.structs import known

Matrix = NDArray[np.float64]

#: Bits k of a window unless a layer needs more: |values before a sign| < 2^k = 4096.
WHOLE_BITS = 12
#: Fewest and most bits of a window, and the largest degree of a polynomial.
LEAST_BITS, MOST_BITS, MOST_DEGREE = 1, 29, 16
#: Most fraction bits of weights. They are rounded once for all inputs and positions, so what they are off by
#: adds up over a deep network, where the roundings of activations cancel.
WEIGHT_SCALE = 20
#: Deepest trees: a perfect tree has 2^depth leaves.
MOST_TREE_DEPTH = 8

_FORMAT = 2
_MOST_PARTS, _MOST_DEPTH, _MOST_BYTES = 1000, 8, 1 << 22

End = Literal["", "sigmoid", "softmax"]
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


class Waves(Part, frozen=True):
    """A Fourier series (`periodic.Series`)."""

    period: int
    cosines: tuple[int, ...]
    sines: tuple[int, ...]


class SoftmaxPart(Part, frozen=True, tag="softmax"):
    """A softmax over channels, of numbers that differ by less than 2^whole_bits, at scale 32."""

    channels: int
    positions: int
    whole_bits: int
    powers: Waves
    inverse: Waves


class NormPart(Part, frozen=True, tag="norm"):
    """A layer norm over channels; `plain` if gain and bias went into what follows. For the rest see `root_series`."""

    channels: int
    positions: int
    plain: bool
    scale: int
    shift: int
    root: Waves


class AttentionPart(Part, frozen=True, tag="attention"):
    """Attention in several heads, of scores that differ by less than 2^whole_bits, at scale 32."""

    channels: int
    positions: int
    heads: int
    whole_bits: int
    powers: Waves
    inverse: Waves


class ArgmaxPart(Part, frozen=True, tag="argmax"):
    """The place of the largest of |values| < 2^whole_bits."""

    channels: int
    whole_bits: int


class TreesPart(Part, frozen=True, tag="trees"):
    """Perfect trees of one depth, of |features| and |thresholds| < 2^whole_bits."""

    features: int
    count: int
    depth: int
    outputs: int
    whole_bits: int


AnyPart = (
    LinearPart
    | ConvPart
    | AveragePart
    | MaxPart
    | ReluPart
    | SquarePart
    | PolynomialPart
    | SmoothPart
    | SoftmaxPart
    | NormPart
    | AttentionPart
    | ArgmaxPart
    | TreesPart
    | ResidualPart
)


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model without its numbers.

    Args:
        features, outputs: of a record.
        parts: the layers, in an order in which they are cheap (`arranged`).
        end: what the receiver does to the values that it is told: "sigmoid", "softmax", or "" for nothing.
        weight_scale: fraction bits of the weights that multiply a value at scale 16: `WEIGHT_SCALE`, or fewer if ranges
            leave no room for them.
        format: of this description.
    """

    features: int
    outputs: int
    parts: tuple[AnyPart, ...]
    end: End = ""
    weight_scale: int = WEIGHT_SCALE
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
        if not SCALE <= self.weight_scale <= WEIGHT_SCALE:
            raise ProtocolError(f"Expected weight_scale={self.weight_scale} of {SCALE} to {WEIGHT_SCALE}")
        for part in parts:
            if not _bounded(part):
                raise ProtocolError(f"Expected a layer whose sizes are bounded: {type(part).__name__}")

    def finish(self, y: Matrix) -> Matrix:
        """Return predictions from what was told, shape (rows, outputs)."""
        match self.end:
            case "sigmoid":
                return sigmoid(y)
            case "softmax":
                return softmax(y, axis=1)
            case _:
                return y


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
        case SoftmaxPart() | AttentionPart() | ArgmaxPart() | NormPart():
            return _compared(part)
        case TreesPart():
            whole = LEAST_BITS <= part.whole_bits < MOST_BITS and min(part.features, part.count, part.outputs) >= 1
            deep = 1 <= part.depth <= MOST_TREE_DEPTH
            return whole and deep and (part.count << part.depth) * max(part.features, part.outputs) <= MOST_ELEMENTS
        case _:
            return True  # their operations are checked with the program


def _compared(part: SoftmaxPart | AttentionPart | ArgmaxPart | NormPart) -> bool:
    positions = 1 if isinstance(part, ArgmaxPart) else part.positions
    heads = part.heads if isinstance(part, AttentionPart) else 1
    if min(part.channels, positions, heads) < 1 or max(part.channels, positions) > MOST_ELEMENTS:
        return False
    if isinstance(part, NormPart):
        in_range = 2 * SCALE <= part.scale < WORD_BITS and abs(part.shift) <= MOST_SHIFT
        return in_range and part.channels <= 1 << 10 and part.channels * positions <= MOST_ELEMENTS
    few = part.channels * positions <= MOST_ELEMENTS and heads * positions * positions <= MOST_ELEMENTS
    return LEAST_BITS <= part.whole_bits < MOST_BITS and part.channels % heads == 0 and (few or heads == 1)


# --- graphs in the order in which they are computed -------------------------------------------------------------------


def arranged(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return layers that compute the same, each ReLU after the max pools behind it, gains of layer norms moved.

    relu(max(x)) = max(relu(x)), and there are fewer numbers after a pool. Gain and bias of a layer norm go into the
    matrix or convolution behind it, if there is one (`takes_gain`).
    """
    done: list[Layer] = []
    for layer in layers:
        made = Residual(arranged(layer.body), arranged(layer.shortcut)) if isinstance(layer, Residual) else layer
        place = len(done)
        while isinstance(made, MaxPool) and place and isinstance(done[place - 1], Relu):
            place -= 1
        done.insert(place, made)
    for place, norm in enumerate(done):
        if isinstance(norm, LayerNorm) and (taker := takes_gain(norm.channels, done[place + 1 :])):
            done[place + taker] = _with_gain(done[place + taker], norm)
            ones, zeros = np.ones(norm.channels), np.zeros(norm.channels)
            done[place] = LayerNorm(ones, zeros, norm.positions, norm.epsilon)
    return tuple(done)


def takes_gain(channels: int, behind: Sequence[Layer]) -> int:
    """Return how many layers behind a layer norm its gain and bias go, 0 if nowhere; average pools let them through."""
    for number, layer in enumerate(behind, 1):
        match layer:
            case AveragePool() if layer.channels == channels:
                continue
            case Linear() if layer.weight.shape[1] % channels == 0:
                return number
            case Conv() if layer.channels == channels and not any(layer.padding):
                return number
            case _:
                return 0
    return 0


def _with_gain(layer: Layer, norm: LayerNorm) -> Layer:
    """Return a layer that multiplies its channels by a gain and adds a bias first."""
    match layer:
        case Linear(weight, bias):
            each = weight.shape[1] // norm.channels
            return Linear(weight * np.repeat(norm.gain, each), bias + weight @ np.repeat(norm.bias, each))
        case Conv(weight, bias):
            more = np.einsum("ochw,c->o", weight, norm.bias)
            return replace(layer, weight=weight * norm.gain[:, None, None], bias=bias + more)
        case _:
            raise ModelError(f"Expected a matrix or a convolution, got {layer!r}")


def named(layers: tuple[Layer, ...], prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield every layer of an arranged chain with its name: "0", "3", then what is inside: "3.body.0"."""
    for number, layer in enumerate(layers):
        name = f"{prefix}{number}"
        yield name, layer
        if isinstance(layer, Residual):
            yield from named(layer.body, f"{name}.body.")
            yield from named(layer.shortcut, f"{name}.shortcut.")


def computed(graph: Graph) -> tuple[Layer, ...]:
    """Return the layers that are computed on shares, arranged: all but a sigmoid or softmax at the end.

    The receiver does that. A sigmoid has an inverse, so its argument tells the receiver no more. What goes into a
    softmax tells it one number of each row more than the probabilities: the logarithm of their sum of powers.
    """
    return arranged(graph.layers[:-1] if end_of(graph) else graph.layers)


def end_of(graph: Graph) -> End:
    """Return what the receiver applies."""
    match graph.layers[-1]:
        case Sigmoid() if len(graph.layers) > 1:
            return "sigmoid"
        case Softmax(_, 1) if len(graph.layers) > 1:
            return "softmax"
        case _:
            return ""


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
        case LayerNorm(gain, bias):
            return {"gain": gain, "bias": bias}
        case Trees():
            return laid_out(layer).private
        case _:
            return {}


def variable_of(layer: Polynomial) -> tuple[float, int]:
    """Return the middle of a polynomial's interval, and the power of 2 that is at least half of its size."""
    middle = round((layer.low + layer.high) * 2.0**15) * 2.0**-16
    return middle, math.ceil(math.log2((layer.high - layer.low) / 2))
