"""Where a party's own records are, and how its columns stand to the schema that all parties share.

    file = "transactions.csv.gz"     # beside this file; or url_file and query, for a database
    separator = ";"
    decimal = ","
    encoding = "latin-1"

    [columns]
    amount = { from = "betrag", unit = "cent", factor = 0.01 }
    booked = { from = "datum", format = "%d.%m.%Y", missing = ["00.00.0000"] }
    channel = { from = "kanal", values = { online = ["W", "2"], shop = ["POS"] } }
    device = { absent = true }

A schema says in public what all have in common; this file says what is only so at one party, stays there, and is in no
message, no ledger and no model. Every place that takes a table takes such a file instead. `docs/schema.md` lists every
key.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import msgspec

from confide.data.dates import is_format
from confide.data.schema import LARGEST_SCHEMA_BYTES, Category, Number, Schema
from confide.data.toml_text import read_toml
from confide.errors import DataError, nearest

#: The largest whole number up to which a float64 has all.
_EXACT = 1 << 53

#: What cannot separate the cells of a CSV file.
_NEVER = '\n\r\0"'

#: How a factor is written; its exponent is bounded before it is taken as a power of ten.
_FACTOR = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]{1,2}|/[0-9]+)?")


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One column in the file."""

    origin: str | None = msgspec.field(default=None, name="from")
    unit: str | None = None
    factor: int | float | str = 1
    offset: int | float | str = 0
    format: str | None = None
    values: dict[str, list[str]] = {}
    missing: list[str] = []
    absent: bool = False


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    file: str | None = None
    url: str | None = None
    url_file: str | None = None
    query: str | None = None
    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8-sig"
    header: list[str] = []
    columns: dict[str, _Entry] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How one column of the schema stands in a party's own table.

    Args:
        name: what the party calls it.
        unit: in which the party has it; None for the schema's.
        factor, offset: of numbers: value * factor + offset is in the schema's unit.
        format: of dates, in place of the schema's.
        values: of categories and classes: the party's texts for each, in place of the schema's.
        missing: texts and numbers that stand for a missing value here, beside those that always do.
        absent: the party does not have it: every value is missing.
        decimal: the mark in numbers that are written as text.
    """

    name: str
    unit: str | None = None
    factor: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    format: str | None = None
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    missing: frozenset[str] = frozenset()
    absent: bool = False
    decimal: str = "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a table is, and how its columns map.

    Args:
        where: what texts call it: a path, never a URL.
        file: a table's file; None for a query or a table in memory.
        table: in memory: whatever offers an Arrow stream, a data frame of pandas or polars, a pyarrow table ...
        url: of a database, as SQLAlchemy has it; it may hold a password and is never shown.
        query: whose rows are the records.
        separator, encoding: of a CSV file.
        decimal: the mark in numbers that are written as text.
        header: the names of its columns, for a CSV file that has no first line of names.
        columns: by the schema's names; a column without an entry has the schema's name and keeps to it in all.
    """

    where: str
    file: Path | None = None
    table: object = field(default=None, repr=False)
    url: str = field(default="", repr=False)
    query: str = ""
    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8-sig"
    header: tuple[str, ...] = ()
    columns: Mapping[str, Origin] = field(default_factory=dict[str, Origin])

    def origin(self, column: str) -> Origin:
        """Return how a column of the schema stands here."""
        return self.columns.get(column, Origin(name=column, decimal=self.decimal))


def open_source(place: object, mapping: Path | None = None) -> Source:
    """Return the source that a place names.

    Args:
        place: the path of a table's file; of a ".toml" file that says where the table is; or a table in memory.
        mapping: for a table in memory, such a file with [columns] alone.

    Raises:
        DataError: the file is absent, or says nothing that can be read as a source; or the table is none.
    """
    if isinstance(place, Path):
        refuse_url(place, "place of a table")
        return read_source(place) if place.suffix == ".toml" else Source(where=str(place), file=place)
    if not hasattr(place, "__arrow_c_stream__"):
        raise DataError(
            f"Expected a path or a table with an Arrow stream (pandas, polars, pyarrow), got {type(place).__name__}"
        )
    found = Source(where="the table") if mapping is None else read_source(mapping, in_memory=True)
    return replace(found, where="the table", table=place)


def refuse_url(place: Path | str, where: str) -> None:
    """Refuse a URL where a path belongs without saying it: it may hold a password. A `Path` has lost a slash."""
    if re.match(r"[A-Za-z0-9+_.-]{2,}:/", str(place)):
        raise DataError(f"Expected a path in {where}, got a URL; write it as url in a source file")


