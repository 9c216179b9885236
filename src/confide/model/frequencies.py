"""The slow waves of small maps: a discrete cosine transform of which the lowest spatial frequencies are kept.

    symbol  here         meaning
    S       maps         coefficients of a scattering transform, one map for each channel, 0 or above
    u       (u)          (S + 0.01)^(1/4): faint coefficients count nearly as much as strong ones
    c_ij    (waves)      mean over places (y, x) of u cos(pi (y + 1/2) i / height) cos(pi (x + 1/2) j / width)
    k       kept         c_ij with i + j < k stay: the map's mean, its slopes, and so on

What a map shows varies slowly, so most of it is in few waves, and few features mean few parameters that carry noise.
The root takes the part of the logarithm that is usual for scattering coefficients: it does the same work, and is two
square roots, which every machine rounds alike at every place.

Paper: J. Anden and S. Mallat, "Deep scattering spectrum" (2014), section 2, for logarithms of scattering coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.exact import exact_product, on_grid

Matrix = NDArray[np.float64]

_FLOOR = 0.01

# Partial sums stay below the largest u, which is less than 2, since the absolute entries of a wave add up to 1 at most.
_ROOT_BITS, _WAVE_BITS = 24, 28


@dataclass(frozen=True)
class Frequencies:
    """The transform of maps of one size.

    Args:
        channels: maps of an image.
        height, width: of a map.
        kept: k, 1 to the shorter side of a map.

    **Guarantees**: a row depends on its own maps alone, bit by bit; features are within [-1.01, 1.01].
    """

    channels: int
    height: int
    width: int
    kept: int

    def __post_init__(self) -> None:
        if not 1 <= self.kept <= min(self.height, self.width):
            raise ModelError(
                f"Expected frequencies={self.kept} from 1 to {min(self.height, self.width)}, the shorter side of a map "
                "of coefficients; take fewer"
            )

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Return (i, j) of the waves that are kept, in the order of the features of a channel."""
        return tuple((i, j) for i in range(self.kept) for j in range(self.kept - i))

    @property
    def features(self) -> int:
        """Return the number of features."""
        return self.channels * len(self.places)

    @cached_property
    def waves(self) -> Matrix:
        """Return the waves over the places of a map, shape (height * width, waves)."""
        down = np.cos(math.pi * (np.arange(self.height)[:, None] + 0.5) * np.arange(self.kept) / self.height)
        right = np.cos(math.pi * (np.arange(self.width)[:, None] + 0.5) * np.arange(self.kept) / self.width)
        columns = [np.outer(down[:, i], right[:, j]).ravel() for i, j in self.places]
        return on_grid(np.stack(columns, axis=1) / (self.height * self.width), _WAVE_BITS)

    def apply(self, maps: Matrix) -> Matrix:
        """Return the features, shape (n, features), channel by channel, of maps of shape (n, channels * places)."""
        roots = np.sqrt(np.sqrt(np.clip(maps, 0.0, 1.0) + _FLOOR))
        rows = roots.reshape(len(maps) * self.channels, self.height * self.width)
        return exact_product(rows, _ROOT_BITS, self.waves, _WAVE_BITS).reshape(len(maps), self.features)
