"""Streams of words: AES-128 of OpenSSL, block by block, is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import ECB

from confide.errors import UsageError
from confide.mpc import streams, streams_numpy
from mpc.paths import engines, native

KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")


@pytest.fixture(params=engines(streams_numpy))
def engine(request, monkeypatch):
    monkeypatch.setattr(streams, "_engine", request.param)
    return request.param


def by_definition(key: bytes, nonce: int, words: int) -> list[int]:
    encryptor = Cipher(AES128(key), ECB()).encryptor()
    found: list[int] = []
    for i in range(-(-words // 2)):
        block = encryptor.update(nonce.to_bytes(8, "little") + i.to_bytes(8, "little"))
        found += [int.from_bytes(block[:8], "little"), int.from_bytes(block[8:], "little")]
    return found[:words]


@pytest.mark.parametrize("words", [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 65, 333])
@pytest.mark.parametrize("nonce", [0, 1, (1 << 64) - 1])
def test_every_length(engine, words, nonce):
    found = streams.stream(KEY, nonce, words)
    assert found.dtype == np.uint64
    assert found.tolist() == by_definition(KEY, nonce, words)


@pytest.mark.parametrize("key", [bytes(16), bytes([255] * 16), bytes(range(16)), bytes(range(240, 256))])
def test_every_key(engine, key):
    """Ten round keys each: all ends of the S-box's inputs turn up in 40 blocks."""
    assert streams.stream(key, 7, 80).tolist() == by_definition(key, 7, 80)


def test_the_published_vector(engine):
    """FIPS 197, appendix B: the block that gives it is a nonce and a counter beyond what a stream reaches."""
    plain = bytes.fromhex("3243f6a8885a308d313198a2e0370734")
    assert Cipher(AES128(KEY), ECB()).encryptor().update(plain).hex() == "3925841d02dc09fbdc118597196a0b32"
    one = streams_numpy.encrypt(KEY, np.frombuffer(plain, np.uint64).reshape(1, 2))
    assert one.tobytes().hex() == "3925841d02dc09fbdc118597196a0b32"


def test_counters_beyond_one_part(engine):
    """The twin works by parts of 2^15 words; a longer stream goes on where a part ended."""
    long = streams.stream(KEY, 3, (1 << 15) + 9)
    assert long[-9:].tolist() == by_definition(KEY, 3, (1 << 15) + 9)[-9:]
    assert (long[:100] == streams.stream(KEY, 3, 100)).all()


@pytest.mark.parametrize("count", [0, 1, 7, 8, 64, 65, 1000])
def test_bits(engine, count):
    bits = streams.stream_bits(KEY, 5, count)
    whole = sum(word << (64 * place) for place, word in enumerate(by_definition(KEY, 5, -(-count // 64))))
    assert bits.dtype == np.uint8
    assert bits.tolist() == [whole >> place & 1 for place in range(count)]


def test_streams_of_other_keys_and_nonces_differ(engine):
    first = streams.stream(KEY, 0, 4)
    assert (first != streams.stream(KEY, 1, 4)).all()
    assert (first != streams.stream(bytes(16), 0, 4)).all()


@pytest.mark.parametrize(
    ("key", "nonce", "words"), [(bytes(15), 0, 1), (bytes(32), 0, 1), (KEY, -1, 1), (KEY, 1 << 64, 1), (KEY, 0, -1)]
)
def test_what_is_no_stream(key, nonce, words):
    with pytest.raises(UsageError, match="Expected"):
        streams.stream(key, nonce, words)
    with pytest.raises(UsageError, match="Expected"):
        streams.stream_bits(key, nonce, words)


@pytest.mark.skipif(native is None, reason="installed without a C++ compiler")
def test_native_trusts_nobody():
    with pytest.raises(ValueError, match="16 bytes"):
        native.stream(bytes(15), 0, np.zeros(2, np.uint64))
    with pytest.raises(TypeError):
        native.stream(KEY, 0, np.frombuffer(bytes(16), np.uint64))
