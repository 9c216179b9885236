"""Those who take part in a run, as its coordinator meets them: who is here, who waits, and one session at a time.

A session is the server's party of a protocol with its messages to and from members. It goes on although members vanish:
each has a while to come back, is told again what it may have missed, and is then left out. What the sessions are about
is the coordinator's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from confide.errors import Aborted, ProtocolError
from confide.ideal import Cohort
from confide.net.exchange import Envelope, Exchange
from confide.net.link import Arrived, Event, Joined, Left, Link
from confide.train.attendance import Patience, Peer
from confide.train.board import Board
from confide.train.control import (
    ANSWER,
    CLOSE,
    MAX_CONTROL_BYTES,
    OFFER,
    OPEN,
    READY,
    UNABLE,
    WITNESSED,
    Answer,
    Open,
    Ready,
    Reason,
    Witnessed,
    control,
    plain,
    session_id,
)
from confide.train.offer import Offer
from confide.train.status import Phase
from confide.wire import Party, decode


class Chair(Protocol):
    """What a meeting asks of its coordinator."""

    def accepted(self, name: str, answer: Answer) -> None:
        """Take note of a member that takes part, from where it stands."""
        ...

    def bring_up_to_date(self, name: str, order: Open) -> None:
        """Send a member what it has to know before it takes part in a session."""
        ...

    def witnessed(self, name: str, told: Witnessed) -> None:
        """Take a member's countersignatures."""
        ...


