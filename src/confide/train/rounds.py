"""The federated loop, as a generator: the caller's `for` sees every round, and stops it by leaving.

Each round every silo turns its records into one integer vector, an aggregator hands the server the sum, and the server
moves the model. What the vector holds is an `Encoding`; who may see what on the way is the aggregator's guarantee. The
loop knows neither.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.fixed import FixedPoint
from confide.crypto.random import Randomness
from confide.dp.plan import PrivacyPlan, Releases
from confide.errors import Aborted, DataError, ModelError
from confide.ideal import Aggregator, Cohort, Session, Sums
from confide.model.graph import Graph
from confide.train.job import TrainSection, default_quorum
from confide.train.ledger import Ledger
from confide.train.local import Silo, descend, flatten, record_gradients, unflatten
from confide.train.optimise import optimiser_of
from confide.wire import Fault, MemoryStore, Store, Transcript, run

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: Where a silo keeps its control variate, and the one that it takes over when its contribution counted.
_CONTROL, _NEXT_CONTROL = "scaffold/control", "scaffold/next"

#: A silo may hold this many times the expected number of records.
_LARGEST_WEIGHT = 16.0


class Encoding(ABC):
    """What a silo contributes to a sum and how the server reads the sum.

    Args:
        length: the number of integers in a contribution.
        bound: the largest absolute value of any of them.
        releases: how many sums may be taken in all, failed attempts included.
    """

    length: int
    bound: int
    releases: int

    def broadcast(self, graph: Graph) -> Matrix:
        """Return everything that the silos' contributions of this round start from; its hash is in the session."""
        return flatten(graph)

    @abstractmethod
    def contribution(self, graph: Graph, silo: Silo, rng: Randomness, store: Store) -> Vector:
        """Return the silo's integers, shape (length,); `store` is the silo's own."""

    def settle(self, store: Store, member: bool) -> None:
        """Tell a silo, through its `store`, whether its last contribution is in a released sum."""
        return

    @abstractmethod
    def update(self, graph: Graph, sums: Vector, members: int) -> Matrix:
        """Return the change of the parameters, shape (parameters,), that the sum over `members` silos stands for."""

    def epsilon(self, releases: int) -> float | None:
        """Return what `releases` sums have spent, or None without differential privacy."""
        return None


class _LocalSteps:
    """A silo's work between two sums: its weight, its bounded change, and the grid that both travel on."""

    def __init__(self, train: TrainSection) -> None:
        self._train = train
        bound = max(train.update_bound, 1.0) * _LARGEST_WEIGHT
        self.fixed = FixedPoint(fraction_bits=train.fraction_bits, bound=bound)

    def weight(self, silo: Silo) -> float:
        weight = len(silo.x) / self._train.expected_records
        if not 0 < weight <= _LARGEST_WEIGHT:
            raise DataError(
                f"Expected between 1 and {_LARGEST_WEIGHT:.0f} * train.expected_records={self._train.expected_records} "
                f"records at {silo.name}; set train.expected_records to the public order of magnitude"
            )
        return weight

    def change(self, graph: Graph, silo: Silo, shift: Matrix | float = 0.0) -> Matrix:
        """Return what the local steps add to the parameters.

        Raises:
            ModelError: it is not finite, and would be nothing but noise in the sum; the text names the silo.
        """
        try:
            with np.errstate(all="ignore"):  # what overflows is refused below
                after = descend(
                    graph,
                    silo.x,
                    silo.y,
                    steps=self._train.local_steps,
                    learning_rate=self._train.learning_rate,
                    momentum=0.0,
                    weight_decay=self._train.weight_decay,
                    proximal=self._train.proximal if self._train.algorithm == "fedprox" else 0.0,
                    shift=shift,
                )
                change = flatten(after) - flatten(graph)
        except ModelError as error:
            raise ModelError(f"{error}; seen at {silo.name}") from None
        if not np.isfinite(change).all():
            raise ModelError(f"Expected a finite update of {silo.name}; its training diverged: lower the learning rate")
        return change

    def bounded(self, change: Matrix) -> Matrix:
        largest = float(np.abs(change).max())
        return change * min(1.0, self._train.update_bound / largest) if largest else change


