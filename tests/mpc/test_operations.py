"""Programs: what each operation makes, and that nothing from a peer is more than a `ProtocolError`."""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.mpc import operations as op
from confide.mpc.operations import Kind, Program
from mpc import plain

X = op.Load("x", (2, 3, 4, 4), 16, Kind.OPEN, "input")
W = op.Load("w", (5, 3, 3, 3), 16, Kind.OPEN, "model")
S = op.Load("s", (2, 3), 32, Kind.SHARED, "input")

SMALL = st.integers(-2, 5)
SHAPE = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)
BITS = st.integers(-1, 63)


def quads(kind):
    return st.tuples(kind, kind, kind, kind)


@cache
def operations(number: int) -> st.SearchStrategy:
    """Operations, most of them nonsense, on values before `number`."""
    at = st.integers(max(0, number - 3), max(0, number - 1))
    kinds, origins = st.sampled_from([Kind.OPEN, Kind.SHARED]), st.sampled_from(["input", "model", "state"])
    free = st.lists(SMALL, min_size=1, max_size=4).map(tuple)
    return st.one_of(
        st.builds(op.Load, st.just(f"v{number}"), SHAPE, st.sampled_from([0, 16, 32]), kinds, origins),
        st.builds(op.Open, at),
        st.builds(op.MatMul, at, at, st.booleans(), st.booleans()),
        st.builds(op.Convolve, at, at, st.tuples(SMALL, SMALL), quads(SMALL)),
        st.builds(op.Multiply, at, at),
        st.builds(op.Truncate, at, BITS, st.none() | BITS),
        st.builds(op.Sign, at, BITS, BITS),
        st.builds(op.Select, at, at, BITS),
        st.builds(op.Number, at),
        st.builds(op.Add, at, at),
        st.builds(op.Subtract, at, at),
        st.builds(op.Shift, at, st.integers(-(1 << 62), 1 << 62)),
        st.builds(op.Times, at, SMALL, BITS),
        st.builds(op.Reshape, at, free),
        st.builds(op.Transpose, at, free),
        st.builds(op.Slice, at, free, free, free),
        st.builds(op.Concatenate, st.lists(at, max_size=3).map(tuple), SMALL),
        st.builds(op.Broadcast, at, free),
        st.builds(op.Sum, at, SMALL),
        st.builds(op.Keep, at, st.just(f"k{number}")),
        st.builds(op.Reveal, at, st.just(f"y{number}"), BITS),
        st.builds(op.Periodic, at, BITS, free, free),
    )


@st.composite
def programs(draw) -> Program:
    """Programs that hold: operations are drawn, and those that do not fit left out."""
    kept: list = [X, W, S]
    for _ in range(draw(st.integers(1, 8))):
        one = draw(operations(len(kept)))
        try:
            Program((*kept, one))
        except ProtocolError:
            continue
        kept.append(one)
    return Program(tuple(kept))


