"""`torch.nn` modules of tokens as layers of a graph.

Linear on (tokens, features)       Conv with a kernel of one token
LayerNorm over the last axis       LayerNorm
TransformerEncoderLayer            Residual, LayerNorm, Conv, Attention and an activation
TransformerEncoder                 the same, several times
Softmax over the features          Softmax
TokenMean                          AveragePool

Torch holds records of tokens token after token, a graph holds them channel after channel (`attention`): where the first
of these modules takes a record, a convolution turns it, which is the module itself if that is Linear.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Module
from torch.nn import functional as F

from confide.errors import ModelError
from confide.model.attention import Attention, LayerNorm, Softmax
from confide.model.folded import Scale
from confide.model.layers import AveragePool, Conv, Gelu, Layer, Relu, Residual

Matrix = NDArray[np.float64]
Shape = tuple[int, ...]


class Turned(tuple[int, ...]):
    """The shape (tokens, features) of a record that the graph holds channel after channel by now."""

    __slots__ = ()


class TokenMean(Module):
    """y = the mean over tokens, (tokens, features) to (features,)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean along axis 1."""
        return x.mean(dim=1)


def refusal(module: nn.Module, shape: Shape) -> tuple[str, str] | None:
    """Return why a module of this file is no layer on records of `shape`, and what to do; None if it is one."""
    match module:
        case nn.LayerNorm():
            if tuple(module.normalized_shape) != shape[-1:] or len(shape) > 2:
                return "it goes over more than the features", "normalise over the last axis of (tokens, features)"
        case nn.Softmax():
            if len(shape) > 2 or module.dim not in (-1, len(shape)):
                return "it goes over another axis than the features", "take dim=-1"
        case nn.TransformerEncoderLayer():
            return _encoder_refusal(module, shape)
        case nn.TransformerEncoder():
            found = (_encoder_refusal(layer, shape) for layer in module.layers)
            return next((reason for reason in found if reason), None)
        case nn.Flatten() if isinstance(shape, Turned):
            return "it would mix tokens and features", "take TokenMean, of confide.model.torch_attention"
        case _:
            pass
    return None


def _encoder_refusal(module: Module, shape: Shape) -> tuple[str, str] | None:
    if not isinstance(module, nn.TransformerEncoderLayer) or len(shape) != 2:
        return "records that are no tokens", "give records of shape (tokens, features)"
    if not module.self_attn.batch_first:
        return "batches along the second axis", "take batch_first=True"
    if _activation(module) is None:
        return "an activation that a graph does not have", "take activation='relu' or 'gelu'"
    return None


def _activation(module: nn.TransformerEncoderLayer) -> Layer | None:
    given = module.activation
    if given is F.relu or isinstance(given, nn.ReLU):
        return Relu()
    exact = given is F.gelu or (isinstance(given, nn.GELU) and given.approximate == "none")
    return Gelu() if exact else None


def layers(module: nn.Module, shape: Shape) -> list[Layer | Scale] | None:
    """Return a module that `refusal` lets pass as layers; None if it is none of this file's."""
    made = _layers(module, shape)
    return made if made is None or len(shape) != 2 or isinstance(shape, Turned) else taken_in(made, shape)


def _layers(module: nn.Module, shape: Shape) -> list[Layer | Scale] | None:
    match module:
        case nn.Linear() if len(shape) == 2:
            return [_dense(module.weight, module.bias, shape[0])]
        case nn.LayerNorm():
            return [_norm(module, shape[0] if len(shape) == 2 else 1)]
        case nn.Softmax():
            return [Softmax(shape[-1], shape[0] if len(shape) == 2 else 1)]
        case TokenMean():
            return [AveragePool(shape[1], 1, shape[0], (1, shape[0]), (1, 1))]
        case nn.TransformerEncoderLayer():
            return [*_encoder(module, shape[0])]
        case nn.TransformerEncoder():
            found = [layer for one in module.layers for layer in _layers(one, shape) or []]
            return [*found, *([_norm(module.norm, shape[0])] if isinstance(module.norm, nn.LayerNorm) else [])]
        case _:
            return None


def _array(tensor: Tensor) -> Matrix:
    return tensor.detach().cpu().double().numpy().copy()


def _or(tensor: Tensor | None, default: Matrix) -> Matrix:
    """Return what torch may not have: a bias, a gain."""
    return default if tensor is None else _array(tensor)


def _dense(weight: Tensor, bias: Tensor | None, tokens: int) -> Conv:
    """Return a matrix that is applied to each token."""
    held = _array(weight)
    return Conv(held[:, :, None, None], _or(bias, np.zeros(len(held))), 1, tokens)


def _norm(module: nn.LayerNorm, tokens: int) -> LayerNorm:
    features = int(module.normalized_shape[-1])
    gain, bias = _or(module.weight, np.ones(features)), _or(module.bias, np.zeros(features))
    return LayerNorm(gain, bias, tokens, module.eps)


def _encoder(module: nn.TransformerEncoderLayer, tokens: int) -> tuple[Layer, ...]:
    attention, activation = module.self_attn, _activation(module)
    if activation is None:
        raise ModelError("Expected an encoder whose activation is ReLU or GELU")
    attending = (
        _dense(attention.in_proj_weight, attention.in_proj_bias, tokens),
        Attention(attention.embed_dim, tokens, attention.num_heads),
        _dense(attention.out_proj.weight, attention.out_proj.bias, tokens),
    )
    feeding = (
        _dense(module.linear1.weight, module.linear1.bias, tokens),
        activation,
        _dense(module.linear2.weight, module.linear2.bias, tokens),
    )
    first, second = _norm(module.norm1, tokens), _norm(module.norm2, tokens)
    if module.norm_first:
        return Residual((first, *attending)), Residual((second, *feeding))
    return Residual(attending), first, Residual(feeding), second


def taken_in(items: Sequence[Layer | Scale], shape: Shape) -> list[Layer | Scale]:
    """Return layers that take records token after token: a first matrix of tokens does it, or one that changes nothing.

    Args:
        items: layers of tokens held channel after channel.
        shape: (tokens, features).
    """
    tokens, features = shape
    first = items[0] if items else None
    if isinstance(first, Conv) and first.weight.shape[1:] == (features, 1, 1) and first.height == 1:
        weight, bias, rest = first.weight[:, None, None, :, 0, 0], first.bias, items[1:]
    else:
        weight, bias, rest = np.eye(features)[:, None, None, :], np.zeros(features), items
    return [Conv(np.ascontiguousarray(weight), bias, tokens, features), *rest]
