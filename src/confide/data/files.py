"""The columns of a table as they lie in a file, a database or memory, before anybody says what they mean.

CSV (".csv", ".csv.gz", and whatever has another name), numpy archives (".npz"), Parquet (".parquet"), Arrow (".arrow",
".feather"), a query's rows, and whatever offers an Arrow stream (data frames of pandas, polars, pyarrow ...). A column
comes back as `reading` takes it.

No text of an error holds a cell: of a file without a header the first record stands where names belong, so names of
columns are shown only where they can be names.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from confide.data.reading import to_number
from confide.data.schema import MISSING_MARKERS
from confide.data.source import Source, read_source, refuse_url
from confide.errors import DataError, MissingExtra, nearest

#: Most bytes that the columns of a packed table may fill once they are unpacked; 33 million values.
LARGEST_UNPACKED_BYTES = 1 << 30

#: What a value may become: one byte in an archive, a float64 or a Python text here.
LEAST_VALUE_BYTES = 32

#: Suffixes of files that pyarrow reads.
ARROW_FILES = (".parquet", ".arrow", ".feather")

_LONGEST_LINE = 1 << 24
_PIECE_BYTES = 1 << 20
_HEADERS: Mapping[tuple[int, int], Any] = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}

Columns = dict[str, NDArray[Any]]

_KINDS: Mapping[str, str] = {
    "f": "number",
    "i": "whole number",
    "u": "whole number",
    "b": "yes or no",
    "U": "text",
    "M": "date",
}


def raw_columns(source: Source, names: Sequence[str], *, images: Collection[str] = ()) -> Columns:
    """Return the columns of these names, raw, all of the same length.

    Args:
        source: where they are.
        names: the party's own names; the last is there in every table (the label).
        images: names that hold images; only an archive can.

    Raises:
        DataError: there is no such table, a column is missing, or it cannot be read.
        MissingExtra: the package for this kind of table is not installed.
    """
    if source.header and not is_csv(source):
        raise DataError(f"Expected no header in {source.where}: its file has names of its own; leave it out")
    if source.file is not None and source.file.suffix == ".npz":
        return read_arrays(source.file, names, images=images)
    refuse_images(source.where, images)
    if not is_csv(source):
        return _with_arrow(source, names)
    header, rows = read_cells(source)
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(
                f"Expected {len(header)} cells in {source.where}, row {number}, got {len(row)}; "
                "quote cells that contain the separator"
            )
    present(names, header, source.where)
    return {name: _column(rows, header.index(name)) for name in names}


def _with_arrow(source: Source, names: Sequence[str]) -> Columns:
    try:
        from confide.data.arrow import read_file, read_stream

    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "pyarrow").partition(".")[0], "tables") from None
    if source.file is not None:
        return read_file(source.file, names, source.where)
    return read_stream(_rows_or_table(source), names, source.where)


def _rows_or_table(source: Source) -> object:
    if not source.query:
        return source.table
    try:
        from confide.data.database import query_table
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "SQLAlchemy").partition(".")[0], "tables") from None
    return query_table(source)


def typed_columns(source: Source) -> dict[str, str]:
    """Return the kind of each column of a table that has types, by its name, without its values.

    Kinds are "number", "whole number", "text", "date", "yes or no", "images" and "" for what no column can be.

    Raises:
        DataError: there is no such table.
        MissingExtra: the package for this kind of table is not installed.
    """
    if source.file is not None and source.file.suffix == ".npz":
        return _kinds_of_archive(source.file)
    try:
        from confide.data.arrow import types_of
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "pyarrow").partition(".")[0], "tables") from None
    return dict(types_of(source.file or _rows_or_table(source), source.where))


def _kinds_of_archive(path: Path) -> dict[str, str]:
    kinds: dict[str, str] = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                with archive.zip.open(f"{name}.npy") as member:
                    shape, _, dtype = _HEADERS[read_magic(member)](member)
                kinds[name] = "images" if len(shape) == 3 else _KINDS.get(dtype.kind, "")
    except OSError as error:
        raise DataError(f"Expected a readable table at {path}; {error.strerror or 'it is no numpy archive'}") from None
    except Exception:  # whatever numpy and zipfile say to a damaged archive
        raise DataError(f"Expected a numpy archive of number and text arrays at {path}; np.savez writes one") from None
    return kinds


def digest_of(place: Path) -> str:
    """Return the hex SHA-256 of a table: of its file; with a source file, of that and of the table or rows it names.

    The rows of a query count whatever their order.

    Raises:
        DataError: it cannot be read.
    """
    if place.suffix != ".toml":
        return _digest_of_file(place)
    source, parts = read_source(place), [_digest_of_file(place)]
    if source.file is not None:
        parts.append(_digest_of_file(source.file))
    else:
        rows: Any = _rows_or_table(source)
        parts += sorted(hashlib.sha256(repr(row).encode()).hexdigest() for row in rows.to_pylist())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    refuse_url(path, "place of a table")
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    except OSError as error:
        raise DataError(f"Expected a readable table at {path}; {error.strerror}") from None
    return digest.hexdigest()


def is_csv(source: Source) -> bool:
    """Return whether a source is a file of text: any that has no other known suffix."""
    return source.file is not None and source.file.suffix not in (*ARROW_FILES, ".npz")


def refuse_images(where: Path | str, images: Collection[str]) -> None:
    """Refuse to look for columns of images in a table that can hold none."""
    for name in images:
        raise DataError(f"Expected a numpy archive (.npz) for the images of column {name!r}, got {where}")


def read_cells(source: Source) -> tuple[list[str], list[list[str]]]:
    """Return the header and the records of a CSV file, cells stripped; records may be too long or short.

    Raises:
        DataError: the file is absent, empty or no such CSV, its first line is no header, or two columns have one name.
    """
    assert source.file is not None
    path, where = source.file, source.where
    try:
        with _text(path, source.encoding) as file:
            reader = csv.reader(
                _lines(file, where, packed=path.suffix == ".gz"), strict=True, delimiter=source.separator
            )
            lines = [[cell.strip() for cell in row] for row in reader if row]
    except UnicodeError:
        raise DataError(f"Expected comma-separated UTF-8 text in {where}; name its encoding in a source file") from None
    except (csv.Error, zlib.error, EOFError) as error:
        raise DataError(f"Expected comma-separated UTF-8 text in {where}; {error}") from None
    except OSError as error:
        raise DataError(f"Expected a readable table at {where}; {error.strerror or 'it is no gzip file'}") from None
    if not lines:
        raise DataError(f"Expected a header and at least one record in {where}; the file is empty")
    header, *rows = lines if not source.header else [[*source.header], *lines]
    if source.header and lines[0] == header:
        raise DataError(f"Expected no header in {where}: the file begins with these names itself; leave it out")
    if len(header) == 1 and ";" in header[0] and source.separator != ";":
        raise DataError(
            f"Expected comma-separated text in {where}; this is separated by semicolons: save it with commas, or name "
            "the separator in a source file"
        )
    _check_header(header, where)
    if not rows:
        raise DataError(f"Expected a header and at least one record in {where}; the file is empty")
    return header, rows


def _text(path: Path, encoding: str) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


def _lines(file: IO[str], where: str, *, packed: bool) -> Iterator[str]:
    """Yield lines; a line, or a packed file, that would fill the memory is refused."""
    size = 0
    while line := file.readline(_LONGEST_LINE):
        size += len(line)
        if len(line) == _LONGEST_LINE:
            raise DataError(f"Expected lines of less than {_LONGEST_LINE} characters in {where}")
        if packed and size > LARGEST_UNPACKED_BYTES:
            raise DataError(f"Expected {where} to unpack to at most {LARGEST_UNPACKED_BYTES} bytes; split it")
        yield line


def _check_header(header: Sequence[str], where: str) -> None:
    """Refuse a first line that is no header: what stands in it would be shown as names of columns."""
    numbers, values = sum(_is_number(name) for name in header), sum(_is_value(name) for name in header)
    if numbers or 2 * values > len(header):
        raise DataError(
            f"Expected a header in {where}; {values} of the {len(header)} cells of its first line are numbers or "
            "empty: write the columns' names above, or as header = [...] in a source file"
        )
    check_different(header, where)


def check_different(header: Sequence[str], where: str) -> None:
    """Refuse two columns of one name; the text says where they stand."""
    places: dict[str, int] = {}
    for place, name in enumerate(header, 1):
        if places.setdefault(name, place) != place:
            raise DataError(
                f"Expected different column names in {where}; columns {places[name]} and {place} have the same: rename "
                "one"
            )


def _is_value(name: str) -> bool:
    return name in MISSING_MARKERS or _is_number(name)


def _is_number(cell: str) -> bool:
    try:
        to_number(cell)
    except ValueError:
        return False
    return True


def _column(rows: Sequence[Sequence[str]], place: int) -> NDArray[Any]:
    return np.array([row[place] for row in rows], dtype=object)


def read_arrays(path: Path, names: Sequence[str], *, images: Collection[str] = ()) -> Columns:
    """Return the arrays of these names in a numpy archive, as they are; the last name's gives the number of records.

    Args:
        path: the archive.
        names: of arrays of shape (n,) or (n, 1), which become (n,); those of `images` have three axes.
        images: names that hold images.

    Raises:
        DataError: the file is absent or no such archive; it unpacks to more than 1 GiB; or a column is missing.
    """
    refuse_url(path, "place of a table")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            present(names, archive.files, str(path))
            _bounded(archive.zip, names, str(path), images)
            return {name: archive[name] if name in images else _flat(archive[name]) for name in names}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"Expected a readable table at {path}; {error.strerror or 'it is no numpy archive'}") from None
    except Exception:  # a pickle, a lone array, or whatever numpy and zipfile say to a damaged archive
        raise DataError(f"Expected a numpy archive of number and text arrays at {path}; np.savez writes one") from None


def _bounded(archive: zipfile.ZipFile, names: Sequence[str], where: str, images: Collection[str]) -> None:
    """Refuse, by the headers alone, arrays that are large once unpacked or that are no columns of one table."""
    size, members = 0, archive.namelist()
    if len({member.removesuffix(".npy") for member in members}) < len(members):  # numpy may read the other one
        raise DataError(f"Expected different names of the arrays in {where}; write it with np.savez")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        with archive.open(f"{name}.npy" if f"{name}.npy" in members else name) as member:
            shapes[name], _, dtype = _HEADERS[read_magic(member)](member)
        size += math.prod(shapes[name]) * (dtype.itemsize if name in images else max(dtype.itemsize, LEAST_VALUE_BYTES))
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


def present(names: Collection[str], found: Collection[str], where: str) -> None:
    """Refuse a table without a column of each name."""
    for name in names:
        if name not in found:
            unclaimed = [one for one in found if one not in names]
            raise DataError(f"Expected a column {name!r} in {where}{nearest(name, unclaimed)}; add or rename it")
