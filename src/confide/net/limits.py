"""What a link puts up with from a peer, and what each peer has used of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one side of a link puts up with. Every figure is generous for honest peers, and finite.

    Args:
        message_bytes: largest body.
        waiting_bytes: bodies that wait to be sent to one peer; a peer that does not read is dropped beyond it.
        arrived_bytes: whole messages of one peer that nobody has taken yet; beyond it, no more is read from it.
        total_bytes: what all peers together may have here, begun or whole; beyond it the greediest is dropped.
        frames_per_second, frames_burst: WebSocket frames of one peer, pings included; beyond it, it is dropped.
        bytes_per_second, bytes_burst: of one peer; beyond it, reading from it waits.
        connections, connections_per_address: at once; further ones are closed at once.
        strangers, strangers_per_address: connections that have not yet shown who they are; when they are too many, the
            oldest of the address that has most of them goes.
        handshake_seconds: until a connection must have shown who it is, and for a whole enrolment.
        ping_seconds: silence after which a peer is asked whether it is there.
        silence_seconds: silence after which a peer is gone, and how long bytes for it may not move.
    """

    message_bytes: int = 256 << 20
    waiting_bytes: int = 512 << 20
    arrived_bytes: int = 64 << 20
    total_bytes: int = 4 << 30
    frames_per_second: float = 2_000.0
    frames_burst: float = 20_000.0
    bytes_per_second: float = 256e6
    bytes_burst: float = 512e6
    connections: int = 4096
    connections_per_address: int = 2048
    strangers: int = 512
    strangers_per_address: int = 128
    handshake_seconds: float = 10.0
    ping_seconds: float = 20.0
    silence_seconds: float = 60.0


class Bucket:
    """What may come at once and per second."""

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self.per_second, self.burst, self.level, self._at = per_second, burst, burst, now

    def take(self, amount: float, now: float) -> float:
        """Return what is left, negative if it was too much."""
        self.level = min(self.burst, self.level + (now - self._at) * self.per_second) - amount
        self._at = now
        return self.level


class Account:
    """What one peer has used, over all its connections: coming again does not give it more.

    Args:
        limits: what it may use.
        now: the loop's time.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.frames = Bucket(limits.frames_per_second, limits.frames_burst, now)
        self.bytes = Bucket(limits.bytes_per_second, limits.bytes_burst, now)
        #: Bytes of whole messages: the loop's thread counts those that came, the other one those that it took.
        self.arrived_bytes = self.taken_bytes = 0
        #: Reads again on the connection that waits until more was taken, if one does.
        self.resume: Callable[[], None] | None = None

    @property
    def held_bytes(self) -> int:
        """Return what has come and nobody has taken."""
        return self.arrived_bytes - self.taken_bytes
