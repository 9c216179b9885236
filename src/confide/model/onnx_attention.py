"""Softmax, layer normalisation, attention and argmax as ONNX, out and in.

Softmax and argmax are standard operators over the channels of (batch, channels, 1, positions). Layer normalisation over
channels and attention are operators of the domain "confide", each with its definition by standard ones in the file.
"""

# `onnx` builds its message classes at run time, and its stubs leave their fields untyped.
# pyright: basic

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.attention import Argmax, Attention, LayerNorm, Softmax

Matrix = NDArray[np.float64]

#: Names of the operators that are defined in the file.
DEFINED = ("Attention", "LayerNorm")


def definition(kind: str, onnx: Any, domain: str, opset: int) -> Any:
    """Return the definition of an operator of `DEFINED`."""
    make = onnx.helper.make_node
    if kind == "LayerNorm":
        inputs, nodes = ["x", "gain", "bias", "epsilon"], _normalising(make)
    else:
        inputs, nodes = ["x", "heads", "joined", "factor"], _attending(make)
    return onnx.helper.make_function(domain, kind, inputs, ["y"], nodes, [onnx.helper.make_opsetid("", opset)])


def _normalising(make: Any) -> list[Any]:
    """Return nodes for x (batch, channels, 1, positions), gain and bias (1, channels, 1, 1)."""
    return [
        make("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        make("Sub", ["x", "mean"], ["centred"]),
        make("Mul", ["centred", "centred"], ["squares"]),
        make("ReduceMean", ["squares"], ["variance"], axes=[1], keepdims=1),
        make("Add", ["variance", "epsilon"], ["above"]),
        make("Sqrt", ["above"], ["deviation"]),
        make("Div", ["centred", "deviation"], ["normal"]),
        make("Mul", ["normal", "gain"], ["scaled"]),
        make("Add", ["scaled", "bias"], ["y"]),
    ]


def _attending(make: Any) -> list[Any]:
    """Return nodes for x (batch, 3 channels, 1, positions); `heads` and `joined` are shapes of what Reshape gives."""
    return [
        make("Reshape", ["x", "heads"], ["parts"]),  # (batch, 3, heads, channels / heads, positions)
        make("Split", ["parts"], ["q", "k", "v"], axis=1),
        make("Transpose", ["q"], ["rows"], perm=[0, 1, 2, 4, 3]),
        make("MatMul", ["rows", "k"], ["products"]),
        make("Mul", ["products", "factor"], ["scores"]),
        make("Softmax", ["scores"], ["weights"], axis=4),
        make("Transpose", ["weights"], ["turned"], perm=[0, 1, 2, 4, 3]),
        make("MatMul", ["v", "turned"], ["means"]),
        make("Reshape", ["means", "joined"], ["y"]),
    ]


def inputs_of(layer: LayerNorm | Attention) -> dict[str, NDArray[Any]]:
    """Return the constants that a defined operator takes behind x, by name."""
    if isinstance(layer, LayerNorm):
        wide = (1, -1, 1, 1)
        return {
            "gain": np.asarray(layer.gain, "<f8").reshape(wide),
            "bias": np.asarray(layer.bias, "<f8").reshape(wide),
            "epsilon": np.array(layer.epsilon, "<f8"),
        }
    size = layer.channels // layer.heads
    return {
        "heads": np.array([0, 3, layer.heads, size, layer.positions], "<i8"),
        "joined": np.array([0, layer.channels, 1, layer.positions], "<i8"),
        "factor": np.array(layer.factor, "<f8"),
    }


def read(kind: str, shape: tuple[int, ...], constants: list[NDArray[Any]]) -> LayerNorm | Attention:
    """Return the layer of a defined operator.

    Args:
        kind: a name of `DEFINED`.
        shape: of x behind the batch.
        constants: what it takes behind x.

    Raises:
        ModelError: it is no such layer.
    """
    if len(shape) != 3 or shape[1] != 1 or len(constants) != 3:
        raise ModelError(f"Expected {kind} of (batch, channels, 1, positions) and three constants")
    if kind == "LayerNorm":
        gain, bias, epsilon = (constant.astype(np.float64).ravel() for constant in constants)
        if gain.shape != (shape[0],) or epsilon.size != 1:
            raise ModelError(f"Expected LayerNorm with a gain and a bias for each of {shape[0]} channels")
        return LayerNorm(gain, bias, shape[2], float(epsilon[0]))
    heads = constants[0].ravel()
    if heads.dtype.kind != "i" or heads.size != 5:
        raise ModelError("Expected Attention with the shape of its heads")
    layer = Attention(int(heads[2]) * int(heads[3]), int(heads[4]), int(heads[2]))
    wanted = inputs_of(layer)
    if layer.inputs != shape[0] * shape[2] or layer.positions != shape[2]:
        raise ModelError(f"Expected Attention of {3 * layer.channels} channels at {layer.positions} positions")
    if any(
        given.ravel().tolist() != own.ravel().tolist() for given, own in zip(constants, wanted.values(), strict=True)
    ):
        raise ModelError("Expected Attention with scores over the root of a head's channels")
    return layer


def over_channels(kind: str, shape: tuple[int, ...], axis: int) -> Softmax | Argmax:
    """Return a standard Softmax or ArgMax along an axis (of the batch and `shape`) as a layer.

    Raises:
        ModelError: it is along another axis than the channels.
    """
    axis = axis % (len(shape) + 1)
    if len(shape) == 1 and axis == 1:
        return Softmax(shape[0]) if kind == "Softmax" else Argmax(shape[0])
    if kind == "Softmax" and len(shape) == 3 and axis == 1:
        return Softmax(shape[0], shape[1] * shape[2])
    raise ModelError(f"Expected {kind} along the axis of the channels, 1")
