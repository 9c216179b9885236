"""Tags of ciphertexts that add up as the ciphertexts do, under a key that the adding server does not know.

    symbol     here         meaning
    c_j        residues     all numbers of a client's ciphertexts, modulo q, in blocks of 4096
    b_a        inner        ROWS vectors of 4096 numbers below 2^16, the same for all blocks
    w_a,j      outer        a number modulo q for each row and block
    h_a        tag          sum over j of w_a,j <b_a, c_j>, modulo q

Tags are linear, so whoever knows the key, the tags and a sum of ciphertexts sees whether it is the sum of those that
were tagged. Anything else that was made without the key passes with a probability below 2^-63: it differs in some block
by a vector that is not zero; <b_a, .> sends that to zero for at most one value of one number of b_a, so with 2^-16 at
most, q being prime; where it does not, the sum over the blocks is zero with 1 / q. The ROWS rows are independent.

Paper: a universal hash as a one-time linear authenticator, Carter and Wegman, JCSS 1981; for sums of vectors as in
Agrawal and Boneh, "Homomorphic MACs", ACNS 2009, section 3. The weights of two levels are ours.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from confide.crypto.keys import expand, label
from confide.crypto.masks import add_mask
from confide.errors import ProtocolError
from confide.he.seal import Residues

ROWS = 4
SOUNDNESS_BITS = 63

#: Bytes of an encoded tag.
TAG_BYTES = 8 * ROWS

#: Numbers are cut into pieces whose products with b_a, summed over a block, are exact in float64: 16 + 20 + 12 bits.
_PIECE_BITS, _PIECES = 20, 3
_BLOCK = 1 << 12

#: Blocks that are multiplied at a time: memory stays small.
_BATCH = 1 << 6

#: Bits from which an outer weight is reduced modulo q: how far it is from uniform is below 2^-68.
_OUTER_BYTES = 16

Tag = tuple[int, ...]


def tag_of(residues: Residues, prime: int, key: bytes) -> Tag:
    """Return the tag of ciphertexts.

    Args:
        residues: numbers below q, any shape, a multiple of 4096 of them.
        prime: q, below 2^60.
        key: 32 uniform bytes for one session.
    """
    blocks = residues.reshape(-1, _BLOCK)
    inner, outer = _inner(key), _outer(key, len(blocks))
    totals = [0] * ROWS
    for start in range(0, len(blocks), _BATCH):
        products = _products(blocks[start : start + _BATCH], inner)
        for row in range(ROWS):
            weights = outer[row][start : start + _BATCH]
            totals[row] += sum(weight * product for weight, product in zip(weights, products[row], strict=True))
    return tuple(total % prime for total in totals)


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


def _products(blocks: Residues, inner: NDArray[np.float64]) -> list[list[int]]:
    """Return <b_a, c_j> as integers, by row and block."""
    found = np.zeros((ROWS, len(blocks)), object)
    ones = np.uint64((1 << _PIECE_BITS) - 1)
    for place in range(_PIECES):
        piece = ((blocks >> np.uint64(_PIECE_BITS * place)) & ones).astype(np.float64)
        found += (inner @ piece.T).astype(np.int64).astype(object) << _PIECE_BITS * place
    return found.tolist()


def _inner(key: bytes) -> NDArray[np.float64]:
    """Return b, shape (ROWS, _BLOCK): numbers below 2^16."""
    words = np.zeros(ROWS * _BLOCK // 2, np.uint32)
    add_mask(words, expand(key, label("inner")))
    return words.astype("<u4", copy=False).view("<u2").reshape(ROWS, _BLOCK).astype(np.float64)


def _outer(key: bytes, blocks: int) -> list[list[int]]:
    """Return w by row and block; reduced modulo q it is uniform."""
    words = np.zeros(ROWS * blocks * _OUTER_BYTES // 4, np.uint32)
    add_mask(words, expand(key, label("outer")))
    body, width = words.astype("<u4", copy=False).tobytes(), _OUTER_BYTES * blocks
    return [
        [
            int.from_bytes(body[at : at + _OUTER_BYTES], "little")
            for at in range(row * width, (row + 1) * width, _OUTER_BYTES)
        ]
        for row in range(ROWS)
    ]
