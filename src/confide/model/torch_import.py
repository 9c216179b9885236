"""From `torch.nn` modules to a graph and back.

Linear, Conv2d                     Linear, Conv
AvgPool2d, AdaptiveAvgPool2d(1)    AveragePool
MaxPool2d, AdaptiveMaxPool2d(1)    MaxPool
BatchNorm1d, BatchNorm2d           merged into a layer beside them, with the statistics they hold
ReLU, GELU, Tanh, Sigmoid          Relu, Gelu, Tanh, Sigmoid
Square                             Square: any module whose class is so called, `confide.train.Square` among them
Chebyshev, Residual                Polynomial, Residual: the modules below
LayerNorm, Softmax, TransformerEncoder(Layer), TokenMean, Linear on tokens    see torch_attention.py
Flatten, Dropout, Identity         nothing
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Module

from confide.errors import ModelError
from confide.model import torch_attention
from confide.model.folded import Scale, folded
from confide.model.graph import Graph, Problem
from confide.model.layers import (
    AveragePool,
    Conv,
    Gelu,
    Layer,
    Linear,
    Polynomial,
    Relu,
    Sigmoid,
    Square,
    Tanh,
)
from confide.model.layers import Residual as ResidualLayer
from confide.model.max_pool import MaxPool

Matrix = NDArray[np.float64]
Shape = tuple[int, ...]


class Squared(Module):
    """y = x^2."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x^2, elementwise."""
        return x * x


class Residual(Module):
    """y = body(x) + shortcut(x).

    Args:
        body: any module that `from_torch` reads.
        shortcut: the same; None is x itself.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches."""
        beside: Tensor = x if self.shortcut is None else self.shortcut(x)
        return self.body(x) + beside


