"""What a job's owners bring to a training on shares: rows of the same columns, or columns of the same people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.data.schema import Schema
from confide.data.table import read_columns, read_inputs, read_table
from confide.errors import JobError, nearest
from confide.model.preprocess import Preprocess
from confide.psi.align import Alignment, align
from confide.train.parts import preprocess_of
from confide.train.run import load_data
from confide.train.sections import Job
from confide.train.shares.course import Piece
from confide.wire import run

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What is trained on, as this process holds it for all owners.

    Args:
        preprocess: public, from the schema's bounds.
        classes: names of the outcomes.
        pieces: of each owner.
        features: of each owner: its columns of its rows, float64.
        labels: of each owner that has them: int64 classes of its rows.
        test_x, test_y: records that nobody trains on.
        common: of two tables with different columns: how many people both have; None otherwise.
    """

    preprocess: Preprocess
    classes: tuple[str, ...]
    pieces: Mapping[str, Piece]
    features: Mapping[str, Matrix] = field(repr=False)
    labels: Mapping[str, Labels] = field(repr=False)
    test_x: Matrix = field(repr=False)
    test_y: Labels = field(repr=False)
    common: int | None = None

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return 1 + max(int(piece.rows.max()) for piece in self.pieces.values())

    @property
    def outputs(self) -> int:
        """Return the columns of a target: 1 for two classes."""
        return 1 if len(self.classes) <= 2 else len(self.classes)

    def targets(self, owner: str) -> Matrix | None:
        """Return an owner's targets, float64 of shape (rows, outputs): 0 and 1; None if it has none."""
        labels = self.labels.get(owner)
        if labels is None:
            return None
        return labels[:, None].astype(np.float64) if self.outputs == 1 else np.eye(self.outputs)[labels]


def load_rows(job: Job, rng: Randomness) -> Rows:
    """Read what a job's owners bring.

    Args:
        rng: secret randomness, for finding the rows that two tables share.

    Raises:
        DataError: a schema or table does not hold.
        JobError: the job contradicts its schema or its tables.
    """
    return _of_columns(job, rng) if job.data.columns else _of_rows(job)


def _of_rows(job: Job) -> Rows:
    data = load_data(job)
    ends = [*accumulate(len(silo.y) for silo in data.silos)]
    columns = np.arange(data.preprocess.features)
    pieces = {
        silo.name: Piece(np.arange(end - len(silo.y), end), columns, targets=True)
        for silo, end in zip(data.silos, ends, strict=True)
    }
    return Rows(
        data.preprocess,
        data.start.classes,
        pieces,
        {silo.name: silo.x for silo in data.silos},
        {silo.name: silo.y.astype(np.int64) for silo in data.silos},
        data.test.x,
        data.test.y.astype(np.int64),
    )


def _of_columns(job: Job, rng: Randomness) -> Rows:
    schema = Schema.load(job.path(str(job.data.schema)))
    whole = preprocess_of(schema, job)
    labelled = _label_owner(job, schema)
    link = str(job.data.link)
    features: dict[str, Matrix] = {}
    labels: Labels | None = None
    identifiers: dict[str, list[str]] = {}
    for name, path in job.data.tables.items():
        place, part = job.path(path), _part(schema, job.data.columns[name])
        identifiers[name] = [str(one) for one in read_columns(place, numbers=(), texts=(link,))[link]]
        if name == labelled:
            table = read_table(place, part)
            features[name], labels = preprocess_of(part, job).apply(table.columns), table.labels
        else:
            features[name] = preprocess_of(part, job).apply(read_inputs(place, part))
    found = _aligned(job, identifiers, rng)
    assert labels is not None
    common = len(next(iter(found.values())).rows)
    train = round(common * (1 - job.data.test_fraction))
    if min(train, common - train) < 1:
        raise JobError(f"Expected people whom both tables have, for training and for testing; they have {common}")
    pieces, rows, test = dict[str, Piece](), dict[str, Matrix](), np.empty((common - train, whole.features))
    for name, x in features.items():
        places = _places(schema, whole, job, job.data.columns[name])
        ordered = x[found[name].rows]  # in an order that has nothing to do with any table
        pieces[name] = Piece(np.arange(train), places, targets=name == labelled)
        rows[name], test[:, places] = ordered[:train], ordered[train:]
    ordered = labels[found[labelled].rows]
    classes = tuple(schema.label.classes)
    return Rows(whole, classes, pieces, rows, {labelled: ordered[:train]}, test, ordered[train:], common)


def _label_owner(job: Job, schema: Schema) -> str:
    """Return who has the label, after checking that every column is brought once."""
    names = [column.name for column in schema.columns] + [schema.label.name]
    brought = [column for columns in job.data.columns.values() for column in columns]
    for column in brought:
        if column not in names:
            raise JobError(f"Unknown column {column!r} in data.columns{nearest(column, names)}; the schema has no such")
    if sorted(brought) != sorted(names):
        missing = sorted(set(names) - set(brought)) or sorted({one for one in brought if brought.count(one) > 1})
        raise JobError(
            f"Expected every column of the schema and its label once in data.columns; look at {', '.join(missing)}"
        )
    if any(set(columns) <= {schema.label.name} for columns in job.data.columns.values()):
        raise JobError("Expected at least one column beside the label from each party in data.columns")
    return next(name for name, columns in job.data.columns.items() if schema.label.name in columns)


def _part(schema: Schema, columns: tuple[str, ...]) -> Schema:
    kept = tuple(column for column in schema.columns if column.name in columns)
    return replace(schema, columns=kept, identifiers=())


def _places(schema: Schema, whole: Preprocess, job: Job, columns: tuple[str, ...]) -> NDArray[np.int64]:
    """Return where the features of some columns are among all features."""
    places: list[int] = []
    start = 0
    for column, rule in zip(schema.columns, whole.rules, strict=True):
        if column.name in columns:
            places += range(start, start + rule.count)
        start += rule.count
    return np.array(places, np.int64)


def _aligned(job: Job, identifiers: Mapping[str, list[str]], rng: Randomness) -> Mapping[str, Alignment]:
    """Return what each of two parties learns of the rows that both have."""
    first, second = identifiers
    parties: dict[str, Any] = {
        me: align(me, peer, identifiers[me], session=job.job.name, rng=rng.branch())
        for me, peer in ((first, second), (second, first))
    }
    done = run(parties, keep_bodies=False)
    return {name: done.output(name) for name in identifiers}
