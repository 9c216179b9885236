"""A random projection of features from a public seed: fewer features, of which no record had any influence on one.

    symbol  here      meaning
    d       features  of a row that goes in
    m       outputs   of a row that comes out
    D       signs     d random signs
    H       (H)       the Hadamard matrix of the next power of two p >= d, divided by sqrt(p): orthogonal
    S       rows      m of its p rows, chosen at random

A row x becomes S H D (x, 0 ... 0). The rows of S H D are orthonormal, so no row and no distance of two rows grows; on
average a squared length shrinks by m / p, and close to that for nearly every choice of the seed. H is applied by
additions and subtractions alone, in a fixed order: every machine gets the same bits.

Paper: N. Ailon and B. Chazelle, "The fast Johnson-Lindenstrauss transform" (2009); J. Tropp, "Improved analysis of the
subsampled randomized Hadamard transform" (2011), theorem 1.3 for what m keeps of the geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.crypto.random import public_stream
from confide.errors import DataError, ModelError

Matrix = NDArray[np.float64]

#: Of a row that goes in.
MOST_FEATURES = 1 << 16

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class RandomProjection:
    """The projection of rows of one length.

    Args:
        features: of a row, 1 to 65,536.
        outputs: features that are left, 1 to `features`.
        seed: of the public choice of signs and rows, a 64-bit integer.

    Example:
        >>> import numpy as np
        >>> RandomProjection(features=784, outputs=100, seed=1).apply(np.ones((2, 784))).shape
        (2, 100)

    **Guarantees**: linear; a row that comes out is never longer (L2) than the row that went in; it depends on that row
    alone and has the same bits on every machine.
    """

    features: int
    outputs: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.features <= MOST_FEATURES or not 1 <= self.outputs <= self.features:
            raise ModelError(
                f"Expected outputs={self.outputs} from 1 to the features={self.features} that are projected, which are "
                f"at most {MOST_FEATURES}; take fewer outputs"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ModelError(f"Expected a seed of 64 bits, got {self.seed}; take a smaller number")

    @property
    def size(self) -> int:
        """Return the order of the Hadamard matrix."""
        return 1 << (self.features - 1).bit_length()

    @cached_property
    def signs(self) -> Matrix:
        """Return the signs, 1.0 or -1.0, shape (features,)."""
        # Raw words of the generator: their stream is fixed, that of its distributions may change with numpy's version.
        words = public_stream(self.seed, "projection signs").bit_generator.random_raw(self.features)
        return np.where(np.asarray(words, np.uint64) >> np.uint64(63), -1.0, 1.0)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Return the chosen rows of the Hadamard matrix, ascending, shape (outputs,)."""
        words = public_stream(self.seed, "projection rows").bit_generator.random_raw(self.size)
        return np.sort(np.argsort(np.asarray(words, np.uint64), kind="stable")[: self.outputs]).astype(np.int64)

    def apply(self, x: ArrayLike) -> Matrix:
        """Return the projected rows, float64, shape (n, outputs).

        Args:
            x: finite real numbers, shape (n, features).

        Raises:
            DataError: another shape, or numbers that are not finite or not real.
        """
        values = np.asarray(x)
        if values.dtype.kind not in "fiub" or values.ndim != 2 or values.shape[1] != self.features:
            raise DataError(
                f"Expected numbers of shape (n, {self.features}) to project, got {values.dtype} of shape {values.shape}"
            )
        out = np.empty((len(values), self.outputs))
        step = max(1, _BLOCK_BYTES // (8 * self.size))
        for start in range(0, len(values), step):
            block = np.zeros((min(step, len(values) - start), self.size))
            block[:, : self.features] = values[start : start + step] * self.signs
            if not np.isfinite(block).all():
                raise DataError("Expected finite features; correct the row that has others")
            out[start : start + step] = _hadamard(block)[:, self.rows]
        return out / np.sqrt(float(self.size))


def _hadamard(x: Matrix) -> Matrix:
    """Return each row times the Hadamard matrix in Sylvester's order, not divided; p log2 p additions a row."""
    n, size = x.shape
    width = 1
    while width < size:
        pairs = x.reshape(n, size // (2 * width), 2, width)
        x = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(n, size)
        width *= 2
    return x
