"""ChaCha20, Poly1305 and their AEAD written from the pseudo-code of RFC 8439, as an oracle; slow."""

from __future__ import annotations

import struct


def _quarter(state: list[int], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[x] = (state[x] + state[y]) & 0xFFFFFFFF
        mixed = state[z] ^ state[x]
        state[z] = ((mixed << turn) | (mixed >> (32 - turn))) & 0xFFFFFFFF


def block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """Section 2.3."""
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
    start += [*struct.unpack("<8I", key), counter, *struct.unpack("<3I", nonce)]
    state = list(start)
    for _ in range(10):
        for column in range(4):
            _quarter(state, column, column + 4, column + 8, column + 12)
        for column in range(4):
            _quarter(state, column, (column + 1) % 4 + 4, (column + 2) % 4 + 8, (column + 3) % 4 + 12)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(state, start, strict=True)))


def stream(key: bytes, counter: int, nonce: bytes, count: int) -> bytes:
    """Section 2.4: `count` bytes of key stream."""
    blocks = (block(key, counter + index, nonce) for index in range(-(-count // 64)))
    return b"".join(blocks)[:count]


def poly1305(key: bytes, message: bytes) -> bytes:
    """Section 2.5."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for start in range(0, len(message), 16):
        total = (total + int.from_bytes(message[start : start + 16] + b"\1", "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def aead(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Section 2.8: ciphertext and tag."""
    mask = stream(key, 1, nonce, len(plaintext))
    ciphertext = bytes(a ^ b for a, b in zip(plaintext, mask, strict=True))
    padded = [part + bytes(-len(part) % 16) for part in (associated, ciphertext)]
    lengths = struct.pack("<2Q", len(associated), len(ciphertext))
    return ciphertext + poly1305(block(key, 0, nonce)[:32], b"".join(padded) + lengths)
