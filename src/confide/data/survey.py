"""A table looked at as a whole: everything in which it departs from a schema, counted, before anything is trained.

`confide.data.table` stops at the first problem, because nothing may be computed from a table that has one. Here a
person mends a table: every problem of every column is found at once, with the rows, and with what is allowed but looks
wrong (a column that never changes, numbers in another unit, a class without records).

A finding counts and names rows. Numbers are never in it; texts that a schema does not know are, since they are what has
to be mended, and only in `Finding.texts`, so that whoever passes a finding on can leave them out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from confide.data.files import is_csv, raw_columns, read_cells, refuse_images
from confide.data.reading import Reading, as_texts, read_category, read_number
from confide.data.schema import Category, Image, Label, Number, Schema
from confide.data.source import Origin, Source, check_source, open_source
from confide.data.table import bounds_text, checked_images, images_of, names_at, outside, outside_bounds
from confide.errors import DataError, nearest

#: Rows and texts that a finding names.
MOST_NAMED = 10

_LONGEST_TEXT = 40
_MOSTLY_MISSING = 0.5
_NARROW = 0.02  # of the schema's range
_FITTING = 0.95  # of the values outside, for another unit to be a guess

#: A unit that is often found where a schema asks for one of others: value * factor + shift is in the schema's.
_UNITS: Sequence[tuple[str, tuple[str, ...], float, float]] = (
    ("in days", ("years", "year", "y", "a"), 1 / 365.25, 0.0),
    ("in months", ("years", "year", "y", "a"), 1 / 12, 0.0),
    ("in m", ("cm",), 100.0, 0.0),
    ("in mm", ("cm",), 0.1, 0.0),
    ("in inches", ("cm",), 2.54, 0.0),
    ("in cm", ("m",), 0.01, 0.0),
    ("in g", ("kg",), 0.001, 0.0),
    ("in pounds", ("kg", "kilograms"), 0.45359237, 0.0),
    ("in kg", ("g",), 1000.0, 0.0),
    ("in Fahrenheit", ("C", "°C", "Celsius"), 5 / 9, -160 / 9),
    ("in Kelvin", ("C", "°C", "Celsius"), 1.0, -273.15),
    ("in Celsius", ("F", "°F", "Fahrenheit"), 1.8, 32.0),
    ("glucose in mg/dl", ("mmol/l", "mmol/L"), 1 / 18.016, 0.0),
    ("cholesterol in mg/dl", ("mmol/l", "mmol/L"), 1 / 38.67, 0.0),
    ("glucose in mmol/l", ("mg/dl", "mg/dL"), 18.016, 0.0),
    ("creatinine in umol/l", ("mg/dl", "mg/dL"), 1 / 88.42, 0.0),
    ("in kPa", ("mmHg",), 7.50062, 0.0),
)

#: The same for units that are not known by name.
_POWERS: Sequence[tuple[str, float]] = (
    ("divided by 1000", 1e-3),
    ("multiplied by 1000", 1e3),
    ("divided by 100", 1e-2),
    ("multiplied by 100", 1e2),
    ("divided by 10", 1e-1),
    ("multiplied by 10", 1e1),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a table that its owner should know.

    Args:
        level: a "problem" keeps the table from being read; a "warning" does not.
        where: a column, or "" for the table.
        text: one sentence without values.
        count: cells or records that it is about; 0 where none are counted.
        rows: the first of them, from 1 below the header.
        texts: unknown texts with their counts, the most frequent ones.
    """

    level: Literal["problem", "warning"]
    where: str
    text: str
    count: int = 0
    rows: tuple[int, ...] = ()
    texts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class ColumnCount:
    """One column in counts.

    Args:
        name, unit: as the schema has them.
        kind: "number", "category", "image" or "label".
        missing: cells without a value.
        wrong: cells that are no number, no known category, or no known class.
        outside: numbers, and images with pixels, beyond the bounds.
    """

    name: str
    unit: str
    kind: str
    missing: int
    wrong: int
    outside: int = 0


