"""Networks whose activations become squares or polynomials by training."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_moons
from torch import nn

from confide.errors import DataError, ModelError
from confide.model.graph import Gelu, Graph, Linear, Polynomial, Relu, Residual, Sigmoid, Square, Tanh
from confide.model.torch_import import from_torch
from confide.model.zoo import boosted
from confide.train.polynomial import fit_polynomial


def trained(module, x, y, steps=120):
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.03)
    inputs, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(inputs), labels).backward()
        optimiser.step()
    return module


X, Y = make_moons(600, noise=0.15, random_state=0)
X = X / 3


def of_moons(act):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), act, nn.Linear(16, 2))
    return from_torch(trained(module, X, Y), (2,), classes=("a", "b"))


@pytest.fixture(scope="module", name="moons")
def with_a_network():
    return of_moons(nn.Tanh())


def test_accuracy_comes_back_by_training(moons):
    done = fit_polynomial(moons, X, Y, activation="polynomial", degree=5, epochs=30, learning_rate=0.01)
    assert done.before > 0.95
    assert done.after >= done.before - 0.03
    assert (done.replaced, done.outside < 0.05) == (2, True)
    assert [type(layer) for layer in done.graph.layers] == [Linear, Polynomial, Linear, Polynomial, Linear]
    assert done.graph.classes == ("a", "b")


def test_squares_need_the_training():
    done = fit_polynomial(of_moons(nn.ReLU()), X, Y, activation="square", epochs=40, learning_rate=0.03)
    assert done.after >= done.before - 0.06
    assert done.plain < done.after - 0.05  # put in without training they do not do
    assert [type(layer) for layer in done.graph.layers] == [Linear, Square, Linear, Square, Linear]


def test_the_same_seed_gives_the_same_network(moons):
    one, other = (fit_polynomial(moons, X, Y, epochs=2, seed=3).graph for _ in range(2))
    np.testing.assert_array_equal(one.apply(X), other.apply(X))
    assert (fit_polynomial(moons, X, Y, epochs=2, seed=4).graph.apply(X) != one.apply(X)).any()


@pytest.mark.slow
def test_blocks_images_and_a_sigmoid_at_the_end():
    digits = load_digits()
    x, y = digits.data / 16, (digits.target > 4).astype(int)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.GELU())
    net = nn.Sequential(*net, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 2))
    graph = from_torch(trained(net, x.reshape(-1, 1, 8, 8), y, steps=60), (1, 8, 8))
    last = graph.layers[-1]
    one = Linear(last.weight[1:] - last.weight[:1], last.bias[1:] - last.bias[:1])
    block = Residual((Linear(np.eye(64) / 10, np.zeros(64)), Relu()))
    graph = Graph((*graph.layers[:-1], block, one, Sigmoid()))
    done = fit_polynomial(graph, x, y, epochs=4, learning_rate=0.005)
    assert done.after >= done.before - 0.05
    assert done.replaced == 3
    assert isinstance(done.graph.layers[-1], Sigmoid)
    flat = [repr(layer) for layer in done.graph.layers]
    assert not any(name in text for text in flat for name in ("Relu", "Gelu", "Polynomial"))
    assert "Square" in repr(done.graph.layers[5])


def test_numbers_are_fitted_by_their_squared_error():
    x = np.linspace(-1, 1, 400)[:, None]
    graph = Graph((Linear(np.array([[1.0], [-1.0]]), np.zeros(2)), Relu(), Linear(np.ones((1, 2)), np.zeros(1))))
    done = fit_polynomial(graph, x, np.abs(x[:, 0]), activation="polynomial", degree=8, epochs=20)
    assert done.before < 1e-12
    assert done.after < 0.002


@pytest.mark.parametrize(
    ("graph", "changes", "error"),
    [
        (boosted(2, 2, 2), {}, ModelError),
        (Graph((Linear(np.ones((2, 2)), np.zeros(2)),)), {}, ModelError),
        (Graph((Linear(np.ones((2, 3)), np.zeros(2)), Relu())), {}, DataError),
        (Graph((Linear(np.ones((2, 2)), np.zeros(2)), Relu())), {"epochs": 1}, ModelError),
        (Graph((Linear(np.ones((2, 2)), np.zeros(2)), Tanh())), {"held_out": 1.0}, ModelError),
        (Graph((Linear(np.ones((2, 2)), np.zeros(2)), Gelu())), {"degree": 99, "activation": "polynomial"}, ModelError),
    ],
)
def test_what_cannot_be_trained_is_refused(graph, changes, error):
    with pytest.raises(error, match="Expected"):
        fit_polynomial(graph, X, Y, **changes)
