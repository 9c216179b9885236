"""Server optimisers against torch and against the paper's formulas, written out here."""

import numpy as np
import pytest
import torch

from confide.train.optimise import optimiser_of
from confide.train.sections import TrainSection

CHANGES = np.random.default_rng(3).normal(size=(30, 7)) * np.logspace(-4, 0, 7)


def walk(**settings):
    optimiser = optimiser_of(TrainSection(**settings))
    return np.cumsum([optimiser.step(change) for change in CHANGES], axis=0)


def torch_walk(make):
    weights = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimiser = make([weights])
    places = []
    for change in CHANGES:
        weights.grad = torch.tensor(-change)
        optimiser.step()
        places.append(weights.detach().numpy().copy())
    return np.array(places)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "scaffold"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_heavy_ball_is_torch_sgd(algorithm, momentum):
    ours = walk(algorithm=algorithm, momentum=momentum, server_learning_rate=0.3)
    np.testing.assert_allclose(ours, torch_walk(lambda w: torch.optim.SGD(w, lr=0.3, momentum=momentum)), rtol=1e-12)


def test_adagrad_without_momentum_is_torch_adagrad():
    ours = walk(algorithm="fedadagrad", momentum=0.0, server_learning_rate=0.2, adaptivity=0.01)
    theirs = torch_walk(lambda w: torch.optim.Adagrad(w, lr=0.2, eps=0.01, initial_accumulator_value=1e-4))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_adam_is_torch_adam_without_its_bias_correction():
    """Torch divides by 1 - beta^t; the paper does not. RMSprop, which does neither, is the same at beta1 = 0."""
    ours = walk(algorithm="fedadam", momentum=0.0, server_learning_rate=0.2, adaptivity=1e-9, second_moment=0.95)
    theirs = torch_walk(lambda w: torch.optim.RMSprop(w, lr=0.2, eps=1e-9, alpha=0.95))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["fedadagrad", "fedadam", "fedyogi"])
def test_the_paper_one_number_at_a_time(algorithm):
    """Reddi et al. 2021, Algorithm 2, in plain floats."""
    rate, beta1, beta2, tau = 0.1, 0.8, 0.9, 0.02
    ours = walk(algorithm=algorithm, momentum=beta1, second_moment=beta2, adaptivity=tau, server_learning_rate=rate)
    for column in range(7):
        place, m, v = 0.0, 0.0, tau**2
        for row, change in enumerate(CHANGES[:, column]):
            m = beta1 * m + (1 - beta1) * change
            square = change**2
            if algorithm == "fedadagrad":
                v = v + square
            elif algorithm == "fedadam":
                v = beta2 * v + (1 - beta2) * square
            else:
                v = v - (1 - beta2) * square * (1 if v > square else -1 if v < square else 0)
            place = place + rate * m / (v**0.5 + tau)
            assert ours[row, column] == pytest.approx(place, rel=1e-9, abs=1e-15)


def test_the_algorithms_differ():
    names = ("fedavg", "fedadagrad", "fedadam", "fedyogi")
    ends = {walk(algorithm=name, server_learning_rate=0.1)[-1].tobytes() for name in names}
    assert len(ends) == len(names)
