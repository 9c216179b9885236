"""The layers of a graph: what each computes, on which shapes, and which of its numbers are private.

Vectors are flat, shape (batch, features). An image of c channels is one such vector, channel after channel and row
after row in each: feature (k h + i) w + j is channel k, row i, column j of an image c x h x w.

A layer is one class here; one rule in `applied`, in `width_after` and, if it holds private numbers, in `parts_of` and
`with_parts`; one in `intervals`; and one in each backend that can run it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.attention import Argmax, Attention, LayerNorm, Softmax
from confide.model.max_pool import MaxPool
from confide.model.trees import Trees

Matrix = NDArray[np.float64]

#: Most numbers that one layer gives for one record, its padding included.
MOST_UNITS = 1 << 24
#: Largest degree of a polynomial.
MOST_DEGREE = 255

_BLOCK_NUMBERS = 1 << 22  # of the windows that are copied at once


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """y = x Wᵀ + b.

    Args:
        weight: float64, shape (outputs, inputs).
        bias: float64, shape (outputs,).
    """

    weight: Matrix
    bias: Matrix

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1] or not self.weight.size:
            raise ModelError(
                f"Expected weight (outputs, inputs) and bias (outputs,), got {self.weight.shape}, {self.bias.shape}"
            )
        _require_finite(self.weight, self.bias)

    def __repr__(self) -> str:  # parameters are private, the shape is not
        return f"Linear({self.weight.shape[1]} -> {self.weight.shape[0]})"


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """y[o, i, j] = b[o] + sum over k, s, t of W[o, k, s, t] x[k, i stride + s - top, j stride + t - left].

    Outside the image x is 0. This is the convolution of torch and ONNX, a correlation, with one group.

    Args:
        weight: float64, shape (channels out, channels in, kernel height, kernel width).
        bias: float64, shape (channels out,).
        height, width: of the input, in pixels, at least 1.
        stride: (down, right), at least 1.
        padding: (top, left, bottom, right) rows and columns of zeros around the input, at least 0: ONNX's order.

    Raises:
        ModelError: shapes that do not fit, or parameters that are not finite.
    """

    weight: Matrix
    bias: Matrix
    height: int
    width: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        if self.weight.ndim != 4 or self.bias.shape != self.weight.shape[:1] or not self.weight.size:
            raise ModelError(
                "Expected weight (channels out, channels in, height, width) and bias (channels out,), "
                f"got {self.weight.shape}, {self.bias.shape}"
            )
        if len(self.padding) != 4 or min(self.padding) < 0:
            raise ModelError(f"Expected padding (top, left, bottom, right) of at least 0, got {self.padding}")
        top, left, bottom, right = self.padding
        padded = self.height + top + bottom, self.width + left + right
        _require_windows(padded, self.kernel, self.stride, max(self.weight.shape[:2]), (self.height, self.width))
        _require_finite(self.weight, self.bias)

    def __repr__(self) -> str:
        shape = f"{self.channels}x{self.height}x{self.width} -> {len(self.bias)}x{self.out_height}x{self.out_width}"
        return f"Conv({shape}, kernel {_by(self.kernel)}, stride {_by(self.stride)})"

    @property
    def channels(self) -> int:
        """Return the channels of the input."""
        return self.weight.shape[1]

    @property
    def kernel(self) -> tuple[int, int]:
        """Return (height, width) of the kernel."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def out_height(self) -> int:
        """Return the rows of the output."""
        return (self.height + self.padding[0] + self.padding[2] - self.kernel[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Return the columns of the output."""
        return (self.width + self.padding[1] + self.padding[3] - self.kernel[1]) // self.stride[1] + 1

    @property
    def inputs(self) -> int:
        """Return the features of a record that the layer takes."""
        return self.channels * self.height * self.width

    @property
    def outputs(self) -> int:
        """Return the features that it gives."""
        return len(self.bias) * self.out_height * self.out_width


@dataclass(frozen=True, slots=True)
class AveragePool:
    """y[k, i, j] = the mean of channel k of x over a kernel's window, without padding.

    Args:
        channels, height, width: of the input, at least 1.
        kernel, stride: (down, right), at least 1; the kernel fits the image.

    Raises:
        ModelError: shapes that do not fit.
    """

    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self) -> None:
        size = self.height, self.width
        _require_windows(size, self.kernel, self.stride, self.channels, size)

    def __repr__(self) -> str:
        shape = f"{self.channels}x{self.height}x{self.width} -> {self.channels}x{self.out_height}x{self.out_width}"
        return f"AveragePool({shape}, kernel {_by(self.kernel)}, stride {_by(self.stride)})"

    @property
    def out_height(self) -> int:
        """Return the rows of the output."""
        return (self.height - self.kernel[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Return the columns of the output."""
        return (self.width - self.kernel[1]) // self.stride[1] + 1

    @property
    def inputs(self) -> int:
        """Return the features of a record that the layer takes."""
        return self.channels * self.height * self.width

    @property
    def outputs(self) -> int:
        """Return the features that it gives."""
        return self.channels * self.out_height * self.out_width


@dataclass(frozen=True, slots=True)
class Square:
    """y = x², elementwise: the activation that encrypted arithmetic has for free."""


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """y = 1 / (1 + exp(-x)), elementwise."""


@dataclass(frozen=True, slots=True)
class Relu:
    """y = max(x, 0), elementwise."""


@dataclass(frozen=True, slots=True)
class Tanh:
    """y = tanh(x), elementwise."""


@dataclass(frozen=True, slots=True)
class Gelu:
    """y = x Phi(x), elementwise, Phi the distribution function of the standard normal: the exact form, no tanh."""


@dataclass(frozen=True, slots=True, eq=False)
class Polynomial:
    """y = sum over k of c_k T_k(u), u = (2 x - low - high) / (high - low), elementwise, T_k Chebyshev's polynomials.

    Args:
        coefficients: float64, shape (degree + 1,), the constant first; a degree from 1 to 255.
        low, high: the interval that the polynomial is made for, low < high. Outside of it y grows fast.

    Raises:
        ModelError: it is no such polynomial.
    """

    coefficients: Matrix
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.coefficients.ndim != 1 or not 2 <= len(self.coefficients) <= MOST_DEGREE + 1:
            raise ModelError(f"Expected a polynomial of degree 1 to {MOST_DEGREE}, got {self.coefficients.shape}")
        if not (math.isfinite(self.high - self.low) and self.low < self.high):
            raise ModelError("Expected a polynomial on an interval, low < high, both finite")
        _require_finite(self.coefficients)

    def __repr__(self) -> str:
        return f"Polynomial(degree {self.degree})"

    @property
    def degree(self) -> int:
        """Return the degree, which is public."""
        return len(self.coefficients) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """y = body(x) + shortcut(x), two chains of layers that take one vector and whose results add up.

    Args:
        body: at least one layer, no trees.
        shortcut: no trees; () is x itself.

    Raises:
        ModelError: a body without layers, or trees in one of the chains.
    """

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        if not self.body or any(isinstance(layer, Trees) for layer in (*self.body, *self.shortcut)):
            raise ModelError("Expected a residual block of at least one layer in its body, and no trees in it")

    def __repr__(self) -> str:
        shortcut = ", ".join(map(repr, self.shortcut)) or "x"
        return f"Residual({', '.join(map(repr, self.body))} + {shortcut})"


Layer = (
    Linear
    | Conv
    | AveragePool
    | MaxPool
    | Square
    | Sigmoid
    | Relu
    | Tanh
    | Gelu
    | Polynomial
    | Softmax
    | LayerNorm
    | Attention
    | Argmax
    | Residual
    | Trees
)


def _by(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]}x{sizes[1]}"


def _require_finite(*arrays: Matrix) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ModelError("Expected finite parameters; the training diverged: lower the learning rate")


def _require_windows(
    padded: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], channels: int, size: tuple[int, int]
) -> None:
    """Raise ModelError unless a kernel moves over a padded image by a stride."""
    if len(kernel) != 2 or len(stride) != 2 or min(*kernel, *stride, *size, channels) < 1:
        raise ModelError("Expected an image, a kernel (height, width) and a stride (down, right) of at least 1 each")
    if kernel[0] > padded[0] or kernel[1] > padded[1]:
        raise ModelError(f"Expected a kernel that fits the image of {_by(padded)} pixels, got {_by(kernel)}")
    if channels * padded[0] * padded[1] > MOST_UNITS:
        raise ModelError(f"Expected images of at most {MOST_UNITS} numbers; take fewer pixels or channels")


