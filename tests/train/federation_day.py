"""A day in the life of a federation, told to a board: what the tests of status, page and terminal look at."""

from __future__ import annotations

from confide.secagg.masked import Masked
from confide.train.board import Board
from confide.train.status import Phase, Status

JOB_HASH, MODEL_HASH, LEDGER_HASH = "ab" * 32, "cd" * 32, "ef" * 32
NODES = ("east", "north", "south", "west")
MEMBERS = {**dict.fromkeys(NODES, "node"), "escrow": "helper"}


def begun(*, rounds: int = 3, epsilon_budget: float | None = 1.0) -> Board:
    """A run at 100 s of which nobody has joined."""
    return Board(
        Status.start(
            run="run-7",
            job="heart",
            job_hash=JOB_HASH,
            aggregator="masked",
            guarantee=Masked(colluding=1).guarantee,
            rounds=rounds,
            quorum=3,
            members=MEMBERS,
            at_seconds=100.0,
            epsilon_budget=epsilon_budget,
        )
    )


def gathered(**options) -> Board:
    """The same with everybody there at 110 s, one node refused, and the set-up begun."""
    board = begun(**options)
    for name, role in MEMBERS.items():
        board.node_joined(name, role=role, at_seconds=110.0)
    board.phase_begun(Phase.APPROVALS, at_seconds=110.0)
    board.node_asks("north", at_seconds=111.0)
    board.node_refused("west", reason="policy: epsilon=1 is above what is left", at_seconds=112.0)
    board.node_approved("north", at_seconds=119.0)
    board.phase_begun(Phase.SET_UP, at_seconds=120.0)
    return board


def take_round(board: Board, number: int, *, at_seconds: float, seconds: float = 5.0) -> None:
    """One round among all but west, from `at_seconds` on."""
    asked = {"east", "north", "south"}
    end = at_seconds + seconds
    board.round_begun(number, attempt=1, asked=asked, at_seconds=at_seconds)
    for name in sorted(asked):
        board.node_seen(name, bytes_up=1000 * number, bytes_down=500 * number, at_seconds=end - 1)
        board.node_answered(name, at_seconds=end - 1)
    board.charged(epsilon=number / 10, at_seconds=end)
    board.round_done(
        members=asked,
        missing=set(),
        smallest_sum=3,
        seconds=seconds,
        bytes_up=3000,
        bytes_down=1500,
        epsilon=number / 10,
        model_hash=MODEL_HASH,
        at_seconds=end,
    )
    board.ledger_written(head=LEDGER_HASH, at_seconds=end)
