"""How a process reaches its peers: what a driver must offer, and what happens on it.

A link is at most once: what is sent to a peer that is not there is lost, and so is what was on the way when a
connection broke. Whoever uses it hears `Joined` after every (re)connection and sends again what the peer may lack;
an `Inbox` ignores identical repeats. Only the coordinator has several peers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from confide.net.exchange import Envelope


@dataclass(frozen=True, slots=True)
class Joined:
    """A peer is there: authenticated, admitted, and able to take messages; also after each reconnection.

    Args:
        peer: its name.
        role: what its certificate lets it be: "node", "helper", "analyst" or "coordinator".
    """

    peer: str
    role: str


@dataclass(frozen=True, slots=True)
class Left:
    """A peer's connection is gone; `reason` is one line for people."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message from `peer`, whole; its `src` is `peer` unless the peer is the coordinator, which forwards."""

    peer: str
    envelope: Envelope


Event = Joined | Left | Arrived


class Link(Protocol):
    """A driver, seen from the one thread that runs the parties."""

    def send(self, peer: str, envelope: Envelope) -> None:
        """Queue a message; it is lost if the peer is not there. Never blocks for long."""
        ...

    def receive(self, timeout_seconds: float) -> Event | None:
        """Return the next event, or None if there is none within the time."""
        ...

    def close(self) -> None:
        """End every connection and the driver's own threads."""
        ...
