"""The status of a run: what the reducers make of events, and that nothing private can be reached from it."""

from __future__ import annotations

import base64
import json
import re
import threading
import typing

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from confide.crypto.random import SeededRandomness
from confide.guarantee import nothing_hidden
from confide.train import load_data, parse
from confide.train import train as rounds_of
from confide.train.board import Board
from confide.train.happenings import HISTORY_KEPT
from confide.train.local import flatten
from confide.train.status import Finished, Node, NodeState, Phase, Status
from train.federation_day import LEDGER_HASH, MODEL_HASH, NODES, begun, gathered, take_round


def states(board: Board) -> dict[str, str]:
    return {node.name: node.state.value for node in board.snapshot().nodes}


def node(board: Board, name: str) -> Node:
    return next(one for one in board.snapshot().nodes if one.name == name)


# --- what happens -----------------------------------------------------------------------------------------------------


def test_a_run_waits_for_its_members_first():
    status = begun().snapshot()
    assert status.phase is Phase.WAITING
    assert [(one.name, one.role, one.state) for one in status.nodes] == [
        *((name, "node", NodeState.EXPECTED) for name in NODES),
        ("escrow", "helper", NodeState.EXPECTED),
    ]
    assert (status.present, status.finished, status.epsilon) == (0, 0, 0.0)
    assert any("update hidden from server" in sentence for sentence in status.promises)
    assert status.adversary == "malicious"


def test_members_come_ask_refuse_and_go():
    board = gathered()
    assert states(board) == {
        **dict.fromkeys(("east", "escrow", "north", "south"), "connected"),
        "west": "refused",
    }
    assert board.snapshot().present == 3
    assert [one.reason for one in board.snapshot().refusals] == ["policy: epsilon=1 is above what is left"]
    board.node_left("west", reason="connection closed", at_seconds=130.0)  # a refusal outlives the connection
    board.node_left("east", reason="connection closed", at_seconds=131.0)
    assert states(board)["west"] == "refused"
    assert (node(board, "east").state, node(board, "east").reason) == (NodeState.AWAY, "connection closed")
    assert node(board, "east").since_seconds == 131.0
    board.node_joined("east", role="node", at_seconds=140.0)
    assert (node(board, "east").state, node(board, "east").reason) == (NodeState.CONNECTED, "")
    assert node(board, "east").seen_seconds == 140.0


def test_a_member_that_nobody_expected_appears_with_its_role():
    board = begun()
    board.node_joined("dr-weiss", role="analyst", at_seconds=101.0)
    assert node(board, "dr-weiss").role == "analyst"
    assert [one.name for one in board.snapshot().nodes][:4] == list(NODES)  # nodes stay first


def test_a_round_from_its_offer_to_its_sum():
    board = gathered()
    board.round_begun(1, attempt=1, asked={"east", "north", "south"}, at_seconds=121.0)
    assert [name for name, state in states(board).items() if state == "working"] == ["east", "north", "south"]
    assert board.snapshot().phase is Phase.TRAINING
    board.node_answered("north", at_seconds=122.0)
    board.node_left("south", reason="cut", at_seconds=123.0)
    board.round_failed(at_seconds=124.0)
    assert (board.snapshot().failed_attempts, states(board)["east"]) == (1, "connected")
    board.charged(epsilon=0.1, at_seconds=124.0)
    board.node_joined("south", role="node", at_seconds=125.0)
    board.round_begun(1, attempt=2, asked={"east", "north", "south"}, at_seconds=126.0)
    board.charged(epsilon=0.2, at_seconds=129.0)
    board.round_done(
        members={"east", "north"},
        missing={"south"},
        smallest_sum=2,
        seconds=4.0,
        bytes_up=20,
        bytes_down=10,
        epsilon=0.2,
        model_hash=MODEL_HASH,
        at_seconds=130.0,
    )
    assert board.snapshot().history == (
        Finished(
            number=1,
            attempts=2,
            members=2,
            missing=("south",),
            smallest_sum=2,
            seconds=4.0,
            bytes_up=20,
            bytes_down=10,
            epsilon=0.2,
            accuracy=None,
            ended_seconds=130.0,
        ),
    )
    assert states(board) == {
        "east": "in the last sum",
        "north": "in the last sum",
        "south": "connected",
        "west": "refused",
        "escrow": "connected",
    }
    assert (node(board, "east").rounds, node(board, "east").last_round, node(board, "south").rounds) == (1, 1, 0)
    assert (board.snapshot().epsilon, board.snapshot().model_hash) == (0.2, MODEL_HASH)


