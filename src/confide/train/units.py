"""Units larger than a row: all records of one patient or customer hide together.

`privacy.unit` names an identifier of the schema. What one unit adds to any sum is bounded, whatever its records:

    gradients     its records' gradients are summed, and the sum is clipped (`mechanisms.clipped_unit_sum`)
    statistics    its records share the weight of one (`moments.Moments`)
    held out      all of its records, at every party, go to one side (`data.split.aside`)

A unit may have records at `privacy.parties_per_unit` parties: each of them clips to an equal part. What does not know
of units is refused (`contradictions.check_units`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.data.schema import Schema
from confide.data.table import Table
from confide.dp.client_plan import CLIENT
from confide.dp.plan import RECORD
from confide.errors import JobError, nearest
from confide.model.preprocess import Preprocess
from confide.train.local import Silo
from confide.train.sections import Job


def unit_of(job: Job) -> str | None:
    """Return the identifier by which a job's records belong together; None where each is by itself."""
    return None if job.privacy is None or job.privacy.unit in (RECORD, CLIENT) else job.privacy.unit


def require_unit(job: Job, schema: Schema) -> None:
    """Refuse a unit, or a survival, that the schema does not name, before a table is read.

    Raises:
        JobError: with the identifiers that there are.
    """
    _require_time(job, schema)
    unit = unit_of(job)
    if unit is not None and unit not in schema.identifiers:
        raise JobError(
            f'Expected privacy.unit="{unit}" to be "record" or an identifier of the schema'
            f"{nearest(unit, schema.identifiers)}; it has {', '.join(schema.identifiers) or 'none'}: name the column "
            "that says whose a record is in identifiers = [...]"
        )


def silo_of(
    job: Job, name: str, preprocess: Preprocess, table: Table, *, fixed: NDArray[np.float64] | None = None
) -> Silo:
    """Return a party with its records, and which of them belong together.

    Args:
        fixed: what `Preprocess.fixed` made of its columns, which is overwritten; None if that is still to do.
    """
    unit, units = unit_of(job), None
    if unit is not None:
        numbers: dict[str, int] = {}  # by whole texts: numpy's fixed-width ones end at a NUL
        texts = [str(text) for text in table.identifiers[unit].tolist()]
        units = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
    x = preprocess.apply(table.columns) if fixed is None else preprocess.finished(fixed)
    return Silo(name, x, outcomes_of(job, table), units=units)


def outcomes_of(job: Job, table: Table) -> NDArray[Any]:
    """Return what a job's model learns of each record: its class, or of survival (time, event), shape (n, 2)."""
    if job.model.kind != "cox":
        return table.labels
    if table.times is None:
        raise JobError('Expected label.time in the schema with model.kind="cox": how long each record was observed')
    return np.stack([table.times.shares, table.labels.astype(np.float64)], axis=1)


def _require_time(job: Job, schema: Schema) -> None:
    if job.model.kind == "cox" and schema.label.time is None:
        raise JobError(
            'Expected label.time in the schema with model.kind="cox"; name the column of times: '
            'time = { name = "days", unit = "days", high = 3650 }'
        )
