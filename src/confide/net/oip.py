"""The Open Inference Protocol v2 (REST) with the binary tensor data extension: requests and replies as bytes.

    request   {"id", "parameters", "inputs": [{"name", "shape", "datatype", "parameters", "data"}], "outputs": [...]}
    reply     {"model_name", "model_version", "id", "outputs": [...]}

A tensor's values stand in `data` as JSON, or, when its parameters hold `binary_data_size`, as raw little-endian bytes
behind the JSON; the header Inference-Header-Content-Length then says where the JSON ends. An element of a BYTES tensor
is its length as 4 little-endian bytes and then itself; in JSON it is base64.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md; Triton's binary tensor data extension.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError

#: The header (lower case, as ASGI gives it) that says how long the JSON part of a body is.
HEADER_LENGTH = "inference-header-content-length"

#: The number types that confide speaks, by their name in the protocol.
DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType({"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")})

Parameters = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor.

    Args:
        name: "x", "query" ...
        datatype: "FP32", "FP64" or "BYTES".
        shape: its lengths; row major.
        data: its values in the binary form of the protocol.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes

    def __repr__(self) -> str:  # the values may be private
        return f"Tensor({self.name!r}, {self.datatype}, {self.shape})"

    @staticmethod
    def of_bytes(name: str, body: bytes) -> Tensor:
        """Wrap one string of bytes as a BYTES tensor of shape (1,)."""
        return Tensor(name, "BYTES", (1,), len(body).to_bytes(4, "little") + body)

    @staticmethod
    def of_numbers(name: str, values: NDArray[np.float64]) -> Tensor:
        """Wrap float64 values of any shape as an FP64 tensor."""
        return Tensor(name, "FP64", values.shape, np.ascontiguousarray(values, "<f8").tobytes())

    def payload(self) -> bytes:
        """Return the one element of a BYTES tensor.

        Raises:
            ProtocolError: another datatype, or not exactly one element.
        """
        if self.datatype != "BYTES" or math.prod(self.shape) != 1:
            raise ProtocolError("Expected a BYTES tensor with one element")
        if len(self.data) < 4 or int.from_bytes(self.data[:4], "little") != len(self.data) - 4:
            raise ProtocolError("Expected a BYTES element as long as its length prefix says")
        return self.data[4:]

    def numbers(self) -> NDArray[np.float64]:
        """Return the values of an FP32 or FP64 tensor as float64.

        Raises:
            ProtocolError: another datatype, a size that does not fill the shape, or a value that is not finite.
        """
        dtype = DTYPES.get(self.datatype)
        if dtype is None:
            raise ProtocolError(f"Expected a tensor of {' or '.join(DTYPES)}")
        if math.prod(self.shape) * dtype.itemsize != len(self.data):
            raise ProtocolError("Expected a tensor whose data fill its shape")
        values = np.frombuffer(self.data, dtype).reshape(self.shape).astype(np.float64)
        if not np.isfinite(values).all():
            raise ProtocolError("Expected finite values")
        return values


@dataclass(frozen=True, slots=True)
class Request:
    """An inference request: its tensors by name, and what the reply must look like."""

    inputs: dict[str, Tensor]
    id: str | None
    parameters: Parameters
    binary_outputs: dict[str, bool]
    binary_default: bool

    def binary(self, output: str) -> bool:
        """Return True if `output` was asked for in binary form."""
        return self.binary_outputs.get(output, self.binary_default)


# --- the JSON part ----------------------------------------------------------------------------------------------------


class _Tensor(msgspec.Struct, omit_defaults=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, omit_defaults=True):
    name: str
    parameters: Parameters = {}


class _Request(msgspec.Struct, omit_defaults=True):
    inputs: list[_Tensor]
    outputs: list[_Output] = []
    parameters: Parameters = {}
    id: str | None = None


class _Reply(msgspec.Struct, omit_defaults=True):
    outputs: list[_Tensor]
    model_name: str = ""
    model_version: str = ""
    id: str | None = None


_JSON = msgspec.json.Encoder()
_REQUEST = msgspec.json.Decoder(_Request)
_REPLY = msgspec.json.Decoder(_Reply)
_FIELD = re.compile(r"`(\$[\w.\[\]]*)`$")  # where msgspec says that a value does not fit; never the value


def encode_request(
    inputs: Sequence[Tensor], *, binary_outputs: Sequence[str], parameters: Parameters
) -> tuple[bytes, int]:
    """Return the body of a request in binary form, and the length of its JSON part."""
    outputs = [_Output(name, {"binary_data": True}) for name in binary_outputs]
    return _join(_Request([_binary(tensor) for tensor in inputs], outputs, parameters), inputs)


def encode_reply(
    outputs: Sequence[Tensor], request: Request, *, model_name: str, model_version: str
) -> tuple[bytes, int | None]:
    """Return the body of a reply, and the length of its JSON part; None if the body is nothing but JSON."""
    binary = [tensor for tensor in outputs if request.binary(tensor.name)]
    described = [_binary(tensor) if request.binary(tensor.name) else _json(tensor) for tensor in outputs]
    body, length = _join(_Reply(described, model_name, model_version, request.id), binary)
    return body, length if binary else None


def decode_request(body: bytes, header_length: int | None, *, max_json_bytes: int) -> Request:
    """Return the request in `body`.

    Args:
        body: the JSON part, then the binary data.
        header_length: the value of Inference-Header-Content-Length; None if the body is nothing but JSON.
        max_json_bytes: bound of the JSON part, whose values take many times its size in memory.

    Raises:
        ProtocolError: anything that is not such a request; the text names no value of it.
    """
    header = _header(body, header_length, max_json_bytes)
    wire = _parsed(_REQUEST, header)
    if wire.id is not None and len(wire.id) > 128:
        raise ProtocolError("Expected an id of at most 128 characters")
    default = wire.parameters.get("binary_data_output") is True
    binary = {output.name: bool(output.parameters.get("binary_data", default)) for output in wire.outputs}
    inputs = _tensors(wire.inputs, body, len(header))
    return Request(inputs, wire.id, wire.parameters, binary, default)


def decode_reply(body: bytes, header_length: int | None, *, max_json_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a reply by name. Raises ProtocolError on anything else."""
    header = _header(body, header_length, max_json_bytes)
    return _tensors(_parsed(_REPLY, header).outputs, body, len(header))