def test_accuracy_comes_later_than_its_round():
    board = gathered()
    for number in (1, 2):
        take_round(board, number, at_seconds=120.0 + 10 * number)
    board.evaluated(1, accuracy=0.75, at_seconds=150.0)
    assert [one.accuracy for one in board.snapshot().history] == [0.75, None]


def test_the_end_is_expected_at_the_pace_of_the_last_rounds():
    board = gathered(rounds=4)
    assert board.snapshot().expected_end_seconds is None
    take_round(board, 1, at_seconds=120.0, seconds=10.0)
    assert board.snapshot().expected_end_seconds == 130.0 + 3 * 10.0
    take_round(board, 2, at_seconds=140.0, seconds=10.0)  # ten seconds of pause count too: 30 s for two rounds
    assert board.snapshot().expected_end_seconds == 150.0 + 2 * 15.0
    board.run_done(model_hash=MODEL_HASH, at_seconds=200.0)
    assert board.snapshot().expected_end_seconds is None


def test_a_run_ends_done_or_failed_with_nobody_at_work():
    for end in ("done", "failed"):
        board = gathered()
        board.round_begun(1, attempt=1, asked=NODES, at_seconds=121.0)
        if end == "done":
            board.run_done(model_hash=MODEL_HASH, at_seconds=122.0)
        else:
            board.run_failed(reason="round 1 lost its quorum", at_seconds=122.0)
        status = board.snapshot()
        assert (status.phase.value, status.reason) == (end, "" if end == "done" else "round 1 lost its quorum")
        assert NodeState.WORKING not in {one.state for one in status.nodes}
        assert status.updated_seconds == 122.0


def test_a_long_run_keeps_a_bounded_history():
    board = gathered(rounds=5000)
    for number in range(1, 3001):
        take_round(board, number, at_seconds=120.0 + 10 * number)
        if number % 100 == 0:
            board.evaluated(number, accuracy=number / 3000, at_seconds=120.0 + 10 * number)
    numbers = [one.number for one in board.snapshot().history]
    evaluated = [one.number for one in board.snapshot().history if one.accuracy is not None]
    assert evaluated == list(range(100, 3001, 100))  # what is rare is kept
    assert len(numbers) <= HISTORY_KEPT
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1
    assert numbers[-200:] == list(range(2801, 3001))
    assert board.snapshot().finished == 3000
    assert len(board.json()) < 250_000


# --- strangers' words -------------------------------------------------------------------------------------------------


@given(st.text(max_size=2000))
def test_whatever_a_stranger_says_becomes_one_short_line(text):
    board = begun()
    board.node_refused(text, reason=text, at_seconds=1.0)
    board.node_left("east", reason=text, at_seconds=1.0)
    board.run_failed(reason=text, at_seconds=1.0)
    status = board.snapshot()
    for said in (status.reason, *(part for one in status.nodes for part in (one.name, one.role, one.reason))):
        assert len(said) <= 300
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", said)
    json.loads(board.json())


def test_a_hash_that_is_none_is_left_out():
    board = begun()
    board.ledger_written(head="not a hash", at_seconds=1.0)
    assert board.snapshot().ledger_head == ""
    board.ledger_written(head=LEDGER_HASH, at_seconds=1.0)
    assert board.snapshot().ledger_head == LEDGER_HASH


# --- nothing private --------------------------------------------------------------------------------------------------


