"""The federated loop, as a generator: the caller's `for` sees every round, and stops it by leaving.

Each round every silo turns its records into one integer vector, an aggregator hands the server the sum, and the server
moves the model. What the vector holds is an `Encoding`; who may see what on the way is the aggregator's guarantee. The
loop knows neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from confide.crypto.fixed import FixedPoint
from confide.crypto.random import Randomness
from confide.dp.plan import PrivacyPlan, Releases
from confide.errors import Aborted, DataError
from confide.ideal import Aggregator, Cohort, Session, Sums
from confide.model.graph import Graph
from confide.train.job import TrainSection
from confide.train.ledger import Ledger
from confide.train.local import Silo, descend, flatten, record_gradients, unflatten
from confide.wire import Fault, MemoryStore, Store, Transcript, run

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: A silo may hold this many times the expected number of records.
_LARGEST_WEIGHT = 16.0


class Encoding(Protocol):
    """What a silo contributes to a sum and how the server reads the sum."""

    @property
    def length(self) -> int:
        """Return the number of integers in a contribution."""
        ...

    @property
    def bound(self) -> int:
        """Return the largest absolute value of any of them."""
        ...

    @property
    def releases(self) -> int:
        """Return how many sums may be taken in all, failed attempts included."""
        ...

    def contribution(self, graph: Graph, silo: Silo, rng: Randomness) -> Vector:
        """Return the silo's integers, shape (length,)."""
        ...

    def update(self, graph: Graph, sums: Vector) -> Matrix:
        """Return the change of the parameters, shape (parameters,), that the sum stands for."""
        ...

    def epsilon(self, releases: int) -> float | None:
        """Return what `releases` sums have spent, or None without differential privacy."""
        ...


class WeightedUpdates:
    """Federated averaging: (weight * update, weight), so that the example counts stay inside the sum.

    The weight is the record count over the public `expected_records`. With one local step the weighted mean of the
    updates is exactly the gradient step on the pooled records.
    """

    def __init__(self, graph: Graph, train: TrainSection) -> None:
        self._train = train
        bound = max(train.update_bound, 1.0) * _LARGEST_WEIGHT
        self._fixed = FixedPoint(fraction_bits=train.fraction_bits, bound=bound)
        self.length = graph.parameters + 1
        self.bound = self._fixed.largest
        self.releases = train.rounds * train.attempts

    def contribution(self, graph: Graph, silo: Silo, rng: Randomness) -> Vector:
        weight = len(silo.x) / self._train.expected_records
        if not 0 < weight <= _LARGEST_WEIGHT:
            raise DataError(
                f"Expected between 1 and {_LARGEST_WEIGHT:.0f} * train.expected_records={self._train.expected_records} "
                f"records at {silo.name}; set train.expected_records to the public order of magnitude"
            )
        after = descend(
            graph,
            silo.x,
            silo.y,
            steps=self._train.local_steps,
            learning_rate=self._train.learning_rate,
            momentum=0.0,
            weight_decay=self._train.weight_decay,
        )
        change = flatten(after) - flatten(graph)
        largest = float(np.abs(change).max())
        change = change * min(1.0, self._train.update_bound / largest) if largest else change
        return self._fixed.encode(np.append(weight * change, weight))

    def update(self, graph: Graph, sums: Vector) -> Matrix:
        values = self._fixed.decode(sums)
        return values[:-1] / values[-1]

    def epsilon(self, releases: int) -> float | None:
        return None


