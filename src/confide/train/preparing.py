"""What a job takes from all parties' records before its training: one sum, from which its preparation follows.

Each party contributes the sum over its records of (1, r, c): r are the features whose mean is subtracted, or the
numbers u, scaled by the schema's bounds into [-1, 1], and their squares; c marks the record's class, for class weights.
It goes through the same aggregator as the updates. What comes out is public and part of the model's preparation.

Under a privacy plan each record's vector is clipped to the norm that such vectors usually have and rounded to the grid,
and each party adds its share of the plan's integer noise. Clipping scales the whole vector, its 1 included: a record
far out weighs less in the count and in the sums alike, so what comes out is a weighted mean, without a bias towards 0.
The noise's law is public, so what it may have made of a number is known: a column whose variance is not clearly above
its noise keeps the schema's scale. All of that is post-processing of one release.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.fixed import FixedPoint
from confide.crypto.random import Randomness
from confide.data.table import Table
from confide.dp.mechanisms import Clipped
from confide.dp.plan import PrivacyPlan, Releases
from confide.dp.release import Portion
from confide.errors import DataError, PrivacyError
from confide.ideal import Aggregator, Cohort, Session, Sums, Vector
from confide.model.pixels import Pixels
from confide.model.preprocess import Columns, Preprocess, Scale
from confide.train.ledger import Ledger, Value
from confide.train.quantiles import cell_counts, edges_of, even_edges
from confide.train.sections import Job
from confide.train.single_sum import SingleSum
from confide.wire import Fault

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

Features = Literal["nothing", "standardise", "centre"]

#: What data.standardise of a job stands for.
_FEATURES: Mapping[bool | str, Features] = {True: "standardise", False: "nothing", "centre": "centre"}

#: A variance is a difference of two means, so it needs more bits than an update.
_FRACTION_BITS = 40

#: A party may hold this many times the expected number of records.
_LARGEST_WEIGHT = 16.0

#: A deviation below this share of the schema's range is a constant column; it keeps the schema's scale.
_SMALLEST_DEVIATION = 1e-4

#: A variance, a mean's count and a class's count below this many deviations of their noise count as noise.
_CLEAR = 2.0


@dataclass(frozen=True, slots=True)
class Preparation:
    """What the sum says: public, like the model that it becomes a part of.

    Args:
        preprocess: with means and deviations, or a centre.
        class_weights: of each class's records in the loss, in (0, 1]; empty if they were not asked for.
    """

    preprocess: Preprocess
    class_weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Preparing:
    """One sum before a training, and how it is read.

    Args:
        preprocess: from the schema alone; missing values are filled as it says before they count.
        features: "standardise" takes mean and deviation of every number, "centre" the mean of every feature.
        classes: how many classes' records are counted for their weights; 0 counts none.
        bins, cells: numbers in so many even intervals get as many with about as many records each, from counts over so
            many cells; 0 leaves them.

    **Guarantees**: a record's row depends on that record alone, bit for bit.
    **Leaks** the means, deviations and counts, exact or with the plan's noise, to everybody who holds the model.
    """

    preprocess: Preprocess
    features: Features = "nothing"
    classes: int = 0
    bins: int = 0
    cells: int = 0

    @property
    def averaged(self) -> int:
        """Return how many numbers of a record are averaged."""
        return {
            "nothing": 0,
            "standardise": 2 * len(self._scales),
            "centre": self.preprocess.features,
        }[self.features]

    @property
    def length(self) -> int:
        """Return the length of a party's vector."""
        return 1 + self.averaged + self.classes + self.cells * len(self.cut)

    @property
    def digest(self) -> bytes:
        """Return SHA-256 of what the sum starts from (32 bytes)."""
        return hashlib.sha256(self.preprocess.encode()).digest()

    @property
    def of(self) -> str:
        """Return what is released, in the words of a privacy label."""
        said = {
            "nothing": [],
            "standardise": ["mean and deviation of every number"],
            "centre": ["mean of every feature"],
        }[self.features]
        said += ["records of each class"] if self.classes else []
        said += [f"records in {self.cells} cells of every number"] if self.cells else []
        return " and ".join(said)

    def portion(self, share: float) -> Portion:
        """Return what this takes out of a plan, `share` of its mu^2."""
        square = {
            "nothing": 0.0,
            "standardise": len(self._scales) / 2,
            "centre": _usual_square(self.preprocess),
        }[self.features]
        norm = math.sqrt(1 + square + (self.classes > 0) + len(self.cut))
        return Portion(share=share, length=self.length, clip_norm=norm, of=self.of)

    @property
    def cut(self) -> list[Scale]:
        """Return the rules of the numbers whose intervals follow from the sum."""
        if not self.cells:
            return []
        scales = [rule for rule in self.preprocess.rules if isinstance(rule, Scale) and rule.ordinal]
        return [rule for rule in scales if rule.bins == even_edges(rule.low, rule.high, self.bins)]

    @property
    def _scales(self) -> list[Scale]:
        return scales_of(self.preprocess)

    def rows(self, columns: Columns, labels: Labels, fixed: Matrix | None = None) -> Matrix:
        """Return what is summed of each record, shape (n, length).

        Args:
            fixed: what `Preprocess.fixed` made of the columns; None if that is still to do.
        """
        parts = [np.ones((len(labels), 1))]
        if self.features == "centre":
            parts.append(self.preprocess.fixed(columns) if fixed is None else fixed)
        elif self.features == "standardise":
            u = Preprocess(tuple(map(_filled, self._scales))).apply(columns)
            parts += [u, u * u]
        if self.classes:
            parts.append((labels[:, None] == np.arange(self.classes)[None]).astype(np.float64))
        return np.concatenate(parts, axis=1)

    def counts(self, columns: Columns) -> Matrix:
        """Return how many records lie in each cell of each number in `cut`, shape (numbers * cells,)."""
        Preprocess(tuple(self.cut)).fixed(columns)  # refuses what breaks the schema
        found = [cell_counts(_known(rule, columns), rule.low, rule.high, self.cells) for rule in self.cut]
        return np.concatenate(found)

    def read(self, values: Matrix, *, noise: float = 0.0) -> Preparation:
        """Return what the sum stands for.

        Args:
            values: float64, shape (length,): the sum over the records, in any unit that is the same for all numbers.
            noise: its noise's deviation on each of them.
        """
        count, rest = float(values[0]), values[1:]
        prepare, weights = self.preprocess, ()
        if count > _CLEAR * noise:  # else nothing is known about a mean
            if self.features == "centre":
                prepare = with_centre(prepare, rest[: self.averaged] / count)
            elif self.features == "standardise":
                prepare = _standardised(prepare, rest[: self.averaged] / count, noise / count)
        if self.classes:
            counts = np.maximum(rest[self.averaged : self.averaged + self.classes], max(_CLEAR * noise, 1e-9))
            weights = tuple((counts.min() / counts).tolist())
        if self.cells:
            prepare = _with_edges(prepare, self.cut, rest[self.averaged + self.classes :], self.bins)
        return Preparation(prepare, weights)


