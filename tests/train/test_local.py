"""Gradients against torch's autograd, descent against a second-order solver."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.dp.mechanisms import clipped_sum
from confide.errors import DataError, ModelError
from confide.model.graph import Graph, Linear, Sigmoid, Square
from confide.train.learner import GraphLearner
from confide.train.local import Silo, descend, flatten, gradient_sum, record_gradients, unflatten
from confide.train.sections import TrainSection
from confide.wire import MemoryStore

torch = pytest.importorskip("torch", reason="torch, the oracle of these gradients, comes with the train extra")


def graph_of(widths, rng, middle):
    layers = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers.append(Linear(rng.normal(size=(outputs, inputs)), rng.normal(size=outputs)))
        if i < len(widths) - 2:
            layers.append(middle)
    return Graph((*layers, Sigmoid()))


def torch_gradients(graph, x, y):
    """Per-record gradients of the logistic loss by autograd, one backward pass for each record."""
    parameters = [
        torch.tensor(part, requires_grad=True)
        for layer in graph.layers
        if isinstance(layer, Linear)
        for part in (layer.weight, layer.bias)
    ]
    rows = []
    for record, label in zip(x, y, strict=True):
        value, at = torch.tensor(record)[None, :], 0
        for layer in graph.layers[:-1]:
            if isinstance(layer, Linear):
                value = value @ parameters[at].T + parameters[at + 1]
                at += 2
            else:
                value = value**2 if isinstance(layer, Square) else torch.sigmoid(value)
        wanted = torch.zeros_like(value)
        if value.shape[1] == 1:
            wanted[0, 0] = float(label == 1)
        else:
            wanted[0, label] = 1.0
        loss = torch.nn.functional.binary_cross_entropy_with_logits(value, wanted, reduction="sum")
        rows.append(torch.cat([g.ravel() for g in torch.autograd.grad(loss, parameters)]).numpy())
    return np.array(rows)


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    square=st.booleans(),
    records=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_gradients_equal_autograd(widths, square, records, seed):
    rng = np.random.default_rng(seed)
    graph = graph_of(widths, rng, Square() if square else Sigmoid())
    x, y = rng.normal(size=(records, widths[0])), rng.integers(0, max(2, widths[-1]), records)
    expected = torch_gradients(graph, x, y)
    ours = record_gradients(graph, x, y)
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gradient_sum(graph, x, y), expected.sum(axis=0), rtol=1e-9, atol=1e-8)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_unflatten_reverses_flatten(seed):
    rng = np.random.default_rng(seed)
    graph = graph_of([4, 3, 2], rng, Square())
    vector = rng.normal(size=graph.parameters)
    np.testing.assert_array_equal(flatten(unflatten(graph, vector)), vector)


def equal_bits(a, b):
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("widths", "middle"), [([30, 1], Square()), ([30, 16, 1], Square()), ([13, 8, 5, 3], Sigmoid()), ([1, 1], Square())]
)
def test_a_records_gradient_does_not_depend_on_the_other_records(widths, middle):
    rng = np.random.default_rng(3)
    graph = graph_of(widths, rng, middle)
    x, y = rng.normal(size=(70, widths[0])), rng.integers(0, max(2, widths[-1]), 70)
    x[::3] = x[0]  # equal rows at many places
    alone = np.concatenate([record_gradients(graph, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    for n in range(len(x) + 1):
        rows = rng.permutation(len(x))[:n]
        assert equal_bits(record_gradients(graph, x[rows], y[rows]), alone[rows])
        assert equal_bits(record_gradients(graph, np.asfortranarray(x[:n]), y[:n]), alone[:n])


def crossing(value):
    """Return the last float64 in [0.3, 1] before `value` changes: the place where a rounding decides."""
    low, high = 0.3, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if value(middle) == value(0.3) else (low, middle)
    return low


def test_neighbours_differ_by_at_most_the_grid_where_a_rounding_decides():
    # With rows through BLAS this search finds neighbours 522 apart on a grid of 512.
    rng, features, grid = np.random.default_rng(0), 30, 512
    start, zeros = Graph((Linear(np.zeros((1, features)), np.zeros(1)), Sigmoid())), np.zeros(8, np.int64)

    def total(graph, x, y):
        return clipped_sum(record_gradients(graph, x, y), clip_norm=2.5, grid=grid).total

    for _ in range(30):
        weights = rng.normal(size=features + 1)
        weights[:features] -= weights[:features].mean() + 0.04
        graph = unflatten(start, weights)
        edge = crossing(lambda c, graph=graph: total(graph, np.full((1, features), c), zeros[:1])[0])
        for ulp in range(-25, 26, 2):
            seven = np.full((7, features), edge + ulp * np.spacing(edge))
            before = total(graph, seven, zeros[:7])
            for record, label in ((1.0, 1), (1.0, 0), (-1.0, 1), (-1.0, 0)):
                one = np.full((1, features), record)
                moved = total(graph, np.vstack([seven, one]), np.array([0] * 7 + [label])) - before
                assert moved @ moved <= grid * grid
                assert (moved == total(graph, one, np.array([label]))).all()


def test_no_warning_depends_on_a_record():
    # pytest turns warnings into errors: the squares of the first record overflow, those of the second do not
    layers = Linear(np.ones((2, 1)), np.zeros(2)), Square(), Square(), Linear(np.array([[1.0, -1.0]]), np.zeros(1))
    graph = Graph((*layers, Sigmoid()))
    x, y = np.array([[1e150], [1.0], [1e-200]]), np.array([1, 0, 1])
    rows = record_gradients(graph, x, y)
    assert not np.isfinite(rows[0]).all()
    assert np.isfinite(rows[1:]).all()
    assert equal_bits(rows[1:], record_gradients(graph, x[1:], y[1:]))
    assert clipped_sum(rows, clip_norm=1.0, grid=512).ignored == 1


def test_descent_reaches_the_optimum_of_another_solver():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = (x @ [1.0, -2.0, 0.5, 0.0] + rng.normal(size=300) > 0).astype(np.int64)
    start = Graph((Linear(np.zeros((1, 4)), np.zeros(1)), Sigmoid()))
    # scikit-learn leaves the bias unpenalised, so the oracle gets the bias as a penalised constant feature
    oracle = LogisticRegression(C=1 / (300 * 0.01), fit_intercept=False, tol=1e-12, max_iter=10_000)
    oracle.fit(np.hstack([x, np.ones((300, 1))]), y)
    ours = descend(start, x, y, steps=4000, learning_rate=0.5, momentum=0.9, weight_decay=0.01)
    np.testing.assert_allclose(flatten(ours), oracle.coef_[0], atol=1e-6)


def test_a_diverging_training_is_named():
    x, y = np.array([[1e150], [-1e150]]), np.array([1, 0])
    start = Graph((Linear(np.ones((1, 1)), np.zeros(1)), Square(), Linear(np.ones((1, 1)), np.zeros(1)), Sigmoid()))
    with np.errstate(all="ignore"), pytest.raises(ModelError, match="diverged"):
        descend(start, x, y, steps=50, learning_rate=1e200, momentum=0.9, weight_decay=0.0)


@pytest.mark.parametrize(
    ("x", "y"), [(np.zeros((2, 1, 1)), np.zeros(2)), (np.zeros((2, 1)), np.zeros((2, 1)))], ids=["images", "columns"]
)
def test_a_graph_takes_tables_only(x, y):
    silo, settings = Silo("a", x, y), TrainSection()
    learner = GraphLearner(Graph((Linear(np.zeros((1, 1)), np.zeros(1)), Sigmoid())), settings)
    for work in (
        lambda: learner.change(learner.start, silo, MemoryStore(), number=1),
        lambda: learner.record_gradients(learner.start, silo),
    ):
        with pytest.raises(DataError, match="takes tables"):
            work()


def test_bad_records_are_refused():
    with pytest.raises(DataError, match="finite"):
        Silo("a", np.array([[np.nan]]), np.array([0]))
    with pytest.raises(DataError, match="Expected x"):
        Silo("a", np.zeros((2, 1)), np.array([0]))
    with pytest.raises(DataError, match="Expected x"):
        Silo("a", np.zeros(2), np.zeros(2, np.int64))
    with pytest.raises(DataError, match="finite"):
        Silo("a", np.zeros((1, 1)), np.array([np.inf]))
    with pytest.raises(DataError, match="numpy arrays at a, got a list"):
        Silo("a", [[0.0]], np.array([0]))
    with pytest.raises(DataError, match="numbers"):
        Silo("a", np.array([["a"]]), np.array([0]))
    start = Graph((Linear(np.zeros((1, 1)), np.zeros(1)), Sigmoid()))
    with pytest.raises(DataError, match="at least one record"):
        descend(start, np.zeros((0, 1)), np.zeros(0, np.int64), steps=1, learning_rate=1, momentum=0, weight_decay=0)
    with pytest.raises(ModelError, match="ends in Sigmoid"):
        gradient_sum(Graph((Linear(np.zeros((1, 1)), np.zeros(1)),)), np.zeros((1, 1)), np.array([0]))
    assert "0." not in repr(Silo("a", np.full((1, 1), 0.123), np.array([0])))
