"""Is a record in what the aggregator of a job sees? Read out of updates in closed form.

The gradient of a linear layer is an outer product, so that of a single record gives the record by a division, dW_i /
db_i of any unit i. Of several records it gives weighted means, which are no record's. What there is to read: every
party's own vector under an aggregator that shows updates to the server, else the sums that it opens.

    paper    here
    W, b     weight and bias of the first layer
    x        a record's features

Paper: Phong et al., Privacy-Preserving Deep Learning via Additively Homomorphic Encryption (IEEE TIFS 13(5), 2018),
section 3. Optimising attacks on deeper networks are not run; they need more and find less than this where it applies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness, public_stream
from confide.errors import ModelError
from confide.ideal import Aggregator, Cohort, Session
from confide.model.graph import Graph, Linear
from confide.train.client_level import ClientUpdates
from confide.train.encodings import Encoding, PrivateGradients, Scaffold, WeightedUpdates
from confide.train.local import Silo
from confide.train.parts import checked_aggregator, checked_quorum, encoding_of
from confide.train.run import Prepared
from confide.train.sections import Job
from confide.train.single_sum import SingleSum
from confide.wire import MemoryStore

Matrix = NDArray[np.float64]

#: A record counts as read out if a guess is this close, in units of its distance from the average record.
READ_OUT = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """What was read out.

    Args:
        errors: for each record the distance of the nearest guess, over the record's distance from the average record:
            0 is the record, 1 no better than the average; infinite where nothing could be guessed. Shape (records,).
        guesses: how many there were.
        single: whether single parties' vectors were seen.
    """

    errors: Matrix
    guesses: int
    single: bool

    @property
    def read(self) -> int:
        """Return how many records were read out."""
        return int((self.errors < READ_OUT).sum())


def unfit(job: Job, start: Graph, parties: int, data: Prepared | None = None) -> str:
    """Return why this attack does not fit a job; "" if it does."""
    if not isinstance(start.layers[0], Linear):
        return "the model has no gradients to divide; trees are grown from sums of histograms"
    preprocess = data.preprocess if data else None
    encoding = encoding_of(job, start, parties, preprocess=preprocess)
    if not isinstance(encoding, WeightedUpdates | Scaffold | PrivateGradients | ClientUpdates):
        return (
            f'train.algorithm="{job.train.algorithm}" sums moments of records and no gradients of this form; the '
            "moments of one record are the record, so what counts is how many are in a sum"
        )
    return ""


def quotients(graph: Graph, change: Matrix) -> Matrix:
    """Return dW_i / db_i of each unit of the first layer whose bias has moved, shape (units, features).

    Args:
        graph: its first layer is Linear.
        change: of all parameters, in proportion to a gradient.

    Raises:
        ModelError: the first layer is another.
    """
    first = graph.layers[0]
    if not isinstance(first, Linear):
        raise ModelError("Expected a graph whose first layer is Linear; others have no such quotient")
    outputs, features = first.weight.shape
    weights = change[: outputs * features].reshape(outputs, features)
    biases = change[outputs * features : outputs * features + outputs]
    moved = np.abs(biases) > 0
    return weights[moved] / biases[moved, None]


def errors(guesses: Matrix, x: Matrix, average: Matrix) -> Matrix:
    """Return for each record the distance of the nearest guess over that of the average record, shape (records,)."""
    if not len(guesses):
        return np.full(len(x), np.inf)
    distances = np.linalg.norm(guesses[None, :, :] - x[:, None, :], axis=2).min(axis=1)
    return distances / np.maximum(np.linalg.norm(x - average, axis=1), 1e-12)


def inversion(job: Job, data: Prepared, *, records: int | None, times: int, rng: Randomness) -> Inversion:
    """Attack what the server sees of the job's first round.

    Args:
        job: one that `unfit` has nothing against.
        data: of the job.
        records: of each party in the round: 1 is the worst case, None all of them.
        times: rounds, each over other records if only some take part, >= 1.
        rng: of the parties.

    Raises:
        UsageError: the aggregator cannot be run in this process.
    """
    average = np.concatenate([silo.x for silo in data.silos]).mean(axis=0)
    found: list[Matrix] = []
    guessed, single = 0, False
    for time in range(times):
        silos = tuple(_some(silo, records, f"{job.job.seed}/{time}") for silo in data.silos)
        names = tuple(silo.name for silo in silos)
        aggregator = checked_aggregator(job, names)
        single = not aggregator.guarantee.hides("update", "server")
        x = np.concatenate([silo.x for silo in silos])
        guesses = np.concatenate(list(_guesses(job, data, silos, aggregator, rng)))
        guessed += len(guesses)
        found.append(errors(guesses, x, average))
    return Inversion(np.concatenate(found), guessed, single)


def _some(silo: Silo, records: int | None, seed: str) -> Silo:
    if records is None:
        return silo
    chosen = public_stream(seed, f"inverted records of {silo.name}").permutation(len(silo.y))[:records]
    units = None if silo.units is None else silo.units[chosen]
    return Silo(silo.name, silo.x[chosen], silo.y[chosen], units=units)


def _guesses(
    job: Job, data: Prepared, silos: Sequence[Silo], aggregator: Aggregator, rng: Randomness
) -> Iterator[Matrix]:
    """Yield guesses from each vector or sum that the server sees."""
    encoding = encoding_of(job, data.start, len(silos), preprocess=data.preprocess, class_weights=data.class_weights)
    start = encoding.learner.start
    vectors = {silo.name: encoding.contribution(start, silo, 1, rng, MemoryStore()) for silo in silos}
    if aggregator.guarantee.hides("update", "server"):
        seen = _opened(job, encoding, vectors, aggregator, rng)
    else:
        seen = [(frozenset({name}), vector) for name, vector in vectors.items()]
    for members, vector in seen:
        # local steps start at `start`: what weight decay adds to the first of them is known and taken off
        change = encoding.update(start, vector, members, 1) + job.train.learning_rate * job.train.weight_decay * start
        yield quotients(data.start, change)


def _opened(
    job: Job, encoding: Encoding, vectors: Mapping[str, NDArray[np.int64]], aggregator: Aggregator, rng: Randomness
) -> list[tuple[frozenset[str], NDArray[np.int64]]]:
    """Return the sums that the job's aggregator opens, and over whom."""
    names = tuple(vectors)
    cohort = Cohort(names, checked_quorum(job, len(names)))
    session = Session(f"audit of {job.job.name}", 1, cohort, encoding.length, encoding.bound)
    sums = SingleSum(aggregator, session, rng).take(session, vectors).output(cohort.server)
    return list(zip(sums.members, sums.values, strict=True))
