"""The federated loop, as a generator: the caller's `for` sees every round, and stops it by leaving.

Each round every silo turns its records into one integer vector, an aggregator hands the server the sum, and everybody
moves the model by it: the server its `Course`, each silo its own. What the vector holds is an `Encoding`; who may see
what on the way is the aggregator's guarantee. The loop knows neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import Aborted
from confide.ideal import Aggregator, Cohort, Session, Sums, Vector
from confide.secagg.groups import GroupSums
from confide.train.course import Announcement, Course, Follower, Shared, announce, announcement, parameters_hash
from confide.train.encodings import Encoding
from confide.train.learner import Model
from confide.train.ledger import Ledger, Value
from confide.train.local import Silo
from confide.train.sections import TrainSection, default_quorum
from confide.wire import Fault, MemoryStore, Party, Store, Transcript, run

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Round(Generic[Model]):
    """What one round did.

    Args:
        number: 1 to rounds.
        attempts: sums tried for it; above 1 the quorum was lost before.
        model: the model after the round; after the last round the one to keep (averaged if the job says so).
        parameters: of `model`, float64, shape (parameters,).
        members: whose records are in the sum, or in the sums of groups.
        smallest: members of the smallest sum that the server saw.
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
    smallest: int
    missing: frozenset[str]
    bytes_up: Mapping[str, int]
    seconds: Mapping[str, float]
    epsilon: float | None
    origin: str


class _Federation:
    """The parties of one run with their stores; one `sum` is one attempt, and `announce` follows every sum.

    The server's course reads the encoding that was given; the silos' courses are their own.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        cohort: Cohort,
        course: Course,
        run_id: str,
        rng: Randomness,
        fault: Fault | None,
        stores: Mapping[str, Store] | None,
        start_hash: str | None,
    ) -> None:
        self.aggregator, self.cohort, self.course = aggregator, cohort, course
        self.run_id, self.rng, self.fault = run_id, rng, fault
        # apart from what the protocol draws: with a fixed seed every aggregator is given the same vectors to sum
        self.own = {name: rng.branch() for name in cohort.clients}
        self.roles = cohort.parties(aggregator.roles)
        self.stores: dict[str, Store] = {name: MemoryStore() for name in self.roles}
        self.stores |= stores or {}
        self.releases = 0
        own = course.fork()
        self.followers = {
            name: Follower(name, cohort, own, self.stores[name], start_hash=start_hash) for name in cohort.clients
        }
        self.unheard: dict[str, tuple[Announcement, ...]] = dict.fromkeys(cohort.clients, ())
        done = run(
            {me: aggregator.setup(role, me, cohort, self.stores[me], rng) for me, role in self.roles.items()},
            stores=self.stores,
        )
        for name in self.roles:
            done.output(name)

    def announce(self, sums: Sums | None) -> None:
        """Tell every silo what was released and which model the server claims.

        A silo that the network keeps it from sits out until it hears the rest.

        Raises:
            ProtocolError: a silo refuses the server's claim.
        """
        said = announcement(self.course, sums)
        self.unheard = {name: (*missed, said) for name, missed in self.unheard.items()}
        shared: Shared = {}
        parties = {name: follower.hear(shared) for name, follower in self.followers.items()}
        done = run(parties | {self.cohort.server: announce(self.cohort, self.unheard)}, fault=self.fault)
        for name in self.cohort.clients:
            if not isinstance(done.failures.get(name), Aborted):
                done.output(name)
                self.unheard[name] = ()

    def sum(self, silos: Sequence[Silo], number: int, attempt: int) -> Transcript:
        """Take one attempt among the silos that have heard everything; each takes the model from its own course."""
        encoding = self.course.encoding
        session = Session(
            run=self.run_id,
            round=number,
            attempt=attempt,
            cohort=self.cohort,
            length=encoding.length,
            bound=encoding.bound,
            model_hash=self.course.model_hash,
        )
        self.releases += 1
        vectors = {silo.name: self._contribution(silo, number) for silo in silos if not self.unheard[silo.name]}
        parties: dict[str, Party] = {}
        for me, role in self.roles.items():
            if role == "client":
                if me not in vectors:
                    continue
                own = replace(session, model_hash=self.followers[me].course.model_hash)
            else:
                own = session
            parties[me] = self.aggregator.party(role, me, own, vectors.get(me), self.stores[me], self.rng)
        return run(parties, stores=self.stores, fault=self.fault, keep_bodies=False)

    def _contribution(self, silo: Silo, number: int) -> Vector:
        own = self.followers[silo.name].course
        return own.encoding.contribution(own.parameters, silo, number, self.own[silo.name], self.stores[silo.name])


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
    start_hash: str | None = None,
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
        start_hash: hex SHA-256 of the starting parameters that the silos approved; None approves what the job gives.

    Raises:
        Aborted: a round lost its quorum in each of its attempts.
        IntegrityError: the silos approved other starting parameters.
        ProtocolError: a silo refuses the model that the server claims.
    """
    names = tuple(silo.name for silo in silos)
    cohort = Cohort(names, train.quorum or default_quorum(len(names)))
    course = Course(encoding, train)
    federation = _Federation(aggregator, cohort, course, run_id, rng, fault, stores, start_hash)
    federation.announce(None)
    for number in range(1, train.rounds + 1):
        done, attempts = _completed(federation, silos, number, train.attempts, ledger)
        if done is None:
            return  # the privacy plan is spent; the last round's model stands
        sums: Sums = done.output(cohort.server)
        course.advance(sums)
        federation.announce(sums)
        members = frozenset[str]().union(*sums.members)
        result = Round(
            number=number,
            attempts=attempts,
            model=encoding.learner.model(course.kept),
            parameters=course.kept,
            members=members,
            smallest=min(map(len, sums.members)),
            missing=frozenset(names) - members,
            **_figures(done, federation.roles),
            epsilon=encoding.epsilon(federation.releases),
            origin=rng.origin,
        )
        if ledger is not None:
            ledger.append("round", round_fields(result, aggregator.name, cohort, encoding))
        yield result


