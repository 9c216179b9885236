"""Federated standardisation under a privacy plan: one noisy sum before the training, charged to the same budget.

Each record gives (1, u, u^2) of its p numbers u, scaled by the schema's bounds into [-1, 1]. The vector is clipped to
C = sqrt(1 + p / 2), the norm that numbers spread evenly over their bounds about have (E u^2 + E u^4 = 8/15), rounded to
the grid and summed; each party adds its share of the plan's integer noise, and the job's aggregator adds the parties.
Clipping scales the whole vector, its 1 included: a record far out weighs less in the count and in both moments alike,
so what comes out is a weighted mean and deviation, without a bias towards 0.

The noise's law is public, so what it may have made of a variance is known: a column whose variance is not clearly above
its noise keeps the schema's scale. All of that is post-processing of one release.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.plan import PrivacyPlan, Releases
from confide.dp.release import Portion, SumRelease
from confide.errors import PrivacyError
from confide.ideal import Aggregator, Cohort, Session, Sums
from confide.model.pixels import Pixels
from confide.model.preprocess import Columns, Preprocess, Scale
from confide.train.ledger import Ledger, Value
from confide.train.single_sum import SingleSum
from confide.train.standardise import rows_of, scales_of, with_centre, with_standard
from confide.wire import Fault

Matrix = NDArray[np.float64]

#: A variance and a count below this many deviations of their noise count as noise.
_CLEAR = 2.0


def portion_of(preprocess: Preprocess, share: float, *, centre: bool) -> Portion | None:
    """Return what preparing the features takes out of a plan, `share` of its mu^2; None if there is nothing."""
    numbers = len(scales_of(preprocess))
    if centre:
        norm = math.sqrt(1 + _usual_square(preprocess))
        return Portion(share=share, length=preprocess.features + 1, clip_norm=norm, of="mean of every feature")
    return Portion(share=share, length=2 * numbers + 1, clip_norm=math.sqrt(1 + numbers / 2)) if numbers else None


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
                found += rule.count / 4
            case _:
                found += 1.0
    kept = (
        1.0 if preprocess.projection is None else min(1.0, preprocess.features / sum(r.count for r in preprocess.rules))
    )
    return found * kept


def counted_rows(preprocess: Preprocess, columns: Columns, *, centre: bool) -> Matrix:
    """Return (1, what is averaged) of each record; missing numbers are filled by their rule."""
    rows = rows_of(preprocess, columns, centre=centre)
    return np.concatenate([np.ones((len(rows), 1)), rows], axis=1)


def standardised_privately(
    preprocess: Preprocess,
    parties: Mapping[str, Columns],
    *,
    plan: PrivacyPlan,
    centre: bool = False,
    aggregator: Aggregator,
    quorum: int,
    rng: Randomness,
    run_id: str = "run",
    ledger: Ledger | None = None,
    fault: Fault | None = None,
) -> Preprocess:
    """Return `preprocess` with its numbers standardised by noisy common moments, where the noise leaves them clear.

    Args:
        preprocess: from the schema alone; missing values are filled as it says before they count.
        parties: the raw columns of each party, none or more records.
        centre: subtract the noisy mean of every feature instead.
        plan: with the release that `portion_of` asked for; every later release is accounted together with this one.
        aggregator: who sums; it hides single vectors from the server.
        quorum: smallest number of parties in the sum, that of the plan.
        rng: secret randomness of the parties.
        ledger: gets what the release spends before it is made, and one entry for it.
        fault: what the simulated network does to messages.

    Raises:
        PrivacyError: the plan has no such release.
        Aborted: the quorum was lost. The release counts as made: there is no second attempt.

    **Guarantees**: what it returns is post-processing of the plan's release before the training.
    **Leaks**: that release, to everybody who holds the model; who was in the sum.
    """
    kind, wanted = plan.preparation, portion_of(preprocess, 0.5, centre=centre)
    if kind is None or wanted is None or kind.length != wanted.length:
        raise PrivacyError("Expected a plan with a release for these features; make it with portion_of")
    cohort = Cohort(tuple(parties), quorum)
    session = Session(
        run=f"{run_id}/standardise",
        round=0,
        cohort=cohort,
        length=kind.length,
        bound=kind.bound,
        model_hash=hashlib.sha256(preprocess.encode()).digest(),
    )
    sums = SingleSum(aggregator, session, rng)
    vectors = {
        name: Releases(plan).prepare(kind.clipped_sum(counted_rows(preprocess, columns, centre=centre)), rng.branch())
        for name, columns in parties.items()
    }
    epsilon = plan.spent(0)
    if ledger is not None:  # before it leaves: a crash must not hide what was spent
        ledger.append("release", {"of": "preparation", "attempt": 1, "epsilon": epsilon})
    taken = sums.take(session, vectors, fault=fault)
    found: Sums = taken.output(cohort.server)
    members = frozenset[str]().union(*found.members)
    done = _read(preprocess, kind, found, len(members), centre=centre)
    if ledger is not None:
        bytes_up = {name: float(taken.bytes_sent(name)) for name in sums.roles}
        ledger.append("preparation", _fields(session, aggregator.name, members, bytes_up, epsilon, done))
    return done


def _read(preprocess: Preprocess, kind: SumRelease, sums: Sums, members: int, *, centre: bool) -> Preprocess:
    """Return the preparation that a noisy sum over `members` parties stands for."""
    values = kind.decode(sums.values.sum(axis=0))
    noise, count = kind.deviation(members), float(values[0])
    if count <= _CLEAR * noise:  # nothing is known about a mean
        return preprocess
    if centre:
        return with_centre(preprocess, values[1:] / count)
    scales = scales_of(preprocess)
    first, second = np.split(values[1:] / count, 2)
    means = np.clip(first, -1.0, 1.0)
    variances = np.minimum(second, 1.0) - means * means
    floors = _CLEAR * noise / count * np.sqrt(1 + 4 * means * means)  # the noise of second - mean^2, to first order
    clear = variances > floors
    standards = {
        rule.name: (mean, math.sqrt(variance))
        for rule, mean, variance, keep in zip(scales, means.tolist(), variances.tolist(), clear.tolist(), strict=True)
        if keep
    }
    rules = tuple(
        with_standard(rule, *standards[rule.name]) if isinstance(rule, Scale) and rule.name in standards else rule
        for rule in preprocess.rules
    )
    return msgspec.structs.replace(preprocess, rules=rules)


def _fields(
    session: Session,
    aggregator: str,
    members: frozenset[str],
    bytes_up: Mapping[str, float],
    epsilon: float,
    done: Preprocess,
) -> dict[str, Value]:
    """Return what a ledger's line says about the release; the moments are in the model, not here."""
    cohort = session.cohort
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
        "preprocess": hashlib.sha256(done.encode()).hexdigest(),
    }
