"""AES-256 and its counter mode written from FIPS 197 and SP 800-38A, as an oracle; slow."""

from __future__ import annotations


def _times(a: int, b: int) -> int:
    """Multiply in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1 (FIPS 197, section 4.2)."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def _substitute(value: int) -> int:
    """Section 5.1.1: the inverse in the field, then an affine map."""
    inverse = next((other for other in range(256) if _times(value, other) == 1), 0)
    turned = inverse
    for turn in range(1, 5):
        turned ^= ((inverse << turn) | (inverse >> (8 - turn))) & 0xFF
    return turned ^ 0x63


_S = [_substitute(value) for value in range(256)]


def _round_keys(key: bytes) -> list[list[int]]:
    """Section 5.2 with Nk = 8: fifteen round keys of 16 bytes."""
    words = [list(key[at : at + 4]) for at in range(0, 32, 4)]
    constant = 1
    for index in range(8, 60):
        word = list(words[-1])
        if index % 8 == 0:
            word = [_S[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = _times(constant, 2)
        elif index % 8 == 4:
            word = [_S[byte] for byte in word]
        words.append([a ^ b for a, b in zip(words[-8], word, strict=True)])
    return [[byte for word in words[at : at + 4] for byte in word] for at in range(0, 60, 4)]


def block(key: bytes, plaintext: bytes) -> bytes:
    """Section 5.1: one block under a key of 32 bytes; the state is column-major."""
    keys = _round_keys(key)
    state = [a ^ b for a, b in zip(plaintext, keys[0], strict=True)]
    for number in range(1, 15):
        state = [_S[state[(at + 4 * (at % 4)) % 16]] for at in range(16)]
        if number < 14:
            columns = [state[at : at + 4] for at in range(0, 16, 4)]
            state = [
                _times(c[row], 2) ^ _times(c[(row + 1) % 4], 3) ^ c[(row + 2) % 4] ^ c[(row + 3) % 4]
                for c in columns
                for row in range(4)
            ]
        state = [a ^ b for a, b in zip(state, keys[number], strict=True)]
    return bytes(state)


def stream(key: bytes, first: int, count: int) -> bytes:
    """SP 800-38A, section 6.5: the blocks `first` to `first + count - 1` of the counter from zero, encrypted."""
    return b"".join(block(key, index.to_bytes(16, "big")) for index in range(first, first + count))
