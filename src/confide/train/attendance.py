"""Who is there: what a coordinator knows of each member, and how long it waits for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from confide.train.control import Answer

#: Over Flower a node that has started again is asked within 10 s, and its answers take seconds each.
FLOWER_GRACE_SECONDS, FLOWER_GATHER_SECONDS = 60.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the coordinator waits.

    Args:
        stage_seconds: for the slowest node that is connected, local training included.
        grace_seconds: for a node whose connection broke, before a stage goes on without it.
        gather_seconds: at the beginning of a round, for nodes beyond the quorum that are away.
        agree_seconds: before the first round, for every node to accept; then the job ends undone.
    """

    stage_seconds: float = 600.0
    grace_seconds: float = 5.0
    gather_seconds: float = 15.0
    agree_seconds: float = math.inf


@dataclass(slots=True)
class Peer:
    """What the coordinator knows of a member.

    Args:
        here: connected.
        since: when that changed, on the coordinator's clock.
        answer: to the offer.
        heard: the last round whose release was sent to it.
        unable: the sessions in which it takes no part, and why.
        bytes_up, bytes_down: bodies that came from it and went to it, in all.
        seen: when the last one came, for people.
        done: the set-ups that are complete at it, with their fingerprints.
    """

    here: bool = False
    since: float = 0.0
    answer: Answer | None = None
    heard: int = -1
    bytes_up: int = 0
    bytes_down: int = 0
    seen: float = 0.0
    unable: dict[str, str] = field(default_factory=dict[str, str])
    done: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def ready(self) -> bool:
        """Return whether it is connected and takes part in the job."""
        return self.here and self.answer is not None and self.answer.state == "accepted"

    @property
    def refuses(self) -> bool:
        """Return whether it has refused the job or what was done in its name."""
        return self.here and self.answer is not None and self.answer.state == "refused"
