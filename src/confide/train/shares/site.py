"""One process of a training on shares over several machines: its links, and what it says and hears.

    gathering -> begun -> running -> ended -> over

The first server leads: it waits until everybody is there, has everybody begin and go, and ends the run when all parts
are over. Owners and dealer dial both servers, the second server dials the first. Once a run has begun nobody may be
lost: a link that breaks, a message that no honest party sends or a silence that lasts too long ends it at all, each of
whom is told why. Everything but the constructor and `wait` runs in the loop's thread of the mesh.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from confide.errors import Aborted, ConfideError, PrivacyError, ProtocolError
from confide.net.certificates import COORDINATOR, read_member
from confide.net.exchange import Envelope
from confide.net.limits import Limits
from confide.net.link import Arrived, Event, Joined, Left
from confide.net.machine import is_this_machine
from confide.net.mesh import Answer, Mesh
from confide.train.shares.cast import APART, LEAD, SECOND, Cast, Patience, Work
from confide.train.shares.checkpoints import Mark
from confide.train.shares.letters import (
    VERSION,
    Begin,
    Bye,
    Done,
    End,
    Go,
    Hello,
    Letter,
    Progress,
    Ready,
    Stop,
    letter,
    read,
    short,
)
from confide.train.shares.moving import Moving
from confide.wire import Message

#: Correlations of a large step are one message.
LIMITS = Limits(
    frames_per_second=50_000.0, frames_burst=200_000.0, bytes_per_second=4e9, bytes_burst=8e9, arrived_bytes=512 << 20
)
_TICK_SECONDS = 0.5
_TELL_SECONDS = 1.0
#: How long the first server waits until all have written what is theirs.
_BYE_SECONDS = 60.0


class Site:
    """One process.

    Args:
        me: its party.
        cast: who takes part.
        hello: what it says of itself.
        identity: its own, 32 bytes.
        work: what it does.
        patience: how long it waits.
        run_id: at the first server: the id of its run, 32 hex digits.
        say: told in one line what happens.
        broken: told of exceptions that nobody expected.
    """

    def __init__(
        self,
        me: str,
        cast: Cast,
        hello: Hello,
        identity: bytes,
        work: Work,
        *,
        patience: Patience,
        run_id: str = "",
        say: Callable[[str], None] = lambda text: None,
        broken: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.me, self.cast, self.phase = me, cast, "gathering"
        #: What has been found of those who must not share a machine, if that was accepted.
        self.insecure = ""
        self.sent, self.received = dict[str, int](), dict[str, int]()
        self._hello, self._identity, self._work, self._patience = hello, identity, work, patience
        self._run, self._say, self._unexpected = run_id, say, broken
        self._there: dict[str, Hello] = {}
        self._told = dict[str, str]()
        self._ready: dict[str, tuple[Mark, ...]] = {}
        self._marks: tuple[Mark, ...] = ()
        self._rows: dict[str, int] = {}
        self._done: dict[str, str] = {}
        self._gone: set[str] = set()
        self._moving = Moving(me, self._leave, self._finished)
        self._at, self._moved, self._told_at, self._number = time.monotonic(), (0, 0), 0.0, 0
        self._over: Answer[None] = Answer()
        self.mesh = Mesh(self._receive, broken=self._broke, limits=LIMITS, longest_seconds=5.0)
        self.mesh.post(self._tick)

    # --- from another thread ------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Wait for the end.

        Raises:
            ConfideError: why the run could not go on; every other process is told.
        """
        while True:
            try:
                return self._over.result(1.0)
            except TimeoutError:
                continue

    def close(self, reason: str) -> None:
        """End every link; if the run has not ended, the others are told why."""
        self.mesh.call(lambda: self._fail(Aborted(reason)))
        self.mesh.close()

    # --- links --------------------------------------------------------------------------------------------------------

    def _receive(self, event: Event) -> None:
        try:
            self._heard(event)
        except ConfideError as error:
            if self.phase not in ("gathering", "over"):
                self._fail(error)
            raise ProtocolError(short(str(error))) from None
        except Exception as error:
            self._broke(error)
            raise ProtocolError("a failure that nobody expected") from None

    def _broke(self, error: BaseException) -> None:
        self._unexpected(error)
        self._fail(Aborted(f"{self.cast.members[self.me]} failed; its log says where"))

    def _heard(self, event: Event) -> None:
        name = event.peer
        party = self.cast.party(name)
        match event:
            case Joined(_, role):
                if party not in self.cast.meets(self.me) or role != self.cast.role(str(party)):
                    self._refuse(name, f"{name}, a {role}, has no part in this job that {self._own} knows of")
                self._told.pop(name, None)
                self._tell(str(party), self._hello)
            case Left(_, reason):
                self._lost(name, party, reason)
            case Arrived(_, envelope):
                if party is None or envelope.message.src != name:
                    raise ProtocolError("Expected nobody to speak for another")
                if envelope.session:
                    self._put(party, envelope)
                else:
                    self._read(party, read(envelope.message))

    def _lost(self, name: str, party: str | None, reason: str) -> None:
        was_there = self._there.pop(str(party), None) is not None
        if self.phase == "ended" and was_there:
            if self.me == LEAD and party not in self._gone:
                self._say(f"{name} is gone before it said that it has written what is its own")
                self._left_well(str(party))
        elif self.me in self._done and LEAD not in (self.me, party):
            pass  # it may have heard of the end before this process does; the first server knows
        elif self.phase in ("begun", "running") and was_there:
            self._fail(Aborted(f"Expected {name} to stay until the end, it is gone: {reason}"))
        elif self.phase == "gathering" and self._told.get(name) != reason:
            self._told[name] = reason
            self._say(f"{name}: {reason}")

    def _refuse(self, name: str, reason: str) -> None:
        """Tell somebody why it has no part, and end its connection; whoever dialled it cannot go on."""
        self._say(f"refused {name}: {reason}")
        self.mesh.send(name, letter(self._own, name, Stop(short(reason))))
        if self.mesh.dials(name):
            self._fail(ProtocolError(reason))
        raise ProtocolError(short(reason))

    @property
    def _own(self) -> str:
        return self.cast.members[self.me]

    def _tell(self, party: str, body: Letter) -> None:
        name = self.cast.members[party]
        self.mesh.send(name, letter(self._own, name, body))

    def _tell_all(self, body: Letter) -> None:
        for party in sorted(self.cast.meets(self.me) if self.me == LEAD else {LEAD}):
            self._tell(party, body)

    # --- letters ------------------------------------------------------------------------------------------------------

    def _read(self, party: str, body: Letter) -> None:
        name, leads = self.cast.members[party], self.me == LEAD
        match body:
            case Hello():
                self._greeted(party, name, body)
            case Stop(reason):
                self._stopped(name, reason)
            case _ if party not in self._there:
                raise ProtocolError("Expected a hello before anything else")
            case Begin() if party == LEAD and self.phase == "gathering":
                self._begin(body)
            case Go(mark) if party == LEAD and self.phase == "begun" and not self._missing:
                self._go(mark)
            case Progress(number, taken) if party == LEAD:
                self._progress(number, taken)
            case End(ledger) if party == LEAD and self.me in self._done:
                self._end(ledger)
            case Ready(marks) if leads and self.phase == "begun":
                self._ready[party] = marks
                self._all_ready()
            case Done(model) if leads and self.phase == "running":
                self._done[party] = model
                self._all_done()
            case Bye() if leads and self.phase == "ended":
                self._left_well(party)
            case _:
                raise ProtocolError(f"Expected another letter of {name} at this time")

    def _greeted(self, party: str, name: str, hello: Hello) -> None:
        shown = self.mesh.peer(name)
        if party in self._there or shown is None:
            raise ProtocolError("Expected one hello")
        if hello.version != VERSION:
            self._refuse(name, "it speaks another version of these messages; install one version of confide at all")
        if hello.job != self._hello.job:
            self._refuse(
                name, f"the job or the schema of {name} is another than that of {self._own}; compare the files"
            )
        identity, pinned = read_member(shown.certificate).identity, self.cast.identities.get(party)
        if pinned is not None and identity != pinned:
            self._refuse(name, f"{name} shows another identity than the one that is expected; call them")
        if (self.me == LEAD and party not in APART) != bool(hello.rows) and self.me == LEAD:
            self._refuse(name, "owners say how many rows they bring, and nobody else does")
        if party in APART and self.me in APART and (common := self._together(party, name, hello, identity)):
            if not self.cast.one_machine:
                self._refuse(
                    name,
                    f"Expected organisations apart: {common}, so one could open everything; run them on machines of "
                    "different owners. For a trial alone: shares.insecure_colocated_dealer = true",
                )
            if not self.insecure:
                self.insecure = common
                self._say(f"INSECURE: {common}")
        self._there[party] = hello
        self._say(f"{name} is there, a {self.cast.role(party)} with the identity {identity.hex()}")
        if self.me == LEAD and self.phase == "gathering" and not self._missing:
            self._all_there()
        elif self.phase == "begun":
            self._say_ready()

    def _together(self, party: str, name: str, hello: Hello, identity: bytes) -> str:
        """Return what a server or dealer has in common with this process or another one, in words, or ""."""
        address = self.mesh.address(name)
        others = {one: self._there[one] for one in APART if one in self._there and one != party}
        for other, said in {self.me: self._hello, **others}.items():
            member = self.cast.members[other]
            alike = any(hello.machine) and hello.machine == said.machine
            same = address == self.mesh.address(member) if other != self.me else is_this_machine(address)
            if identity == self._identity or alike or (address and same):
                return f"{name} and {member} run on one machine"
        return ""

    def _stopped(self, name: str, reason: str) -> None:
        if self.phase == "gathering" and self.me == LEAD:
            self._say(f"{name} stopped: {short(reason)}")
        else:
            self._fail(Aborted(f"{name} stopped: {short(reason)}"), told=reason)

    @property
    def _missing(self) -> list[str]:
        """Return the members who are not there."""
        return [self.cast.members[one] for one in self.cast.meets(self.me) if one not in self._there]

    # --- from hello to go ---------------------------------------------------------------------------------------------

    def _all_there(self) -> None:
        self._rows = {party: hello.rows for party, hello in self._there.items() if party not in APART}
        rows = {party: self._rows[party] for party in self.cast.members if party in self._rows}
        self._marks, self.phase = self._work.begun(rows), "begun"
        self._tell_all(Begin(self._run, rows))
        self._at = time.monotonic()

    def _begin(self, begin: Begin) -> None:
        owners = [party for party in self.cast.members if party not in APART]
        if len(begin.run) != 32 or not set(begin.run) <= set("0123456789abcdef") or list(begin.rows) != owners:
            raise ProtocolError("Expected the begin of a run with the rows of every owner")
        if self.me in begin.rows and begin.rows[self.me] != self._hello.rows:
            raise ProtocolError("Expected a run with as many rows as there are here")
        self._run, self._marks, self.phase = begin.run, self._work.begun(begin.rows), "begun"
        self._at = time.monotonic()
        self._say_ready()

    def _say_ready(self) -> None:
        if self.me != LEAD and not self._missing:
            self._tell(LEAD, Ready(self._marks))

    def _all_ready(self) -> None:
        if self._ready.keys() == self.cast.meets(LEAD):
            mark = self._work.starts(self._run, self._ready[SECOND])
            self._tell_all(Go(mark))
            self._go(mark)

    def _go(self, mark: Mark | None) -> None:
        self.phase, self._at = "running", time.monotonic()
        self._moving.start(self._work.party(self._run, mark, self._told_progress))

    # --- the run ------------------------------------------------------------------------------------------------------

    def _put(self, party: str, envelope: Envelope) -> None:
        if self.phase == "over":
            return
        if self.phase not in ("begun", "running") or envelope.session != self._run or party not in self._there:
            raise ProtocolError("Expected a message of the run")
        message = envelope.message
        self.received[message.src] = self.received.get(message.src, 0) + len(message.body)
        self._moving.put(Message(party, self.me if message.dst == self._own else "", message.tag, message.body))

    def _leave(self, message: Message) -> None:
        name = self.cast.members[message.dst]
        self.sent[name] = self.sent.get(name, 0) + len(message.body)
        self.mesh.send(name, Envelope(self._run, Message(self._own, name, message.tag, message.body)))

    def _told_progress(self, number: int, taken: int) -> None:
        """Hear of a server's own party how far it is; the first one passes it on."""
        self._work.progressed(taken)
        if self.me == LEAD and time.monotonic() - self._told_at > _TELL_SECONDS:
            self._told_at = time.monotonic()
            self._tell_all(Progress(number, taken))

    def _progress(self, number: int, taken: int) -> None:
        if number > self._number:
            self._number, self._at = number, time.monotonic()
            if self.me != SECOND:
                self._work.progressed(taken)

    def _finished(self, output: Any) -> None:
        self._done[self.me] = self._work.finished(output)
        self._at = time.monotonic()
        if self.me == LEAD:
            self._all_done()
        else:
            self._tell(LEAD, Done(self._done[self.me]))

    def _all_done(self) -> None:
        if self._done.keys() < self.cast.members.keys():
            return
        owners = tuple(self._done[party] for party in self.cast.members if party not in APART)
        head = self._work.agreed(owners)
        self.phase, self._at = "ended", time.monotonic()
        self._tell_all(End(head))

    def _end(self, ledger: str) -> None:
        self._work.ended(ledger)
        self.phase = "ended"
        self._tell(LEAD, Bye())
        self._over.give(None)

    def _left_well(self, party: str) -> None:
        self._gone.add(party)
        if not self.cast.meets(LEAD) - self._gone:
            self._work.over()
            self.phase = "over"
            self._over.give(None)

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def _fail(self, error: ConfideError, *, told: str = "") -> None:
        """End the run here, and tell everybody why: `told` if somebody else was the first to say so."""
        if self.phase == "over" or (self.phase == "ended" and self.me != LEAD):
            return
        self.phase = "over"
        self._moving.close()
        if not told:
            told = (
                str(error) if isinstance(error, ProtocolError | PrivacyError) else "it cannot go on; its log says why"
            )
        for party in self.cast.meets(self.me):
            self._tell(party, Stop(short(told)))
        self._over.fail(error)

    def _tick(self) -> None:
        self.mesh.later(_TICK_SECONDS, self._tick)
        now, patience = time.monotonic(), self._patience
        if self._moving.moves != self._moved[0]:
            self._moved, self._at = (self._moving.moves, 0), now
        waited = now - self._at
        if self.phase == "gathering" and waited > patience.gather_seconds:
            self._fail(Aborted(f"Expected {', '.join(sorted(self._missing)) or COORDINATOR} to come in time"))
        elif self.phase in ("begun", "running") and waited > patience.stage_seconds:
            slow = [self.cast.members[one] for one in self._moving.waits_for] or self._missing or ["the others"]
            self._fail(Aborted(f"Expected {', '.join(slow)} to go on, nothing came for {waited:.0f} s"))
        elif self.phase == "ended" and self.me == LEAD and waited > _BYE_SECONDS:
            absent = sorted(self.cast.members[one] for one in self.cast.meets(LEAD) - self._gone)
            self._fail(Aborted(f"Expected {', '.join(absent)} to say that it has written what is its own"))
