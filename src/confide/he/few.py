"""Few plaintext coefficients under BFV without SEAL's transforms: rows to encrypt, and results to read off.

    q, t   ciphertext and plaintext modulus        q_i   a data prime        N   ring degree
    x      signed plaintext coefficients           s     the secret, coefficients in {-1, 0, 1}

What is added to an encryption of zero for a plaintext is round(q x / t) = D x + floor((r x + floor(t / 2)) / t), with
D = floor(q / t) and r = q mod t. Every quotient here is below 2^41, so float64 finds it to within one; what is left is
computed modulo 2^64 and smaller than that, so the results are exact.

The phase c0 + c1 s at place k is c0_k + Σ c1_i S_i, where S_i = s_(k-i) for i <= k and -s_(N+k-i) beyond. Halves of 30
bits times numbers of {-1, 0, 1} sum up below 2^63 without a branch on the secret.

Source: SEAL 4.x rounds in the same way; decryption as in Fan and Vercauteren, ePrint 2012/144, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from confide.he.parameters import Parameters
from confide.he.seal_format import Residues

Integers = NDArray[np.int64]

#: Places of one polynomial that are read off by inner products; for more of them a transform is faster.
MOST_PLACES = 16

_HALF_BITS = 30


def scaled(values: Integers, parameters: Parameters) -> Residues:
    """Return round(q x / t) modulo each data prime, shape (primes, N).

    Args:
        values: x, shape (at most N,), absolute values up to 2^40; the coefficients behind them are zero.
        parameters: BFV.
    """
    primes, t = parameters.data_primes, parameters.plain_modulus
    whole, rest = divmod(parameters.modulus, t)
    rounded = _divided(rest, values, t, add=t // 2)[0]
    found = np.zeros((len(primes), parameters.degree), np.uint64)
    for row, prime in zip(found, primes, strict=True):
        below = _divided(whole % prime, values, prime)[1] + rounded
        row[: len(values)] = np.where(below < 0, below + prime, np.where(below < prime, below, below - prime))
    return found


def _divided(factor: int, values: Integers, divisor: int, *, add: int = 0) -> tuple[Integers, Integers]:
    """Return quotients (rounded down) and remainders of factor · values + add.

    Args:
        factor: from 0 to `divisor` - 1.
        values: absolute values up to 2^40.
        divisor: below 2^60.
        add: from 0 to `divisor` - 1.
    """
    quotients = np.rint(values * (factor / divisor) + add / divisor).astype(np.int64)
    remainders = values * factor + add - quotients * divisor  # modulo 2^64: both products may be larger
    low = remainders < 0
    return quotients - low, remainders + low * divisor


def sliding(secret: Integers) -> Integers:
    """Return s backwards and then -s backwards, shape (2N,): N numbers in a row of it are the S of one place."""
    backwards = secret[::-1]
    return np.concatenate([backwards, -backwards])


def coefficient(sliding: Integers, first: Sequence[int], second: Residues, place: int, parameters: Parameters) -> int:
    """Return one plaintext coefficient of a ciphertext in coefficient form, in [0, t).

    Args:
        sliding: of the secret.
        first: c0 at the place modulo each data prime.
        second: c1, each number below its prime, shape (primes, N).
        place: of the coefficient.
        parameters: BFV.
    """
    degree, t, q = parameters.degree, parameters.plain_modulus, parameters.modulus
    here = sliding[degree - 1 - place : 2 * degree - 1 - place]
    phase = 0
    for number, row, prime in zip(first, second.view(np.int64), parameters.data_primes, strict=True):
        high, low = row >> _HALF_BITS, row & ((1 << _HALF_BITS) - 1)
        below = int(number) + (int(high @ here) << _HALF_BITS) + int(low @ here)
        others = q // prime
        phase += below % prime * others * pow(others, -1, prime)
    return (2 * t * (phase % q) + q) // (2 * q) % t