class Meeting:
    """The members of one run.

    Args:
        chair: decides what is done, and is told.
        offer: sent to everybody who joins.
        cohort: the nodes, and the names of the server and the helper.
        roles: "client", or what the aggregator calls it, by name; the server's apart.
        exchange: plays the server's parties.
        link: reaches the members.
        patience: how long anybody is waited for.
        board: is told what happens.
        say: told in one line what the board does not show.
        clock: seconds that never go back.
        wall: seconds since 1970.

    `live` is the session on its way, and what opened it.
    """

    def __init__(
        self,
        chair: Chair,
        offer: Offer,
        cohort: Cohort,
        roles: Mapping[str, str],
        *,
        exchange: Exchange,
        link: Link,
        patience: Patience,
        board: Board,
        say: Callable[[str], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.cohort, self.exchange, self.board = cohort, exchange, board
        self.live: tuple[str, Open] | None = None
        now = clock()
        self.peers = {name: Peer(since=now) for name in roles}
        self._chair, self._offer, self._run, self._prefix = chair, offer, offer.run, f"run/{offer.run}/"
        self._link, self._patience, self._say, self._clock, self._wall = link, patience, say, clock, wall

    def send(self, name: str, tag: str, body: Any = b"", *, session: str = "") -> None:
        """Send a control message."""
        self._post(name, control(self.cohort.server, name, tag, body, session=session))

    def _post(self, name: str, envelope: Envelope) -> None:
        self.peers[name].bytes_down += len(envelope.message.body)
        self._link.send(name, envelope)

    def tell_traffic(self) -> None:
        """Bring the board's bytes and times of each member up to date."""
        totals = {name: (peer.bytes_up, peer.bytes_down, peer.seen) for name, peer in self.peers.items()}
        self.board.traffic(totals, at_seconds=self._wall())

    @property
    def ready(self) -> list[str]:
        """Return who is here and takes part."""
        return [name for name, peer in self.peers.items() if peer.ready]

    def wait_for_all(self) -> None:
        """Wait until every member is here and takes part."""
        while len(self.ready) < len(self.peers):
            self.pump(0.5)

    def recruit(self) -> None:
        """Wait until every node has accepted.

        Raises:
            Aborted: all have answered, and some refuse; or some have not answered in time.
        """
        begin, within_seconds = self._clock(), self._patience.agree_seconds
        while not all(peer.ready for peer in self.peers.values()):
            asks = any(peer.answer and peer.answer.state == "pending" for peer in self.peers.values())
            if self.board.snapshot().phase is not (phase := Phase.APPROVALS if asks else Phase.WAITING):
                self.board.phase_begun(phase, at_seconds=self._wall())
            answers = {name: peer.answer for name, peer in self.peers.items()}
            if all(answer is not None and answer.state != "pending" for answer in answers.values()):
                refused = [
                    f"{name}: {answer.reason}"
                    for name, answer in answers.items()
                    if answer and answer.state == "refused"
                ]
                if refused:
                    raise Aborted(f"Expected every node to accept the job; {'; '.join(refused)}")
            if self._clock() - begin > within_seconds:
                silent = ", ".join(name for name, peer in self.peers.items() if not peer.ready)
                raise Aborted(
                    f"Expected every node to accept the job within {within_seconds / 3600:g} hours; waited for {silent}"
                )
            self.pump(0.5)

    def gather(self) -> None:
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
            hopeful = [name for name, peer in self.peers.items() if not peer.ready and not self.is_lost(name)]
            if enough and not (hopeful and patient):
                return
            if not enough and not patient and not waiting:
                waiting = True
                away = ", ".join(sorted(set(self.peers) - set(ready)))
                self._say(f"waiting for quorum={self.cohort.quorum} nodes; away: {away}")
            self.pump(0.2)

    def is_lost(self, name: str) -> bool:
        """Return whether there is no use in waiting for a member now: away for long, refusing, or asking its people."""
        peer = self.peers[name]
        if peer.here:
            return peer.answer is not None and not peer.ready
        return self._clock() - peer.since > self._patience.grace_seconds

    def confirm(self, order: Open, fingerprint: str) -> None:
        """Wait until everybody has what the set-up gave it, and the same: without it a node is out of every sum.

        Raises:
            Aborted: somebody has left, or has something else.
        """
        session = session_id(self._run, order)
        while missing := [name for name, peer in self.peers.items() if session not in peer.done]:
            if any(self._is_out(name, session) for name in missing):
                raise Aborted(f"Expected the set-up to be complete at {', '.join(missing)}")
            self.pump(0.2)
        if others := [name for name in self.cohort.clients if self.peers[name].done[session] != fingerprint]:
            raise Aborted(f"Expected one fingerprint of the set-up, {', '.join(others)} found another")

    def session(self, order: Open, party: Party, *, journal: bool) -> Any:
        """Play the server's party of a session to its end, and return its output."""
        session = session_id(self._run, order)
        self.live = session, order
        prefix = f"{self._prefix}keys-{order.keys}/"
        self.exchange.open(session, party, me=self.cohort.server, prefix=prefix, journal=journal)
        for name, peer in self.peers.items():
            if peer.ready:
                self._bring_in(name)
        self.flush()
        stage, begun = "", self._clock()
        while self.exchange.is_open(session):
            tag, missing = self.exchange.waiting_for(session)
            if tag != stage:
                stage, begun = tag, self._clock()
            late = self._clock() - begun > self._patience.stage_seconds
            if late or (missing and all(self._is_out(name, session) for name in missing)):
                self.exchange.close_stage(session)
            else:
                self.pump(0.05 if any(not self.peers[name].here for name in missing) else 0.5)
            if self.exchange.pending:
                self.flush()
        return self.exchange.output(session)

    def unable_helper(self, order: Open) -> bool:
        """Return whether somebody who is no node has said that it cannot take part in a session."""
        session = session_id(self._run, order)
        return any(session in peer.unable for name, peer in self.peers.items() if name not in self.cohort.clients)

    def _is_out(self, name: str, session: str) -> bool:
        peer = self.peers[name]
        return session in peer.unable or self.is_lost(name)

    def _bring_in(self, name: str) -> None:
        """Tell a member of the live session: what it has not heard, the order, and what was sent to it already."""
        if self.live is None:
            return
        session, order = self.live
        self._chair.bring_up_to_date(name, order)
        self.peers[name].unable.pop(session, None)
        self.send(name, OPEN, order, session=session)
        for envelope in self.exchange.sent(session, name):
            self._post(name, envelope)

    def close(self, order: Open) -> None:
        session = session_id(self._run, order)
        self.exchange.forget(session)
        self.live = None
        for name, peer in self.peers.items():
            peer.unable.pop(session, None)
            peer.done.pop(session, None)
            if peer.here:
                self.send(name, CLOSE, session=session)

    def figures(self, order: Open) -> tuple[dict[str, int], dict[str, float]]:
        figures = self.exchange.figures(session_id(self._run, order))
        server = self.cohort.server
        bytes_up = dict.fromkeys(self.peers, 0) | {server: figures.bytes_up} | figures.bytes_down
        return bytes_up, {server: figures.seconds}

    def pump(self, seconds: float) -> None:
        """Take in the next event, if one comes within `seconds`."""
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
                self.send(name, OFFER, self._offer)
            case Left(name, reason):
                peer.here, peer.since = False, self._clock()
                self.board.node_left(name, reason=reason, at_seconds=self._wall())
            case Arrived(name, envelope):
                peer.bytes_up, peer.seen = peer.bytes_up + len(envelope.message.body), self._wall()
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
            reason = plain(decode(message.body, Reason, max_bytes=MAX_CONTROL_BYTES).reason)
            if self._is_live(envelope) and envelope.session not in peer.unable:
                peer.unable[envelope.session] = reason
                self._say(f"{name} is out of {envelope.session}: {reason}")
        elif message.tag == WITNESSED:
            self._chair.witnessed(name, decode(message.body, Witnessed, max_bytes=MAX_CONTROL_BYTES))
        elif message.tag == READY:
            if self._is_live(envelope):
                peer.done[envelope.session] = decode(message.body, Ready, max_bytes=MAX_CONTROL_BYTES).fingerprint
        elif self.exchange.knows(envelope.session) or not envelope.session.startswith(f"{self._run}/"):
            self.exchange.put(envelope)  # else it comes late to a session that is over

    def _is_live(self, envelope: Envelope) -> bool:
        """Return whether a message is about the session on its way: nothing is remembered of others."""
        return self.live is not None and self.live[0] == envelope.session

    def _answered(self, name: str, peer: Peer, answer: Answer) -> None:
        if answer.run != self._run:
            raise ProtocolError("Expected an answer about the current run")
        before = peer.answer.state if peer.answer else "pending"
        if before == "refused" or (before == "accepted" and answer.state == "pending"):
            raise ProtocolError("Expected no other answer to an offer that was answered")
        answer = msgspec.structs.replace(answer, reason=plain(answer.reason), origin=plain(answer.origin))
        peer.answer = answer
        if answer.state == "pending":
            self.board.node_asks(name, reason=answer.reason, at_seconds=self._wall())
        elif answer.state == "refused":
            self.board.node_refused(name, reason=answer.reason, at_seconds=self._wall())
        else:
            self.board.node_approved(name, at_seconds=self._wall())
        if answer.state != "accepted" or before == "accepted":
            return  # once for each offer: what follows is larger than an answer
        self._chair.accepted(name, answer)
        self._bring_in(name)

    def flush(self) -> None:
        """Commit, then send."""
        for envelope in self.exchange.take():
            self._post(envelope.message.dst, envelope)
