"""A proof that an inner product of two shared vectors is a shared target, in zero knowledge towards two servers.

The two servers hold additive shares of u and v in F_p^n and of the target. The client cuts u and v into m chunks of l
entries and puts polynomials through them: a mask at 0, chunk k at k. P(X) = sum_j U_j(X) V_j(X) then has <u, v> = P(1)
+ ... + P(m). The client shares the masks and P's values. At a point t, drawn so that no client knows it when it proves,
the servers open U_j(t), V_j(t), P(t) and P(1) + ... + P(m) - target: the last must be 0, P(t) the product of the
others.

    symbol   here              meaning
    p        PRIME             2^127 - 1
    l, m     chunk, chunks     about sqrt(n) each
    U_j(0)   masks             uniform, so that U_j(t) and V_j(t) tell nothing
    P(i)     the proof's end   values at 0 ... 2 m

**Guarantees** If <u, v> is not the target, a proof passes with probability at most 2 m / (p - 2 m - 1) over t: P and
sum_j U_j V_j are different polynomials of degree 2 m. What is opened of a right proof is uniform, or follows from the
rest.

Paper: fully linear proofs, Boneh, Boneh, Corrigan-Gibbs, Gilboa, Ishai, CRYPTO 2019; the
gadget of parallel products is that of Prio3 (draft-irtf-cfrg-vdaf).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import mul

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from confide.errors import ProtocolError

PRIME = 2**127 - 1
ELEMENT_BYTES = 16


def elements(key: bytes, count: int) -> list[int]:
    """Return `count` elements from the AES-256 key stream of `key`: 127 bits each, within 2^-126 of uniform."""
    stream = Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(ELEMENT_BYTES * count))
    return [word & PRIME if word & PRIME != PRIME else 0 for word in _integers(stream)]


def pack_elements(values: Iterable[int]) -> bytes:
    """Return field elements as 16 little-endian bytes each."""
    return b"".join(value.to_bytes(ELEMENT_BYTES, "little") for value in values)


def unpack_elements(data: bytes, count: int) -> list[int]:
    """Return what `pack_elements` wrote.

    Raises:
        ProtocolError: another number of elements, or one that is not reduced modulo p.
    """
    values = _integers(data)
    if len(data) != ELEMENT_BYTES * count or max(values, default=0) >= PRIME:
        raise ProtocolError(f"Expected {count} elements below 2^127 - 1")
    return values


def subtract(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Return the difference of two vectors over F_p."""
    return [(one - other) % PRIME for one, other in zip(left, right, strict=True)]


def _integers(data: bytes) -> list[int]:
    return [
        int.from_bytes(data[start : start + ELEMENT_BYTES], "little") for start in range(0, len(data), ELEMENT_BYTES)
    ]


@dataclass(frozen=True, slots=True)
class Query:
    """One server's share of what a check opens.

    Args:
        wires: U_1(t), ..., U_l(t), V_1(t), ..., V_l(t).
        gadget: P(t).
        residue: P(1) + ... + P(m) - target.
    """

    wires: list[int]
    gadget: int
    residue: int


