"""Comparison keys: the truth of x < alpha, a second implementation of the formulas, and what one key alone shows."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import ECB

from confide.errors import ProtocolError, UsageError
from confide.mpc import dcf, dcf_numpy
from mpc.paths import engines, here, native

KEY = bytes(range(100, 116))


@pytest.fixture(params=engines(dcf_numpy))
def engine(request, monkeypatch):
    monkeypatch.setattr(dcf, "_engine", request.param)
    return request.param


def roots(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, count, 16), np.uint8)


def numbers(seed: int, count: int, bits: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, count, np.uint64)


def shares(alpha: np.ndarray, x: np.ndarray, bits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    both = roots(seed, len(alpha))
    corrections = dcf.generate(both[0], both[1], alpha, bits, KEY)
    assert corrections.shape == (dcf.correction_bytes(len(alpha), bits),)
    first, second = (dcf.evaluate(party, both[party], corrections, x, bits, KEY) for party in (0, 1))
    assert set(np.unique([first, second])) <= {0, 1}
    return first, second


class TestTruth:
    @pytest.mark.parametrize("bits", [1, 2, 3, 6, 7, 8])
    def test_every_pair(self, engine, bits):
        every = np.arange(1 << bits, dtype=np.uint64)
        alpha, x = np.repeat(every, 1 << bits), np.tile(every, 1 << bits)
        first, second = shares(alpha, x, bits)
        assert ((first ^ second) == (x < alpha)).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("bits", [4, 5, 9, 10])
    def test_every_pair_of_more_bits(self, engine, bits):
        every = np.arange(1 << bits, dtype=np.uint64)
        alpha, x = np.repeat(every, 1 << bits), np.tile(every, 1 << bits)
        first, second = shares(alpha, x, bits)
        assert ((first ^ second) == (x < alpha)).all()

    @pytest.mark.parametrize("bits", [9, 28, 44, 63])
    def test_random_and_near(self, engine, bits):
        count = 999
        alpha, far = numbers(1, count, bits), numbers(2, count, bits)
        for x in (far, alpha, alpha - np.uint64(1), alpha + np.uint64(1), alpha ^ np.uint64(128)):
            x = x & np.uint64((1 << bits) - 1)
            first, second = shares(alpha, x, bits)
            assert ((first ^ second) == (x < alpha)).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("bits", [28, 63])
    def test_a_million(self, bits):
        alpha, x = numbers(1, 1_000_000, bits), numbers(2, 1_000_000, bits)
        first, second = shares(alpha, x, bits)
        assert ((first ^ second) == (x < alpha)).all()

    @pytest.mark.parametrize("bits", [1, 7, 8, 28, 63])
    def test_the_ends(self, engine, bits):
        largest = (1 << bits) - 1
        alpha = np.repeat(np.array([0, largest], np.uint64), 3)
        x = np.array([0, largest // 2, largest] * 2, np.uint64)
        first, second = shares(alpha, x, bits)
        assert (first ^ second).tolist() == [0, 0, 0, int(largest > 0), int(largest // 2 < largest), 0]

    def test_higher_bits_are_not_read(self, engine):
        alpha, x = numbers(1, 50, 28), numbers(2, 50, 28)
        junk = np.uint64(0xABCD << 40)
        for one, other in zip(shares(alpha, x, 28), shares(alpha | junk, x | junk, 28), strict=True):
            assert (one == other).all()

    @pytest.mark.parametrize(("bits", "drop"), [(1, 0), (7, 3), (8, 55), (28, 16), (28, 35), (44, 19), (62, 1)])
    def test_without_low_bits_and_with_the_bit_above(self, engine, bits, drop):
        alpha, x = numbers(1, 150, bits), np.random.default_rng(2).integers(0, 1 << 64, 150, np.uint64)
        x[::2] = (x[::2] >> np.uint64(bits + drop) << np.uint64(bits + drop)) | (alpha[::2] << np.uint64(drop))
        both = roots(3, 150)
        corrections = dcf.generate(both[0], both[1], alpha, bits, KEY)
        first = dcf.evaluate(0, both[0], corrections, x, bits, KEY, drop=drop, top=True)
        second = dcf.evaluate(1, both[1], corrections, x, bits, KEY, drop=drop)
        points = [int(one) >> drop for one in x]
        below = [point % (1 << bits) < int(one) for point, one in zip(points, alpha, strict=True)]
        assert (first ^ second).tolist() == [
            one ^ (point >> bits & 1) for point, one in zip(points, below, strict=True)
        ]
        with pytest.raises(UsageError, match="drop"):
            dcf.evaluate(0, both[0], corrections, x, bits, KEY, drop=64)

    @pytest.mark.parametrize("count", [0, 1, 7, 8, 15, 16, 17, 127, 128, 129, 257])
    def test_every_size_of_a_batch(self, engine, count):
        alpha, x = numbers(1, count, 12), numbers(2, count, 12)
        first, second = shares(alpha, x, 12)
        assert ((first ^ second) == (x < alpha)).all()

    def test_several_points_of_one_key(self, engine):
        alpha, x = numbers(1, 40, 20), numbers(2, 120, 20).reshape(3, 40)
        both = roots(3, 40)
        corrections = dcf.generate(both[0], both[1], alpha, 20, KEY)
        first, second = (dcf.evaluate_many(party, both[party], corrections.tobytes(), x, 20, KEY) for party in (0, 1))
        assert ((first ^ second) == (x < alpha)).all()


# --- a second implementation ------------------------------------------------------------------------------------------


def hashed(seed: int, domain: int) -> int:
    """AES_K(y) xor y of one integer of 128 bits."""
    y = seed & ~7 | domain
    block = Cipher(AES128(KEY), ECB()).encryptor().update(y.to_bytes(16, "little"))
    return int.from_bytes(block, "little") ^ y


def key_by_definition(pair: list[int], alpha: int, bits: int) -> list[int]:
    """The formulas of docs/protocols/mpc-kernels.md, bit by bit."""
    states, t, shared, words = list(pair), [0, 1], 0, []
    for level in range(max(bits - 7, 0)):
        a = alpha >> (bits - 1 - level) & 1
        child = [[hashed(state, c) for c in (0, 1)] for state in states]
        lost = child[0][1 - a] ^ child[1][1 - a]
        word = lost >> 3 << 3
        word |= (child[0][0] ^ child[1][0] ^ a ^ 1) & 1
        word |= ((child[0][1] ^ child[1][1]) >> 1 & 1 ^ a) << 1
        word |= (lost >> 2 & 1 ^ shared ^ a) << 2
        states = [child[b][a] ^ (word if t[b] else 0) for b in (0, 1)]
        t = [state >> a & 1 for state in states]
        assert t[0] ^ t[1] == 1
        shared ^= (states[0] ^ states[1]) >> 2 & 1
        words.append(word)
    below = (1 << (alpha % (1 << min(bits, 7)))) - 1
    every = (1 << 128) - 1
    return [*words, hashed(states[0], 2) ^ hashed(states[1], 2) ^ below ^ (every if shared else 0)]


@pytest.mark.parametrize("bits", [1, 5, 7, 8, 11, 28, 63])
def test_corrections_are_those_of_the_formulas(engine, bits):
    count = 9
    alpha, both = numbers(5, count, bits), roots(6, count)
    found = dcf.generate(both[0], both[1], alpha, bits, KEY).reshape(-1, count, 16)
    for i in range(count):
        pair = [int.from_bytes(both[b, i].tobytes(), "little") for b in (0, 1)]
        expected = key_by_definition(pair, int(alpha[i]), bits)
        assert [int.from_bytes(block.tobytes(), "little") for block in found[:, i]] == expected


def test_known_answer(engine):
    """Stays as it is: keys that one version deals are read by another."""
    alpha, both = (
        np.arange(40, dtype=np.uint64) * np.uint64(6_700_417),
        np.arange(1280, dtype=np.uint8).reshape(2, 40, 16),
    )
    corrections = dcf.generate(both[0], both[1], alpha, 28, KEY)
    share = dcf.evaluate(0, both[0], corrections, alpha[::-1], 28, KEY)
    assert hashlib.sha256(corrections.tobytes()).hexdigest() == CORRECTIONS
    assert np.packbits(share).tobytes().hex() == SHARE


CORRECTIONS = "57a876e22e5cc3048e31c969d65cbecbd4d6203d58c966bc24b8b07eaeda079b"
SHARE = "66d6aedced"


# --- what one key shows -----------------------------------------------------------------------------------------------


def skewed(ones: np.ndarray, count: int) -> bool:
    """Whether some number of ones among `count` fair bits is more than six deviations from its mean: once in 5e8."""
    return bool((np.abs(ones - count / 2) > 6 * (count / 4) ** 0.5).any())


@pytest.mark.parametrize("alpha", [0, 1, (1 << 28) - 1, 0x5555555])
def test_one_key_alone_is_uniform(alpha):
    """Every bit of the corrections, and a party's share at any point, is a fair coin whatever alpha is."""
    count, bits = 20_000, 28
    thresholds, both = np.full(count, alpha, np.uint64), roots(alpha, count)
    corrections = dcf.generate(both[0], both[1], thresholds, bits, KEY)
    blocks = np.unpackbits(corrections.reshape(-1, count, 16), axis=2)
    assert not skewed(blocks.sum(axis=1, dtype=np.int64), count)
    for x in (0, alpha, (1 << 28) - 1, 0x0F0F0F0):
        points = np.full(count, x, np.uint64)
        first, second = (dcf.evaluate(party, both[party], corrections, points, bits, KEY) for party in (0, 1))
        assert not skewed(first.sum(dtype=np.int64), count)
        assert not skewed(second.sum(dtype=np.int64), count)
        assert skewed((first ^ second).sum(dtype=np.int64), count)  # together they are the truth: the test has teeth


