"""Softmax, layer normalisation, attention and argmax: torch and onnxruntime are the oracles."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ModelError
from confide.model.graph import Argmax, Attention, Conv, Gelu, Graph, LayerNorm, Linear, Residual, Softmax, parts_of
from confide.model.intervals import intervals
from confide.model.layers import applied
from confide.model.onnx import from_onnx, to_onnx


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def dense(inputs, outputs, positions, seed=0):
    return Conv(drawn(outputs, inputs, 1, 1, seed=seed) / 2, drawn(outputs, seed=seed) / 4, 1, positions)


def block(channels, positions, heads, seed=0):
    norms = [LayerNorm(1 + drawn(channels, seed=k) / 4, drawn(channels, seed=k + 9) / 4, positions) for k in range(2)]
    attending = (dense(channels, 3 * channels, positions, seed), Attention(channels, positions, heads))
    feeding = (dense(channels, 2 * channels, positions, seed), Gelu(), dense(2 * channels, channels, positions, seed))
    return (
        Residual((norms[0], *attending, dense(channels, channels, positions, seed + 1))),
        Residual((norms[1], *feeding)),
    )


def transformer(channels=4, positions=5, heads=2, features=3):
    take = Conv(drawn(channels, 1, 1, features), drawn(channels), positions, features)  # tokens as they come
    return Graph(
        (take, *block(channels, positions, heads), Linear(drawn(3, channels * positions), drawn(3)), Softmax(3))
    )


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 99))
def test_softmax_is_torchs(channels, positions, seed):
    x = 20 * drawn(3, channels, positions, seed=seed)
    wanted = torch.softmax(torch.tensor(x), 1).numpy().reshape(3, -1)
    assert np.abs(Softmax(channels, positions).apply(x.reshape(3, -1)) - wanted).max() < 1e-14


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 99))
def test_layer_norm_is_torchs(channels, positions, seed):
    x, gain, bias = drawn(3, channels, positions, seed=seed), drawn(channels, seed=seed), drawn(channels, seed=seed + 1)
    tokens = torch.tensor(x).transpose(1, 2)
    wanted = torch.nn.functional.layer_norm(tokens, (channels,), torch.tensor(gain), torch.tensor(bias), 1e-5)
    found = LayerNorm(gain, bias, positions).apply(x.reshape(3, -1)).reshape(x.shape)
    assert np.abs(found - wanted.transpose(1, 2).numpy()).max() < 1e-9


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_attention_is_torchs(heads, size, positions, seed):
    layer = Attention(heads * size, positions, heads)
    x = drawn(2, 3, heads, size, positions, seed=seed)
    queries, keys, values = (torch.tensor(x[:, part]).transpose(-1, -2) for part in range(3))
    wanted = torch.nn.functional.scaled_dot_product_attention(queries, keys, values).transpose(-1, -2)
    assert np.abs(layer.apply(x.reshape(2, -1)) - wanted.numpy().reshape(2, -1)).max() < 1e-12


def test_argmax_is_the_first_of_the_largest():
    assert Argmax(3).apply(np.array([[1.0, 4.0, 4.0], [0.0, -1.0, 2.0]])).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    "graph",
    [
        transformer(),
        transformer(6, 4, 3, 5),
        Graph((Linear(drawn(4, 6), drawn(4)), Softmax(4))),
        Graph((Linear(drawn(4, 6), drawn(4)), Argmax(4))),
        Graph((Softmax(3, 4),)),
        Graph(block(4, 3, 1)),
    ],
    ids=["transformer", "heads", "softmax", "argmax", "first", "blocks"],
)
def test_the_runtime_computes_what_the_graph_computes_and_it_is_read_back(graph):
    x = drawn(3, graph.features, seed=5)
    body = to_onnx(graph)
    onnx.checker.check_model(onnx.load_from_string(body), full_check=True)
    session = onnxruntime.InferenceSession(body, providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"x": x})[0] - graph.apply(x)).max() < 1e-4  # convolutions are in float32 there
    again = from_onnx(body)
    assert repr(again.layers) == repr(graph.layers)
    assert all(
        (a == b).all()
        for one, other in zip(again.layers, graph.layers, strict=True)
        for a, b in zip(parts_of(one), parts_of(other), strict=True)
    )
    assert to_onnx(again) == body


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_every_value_lies_in_its_interval(seed):
    for graph in (transformer(), Graph((*block(4, 3, 2), Argmax(12)))):
        rng = np.random.default_rng(seed)
        low = rng.normal(size=graph.features)
        high = low + rng.exponential(size=graph.features)
        y = low + (high - low) * rng.integers(0, 2, (20, graph.features))
        for layer, box in zip(graph.layers, intervals(graph, low, high)[1:], strict=True):
            y = applied(layer, y)
            assert ((box.low <= y) & (y <= box.high)).all()


def altered(body, change):
    model = onnx.load_from_string(body)
    change(model)
    return model.SerializeToString()


def other_axis(model):
    split = next(node for node in model.functions[0].node if node.op_type == "Split")
    split.attribute[0].i = 2


def other_factor(model):
    tensor = next(each for each in model.graph.initializer if each.name.startswith("factor"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(0.9), tensor.name))


@pytest.mark.parametrize("change", [other_axis, other_factor])
def test_an_operator_that_computes_something_else_is_refused(change):
    with pytest.raises(ModelError):
        from_onnx(altered(to_onnx(transformer()), change))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Softmax(0),
        lambda: Attention(4, 2, 3),
        lambda: Attention(4, 4096, 1),
        lambda: LayerNorm(np.ones(3), np.ones(2), 1),
        lambda: LayerNorm(np.ones(3), np.full(3, np.nan), 1),
        lambda: LayerNorm(np.ones(3), np.ones(3), 1, 0.0),
        lambda: Graph((Linear(drawn(4, 6), drawn(4)), Softmax(5))),
    ],
)
def test_sizes_out_of_range_are_refused(make):
    with pytest.raises(ModelError):
        make()
