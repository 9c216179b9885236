"""Extraction: features + 1 rows give a linear model, fewer do not; other models are copied, noise is not."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from confide.compare.extraction import Counted, fitted, queries_for, steal
from confide.errors import ServiceError, UsageError
from confide.model.graph import Graph, Linear, Relu, Sigmoid
from confide.model.preprocess import OneHot, Preprocess, Scale

FEATURES = 30


def linear(outputs=1):
    draw = np.random.default_rng(1)
    return Graph((Linear(draw.normal(size=(outputs, FEATURES)), draw.normal(size=outputs)), Sigmoid()))


def network():
    draw = np.random.default_rng(2)
    first = Linear(draw.normal(size=(16, 6)), draw.normal(size=16))
    return Graph((first, Relu(), Linear(draw.normal(size=(1, 16)) / 4, np.zeros(1)), Sigmoid()))


def stolen(predict, budget, features=FEATURES, link="probability", **options):
    asked = Counted(predict, budget)
    return asked, steal(asked, features, link, queries_for(None, features, seed=1), seed=1, **options)


@pytest.mark.parametrize("outputs", [1, 3])
def test_features_plus_one_rows_give_a_linear_model(outputs):
    asked, found = stolen(linear(outputs).apply, 45)
    assert found.exact
    assert found.needed == found.copies[0].queries == 31
    assert asked.rows == found.rows == 31 + 9
    assert found.copies[0].agreement.value == 1.0


def test_fewer_rows_do_not():
    asked, found = stolen(linear().apply, 30)
    assert not found.exact
    assert asked.rows == 30
    assert all(copy.queries < 31 and copy.agreement.value < 1 for copy in found.copies)


def test_a_linear_model_of_numbers_is_read_as_well():
    graph = Graph(linear().layers[:1])
    _, found = stolen(graph.apply, 60, link="identity", deciding=False)
    assert found.exact
    assert found.copies[0].agreement.value == 1.0


def test_a_network_is_copied_better_with_more_rows():
    asked, found = stolen(network().apply, 1000, features=6)
    assert not found.exact
    assert asked.rows == 1000
    first, *_, last = found.copies
    assert [copy.queries for copy in found.copies] == [100, 200, 400, 800]
    assert last.agreement.value > max(0.9, first.agreement.value)
    assert last.agreement.low > found.commonest


def test_answers_of_chance_are_not_copied():
    noise = np.random.default_rng(3)
    _, found = stolen(lambda x: noise.random((len(x), 1)), 400)
    assert not found.exact
    assert found.copies[-1].agreement.low < 0.55


class Quota:
    """A service that refuses a question as a whole if it would go beyond the quota."""

    def __init__(self, graph, rows):
        self.graph, self.left, self.refused = graph, rows, 0

    def __call__(self, x):
        if len(x) > self.left:
            self.refused += 1
            raise ServiceError(429, "the quota is spent")
        self.left -= len(x)
        return self.graph.apply(x)


def test_the_quota_ends_it_and_is_used_up():
    service = Quota(network(), 150)
    asked, found = stolen(service, 1000, features=6)
    assert asked.rows == found.rows == 150
    assert service.left == 0
    assert service.refused < 10
    assert "quota" in found.stopped
    assert asked.left == 0


def test_a_quota_of_as_many_rows_as_features_keeps_a_linear_model():
    _, found = stolen(Quota(linear(), FEATURES), 100)
    assert not found.exact
    assert not found.enough
    assert found.stopped


def test_one_row_more_does_not():
    """It is answered at the points that determine a linear model, though none is left to see whether it is one."""
    _, found = stolen(Quota(linear(), FEATURES + 1), 100)
    assert found.enough
    assert not found.copies
    _, found = stolen(Quota(linear(), FEATURES + 3), 100)
    assert found.exact


def test_other_refusals_are_errors():
    def predict(x):
        raise ServiceError(403, "no")

    with pytest.raises(ServiceError, match="403"):
        stolen(predict, 100)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(UsageError, match="10 rows or more"):
        stolen(linear().apply, 9)


def test_no_row_is_asked_beyond_the_budget():
    rows = []
    asked = Counted(lambda x: rows.extend(x) or x[:, :1], 100)
    assert len(asked.answers(np.zeros((70, 2)))) == 70
    assert len(asked.answers(np.zeros((70, 2)))) == 30
    assert len(rows) == asked.rows == 100
    assert len(asked.answers(np.zeros((1, 2)))) == 0


def test_queries_keep_to_the_public_bounds():
    prepare = Preprocess((Scale(name="age", low=0, high=120), OneHot(name="sex", categories=("f", "m"))))
    x = np.stack(list(islice(queries_for(prepare, 3, seed=1), 200)))
    assert (np.abs(x) <= 1).all()
    assert (x[:, 1:].sum(axis=1) == 1).all()
    assert len(np.unique(x[:, 0])) > 190


def test_a_copy_of_a_plane_is_the_plane():
    draw = np.random.default_rng(4)
    x, w = draw.normal(size=(400, 5)), draw.normal(size=(5, 2))
    copy = fitted(x, x @ w + 1, seed=1)
    fresh = draw.normal(size=(100, 5))
    assert np.abs(copy(fresh) - fresh @ w - 1).max() < 0.05
