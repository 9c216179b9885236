"""The course of a training: everything that follows from the released sums, so that a silo need not believe the server.

What the server does after a sum is public post-processing: decode, combine, optimiser, averaging. `Course` is all of it
in one deterministic object. The server moves its own; a `Follower` at every silo is told the same sums, moves a course
of its own, takes the model of the next round from there, and refuses a server that claims another.

    server -> silos   train/course   what was released since the silo last heard, and the hash of the model after it

Every step is IEEE arithmetic element by element, in one order, so the same sums give the same bits on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import copy

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.cohort.robust import combine, fewest
from confide.errors import IntegrityError, ProtocolError
from confide.ideal import Cohort, Sums
from confide.train.encodings import Encoding
from confide.train.optimise import optimiser_of
from confide.train.sections import TrainSection
from confide.wire import Array, Message, Party, Step, Store, decode, encode

Matrix = NDArray[np.float64]

COURSE = "train/course"


def parameters_hash(parameters: Matrix) -> bytes:
    """Return SHA-256 over the parameters as little-endian float64 (32 bytes)."""
    return hashlib.sha256(parameters.astype("<f8").tobytes()).digest()


def approve(parameters: Matrix, start_hash: str | None) -> None:
    """Refuse starting parameters that are not the approved ones.

    Args:
        parameters: where a training is about to start.
        start_hash: hex SHA-256 of those that people approved; None approves any.

    Raises:
        IntegrityError: they are others.
    """
    found = parameters_hash(parameters).hex()
    if start_hash not in (None, found):
        raise IntegrityError(
            f"Expected train.start_hash={start_hash}, the starting parameters have {found}; compare the jobs and the "
            "code, and approve the new hash only if the start was changed on purpose"
        )


class Course:
    """A model on its way: starting parameters, moved by released sums and by nothing else.

    Args:
        encoding: reads a sum; what the sums move of it (SCAFFOLD's control) is part of the course.
        train: the server's optimiser, over which last rounds the models are averaged, and with groups their rule.

    Its attributes: `number` of `rounds` done, `parameters` of the next one, `model_hash`, SHA-256 of everything that
    the next contributions start from, and `fewest` rows, without which a rule cannot outvote its liars.

    **Guarantees**: equal sums in equal order give equal bits, whoever computes them.
    """

    def __init__(self, encoding: Encoding, train: TrainSection) -> None:
        self.encoding, self.number, self.parameters = encoding, 0, encoding.learner.start
        self._train, self._optimiser, self.rounds = train, optimiser_of(train), encoding.before + train.rounds
        self._grouped = train.aggregate == "groups"
        self.fewest = fewest(train.rule, train.liars) if self._grouped else 1
        self._averaged, self._since = np.zeros_like(self.parameters), self.rounds - round(train.average * train.rounds)
        self.model_hash = parameters_hash(encoding.broadcast(self.parameters))

    @property
    def ended(self) -> bool:
        """Return whether no further sum is asked for."""
        return self.number >= self.rounds or self.encoding.ended

    @property
    def kept(self) -> Matrix:
        """Return the parameters to keep after this round: averaged, if the job says so."""
        return self._averaged if self.number > self._since else self.parameters

    def advance(self, sums: Sums) -> None:
        """Move on by the sums of one round.

        Raises:
            ProtocolError: sums that no round of this training releases.
        """
        if self.ended or len(sums.values) < self.fewest or (len(sums.values) > 1 and not self._grouped):
            wanted = f"{self.fewest} sums at least" if self._grouped else "one sum"
            raise ProtocolError(f"Expected {wanted}, in each of {self.rounds} rounds")
        self.number += 1
        changes = np.stack(
            [
                self.encoding.update(self.parameters, row, members, self.number)
                for row, members in zip(sums.values, sums.members, strict=True)
            ]
        )
        rule = self._train.rule if self._grouped else "mean"
        if self.number > self.encoding.before:
            self.parameters = self.parameters + self._optimiser.step(combine(rule, changes, liars=self._train.liars))
        if self.number > self._since:
            self._averaged = self._averaged + (self.parameters - self._averaged) / (self.number - self._since)
        self.model_hash = parameters_hash(self.encoding.broadcast(self.parameters))

    def state(self) -> bytes:
        """Return where the course is, as `resumed` reads it: everything that the sums have moved."""
        arrays = {
            "parameters": self.parameters,
            "averaged": self._averaged,
            **{f"optimiser/{name}": values for name, values in self._optimiser.moved.items()},
            **{f"encoding/{name}": values for name, values in self.encoding.moved.items()},
        }
        return encode(_State(self.number, {name: Array.of(values) for name, values in arrays.items()}))

    def resumed(self, state: bytes) -> Course:
        """Return the course of the same job at `state`.

        Raises:
            ProtocolError: the state is another job's.
        """
        other, told = self.fork(), decode(state, _State, max_bytes=len(state))
        arrays = {name: values.numpy("float64", (None,)) for name, values in told.arrays.items()}
        shapes = {name: values.shape for name, values in arrays.items()}
        wanted = {"parameters", "averaged", *(f"encoding/{name}" for name in self.encoding.moved)}
        of_encoding = {name for name in shapes if name.startswith("encoding/")}
        if not wanted <= set(shapes) or not of_encoding <= wanted or shapes["parameters"] != self.parameters.shape:
            raise ProtocolError("Expected the state of a course of this job")
        other.number, other.parameters, other._averaged = told.number, arrays["parameters"], arrays["averaged"]
        other._optimiser.resumed(_below(arrays, "optimiser/"))
        other.encoding.resumed(_below(arrays, "encoding/"))
        other.model_hash = parameters_hash(other.encoding.broadcast(other.parameters))
        return other

    def fork(self) -> Course:
        """Return a course that goes on from here by itself; no array is ever changed in place."""
        other = copy(self)
        other.encoding, other._optimiser = copy(self.encoding), copy(self._optimiser)
        return other


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    arrays: dict[str, Array]


def _below(arrays: Mapping[str, Matrix], prefix: str) -> dict[str, Matrix]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


# --- what the server announces ----------------------------------------------------------------------------------------


class Announcement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the server says about one round's end, which is the next one's beginning.

    Args:
        number: rounds done; 0 announces the start.
        model_hash: what the server claims that the next contributions start from (32 bytes).
        sums: what the round released, int64, shape (rows, length); None at the start.
        members: whose vectors are in each row.
    """

    number: int
    model_hash: bytes
    sums: Array | None = None
    members: tuple[tuple[str, ...], ...] = ()


class Announcements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a silo has not heard yet, in order: one announcement, unless messages to it were lost."""

    missed: tuple[Announcement, ...]


def announcement(course: Course, sums: Sums | None) -> Announcement:
    """Return what an honest server says about `course` after `sums`."""
    if sums is None:
        return Announcement(course.number, course.model_hash)
    members = tuple(tuple(sorted(row)) for row in sums.members)
    return Announcement(course.number, course.model_hash, Array.of(sums.values), members)


def released_sums(said: Announcement, length: int) -> Sums:
    """Return what a round released, from what this server itself once said about it."""
    if said.sums is None:
        raise ProtocolError("Expected the announcement of a round")
    return Sums(said.sums.numpy("int64", (len(said.members), length)), tuple(map(frozenset, said.members)))


def announce(cohort: Cohort, unheard: Mapping[str, tuple[Announcement, ...]]) -> Party:
    """Return the server's party: everybody is told what it has not heard yet, by name."""
    bodies = {missed: encode(Announcements(missed)) for missed in set(unheard.values())}
    yield Step(send=tuple(Message(cohort.server, name, COURSE, bodies[missed]) for name, missed in unheard.items()))


#: What silos of one process have worked out: by the course and the very bytes that they were told, where these lead
#: and who was in each sum. A pure function of both, so one silo's work is every silo's.
Shared = dict[tuple[Course, bytes], tuple[Course, tuple[frozenset[str], ...]]]


class Follower:
    """One silo's own course. It needs the job and what the server announces, and nothing of the server's memory.

    Args:
        me: the silo.
        cohort: whose names may be in a sum, and how many must be.
        course: not yet begun, from the silo's own copy of the job; it is never changed, so silos may start from one.
        store: the silo's own, where it learns whether its contribution counted.
        start_hash: hex SHA-256 of the starting parameters that the silo's people approved; None approves the job's.

    Raises:
        IntegrityError: the course starts from other parameters than those that were approved.

    **Guarantees**: after `follow` the course is what the announced sums give under the silo's own job; a server that
    claims another model, replays one, leaves a round out or steps otherwise is refused, and the course stands still.
    **Leaks** (at the server's side): the released sums, which with the weights' sum hold the total record count, go to
    every silo.

    Not checked: that the sums are the true ones. A server that invents sums, the same for all, has silos follow them.
    """

    def __init__(self, me: str, cohort: Cohort, course: Course, store: Store, *, start_hash: str | None = None) -> None:
        approve(course.parameters, start_hash)
        self.course, self._me, self._cohort, self._store = course, me, cohort, store
        self._heard = -1  # the number of the last announcement
        self._known: tuple[int, bytes] | None = None  # an announcement that was followed before, and its model's hash

    @property
    def heard(self) -> int:
        """Return the number of the last announcement that was followed; -1 before the first."""
        return self._heard

    def resume(self, state: bytes | None, known: tuple[int, bytes]) -> None:
        """Go on from where the course was before the process ended.

        Args:
            state: what `course.state()` was then, or after an earlier round; None before any.
            known: the number of the last announcement that was followed, and the model's hash after it. What lies
                between the state and it is heard once more, and must lead to the same model.

        Raises:
            ProtocolError: the state is another job's.
        """
        if state is not None:
            self.course = self.course.resumed(state)
            self._heard = self.course.number
        self._known = known

    def hear(self, shared: Shared | None = None) -> Party:
        """Return the party that waits for the server's announcements and follows them."""
        received = yield Step(await_tag=COURSE, wait_for=(self._cohort.server,))
        self.follow(received[self._cohort.server].body, shared)

    def follow(self, body: bytes, shared: Shared | None = None) -> None:
        """Move on by the announcements in `body`.

        Args:
            body: encoded `Announcements`.
            shared: among silos of one process that are told the same bytes, one does the work.

        Raises:
            ProtocolError: naming the round that the silo refuses to take part in; the course is as it was.
        """
        shared = {} if shared is None else shared
        told = self.course, body
        if told not in shared:
            try:
                shared[told] = self._worked_out(body)
            except ProtocolError as error:
                raise ProtocolError(f"Round {self._heard + 2} is refused by {self._me}: {error}") from None
        self.course, counted = shared[told]
        for members in counted:
            self.course.encoding.settle(self._store, self._me in members)
        self._heard = self.course.number

    def _worked_out(self, body: bytes) -> tuple[Course, tuple[frozenset[str], ...]]:
        course, clients = self.course.fork(), self._cohort.clients
        longest = 256 + len(clients) * (8 * course.encoding.longest + 16) + sum(len(name.encode()) for name in clients)
        told = decode(body, Announcements, max_bytes=longest * (course.rounds - self._heard + 1)).missed
        counted: list[frozenset[str]] = []
        for number, said in enumerate(told, start=self._heard + 1):
            if said.number != number or (said.sums is None) != (number == 0):
                raise ProtocolError(f"Expected the news of number={number}, got another round's")
            if said.sums is not None:
                sums = self._sums(course.encoding, said.sums, said.members)
                course.advance(sums)
                counted.append(frozenset[str]().union(*sums.members))
            if said.model_hash != course.model_hash:
                raise ProtocolError(
                    "Expected the model that the released sums give, the server claims another; it does not follow "
                    "the job of this silo"
                )
            if self._known is not None and self._known[0] == number and self._known[1] != course.model_hash:
                raise ProtocolError("Expected the news that this silo has followed before, the server tells others")
        return course, tuple(counted)

    def _sums(self, encoding: Encoding, values: Array, members: tuple[tuple[str, ...], ...]) -> Sums:
        """Return announced sums after checking that a round could have released them."""
        everybody = [name for row in members for name in row]
        rows = values.numpy("int64", (len(members), encoding.length))
        known = set(everybody) <= set(self._cohort.clients) and len(set(everybody)) == len(everybody)
        if not known or not all(members) or len(everybody) < self._cohort.quorum:
            raise ProtocolError(
                f"Expected sums over different silos, none over nobody, quorum={self._cohort.quorum} silos at least"
            )
        reach = np.array([[len(row) * encoding.bound] for row in members])
        if (rows > reach).any() or (rows < -reach).any():
            raise ProtocolError("Expected sums within the range that silos may submit")
        return Sums(rows, tuple(frozenset(row) for row in members))
