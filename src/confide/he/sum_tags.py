"""Tags of ciphertexts that add up as the ciphertexts do, under a key that the adding server does not know.

    symbol   here        meaning
    c        residues    all numbers of a client's ciphertexts, modulo q
    r_a      weights     ROWS vectors of numbers below 2^16, expanded from the key
    h_a      tag         <r_a, c> mod q

Since <r, c_1 + c_2> = <r, c_1> + <r, c_2>, whoever knows r, the tags and a sum of ciphertexts sees whether it is the
sum of those that were tagged. Anything else that was made without knowing r passes with a probability of at most 2^-64
(SOUNDNESS_BITS): it differs in some number, q is prime, so whatever the other weights are, at most one weight below
2^16 satisfies an equation; and the ROWS equations are independent.

Paper: a universal hash as a one-time linear authenticator, Carter and Wegman, JCSS 1981; for sums of vectors as in
Agrawal and Boneh, "Homomorphic MACs", ACNS 2009, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from confide.crypto.keys import expand, label
from confide.crypto.masks import add_mask
from confide.errors import ProtocolError
from confide.he.seal import Residues

ROWS = 4
_WEIGHT_BITS = 16
SOUNDNESS_BITS = ROWS * _WEIGHT_BITS

#: Bytes of an encoded tag.
TAG_BYTES = 8 * ROWS

#: Numbers are cut into pieces whose products with weights, summed over a block, are exact in float64: 48 bits.
_PIECE_BITS, _PIECES = 20, 3
_BLOCK = 1 << 12

#: Blocks per matrix product: memory stays small.
_BATCH = 1 << 6

Tag = tuple[int, ...]


def tag_of(residues: Residues, prime: int, key: bytes) -> Tag:
    """Return the tag of ciphertexts.

    Args:
        residues: numbers below q, any shape, a multiple of 4096 of them.
        prime: q, below 2^60.
        key: 32 uniform bytes for one session.
    """
    blocks = residues.reshape(-1, _BLOCK)
    totals = np.zeros((ROWS, _PIECES), object)
    for start in range(0, len(blocks), _BATCH):
        batch = blocks[start : start + _BATCH]
        pieces = np.stack([_piece(batch, place) for place in range(_PIECES)], axis=-1)
        products = (_weights(key, start, len(batch)) @ pieces).astype(np.int64)
        totals += products.sum(axis=0).astype(object)
    return tuple(sum(int(part) << (_PIECE_BITS * place) for place, part in enumerate(row)) % prime for row in totals)


def add_tags(tags: Iterable[Tag], prime: int) -> Tag:
    """Return the tag of the sum of what was tagged."""
    return tuple(sum(column) % prime for column in zip(*tags, strict=True))


def encode_tag(tag: Tag) -> bytes:
    """Return a tag as `TAG_BYTES` bytes."""
    return np.array(tag, "<u8").tobytes()


def decode_tag(body: bytes, prime: int) -> Tag:
    """Return the tag in `body`. Raises ProtocolError unless its numbers are below q."""
    if len(body) != TAG_BYTES or max(tag := tuple(np.frombuffer(body, "<u8").tolist())) >= prime:
        raise ProtocolError("Expected a tag of numbers below the prime")
    return tag


def _piece(batch: Residues, place: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    bits = np.uint64((1 << _PIECE_BITS) - 1)
    return ((batch >> np.uint64(_PIECE_BITS * place)) & bits).astype(np.float64)


def _weights(key: bytes, start: int, blocks: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the weights of some blocks, shape (blocks, ROWS, _BLOCK); each batch has a key stream of its own."""
    words = np.zeros(blocks * ROWS * _BLOCK // 2, np.uint32)
    add_mask(words, expand(key, label("weights", start)))
    return words.astype("<u4", copy=False).view("<u2").reshape(blocks, ROWS, _BLOCK).astype(np.float64)
