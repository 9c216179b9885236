"""Tables that pyarrow reads: Parquet and Arrow files, and whatever offers an Arrow stream (`__arrow_c_stream__`).

The only file that knows pyarrow. Columns are read batch by batch, and no more than 1 GiB of them.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet
from numpy.typing import NDArray

from confide.data.files import LARGEST_UNPACKED_BYTES, LEAST_VALUE_BYTES, check_different, present
from confide.errors import DataError

_MAGIC = b"ARROW1"  # ends an Arrow file, after its footer and the footer's length
_DICTIONARIES, _BATCHES = 2, 3  # fields of the footer
_HEADER, _DATA, _BUFFERS, _PACKING = 2, 1, 2, 3  # of a message, of a dictionary, of a batch
_BATCH_ROWS = 1 << 10  # a batch is in memory before its size is known

# pyarrow brings no types
_pa = cast("Any", pyarrow)
_compute = cast("Any", pyarrow.compute)
_ipc = cast("Any", pyarrow.ipc)
_parquet = cast("Any", pyarrow.parquet)


def read_file(path: Path, names: Sequence[str], where: str) -> dict[str, NDArray[Any]]:
    """Return columns of a Parquet file, or of an Arrow file, raw; errors as of `files.raw_columns`."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".parquet":
                reader = _parquet.ParquetFile(file)
                _check_names(reader.schema_arrow, names, where)
                return _gathered(
                    reader.iter_batches(_BATCH_ROWS, columns=list(names)), reader.schema_arrow, names, where
                )
            reader = _ipc.open_file(file)
            _check_names(reader.schema, names, where)
            _check_packed(file, where)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            return _gathered(batches, reader.schema, names, where)
    except (
        _pa.ArrowException,
        ValueError,
        OverflowError,
        SystemError,
        struct.error,
    ):  # its texts may hold what is in the file
        raise DataError(f"Expected a {path.suffix[1:]} file at {where}; it is damaged or none") from None
    except OSError as error:
        why = error.strerror or "it is damaged or none"
        raise DataError(f"Expected a readable table at {where}; {why}") from None


def read_stream(table: object, names: Sequence[str], where: str) -> dict[str, NDArray[Any]]:
    """Return columns of a table in memory, raw; errors as of `files.raw_columns`."""
    try:
        reader = _pa.RecordBatchReader.from_stream(table)
        _check_names(reader.schema, names, where)
        return _gathered(reader, reader.schema, names, where)
    except (_pa.ArrowException, ValueError, TypeError, OverflowError, SystemError):
        raise DataError(
            f"Expected a table that Arrow can hold in {where}: named columns, each of one type; make them so"
        ) from None


def types_of(table: object, where: str) -> list[tuple[str, str]]:
    """Return name and kind of each column of a table in memory, or of a file where `table` is a path.

    Kinds are those of `files.typed_columns`.
    """
    try:
        if isinstance(table, Path):
            with table.open("rb") as file:
                parquet = table.suffix == ".parquet"
                schema = _parquet.read_schema(file) if parquet else _ipc.open_file(file).schema
        else:
            schema = _pa.RecordBatchReader.from_stream(table).schema
    except (_pa.ArrowException, ValueError, TypeError, OverflowError, SystemError):
        raise DataError(f"Expected a table that Arrow can hold in {where}; it is damaged or none") from None
    except OSError as error:
        raise DataError(f"Expected a readable table at {where}; {error.strerror or 'it is damaged'}") from None
    check_different(schema.names, where)
    return [(field.name, _kind(field.type)) for field in schema]


def _check_names(schema: Any, names: Sequence[str], where: str) -> None:
    check_different([name for name in schema.names if name in names], where)
    present(names, schema.names, where)


def _gathered(batches: Iterable[Any], schema: Any, names: Sequence[str], where: str) -> dict[str, NDArray[Any]]:
    """Return the columns of all batches; what would fill the memory is refused on the way."""
    kinds = {name: _kind(schema.field(name).type) for name in names}
    for name, kind in kinds.items():
        if not kind:
            raise DataError(
                f"Expected plain values in column {name!r} of {where}, got {_sort(schema.field(name).type)}; store a "
                "number, a text or a date for each record"
            )
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    size = 0
    for batch in batches:
        batch.validate()
        columns = {name: batch.column(name) for name in names}
        for part in columns.values():
            part.validate(full=True)  # offsets and places beyond the buffers would be followed into foreign memory
        size += sum(max(_nbytes(part), LEAST_VALUE_BYTES * batch.num_rows) for part in columns.values())
        if size > LARGEST_UNPACKED_BYTES:
            raise DataError(f"Expected {where} to unpack to at most {LARGEST_UNPACKED_BYTES} bytes; split it")
        for name, part in columns.items():
            parts[name].append(_array(part, kinds[name]))
    if not size:
        raise DataError(f"Expected at least one record in {where}; it has none")
    return {name: _joined(each) for name, each in parts.items()}


