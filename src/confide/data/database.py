"""The rows of a database's query, read where the data is. The only file that knows SQLAlchemy.

A URL may hold a password, and what a driver says may hold values of rows: neither is in any text here. The query is the
owner's own and runs in a transaction that is taken back, in PostgreSQL one that may only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pyarrow
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from confide.data.files import LARGEST_UNPACKED_BYTES, LEAST_VALUE_BYTES, check_different
from confide.data.source import Source
from confide.errors import DataError, MissingExtra

_BATCH_ROWS = 1 << 8  # a batch is in memory before its size is known

_pa = cast("Any", pyarrow)


def query_table(source: Source) -> object:
    """Return the rows of a source's query as an Arrow table.

    Raises:
        DataError: the URL is none, the database or the query fails, or gives no rows or too many.
        MissingExtra: the driver that the URL names is not installed.
    """
    try:
        engine = create_engine(source.url, poolclass=NullPool, hide_parameters=True)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise DataError(
            f"Expected a database's URL in {source.where}, as SQLAlchemy has it: postgresql+psycopg://user@host/name"
        ) from None
    except ModuleNotFoundError as error:
        driver = (error.name or "a driver").partition(".")[0]
        raise MissingExtra(driver, "postgres" if driver == "psycopg" else "tables") from None
    read_only = {"postgresql_readonly": True} if engine.dialect.name == "postgresql" else {}
    try:
        with engine.connect() as connection:
            connection = connection.execution_options(no_parameters=True, stream_results=True, **read_only)
            result = connection.exec_driver_sql(source.query)
            if not result.returns_rows:
                raise DataError(f"Expected a query that gives rows in {source.where}; write a SELECT")
            names = list(result.keys())
            check_different(names, source.where)
            rows: list[Sequence[Any]] = []
            size = 0
            while batch := result.fetchmany(_BATCH_ROWS):
                rows += batch
                size += sum(max(_length(value), LEAST_VALUE_BYTES) for row in batch for value in row)
                if size > LARGEST_UNPACKED_BYTES:
                    raise DataError(f"Expected {source.where} to give at most {LARGEST_UNPACKED_BYTES} bytes; split it")
            connection.rollback()
    except SQLAlchemyError as error:
        raise DataError(f"Expected the query of {source.where} to run; {_reason(error)}") from None
    finally:
        engine.dispose()
    return _table(names, rows, source.where)


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | bytearray | memoryview) else 0


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]], where: str) -> object:
    columns: list[object] = []
    for place, name in enumerate(names):
        values = [str(row[place]) if isinstance(row[place], UUID) else row[place] for row in rows]
        try:
            columns.append(_pa.array(values))
        except (_pa.ArrowException, ValueError, TypeError, OverflowError):
            raise DataError(
                f"Expected values of one type in column {name!r} of {where}; cast them in the query"
            ) from None
    return _pa.table(columns, names=list(names))


def _reason(error: SQLAlchemyError) -> str:
    """Return what went wrong by the names that drivers give to errors: their texts quote rows and passwords."""
    cause = getattr(error, "orig", None)
    if cause is None:
        return type(error).__name__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    return type(cause).__name__ + (f" ({code})" if code else "")
