"""What the rules of all kinds of columns have in common: names within bounds, and rows as texts name them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError

_LONGEST_TEXT = 256


def check_text(text: str) -> None:
    """Refuse a name or a category that is empty or longer than 256 characters."""
    if not 0 < len(text) <= _LONGEST_TEXT:
        raise ModelError(f"Expected names and categories of 1 to {_LONGEST_TEXT} characters, got {len(text)}")


def first_row(wrong: NDArray[np.bool_]) -> str:
    """Return how a text names the first row that is `wrong`, shape (n,)."""
    return f"row {int(np.argmax(wrong)) + 1}"
