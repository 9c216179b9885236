"""Which cells a record marks, and what a party's vector and a sum may look like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from confide.crypto.random import SeededRandomness
from confide.errors import DataError, ProtocolError, UsageError
from confide.ideal import Sums
from confide.model.graph import Graph, Linear, Sigmoid
from confide.train import parse
from confide.train.federated_evaluation import tally_of
from confide.train.local import scores_by_record
from confide.train.tally import BINS, MARKS, NOISY_BINS, Tally, bins_of, edges_of

RNG = SeededRandomness("tally")
BINARY = Tally(2, BINS, 1000)
PRIVATE = tally_of(
    parse({"data": {"set": "breast-cancer"}, "privacy": {"epsilon": 1.0, "expected_records": 455}}),
    Graph((Linear(np.zeros((1, 3)), np.zeros(1)), Sigmoid())),
    4,
)


@pytest.mark.parametrize("bins", [32, 64, 128, 256, 512])
def test_edges(bins):
    edges = edges_of(bins)
    assert len(edges) == bins + 1
    assert edges[0] == 0
    assert edges[bins // 2] == 0.5
    assert edges[-1] == 1
    assert (np.diff(edges) > 0).all()
    np.testing.assert_array_equal(edges, 1 - edges[::-1])
    assert set(np.arange(9) / 8) <= set(edges.tolist())
    assert edges[1] <= 2.0**-6
    with pytest.raises(UsageError, match="a power of 2"):
        edges_of(bins + 1)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.floats(0, 1), st.sampled_from([*edges_of(32).tolist(), np.nextafter(0.5, 1), np.nextafter(0.5, 0)]))
)
def test_a_bin_is_open_below_and_closed_above(score):
    for bins in (NOISY_BINS, BINS):
        edges = edges_of(bins)
        found = int(bins_of(np.array([score]), edges)[0])
        assert edges[found] < score or found == 0
        assert score <= edges[found + 1]
        assert (found >= bins // 2) == (score > 0.5)  # what decides is an edge


def test_a_score_that_is_no_number_counts_as_class_0():
    assert bins_of(np.array([np.nan]), edges_of(32)).tolist() == [0]
    assert BINARY.cells(np.array([[np.nan]]), np.array([1])).tolist() == [[2, 4 + BINS]]


def test_the_cells_by_hand():
    """Two classes: confusion (true, chosen), then (true, bin); three: the chosen class's score, by right and wrong."""
    assert Tally(2, 32, 9).cells(np.array([[0.5], [0.51], [1.0]]), np.array([0, 0, 1])).tolist() == [
        [0, 4 + 15],
        [1, 4 + 16],
        [3, 4 + 32 + 31],
    ]
    scores = np.array([[0.2, 0.9, 0.1], [0.001, 0.0, 0.0]])
    found = Tally(3, 32, 9).cells(scores, np.array([1, 2]))
    assert found[:, 0].tolist() == [4, 6]
    assert found[:, 1].tolist() == [9 + 32 + bins_of(np.array([0.9]), edges_of(32))[0], 9 + 0]


def test_what_does_not_fit_is_refused():
    for scores, labels in ((np.zeros((2, 2)), np.zeros(2, np.int64)), (np.zeros((2, 1)), np.zeros(3, np.int64))):
        with pytest.raises(DataError, match="Expected scores and labels"):
            BINARY.cells(scores, labels)
    for label in (-1, 2):
        with pytest.raises(DataError, match="labels from 0 to 1"):
            BINARY.cells(np.zeros((1, 1)), np.array([label]))
    with pytest.raises(DataError, match="at most 1000 held-out records at north.*expected_records"):
        BINARY.contribution(np.zeros((1001, 1)), np.zeros(1001, np.int64), RNG, name="north")
    with pytest.raises(UsageError, match="a plan for one release"):
        Tally(2, 64, 9, PRIVATE.plan)


def test_no_records_are_fine():
    assert not BINARY.contribution(np.zeros((0, 1)), np.zeros(0, np.int64), RNG).any()
    assert PRIVATE.contribution(np.zeros((0, 1)), np.zeros(0, np.int64), RNG).any()  # noise alone


