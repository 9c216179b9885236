"""The ideal predict, against plain loops in exact or high precision."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import ModelError
from confide.model.graph import Graph, Linear, Problem, Sigmoid, Square, sigmoid


def linear(outputs, inputs):
    return Linear(np.zeros((outputs, inputs)), np.zeros(outputs))


def test_apply_is_the_layers_one_after_the_other():
    graph = Graph(
        (Linear(np.array([[1.0, 2.0], [0.0, -1.0]]), np.array([1.0, 0.5])), Square(), linear(1, 2), Sigmoid())
    )
    hidden = [(1 * 3 + 2 * 4 + 1) ** 2, (-4 + 0.5) ** 2]
    first = Graph(graph.layers[:2])
    np.testing.assert_array_equal(first.apply(np.array([[3.0, 4.0]])), [hidden])
    np.testing.assert_array_equal(graph.apply(np.array([[3.0, 4.0]])), [[0.5]])
    assert (graph.features, graph.outputs, graph.parameters) == (2, 1, 9)


@given(st.floats(-1e308, 1e308))
def test_sigmoid_is_exact_to_a_few_last_places_without_overflow(x):
    exact = 1 / (1 + mpmath.exp(-mpmath.mpf(x))) if abs(x) < 700 else float(x > 0)
    assert abs(float(sigmoid(np.array([x]))[0]) - exact) <= 4 * 2**-53 * max(float(exact), 1e-300)


@pytest.mark.parametrize("x", [np.zeros(2), np.zeros((1, 3)), np.zeros((1, 1, 2))])
def test_inputs_of_another_shape_are_refused(x):
    with pytest.raises(ModelError, match=r"shape \(batch, 2\)"):
        Graph((linear(1, 2),)).apply(x)


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (np.zeros(2), np.zeros(2)),
        (np.zeros((1, 2)), np.zeros(2)),
        (np.zeros((0, 2)), np.zeros(0)),
        (np.full((1, 1), np.nan), np.zeros(1)),
        (np.zeros((1, 1)), np.full(1, np.inf)),
    ],
)
def test_parameters_that_cannot_work_are_refused(weight, bias):
    with pytest.raises(ModelError):
        Linear(weight, bias)


@pytest.mark.parametrize(
    ("layers", "classes"),
    [
        ((), ()),
        ((Square(),), ()),
        ((linear(2, 3), linear(1, 3)), ()),
        ((linear(1, 3),), ("a",)),
        ((linear(3, 3),), ("a", "b")),
    ],
)
def test_graphs_that_cannot_work_are_refused(layers, classes):
    with pytest.raises(ModelError):
        Graph(layers, classes)


def test_no_repr_shows_a_parameter():
    graph = Graph((Linear(np.full((1, 2), 0.123456), np.full(1, 0.654321)),))
    assert "0.123456" not in repr(graph)
    assert "0.654321" not in repr(graph)
    assert "Linear(2 -> 1)" in repr(graph)


def test_a_problem_reads_as_one_line():
    assert str(Problem("Relu", "no rule", "use Square")) == "Relu: no rule; use Square"
