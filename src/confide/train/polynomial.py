"""A network's activations become squares or polynomials by training, so that it runs on encrypted inputs.

Replaced at once, an activation's error adds up layer by layer. So each is blended into its polynomial over the first
half of the epochs: (1 - s) f(x) + s p(x), s from 0 to 1. The loss is that of the labels, plus how far the outputs are
from the first network's (its knowledge), plus how far inputs leave the interval of their polynomial, where it grows.

Paper: range-aware loss as in Baruch et al., "Training Large Scale Polynomial CNNs for E2E Inference over Homomorphic
Encryption" (2023); knowledge as in Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Module, functional

from confide.errors import DataError, ModelError
from confide.model.fitted import fit, squared
from confide.model.graph import Graph, Polynomial, Sigmoid
from confide.model.layers import Gelu, Relu, Tanh
from confide.model.torch_import import Chebyshev, read_back, to_torch

Matrix = NDArray[np.float64]
Kind = Literal["square", "polynomial"]

_MARGIN = 1.2  # how much wider than the inputs seen the interval of a polynomial is, at the start
_RANGE_OF_A_POLYNOMIAL, _RANGE_OF_A_SQUARE = 1.0, 0.01  # weights in the loss; a square holds everywhere
_KNOWLEDGE = 0.5
_LONGEST_STEP = 1.0  # norm of a gradient
_KINDS: Mapping[type[nn.Module], type[Relu | Tanh | Gelu | Sigmoid]] = {
    nn.ReLU: Relu,
    nn.Tanh: Tanh,
    nn.GELU: Gelu,
    nn.Sigmoid: Sigmoid,
}


@dataclass(frozen=True, slots=True)
class FittedNetwork:
    """What `fit_polynomial` returns.

    Args:
        graph: the network with squares or polynomials.
        before, after: accuracy on the held-out records (of numbers: the mean squared error), first of the network as it
            came, then of `graph`.
        plain: of the network with the best polynomials put in without training.
        outside: the share of held-out records of which some number left its polynomial's interval; for squares, which
            hold everywhere, of what the records spanned at the start.
        replaced: how many activations.
    """

    graph: Graph
    before: float
    after: float
    plain: float
    outside: float
    replaced: int


def fit_polynomial(
    graph: Graph,
    x: Matrix,
    y: NDArray[Any],
    *,
    activation: Kind = "square",
    degree: int = 4,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    held_out: float = 0.2,
    seed: int = 1,
) -> FittedNetwork:
    """Return a network whose activations are squares or polynomials, trained on records to do what it did.

    This is training in the clear, with no privacy: the result may tell about single records.

    Args:
        graph: without trees; a sigmoid at the end stays, because it runs at the client.
        x: float64, shape (n, features), as the graph takes them.
        y: whole numbers, shape (n,): the class of each; or float64, shape (n,) or (n, outputs): numbers.
        activation: "square" makes each (t x + q)², merged into the layers beside it; "polynomial" one of `degree`.
        degree: of the polynomials, 2 to 63.
        epochs: passes over the records that are not held out, at least 2.
        learning_rate: of Adam, above 0.
        batch_size: records of a step.
        held_out: share of the records that accuracy is measured on, above 0 and below 1.
        seed: public: of the order of records and what is held out.

    Raises:
        ModelError: the graph has trees, or nothing to replace; the training diverged.
        DataError: records that do not fit.
    """
    if x.ndim != 2 or x.shape[1] != graph.features or len(y) != len(x) or len(x) < 10 or not np.isfinite(x).all():
        raise DataError(f"Expected at least 10 records of {graph.features} finite features with a label each")
    if not (epochs >= 2 and learning_rate > 0 and batch_size >= 1 and 0 < held_out < 1 and 2 <= degree):
        raise ModelError("Expected epochs >= 2, learning_rate > 0, batch_size >= 1, 0 < held_out < 1 and degree >= 2")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator).numpy()
    tested, trained = np.split(order, [max(1, int(held_out * len(x)))])
    head = Graph(graph.layers[:-1]) if isinstance(graph.layers[-1], Sigmoid) else Graph(graph.layers)
    module = to_torch(head)
    with torch.no_grad():
        wanted: Tensor = module(torch.tensor(x, dtype=torch.get_default_dtype()))
    blends = _blended(module, torch.tensor(x[trained], dtype=torch.get_default_dtype()), activation, degree)
    if not blends:
        raise ModelError("Expected a network with Relu, Tanh, Gelu or an inner Sigmoid; there is nothing to replace")
    plain = _score(_finished(module, blends, head, graph, activation), x[tested], y[tested])
    module.train()
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate)
    for epoch in range(epochs):
        share = min(1.0, 2.0 * (epoch + 1) / epochs)
        for blend in blends:
            blend.share = share
        for group in optimiser.param_groups:  # the second half cools down
            group["lr"] = learning_rate * min(1.0, 2.0 * (epochs - epoch) / epochs)
        for rows in _batches(trained, batch_size, generator):
            _step(module, blends, optimiser, x[rows], y[rows], wanted[torch.tensor(rows)])
    made = _finished(module, blends, head, graph, activation)
    return FittedNetwork(
        graph=made,
        before=_score(graph, x[tested], y[tested]),
        after=_score(made, x[tested], y[tested]),
        plain=plain,
        outside=_outside(module, blends, x[tested]),
        replaced=len(blends),
    )


class _ScaledSquare(Module):
    """y = (t x + q)²."""

    def __init__(self, t: float, q: float) -> None:
        super().__init__()
        self.t, self.q = nn.Parameter(torch.tensor(t)), nn.Parameter(torch.tensor(q))

    def forward(self, x: Tensor) -> Tensor:
        return (self.t * x + self.q) ** 2


class _Blend(Module):
    """An activation on its way to a polynomial; `beyond` is how far the last batch left the interval."""

    def __init__(self, original: nn.Module, made: Chebyshev | _ScaledSquare, low: float, high: float) -> None:
        super().__init__()
        self.original, self.made = original, made
        self.low, self.high, self.share = low, high, 1.0
        self.weight = _RANGE_OF_A_SQUARE if isinstance(made, _ScaledSquare) else _RANGE_OF_A_POLYNOMIAL
        self.beyond, self.left = torch.zeros(()), torch.zeros(0, dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        away = torch.relu(torch.abs((2 * x - self.low - self.high) / (self.high - self.low)) - 1.0)
        self.beyond, self.left = (away**2).mean(), (away.flatten(1) > 0).any(dim=1)
        return (1.0 - self.share) * self.original(x) + self.share * self.made(x)


def _blended(module: nn.Sequential, x: Tensor, activation: Kind, degree: int) -> list[_Blend]:
    """Put a blend in the place of each activation, on the interval that the records span there; return them."""
    found: list[_Blend] = []
    for parent, name, child in [*_activations(module)]:
        low, high = _seen(module, child, x)
        middle, half = (low + high) / 2, _MARGIN * max((high - low) / 2, 1e-3)
        low, high = middle - half, middle + half
        layer = _KINDS[type(child)]()
        polynomial, _ = fit(layer, low, high, 2 if activation == "square" else degree)
        made = _square_like(polynomial) if activation == "square" else Chebyshev(polynomial.coefficients, low, high)
        blend = _Blend(child, made, low, high)
        setattr(parent, name, blend)
        found.append(blend)
    return found


def _activations(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield the activations of a module with their parent and their name in it, in the order in which they run."""
    for name, child in module.named_children():
        if type(child) in _KINDS:
            yield module, name, child
        else:
            yield from _activations(child)


