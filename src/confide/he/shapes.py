"""What is public of a linear map, its shape, and what is private, its weights: dense matrices and convolutions.

A shape says which input an output can depend on at all; layouts and schedules come from it alone. A convolution is kept
as its kernel: its matrix would not fit the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]

_LARGEST = 1 << 16


class Dense(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="dense"):
    """Every output depends on every input.

    Args:
        inputs, outputs: numbers in and out.
    """

    inputs: int
    outputs: int

    @property
    def fan_in(self) -> int:
        """Return how many inputs meet in one output."""
        return self.inputs

    def checked(self) -> Dense:
        """Return self if it is of a size in use. Raises ProtocolError if not."""
        if not (1 <= self.inputs <= _LARGEST and 1 <= self.outputs <= _LARGEST):
            raise ProtocolError("Expected layers of a size in use")
        return self

    def __str__(self) -> str:
        return f"dense {self.inputs} -> {self.outputs}"


class Convolution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="convolution"):
    """Images (channels, height, width), flat: output (o, y, x) depends on (c, y·sy + ky - top, x·sx + kx - left).

    Args:
        channels: (in, out).
        image: (height, width) of the input.
        kernel: (height, width).
        stride: (y, x).
        padding: (top, left, bottom, right), zeros.
    """

    channels: tuple[int, int]
    image: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def map(self) -> tuple[int, int]:
        """Return (height, width) of the output."""
        (height, width), (top, left, bottom, right) = self.image, self.padding
        return (
            (height + top + bottom - self.kernel[0]) // self.stride[0] + 1,
            (width + left + right - self.kernel[1]) // self.stride[1] + 1,
        )

    @property
    def inputs(self) -> int:
        """Return the numbers in."""
        return self.channels[0] * prod(self.image)

    @property
    def outputs(self) -> int:
        """Return the numbers out."""
        return self.channels[1] * prod(self.map)

    @property
    def taps(self) -> int:
        """Return the inputs that meet in one output: channels times kernel."""
        return self.channels[0] * prod(self.kernel)

    @property
    def fan_in(self) -> int:
        """Return how many inputs meet in one output."""
        return self.taps

    def checked(self) -> Convolution:
        """Return self if it is of a size in use. Raises ProtocolError if not."""
        sizes = (*self.channels, *self.image, *self.kernel, *self.stride)
        if any(not 1 <= size <= _LARGEST for size in sizes) or any(not 0 <= pad < 256 for pad in self.padding):
            raise ProtocolError("Expected convolutions of a size in use")
        if min(self.map) < 1 or max(self.inputs, self.outputs, self.taps) > _LARGEST:
            raise ProtocolError("Expected convolutions of a size in use")
        return self

    def source(self, output: Indices, tap: Indices) -> Indices:
        """Return the input behind each tap of each output, -1 in the padding.

        Args:
            output: places in the output map, y · width + x.
            tap: (channel, ky, kx) as one number.
        """
        ky, kx = tap // self.kernel[1] % self.kernel[0], tap % self.kernel[1]
        y = output // self.map[1] * self.stride[0] + ky - self.padding[0]
        x = output % self.map[1] * self.stride[1] + kx - self.padding[1]
        inside = (y >= 0) & (y < self.image[0]) & (x >= 0) & (x < self.image[1])
        place = (tap // prod(self.kernel) * self.image[0] + y) * self.image[1] + x
        return np.where(inside, place, -1)

    def taps_of(
        self, results: Indices, inputs: Indices
    ) -> tuple[NDArray[np.bool_], Indices, Indices, Indices, Indices]:
        """Return whether outputs and inputs are connected, and by which entry (out, in, ky, kx) of the kernel."""
        both = (results >= 0) & (inputs >= 0)
        o, i = np.where(both, results, 0), np.where(both, inputs, 0)
        (height, width), (rows, columns) = self.image, self.map
        ky = i // width % height + self.padding[0] - o // columns % rows * self.stride[0]
        kx = i % width + self.padding[1] - o % columns * self.stride[1]
        both &= (ky >= 0) & (ky < self.kernel[0]) & (kx >= 0) & (kx < self.kernel[1])
        ky, kx = np.where(both, ky, 0), np.where(both, kx, 0)
        return both, o // (rows * columns), i // (height * width), ky, kx

    def __str__(self) -> str:
        kernel, stride = ("x".join(map(str, pair)) for pair in (self.kernel, self.stride))
        return f"convolution {self.channels[0]} -> {self.channels[1]} channels, {kernel}, stride {stride}"


Shape = Dense | Convolution


@dataclass(frozen=True, slots=True, eq=False)
class LinearMap:
    """y = W x + b with its weights; private.

    Args:
        shape: public.
        weight: (outputs, inputs) of a dense map, (out, in, kernel height, kernel width) of a convolution.
        bias: shape (outputs,).
    """

    shape: Shape
    weight: Matrix
    bias: Matrix

    def __repr__(self) -> str:
        return f"LinearMap({self.shape})"

    def at(self, results: Indices, inputs: Indices) -> Matrix:
        """Return W[o, i] for arrays of labels of one shape, 0 where a label is -1 or the two are not connected."""
        if isinstance(self.shape, Dense):
            both = (results >= 0) & (inputs >= 0)
            return np.where(both, self.weight[np.where(both, results, 0), np.where(both, inputs, 0)], 0.0)
        both, o, i, ky, kx = self.shape.taps_of(results, inputs)
        return np.where(both, self.weight[o, i, ky, kx], 0.0)

    def connected(self, results: Indices, inputs: Indices) -> NDArray[np.bool_]:
        """Return for arrays of labels of one shape whether an output can depend on an input."""
        if isinstance(self.shape, Dense):
            return (results >= 0) & (inputs >= 0)
        return self.shape.taps_of(results, inputs)[0]

    def scaled(self, factor: float) -> LinearMap:
        """Return the map with every output multiplied by `factor`."""
        return LinearMap(self.shape, self.weight * factor, self.bias * factor)

    def of_scaled(self, factor: float) -> LinearMap:
        """Return the map for inputs that come divided by `factor`."""
        return LinearMap(self.shape, self.weight * factor, self.bias)

    def range(self, low: Matrix, high: Matrix) -> tuple[Matrix, Matrix]:
        """Return the interval of each output over a box of inputs; each of low and high has shape (inputs,)."""
        up, down = np.maximum(self.weight, 0.0), np.minimum(self.weight, 0.0)
        least = self.applied(up, low) + self.applied(down, high) + self.bias
        most = self.applied(up, high) + self.applied(down, low) + self.bias
        return least, most

    def apply(self, x: Matrix) -> Matrix:
        """Return y for one x, shape (inputs,), or for many, shape (rows, inputs)."""
        return self.applied(self.weight, x) + self.bias

    def applied(self, weight: Matrix, x: Matrix) -> Matrix:
        """Return W x for other weights of the same shape, without the bias."""
        if isinstance(self.shape, Dense):
            return x @ weight.T
        flat = np.atleast_2d(x)
        done = np.stack([self._convolved(weight, row) for row in flat])
        return done.reshape((*x.shape[:-1], self.shape.outputs))

    def _convolved(self, weight: Matrix, x: Matrix) -> Matrix:
        shape = self.shape
        assert isinstance(shape, Convolution)
        (top, left, bottom, right), (sy, sx) = shape.padding, shape.stride
        image = np.pad(x.reshape(shape.channels[0], *shape.image), ((0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(image, shape.kernel, axis=(1, 2))[:, ::sy, ::sx]
        return np.tensordot(weight, windows, axes=([1, 2, 3], [0, 3, 4])).ravel()