def members(count):
    return (frozenset(f"h{number}" for number in range(count)),)


def test_a_sum_over_one_party_is_nobody_elses():
    row = BINARY.contribution(np.array([[0.7]]), np.array([1]), RNG)[None]
    assert BINARY.counts(Sums(row, members(2))).sum() == MARKS
    with pytest.raises(ProtocolError, match="over at least two parties; what one party counts is its own"):
        BINARY.counts(Sums(row, members(1)))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("change", ["confusion", "score", "negative", "both", "many", "length"])
def test_sums_that_contradict_themselves_are_refused(classes, change):
    tally = Tally(classes, BINS, 50)
    scores = np.random.Generator(np.random.PCG64(1)).random((60, 1 if classes == 2 else classes))
    row = tally.contribution(scores[:30], np.arange(30) % classes, RNG)
    row = row + tally.contribution(scores[30:], np.arange(30) % classes, RNG)
    tally.counts(Sums(row[None], members(2)))
    if change == "confusion":
        row[0] += 1
    elif change == "score":
        row[-1] += 1
    elif change == "negative":
        row[0] -= 1000
        row[classes**2] -= 1000
    elif change == "both" and classes == 2:  # a class 0 that scores as class 1
        row[0] += 1
        row[-1] += 1
    elif change == "both":  # right in the one table, wrong in the other
        row[0] += 1
        row[classes**2] += 1
    elif change == "many":
        row *= 10
    else:
        row = row[:-1]
    with pytest.raises(ProtocolError, match=r"counts that agree|sums of \d+ cells"):
        tally.counts(Sums(row[None], members(2)))


def test_groups_add_up():
    rows = np.stack([BINARY.contribution(np.full((n, 1), 0.9), np.ones(n, np.int64), RNG) for n in (3, 5)])
    groups = (frozenset({"a", "b", "c"}), frozenset({"d", "e", "f"}))
    assert BINARY.counts(Sums(rows, groups))[3] == 8


@settings(max_examples=50, deadline=None)
@given(
    x=arrays(np.float64, (7, 3), elements=st.floats(-1e6, 1e6)),
    weight=arrays(np.float64, (1, 3), elements=st.floats(-1e300, 1e300)),
    gone=st.integers(0, 6),
)
def test_one_record_more_moves_two_cells_by_one_step(x, weight, gone):
    """What the noise is calibrated for, also for scores beyond float64, in integers and through the graph."""
    graph, y = Graph((Linear(weight, np.zeros(1)), Sigmoid())), np.arange(7) % 2
    rest = np.arange(7) != gone
    seed = "the same noise"
    one = PRIVATE.contribution(scores_by_record(graph, x), y, SeededRandomness(seed))
    other = PRIVATE.contribution(scores_by_record(graph, x[rest]), y[rest], SeededRandomness(seed))
    moved = np.abs(one - other)
    assert sorted(moved[moved > 0].tolist()) == [PRIVATE.step] * MARKS
    assert (moved.astype(object) ** 2).sum() <= PRIVATE.plan.grid**2


def test_under_a_plan_nobody_can_tell_how_many_records_there_are():
    many = PRIVATE.largest + 500
    vector = PRIVATE.contribution(np.full((many, 1), 0.9), np.ones(many, np.int64), RNG)
    assert np.abs(vector).max() <= PRIVATE.bound  # and no error


def test_scores_do_not_depend_on_the_other_records():
    draw = np.random.Generator(np.random.PCG64(2))
    graph = Graph((Linear(draw.normal(size=(2, 40)), draw.normal(size=2)), Sigmoid()))
    x = draw.normal(size=(64, 40))
    whole = scores_by_record(graph, x)
    for number in range(64):
        assert scores_by_record(graph, x[number : number + 1]).tobytes() == whole[number].tobytes()
    np.testing.assert_allclose(whole, graph.apply(x), rtol=1e-12)
