"""Masks: a 32-byte key becomes uniform ring words that are added to a vector or taken away again.

    symbol    here     meaning
    PRG(k)    mask     the ChaCha20 key stream of k, read as little-endian words
    d         words    length of the vector

Words wrap at their own width, which the ring's modulus divides, so a mask is uniform in the ring and cancels exactly.
The arithmetic is `confide.crypto.ring`'s.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from confide.crypto.ring import Words, add_words

#: Words per block of key stream: it stays in the cache, and the memory does not grow with the vector.
_BLOCK_WORDS = 1 << 15


def add_mask(words: Words, key: bytes, *, negate: bool = False) -> None:
    """Add the mask of `key` to `words` in place.

    Args:
        words: uint32 or uint64, shape (d,), contiguous and writable.
        key: 32 bytes that mask one vector and nothing else, ever: the nonce is zero.
        negate: True takes the mask away.

    **Guarantees** Without the key the words are indistinguishable from uniform ones (ChaCha20 as a PRG).
    """
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    for start in range(0, len(words), _BLOCK_WORDS):
        block = words[start : start + _BLOCK_WORDS]
        add_words(block, stream.update(bytes(block.nbytes)), negate=negate)
