"""One organisation's side of a federation: it takes part in what its own policy allows, and in nothing else.

A node runs the code that is installed on it. It is offered a job as text, reads it with its own code, asks its gate
(policy, people, budget), and from then on follows the course of the training by itself: the model of each round is what
the released sums give under its own copy of the job. Sans I/O: a driver calls `handle` and sends what `take` returns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import msgspec

from confide.cohort.roster import IDENTITY, ROSTER
from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness, SystemRandomness
from confide.data.schema import Schema
from confide.data.table import read_table
from confide.errors import Aborted, ConfideError, ProtocolError, StoreError, UsageError
from confide.ideal import Aggregator, Session, Vector
from confide.model.artifact import decode as decode_artifact
from confide.net.exchange import Envelope, Exchange
from confide.net.link import Arrived, Event, Joined, Left
from confide.store import Staged
from confide.train import control
from confide.train.control import (
    MAX_CONTROL_BYTES,
    MAX_REASON,
    Answer,
    End,
    Lines,
    Open,
    Ready,
    Reason,
    Witnessed,
    session_id,
)
from confide.train.course import Announcements, Follower, parameters_hash
from confide.train.federated_evaluation import contribution
from confide.train.joining import Joining, compare, trained_alone
from confide.train.ledger import Value
from confide.train.ledger_lines import read_line
from confide.train.local import Silo, flatten
from confide.train.offer import Offer, read, require_member
from confide.train.rounds import own_randomness, sends_vector, session_of
from confide.train.run import set_aside
from confide.train.setting import Setting, evaluation_of_run
from confide.train.witness import Witness
from confide.wire import Party, Step, Store, decode, encode

#: Where a node keeps what it once began of a run, and whether it has ended.
_KNOWN = "runs/"

#: How many rounds a node remembers to compare the ledger with.
_NOTED = 64

#: Where a run's course lies in the node's store, and the last sum that was charged.
_COURSE, _HEARD, _CHARGED = "course", "heard", "charged"

#: Lines of a ledger come in bodies smaller than this.
_LARGEST_LINES_BYTES = 1 << 26

#: A model file in an end is smaller than this.
_LARGEST_END_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate says to an offer: "accepted", "pending" or "refused", and why."""

    state: str
    reason: str = ""


class Gate(Protocol):
    """What decides for the organisation: its policy, its people, its budget."""

    def decide(self, offer: Offer, setting: Setting) -> Decision:
        """Return whether the node takes part; asked again while it is pending, and after every reconnection."""
        ...

    def charge(
        self, offer: Offer, *, number: int, attempt: int, epsilon: float | None, delta: float
    ) -> Mapping[str, bytes | None]:
        """Return what to commit before a vector leaves that brings the run's epsilon to `epsilon`.

        Without differential privacy it is None.

        Raises:
            PrivacyError: it would go beyond the organisation's budget; nothing leaves.
        """
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """Who a node is.

    Args:
        name: as in its certificate.
        role: "node", or "helper" for a second server or keyholder.
        identity: 32-byte seed of its Ed25519 identity.
    """

    name: str
    role: str
    identity: bytes

    def __repr__(self) -> str:
        return f"Member({self.name!r}, {self.role!r})"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a node is, for its own people.

    Args:
        job: the job's name; empty before there is one.
        state: of its answer: "accepted", "pending" or "refused"; empty before there is one.
        reason: for that.
        round, rounds: the last round that it followed, of how many.
        taken: sums that it was in, since this process began.
    """

    job: str = ""
    state: str = ""
    reason: str = ""
    round: int = 0
    rounds: int = 0
    taken: int = 0


class _Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run that was begun here: never under another offer, and never again once it has ended.

    Its charges are counted by its id, so an id that could stand for something else would release for nothing.
    """

    offer: str
    ended: bool = False
    heard: int = -1


