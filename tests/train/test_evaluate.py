"""Accuracy and AUC against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from confide.errors import DataError
from confide.model.graph import Graph, Linear, Sigmoid
from confide.train.evaluate import accuracy, auc, decide


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_with_ties(pairs):
    scores, y = np.array([float(s) for s, _ in pairs]), np.array([int(b) for _, b in pairs])
    if len(set(y)) < 2:
        with pytest.raises(DataError, match="both classes"):
            auc(scores, y)
    else:
        assert auc(scores, y) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)


def test_accuracy():
    rng = np.random.default_rng(0)
    graph = Graph((Linear(rng.normal(size=(1, 3)), np.zeros(1)), Sigmoid()))
    x, y = rng.normal(size=(50, 3)), rng.integers(0, 2, 50)
    assert accuracy(graph, x, y) == accuracy_score(y, (graph.apply(x)[:, 0] > 0.5).astype(int))
    assert decide(np.array([[0.1, 0.7, 0.2]])).tolist() == [1]
    with pytest.raises(DataError):
        accuracy(graph, x[:0], y[:0])
