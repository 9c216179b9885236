"""The codec against requests written by hand from the public specification; the oracle is `json` and `struct`."""

from __future__ import annotations

import base64
import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.net.oip import Tensor, decode_reply, decode_request, encode_reply, encode_request

ROOM = 1 << 20


def request(head: dict, *binary: bytes) -> tuple[bytes, int]:
    text = json.dumps(head).encode()
    return text + b"".join(binary), len(text)


def tensor(**changes) -> dict:
    return {"name": "x", "shape": [2, 2], "datatype": "FP64", "data": [1, 2, 3, 4.5]} | changes


def test_reads_numbers_in_json_flat_and_nested():
    for data in ([1, 2, 3, 4.5], [[1, 2], [3, 4.5]]):
        body, _ = request({"id": "42", "inputs": [tensor(data=data)]})
        read = decode_request(body, None, max_json_bytes=ROOM)
        assert read.id == "42"
        assert read.inputs["x"].numbers().tolist() == [[1.0, 2.0], [3.0, 4.5]]


@pytest.mark.parametrize(("datatype", "form"), [("FP32", "<4f"), ("FP64", "<4d")])
def test_reads_numbers_in_binary(datatype, form):
    values = (1.5, -2.0, 0.25, 1e10)
    data = struct.pack(form, *values)
    head = {"name": "x", "shape": [2, 2], "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    body, length = request({"inputs": [head]}, data)
    assert decode_request(body, length, max_json_bytes=ROOM).inputs["x"].numbers().ravel().tolist() == list(values)


def test_reads_bytes_in_both_forms():
    payload = bytes(range(256))
    element = struct.pack("<I", 256) + payload
    head = {"name": "q", "shape": [1], "datatype": "BYTES"}
    binary = request({"inputs": [head | {"parameters": {"binary_data_size": len(element)}}]}, element)
    assert decode_request(*binary, max_json_bytes=ROOM).inputs["q"].payload() == payload
    body, _ = request({"inputs": [head | {"data": [base64.b64encode(payload).decode()]}]})
    assert decode_request(body, None, max_json_bytes=ROOM).inputs["q"].payload() == payload


def test_reads_binary_tensors_in_order():
    one, two = struct.pack("<d", 1.0), struct.pack("<2f", 2.0, 3.0)
    heads = [
        {"name": "a", "shape": [1], "datatype": "FP64", "parameters": {"binary_data_size": 8}},
        tensor(name="b"),
        {"name": "c", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
    ]
    read = decode_request(*request({"inputs": heads}, one, two), max_json_bytes=ROOM).inputs
    assert [read[name].numbers().ravel().tolist() for name in "abc"] == [[1.0], [1.0, 2.0, 3.0, 4.5], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("parameters", "outputs", "binary"),
    [
        ({}, [], False),
        ({"binary_data_output": True}, [], True),
        ({"binary_data_output": False}, [], False),
        ({}, [{"name": "y", "parameters": {"binary_data": True}}], True),
        ({"binary_data_output": True}, [{"name": "y", "parameters": {"binary_data": False}}], False),
        ({"binary_data_output": True}, [{"name": "y"}], True),
        ({}, [{"name": "other", "parameters": {"binary_data": True}}], False),
    ],
)
def test_the_reply_takes_the_form_that_was_asked_for(parameters, outputs, binary):
    body, _ = request({"id": "7", "parameters": parameters, "inputs": [tensor()], "outputs": outputs})
    asked = decode_request(body, None, max_json_bytes=ROOM)
    values = np.array([[0.1], [1e300]])
    reply, length = encode_reply([Tensor.of_numbers("y", values)], asked, model_name="m", model_version="v")
    head = json.loads(reply[:length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "v", "7")
    described = head["outputs"][0]
    assert (described["name"], described["datatype"], described["shape"]) == ("y", "FP64", [2, 1])
    if binary:
        assert described["parameters"] == {"binary_data_size": 16}
        assert "data" not in described
        assert struct.unpack("<2d", reply[length:]) == (0.1, 1e300)
    else:
        assert length is None
        assert described["data"] == [0.1, 1e300]


def test_bytes_in_a_json_reply_are_base64():
    asked = decode_request(request({"inputs": [tensor()]})[0], None, max_json_bytes=ROOM)
    reply, _ = encode_reply([Tensor.of_bytes("reply", b"\x00\xff")], asked, model_name="m", model_version="v")
    assert json.loads(reply)["outputs"][0]["data"] == [base64.b64encode(b"\x00\xff").decode()]


def test_a_written_request_is_what_the_specification_says():
    body, length = encode_request(
        [Tensor.of_bytes("query", b"abc")], binary_outputs=["reply"], parameters={"key_id": "k"}
    )
    assert json.loads(body[:length]) == {
        "inputs": [{"name": "query", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 7}}],
        "outputs": [{"name": "reply", "parameters": {"binary_data": True}}],
        "parameters": {"key_id": "k"},
    }
    assert body[length:] == struct.pack("<I", 3) + b"abc"


def binary_tensor(size: object, **changes) -> dict:
    return {"name": "x", "shape": [1], "datatype": "FP64", "parameters": {"binary_data_size": size}} | changes


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"inputs": 1},
        {"inputs": [1]},
        {"inputs": [tensor(shape=[-1, 2])]},
        {"inputs": [tensor(shape=[0])]},
        {"inputs": [tensor(shape=[1] * 9)]},
        {"inputs": [tensor(shape=[2**40])]},
        {"inputs": [tensor(), tensor()]},
        {"inputs": [tensor(datatype="INT8")]},
        {"inputs": [tensor(data=[1, 2, [3]])]},
        {"inputs": [tensor(data=[[1], [2, 3]])]},
        {"inputs": [tensor(data=[[1, 2, 3, 4]])]},
        {"inputs": [tensor(data="secret")]},
        {"inputs": [tensor(data=None)]},
        {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64"}]},
        {"inputs": [tensor(datatype="BYTES", shape=[1], data=["not base64!"])]},
        {"inputs": [tensor(datatype="BYTES", shape=[1], data=[1])]},
        {"inputs": [tensor()], "id": "x" * 129},
        {"inputs": [tensor()], "id": 5},
        {"inputs": [tensor()], "parameters": {"a": []}},
        {"inputs": [tensor()], "outputs": [{}]},
        {"inputs": [binary_tensor(9)]},
        {"inputs": [binary_tensor(-1)]},
        {"inputs": [binary_tensor("8")]},
        {"inputs": [binary_tensor(True)]},
        {"inputs": [binary_tensor(8, data=[1.0])]},
        {"inputs": [binary_tensor(4)]},
    ],
    ids=str,
)
def test_refuses_what_the_specification_does_not_allow(head):
    with pytest.raises(ProtocolError) as refusal:
        decode_request(*request(head, bytes(8)), max_json_bytes=ROOM)
    assert "secret" not in str(refusal.value)


