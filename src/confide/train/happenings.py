"""What happens to a federation: pure functions, each from a status and what happened to the next status.

None raises and none reads a clock; `confide.train.board.Board` has a method of the same name for each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from msgspec.structs import replace

from confide.train.status import (
    PRESENT,
    REASON_LENGTH,
    Finished,
    Node,
    NodeState,
    Phase,
    Status,
    hash_of,
    in_order,
    name_of,
    one_line,
)

#: Finished rounds that a status keeps; the ledger keeps all of them.
HISTORY_KEPT = 600

_RECENT_KEPT = 200  # of these, the last ones, without gaps
_OLD_KEPT = 300  # and at most as many of the others, after they were thinned
_PACE_ROUNDS = 20  # over which the time that is left is estimated
_MISSING_NAMED = 20

# --- members ----------------------------------------------------------------------------------------------------------


def node_joined(status: Status, name: str, *, role: str, at_seconds: float) -> Status:
    """A member has connected, or connected again."""
    return _moved(status, name, NodeState.CONNECTED, at_seconds, role=name_of(role), seen_seconds=at_seconds)


def node_left(status: Status, name: str, *, reason: str, at_seconds: float) -> Status:
    """A connection is gone; a refusal stays one."""
    if _find(status, name).state is NodeState.REFUSED:
        return replace(status, updated_seconds=at_seconds)
    return _moved(status, name, NodeState.AWAY, at_seconds, reason)


def node_seen(status: Status, name: str, *, bytes_up: int, bytes_down: int, at_seconds: float) -> Status:
    """Something has arrived from a member; the bytes are its totals so far."""
    node = _find(status, name, at_seconds)
    return _put(status, replace(node, seen_seconds=at_seconds, bytes_up=bytes_up, bytes_down=bytes_down), at_seconds)


def traffic(status: Status, totals: Mapping[str, tuple[int, int, float]], *, at_seconds: float) -> Status:
    """Bytes from and to each member so far, and when something came last; all at once, since members may be many."""

    def counted(node: Node) -> Node:
        if node.name not in totals:
            return node
        up, down, seen = totals[node.name]
        return replace(node, bytes_up=up, bytes_down=down, seen_seconds=max(seen, node.seen_seconds or 0.0) or None)

    return _each(status, counted, at_seconds)


def node_asks(status: Status, name: str, *, reason: str = "", at_seconds: float) -> Status:
    """A node waits for a person to approve the job."""
    return _moved(status, name, NodeState.ASKING, at_seconds, reason)


def node_approved(status: Status, name: str, *, at_seconds: float) -> Status:
    """A node takes part in the job."""
    return _moved(status, name, NodeState.CONNECTED, at_seconds)


def node_refused(status: Status, name: str, *, reason: str, at_seconds: float) -> Status:
    """A node does not take part, and says why."""
    return _moved(status, name, NodeState.REFUSED, at_seconds, reason)


def node_answered(status: Status, name: str, *, at_seconds: float) -> Status:
    """A node has sent everything that its round needs from it."""
    return _moved(status, name, NodeState.CONNECTED, at_seconds, seen_seconds=at_seconds)


# --- the run ----------------------------------------------------------------------------------------------------------


def phase_begun(status: Status, phase: Phase, *, at_seconds: float) -> Status:
    """The run has come to another phase."""
    return replace(status, phase=phase, updated_seconds=at_seconds)


def round_begun(status: Status, number: int, *, attempt: int, asked: Collection[str], at_seconds: float) -> Status:
    """A round is tried among those in `asked`; of them, whoever is connected works on it."""

    def works(node: Node) -> Node:
        there = node.name in asked and node.state in PRESENT
        return _in_state(node, NodeState.WORKING, at_seconds) if there else node

    begun = replace(status, phase=Phase.TRAINING, round=number, attempt=attempt)
    return _each(begun, works, at_seconds)


def charged(status: Status, *, epsilon: float, at_seconds: float) -> Status:
    """A release has been charged; `epsilon` is what the run has spent so far."""
    return replace(status, epsilon=epsilon, updated_seconds=at_seconds)


def round_failed(status: Status, *, at_seconds: float) -> Status:
    """The attempt that ran has released no sum; what it was charged stays charged."""
    return _at_rest(replace(status, failed_attempts=status.failed_attempts + 1), at_seconds)


def round_done(
    status: Status,
    *,
    members: Collection[str],
    missing: Collection[str],
    smallest_sum: int,
    seconds: float,
    bytes_up: int,
    bytes_down: int,
    at_seconds: float,
    epsilon: float | None = None,
    model_hash: str = "",
) -> Status:
    """The round that ran has finished; the arguments are those of `Finished` and `Status`, members by name."""
    done = Finished(
        number=status.round,
        attempts=max(1, status.attempt),
        members=len(members),
        missing=tuple(name_of(name) for name in sorted(missing)[:_MISSING_NAMED]),
        smallest_sum=smallest_sum,
        seconds=seconds,
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        epsilon=epsilon,
        accuracy=None,
        ended_seconds=at_seconds,
    )

    def counted(node: Node) -> Node:
        if node.name not in members:
            return node
        node = replace(node, rounds=node.rounds + 1, last_round=status.round)
        return _in_state(node, NodeState.SUMMED, at_seconds) if node.state in PRESENT else node

    after = _each(_at_rest(status, at_seconds), counted, at_seconds)
    after = replace(
        after,
        history=_thinned((*status.history, done)),
        epsilon=status.epsilon if epsilon is None else epsilon,
        model_hash=hash_of(model_hash) or status.model_hash,
    )
    return replace(after, expected_end_seconds=_expected_end(after))


def evaluated(status: Status, number: int, *, accuracy: float, at_seconds: float) -> Status:
    """The federation has evaluated the model of a round: `accuracy` is of all test records together."""
    history = tuple(replace(one, accuracy=accuracy) if one.number == number else one for one in status.history)
    return replace(status, history=history, updated_seconds=at_seconds)


def ledger_written(status: Status, *, head: str, at_seconds: float) -> Status:
    """The ledger's last line has this hash."""
    return replace(status, ledger_head=hash_of(head), updated_seconds=at_seconds)