def test_shares_say_nothing_of_where_a_key_turns():
    """One party's shares at neighbouring points, on both sides of alpha, agree half the time."""
    count, alpha = 20_000, 1 << 20
    both = roots(9, count)
    corrections = dcf.generate(both[0], both[1], np.full(count, alpha, np.uint64), 28, KEY)
    near = [np.full(count, alpha + place, np.uint64) for place in (-2, -1, 0, 1)]
    found = [dcf.evaluate(1, both[1], corrections, x, 28, KEY).astype(np.int64) for x in near]
    for one, other in ((0, 1), (1, 2), (2, 3)):
        assert not skewed((found[one] ^ found[other]).sum(), count)


def test_other_roots_or_another_key_of_the_batch_give_noise():
    count = 4_000
    alpha, x, both = numbers(1, count, 28), numbers(2, count, 28), roots(3, count)
    corrections = dcf.generate(both[0], both[1], alpha, 28, KEY)
    right = dcf.evaluate(0, both[0], corrections, x, 28, KEY)
    other = dcf.evaluate(0, both[0], corrections, x, 28, bytes(16))
    assert not skewed((right ^ other).sum(dtype=np.int64), count)
    swapped = dcf.evaluate(0, both[1], corrections, x, 28, KEY)
    assert not skewed((right ^ swapped).sum(dtype=np.int64), count)


