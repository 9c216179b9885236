"""What coordinator and node show: lines of a terminal that follow the run, one line per event elsewhere."""

from __future__ import annotations

import re
import threading
from io import StringIO

import pytest
from msgspec.structs import replace
from rich.console import Console

from confide.cli.progress import (
    NodeView,
    coordinator_display,
    duration,
    node_display,
    node_lines,
    run_lines,
)
from confide.train.board import Board
from train.federation_day import MODEL_HASH, begun, gathered, take_round


class Teller:
    """Collects the lines that each step of a board yields."""

    def __init__(self, board: Board) -> None:
        self.board, self.before = board, board.snapshot()

    def since(self) -> list[str]:
        before, self.before = self.before, self.board.snapshot()
        return list(run_lines(before, self.before))


def plain() -> tuple[Console, StringIO]:
    file = StringIO()
    return Console(file=file, soft_wrap=True, markup=False, highlight=False), file


def terminal() -> tuple[Console, StringIO]:
    file = StringIO()
    return Console(file=file, force_terminal=True, width=100, markup=False, highlight=False), file


def shown(file: StringIO) -> str:
    """What a terminal displays, without the codes that move its cursor and colour it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


# --- one line per event -----------------------------------------------------------------------------------------------


def test_a_log_tells_what_happens_once_and_in_order():
    board = begun()
    assert list(run_lines(None, board.snapshot())) == [
        "run run-7 of job heart: 3 rounds, sums of at least 3 nodes by masked",
        "waiting for nodes",
    ]
    tell = Teller(board)
    assert tell.since() == []
    for name in ("east", "north", "south", "west"):
        board.node_joined(name, role="node", at_seconds=101.0)
    board.node_joined("escrow", role="helper", at_seconds=101.0)
    assert tell.since() == [f"{name} is connected" for name in ("east", "north", "south", "west", "escrow (helper)")]
    board.node_asks("north", at_seconds=102.0)
    board.node_refused("west", reason="model mlp is not in my policy", at_seconds=102.0)
    assert tell.since() == ["north is waiting for a person", "west refused: model mlp is not in my policy"]
    board.node_approved("north", at_seconds=103.0)
    assert tell.since() == ["north takes part"]
    board.round_begun(1, attempt=1, asked={"east", "north", "south"}, at_seconds=104.0)
    assert tell.since() == ["training"]
    board.node_answered("east", at_seconds=105.0)
    assert tell.since() == []  # at work or not is no event
    board.node_left("south", reason="connection closed", at_seconds=106.0)
    board.round_failed(at_seconds=107.0)
    assert tell.since() == [
        "south is away: connection closed",
        "round 1: an attempt released no sum (1 in this run)",
    ]


def test_rounds_are_told_however_many_have_passed_between_two_looks():
    board = gathered()
    tell = Teller(board)
    for number in (1, 2):
        take_round(board, number, at_seconds=110.0 + 10 * number)
    board.evaluated(2, accuracy=0.915, at_seconds=140.0)
    assert tell.since() == [
        "training",
        "round 1 of 3: 3 nodes, 5 s, 4.5 kB, epsilon 0.1 of 1",
        "round 2 of 3: 3 nodes, 5 s, 4.5 kB, epsilon 0.2 of 1",
        "accuracy after round 2: 91.5 %",
    ]
    board.round_begun(3, attempt=2, asked=set(), at_seconds=150.0)
    board.round_done(
        members={"east"}, missing={"north"}, smallest_sum=1, seconds=65.0, bytes_up=2, bytes_down=1, at_seconds=160.0
    )
    assert tell.since() == ["round 3 of 3: 1 node, without north, 2 attempts, 1 min 5 s, 3 B"]
    board.run_done(model_hash=MODEL_HASH, at_seconds=170.0)
    assert tell.since() == [f"done after 3 rounds; the model is {MODEL_HASH}"]


def test_thinned_rounds_are_not_told_again():
    board = gathered(rounds=2000)
    for number in range(1, 602):
        take_round(board, number, at_seconds=110.0 + 10 * number)
        if number == 600:
            tell = Teller(board)
    assert tell.since() == ["round 601 of 2000: 3 nodes, 5 s, 4.5 kB, epsilon 60.1 of 1"]


def test_a_failure_says_why():
    board = gathered()
    tell = Teller(board)
    board.run_failed(reason="round 1 lost its quorum", at_seconds=130.0)
    assert tell.since() == ["failed: round 1 lost its quorum"]


def test_a_pipe_gets_lines_without_codes():
    to, file = plain()
    board = gathered()
    with coordinator_display(to) as display:
        display.show(board.snapshot())
        display.show(board.snapshot())
        board.node_refused("east", reason="[bold]no[/bold] \x1b[31m", at_seconds=130.0)
        display.show(board.snapshot())
    assert file.getvalue().splitlines() == [
        "run run-7 of job heart: 3 rounds, sums of at least 3 nodes by masked",
        "set-up",
        *(f"{name} is connected" for name in ("east", "north", "south")),
        "west refused: policy: epsilon=1 is above what is left",
        "escrow (helper) is connected",
        "east refused: [bold]no[/bold] [31m",
    ]


# --- a terminal -------------------------------------------------------------------------------------------------------


def test_a_terminal_shows_phase_rounds_nodes_and_budget():
    to, file = terminal()
    board = gathered()
    threads = set(threading.enumerate())
    with coordinator_display(to) as display:
        take_round(board, 1, at_seconds=120.0)
        board.evaluated(1, accuracy=0.875, at_seconds=126.0)
        display.show(board.snapshot())
    for thread in set(threading.enumerate()) - threads:  # the one that drew has been told to end
        thread.join(timeout=10)
    assert set(threading.enumerate()) == threads
    text = shown(file)
    for words in (
        "heart  training  run run-7",
        "1/3",
        "round 1 of 3, epsilon 0.1 of 1, accuracy 87.5 %",
        "in the last sum",
        "policy: epsilon=1 is above what is left",
        "1 sum",
        "helper",
    ):
        assert words in text
    assert text.index("west") < text.index("east")  # who needs somebody comes first


def test_a_terminal_of_a_large_federation_stays_small():
    to, file = terminal()
    board = begun()
    for number in range(100):
        board.node_joined(f"n{number:03}", role="node", at_seconds=101.0)
    board.node_refused("n077", reason="no", at_seconds=102.0)
    with coordinator_display(to) as display:
        display.show(board.snapshot())
    last = shown(file).rstrip().splitlines()[-17:]
    assert last[-1].strip() == "and 93 more"
    assert any("n077" in line for line in last)


def test_a_terminal_shows_why_a_run_failed():
    to, file = terminal()
    board = begun(epsilon_budget=None)
    board.run_failed(reason="round 1 lost its quorum", at_seconds=130.0)
    with coordinator_display(to) as display:
        display.show(board.snapshot())
    assert "round 1 lost its quorum" in shown(file)
    assert "epsilon" not in shown(file)


def test_hostile_words_move_no_cursor():
    """Codes of a terminal (here: clear it, ring, set the title) never get as far as a status."""
    board = gathered()
    board.node_refused("east", reason="\x1b[2J\x07\x1b]0;owned\x07\u202e", at_seconds=130.0)
    to, file = plain()
    with coordinator_display(to) as display:
        display.show(board.snapshot())
    assert "[2J ]0;owned" in file.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", file.getvalue())


# --- a node -----------------------------------------------------------------------------------------------------------

VIEW = NodeView(name="north", coordinator="wss://fed.example:8443", phase="waiting for the coordinator")


def moved(view: NodeView, **changes) -> NodeView:
    return NodeView(**{name: getattr(view, name) for name in NodeView.__slots__} | changes)


def test_a_node_tells_what_it_waits_for_and_what_it_took_part_in():
    assert list(node_lines(None, VIEW)) == ["node north of wss://fed.example:8443", "waiting for the coordinator"]
    asked = moved(VIEW, job="heart", rounds=3, phase="waiting for a person: confide node approve")
    assert list(node_lines(VIEW, asked)) == ["job heart: 3 rounds", "waiting for a person: confide node approve"]
    runs = moved(asked, phase="in the run", doing="trains", round=1, epsilon=0.5, epsilon_budget=2.0)
    assert list(node_lines(asked, runs)) == ["in the run"]
    waits = moved(runs, doing="waits for the other nodes")
    assert list(node_lines(runs, waits)) == []  # a log would drown in it
    took = moved(waits, taken=1, epsilon=0.6)
    assert list(node_lines(waits, took)) == ["took part in round 1 of 3; epsilon 0.6 of 2 by this node's account"]


def test_a_node_s_terminal():
    to, file = terminal()
    view = moved(
        VIEW,
        job="heart",
        phase="in the run",
        doing="waits for the other nodes",
        round=2,
        rounds=3,
        taken=2,
        epsilon=0.6,
        epsilon_budget=2.0,
    )
    with node_display(to) as display:
        display.show(view)
    for words in (
        "north  heart  in the run",
        "waits for the other nodes .",
        "2/3",
        "took part in 2 sums",
        "epsilon 0.6 of 2 over",
    ):
        assert words in shown(file)


def test_a_terminal_starts_before_there_is_anything():
    to, file = terminal()
    with node_display(to):
        pass
    assert "starting" in shown(file)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (0.04, "0.04 s"), (59.6, "1 min 0 s"), (3599.7, "1 h 0 min"), (172800, "2 days")],
)
def test_durations_round_to_the_next_unit(seconds, words):
    assert duration(seconds) == words


def test_a_federation_without_budget_names_what_it_spent():
    status = replace(gathered().snapshot(), epsilon_budget=None, history=(), epsilon=0.25)
    to, file = terminal()
    with coordinator_display(to) as display:
        display.show(status)
    assert "no round yet, epsilon 0.25\n" in re.sub(r" +\n", "\n", shown(file))


# --- lines beside the picture -----------------------------------------------------------------------------------------


def test_data_stand_above_the_picture_where_both_are_one_terminal(monkeypatch):
    """Printed past the picture they are drawn over: the control."""
    err, file = terminal()
    monkeypatch.setattr("confide.cli.console.out", Console(file=file, force_terminal=True, width=100))
    board = begun()
    with coordinator_display(err) as display:
        display.show(board.snapshot())
        display.tell("wrote model.confide")
    assert "wrote model.confide\n" in shown(file).replace("\r", "")
    assert shown(file).rindex("waiting for nodes") > shown(file).rindex("wrote model.confide")


def test_data_go_to_standard_output_where_that_is_no_terminal(monkeypatch):
    (err, file), (out, data) = terminal(), plain()
    monkeypatch.setattr("confide.cli.console.out", out)
    with node_display(err) as display:
        display.tell("wrote model.confide")
        display.note("connected")
    assert data.getvalue() == "wrote model.confide\n"
    assert "connected" in shown(file)
    assert "wrote" not in shown(file)


def test_a_terminal_says_what_is_waited_for_before_there_is_a_view():
    console, file = terminal()
    with coordinator_display(console, idle="waiting for jobs"):
        pass
    assert "waiting for jobs" in shown(file)