def run_done(status: Status, *, model_hash: str, at_seconds: float) -> Status:
    """The run has its model."""
    ended = replace(status, phase=Phase.DONE, reason="", expected_end_seconds=None)
    return _at_rest(replace(ended, model_hash=hash_of(model_hash) or status.model_hash), at_seconds)


def run_failed(status: Status, *, reason: str, at_seconds: float) -> Status:
    """The run has ended without its model."""
    reason = one_line(reason, REASON_LENGTH)
    return _at_rest(replace(status, phase=Phase.FAILED, reason=reason, expected_end_seconds=None), at_seconds)


# --- inside -----------------------------------------------------------------------------------------------------------


def _find(status: Status, name: str, at_seconds: float = 0.0) -> Node:
    """Return the member of that name, a new one if there is none."""
    clean = name_of(name)
    found = (node for node in status.nodes if node.name == clean)
    return next(found, None) or Node(name=clean, since_seconds=at_seconds)


def _put(status: Status, node: Node, at_seconds: float) -> Status:
    place = next((place for place, one in enumerate(status.nodes) if one.name == node.name), None)
    if place is not None and status.nodes[place].role == node.role:
        nodes = (*status.nodes[:place], node, *status.nodes[place + 1 :])
    else:
        nodes = in_order((*(one for one in status.nodes if one.name != node.name), node))
    return replace(status, nodes=nodes, updated_seconds=at_seconds)


def _in_state(node: Node, state: NodeState, at_seconds: float, reason: str = "") -> Node:
    since = node.since_seconds if node.state is state else at_seconds
    return replace(node, state=state, since_seconds=since, reason=one_line(reason, REASON_LENGTH))


def _moved(
    status: Status, name: str, state: NodeState, at_seconds: float, reason: str = "", **changes: str | float
) -> Status:
    node = _in_state(_find(status, name, at_seconds), state, at_seconds, reason)
    return _put(status, replace(node, **changes), at_seconds)


def _each(status: Status, change: Callable[[Node], Node], at_seconds: float) -> Status:
    return replace(status, nodes=tuple(map(change, status.nodes)), updated_seconds=at_seconds)


def _at_rest(status: Status, at_seconds: float) -> Status:
    """Return the status with nobody at work."""

    def rests(node: Node) -> Node:
        return _in_state(node, NodeState.CONNECTED, at_seconds) if node.state is NodeState.WORKING else node

    return _each(status, rests, at_seconds)


def _thinned(history: tuple[Finished, ...]) -> tuple[Finished, ...]:
    """Return at most `HISTORY_KEPT` rounds: the last ones without gaps, the others at even distances.

    One round stands for 2, 4, 8 ... of the older ones, the first that was evaluated if there is one: accuracy may be
    known of few.
    """
    if len(history) <= HISTORY_KEPT:
        return history
    old, recent = history[:-_RECENT_KEPT], history[-_RECENT_KEPT:]
    stride = 1
    while old[-1].number > stride * _OLD_KEPT:
        stride *= 2
    kept: dict[int, Finished] = {}
    for one in old:
        there = kept.setdefault((one.number - 1) // stride, one)
        if there.accuracy is None and one.accuracy is not None:
            kept[(one.number - 1) // stride] = one
    return (*kept.values(), *recent)


def _expected_end(status: Status) -> float | None:
    if status.phase in (Phase.DONE, Phase.FAILED) or not status.history:
        return None
    recent = status.history[-_PACE_ROUNDS:]
    first, last = recent[0], recent[-1]
    begun = first.ended_seconds - first.seconds
    pace = (last.ended_seconds - begun) / (last.number - first.number + 1)
    return last.ended_seconds + max(0.0, pace) * max(0, status.rounds - last.number)