# --- shapes -----------------------------------------------------------------------------------------------------------


def inputs_of(layer: Layer) -> int | None:
    """Return the features that a layer takes; None if it takes any number of them."""
    match layer:
        case Linear(weight, _):
            return weight.shape[1]
        case Conv() | AveragePool() | MaxPool() | Softmax() | LayerNorm() | Attention() | Argmax():
            return layer.inputs
        case Trees():
            return layer.features
        case Residual(body, shortcut):
            found = (inputs_of(one) for chain in (body, shortcut) for one in chain[:1])
            return next((width for width in found if width is not None), None)
        case _:
            return None


def width_after(layer: Layer, inputs: int, where: str = "a layer") -> int:
    """Return the features that a layer gives for `inputs` of them.

    Raises:
        ModelError: it takes another number.
    """
    wanted = inputs_of(layer)
    if wanted is not None and wanted != inputs:
        raise ModelError(f"Expected {where} to take {inputs} inputs, got {wanted}")
    match layer:
        case Linear(weight, _):
            return weight.shape[0]
        case Conv() | AveragePool() | MaxPool() | Attention():
            return layer.outputs
        case Argmax():
            return 1
        case Trees():
            return len(layer.offset)
        case Residual(body, shortcut):
            found = _width_after_all(body, inputs, where), _width_after_all(shortcut, inputs, where)
            if found[0] != found[1]:
                raise ModelError(f"Expected {where} to add vectors of one size, got {found[0]} and {found[1]}")
            return found[0]
        case _:
            return inputs


