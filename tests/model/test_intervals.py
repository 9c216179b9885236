"""Certified ranges: no input of the box leaves them, and they are no wider than they must."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ModelError
from confide.model.graph import (
    AveragePool,
    Conv,
    Gelu,
    Graph,
    Linear,
    MaxPool,
    Polynomial,
    Relu,
    Residual,
    Sigmoid,
    Square,
    Tanh,
    applied,
)
from confide.model.intervals import Interval, interval_after, intervals
from confide.model.trees import Trees

ELEMENTWISE = (
    Square(),
    Relu(),
    Sigmoid(),
    Tanh(),
    Gelu(),
    Polynomial(np.array([0.3, -1.0, 0.5, 0.7, -0.2, 0.1]), -2.0, 3.0),
    Polynomial(np.array([0.0, 0.0, 0.0, 1.0]), -1.0, 1.0),
    Polynomial(np.array([1.0, 2.0]), -1.0, 1.0),
    Polynomial(np.array([2.0, 0.0, 0.0]), -1.0, 1.0),
)


def network(seed):
    rng = np.random.default_rng(seed)
    drawn = rng.normal
    block = Residual(
        (Conv(drawn(size=(2, 2, 3, 3)), drawn(size=2), 6, 6, padding=(1, 1, 1, 1)), ELEMENTWISE[seed % 9]),
        ((), (Conv(drawn(size=(2, 2, 1, 1)), drawn(size=2), 6, 6),))[seed % 2],
    )
    layers = (
        Conv(drawn(size=(2, 1, 3, 3)), drawn(size=2), 11, 12, stride=(2, 2), padding=(1, 0, 1, 1)),
        ELEMENTWISE[seed % 5],
        MaxPool(2, 6, 6, (2, 3), (1, 1), (0, 1, 1, 1)),
        AveragePool(2, 6, 6, (1, 1), (1, 1)),
        block,
        AveragePool(2, 6, 6, (3, 2), (2, 2)),
        Linear(drawn(size=(3, 12)), drawn(size=3)),
        ELEMENTWISE[(seed + 3) % 5],
        Linear(drawn(size=(2, 3)), drawn(size=2)),
        Sigmoid(),
    )
    return Graph(layers)


def points(low, high, seed, count=40):
    """Return inputs of a box: random, corners, and mixtures of both."""
    rng = np.random.default_rng(seed)
    inside = rng.uniform(low, high, (count, len(low)))
    corners = np.where(rng.random((count, len(low))) < 0.5, low, high)
    mixed = np.where(rng.random((count, len(low))) < 0.5, inside, corners)
    return np.concatenate([inside, corners, mixed, [low, high, (low + high) / 2]])


def leaves(graph, found, x):
    """Return whether some layer's values leave their ranges."""
    for layer, box in zip(graph.layers, found[1:], strict=True):
        x = applied(layer, x)
        if (x < box.low).any() or (x > box.high).any():
            return True
    return False


@given(st.integers(0, 200), st.floats(-2, 1), st.floats(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_input_of_the_box_leaves_the_ranges(seed, low, size):
    graph = network(seed)
    rng = np.random.default_rng(seed)
    low = low + rng.uniform(0, 1, graph.features)
    high = low + size * rng.uniform(0, 1, graph.features)
    assert not leaves(graph, intervals(graph, low, high), points(low, high, seed))


@pytest.mark.parametrize("number", range(3))
def test_ranges_that_are_a_little_too_narrow_are_left(number):
    """A negative control: the inputs above reach the ends, so a wrong rule would be seen."""
    rng = np.random.default_rng(number)
    graph = Graph((Linear(rng.normal(size=(4, 3)), rng.normal(size=4)), ELEMENTWISE[number]))
    found = intervals(graph, -1.0, 1.0)
    narrow = [Interval(b.low + 0.1 * (b.high - b.low), b.high - 0.1 * (b.high - b.low)) for b in found]
    assert leaves(graph, narrow, points(np.full(3, -1.0), np.ones(3), number))


def test_padding_is_zeros_and_not_of_the_box():
    layer = Conv(np.ones((1, 1, 1, 2)), np.zeros(1), 1, 1, padding=(0, 1, 0, 1))
    box = interval_after(layer, Interval(np.array([5.0]), np.array([6.0])))
    np.testing.assert_allclose(box.low, [5, 5])
    np.testing.assert_allclose(box.high, [6, 6])


@given(st.sampled_from(range(len(ELEMENTWISE))), st.floats(-6, 6), st.floats(0, 8))
@settings(max_examples=200)
def test_activations_have_the_narrowest_ranges(number, low, size):
    layer = ELEMENTWISE[number]
    box = interval_after(layer, Interval(np.array([low]), np.array([low + size])))
    seen = applied(layer, np.linspace(low, low + size, 20001))
    near = 1e-6 * (1 + np.abs(seen).max())
    assert box.low[0] <= seen.min() <= box.low[0] + near
    assert box.high[0] - near <= seen.max() <= box.high[0]


@given(st.integers(0, 100))
@settings(max_examples=30)
def test_linear_layers_reach_their_ranges_in_a_corner(seed):
    rng = np.random.default_rng(seed)
    layer = Linear(rng.normal(size=(1, 5)), rng.normal(size=1))
    box = interval_after(layer, Interval(np.full(5, -1.0), np.full(5, 2.0)))
    corner = np.where(layer.weight > 0, 2.0, -1.0)
    assert applied(layer, corner)[0, 0] == pytest.approx(box.high[0], rel=1e-12)


def test_a_square_of_both_signs_begins_at_zero():
    box = interval_after(Square(), Interval(np.array([-2.0, 1.0]), np.array([1.0, 2.0])))
    assert box.low[0] == 0
    np.testing.assert_allclose([*box.low, *box.high], [0, 1, 4, 4])


def test_trees_give_what_records_of_the_box_can_reach():
    trees = Trees(
        features=2,
        roots=np.array([0, -4]),
        outputs=np.array([0, 1]),
        feature=np.array([0, 1]),
        threshold=np.array([0.5, 0.0]),
        left=np.array([1, -1]),
        right=np.array([-3, -2]),
        value=np.array([1.0, 2.0, 9.0, 5.0]),
        offset=np.array([0.25, -1.0]),
    )
    found = interval_after(trees, Interval(np.array([-1.0, -1.0]), np.array([0.5, 1.0])))
    np.testing.assert_allclose([found.low, found.high], [[1.25, 4.0], [2.25, 4.0]])
    all_of_it = interval_after(trees, Interval(np.full(2, -1.0), np.full(2, 1.0)))
    np.testing.assert_allclose(all_of_it.high, [9.25, 4.0])


@pytest.mark.parametrize(
    ("low", "high"),
    [(1.0, -1.0), (np.nan, 1.0), (-np.inf, 1.0), (np.zeros(2), np.ones(2)), (np.zeros((1, 3)), 1.0), (-1e308, 1e308)],
)
def test_bounds_that_are_none_are_refused(low, high):
    with pytest.raises(ModelError, match="Expected"):
        intervals(Graph((Linear(np.ones((2, 3)), np.ones(2)), Square())), low, high)


def test_no_repr_shows_a_range():
    assert repr(Interval(np.array([0.125]), np.array([0.625]))) == "Interval(1 units)"
