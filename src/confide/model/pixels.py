"""The rule of a column of images: its pixels, or features of them that are fixed in advance."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.frequencies import Frequencies
from confide.model.rule import check_pixels, check_text
from confide.model.scattering import LARGEST_SIDE, Scattering
from confide.model.whitening import Whitener, Whitening

Matrix = NDArray[np.float64]

_BLOCK_NUMBERS = 1 << 20  # of one intermediate array
_UNIT = (0.0, 1.0)


class Pixels(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="pixels", tag_field="rule", dict=True
):
    """A grey image, mapped linearly from [low, high] to `to`, then as it is or through a scattering transform.

    Args:
        name: the raw column.
        height, width: of every image, in pixels, 1 to 256.
        low, high: public bounds of a pixel, low < high; one beyond them is refused.
        scales, angles, averaged, groups: of `Scattering`; scales = 0 takes the pixels as they are.
        frequencies: of `Frequencies`: how many slow waves of each channel's map are kept in place of the map; 0 keeps
            the map.
        whitening: brings the features to one scale by what synthetic images say about them.
        to: what low and high become, rising and within [-1, 1]; unset is [0, 1], as a scattering transform needs it.
            [0, 1] is never written out, so that rules have the same bytes as before there was a choice.

    What is made of these settings (filters, and the statistics of the synthetic images, which take seconds) is made
    when it is first needed and kept with the object.
    """

    name: str
    height: int
    width: int
    low: float
    high: float
    scales: int = 0
    angles: int = 8
    averaged: bool = False
    groups: int = 0
    frequencies: int = 0
    whitening: Whitening | None = None
    to: tuple[float, float] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        check_text(self.name)
        for field in ("low", "high"):
            msgspec.structs.force_setattr(self, field, float(getattr(self, field)))
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise ModelError(f"Expected low={self.low} below high={self.high} for column {self.name!r}")
        if not (1 <= self.height <= LARGEST_SIDE and 1 <= self.width <= LARGEST_SIDE):
            raise ModelError(f"Expected images of 1 to {LARGEST_SIDE} pixels on a side in column {self.name!r}")
        self._check_range()
        if (self.frequencies or self.whitening) and not self.scales:
            raise ModelError(
                "Expected no frequencies and no whitening of bare pixels; they follow a scattering transform"
            )
        if self.frequencies and (self.averaged or self.groups):
            raise ModelError("Expected frequencies of whole maps; leave out the averages or the groups of channels")
        if self.scales:  # each refuses sizes that do not fit
            self._check_whitening(self._waves.features if self._waves else self._scattering.features)

    def _check_range(self) -> None:
        low, high = map(float, self.range)
        if not -1.0 <= low < high <= 1.0:
            raise ModelError(f"Expected to = [0, 1], or other rising ends within [-1, 1], for column {self.name!r}")
        if self.scales and (low, high) != _UNIT:
            raise ModelError(
                f"Expected to = [0, 1] for column {self.name!r}, which goes through a scattering transform"
            )
        msgspec.structs.force_setattr(self, "to", msgspec.UNSET if (low, high) == _UNIT else (low, high))

    def _check_whitening(self, features: int) -> None:
        if self.whitening is not None:
            self.whitening.check(features, self.height, self.width, channels=self._scattering.channels)

    @property
    def range(self) -> tuple[float, float]:
        """Return what the darkest and the brightest pixel become."""
        return _UNIT if self.to is msgspec.UNSET else self.to

    @property
    def sides(self) -> tuple[int, ...]:
        """Return the shape of one raw value."""
        return (self.height, self.width)

    @property
    def count(self) -> int:
        """Return the number of features this gives."""
        if not self.scales:
            return self.height * self.width
        return self._waves.features if self._waves else self._scattering.features

    @property
    def features(self) -> tuple[str, ...]:
        """Return the names of the features this gives: column, channel if there are channels, row and column of it.

        Of frequencies row and column are those of a wave. Whitened features have the name of the one they lie nearest.
        """
        if self._waves:
            places = ((channel, *wave) for channel in range(self._waves.channels) for wave in self._waves.places)
        else:
            places = np.ndindex(*(self._scattering.shape if self.scales else self.sides))
        return tuple(f"{self.name}[{','.join(map(str, place))}]" for place in places)

    def apply(self, values: NDArray[Any]) -> Matrix:
        """Return the features, shape (n, count), from raw images, shape (n, height, width)."""
        check_pixels(self.name, values, self.low, self.high)
        out = np.empty((len(values), self.count))
        for block in self._blocks(len(values)):
            x = (values[block] - self.low) / (self.high - self.low)
            found = self._transformed(x)
            out[block] = found if self.whitening is None else self._whitener.apply(found)
        return np.clip(out, -1.0, 1.0, out=out)  # rounding, and the rare coefficient that is larger

    def _blocks(self, count: int) -> list[slice]:
        """Return slices over so many images that what is between image and features stays small."""
        each = max(self.height * self.width, self._scattering.features if self.scales else 0)
        step = max(1, _BLOCK_NUMBERS // each)
        return [slice(start, start + step) for start in range(0, count, step)]

    def _transformed(self, x: Matrix) -> Matrix:
        """Return the features before they are whitened, shape (n, count), of images from 0 to 1."""
        if not self.scales:
            flat = x.reshape(len(x), self.height * self.width)
            low, high = self.range
            return flat if (low, high) == _UNIT else low + (high - low) * flat
        found = self._scattering.apply(x)
        return self._waves.apply(found) if self._waves else found

    @cached_property
    def _scattering(self) -> Scattering:
        return Scattering(self.height, self.width, self.scales, self.angles, self.averaged, self.groups)

    @cached_property
    def _waves(self) -> Frequencies | None:
        return Frequencies(*self._scattering.shape, self.frequencies) if self.frequencies else None

    @cached_property
    def _whitener(self) -> Whitener:
        if self.whitening is None:
            raise ModelError("Expected a whitening to make")
        images = self.whitening.drawn(self.height, self.width)
        return Whitener.of(np.concatenate([self._transformed(images[block]) for block in self._blocks(len(images))]))
