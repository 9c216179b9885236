"""A node's part in one run: what it has accepted, where it stands in it, and which sum may come next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness
from confide.data.schema import Schema
from confide.data.table import read_table
from confide.errors import ProtocolError, UsageError
from confide.ideal import Aggregator, Session, Vector
from confide.tee.aggregate import Enclaves
from confide.train.control import (
    Open,
)
from confide.train.course import Announcements, Follower, parameters_hash
from confide.train.federated_evaluation import contribution
from confide.train.ledger import Value
from confide.train.ledger_lines import read_line, roster_field
from confide.train.local import Silo
from confide.train.offer import Offer
from confide.train.prepared_rounds import PreparedRounds
from confide.train.rounds import own_randomness, session_of
from confide.train.run import set_aside
from confide.train.setting import Setting, evaluation_of_run
from confide.train.units import outcomes_of
from confide.train.witness import Witness
from confide.wire import Store, decode, encode

#: How many rounds a node remembers to compare the ledger with.
_NOTED = 64

#: Where a run's course lies in the node's store, the newest sum that was charged, and what the run's id stands for.
COURSE, HEARD, CHARGED, _OFFER = "course", "heard", "charged", "offer"

#: After so many rounds the course is written again; a node that starts again hears those after it once more.
_COURSE_ROUNDS = 16

#: Kept for good, so that the run's id never releases again for nothing: that it has ended, and after which round.
ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Member:
    """Who a node is.

    Args:
        name: as in its certificate.
        role: "node", or "helper" for a second server, keyholder or enclave.
        identity: 32-byte seed of its Ed25519 identity.
    """

    name: str
    role: str
    identity: bytes

    def __repr__(self) -> str:
        return f"Member({self.name!r}, {self.role!r})"


class _Heard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last news that were followed, and the hash of the model after them."""

    number: int
    model_hash: bytes