def leaves(kind: object) -> set[object]:
    """Every type that a value of `kind` can hold at its ends."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return set().union(*(leaves(hint) for hint in typing.get_type_hints(kind).values()))
    inner = [part for part in typing.get_args(kind) if part is not Ellipsis]
    return set().union(*map(leaves, inner)) if inner else {kind}


def test_a_status_can_hold_only_words_numbers_and_states():
    """No bytes, no array, no object: whatever carries an update or a key has no place in it."""
    assert leaves(Status) == {str, int, float, type(None), Phase, NodeState}

    class Loose(msgspec.Struct):
        vector: tuple[bytes, ...]

    assert leaves(Loose) == {bytes}  # the walk notices


def test_figures_of_a_single_node_are_counts_and_bytes():
    assert set(Node.__struct_fields__) == {
        *("name", "role", "state", "since_seconds", "reason", "seen_seconds"),
        *("rounds", "last_round", "bytes_up", "bytes_down"),
    }


def spellings(secret: bytes | float) -> set[str]:
    """How a secret could stand in a text; too short a spelling is found anywhere."""
    if isinstance(secret, float):
        return {text for text in (repr(secret), f"{secret:.9g}", f"{secret:.6g}") if sum(map(str.isdigit, text)) > 6}
    return {secret.hex(), base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode(), repr(secret)}


def reached(text: str, secrets: set[str]) -> set[str]:
    return {secret for secret in secrets if secret in text}


def test_a_real_run_leaves_no_record_no_weight_and_no_key_in_its_status():
    """Feeds a board from a training with planted secrets, then searches everything that people may see for them."""
    job = parse({"data": {"set": "breast-cancer"}, "train": {"quorum": 3, "rounds": 3}, "job": {"name": "planted"}})
    data = load_data(job)
    key = SeededRandomness("planted").bytes(32)
    names = [silo.name for silo in data.silos]
    board = Board(
        Status.start(
            run="run-1",
            job=job.job.name,
            job_hash="12" * 32,
            aggregator="masked",
            guarantee=nothing_hidden("everything"),
            rounds=3,
            quorum=3,
            members=dict.fromkeys(names, "node"),
            at_seconds=0.0,
        )
    )
    secrets: set[str] = spellings(key)
    for silo in data.silos:
        secrets |= set().union(*(spellings(float(value)) for value in silo.x[:3].ravel()))
    for done in rounds_of(job, data):
        board.round_begun(done.number, attempt=done.attempts, asked=names, at_seconds=1.0)
        board.round_done(
            members=done.members,
            missing=done.missing,
            smallest_sum=done.smallest,
            seconds=sum(done.seconds.values()),
            bytes_up=sum(done.bytes_up.values()),
            bytes_down=0,
            epsilon=done.epsilon,
            at_seconds=2.0,
        )
        secrets |= set().union(*(spellings(float(value)) for value in done.parameters))
        secrets |= set().union(*(spellings(float(value)) for value in flatten(done.model)))
    seen = board.json().decode() + board.metrics().decode() + repr(board.snapshot())
    assert len(secrets) > 100
    assert not reached(seen, secrets)
    board.node_refused(names[0], reason=key.hex(), at_seconds=3.0)  # the search would have found it
    assert reached(board.json().decode(), secrets)


# --- the board --------------------------------------------------------------------------------------------------------


def test_a_board_encodes_once_per_change():
    board = gathered()
    first = board.json()
    assert board.json() is first
    board.node_left("east", reason="", at_seconds=130.0)
    assert board.json() != first
    assert msgspec.json.decode(board.json(), type=Status) == board.snapshot()


def test_many_threads_lose_no_event():
    board = begun()

    def fail_often() -> None:
        for _ in range(500):
            board.round_failed(at_seconds=1.0)
            msgspec.json.decode(board.json())

    threads = [threading.Thread(target=fail_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert board.snapshot().failed_attempts == 2000


def test_metrics_are_what_prometheus_reads():
    board = gathered()
    take_round(board, 1, at_seconds=121.0)
    board.evaluated(1, accuracy=0.875, at_seconds=130.0)
    board.round_failed(at_seconds=131.0)
    families = {family.name: family for family in text_string_to_metric_families(board.metrics().decode())}
    value = {name: family.samples[0].value for name, family in families.items()}
    assert value["confide_rounds_finished"] == 1
    assert value["confide_accuracy"] == 0.875
    assert value["confide_epsilon_spent"] == 0.1
    assert value["confide_failed_attempts"] == 1
    assert value["confide_up_bytes"] == 3000
    in_state = {sample.labels["state"]: sample.value for sample in families["confide_nodes"].samples}
    assert (in_state["refused"], in_state["in the last sum"]) == (1, 3)
    assert families["confide_run_info"].samples[0].labels["job"] == "heart"
    assert "west" not in board.metrics().decode()


def test_metrics_escape_a_name_with_quotes():
    name = 'he said "\\ no'
    status = msgspec.structs.replace(begun(epsilon_budget=None).snapshot(), job=name)
    families = {family.name: family for family in text_string_to_metric_families(Board(status).metrics().decode())}
    assert families["confide_run_info"].samples[0].labels["job"] == name
    assert "confide_epsilon_spent" not in families


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_figure_that_is_none_breaks_no_reader(value):
    board = gathered()
    take_round(board, 1, at_seconds=121.0)
    board.evaluated(1, accuracy=value, at_seconds=130.0)
    assert json.loads(board.json())["history"][0]["accuracy"] is None


def test_the_traffic_of_all_members_is_told_at_once():
    board = begun()
    before = board.snapshot()
    names = [node.name for node in before.nodes]
    board.traffic({names[0]: (1000, 500, 7.0), "stranger": (1, 1, 1.0), names[1]: (0, 20, 0.0)}, at_seconds=8.0)
    first, second, *others = board.snapshot().nodes
    assert (first.bytes_up, first.bytes_down, first.seen_seconds) == (1000, 500, 7.0)
    assert (second.bytes_up, second.bytes_down, second.seen_seconds) == (0, 20, None)  # told something, never heard
    assert others == list(before.nodes[2:])
