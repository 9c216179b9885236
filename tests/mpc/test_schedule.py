"""Rounds: a message leaves as soon as its operands are there, and not before."""

from __future__ import annotations

from hypothesis import given

from confide.mpc import operations as op
from confide.mpc.operations import Kind, Program
from confide.mpc.schedule import rounds, sends

from .test_operations import programs

X = op.Load("x", (2, 4), 16, Kind.OPEN, "input")
W = op.Load("w", (3, 4), 16, Kind.OPEN, "model")
LAYER = (X, W, op.MatMul(0, 1, False, True), op.Open(2), op.Sign(3, 44, 16), op.Select(4, 3, 16), op.Reveal(5))


def test_a_layer_takes_a_round_for_its_input_its_opening_its_sign_and_its_output():
    found = rounds(Program(LAYER))
    assert [one.sends for one in found.rounds] == [(0,), (3,), (4,), (6,)]
    assert [one.local for one in found.rounds] == [(2,), (), (5,), ()]
    assert found.before == (1,)
    assert found.ready == (1, 0, 1, 2, 3, 3, 4)


def test_an_input_of_shares_is_opened_in_a_round_of_its_own():
    found = rounds(Program(LAYER), inputs="shared")
    assert [one.sends for one in found.rounds] == [(0,), (0,), (3,), (4,), (6,)]
    shares = Program((op.Load("x", (2,), 16, Kind.SHARED, "input"), op.Reveal(0)))
    assert [one.sends for one in rounds(shares, inputs="shared").rounds] == [(0,), (1,)]


def test_what_does_not_depend_on_each_other_shares_a_round():
    branches = (
        X,
        op.Multiply(0, 0),
        op.Open(1),
        op.Sign(0, 44, 16),
        op.Shift(0, 5),
        op.Sign(4, 44, 16),
        op.Sign(2, 44, 16),
    )
    assert [one.sends for one in rounds(Program(branches)).rounds] == [(0,), (2, 3, 5), (6,)]


def test_a_program_that_sends_nothing_has_no_rounds():
    found = rounds(Program((W, op.Truncate(0, 8), op.Keep(1, "v"))))
    assert (found.rounds, found.before) == ((), (0, 1, 2))


@given(programs())
def test_every_operation_runs_once_after_its_operands(program):
    found = rounds(program)
    order = [*found.before, *(one for each in found.rounds for one in (*each.sends, *each.local))]
    assert sorted(order) == list(range(len(program.operations)))
    at = {one: place for place, one in enumerate(order)}
    for number, operation in enumerate(program.operations):
        assert all(at[one] < at[number] for one in op.operands(operation))
        in_time = max((found.ready[one] for one in op.operands(operation)), default=0)
        assert found.ready[number] == in_time + sends(operation)
    assert all(each.sends for each in found.rounds)  # no round without a message
    for each in found.rounds:
        left = set(each.sends)
        assert not any(left & set(op.operands(program.operations[one])) for one in each.sends)
