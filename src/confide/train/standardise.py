"""Federated standardisation: the mean and deviation of every number over all parties' records, from one more sum.

Each party contributes (n, sum u, sum u^2) of its numbers u, scaled by the schema's bounds into [-1, 1], through the
same aggregator as the updates. What comes out is public and becomes part of the model's preparation, so whoever asks
for a prediction applies it. Nothing here is private: under [privacy] `standardise_privately` takes the
same sum with noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.fixed import FixedPoint
from confide.crypto.random import Randomness
from confide.errors import DataError
from confide.ideal import Aggregator, Cohort, Session, Sums
from confide.model.preprocess import Columns, Preprocess, Scale
from confide.train.single_sum import SingleSum

#: A variance is a difference of two means, so it needs more bits than an update.
_FRACTION_BITS = 40

#: A party may hold this many times the expected number of records.
_LARGEST_WEIGHT = 16.0

#: A deviation below this share of the schema's range is a constant column; it keeps the schema's scale.
_SMALLEST_DEVIATION = 1e-4


def scales_of(preprocess: Preprocess) -> list[Scale]:
    """Return the rules of the numbers that standardisation moves, in order."""
    return [rule for rule in preprocess.rules if isinstance(rule, Scale) and not rule.bins]


def rows_of(preprocess: Preprocess, columns: Columns, *, centre: bool) -> NDArray[np.float64]:
    """Return what is averaged of each record: its features, or the numbers u of `scales_of` and their squares.

    Each row depends on its record alone, bit for bit: nothing here but operations on single elements.
    """
    if centre:
        return msgspec.structs.replace(preprocess, centre=(), unit_rows=False).apply(columns)
    u = Preprocess(tuple(scales_of(preprocess))).apply(columns)
    return np.concatenate([u, u * u], axis=1)


def with_centre(preprocess: Preprocess, means: NDArray[np.float64]) -> Preprocess:
    """Return `preprocess` that subtracts these means of its features, cut to [-1, 1]."""
    return msgspec.structs.replace(preprocess, centre=tuple(np.clip(means, -1.0, 1.0).tolist()))


def standardised(
    preprocess: Preprocess,
    parties: Mapping[str, Columns],
    *,
    centre: bool = False,
    aggregator: Aggregator,
    quorum: int,
    expected_records: int,
    rng: Randomness,
    run_id: str = "run",
) -> Preprocess:
    """Return `preprocess` with every number standardised by the parties' common mean and deviation.

    Args:
        centre: subtract the mean of every feature instead.
        preprocess: from the schema alone; missing values are filled as it says before they count.
        parties: the raw columns of each party.
        aggregator: who sums.
        quorum: smallest number of parties in the sum.
        expected_records: public order of magnitude of one party's records.
        rng: secret randomness of the parties.

    Raises:
        DataError: a party has no records, or too many for the ring.
        Aborted: the quorum was lost.

    **Leaks**: mean and deviation of every number over all records, to everybody who holds the model.
    """
    scales = scales_of(preprocess)
    if not scales and not centre:
        return preprocess
    fixed = FixedPoint(fraction_bits=_FRACTION_BITS, bound=_LARGEST_WEIGHT)
    cohort = Cohort(tuple(parties), quorum)
    session = Session(
        run=f"{run_id}/standardise",
        round=0,
        cohort=cohort,
        length=1 + (preprocess.features if centre else 2 * len(scales)),
        bound=fixed.largest,
        model_hash=hashlib.sha256(preprocess.encode()).digest(),
    )
    vectors = {
        name: fixed.encode(_sums(name, rows_of(preprocess, columns, centre=centre), expected_records))
        for name, columns in parties.items()
    }
    sums: Sums = SingleSum(aggregator, session, rng).take(session, vectors).output(cohort.server)
    values = fixed.decode(sums.values.sum(axis=0))  # of all groups
    if centre:
        return with_centre(preprocess, values[1:] / values[0])
    means, squares = np.split(values[1:] / values[0], 2)
    deviations = np.sqrt(np.maximum(squares - means * means, 0.0))
    found = dict(
        zip((rule.name for rule in scales), zip(means.tolist(), deviations.tolist(), strict=True), strict=True)
    )
    return msgspec.structs.replace(
        preprocess,
        rules=tuple(
            with_standard(rule, *found[rule.name]) if isinstance(rule, Scale) and rule.name in found else rule
            for rule in preprocess.rules
        ),
    )


def _sums(name: str, rows: NDArray[np.float64], expected_records: int) -> NDArray[np.float64]:
    """Return (n, sum of the rows) over the public `expected_records`."""
    if not 0 < len(rows) <= _LARGEST_WEIGHT * expected_records:
        raise DataError(
            f"Expected between 1 and {_LARGEST_WEIGHT:.0f} * train.expected_records={expected_records} records at "
            f"{name}; set train.expected_records to the public order of magnitude"
        )
    return np.concatenate([[len(rows)], rows.sum(axis=0)]) / expected_records


def with_standard(rule: Scale, mean: float, deviation: float) -> Scale:
    """Return `rule` standardised by a mean and a deviation in [-1, 1], which go back to the column's own unit."""
    if deviation < _SMALLEST_DEVIATION:
        return rule
    half = (rule.high - rule.low) / 2.0
    return msgspec.structs.replace(rule, standard=(rule.low + half * (1.0 + mean), half * deviation))
