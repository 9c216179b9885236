"""Who takes part in a training on shares over machines, what each does beside talking, and how long it waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from confide.train.shares.checkpoints import Mark
from confide.train.shares.course import DEALER, SERVERS
from confide.wire import Party

LEAD, SECOND = SERVERS
#: Parties of which no two may be one machine or one organisation.
APART = (*SERVERS, DEALER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Who takes part.

    Args:
        members: the member of each party, "server" for the first server.
        identities: that the certificates of parties must show, 32 bytes; those of others are not looked at.
        one_machine: accept servers and dealer on one machine: INSECURE.
    """

    members: Mapping[str, str]
    identities: Mapping[str, bytes]
    one_machine: bool

    def role(self, party: str) -> str:
        """Return what the certificate of a party must say."""
        return {LEAD: "coordinator", SECOND: "helper", DEALER: "dealer"}.get(party, "node")

    def party(self, member: str) -> str | None:
        """Return which party a member is, if one."""
        return next((party for party, name in self.members.items() if name == member), None)

    def meets(self, party: str) -> frozenset[str]:
        """Return whom a party talks to."""
        others = set(SERVERS) if party not in SERVERS else set(self.members)
        return frozenset(others - {party})


class Work(Protocol):
    """What a process does beside talking; a ConfideError of it ends the run."""

    def begun(self, rows: Mapping[str, int]) -> tuple[Mark, ...]:
        """Everybody is there; return the checkpoints that there are here."""
        ...

    def starts(self, run: str, marks: tuple[Mark, ...]) -> Mark | None:
        """At the first server: return where the run begins, of the second server's `marks`."""
        ...

    def party(self, run: str, mark: Mark | None, progress: Callable[[int, int], None]) -> Party:
        """Return the party; `progress` takes how many runs of a program are over, and how many steps."""
        ...

    def finished(self, output: Any) -> str:
        """Take what the party returned; return what `Done` says."""
        ...

    def agreed(self, models: tuple[str, ...]) -> str:
        """At the first server: all parts are over; write what is its own and return what `End` says."""
        ...

    def ended(self, ledger: str) -> None:
        """Elsewhere: the run has ended well; write what is one's own."""
        ...

    def over(self) -> None:
        """At the first server: all have written what is theirs."""
        ...

    def progressed(self, taken: int) -> None:
        """Show how far the run is."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long is waited.

    Args:
        gather_seconds: until everybody is there.
        stage_seconds: for the next thing to happen in a run.
    """

    gather_seconds: float = 86_400.0
    stage_seconds: float = 600.0
