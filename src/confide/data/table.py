"""A party's own table: read from wherever it is, and checked against the schema before anything else sees it.

A refusal names the table, the column, how many records it is about and the first of their rows, and never what stands
in them: a message travels, in a log, a ticket or over a shoulder. Rows count from 1 below the header, columns are found
by name, and columns that the schema does not name are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.data.dates import as_text, part_of
from confide.data.files import present, raw_columns
from confide.data.reading import Reading, as_texts, read_category, read_number
from confide.data.schema import Category, Image, Label, Number, Schema
from confide.data.source import Origin, Source, check_source, open_source
from confide.errors import DataError

Labels = NDArray[np.int64]
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """How long each record was under observation.

    Args:
        values: float64, shape (n,), in the schema's unit.
        low, high: public bounds.
    """

    values: NDArray[np.float64] = field(repr=False)
    low: float
    high: float

    @property
    def shares(self) -> NDArray[np.float64]:
        """Return the times as shares of the range, within [0, 1]."""
        return np.clip((self.values - self.low) / (self.high - self.low), 0.0, 1.0)

    def take(self, rows: NDArray[np.int64]) -> Times:
        """Return those of the records with these indices."""
        return Times(self.values[rows], self.low, self.high)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Records that keep to a schema.

    Args:
        columns: raw values by column: float64 of shape (n,) for numbers with NaN where missing, text (object) of shape
            (n,) for categories with "" where missing, the file's numbers of shape (n, height, width) for images.
        labels: int64 class indices, shape (n,).
        identifiers: text (object) of shape (n,) by column: whose record it is. Never a feature.
        times: of survival; None for labels without a time.
    """

    columns: Columns
    labels: Labels
    identifiers: Columns = field(default_factory=dict[str, NDArray[Any]])
    times: Times | None = None

    @property
    def n(self) -> int:
        """Return the number of records."""
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Table:
        """Return the records with these indices, in this order."""
        columns, identifiers = (
            {name: values[rows] for name, values in part.items()} for part in (self.columns, self.identifiers)
        )
        return Table(columns, self.labels[rows], identifiers, self.times and self.times.take(rows))

    @staticmethod
    def concatenate(tables: Sequence[Table]) -> Table:
        """Return the records of at least one table of the same schema, one after the other."""
        columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in tables[0].columns}
        identifiers = {
            name: np.concatenate([table.identifiers[name] for table in tables]) for name in tables[0].identifiers
        }
        first, values = tables[0].times, [table.times.values for table in tables if table.times is not None]
        times = first and Times(np.concatenate(values), first.low, first.high)
        return Table(columns, np.concatenate([table.labels for table in tables]), identifiers, times)

    def __repr__(self) -> str:  # records are private, their number is not
        return f"Table({self.n} records, {len(self.columns)} columns)"


def read_table(place: object, schema: Schema, *, mapping: Path | None = None) -> Table:
    """Read a table from wherever it is.

    Args:
        place: a path: CSV (".csv", ".csv.gz"; UTF-8, commas, a header), ".npz", ".parquet", ".arrow" or ".feather";
            or a source file (".toml", see `confide.data.source`); or a table in memory that offers an Arrow stream: a
            data frame of pandas or polars, a table of pyarrow.
        schema: what it must keep to.
        mapping: for a table in memory, a source file with [columns] alone.

    Raises:
        DataError: there is no such table; it unpacks to more than 1 GiB; a column is missing; or a value breaks the
            schema.
        MissingExtra: the package for this kind of table is not installed.

    Example:
        >>> import pyarrow
        >>> schema = Schema.parse({
        ...     "label": {"name": "ill", "classes": ["no", "yes"]},
        ...     "columns": {"age": {"type": "number", "low": 0, "high": 120, "missing": "middle"}},
        ... })
        >>> read_table(pyarrow.table({"age": [41, None], "ill": ["no", "yes"]}), schema)
        Table(2 records, 1 columns)
    """
    source = open_source(place, mapping)
    check_source(source, schema)
    names = names_at(source, schema)
    raw = raw_columns(source, [*dict.fromkeys(names.values())], images=[names[name] for name in images_of(schema)])
    return check(raw, schema, where=source.where, source=source)


def read_inputs(place: object, schema: Schema, *, mapping: Path | None = None) -> Columns:
    """Read the columns of a schema alone, without label and identifiers: what a client needs for a prediction.

    Arguments and errors as of `read_table`.
    """
    source = open_source(place, mapping)
    check_source(source, schema)
    names = {
        name: at for name, at in names_at(source, schema).items() if name in {each.name for each in schema.columns}
    }
    raw = raw_columns(source, [*dict.fromkeys(names.values())], images=[names[name] for name in images_of(schema)])
    return _columns(raw, schema, source, source.where)


