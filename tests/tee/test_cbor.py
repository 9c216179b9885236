"""The reader of CBOR: cbor2 as its oracle, and what must be refused before anything is made of it."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.tee import cbor
from confide.tee.cose import read_sign1

INTEGERS = st.integers(-(1 << 64), (1 << 64) - 1)
ITEMS = st.recursive(
    st.none() | INTEGERS | st.binary(max_size=300) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(INTEGERS | st.text(max_size=9), inner, max_size=9),
    max_leaves=20,
)


def depth(item: object) -> int:
    inner = item if isinstance(item, list) else item.values() if isinstance(item, dict) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(ITEMS)
def test_it_reads_what_a_library_wrote(item):
    body = cbor2.dumps(item)
    if depth(item) > cbor.MAX_DEPTH:
        with pytest.raises(ProtocolError):
            cbor.loads(body)
    else:
        assert cbor.loads(body) == item


@given(st.binary(max_size=60))
def test_it_reads_nothing_that_a_library_reads_otherwise(body):
    try:
        found = cbor.loads(body)
    except ProtocolError:
        return
    assert cbor2.loads(body) == found


@pytest.mark.parametrize("kind", [cbor.UNSIGNED, cbor.BYTES, cbor.TEXT])
@pytest.mark.parametrize("size", [0, 23, 24, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1])
def test_heads_are_the_shortest(kind, size):
    expected = cbor2.dumps(size)
    assert cbor.head(kind, size) == bytes([expected[0] | kind << 5]) + expected[1:]


@pytest.mark.parametrize("tag", [0, 1, 2, 3, 4, 5, 18, 25, 28, 29, 30, 35, 36, 37, 100, 256, 258, 260, 43000, 55799])
@pytest.mark.parametrize("value", [b"1", "a", 1, [1, 2]])
def test_no_tag_is_read_wherever_it_stands(tag, value):
    tagged = cbor.head(6, tag) + cbor2.dumps(value)
    for body in (tagged, b"\x81" + tagged, b"\xa1\x01" + tagged, b"\xa1" + tagged + b"\x01"):
        with pytest.raises(ProtocolError, match="without tags"):
            cbor.loads(body)


def test_no_regular_expression_of_a_sender_is_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr("re.compile", lambda *arguments: compiled.append(arguments))
    expression = b"\xd8\x23" + cbor2.dumps("(?i)" + "[\x00-\ufffe]" * 50)
    header, document = b"\x43\xa1\x01\x05", cbor2.dumps(b"\xa1\x61a" + expression)
    for body in (expression, b"\xd2" + expression, b"\x84" + header + b"\xa0" + document + b"\x40",
                 b"\x84" + header + b"\xa1\x01" + expression + b"\x41\xa0\x40"):  # fmt: skip
        with pytest.raises(ProtocolError):
            read_sign1(body)
    assert not compiled


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\x00",
        b"\x1c",
        b"\xf4",
        b"\xf5",
        b"\xf7",
        b"\xf9\x00\x00",
        b"\xfb" + bytes(8),
        b"\xff",
        b"\x5f\x41a\xff",
        b"\x7f\x61a\xff",
        b"\x9f\xff",
        b"\xbf\xff",
        b"\x62\xff\xff",
        b"\x5b" + b"\xff" * 8,
        b"\x9b" + b"\xff" * 8,
        b"\xbb" + b"\xff" * 8,
        b"\x81" * 5 + b"\x00",
        b"\x98\x41" + bytes(65),
        b"\xa2\x01\x00\x01\x00",
        b"\xa2\x61a\x00\x78\x01a\x00",
        b"\xa1\x41a\x00",
        b"\xa1\x80\x00",
        b"\xa1\xf6\x00",
        b"\xd2\xd2\x00",
        b"\x59\x80\x00" + bytes(1 << 15),
    ],
)
def test_what_is_not_of_the_part_is_refused(body):
    with pytest.raises(ProtocolError):
        cbor.loads(body)