def _width_after_all(layers: Sequence[Layer], inputs: int, where: str) -> int:
    for layer in layers:
        inputs = width_after(layer, inputs, f"a layer inside {where}")
    return inputs


# --- private numbers --------------------------------------------------------------------------------------------------


def parts_of(layer: Layer) -> tuple[NDArray[Any], ...]:
    """Return the private arrays of a layer, in the order in which they make up one vector of parameters."""
    match layer:
        case Linear(weight, bias) | Conv(weight, bias):
            return weight, bias
        case Polynomial(coefficients):
            return (coefficients,)
        case LayerNorm(gain, bias):
            return gain, bias
        case Residual(body, shortcut):
            return tuple(part for inner in (*body, *shortcut) for part in parts_of(inner))
        case Trees():
            return layer.feature, layer.threshold, layer.value, layer.offset
        case _:
            return ()


def with_parts(layer: Layer, parts: Sequence[Matrix]) -> Layer:
    """Return `layer` with other values of `parts_of`, in the same shapes; of trees, the children stay.

    Raises:
        ModelError: values that no such layer has.
    """
    match layer:
        case Linear():
            return Linear(parts[0], parts[1])
        case Conv():
            return replace(layer, weight=parts[0], bias=parts[1])
        case Polynomial():
            return replace(layer, coefficients=parts[0])
        case LayerNorm():
            return replace(layer, gain=parts[0], bias=parts[1])
        case Residual(body, shortcut):
            given = iter(parts)
            made = [with_parts(inner, [next(given) for _ in parts_of(inner)]) for inner in (*body, *shortcut)]
            return Residual(tuple(made[: len(body)]), tuple(made[len(body) :]))
        case Trees():
            if not (parts[0] == np.rint(parts[0])).all():
                raise ModelError("Expected whole numbers as the features that nodes compare")
            feature, threshold, value, offset = parts[0].astype(np.int64), *parts[1:]
            return replace(layer, feature=feature, threshold=threshold, value=value, offset=offset)
        case _:
            return layer


