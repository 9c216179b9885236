"""What a server keeps of a training over machines, what its process takes in, and what letters are refused."""

from __future__ import annotations

import numpy as np
import pytest

from confide.errors import PrivacyError, ProtocolError, StoreError
from confide.mpc.training_plan import Rates, Task
from confide.store import SqliteStore
from confide.train.budget import Budget
from confide.train.shares.budgets import Charges
from confide.train.shares.checkpoints import Checkpoints, Mark, is_due
from confide.train.shares.course import Course, Piece
from confide.train.shares.letters import Begin, Stop, letter, read, short
from confide.train.shares.moving import MOST_WAITING, Moving
from confide.train.shares.parties import shapes_kept
from confide.wire import Message, Step


def course_of(momentum: float = 0.5, rows: int = 40) -> Course:
    task = Task(features=3, rates=Rates.of(learning_rate=1.0, batch=16, momentum=momentum))
    piece = Piece(np.arange(rows), np.arange(3), targets=True)
    return Course(task=task, pieces={"north": piece}, rows=rows, batch=16, passes=100, opened=True)


def shares_of(course: Course, seed: int):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 2**64, shape, np.uint64) for name, shape in shapes_kept(course).items()}


@pytest.fixture
def store(tmp_path):
    with_store = SqliteStore(tmp_path / "training.db")
    yield with_store
    with_store.close()


def test_the_last_two_are_kept_and_come_back_as_they_were(store):
    course = course_of()
    kept = Checkpoints(store, "a")
    for taken in (3, 6, 9):
        kept.keep(Mark("run", taken), lambda taken=taken: shares_of(course, taken))
    assert [mark.taken for mark in kept.marks] == [6, 9]
    found = Checkpoints(store, "a").read(Mark("run", 6), course)
    assert found.keys() == {"w1", "sum1", "b1", "v1", "u1"}
    assert all((found[name] == words).all() for name, words in shares_of(course, 6).items())
    assert Checkpoints(store, "b").marks == ()  # of another training
    kept.only(Mark("run", 6))
    assert kept.marks == (Mark("run", 6),)
    with pytest.raises(StoreError, match="--anew"):
        kept.read(Mark("run", 9), course)
    with pytest.raises(StoreError, match="--anew"):
        kept.read(Mark("run", 6), course_of(momentum=0.0))  # has no velocities
    kept.only(None)
    assert not store.keys("")


def test_checkpoints_are_due_after_passes_after_hundreds_and_at_the_end():
    course = course_of()  # 3 steps a pass, 300 in all
    assert [taken for taken in range(1, 10) if is_due(course, taken)] == [3, 6, 9]
    assert is_due(course, 100)
    assert is_due(course, 300)
    assert not is_due(course, 101)


def test_a_training_is_charged_once_until_it_has_ended(store):
    budget = Budget(store, "records", greatest_epsilon=2.0, greatest_delta=1e-4)
    charges = Charges(store, budget, "ab" * 32)
    spend = {"epsilon": 1.0, "delta": 1e-5}
    charges.charge("t", "run-1", None, **spend)
    charges.charge("t", "run-2", Mark("run-1", 3), **spend)
    charges.charge("t", "run-3", Mark("run-1", 3), **spend)  # the second kept nothing
    assert budget.spent().epsilon == 1.0
    charges.ended("t")
    charges.charge("t", "run-4", Mark("run-3", 9), **spend)  # somebody says that it goes on, but it was over
    assert budget.spent().epsilon == 2.0
    with pytest.raises(PrivacyError, match="budget"):
        charges.charge("t", "run-5", None, **spend)
    assert Budget(store, "records").spent().epsilon == 2.0


def test_a_peer_that_floods_or_speaks_to_another_is_refused():
    def party():
        yield Step(await_tag="b", wait_for=("north",))

    moving = Moving("server-0", lambda message: None, lambda output: None)
    moving.start(party())
    for number in range(MOST_WAITING):
        moving.put(Message("north", "server-0", f"tag/{number}", b""))
    with pytest.raises(ProtocolError, match="ahead of time"):
        moving.put(Message("north", "server-0", "tag/last", b""))
    with pytest.raises(ProtocolError, match="server-0"):
        moving.put(Message("south", "server-1", "b", b""))
    assert moving.waits_for == ("north",)


@pytest.mark.parametrize(
    ("tag", "body"),
    [
        ("training/none", b""),
        ("training/begin", b""),
        ("training/begin", b"\x81\xa3run\x01"),
        ("training/stop", b"\xc1"),
    ],
)
def test_a_malformed_letter_is_a_protocol_error(tag, body):
    with pytest.raises(ProtocolError):
        read(Message("a", "b", tag, body))


def test_letters_come_back_and_reasons_are_one_short_line():
    for body in (Begin("ab" * 16, {"north": 3}), Stop("why")):
        assert read(letter("a", "b", body).message) == body
    assert short("one\n two \x00" + "x" * 1000).startswith("one two")
    assert len(short("x" * 1000)) == 400
