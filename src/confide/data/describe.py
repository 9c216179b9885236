"""A draft of a schema from the names and types of a table's columns: what may be written down without an account.

Bounds and categories are left open, because what a table's values are is not public and a schema is. Of a typed table
the types are its own; of a CSV file a column is a number, a date or a text by whether every cell is one: that one word
for each column is all in a draft that depends on records. Where that is too much, somebody says which are numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.data.dates import ISO, is_format, to_days
from confide.data.files import is_csv, present, raw_columns, read_cells, typed_columns
from confide.data.reading import to_number
from confide.data.schema import MISSING_MARKERS
from confide.data.source import Source, open_source

#: Lines of a draft; each is no schema yet until somebody has filled it in.
_LINES: Mapping[str, str] = {
    "number": '{ type = "number", unit = "", low = 0, high = 0 }',
    "whole number": '{ type = "number", unit = "", low = 0, high = 0 }  # whole numbers; a code is a category',
    "text": '{ type = "category", categories = [] }',
    "yes or no": '{ type = "category", categories = ["false", "true"] }',
    "date": '{ type = "date" }  # low and high, without quotes: 2020-01-01',
    "images": '{ type = "image", height = 0, width = 0 }',
    "open": "{}  # a number, a category or a date: no record was asked",
    "": "{}  # of a type that no column can have",
}

_HEAD = """\
# A draft: names and types of the columns, and no value of any record. Fill in bounds, units and categories from what
# can occur (a code book, a form, a clinical range), never from what did occur; docs/schema.md lists every key.
name = {name}
source = ""

[label]
name = {label}
classes = []

[columns]
"""


def draft(
    place: object, *, label: str = "", bounds: Mapping[str, str] | None = None, numbers: Sequence[str] | None = None
) -> str:
    """Return the draft of a schema, as TOML.

    Args:
        place: of a table, as `read_table` takes it.
        label: the column to predict, which is then no input.
        bounds: lines in place of the open ones, by column: what a charged release said.
        numbers: as in `kinds_of`.

    Raises:
        DataError: there is no such table.
        MissingExtra: the package for this kind of table is not installed.

    Example:
        >>> import pyarrow
        >>> print(draft(pyarrow.table({"age": [41.5], "ill": ["no"]}), label="ill").partition("[columns]")[2].strip())
        age = { type = "number", unit = "", low = 0, high = 0 }
    """
    name = place.stem.partition(".")[0] if isinstance(place, Path) else ""
    kinds = kinds_of(place, numbers=numbers)
    lines = [
        f"{_key(column)} = {(bounds or {}).get(column) or _LINES[kind]}"
        for column, kind in kinds.items()
        if column != label
    ]
    return _HEAD.format(name=json.dumps(name), label=json.dumps(label)) + "\n".join(lines) + "\n"


def states_types(place: object) -> bool:
    """Return whether a table says itself which columns are numbers: no CSV file does, and of a query only its rows."""
    source = open_source(place)
    return not is_csv(source) and not source.query


def kinds_of(place: object, *, numbers: Sequence[str] | None = None) -> dict[str, str]:
    """Return the kind of each column, a key of `_LINES`, by its name; errors as of `draft`.

    Args:
        place: of a table.
        numbers: columns that somebody says are numbers; where a table does not state types, no cell is then looked at.
    """
    source = open_source(place)
    if numbers is not None and not states_types(place):
        names = read_cells(source)[0] if is_csv(source) else [*typed_columns(source)]
        said = {source.origin(name).name for name in numbers}
        kinds = {name: "number" if name in said else "open" for name in names}
    elif is_csv(source):
        header, rows = read_cells(source)
        whole = [row for row in rows if len(row) == len(header)]
        kinds = {name: _kind([row[at] for row in whole], source, name) for at, name in enumerate(header)}
    else:
        kinds = typed_columns(source)
    ours = {origin.name: name for name, origin in source.columns.items()}
    return {ours.get(name, name): kind for name, kind in kinds.items()}


def numbers_of(place: object, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return columns of numbers, NaN where there is none, for a release of bounds; errors as of `draft`.

    What is no number counts for nothing, nor does a row of a CSV file with more or fewer cells than the header.
    """
    source = open_source(place)
    theirs = [source.origin(name).name for name in names]
    if is_csv(source):
        header, rows = read_cells(source)
        present(theirs, header, source.where)
        whole = [row for row in rows if len(row) == len(header)]
        raw = {name: np.array([row[header.index(name)] for row in whole], dtype=object) for name in theirs}
    else:
        raw = raw_columns(source, theirs)
    return {name: _floats(raw[its], source.decimal) for name, its in zip(names, theirs, strict=True)}


def _floats(values: NDArray[Any], decimal: str) -> NDArray[np.float64]:
    if values.dtype.kind in "fiub":
        return values.astype(np.float64)
    out = np.full(len(values), np.nan)
    for row, value in enumerate(values.tolist()):
        text = "" if value is None else str(value)
        if _holds(text, lambda cell: to_number(cell.replace(decimal, "."))):
            out[row] = to_number(text.replace(decimal, "."))
    return out


def _kind(cells: Sequence[str], source: Source, name: str) -> str:
    """Return "number", "date" or "text": what every cell of a CSV file's column is."""
    present = [cell for cell in cells if cell not in MISSING_MARKERS]
    form = next((origin.format for origin in source.columns.values() if origin.name == name), None) or ISO
    if present and all(_holds(cell, lambda cell: to_number(cell.replace(source.decimal, "."))) for cell in present):
        return "number"
    if present and is_format(form) and all(_holds(cell, lambda cell: to_days(cell, form)) for cell in present):
        return "date"
    return "text"


def _holds(cell: str, parse: Callable[[str], float]) -> bool:
    try:
        parse(cell)
    except ValueError:
        return False
    return True


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