def read_columns(place: Path, *, numbers: Collection[str], texts: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read some columns of a table by name, without a schema.

    Args:
        place: as in `read_table`.
        numbers: columns to return as float64, NaN where missing.
        texts: columns to return as text (object), "" where missing.

    Returns:
        The columns, each of shape (n,), n >= 1.

    Raises:
        DataError: there is no such table; a column is missing; a number is none.
    """
    source = open_source(place)
    raw = raw_columns(source, [source.origin(name).name for name in (*numbers, *texts)])
    columns: dict[str, NDArray[Any]] = {}
    for name in (*numbers, *texts):
        origin, where = source.origin(name), f"{source.where}, column {name!r}"
        if name in texts:
            columns[name] = as_texts(raw[origin.name], where, missing=origin.missing)
            continue
        found = read_number(raw[origin.name], Number(name=name, low=0.0, high=1.0), origin, where)
        _refuse_wrong(found, where)
        columns[name] = found.values
    return columns


def names_at(source: Source, schema: Schema) -> dict[str, str]:
    """Return what the columns of a schema are called at a source; the label comes last, absent columns not at all."""
    wanted = [column.name for column in schema.columns if not (isinstance(column, Category) and column.part)]
    timed = (time.name for time in schema.label.times)
    names = [*wanted, *timed, *schema.identifiers, schema.label.name]
    return {name: source.origin(name).name for name in names if not source.origin(name).absent}


def images_of(schema: Schema) -> tuple[str, ...]:
    """Return the names of the columns that hold images."""
    return tuple(column.name for column in schema.columns if isinstance(column, Image))


def check(raw: Columns, schema: Schema, *, where: str, source: Source | None = None) -> Table:
    """Return the table in raw columns.

    Args:
        raw: at least the schema's columns and its label, each of shape (n,), images (n, height, width).
        schema: what they must keep to.
        where: what the texts call the table.
        source: where they come from, if columns are called or coded otherwise there.

    Raises:
        DataError: there are no records, lengths differ, or a value breaks the schema.
    """
    source = source or Source(where=where)
    columns = _columns(raw, schema, source, where)
    rows = len(next(iter(columns.values())))
    identifiers = {
        name: _identified(_raw(raw, name, source, where), rows, f"{where}, column {name!r}", source.origin(name))
        for name in schema.identifiers
    }
    label = _raw(raw, schema.label.name, source, where)
    if label.shape != (rows,):
        raise DataError(f"Expected column {schema.label.name!r} of {where} to have one value for each of its records")
    labels = _labels(label, schema.label, f"{where}, column {schema.label.name!r}", source)
    times = [_timed(_raw(raw, time.name, source, where), time, rows, source, where) for time in schema.label.times]
    return Table(columns, labels, identifiers, times[0] if times else None)


def _columns(raw: Columns, schema: Schema, source: Source, where: str) -> dict[str, NDArray[Any]]:
    """Return the checked columns of a schema."""
    there = [column for column in schema.columns if not (isinstance(column, Category) and column.part)]
    stored = [_raw(raw, column.name, source, where) for column in there if not source.origin(column.name).absent]
    if not stored:
        raise DataError(f"Expected a column that is not absent in {where}; it says nothing about its records")
    shape = stored[0].shape[:1]
    columns: dict[str, NDArray[Any]] = {}
    for column in schema.columns:
        place = f"{where}, column {column.name!r}"
        if isinstance(column, Category) and column.part:
            columns[column.name] = part_of(columns[column.part[0]], column.part[1])
            continue
        absent = source.origin(column.name).absent
        values = np.empty(shape) if absent else _raw(raw, column.name, source, where)
        if isinstance(column, Image):
            columns[column.name] = checked_images(values, column, shape, place)
            continue
        if values.shape != shape or not shape or not len(values):
            raise DataError(f"Expected column {column.name!r} of {where} to have one value for each of its records")
        columns[column.name] = _checked(values, column, source.origin(column.name), place)
    return columns


def _raw(raw: Columns, name: str, source: Source, where: str) -> NDArray[Any]:
    stored = source.origin(name).name
    present([stored], raw, where)
    return raw[stored]


def counted(rows: NDArray[np.bool_]) -> str:
    """Return how a text names rows, shape (n,): how many they are, of how many, and the first from 1."""
    return f"{np.count_nonzero(rows)} of {len(rows)} records (first in row {int(np.argmax(rows)) + 1})"


def bounds_text(column: Number) -> str:
    """Return the bounds of a column as a text names them: "from 0 to 120 years"."""
    if column.date is not None:
        low, high = (as_text(edge, "iso").removesuffix("T00:00:00") for edge in (column.low, column.high))
        return f"from {low} up to {high}"
    return f"from {column.low:g} to {column.high:g}{f' {column.unit}' if column.unit else ''}"


def _checked(
    values: NDArray[Any],
    column: Number | Category,
    origin: Origin,
    where: str,
    *,
    clip: str = 'set outside = "clip" in the schema',
) -> NDArray[Any]:
    if isinstance(column, Category):
        found = read_category(values, column, origin, where)
        if column.missing == "refuse":
            _refuse_missing(found.missing, where, '"level"')
        _refuse_unknown(found, where, "categories", "add them to the schema of every party")
        return found.values
    found = read_number(values, column, origin, where)
    _refuse_wrong(found, where, date=column.date is not None)
    if column.missing is None:
        _refuse_missing(found.missing, where, '"low", "middle", "high" or a value')
    beyond = outside_bounds(found.values, column)
    if column.outside == "refuse" and beyond.any():
        raise DataError(
            f"Expected values {bounds_text(column)} in {where}; {counted(beyond)} are outside: correct them, state "
            f"this table's unit in a source file, widen the bounds, or {clip}"
        )
    return found.values


def outside_bounds(numbers: NDArray[np.float64], column: Number) -> NDArray[np.bool_]:
    """Return which numbers, shape (n,), lie beyond a column's bounds; a missing one (NaN) does not."""
    return (numbers < column.low) | (numbers > column.high)


def _refuse_wrong(found: Reading, where: str, *, date: bool = False) -> None:
    if not found.wrong.any():
        return
    if date:
        raise DataError(
            f"Expected dates in {where}; {counted(found.wrong)} hold none in the stated format: correct them, or state "
            "this table's format in a source file"
        )
    raise DataError(
        f"Expected numbers in {where}; {counted(found.wrong)} hold no finite number: write them with a decimal point, "
        "or leave the cell empty if the value is missing"
    )


def _refuse_missing(missing: NDArray[np.bool_], where: str, rules: str) -> None:
    if missing.any():
        raise DataError(
            f"Expected a value in {where} for every record; {counted(missing)} have none: fill it in, or set missing = "
            f"{rules} in the schema"
        )


def _refuse_unknown(found: Reading, where: str, what: str, then: str) -> None:
    if found.wrong.any():
        distinct = len(set(found.values[found.wrong].tolist()))
        raise DataError(
            f"Expected known {what} in {where}; {counted(found.wrong)} hold {distinct} others: correct them, code them "
            f"in a source file, or {then}"
        )


def checked_images(values: NDArray[Any], column: Image, records: tuple[int, ...], where: str) -> NDArray[Any]:
    """Return images as they are, if they are those that a schema expects.

    Raises:
        DataError: another shape, no numbers, no records, or a pixel beyond the bounds.
    """
    if values.shape != (*records, column.height, column.width) or not len(values):
        raise DataError(
            f"Expected images of {column.height} x {column.width} pixels in {where}, one for each record, got an array "
            f"of shape {values.shape}; scale or cut them to this size"
        )
    if values.dtype.kind not in "fiub":
        raise DataError(f"Expected numbers in {where}, got {values.dtype}; store pixels as numbers")
    wrong = outside(values, column)
    if wrong.any():
        raise DataError(
            f"Expected pixels from {column.low:g} to {column.high:g} in {where}, row {int(np.argmax(wrong)) + 1} has "
            "others; correct that image, or widen the bounds in the schema of every party"
        )
    return values


def outside(images: NDArray[Any], column: Image) -> NDArray[np.bool_]:
    """Return which images, shape (n, height, width), have a pixel that is beyond the bounds or no number."""
    fits = (images >= column.low) & (images <= column.high)  # NaN does neither
    return np.logical_not(fits.reshape(len(images), -1).all(axis=1))


def _timed(values: NDArray[Any], time: Number, rows: int, source: Source, where: str) -> Times:
    place = f"{where}, column {time.name!r}"
    if values.shape != (rows,):
        raise DataError(f"Expected {place} to have one value for each of its records")
    ended = "end their observation there, without an event"
    return Times(_checked(values, time, source.origin(time.name), place, clip=ended), time.low, time.high)


def _identified(values: NDArray[Any], rows: int, where: str, origin: Origin) -> NDArray[Any]:
    """Return whose records they are, as text; a record that is nobody's would count for itself, so it is refused."""
    if values.shape != (rows,):
        raise DataError(f"Expected {where} to say of each record whose it is")
    texts = as_texts(values, where, missing=origin.missing)
    if (nobody := texts == "").any():
        raise DataError(
            f"Expected {where} to say of every record whose it is; {counted(nobody)} do not: fill it in, or leave "
            "them out"
        )
    return texts


def _labels(values: NDArray[Any], label: Label, where: str, source: Source) -> Labels:
    found = read_category(values, label, source.origin(label.name), where)
    if found.missing.any():
        raise DataError(
            f"Expected a class in {where} for every record; {counted(found.missing)} have none: fill it in, or leave "
            "them out"
        )
    _refuse_unknown(found, where, "classes", "add them to the schema of every party")
    places = {name: place for place, name in enumerate(label.classes)}
    return np.array([places[name] for name in found.values.tolist()], dtype=np.int64)