def loads(program: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    found = [one for one in program.operations if isinstance(one, op.Load)]
    return {one.name: rng.integers(-1000, 1000, one.shape) for one in found}


@given(programs())
def test_what_an_operation_makes_has_the_shape_that_numpy_gives(program):
    done = plain.run(program, loads(program), checked=False)  # asserts every shape
    assert len(done.values) == len(program.values)
    assert all(value.count <= op.MOST_ELEMENTS and 0 <= value.scale < 64 for value in program.values)


@given(programs())
def test_a_program_is_read_as_it_was_written(program):
    other = Program.decode(program.encode())
    assert other == program
    assert other.hash == program.hash


@given(programs(), st.data())
def test_the_hash_tells_programs_apart(program, data):
    kept = list(program.operations)
    kept.append(op.Times(len(kept) - 1, 3) if program.values[-1].kind is not Kind.BIT else op.Number(len(kept) - 1))
    assert Program(tuple(kept)).hash != program.hash


def test_labels_are_no_part_of_the_hash():
    assert Program((X,), ("layer",)).hash == Program((X,)).hash
    with pytest.raises(ProtocolError):
        Program((X,), ("a", "b"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)
TAGS = st.sampled_from([one.__struct_config__.tag for one in op.AnyOperation.__args__])


@given(st.binary(max_size=80))
def test_any_bytes_are_a_program_or_a_protocol_error(body):
    with pytest.raises(ProtocolError):
        Program.decode(body)


@given(st.lists(st.builds(lambda tag, rest: [tag, *rest], TAGS, st.lists(VALUES, max_size=6)), max_size=5))
def test_any_structure_is_a_program_or_a_protocol_error(structure):
    try:
        Program.decode(msgspec.msgpack.encode(structure))
    except ProtocolError:
        return


@given(programs(), st.data())
def test_a_spoilt_program_is_a_program_or_a_protocol_error(program, data):
    body = bytearray(program.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        other = Program.decode(bytes(body))
    except ProtocolError:
        return
    assert all(value.count <= op.MOST_ELEMENTS for value in other.values)


@given(programs(), st.integers(-5, 40))
def test_an_operation_takes_earlier_values_alone(program, at):
    if not 0 <= at < len(program.operations):
        with pytest.raises(ProtocolError, match="earlier"):
            Program((*program.operations, op.Keep(at, "k")))


BIT = (X, op.Sign(0, 44, 16))
V = op.Load("v", (2, 3), 16, Kind.OPEN, "model")
REFUSED = {
    "nothing": (),
    "its own value": (X, op.Keep(1, "k")),
    "a bit that is loaded": (op.Load("b", (2,), 0, Kind.BIT, "input"),),
    "two loads of one name": (X, op.Load("x", (1,), 16, Kind.OPEN, "model")),
    "an open value opened": (X, op.Open(0)),
    "a bit opened": (*BIT, op.Open(1)),
    "an open value revealed": (X, op.Reveal(0)),
    "a product of what is not open": (S, op.MatMul(0, 0, False, True)),
    "a truncation of what is not open": (S, op.Truncate(0, 16)),
    "a truncation by no bits": (X, op.Truncate(0, 0)),
    "a truncation by 63 bits": (X, op.Truncate(0, 63, 16)),
    "a truncation below scale 0": (X, op.Truncate(0, 17)),
    "a sign of what is not open": (S, op.Sign(0, 44, 16)),
    "a sign with no window left": (X, op.Sign(0, 16, 16)),
    "a sign with a window of 63": (X, op.Sign(0, 63, 16)),
    "a selection by what is no bit": (X, op.Select(0, 0)),
    "a selection of another shape": (*BIT, V, op.Select(1, 2)),
    "a number of what is no bit": (X, op.Number(0)),
    "a sum of two scales": (V, S, op.Add(0, 1)),
    "a sum of two shapes": (X, V, op.Add(0, 1)),
    "a sum of bits": (*BIT, op.Add(1, 1)),
    "a bit revealed in part": (*BIT, op.Reveal(1, "y", 1)),
    "a value revealed below scale 0": (S, op.Reveal(0, "y", 33)),
    "two outputs of one name": (S, op.Reveal(0), op.Reveal(0)),
    "two things kept under one name": (S, op.Keep(0, "s"), op.Keep(0, "s")),
    "a bit kept": (*BIT, op.Keep(1, "k")),
    "kernels of other channels": (
        X,
        op.Load("w", (5, 2, 3, 3), 16, Kind.OPEN, "model"),
        op.Convolve(0, 1, (1, 1), (0, 0, 0, 0)),
    ),
    "a kernel larger than the image": (X, W, op.Convolve(0, 1, (1, 1), (-2, 0, 0, 0))),
    "no stride": (X, W, op.Convolve(0, 1, (0, 1), (0, 0, 0, 0))),
    "matrices that do not fit": (V, op.MatMul(0, 0)),
    "a scale of 64": (V, op.Times(0, 1, 48)),
    "a scale that falls": (V, op.Times(0, 1, -1)),
    "a shape with other elements": (V, op.Reshape(0, (7,))),
    "a shape with negative sides": (V, op.Reshape(0, (-2, -3))),
    "axes twice": (V, op.Transpose(0, (0, 0))),
    "an empty slice": (V, op.Slice(0, (0, 1), (2, 1), (1, 1))),
    "a slice outside": (V, op.Slice(0, (0, 0), (2, 4), (1, 1))),
    "a slice of fewer axes": (V, op.Slice(0, (0,), (2,), (1,))),
    "nothing in a row": (V, op.Concatenate((), 0)),
    "two kinds in a row": (V, op.Load("t", (2, 3), 16, Kind.SHARED, "model"), op.Concatenate((0, 1), 0)),
    "an axis that is not there": (V, op.Sum(0, 2)),
    "a broadcast that does not fit": (V, op.Broadcast(0, (2, 4))),
    "a broadcast to nothing": (V, op.Broadcast(0, (0, 2, 3))),
    "too many axes": (V, op.Reshape(0, (1, 1, 1, 1, 1, 2, 3))),
    "too many elements": (V, op.Broadcast(0, (1 << 26, 2, 3))),
    "an unheard-of size": (op.Load("h", (1 << 62, 1 << 62), 16, Kind.OPEN, "input"),),
    "an empty value": (op.Load("h", (0,), 16, Kind.OPEN, "input"),),
}


@pytest.mark.parametrize("operations", REFUSED.values(), ids=REFUSED)
def test_operations_that_do_not_fit_are_refused(operations):
    with pytest.raises(ProtocolError, match="Expected"):
        Program(operations)


def test_a_program_of_too_many_operations_is_refused():
    with pytest.raises(ProtocolError, match="operations"):
        Program((V, *(op.Shift(0, 1) for _ in range(op.MOST_OPERATIONS))))


TAKEN = {
    "a product of a batch": ((X, V, op.MatMul(0, 0, True)), (2, 3, 4, 4), 32),
    "a matrix for a batch": (
        (op.Load("a", (5, 4, 3), 16, Kind.OPEN, "input"), V, op.MatMul(0, 1, False, True)),
        (5, 4, 2),
        32,
    ),
    "a convolution": ((X, W, op.Convolve(0, 1, (2, 1), (1, 0, 1, 2))), (2, 5, 2, 4), 32),
    "a division as well": ((X, op.Truncate(0, 20, 4)), (2, 3, 4, 4), 12),
    "a truncation within a selection": ((*BIT, op.Select(1, 0, 16)), (2, 3, 4, 4), 0),
    "a number": ((*BIT, op.Number(1)), (2, 3, 4, 4), 0),
    "a slice of a bit": ((*BIT, op.Slice(1, (0, 0, 0, 1), (2, 3, 4, 4), (1, 1, 1, 2))), (2, 3, 4, 2), 0),
}


@pytest.mark.parametrize(("operations", "shape", "scale"), TAKEN.values(), ids=TAKEN)
def test_operations_that_fit_make(operations, shape, scale):
    made = Program(operations).values[-1]
    assert (made.shape, made.scale) == (shape, scale)


def test_what_is_added_is_open_if_both_are():
    add = (V, op.Load("s", (2, 3), 16, Kind.SHARED, "model"), op.Add(0, 0), op.Subtract(0, 1), op.Add(1, 1))
    assert [one.kind for one in Program(add).values[2:]] == [Kind.OPEN, Kind.SHARED, Kind.SHARED]
