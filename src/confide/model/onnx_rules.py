"""What each ONNX node does to a chain of layers, node by node.

A tensor that depends on the input is a `Signal`: the layers that give it, and its shape. Where two signals meet, the
layers that both have are what lies before the branches: Add makes the rest a `Residual`, Mul a `Square` or a `Gelu`
written out. Scales stay apart until the end (`folded`).
"""

# `onnx` builds its message classes at run time, and its stubs leave their fields untyped.
# pyright: basic

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model import onnx_attention, onnx_tensors, onnx_trees
from confide.model.folded import Scale, folded
from confide.model.layers import (
    MOST_UNITS,
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
    gelu,
)
from confide.model.max_pool import MaxPool
from confide.model.onnx_tensors import number, numbers, text

if TYPE_CHECKING:
    import onnx

Matrix = NDArray[np.float64]

_MOST_ITEMS = 4000  # of a chain, blocks inside counted: branches that share nodes would double it each time
_MOST_NESTED = 16
_NEAR = 1e-6  # float32 constants


@dataclass(frozen=True, slots=True)
class Erf:
    """y = erf(x): a step of a GELU that is written out."""


Item = Layer | Scale | Erf


@dataclass(frozen=True, slots=True, eq=False)
class Signal:
    """A tensor that depends on the input.

    Args:
        items: what gives it, from the input on; branches share what they have in common.
        shape: behind the batch; None as long as nothing said it.
    """

    items: tuple[Item, ...]
    shape: tuple[int, ...] | None

    @property
    def units(self) -> int:
        """Return the numbers of a record. Raises ModelError if the input does not say."""
        return math.prod(self.known)

    @property
    def known(self) -> tuple[int, ...]:
        """Return the shape. Raises ModelError if the input does not say."""
        if self.shape is None:
            raise ModelError("Expected an input that declares its shape; export it with one")
        return self.shape

    def then(self, item: Item, shape: tuple[int, ...] | None = None) -> Signal:
        """Return the signal behind another step, of the same shape unless one is given."""
        return Signal((*self.items, item), shape or self.shape)


Value = Signal | NDArray[Any]
Rule = Callable[["onnx.NodeProto", "Sequence[Value | None]"], Value]