class Part:
    """What a node knows of one run that it takes part in."""

    def __init__(
        self,
        member: Member,
        offer: Offer,
        setting: Setting,
        view: Callable[[str], Store],
        rng: Randomness,
        enclaves: Enclaves,
    ) -> None:
        self.offer, self.setting, self.role = offer, setting, role_of(member, setting)
        self.prefix = f"run/{offer.run}/"
        self._view, self._enclaves = view, enclaves
        self.store = view(self.prefix)
        self.aggregators: dict[int, Aggregator] = {}
        self.silo: Silo | None = None
        self.test: Silo | None = None
        self.orders: dict[str, Open] = {}
        self._me, self.taken = member.name, 0
        self._key, self._released = SigningKey(member.identity), dict[int, list[str]]()
        course = setting.course()
        self.follower = Follower(member.name, setting.cohort, course, self.store)
        if heard := self.store.get(HEARD):
            known = decode(heard, _Heard, max_bytes=len(heard))
            self.follower.resume(self.store.get(COURSE), (known.number, known.model_hash))
        self._written = self.follower.heard
        self.own = own_randomness(rng, setting.cohort).get(member.name, rng)
        # under test seeds the members start from one stream, and no two may draw the same keys
        others = {name: rng.branch() for name in (*setting.cohort.clients, setting.cohort.helper)}
        self.rng = others[member.name]

    def load(self, me: str, data: Path, schema: Schema) -> None:
        """Read the node's table, and set its test records aside as a job in one process would."""
        kept, test = set_aside(self.setting.job, read_table(data, schema))
        prepare = self.setting.preprocess
        self.silo = Silo(me, prepare.apply(kept.columns), outcomes_of(self.setting.job, kept), kept.columns)
        self.test = Silo(me, prepare.apply(test.columns), outcomes_of(self.setting.job, test), test.columns)

    def prepared(self, silo: Silo) -> Silo:
        """Return one of the two as the run's preparation has its records by now."""
        encoding = self.follower.course.encoding
        return encoding.prepared(silo) if isinstance(encoding, PreparedRounds) else silo

    def followed(self) -> dict[str, bytes]:
        """Return what of the course to commit after news: a few bytes, and now and then all of it."""
        course = self.follower.course
        changes = {HEARD: encode(_Heard(course.number, course.model_hash))}
        if course.encoding.kept or course.number - self._written >= _COURSE_ROUNDS:
            changes[COURSE], self._written = course.state(), course.number
        return changes

    def bind(self) -> None:
        """Let the run's id stand for this offer and no other: what was charged under it counts once.

        Raises:
            ProtocolError: it stands for another.
        """
        digest = self.offer.digest.encode()
        if self.store.get(_OFFER) not in (None, digest):
            raise ProtocolError("Expected a run's id to stand for one job among the same members; take another id")
        self.store.commit({_OFFER: digest})

    def wiped(self, heard: int) -> dict[str, bytes | None]:
        """Return what to commit when the run has ended: whatever could open a recorded vector goes."""
        kept = (_OFFER, CHARGED)
        gone = {self.prefix + key: None for key in self.store.keys("") if key not in kept}
        return gone | {self.prefix + ENDED: str(heard).encode()}

    def require_turn(self, order: Open) -> None:
        """Refuse a sum out of turn: of each attempt one vector leaves, and none after a later one's has left.

        Raises:
            ProtocolError: the job has no such sum, or the node has gone past it.
        """
        job, rounds = self.setting.job, self.follower.course.rounds
        if order.kind == "evaluate":
            # each under a plan is a release that the other does not pay for
            attempts = 1 if self.setting.plan else job.train.attempts
            fits = job.data.evaluate == "federated" and order.number == rounds + 1
        else:
            attempts, fits = job.train.attempts, 1 <= order.number <= rounds
        if not fits or not 0 <= order.attempt < attempts:
            raise ProtocolError("Expected a sum of the job: a round or the evaluation that it asks for, in an attempt")
        if (saved := self.store.get(CHARGED)) is None:
            return
        newest = decode(saved, Open, max_bytes=len(saved))
        if order != newest and (order.number, order.attempt) <= (newest.number, newest.attempt):
            raise ProtocolError(
                f"Expected a sum after round={newest.number}, attempt={newest.attempt}, for which a vector has left"
            )

    def session(self, order: Open) -> Session:
        """Return what a sum is about, by the node's own course."""
        course, cohort = self.follower.course, self.setting.cohort
        if order.kind == "evaluate":
            return evaluation_of_run(self.offer.run, self.setting, course, order)
        return session_of(self.offer.run, cohort, course, order.number, order.attempt)

    def vector(self, order: Open) -> Vector:
        """Return what the node's records add to a sum."""
        assert self.silo is not None
        assert self.test is not None
        course = self.follower.course
        if order.kind == "evaluate":
            graph = course.encoding.learner.model(course.kept)
            return contribution(self.setting.tally(), graph, self.prepared(self.test), self.own)
        return course.encoding.contribution(course.parameters, self.silo, order.number, self.own, self.store)

    def witness(self, store: Store) -> Witness:
        """Return the node's eye on the run's ledger."""
        return Witness(self.offer.run, key=self._key, signer=self.offer.coordinator, store=store)

    def note(self, news: bytes) -> None:
        """Remember what the news just followed say, to compare the ledger's lines with."""
        for said in decode(news, Announcements, max_bytes=len(news)).missed:
            self._released[said.number] = sorted(name for row in said.members for name in row)
            self.taken += self._me in self._released[said.number]
        self._released = dict(list(self._released.items())[-_NOTED:])

    def expected(self, line: bytes) -> dict[str, Value]:
        """Return which fields a line of the ledger must have, as far as the node knows them by itself."""
        entry = read_line(line).entry
        if entry["event"] == "job":
            offer = self.offer
            return {
                "run": offer.run,
                "job": offer.job,
                "job_hash": offer.job_hash,
                "roster": roster_field(offer.roster),
                "start": offer.start_hash,
            }
        if entry["event"] == "model" and entry.get("rounds") == self.follower.course.number:
            return {"model": parameters_hash(self.follower.course.kept).hex()}
        number = entry.get("round")
        if entry["event"] != "round" or not isinstance(number, int) or number not in self._released:
            return {}
        known: dict[str, Value] = {"members": self._released[number]}
        course = self.follower.course
        if number == course.number:
            known["model"] = parameters_hash(course.kept).hex()
        return known

    def keys(self, number: int) -> tuple[Aggregator, str, Store]:
        """Return the aggregator of a set-up, where its keys lie in the node's store, and the store from there on."""
        prefix = f"{self.prefix}keys-{number}/"
        if number not in self.aggregators:
            self.aggregators[number] = self.setting.aggregator(self._enclaves)
        return self.aggregators[number], prefix, self._view(prefix)


def role_of(member: Member, setting: Setting) -> str:
    """Return which role of the aggregator the member has in this job.

    Raises:
        UsageError: none.
    """
    roles = setting.cohort.parties(setting.aggregator().roles)
    role = roles.get(member.name)
    if role is None or (role == "client") != (member.role == "node"):
        raise UsageError(f"Expected a job with a place for {member.name}, whose certificate says {member.role}")
    return role
