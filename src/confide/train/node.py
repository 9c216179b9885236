"""One organisation's side of a federation: it takes part in what its own policy allows, and in nothing else.

A node runs the code that is installed on it. It is offered a job as text, reads it with its own code, asks its gate
(policy, people, budget), and from then on follows the course of the training by itself: the model of each round is what
the released sums give under its own copy of the job. Sans I/O: a driver calls `handle` and sends what `take` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

from confide.cohort.roster import IDENTITY, ROSTER
from confide.crypto.keys import SigningKey
from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import Aborted, ConfideError, ProtocolError, StoreError, UsageError
from confide.guarantee import PrivacyLabel
from confide.model.artifact import Artifact
from confide.model.artifact import decode as decode_artifact
from confide.model.graph import Graph, Linear
from confide.net.exchange import Envelope, Exchange
from confide.net.link import Arrived, Event, Joined, Left
from confide.store import Staged
from confide.tee.aggregate import Enclaves
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
from confide.train.course import parameters_hash
from confide.train.joining import Joining, compare, trained_alone
from confide.train.local import flatten
from confide.train.node_run import CHARGED, ENDED, Member, Part, role_of
from confide.train.offer import Offer, read, require_member
from confide.train.rounds import sends_vector
from confide.train.setting import Setting
from confide.wire import Party, Step, Store, decode, encode

#: What tags of the coordinator's own words begin with.
_CONTROL = "federation/"

#: What a node's people are told when it takes part in a trial of an enclave.
SIMULATED = "INSECURE SIMULATION: whoever runs the coordinator can read this node's update"

#: Set-ups of one run; each leaves keys in the node's store.
_MOST_SETUPS = 100

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
        enclaves: which evidence it accepts, and what signs its own if it is an enclave.

    **Guarantees**: nothing computed from records leaves before the gate has accepted the very job that it is computed
    for; a model that the job and the released sums do not give is refused; what a sum spends is committed before the
    node's vector leaves for it; of each (round, attempt) of a run one vector leaves, whatever is asked again.

    Not hidden without [privacy]: what lies between two sums. A coordinator that lies about who was lost has a round
    repeated without one node, or invents sums that bring an earlier model back; rounds * attempts bound how often.
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
        enclaves: Enclaves | None = None,
    ) -> None:
        self.member, self._data, self._gate = member, data, gate
        self._rng, self._say, self._release = rng or SystemRandomness(), say, release
        self._enclaves = enclaves or Enclaves()
        self.exchange = Exchange(store, on_step=self._on_step)
        self._out: list[Envelope] = []
        self._offered: bytes | None = None
        self._run: Part | None = None
        self._last: Answer | None = None
        self.ended: End | None = None

    # --- the driver's side --------------------------------------------------------------------------------------------

    def handle(self, event: Event | None) -> None:
        """Take one event in; None lets time pass, for what waits for a person."""
        match event:
            case Arrived(_, envelope):
                try:
                    if envelope.message.dst != self.member.name or self._forged(envelope):
                        self._say(f"not from the coordinator: {envelope.message.tag[:64]!r}")
                    else:
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
        """Commit, then return what leaves; while nothing does, what was heard need not last: it is told again."""
        for session in self.exchange.ended():
            if not self.exchange.knows(session):
                continue  # forgotten since
            try:
                output = self.exchange.output(session)
            except ConfideError as error:
                self._unable(session, error)
            else:
                self._ended_well(session, output)
        if not self._out and not self.exchange.pending:
            return []
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

    def joining(self) -> tuple[Joining, Artifact] | None:
        """Return whether taking part helped this node, and the model of its own records alone: its fall-back.

        Computed here, from here, and told to nobody: that model has no privacy, and is this node's to use, not to pass
        on. None without a finished run, without held-out records, and for models that have no such comparison:
        survival, and private trees, which are no private form of the trees that a party would grow.
        """
        run = self._run
        if run is None or run.silo is None or run.test is None or not len(run.test.y):
            return None
        job = run.setting.job
        if job.model.kind == "cox" or job.train.algorithm == "additive":
            return None
        course, setting = run.follower.course, run.setting
        done, own = setting.preparation(course), run.prepared(run.silo)
        alone = trained_alone(
            setting.job, done.preprocess, setting.start, own.x, own.y, class_weights=done.class_weights
        )
        name = self.member.name
        label = PrivacyLabel(aggregator="local", parties=(name,), quorum=1, colluding=0, rounds=0)
        model = Artifact(alone, done.preprocess, label, {"job": setting.job.job.name, "data": f"{name} alone"})
        return compare(course.encoding.learner.model(course.kept), alone, run.prepared(run.test)), model

    def _ended_well(self, session: str, output: object) -> None:
        run = self._run
        if run and session in run.orders and run.orders[session].kind == "setup":
            self._send(control.READY, Ready(str(output)), session=session)

    # --- control ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _forged(envelope: Envelope) -> bool:
        """Return whether somebody else speaks as only the coordinator does: other members reach this node as well."""
        message = envelope.message
        return message.tag.startswith(_CONTROL) and message.src != "server"

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
                self._close(envelope.session)
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
        self._leave()
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
        except StoreError:
            raise
        except ConfideError as error:
            self._leave()
            answer = Answer(run, "refused", str(error)[:MAX_REASON], version=_version())
        if repeat or answer != self._last:  # `standing` shows it to this node's people
            self._send(control.ANSWER, answer)

    def _decided(self, offer: Offer) -> Answer:
        job, schema = read(offer)
        setting = Setting.of(job, schema)
        current = self._run if self._run and self._run.offer == offer else None
        role = role_of(self.member, setting)
        own = SigningKey(self.member.identity).public
        if role == "client":
            require_member(offer, self.member.name, own)
        elif offer.helper != own:
            raise ProtocolError("Expected an offer that shows this helper's own identity")
        ended = self.exchange.view(f"run/{offer.run}/").get(ENDED)
        if ended is not None:  # nothing is begun again under its id, but its coordinator may not have heard
            return Answer(offer.run, "accepted", heard=int(ended), version=_version())
        decision = self._gate.decide(offer, setting)
        if decision.state != "accepted":
            self._leave()
            return Answer(offer.run, decision.state, decision.reason[:MAX_REASON], version=_version())  # type: ignore[arg-type]
        if current is None:
            self._leave()
            current = Part(self.member, offer, setting, self.exchange.view, self._rng, self._enclaves)
            current.bind()
            if role == "client":
                if self._data is None:
                    raise UsageError("Expected --data at a node that trains; name its table")
                current.load(self.member.name, self._data, schema)
                again = self._gate.decide(offer, setting)  # the table that was read is the one that was decided on
                if again.state != "accepted":
                    raise Aborted("Expected a table that does not change while it is read")
                if job.train.aggregate == "tee" and job.train.attester == "simulated":
                    self._say(f"warning: {SIMULATED}")
            self._run, self.ended = current, None
        return Answer(
            offer.run,
            "accepted",
            heard=current.follower.heard,
            head=current.witness(self.exchange.view()).head or "",
            origin=self._rng.origin,
            version=_version(),
        )

    # --- a run --------------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Take no part any more: without a run nothing is charged, so nothing may go on."""
        for session in (*self.exchange.open_sessions, *(self._run.orders if self._run else ())):
            self.exchange.forget(session)
        self._run = None

    def _close(self, session: str) -> None:
        self.exchange.forget(session)
        if self._run:
            self._run.orders.pop(session, None)

    def _accepted(self) -> Part:
        if self._run is None or self.ended is not None:
            raise Aborted("Expected a job that this node has accepted, and that has not ended")
        return self._run

    def _follow(self, body: bytes) -> None:
        run = self._accepted()
        run.follower.follow(body)
        run.note(body)
        kept = run.followed()
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
        if not 0 <= order.keys < _MOST_SETUPS:
            raise ProtocolError(f"Expected fewer than {_MOST_SETUPS} set-ups of a run")
        if order.kind != "setup" and run.role == "client":
            run.require_turn(order)
        for earlier in tuple(run.orders):  # one at a time; the word that it is over may have been lost
            self._close(earlier)
        run.orders[session] = order
        _, prefix, _ = run.keys(order.keys)
        party = self._setup(run, order) if order.kind == "setup" else self._sum(run, order)
        self.exchange.open(session, party, me=self.member.name, prefix=prefix)

    def _setup(self, run: Part, order: Open) -> Party:
        (aggregator, _, store), roster = run.keys(order.keys), run.offer.roster
        store.commit({IDENTITY: self.member.identity, ROSTER: roster.encode()})  # pinned before the server's word
        return aggregator.setup(run.role, self.member.name, run.setting.cohort, store, run.rng)

    def _sum(self, run: Part, order: Open) -> Party:
        aggregator, _, store = run.keys(order.keys)
        follower, me = run.follower, self.member.name
        vector = None
        if run.role == "client":
            if order.kind == "round" and follower.heard != order.number - 1:
                raise Aborted(f"Expected round={follower.heard + 1}, after the releases that this node has followed")
            assert run.silo is not None
            vector = run.vector(order)
        session = run.session(order)
        return aggregator.party(run.role, me, session, vector, store, run.rng)

    def _on_step(self, session: str, step: Step) -> Mapping[str, bytes | None]:
        """Charge a vector in the commit before it leaves, once for each attempt.

        From then on others may open a sum with it, so that whether this node goes on changes nothing.
        """
        run = self._accepted()
        order = run.orders[session]
        if order.kind == "setup" or run.role != "client" or not sends_vector(run.keys(order.keys)[0], step):
            return {}
        run.require_turn(order)
        place = encode(order)
        if run.store.get(CHARGED) == place:
            return {}
        encoding = run.follower.course.encoding
        count = encoding.charged(run.store)
        changes: dict[str, bytes | None] = {CHARGED: place}
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
        self.exchange.change(run.wiped(heard))
        self._send(control.ANSWER, Answer(end.run, "accepted", heard=heard, version=_version()))
        self._say(f"job {end.run} has ended{f': {end.reason}' if end.reason else ''}")
        self.ended = end

    def _check_release(self, run: Part, model: bytes) -> None:
        """Refuse a model that the node's own course does not come to."""
        artifact = decode_artifact(model, trust=run.offer.coordinator, where="the released model")
        course = run.follower.course
        own = course.encoding.learner.model(course.kept)
        same = parameters_hash(flatten(artifact.graph)) == parameters_hash(course.kept)
        prepare = run.setting.preparation(course).preprocess
        if not same or _form(artifact.graph) != _form(own) or artifact.preprocess != prepare:
            raise ProtocolError("Expected the model that the released sums give, the coordinator released another")


def _form(graph: Graph) -> tuple[object, ...]:
    """Return all of a graph but its parameters: the same parameters in other layers are another model."""
    return (graph.classes, *(one.weight.shape if isinstance(one, Linear) else one for one in graph.layers))


def _version() -> str:
    return metadata.version("confide")