class WeightedUpdates(Encoding):
    """Federated averaging: (weight * update, weight), so that the example counts stay inside the sum.

    The weight is the record count over the public `expected_records`. With one local step the weighted mean of the
    updates is exactly the gradient step on the pooled records. FedProx differs in the local steps alone, the adaptive
    algorithms in what the server does with the mean.
    """

    def __init__(self, graph: Graph, train: TrainSection) -> None:
        self._work = _LocalSteps(train)
        self.length = graph.parameters + 1
        self.bound = self._work.fixed.largest
        self.releases = train.rounds * train.attempts

    def contribution(self, graph: Graph, silo: Silo, rng: Randomness, store: Store) -> Vector:
        weight = self._work.weight(silo)
        change = self._work.bounded(self._work.change(graph, silo))
        return self._work.fixed.encode(np.append(weight * change, weight))

    def update(self, graph: Graph, sums: Vector, members: int) -> Matrix:
        values = self._work.fixed.decode(sums)
        return values[:-1] / values[-1]


class Scaffold(Encoding):
    """SCAFFOLD: each silo's steps are corrected by how its gradients differ from everybody's.

    The silo keeps its control variate c_i in its store; the server keeps their weighted mean c, which it sends with the
    model. The contribution is (weight * update, weight * change of c_i, weight). A silo takes its new c_i over only
    once it is told that its contribution is in a sum, so c stays the mean of the c_i whoever drops out.

    Paper: Karimireddy et al., SCAFFOLD (2020), Algorithm 1, option II; the means are weighted by the record counts.

    Args:
        parties: how many silos there are.
        control: the server's c of an earlier run that the silos' stores come from; None starts at 0.
    """

    def __init__(self, graph: Graph, train: TrainSection, *, parties: int, control: Matrix | None = None) -> None:
        self._work = _LocalSteps(train)
        self._parties = parties
        self._travel = train.local_steps * train.learning_rate
        self.control = np.zeros(graph.parameters) if control is None else control
        self.length = 2 * graph.parameters + 1
        self.bound = self._work.fixed.largest
        self.releases = train.rounds * train.attempts

    def broadcast(self, graph: Graph) -> Matrix:
        return np.append(flatten(graph), self.control)

    def contribution(self, graph: Graph, silo: Silo, rng: Randomness, store: Store) -> Vector:
        body = store.get(_CONTROL)
        own = np.zeros_like(self.control) if body is None else np.frombuffer(body, "<f8")
        weight = self._work.weight(silo)
        change = self._work.change(graph, silo, self.control - own)
        turn = self._work.bounded(-change / self._travel - self.control)
        store.commit({_NEXT_CONTROL: (own + turn).astype("<f8").tobytes()})
        return self._work.fixed.encode(np.concatenate([weight * self._work.bounded(change), weight * turn, [weight]]))

    def settle(self, store: Store, member: bool) -> None:
        taken = {_CONTROL: store.get(_NEXT_CONTROL)} if member else {}
        store.commit({**taken, _NEXT_CONTROL: None})

    def update(self, graph: Graph, sums: Vector, members: int) -> Matrix:
        values = self._work.fixed.decode(sums)
        change, turn = np.split(values[:-1] / values[-1], 2)
        self.control = self.control + turn * members / self._parties
        return change


