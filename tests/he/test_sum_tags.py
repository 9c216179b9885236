"""Linear tags: exact against plain integers, linear, different for other sums, worth nothing without their secret."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he import sum_tags
from confide.he.sum_layout import RINGS
from confide.he.sum_tags import ROWS, SOUNDNESS_BITS, TAG_BYTES, add_tags, decode_tag, encode_tag, tag_of

KEY = bytes(range(32))
PRIMES = [ring.modulus for ring in RINGS]
BLOCK = 4096


def stream(purpose: bytes, size: int, key: bytes = KEY) -> bytes:
    """RFC 5869 and RFC 8439 from the library."""
    info = len(purpose).to_bytes(4, "little") + purpose
    return Cipher(AES256(HKDFExpand(SHA256(), 32, info).derive(key)), CTR(bytes(16))).encryptor().update(bytes(size))


def weights(prime: int, blocks: int) -> list[list[int]]:
    """What each number is multiplied by in each row, modulo q: in plain integers, from the key."""
    inner = np.frombuffer(stream(b"inner", 2 * ROWS * BLOCK), "<u2").reshape(ROWS, BLOCK).tolist()
    body = stream(b"outer", 16 * ROWS * blocks)
    outer = [int.from_bytes(body[at : at + 16], "little") for at in range(0, len(body), 16)]
    return [
        [outer[row * blocks + block] * value % prime for block in range(blocks) for value in inner[row]]
        for row in range(ROWS)
    ]


def expected(residues: np.ndarray, prime: int) -> tuple[int, ...]:
    numbers = residues.reshape(-1).tolist()
    rows = weights(prime, len(numbers) // BLOCK)
    return tuple(sum(map(int.__mul__, row, numbers)) % prime for row in rows)


def draw(seed: int, prime: int, blocks: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, prime, (blocks, BLOCK), dtype=np.uint64)


@pytest.mark.parametrize("prime", PRIMES)
@pytest.mark.parametrize("blocks", [1, 3, 65])
def test_a_tag_is_the_product_with_the_weights(prime: int, blocks: int) -> None:
    for residues in (draw(1, prime, blocks), np.full((blocks, BLOCK), prime - 1, np.uint64)):
        assert tag_of(residues, prime, KEY) == expected(residues, prime)


def test_the_largest_weights_stay_exact(monkeypatch) -> None:
    """In float64, at the very edge: all inner weights 2^16 - 1, all numbers q - 1."""
    monkeypatch.setattr(sum_tags, "_inner", lambda _: np.full((ROWS, BLOCK), 65535.0))
    monkeypatch.setattr(sum_tags, "_outer", lambda _, blocks: [[1] * blocks] * ROWS)
    for prime in PRIMES:
        residues = np.full((130, BLOCK), prime - 1, np.uint64)
        assert set(tag_of(residues, prime, KEY)) == {65535 * (prime - 1) * residues.size % prime}


@given(seed=st.integers(0, 2**32), clients=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_tags_add_up_as_ciphertexts_do(seed: int, clients: int) -> None:
    prime = PRIMES[seed % 2]
    parts = [draw(seed + number, prime, 2) for number in range(clients)]
    total = (sum(part.astype(object) for part in parts) % prime).astype(np.uint64)
    assert tag_of(total, prime, KEY) == add_tags((tag_of(part, prime, KEY) for part in parts), prime)


@given(place=st.integers(0, 3 * BLOCK - 1), change=st.integers(1, PRIMES[0] - 1))
@settings(max_examples=50, deadline=None)
def test_another_number_is_another_tag(place: int, change: int) -> None:
    """A false alarm has the probability of a forgery, 2^-63."""
    prime, residues = PRIMES[0], draw(7, PRIMES[0], 3)
    other = residues.copy()
    other.reshape(-1)[place] = (int(other.reshape(-1)[place]) + change) % prime
    assert tag_of(other, prime, KEY) != tag_of(residues, prime, KEY)
    assert tag_of(residues, prime, bytes(32)) != tag_of(residues, prime, KEY)


def test_each_row_is_a_check_of_its_own() -> None:
    """Every row has weights of its own, which fill their range: what the stated soundness multiplies."""
    inner = sum_tags._inner(KEY)
    assert inner.min() >= 0
    assert 2**16 - 64 < inner.max() < 2**16
    assert np.abs(np.corrcoef(inner) - np.eye(ROWS)).max() < 0.1  # six deviations
    outer = [weight for row in sum_tags._outer(KEY, 500) for weight in row]
    assert len({weight % PRIMES[0] for weight in outer}) == len(outer)
    assert max(outer).bit_length() == 128
    assert SOUNDNESS_BITS < 16 * ROWS


@pytest.mark.parametrize("row", range(ROWS))
def test_a_row_misses_what_it_misses_no_more_often_than_stated(row: int, monkeypatch) -> None:
    """With inner weights of 2 bits a difference in one number goes unseen by one row for a quarter of the keys.

    2000 keys, five deviations; and no row sees what only another one does: they miss independently.
    """
    draw_inner = sum_tags._inner
    monkeypatch.setattr(sum_tags, "_inner", lambda key: draw_inner(key) % 4)
    residues = np.zeros((1, BLOCK), np.uint64)
    residues[0, 5] = 12345
    missed = np.array([tag_of(residues, PRIMES[0], key.to_bytes(32, "little")) for key in range(2000)]) == 0
    assert abs(missed[:, row].mean() - 1 / 4) < 5 * (3 / 16 / 2000) ** 0.5
    other = missed[:, (row + 1) % ROWS]
    assert abs((missed[:, row] & other).mean() - 1 / 16) < 5 * (15 / 256 / 2000) ** 0.5


def test_who_knows_the_weights_can_forge() -> None:
    """The control: with the key there are others with the same tag, so no client may pool with the server."""
    prime, residues = PRIMES[0], draw(9, PRIMES[0], 1)
    kernel = solve([row[: ROWS + 1] for row in weights(prime, 1)], prime)
    forged = residues.copy()
    forged[0, : ROWS + 1] = [(int(value) + step) % prime for value, step in zip(forged[0], kernel, strict=False)]
    assert (forged != residues).any()
    assert tag_of(forged, prime, KEY) == tag_of(residues, prime, KEY)


def solve(rows: list[list[int]], prime: int) -> list[int]:
    """A vector that every row sends to 0: Gauss-Jordan modulo a prime; the last unknown is 1."""
    rows = [row[:] for row in rows]
    for place in range(len(rows)):
        pivot = next(row for row in rows[place:] if row[place] % prime)
        rows[rows.index(pivot)], rows[place] = rows[place], pivot
        inverse = pow(pivot[place], -1, prime)
        rows[place] = [value * inverse % prime for value in pivot]
        for other in range(len(rows)):
            if other != place:
                factor = rows[other][place]
                rows[other] = [(a - factor * b) % prime for a, b in zip(rows[other], rows[place], strict=True)]
    return [-row[-1] % prime for row in rows] + [1]


def test_encoded_tags() -> None:
    tag = (0, 1, PRIMES[0] - 1, 5)
    assert decode_tag(encode_tag(tag), PRIMES[0]) == tag
    assert len(encode_tag(tag)) == TAG_BYTES
    for body in (b"", bytes(TAG_BYTES + 1), encode_tag((PRIMES[0], 0, 0, 0)), b"\xff" * TAG_BYTES):
        with pytest.raises(ProtocolError):
            decode_tag(body, PRIMES[0])
