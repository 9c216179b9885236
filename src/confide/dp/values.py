"""How values of records become arrays: no record decides what another one is, or between an answer and an error.

numpy finds one type for all entries of a list, so that ["x"] beside 1 makes it "1", and NaN beside 2^53 + 1 rounds it:
one record would rewrite every other, which no sensitivity covers. So the entries of lists and of arrays of objects are
read one by one, and one that is no number is NaN. Only an array that is typed already is refused for its type, which is
public; no message holds a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.errors import DataError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

_NUMBERS = "fiub"  # kinds of dtype: floating, signed, unsigned, boolean


def numbers(values: ArrayLike) -> Matrix:
    """Return values as float64, shape (n,); what is not finite stays so.

    Raises:
        DataError: they are no numbers, or not one for each record. No value is in the text.
    """
    array = number_column(values)
    if array.dtype.kind == "O":  # of a list, or of a column with None or pandas.NA among its numbers
        return np.fromiter(map(number_of, array.tolist()), np.float64, len(array))
    with np.errstate(over="ignore"):
        return array.astype(np.float64)


def number_column(values: ArrayLike) -> NDArray[Any]:
    """Return values as an array of numbers or objects, shape (n,), and refuse what its type alone says is none.

    Raises:
        DataError: as `numbers`.
    """
    array = column_of(values)
    if (array.dtype.kind not in _NUMBERS and array.dtype.kind != "O") or says_text(getattr(values, "dtype", "")):
        raise DataError(f"Expected one number for each record, got an array of {array.dtype.type.__name__}")
    return array


def column_of(values: ArrayLike) -> NDArray[Any]:
    """Return one value for each record, shape (n,): typed arrays with their type, all else as objects, unchanged.

    Raises:
        DataError: they are not one for each record, or masked. No value is in the text.
    """
    array = array_of(values)
    if array.ndim != 1:
        raise DataError(f"Expected one value for each record, got {array.ndim} dimensions")
    return array


def array_of(values: ArrayLike) -> NDArray[Any]:
    """Return an array that is typed if `values` are: entries of a list stay what each of them is."""
    if isinstance(values, np.ma.MaskedArray):
        raise DataError("Expected a plain array; fill what is masked with NaN, which counts for nothing")
    typed = hasattr(values, "dtype") or hasattr(values, "__array__")
    if isinstance(values, Sequence) and not typed and not isinstance(values, str | bytes):
        return np.fromiter(values, object, len(values))
    try:
        return np.asarray(values)
    except (TypeError, ValueError):
        raise DataError("Expected an array or a list, one value for each record") from None


def says_text(dtype: object) -> bool:
    """Return whether a column of pandas or polars says itself that it holds text or dates."""
    return str(dtype).lower().startswith(("str", "utf8", "date", "time", "duration"))


def number_of(value: Any) -> float:
    """Return a number; NaN for whatever is none."""
    if not isinstance(value, Real | Decimal | np.bool_):
        return math.nan
    try:
        return float(cast("float", value))
    except (ArithmeticError, TypeError, ValueError):  # a whole number beyond float64, a signalling NaN
        return math.nan


def places(keys: NDArray[Any], groups: Sequence[Any]) -> Vector:
    """Return the place of each key among different groups, -1 of what is none, shape (n,)."""
    place = {group: number for number, group in enumerate(groups)}

    def of(key: Any) -> int:
        try:
            return place.get(key, -1)
        except TypeError:  # what has no hash
            return -1

    return np.fromiter(map(of, keys.tolist()), np.int64, len(keys))
