"""Gradients against torch's autograd, descent against a second-order solver."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import DataError, ModelError
from confide.model.graph import Graph, Linear, Sigmoid, Square
from confide.train.local import Silo, descend, flatten, gradient_sum, record_gradients, unflatten

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


def test_bad_records_are_refused():
    with pytest.raises(DataError, match="finite"):
        Silo("a", np.array([[np.nan]]), np.array([0]))
    with pytest.raises(DataError, match="Expected x"):
        Silo("a", np.zeros((2, 1)), np.array([0]))
    start = Graph((Linear(np.zeros((1, 1)), np.zeros(1)), Sigmoid()))
    with pytest.raises(DataError, match="at least one record"):
        descend(start, np.zeros((0, 1)), np.zeros(0, np.int64), steps=1, learning_rate=1, momentum=0, weight_decay=0)
    with pytest.raises(ModelError, match="ends in Sigmoid"):
        gradient_sum(Graph((Linear(np.zeros((1, 1)), np.zeros(1)),)), np.zeros((1, 1)), np.array([0]))
    assert "0." not in repr(Silo("a", np.full((1, 1), 0.123), np.array([0])))
