"""The federated loop, as a generator: the caller's `for` sees every round, and stops it by leaving.

Each round every silo turns its records into one integer vector, an aggregator hands the server the sum, and everybody
moves the model by it: the server its `Course`, each silo its own. What the vector holds is an `Encoding`; who may see
what on the way is the aggregator's guarantee. The loop knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol

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
from confide.wire import Fault, MemoryStore, Party, Step, Store, Transcript, run

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
        importance: each raw column's part of what the model says, all together 1; empty where nothing says so.
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
    importance: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Taken:
    """What one attempt at a sum gave.

    Args:
        sums: None if there is none; then `reason` says why.
        bytes_up, seconds: of each party, as far as this process can know.
    """

    sums: Sums | None
    reason: str
    bytes_up: Mapping[str, int]
    seconds: Mapping[str, float]


class Parties(Protocol):
    """Who takes the sums of a run: silos in this process, or nodes over a network.

    Its attributes: `course`, moved by the loop alone; `cohort`; `origin` of the secret randomness; `releases`, the sums
    that may have been opened so far, which `sum` counts; `charged`, the (round, attempt) of the last of them.
    """

    course: Course
    cohort: Cohort
    origin: str
    releases: int
    charged: tuple[int, int]

    def begin(self) -> int:
        """Get everybody ready for the round after `course.number`; return which attempt at it comes first, from 0."""
        ...

    def sum(self, number: int, attempt: int, charge: Callable[[], None]) -> Taken:
        """Take one attempt at the sum of round `number`.

        Args:
            charge: called once, before vectors are asked for, from which on the sum may be opened; it counts
                `releases`, and is not called again for an attempt that goes on after a crash.
        """
        ...

    def released(self, sums: Sums, entry: Mapping[str, Value]) -> None:
        """Tell everybody what was released and where the course, which has moved on by it, is now.

        Args:
            entry: the ledger's line of this round, which the loop appends after this.

        Raises:
            ProtocolError: a silo refuses the server's claim.
        """
        ...


class _InProcess:
    """Silos of one process with their stores.

    The server's course reads the encoding that was given; the silos' courses are their own.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        silos: Sequence[Silo],
        cohort: Cohort,
        course: Course,
        run_id: str,
        rng: Randomness,
        fault: Fault | None,
        stores: Mapping[str, Store] | None,
        start_hash: str | None,
    ) -> None:
        self.aggregator, self.silos, self.cohort, self.course = aggregator, silos, cohort, course
        self.run_id, self.rng, self.fault, self.origin = run_id, rng, fault, rng.origin
        self.own = own_randomness(rng, cohort)
        self.roles = cohort.parties(aggregator.roles)
        self.stores: dict[str, Store] = {name: MemoryStore() for name in self.roles}
        self.stores |= stores or {}
        self.releases, self.charged = 0, (0, 0)
        own = course.fork()
        self.followers = {
            name: Follower(name, cohort, own, self.stores[name], start_hash=start_hash) for name in cohort.clients
        }
        self.unheard: dict[str, tuple[Announcement, ...]] = dict.fromkeys(cohort.clients, ())

    def begin(self) -> int:
        done = run(
            {
                me: self.aggregator.setup(role, me, self.cohort, self.stores[me], self.rng)
                for me, role in self.roles.items()
            },
            stores=self.stores,
        )
        for name in self.roles:
            done.output(name)
        self._announce(None)
        return 0

    def released(self, sums: Sums, entry: Mapping[str, Value]) -> None:
        self._announce(sums)

    def _announce(self, sums: Sums | None) -> None:
        """Tell every silo what was released; one that the network keeps it from sits out until it hears the rest."""
        said = announcement(self.course, sums)
        self.unheard = {name: (*missed, said) for name, missed in self.unheard.items()}
        shared: Shared = {}
        parties = {name: follower.hear(shared) for name, follower in self.followers.items()}
        done = run(parties | {self.cohort.server: announce(self.cohort, self.unheard)}, fault=self.fault)
        for name in self.cohort.clients:
            if not isinstance(done.failures.get(name), Aborted):
                done.output(name)
                self.unheard[name] = ()

    def sum(self, number: int, attempt: int, charge: Callable[[], None]) -> Taken:
        """Take one attempt among the silos that have heard everything; each takes the model from its own course."""
        session = session_of(self.run_id, self.cohort, self.course, number, attempt)
        vectors = {silo.name: self._contribution(silo, number) for silo in self.silos if not self.unheard[silo.name]}
        parties: dict[str, Party] = {}
        for me, role in self.roles.items():
            if role == "client":
                if me not in vectors:
                    continue
                own = replace(session, model_hash=self.followers[me].course.model_hash)
            else:
                own = session
            parties[me] = self.aggregator.party(role, me, own, vectors.get(me), self.stores[me], self.rng)
        leaving = self._charging(charge)
        done = run(parties, stores=self.stores, fault=self.fault, keep_bodies=False, leaving=leaving)
        failure, figures = done.failures.get(self.cohort.server), _figures(done, self.roles)
        if failure:
            return Taken(None, str(failure), *figures)
        return Taken(done.output(self.cohort.server), "", *figures)

    def _charging(self, charge: Callable[[], None]) -> Callable[[str, Step], None]:
        """Return what charges the run before it asks for vectors, and each silo before its own leaves."""
        charged: set[str] = set()

        def leaving(name: str, step: Step) -> None:
            due = asks_for_vectors if name == self.cohort.server else sends_vector
            if name in charged or not due(self.aggregator, step):
                return
            charged.add(name)
            if name == self.cohort.server:
                charge()
            elif name in self.followers:
                self.stores[name].commit(self.course.encoding.charge(self.stores[name]))

        return leaving

    def _contribution(self, silo: Silo, number: int) -> Vector:
        own = self.followers[silo.name].course
        return own.encoding.contribution(own.parameters, silo, number, self.own[silo.name], self.stores[silo.name])


