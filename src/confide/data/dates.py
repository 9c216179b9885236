"""Dates and times as numbers: days since 1970-01-01 (UTC), with the time of day as a fraction.

A time with an offset is taken in UTC, one without as it stands: two parties that mean the same clock must say so in the
same way. Whole seconds of the years 1 to 9999 are told apart by a float64 of days; microseconds are, from 1900 to 2100.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime

import numpy as np
from numpy.typing import NDArray

#: The format of a text in ISO 8601: "2024-02-29", "2024-02-29T13:30:00+01:00".
ISO = "iso"

#: The format of numbers: seconds since 1970-01-01.
UNIX = "unix"

#: Parts of a date that a model may see as categories of their own.
PARTS: Mapping[str, tuple[str, ...]] = {
    "month": tuple(map(str, range(1, 13))),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "hour": tuple(map(str, range(24))),
}

_EPOCH = datetime(1970, 1, 1)
_SECONDS = 86400
_LONGEST = 64  # of a date as text; the parser of ISO 8601 passes over further digits
_TRIED = datetime(2001, 2, 3)


def days(moment: date) -> float:
    """Return the days since 1970-01-01 of a date, at its start, or of a time.

    Example:
        >>> days(date(1970, 1, 2)), days(datetime(1970, 1, 1, 18))
        (1.0, 0.75)
    """
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    elif moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    since = moment - _EPOCH
    return since.days + (since.seconds * 10**6 + since.microseconds) / (_SECONDS * 10**6)


def days_of_seconds(seconds: float) -> float:
    """Return the days of seconds since 1970-01-01, rounded as `days` rounds them."""
    whole, rest = divmod(seconds, _SECONDS)
    return whole + rest / _SECONDS


def is_format(text: str) -> bool:
    """Return whether `text` is "iso", "unix", or a format of `strptime` that fixes year, month and day."""
    if text in (ISO, UNIX):
        return True
    try:
        return datetime.strptime(_TRIED.strftime(text), text).date() == _TRIED.date()
    except (ValueError, re.error):  # the latter where a part comes twice
        return False


def to_days(text: str, form: str) -> float:
    """Return the days since 1970-01-01 that a text says.

    Args:
        text: of a table.
        form: as in `is_format`.

    Raises:
        ValueError: it says none in this form.
    """
    if len(text) > _LONGEST:
        raise ValueError
    try:
        if form == UNIX:
            return days_of_seconds(float(text))
        return days(datetime.fromisoformat(text) if form == ISO else datetime.strptime(text, form))
    except OverflowError:
        raise ValueError from None


def as_text(moment: float, form: str) -> str:
    """Return days since 1970-01-01 as the text that `to_days` reads, to the microsecond; "" of NaN."""
    if np.isnan(moment):
        return ""
    if form == UNIX:
        return repr(moment * _SECONDS)
    found = _EPOCH + np.timedelta64(round(moment * _SECONDS * 1e6), "us").astype(object)
    return found.isoformat() if form == ISO else found.strftime(form)


def part_of(moments: NDArray[np.float64], part: str) -> NDArray[np.object_]:
    """Return a part of each date as one of its `PARTS`, "" where there is none.

    Args:
        moments: days since 1970-01-01, shape (n,), NaN where missing.
        part: a key of `PARTS`.

    Example:
        >>> part_of(np.array([0.0, 0.75, np.nan]), "weekday").tolist()
        ['Thursday', 'Thursday', '']
    """
    known = ~np.isnan(moments)
    day = np.floor(np.where(known, moments, 0.0))
    match part:
        case "weekday":
            places = ((day + 3) % 7).astype(np.int64)  # 1970-01-01 was a Thursday
        case "hour":
            places = np.minimum(np.floor((np.where(known, moments, 0.0) - day) * 24 + 1e-9), 23).astype(np.int64)
        case _:
            months = day.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
            places = months % 12
    out = np.array(PARTS[part], dtype=object)[places]
    out[~known] = ""
    return out
