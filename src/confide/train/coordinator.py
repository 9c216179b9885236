"""The coordinator of a federation: the loop's `Parties` over a network, with a journal that survives kill -9.

It sees what the aggregator's guarantee says and nothing else, reads no table, and decides nothing for a node. What it
knows is in its store before anybody is told: a process that was killed goes on with the same attempt of the same round,
from the messages that had arrived, and what it sends again are the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from confide.cohort.roster import ROSTER, Roster
from confide.crypto.random import Randomness, SystemRandomness
from confide.data.schema import Schema
from confide.errors import Aborted, ProtocolError
from confide.ideal import Sums
from confide.model.graph import Graph
from confide.net.exchange import Envelope, Exchange, Figures
from confide.net.link import Arrived, Event, Joined, Left, Link
from confide.store import Prefixed
from confide.train.attendance import Patience, Peer
from confide.train.board import Board
from confide.train.control import (
    ANSWER,
    CLOSE,
    END,
    LINES,
    MAX_CONTROL_BYTES,
    NEWS,
    OFFER,
    OPEN,
    READY,
    UNABLE,
    WITNESSED,
    Answer,
    End,
    Open,
    Ready,
    Reason,
    Witnessed,
    control,
    session_id,
)
from confide.train.course import Announcement, Announcements, announcement, parameters_hash
from confide.train.federated_evaluation import evaluation_fields, evaluation_of
from confide.train.figures import Evaluation
from confide.train.ledger import Ledger, Value
from confide.train.ledger_lines import roster_field
from confide.train.offer import Offer, job_hash
from confide.train.rounds import Round, Taken, conduct, opens_at_server, session_of
from confide.train.run_journal import CURRENT, Charged, RoundLine, current_run
from confide.train.sections import Job
from confide.train.setting import Setting, evaluation_of_run
from confide.train.status import Phase, Status
from confide.train.witnesses import Witnesses
from confide.wire import Party, Step, Store, decode, encode

#: News that a node has missed go out in bodies of about this size.
_NEWS_BYTES = 1 << 25

#: How often a set-up is tried.
_SETUPS = 5


class Coordinator:
    """One run of one job, as `Parties` of the loop.

    Args:
        job: with node names; its tables are never read.
        schema_text: the schema file.
        roster: of the job's nodes, in the job's order.
        link: reaches nodes and helper.
        store: durable, of this coordinator alone; `confide.store.Patient` where it may be gone for a while.
        ledger: gets the job, every release and every round.
        identity: the coordinator's public key (32 bytes), which nodes expect to sign the model and the ledger.
        helper: that of the second server or key holder, for aggregators that have one.
        patience: deadlines.
        rng: of the server's parties; the operating system's if None.
        say: told in one line what happens, for people.
        clock: seconds that never go back.
        wall: seconds since 1970, for people.

    `board` says where the run is; it may be read from any thread.

    Raises:
        JobError, UsageError: the job contradicts itself, or is none for a network.
    """

    def __init__(
        self,
        job: Job,
        schema_text: str,
        *,
        roster: Roster,
        identity: bytes,
        link: Link,
        store: Store,
        ledger: Ledger,
        helper: bytes = b"",
        patience: Patience | None = None,
        rng: Randomness | None = None,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.job, self.setting = job, Setting.of(job, Schema.read(schema_text, where="the schema"))
        self.cohort, self.course = self.setting.cohort, self.setting.course()
        self.origin, self.releases = (rng or SystemRandomness()).origin, 0
        self.charged = (0, 0)
        self._rng, self._link, self._ledger = rng or SystemRandomness(), link, ledger
        self._patience, self._say, self._clock = patience or Patience(), say, clock
        self._current, self.resumed = current_run(store, job.job.name, job_hash(job, schema_text), roster)
        self.run_id = self._current.run
        self.offer = Offer.of(job, schema_text, roster, self.run_id, coordinator=identity, helper=helper)
        self._root, self._prefix = store, f"run/{self.run_id}/"
        self._store = Prefixed(store, self._prefix)
        self.exchange = Exchange(store, on_step=self._on_step)
        self._charge: Callable[[], None] | None = None
        self._begun = clock()
        self._live: tuple[str, Open] | None = None
        self._keys, self._aggregator = -1, self.setting.aggregator()
        roles = self.cohort.parties(self._aggregator.roles)
        now = clock()
        self.peers = {name: Peer(since=now) for name in roles if name != self.cohort.server}
        self._roster = roster
        self._last: Round[Graph] | None = None
        self._wall = wall
        self._witnesses = Witnesses(ledger, self.run_id, roster.keys())
        self._maybe_charged = True  # until this process has begun an attempt of its own
        self.board = Board(
            Status.start(
                run=self.run_id,
                job=job.job.name,
                job_hash=self.offer.job_hash,
                aggregator=self._aggregator.name,
                guarantee=self._aggregator.guarantee,
                rounds=job.train.rounds,
                quorum=self.cohort.quorum,
                members={
                    name: "helper" if role != "client" else "node" for name, role in roles.items() if name in self.peers
                },
                at_seconds=wall(),
                epsilon_budget=job.privacy.epsilon if job.privacy else None,
            )
        )

    def _begin_ledger(self) -> None:
        """Write the run's first line, unless it is there already."""
        if self._ledger.find("job", run=self.run_id) is not None:
            return
        parties: list[str] = list(self.cohort.clients)
        self._ledger.append(
            "job",
            {
                "run": self.run_id,
                "job": self.offer.job,
                "job_hash": self.offer.job_hash,
                "parties": parties,
                "roster": roster_field(self._roster),
                "start": self.offer.start_hash,
            },
        )

    def rounds(self) -> Iterator[Round[Graph]]:
        """Train, yielding after every round that this process finished; see `conduct`.

        Raises:
            Aborted: nodes refuse the job, the set-up fails again and again, or a round lost its quorum in each attempt.
        """
        for done in conduct(self, self.job.train, aggregator=self._aggregator.name, ledger=self._ledger):
            self._last = done
            yield done

    # --- the loop's side ----------------------------------------------------------------------------------------------

    def begin(self) -> int:
        """Take up the run where the store says that it is; the set-up first."""
        self._begin_ledger()
        self._resume_course()
        saved = self._store.get("keys")
        if saved is None:
            self._recruit()
            self._phase(Phase.SET_UP)
            self._set_up()
        else:
            self._keys = int(saved)
        self._phase(Phase.TRAINING)
        attempt = decode(body, Open, max_bytes=len(body)) if (body := self._store.get("attempt")) else None
        return attempt.attempt if attempt and attempt.number == self.course.number + 1 else 0

    def sum(self, number: int, attempt: int, charge: Callable[[], None]) -> Taken:
        """Take one attempt over the network, or go on with it."""
        self._gather()
        self._witnesses.write()
        order = Open("round", self._keys, number, attempt)
        self._store.commit({"attempt": encode(order), "line": None})
        self._charge, self._begun = charge, self._clock()
        ready = [name for name, peer in self.peers.items() if peer.ready]
        self.board.round_begun(number, attempt=attempt + 1, asked=ready, at_seconds=self._wall())
        session = session_of(self.run_id, self.cohort, self.course, number, attempt)
        party = self._aggregator.party("server", self.cohort.server, session, None, self._place(), self._rng)
        try:
            sums = self._session(order, party, journal=True)
            return Taken(sums, "", *self._figures(order))
        except ProtocolError as error:
            taken = Taken(None, str(error), *self._figures(order))
            self.board.round_failed(at_seconds=self._wall())
            self._close(order)
            self._say(f"round {number}, attempt {attempt + 1} failed: {error}")
            return taken

    def released(self, sums: Sums, entry: Mapping[str, Value]) -> None:
        """Make a round durable: from here on it is finished, whatever happens to this process."""
        said = announcement(self.course, sums)
        changes = {
            f"sums/{said.number}": encode(said),
            "course": self.course.state(),
            "line": encode(RoundLine(dict(entry))),
            "attempt": None,
        }
        self.exchange.change({self._prefix + key: value for key, value in changes.items()})
        members = frozenset[str]().union(*sums.members)
        figures = self.exchange.figures(self._live[0]) if self._live else Figures()
        self.board.round_done(
            members=members,
            missing=frozenset(self.cohort.clients) - members,
            smallest_sum=min(map(len, sums.members)),
            seconds=self._clock() - self._begun,
            bytes_up=sum(figures.bytes_down.values()),
            bytes_down=figures.bytes_up,
            epsilon=self.course.encoding.epsilon(self.releases),
            model_hash=str(entry["model"]),
            at_seconds=self._wall(),
        )
        if self._live:
            self._close(self._live[1])
        self._flush()
        self._maybe_charged = False

    def evaluate(self) -> Evaluation:
        """Evaluate the final model on the nodes' held-out records: one more sum, which shows no node's figures.

        Raises:
            Aborted: the quorum was lost: in each attempt without a privacy plan, at once under one.
        """
        self._phase(Phase.EVALUATING)
        setting, tally = self.setting, self.setting.tally()
        epsilon = setting.evaluation_epsilon(self.course.encoding.epsilon(self.releases))
        reason = ""
        for attempt in range(1 if tally.plan else self.job.train.attempts):
            self._gather()
            self._witnesses.write()
            order = Open("evaluate", self._keys, self.course.number + 1, attempt)
            session = evaluation_of_run(self.run_id, setting, self.course, order)
            if epsilon is not None:  # before it leaves, as for a round
                self._ledger.append("release", {"of": "evaluation", "attempt": attempt + 1, "epsilon": epsilon})
            server = self.cohort.server
            party = self._aggregator.party("server", server, session, None, self._place(), self._rng)
            try:
                found = evaluation_of(tally, self._session(order, party, journal=True))
            except ProtocolError as error:
                self._close(order)
                reason = str(error)
                continue
            bytes_up, _ = self._figures(order)
            fields = evaluation_fields(found, session, self._aggregator.name, bytes_up, epsilon)
            self._close(order)
            self._ledger.append("evaluation", fields)
            self.board.evaluated(self.course.number, accuracy=found.accuracy.value, at_seconds=self._wall())
            return found
        raise Aborted(f"The evaluation failed; {reason}")

    def final(self) -> Round[Graph] | None:
        """Return the last finished round, whichever process finished it; None before the first."""
        saved = self._store.get("line")
        if not self.course.number or saved is None:
            return self._last
        entry = decode(saved, RoundLine, max_bytes=len(saved)).entry
        return Round(
            number=self.course.number,
            attempts=entry["attempts"],
            model=self.course.encoding.learner.model(self.course.kept),
            parameters=self.course.kept,
            members=frozenset(entry["members"]),
            smallest=entry["smallest"],
            missing=frozenset(entry["missing"]),
            bytes_up={name: int(count) for name, count in entry["bytes_up"].items()},
            seconds={},
            epsilon=entry["epsilon"],
            origin=self.origin,
        )

    def finish(self, *, model: bytes = b"", reason: str = "") -> None:
        """Tell every node the end, and wait until those that are here have taken it in."""
        if reason:
            self.board.run_failed(reason=reason, at_seconds=self._wall())
        else:
            self.board.run_done(model_hash=parameters_hash(self.course.kept).hex(), at_seconds=self._wall())
        end = End(self.run_id, reason, model)
        told: set[str] = set()
        deadline = self._clock() + self._patience.gather_seconds

        def done() -> bool:
            for name, peer in self.peers.items():
                if peer.ready and name not in told:
                    self._send_news(name, self.course.number)
                    self._send_lines(name)
                    self._link.send(name, control(self.cohort.server, name, END, end))
                    told.add(name)
            return (
                all(
                    name in told and peer.answer is not None and peer.answer.heard >= self.course.number
                    for name, peer in self.peers.items()
                )
                or self._clock() > deadline
            )

        while not done():
            self._pump(0.2)
        self._witnesses.write()
        finished = {CURRENT: encode(msgspec.structs.replace(self._current, finished=True))}
        self._root.commit(finished | dict.fromkeys(self._root.keys(self._prefix)))

    # --- where the store says that it is ------------------------------------------------------------------------------

    def _resume_course(self) -> None:
        state, line, charged = self._store.get("course"), self._store.get("line"), self._store.get("charged")
        if state is None:
            start = announcement(self.course, None)
            self._store.commit({"sums/0": encode(start)})
        else:
            self.course = self.course.resumed(state)
            self._say(f"going on after round {self.course.number}")
        if charged is not None:
            last = decode(charged, Charged, max_bytes=len(charged))
            self.releases, self.charged = last.releases, (last.number, last.attempt)
        if line is not None:  # the round was durable, whether its line was is for the ledger to know
            entry = decode(line, RoundLine, max_bytes=len(line)).entry
            if self._ledger.find("round", round=entry["round"]) is None:  # other lines may follow it already
                self._ledger.append("round", entry)

    def _on_step(self, session: str, step: Step) -> Mapping[str, bytes | None]:
        """Charge an attempt in the commit before the message leaves that asks for what opens its sum."""
        order = self._live[1] if self._live and self._live[0] == session else None
        if order is None or order.kind != "round" or not opens_at_server(self._aggregator, step):
            return {}
        saved = self._store.get("charged")
        last = decode(saved, Charged, max_bytes=len(saved)) if saved else Charged(0, 0, 0)
        if (order.number, order.attempt) <= (last.number, last.attempt) or self._charge is None:
            return {}
        charge, self._charge = self._charge, None
        written = {"round": order.number, "attempt": order.attempt + 1}
        if self._maybe_charged and self._ledger.find("release", **written) is not None:
            # the line was written, and the process ended before the store knew
            self.releases, self.charged = self.releases + 1, (order.number, order.attempt)
        else:
            charge()
        spent = self.course.encoding.epsilon(self.releases)
        if spent is not None:
            self.board.charged(epsilon=spent, at_seconds=self._wall())
        return {f"{self._prefix}charged": encode(Charged(order.number, order.attempt, self.releases))}

    def _phase(self, phase: Phase) -> None:
        self.board.phase_begun(phase, at_seconds=self._wall())

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _recruit(self) -> None:
        """Wait until every node has accepted.

        Raises:
            Aborted: all have answered, and some refuse.
        """
        while not all(peer.ready for peer in self.peers.values()):
            asks = any(peer.answer and peer.answer.state == "pending" for peer in self.peers.values())
            if self.board.snapshot().phase is not (phase := Phase.APPROVALS if asks else Phase.WAITING):
                self._phase(phase)
            answers = {name: peer.answer for name, peer in self.peers.items()}
            if all(answer is not None and answer.state != "pending" for answer in answers.values()):
                refused = [
                    f"{name}: {answer.reason}"
                    for name, answer in answers.items()
                    if answer and answer.state == "refused"
                ]
                if refused:
                    raise Aborted(f"Expected every node to accept the job; {'; '.join(refused)}")
            self._pump(0.5)

    def _set_up(self) -> None:
        tried, reason = int(self._store.get("keys-tried") or -1), ""
        for keys in range(tried + 1, tried + 1 + _SETUPS):
            while not all(peer.ready for peer in self.peers.values()):
                self._pump(0.5)
            self._store.commit({"keys-tried": str(keys).encode()})
            self._keys, self._aggregator = keys, self.setting.aggregator()
            place = self._place()
            place.commit({ROSTER: self._roster.encode()})
            order = Open("setup", keys)
            party = self._aggregator.setup("server", self.cohort.server, self.cohort, place, self._rng)
            try:
                fingerprint = self._session(order, party, journal=False)
                self._confirm(order, str(fingerprint))
            except ProtocolError as error:
                self._say(f"set-up failed: {error}")
                reason = str(error)
                self._close(order)
                continue
            self._close(order)
            self._store.commit({"keys": str(keys).encode()})
            return
        raise Aborted(f"The set-up failed {_SETUPS} times; {reason}")

    def _confirm(self, order: Open, fingerprint: str) -> None:
        """Wait until everybody has what the set-up gave it, and the same: without it a node is out of every sum.

        Raises:
            Aborted: somebody has left, or has something else.
        """
        session = session_id(self.run_id, order)
        while missing := [name for name, peer in self.peers.items() if session not in peer.done]:
            if any(self._is_out(name, session) for name in missing):
                raise Aborted(f"Expected the set-up to be complete at {', '.join(missing)}")
            self._pump(0.2)
        if others := [name for name in self.cohort.clients if self.peers[name].done[session] != fingerprint]:
            raise Aborted(f"Expected one fingerprint of the set-up, {', '.join(others)} found another")

    def _place(self) -> Store:
        return self.exchange.view(f"{self._prefix}keys-{self._keys}/")

    def _gather(self) -> None:
        """Wait for the quorum, and a while for the others.

        Raises:
            Aborted: too many refuse for a quorum.
        """
        begin, waiting = self._clock(), False
        while True:
            ready = [name for name in self.cohort.clients if self.peers[name].ready]
            others = [name for name in self.peers if name not in self.cohort.clients]
            enough = len(ready) >= self.cohort.quorum and all(self.peers[name].ready for name in others)
            refused = {name: peer.answer.reason for name, peer in self.peers.items() if peer.refuses and peer.answer}
            if len(self.cohort.clients) - len(refused) < self.cohort.quorum or not refused.keys().isdisjoint(others):
                reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
                raise Aborted(f"Expected quorum={self.cohort.quorum} nodes that take part; {reasons}")
            patient = self._clock() - begin < self._patience.gather_seconds
            hopeful = [name for name, peer in self.peers.items() if not peer.ready and not self._is_lost(name)]
            if enough and not (hopeful and patient):
                return
            if not enough and not patient and not waiting:
                waiting = True
                away = ", ".join(sorted(set(self.peers) - set(ready)))
                self._say(f"waiting for quorum={self.cohort.quorum} nodes; away: {away}")
            self._pump(0.2)

    def _is_lost(self, name: str) -> bool:
        """Return whether there is no use in waiting for a member now."""
        peer = self.peers[name]
        if peer.here:
            return peer.refuses
        return self._clock() - peer.since > self._patience.grace_seconds

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _session(self, order: Open, party: Party, *, journal: bool) -> Any:
        """Play the server's party of a session to its end, and return its output."""
        session = session_id(self.run_id, order)
        self._live = session, order
        prefix = f"{self._prefix}keys-{order.keys}/"
        self.exchange.open(session, party, me=self.cohort.server, prefix=prefix, journal=journal)
        for name, peer in self.peers.items():
            if peer.ready:
                self._bring_in(name)
        self._flush()
        stage, begun = "", self._clock()
        while self.exchange.is_open(session):
            tag, missing = self.exchange.waiting_for(session)
            if tag != stage:
                stage, begun = tag, self._clock()
            late = self._clock() - begun > self._patience.stage_seconds
            if late or (missing and all(self._is_out(name, session) for name in missing)):
                self.exchange.close_stage(session)
            else:
                self._pump(0.05 if any(not self.peers[name].here for name in missing) else 0.5)
            if self.exchange.pending:
                self._flush()
        return self.exchange.output(session)

    def _is_out(self, name: str, session: str) -> bool:
        peer = self.peers[name]
        return session in peer.unable or self._is_lost(name)

    def _bring_in(self, name: str) -> None:
        """Tell a member of the live session: what it has not heard, the order, and what was sent to it already."""
        if self._live is None:
            return
        session, order = self._live
        if order.kind != "setup":
            self._send_news(name, self.course.number)
            self._send_lines(name)
        self.peers[name].unable.pop(session, None)
        self._link.send(name, control(self.cohort.server, name, OPEN, order, session=session))
        for envelope in self.exchange.sent(session, name):
            self._link.send(name, envelope)

    def _send_news(self, name: str, until: int) -> None:
        peer, missed, size = self.peers[name], list[Announcement](), 0
        while peer.heard < until:
            peer.heard += 1
            body = self._store.get(f"sums/{peer.heard}")
            assert body is not None
            missed.append(decode(body, Announcement, max_bytes=len(body)))
            size += len(body)
            if size > _NEWS_BYTES or peer.heard == until:
                news = control(self.cohort.server, name, NEWS, Announcements(tuple(missed)))
                self._link.send(name, news)
                missed, size = [], 0

    def _send_lines(self, name: str) -> None:
        if name in self.cohort.clients:
            for lines in self._witnesses.lines_for(name):
                self._link.send(name, control(self.cohort.server, name, LINES, lines))

    def _close(self, order: Open) -> None:
        session = session_id(self.run_id, order)
        self.exchange.forget(session)
        self._live = None
        for name, peer in self.peers.items():
            peer.unable.pop(session, None)
            peer.done.pop(session, None)
            if peer.here:
                self._link.send(name, control(self.cohort.server, name, CLOSE, session=session))

    def _figures(self, order: Open) -> tuple[dict[str, int], dict[str, float]]:
        figures = self.exchange.figures(session_id(self.run_id, order))
        server = self.cohort.server
        bytes_up = dict.fromkeys(self.peers, 0) | {server: figures.bytes_up} | figures.bytes_down
        return bytes_up, {server: figures.seconds}

    # --- events -------------------------------------------------------------------------------------------------------

    def _pump(self, seconds: float) -> None:
        event = self._link.receive(seconds)
        if event is not None:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        peer = self.peers.get(event.peer)
        if peer is None:
            return
        match event:
            case Joined(name, role):
                self.board.node_joined(name, role=role, at_seconds=self._wall())
                peer.here, peer.since, peer.answer = True, self._clock(), None
                self._link.send(name, control(self.cohort.server, name, OFFER, self.offer))
            case Left(name, reason):
                peer.here, peer.since = False, self._clock()
                self.board.node_left(name, reason=reason, at_seconds=self._wall())
                self._say(f"{name} has left: {reason}")
            case Arrived(name, envelope):
                try:
                    self._arrived(name, peer, envelope)
                except ProtocolError as error:
                    self._say(f"refused what {name} sent: {error}")

    def _arrived(self, name: str, peer: Peer, envelope: Envelope) -> None:
        message = envelope.message
        if message.src != name or message.dst != self.cohort.server:
            raise ProtocolError(f"Expected messages of {name} to {self.cohort.server}")
        if message.tag == ANSWER:
            self._answered(name, peer, decode(message.body, Answer, max_bytes=MAX_CONTROL_BYTES))
        elif message.tag == UNABLE:
            reason = decode(message.body, Reason, max_bytes=MAX_CONTROL_BYTES).reason
            peer.unable[envelope.session] = reason
            self._say(f"{name} is out of {envelope.session}: {reason}")
        elif message.tag == WITNESSED:
            self._witnesses.signed(name, decode(message.body, Witnessed, max_bytes=MAX_CONTROL_BYTES))
        elif message.tag == READY:
            peer.done[envelope.session] = decode(message.body, Ready, max_bytes=MAX_CONTROL_BYTES).fingerprint
        elif self.exchange.knows(envelope.session) or not envelope.session.startswith(f"{self.run_id}/"):
            self.exchange.put(envelope)  # else it comes late to a session that is over

    def _answered(self, name: str, peer: Peer, answer: Answer) -> None:
        if answer.run != self.run_id:
            raise ProtocolError("Expected an answer about the current run")
        peer.answer, peer.heard = answer, min(answer.heard, self.course.number)
        if answer.state == "pending":
            self.board.node_asks(name, reason=answer.reason, at_seconds=self._wall())
        elif answer.state == "refused":
            self.board.node_refused(name, reason=answer.reason, at_seconds=self._wall())
        else:
            self.board.node_approved(name, at_seconds=self._wall())
        if answer.state != "accepted":
            self._say(f"{name} {'waits for a person' if answer.state == 'pending' else 'refuses'}: {answer.reason}")
            return
        if name in self.cohort.clients:
            self._witnesses.rejoined(name, answer.head)
        if answer.origin != SystemRandomness.origin:
            self.origin = answer.origin
        self._bring_in(name)

    def _flush(self) -> None:
        """Commit, then send."""
        for envelope in self.exchange.take():
            self._link.send(envelope.message.dst, envelope)
