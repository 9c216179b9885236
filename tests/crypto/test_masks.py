"""Masks: the standard's key stream, cancellation, and uniformity in small rings with a control that must fail."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from confide.crypto.masks import add_mask
from confide.crypto.random import public_stream
from confide.crypto.ring import Words
from crypto import aes

#: FIPS 197, appendix C.3, and SP 800-38A, F.5.5: what the oracle must say.
KNOWN = (
    (bytes(range(32)), "00112233445566778899aabbccddeeff", "8ea2b7ca516745bfeafc49904b496089"),
    (
        bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"),
        "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
        "0bdf7df1591716335e9a8b15c860c502",
    ),
)


def masked(key: bytes, count: int, dtype: type = np.uint32) -> Words:
    words = np.zeros(count, dtype)
    add_mask(words, key)
    return words


@pytest.mark.parametrize(("key", "plaintext", "ciphertext"), KNOWN)
def test_the_oracle_gives_the_published_blocks(key: bytes, plaintext: str, ciphertext: str) -> None:
    assert aes.block(key, bytes.fromhex(plaintext)).hex() == ciphertext


@pytest.mark.parametrize(("dtype", "size"), [(np.uint32, 4), (np.uint64, 8)])
def test_a_mask_is_the_key_stream_of_aes_256_in_counter_mode(dtype: type, size: int) -> None:
    """Also around the places where the work is cut into blocks, and at a length that fills no block of the cipher."""
    key = bytes(range(32))
    words = masked(key, (1 << 18) // size + 101, dtype).astype(f"<u{size}").tobytes()
    for at in (0, 1 << 17, 1 << 18):
        start = max(0, at // 16 - 4)
        expected = aes.stream(key, start, 9)
        assert words[16 * start : 16 * (start + 9)] == expected[: len(words) - 16 * start]


@given(
    st.integers(0, 70_000), st.binary(min_size=32, max_size=32), st.sampled_from([np.uint32, np.uint64]), st.booleans()
)
@settings(max_examples=25, deadline=None)
def test_a_mask_cancels_exactly(count: int, key: bytes, dtype: type, negate: bool) -> None:
    start = public_stream(count, "words").integers(0, np.iinfo(dtype).max, count, dtype, endpoint=True)
    words = start.copy()
    add_mask(words, key, negate=negate)
    assert count < 8 or not np.array_equal(words, start)
    add_mask(words, key, negate=not negate)
    np.testing.assert_array_equal(words, start)


def test_every_residue_of_a_tiny_ring_occurs_as_often() -> None:
    """m = 4, 100,000 draws: chi-square with 3 degrees, two-sided, false alarm 2e-6.

    The control draws from [0, m - 1) as one released framework does: a residue is missing and the test says so.
    """
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=3)

    def statistic(residues: np.ndarray) -> float:
        return float(stats.chisquare(np.bincount(residues, minlength=4)).statistic)

    assert low < statistic(masked(bytes(32), 100_000) & 3) < high
    trap = public_stream(1, "trap").integers(0, 4 - 1, 100_000)
    assert statistic(trap) > high


def test_different_keys_give_unrelated_masks() -> None:
    """The difference of two masks is uniform too: low bytes, 255 degrees, two-sided, false alarm 2e-6."""
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=255)
    difference = masked(bytes(32), 65_536) - masked(bytes(31) + b"\1", 65_536)
    for shift in (0, 24):
        counts = np.bincount((difference >> np.uint32(shift)) & 255, minlength=256)
        assert low < stats.chisquare(counts).statistic < high


def test_a_key_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError):
        masked(bytes(16), 4)


def test_an_empty_vector_stays_empty() -> None:
    assert masked(bytes(32), 0).size == 0