# --- the seam ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "expected"), [(1, 16), (7, 16), (8, 32), (28, 352), (63, 912)])
def test_bytes_of_a_key(bits, expected):
    assert dcf.correction_bytes(1, bits) == expected
    assert dcf.correction_bytes(10, bits) == 10 * expected


@pytest.mark.parametrize(("count", "bits"), [(-1, 8), (1, 0), (1, 64)])
def test_sizes_out_of_range(count, bits):
    with pytest.raises(UsageError, match="Expected count="):
        dcf.correction_bytes(count, bits)


@pytest.mark.parametrize("change", [-1, 1, 16])
def test_corrections_of_another_length(engine, change):
    both, alpha = roots(0, 3), numbers(0, 3, 9)
    body = dcf.generate(both[0], both[1], alpha, 9, KEY).tobytes()
    wrong = body[:change] if change < 0 else body + bytes(change)
    with pytest.raises(ProtocolError, match="bytes of corrections"):
        dcf.evaluate(0, both[0], wrong, alpha, 9, KEY)


def test_what_does_not_fit():
    both, alpha = roots(0, 3), numbers(0, 3, 9)
    body = dcf.generate(both[0], both[1], alpha, 9, KEY)
    with pytest.raises(UsageError, match="party=2"):
        dcf.evaluate(2, both[0], body, alpha, 9, KEY)
    with pytest.raises(UsageError, match="roots"):
        dcf.evaluate(0, both[0][:2], body, alpha, 9, KEY)
    with pytest.raises(UsageError, match="vector"):
        dcf.evaluate(0, both[0], body, alpha.astype(np.int64), 9, KEY)
    with pytest.raises(UsageError, match="16 bytes"):
        dcf.generate(both[0], both[1], alpha, 9, bytes(8))
    with pytest.raises(UsageError, match="points, count"):
        dcf.evaluate_many(0, both[0], body, alpha, 9, KEY)


@pytest.mark.skipif(native is None, reason="installed without a C++ compiler")
class TestNativeTrustsNobody:
    @pytest.mark.parametrize(
        ("count", "roots_of", "bits", "size", "key"),
        [
            (2, 2, 0, 32, 16),
            (2, 2, 64, 1856, 16),
            (2, 1, 7, 32, 16),
            (2, 2, 7, 31, 16),
            (2, 2, 8, 32, 16),
            (2, 2, 7, 32, 15),
        ],
    )
    def test_sizes(self, count, roots_of, bits, size, key):
        seeds, points = np.zeros((roots_of, 16), np.uint8), np.zeros(count, np.uint64)
        with pytest.raises(ValueError, match="Expected"):
            native.dcf_generate(seeds, seeds, points, bits, bytes(key), np.zeros(size, np.uint8))
        with pytest.raises(ValueError, match="Expected"):
            native.dcf_evaluate(0, seeds, np.zeros(size, np.uint8), points, bits, bytes(key), np.zeros(count, np.uint8))

    def test_party_and_room(self):
        seeds, points, body = np.zeros((2, 16), np.uint8), np.zeros(2, np.uint64), np.zeros(32, np.uint8)
        with pytest.raises(ValueError, match="party"):
            native.dcf_evaluate(2, seeds, body, points, 7, KEY, np.zeros(2, np.uint8))
        with pytest.raises(ValueError, match="room"):
            native.dcf_evaluate(0, seeds, body, points, 7, KEY, np.zeros(1, np.uint8))

    def test_bytes_may_start_anywhere(self):
        both, alpha = roots(0, 33), numbers(0, 33, 20)
        body = dcf.generate(both[0], both[1], alpha, 20, KEY)
        askew = np.frombuffer(b"x" + body.tobytes(), np.uint8, offset=1)
        for path in here:
            out, same = np.zeros(33, np.uint8), np.zeros(33, np.uint8)
            native.dcf_evaluate(0, both[0], askew, alpha, 20, KEY, out, path=path)
            native.dcf_evaluate(0, both[0], body, alpha, 20, KEY, same, path=path)
            assert (out == same).all()