def _check_packed(file: BinaryIO, where: str) -> None:
    """Refuse an Arrow file of which one message would unpack to too much: pyarrow asks nobody before it unpacks.

    The file's end says where its messages are, which is what pyarrow goes by. A buffer that is packed starts with its
    length once unpacked (int64, little-endian); the buffers of a message are listed in its metadata, a FlatBuffer
    (Arrow columnar format, "Serialization and Interprocess Communication").

    Raises:
        struct.error: the file is damaged.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        tail = len(whole) - len(_MAGIC) - 4
        footer = _Table.first(whole[max(0, tail - struct.unpack_from("<i", whole, max(0, tail))[0]) : tail])
        for field, inside in ((_DICTIONARIES, True), (_BATCHES, False)):
            for start, described, length in footer.structs(field, "<qi4xq"):
                if min(start, described, length) < 0 or start + described + length > len(whole):
                    raise struct.error
                size = _unpacked(whole[start : start + described], whole, start + described, inside=inside)
                if size > LARGEST_UNPACKED_BYTES:
                    raise DataError(f"Expected {where} to unpack to at most {LARGEST_UNPACKED_BYTES} bytes; split it")


def _unpacked(described: bytes, whole: mmap.mmap, body: int, *, inside: bool) -> int:
    """Return how many bytes a message's buffers say that they unpack to; 0 if they are not packed.

    Args:
        described: its metadata, after a length of 4 bytes, or 8 where the first four are a mark.
        whole: the file.
        body: where its buffers start.
        inside: whether it is a dictionary, whose batch is one table further in.
    """
    batch = _Table.first(described[8 if described[:4] == b"\xff" * 4 else 4 :]).inner(_HEADER)
    batch = batch.inner(_DATA) if inside else batch
    if not batch.has(_PACKING):
        return 0
    buffers = [place for place, length in batch.structs(_BUFFERS, "<qq") if length]
    if any(place < 0 for place in buffers):
        raise struct.error
    return sum(max(0, struct.unpack_from("<q", whole, body + place)[0]) for place in buffers)


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of a FlatBuffer: just what it takes to find the buffers of a message."""

    data: bytes
    place: int

    @staticmethod
    def first(data: bytes) -> _Table:
        return _Table(data, struct.unpack_from("<I", data)[0])

    def _field(self, number: int) -> int:
        """Return where a field is, 0 where there is none."""
        known = self.place - struct.unpack_from("<i", self.data, self.place)[0]
        at = 4 + 2 * number
        if known < 0 or at >= struct.unpack_from("<H", self.data, known)[0]:
            return 0
        offset = struct.unpack_from("<H", self.data, known + at)[0]
        return self.place + offset if offset else 0

    def has(self, number: int) -> bool:
        return self._field(number) > 0

    def _pointed(self, number: int) -> int:
        if not (field := self._field(number)):
            raise struct.error
        return field + struct.unpack_from("<I", self.data, field)[0]

    def inner(self, number: int) -> _Table:
        return _Table(self.data, self._pointed(number))

    def structs(self, number: int, form: str) -> list[tuple[int, ...]]:
        """Return the elements of a field that is a list of structs; none where it is absent."""
        if not self.has(number):
            return []
        start = self._pointed(number)
        count, size = struct.unpack_from("<I", self.data, start)[0], struct.calcsize(form)
        if count * size > len(self.data):
            raise struct.error
        return [struct.unpack_from(form, self.data, start + 4 + size * at) for at in range(count)]


def _sort(kind: Any) -> str:
    """Return what a type is called in an error: what it is made of, such as a struct's names, may be values."""
    types = _pa.types
    if types.is_struct(kind):
        return "a struct"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_duration(kind) or types.is_time(kind):
        return str(kind)
    return "a list" if types.is_list(kind) or types.is_large_list(kind) else "values of another type"


def _nbytes(column: Any) -> int:
    """Return the bytes of a column, of one that has its texts in a dictionary those that it has without."""
    if not _pa.types.is_dictionary(column.type) or _kind(column.type) != "text":
        return column.nbytes
    lengths = _compute.binary_length(column.dictionary.cast(_pa.large_string()))
    return len(column) * (_compute.max(lengths).as_py() or 0)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the parts of a column, with and without gaps, as one."""
    if any(part.dtype.kind == "O" for part in parts):
        return np.concatenate([part.astype(object) for part in parts])
    return np.concatenate(parts)


def _kind(kind: Any) -> str:
    types = _pa.types
    if types.is_dictionary(kind):
        return "" if types.is_dictionary(kind.value_type) else _kind(kind.value_type)
    if types.is_boolean(kind):
        return "yes or no"
    if types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0):
        return "whole number"
    if types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind):
        return "text"
    return "date" if types.is_date(kind) or types.is_timestamp(kind) else ""


def _array(column: Any, kind: str) -> NDArray[Any]:
    """Return one batch of a column; whole numbers and yes or no with gaps as objects, so that none loses a digit."""
    if _pa.types.is_dictionary(column.type):
        if kind == "text":  # pyarrow takes no views
            texts = column.dictionary.cast(_pa.large_string())
            column = _pa.DictionaryArray.from_arrays(column.indices, texts)
        column = column.dictionary_decode()
    if kind == "text":
        return np.array(column.to_pylist(), dtype=object)
    if kind == "date":
        unit = "D" if _pa.types.is_date32(column.type) else getattr(column.type, "unit", "ms")  # date64 is in ms
        counts = column.cast(_pa.int32()).cast(_pa.int64()) if unit == "D" else column.cast(_pa.int64())
        return counts.fill_null(np.iinfo(np.int64).min).to_numpy(zero_copy_only=False).view(f"datetime64[{unit}]")
    if kind == "number":
        return column.cast(_pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    if column.null_count or _pa.types.is_decimal(column.type):
        values = column.to_pylist()
        return np.array(
            [value if value is None or kind == "yes or no" else int(value) for value in values], dtype=object
        )
    return column.to_numpy(zero_copy_only=False)
