"""The federated loop, as a generator: the caller's `for` sees every round, and stops it by leaving.

Each round every silo turns its records into one integer vector, an aggregator hands the server the sum, and the server
moves the model. What the vector holds is an `Encoding`; who may see what on the way is the aggregator's guarantee. The
loop knows neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import Aborted
from confide.ideal import Aggregator, Cohort, Session, Sums
from confide.train.encodings import Encoding
from confide.train.job import TrainSection, default_quorum
from confide.train.learner import Model
from confide.train.ledger import Ledger, Value
from confide.train.local import Silo
from confide.train.optimise import optimiser_of
from confide.wire import Fault, MemoryStore, Store, Transcript, run

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Round(Generic[Model]):
    """What one round did.

    Args:
        number: 1 to rounds.
        attempts: sums tried for it; above 1 the quorum was lost before.
        model: the model after the round; after the last round the one to keep (averaged if the job says so).
        parameters: of `model`, float64, shape (parameters,).
        members: whose records are in the sum.
        missing: who dropped out.
        bytes_up, seconds: of each party, the servers included.
        epsilon: spent up to and including this round, or None.
        origin: where the secret randomness came from.
    """

    number: int
    attempts: int
    model: Model
    parameters: Matrix
    members: frozenset[str]
    missing: frozenset[str]
    bytes_up: Mapping[str, int]
    seconds: Mapping[str, float]
    epsilon: float | None
    origin: str


def parameters_hash(parameters: Matrix) -> bytes:
    """Return SHA-256 over the parameters as little-endian float64 (32 bytes)."""
    return hashlib.sha256(parameters.astype("<f8").tobytes()).digest()


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
        # apart from what the protocol draws: with a fixed seed every aggregator is given the same vectors to sum
        self.own = {name: rng.branch() for name in cohort.clients}
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

    def sum(self, parameters: Matrix, silos: Sequence[Silo], number: int, attempt: int) -> Transcript:
        session = Session(
            run=self.run_id,
            round=number,
            attempt=attempt,
            cohort=self.cohort,
            length=self.encoding.length,
            bound=self.encoding.bound,
            model_hash=parameters_hash(self.encoding.broadcast(parameters)),
        )
        self.releases += 1
        vectors = {
            silo.name: self.encoding.contribution(parameters, silo, number, self.own[silo.name], self.stores[silo.name])
            for silo in silos
        }
        parties = {
            me: self.aggregator.party(role, me, session, vectors.get(me), self.stores[me], self.rng)
            for me, role in self.roles.items()
        }
        return run(parties, stores=self.stores, fault=self.fault, keep_bodies=False)


def federate(
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
) -> Iterator[Round[Any]]:
    """Train over `silos`, yielding after every round.

    Args:
        silos: the parties; none is left out of a round on purpose.
        encoding: `WeightedUpdates`, `Scaffold`, or `PrivateGradients` under a privacy plan; its learner has the public
            starting point.
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
    parameters = encoding.learner.start
    optimiser = optimiser_of(train)
    averaged, since = np.zeros_like(parameters), train.rounds - round(train.average * train.rounds)
    for number in range(1, train.rounds + 1):
        done, attempts = _completed(federation, parameters, silos, number, train.attempts, ledger)
        if done is None:
            return  # the privacy plan is spent; the last round's model stands
        sums: Sums = done.output(cohort.server)
        members = sums.members[0]
        change = encoding.update(parameters, sums.values[0], len(members), number)
        parameters = parameters + optimiser.step(change)
        for name in names:
            encoding.settle(federation.stores[name], name in members)
        if number > since:
            averaged += (parameters - averaged) / (number - since)
        kept = averaged.copy() if number > since else parameters
        result = Round(
            number=number,
            attempts=attempts,
            model=encoding.learner.model(kept),
            parameters=kept,
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
    parameters: Matrix,
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
        done = federation.sum(parameters, silos, number, attempt)
        failure = done.failures.get(federation.cohort.server)
        if failure is None:
            return done, attempt + 1
        reason = str(failure)
    raise Aborted(f"Round {number} failed {attempts} times; {reason}")


def _entry(done: Round[Any], aggregator: str) -> dict[str, Value]:
    return {
        "round": done.number,
        "attempts": done.attempts,
        "aggregator": aggregator,
        "members": sorted(done.members),
        "missing": sorted(done.missing),
        "bytes_up": {name: float(count) for name, count in sorted(done.bytes_up.items())},
        "epsilon": done.epsilon,
        "model": parameters_hash(done.parameters).hex(),
    }
