"""Layers as ONNX nodes. `onnx` describes the form.

onnxruntime's convolutions, pools and error functions compute in float32 alone, so tensors are cast on the way in and
out of them. Weights are kept exactly: as float32 where they are such numbers, as float64 and cast where not, as int8
with a scale for each output where the caller wants a small file.
"""

# `onnx` builds its message classes at run time, and its stubs leave their fields untyped.
# pyright: basic

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.model import onnx_attention, onnx_trees
from confide.model.attention import Argmax, Attention, LayerNorm, Softmax
from confide.model.layers import (
    AveragePool,
    Conv,
    Gelu,
    Layer,
    Linear,
    Polynomial,
    Relu,
    Residual,
    Sigmoid,
    Square,
    Tanh,
)
from confide.model.max_pool import MaxPool
from confide.model.trees import Trees

Matrix = NDArray[np.float64]

#: Operators of our own, each with its definition in standard ones inside the file.
DOMAIN, VERSION = "confide", 1
OPSET = 13

_LARGEST_INT8 = 127


@dataclass(frozen=True, slots=True)
class Flow:
    """A tensor on its way.

    Args:
        name: in the file.
        image: (channels, height, width) if that is its shape behind the batch, None if it is flat.
        single: whether it is float32, else float64.
    """

    name: str
    image: tuple[int, int, int] | None = None
    single: bool = False


@dataclass(slots=True)
class Writer:
    """Nodes, weights and definitions so far.

    Args:
        onnx: the library.
        int8: whether weights are stored as int8.
        converted: names of tensors that are others in another shape or type.
    """

    onnx: Any
    int8: bool = False
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    functions: dict[str, Any] = field(default_factory=dict)
    converted: set[str] = field(default_factory=set)

    def node(self, kind: str, inputs: Sequence[str], out: str, name: str = "", **attributes: Any) -> str:
        """Add a node and return its output."""
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [out], name=name or out, **attributes))
        return out

    def constant(self, array: NDArray[Any], name: str) -> str:
        """Add an initializer and return its name."""
        self.initializers.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def cast(self, name: str, out: str, *, single: bool) -> str:
        """Add a cast and return its output."""
        kind = self.onnx.TensorProto.FLOAT if single else self.onnx.TensorProto.DOUBLE
        return self.node("Cast", [name], out, to=kind)


def write(writer: Writer, layers: Sequence[Layer], flow: Flow, where: str = "") -> Flow:
    """Add the nodes of a chain of layers and return what they give."""
    for number, layer in enumerate(layers):
        flow = _written(writer, layer, flow, f"{where}{number}")
    return flow


def finish(writer: Writer, flow: Flow) -> None:
    """Make a tensor the output: flat, float64, named "y"."""
    _double(writer, _flat(writer, flow))
    writer.nodes[-1].output[0] = "y"


def _written(writer: Writer, layer: Layer, flow: Flow, where: str) -> Flow:
    out = f"layer{where}"
    match layer:
        case Linear(weight, bias):
            flow = _double(writer, _flat(writer, flow))
            names = _stored(writer, weight, f"weight{where}", single=False), f"bias{where}"
            if writer.int8:
                stored = writer.constant(bias.astype("<f4"), f"single_{names[1]}")
                writer.cast(stored, names[1], single=False)
            else:
                writer.constant(np.asarray(bias, "<f8"), names[1])
            return Flow(writer.node("Gemm", [flow.name, *names], out, f"linear{where}", transB=1))
        case Conv():
            return _conv(writer, layer, flow, where)
        case AveragePool():
            flow = _single(writer, _image(writer, flow, (layer.channels, layer.height, layer.width)))
            sizes = {"kernel_shape": list(layer.kernel), "strides": list(layer.stride)}
            made = writer.node("AveragePool", [flow.name], out, f"pool{where}", **sizes)
            return Flow(made, (layer.channels, layer.out_height, layer.out_width), single=True)
        case MaxPool():
            flow = _single(writer, _image(writer, flow, (layer.channels, layer.height, layer.width)))
            sizes = {
                "kernel_shape": list(layer.kernel),
                "strides": list(layer.stride),
                "pads": list(layer.padding),
            }
            made = writer.node("MaxPool", [flow.name], out, f"pool{where}", **sizes)
            return Flow(made, (layer.channels, layer.out_height, layer.out_width), single=True)
        case Square():
            return replace(flow, name=writer.node("Mul", [flow.name, flow.name], out, f"square{where}"))
        case Sigmoid() | Relu() | Tanh():
            kind = type(layer).__name__
            return replace(flow, name=writer.node(kind, [flow.name], out, f"{kind.lower()}{where}"))
        case Gelu():
            return _gelu(writer, _single(writer, flow), where)
        case Polynomial():
            return _polynomial(writer, layer, _double(writer, flow), where)
        case Softmax():
            flow = _double(writer, _image(writer, flow, (layer.channels, 1, layer.positions)))
            return replace(flow, name=writer.node("Softmax", [flow.name], out, f"softmax{where}", axis=1))
        case Argmax():
            flow = _double(writer, _flat(writer, flow))
            place = writer.node("ArgMax", [flow.name], f"place{where}", f"argmax{where}", axis=1, keepdims=1)
            return Flow(writer.cast(place, out, single=False))
        case LayerNorm() | Attention():
            return _defined(writer, layer, flow, where)
        case Residual(body, shortcut):
            ends = [write(writer, body, flow, f"{where}_body"), write(writer, shortcut, flow, f"{where}_shortcut")]
            if ends[0].image != ends[1].image:
                ends = [_flat(writer, end) for end in ends]
            if ends[0].single != ends[1].single:
                ends = [_double(writer, end) for end in ends]
            return replace(ends[0], name=writer.node("Add", [end.name for end in ends], out, f"residual{where}"))
        case Trees():
            made, held = onnx_trees.to_nodes(layer, flow.name, out, int(where), writer.onnx)
            writer.nodes += made
            writer.initializers += held
            return Flow(out)


