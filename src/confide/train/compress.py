"""Compression that commutes with a sum: public maps of a vector to fewer numbers, or to numbers that need fewer bits.

A map is linear and the same for every party of a round, so the sum of what the parties send is what would be sent of
their sum. It therefore works under every aggregator, and nobody's own choice of coordinates or of a scale is seen. The
maps follow from a public seed and the round; nothing of them is sent.

    symbol   here       meaning
    d        length     coordinates of the vector v
    k        size       numbers that are sent
    m        block      the largest power of two up to d
    C        norm       public bound on ||v||
    b        bits       of one integer; L = 2^(b - 1) - 1 is the largest
    n        parties

| map | numbers | bits of each | mean over the map | squared error of one vector |
|---|---|---|---|---|
| whole | d | fraction bits and bound | exact | rounding to the nearest |
| rotate | d | b + ceil(log2 n) | v, up to the clip | d s^2 / 4 at most, s = t C / (sqrt(m) L) |
| rand-k | k | as whole | v | (d / k - 1) ||v||^2 |
| sketch | k = rows * columns | as whole | v | of each row (||v||^2 - v_j^2) / columns in each coordinate |

Every one is right on average and none remembers anything: what a party did not send in a round it does not send later.
Error feedback (a party adds what was left out to its next update) makes stale updates meet the server's momentum: on
breast-cancer at the defaults it diverged at a quarter of the coordinates, where dealing the coordinates out without a
memory lost little (docs/compression.md, bench/compress.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import public_stream
from confide.errors import UsageError
from confide.train.sections import TrainSection

Matrix = NDArray[np.float64]
Places = NDArray[np.int64]

#: Of a sketch: a median of 5 already fails in one case of ten where a single row fails in four.
_ROWS = 5

_CACHED_COLUMNS = 128


class Compression(ABC):
    """A linear map of vectors, for every round, and the way back from a sum.

    Args:
        length: coordinates d of the vector.
        size: numbers k that are sent of it.
    """

    length: int

    @property
    @abstractmethod
    def size(self) -> int:
        """Return how many numbers are sent."""

    @abstractmethod
    def forward(self, values: Matrix, number: int) -> Matrix:
        """Return what is sent of `values`, shape (length,), in round `number`: shape (size,). Linear."""

    @abstractmethod
    def backward(self, sent: Matrix, number: int) -> Matrix:
        """Return the vector, shape (length,), that the sum (or mean) `sent`, shape (size,), of round `number` means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole(Compression):
    """No compression: every coordinate as it is."""

    length: int

    @property
    def size(self) -> int:
        return self.length

    def forward(self, values: Matrix, number: int) -> Matrix:
        return values

    def backward(self, sent: Matrix, number: int) -> Matrix:
        return sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation(Compression):
    """A random rotation, after which every coordinate is small and alike, so that few bits hold it.

    Signs at random, then the Walsh-Hadamard transform of the first m coordinates; the same, with fresh signs, of the
    last m. Both are orthogonal and together they reach every coordinate (2 m > d), so no coordinate is added, where
    padding to a power of two may double them.

    After it every coordinate is subgaussian with variance proxy ||v||^2 / m over the signs (Hoeffding's inequality for
    the second pass, given the first): for a bound C on the norm, P(|z| > t C / sqrt(m)) <= 2 exp(-t^2 / 2). The grid
    ends there, for the t (`deviations`) at which the cut counts for little beside the rounding. What one party's vector
    of norm <= C loses, with s = t C / (sqrt(m) L) the grid's step:

    * rounding by chance: mean 0, variance sum_j s^2 f_j (1 - f_j) <= d s^2 / 4, private to the party and fresh;
    * the cut: E ||.||^2 <= d (C^2 / m) B(t), B(t) = 4 (exp(-t^2 / 2) - t sqrt(2 pi) Q(t)), Q the normal tail; it is the
      only bias, and none where t reaches sqrt(m), as no rotated coordinate is beyond C.

    Papers: Suresh et al. (arXiv 1611.00429), section 3 for the rotation; Kairouz, Liu, Steinke (arXiv 2102.06387),
    algorithm 1 for rotation, clip and rounding under secure aggregation. We transform two overlapping blocks in place
    of one padded vector, and keep a sum within the ring where they let it wrap.

    Args:
        seed: public; with the round it gives the signs.
        bits: b, 2 to 16.
    """

    length: int
    seed: int | str
    bits: int

    @property
    def size(self) -> int:
        return self.length

    @property
    def block(self) -> int:
        """Return m, the largest power of two up to the length."""
        return 1 << (self.length.bit_length() - 1)

    @property
    def deviations(self) -> float:
        """Return t: the smallest, in tenths, whose cut costs at most a tenth of t^2 / 6 L^2, a typical rounding."""
        largest = (1 << (self.bits - 1)) - 1
        tenths = next(
            tenth for tenth in range(1, 200) if _cut(tenth / 10) <= 0.1 * (tenth / 10) ** 2 / (6 * largest**2)
        )
        return min(tenths / 10, math.sqrt(self.block))

    def reach(self, norm: float) -> float:
        """Return where the grid ends for vectors of at most this norm: t C / sqrt(m)."""
        return self.deviations * norm / math.sqrt(self.block)

    def forward(self, values: Matrix, number: int) -> Matrix:
        block, (first, last) = self.block, self._signs(number)
        turned = values.astype(np.float64)
        turned[:block] = hadamard(turned[:block] * first)
        if block < self.length:
            turned[-block:] = hadamard(turned[-block:] * last)
        return turned

    def backward(self, sent: Matrix, number: int) -> Matrix:
        block, (first, last) = self.block, self._signs(number)
        turned = sent.astype(np.float64)
        if block < self.length:
            turned[-block:] = hadamard(turned[-block:]) * last
        turned[:block] = hadamard(turned[:block]) * first
        return turned

    def _signs(self, number: int) -> tuple[Matrix, Matrix]:
        stream = public_stream(self.seed, f"rotation of round {number}")
        bits = np.unpackbits(np.frombuffer(stream.bytes(2 * ((self.block + 7) // 8)), np.uint8).reshape(2, -1), axis=1)
        signs = 1.0 - 2.0 * bits[:, : self.block]
        return signs[0], signs[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset(Compression):
    """k coordinates of every round, the same for all parties; on the way back they count d / k times.

    The coordinates are shuffled and dealt out over ceil(d / k) rounds, then shuffled again: seen by itself a round has
    a uniform subset, so the mean is v and the squared error (d / k - 1) ||v||^2; over the rounds every coordinate has
    its turn, which converges better than fresh draws.

    Paper: Konečný et al. (arXiv 1610.05492), section 3.1, "random mask"; there each party has a mask of its own, whose
    sum would need all d coordinates.

    Args:
        seed: public; with the round it gives the coordinates.
        kept: k, 1 to d.
    """

    length: int
    seed: int | str
    kept: int

    @property
    def size(self) -> int:
        return self.kept

    def forward(self, values: Matrix, number: int) -> Matrix:
        return values[self._places(number)]

    def backward(self, sent: Matrix, number: int) -> Matrix:
        values = np.zeros(self.length)
        values[self._places(number)] = sent * (self.length / self.kept)
        return values

    def _places(self, number: int) -> Places:
        turns = -(-self.length // self.kept)
        shuffle, turn = divmod(number - 1, turns)
        order = public_stream(self.seed, f"subsets of shuffle {shuffle}").permutation(self.length)
        return np.take(order, range(turn * self.kept, (turn + 1) * self.kept), mode="wrap")


@dataclass(frozen=True, slots=True, kw_only=True)
class CountSketch(Compression):
    """Each row adds every coordinate, with a random sign, to one of its columns; the estimate is the rows' median.

    A row's estimate of coordinate j has mean v_j and variance (||v||^2 - v_j^2) / columns. It is off by more than
    2 ||v|| / sqrt(columns) with probability below 1/4 (Chebyshev), the median of 5 rows below 0.104, and what few large
    coordinates hold comes back almost exactly. The law of a row's error is symmetric, so the median's mean is v_j too.
    The way back is not linear: take it of the sum.

    Signs and columns are drawn for every coordinate and round by themselves; theory asks for less. Fresh ones are what
    lets errors cancel over the rounds. FetchSGD keeps them, takes the largest estimates and leaves the rest in the
    sketch: right for few large coordinates, while on a logistic model of MNIST's digits, whose update is dense, what
    was left over grew without end.

    Papers: Charikar, Chen, Farach-Colton (2002), section 3; Rothchild et al., FetchSGD (arXiv 2007.07682).

    Args:
        seed: public; with the round it gives signs and columns.
        rows: odd.
        columns: of each row, at least 1.
    """

    length: int
    seed: int | str
    columns: int
    rows: int = _ROWS

    def __post_init__(self) -> None:
        if self.rows % 2 == 0:
            raise UsageError(f"Expected rows={self.rows} to be odd; the estimate is their median")

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def forward(self, values: Matrix, number: int) -> Matrix:
        sums = [np.bincount(column, sign * values, self.columns) for column, sign in self._hashes(number)]
        return np.concatenate(sums).astype(np.float64)

    def backward(self, sent: Matrix, number: int) -> Matrix:
        table = sent.reshape(self.rows, self.columns)
        rows = [sign * row[column] for row, (column, sign) in zip(table, self._hashes(number), strict=True)]
        return np.asarray(np.median(rows, axis=0), np.float64)

    def _hashes(self, number: int) -> list[tuple[Places, Matrix]]:
        stream = public_stream(self.seed, f"sketch of round {number}")
        drawn = [stream.integers(0, 2 * self.columns, self.length) for _ in range(self.rows)]
        return [(word >> 1, np.where(word & 1, -1.0, 1.0)) for word in drawn]


def compression_of(train: TrainSection, length: int, seed: int | str) -> Compression:
    """Return the compression that [train] names, of vectors of `length` coordinates."""
    size = max(1, round(train.compress_share * length))
    match train.compress:
        case "rotate":
            return Rotation(length=length, seed=seed, bits=train.compress_bits)
        case "rand-k":
            return Subset(length=length, seed=seed, kept=size)
        case "sketch":
            return CountSketch(length=length, seed=seed, columns=max(1, size // _ROWS))
        case "none":
            return Whole(length=length)


def hadamard(values: Matrix) -> Matrix:
    """Return the orthonormal Walsh-Hadamard transform of `values`, shape (m,), m a power of two; its own inverse.

    H of 2^(p + q) is H of 2^p on the columns and H of 2^q on the rows of a 2^p x 2^q table.
    """
    length = len(values)
    bits = length.bit_length() - 1
    if length != 1 << bits:
        raise UsageError(f"Expected length={length} to be a power of two")
    table = _transposed(values.reshape(1 << (bits // 2), -1))
    return _transposed(table).reshape(-1) / math.sqrt(length)


def _transposed(table: Matrix) -> Matrix:
    """Return the transpose of the unnormalised transform of every column, done for as many as the cache holds."""
    out = np.empty(table.shape[::-1])
    for start in range(0, len(out), _CACHED_COLUMNS):
        block = slice(start, start + _CACHED_COLUMNS)
        out[block] = _butterflies(table[:, block].copy()).T
    return out


def _butterflies(table: Matrix) -> Matrix:
    """Return the unnormalised transform of every column; `table` is overwritten, its rows a power of two."""
    spare, half = np.empty_like(table), 1
    while half < len(table):
        pairs, mixed = (each.reshape(-1, 2, half, table.shape[1]) for each in (table, spare))
        np.add(pairs[:, 0], pairs[:, 1], out=mixed[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=mixed[:, 1])
        table, spare, half = spare, table, 2 * half
    return table


def _cut(deviations: float) -> float:
    """Return B(t) of `Rotation`: the integral of 2 (u - t) times the tail bound 2 exp(-u^2 / 2) from t on."""
    tail = math.erfc(deviations / math.sqrt(2)) / 2
    return 4 * (math.exp(-(deviations**2) / 2) - deviations * math.sqrt(2 * math.pi) * tail)