# --- what a layer computes --------------------------------------------------------------------------------------------


def applied(layer: Layer, x: Matrix) -> Matrix:
    """Return what a layer gives for x, float64, shape (batch, its inputs): shape (batch, its outputs)."""
    match layer:
        case Linear(weight, bias):
            return x @ weight.T + bias
        case Conv():
            return _convolved(layer, x)
        case AveragePool():
            return _pooled(layer, x)
        case Square():
            return x * x
        case Sigmoid():
            return sigmoid(x)
        case Relu():
            return np.maximum(x, 0.0)
        case Tanh():
            return np.tanh(x)
        case Gelu():
            return gelu(x)
        case Polynomial(coefficients, low, high):
            return chebyshev((2.0 * x - (low + high)) / (high - low), coefficients)
        case Residual(body, shortcut):
            return _applied_all(body, x) + _applied_all(shortcut, x)
        case MaxPool() | Softmax() | LayerNorm() | Attention() | Argmax() | Trees():
            return layer.apply(x)


def chebyshev(u: Matrix, coefficients: Matrix) -> Matrix:
    """Return the sum over k of c_k T_k(u)."""
    return np.asarray(np.polynomial.chebyshev.chebval(u, coefficients), np.float64)


def sigmoid(x: Matrix) -> Matrix:
    """Return 1 / (1 + exp(-x)) without overflow for any finite x."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def gelu(x: Matrix) -> Matrix:
    """Return x Phi(x), Phi the standard normal's distribution function; exact in its tails too."""
    tail = np.frompyfunc(math.erfc, 1, 1)(-np.asarray(x) * math.sqrt(0.5))
    return 0.5 * x * np.asarray(tail, np.float64)


def _applied_all(layers: Sequence[Layer], x: Matrix) -> Matrix:
    for layer in layers:
        x = applied(layer, x)
    return x


def _windows(x: Matrix, kernel: tuple[int, int], stride: tuple[int, int]) -> Matrix:
    """Return the windows of images (batch, channels, h, w): (batch, channels, out h, out w, kernel h, kernel w)."""
    found = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    return found[:, :, :: stride[0], :: stride[1]]


def _convolved(layer: Conv, x: Matrix) -> Matrix:
    top, left, bottom, right = layer.padding
    images = x.reshape(len(x), layer.channels, layer.height, layer.width)
    images = np.pad(images, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = _windows(images, layer.kernel, layer.stride)
    flat = layer.weight.reshape(len(layer.bias), -1)
    pixels = layer.out_height * layer.out_width
    step = max(1, _BLOCK_NUMBERS // (pixels * flat.shape[1]))
    y = np.empty((len(x), len(layer.bias), pixels))
    for start in range(0, len(x), step):
        block = windows[start : start + step].transpose(0, 1, 4, 5, 2, 3).reshape(-1, flat.shape[1], pixels)
        y[start : start + step] = flat @ block + layer.bias[:, None]
    return y.reshape(len(x), layer.outputs)


def _pooled(layer: AveragePool, x: Matrix) -> Matrix:
    images = x.reshape(len(x), layer.channels, layer.height, layer.width)
    means = np.mean(_windows(images, layer.kernel, layer.stride), axis=(4, 5), dtype=np.float64)
    return np.asarray(means).reshape(len(x), layer.outputs)