def _seen(module: nn.Module, part: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return the least and the largest input of a part of a module over records."""
    ends: list[float] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        ends.extend((float(given[0].min()), float(given[0].max())))

    handle = part.register_forward_pre_hook(note)
    with torch.no_grad():
        for start in range(0, len(x), 1024):
            module(x[start : start + 1024])
    handle.remove()
    return min(ends), max(ends)


def _square_like(polynomial: Polynomial) -> _ScaledSquare:
    """Return the square that is a polynomial of degree two up to a constant, which the next layer's bias learns."""
    half, middle = (polynomial.high - polynomial.low) / 2, (polynomial.high + polynomial.low) / 2
    slope, bend = float(polynomial.coefficients[1]), abs(float(polynomial.coefficients[2]))
    bend = max(bend, abs(slope) / 2)  # of an odd function the best parabola is a line: it would stay one
    t = math.sqrt(2 * bend) / half
    return _ScaledSquare(t, t * (slope * half / (4 * bend) - middle))


def _batches(rows: NDArray[np.int64], size: int, generator: torch.Generator) -> Iterator[NDArray[np.int64]]:
    order = rows[torch.randperm(len(rows), generator=generator).numpy()]
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _step(
    module: nn.Module,
    blends: list[_Blend],
    optimiser: torch.optim.Optimizer,
    x: Matrix,
    y: NDArray[Any],
    wanted: Tensor,
) -> None:
    optimiser.zero_grad()
    given: Tensor = module(torch.tensor(x, dtype=torch.get_default_dtype()))
    scale = wanted.pow(2).mean() + 1e-6
    loss = _loss(given, y) + _KNOWLEDGE * (given - wanted).pow(2).mean() / scale
    loss = loss + torch.stack([blend.weight * blend.beyond for blend in blends]).sum()
    if not torch.isfinite(loss):
        raise ModelError("Expected a training that converges; take a lower learning rate or more epochs")
    loss.backward()  # pyright: ignore[reportUnknownMemberType]
    nn.utils.clip_grad_norm_(module.parameters(), _LONGEST_STEP)
    optimiser.step()


def _is_classes(y: NDArray[Any]) -> bool:
    return y.ndim == 1 and y.dtype.kind in "iub"


def _loss(given: Tensor, y: NDArray[Any]) -> Tensor:
    if _is_classes(y):
        if given.shape[1] == 1:
            return functional.binary_cross_entropy_with_logits(given[:, 0], torch.tensor(y, dtype=given.dtype))
        return functional.cross_entropy(given, torch.tensor(y.astype(np.int64)))
    return functional.mse_loss(given, torch.tensor(y.reshape(len(y), -1), dtype=given.dtype))


def _finished(module: nn.Sequential, blends: list[_Blend], head: Graph, graph: Graph, activation: Kind) -> Graph:
    """Return the graph of a module with each blend's polynomial in its place; the module is left as it was."""
    places = [(parent, name, part) for parent, name, part in _blends_in(module)]
    for parent, name, blend in places:
        setattr(parent, name, _chebyshev(blend))
    made = read_back(module, head)
    for parent, name, blend in places:
        setattr(parent, name, blend)
    made = squared(made) if activation == "square" else made
    return replace(graph, layers=(*made.layers, *graph.layers[len(head.layers) :]))


def _blends_in(module: nn.Module) -> Iterator[tuple[nn.Module, str, _Blend]]:
    for name, child in module.named_children():
        if isinstance(child, _Blend):
            yield module, name, child
        else:
            yield from _blends_in(child)


def _chebyshev(blend: _Blend) -> Chebyshev:
    if isinstance(blend.made, Chebyshev):
        return blend.made
    half, middle = (blend.high - blend.low) / 2, (blend.high + blend.low) / 2
    t, q = blend.made.t.item(), blend.made.q.item()
    a, b = t * half, t * middle + q  # (a u + b)², and u² = (1 + T_2(u)) / 2
    return Chebyshev(np.array([b * b + a * a / 2, 2 * a * b, a * a / 2]), blend.low, blend.high)


def _score(graph: Graph, x: Matrix, y: NDArray[Any]) -> float:
    """Return the accuracy of classes, or the mean squared error of numbers."""
    given = graph.apply(x)
    if not _is_classes(y):
        return float(((given - y.reshape(len(y), -1)) ** 2).mean())
    if given.shape[1] > 1:
        return float((given.argmax(axis=1) == y).mean())
    edge = 0.5 if isinstance(graph.layers[-1], Sigmoid) else 0.0
    return float(((given[:, 0] > edge) == y).mean())


def _outside(module: nn.Module, blends: list[_Blend], x: Matrix) -> float:
    with torch.no_grad():
        module(torch.tensor(x, dtype=torch.get_default_dtype()))
    return float(torch.stack([blend.left for blend in blends]).any(dim=0).double().mean())