class _Run:
    """What a node knows of one run that it takes part in."""

    def __init__(
        self, member: Member, offer: Offer, setting: Setting, view: Callable[[str], Store], rng: Randomness
    ) -> None:
        self.offer, self.setting, self.role = offer, setting, _role(member, setting)
        self.prefix = f"run/{offer.run}/"
        self._view = view
        self.store = view(self.prefix)
        self.aggregators: dict[int, Aggregator] = {}
        self.silo: Silo | None = None
        self.test: Silo | None = None
        self.orders: dict[str, Open] = {}
        self._me, self.taken = member.name, 0
        self._key, self._released = SigningKey(member.identity), dict[int, list[str]]()
        course = setting.course()
        self.follower = Follower(member.name, setting.cohort, course, self.store)
        state, heard = self.store.get(_COURSE), self.store.get(_HEARD)
        if state is not None and heard is not None:
            self.follower.resume(state, int(heard))
        self.own = own_randomness(rng, setting.cohort).get(member.name, rng)
        # under test seeds the members start from one stream, and no two may draw the same keys
        others = {name: rng.branch() for name in (*setting.cohort.clients, setting.cohort.helper)}
        self.rng = others[member.name]

    def load(self, me: str, data: Path, schema: Schema) -> None:
        """Read the node's table, and set its test records aside as a job in one process would."""
        kept, test = set_aside(self.setting.job, read_table(data, schema))
        prepare = self.setting.preprocess
        self.silo = Silo(me, prepare.apply(kept.columns), kept.labels)
        self.test = Silo(me, prepare.apply(test.columns), test.labels)

    def check(self, order: Open) -> None:
        """Refuse a sum that an honest coordinator would not ask for, above all a second vector that costs nothing.

        Rounds and attempts only go forward, an attempt belongs to one set-up, the evaluation comes once and last.

        Raises:
            Aborted: it is one of those.
        """
        train, heard = self.setting.job.train, self.follower.heard
        private = self.setting.plan is not None
        if not 0 <= order.attempt < (1 if private and order.kind == "evaluate" else train.attempts):
            raise Aborted(f"Expected one of {train.attempts} attempts at a round, and one at a private evaluation")
        if order.kind == "round" and not 1 <= order.number == heard + 1 <= train.rounds:
            raise Aborted(
                f"Expected round={heard + 1} of {train.rounds}, after the releases that this node has followed"
            )
        if order.kind == "evaluate" and (self.setting.job.data.evaluate, order.number) != (
            "federated",
            train.rounds + 1,
        ):
            raise Aborted("Expected an evaluation only where the job says so, as the sum after its last round")
        saved = self.store.get(_CHARGED)
        last = decode(saved, Open, max_bytes=len(saved)) if saved else None
        if last is not None and order != last and (order.number, order.attempt) <= (last.number, last.attempt):
            raise Aborted(
                f"Expected a sum after round={last.number}, attempt={last.attempt}, to which a vector has left"
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
            return contribution(self.setting.tally(), graph, self.test, self.own)
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
        return self.aggregators.setdefault(number, self.setting.aggregator()), prefix, self._view(prefix)


def _role(member: Member, setting: Setting) -> str:
    """Return which role of the aggregator the member has in this job.

    Raises:
        UsageError: none.
    """
    roles = setting.cohort.parties(setting.aggregator().roles)
    role = roles.get(member.name)
    if role is None or (role == "client") != (member.role == "node"):
        raise UsageError(f"Expected a job with a place for {member.name}, whose certificate says {member.role}")
    return role


class Node:
    """One member of a federation, a node or a helper.

    Args:
        member: who it is.
        data: its table; None for a helper.
        gate: decides.
        store: its own, durable; `confide.store.Patient` where it may be gone for a while.
        rng: secret randomness; the operating system's if None. A fixed seed voids every privacy claim, and is reported.
        say: told in one line what happens, for people.
        release: given the model file at a run's end, after the node has checked it against its own course.

    **Guarantees**: nothing computed from records leaves before the gate has accepted the very job that it is computed
    for; a model that the job and the released sums do not give is refused; what a sum spends is committed before the
    node's vector leaves for it.
    """

    def __init__(
        self,
        member: Member,
        data: Path | None,
        gate: Gate,
        store: Store,
        *,
        rng: Randomness | None = None,
        say: Callable[[str], None] = lambda text: None,
        release: Callable[[Offer, bytes], None] = lambda offer, model: None,
    ) -> None:
        self.member, self._data, self._gate = member, data, gate
        self._store = store
        self._rng, self._say, self._release = rng or SystemRandomness(), say, release
        self.exchange = Exchange(store, on_step=self._on_step)
        self._out: list[Envelope] = []
        self._offered: bytes | None = None
        self._run: _Run | None = None
        self._last: Answer | None = None
        self.ended: End | None = None

    # --- the driver's side --------------------------------------------------------------------------------------------

    def handle(self, event: Event | None) -> None:
        """Take one event in; None lets time pass, for what waits for a person."""
        match event:
            case Arrived(_, envelope):
                try:
                    self._arrived(envelope)
                except StoreError:
                    raise  # what the node knows is not safe: it must end, and go on from its store
                except ConfideError as error:
                    self._refuse(envelope, error)
            case Left(_, reason):
                self._say(f"not connected, trying again: {reason}")
            case Joined():
                self._say("connected")
            case None:
                if self._last is not None and self._last.state == "pending":
                    self._answer(repeat=False)

    def take(self) -> list[Envelope]:
        """Commit, then return what leaves."""
        for session in self.exchange.ended():
            try:
                output = self.exchange.output(session)
            except ConfideError as error:
                self._unable(session, error)
            else:
                self._ended_well(session, output)
        outgoing = [*self.exchange.take(), *self._out]
        self._out = []
        return outgoing

    @property
    def standing(self) -> Standing:
        """Return where the node is."""
        run, said = self._run, self._last
        if said is None:
            return Standing()
        if run is None:
            return Standing(state=said.state, reason=said.reason)
        heard = max(0, run.follower.heard)
        return Standing(run.setting.job.job.name, said.state, said.reason, heard, run.follower.course.rounds, run.taken)

    def joining(self) -> Joining | None:
        """Return whether taking part helped this node: the run's model beside one of its own records alone.

        Computed here, from here, and told to nobody. None without a finished run, or without held-out records.
        """
        run = self._run
        if run is None or run.silo is None or run.test is None or not len(run.test.y):
            return None
        course, setting = run.follower.course, run.setting
        alone = trained_alone(setting.job.train, setting.start, run.silo.x, run.silo.y)
        return compare(course.encoding.learner.model(course.kept), alone, run.test)

    def _ended_well(self, session: str, output: object) -> None:
        run = self._run
        if run and session in run.orders and run.orders[session].kind == "setup":
            self._send(control.READY, Ready(str(output)), session=session)

    # --- control ------------------------------------------------------------------------------------------------------

    def _arrived(self, envelope: Envelope) -> None:
        message = envelope.message
        match message.tag:
            case control.OFFER:
                self._offered = message.body
                self._answer(repeat=True)
            case control.NEWS:
                self._follow(message.body)
            case control.LINES:
                self._see(decode(message.body, Lines, max_bytes=_LARGEST_LINES_BYTES))
            case control.OPEN:
                self._open(envelope.session, decode(message.body, Open, max_bytes=MAX_CONTROL_BYTES))
            case control.CLOSE:
                self.exchange.forget(envelope.session)
            case control.END:
                self._end(decode(message.body, End, max_bytes=_LARGEST_END_BYTES))
            case _:
                self.exchange.put(envelope)

    def _refuse(self, envelope: Envelope, error: ConfideError) -> None:
        """Say why something that arrived is not followed; protocol sessions have ended by themselves."""
        tag = envelope.message.tag
        if tag == control.OPEN:
            self._unable(envelope.session, error)
        elif tag in (control.NEWS, control.OFFER, control.END, control.LINES):
            self._refuse_run(str(error))

    def _refuse_run(self, reason: str) -> None:
        if self._run is None and self._last is not None and self._last.state == "refused":
            return  # the coordinator has the first reason
        self._say(f"refused: {reason}")
        run = self._run.offer.run if self._run else self._last.run if self._last else ""
        self._run = None
        self._send(control.ANSWER, Answer(run, "refused", reason[:MAX_REASON], version=_version()))

    def _unable(self, session: str, error: ConfideError) -> None:
        self._say(f"left out of {session}: {error}")
        self._send(control.UNABLE, Reason(str(error)[:MAX_REASON]), session=session)

    def _send(self, tag: str, body: Answer | Ready | Reason | Witnessed, *, session: str = "") -> None:
        if isinstance(body, Answer):
            self._last = body
        self._out.append(control.control(self.member.name, "server", tag, body, session=session))

    def _answer(self, *, repeat: bool) -> None:
        """Decide about the offer, and say so if it is new or `repeat`."""
        assert self._offered is not None
        run = ""
        try:
            offer = Offer.decode(self._offered)
            run = offer.run
            answer = self._decided(offer)
        except ConfideError as error:
            answer = Answer(run, "refused", str(error)[:MAX_REASON], version=_version())
        if repeat or answer != self._last:  # `standing` shows it to this node's people
            self._send(control.ANSWER, answer)

    def _decided(self, offer: Offer) -> Answer:
        job, schema = read(offer)
        setting = Setting.of(job, schema)
        current = self._run if self._run and self._run.offer == offer else None
        role = _role(self.member, setting)
        own = SigningKey(self.member.identity).public
        if role == "client":
            require_member(offer, self.member.name, own)
        elif offer.helper != own:
            raise ProtocolError("Expected an offer that shows this helper's own identity")
        known = self._known(offer)
        if known.ended:
            return Answer(offer.run, "accepted", heard=known.heard, version=_version())
        decision = self._gate.decide(offer, setting)
        if decision.state != "accepted":
            self._run = None
            return Answer(offer.run, decision.state, decision.reason[:MAX_REASON], version=_version())  # type: ignore[arg-type]
        if current is None:
            for session in (*self.exchange.open_sessions,):
                self.exchange.forget(session)
            current = _Run(self.member, offer, setting, self.exchange.view, self._rng)
            if role == "client":
                if self._data is None:
                    raise UsageError("Expected --data at a node that trains; name its table")
                current.load(self.member.name, self._data, schema)
                again = self._gate.decide(offer, setting)  # the table that was read is the one that was decided on
                if again.state != "accepted":
                    raise Aborted("Expected a table that does not change while it is read")
            self._store.commit({_KNOWN + offer.run: encode(known)})
            self._run, self.ended = current, None
        return Answer(
            offer.run,
            "accepted",
            heard=current.follower.heard,
            head=current.witness(self.exchange.view()).head or "",
            origin=self._rng.origin,
            version=_version(),
        )

    def _known(self, offer: Offer) -> _Known:
        """Return what is known of the offer's run.

        Raises:
            ProtocolError: it was begun under another offer.
        """
        digest, saved = hashlib.sha256(offer.encode()).hexdigest(), self._store.get(_KNOWN + offer.run)
        known = _Known(digest) if saved is None else decode(saved, _Known, max_bytes=len(saved))
        if known.offer != digest:
            raise ProtocolError(f"Expected the offer that run {offer.run} began with; another job is another run")
        return known

    # --- a run --------------------------------------------------------------------------------------------------------

    def _accepted(self) -> _Run:
        if self._run is None or self.ended is not None:
            raise Aborted("Expected a job that this node has accepted, and that has not ended")
        return self._run

    def _follow(self, body: bytes) -> None:
        run = self._accepted()
        run.follower.follow(body)
        run.note(body)
        kept = {_COURSE: run.follower.course.state(), _HEARD: str(run.follower.heard).encode()}
        if run.follower.course.encoding.kept:  # before anything is staged for the next round
            run.store.commit(kept)
        else:
            self.exchange.change({run.prefix + key: value for key, value in kept.items()})

    def _see(self, told: Lines) -> None:
        """Look at new lines of the ledger, keep the head, and countersign what agrees with what the node has seen."""
        run = self._accepted()
        staged = Staged(self.exchange.view())
        witness = run.witness(staged)
        signed: list[tuple[str, int, bytes]] = []
        for body in told.lines:
            signature = witness.see(body, run.expected(body))
            if signature is not None and witness.head is not None:
                signed.append((witness.head, witness.number, signature))
        self.exchange.change(staged.changes)
        if signed:
            self._send(control.WITNESSED, Witnessed(tuple(signed)))

    def _open(self, session: str, order: Open) -> None:
        run = self._accepted()
        if session != session_id(run.offer.run, order):
            raise ProtocolError("Expected a session of the accepted run")
        if self.exchange.knows(session):  # the coordinator came back, or the connection did
            self._out += self.exchange.sent(session, "server")
            if not self.exchange.is_open(session):
                self._ended_well(session, self.exchange.output(session))
            return
        run.orders[session] = order
        _, prefix, _ = run.keys(order.keys)
        party = self._setup(run, order) if order.kind == "setup" else self._sum(run, order)
        self.exchange.open(session, party, me=self.member.name, prefix=prefix)

    def _setup(self, run: _Run, order: Open) -> Party:
        (aggregator, _, store), roster = run.keys(order.keys), run.offer.roster
        store.commit({IDENTITY: self.member.identity, ROSTER: roster.encode()})  # pinned before the server's word
        return aggregator.setup(run.role, self.member.name, run.setting.cohort, store, run.rng)

    def _sum(self, run: _Run, order: Open) -> Party:
        aggregator, _, store = run.keys(order.keys)
        me = self.member.name
        vector = None
        if run.role == "client":
            run.check(order)
            vector = run.vector(order)
        session = run.session(order)
        return aggregator.party(run.role, me, session, vector, store, run.rng)

    def _on_step(self, session: str, step: Step) -> Mapping[str, bytes | None]:
        """Charge a vector in the commit before it leaves, once for each attempt.

        From then on others may open a sum with it, so that whether this node goes on changes nothing.
        """
        run = self._run
        order = run.orders.get(session) if run else None
        if run is None or order is None or order.kind == "setup" or run.role != "client":
            return {}
        aggregator, _, _ = run.keys(order.keys)
        place = encode(order)
        if not sends_vector(aggregator, step) or run.store.get(_CHARGED) == place:
            return {}
        encoding = run.follower.course.encoding
        count = encoding.charged(run.store)
        changes: dict[str, bytes | None] = {_CHARGED: place}
        if order.kind == "round":
            changes |= encoding.charge(run.store)
            epsilon = encoding.epsilon(count + 1)
        else:
            epsilon = run.setting.evaluation_epsilon(encoding.epsilon(count))
        charged = {run.prefix + key: value for key, value in changes.items()}
        delta = run.setting.plan.delta if run.setting.plan else 0.0
        return charged | dict(
            self._gate.charge(run.offer, number=order.number, attempt=order.attempt, epsilon=epsilon, delta=delta)
        )

    def _end(self, end: End) -> None:
        run = self._accepted()
        if end.run != run.offer.run:
            raise ProtocolError("Expected the end of the accepted run")
        if end.model:
            self._check_release(run, end.model)
            self._release(run.offer, end.model)
        heard = run.follower.heard
        known = msgspec.structs.replace(self._known(run.offer), ended=True, heard=heard)
        # whatever could open a recorded vector goes with the run; its charges and the ledger's head stay
        self.exchange.change(dict.fromkeys(self._store.keys(run.prefix)) | {_KNOWN + end.run: encode(known)})
        self._send(control.ANSWER, Answer(end.run, "accepted", heard=heard, version=_version()))
        self._say(f"job {end.run} has ended{f': {end.reason}' if end.reason else ''}")
        self.ended = end

    def _check_release(self, run: _Run, model: bytes) -> None:
        """Refuse a model that the node's own course does not come to."""
        artifact = decode_artifact(model, trust=run.offer.coordinator, where="the released model")
        if parameters_hash(flatten(artifact.graph)) != parameters_hash(run.follower.course.kept):
            raise ProtocolError("Expected the model that the released sums give, the coordinator released another")


def _version() -> str:
    return metadata.version("confide")
