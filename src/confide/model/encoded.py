"""The rule of a column of images whose features a pretrained encoder gives."""

from __future__ import annotations

import math
import re
from functools import cached_property
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.encoder import Encoder
from confide.model.rule import check_pixels, check_text
from confide.model.scattering import LARGEST_SIDE
from confide.model.whitening import Whitener, Whitening

Matrix = NDArray[np.float64]

_BLOCK = 64  # images


class Encoded(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="encoded", tag_field="rule", dict=True
):
    """A grey image, mapped linearly from [low, high] to [0, 1], then through an encoder, and whitened.

    The rule names the encoder by its hash and does not hold it: `opened` gives it one.

    Args:
        name: the raw column.
        height, width: of every image, in pixels, 1 to 256.
        low, high: public bounds of a pixel, low < high; one beyond them is refused.
        sha256: of the encoder's file, 64 hex digits.
        count: of its features, 1 to 2,048.
        whitening: brings the features to one scale by what synthetic images say about them.
    """

    name: str
    height: int
    width: int
    low: float
    high: float
    sha256: str
    count: int
    whitening: Whitening

    def __post_init__(self) -> None:
        check_text(self.name)
        for field in ("low", "high"):
            msgspec.structs.force_setattr(self, field, float(getattr(self, field)))
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise ModelError(f"Expected low={self.low} below high={self.high} for column {self.name!r}")
        if not (1 <= self.height <= LARGEST_SIDE and 1 <= self.width <= LARGEST_SIDE) or self.count < 1:
            raise ModelError(f"Expected images of 1 to {LARGEST_SIDE} pixels on a side in column {self.name!r}")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ModelError("Expected the SHA-256 of an encoder as 64 hex digits in lower case")
        self.whitening.check(self.count, self.height, self.width)

    @property
    def sides(self) -> tuple[int, ...]:
        """Return the shape of one raw value."""
        return (self.height, self.width)

    @property
    def features(self) -> tuple[str, ...]:
        """Return the names of the features this gives."""
        return tuple(f"{self.name}[{place}]" for place in range(self.count))

    def opened(self, encoder: Encoder) -> Encoded:
        """Return this rule ready to apply.

        Raises:
            ModelError: it is another encoder than the one this rule names.
        """
        if encoder.sha256 != self.sha256:
            raise ModelError(
                f"Expected the encoder with SHA-256 {self.sha256}, got {encoder.sha256}; take the file that the model "
                "was trained with"
            )
        rule = msgspec.structs.replace(self)
        vars(rule)["encoder"] = encoder  # no field: it is neither saved nor compared
        return rule

    def apply(self, values: NDArray[Any]) -> Matrix:
        """Return the features, shape (n, count), from raw images, shape (n, height, width).

        Raises:
            ModelError: the rule has no encoder yet.
        """
        check_pixels(self.name, values, self.low, self.high)
        out = np.empty((len(values), self.count))
        for start in range(0, len(values), _BLOCK):
            x = (values[start : start + _BLOCK] - self.low) / (self.high - self.low)
            out[start : start + _BLOCK] = self._whitener.apply(self._encoder.apply(x))
        return out

    @property
    def _encoder(self) -> Encoder:
        if "encoder" not in vars(self):
            raise ModelError(
                f"Expected the encoder that column {self.name!r} goes through, SHA-256 {self.sha256}; name its file: "
                "Client(..., encoder=FILE), or confide predict --encoder FILE"
            )
        return cast("Encoder", vars(self)["encoder"])

    @cached_property
    def _whitener(self) -> Whitener:
        return Whitener.of(self._encoder.apply(self.whitening.drawn(self.height, self.width)))