def own_randomness(rng: Randomness, cohort: Cohort) -> dict[str, Randomness]:
    """Return each client's own source, apart from what the protocol draws.

    With a fixed seed every aggregator is then given the same vectors to sum, under every driver.
    """
    return {name: rng.branch() for name in cohort.clients}


def session_of(run_id: str, cohort: Cohort, course: Course, number: int, attempt: int) -> Session:
    """Return what an attempt at the sum of round `number` is about, for whoever's course it is."""
    return Session(
        run=run_id,
        round=number,
        attempt=attempt,
        cohort=cohort,
        length=course.encoding.length,
        bound=course.encoding.bound,
        model_hash=course.model_hash,
    )


def asks_for_vectors(aggregator: Aggregator, step: Step) -> bool:
    """Return whether the server's step asks clients for their vectors."""
    return bool(step.wait_for) and step.await_tag == aggregator.upload


def sends_vector(aggregator: Aggregator, step: Step) -> bool:
    """Return whether a client's step sends its vector."""
    return any(message.tag == aggregator.upload for message in step.send)


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
    """Train over `silos` in this process, yielding after every round.

    Args:
        silos: the parties; none is left out of a round on purpose.
        encoding: such as `WeightedUpdates`, or `PrivateGradients` under a privacy plan; its learner has the public
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
    parties = _InProcess(aggregator, silos, cohort, Course(encoding, train), run_id, rng, fault, stores, start_hash)
    yield from conduct(parties, train, aggregator=aggregator.name, ledger=ledger)


def conduct(
    parties: Parties, train: TrainSection, *, aggregator: str, ledger: Ledger | None = None
) -> Iterator[Round[Any]]:
    """Take the sums of a training from wherever its course is, yielding after every round.

    Raises:
        Aborted: a round lost its quorum in each of its attempts.
        ProtocolError: a silo refuses the model that the server claims.
    """
    first = parties.begin()  # which may bring the course to where an earlier process was
    course, cohort, encoding = parties.course, parties.cohort, parties.course.encoding
    while not course.ended:
        about = {"length": encoding.length, "bound": encoding.bound}  # the next round's may differ
        taken, attempts = _completed(parties, first, train.attempts, ledger)
        if taken is None and course.number <= encoding.before:
            raise Aborted("Expected at least one round; every release of the privacy plan went to rounds that failed")
        if taken is None:
            return  # the privacy plan is spent; the last round's model stands
        assert taken.sums is not None
        course.advance(taken.sums)
        members = frozenset[str]().union(*taken.sums.members)
        result = Round(
            number=course.number,
            attempts=attempts,
            model=encoding.learner.model(course.kept),
            parameters=course.kept,
            members=members,
            smallest=min(map(len, taken.sums.members)),
            missing=frozenset(cohort.clients) - members,
            bytes_up=taken.bytes_up,
            seconds=taken.seconds,
            epsilon=encoding.epsilon(parties.releases),
            origin=parties.origin,
            importance=encoding.importance,
        )
        entry = round_fields(result, aggregator, cohort) | about | dict(encoding.about(course.number))
        parties.released(taken.sums, entry)
        if ledger is not None:
            ledger.append("round", entry)
        first = 0
        yield result


def _completed(parties: Parties, first: int, attempts: int, ledger: Ledger | None) -> tuple[Taken | None, int]:
    """Return the first attempt that gave a sum, and which it was; None when no release is left."""
    course, reason = parties.course, ""
    encoding, number = course.encoding, course.number + 1
    for attempt in range(first, max(attempts, first + 1)):
        if not encoding.left(number, parties.releases) and (number, attempt) != parties.charged:  # else it goes on
            return None, attempt

        def charge(attempt: int = attempt) -> None:
            parties.releases, parties.charged = parties.releases + 1, (number, attempt)
            spent = encoding.epsilon(parties.releases)
            if ledger is not None and spent is not None:  # before it leaves: a crash must not hide what was spent
                written = {"round": number, "attempt": attempt + 1, "epsilon": spent}
                ledger.append("release", written | dict(encoding.about(number)))

        taken = parties.sum(number, attempt, charge)
        reason = taken.reason if taken.sums is None else _too_few(taken.sums, course.fewest)
        if not reason:
            return taken, attempt + 1
    raise Aborted(f"Round {number} failed {attempts} times; {reason}")


def _too_few(sums: Sums, fewest: int) -> str:
    """Return why these sums are not enough to outvote the liars, or nothing if they are."""
    if len(sums.values) >= fewest:
        return ""
    lost = sums.left_out.items() if isinstance(sums, GroupSums) else ()
    reasons = "; ".join(f"{', '.join(group)}: {reason}" for group, reason in lost)
    return f"Expected at least {fewest} groups to outvote the liars, got {len(sums.values)}; {reasons}"


def _figures(done: Transcript, parties: Iterable[str]) -> tuple[dict[str, int], dict[str, float]]:
    """Return `Transcript.bytes_sent` and `seconds` of every party, in one pass however many there are."""
    bytes_up, seconds = dict.fromkeys(parties, 0), dict.fromkeys(parties, 0.0)
    for message, size in zip(done.messages, done.sizes, strict=True):
        bytes_up[message.src] += size
    for event in done.events:
        seconds[event.party] += event.seconds
    return bytes_up, seconds


def round_fields(done: Round[Any], aggregator: str, cohort: Cohort) -> dict[str, Value]:
    """Return what a ledger's line says about a round: who, under which protocol and parameters, what it cost."""
    return {
        "round": done.number,
        "attempts": done.attempts,
        "aggregator": aggregator,
        "quorum": cohort.quorum,
        "cohort": sorted(cohort.clients),
        "members": sorted(done.members),
        "missing": sorted(done.missing),
        "smallest": done.smallest,
        "bytes_up": {name: float(count) for name, count in sorted(done.bytes_up.items())},
        "seconds": {name: round(taken, 6) for name, taken in sorted(done.seconds.items())},
        "epsilon": done.epsilon,
        "model": parameters_hash(done.parameters).hex(),
    }