class Chebyshev(Module):
    """y = sum over k of c_k T_k(u), u = (2 x - low - high) / (high - low), elementwise; the coefficients are trained.

    Args:
        coefficients: shape (degree + 1,), a degree of at least 1.
        low, high: the interval, low < high.
    """

    def __init__(self, coefficients: Matrix, low: float, high: float) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor(coefficients, dtype=torch.get_default_dtype()))
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Return the polynomial's values by Clenshaw's sum."""
        u = (2 * x - (self.low + self.high)) / (self.high - self.low)
        later, last = torch.zeros_like(u), torch.zeros_like(u) + self.coefficients[-1]
        for k in range(len(self.coefficients) - 2, 0, -1):
            later, last = last, 2 * u * last - later + self.coefficients[k]
        return u * last - later + self.coefficients[0]


def from_torch(module: nn.Module, input_shape: Sequence[int], *, classes: tuple[str, ...] = ()) -> Graph:
    """Return a module as a graph, as it computes in evaluation mode.

    Args:
        module: an `nn.Sequential`, nested ones and `Residual` included, of the modules above.
        input_shape: of one record, without the batch: (features,), (tokens, features) or (channels, height, width).
        classes: names of the outcomes.

    Raises:
        ModelError: with every module that cannot be converted and what to take instead.
    """
    problems: list[Problem] = []
    training = module.training
    module.eval()
    try:
        items, _ = _chain(module, tuple(input_shape), "", problems)
    finally:
        module.train(training)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ModelError(f"Expected a module that a graph can hold:\n{lines}")
    return Graph(folded(items), classes)


def _chain(
    module: nn.Module | None, shape: Shape, name: str, problems: list[Problem]
) -> tuple[list[Layer | Scale], Shape]:
    """Return what a module does to a record of `shape`, and the shape that it gives."""
    if module is None:
        return [], shape
    if isinstance(module, nn.Sequential):
        items: list[Layer | Scale] = []
        for number, child in module.named_children():
            found, shape = _chain(child, shape, f"{name}{number}.", problems)
            items += found
        return items, shape
    where = f"{name.rstrip('.') or 'module'} ({type(module).__name__})"
    given = _shape_after(module, shape)
    if given is None:
        mismatch = f"it does not take records of shape {shape}", "give the shape of one record"
        problems.append(Problem(where, *(_refusal(module) or mismatch)))
        return [], shape
    if isinstance(module, Residual):
        turn = len(shape) == 2 and not isinstance(shape, torch_attention.Turned)
        taken = torch_attention.taken_in([], shape) if turn else []
        shape = torch_attention.Turned(shape) if turn else shape
        before = len(problems)
        body, shortcut = (
            _chain(part, shape, f"{name}{side}.", problems)[0]
            for part, side in ((module.body, "body"), (module.shortcut, "shortcut"))
        )
        made = [*taken, ResidualLayer(folded(body), folded(shortcut))] if len(problems) == before else []
        return made, torch_attention.Turned(given) if isinstance(shape, torch_attention.Turned) else given
    if reason := torch_attention.refusal(module, shape) or _refusal(module):
        problems.append(Problem(where, *reason))
        return [], given
    found = torch_attention.layers(module, shape)
    if len(given) == 2 and (found is not None or isinstance(shape, torch_attention.Turned)):
        given = torch_attention.Turned(given)
    return _items(module, shape) if found is None else found, given


def _shape_after(module: nn.Module, shape: Shape) -> Shape | None:
    """Return the shape that a module gives, by running it on one record of zeros; None if it cannot."""
    like = next((parameter for parameter in module.parameters()), torch.zeros(()))
    try:
        with torch.no_grad():
            result: object = module(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    return tuple(result.shape[1:]) if isinstance(result, Tensor) else None


def _refusal(module: nn.Module) -> tuple[str, str] | None:
    """Return why a module is no layer, and what to do; None if it is one."""
    match module:
        case nn.Conv2d():
            if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
                return "a grouped, dilated or reflected convolution", "take groups=1, dilation=1, padding_mode='zeros'"
        case nn.AvgPool2d():
            if _pair(module.padding) != (0, 0) or module.ceil_mode or module.divisor_override is not None:
                return "a pool beyond the image, or with another divisor", "take padding=0 and ceil_mode=False"
        case nn.MaxPool2d():
            if _pair(module.dilation) != (1, 1) or module.ceil_mode or module.return_indices:
                return "a dilated pool, or one of windows that are cut", "take dilation=1 and ceil_mode=False"
        case nn.AdaptiveAvgPool2d() | nn.AdaptiveMaxPool2d():
            if module.output_size not in (1, (1, 1)):
                return "windows of several sizes", "take AvgPool2d or MaxPool2d, or output_size=1"
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            if module.running_mean is None:
                return "statistics of a batch", "take track_running_stats=True"
        case nn.GELU():
            if module.approximate != "none":
                return "the approximate form", "take approximate='none'"
        case nn.Flatten():
            if module.start_dim != 1 or module.end_dim != -1:
                return "it does not keep one vector for each record", "take start_dim=1"
        case nn.SiLU() | nn.ELU() | nn.SELU() | nn.LeakyReLU() | nn.PReLU() | nn.Hardswish() | nn.Softplus():
            return "a graph has no such activation", "train with ReLU, GELU, Tanh or Square"
        case nn.LogSoftmax():
            return "a logarithm of a softmax", "end at the logits, or take Softmax"
        case nn.GroupNorm() | nn.InstanceNorm2d():
            return "it divides by what it measures in each record", "train with BatchNorm2d"
        case _ if not _known(module):
            return (
                "a graph has no such layer",
                "take Linear, Conv2d, AvgPool2d, MaxPool2d, BatchNorm, ReLU, Square or Residual",
            )
        case _:
            pass
    return None


def _known(module: nn.Module) -> bool:
    tokens = nn.LayerNorm | nn.Softmax | nn.TransformerEncoderLayer | nn.TransformerEncoder | torch_attention.TokenMean
    plain = nn.Linear | nn.ReLU | nn.Tanh | nn.Sigmoid | nn.Dropout | nn.Dropout2d | nn.Identity | Chebyshev | Squared
    return isinstance(module, plain | tokens) or type(module).__name__ == "Square"


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _array(tensor: Tensor) -> Matrix:
    return tensor.detach().cpu().double().numpy().copy()


def _or(tensor: Tensor | None, default: Matrix) -> Matrix:
    """Return what torch may not have: a bias, a factor."""
    return default if tensor is None else _array(tensor)


def _items(module: nn.Module, shape: Shape) -> list[Layer | Scale]:
    """Return a module of `_refusal`'s good graces as layers."""
    match module:
        case nn.Linear():
            return [Linear(_array(module.weight), _or(module.bias, np.zeros(module.out_features)))]
        case nn.Conv2d():
            return [_conv(module, shape)]
        case nn.AvgPool2d():
            return [AveragePool(*_three(shape), _pair(module.kernel_size), _pair(module.stride))]
        case nn.AdaptiveAvgPool2d():
            return [AveragePool(*_three(shape), (shape[1], shape[2]), (1, 1))]
        case nn.MaxPool2d():
            down, right = _pair(module.padding)
            sides = down, right, down, right
            return [MaxPool(*_three(shape), _pair(module.kernel_size), _pair(module.stride), sides)]
        case nn.AdaptiveMaxPool2d():
            return [MaxPool(*_three(shape), (shape[1], shape[2]), (1, 1))]
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return [_scale(module, shape)]
        case nn.ReLU():
            return [Relu()]
        case nn.GELU():
            return [Gelu()]
        case nn.Tanh():
            return [Tanh()]
        case nn.Sigmoid():
            return [Sigmoid()]
        case Chebyshev():
            return [Polynomial(_array(module.coefficients), module.low, module.high)]
        case nn.Flatten() | nn.Dropout() | nn.Dropout2d() | nn.Identity():
            return []
        case _:
            return [Square()]


def _three(shape: Shape) -> tuple[int, int, int]:
    return shape[0], shape[1], shape[2]