def preparing_of(job: Job, preprocess: Preprocess, classes: int) -> Preparing | None:
    """Return what a job takes before its training, from its public preparation; None if it is nothing.

    Args:
        classes: how many there are.
    """
    features = _FEATURES[job.data.standardise]
    counted = classes if job.train.class_weights == "balanced" else 0
    asked = job.trees
    bins, cells = (asked.bins, asked.cells) if asked is not None and asked.edges == "quantiles" else (0, 0)
    found = Preparing(preprocess, features, counted, bins, cells)
    return found if found.length > 1 else None


def scales_of(preprocess: Preprocess) -> list[Scale]:
    """Return the rules of the numbers that standardisation moves, in order."""
    return [rule for rule in preprocess.rules if isinstance(rule, Scale) and not (rule.bins or rule.ordinal)]


def _known(rule: Scale, columns: Columns) -> Matrix:
    """Return a column's numbers; missing ones are what stands for them, or stay NaN where nothing does."""
    numbers = np.asarray(columns[rule.name], np.float64)
    return numbers if isinstance(rule.missing, str | None) else np.where(np.isnan(numbers), rule.missing, numbers)


def _filled(rule: Scale) -> Scale:
    """Return `rule` with its middle for missing ones, where they would have features of their own."""
    return msgspec.structs.replace(rule, missing=(rule.low + rule.high) / 2) if rule.missing == "level" else rule


def with_centre(preprocess: Preprocess, means: Matrix) -> Preprocess:
    """Return `preprocess` that subtracts these means of its features, cut to [-1, 1]."""
    return msgspec.structs.replace(preprocess, centre=tuple(np.clip(means, -1.0, 1.0).tolist()))


def with_standard(rule: Scale, mean: float, deviation: float) -> Scale:
    """Return `rule` standardised by a mean and a deviation in [-1, 1], which go back to the column's own unit."""
    if deviation < _SMALLEST_DEVIATION:
        return rule
    half = (rule.high - rule.low) / 2.0
    return msgspec.structs.replace(rule, standard=(rule.low + half * (1.0 + mean), half * deviation))