class PrivateGradients:
    """Noisy gradient descent: the clipped sum of the records' gradients plus the silo's share of the noise.

    Every attempt spends a release of the plan, so a run that repeats a round ends with fewer steps, never with more
    epsilon.
    """

    def __init__(self, plan: PrivacyPlan, train: TrainSection) -> None:
        self._plan = plan
        self._train = train
        self._releases: dict[str, Releases] = {}  # each silo's own count: it does not rely on the server to stop
        self.length = plan.length
        self.bound = plan.bound
        self.releases = plan.rounds

    def contribution(self, graph: Graph, silo: Silo, rng: Randomness) -> Vector:
        clipped = self._plan.clipped_sum(record_gradients(graph, silo.x, silo.y))
        return self._releases.setdefault(silo.name, Releases(self._plan)).release(clipped, rng)

    def update(self, graph: Graph, sums: Vector) -> Matrix:
        mean = self._plan.decode(sums) / self._plan.expected_records
        return -self._train.learning_rate * (mean + self._train.weight_decay * flatten(graph))

    def epsilon(self, releases: int) -> float | None:
        return self._plan.spent(releases)


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did.

    Args:
        number: 1 to rounds.
        attempts: sums tried for it; above 1 the quorum was lost before.
        graph: the model after the round; after the last round the one to keep (averaged if the job says so).
        members: whose records are in the sum.
        missing: who dropped out.
        bytes_up, seconds: of each party, the server included.
        epsilon: spent up to and including this round, or None.
    """

    number: int
    attempts: int
    graph: Graph
    members: frozenset[str]
    missing: frozenset[str]
    bytes_up: Mapping[str, int]
    seconds: Mapping[str, float]
    epsilon: float | None


def model_hash(graph: Graph) -> bytes:
    """Return SHA-256 over the parameters as little-endian float64 (32 bytes)."""
    return hashlib.sha256(flatten(graph).astype("<f8").tobytes()).digest()


class _Federation:
    """The parties of one run with their stores; one `sum` is one attempt."""

    def __init__(
        self,
        aggregator: Aggregator,
        cohort: Cohort,
        encoding: Encoding,
        run_id: str,
        rng: Randomness,
        fault: Fault | None,
    ) -> None:
        self.aggregator, self.cohort, self.encoding = aggregator, cohort, encoding
        self.run_id, self.rng, self.fault = run_id, rng, fault
        self.stores: dict[str, Store] = {name: MemoryStore() for name in (cohort.server, *cohort.clients)}
        self.releases = 0
        roles = {cohort.server: "server"} | dict.fromkeys(cohort.clients, "client")
        done = run(
            {me: aggregator.setup(role, me, cohort, self.stores[me], rng) for me, role in roles.items()},
            stores=self.stores,
        )
        for name in roles:
            done.output(name)

    def sum(self, graph: Graph, silos: Sequence[Silo], number: int, attempt: int) -> Transcript:
        session = Session(
            run=self.run_id,
            round=number,
            attempt=attempt,
            cohort=self.cohort,
            length=self.encoding.length,
            bound=self.encoding.bound,
            model_hash=model_hash(graph),
        )
        self.releases += 1
        server = self.cohort.server
        parties = {server: self.aggregator.party("server", server, session, None, self.stores[server], self.rng)}
        for silo in silos:
            vector = self.encoding.contribution(graph, silo, self.rng)
            parties[silo.name] = self.aggregator.party(
                "client", silo.name, session, vector, self.stores[silo.name], self.rng
            )
        return run(parties, stores=self.stores, fault=self.fault, keep_bodies=False)


def default_quorum(parties: int) -> int:
    """Return a majority, and at least 3 where there are as many: a sum of two shows each the other's vector."""
    return min(parties, max(3, parties // 2 + 1))


def federate(
    graph: Graph,
    silos: Sequence[Silo],
    encoding: Encoding,
    train: TrainSection,
    *,
    aggregator: Aggregator,
    rng: Randomness,
    run_id: str = "run",
    ledger: Ledger | None = None,
    fault: Fault | None = None,
) -> Iterator[Round]:
    """Train `graph` over `silos`, yielding after every round.

    Args:
        graph: the starting point, public.
        silos: the parties; none is left out of a round on purpose.
        encoding: `WeightedUpdates`, or `PrivateGradients` under a privacy plan.
        train: rounds, momentum, averaging, attempts.
        aggregator: who sums.
        rng: secret randomness of the parties.
        ledger: gets one entry per round.
        fault: what the simulated network does to messages.

    Raises:
        Aborted: a round lost its quorum in each of its attempts.
    """
    names = tuple(silo.name for silo in silos)
    cohort = Cohort(names, train.quorum or default_quorum(len(names)))
    federation = _Federation(aggregator, cohort, encoding, run_id, rng, fault)
    weights = flatten(graph)
    velocity = np.zeros_like(weights)
    averaged, since = np.zeros_like(weights), train.rounds - round(train.average * train.rounds)
    for number in range(1, train.rounds + 1):
        done, attempts = _completed(federation, unflatten(graph, weights), silos, number, train.attempts)
        if done is None:
            return  # the privacy plan is spent; the last round's model stands
        sums: Sums = done.output(cohort.server)
        velocity = train.momentum * velocity + encoding.update(unflatten(graph, weights), sums.values[0])
        weights = weights + velocity
        if number > since:
            averaged += (weights - averaged) / (number - since)
        members = sums.members[0]
        result = Round(
            number=number,
            attempts=attempts,
            graph=unflatten(graph, averaged if number > since else weights),
            members=members,
            missing=frozenset(names) - members,
            bytes_up={name: done.bytes_sent(name) for name in (cohort.server, *names)},
            seconds={name: done.seconds(name) for name in (cohort.server, *names)},
            epsilon=encoding.epsilon(federation.releases),
        )
        if ledger is not None:
            ledger.append("round", _entry(result, aggregator.name))
        yield result


def _completed(
    federation: _Federation, graph: Graph, silos: Sequence[Silo], number: int, attempts: int
) -> tuple[Transcript | None, int]:
    """Return the transcript of the first attempt that gave a sum, and which it was; None when no release is left."""
    reason = ""
    for attempt in range(attempts):
        if federation.releases >= federation.encoding.releases:
            return None, attempt
        done = federation.sum(graph, silos, number, attempt)
        failure = done.failures.get(federation.cohort.server)
        if failure is None:
            return done, attempt + 1
        reason = str(failure)
    raise Aborted(f"Round {number} failed {attempts} times; {reason}")


def _entry(done: Round, aggregator: str) -> dict[str, str | int | float | bool | None | list[str] | dict[str, float]]:
    return {
        "round": done.number,
        "attempts": done.attempts,
        "aggregator": aggregator,
        "members": sorted(done.members),
        "missing": sorted(done.missing),
        "bytes_up": {name: float(count) for name, count in sorted(done.bytes_up.items())},
        "epsilon": done.epsilon,
        "model": model_hash(done.graph).hex(),
    }