class Proofs:
    """Proofs about inner products of `length` terms.

    Args:
        length: n, at least 1.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.chunk = math.isqrt(length - 1) + 1
        self.chunks = -(-length // self.chunk)
        self.masks = 2 * self.chunk
        self.elements = self.masks + 2 * self.chunks + 1

    @property
    def soundness_bits(self) -> float:
        """Return b: a proof of something wrong passes with probability at most 2^-b over the servers' point."""
        return math.log2((PRIME - 2 * self.chunks - 1) / (2 * self.chunks))

    def prove(self, u: Sequence[int], v: Sequence[int], masks: Sequence[int]) -> list[int]:
        """Return the proof about <u, v>: masks, then P(0) ... P(2 m).

        Args:
            u, v: n elements each.
            masks: 2 l uniform elements, for this proof alone.
        """
        wires = self.wires(u, v, masks)
        beyond = [_at_integer(self.chunks, x) for x in range(self.chunks + 1, 2 * self.chunks + 1)]
        values = [wire + [sum(map(mul, row, wire)) % PRIME for row in beyond] for wire in wires]
        columns = zip(*values, strict=True)
        half = self.chunk
        return [*masks, *(sum(map(mul, column[:half], column[half:])) % PRIME for column in columns)]

    def point(self, uniform: int) -> int:
        """Return t, an element beyond 0 ... 2 m, from an integer that is uniform over many more than p values."""
        return 2 * self.chunks + 1 + uniform % (PRIME - 2 * self.chunks - 1)

    def at(self, t: int) -> Point:
        """Return the check at t.

        Raises:
            ProtocolError: t is one of 0 ... 2 m; at 1 ... m shares would be opened unmasked.
        """
        if not 2 * self.chunks < t < PRIME:
            raise ProtocolError("Expected a point outside those that proofs are made of")
        return Point(self, t)

    def wires(self, u: Sequence[int], v: Sequence[int], masks: Sequence[int]) -> list[list[int]]:
        """Return the values at 0 ... m of U_1 ... U_l, then of V_1 ... V_l; what is missing in the last chunk is 0."""
        padding = [0] * (self.chunk * self.chunks - self.length)
        lanes = [[*side, *padding][lane :: self.chunk] for side in (u, v) for lane in range(self.chunk)]
        return [[mask, *lane] for mask, lane in zip(masks, lanes, strict=True)]


class Point:
    """Where the servers look at proofs: the same point for all proofs of a session, and no proof at two points.

    Args:
        proofs: their shape.
        t: the point, outside 0 ... 2 m.
    """

    def __init__(self, proofs: Proofs, t: int) -> None:
        self._proofs, self.t = proofs, t
        self._wire_weights, self._gadget_weights = _at(proofs.chunks, t), _at(2 * proofs.chunks, t)

    def query(self, u: Sequence[int], v: Sequence[int], target: int, proof: Sequence[int]) -> Query:
        """Return a server's share of the check from its shares of u, v, the target and the proof."""
        masks, values = proof[: self._proofs.masks], proof[self._proofs.masks :]
        return Query(
            [sum(map(mul, self._wire_weights, wire)) % PRIME for wire in self._proofs.wires(u, v, masks)],
            sum(map(mul, self._gadget_weights, values)) % PRIME,
            (sum(values[1 : self._proofs.chunks + 1]) - target) % PRIME,
        )

    def holds(self, first: Query, second: Query) -> bool:
        """Return whether two shares belong to a right proof."""
        wires = [(one + other) % PRIME for one, other in zip(first.wires, second.wires, strict=True)]
        product = sum(map(mul, wires[: self._proofs.chunk], wires[self._proofs.chunk :]))
        gadget, residue = first.gadget + second.gadget, first.residue + second.residue
        return (product - gadget) % PRIME == 0 and residue % PRIME == 0


def _at_integer(degree: int, x: int) -> list[int]:
    """Return the weights that take the values of a polynomial at 0 ... degree to its value at an integer x > degree.

    Lagrange's coefficients at integers are integers: (-1)^(n - i) binomial(x, i) binomial(x - i - 1, n - i).
    """
    return [
        (-1) ** (degree - i) * math.comb(x, i) * math.comb(x - i - 1, degree - i) % PRIME for i in range(degree + 1)
    ]


def _at(degree: int, t: int) -> list[int]:
    """Return the weights that take the values of a polynomial at 0 ... degree to its value at t, outside of them."""
    differences = [t - i for i in range(degree + 1)]
    product = math.prod(differences) % PRIME
    weights: list[int] = []
    for i, difference in enumerate(differences):
        below = (-1) ** (degree - i) * math.factorial(i) * math.factorial(degree - i) * difference
        weights.append(product * pow(below, -1, PRIME) % PRIME)
    return weights
