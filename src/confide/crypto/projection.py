"""Random projections of ring vectors: signed sums of all coordinates, from a public seed.

    symbol    here     meaning
    G         seed     rows x d entries, each -1, 0 or 1 with probability 1/4, 1/2, 1/4
    v         vectors  what is projected: words of the ring, uint32 or uint64
    G v       project  `rows` words, wrapping at the width of a word, so right modulo any smaller power of two

An entry is (e + e') / 2 with e and e' from {-1, 1}: two bits of the AES-256 key stream of the seed. The seed is the
output of a hash over what is projected, and public: it hides nothing, it only must not be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from confide.crypto import ring
from confide.crypto.ring import Words

#: Bytes of key stream at a time: they stay in the cache.
_BLOCK_BYTES = 1 << 17
_ZEROS = bytes(_BLOCK_BYTES)


def project(seed: bytes, vectors: Sequence[Words], rows: int) -> list[Words]:
    """Return G v for each of `vectors`, in one pass over the entries of G.

    Args:
        seed: 32 bytes; they give G.
        vectors: uint32 or uint64, each of shape (d,).
        rows: of G, a multiple of 16, at most 65,536.
    """
    stream = Cipher(AES256(seed), CTR(bytes(16))).encryptor()
    groups = max(1, _BLOCK_BYTES // (2 * rows))
    choices, zeros = np.empty(2 * rows * groups, np.uint8), memoryview(_ZEROS)
    sums: list[Words] = [np.zeros(rows, vector.dtype) for vector in vectors]
    length = max(len(vector) for vector in vectors)
    for start in range(0, length, 8 * groups):
        count = min(groups, -(-(length - start) // 8))
        part = choices[: 2 * rows * count]
        stream.update_into(zeros[: part.nbytes], part.data)
        for acc, vector in zip(sums, vectors, strict=True):
            block = vector[start : start + 8 * count]
            if len(block) % 8:
                block = np.concatenate([block, np.zeros(-len(block) % 8, block.dtype)])
            ring.project(acc, block, part[: 2 * rows * (len(block) // 8)])
    return sums