def _conv(module: nn.Conv2d, shape: Shape) -> Conv:
    top, left, bottom, right = 0, 0, 0, 0
    if module.padding == "same":
        down, across = module.kernel_size[0] - 1, module.kernel_size[1] - 1
        top, left, bottom, right = down // 2, across // 2, down - down // 2, across - across // 2
    elif module.padding != "valid":
        top, left = bottom, right = _pair(module.padding)
    bias = _or(module.bias, np.zeros(module.out_channels))
    padding = top, left, bottom, right
    return Conv(_array(module.weight), bias, shape[1], shape[2], _pair(module.stride), padding)


def _scale(module: nn.BatchNorm1d | nn.BatchNorm2d, shape: Shape) -> Scale:
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        raise ModelError("Expected a batch norm with statistics; take track_running_stats=True")
    factor = _or(module.weight, np.ones(module.num_features)) / np.sqrt(_array(variance) + module.eps)
    shift = _or(module.bias, np.zeros(module.num_features)) - _array(mean) * factor
    return Scale(factor, shift, int(np.prod(shape[1:], dtype=np.int64)))


def to_torch(graph: Graph) -> nn.Sequential:
    """Return a graph without trees as a module on flat records (batch, features), in torch's default type.

    Raises:
        ModelError: the graph has trees, or layers of tokens, which no gradient trains here.
    """
    return nn.Sequential(*(_module(layer) for layer in graph.layers))


class _Image(Module):
    """A module of images that takes and gives flat vectors."""

    def __init__(
        self,
        module: nn.Module,
        shape: tuple[int, int, int],
        padding: tuple[int, int, int, int],
        beyond: float = 0.0,
    ) -> None:
        super().__init__()
        self.module, self.shape, self.padding, self.beyond = module, shape, padding, beyond

    def forward(self, x: Tensor) -> Tensor:
        top, left, bottom, right = self.padding
        images = nn.functional.pad(x.reshape(-1, *self.shape), (left, right, top, bottom), value=self.beyond)
        return self.module(images).flatten(1)


def _module(layer: Layer) -> nn.Module:
    match layer:
        case Linear(weight, bias):
            return _filled(nn.Linear(weight.shape[1], weight.shape[0]), weight, bias)
        case Conv(weight, bias):
            made = nn.Conv2d(layer.channels, len(bias), layer.kernel, layer.stride)
            return _Image(_filled(made, weight, bias), (layer.channels, layer.height, layer.width), layer.padding)
        case AveragePool():
            shape = layer.channels, layer.height, layer.width
            return _Image(nn.AvgPool2d(layer.kernel, layer.stride), shape, (0, 0, 0, 0))
        case MaxPool():
            shape = layer.channels, layer.height, layer.width
            return _Image(nn.MaxPool2d(layer.kernel, layer.stride), shape, layer.padding, beyond=-math.inf)
        case Polynomial(coefficients, low, high):
            return Chebyshev(coefficients, low, high)
        case ResidualLayer(body, shortcut):
            beside = nn.Sequential(*map(_module, shortcut)) if shortcut else None
            return Residual(nn.Sequential(*map(_module, body)), beside)
        case Square():
            return Squared()
        case Relu():
            return nn.ReLU()
        case Gelu():
            return nn.GELU()
        case Tanh():
            return nn.Tanh()
        case Sigmoid():
            return nn.Sigmoid()
        case _:
            raise ModelError(f"Expected a graph without {type(layer).__name__}; no gradient trains it here")


def _filled(module: nn.Linear | nn.Conv2d, weight: Matrix, bias: Matrix) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
        if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            module.bias.copy_(torch.tensor(bias))
    return module


def read_back(module: nn.Sequential, graph: Graph) -> Graph:
    """Return `graph` with the parameters of a module that `to_torch` made of it, activations as they are now."""
    layers = tuple(_layer(child, layer) for child, layer in zip(module, graph.layers, strict=True))
    return Graph(layers, graph.classes)


def _layer(module: nn.Module, layer: Layer) -> Layer:
    match module, layer:
        case nn.Linear(), _:
            return Linear(_array(module.weight), _array(module.bias))
        case _Image(module=nn.Conv2d() as inner), Conv():
            return Conv(
                _array(inner.weight),
                _or(inner.bias, layer.bias),
                layer.height,
                layer.width,
                layer.stride,
                layer.padding,
            )
        case Residual(), ResidualLayer(body, shortcut):
            assert isinstance(module.body, nn.Sequential)
            made = tuple(_layer(one, two) for one, two in zip(module.body, body, strict=True))
            beside = module.shortcut if isinstance(module.shortcut, nn.Sequential) else ()
            return ResidualLayer(made, tuple(_layer(one, two) for one, two in zip(beside, shortcut, strict=True)))
        case Chebyshev(), _:
            return Polynomial(_array(module.coefficients), module.low, module.high)
        case Squared(), _:
            return Square()
        case _:
            return layer
