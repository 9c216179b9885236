"""A table written as CSV, so that `read_table` gives back exactly the same table."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from confide.data.dates import as_text
from confide.data.files import refuse_images
from confide.data.schema import Category, Column, Number, Schema
from confide.data.table import Table, images_of


def csv_text(table: Table, schema: Schema) -> str:
    r"""Return `table` as comma-separated text with a header, the label last.

    Numbers have as many digits as tell them apart from every other float64; a missing value is an empty cell; a class
    or category is the first of the texts that stand for it, and identifiers are left out.

    Raises:
        DataError: the table has images, which no CSV file can hold.

    Example:
        >>> from confide.data.table import check
        >>> schema = Schema.parse({
        ...     "label": {"name": "ill", "classes": ["no", {"name": "yes", "values": ["1", "2"]}]},
        ...     "columns": {"age": {"type": "number", "low": 0, "high": 120}},
        ... })
        >>> import numpy as np
        >>> raw = {"age": np.array([60.5]), "ill": np.array(["2"], object)}
        >>> csv_text(check(raw, schema, where="here"), schema)
        'age,ill\n60.5,1\n'
    """
    refuse_images("a CSV file", images_of(schema))
    stored = [column for column in schema.columns if not (isinstance(column, Category) and column.part)]
    classes = [values[0] for values in schema.label.values.values()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    values: list[tuple[Column, Any]] = [(column, table.columns[column.name]) for column in stored]
    values += [(time, table.times.values) for time in schema.label.times if table.times is not None]
    writer.writerow([*(column.name for column, _ in values), schema.label.name])
    cells = [[_cell(value, column) for value in each.tolist()] for column, each in values]
    writer.writerows(zip(*cells, [classes[label] for label in table.labels.tolist()], strict=True))
    return text.getvalue()


def _cell(value: float | str, column: Column) -> str:
    if isinstance(value, str):
        texts = column.values.get(value) if isinstance(column, Category) else None
        return texts[0] if texts else value
    if isinstance(column, Number) and column.date is not None:
        return as_text(value, column.date)
    return "" if math.isnan(value) else repr(value)
