"""Modules of torch as graphs; torch itself is the oracle."""

import numpy as np
import pytest
import torch
from torch import nn

from confide.errors import ModelError
from confide.model.graph import Graph, Linear, parts_of
from confide.model.onnx import from_onnx, to_onnx
from confide.model.torch_import import Chebyshev, Residual, from_torch, read_back, to_torch
from confide.model.zoo import boosted
from confide.train import Square


def with_statistics(module, shape):
    """Return a module whose batch norms have seen records."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.affine:
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    module.train()
    for _ in range(3):
        module(torch.randn(8, *shape) * 2 + 1)
    return module.eval()


def block(channels):
    body = nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout2d()
    )
    return Residual(body, nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)))


MODULES = {
    "mlp": (
        nn.Sequential(nn.Linear(5, 4), Square(), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False), nn.Sigmoid()),
        (5,),
    ),
    "activations": (
        nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 1)),
        (5,),
    ),
    "a polynomial": (nn.Sequential(nn.Linear(5, 4), Chebyshev(np.array([0.5, 1.0, -0.25, 0.1]), -3, 4)), (5,)),
    "images": (
        nn.Sequential(
            nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.BatchNorm2d(3, affine=False),
            nn.Conv2d(3, 4, (3, 1), padding="same"),
            nn.Identity(),
            Square(),
            nn.Sequential(nn.Flatten(), nn.Linear(4 * 2 * 4, 3)),
        ),
        (2, 8, 9),
    ),
    "residual blocks": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3), block(4), nn.ReLU(), Residual(nn.Sequential(nn.BatchNorm2d(4), Square())), block(4)
        ).append(nn.AdaptiveAvgPool2d(1))
        .append(nn.Flatten())
        .append(nn.Linear(4, 2)),
        (1, 6, 6),
    ),
    "maxima": (
        nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.MaxPool2d(3, 2, padding=1), nn.ReLU(), nn.MaxPool2d((1, 2), (1, 1))
        ).append(nn.Conv2d(3, 2, 1))
        .append(nn.AdaptiveMaxPool2d(1))
        .append(nn.Flatten())
        .append(nn.Linear(2, 2)),
        (1, 7, 8),
    ),
    "batch norm first": (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1), nn.Flatten()), (2, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_a_graph_computes_what_the_module_does(name):
    module, shape = MODULES[name]
    module = with_statistics(module, shape)
    x = torch.randn(6, *shape)
    graph = from_torch(module, shape)
    with torch.no_grad():
        wanted = module(x).flatten(1)
    np.testing.assert_allclose(graph.apply(x.flatten(1).double().numpy()), wanted, rtol=1e-4, atol=1e-4)
    again = from_onnx(to_onnx(graph))
    np.testing.assert_allclose(again.apply(x.flatten(1).double().numpy()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODULES)
def test_a_graph_becomes_a_module_and_comes_back(name):
    module, shape = MODULES[name]
    graph = from_torch(with_statistics(module, shape), shape)
    x = torch.randn(6, graph.features)
    made = to_torch(graph)
    with torch.no_grad():
        np.testing.assert_allclose(made(x).numpy(), graph.apply(x.double().numpy()), rtol=1e-4, atol=1e-4)
    back = read_back(made, graph)
    for one, other in zip(graph.layers, back.layers, strict=True):
        assert repr(one) == repr(other)
        for left, right in zip(parts_of(one), parts_of(other), strict=True):
            np.testing.assert_array_equal(right, np.float64(np.float32(left)))


def test_batch_norm_is_no_layer():
    module, shape = MODULES["images"]
    kinds = [type(layer).__name__ for layer in from_torch(with_statistics(module, shape), shape).layers]
    assert kinds == ["Conv", "Relu", "AveragePool", "Conv", "Conv", "Square", "Linear"]  # the second norm meets padding


def test_the_module_is_left_in_its_mode():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    from_torch(module.train(), (2,))
    assert module.training


def test_everything_that_cannot_run_is_listed_with_its_replacement():
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2),
        nn.SiLU(),
        nn.MaxPool2d(2, dilation=2),
        Residual(nn.Sequential(nn.LayerNorm((4, 2, 2)), nn.GELU("tanh"))),
        nn.Flatten(),
        nn.Linear(16, 2),
        nn.LogSoftmax(dim=1),
        nn.Unflatten(1, (1, 2)),
    )
    with pytest.raises(ModelError) as caught:
        from_torch(module, (2, 8, 8))
    lines = [line.strip().split(" (")[0] for line in str(caught.value).splitlines()[1:]]
    assert lines == ["0", "1", "2", "3.body.0", "3.body.1", "6", "7"]
    assert "2 (MaxPool2d): a dilated pool, or one of windows that are cut; take dilation=1" in str(caught.value)


def test_a_record_of_another_shape_is_refused():
    with pytest.raises(ModelError, match=r"does not take records of shape \(3,\)"):
        from_torch(nn.Sequential(nn.Linear(2, 2)), (3,))


@pytest.mark.parametrize("module", [nn.LSTM(4, 4), nn.Sequential(nn.Linear(4, 3), nn.GRU(3, 3))])
def test_a_module_that_gives_no_tensor_is_refused_by_its_name(module):
    with pytest.raises(ModelError, match=r"\((LSTM|GRU)\): a graph has no such layer; take Linear"):
        from_torch(module, (4,))


def test_trees_become_no_module():
    with pytest.raises(ModelError, match="without Trees"):
        to_torch(boosted(3, 2, 2))


def test_classes_are_kept():
    graph = from_torch(nn.Linear(2, 2), (2,), classes=("a", "b"))
    assert isinstance(graph, Graph)
    assert graph.classes == ("a", "b")
    assert isinstance(graph.layers[0], Linear)
