"""Masks: a 32-byte key becomes uniform ring words that are added to a vector or taken away again.

    symbol    here     meaning
    PRG(k)    mask     the AES-256 key stream of k in counter mode from zero, read as little-endian words
    d         words    length of the vector

Words wrap at their own width, which the ring's modulus divides, so a mask is uniform in the ring and cancels exactly.
The key stream is OpenSSL's, the arithmetic `confide.crypto.ring`'s.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from confide.crypto.ring import Words, add_words

#: Bytes per block of key stream: it stays in the cache, and the memory does not grow with the vector.
_BLOCK_BYTES = 1 << 17
_ZEROS = bytes(_BLOCK_BYTES)


def add_mask(words: Words, key: bytes, *, negate: bool = False) -> None:
    """Add the mask of `key` to `words` in place.

    Args:
        words: uint32 or uint64, shape (d,), contiguous and writable.
        key: 32 bytes that mask one vector and nothing else, ever: the counter starts at zero.
        negate: True takes the mask away.

    **Guarantees** Without the key the words are indistinguishable from uniform ones: AES-256 as a PRF, at most 2^-73
    beyond that for a GiB of words, since a permutation repeats no block.
    """
    stream = Cipher(AES256(key), CTR(bytes(16))).encryptor()
    zeros, block_words = memoryview(_ZEROS), _BLOCK_BYTES // words.itemsize
    block = np.empty(min(block_words, len(words)), words.dtype.newbyteorder("<"))
    for start in range(0, len(words), block_words):
        part = words[start : start + block_words]
        mask = block[: len(part)]
        stream.update_into(zeros[: part.nbytes], mask.view(np.uint8).data)
        add_words(part, mask.astype(words.dtype, copy=False), negate=negate)
