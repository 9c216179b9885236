"""A party's own table: read from CSV or npz, and checked against the schema before anything else sees it.

These are the reader's own local files, so a refusal names file, column, row and value, which no text that crosses the
wire may do. Rows count from 1 below the header, columns are found by name, and columns that the schema does not name
are left out.
"""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from confide.data.schema import MISSING_MARKERS, Category, Image, Label, Number, Schema
from confide.errors import DataError, nearest

#: Most bytes that the columns of an archive may fill once they are unpacked; 33 million values.
LARGEST_UNPACKED_BYTES = 1 << 30

_LEAST_VALUE_BYTES = 32  # a packed value may have one byte, but becomes a float64 or a Python text
_HEADERS: Mapping[tuple[int, int], Any] = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}

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


def read_table(path: Path, schema: Schema) -> Table:
    """Read a table as its name says: ".npz" with `read_npz`, anything else with `read_csv`."""
    return read_npz(path, schema) if path.suffix == ".npz" else read_csv(path, schema)


def read_csv(path: Path, schema: Schema) -> Table:
    """Read a CSV file: UTF-8, commas, a header; "", "?" and "NA" stand for missing values.

    Raises:
        DataError: the file is absent, empty or no such CSV; a column is missing; or a value breaks the schema.
    """
    refuse_images(path, images_of(schema))
    numbers = [column.name for column in (*schema.columns, *schema.label.times) if isinstance(column, Number)]
    texts = [column.name for column in schema.columns if isinstance(column, Category)]
    raw = read_columns(path, numbers=numbers, texts=[*texts, *schema.identifiers, schema.label.name])
    return check(raw, schema, where=str(path))


def read_npz(path: Path, schema: Schema) -> Table:
    """Read a numpy archive with one array for each column; arrays of objects (pickles) are refused.

    An array has shape (n,) or (n, 1), that of a column of images (n, height, width).

    Raises:
        DataError: the file is absent or no such archive; it unpacks to more than 1 GiB; a column is missing; or a value
            breaks the schema.
    """
    names = [*(column.name for column in schema.columns), *schema.identifiers]
    names += [*(time.name for time in schema.label.times), schema.label.name]
    return check(read_arrays(path, names, images=images_of(schema)), schema, where=str(path))


def images_of(schema: Schema) -> tuple[str, ...]:
    """Return the names of the columns that hold images."""
    return tuple(column.name for column in schema.columns if isinstance(column, Image))


def refuse_images(path: Path, images: Sequence[str]) -> None:
    """Refuse to look for columns of images in a CSV file."""
    if images:
        raise DataError(f"Expected a numpy archive (.npz) for the images of column {images[0]!r}, got {path}")


