"""Starting points: shapes, repeatability, and that training can move them."""

import numpy as np
import pytest

from confide.errors import ModelError
from confide.model.graph import Linear, Sigmoid, Square
from confide.model.zoo import logistic, mlp


def test_logistic_starts_undecided():
    graph = logistic(5, 3, classes=("a", "b", "c"))
    np.testing.assert_array_equal(graph.apply(np.ones((2, 5))), np.full((2, 3), 0.5))
    assert [type(layer) for layer in graph.layers] == [Linear, Sigmoid]
    assert graph.classes == ("a", "b", "c")


def test_mlp_has_its_shape_and_repeats_under_its_seed():
    one, again, other = mlp(30, 16, seed=1), mlp(30, 16, seed=1), mlp(30, 16, seed=2)
    assert [type(layer) for layer in one.layers] == [Linear, Square, Linear, Sigmoid]
    assert (one.features, one.outputs, one.parameters) == (30, 1, 30 * 16 + 16 + 16 + 1)
    x = np.linspace(-1, 1, 60).reshape(2, 30)
    np.testing.assert_array_equal(one.apply(x), again.apply(x))
    assert (one.apply(x) != other.apply(x)).all()


def test_mlp_weights_have_the_stated_spread():
    # 64,000 and 10,000 normal draws: the sample deviation is within 4 standard errors (1.1 % and 2.9 %), seed fixed
    first, _, second, _ = mlp(64, 1000, 10, seed="spread").layers
    assert abs(first.weight.std() * 8 - 1) < 0.011
    assert abs(second.weight.std() * np.sqrt(3000) - 1) < 0.029
    assert not first.bias.any()


def test_the_logits_of_an_mlp_start_moderate():
    graph = mlp(30, 16, seed=3)
    corners = np.sign(np.random.default_rng(3).normal(size=(200, 30)))
    outputs = graph.apply(corners)
    assert ((outputs > 0.01) & (outputs < 0.99)).all()


@pytest.mark.parametrize(
    "make", [lambda: logistic(0), lambda: logistic(3, 0), lambda: mlp(0, 1, seed=1), lambda: mlp(3, 0, seed=1)]
)
def test_empty_shapes_are_refused(make):
    with pytest.raises(ModelError, match=r"=0 to be at least 1"):
        make()