def _conv(writer: Writer, layer: Conv, flow: Flow, where: str) -> Flow:
    flow = _single(writer, _image(writer, flow, (layer.channels, layer.height, layer.width)))
    weight = _stored(writer, layer.weight, f"weight{where}", single=True)
    if writer.int8:
        bias = writer.constant(layer.bias.astype("<f4"), f"bias{where}")
    else:
        bias = _exact(writer, layer.bias, f"bias{where}")
    sizes = {"kernel_shape": list(layer.kernel), "strides": list(layer.stride), "pads": list(layer.padding)}
    made = writer.node("Conv", [flow.name, weight, bias], f"layer{where}", f"conv{where}", **sizes)
    return Flow(made, (len(layer.bias), layer.out_height, layer.out_width), single=True)


def _gelu(writer: Writer, flow: Flow, where: str) -> Flow:
    """Add x (1 + erf(x / sqrt 2)) / 2."""
    half, one, root = (
        writer.constant(np.array(value, "<f4"), f"{name}{where}")
        for name, value in (("half", 0.5), ("one", 1.0), ("root", math.sqrt(0.5)))
    )
    tail = writer.node("Mul", [flow.name, root], f"scaled{where}")
    tail = writer.node("Erf", [tail], f"erf{where}")
    tail = writer.node("Add", [tail, one], f"tail{where}")
    twice = writer.node("Mul", [flow.name, tail], f"twice{where}")
    return replace(flow, name=writer.node("Mul", [twice, half], f"layer{where}", f"gelu{where}"))


def _polynomial(writer: Writer, layer: Polynomial, flow: Flow, where: str) -> Flow:
    kind = f"Polynomial{layer.degree}"
    writer.functions.setdefault(kind, definition(kind, writer.onnx))
    names = (
        writer.constant(np.asarray(layer.coefficients, "<f8"), f"coefficients{where}"),
        writer.constant(np.array([layer.low, layer.high], "<f8"), f"interval{where}"),
    )
    made = writer.node(kind, [flow.name, *names], f"layer{where}", f"polynomial{where}", domain=DOMAIN)
    return replace(flow, name=made)


