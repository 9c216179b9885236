"""Comparisons between two servers with what a third deals: x < alpha for every n, against Python."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.mpc.replicated_signs import combine, comparison, look_up, packed, products, tables, to_open, unpacked


def split(values: np.ndarray, stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Shares by exclusive or."""
    first = np.frombuffer(stream.bytes(values.nbytes), values.dtype).reshape(values.shape)
    return first, values ^ first


def less(bits: int, x: np.ndarray, alpha: np.ndarray, seed: int) -> np.ndarray:
    """What the two find, without messages."""
    stream = np.random.default_rng(seed)
    cut = comparison(bits)
    shares = list(zip(*(split(table, stream) for table in tables(cut, alpha)), strict=True))
    held = [look_up(cut, x, list(shares[party])) for party in (0, 1)]
    for level in range(len(cut.levels)):
        masks = [np.frombuffer(stream.bytes(cut.opened(level) * held[0][0].shape[1]), np.uint8) for _ in (0, 1)]
        masks = [one.reshape(cut.opened(level), -1) for one in masks]
        dealt = split(products(cut, level, masks[0] ^ masks[1]), stream)
        assert len(dealt[0]) == cut.dealt(level)
        opened = [to_open(cut, level, *held[party]) ^ masks[party] for party in (0, 1)]
        assert len(opened[0]) == cut.opened(level)
        held = [
            combine(
                cut, level, party, *held[party], opened=opened[0] ^ opened[1], masks=masks[party], dealt=dealt[party]
            )
            for party in (0, 1)
        ]
    return unpacked((held[0][1] ^ held[1][1])[0], x.size)


@pytest.mark.parametrize("bits", range(1, 6))
def test_every_pair_of_few_bits(bits):
    pairs = np.array(list(product(range(1 << bits), repeat=2)), np.uint64)
    assert (less(bits, pairs[:, 0], pairs[:, 1], bits) == (pairs[:, 0] < pairs[:, 1])).all()


@pytest.mark.parametrize("bits", range(6, 63))
def test_random_near_and_extreme_pairs_of_every_width(bits):
    stream = np.random.default_rng(bits)
    x, alpha = stream.integers(0, 1 << bits, (2, 400), np.uint64)
    x[:200] = alpha[:200]
    place = np.arange(100, dtype=np.uint64) % np.uint64(bits)
    x[50:150] ^= np.uint64(1) << place  # one bit apart, at every place
    x[200:204], alpha[200:204] = (0, 0, (1 << bits) - 1, (1 << bits) - 1), (0, (1 << bits) - 1, 0, (1 << bits) - 1)
    wanted = [int(a) < int(b) for a, b in zip(x, alpha, strict=True)]
    assert (less(bits, x, alpha, bits) == wanted).all()


@settings(max_examples=60)
@given(st.integers(1, 62), st.data())
def test_any_pair(bits, data):
    numbers = st.lists(st.integers(0, (1 << bits) - 1), min_size=3, max_size=3)
    x, alpha = (np.array(data.draw(numbers), np.uint64) for _ in range(2))
    assert (less(bits, x, alpha, 0) == (x < alpha)).all()


def test_the_cut_takes_few_exchanges_then_few_bytes():
    assert comparison(28).blocks == (5, 5, 5, 5, 4, 4)
    assert comparison(28).levels == ((6,),)
    assert [len(comparison(bits).levels) for bits in (1, 6, 7, 42, 43, 62)] == [0, 0, 1, 1, 2, 2]
    assert all(comparison(bits).bytes_per_element < 82 for bits in range(1, 63))
    assert all(sum(comparison(bits).blocks) == bits for bits in range(1, 63))


def test_bits_are_packed_the_lowest_first():
    bits = np.array([1, 0, 0, 0, 0, 0, 0, 1, 1], np.uint8)
    assert packed(bits).tolist() == [0x81, 1]
    assert (unpacked(packed(bits), 9) == bits).all()
