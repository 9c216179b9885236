"""Who holds what: a table split among parties, and test records set aside.

Every split is a public choice: it comes from a seeded stream of its own, so that an experiment can be repeated, and
every record goes to exactly one place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import public_stream
from confide.data.schema import Category, Schema
from confide.data.table import Table, counted, read_table
from confide.errors import DataError

Indices = NDArray[np.int64]


def even(table: Table, parties: Sequence[str], *, seed: int | str) -> dict[str, Table]:
    """Return a random part for each party; sizes differ by one at most.

    Args:
        table: at least one record for each party.
        parties: their names, all different.
        seed: of the public choice.

    Raises:
        DataError: there are fewer records than parties, or names repeat.
    """
    _check(table, parties, 1)
    order = public_stream(seed, "split even").permutation(table.n)
    return _parts(table, parties, np.array_split(order, len(parties)))


def by_label(
    table: Table, parties: Sequence[str], *, alpha: float, seed: int | str, at_least: int = 10
) -> dict[str, Table]:
    """Return parts that differ in size and in their mix of classes, as hospitals do.

    The records of each class are shared out by proportions drawn from a Dirichlet distribution, as in Yurochkin et al.,
    arXiv 1905.12022, section 4. A part that comes out below `at_least` records is topped up from the largest one.

    Args:
        table: at least `at_least` records for each party.
        parties: their names, all different.
        alpha: > 0; near 0 each class sits at one party, above 100 the split is nearly even.
        seed: of the public choice.
        at_least: smallest number of records of a party, >= 1.

    Raises:
        DataError: there are too few records, names repeat, or alpha is no such number.
    """
    _check(table, parties, at_least)
    if not (math.isfinite(alpha) and alpha > 0):
        raise DataError(f"Expected alpha={alpha} to be finite and above 0")
    stream = public_stream(seed, "split by label")
    parts: list[list[int]] = [[] for _ in parties]
    for members in _classes(table.labels):
        shares = np.cumsum(stream.dirichlet(np.full(len(parties), alpha)))[:-1]
        cuts = np.rint(np.clip(shares, 0.0, 1.0) * len(members)).astype(np.int64)
        for part, given in zip(parts, np.split(stream.permutation(members), cuts), strict=True):
            part.extend(given.tolist())
    while len(smallest := min(parts, key=len)) < at_least:
        largest = max(parts, key=len)
        smallest.append(largest.pop(int(stream.integers(len(largest)))))
    return _parts(table, parties, [stream.permutation(np.array(part, np.int64)) for part in parts])


def by_column(place: object, schema: Schema, column: str, parties: Sequence[str]) -> dict[str, Table]:
    """Return the records of one table by whose they are, as one of its columns says.

    Args:
        place: of a table, as `read_table` takes it.
        schema: what it keeps to; the column may be one of its categories or identifiers, or one that it does not name.
        column: the party's own name of it, if the schema has none.
        parties: values of the column, all different; every record has one of them.

    Raises:
        DataError: as `read_table`; a record is nobody's, or a party has none.
    """
    _check_names(parties)
    categories = {each.name for each in schema.columns if isinstance(each, Category)}
    own = column in categories or column in schema.identifiers
    read = schema if own else replace(schema, identifiers=(*schema.identifiers, column))
    table = read_table(place, read)
    whose = table.columns[column] if column in categories else table.identifiers[column]
    if not own:
        others = {name: texts for name, texts in table.identifiers.items() if name != column}
        table = replace(table, identifiers=others)
    parts = {name: np.flatnonzero(whose == name) for name in parties}
    nobody = ~np.isin(whose.astype(str), list(parties))
    if nobody.any():
        raise DataError(
            f"Expected column {column!r} to name a party for every record; {counted(nobody)} name another: list all of "
            "them, or leave those records out"
        )
    for name, rows in parts.items():
        if not len(rows):
            raise DataError(f"Expected records of {name!r} in column {column!r}, there are none; leave that party out")
    return {name: table.take(rows) for name, rows in parts.items()}


def alike(table: Table, parts: Mapping[str, Table], *, seed: int | str) -> dict[str, Table]:
    """Return each record to one party, so that every class is shared out as it is in `parts`.

    For the held-out records of a simulation: each party's have a mix of classes like its own. A party may get none.

    Args:
        table: the records to share out.
        parts: what the parties hold, by name.
        seed: of the public choice.
    """
    stream = public_stream(seed, "split alike")
    given: dict[str, list[int]] = {name: [] for name in parts}
    for members in _classes(table.labels):
        label = table.labels[members[0]]
        held = np.cumsum([np.count_nonzero(part.labels == label) for part in parts.values()])
        cuts = np.rint(held[:-1] / max(held[-1], 1) * len(members)).astype(np.int64)
        for indices, chosen in zip(given.values(), np.split(stream.permutation(members), cuts), strict=True):
            indices.extend(chosen.tolist())
    return {name: table.take(np.sort(np.array(indices, np.int64))) for name, indices in given.items()}


def holdout(table: Table, *, fraction: float, seed: int | str) -> tuple[Table, Table]:
    """Return (training records, test records), with every class in the same proportion as far as counts allow.

    Args:
        table: at least two records.
        fraction: share of test records, 0 < fraction < 1; at least one record stays on either side.
        seed: of the public choice.

    Raises:
        DataError: fraction is out of range, or there are fewer than two records.
    """
    if not 0 < fraction < 1 or table.n < 2:
        raise DataError(f"Expected a fraction={fraction} between 0 and 1 of at least 2 records, got {table.n} records")
    stream = public_stream(seed, "holdout")
    shuffled = [stream.permutation(members) for members in _classes(table.labels)]
    # Each class in turn sits at even distances on [0, 1); a cut through the merged order splits all of them alike.
    places = np.concatenate([(np.arange(len(members)) + 0.5) / len(members) for members in shuffled])
    order = np.concatenate(shuffled)[np.argsort(places, kind="stable")]
    count = min(max(round(fraction * table.n), 1), table.n - 1)
    return table.take(np.sort(order[count:])), table.take(np.sort(order[:count]))


def aside(table: Table, *, fraction: float, seed: int | str, unit: str | None = None) -> tuple[Table, Table]:
    """Return (training records, test records), each record sent to its side by its own content alone.

    Differential privacy compares tables that differ in one record. `holdout` shuffles, so one record more sends others
    to the other side; here adding or removing a record leaves every other one where it was. Classes are not balanced,
    and equal records stay together.

    Args:
        table: at least two records.
        fraction: expected share of test records, 0 < fraction < 1.
        seed: of the public choice.
        unit: the identifier by which all records of one person go to one side, the same at every party; None sends
            each record by itself.

    Raises:
        DataError: fraction is out of range, or one side is empty.
    """
    if not 0 < fraction < 1:
        raise DataError(f"Expected a fraction={fraction} between 0 and 1")
    if unit is not None:
        records = [(seed, unit, whose) for whose in table.identifiers[unit].tolist()]
    else:
        cells = [table.columns[name].tolist() for name in sorted(table.columns)]
        cells += [] if table.times is None else [table.times.values.tolist()]
        records = [(seed, label, *row) for label, *row in zip(table.labels.tolist(), *cells, strict=True)]
    tested = [_unit_hash(record) < fraction for record in records]
    rows = np.asarray(tested, bool)
    if not table.n or rows.all() or not rows.any():
        raise DataError(f"Expected more records for a test share of {fraction}; name a test table instead")
    return table.take(np.flatnonzero(~rows)), table.take(np.flatnonzero(rows))


def _unit_hash(record: tuple[object, ...]) -> float:
    """Return a number in [0, 1) that depends on the record alone."""
    digest = hashlib.sha256(("confide aside\0" + "\0".join(map(repr, record))).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _classes(labels: Indices) -> list[Indices]:
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _check_names(parties: Sequence[str]) -> None:
    if not parties or len(set(parties)) != len(parties):
        raise DataError(f"Expected at least one party and different names, got {', '.join(parties) or 'none'}")


def _check(table: Table, parties: Sequence[str], at_least: int) -> None:
    _check_names(parties)
    if at_least < 1 or table.n < at_least * len(parties):
        raise DataError(
            f"Expected at_least={at_least} records, and at least 1, for each of {len(parties)} parties; "
            f"the table has {table.n}: take fewer parties"
        )


def _parts(table: Table, parties: Sequence[str], indices: Sequence[Indices]) -> dict[str, Table]:
    return {name: table.take(part) for name, part in zip(parties, indices, strict=True)}