def _defined(writer: Writer, layer: LayerNorm | Attention, flow: Flow, where: str) -> Flow:
    """Add an operator of our own, of (batch, channels, 1, positions)."""
    kind = type(layer).__name__
    writer.functions.setdefault(kind, definition(kind, writer.onnx))
    flow = _double(writer, _image(writer, flow, (layer.inputs // layer.positions, 1, layer.positions)))
    constants = onnx_attention.inputs_of(layer)
    names = [writer.constant(constant, f"{name}{where}") for name, constant in constants.items()]
    made = writer.node(kind, [flow.name, *names], f"layer{where}", f"{kind.lower()}{where}", domain=DOMAIN)
    return Flow(made, (layer.channels, 1, layer.positions))


def definition(kind: str, onnx: Any) -> Any:
    """Return the definition of an operator of our own, "PolynomialN" or one of `onnx_attention.DEFINED`."""
    if kind in onnx_attention.DEFINED:
        return onnx_attention.definition(kind, onnx, DOMAIN, OPSET)
    return polynomial_function(int(kind.removeprefix("Polynomial")), onnx)


def polynomial_function(degree: int, onnx: Any) -> Any:
    """Return the definition of a polynomial in Chebyshev form by standard operators: Clenshaw's sum.

    Inputs are x, the coefficients of shape (degree + 1,) and [low, high].
    """
    make = onnx.helper.make_node
    numbers = [f"c{k}" for k in range(degree + 1)]
    nodes = [
        make("Split", ["coefficients"], numbers, axis=0),
        make("Split", ["interval"], ["low", "high"], axis=0),
        make("Sub", ["x", "low"], ["above"]),
        make("Sub", ["x", "high"], ["below"]),
        make("Add", ["above", "below"], ["twice"]),
        make("Sub", ["high", "low"], ["size"]),
        make("Div", ["twice", "size"], ["u"]),
        make("Add", ["u", "u"], ["v"]),
    ]
    later, last = "", numbers[degree]
    for k in range(degree - 1, 0, -1):
        nodes.append(make("Mul", ["v", last], [f"p{k}"]))
        nodes.append(make("Add", [f"p{k}", numbers[k]], [f"s{k}"]))
        if later:
            nodes.append(make("Sub", [f"s{k}", later], [f"b{k}"]))
        later, last = last, f"b{k}" if later else f"s{k}"
    nodes.append(make("Mul", ["u", last], ["p0"]))
    nodes.append(make("Add", ["p0", numbers[0]], ["s0" if later else "y"]))
    if later:
        nodes.append(make("Sub", ["s0", later], ["y"]))
    opset = [onnx.helper.make_opsetid("", OPSET)]
    inputs = ["x", "coefficients", "interval"]
    return onnx.helper.make_function(DOMAIN, f"Polynomial{degree}", inputs, ["y"], nodes, opset)


def _stored(writer: Writer, weight: Matrix, name: str, *, single: bool) -> str:
    """Store a weight and return the name of the tensor that a node takes."""
    if not writer.int8:
        return _exact(writer, weight, name) if single else writer.constant(np.asarray(weight, "<f8"), name)
    rounded, scale = to_int8(weight)
    names = writer.constant(rounded, f"int8_{name}"), writer.constant(scale, f"scale_{name}")
    if single:
        return writer.node("DequantizeLinear", names, name, axis=0)
    return writer.cast(writer.node("DequantizeLinear", names, f"single_{name}", axis=0), name, single=False)


def to_int8(weight: Matrix) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return whole numbers from -127 to 127 and float32 scales along the first axis; their product is near `weight`."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scale = np.where(largest > 0, largest / _LARGEST_INT8, 1.0).astype("<f4")
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    rounded = np.rint(weight / scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1)))
    return rounded.clip(-_LARGEST_INT8, _LARGEST_INT8).astype(np.int8), scale


def _exact(writer: Writer, array: Matrix, name: str) -> str:
    """Store numbers exactly and return the name of a float32 tensor of them."""
    with np.errstate(over="ignore"):
        single = array.astype("<f4")
    if (single.astype(np.float64) == array).all():
        return writer.constant(single, name)
    return writer.cast(writer.constant(np.asarray(array, "<f8"), f"double_{name}"), name, single=True)


def _image(writer: Writer, flow: Flow, shape: tuple[int, int, int]) -> Flow:
    """Reshape to (batch, *shape)."""
    if flow.image == shape:
        return flow
    name = f"{flow.name}_{'x'.join(map(str, shape))}"
    if name not in writer.converted:
        sizes = writer.constant(np.array([0, *shape], "<i8"), f"{name}_shape")
        writer.converted.add(writer.node("Reshape", [flow.name, sizes], name))
    return replace(flow, name=name, image=shape)


def _flat(writer: Writer, flow: Flow) -> Flow:
    """Reshape to (batch, features)."""
    if flow.image is None:
        return flow
    name = f"{flow.name}_flat"
    if name not in writer.converted:
        writer.converted.add(writer.node("Flatten", [flow.name], name, axis=1))
    return replace(flow, name=name, image=None)


def _single(writer: Writer, flow: Flow) -> Flow:
    return flow if flow.single else replace(flow, name=_cast(writer, flow.name, "single"), single=True)


def _double(writer: Writer, flow: Flow) -> Flow:
    return replace(flow, name=_cast(writer, flow.name, "double"), single=False) if flow.single else flow


def _cast(writer: Writer, name: str, kind: str) -> str:
    made = f"{name}_{kind}"
    if made not in writer.converted:
        writer.converted.add(writer.cast(name, made, single=kind == "single"))
    return made
