"""Models that the job itself trains on records which a coin puts in or leaves out: what membership attacks learn from.

A shadow model is one more training of the same job in this process. Aggregators that open the exact sum all lead to the
same model, so shadows take the plain one for speed; those that outvote parties are run as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.audit import draw_coins
from confide.errors import UsageError
from confide.ideal import PlainSum
from confide.model.graph import Graph
from confide.train.local import Silo
from confide.train.parts import checked_aggregator, encoding_of
from confide.train.rounds import Round, federate
from confide.train.run import Prepared
from confide.train.sections import Job

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
Coins = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """All records that a job's parties have, those set aside for testing included.

    Args:
        silos: each party with all of its records, at least two.
        attacked: bool, shape (records,), over the silos' records in their order: whose membership a coin decides. The
            first record of each party is always in, so that none is ever without.
    """

    silos: tuple[Silo, ...]
    attacked: Coins

    @property
    def x(self) -> Matrix:
        """Return the features of the attacked records, shape (n, features)."""
        return np.concatenate([silo.x for silo in self.silos])[self.attacked]

    @property
    def y(self) -> Labels:
        """Return their classes, shape (n,)."""
        return np.concatenate([silo.y for silo in self.silos])[self.attacked]

    @property
    def count(self) -> int:
        """Return how many records are attacked."""
        return int(self.attacked.sum())

    def drawn(self, coins: Coins) -> tuple[Silo, ...]:
        """Return the parties with the records that `coins`, shape (count,), put in."""
        inside = ~self.attacked
        inside[self.attacked] = coins
        ends = np.cumsum([len(silo.y) for silo in self.silos])[:-1]
        return tuple(_only(silo, part) for silo, part in zip(self.silos, np.split(inside, ends), strict=True))


def pool_of(data: Prepared) -> Pool:
    """Return the pool of a job's data.

    Raises:
        UsageError: a party has fewer than two records.
    """
    held = {silo.name: silo for silo in data.held}
    silos = tuple(_joined(silo, held.get(silo.name)) for silo in data.silos)
    if any(len(silo.y) < 2 for silo in silos):
        raise UsageError("Expected two records or more at each party; with one there is nothing to leave out")
    attacked = np.concatenate([np.arange(len(silo.y)) > 0 for silo in silos])
    return Pool(silos, attacked)


def _joined(silo: Silo, held: Silo | None) -> Silo:
    if held is None or not len(held.y):
        return silo
    units = silo.units
    if units is not None and held.units is not None:  # a unit's records are all on one side: none is in both
        units = np.concatenate([units, held.units + int(units.max()) + 1])
    return Silo(silo.name, np.concatenate([silo.x, held.x]), np.concatenate([silo.y, held.y]), units=units)


def _only(silo: Silo, inside: Coins) -> Silo:
    units = None if silo.units is None else silo.units[inside]
    return Silo(silo.name, silo.x[inside], silo.y[inside], units=units)


def opens_exact_sums(job: Job) -> bool:
    """Return whether the job's aggregator opens the exact sum, so that any other such one gives the same model."""
    train = job.train
    return train.aggregate != "groups" and not (train.aggregate == "tee" and train.rule != "mean")


def retrained(job: Job, data: Prepared, silos: Sequence[Silo], rng: Randomness) -> Round[Graph]:
    """Return the last round of the job over other records.

    Raises:
        UsageError: the job cannot be run in this process.
        Aborted: a round failed.
    """
    encoding = encoding_of(job, data.start, len(silos), preprocess=data.preprocess, class_weights=data.class_weights)
    names = tuple(silo.name for silo in silos)
    aggregator = PlainSum() if opens_exact_sums(job) else checked_aggregator(job, names)
    rounds = federate(silos, encoding, job.train, aggregator=aggregator, rng=rng, run_id=f"audit of {job.job.name}")
    last = deque(rounds, maxlen=1)
    if not last:
        raise UsageError("Expected at least one round to attack")
    return last[0]


@dataclass(frozen=True, slots=True, eq=False)
class Shadow:
    """One model and which of the attacked records it has seen, bool, shape (count,)."""

    graph: Graph
    seen: Coins


def shadows(job: Job, data: Prepared, pool: Pool, *, models: int, rng: Randomness) -> Iterator[Shadow]:
    """Yield models of the job, each trained on the records that fair coins of its own put in.

    Args:
        models: how many, >= 1.
        rng: of the coins and of the trainings; the trainings see nothing of the coins but who is in.
    """
    for _ in range(models):
        coins = draw_coins(pool.count, rng)
        yield Shadow(retrained(job, data, pool.drawn(coins), rng).model, coins)