@dataclass(frozen=True, slots=True)
class Survey:
    """What a table looks like beside a schema.

    Args:
        records: rows below the header.
        columns: of the schema that the table has.
        classes: records of each class.
        ignored: columns of the table that the schema does not name.
        findings: problems and warnings, column by column.
    """

    records: int
    columns: tuple[ColumnCount, ...]
    classes: Mapping[str, int]
    ignored: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Return the findings that keep the table from being read."""
        return tuple(finding for finding in self.findings if finding.level == "problem")


def survey(place: object, schema: Schema) -> Survey:
    """Return everything in which a table departs from a schema; nothing is raised for what is in the file.

    Args:
        place: of a table, as `read_table` takes it.
        schema: what it should keep to.

    **Guarantees**: there are problems exactly where `read_table` refuses the table.
    """
    try:
        source = open_source(place)
        check_source(source, schema)
        raw, records, ragged = _columns_of(source, schema)
    except DataError as error:
        return Survey(0, (), {}, (), (Finding("problem", "", str(error)),))
    findings: list[Finding] = []
    counts: list[ColumnCount] = []
    classes: dict[str, int] = {}
    asked = (*schema.columns, *schema.label.times, schema.label)
    for column in asked:
        origin = source.origin(column.name)
        if isinstance(column, Category) and column.part:
            continue  # of a date, which is looked at itself
        if origin.name not in raw and not origin.absent:
            close = nearest(origin.name, raw)
            findings.append(Finding("problem", column.name, f"there is no such column{close}; add or rename it"))
            continue
        values = np.empty(records - len(ragged)) if origin.absent else raw[origin.name]
        try:
            match column:
                case Image():
                    count, found = _image(column, values, records)
                case Number():
                    count, found = _number(column, values, origin)
                case Category():
                    count, found = _category(column, values, origin)
                case Label():
                    count, found, classes = _label(column, values, origin)
        except DataError as error:  # about the column as a whole
            findings.append(Finding("problem", column.name, str(error)))
            continue
        counts.append(count)
        findings += found
    findings += _identifiers(schema, raw, source)
    if ragged:  # their cells belong to no column, so the others were counted without them
        numbers = sorted(set(range(1, records + 1)) - set(ragged))
        findings = [replace(one, rows=tuple(numbers[row - 1] for row in one.rows)) for one in findings]
        text = "records have more or fewer cells than the header; quote cells that contain the separator"
        findings.insert(0, _counted("problem", "", text, ragged))
    known = {source.origin(column.name).name for column in asked} | {
        source.origin(name).name for name in schema.identifiers
    }
    ignored = tuple(name for name in raw if name not in known)
    return Survey(records, tuple(counts), classes, ignored, tuple(findings))


def _columns_of(source: Source, schema: Schema) -> tuple[dict[str, NDArray[Any]], int, list[int]]:
    """Return the raw columns, the number of records, and which have cells too many or too few."""
    if is_csv(source):
        refuse_images(source.where, images_of(schema))
        header, rows = read_cells(source)
        whole = [row for row in rows if len(row) == len(header)]
        ragged = [number for number, row in enumerate(rows, 1) if len(row) != len(header)]
        cells = {name: np.array([row[place] for row in whole], dtype=object) for place, name in enumerate(header)}
        return cells, len(rows), ragged
    names = names_at(source, schema)
    raw = raw_columns(source, [*dict.fromkeys(names.values())], images=[names[name] for name in images_of(schema)])
    records = len(raw[names[schema.label.name]])
    if not records:
        raise DataError(f"Expected at least one record in {source.where}; its columns are empty")
    return raw, records, []


def _identifiers(schema: Schema, raw: Mapping[str, NDArray[Any]], source: Source) -> Iterator[Finding]:
    """Yield a problem for each identifier that is absent or does not say of every record whose it is."""
    for name in schema.identifiers:
        origin = source.origin(name)
        if origin.name not in raw:
            yield Finding("problem", name, f"there is no such column{nearest(origin.name, raw)}; add or rename it")
            continue
        try:
            texts = as_texts(raw[origin.name], f"column {name!r}", missing=origin.missing)
        except DataError as error:
            yield Finding("problem", name, str(error))
            continue
        if nobody := _rows(texts == ""):
            yield _counted(
                "problem", name, "cells do not say whose record it is; fill it in, or leave them out", nobody
            )


def _rows(where: NDArray[np.bool_]) -> list[int]:
    return [row + 1 for row in np.flatnonzero(where).tolist()]


def _number(column: Number, raw: NDArray[Any], origin: Origin) -> tuple[ColumnCount, list[Finding]]:
    found = read_number(raw, column, origin, f"column {column.name!r}")
    values, missing, wrong = found.values, _rows(found.missing), _rows(found.wrong)
    outside = _rows(outside_bounds(values, column))
    findings: list[Finding] = []
    if wrong and column.date is not None:
        text = "cells hold no date in the stated format; correct them, or state this table's format in a source file"
        findings.append(_counted("problem", column.name, text, wrong))
    elif wrong:
        comma = any(re.fullmatch(r"-?\d+,\d+", str(raw[row - 1])) for row in wrong)
        hint = "; some have a decimal comma: write a point, or say so in a source file" if comma else ""
        hint = hint or "; write a number, or leave the cell empty"
        findings.append(_counted("problem", column.name, f"cells hold no number{hint}", wrong))
    findings += _missing(column.name, missing, len(raw), refused=column.missing is None)
    if outside:
        text = f"values are outside of {bounds_text(column).removeprefix('from ')}"
        clipped = column.outside == "clip"
        text += "; the schema clips them" if clipped else '; correct them, or let the schema say outside = "clip"'
        findings.append(_counted("warning" if clipped else "problem", column.name, text, outside))
    if column.date is None:
        findings += _units(column, values[np.isfinite(values)], len(outside))
    findings += _constant(column.name, values[~np.isnan(values)].tolist())
    unit = column.unit if column.date is None else "date"
    return ColumnCount(column.name, unit, "number", len(missing), len(wrong), len(outside)), findings


def _units(column: Number, values: NDArray[np.float64], outside: int) -> Iterator[Finding]:
    """Yield a warning if values look as if somebody had measured in another unit."""
    if not len(values):
        return
    beyond = values[(values < column.low) | (values > column.high)]
    if outside >= max(2, 0.01 * len(values)) and len(beyond):
        named = [(words, factor, shift) for words, units, factor, shift in _UNITS if column.unit in units]
        for words, factor, shift in [*named, *((words, factor, 0.0) for words, factor in _POWERS)]:
            within = beyond * factor + shift
            if np.mean((within >= column.low) & (within <= column.high)) >= _FITTING:
                text = f"the values outside would fit if they were {words}; check the unit"
                yield Finding("warning", column.name, text, outside)
                return
    low, high = np.quantile(values, [0.05, 0.95])
    room = _NARROW * (column.high - column.low)
    if low < high and high - low < room and (high < column.low + room or low > column.high - room):
        end = "low" if high < column.low + room else "high"
        share = f"{100 * _NARROW:.0f} % of the schema's range, at its {end} end"
        yield Finding("warning", column.name, f"nearly all values lie within {share}; check the unit", len(values))


def _category(column: Category, raw: NDArray[Any], origin: Origin) -> tuple[ColumnCount, list[Finding]]:
    found = read_category(raw, column, origin, f"column {column.name!r}")
    findings = _texts(column.name, found, set(column.categories), column.missing == "refuse", "categories")
    findings += _constant(column.name, found.values[~found.missing].tolist())
    return ColumnCount(column.name, "", "category", int(found.missing.sum()), int(found.wrong.sum())), findings


def _image(column: Image, values: NDArray[Any], records: int) -> tuple[ColumnCount, list[Finding]]:
    findings, beyond = list[Finding](), list[int]()
    if values.dtype.kind in "fiub" and values.ndim == 3:
        beyond = [row + 1 for row in np.flatnonzero(outside(values, column)).tolist()]
    if beyond:
        text = f"images have pixels outside of {column.low:g} to {column.high:g}; correct them, or widen the bounds"
        findings.append(_counted("problem", column.name, text, beyond))
    else:
        try:
            checked_images(values, column, (records,), f"column {column.name!r}")
            findings += _constant(column.name, [image.tobytes() for image in values])
        except DataError as error:  # the size or the type of all of them: no pixel is in the text
            findings.append(Finding("problem", column.name, str(error)))
    return ColumnCount(column.name, "", "image", 0, 0, len(beyond)), findings


def _label(label: Label, raw: NDArray[Any], origin: Origin) -> tuple[ColumnCount, list[Finding], dict[str, int]]:
    found = read_category(raw, label, origin, f"column {label.name!r}")
    findings = _texts(label.name, found, {text for texts in label.values.values() for text in texts}, True, "classes")
    counts = Counter[str](found.values[~found.wrong & ~found.missing].tolist())
    for name in label.classes:
        if not counts[name]:
            findings.append(Finding("warning", label.name, f"no record is of the class {name!r}"))
    classes = {name: counts[name] for name in label.classes}
    return ColumnCount(label.name, "", "label", int(found.missing.sum()), int(found.wrong.sum())), findings, classes


def _texts(name: str, found: Reading, known: set[str], refused: bool, what: str) -> list[Finding]:
    """Return the findings about a column of texts: its missing cells, and those that are not known."""
    unknown = _rows(found.wrong)
    findings = _missing(name, _rows(found.missing), len(found.values), refused=refused)
    if unknown:
        texts = Counter[str](found.values[found.wrong].tolist())
        text = f"cells hold {len(texts)} {what} that the schema does not know"
        if any(word.casefold() in {one.casefold() for one in known} for word in texts):
            text += "; some differ in upper and lower case alone"
        named = {word[:_LONGEST_TEXT]: count for word, count in texts.most_common(MOST_NAMED)}
        findings.append(Finding("problem", name, text, len(unknown), tuple(unknown[:MOST_NAMED]), named))
    return findings


def _missing(name: str, rows: list[int], cells: int, *, refused: bool) -> list[Finding]:
    if rows and refused:
        return [_counted("problem", name, "cells are empty, and the schema refuses missing values", rows)]
    if rows and len(rows) >= _MOSTLY_MISSING * cells:
        share = 100 * len(rows) / cells
        return [_counted("warning", name, f"cells are empty: {share:.0f} % of the records", rows)]
    return []


def _constant(name: str, values: Sequence[object]) -> list[Finding]:
    if len(values) > 1 and len(set(values)) == 1:
        return [Finding("warning", name, "every record has the same value; the column tells nothing here", len(values))]
    return []


def _counted(level: Literal["problem", "warning"], where: str, text: str, rows: Sequence[int]) -> Finding:
    return Finding(level, where, text, len(rows), tuple(rows[:MOST_NAMED]))
