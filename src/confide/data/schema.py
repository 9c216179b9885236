"""A schema: what every party's table looks like, stated in public before anybody looks at a record.

    name = "heart"
    source = "where the bounds come from"
    identifiers = ["patient_id"]

    [label]
    name = "diagnosis"
    classes = ["healthy", { name = "ill", values = ["1", "2", "3", "4"] }]

    [columns]
    age = { type = "number", unit = "years", low = 0, high = 120 }
    chest_pain = { type = "category", categories = ["typical", "atypical", "none"], missing = "level" }
    seen = { type = "date", low = 2010-01-01, high = 2025-12-31, parts = ["weekday"] }
    scan = { type = "image", height = 28, width = 28, low = 0, high = 255 }

Bounds and categories are the only thing that preparation may use, so they must not be computed from the data: a minimum
that is published is a record that is published. `docs/schema.md` lists every key.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

import msgspec

from confide.data.dates import ISO, PARTS, days, is_format
from confide.data.toml_text import read_toml
from confide.errors import DataError, nearest

#: Cells that stand for a missing value, once stripped of blanks.
MISSING_MARKERS = ("", "?", "NA")

_T = TypeVar("_T")


#: Of the file.
LARGEST_SCHEMA_BYTES = 1 << 20

#: Of a column; each is a feature, and no preparation takes more.
MOST_CATEGORIES = 1 << 16

#: Of an image, in pixels.
LARGEST_SIDE = 256

_WORDS: Mapping[str, float] = {"low": 0.0, "middle": 0.5, "high": 1.0}
_MARKED = f"{', '.join(map(repr, MISSING_MARKERS))} stand for missing values"
_KINDS: Mapping[Any, str] = {
    str: "a text",
    float: "a number",
    int: "a whole number",
    dict[str, Any]: "a table",
    list[str]: "a list of texts",
    list[float]: "a list of numbers",
    list[str | dict[str, Any]]: 'a list of texts, or of { name = "...", values = ["..."] }',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A column of numbers.

    Args:
        name, unit: as the parties know them.
        low, high: public bounds in that unit, low < high.
        missing: the public value that stands for a missing one, within the bounds; "level" keeps missing ones apart
            from all numbers; None refuses missing values.
        outside: "refuse" a value beyond the bounds, or "clip" it to the nearer one.
        bins: public edges within the bounds, rising: a feature for each interval between them; none for one feature.
        date: of a date, in days since 1970-01-01: the format in which a table has it, see `dates.is_format`.
    """

    name: str
    unit: str = ""
    low: float
    high: float
    missing: float | Literal["level"] | None = None
    outside: Literal["refuse", "clip"] = "refuse"
    bins: tuple[float, ...] = ()
    date: str | None = None
    type: Literal["number"] = "number"


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A column of text with known values.

    Args:
        name: as the parties know it.
        categories: every category that may occur, all different.
        missing: "refuse" missing values, or give them a "level" of their own.
        values: for each category, the texts that stand for it in a table; none where each stands for itself.
        part: of a date: its column, and which of `dates.PARTS`; a table has no such column.
    """

    name: str
    categories: tuple[str, ...]
    missing: Literal["refuse", "level"] = "refuse"
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    part: tuple[str, str] | None = None
    type: Literal["category"] = "category"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A column of grey images of one size; only an archive (.npz) can hold them.

    Args:
        name: as the parties know it.
        height, width: in pixels, 1 to 256.
        low, high: public bounds of a pixel, low < high.
        to: what they become, rising and within [-1, 1]; None if the schema does not say, which is [0, 1].
    """

    name: str
    height: int
    width: int
    low: float = 0.0
    high: float = 255.0
    to: tuple[float, float] | None = None
    type: Literal["image"] = "image"


Column = Number | Category | Image


