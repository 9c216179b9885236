"""How a vector of integers lies in BFV plaintexts, and how many bits of each ciphertext travel.

    symbol   here             meaning
    N, q     degree, primes   ring degree, ciphertext modulus (one prime)
    t        plain_modulus    SEAL's plaintext modulus, 64 times smaller than q
    k        bits             a value of the sum has k bits, two's complement
    n        clients          who may be in the sum
    p        payload_bits     coefficients of the sum are integers modulo 2^p; m is encoded as m t / 2^p
    b0, b1   dropped          low bits of the ciphertext's two halves that stay at home

A coefficient holds several values side by side, or one, or a limb of one: whatever needs the fewest bytes. Side by side
they are the digits of one integer, so that a carry out of one is taken back when it is read. The sum decrypts exactly
while noise < q / 2^(p + 1); `noise_bound` says how large it gets, `Layout.plan` spends what is left on dropped bits.

Paper: BFV as in SEAL; the bound on the noise is proved in docs/protocols/he-sum.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.ring import Words, word_dtype
from confide.errors import UsageError
from confide.he.parameters import ERROR_VARIANCE, Parameters
from confide.he.seal import Residues, ntt_primes
from confide.ideal import Vector

#: A sum decrypts to something else with a probability below 2^-64, and so does a key that spoils sums.
FAILURE_BITS = 64

#: The squared length of a public key's error is below 4/3 of its mean, but for a probability below 2^-64 (N >= 2048).
_KEY_SLACK = 4 / 3

#: log2 q/t: SEAL rounds to multiples of t, so this many bits of the noise are cut off before we look.
_FINEST_BITS = 6


def _ring(degree: int, prime_bits: int) -> Parameters:
    primes = ntt_primes(degree, (prime_bits,))
    return Parameters(scheme="bfv", degree=degree, primes=primes, plain_modulus=1 << (prime_bits - _FINEST_BITS))


#: One prime each, since SEAL keeps the last of several for switching keys: 54 bits are all that 128 bits of security
#: leave at N = 2048; at N = 4096 it is SEAL's largest prime.
RINGS = (_ring(2048, 54), _ring(4096, 59))


def noise_bound(ring: Parameters, clients: int, coefficients: int) -> float:
    """Return a bound on every coefficient of the noise in a sum of fresh encryptions.

    It holds but for 2^-FAILURE_BITS. Dropped bits come on top.

    Args:
        ring: one of `RINGS`.
        clients: n >= 1.
        coefficients: how many must hold, >= 1.
    """
    variance = clients * ERROR_VARIANCE * (ring.degree * (1 + 2 / 3 * _KEY_SLACK) + 1)
    deviations = math.sqrt(2 * (math.log(2 * coefficients) + FAILURE_BITS * math.log(2)))
    return deviations * math.sqrt(variance) + clients / 2  # SEAL rounds each plaintext times q/t


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the values of a vector lie; all parties of a session compute the same one.

    Args:
        ring: index into `RINGS`.
        bits: k, 1 to 64.
        length: d >= 0.
        side_by_side: values in one coefficient, >= 1.
        limbs: coefficients of one value, >= 1; one of the two is 1.
        payload_bits: p.
        dropped: (b0, b1).
    """

    ring: int
    bits: int
    length: int
    side_by_side: int
    limbs: int
    payload_bits: int
    dropped: tuple[int, int]

    @staticmethod
    def plan(bits: int, clients: int, length: int) -> Layout:
        """Return the layout that sends the fewest bytes.

        Args:
            bits: of a value of the sum, 1 to 64.
            clients: n.
            length: d.

        Raises:
            UsageError: too many bits, or so many clients that no sum decrypts.
        """
        word_dtype(bits)
        found = [layout for ring in range(len(RINGS)) for layout in _candidates(ring, bits, clients, length)]
        if not found:
            raise UsageError(f"Expected fewer than {clients} clients; the noise of so many drowns their sum")
        return min(found, key=lambda layout: (layout.words_bytes, layout.ring))

    @property
    def parameters(self) -> Parameters:
        """Return the ring's parameters."""
        return RINGS[self.ring]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return what determines the layout, for the context that all parties sign."""
        return self.prime, self.bits, self.length, self.side_by_side, self.limbs, self.payload_bits, *self.dropped

    @property
    def coefficients(self) -> int:
        """Return how many coefficients carry something."""
        return -(-self.length // self.side_by_side) * self.limbs

    @property
    def polynomials(self) -> int:
        """Return how many ciphertexts a vector takes."""
        return -(-self.coefficients // self.parameters.degree)

    @property
    def prime(self) -> int:
        """Return q."""
        return self.parameters.modulus

    @property
    def word_bits(self) -> tuple[int, int]:
        """Return the bits of a number on the wire, in either half of a ciphertext."""
        first, second = self.dropped
        return self.prime.bit_length() - first, self.prime.bit_length() - second

    @property
    def words_bytes(self) -> int:
        """Return the bytes of a client's ciphertexts."""
        return self.polynomials * self.parameters.degree // 8 * sum(self.word_bits)

    @property
    def whole_bits(self) -> tuple[int, int]:
        """Return the bits of a number of a sum, of which nothing is dropped, in either half."""
        bits = self.prime.bit_length()
        return bits, bits

    @property
    def whole_bytes(self) -> int:
        """Return the bytes of a sum of ciphertexts."""
        return self.polynomials * self.parameters.degree // 8 * sum(self.whole_bits)

    # --- values and coefficients --------------------------------------------------------------------------------------

    def pack(self, vector: Vector) -> Words:
        """Return the coefficients of a vector modulo 2^p, shape (coefficients,), dtype `word_dtype(p)`.

        Args:
            vector: int64, shape (d,); sums of such vectors have k bits.
        """
        values = vector.astype(np.uint64)  # two's complement
        if self.limbs > 1:
            places = np.arange(self.limbs, dtype=np.uint64) * np.uint64(self._limb_bits)
            packed = ((values & _ones(self.bits))[:, None] >> places & _ones(self._limb_bits)).reshape(-1)
        else:
            rows = np.zeros((self.coefficients, self.side_by_side), np.uint64)
            rows.reshape(-1)[: self.length] = values
            places = np.arange(self.side_by_side, dtype=np.uint64) * np.uint64(self.bits)
            packed = (rows << places).sum(axis=1, dtype=np.uint64) & _ones(self.payload_bits)
        return packed.astype(word_dtype(self.payload_bits))

    def unpack(self, words: Words) -> Vector:
        """Return the values in a sum of packed vectors, int64, shape (d,).

        Args:
            words: modulo 2^p, shape (coefficients,).
        """
        packed = words.astype(np.uint64) & _ones(self.payload_bits)
        if self.limbs > 1:
            places = np.arange(self.limbs, dtype=np.uint64) * np.uint64(self._limb_bits)
            return self._signed((packed.reshape(-1, self.limbs) << places).sum(axis=1, dtype=np.uint64))
        rows = np.empty((self.coefficients, self.side_by_side), np.int64)
        for column in range(self.side_by_side):
            rows[:, column] = digit = self._signed(packed)
            packed = (packed - digit.astype(np.uint64)) >> np.uint64(self.bits)
        return rows.reshape(-1)[: self.length]

    @property
    def _limb_bits(self) -> int:
        return -(-self.bits // self.limbs)

    def _signed(self, values: NDArray[np.uint64]) -> Vector:
        shift = np.uint64(64 - self.bits)
        return (values << shift).view(np.int64) >> np.int64(shift)

    # --- coefficients and plaintexts ----------------------------------------------------------------------------------

    def plaintexts(self, words: Words) -> Residues:
        """Return the plaintext polynomials with these coefficients, shape (polynomials, N), each below t."""
        rows = np.zeros((self.polynomials, self.parameters.degree), np.uint64)
        rows.reshape(-1)[: self.coefficients] = (words & words.dtype.type(_ones(self.payload_bits))).astype(
            np.uint64
        ) << self._lift
        return rows

    def opened(self, plaintexts: Residues) -> Words:
        """Return the coefficients in decrypted polynomials, shape (polynomials, N), without their noise."""
        half = np.uint64(1) << (self._lift - np.uint64(1))
        words = ((plaintexts.reshape(-1)[: self.coefficients] + half) >> self._lift) & _ones(self.payload_bits)
        return words.astype(word_dtype(self.payload_bits))

    @property
    def _lift(self) -> np.uint64:
        return np.uint64(self.parameters.plain_modulus.bit_length() - 1 - self.payload_bits)

    # --- what travels of a ciphertext ---------------------------------------------------------------------------------

    def shortened(self, residues: Residues, half: int) -> Residues:
        """Return the numbers of half 0 or 1 of ciphertexts without the bits that are dropped."""
        return residues >> np.uint64(self.dropped[half])

    def restored(self, words: Residues, half: int) -> Residues:
        """Return what stands for shortened numbers: the middle of what each could have been, below q."""
        dropped = self.dropped[half]
        middle = words << np.uint64(dropped)
        middle |= np.uint64(1 << dropped >> 1)
        return self.reduced(middle)

    def reduced(self, numbers: Residues) -> Residues:
        """Return numbers below 2q modulo q, in place."""
        return np.minimum(numbers, numbers - np.uint64(self.prime), out=numbers)  # below q the difference wraps


def _candidates(ring: int, bits: int, clients: int, length: int) -> Iterator[Layout]:
    """Yield the layouts of a ring under which sums of `clients` vectors decrypt."""
    carry = (clients - 1).bit_length()  # a sum of n limbs below 2^w stays below 2^(w + carry)
    shapes = [(count, 1, count * bits) for count in range(1, 64 // bits + 1)]
    shapes += [(1, limbs, -(-bits // limbs) + carry) for limbs in range(2, bits + 1)]
    for side_by_side, limbs, payload_bits in shapes:
        dropped = _dropped(RINGS[ring], clients, payload_bits, max(1, length * limbs))
        if dropped is not None:
            yield Layout(ring, bits, length, side_by_side, limbs, payload_bits, dropped)


def _dropped(ring: Parameters, clients: int, payload_bits: int, coefficients: int) -> tuple[int, int] | None:
    """Return how many low bits the halves can do without, or None where even all of them do not suffice.

    A rounded number is off by 2^(b - 1) at most; in the second half the secret key multiplies that, by N at most.
    """
    steps = 2.0 ** (ring.plain_modulus.bit_length() - 2 - payload_bits) - 1  # SEAL's own rounding takes one
    room = steps * ring.modulus / ring.plain_modulus - noise_bound(ring, clients, coefficients)
    if room < 0:
        return None
    second = _largest_bits(room / 2 / (clients * ring.degree))
    first = _largest_bits((room - clients * ring.degree * (1 << second >> 1)) / clients)
    return first, second


def _largest_bits(error: float) -> int:
    """Return the most low bits whose rounding is off by at most `error`."""
    return math.floor(math.log2(error)) + 1 if error >= 1 else 0


def _ones(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)
