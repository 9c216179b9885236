"""One raw column, as any source brings it, read as what the schema says it is.

A raw column is an array of shape (n,): text as objects with "" or None where missing (a cell of a CSV file), numbers,
or `datetime64`. Nothing is refused here for what a value is: a reading says which rows have none and which have a wrong
one, and whoever asked counts them. What a column is as a whole (numbers where dates belong) is refused by its type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.data.dates import ISO, UNIX, days_of_seconds, to_days
from confide.data.schema import MISSING_MARKERS, Category, Label, Number
from confide.data.source import Origin
from confide.errors import DataError

_US_PER_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """One column as it was read; all arrays have shape (n,).

    Args:
        values: float64, NaN where there is none; or text (object), "" where missing and as it came where wrong.
        missing: which rows have no value.
        wrong: which rows have something that is none.
    """

    values: NDArray[Any]
    missing: NDArray[np.bool_]
    wrong: NDArray[np.bool_]


def read_number(values: NDArray[Any], column: Number, origin: Origin, where: str) -> Reading:
    """Return numbers in the schema's unit, or days since 1970-01-01 where the column is a date.

    Args:
        values: raw.
        column: what the schema says.
        origin: what the party says.
        where: what texts call the column.

    Raises:
        DataError: the column's type can hold no such values.
    """
    if origin.absent:
        return _absent(np.full(len(values), math.nan))
    if column.date is not None:
        return _read_date(values, origin.format or column.date, origin, where)
    if values.dtype.kind in "fiub":
        found = _numeric(values, origin)
    elif values.dtype.kind in "OU":
        found = _parsed(
            values, origin, lambda cell: to_number(cell.replace(",", ".") if origin.decimal == "," else cell)
        )
    else:
        raise DataError(f"Expected numbers in {where}, got {values.dtype}; store them as numbers")
    return Reading(linear(found.values, origin.factor, origin.offset), found.missing, found.wrong)


def read_category(values: NDArray[Any], column: Category | Label, origin: Origin, where: str) -> Reading:
    """Return the names of categories or classes; arguments and errors as of `read_number`."""
    if origin.absent:
        return _absent(np.full(len(values), "", dtype=object))
    names = column.classes if isinstance(column, Label) else column.categories
    texts = origin.values or column.values or {name: (name,) for name in names}
    known = {text: name for name, each in texts.items() for text in each}
    cells = as_texts(values, where, known=known, missing=origin.missing)
    missing = cells == ""
    wrong = np.array([cell not in known for cell in cells.tolist()], dtype=bool) & ~missing
    return Reading(np.array([known.get(cell, cell) for cell in cells.tolist()], dtype=object), missing, wrong)


def as_texts(
    values: NDArray[Any], where: str, *, known: Iterable[str] = (), missing: frozenset[str] = frozenset()
) -> NDArray[Any]:
    """Return a raw column as text (object), "" where missing.

    Whole numbers are written without a point. A number in a column of floats (what data frames make of whole numbers
    with gaps) is one of the `known` texts that write the same number, else the shortest text.

    Raises:
        DataError: the column's type has no one text.
    """
    kind = values.dtype.kind
    if kind == "f":
        by_number = {to_number(text): text for text in reversed(list(known)) if _is_number(text)}
        cells = [_written(value, by_number) for value in values.tolist()]
    elif kind in "iu":
        cells = list(map(str, values.tolist()))
    elif kind == "b":
        cells = ["true" if value else "false" for value in values.tolist()]
    elif kind in "OU":
        cells = [_cell(value) for value in values.tolist()]
    else:
        raise DataError(f"Expected text in {where}, got {values.dtype}; store it as text or as whole numbers")
    return np.array(["" if cell in MISSING_MARKERS or cell in missing else cell for cell in cells], dtype=object)


def to_number(cell: str) -> float:
    """Return the finite number in a cell.

    Raises:
        ValueError: there is none.
    """
    value = float(cell)
    if not math.isfinite(value) or "_" in cell:  # float() takes "nan", "inf" and "1_000"
        raise ValueError
    return value


def linear(values: NDArray[np.float64], factor: Fraction, offset: Fraction) -> NDArray[np.float64]:
    """Return values * factor + offset, so that 1999 hundredths are the float64 nearest 19.99, as CSV would read it.

    Example:
        >>> linear(np.array([1999.0]), Fraction("0.01"), Fraction(0)).tolist(), 1999 * 0.01
        ([19.99], 19.990000000000002)
    """
    if factor == 1 and offset == 0:
        return values
    below = math.lcm(factor.denominator, offset.denominator)
    times, plus = (float(part * below) for part in (factor, offset))
    return (values * times + plus) / float(below)


def _numeric(values: NDArray[Any], origin: Origin) -> Reading:
    numbers = values.astype(np.float64)
    gaps = [to_number(text) for text in origin.missing if _is_number(text)]
    missing = np.isnan(numbers) | np.isin(numbers, gaps)
    return Reading(np.where(missing, math.nan, numbers), missing, np.zeros(len(values), bool))


def _parsed(values: NDArray[Any], origin: Origin, parse: Callable[[str], float]) -> Reading:
    """Return what `parse` says of each cell; a value of a table in memory may be a number or None already."""
    out = np.full(len(values), math.nan)
    missing, wrong = np.zeros(len(values), bool), np.zeros(len(values), bool)
    gaps = {to_number(text) for text in origin.missing if _is_number(text)}
    seen: dict[str, float | None] = {}  # the same few texts come again and again
    for row, value in enumerate(values.tolist()):
        cell = _cell(value)
        if cell in MISSING_MARKERS or cell in origin.missing:
            missing[row] = True
            continue
        if cell not in seen:
            try:
                seen[cell] = parse(cell)
            except ValueError:
                seen[cell] = None
        found = seen[cell]
        if found is None:
            wrong[row] = True
        elif found in gaps:
            missing[row] = True
        else:
            out[row] = found
    return Reading(out, missing, wrong)


def _read_date(values: NDArray[Any], form: str, origin: Origin, where: str) -> Reading:
    if values.dtype.kind == "M":
        missing = np.isnat(values)
        years = values.astype("datetime64[Y]")
        wrong = ~missing & ((years < np.datetime64("0001")) | (years > np.datetime64("9999")))
        known = np.where(missing | wrong, np.datetime64(0, "D").astype(values.dtype), values)
        whole, rest = np.divmod(known.astype("datetime64[us]").astype(np.int64), _US_PER_DAY)
        return Reading(np.where(missing | wrong, math.nan, whole + rest / _US_PER_DAY), missing, wrong)
    if values.dtype.kind in "fiu" and form == UNIX:
        found = _numeric(values, origin)
        return Reading(np.vectorize(days_of_seconds, otypes=[float])(found.values), found.missing, found.wrong)
    if values.dtype.kind not in "OU" and not (values.dtype.kind in "iu" and form != ISO):
        raise DataError(f'Expected dates in {where}, got {values.dtype}; store them as dates, or state format = "unix"')
    return _parsed(values, origin, lambda cell: to_days(cell, form))


def _absent(values: NDArray[Any]) -> Reading:
    return Reading(values, np.ones(len(values), bool), np.zeros(len(values), bool))


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return str(value).strip()


def _written(value: float, by_number: Mapping[float, str]) -> str:
    if math.isnan(value):
        return ""
    short = str(int(value)) if value.is_integer() else repr(value)
    return by_number.get(value, short)


def _is_number(text: str) -> bool:
    try:
        to_number(text)
    except ValueError:
        return False
    return True