def _completed(
    federation: _Federation,
    silos: Sequence[Silo],
    number: int,
    attempts: int,
    ledger: Ledger | None,
) -> tuple[Transcript | None, int]:
    """Return the transcript of the first attempt that gave a sum, and which it was; None when no release is left."""
    reason = ""
    for attempt in range(attempts):
        if federation.releases >= federation.course.encoding.releases:
            return None, attempt
        spent = federation.course.encoding.epsilon(federation.releases + 1)
        if ledger is not None and spent is not None:  # before it leaves: a crash must not hide what was spent
            ledger.append("release", {"round": number, "attempt": attempt + 1, "epsilon": spent})
        done = federation.sum(silos, number, attempt)
        server = federation.cohort.server
        failure = done.failures.get(server)
        reason = str(failure) if failure else _too_few(done.output(server), federation.course.fewest)
        if not reason:
            return done, attempt + 1
    raise Aborted(f"Round {number} failed {attempts} times; {reason}")


def _too_few(sums: Sums, fewest: int) -> str:
    """Return why these sums are not enough to outvote the liars, or nothing if they are."""
    if len(sums.values) >= fewest:
        return ""
    lost = sums.left_out.items() if isinstance(sums, GroupSums) else ()
    reasons = "; ".join(f"{', '.join(group)}: {reason}" for group, reason in lost)
    return f"Expected at least {fewest} groups to outvote the liars, got {len(sums.values)}; {reasons}"


def _figures(done: Transcript, parties: Iterable[str]) -> dict[str, Any]:
    """Return `Transcript.bytes_sent` and `seconds` of every party, in one pass however many there are."""
    bytes_up, seconds = dict.fromkeys(parties, 0), dict.fromkeys(parties, 0.0)
    for message, size in zip(done.messages, done.sizes, strict=True):
        bytes_up[message.src] += size
    for event in done.events:
        seconds[event.party] += event.seconds
    return {"bytes_up": bytes_up, "seconds": seconds}


def round_fields(done: Round[Any], aggregator: str, cohort: Cohort, encoding: Encoding) -> dict[str, Value]:
    """Return what a ledger's line says about a round: who, under which protocol and parameters, what it cost."""
    return {
        "round": done.number,
        "attempts": done.attempts,
        "aggregator": aggregator,
        "quorum": cohort.quorum,
        "length": encoding.length,
        "bound": encoding.bound,
        "cohort": sorted(cohort.clients),
        "members": sorted(done.members),
        "missing": sorted(done.missing),
        "smallest": done.smallest,
        "bytes_up": {name: float(count) for name, count in sorted(done.bytes_up.items())},
        "seconds": {name: round(taken, 6) for name, taken in sorted(done.seconds.items())},
        "epsilon": done.epsilon,
        "model": parameters_hash(done.parameters).hex(),
    }