def read_arrays(path: Path, names: Sequence[str], *, images: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """Return the arrays of these names in a numpy archive, as they are; the last name's gives the number of records.

    Args:
        path: the archive.
        names: of arrays of shape (n,) or (n, 1), which become (n,); those of `images` have three axes.
        images: names that hold images.

    Raises:
        DataError: as `read_npz` says of the file itself.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            _present(names, archive.files, str(path))
            _bounded(archive.zip, names, str(path), images)
            return {name: archive[name] if name in images else _flat(archive[name]) for name in names}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"Expected a readable table at {path}; {error.strerror or 'it is no numpy archive'}") from None
    except Exception:  # a pickle, a lone array, or whatever numpy and zipfile say to a damaged archive
        raise DataError(f"Expected a numpy archive of number and text arrays at {path}; np.savez writes one") from None


def read_columns(path: Path, *, numbers: Collection[str], texts: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read some columns of a CSV file by name, without a schema: what a client needs for a prediction.

    Args:
        path: as in `read_csv`.
        numbers: columns to return as float64, NaN where missing.
        texts: columns to return as text (object), "" where missing.

    Returns:
        The columns, each of shape (n,), n >= 1.

    Raises:
        DataError: the file is absent, empty or no such CSV; a column is missing; a number is none.
    """
    header, rows = _rows(path)
    _present([*numbers, *texts], header, str(path))
    places = {name: place for place, name in enumerate(header)}
    cells = {name: [row[places[name]] for row in rows] for name in (*numbers, *texts)}
    columns: dict[str, NDArray[Any]] = {name: _numbers(cells[name], name, str(path)) for name in numbers}
    return columns | {name: _texts(cells[name]) for name in texts}


def check(raw: Columns, schema: Schema, *, where: str) -> Table:
    """Return the table in raw columns.

    Args:
        raw: at least the schema's columns and its label, each of shape (n,), images (n, height, width).
        schema: what they must keep to.
        where: what the texts call the table.

    Raises:
        DataError: there are no records, lengths differ, or a value breaks the schema.
    """
    label, timed = schema.label, schema.label.times
    _present([*(one.name for one in (*schema.columns, *timed)), *schema.identifiers, label.name], raw, where)
    shape = raw[schema.label.name].shape
    columns: dict[str, NDArray[Any]] = {}
    for column in schema.columns:
        values = raw[column.name]
        place = f"{where}, column {column.name!r}"
        if isinstance(column, Image):
            columns[column.name] = checked_images(values, column, shape, place)
            continue
        if values.shape != shape or values.ndim != 1 or not len(values):
            raise DataError(f"Expected column {column.name!r} of {where} to have one value for each of its records")
        columns[column.name] = (
            _checked_numbers(values, column, place)
            if isinstance(column, Number)
            else _checked_texts(values, column, place)
        )
    identifiers = {name: _identified(raw[name], shape, f"{where}, column {name!r}") for name in schema.identifiers}
    labels = _labels(raw[label.name], label, f"{where}, column {label.name!r}")
    times = [Times(_timed(raw[one.name], one, shape, where), one.low, one.high) for one in timed]
    return Table(columns, labels, identifiers, times[0] if times else None)


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the records of a CSV file, one cell for each column."""
    header, rows = read_cells(path)
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(
                f"Expected {len(header)} cells in {path}, row {number}, got {len(row)}; "
                "quote cells that contain a comma"
            )
    return header, rows


def read_cells(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the records of a CSV file, cells stripped; records may be too long or short.

    Raises:
        DataError: the file is absent, empty or no such CSV, or two columns have one name.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [[cell.strip() for cell in row] for row in csv.reader(file, strict=True) if row]
    except OSError as error:
        raise DataError(f"Expected a readable table at {path}; {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"Expected comma-separated UTF-8 text in {path}; {error}") from None
    if len(lines) < 2:
        raise DataError(f"Expected a header and at least one record in {path}; the file is empty")
    header, *rows = lines
    if len(header) == 1 and ";" in header[0]:
        raise DataError(
            f"Expected comma-separated text in {path}; this is separated by semicolons: save it with commas"
        )
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"Expected different column names in the header of {path}, got {name!r} twice; rename one")
    return header, rows


def _bounded(archive: zipfile.ZipFile, names: Sequence[str], where: str, images: Collection[str]) -> None:
    """Refuse, by the headers alone, arrays that are large once unpacked or that are no columns of one table."""
    size, members = 0, archive.namelist()
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        with archive.open(f"{name}.npy" if f"{name}.npy" in members else name) as member:
            shapes[name], _, dtype = _HEADERS[read_magic(member)](member)
        size += math.prod(shapes[name]) * (
            dtype.itemsize if name in images else max(dtype.itemsize, _LEAST_VALUE_BYTES)
        )
    records = shapes[names[-1]][:1]  # the label's
    for name, shape in shapes.items():
        fits = len(shape) == (3 if name in images else 1) or (name not in images and shape == (*records, 1))
        if shape[:1] != records or not fits:
            raise DataError(f"Expected column {name!r} of {where} to have one value for each of its records")
    if size > LARGEST_UNPACKED_BYTES:
        raise DataError(f"Expected {where} to unpack to at most {LARGEST_UNPACKED_BYTES} bytes, got {size}; split it")


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    """Return a column as shape (n,); some archives store it as a table of one column, shape (n, 1)."""
    return values[:, 0] if values.ndim == 2 else values


def _present(names: Collection[str], found: Collection[str], where: str) -> None:
    for name in names:
        if name not in found:
            raise DataError(f"Expected a column {name!r} in {where}{nearest(name, found)}; add or rename it")


def _numbers(cells: Sequence[str], name: str, where: str) -> NDArray[np.float64]:
    out = np.empty(len(cells))
    for row, cell in enumerate(cells):
        try:
            out[row] = math.nan if cell in MISSING_MARKERS else to_number(cell)
        except ValueError:
            raise DataError(
                f"Expected a number in {where}, column {name!r}, row {row + 1}, got {cell!r}; "
                f"write it with a decimal point, or leave the cell empty if it is missing"
            ) from None
    return out


def to_number(cell: str) -> float:
    """Return the finite number in a cell.

    Raises:
        ValueError: there is none.
    """
    value = float(cell)
    if not math.isfinite(value) or "_" in cell:  # float() takes "nan", "inf" and "1_000"
        raise ValueError
    return value


def _texts(cells: Sequence[str]) -> NDArray[Any]:
    return np.array(["" if cell in MISSING_MARKERS else cell for cell in cells], dtype=object)


def _checked_numbers(values: NDArray[Any], column: Number, where: str) -> NDArray[np.float64]:
    if values.dtype.kind not in "fiub":
        raise DataError(f"Expected numbers in {where}, got {values.dtype}; store them as numbers")
    numbers = values.astype(np.float64)
    absent = np.isnan(numbers)
    if column.missing is None and absent.any():
        raise DataError(_no_value(absent, where, '"low", "middle", "high" or a number'))
    beyond = (numbers < column.low) | (numbers > column.high)
    if column.outside == "refuse" and beyond.any():
        row = int(np.argmax(beyond))
        unit = f" {column.unit}" if column.unit else ""
        raise DataError(
            f"Expected a value from {column.low:g} to {column.high:g}{unit} in {where}, row {row + 1}, got "
            f'{numbers[row]:g}; correct it, widen the bounds, or set outside = "clip" in the schema'
        )
    return numbers


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


def _checked_texts(values: NDArray[Any], column: Category, where: str) -> NDArray[Any]:
    texts = _stripped(values, where)
    if column.missing == "refuse" and (texts == "").any():
        raise DataError(_no_value(texts == "", where, '"level"'))
    for row, text in enumerate(texts):
        if text and text not in column.categories:
            raise DataError(
                f"Expected a known category in {where}, row {row + 1}, got {text!r}"
                f"{nearest(text, column.categories)}; correct it, or add it to the schema of every party"
            )
    return texts


def _timed(values: NDArray[Any], time: Number, records: tuple[int, ...], where: str) -> NDArray[np.float64]:
    if values.shape != records:
        raise DataError(f"Expected column {time.name!r} of {where} to have one value for each of its records")
    return _checked_numbers(values, time, f"{where}, column {time.name!r}")


def _identified(values: NDArray[Any], records: tuple[int, ...], where: str) -> NDArray[Any]:
    """Return whose records they are, as text; a record that is nobody's would count for itself, so it is refused."""
    if values.shape != records:
        raise DataError(f"Expected {where} to say of each record whose it is")
    texts = _stripped(values, where)
    if (texts == "").any():
        row = int(np.argmax(texts == "")) + 1
        raise DataError(f"Expected {where}, row {row} to say whose record it is; fill it in, or leave that row out")
    return texts


def _labels(values: NDArray[Any], label: Label, where: str) -> Labels:
    classes = {text: index for index, name in enumerate(label.classes) for text in label.values[name]}
    out = np.empty(len(values), np.int64)
    for row, text in enumerate(_stripped(values, where)):
        if text not in classes:
            raise DataError(
                f"Expected a known class in {where}, row {row + 1}, got {text!r}{nearest(text, classes)}; "
                f"known are {', '.join(classes)}"
            )
        out[row] = classes[text]
    return out


def _stripped(values: NDArray[Any], where: str) -> NDArray[Any]:
    """Return values as text: whole numbers as such, so that 1 stands for "1", None and markers as ""."""
    if values.dtype.kind not in "OUiu":
        raise DataError(f"Expected text in {where}, got {values.dtype}; store it as text or as whole numbers")
    return _texts(["" if value is None else str(value).strip() for value in values.tolist()])


def _no_value(absent: NDArray[np.bool_], where: str, rules: str) -> str:
    row = int(np.argmax(absent)) + 1
    return f"Expected a value in {where}, row {row}; fill it in, or set missing = {rules} in the schema"