class PrivateGradients(Encoding):
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

    def contribution(self, graph: Graph, silo: Silo, rng: Randomness, store: Store) -> Vector:
        clipped = self._plan.clipped_sum(record_gradients(graph, silo.x, silo.y))
        return self._releases.setdefault(silo.name, Releases(self._plan)).release(clipped, rng)

    def update(self, graph: Graph, sums: Vector, members: int) -> Matrix:
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
        bytes_up, seconds: of each party, the servers included.
        epsilon: spent up to and including this round, or None.
        origin: where the secret randomness came from.
    """

    number: int
    attempts: int
    graph: Graph
    members: frozenset[str]
    missing: frozenset[str]
    bytes_up: Mapping[str, int]
    seconds: Mapping[str, float]
    epsilon: float | None
    origin: str


def model_hash(graph: Graph) -> bytes:
    """Return SHA-256 over the parameters as little-endian float64 (32 bytes)."""
    return _hash(flatten(graph))


def _hash(values: Matrix) -> bytes:
    return hashlib.sha256(values.astype("<f8").tobytes()).digest()


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
        stores: Mapping[str, Store] | None,
    ) -> None:
        self.aggregator, self.cohort, self.encoding = aggregator, cohort, encoding
        self.run_id, self.rng, self.fault = run_id, rng, fault
        self.roles = cohort.parties(aggregator.roles)
        self.stores: dict[str, Store] = {name: MemoryStore() for name in self.roles}
        self.stores |= stores or {}
        self.releases = 0
        done = run(
            {me: aggregator.setup(role, me, cohort, self.stores[me], rng) for me, role in self.roles.items()},
            stores=self.stores,
        )
        for name in self.roles:
            done.output(name)

    def sum(self, graph: Graph, silos: Sequence[Silo], number: int, attempt: int) -> Transcript:
        session = Session(
            run=self.run_id,
            round=number,
            attempt=attempt,
            cohort=self.cohort,
            length=self.encoding.length,
            bound=self.encoding.bound,
            model_hash=_hash(self.encoding.broadcast(graph)),
        )
        self.releases += 1
        vectors = {
            silo.name: self.encoding.contribution(graph, silo, self.rng, self.stores[silo.name]) for silo in silos
        }
        parties = {
            me: self.aggregator.party(role, me, session, vectors.get(me), self.stores[me], self.rng)
            for me, role in self.roles.items()
        }
        return run(parties, stores=self.stores, fault=self.fault, keep_bodies=False)


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
    stores: Mapping[str, Store] | None = None,
) -> Iterator[Round]:
    """Train `graph` over `silos`, yielding after every round.

    Args:
        graph: the starting point, public.
        silos: the parties; none is left out of a round on purpose.
        encoding: `WeightedUpdates`, `Scaffold`, or `PrivateGradients` under a privacy plan.
        train: rounds, the server's optimiser, averaging, attempts.
        aggregator: who sums.
        rng: secret randomness of the parties.
        ledger: gets one entry per round.
        fault: what the simulated network does to messages.
        stores: of the parties that keep theirs; the others start with an empty one.

    Raises:
        Aborted: a round lost its quorum in each of its attempts.
    """
    names = tuple(silo.name for silo in silos)
    cohort = Cohort(names, train.quorum or default_quorum(len(names)))
    federation = _Federation(aggregator, cohort, encoding, run_id, rng, fault, stores)
    weights = flatten(graph)
    optimiser = optimiser_of(train)
    averaged, since = np.zeros_like(weights), train.rounds - round(train.average * train.rounds)
    for number in range(1, train.rounds + 1):
        done, attempts = _completed(federation, unflatten(graph, weights), silos, number, train.attempts, ledger)
        if done is None:
            return  # the privacy plan is spent; the last round's model stands
        sums: Sums = done.output(cohort.server)
        members = sums.members[0]
        change = encoding.update(unflatten(graph, weights), sums.values[0], len(members))
        weights = weights + optimiser.step(change)
        for name in names:
            encoding.settle(federation.stores[name], name in members)
        if number > since:
            averaged += (weights - averaged) / (number - since)
        result = Round(
            number=number,
            attempts=attempts,
            graph=unflatten(graph, averaged if number > since else weights),
            members=members,
            missing=frozenset(names) - members,
            bytes_up={name: done.bytes_sent(name) for name in federation.roles},
            seconds={name: done.seconds(name) for name in federation.roles},
            epsilon=encoding.epsilon(federation.releases),
            origin=rng.origin,
        )
        if ledger is not None:
            ledger.append("round", _entry(result, aggregator.name))
        yield result


def _completed(
    federation: _Federation,
    graph: Graph,
    silos: Sequence[Silo],
    number: int,
    attempts: int,
    ledger: Ledger | None,
) -> tuple[Transcript | None, int]:
    """Return the transcript of the first attempt that gave a sum, and which it was; None when no release is left."""
    reason = ""
    for attempt in range(attempts):
        if federation.releases >= federation.encoding.releases:
            return None, attempt
        spent = federation.encoding.epsilon(federation.releases + 1)
        if ledger is not None and spent is not None:  # before it leaves: a crash must not hide what was spent
            ledger.append("release", {"round": number, "attempt": attempt + 1, "epsilon": spent})
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
