"""A table written as CSV, so that `read_csv` gives back exactly the same table."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from confide.data.schema import Schema
from confide.data.table import Table, images_of, refuse_images


def csv_text(table: Table, schema: Schema) -> str:
    r"""Return `table` as comma-separated text with a header, the label last.

    Numbers have as many digits as tell them apart from every other float64; a missing value is an empty cell; a class
    is the first of the texts that stand for it.

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
    refuse_images(Path("a CSV file"), images_of(schema))
    names = [column.name for column in schema.columns]
    classes = [values[0] for values in schema.label.values.values()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    timed = [(time.name, table.times.values) for time in schema.label.times if table.times is not None]
    writer.writerow([*names, *(name for name, _ in timed), schema.label.name])
    values = [*(table.columns[name] for name in names), *(times for _, times in timed)]
    cells = [[_cell(value) for value in column.tolist()] for column in values]
    writer.writerows(zip(*cells, [classes[label] for label in table.labels.tolist()], strict=True))
    return text.getvalue()


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else repr(value)
