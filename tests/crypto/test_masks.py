"""Masks: the RFC's key stream, cancellation, and uniformity in small rings with a control that must fail."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from confide.crypto.masks import add_mask
from confide.crypto.random import public_stream
from confide.crypto.ring import Words
from crypto import chacha

#: RFC 8439, appendix A.1, vectors 1 and 2: the first two blocks under the zero key and nonce.
KEY_STREAM = bytes.fromhex(
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a376a43b8f41518a11c"
    "c387b669b2ee65869f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d5"
    "31ed1f28510afb45ace10a1f4b794d6f"
)


def masked(key: bytes, count: int, dtype: type = np.uint32) -> Words:
    words = np.zeros(count, dtype)
    add_mask(words, key)
    return words


def test_a_mask_is_the_key_stream_of_rfc_8439() -> None:
    assert masked(bytes(32), 32).astype("<u4").tobytes() == KEY_STREAM
    assert masked(bytes(32), 16, np.uint64).astype("<u8").tobytes() == KEY_STREAM


@pytest.mark.parametrize(("dtype", "size"), [(np.uint32, 4), (np.uint64, 8)])
def test_the_stream_goes_on_across_blocks(dtype: type, size: int) -> None:
    """Compare the words around the places where the work is cut with the oracle's blocks."""
    key = bytes(range(32))
    words = masked(key, (1 << 16) + 100, dtype)
    for at in (0, 1 << 15, 1 << 16):
        start = at - 16 if at else 0
        counter, count = start * size // 64, 32 * size
        expected = chacha.stream(key, counter, bytes(12), count)
        assert words[start : start + 32].astype(f"<u{size}").tobytes() == expected


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
