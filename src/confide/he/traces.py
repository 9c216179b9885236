"""What leaves in a reply under CKKS: the real parts of the results, averaged over their copies, and nothing else.

Results repeat over the slots with a period W, and are real. Whoever asks can encrypt another row in each repetition and
in the imaginary parts, and would be answered them all at once. So the server adds to the first polynomial of a reply a
random r with Tr(r) = 0, where

    Tr(m) = sum of s(m) over the 2 n / W automorphisms s that permute copies and conjugate slots, n = N / 2

takes a polynomial to 2 n / W times the one that holds the real parts of m, averaged over copies, in every copy. A
client that decrypts m + r computes Tr(m), exactly, modulo q. And since r is uniform among all that Tr takes to zero
(the number of automorphisms is a power of two, and odd primes divide none), m + r is uniform among all that Tr takes to
Tr(m): given Tr(m), which W real numbers determine, nothing is left of m. The second polynomial leaves as it is; that of
a protected reply is fresh. All this takes keys that were made honestly: forged ones move everything into the second
polynomial, and let it leave (docs/protocols/he-networks.md).

In NTT form an automorphism permutes words, so Tr(m) is a matter of sums: word i is the value at psi^e, e = 2 bitrev(i)
+ 1 (SEAL's order), slot t the one at zeta^(3^t), and the automorphisms of Tr are X -> X^±(3^W)^k. Words whose e is ±3^t
with t of one remainder modulo W form an orbit, and Tr(m) has their sum in each of them.

Source: the trace of the ring onto the subring fixed by a group of automorphisms, as in ring packing (ePrint 2020/015);
masking of what is not read, as a BFV reply leaves coefficients out (`linear`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from confide.crypto.random import Randomness
from confide.he.packing import Indices
from confide.he.seal_format import Residues


@lru_cache(maxsize=32)
def orbits(degree: int, period: int) -> Indices:
    """Return the places of words that Tr sums up, shape (W, 2 n / W): row t has slots t, t + W ... and conjugates.

    Args:
        degree: N.
        period: W, a power of two up to n.
    """
    slots, exponent = degree // 2, 1
    exponents = np.empty((slots, 2), np.int64)
    for slot in range(slots):
        exponents[slot] = exponent, 2 * degree - exponent
        exponent = exponent * 3 % (2 * degree)
    places = _reversed(exponents >> 1, degree.bit_length() - 1)
    found = places.reshape(slots // period, period, 2).transpose(1, 0, 2).reshape(period, -1)
    found.flags.writeable = False
    return found


def _reversed(numbers: Indices, bits: int) -> Indices:
    found = np.zeros_like(numbers)
    for place in range(bits):
        found |= ((numbers >> place) & 1) << (bits - 1 - place)
    return found


def hiding(degree: int, period: int, primes: Sequence[int], rng: Randomness) -> Residues:
    """Return r in NTT form, uniform among the polynomials with Tr(r) = 0, shape (primes, N).

    Args:
        degree: N.
        period: W.
        primes: of the reply.
        rng: secret.
    """
    places = orbits(degree, period)
    found = np.empty((len(primes), degree), np.uint64)
    for row, prime in zip(found, primes, strict=True):
        words = _uniform(prime, degree, rng).reshape(places.shape)
        words[:, 0] = 0
        words[:, 0] = (prime - _sums(words, prime)) % prime
        row[places] = words
    return found


def traced(words: Residues, primes: Sequence[int], period: int) -> Residues:
    """Return W / n Tr(m), twice the averaged real parts, in NTT form, shape (primes, N).

    Twice, because half of Tr is no integer polynomial: values take one bit more of the modulus.

    Args:
        words: of m, in NTT form, a stranger's, shape (primes, N).
        primes: of the reply.
        period: W.
    """
    degree = words.shape[1]
    places = orbits(degree, period)
    found = np.empty_like(words)
    for row, before, prime in zip(found, words, primes, strict=True):
        inverse = pow(places.shape[1] // 2, -1, prime)
        sums = _sums(before[places], prime).astype(object) * inverse % prime
        row[places] = sums.astype(np.uint64)[:, None]
    return found


def _sums(words: Residues, prime: int) -> Residues:
    """Return the sums of rows modulo a prime below 2^60, shape (rows,); rows have at most 2^15 words."""
    low = (words & np.uint64(0xFFFFFFFF)).sum(axis=1)
    high = (words >> np.uint64(32)).sum(axis=1)
    return ((high.astype(object) * (1 << 32) + low.astype(object)) % prime).astype(np.uint64)


def _uniform(prime: int, count: int, rng: Randomness) -> Residues:
    """Return uniform numbers below a prime, without bias, shape (count,): what is not below it is drawn again."""
    excess = np.uint64(64 - prime.bit_length())
    found = np.frombuffer(rng.bytes(8 * count), "<u8") >> excess
    while (beyond := np.flatnonzero(found >= np.uint64(prime))).size:
        found[beyond] = np.frombuffer(rng.bytes(8 * beyond.size), "<u8") >> excess
    return found
