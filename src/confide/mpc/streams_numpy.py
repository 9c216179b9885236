"""The streams of `confide._native` by OpenSSL and numpy, bit for bit. Call them through `confide.mpc.streams`."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import ECB
from numpy.typing import NDArray

_BLOCKS = 1 << 14  # counters at a time


def encrypt(key: bytes, blocks: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return AES-128_key of every block: uint64 (count, 2), the low half of a block first."""
    # Not one message: each block is an input of its own, as in a counter mode.
    encryptor = Cipher(AES128(key), ECB()).encryptor()  # noqa: S305
    data = np.ascontiguousarray(blocks.astype("<u8", copy=False)).reshape(-1).view(np.uint8)
    return np.frombuffer(encryptor.update(data.data), "<u8").reshape(blocks.shape).astype(np.uint64, copy=False)


def stream(key: bytes, nonce: int, out: NDArray[np.uint64]) -> None:
    """Fill `out` with the first words of a stream."""
    for start in range(0, len(out), 2 * _BLOCKS):
        part = out[start : start + 2 * _BLOCKS]
        blocks = np.empty((-(-len(part) // 2), 2), np.uint64)
        blocks[:, 0] = nonce
        blocks[:, 1] = np.arange(start // 2, start // 2 + len(blocks), dtype=np.uint64)
        part[:] = encrypt(key, blocks).reshape(-1)[: len(part)]
