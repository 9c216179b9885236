"""The comparison keys of `confide._native` by OpenSSL and numpy, bit for bit. Call them through `confide.mpc.dcf`.

A block is a pair of uint64, the low half first. A state's lowest bits are no part of the seed: bit c of a child is its
t for c = 0, 1, and bit 2 is its v.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.mpc.streams_numpy import encrypt

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

_LEAF = 7
_SEED = ~np.uint64(7)
_ONE, _TWO, _THREE, _FOUR = (np.uint64(value) for value in (1, 2, 3, 4))


def dcf_generate(roots0: Bytes, roots1: Bytes, alpha: Words, bits: int, key: bytes, out: Bytes) -> None:
    """Write the corrections to `out`."""
    count, levels = len(alpha), max(bits - _LEAF, 0)
    corrections = out.view("<u8").reshape(levels + 1, count, 2)
    states = [_words(roots0), _words(roots1)]
    t = np.zeros(count, np.uint64)  # of party 0; party 1 has the other bit, along the path of alpha
    v = np.zeros(count, np.uint64)  # what both have gathered, in bit 2
    for level in range(levels):
        a = alpha >> np.uint64(bits - 1 - level) & _ONE
        left, right = ([_hash(state, np.full(count, c, np.uint64), key) for state in states] for c in range(2))
        lefts, rights = left[0] ^ left[1], right[0] ^ right[1]
        way = -a[:, None]
        word = (lefts & way) | (rights & ~way)  # of the children that alpha leaves
        low = (lefts[:, 0] & _ONE) ^ (rights[:, 0] & _TWO) ^ ((word[:, 0] ^ v) & _FOUR)
        word[:, 0] = (word[:, 0] & _SEED) | (low ^ (a * np.uint64(7)) ^ _ONE)
        corrections[level] = word
        masks = -t[:, None], ~-t[:, None]
        states = [((right[b] & way) | (left[b] & ~way)) ^ (word & masks[b]) for b in range(2)]
        t = states[0][:, 0] >> a & _ONE
        v ^= (states[0][:, 0] ^ states[1][:, 0]) & _FOUR
    leaf = np.full(count, 2, np.uint64)
    below = alpha & np.uint64((1 << min(bits, _LEAF)) - 1)
    word = _hash(states[0], leaf, key) ^ _hash(states[1], leaf, key) ^ -(v >> _TWO)[:, None]
    high = -(below >> np.uint64(6))  # all ones if the whole low half is below alpha
    some = (_ONE << (below & np.uint64(63))) - _ONE
    word[:, 0] ^= some | high
    word[:, 1] ^= some & high
    corrections[levels] = word


def dcf_evaluate(
    party: int,
    roots: Bytes,
    corrections: Bytes,
    x: Words,
    bits: int,
    key: bytes,
    out: Bytes,
    drop: int = 0,
    top: bool = False,
) -> None:
    """Write the shares of a party to `out`."""
    x = x >> np.uint64(drop)
    count, levels = len(x), max(bits - _LEAF, 0)
    words = np.frombuffer(corrections, "<u8").reshape(levels + 1, count, 2)
    state, t, v = _words(roots), np.full(count, party, np.uint64), np.zeros(count, np.uint64)
    for level in range(levels):
        c = x >> np.uint64(bits - 1 - level) & _ONE
        state = _hash(state, c, key) ^ (words[level] & -t[:, None])
        t = state[:, 0] >> c & _ONE
        v ^= state[:, 0]
    shares = _hash(state, np.full(count, 2, np.uint64), key) ^ (words[levels] & -t[:, None])
    place = x & np.uint64((1 << min(bits, _LEAF)) - 1)
    half = -(place >> np.uint64(6))
    picked = (shares[:, 0] & ~half) | (shares[:, 1] & half)
    out[:] = (picked >> (place & np.uint64(63)) ^ v >> _TWO) & _ONE
    if top:
        out ^= (x >> np.uint64(bits) & _ONE).astype(np.uint8)


def _words(roots: Bytes) -> Words:
    return roots.view("<u8").astype(np.uint64)


def _hash(state: Words, domain: Words, key: bytes) -> Words:
    """Return AES_K(y) xor y for y = the seed of a state with `domain` in its lowest bits: 0, 1 children, 2 the leaf."""
    y = state.copy()
    y[:, 0] = (y[:, 0] & _SEED) | domain
    return encrypt(key, y) ^ y
