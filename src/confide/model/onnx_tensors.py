"""Numbers inside an ONNX model: initializers and attributes, none believed before it is checked against its bytes."""

# `onnx` builds its message classes at run time, and its stubs leave their fields untyped.
# pyright: basic

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError

if TYPE_CHECKING:
    import onnx

_MOST_AXES = 8

#: TensorProto's number of each type that is read: numpy's name of it, and the field that lists values instead of bytes.
_KINDS: Mapping[int, tuple[str, str]] = {
    1: ("<f4", "float_data"),
    2: ("u1", "int32_data"),
    3: ("i1", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("?", "int32_data"),
    11: ("<f8", "double_data"),
}
FLOATS = (1, 11)


def readable(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor is of a type that is read."""
    return tensor.data_type in _KINDS


def size(tensor: onnx.TensorProto) -> int:
    """Return how many values a tensor's bytes hold, whatever shape it declares."""
    kind, listed = _KINDS[tensor.data_type]
    return len(tensor.raw_data) // np.dtype(kind).itemsize if tensor.raw_data else len(getattr(tensor, listed))


def array(tensor: onnx.TensorProto) -> NDArray[Any]:
    """Return a tensor's values, in its own type, once its declared shape agrees with the bytes that are there.

    Raises:
        ModelError: it does not, or the values lie elsewhere, or are of no type that is read.
    """
    if tensor.data_type not in _KINDS or tensor.external_data:
        raise ModelError("Expected numbers inside the model, as float32, float64, int8, uint8, int32 or int64")
    kind, listed = _KINDS[tensor.data_type]
    dims = tuple(tensor.dims)
    if (
        len(dims) > _MOST_AXES
        or any(dim < 1 for dim in dims)
        or math.prod(dims) != size(tensor)
        or len(tensor.raw_data) % np.dtype(kind).itemsize
    ):
        raise ModelError("Expected an initializer whose values fill its shape")
    values = np.frombuffer(tensor.raw_data, kind) if tensor.raw_data else np.array(getattr(tensor, listed), kind)
    return values.reshape(dims)


def number(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return a number that a node carries: a float if the default is one, else a whole number."""
    for attribute in node.attribute:
        if attribute.name == name:
            return attribute.f if isinstance(default, float) else attribute.i
    return default


def numbers(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Return whole numbers that a node carries."""
    return next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == name), default)


def text(node: onnx.NodeProto, name: str, default: str) -> str:
    """Return a text that a node carries."""
    return next(
        (attribute.s.decode(errors="replace") for attribute in node.attribute if attribute.name == name), default
    )