@dataclass(frozen=True, slots=True)
class Label:
    """The column to predict.

    Args:
        name: the column.
        values: for each class, the texts that stand for it in a table.
        time: of survival: how long a record was under observation, until the second class (the event) occurred or it
            was lost sight of; None for labels without a time.
    """

    name: str
    values: Mapping[str, tuple[str, ...]]
    time: Number | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes; a table's labels are indices into it."""
        return tuple(self.values)

    @property
    def times(self) -> tuple[Number, ...]:
        """Return the column of times, if there is one."""
        return () if self.time is None else (self.time,)


@dataclass(frozen=True, slots=True)
class Schema:
    """What a table must look like.

    Args:
        name: of the data set.
        source: where the bounds and categories come from.
        columns: the inputs, in the order of the features.
        label: the column to predict.
        identifiers: columns that say whose record it is (patient, customer). Never a feature: they only group records.

    Example:
        >>> schema = Schema.parse({
        ...     "label": {"name": "ill", "classes": ["no", "yes"]},
        ...     "columns": {"age": {"type": "number", "low": 0, "high": 120, "missing": "middle"}},
        ... })
        >>> schema.columns[0].missing
        60.0
    """

    name: str
    source: str
    columns: tuple[Column, ...]
    label: Label
    identifiers: tuple[str, ...] = ()

    @staticmethod
    def load(path: Path) -> Schema:
        """Read a schema file.

        Raises:
            DataError: the file is absent, too large or no TOML; or as in `parse`.
        """
        return Schema.read(Schema.text(path), where=str(path))

    @staticmethod
    def text(path: Path) -> str:
        """Return the text of a schema file.

        Raises:
            DataError: the file is absent, too large or no text.
        """
        try:
            with path.open("rb") as file:
                body = file.read(LARGEST_SCHEMA_BYTES + 1)
            if len(body) > LARGEST_SCHEMA_BYTES:
                raise DataError(f"Expected a schema of at most {LARGEST_SCHEMA_BYTES} bytes at {path}")
            return body.decode()
        except OSError as error:
            raise DataError(f"Expected a readable schema at {path}; {error.strerror}") from None
        except ValueError as error:  # no UTF-8, or no path
            raise DataError(f"Expected TOML in {path}; {error}") from None

    @staticmethod
    def read(text: str, *, where: str = "the schema") -> Schema:
        """Return the schema in the text of a schema file.

        Raises:
            DataError: it is too large or no TOML; or as in `parse`.
        """
        try:
            table = read_toml(text, max_bytes=LARGEST_SCHEMA_BYTES)
        except ValueError as error:
            raise DataError(f"Expected TOML in {where}; {error}") from None
        return Schema.parse(table, where=where)

    @staticmethod
    def parse(table: Mapping[str, Any], *, where: str = "the schema") -> Schema:
        """Return the schema that `table` describes.

        Args:
            table: as read from TOML.
            where: what the texts call it.

        Raises:
            DataError: with every problem of the schema.
        """
        read = _Reader()
        read.known(table, ("name", "source", "identifiers", "label", "columns"), "", "a schema")
        columns = _columns(read, read.value(table, "columns", "", dict[str, Any], {}, required=False))
        label = _label(read, read.value(table, "label", "", dict[str, Any], {}))
        name, source = (read.value(table, key, "", str, "", required=False) for key in ("name", "source"))
        names = {column.name for column in columns}
        for one in {label.name, *(time.name for time in label.times)} & names:
            read.problem(f"columns.{one}", "is the label; leave it out of the columns")
        if any(time.name == label.name for time in label.times):
            read.problem("label.time.name", "is the label's own; name the column of times")
        identifiers = tuple(read.value(table, "identifiers", "", list[str], [], required=False))
        _check_identifiers(read, identifiers, {label.name, *(time.name for time in label.times), *names})
        if read.problems:
            lines = "\n  ".join(["", *read.problems]) if len(read.problems) > 1 else f" {read.problems[0]}"
            raise DataError(f"Expected a usable schema in {where};{lines}")
        return Schema(name, source, columns, label, identifiers)


