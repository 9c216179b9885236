"""The encapsulation of ML-KEM-768 written from the pseudo-code of FIPS 203, with its randomness given; slow.

Only this half is here: OpenSSL makes keys and opens ciphertexts from given bytes, and draws when it encapsulates.
"""

from __future__ import annotations

import hashlib

Q, N, K, ETA, DU, DV = 3329, 256, 3, 2, 10, 4

Poly = list[int]


def _reversed_bits(index: int) -> int:
    return int(f"{index:07b}"[::-1], 2)


#: 17^BitRev7(i) and 17^(2 BitRev7(i) + 1), appendix A.
ZETAS = [pow(17, _reversed_bits(index), Q) for index in range(128)]
GAMMAS = [pow(17, 2 * _reversed_bits(index) + 1, Q) for index in range(128)]


def encode(values: Poly, bits: int) -> bytes:
    """Algorithm 5."""
    return sum(value << bits * at for at, value in enumerate(values)).to_bytes(len(values) * bits // 8, "little")


def decode(data: bytes, bits: int) -> Poly:
    """Algorithm 6; the caller checks that values are reduced."""
    packed = int.from_bytes(data, "little")
    return [packed >> bits * at & (1 << bits) - 1 for at in range(8 * len(data) // bits)]


def compress(values: Poly, bits: int) -> Poly:
    """Equation 4.7: the nearest, halves up."""
    return [((value << bits + 1) + Q) // (2 * Q) % (1 << bits) for value in values]


def sample_uniform(seed: bytes) -> Poly:
    """Algorithm 7, from more bytes than it ever needs."""
    values = (value for value in decode(hashlib.shake_128(seed).digest(1536), 12) if value < Q)
    return [next(values) for _ in range(N)]


def sample_small(seed: bytes, counter: int) -> Poly:
    """Algorithm 8 over PRF, equation 4.3."""
    bits = decode(hashlib.shake_256(seed + bytes([counter])).digest(64 * ETA), 1)
    return [(sum(bits[2 * at * ETA :][:ETA]) - sum(bits[2 * at * ETA + ETA :][:ETA])) % Q for at in range(N)]


def transform(values: Poly) -> Poly:
    """Algorithm 9."""
    values, index, length = list(values), 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            for at in range(start, start + length):
                turned = ZETAS[index] * values[at + length] % Q
                values[at + length], values[at] = (values[at] - turned) % Q, (values[at] + turned) % Q
            index += 1
        length //= 2
    return values


def transform_back(values: Poly) -> Poly:
    """Algorithm 10."""
    values, index, length = list(values), 127, 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            for at in range(start, start + length):
                first, second = values[at], values[at + length]
                values[at], values[at + length] = (first + second) % Q, ZETAS[index] * (second - first) % Q
            index -= 1
        length *= 2
    return [value * 3303 % Q for value in values]


def multiply(left: Poly, right: Poly) -> Poly:
    """Algorithms 11 and 12."""
    product: Poly = []
    for at, gamma in enumerate(GAMMAS):
        (a, b), (c, d) = left[2 * at : 2 * at + 2], right[2 * at : 2 * at + 2]
        product += [(a * c + b * d * gamma) % Q, (a * d + b * c) % Q]
    return product


def add(*parts: Poly) -> Poly:
    return [sum(values) % Q for values in zip(*parts, strict=True)]


def encrypt(public: bytes, message: bytes, coins: bytes) -> bytes:
    """Algorithm 14."""
    t = [decode(public[384 * row : 384 * (row + 1)], 12) for row in range(K)]
    rho = public[384 * K :]
    matrix = [[sample_uniform(rho + bytes([column, row])) for column in range(K)] for row in range(K)]
    y = [transform(sample_small(coins, counter)) for counter in range(K)]
    e1 = [sample_small(coins, K + counter) for counter in range(K)]
    e2 = sample_small(coins, 2 * K)
    u = [
        add(transform_back(add(*(multiply(matrix[row][column], y[row]) for row in range(K)))), e1[column])
        for column in range(K)
    ]
    mu = [(Q + 1) // 2 * bit for bit in decode(message, 1)]
    v = add(transform_back(add(*(multiply(t[row], y[row]) for row in range(K)))), e2, mu)
    return b"".join(encode(compress(row, DU), DU) for row in u) + encode(compress(v, DV), DV)


def encapsulate(public: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Algorithm 17: ciphertext and shared secret from the 32 bytes that Algorithm 20 draws."""
    both = hashlib.sha3_512(message + hashlib.sha3_256(public).digest()).digest()
    return encrypt(public, message, both[32:]), both[:32]
