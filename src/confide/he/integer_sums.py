"""Sums of ciphertexts times integers, exactly, by matrix products of floats over their residues.

An encryption is linear: Σ w_i c_i encrypts Σ w_i x_i, and modulo each prime that is a matrix product of integers. A
residue is cut into pieces of 20 bits, so that every product of floats and every sum of them stays below 2^53 and is
exact; the pieces meet again modulo the prime. No key switch and no transform is needed, and what is done, and in which
order, depends on shapes alone.

The work is done by `confide._native` (C++, interpreter lock released) or, where no compiler was at hand when confide
was installed, by `weighted_sums`: the same numbers, slower.

    w     integer weights with Σ |w| < 2^33 for each output
    words  the numbers of a ciphertext modulo one prime: 2 N
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.he.seal_format import Residues
from confide.he.shapes import Convolution, Indices, LinearMap

try:
    import confide._native as _native
except ImportError:
    _native = None

Matrix = NDArray[np.float64]
Words = NDArray[np.int64]

_PIECE_BITS = 20
_LARGEST_SUM = 2.0 ** (53 - _PIECE_BITS)
_WORDS = 1 << 12  # at a time: pieces of some hundred ciphertexts stay within a cache


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Outputs that depend on the same inputs; private.

    Args:
        results: places of the outputs.
        inputs: places of the inputs.
        weights: integers as float64, shape (outputs, inputs); no row is zero.
    """

    results: Indices
    inputs: Indices
    weights: Matrix

    def __repr__(self) -> str:
        return f"Group({self.weights.shape})"


class IntegerMap:
    """A linear map in integers, ready to sum ciphertexts; private.

    Args:
        part: the map.
        weight_bits: weights are rounded to multiples of 2^-weight_bits.
        native: whether compiled kernels may do the work.

    Raises:
        ModelError: weights so far apart that their sums are not exact.
    """

    def __init__(self, part: LinearMap, weight_bits: int, *, native: bool = True) -> None:
        self._groups = groups(part, weight_bits)
        self._outputs = part.shape.outputs
        self._native: Any = None
        if native and _native is not None:
            parts = [
                (_places(one.results), _places(one.inputs), np.ascontiguousarray(one.weights)) for one in self._groups
            ]
            self._native = _native.ckks.IntegerMap(part.shape.inputs, self._outputs, parts)

    def __repr__(self) -> str:
        return f"IntegerMap({self._outputs} outputs)"

    def sums(self, residues: Residues, biases: Sequence[int], primes: Sequence[int], *, threads: int = 1) -> Residues:
        """Return the ciphertexts Σ w c + b; arguments and result as those of `weighted_sums`."""
        if self._native is None:
            return weighted_sums(self._groups, residues, biases, primes)
        found = np.empty((self._outputs, *residues.shape[1:]), np.uint64)
        added = np.array([[bias % prime for prime in primes] for bias in biases], np.uint64)
        self._native.sums(np.ascontiguousarray(residues), added, list(primes), found, threads)
        return found


def _places(places: Indices) -> NDArray[np.uint32]:
    return np.ascontiguousarray(places, np.uint32)


def groups(part: LinearMap, weight_bits: int) -> list[Group]:
    """Return a map in integers, weights times 2^weight_bits. Its shape alone says which pairs are multiplied.

    Raises:
        ModelError: weights so far apart that their sums are not exact.
    """
    return [Group(results, inputs, _integers(weights, weight_bits)) for results, inputs, weights in _connections(part)]


def _connections(part: LinearMap) -> Iterator[tuple[Indices, Indices, Matrix]]:
    shape = part.shape
    if not isinstance(shape, Convolution):
        yield np.arange(shape.outputs), np.arange(shape.inputs), part.weight
        return
    weight, taps = part.weight.reshape(shape.channels[1], -1), np.arange(shape.taps)
    places = prod(shape.map)
    for place in range(places):
        inputs = shape.source(np.full(shape.taps, place), taps)
        inside = inputs >= 0
        results = place + places * np.arange(shape.channels[1])
        if inside.any():
            yield results, inputs[inside], weight[:, inside]
        else:  # nothing but padding: one input stands in, at weight 0
            yield results, np.zeros(1, np.int64), np.zeros((len(results), 1))


def _integers(weights: Matrix, weight_bits: int) -> Matrix:
    """Return rounded weights; in place of a row of zeros, whose ciphertext would hide nothing, one below rounding."""
    found = np.rint(np.ldexp(weights, weight_bits))
    found[:, 0] += (found == 0).all(axis=1)
    if not (np.abs(found).sum(axis=1) < _LARGEST_SUM).all():
        raise ModelError(
            f"Expected weights of one layer within 2^{_PIECE_BITS} of each other, once values are scaled to about 1; "
            'scale its inputs alike, or use goal="latency"'
        )
    return found


def weighted_sums(maps: Sequence[Group], residues: Residues, biases: Sequence[int], primes: Sequence[int]) -> Residues:
    """Return the ciphertexts Σ w c + b, shape (outputs, 2, primes, N).

    Args:
        maps: of `groups`; together they hold every output.
        residues: ciphertexts in NTT form, shape (inputs, 2, primes, N).
        biases: integers, one for each output.
        primes: of the level.
    """
    inputs, _, _, degree = residues.shape
    found = np.empty((len(biases), 2, len(primes), degree), np.uint64)
    for place, prime in enumerate(primes):
        whole = residues[:, :, place].reshape(inputs, 2 * degree)
        sums = np.empty((len(biases), 2 * degree), np.int64)
        for start in range(0, 2 * degree, _WORDS):
            part = slice(start, min(start + _WORDS, 2 * degree))
            pieces = _pieces(whole[:, part], prime)
            for one in maps:
                sums[one.results, part] = _joined([one.weights @ piece[one.inputs] for piece in pieces], prime)
        constants = np.array([bias % prime for bias in biases], np.int64)
        sums[:, :degree] = (sums[:, :degree] + constants[:, None]) % prime  # a constant is the same in every NTT word
        found[:, :, place] = sums.reshape(-1, 2, degree).astype(np.uint64)
    return found


def _pieces(words: Residues, prime: int) -> list[Matrix]:
    """Return 20 bits of each number at a time, the lowest first."""
    mask = np.uint64((1 << _PIECE_BITS) - 1)
    count = -(-prime.bit_length() // _PIECE_BITS)
    return [((words >> np.uint64(_PIECE_BITS * place)) & mask).astype(np.float64) for place in range(count)]


def _joined(sums: Sequence[Matrix], prime: int) -> Words:
    """Return Σ_j 2^(20 j) s_j modulo `prime`, in [0, prime), for exact |s_j| < 2^53."""
    total = sums[-1].astype(np.int64)
    for part in reversed(sums[:-1]):
        quotient = np.rint(total * (2.0**_PIECE_BITS / prime)).astype(np.int64)
        total = total * (1 << _PIECE_BITS) - quotient * prime  # both wrap; the difference is below 0.6 prime
        total += part.astype(np.int64)
    return total % prime
