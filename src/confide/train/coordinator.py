"""The coordinator of a federation: the loop's `Parties` over a network, with a journal that survives kill -9.

It sees what the aggregator's guarantee says and nothing else, reads no table, and decides nothing for a node. What it
knows is in its store before anybody is told: a process that was killed goes on with the same attempt of the same round,
from the messages that had arrived, and what it sends again are the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from confide.cohort.roster import ROSTER, Roster
from confide.crypto.random import Randomness, SystemRandomness
from confide.data.schema import Schema
from confide.errors import Aborted, ProtocolError
from confide.ideal import Sums
from confide.model.graph import Graph
from confide.net.exchange import Exchange, Figures
from confide.net.link import Link
from confide.store import Prefixed
from confide.train.attendance import Patience
from confide.train.board import Board
from confide.train.control import (
    END,
    LINES,
    NEWS,
    Answer,
    End,
    Open,
    Witnessed,
)
from confide.train.course import Announcement, Announcements, announcement, parameters_hash, released_sums
from confide.train.federated_evaluation import evaluation_fields, evaluation_of
from confide.train.figures import Evaluation
from confide.train.ledger import Ledger, Value
from confide.train.ledger_lines import roster_field
from confide.train.meeting import Meeting
from confide.train.offer import Offer, job_hash
from confide.train.rounds import Round, Taken, asks_for_vectors, conduct, session_of
from confide.train.run_journal import CURRENT, Charged, RoundLine, current_run
from confide.train.sections import Job
from confide.train.setting import Setting, evaluation_of_run
from confide.train.status import Phase, Status
from confide.train.tally import Tally
from confide.train.witnesses import Witnesses
from confide.wire import Array, Step, Store, decode, encode

#: News that a node has missed go out in bodies of about this size.
_NEWS_BYTES = 1 << 25

#: After so many rounds the course is written; between them it follows from the sums, which are written always.
_COURSE_ROUNDS = 16

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
        self._rng, self._ledger = rng or SystemRandomness(), ledger
        self._patience, self._say, self._clock = patience or Patience(), say, clock
        self._current, self.resumed = current_run(store, job.job.name, job_hash(job, schema_text), roster)
        self.run_id = self._current.run
        self.offer = Offer.of(job, schema_text, roster, self.run_id, coordinator=identity, helper=helper)
        self._root, self._prefix = store, f"run/{self.run_id}/"
        self._store = Prefixed(store, self._prefix)
        self.exchange = Exchange(store, on_step=self._on_step)
        self._charge: Callable[[], None] | None = None
        self._begun = clock()
        self._keys, self._aggregator = -1, self.setting.aggregator()
        roles = self.cohort.parties(self._aggregator.roles)
        del roles[self.cohort.server]
        self._roster = roster
        self._last: Round[Graph] | None = None
        self._wall = wall
        self._witnesses = Witnesses(ledger, self.run_id, roster.keys())
        self._newest = -1, b""  # the last round that this process released, and its news
        self._maybe_charged = True  # until this process has begun an attempt of its own
        self.board = Board(
            Status.start(
                run=self.run_id,
                job=job.job.name,
                job_hash=self.offer.job_hash,
                aggregator=self._aggregator.name,
                guarantee=self._aggregator.guarantee,
                rounds=self.course.rounds,
                quorum=self.cohort.quorum,
                members={name: "node" if role == "client" else "helper" for name, role in roles.items()},
                at_seconds=wall(),
                epsilon_budget=job.privacy.epsilon if job.privacy else None,
            )
        )
        self.meeting = Meeting(
            self,
            self.offer,
            self.cohort,
            roles,
            exchange=self.exchange,
            link=link,
            patience=self._patience,
            board=self.board,
            say=say,
            clock=clock,
            wall=wall,
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
            self.meeting.recruit()
            self._phase(Phase.SET_UP)
            self._set_up()
        else:
            self._keys = int(saved)
        self._phase(Phase.TRAINING)
        attempt = decode(body, Open, max_bytes=len(body)) if (body := self._store.get("attempt")) else None
        return attempt.attempt if attempt and attempt.number == self.course.number + 1 else 0

    def sum(self, number: int, attempt: int, charge: Callable[[], None]) -> Taken:
        """Take one attempt over the network, or go on with it."""
        self.meeting.gather()
        self._witnesses.write()
        order = Open("round", self._keys, number, attempt)
        if attempt:  # the first needs no note: without one it is the first that goes on
            self._store.commit({"attempt": encode(order)})
        self._charge, self._begun = charge, self._clock()
        self.board.round_begun(number, attempt=attempt + 1, asked=self.meeting.ready, at_seconds=self._wall())
        session = session_of(self.run_id, self.cohort, self.course, number, attempt)
        party = self._aggregator.party("server", self.cohort.server, session, None, self._place(), self._rng)
        try:
            sums = self.meeting.session(order, party, journal=True)
            return Taken(sums, "", *self.meeting.figures(order))
        except ProtocolError as error:
            taken = Taken(None, str(error), *self.meeting.figures(order))
            self.board.round_failed(at_seconds=self._wall())
            forgotten = self._aggregator.renews and self.meeting.unable_helper(order)
            self.meeting.close(order)
            self._say(f"round {number}, attempt {attempt + 1} failed: {error}")
            if forgotten:
                self._say("the enclave has started again: everybody verifies it anew")
                self._set_up()
            return taken

    def released(self, sums: Sums, entry: Mapping[str, Value]) -> None:
        """Make a round durable: from here on it is finished, whatever happens to this process."""
        said = announcement(self.course, sums)
        changes = {
            f"sums/{said.number}": encode(said),
            "number": str(said.number).encode(),
            "line": encode(RoundLine(dict(entry))),
            "attempt": None,
        }
        if said.number % _COURSE_ROUNDS == 0:
            changes["course"] = self.course.state()
        self._newest = said.number, encode(Announcements((said,)))
        self.exchange.change({self._prefix + key: value for key, value in changes.items()})
        members = frozenset[str]().union(*sums.members)
        figures = self.exchange.figures(self.meeting.live[0]) if self.meeting.live else Figures()
        self.meeting.tell_traffic()
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
        if self.meeting.live:
            self.meeting.close(self.meeting.live[1])
        self.meeting.flush()
        self._maybe_charged = False

    def evaluate(self) -> Evaluation:
        """Evaluate the final model on the nodes' held-out records: one more sum, which shows no node's figures.

        Raises:
            Aborted: the quorum was lost: in each attempt without a privacy plan, at once under one.
        """
        self._phase(Phase.EVALUATING)
        setting, tally = self.setting, self.setting.tally()
        epsilon = setting.evaluation_epsilon(self.course.encoding.epsilon(self.releases))
        if (saved := self._store.get("evaluation")) is not None:
            found = self._evaluated(tally, decode(saved, Announcement, max_bytes=len(saved)))
            if self._ledger.find("evaluation") is None:  # the process ended before it was written
                session = evaluation_of_run(self.run_id, setting, self.course, Open("evaluate", self._keys))
                fields = evaluation_fields(found, session, self._aggregator.name, {}, epsilon)
                self._ledger.append("evaluation", fields)
            return found
        reason = ""
        for attempt in range(1 if tally.plan else self.job.train.attempts):
            self.meeting.gather()
            self._witnesses.write()
            order = Open("evaluate", self._keys, self.course.rounds + 1, attempt)
            session = evaluation_of_run(self.run_id, setting, self.course, order)
            if epsilon is not None:  # before it leaves, as for a round
                self._ledger.append("release", {"of": "evaluation", "attempt": attempt + 1, "epsilon": epsilon})
            server = self.cohort.server
            party = self._aggregator.party("server", server, session, None, self._place(), self._rng)
            try:
                sums: Sums = self.meeting.session(order, party, journal=True)
            except ProtocolError as error:
                self.meeting.close(order)
                reason = str(error)
                continue
            bytes_up, _ = self.meeting.figures(order)
            said = Announcement(order.number, session.model_hash, Array.of(sums.values), _names(sums))
            self._store.commit({"evaluation": encode(said)})
            self.meeting.close(order)
            found = self._evaluated(tally, said)
            self._ledger.append(
                "evaluation", evaluation_fields(found, session, self._aggregator.name, bytes_up, epsilon)
            )
            return found
        raise Aborted(f"The evaluation failed; {reason}")

    def _evaluated(self, tally: Tally, said: Announcement) -> Evaluation:
        """Return what the sums of an evaluation say; they are kept, since a second one would be another release."""
        assert said.sums is not None
        values = said.sums.numpy("int64", (None, tally.length))
        found = evaluation_of(tally, Sums(values, tuple(frozenset(row) for row in said.members)))
        self.board.evaluated(self.course.number, accuracy=found.accuracy.value, at_seconds=self._wall())
        return found

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
            importance=self.course.encoding.importance,
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
            for name, peer in self.meeting.peers.items():
                if peer.ready and name not in told:
                    self._send_news(name, self.course.number)
                    self._send_lines(name)
                    self.meeting.send(name, END, end)
                    told.add(name)
            return (
                all(
                    (name in told and peer.answer is not None and peer.answer.heard >= self.course.number)
                    or self.meeting.is_lost(name)
                    for name, peer in self.meeting.peers.items()
                )
                or self._clock() > deadline
            )

        while not done():
            self.meeting.pump(0.2)
        self._witnesses.write()
        finished = {CURRENT: encode(msgspec.structs.replace(self._current, finished=True))}
        self._root.commit(finished | dict.fromkeys(self._root.keys(self._prefix)))

    # --- where the store says that it is ------------------------------------------------------------------------------

    def _resume_course(self) -> None:
        state, line, charged = self._store.get("course"), self._store.get("line"), self._store.get("charged")
        number = int(self._store.get("number") or 0)
        if not number:
            start = announcement(self.course, None)
            self._store.commit({"sums/0": encode(start)})
        else:
            self.course = self.course if state is None else self.course.resumed(state)
            while self.course.number < number:
                said = self._released(self.course.number + 1)
                self.course.advance(released_sums(said, self.course.encoding.length))
            self._say(f"going on after round {number}")
        if charged is not None:
            last = decode(charged, Charged, max_bytes=len(charged))
            self.releases, self.charged = last.releases, (last.number, last.attempt)
        if line is not None:  # the round was durable, whether its line was is for the ledger to know
            entry = decode(line, RoundLine, max_bytes=len(line)).entry
            if self._ledger.find("round", round=entry["round"]) is None:  # other lines may follow it already
                self._ledger.append("round", entry)

    def _on_step(self, session: str, step: Step) -> Mapping[str, bytes | None]:
        """Charge an attempt in the commit before anybody is asked for a vector."""
        order = self.meeting.live[1] if self.meeting.live and self.meeting.live[0] == session else None
        if order is None or order.kind != "round" or not asks_for_vectors(self._aggregator, step):
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

    def _set_up(self) -> None:
        tried, reason = int(self._store.get("keys-tried") or -1), ""
        for keys in range(tried + 1, tried + 1 + _SETUPS):
            self.meeting.wait_for_all()
            self._store.commit({"keys-tried": str(keys).encode()})
            self._keys, self._aggregator = keys, self.setting.aggregator()
            place = self._place()
            place.commit({ROSTER: self._roster.encode()})
            order = Open("setup", keys)
            party = self._aggregator.setup("server", self.cohort.server, self.cohort, place, self._rng)
            try:
                fingerprint = self.meeting.session(order, party, journal=False)
                self.meeting.confirm(order, str(fingerprint))
            except ProtocolError as error:
                self._say(f"set-up failed: {error}")
                reason = str(error)
                self.meeting.close(order)
                continue
            self.meeting.close(order)
            self._store.commit({"keys": str(keys).encode()})
            return
        raise Aborted(f"The set-up failed {_SETUPS} times; {reason}")

    def _place(self) -> Store:
        return self.exchange.view(f"{self._prefix}keys-{self._keys}/")

    # --- sessions -----------------------------------------------------------------------------------------------------

    def accepted(self, name: str, answer: Answer) -> None:
        """Go on with a node from where it stands."""
        peer = self.meeting.peers[name]
        peer.heard = max(-1, min(answer.heard, self.course.number))
        if name in self.cohort.clients:
            self._witnesses.rejoined(name, answer.head)
        if answer.origin != SystemRandomness.origin:
            self.origin = answer.origin

    def bring_up_to_date(self, name: str, order: Open) -> None:
        """Send a node the releases that it has not heard, and the ledger's lines that it has not seen."""
        if order.kind != "setup":
            self._send_news(name, self.course.number)
            self._send_lines(name)

    def witnessed(self, name: str, told: Witnessed) -> None:
        """Take a node's countersignatures."""
        self._witnesses.signed(name, told)

    def _send_news(self, name: str, until: int) -> None:
        peer, missed, size = self.meeting.peers[name], list[Announcement](), 0
        if (peer.heard + 1, until) == (self._newest[0], self._newest[0]):  # as at most nodes in most rounds
            peer.heard = until
            self.meeting.send(name, NEWS, self._newest[1])
        while peer.heard < until:
            peer.heard += 1
            missed.append(self._released(peer.heard))
            size += 8 * self.course.encoding.length
            if size > _NEWS_BYTES or peer.heard == until:
                news = Announcements(tuple(missed))
                self.meeting.send(name, NEWS, news)
                missed, size = [], 0

    def _released(self, number: int) -> Announcement:
        body = self._store.get(f"sums/{number}")
        assert body is not None
        return decode(body, Announcement, max_bytes=len(body))

    def _send_lines(self, name: str) -> None:
        if name in self.cohort.clients:
            for lines in self._witnesses.lines_for(name):
                self.meeting.send(name, LINES, lines)

    # --- events -------------------------------------------------------------------------------------------------------


def _names(sums: Sums) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(sorted(row)) for row in sums.members)