class _Reader:
    """Reads values out of parsed TOML and goes on after a problem, so that all of them are listed."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def problem(self, where: str, text: str) -> None:
        """Note one problem."""
        self.problems.append(f"{where} {text}")

    def known(self, table: Mapping[str, Any], keys: tuple[str, ...], where: str, what: str) -> None:
        """Note every key of `table` that is not in `keys`."""
        for key in table:
            if key not in keys:
                self.problem(f"{where}{key}", f"is unknown{nearest(key, keys)}; {what} has the keys {', '.join(keys)}")

    def value(
        self, table: Mapping[str, Any], key: str, where: str, kind: type[_T], otherwise: _T, *, required: bool = True
    ) -> _T:
        """Return `table[key]` as a `kind`; `otherwise` if it is absent or something else."""
        if key not in table:
            if required:
                self.problem(f"{where}{key}", f"is missing; state {_KINDS[kind]}")
            return otherwise
        try:
            return msgspec.convert(table[key], kind)
        except msgspec.ValidationError:
            self.problem(f"{where}{key}", f"is {table[key]!r}; state {_KINDS[kind]}")
            return otherwise

    def number(self, table: Mapping[str, Any], key: str, where: str) -> float:
        """Return a finite number; NaN, which no comparison faults, if there is none."""
        value = self.value(table, key, where, float, math.nan)
        if math.isinf(value) or (math.isnan(value) and isinstance(table.get(key), float)):
            self.problem(f"{where}{key}", f"is {value}; state a finite number")
            return math.nan
        return value

    def choice(self, table: Mapping[str, Any], key: str, where: str, allowed: tuple[str, ...], otherwise: str) -> str:
        """Return the stated word, `otherwise` if none is; "" if it is not allowed."""
        value = table.get(key, otherwise)
        if value in allowed:
            return str(value)
        stated = f"is {value!r}{nearest(str(value), allowed)}" if key in table else "is missing"
        self.problem(f"{where}{key}", f"{stated}; take {' or '.join(map(_quoted, allowed))}")
        return ""

    def texts(self, texts: Sequence[str], where: str, seen: set[str]) -> tuple[str, ...]:
        """Return texts that a table can hold; `seen` are those that may not occur again."""
        for text in texts:
            if text in seen:
                self.problem(where, f"names {text!r} twice; each value has one meaning")
            if text != text.strip() or text in MISSING_MARKERS:
                self.problem(where, f"names {text!r}, which a table cannot hold; {_MARKED}, and cells are stripped")
            seen.add(text)
        return tuple(texts)


def _columns(read: _Reader, table: Mapping[str, Any]) -> tuple[Column, ...]:
    columns: list[Column] = []
    if not table:
        read.problem("columns", "holds no column; describe each input")
    for name in table:
        where = f"columns.{name}."
        column = read.value(table, name, "columns.", dict[str, Any], {})
        if not name.strip():
            read.problem("columns", "names a column with an empty name")
        kind = read.choice(column, "type", where, ("number", "category", "date", "image"), "")
        if kind == "number":
            columns.append(_number(read, name, column, where))
        elif kind == "date":
            columns += _date(read, name, column, where)
        elif kind == "category":
            columns.append(_category(read, name, column, where))
        elif kind == "image":
            columns.append(_image(read, name, column, where))
    for name in table:
        if any(column.name == name and isinstance(column, Category) and column.part for column in columns):
            read.problem(f"columns.{name}", "has the name of a date's part; rename it")
    return tuple(columns)


def _number(read: _Reader, name: str, table: Mapping[str, Any], where: str) -> Number:
    read.known(table, ("type", "unit", "low", "high", "missing", "outside", "bins"), where, "a number")
    low, high = read.number(table, "low", where), read.number(table, "high", where)
    if low >= high or math.isinf(high - low):
        read.problem(f"{where}low", f"is {low:g}, which is not below high = {high:g} at a finite distance")
    elif high / 2 - low / 2 < sys.float_info.min:
        read.problem(f"{where}low", f"is {low:g}, closer to high = {high:g} than float64 can scale; take another unit")
    missing = table.get("missing", "refuse")
    if isinstance(missing, str) and missing in _WORDS:
        missing = low + _WORDS[missing] * (high - low)
    elif missing == "refuse":
        missing = None
    elif missing != "level" and (not _is_finite(missing) or missing < low or missing > high):
        words = ", ".join(map(_quoted, ("refuse", "level", *_WORDS)))
        read.problem(f"{where}missing", f"is {missing!r}; take {words} or a number within the bounds")
        missing = None
    bins = tuple(read.value(table, "bins", where, list[float], [], required=False))
    if any(not one < other for one, other in pairwise((low, *bins, high))) and bins:
        read.problem(f"{where}bins", "are no rising numbers between low and high")
        bins = ()
    return Number(
        name=name,
        unit=read.value(table, "unit", where, str, "", required=False),
        low=low,
        high=high,
        missing="level" if missing == "level" else None if missing is None else float(missing),
        outside="clip" if read.choice(table, "outside", where, ("refuse", "clip"), "refuse") == "clip" else "refuse",
        bins=bins,
    )


def _category(read: _Reader, name: str, table: Mapping[str, Any], where: str) -> Category:
    read.known(table, ("type", "categories", "missing"), where, "a category")
    entries = read.value(table, "categories", where, list[str | dict[str, Any]], [])
    if "categories" in table and not entries:
        read.problem(f"{where}categories", "is empty; list every value that may occur")
    if len(entries) > MOST_CATEGORIES:
        read.problem(
            f"{where}categories",
            f"has {len(entries)} entries, at most {MOST_CATEGORIES} are read; group them with {{ name, values }}",
        )
        entries = []
    words = [entry for entry in entries if isinstance(entry, str)]
    values: Mapping[str, tuple[str, ...]] = {}
    if len(words) == len(entries):
        categories = read.texts(words, f"{where}categories", set())
    else:
        values = _named_values(read, entries, f"{where}categories", "a category")
        categories = tuple(values)
    return Category(
        name=name,
        categories=categories,
        missing="level" if read.choice(table, "missing", where, ("refuse", "level"), "refuse") == "level" else "refuse",
        values=values,
    )


def _date(read: _Reader, name: str, table: Mapping[str, Any], where: str) -> tuple[Column, ...]:
    """Return a date as its number of days, with a category for each part that is asked for."""
    read.known(table, ("type", "format", "low", "high", "missing", "outside", "parts"), where, "a date")
    numbers: dict[str, Any] = {key: table[key] for key in ("missing", "outside") if key in table}
    for key in ("low", "high", "missing"):
        if isinstance(found := table.get(key), date):
            whole = key == "high" and not isinstance(found, datetime)  # the last day belongs to it
            try:
                numbers[key] = days(found) + whole
            except OverflowError:
                read.problem(f"{where}{key}", "is outside the years 1 to 9999 in UTC; leave out the offset")
                numbers[key] = math.nan
        elif key != "missing":
            read.problem(f"{where}{key}", "is no date; write it without quotes, as 2024-02-29")
            numbers[key] = math.nan
    if isinstance(numbers.get("missing"), int | float) and not isinstance(table["missing"], date):
        read.problem(f"{where}missing", "is a number; take a date within the bounds")
    number = _number(read, name, {key: value for key, value in numbers.items() if not _is_nan(value)}, where)
    form = read.value(table, "format", where, str, ISO, required=False)
    if not is_format(form):
        read.problem(
            f"{where}format",
            f'is {form!r}; take "iso", "unix", or year, month and day as strptime has them: "%d.%m.%Y"',
        )
    parts = tuple(read.value(table, "parts", where, list[str], [], required=False))
    for part in parts:
        if part not in PARTS or parts.count(part) > 1:
            read.problem(f"{where}parts", f"has {part!r}; take each of {', '.join(map(_quoted, PARTS))} once")
            return ()
    rule = "refuse" if number.missing is None else "level"
    return (
        replace(number, unit="days since 1970-01-01", date=form),
        *(Category(name=f"{name} {part}", categories=PARTS[part], missing=rule, part=(name, part)) for part in parts),
    )


def _image(read: _Reader, name: str, table: Mapping[str, Any], where: str) -> Image:
    read.known(table, ("type", "height", "width", "low", "high", "to"), where, "an image")
    sides = {key: read.value(table, key, where, int, 0) for key in ("height", "width")}
    for key, side in sides.items():
        if isinstance(table.get(key), int) and not 1 <= side <= LARGEST_SIDE:
            read.problem(f"{where}{key}", f"is {side}; state 1 to {LARGEST_SIDE} pixels, and scale larger images down")
    bounds = {"low": 0.0, "high": 255.0, **table}
    low, high = read.number(bounds, "low", where), read.number(bounds, "high", where)
    if low >= high or math.isinf(high - low):
        read.problem(f"{where}low", f"is {low:g}, which is not below high = {high:g} at a finite distance")
    to = read.value(table, "to", where, list[float], [0.0, 1.0], required=False)
    if len(to) != 2 or not -1 <= to[0] < to[1] <= 1:
        read.problem(f"{where}to", "is no pair of rising numbers within [-1, 1]; take [0, 1] or [-1, 1]")
        to = [0.0, 1.0]
    ends = (to[0], to[1]) if "to" in table else None
    return Image(name=name, height=sides["height"], width=sides["width"], low=low, high=high, to=ends)


def _label(read: _Reader, table: Mapping[str, Any]) -> Label:
    read.known(table, ("name", "classes", "time"), "label.", "the label")
    classes = read.value(table, "classes", "label.", list[str | dict[str, Any]], [])
    values = _named_values(read, classes, "label.classes", "a class")
    if "classes" in table and len(classes) < 2:
        read.problem("label.classes", f"has {len(classes)} entries; name at least two classes")
    time = _time(read, read.value(table, "time", "label.", dict[str, Any], {})) if "time" in table else None
    if time is not None and len(values) > 2:
        read.problem("label.classes", f"has {len(values)} entries with a time; name what is no event, and the event")
    return Label(read.value(table, "name", "label.", str, ""), values, time)


def _time(read: _Reader, table: Mapping[str, Any]) -> Number:
    where = "label.time."
    read.known(table, ("name", "unit", "low", "high"), where, "a time")
    name = read.value(table, "name", where, str, "")
    stated = {key: value for key, value in table.items() if key in ("unit", "low", "high")}
    return _number(read, name, {"low": 0.0, **stated}, where)


def _named_values(
    read: _Reader, entries: Sequence[str | dict[str, Any]], place: str, what: str
) -> dict[str, tuple[str, ...]]:
    """Return for each name of a class or category the texts that stand for it; a text by itself stands for itself."""
    values: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for number, entry in enumerate(entries, 1):
        where = f"{place}, entry {number},"
        if isinstance(entry, str):
            entry = {"name": entry, "values": [entry]}
        read.known(entry, ("name", "values"), f"{where} ", what)
        name = read.value(entry, "name", f"{where} ", str, "")
        if name in values:
            read.problem(where, f"names {name!r} again; give one entry all its values")
        values[name] = read.texts(read.value(entry, "values", f"{where} ", list[str], []), where, seen)
    return values


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _check_identifiers(read: _Reader, identifiers: tuple[str, ...], others: set[str]) -> None:
    seen = set(others)
    for name in identifiers:
        if not name.strip():
            read.problem("identifiers", "names a column with an empty name")
        elif name in ("record", "client"):
            read.problem("identifiers", f"names {name!r}, which privacy.unit has for itself; rename it")
        elif name in seen:
            read.problem(
                "identifiers", f"names {name!r}, which is there already; an identifier is no feature and no label"
            )
        seen.add(name)


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _quoted(word: str) -> str:
    return f'"{word}"'