def test_names_the_field_and_not_the_value():
    body, _ = request({"inputs": [tensor(shape=["secret"])]})
    with pytest.raises(ProtocolError, match=r"field \$\.inputs\[0\]\.shape\[0\]") as refusal:
        decode_request(body, None, max_json_bytes=ROOM)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("length", [0, -1, 10**6])
def test_refuses_a_header_length_beyond_the_body(length):
    with pytest.raises(ProtocolError):
        decode_request(request({"inputs": [tensor()]})[0], length, max_json_bytes=ROOM)


def test_refuses_more_json_than_allowed():
    body, length = request({"inputs": [tensor()]})
    with pytest.raises(ProtocolError, match="binary form"):
        decode_request(body, None, max_json_bytes=length - 1)


@pytest.mark.parametrize("value", ["NaN", "1e400", "-1e400"])
def test_numbers_are_finite(value):
    body = json.dumps({"inputs": [tensor(data=["?", 2, 3, 4])]}).replace('"?"', value).encode()
    with pytest.raises(ProtocolError):
        decode_request(body, None, max_json_bytes=ROOM).inputs["x"].numbers()


@pytest.mark.parametrize(
    "wrong",
    [
        Tensor("x", "BYTES", (1,), b"\x05\x00\x00\x00abc"),
        Tensor("x", "BYTES", (1,), b"\x00"),
        Tensor("x", "BYTES", (2,), b"\x00\x00\x00\x00" * 2),
        Tensor("x", "FP64", (1,), bytes(8)),
    ],
)
def test_a_payload_is_one_element_of_its_stated_length(wrong):
    with pytest.raises(ProtocolError):
        wrong.payload()


def test_numbers_fill_their_shape_and_have_a_number_type():
    for wrong in (Tensor("x", "FP64", (2,), bytes(8)), Tensor("x", "BYTES", (1,), bytes(4))):
        with pytest.raises(ProtocolError):
            wrong.numbers()


def test_the_repr_hides_the_values():
    assert "secret" not in repr(Tensor.of_bytes("query", b"secret"))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-2, 400)))
def test_any_bytes_are_a_request_or_a_protocol_error(body, length):
    for decode in (decode_request, decode_reply):
        with contextlib.suppress(ProtocolError):
            decode(body, length, max_json_bytes=ROOM)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "shape", "data"]), inner),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": _JSON,
            "parameters": _JSON,
            "outputs": _JSON,
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {"name": st.text(max_size=3), "datatype": st.sampled_from(["FP64", "FP32", "BYTES", "INT8"])},
                    optional={
                        "shape": st.lists(st.integers(-1, 3) | st.integers(), max_size=3),
                        "data": _JSON,
                        "parameters": st.dictionaries(st.sampled_from(["binary_data_size"]), _JSON),
                    },
                ),
                max_size=2,
            ),
        },
    ),
    st.binary(max_size=24),
)
def test_any_json_is_a_request_or_a_protocol_error(head, tail):
    body, length = request(head, tail)
    try:
        read = decode_request(body, length, max_json_bytes=ROOM)
        for given_tensor in read.inputs.values():
            for use in (given_tensor.payload, given_tensor.numbers):
                with contextlib.suppress(ProtocolError):
                    use()
    except ProtocolError:
        pass
