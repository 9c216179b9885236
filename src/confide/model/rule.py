"""What the rules of all kinds of columns have in common: names within bounds, and rows as texts name them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError, ModelError

_LONGEST_TEXT = 256


def check_text(text: str) -> None:
    """Refuse a name or a category that is empty or longer than 256 characters."""
    if not 0 < len(text) <= _LONGEST_TEXT:
        raise ModelError(f"Expected names and categories of 1 to {_LONGEST_TEXT} characters, got {len(text)}")


def first_row(wrong: NDArray[np.bool_]) -> str:
    """Return how a text names the first row that is `wrong`, shape (n,)."""
    return f"row {int(np.argmax(wrong)) + 1}"


def check_pixels(name: str, images: NDArray[Any], low: float, high: float) -> None:
    """Refuse images, shape (n, height, width), that are no numbers from `low` to `high`; NaN is none."""
    if images.dtype.kind not in "fiub":
        raise DataError(f"Expected numbers in column {name!r}, got {images.dtype}; store pixels as numbers")
    fits = (images >= low) & (images <= high)
    wrong = np.logical_not(fits.reshape(len(images), images.shape[1] * images.shape[2]).all(axis=1))
    if wrong.any():
        raise DataError(
            f"Expected pixels of {name!r} from {low:g} to {high:g}, {first_row(wrong)} has others; correct that image"
        )
