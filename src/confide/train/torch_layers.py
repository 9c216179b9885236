"""Each layer's gradient for each record, from its input and the gradient at its output.

A layer has a rule here, by its very type, or is differentiated record by record (torch.func), which any layer with one
tensor in and one out can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap  # pyright: ignore[reportUnknownVariableType]
from torch.nn import functional


@dataclass(frozen=True, slots=True, eq=False)
class Outer:
    """Rank-one gradients of a weight: record i has left[i] right[i]ᵀ.

    Args:
        left: shape (n, outputs).
        right: shape (n, inputs).
    """

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """Return the gradients, shape (n, outputs * inputs)."""
        return (self.left[:, :, None] * self.right[:, None, :]).flatten(1)


Gradient = Tensor | Outer
Rule = Callable[[Any, Tensor, Tensor], dict[str, Gradient]]


def _linear(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    if x.dim() == 2:
        return {"weight": Outer(g, x), "bias": g}
    g, x = g.flatten(1, -2), x.flatten(1, -2)
    return {"weight": torch.bmm(g.transpose(1, 2), x).flatten(1), "bias": g.sum(1)}


def _convolution(layer: nn.Conv1d | nn.Conv2d, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    size, stride, dilation = ([*value] for value in (layer.kernel_size, layer.stride, layer.dilation))
    padding = [0] * len(size) if layer.padding == "valid" else layer.padding
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
        sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
        x, padding = functional.pad(x, sides), [0] * len(size)
    padding = [int(side) for side in padding]
    if len(size) == 1:  # a row of height one
        x, size, stride, dilation, padding = x[:, :, None], [1, *size], [1, *stride], [1, *dilation], [0, *padding]
    patches = functional.unfold(x, tuple(size), tuple(dilation), tuple(padding), tuple(stride))
    n, groups = len(x), layer.groups
    patches = patches.view(n * groups, -1, patches.shape[2])
    rows = g.reshape(n * groups, g.shape[1] // groups, -1)
    return {"weight": torch.bmm(rows, patches.transpose(1, 2)).view(n, -1), "bias": g.flatten(2).sum(2)}


def _by_channel(g: Tensor, normalised: Tensor) -> dict[str, Gradient]:
    def summed(values: Tensor) -> Tensor:
        return values.flatten(2).sum(2) if values.dim() > 2 else values

    return {"weight": summed(g * normalised), "bias": summed(g)}


def _group_norm(layer: nn.GroupNorm, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    return _by_channel(g, functional.group_norm(x, layer.num_groups, eps=layer.eps))


def _instance_norm(layer: nn.InstanceNorm2d, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    return _by_channel(g, functional.instance_norm(x, eps=layer.eps))


def _layer_norm(layer: nn.LayerNorm, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    shape = list(layer.normalized_shape)
    normalised = functional.layer_norm(x, shape, eps=layer.eps)
    n, width = len(x), math.prod(shape)
    return {"weight": (g * normalised).reshape(n, -1, width).sum(1), "bias": g.reshape(n, -1, width).sum(1)}


def _embedding(layer: nn.Embedding, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    n, width = len(x), layer.embedding_dim
    places, rows = x.reshape(n, -1, 1).expand(-1, -1, width), g.reshape(n, -1, width)
    if layer.padding_idx is not None:
        rows = torch.where(places == layer.padding_idx, 0.0, rows)
    return {"weight": rows.new_zeros(n, layer.num_embeddings, width).scatter_add(1, places, rows).flatten(1)}


def transformed(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Gradient]:
    """Return the gradients of any layer's own parameters, by a vector-Jacobian product for each record."""
    own = {name: parameter.detach() for name, parameter in layer.named_parameters(recurse=False)}

    def product(values: dict[str, Tensor], one: Tensor, row: Tensor) -> Tensor:
        return (cast("Tensor", functional_call(layer, values, (one[None],)))[0] * row).sum()

    found = cast("dict[str, Tensor]", vmap(grad(product), in_dims=(None, 0, 0))(own, x, g))
    return {name: values.flatten(1) for name, values in found.items()}


#: By the layer's very type: a class of one's own may do anything.
RULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.Embedding: _embedding,
}
