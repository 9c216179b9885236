"""Accuracy, AUC and average precision against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from confide.errors import DataError
from confide.model.graph import Graph, Linear, Sigmoid
from confide.train.evaluate import accuracy, auc, average_precision, decide, in_words, precision_at_alert_rate


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


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_average_precision_with_ties(pairs):
    scores, y = np.array([float(s) for s, _ in pairs]), np.array([int(b) for _, b in pairs])
    if not y.any():
        with pytest.raises(DataError, match="a record of class 1"):
            average_precision(scores, y)
    else:
        assert average_precision(scores, y) == pytest.approx(average_precision_score(y, scores), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.floats(0.01, 1))
def test_precision_at_a_rate_is_the_mean_over_all_ways_to_break_ties(pairs, rate):
    scores, y = np.array([float(s) for s, _ in pairs]), np.array([int(b) for _, b in pairs])
    alerts, rng = max(1, round(rate * len(y))), np.random.default_rng(1)
    draws = [y[np.lexsort((rng.random(len(y)), -scores))[:alerts]].mean() for _ in range(300)]
    found = precision_at_alert_rate(scores, y, rate)
    assert abs(found - np.mean(draws)) < 6 * np.std(draws) / np.sqrt(300) + 1e-9


def test_alerts_are_named_where_a_class_is_rare():
    graph = Graph((Linear(np.array([[1.0]]), np.zeros(1)), Sigmoid()))
    x = np.linspace(-1, 1, 200)[:, None]
    rare = (x[:, 0] > 0.97).astype(np.int64)
    assert "average precision 1.000 (by chance 0.015), precision of the 1 % that score highest 1.000" in (
        in_words(graph, x, rare)
    )
    assert "precision" not in in_words(graph, x, (x[:, 0] > 0).astype(np.int64))
    assert "precision" not in in_words(graph, x, np.zeros(200, np.int64))
    for rate in (0, 1.5, float("nan")):
        with pytest.raises(DataError, match="alert rate"):
            precision_at_alert_rate(x[:, 0], rare, rate)