def _header(body: bytes, header_length: int | None, max_json_bytes: int) -> bytes:
    length = len(body) if header_length is None else header_length
    if not 0 < length <= len(body):
        raise ProtocolError(f"Expected {HEADER_LENGTH} between 1 and the length of the body")
    if length > max_json_bytes:
        raise ProtocolError(f"Expected at most {max_json_bytes} bytes of JSON; send the tensors in binary form")
    return body[:length]


def _parsed(decoder: msgspec.json.Decoder[Any], header: bytes) -> Any:
    try:
        return decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        place = _FIELD.search(str(error))
        where = f" (field {place[1]})" if place else ""
        raise ProtocolError(f"Expected a JSON object of the Open Inference Protocol{where}") from None


def _join(head: msgspec.Struct, binary: Sequence[Tensor]) -> tuple[bytes, int]:
    header = _JSON.encode(head)
    return b"".join([header, *(tensor.data for tensor in binary)]), len(header)


def _binary(tensor: Tensor) -> _Tensor:
    return _Tensor(tensor.name, list(tensor.shape), tensor.datatype, {"binary_data_size": len(tensor.data)})


def _json(tensor: Tensor) -> _Tensor:
    if tensor.datatype == "BYTES":
        values: list[Any] = [base64.b64encode(tensor.payload()).decode()]
    else:
        values = tensor.numbers().ravel().tolist()
    return _Tensor(tensor.name, list(tensor.shape), tensor.datatype, {}, msgspec.Raw(_JSON.encode(values)))


def _tensors(wire: list[_Tensor], body: bytes, offset: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for entry in wire:
        if len(entry.shape) > 8 or not all(0 < length < 1 << 31 for length in entry.shape):
            raise ProtocolError("Expected shapes of at most 8 lengths from 1 to 2147483647")
        if entry.name in tensors:
            raise ProtocolError("Expected tensors with different names")
        size = entry.parameters.get("binary_data_size")
        if size is None:
            data = _from_json(entry)
        elif entry.data is not msgspec.UNSET or type(size) is not int or not 0 <= size <= len(body) - offset:
            raise ProtocolError("Expected binary_data_size within the body, and no data beside it")
        else:
            data = body[offset : offset + size]
            offset += size
        tensors[entry.name] = Tensor(entry.name, entry.datatype, tuple(entry.shape), data)
    if offset != len(body):
        raise ProtocolError("Expected a body that ends with its last tensor")
    return tensors


def _from_json(entry: _Tensor) -> bytes:
    """Return JSON values in binary form; nested lists are allowed as deep as the shape."""
    if entry.data is msgspec.UNSET:
        raise ProtocolError("Expected data or binary_data_size in every tensor")
    if entry.datatype == "BYTES":
        return _from_base64(entry.data)
    dtype = DTYPES.get(entry.datatype)
    if dtype is None:
        raise ProtocolError(f"Expected a tensor of {', '.join(DTYPES)} or BYTES")
    shapes: list[Any] = [list[float], list[list[float]]] if len(entry.shape) == 2 else [list[float]]
    for kind in shapes:
        try:
            values = np.asarray(msgspec.json.decode(entry.data, type=kind), dtype)
        except (msgspec.MsgspecError, ValueError, OverflowError):  # a ragged list is a ValueError
            continue
        if values.ndim == 1 or values.shape == tuple(entry.shape):
            return values.tobytes()
    raise ProtocolError("Expected data as a flat list, or as a list of rows that fits the shape")


def _from_base64(data: msgspec.Raw) -> bytes:
    try:
        elements = msgspec.json.decode(data, type=list[str])
        decoded = [base64.b64decode(element, validate=True) for element in elements]
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        raise ProtocolError("Expected the elements of a BYTES tensor in base64") from None
    return b"".join(len(element).to_bytes(4, "little") + element for element in decoded)
