"""What the predictions of one client took so far, as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from confide.ideal import Kit
from confide.serve.parties.messages import Seat
from confide.serve.parties.seats import INSECURE
from confide.serve.parties.sessions import Ended

Link = tuple[str, str]


@runtime_checkable
class Planned(Protocol):
    """A backend that knows, from a client's kit, what a prediction takes."""

    def planned(self, kit: Kit, *, rows: int) -> tuple[int, Mapping[Link, int]]:
        """Return the rounds of a prediction of `rows` rows, and the bytes that roles send each other in it."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """What the predictions of one client were so far.

    Args:
        mode: the backend's name.
        seats: who took part besides the client.
        insecure: why nothing is hidden, "" if that does not apply.
        asked: how many predictions there were, by their rows.
        online_seconds: from order to answer, all predictions together.
        online_bytes: of bodies that this client sent and got, without those of the dealer.
        offline_bytes: of bodies from and to the dealer, and of set-ups, at this client.
        offline_seconds: of set-ups and of correlations dealt ahead; those on demand are in `online_seconds`.
        wanted_ahead: for how many predictions correlations were wanted ahead, if the dealer deals for fewer.
        ahead: for how many it deals.
    """

    mode: str = ""
    seats: tuple[Seat, ...] = ()
    insecure: str = ""
    asked: Mapping[int, int] = field(default_factory=dict[int, int])
    online_seconds: float = 0.0
    online_bytes: int = 0
    offline_bytes: int = 0
    offline_seconds: float = 0.0
    wanted_ahead: int = 0
    ahead: int = 0

    def with_offline(self, ended: Ended) -> Report:
        """Return it with a set-up or a deal more."""
        return replace(
            self,
            offline_bytes=self.offline_bytes + bytes_of(ended),
            offline_seconds=self.offline_seconds + ended.figures.seconds,
        )

    def with_prediction(self, ended: Ended, *, rows: int) -> Report:
        """Return it with a prediction more."""
        figures = ended.figures
        offline = figures.sent.get("dealer", 0) + figures.received.get("dealer", 0)
        return replace(
            self,
            asked={**self.asked, rows: self.asked.get(rows, 0) + 1},
            online_seconds=self.online_seconds + figures.seconds,
            online_bytes=self.online_bytes + bytes_of(ended) - offline,
            offline_bytes=self.offline_bytes + offline,
        )

    def sentences(self, backend: object = None, kit: Kit | None = None) -> list[str]:
        """Return it as lines for people.

        Args:
            backend, kit: that were asked, for what other organisations sent each other, if the backend knows it.
        """
        who = ", ".join(f"{seat.role} {seat.name} ({seat.identity.hex()[:16]})" for seat in self.seats)
        questions, rows = sum(self.asked.values()), sum(size * count for size, count in self.asked.items())
        each = 1e3 * self.online_seconds / max(1, questions)
        first = f"{_many(questions, 'question')} with {_many(rows, 'row')} together: {each:.1f} ms each online"
        offline = f"{self.offline_bytes} offline in {self.offline_seconds:.2f} s"
        links = f"your links: {self.online_bytes} bytes online, {offline}"
        if isinstance(backend, Planned) and kit is not None and self.asked:
            found = {size: backend.planned(kit, rows=size) for size in self.asked}
            rounds = max(count for count, _ in found.values())
            between = sum(count * _between(found[size][1]) for size, count in self.asked.items())
            first += f", {rounds} rounds (messages one after the other)"
            links += f"; between the servers, as planned: {between} bytes online" if between else ""
        lines = [f"mode {self.mode}; {who}", first, links]
        if self.wanted_ahead:
            lines.append(
                f"correlations lie ready for at most {self.ahead} questions, not for ahead={self.wanted_ahead}: the "
                "dealer's --stock allows no more"
            )
        return [f"{INSECURE}: {self.insecure}", *lines] if self.insecure else lines


def bytes_of(ended: Ended) -> int:
    """Return the bytes of bodies that a session sent and received here."""
    return sum(ended.figures.sent.values()) + sum(ended.figures.received.values())


def _between(sent: Mapping[Link, int]) -> int:
    return sum(size for link, size in sent.items() if "client" not in link)


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
