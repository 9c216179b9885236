"""The board on which a run writes its status: one thread writes, others read what it looked like at a moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import msgspec

from confide.train import happenings
from confide.train.exposition import exposition
from confide.train.status import Status

_P = ParamSpec("_P")


def _posted(reducer: Callable[Concatenate[Status, _P], Status]) -> Callable[Concatenate[Board, _P], None]:
    """Return a method that moves a board's status on by `reducer`, with the same arguments."""

    def post(self: Board, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        self.change(lambda status: reducer(status, *args, **kwargs))

    post.__name__, post.__doc__ = reducer.__name__, reducer.__doc__
    return post


class Board:
    """Holds the status of one run; every method may be called from any thread.

    Args:
        status: from `Status.start`.

    Example:
        >>> from confide.guarantee import nothing_hidden
        >>> board = Board(Status.start(run="r1", job="heart", job_hash="0" * 64, aggregator="plain",
        ...     guarantee=nothing_hidden("all"), rounds=3, quorum=1, members={"north": "node"}, at_seconds=0.0))
        >>> board.node_joined("north", role="node", at_seconds=1.0)
        >>> board.snapshot().nodes[0].state.value
        'connected'
    """

    def __init__(self, status: Status) -> None:
        self._lock = threading.Lock()
        self._status = status
        self._encoded: tuple[Status, bytes] | None = None

    node_joined = _posted(happenings.node_joined)
    node_left = _posted(happenings.node_left)
    node_seen = _posted(happenings.node_seen)
    traffic = _posted(happenings.traffic)
    node_asks = _posted(happenings.node_asks)
    node_approved = _posted(happenings.node_approved)
    node_refused = _posted(happenings.node_refused)
    node_answered = _posted(happenings.node_answered)
    phase_begun = _posted(happenings.phase_begun)
    round_begun = _posted(happenings.round_begun)
    charged = _posted(happenings.charged)
    round_failed = _posted(happenings.round_failed)
    round_done = _posted(happenings.round_done)
    evaluated = _posted(happenings.evaluated)
    ledger_written = _posted(happenings.ledger_written)
    run_done = _posted(happenings.run_done)
    run_failed = _posted(happenings.run_failed)

    def change(self, reducer: Callable[[Status], Status]) -> None:
        """Replace the status by what `reducer` makes of it."""
        with self._lock:
            self._status = reducer(self._status)

    def snapshot(self) -> Status:
        """Return the status at this moment."""
        with self._lock:
            return self._status

    def json(self) -> bytes:
        """Return the status at this moment as JSON; the same bytes as long as nothing has happened."""
        status = self.snapshot()
        encoded = self._encoded
        if encoded is None or encoded[0] is not status:
            encoded = self._encoded = (status, msgspec.json.encode(status))
        return encoded[1]

    def metrics(self) -> bytes:
        """Return the status at this moment in Prometheus's text format."""
        return exposition(self.snapshot())