def run(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    """Return what a node gives for `values`, one for each of its inputs, None for an absent one.

    Raises:
        ModelError: it is no layer of a graph; the text is the reason alone.
    """
    rule = _RULES.get(node.op_type) or (_defined if node.op_type in onnx_attention.DEFINED else _polynomial)
    return rule(node, values)


def _signal(node: onnx.NodeProto, values: Sequence[Value | None], most: int, least: int | None = None) -> Signal:
    """Return the first input, which must be a signal, of `least` to `most` inputs of which the others are constants."""
    least = most if least is None else least
    if not least <= len(values) <= most:
        raise ModelError(f"Expected {node.op_type} to have {most} inputs, got {len(values)}")
    first, *others = values
    if not isinstance(first, Signal) or any(isinstance(other, Signal) for other in others):
        raise ModelError(f"Expected {node.op_type} of a tensor, with weight and bias from initializers")
    return first


def _floats(value: Value | None) -> Matrix:
    if not isinstance(value, np.ndarray):
        raise ModelError("Expected weight and bias from initializers")
    return value.astype(np.float64)


# --- nothing, constants, shapes ---------------------------------------------------------------------------------------


def _same(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    if not values or values[0] is None:
        raise ModelError(f"Expected {node.op_type} to have 1 inputs, got 0")
    return values[0]


def _dropout(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    if len(values) > 2 and values[2] is not None and _floats(values[2]).any():
        raise ModelError("Expected Dropout switched off; export the model in inference mode")
    return _same(node, values[:1])


def _constant(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    for attribute in node.attribute:
        if attribute.name == "value":
            return onnx_tensors.array(attribute.t)
        if attribute.name == "value_float":
            return np.array(attribute.f)
        if attribute.name == "value_int":
            return np.array(attribute.i)
        if attribute.name == "value_ints":
            return np.array(attribute.ints, np.int64)
    raise ModelError("Expected a constant with a value")


def _dequantized(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    whole, scale, zero = (*values, None)[:3]
    if not isinstance(whole, np.ndarray) or not isinstance(scale, np.ndarray) or isinstance(zero, Signal):
        raise ModelError("Expected DequantizeLinear of weights; activations stay real numbers")
    if whole.dtype.kind not in "iu" or scale.ndim > 1:
        raise ModelError("Expected DequantizeLinear of whole numbers, one scale for each of one axis")
    axis = int(number(node, "axis", 1))
    if scale.size > 1:
        if not -whole.ndim <= axis < whole.ndim or whole.shape[axis] != scale.size:
            raise ModelError("Expected DequantizeLinear with a scale for each of one axis")
        along = [1] * whole.ndim
        along[axis] = scale.size
        scale = scale.reshape(along)
        zero = zero.reshape(along) if zero is not None and zero.size > 1 else zero
    start = whole.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))
    return start.astype(scale.dtype) * scale  # in the scale's type, as a runtime does it


def _flatten(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 1)
    if number(node, "axis", 1) != 1:
        raise ModelError("Expected Flatten with axis 1")
    return replace(signal, shape=None if signal.shape is None else (signal.units,))


def _reshape(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    if len(values) == 2 and isinstance(values[0], np.ndarray) and isinstance(values[1], np.ndarray):
        return _reshaped(values[0], values[1])
    signal = _signal(node, values, 2)
    wanted = _floats(values[1]).ravel().astype(np.int64).tolist()
    batch, *rest = wanted or [0]
    if batch not in (0, -1, 1) or not rest or batch == rest[0] == -1 or rest.count(-1) > 1:
        raise ModelError("Expected Reshape to keep the batch: (0 or -1, ...)")
    if signal.shape is None:
        if rest == [-1]:
            return signal
        signal = replace(signal, shape=(math.prod(rest),))
    rest = [signal.known[place] if size == 0 and place < len(signal.known) else size for place, size in enumerate(rest)]
    if -1 in rest:
        others = -math.prod(rest)
        rest[rest.index(-1)] = signal.units // others if others > 0 else 0
    if min(rest) < 1 or math.prod(rest) != signal.units:
        raise ModelError("Expected Reshape to keep each record's numbers")
    return replace(signal, shape=tuple(rest))


def _reshaped(array: NDArray[Any], shape: NDArray[Any]) -> NDArray[Any]:
    sizes = shape.ravel().tolist()
    if sizes.count(-1) > 1 or any(not isinstance(size, int) or size == 0 or size < -1 for size in sizes):
        raise ModelError("Expected a constant of a fixed shape")
    try:
        return array.reshape(sizes)
    except (ValueError, OverflowError):
        raise ModelError("Expected a constant of a fixed shape") from None


def _transpose(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    array = values[0] if values else None
    if not isinstance(array, np.ndarray):
        raise ModelError("Expected Transpose of weights, not of a tensor")
    order = numbers(node, "perm", tuple(reversed(range(array.ndim))))
    if sorted(order) != list(range(array.ndim)):
        raise ModelError("Expected Transpose with each axis once")
    return array.transpose(order)


# --- linear layers ----------------------------------------------------------------------------------------------------


def _gemm(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 3, 2)
    with np.errstate(over="ignore", invalid="ignore"):  # Linear refuses what is not finite
        weight = _floats(values[1]) * number(node, "alpha", 1.0)
        absent = len(values) < 3 or values[2] is None
        bias = (np.zeros(1) if absent else _floats(values[2])) * number(node, "beta", 1.0)
    if weight.ndim != 2:
        raise ModelError(f"Expected the weight of a Gemm to be a matrix, got shape {weight.shape}")
    weight = weight if number(node, "transB", 0) else weight.T
    if (bias.ndim == 2 and bias.shape[0] != 1) or bias.size not in (1, weight.shape[0]):
        raise ModelError(f"Expected the bias of a Gemm to have {weight.shape[0]} values, got shape {bias.shape}")
    return _linear(signal, weight, np.broadcast_to(bias.ravel(), weight.shape[:1]).copy())


def _matmul(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 2)
    weight = _floats(values[1])
    if weight.ndim != 2:
        raise ModelError(f"Expected the weight of a MatMul to be a matrix, got shape {weight.shape}")
    return _linear(signal, weight.T, np.zeros(weight.shape[1]))


def _linear(signal: Signal, weight: Matrix, bias: Matrix) -> Signal:
    if signal.shape is not None and signal.shape != weight.shape[1:]:
        what = f"the declared {signal.units} features" if not signal.items else " x ".join(map(str, signal.shape))
        raise ModelError(f"Expected a matrix that takes {what}, got {weight.shape[1]}")
    before = signal if signal.shape is not None else replace(signal, shape=weight.shape[1:])
    return before.then(Linear(np.ascontiguousarray(weight), bias), weight.shape[:1])


def _image_of(signal: Signal, kind: str) -> tuple[int, int, int]:
    if len(signal.known) != 3:
        raise ModelError(
            f"Expected {kind} of images (batch, channels, height, width), got {1 + len(signal.known)} axes"
        )
    return signal.known[0], signal.known[1], signal.known[2]


def _pair(given: tuple[int, ...], kind: str) -> tuple[int, int]:
    if len(given) != 2 or not all(0 < each <= MOST_UNITS for each in given):
        raise ModelError(f"Expected {kind} over two axes, with sizes of at least 1")
    return given[0], given[1]


def _padding(node: onnx.NodeProto, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]):
    """Return (top, left, bottom, right)."""
    automatic = text(node, "auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        total = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(size, kernel, stride, strict=True)]
        less = [each // 2 for each in total]
        more = [each - half for each, half in zip(total, less, strict=True)]
        first, second = (less, more) if automatic == "SAME_UPPER" else (more, less)
        return first[0], first[1], second[0], second[1]
    pads = numbers(node, "pads", (0, 0, 0, 0)) if automatic == "NOTSET" else (0, 0, 0, 0)
    if len(pads) != 4 or not all(0 <= each <= MOST_UNITS for each in pads):
        raise ModelError(f"Expected {node.op_type} with four pads of at least 0")
    return pads


def _conv(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 3, 2)
    channels, height, width = _image_of(signal, "Conv")
    weight = _floats(values[1])
    if weight.ndim != 4 or weight.shape[1] != channels:
        raise ModelError(f"Expected a Conv that takes {channels} channels, got weights of shape {weight.shape}")
    kernel = weight.shape[2], weight.shape[3]
    stride = _pair(numbers(node, "strides", (1, 1)), "Conv")
    if numbers(node, "kernel_shape", kernel) != kernel:
        raise ModelError("Expected a Conv whose kernel_shape is its weights'")
    bias = np.zeros(len(weight)) if len(values) < 3 or values[2] is None else _floats(values[2]).ravel()
    layer = Conv(weight, bias, height, width, stride, _padding(node, (height, width), kernel, stride))
    return signal.then(layer, (len(bias), layer.out_height, layer.out_width))


def _average(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 1)
    channels, height, width = _image_of(signal, "AveragePool")
    kernel = _pair(numbers(node, "kernel_shape", ()), "AveragePool")
    stride = _pair(numbers(node, "strides", (1, 1)), "AveragePool")
    if any(_padding(node, (height, width), kernel, stride)):
        raise ModelError("Expected AveragePool without padding; pad in the Conv before it")
    layer = AveragePool(channels, height, width, kernel, stride)
    return signal.then(layer, (channels, layer.out_height, layer.out_width))


def _max(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 1)
    channels, height, width = _image_of(signal, "MaxPool")
    kernel = _pair(numbers(node, "kernel_shape", ()), "MaxPool")
    stride = _pair(numbers(node, "strides", (1, 1)), "MaxPool")
    layer = MaxPool(channels, height, width, kernel, stride, _padding(node, (height, width), kernel, stride))
    return signal.then(layer, (channels, layer.out_height, layer.out_width))


def _global_average(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 1)
    channels, height, width = _image_of(signal, "GlobalAveragePool")
    return signal.then(AveragePool(channels, height, width, (height, width), (1, 1)), (channels, 1, 1))


def _mean(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 2, 1)
    channels, height, width = _image_of(signal, "ReduceMean")
    axes = tuple(_floats(values[1]).ravel().astype(int).tolist()) if len(values) > 1 else numbers(node, "axes", ())
    if {axis % 4 for axis in axes} != {2, 3}:
        raise ModelError("Expected ReduceMean over height and width")
    shape = (channels, 1, 1) if number(node, "keepdims", 1) else (channels,)
    return signal.then(AveragePool(channels, height, width, (height, width), (1, 1)), shape)


def _batch_norm(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 5)
    scale, shift, mean, variance = (_floats(value).ravel() for value in values[1:])
    shape = signal.known
    if any(part.shape != shape[:1] for part in (scale, shift, mean, variance)):
        raise ModelError("Expected BatchNormalization with four numbers for each channel")
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + number(node, "epsilon", 1e-5))
        shift = shift - mean * factor
    return _scaled(signal, factor, shift)


# --- elementwise ------------------------------------------------------------------------------------------------------


def _elementwise(make: Callable[[], Item]) -> Rule:
    return lambda node, values: _signal(node, values, 1).then(make())  # a new one: branches tell them apart


def _gelu_rule(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    if text(node, "approximate", "none") != "none":
        raise ModelError("Expected Gelu in its exact form; export it with approximate='none'")
    return _signal(node, values, 1).then(Gelu())


def _power(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 2)
    exponent = _floats(values[1]).ravel()
    if exponent.tolist() != [2.0]:
        raise ModelError("Expected Pow with the exponent 2")
    return signal.then(Square())


def _scaled(signal: Signal, factor: Matrix, shift: Matrix) -> Signal:
    if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
        raise ModelError("Expected finite parameters; the training diverged: lower the learning rate")
    return signal.then(Scale(factor, shift, signal.units // len(factor)))


def _by_constant(signal: Signal, value: NDArray[Any], *, factor: bool) -> Signal:
    """Return a signal times, or plus, a constant that broadcasts to its shape."""
    array = value.astype(np.float64)
    if signal.shape is None:
        raise ModelError("Expected an input that declares its shape; export it with one")
    shape = signal.shape
    if array.size == 1:
        each = np.full(shape[0], array.ravel()[0])
    else:
        try:
            full = np.broadcast_to(array, (1, *shape)).reshape(shape[0], -1)
        except ValueError:
            raise ModelError("Expected a constant with one number for each channel or feature") from None
        each = full[:, 0] if (full == full[:, :1]).all() else full.ravel()
    still = np.zeros_like(each) if factor else np.ones_like(each)
    return _scaled(signal, *((each, still) if factor else (still, each)))


def _mul(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    one, other = _two(node, values)
    if not isinstance(one, Signal):
        one, other = other, one
    if not isinstance(one, Signal):
        raise ModelError("Expected a product with a tensor, not of constants")
    if not isinstance(other, Signal):
        return _by_constant(one, other, factor=True)
    before, left, right = _branches(one, other)
    if not left and not right:
        return one.then(Square())
    found = _gelu_times(left, right)
    if found is None:
        raise ModelError("Expected a product of a tensor with itself or a constant")
    return Signal((*before, Gelu(), Scale(np.full(1, found), np.zeros(1), one.units)), one.shape)


def _gelu_times(left: Sequence[Item], right: Sequence[Item]) -> float | None:
    """Return c if the product of two elementwise functions of one tensor is c GELU, else None: by its values."""
    x = np.linspace(-6.0, 6.0, 481)
    values = [np.ones_like(x), x]
    for items in (left, right):
        y = x
        for item in items:
            if isinstance(item, Erf):
                y = np.array([math.erf(each) for each in y])
            elif isinstance(item, Scale) and (pair := item.number) is not None:
                y = pair[0] * y + pair[1]
            else:
                return None
        values.append(y)
    product, wanted = values[2] * values[3], gelu(x)
    return next((c for c in (1.0, 2.0, 0.5) if np.abs(product - c * wanted).max() < _NEAR * 10), None)


def _div(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 2)
    with np.errstate(all="ignore"):
        return _by_constant(signal, 1.0 / _floats(values[1]), factor=True)


def _sub(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    one, other = _two(node, values)
    if isinstance(one, Signal) and isinstance(other, np.ndarray):
        return _by_constant(one, -other.astype(np.float64), factor=False)
    if isinstance(other, Signal):
        negative = other.then(Scale(-np.ones(other.known[0]), np.zeros(other.known[0]), other.units // other.known[0]))
        return _sum(one, negative)
    raise ModelError("Expected a difference with a tensor, not of constants")


def _add(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    return _sum(*_two(node, values))


def _sum(one: Value, other: Value) -> Value:
    if not isinstance(one, Signal):
        one, other = other, one
    if not isinstance(one, Signal):
        raise ModelError("Expected a sum with a tensor, not of constants")
    if not isinstance(other, Signal):
        return _by_constant(one, other, factor=False)
    if one.known != other.known:
        raise ModelError("Expected a sum of two tensors of one shape")
    before, body, shortcut = _branches(one, other)
    if not body:
        body, shortcut = shortcut, body
    if not body:
        return _by_constant(one, np.array(2.0), factor=True)
    if any(isinstance(item, Erf) for item in (*body, *shortcut)):
        raise ModelError("Expected erf as a part of GELU alone")
    chains = folded([*_layers(body)]), folded([*_layers(shortcut)])
    if not chains[0]:
        chains = chains[1], chains[0]
    if not chains[0]:
        raise ModelError("Expected two branches of which one has a layer")
    made = Signal((*before, Residual(*chains)), one.shape)
    items, nested = _extent(made.items)
    if items > _MOST_ITEMS or nested > _MOST_NESTED:
        raise ModelError(f"Expected at most {_MOST_ITEMS} layers, blocks within blocks at most {_MOST_NESTED} deep")
    return made


def _two(node: onnx.NodeProto, values: Sequence[Value | None]) -> tuple[Value, Value]:
    if len(values) != 2 or values[0] is None or values[1] is None:
        raise ModelError(f"Expected {node.op_type} to have 2 inputs, got {len(values)}")
    return values[0], values[1]


def _branches(one: Signal, other: Signal) -> tuple[tuple[Item, ...], tuple[Item, ...], tuple[Item, ...]]:
    """Return what two signals have in common, and what each does after it."""
    pairs = enumerate(zip(one.items, other.items, strict=False))
    shortest = min(len(one.items), len(other.items))
    common = next((place for place, (left, right) in pairs if left is not right), shortest)
    return one.items[:common], one.items[common:], other.items[common:]


def _layers(items: Sequence[Item]) -> list[Layer | Scale]:
    return [item for item in items if not isinstance(item, Erf)]


def _extent(items: Sequence[Item]) -> tuple[int, int]:
    """Return how many layers there are, blocks inside counted, and how deep blocks lie in one another."""
    count, depth = len(items), 0
    for item in items:
        if isinstance(item, Residual):
            inside, nested = _extent((*item.body, *item.shortcut))
            count, depth = count + inside, max(depth, nested + 1)
    return count, depth


def _polynomial(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 3)
    coefficients, interval = _floats(values[1]).ravel(), _floats(values[2]).ravel()
    if len(interval) != 2 or node.op_type != f"Polynomial{len(coefficients) - 1}":
        raise ModelError("Expected a polynomial with its coefficients and an interval")
    return signal.then(Polynomial(coefficients, float(interval[0]), float(interval[1])))


def _defined(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 4)
    layer = onnx_attention.read(node.op_type, signal.known, [np.asarray(value) for value in values[1:]])
    return signal.then(layer, (layer.channels, 1, layer.positions))


def _over_channels(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 1)
    if node.op_type == "ArgMax" and not (number(node, "keepdims", 1) and not number(node, "select_last_index", 0)):
        raise ModelError("Expected ArgMax that keeps its axis and takes the first of several")
    layer = onnx_attention.over_channels(node.op_type, signal.known, int(number(node, "axis", _axis(node))))
    return signal.then(layer, (1,) if node.op_type == "ArgMax" else None)


def _axis(node: onnx.NodeProto) -> int:
    return -1 if node.op_type == "Softmax" else 0


def _trees(node: onnx.NodeProto, values: Sequence[Value | None]) -> Value:
    signal = _signal(node, values, 1)
    if signal.items or (signal.shape is not None and len(signal.shape) != 1):
        raise ModelError("Expected trees as the first node, of a table's columns")
    trees = onnx_trees.from_node(node, signal.units if signal.shape else 0, None)
    return signal.then(trees, (len(trees.offset),))


def finished(signal: Signal) -> tuple[Layer, ...]:
    """Return the layers that give a signal, scales merged.

    Raises:
        ModelError: an erf outside of a GELU, or a scale that no layer takes.
    """
    if any(isinstance(item, Erf) for item in signal.items):
        raise ModelError("Expected erf as a part of GELU alone")
    return folded(_layers(signal.items))


_RULES: Mapping[str, Rule] = {
    "Add": _add,
    "ArgMax": _over_channels,
    "AveragePool": _average,
    "BatchNormalization": _batch_norm,
    "Cast": _same,
    "Constant": _constant,
    "Conv": _conv,
    "DequantizeLinear": _dequantized,
    "Div": _div,
    "Dropout": _dropout,
    "Erf": _elementwise(Erf),
    "Flatten": _flatten,
    "Gelu": _gelu_rule,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "Identity": _same,
    "MatMul": _matmul,
    "MaxPool": _max,
    "Mul": _mul,
    "Pow": _power,
    "ReduceMean": _mean,
    "Relu": _elementwise(Relu),
    "Reshape": _reshape,
    "Sigmoid": _elementwise(Sigmoid),
    "Softmax": _over_channels,
    "Sub": _sub,
    "Tanh": _elementwise(Tanh),
    "Transpose": _transpose,
    "TreeEnsemble": _trees,
}