def read_source(path: Path, *, in_memory: bool = False) -> Source:
    """Return what a file such as above says.

    Args:
        path: the file.
        in_memory: the records are at hand; it may say nothing of where they are.

    Raises:
        DataError: it is absent, or says nothing that can be read as a source. No text of a URL is in the error's.
    """
    try:
        table = read_toml(Schema.text(path), max_bytes=LARGEST_SCHEMA_BYTES)
        found = msgspec.convert(table, _File)
    except msgspec.ValidationError as error:
        raise DataError(f"Expected a source of records in {path}; {error}; docs/schema.md lists its keys") from None
    except ValueError as error:
        raise DataError(f"Expected TOML in {path}; {error}") from None
    if in_memory != (found.file is found.url is found.url_file is None):
        wanted = "no file, url or url_file" if in_memory else "one of file, url and url_file"
        raise DataError(f"Expected {wanted} in {path}: where the records are")
    for place in (found.file, found.url_file):
        refuse_url(place or "", f"{path} as file and url_file")
    if found.header and found.file is None:
        raise DataError(
            f"Expected header in {path} together with file, a CSV file without a line of names; leave it out"
        )
    url = _url(found, path)
    if (url != "") != (found.query is not None):
        raise DataError(f"Expected url or url_file together with query in {path}; state both, or a file")
    for name, value, sort in (
        ("separator", found.separator, "one character, no quote and no end of a line"),
        ("decimal", found.decimal, '"." or ","'),
    ):
        if len(value) != 1 or value in _NEVER or (name == "decimal" and value not in ".,"):
            raise DataError(f"Expected {name} in {path} to be {sort}")
    try:
        io.TextIOWrapper(io.BytesIO(), found.encoding)  # refuses what is no encoding of text, such as "rot13", too
    except (LookupError, ValueError):
        raise DataError(f"Expected an encoding that Python knows in {path}; utf-8 and latin-1 are two") from None
    return Source(
        where=str(path),
        file=None if found.file is None else path.parent / found.file,
        url=url,
        query=found.query or "",
        separator=found.separator,
        decimal=found.decimal,
        encoding="utf-8-sig" if found.encoding.lower() in ("utf-8", "utf8") else found.encoding,
        header=tuple(found.header),
        columns={name: _origin(name, entry, found.decimal, path) for name, entry in found.columns.items()},
    )


def check_source(source: Source, schema: Schema) -> None:
    """Refuse a source that says what does not fit the schema: unknown columns, another unit without a factor ...

    Raises:
        DataError: with the column and what to do.
    """
    columns = {column.name: column for column in (*schema.columns, *schema.label.times)}
    known = [name for name, column in columns.items() if not (isinstance(column, Category) and column.part)]
    known += [schema.label.name, *schema.identifiers]
    for name, origin in source.columns.items():
        where = f"columns.{name} of {source.where}"
        if name not in known:
            raise DataError(f"Expected a column of the schema, got {where}{nearest(name, known)}; rename it")
        column = columns.get(name)
        _check_unit(column, origin, where)
        is_date = isinstance(column, Number) and column.date is not None
        if origin.format is not None and not is_date:
            raise DataError(f"Expected no format in {where}; it is no date in the schema")
        classes = column.categories if isinstance(column, Category) else ()
        classes = schema.label.classes if name == schema.label.name else classes
        if strange := [value for value in origin.values if value not in classes]:
            close = nearest(strange[0], classes)
            raise DataError(
                f"Expected categories of the schema in {where}.values, got {strange[0]!r}{close}; rename it"
            )
        if origin.absent and getattr(column, "missing", None) in (None, "refuse"):
            raise DataError(f"Expected no absent column in {where}; the schema refuses missing values of it")


def _check_unit(column: object, origin: Origin, where: str) -> None:
    scaled = (origin.factor, origin.offset) != (1, 0)
    if not isinstance(column, Number) or column.date is not None:
        if scaled or origin.unit is not None:
            raise DataError(f"Expected no unit, factor or offset in {where}; it is no number in the schema")
        return
    other = origin.unit is not None and origin.unit != column.unit
    if other and not scaled:
        raise DataError(
            f"Expected a factor in {where}: its unit {origin.unit!r} is not the schema's {column.unit!r}; state the "
            "factor (and offset) that make it so"
        )
    if scaled and origin.unit == column.unit:
        raise DataError(
            f"Expected no factor or offset in {where}: its unit is the schema's {column.unit!r}; leave one out"
        )


def _origin(name: str, entry: _Entry, decimal: str, path: Path) -> Origin:
    where = f"columns.{name} of {path}"
    if entry.format is not None and not is_format(entry.format):
        raise DataError(f'Expected format in {where} to be "iso", "unix" or one of strptime, such as "%d.%m.%Y"')
    texts = [text for each in entry.values.values() for text in each]
    if len(set(texts)) < len(texts):
        raise DataError(f"Expected different texts in {where}.values; one stands for two categories")
    factor, offset = (_fraction(value, where) for value in (entry.factor, entry.offset))
    if not factor:
        raise DataError(f"Expected a factor other than 0 in {where}")
    return Origin(
        name=name if entry.origin is None else entry.origin,
        unit=entry.unit,
        factor=factor,
        offset=offset,
        format=entry.format,
        values={category: tuple(each) for category, each in entry.values.items()},
        missing=frozenset(entry.missing),
        absent=entry.absent,
        decimal=decimal,
    )


def _fraction(value: float | str, where: str) -> Fraction:
    """Return a factor as it is written: 0.01 is one hundredth, "5/9" five ninths."""
    try:
        text = str(value)
        found = Fraction(text) if len(text) <= 64 and _FACTOR.fullmatch(text) else None
    except (ValueError, ZeroDivisionError):
        found = None
    if found is None or abs(found.numerator) >= _EXACT or found.denominator >= _EXACT:
        raise DataError(
            f'Expected a number of at most 15 digits, or a fraction such as "5/9", for factor and offset in {where}'
        )
    return found


def _url(found: _File, path: Path) -> str:
    if found.url_file is None:
        return found.url or ""
    place = path.parent / found.url_file
    try:
        with place.open("rb") as file:
            lines = file.read(LARGEST_SCHEMA_BYTES).decode().split()
    except (OSError, ValueError):
        raise DataError(f"Expected a readable file with the database's URL at {place}") from None
    if len(lines) != 1:
        raise DataError(f"Expected one line, the database's URL, in {place}")
    return lines[0]
