"""Tables that pyarrow reads: Parquet and Arrow files, and whatever offers an Arrow stream (`__arrow_c_stream__`).

The only file that knows pyarrow. Columns are read batch by batch, and no more than 1 GiB of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet
from numpy.typing import NDArray

from confide.data.files import LARGEST_UNPACKED_BYTES, LEAST_VALUE_BYTES, check_different, present
from confide.errors import DataError

_FILE_START = 8  # an Arrow file is "ARROW1", padded to so many bytes, and then a stream of messages
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
            _check_packed(path, where)
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


def _check_packed(path: Path, where: str) -> None:
    """Refuse an Arrow file of which one message would unpack to too much: pyarrow asks nobody before it unpacks.

    A buffer that is packed starts with its length once unpacked (int64, little-endian); the buffers of a message are
    listed in its metadata, a FlatBuffer (Arrow columnar format, "Serialization and Interprocess Communication").
    """
    with _pa.memory_map(str(path)) as file:
        file.seek(_FILE_START)
        for message in _ipc.MessageReader.open_stream(file):
            if message.type in ("record batch", "dictionary"):
                body = memoryview(message.body)
                starts, packed = _buffers(bytes(message.metadata), dictionary=message.type == "dictionary")
                sizes = [struct.unpack_from("<q", body, start)[0] for start in starts] if packed else []
                if sum(max(size, 0) for size in sizes) > LARGEST_UNPACKED_BYTES:
                    raise DataError(f"Expected {where} to unpack to at most {LARGEST_UNPACKED_BYTES} bytes; split it")


def _buffers(metadata: bytes, *, dictionary: bool) -> tuple[list[int], bool]:
    """Return where in a message's body its buffers with bytes start, and whether they are packed.

    Raises:
        struct.error: the metadata are damaged.
    """

    def number(place: int, form: str = "<I") -> int:
        return struct.unpack_from(form, metadata, place)[0]

    def entry(table: int, field: int) -> int:
        """Return where a table has a field, 0 where it has none."""
        fields = table - number(table, "<i")
        offset = number(fields + 4 + 2 * field, "<H") if 4 + 2 * field < number(fields, "<H") else 0
        return table + offset if offset else 0

    def inner(table: int, field: int) -> int:
        place = entry(table, field)
        if not place:
            raise struct.error
        return place + number(place)

    batch = inner(number(0), 2)  # the header of the message
    if dictionary:
        batch = inner(batch, 1)
    vector = inner(batch, 2)
    each = [struct.unpack_from("<qq", metadata, vector + 4 + 16 * at) for at in range(number(vector))]
    return [start for start, length in each if length], bool(entry(batch, 3))


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
