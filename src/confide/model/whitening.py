"""Features brought to one scale and freed of their common directions, by what is known before any record is seen.

Many features of images say nearly the same, and a few strong directions hide the weak ones that tell classes apart:
under the noise of differential privacy the weak ones are then lost. The usual remedy, the mean and covariance of the
records, costs budget that grows with their number squared. Here they come from synthetic images, which no record is in.

    symbol  here        meaning
    m, s    mean, ...   of each feature over the synthetic images; s is raised by a thousandth of its average
    C       (C)         correlation matrix of the features over the synthetic images
    W       matrix      (C + 1)^(-1/2): the symmetric one, which small changes of C change little
    r       length      median length of the synthetic rows ((x - m) / s) W, so that a usual row has length 1

A row x becomes ((x - m) / s) W / r, cut to [-1, 1]. The 1 beside C keeps directions that the synthetic images hardly
have from being blown up. Rows and W are rounded to a grid first, so that the product is exact.

The idea is ours; F. Tramer and D. Boneh, "Differentially private learning needs better features" (arXiv 2011.11660)
normalise by data of the task instead, and pay for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.exact import exact_product, on_grid
from confide.model.synthetic import synthetic

Matrix = NDArray[np.float64]

#: Of the features that are whitened: the matrix is made where a model is opened, in seconds.
MOST_WHITENED = 2048

_MOST_IMAGES, _MOST_PIXELS = 1 << 12, 1 << 24
_MOST_MAPPED = 1 << 29  # pixels in all channels of all synthetic images: some ten seconds
_DEVIATIONS = 64.0  # a feature further than this from the mean counts as this far
_ROW_BITS, _MATRIX_BITS = 17, 22  # partial sums: at most 64 sqrt(2048) times the norm 1 of a column, so below 2^13


class Whitening(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The recipe: which synthetic images the statistics come from.

    Args:
        images: "natural" or "strokes", see `synthetic`.
        count: of the images, at least 2 and at most 4,096.
        seed: of the images, 64 bits; public.
    """

    images: Literal["natural", "strokes"]
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not (2 <= self.count <= _MOST_IMAGES and -(2**63) <= self.seed < 2**63):
            raise ModelError(f"Expected 2 to {_MOST_IMAGES} synthetic images and a seed of 64 bits")

    @staticmethod
    def usual(images: Literal["natural", "strokes"], height: int, width: int, *, channels: int = 1) -> Whitening:
        """Return the recipe with as many images as take seconds, in so many channels."""
        most = min(_MOST_PIXELS, _MOST_MAPPED // channels) // (height * width)
        return Whitening(images=images, count=max(2, min(_MOST_IMAGES, most)))

    def check(self, features: int, height: int, width: int, *, channels: int = 1) -> None:
        """Refuse what would take minutes.

        Args:
            channels: maps that are made of each image.

        Raises:
            ModelError: more than 2,048 features, 16 million pixels in all synthetic images, or half a billion in their
                maps.
        """
        if self.count * height * width * channels > _MOST_MAPPED:
            raise ModelError(
                f"Expected at most {_MOST_MAPPED // (height * width * channels)} synthetic images of this size and so "
                f"many channels, got {self.count}; take fewer scales or angles, or smaller images"
            )
        if features > MOST_WHITENED or self.count * height * width > _MOST_PIXELS:
            raise ModelError(
                f"Expected at most {MOST_WHITENED} features of an image to whiten, got {features}; keep fewer "
                'frequencies, or take model.features = "scattering-mean"'
            )

    def drawn(self, height: int, width: int) -> Matrix:
        """Return the images, shape (count, height, width), from 0 to 1."""
        return synthetic(self.images, self.count, height, width, self.seed)


@dataclass(frozen=True, eq=False)
class Whitener:
    """The map of rows that a recipe stands for.

    Args:
        mean, deviation: of each feature, shape (features,), deviation > 0.
        matrix: W on its grid, shape (features, features).
        length: r > 0.

    **Guarantees**: a row that comes out depends on the row that went in alone, bit by bit, and is within [-1, 1].
    """

    mean: Matrix
    deviation: Matrix
    matrix: Matrix
    length: float

    @staticmethod
    def of(rows: Matrix) -> Whitener:
        """Return the map that the features of synthetic images give; at least 2 `rows`, not all the same."""
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        raised = deviation + 1e-3 * deviation.mean()
        scaled = (rows - mean) / np.where(deviation > 0.0, deviation, 1.0)
        values, vectors = np.linalg.eigh(scaled.T @ scaled / len(rows))
        matrix = on_grid((vectors / np.sqrt(np.maximum(values, 0.0) + 1.0)) @ vectors.T, _MATRIX_BITS)
        bare = Whitener(mean, raised, matrix, 1.0)
        return Whitener(mean, raised, matrix, float(np.median(np.linalg.norm(bare._product(rows), axis=1))))

    def apply(self, rows: Matrix) -> Matrix:
        """Return the whitened rows, shape (n, features)."""
        found = self._product(rows)
        found /= self.length
        return np.clip(found, -1.0, 1.0, out=found)

    def _product(self, rows: Matrix) -> Matrix:
        scaled = np.clip((rows - self.mean) / self.deviation, -_DEVIATIONS, _DEVIATIONS)
        return exact_product(scaled, _ROW_BITS, self.matrix, _MATRIX_BITS)