def _standardised(preprocess: Preprocess, moments: Matrix, noise: float) -> Preprocess:
    """Return `preprocess` with its numbers standardised by (means, mean squares) whose noise is `noise` each."""
    first, second = np.split(moments, 2)
    means = np.clip(first, -1.0, 1.0)
    variances = np.minimum(second, 1.0) - means * means
    floors = _CLEAR * noise * np.sqrt(1 + 4 * means * means)  # the noise of second - mean^2, to first order
    found = {
        rule.name: (mean, math.sqrt(variance))
        for rule, mean, variance, floor in zip(
            scales_of(preprocess), means.tolist(), variances.tolist(), floors.tolist(), strict=True
        )
        if variance > floor
    }
    rules = tuple(
        with_standard(rule, *found[rule.name]) if isinstance(rule, Scale) and rule.name in found else rule
        for rule in preprocess.rules
    )
    return msgspec.structs.replace(preprocess, rules=rules)


def _with_edges(preprocess: Preprocess, cut: list[Scale], counts: Matrix, bins: int) -> Preprocess:
    edges = {
        rule.name: edges_of(found, rule.low, rule.high, bins)
        for rule, found in zip(cut, np.split(counts, len(cut)), strict=True)
    }
    rules = tuple(
        msgspec.structs.replace(rule, bins=edges[rule.name]) if isinstance(rule, Scale) and rule.name in edges else rule
        for rule in preprocess.rules
    )
    return msgspec.structs.replace(preprocess, rules=rules)


def _usual_square(preprocess: Preprocess) -> float:
    """Return about what the squared norm of a row of features is, from the rules alone.

    A number spread over its bounds has 1/3 to 1/2, a category 1, an image's normalised or whitened coefficients 1
    together.
    """
    found = 0.0
    for rule in preprocess.rules:
        match rule:
            case Scale(bins=()):
                found += 0.5
            case Pixels(groups=0, whitening=None):
                found += rule.count * (rule.range[0] ** 2 + rule.range[1] ** 2) / 4
            case _:
                found += 1.0
    kept = (
        1.0 if preprocess.projection is None else min(1.0, preprocess.features / sum(r.count for r in preprocess.rules))
    )
    return found * kept


# --- what a party sends, and what comes back --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PreparingSum:
    """The numbers that travel: fixed point without a plan, integers with its noise under one.

    Args:
        preparing: what is summed.
        expected_records: public order of magnitude of one party's records.
        plan: with a release of `preparing.portion`; None without privacy.

    Raises:
        PrivacyError: the plan has no such release.
    """

    preparing: Preparing
    expected_records: int
    plan: PrivacyPlan | None = None

    def __post_init__(self) -> None:
        if self.plan is not None:
            kind, asked = self.plan.preparation, self.preparing.portion(0.5)
            if kind is None or (kind.length, kind.clip_norm) != (asked.length, asked.clip_norm):
                raise PrivacyError("Expected a plan with a release for this preparation; make it with `portion`")

    @property
    def _fixed(self) -> FixedPoint:
        return FixedPoint(fraction_bits=_FRACTION_BITS, bound=_LARGEST_WEIGHT)

    @property
    def bound(self) -> int:
        """Return the largest absolute value that a party may submit."""
        if self.plan is None or self.plan.preparation is None:
            return self._fixed.largest
        return self.plan.preparation.bound

    def contribution(
        self,
        name: str,
        columns: Columns,
        labels: Labels,
        rng: Randomness,
        *,
        prepared: bool = False,
        fixed: Matrix | None = None,
    ) -> Vector:
        """Return what a party submits: int64, shape (length,).

        Args:
            name: the party, for an error text.
            prepared: whether it has submitted one before, which under a plan is refused.
            fixed: as in `Preparing.rows`.

        Raises:
            DataError: without a plan, no records or far more than `expected_records`.
            PrivacyError: the release is spent.
        """
        if self.preparing.cut:
            return self._counted(name, columns, labels, rng, prepared=prepared)
        rows = self.preparing.rows(columns, labels, fixed)
        if self.plan is not None and self.plan.preparation is not None:
            clipped = self.plan.preparation.clipped_sum(rows)
            return Releases(self.plan, prepared=prepared).prepare(clipped, rng)
        self._check_records(name, len(rows))
        return self._fixed.encode(rows.sum(axis=0) / self.expected_records)

    def _check_records(self, name: str, records: int) -> None:
        if not 0 < records <= _LARGEST_WEIGHT * self.expected_records:
            raise DataError(
                f"Expected between 1 and {_LARGEST_WEIGHT:.0f} * train.expected_records={self.expected_records} "
                f"records at {name}; set train.expected_records to the public order of magnitude"
            )

    def _counted(self, name: str, columns: Columns, labels: Labels, rng: Randomness, *, prepared: bool) -> Vector:
        """Return a sum whose rows are ones and zeros, as many ones in each at most: it needs no row.

        Under a plan a one is as many whole steps of the grid as keep such a row within the sensitivity.
        """
        rows = self.preparing.rows(columns, labels).sum(axis=0)
        total = np.concatenate([rows, self.preparing.counts(columns)])
        if self.plan is None or self.plan.preparation is None:
            self._check_records(name, len(labels))
            return self._fixed.encode(total / self.expected_records)
        kind = self.plan.preparation
        one = math.isqrt(int(kind.grid**2 / kind.clip_norm**2 * (1 - 2.0**-40)))
        clipped = Clipped(np.rint(total).astype(np.int64) * one, kind.grid, kind.clip_norm, 0)
        return Releases(self.plan, prepared=prepared).prepare(clipped, rng)

    def decoded(self, total: Vector, members: int) -> tuple[Matrix, float]:
        """Return what a released sum over so many parties stands for, and its noise's deviation on each number."""
        if self.plan is None or self.plan.preparation is None:
            return self._fixed.decode(total), 0.0
        kind = self.plan.preparation
        return kind.decode(total), kind.deviation(members)

    def read(self, sums: Sums) -> Preparation:
        """Return what the released sums, of all groups together, stand for."""
        members = len(frozenset[str]().union(*sums.members))
        values, noise = self.decoded(sums.values.sum(axis=0), members)
        return self.preparing.read(values, noise=noise)


