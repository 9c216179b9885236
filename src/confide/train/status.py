"""What people may see of a federation while it runs: one frozen `Status`.

`confide.train.happenings` carries it on. Times are Unix seconds that the caller passes in. A display must not end a
run, so nothing here raises: texts of strangers (names, reasons) become one short line without control characters, and
a hash that is none is left out.

**Guarantees**: a status holds names, roles, counts, bytes, seconds, epsilons, the accuracy that the job releases,
hashes and one-line reasons, and nothing that leads from there to an input, an update, a key or a figure of one node's
records.

**Leaks**: who takes part, who is away or refuses and why, and when.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from confide.guarantee import Guarantee

#: Longest text of each kind, in characters.
NAME_LENGTH, REASON_LENGTH, TEXT_LENGTH = 64, 300, 400


class Phase(StrEnum):
    """What the run as a whole is doing."""

    WAITING = "waiting for nodes"
    APPROVALS = "waiting for approvals"
    SET_UP = "set-up"
    TRAINING = "training"
    EVALUATING = "evaluating"
    DONE = "done"
    FAILED = "failed"


class NodeState(StrEnum):
    """What one member is doing, as far as the coordinator can tell."""

    EXPECTED = "not yet here"
    CONNECTED = "connected"
    ASKING = "waiting for a person"
    REFUSED = "refused"
    WORKING = "working"
    SUMMED = "in the last sum"
    AWAY = "away"


#: States of a member that is connected and has not refused.
PRESENT = (NodeState.CONNECTED, NodeState.ASKING, NodeState.WORKING, NodeState.SUMMED)


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One member of the federation.

    Args:
        name: as in its certificate.
        role: "node", "helper" or "analyst".
        state: what it does; `since_seconds` says since when, `reason` why it refused or left.
        seen_seconds: when something last arrived from it; None before that.
        rounds, last_round: sums that it was in, and the number of the last; 0 if none.
        bytes_up, bytes_down: sent to and received from the coordinator.
    """

    name: str
    role: str = "node"
    state: NodeState = NodeState.EXPECTED
    since_seconds: float
    reason: str = ""
    seen_seconds: float | None = None
    rounds: int = 0
    last_round: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """One finished round.

    Args:
        number: from 1.
        attempts: sums tried for it.
        members: how many nodes are in the sum.
        missing: the first names of those that dropped out.
        smallest_sum: members of the smallest sum that the coordinator saw.
        seconds: the round took, from its offer to its model.
        bytes_up, bytes_down: of all nodes together.
        epsilon: spent up to and including this round; None without differential privacy.
        accuracy: from 0 to 1, if the federation evaluated this model.
        ended_seconds: when.
    """

    number: int
    attempts: int
    members: int
    missing: tuple[str, ...]
    smallest_sum: int
    seconds: float
    bytes_up: int
    bytes_down: int
    epsilon: float | None
    accuracy: float | None
    ended_seconds: float


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a run; `confide.train.happenings` returns the next one.

    Args:
        run: its id.
        job, job_hash: the job's name, and hex SHA-256 of what was agreed.
        phase, reason: what the run does; why it failed.
        aggregator: who adds, by its registry name.
        promises, adversary, leaks: its guarantee in sentences.
        round, rounds: the one that runs or ran last, from 1 (0 before), of how many.
        attempt: of that round, from 1; `failed_attempts` counts those of the whole run that were repeated.
        quorum: smallest number of nodes in a released sum.
        nodes: sorted by role and name.
        history: finished rounds; of long runs the older ones are thinned out.
        epsilon, epsilon_budget: spent so far, failed attempts included, and at most; None without differential privacy.
        ledger_head, model_hash: hex SHA-256; empty before the first.
        started_seconds, updated_seconds: when.
        expected_end_seconds: when the last round ends at the pace of the last ones; None if nobody can tell.
    """

    run: str
    job: str
    job_hash: str
    phase: Phase = Phase.WAITING
    reason: str = ""
    aggregator: str
    promises: tuple[str, ...]
    adversary: str
    leaks: str
    round: int = 0
    rounds: int
    attempt: int = 0
    failed_attempts: int = 0
    quorum: int
    nodes: tuple[Node, ...] = ()
    history: tuple[Finished, ...] = ()
    epsilon: float | None = None
    epsilon_budget: float | None = None
    ledger_head: str = ""
    model_hash: str = ""
    started_seconds: float
    updated_seconds: float
    expected_end_seconds: float | None = None

    @staticmethod
    def start(
        *,
        run: str,
        job: str,
        job_hash: str,
        aggregator: str,
        guarantee: Guarantee,
        rounds: int,
        quorum: int,
        members: Mapping[str, str],
        at_seconds: float,
        epsilon_budget: float | None = None,
    ) -> Status:
        """Return the status of a run that waits for its members.

        Args:
            run, job, job_hash, aggregator, rounds, quorum: as in `Status`.
            guarantee: of the aggregator.
            members: role by name of everybody who is expected.
            at_seconds: now.
            epsilon_budget: what the job may spend; None without differential privacy.
        """
        expected = (
            Node(name=name_of(name), role=name_of(role), since_seconds=at_seconds) for name, role in members.items()
        )
        return Status(
            run=one_line(run, NAME_LENGTH),
            job=one_line(job, NAME_LENGTH),
            job_hash=hash_of(job_hash),
            aggregator=name_of(aggregator),
            promises=tuple(one_line(sentence, TEXT_LENGTH) for sentence in guarantee.sentences()),
            adversary=guarantee.adversary.value,
            leaks=one_line(guarantee.leaks, TEXT_LENGTH),
            rounds=rounds,
            quorum=quorum,
            nodes=in_order(expected),
            epsilon=None if epsilon_budget is None else 0.0,
            epsilon_budget=epsilon_budget,
            started_seconds=at_seconds,
            updated_seconds=at_seconds,
        )

    @property
    def refusals(self) -> tuple[Node, ...]:
        """Return the members that refused."""
        return tuple(node for node in self.nodes if node.state is NodeState.REFUSED)

    @property
    def finished(self) -> int:
        """Return how many rounds have finished."""
        return self.history[-1].number if self.history else 0

    @property
    def present(self) -> int:
        """Return how many nodes are connected and have not refused."""
        return sum(node.role == "node" and node.state in PRESENT for node in self.nodes)


def one_line(text: str, length: int) -> str:
    """Return a text as one line without control or direction characters, cut to `length`."""
    clean = (" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text[: 4 * length])
    words = " ".join("".join(clean).split())
    return words if len(words) <= length else words[: length - 1] + "…"


def name_of(text: str) -> str:
    """Return a text as a name of at most `NAME_LENGTH` characters."""
    return one_line(text, NAME_LENGTH)


def hash_of(text: str) -> str:
    """Return a hex SHA-256 as it is, anything else as an empty text."""
    return text if re.fullmatch("[0-9a-f]{64}", text) else ""


def in_order(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Return nodes before helpers and analysts, each by name."""
    return tuple(sorted(nodes, key=lambda node: (node.role != "node", node.role, node.name)))
