"""The largest number of each window of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError

Matrix = NDArray[np.float64]

#: Most numbers that one layer gives for one record, its padding included.
MOST_NUMBERS = 1 << 24


@dataclass(frozen=True, slots=True)
class MaxPool:
    """y[k, i, j] = the largest number of channel k of x in a kernel's window; outside the image there is none.

    Args:
        channels, height, width: of the input, at least 1.
        kernel, stride: (down, right), at least 1; the kernel fits the padded image.
        padding: (top, left, bottom, right) rows and columns around the input, less than the kernel, so that no window
            lies wholly outside: ONNX's order.

    Raises:
        ModelError: shapes that do not fit.
    """

    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        if len(self.kernel) != 2 or len(self.stride) != 2 or len(self.padding) != 4:
            raise ModelError("Expected a kernel (height, width), a stride (down, right) and four paddings")
        if min(self.channels, self.height, self.width, *self.kernel, *self.stride) < 1:
            raise ModelError("Expected an image, a kernel (height, width) and a stride (down, right) of at least 1")
        if not all(0 <= pad < size for pad, size in zip(self.padding, (*self.kernel, *self.kernel), strict=True)):
            raise ModelError(f"Expected padding of at least 0 and less than the kernel, got {self.padding}")
        top, left, bottom, right = self.padding
        padded = self.height + top + bottom, self.width + left + right
        if self.kernel[0] > padded[0] or self.kernel[1] > padded[1]:
            raise ModelError(f"Expected a kernel that fits the image of {padded[0]}x{padded[1]} pixels")
        if self.channels * padded[0] * padded[1] > MOST_NUMBERS:
            raise ModelError(f"Expected images of at most {MOST_NUMBERS} numbers; take fewer pixels or channels")

    def __repr__(self) -> str:
        shape = f"{self.channels}x{self.height}x{self.width} -> {self.channels}x{self.out_height}x{self.out_width}"
        kernel, stride = (f"{down}x{right}" for down, right in (self.kernel, self.stride))
        return f"MaxPool({shape}, kernel {kernel}, stride {stride})"

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
        return self.channels * self.out_height * self.out_width

    def apply(self, x: Matrix) -> Matrix:
        """Return y, shape (batch, outputs), of x, shape (batch, inputs)."""
        top, left, bottom, right = self.padding
        images = x.reshape(len(x), self.channels, self.height, self.width)
        images = np.pad(images, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(images, self.kernel, axis=(2, 3))
        found = windows[:, :, :: self.stride[0], :: self.stride[1]].max(axis=(4, 5))
        return np.asarray(found, np.float64).reshape(len(x), self.outputs)