def prepared(
    asked: PreparingSum,
    parties: Mapping[str, Table],
    *,
    aggregator: Aggregator,
    quorum: int,
    rng: Randomness,
    run_id: str = "run",
    ledger: Ledger | None = None,
    fault: Fault | None = None,
    fixed: Mapping[str, Matrix] | None = None,
) -> Preparation:
    """Return the preparation that the parties' records give together.

    Args:
        asked: what is summed, and under which plan; every later release is accounted together with this one.
        parties: their tables.
        aggregator: who sums; under a plan it hides single vectors from the server.
        quorum: smallest number of parties in the sum, that of the plan.
        rng: secret randomness of the parties.
        ledger: under a plan gets what the release spends before it is made, and one entry for it.
        fault: what the simulated network does to messages.
        fixed: as in `Preparing.rows`, of every party.

    Raises:
        DataError: without a plan, a party has no records, or too many for the ring.
        Aborted: the quorum was lost. Under a plan the release counts as made: there is no second attempt.

    **Leaks** what `Preparing` says; who was in the sum.
    """
    cohort, plan = Cohort(tuple(parties), quorum), asked.plan
    session = Session(
        run=f"{run_id}/prepare",
        round=0,
        cohort=cohort,
        length=asked.preparing.length,
        bound=asked.bound,
        model_hash=asked.preparing.digest,
    )
    sums = SingleSum(aggregator, session, rng)
    made = fixed or {}
    vectors = {
        name: asked.contribution(name, table.columns, table.labels, rng.branch(), fixed=made.get(name))
        for name, table in parties.items()
    }
    if ledger is not None and plan is not None:  # before it leaves: a crash must not hide what was spent
        ledger.append("release", {"of": "preparation", "attempt": 1, "epsilon": plan.spent(0)})
    taken = sums.take(session, vectors, fault=fault)
    found: Sums = taken.output(cohort.server)
    done = asked.read(found)
    if ledger is not None and plan is not None:
        bytes_up = {name: float(taken.bytes_sent(name)) for name in sums.roles}
        ledger.append("preparation", _fields(session, aggregator.name, found, bytes_up, plan.spent(0), done))
    return done


def _fields(
    session: Session,
    aggregator: str,
    found: Sums,
    bytes_up: Mapping[str, float],
    epsilon: float,
    done: Preparation,
) -> dict[str, Value]:
    """Return what a ledger's line says about the release; the moments are in the model, not here."""
    cohort, members = session.cohort, frozenset[str]().union(*found.members)
    return {
        "aggregator": aggregator,
        "quorum": cohort.quorum,
        "length": session.length,
        "bound": session.bound,
        "cohort": sorted(cohort.clients),
        "members": sorted(members),
        "missing": sorted(set(cohort.clients) - members),
        "bytes_up": dict(sorted(bytes_up.items())),
        "epsilon": epsilon,
        "preprocess": hashlib.sha256(done.preprocess.encode()).hexdigest(),
    }
