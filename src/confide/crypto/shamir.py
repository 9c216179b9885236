"""Shamir's secret sharing over the integers modulo p = 2^255 - 19.

    paper    here        meaning
    p        PRIME       the field
    s        secret      32 little-endian bytes below p
    t        threshold   shares that determine the secret; any t - 1 are independent of it
    x_i      indices     evaluation points, positive and different
    f(x_i)   shares      32 little-endian bytes below p
    L_i(0)   weights     Lagrange's coefficients at zero

Paper: A. Shamir, How to share a secret, CACM 22(11), 1979.
"""

from __future__ import annotations

from collections.abc import Sequence

from confide.crypto.random import Randomness
from confide.errors import ProtocolError

PRIME = 2**255 - 19

#: Bytes of a secret and of a share.
SECRET_BYTES = 32


def draw_secret(rng: Randomness) -> bytes:
    """Return a uniform element of the field, 32 bytes."""
    return _to_bytes(rng.below(PRIME))


def split(secret: bytes, *, threshold: int, indices: Sequence[int], rng: Randomness) -> list[bytes]:
    """Split `secret` so that any `threshold` shares give it back.

    Args:
        secret: 32 bytes, below p.
        threshold: t, 1 <= t <= len(indices).
        indices: one per share: 0 < index < p, all different.
        rng: secret randomness.

    Returns:
        The shares in the order of `indices`, 32 bytes each.

    Raises:
        ValueError: threshold or indices out of range.
        ProtocolError: the secret is no element of the field.

    **Guarantees** Any t - 1 shares have the same distribution for every secret.
    """
    if not 1 <= threshold <= len(indices):
        raise ValueError(f"Expected threshold={threshold} between 1 and the {len(indices)} indices")
    _check(indices)
    coefficients = [_from_bytes(secret)] + [rng.below(PRIME) for _ in range(threshold - 1)]
    return [_to_bytes(_evaluate(coefficients, index)) for index in indices]


class Recovery:
    """Gives back secrets from the shares at fixed indices; the Lagrange coefficients are computed once.

    Args:
        indices: whose shares will come; exactly as many as the threshold suffices.
    """

    def __init__(self, indices: Sequence[int]) -> None:
        _check(indices)
        self._weights = [_weight(index, indices) for index in indices]

    def secret(self, shares: Sequence[bytes]) -> bytes:
        """Return the secret of `shares`, which are in the order of the indices.

        Raises:
            ProtocolError: a share is no element of the field.

        **Guarantees** Nothing about authenticity: a wrong share gives a wrong secret, so compare with a commitment.
        """
        terms = (_from_bytes(share) * weight for share, weight in zip(shares, self._weights, strict=True))
        return _to_bytes(sum(terms) % PRIME)


def _check(indices: Sequence[int]) -> None:
    if len(set(indices)) != len(indices) or not all(0 < index < PRIME for index in indices):
        raise ValueError("Expected different positive indices")


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):  # Horner
        value = (value * x + coefficient) % PRIME
    return value


def _weight(index: int, indices: Sequence[int]) -> int:
    """Return L_index(0) = product over the others of other / (other - index)."""
    above, below = 1, 1
    for other in indices:
        if other != index:
            above = above * other % PRIME
            below = below * (other - index) % PRIME
    return above * pow(below, -1, PRIME) % PRIME


def _to_bytes(value: int) -> bytes:
    return value.to_bytes(SECRET_BYTES, "little")


def _from_bytes(data: bytes) -> int:
    value = int.from_bytes(data, "little")
    if len(data) != SECRET_BYTES or value >= PRIME:
        raise ProtocolError("Expected 32 bytes that encode an integer below 2^255 - 19")
    return value
