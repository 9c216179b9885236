"""How many answers determine a model: checked by copying linear ones from that many answers, and from one fewer."""

from __future__ import annotations

import numpy as np
import pytest

from confide.model.extraction import extraction
from confide.model.graph import Graph, Linear, Sigmoid, Square

DRAW = np.random.Generator(np.random.PCG64(3))


def linear(outputs: int, features: int) -> Linear:
    return Linear(DRAW.normal(size=(outputs, features)), DRAW.normal(size=outputs))


@pytest.mark.parametrize(
    "layers",
    [(linear(1, 30), Sigmoid()), (linear(3, 4),), (linear(5, 4), linear(2, 5)), (linear(1, 1), Sigmoid())],
    ids=["logistic", "linear", "two linear", "one feature"],
)
def test_an_affine_model_is_copied_from_as_many_answers_and_not_from_fewer(layers):
    graph = Graph(layers)
    found = extraction(graph)
    assert (found.rows, found.exact) == (graph.features + 1, True)
    for rows, enough in ((found.rows, True), (found.rows - 1, False)):
        x = DRAW.normal(size=(rows, graph.features))
        y = graph.apply(x)
        z = np.log(y / (1 - y)) if isinstance(layers[-1], Sigmoid) else y
        copy, *_ = np.linalg.lstsq(np.column_stack([x, np.ones(rows)]), z, rcond=None)
        fresh = DRAW.normal(size=(20, graph.features))
        guess = np.column_stack([fresh, np.ones(20)]) @ copy
        guess = 1 / (1 + np.exp(-guess)) if isinstance(layers[-1], Sigmoid) else guess
        assert np.allclose(guess, graph.apply(fresh), atol=1e-6) == enough


def test_other_models_have_an_estimate_that_says_so():
    graph = Graph((linear(8, 10), Square(), linear(3, 8)))
    found = extraction(graph)
    assert (found.rows, found.exact) == (-(-(8 * 10 + 8 + 3 * 8 + 3) // 3), False)
    assert "estimate" in found.sentence()
    assert "estimate" not in extraction(Graph((linear(1, 3),))).sentence()
    assert not extraction(Graph((linear(1, 3), Sigmoid(), linear(1, 1)))).exact
