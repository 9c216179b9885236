"""The layers of a graph, against torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

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
    inputs_of,
    parts_of,
    width_after,
    with_parts,
)


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def conv(out, channels, kernel, height, width, stride=(1, 1), padding=(0, 0, 0, 0)):
    return Conv(drawn(out, channels, *kernel), drawn(out, seed=1), height, width, stride, padding)


SMALL = st.integers(1, 3)


@given(st.data())
@settings(max_examples=60)
def test_a_convolution_is_torchs(data):
    out, channels, kernel_h, kernel_w = (data.draw(SMALL) for _ in range(4))
    height, width = kernel_h + data.draw(st.integers(0, 5)), kernel_w + data.draw(st.integers(0, 5))
    stride = data.draw(SMALL), data.draw(SMALL)
    padding = tuple(data.draw(st.integers(0, 3)) for _ in range(4))
    layer = conv(out, channels, (kernel_h, kernel_w), height, width, stride, padding)
    x = drawn(2, layer.inputs)
    top, left, bottom, right = padding
    images = functional.pad(torch.tensor(x).reshape(2, channels, height, width), (left, right, top, bottom))
    wanted = functional.conv2d(images, torch.tensor(layer.weight), torch.tensor(layer.bias), stride=stride)
    assert wanted.shape == (2, out, layer.out_height, layer.out_width)
    np.testing.assert_allclose(applied(layer, x), wanted.reshape(2, -1), rtol=1e-12, atol=1e-12)
    assert layer.outputs == wanted[0].numel()


@given(SMALL, SMALL, SMALL, st.integers(0, 5), st.integers(0, 5), SMALL, SMALL)
@settings(max_examples=60)
def test_a_pool_is_torchs(channels, kernel_h, kernel_w, more_h, more_w, stride_h, stride_w):
    height, width = kernel_h + more_h, kernel_w + more_w
    layer = AveragePool(channels, height, width, (kernel_h, kernel_w), (stride_h, stride_w))
    x = drawn(2, layer.inputs)
    images = torch.tensor(x).reshape(2, channels, height, width)
    wanted = functional.avg_pool2d(images, (kernel_h, kernel_w), (stride_h, stride_w))
    np.testing.assert_allclose(applied(layer, x), wanted.reshape(2, -1), rtol=1e-12, atol=1e-12)
    assert layer.outputs == wanted[0].numel()


@given(SMALL, SMALL, SMALL, st.integers(0, 5), st.integers(0, 5), SMALL, SMALL, st.data())
@settings(max_examples=60)
def test_a_pool_of_maxima_is_torchs(channels, kernel_h, kernel_w, more_h, more_w, stride_h, stride_w, data):
    height, width = kernel_h + more_h, kernel_w + more_w
    down, right = data.draw(st.integers(0, kernel_h // 2)), data.draw(st.integers(0, kernel_w // 2))
    layer = MaxPool(channels, height, width, (kernel_h, kernel_w), (stride_h, stride_w), (down, right, down, right))
    x = drawn(2, layer.inputs) - 9.0  # a padding of zeros would win
    images = torch.tensor(x).reshape(2, channels, height, width)
    wanted = functional.max_pool2d(images, (kernel_h, kernel_w), (stride_h, stride_w), (down, right))
    np.testing.assert_array_equal(applied(layer, x), wanted.reshape(2, -1))
    assert layer.outputs == wanted[0].numel()


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [(Relu(), functional.relu), (Tanh(), torch.tanh), (Gelu(), functional.gelu)],
    ids=["relu", "tanh", "gelu"],
)
def test_activations_are_torchs(layer, wanted):
    x = np.concatenate([np.linspace(-9, 9, 1001), [0.0, -1e300, 1e300]])[None]
    np.testing.assert_allclose(applied(layer, x), wanted(torch.tensor(x)), rtol=1e-12, atol=1e-15)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=9), st.floats(-5, 5), st.floats(0.1, 9))
def test_a_polynomial_is_a_sum_of_cosines(coefficients, low, size):
    layer = Polynomial(np.array(coefficients), low, low + size)
    angle = np.linspace(0, np.pi, 50)  # T_k(cos t) = cos k t
    x = low + size * (1 + np.cos(angle)) / 2
    wanted = np.cos(np.outer(angle, np.arange(len(coefficients)))) @ coefficients
    np.testing.assert_allclose(applied(layer, x[None])[0], wanted, atol=1e-11)


def test_a_polynomial_of_degree_two_is_the_square():
    square = Polynomial(np.array([2.0, 0.0, 2.0]), -2.0, 2.0)  # x^2 = 4 u^2 = 2 + 2 T_2(u)
    x = drawn(3, 4)
    np.testing.assert_allclose(applied(square, x), x * x, atol=1e-14)


def test_many_records_are_convolved_as_each_alone():
    layer = conv(4, 3, (5, 5), 30, 30, padding=(2, 2, 2, 2))  # 67,500 numbers of windows a record
    x = drawn(150, layer.inputs)
    alone = np.concatenate([applied(layer, row[None]) for row in x])
    np.testing.assert_allclose(applied(layer, x), alone, atol=1e-12)
    assert applied(layer, x[:0]).shape == (0, layer.outputs)


def test_residuals_add():
    body = (conv(2, 2, (3, 3), 4, 4, padding=(1, 1, 1, 1)), Relu())
    shortcut = (conv(2, 2, (1, 1), 4, 4),)
    x = drawn(3, 32)
    inner = Graph(body).apply(x)
    np.testing.assert_array_equal(Graph((Residual(body),)).apply(x), inner + x)
    np.testing.assert_array_equal(Graph((Residual(body, shortcut),)).apply(x), inner + Graph(shortcut).apply(x))
    np.testing.assert_array_equal(applied(Residual((Square(),)), x), x * x + x)


LAYERS = (
    Residual((conv(2, 2, (3, 3), 4, 4, padding=(1, 1, 1, 1)), Polynomial(drawn(4), -1.0, 2.0))),
    MaxPool(2, 4, 4, (2, 2), (1, 1), (1, 0, 0, 1)),
    AveragePool(2, 4, 4, (2, 2), (2, 2)),
    Gelu(),
    Tanh(),
    Linear(drawn(3, 8), drawn(3)),
    Relu(),
    Residual((Linear(drawn(2, 3), drawn(2)), Residual((Square(),))), (Linear(drawn(2, 3), drawn(2)),)),
    Sigmoid(),
)


def test_a_graph_of_every_layer_knows_its_sizes():
    graph = Graph(LAYERS)
    assert graph.widths == (32, 32, 32, 8, 8, 8, 3, 3, 2, 2)
    assert (graph.features, graph.outputs) == (32, 2)
    assert graph.parameters == (2 * 2 * 9 + 2 + 4) + (24 + 3) + 2 * (6 + 2)
    assert graph.apply(drawn(5, 32)).shape == (5, 2)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_private_numbers_leave_and_come_back(layer):
    x = drawn(4, inputs_of(layer) or 3)
    parts = parts_of(layer)
    np.testing.assert_array_equal(applied(with_parts(layer, parts), x), applied(layer, x))
    if parts:
        other = with_parts(layer, [part + 1 for part in parts])
        assert not np.allclose(applied(other, x), applied(layer, x))
        assert all((new == old + 1).all() for new, old in zip(parts_of(other), parts, strict=True))


ONE = np.ones(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Conv(np.ones((1, 1, 3)), ONE, 4, 4),
        lambda: Conv(np.ones((2, 1, 3, 3)), ONE, 4, 4),
        lambda: Conv(np.ones((1, 1, 3, 3)), ONE, 2, 4),
        lambda: Conv(np.ones((1, 1, 3, 3)), ONE, 4, 4, stride=(0, 1)),
        lambda: Conv(np.ones((1, 1, 3, 3)), ONE, 4, 4, padding=(0, 0, -1, 0)),
        lambda: Conv(np.ones((1, 1, 3, 3)), ONE, 4, 4, padding=(0, 0, 1 << 30, 0)),
        lambda: Conv(np.ones((1, 1, 3, 3)), ONE, 0, 4),
        lambda: Conv(np.full((1, 1, 3, 3), np.nan), ONE, 4, 4),
        lambda: Conv(np.ones((1, 1, 3, 3)), np.full(1, np.inf), 4, 4),
        lambda: AveragePool(1, 2, 2, (3, 1), (1, 1)),
        lambda: AveragePool(0, 2, 2, (1, 1), (1, 1)),
        lambda: AveragePool(1, 2, 2, (1, 1), (1, 0)),
        lambda: AveragePool(1, 1 << 20, 1 << 20, (1, 1), (1, 1)),
        lambda: MaxPool(1, 2, 2, (3, 1), (1, 1)),
        lambda: MaxPool(0, 2, 2, (1, 1), (1, 1)),
        lambda: MaxPool(1, 2, 2, (1, 1), (1, 0)),
        lambda: MaxPool(1, 2, 2, (2, 2), (1, 1), (2, 0, 0, 0)),
        lambda: MaxPool(1, 2, 2, (2, 2), (1, 1), (0, 0, -1, 0)),
        lambda: MaxPool(1, 1 << 20, 1 << 20, (1, 1), (1, 1)),
        lambda: Polynomial(ONE, 0.0, 1.0),
        lambda: Polynomial(np.ones(300), 0.0, 1.0),
        lambda: Polynomial(np.ones(3), 1.0, 1.0),
        lambda: Polynomial(np.ones(3), 0.0, np.inf),
        lambda: Polynomial(np.array([1.0, np.nan]), 0.0, 1.0),
        lambda: Residual(()),
        lambda: Graph((Relu(),)),
        lambda: Graph((Residual((Square(),)),)),
        lambda: Graph((Linear(np.ones((2, 3)), np.ones(2)), AveragePool(1, 2, 2, (1, 1), (1, 1)))),
        lambda: Graph((Residual((Linear(np.ones((2, 3)), np.ones(2)),)),)),
        lambda: Graph((Linear(np.ones((3, 3)), np.ones(3)), Residual((Linear(np.ones((3, 2)), np.ones(3)),)))),
    ],
)
def test_layers_that_cannot_work_are_refused(make):
    with pytest.raises(ModelError, match="Expected"):
        make()


def test_a_width_that_does_not_fit_names_the_layer():
    with pytest.raises(ModelError, match="layer 7 to take 5 inputs, got 8"):
        width_after(Linear(drawn(3, 8), drawn(3)), 5, "layer 7")


def test_no_repr_shows_a_parameter():
    layer = Residual(
        (
            Conv(np.full((5, 1, 2, 2), 0.123456), np.full(5, 0.654321), 28, 28, (2, 2)),
            Polynomial(np.full(4, 0.123456), -0.654321, 1.5),
        )
    )
    assert repr(layer) == "Residual(Conv(1x28x28 -> 5x14x14, kernel 2x2, stride 2x2), Polynomial(degree 3) + x)"
