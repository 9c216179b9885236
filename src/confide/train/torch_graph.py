"""Networks in torch that encrypted serving can run: polynomial activations, and the way from a module to a `Graph`.

Encrypted arithmetic adds and multiplies, so an activation is a polynomial there. `Square` is the one that a `Graph`
has; `Polynomial`, of degree two, becomes one by completing the square, its shift and scale merged with the layers
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Module

from confide.errors import ModelError
from confide.model.graph import Graph, Layer, Linear, Problem, Sigmoid
from confide.model.graph import Square as GraphSquare
from confide.train.torch_state import vector_of

Matrix = NDArray[np.float64]


class Square(Module):
    """y = x^2."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x^2, elementwise."""
        return x * x


class Polynomial(Module):
    """y = a x^2 + b x + c, elementwise, with constants that are fixed in advance.

    Args:
        a: not 0.
        b, c: any. The default is near a smooth ReLU for inputs within about 2 of 0.
    """

    def __init__(self, a: float = 0.125, b: float = 0.5, c: float = 0.25) -> None:
        super().__init__()
        if a == 0:
            raise ModelError("Expected a polynomial with a other than 0; without it the layers beside it are one")
        self.a, self.b, self.c = a, b, c

    def forward(self, x: Tensor) -> Tensor:
        """Return a x^2 + b x + c, elementwise."""
        return (self.a * x + self.b) * x + self.c

    def extra_repr(self) -> str:
        """Return the constants, for torch's listing of a module."""
        return f"a={self.a:g}, b={self.b:g}, c={self.c:g}"


def graph_problems(module: nn.Module) -> list[Problem]:
    """Return every layer of `module` that no `Graph` has, each with its replacement."""
    found: list[Problem] = []
    layers = list(_chain(module))
    for name, layer in layers:
        if not isinstance(layer, nn.Linear | Square | Polynomial | nn.Sigmoid | nn.Flatten | nn.Identity):
            found.append(
                Problem(
                    f"{name} ({type(layer).__name__})", "a graph has no such layer", "take Linear, Square, Polynomial"
                )
            )
    kinds = [layer for _, layer in layers if not isinstance(layer, nn.Flatten | nn.Identity)]
    if not kinds or not isinstance(kinds[0], nn.Linear):
        found.append(Problem("module", "its first layer is no Linear", "begin with nn.Flatten() and nn.Linear"))
    if any(isinstance(one, Polynomial) and not isinstance(next_, nn.Linear) for one, next_ in _pairs(kinds)):
        found.append(Problem("module", "a Polynomial is not followed by a Linear", "put it between two Linear layers"))
    return found


def graph_of(module: nn.Module, *, classes: tuple[str, ...] = ()) -> Graph:
    """Return a chain of Linear, Square, Polynomial and Sigmoid as a `Graph` that ends in Sigmoid.

    A last layer of two outputs, which cross-entropy trains, becomes one: softmax of two is the sigmoid of their
    difference, exactly. With more outputs the graph gives each class its own sigmoid: the order of the classes is that
    of the module, the numbers are no softmax.

    Args:
        module: an `nn.Sequential`, nested ones included; its outputs are logits or end in Sigmoid.
        classes: names of the outcomes.

    Raises:
        ModelError: with every layer that cannot be converted.
    """
    if found := graph_problems(module):
        raise ModelError("Expected a module that a graph can hold:\n" + "\n".join(f"  {one}" for one in found))
    layers: list[Layer] = []
    scale, shift = 1.0, 0.0  # of what the last Square's output must still be
    for _, layer in _chain(module):
        match layer:
            case nn.Linear():
                weight = vector_of(layer.weight)
                bias = np.zeros(len(weight)) if layer.bias is None else vector_of(layer.bias)  # pyright: ignore[reportUnnecessaryComparison]
                layers.append(Linear(scale * weight, bias + shift * weight.sum(axis=1)))
                scale, shift = 1.0, 0.0
            case Square():
                layers.append(GraphSquare())
            case Polynomial(a=a, b=b, c=c):  # a (x + b/2a)^2 + c - b^2/4a
                before = layers[-1]
                if not isinstance(before, Linear):
                    raise ModelError("Expected a Linear before a Polynomial; put it between two Linear layers")
                layers[-1] = Linear(before.weight, before.bias + b / (2 * a))
                layers.append(GraphSquare())
                scale, shift = a, c - b * b / (4 * a)
            case nn.Sigmoid():
                layers.append(Sigmoid())
            case _:
                pass
    if not isinstance(layers[-1], Sigmoid):
        last = layers[-1]
        if isinstance(last, Linear) and len(last.weight) == 2:
            layers[-1] = Linear(last.weight[1:] - last.weight[:1], last.bias[1:] - last.bias[:1])
        layers.append(Sigmoid())
    return Graph(tuple(layers), classes)


def _chain(module: nn.Module, name: str = "module") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of nested `nn.Sequential`s in order."""
    if isinstance(module, nn.Sequential):
        for number, layer in module.named_children():
            yield from _chain(layer, number if name == "module" else f"{name}.{number}")
    else:
        yield name, module


def _pairs(kinds: list[nn.Module]) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    yield from zip(kinds, [*kinds[1:], None], strict=True)
