"""Whether x < alpha, for x known to two servers and alpha known to the third alone: two or three exchanges of bits.

    symbol   here           meaning
    n        bits           x and alpha lie in [0, 2^n)
    E_j      equal          block j of x equals block j of alpha
    L_j      less           block j of x is less than block j of alpha
    e, l     masks          uniform bits that the third knows and the two hold in shares
    M_S      products       the product of e_i over the set S of blocks

Alpha is cut into blocks of at most six bits. For each block the third deals shares of a table, one bit for each value,
which is 1 at alpha's value; x points into it, so both servers read shares of E_j, and of L_j from the table's sums from
the right, without a message. Of blocks g-1 .. 0 of a group the answer is

    L_g-1 + E_g-1 (L_g-2 + E_g-2 (... (L_1 + E_1 L_0)))

over bits, and whether all are equal is E_g-1 ... E_0. The two open E_j + e_j and L_j + l_j; the third deals shares of
M_S and of M_S l_j, so that shares of the answer follow without another message: with G_j the bracket that ends in L_j,
Q_j(S) = M_S G_j = L^_j M_S + M_S l_j + E^_j Q_j-1(S) + Q_j-1(S and j).

Bits of many comparisons lie side by side in bytes, one row for each block, so that a step is one pass over rows.

Paper: gates of many inputs on masked bits with dealt products of masks: Patra, Schneider, Suresh, Yalame, "ABY2.0"
(USENIX Security 2021; their two parties make the products; here the third server does).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Rows = NDArray[np.uint8]

#: Bits of the largest block: its table is a word. Most blocks of one group.
MOST_BLOCK, MOST_GROUP = 6, 7


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a comparison of n bits is cut.

    Args:
        blocks: bits of each block, the lowest block first, sizes falling by at most one.
        levels: sizes of the groups of each level, the lowest first; () if there is one block.
    """

    blocks: tuple[int, ...]
    levels: tuple[tuple[int, ...], ...]

    @property
    def bits(self) -> int:
        """Return n."""
        return sum(self.blocks)

    @property
    def tables(self) -> tuple[tuple[int, int, int], ...]:
        """Return (bits, first block, blocks) for each run of blocks of one size."""
        found: list[tuple[int, int, int]] = []
        for place, bits in enumerate(self.blocks):
            if found and found[-1][0] == bits:
                found[-1] = (bits, found[-1][1], found[-1][2] + 1)
            else:
                found.append((bits, place, 1))
        return tuple(found)

    def opened(self, level: int) -> int:
        """Return how many rows of bits are opened at a level."""
        return sum(_opened(size, lowest) for _, size, lowest in _groups(self.levels[level]))

    def dealt(self, level: int) -> int:
        """Return how many rows of products of masks are dealt for a level."""
        return sum(_dealt(size, lowest) for _, size, lowest in _groups(self.levels[level]))

    @property
    def bytes_per_element(self) -> float:
        """Return what one comparison costs: tables and products from the third, opened bits both ways."""
        tables = sum(table_type(bits).itemsize for bits in self.blocks)
        return tables + sum(self.dealt(one) + 2 * self.opened(one) for one in range(len(self.levels))) / 8


def table_type(bits: int) -> np.dtype[np.unsignedinteger]:
    """Return the little-endian type of a table with one bit for each value of `bits` bits."""
    return np.dtype(f"<u{max(1, (1 << bits) // 8)}")


@cache
def comparison(bits: int) -> Comparison:
    """Return the cut with the fewest exchanges, and of those the one with the fewest bytes; 1 <= bits <= 62."""
    best: tuple[int, float, Comparison] | None = None
    for count in range(-(-bits // MOST_BLOCK), min(bits, 16) + 1):
        for levels in _arrangements(count):
            cut = Comparison(_balanced(bits, count), levels)
            key = len(levels), cut.bytes_per_element, cut
            if best is None or key[:2] < best[:2]:
                best = key
    assert best is not None
    return best[2]


def _arrangements(count: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    if count == 1:
        yield ()
    elif count <= MOST_GROUP:
        yield ((count,),)
    else:
        for size in range(2, MOST_GROUP + 1):
            groups = -(-count // size)
            if 2 <= groups <= MOST_GROUP:
                yield _balanced(count, groups), (groups,)


def _balanced(total: int, parts: int) -> tuple[int, ...]:
    small, more = divmod(total, parts)
    return (small + 1,) * more + (small,) * (parts - more)


def _groups(sizes: tuple[int, ...]) -> Iterator[tuple[int, int, bool]]:
    """Yield (first block, blocks, whether it is the lowest) of each group."""
    place = 0
    for size in sizes:
        yield place, size, place == 0
        place += size


def _opened(size: int, lowest: bool) -> int:
    return 0 if size == 1 else 2 * (size - 1) + (not lowest)


def _dealt(size: int, lowest: bool) -> int:
    if size == 1:
        return 0
    subsets = 1 << (size - 1)
    with_less = sum((subsets >> j) - 1 for j in range(size - 1))
    return subsets - size + with_less + (0 if lowest else subsets - 1)


@cache
def _several(size: int) -> NDArray[np.intp]:
    """Return the sets of at least two of blocks 1 .. size-1, as numbers with a bit for each."""
    return np.array([one for one in range(1 << (size - 1)) if one.bit_count() >= 2], np.intp)


@cache
def _single(size: int) -> NDArray[np.intp]:
    return np.array([1 << place for place in range(size - 1)], np.intp)


def packed(bits: NDArray[np.integer | np.bool_]) -> Rows:
    """Return bits (0 or not, along the last axis) side by side in bytes, the lowest first."""
    return np.packbits(bits, axis=-1, bitorder="little")


def unpacked(row: Rows, count: int) -> Rows:
    """Return `count` bits of a row of bytes as uint8 of 0 and 1."""
    return np.unpackbits(row, count=count, bitorder="little")


# --- at the two servers -----------------------------------------------------------------------------------------------


def look_up(cut: Comparison, x: Words, tables: list[NDArray[np.unsignedinteger]]) -> tuple[Rows, Rows]:
    """Return shares of E and L of every block, as rows of bits: uint8 (blocks, bytes) each.

    Args:
        x: uint64, shape (count,), below 2^n.
        tables: shares of each run of tables (`Comparison.tables`), shape (blocks of the run, count).
    """
    equal = np.empty((len(cut.blocks), -(-x.size // 8)), np.uint8)
    less = np.empty_like(equal)
    shifts = np.cumsum((0, *cut.blocks[:-1])).astype(np.uint64)
    for (bits, first, count), table in zip(cut.tables, tables, strict=True):
        kind = table.dtype
        blocks = slice(first, first + count)
        place = ((x >> shifts[blocks, None]) & np.uint64((1 << bits) - 1)).astype(kind)
        one = kind.type(1)
        equal[blocks] = packed((table >> place) & one)
        # A table's sums from the right, moved by one: the bit at v tells whether alpha's value is above v.
        above = table >> one
        for step in range(bits):
            above ^= above >> kind.type(1 << step)
        less[blocks] = packed((above >> place) & one)
    return equal, less


def to_open(cut: Comparison, level: int, equal: Rows, less: Rows) -> Rows:
    """Return the rows that are opened at a level, not yet masked: of each group its E, then its L."""
    rows = [np.empty((0, equal.shape[1]), np.uint8)]
    for place, size, lowest in _groups(cut.levels[level]):
        if size > 1:
            rows += [equal[place + lowest : place + size], less[place : place + size - 1]]
    return np.concatenate(rows)


def combine(
    cut: Comparison, level: int, party: int, equal: Rows, less: Rows, *, opened: Rows, masks: Rows, dealt: Rows
) -> tuple[Rows, Rows]:
    """Return shares of E and L of every group of a level.

    Args:
        party: 0 or 1; party 0 adds what is public.
        equal, less: shares of E and L of the blocks.
        opened: E + e and L + l of the rows of `to_open`.
        masks: shares of e and l of the same rows.
        dealt: shares of the products of masks (`products`).
    """
    groups = len(cut.levels[level])
    new_equal, new_less = np.zeros((groups, equal.shape[1]), np.uint8), np.empty((groups, equal.shape[1]), np.uint8)
    row = product = 0
    for number, (place, size, lowest) in enumerate(_groups(cut.levels[level])):
        if size == 1:
            new_equal[number], new_less[number] = equal[place], less[place]
            continue
        rows, products_ = _opened(size, lowest), _dealt(size, lowest)
        found = _combine(
            size,
            lowest,
            party,
            less[place + size - 1],
            opened[row : row + rows],
            masks[row : row + rows],
            dealt[product : product + products_],
        )
        new_equal[number], new_less[number] = found
        row, product = row + rows, product + products_
    return new_equal, new_less


def _combine(
    size: int, lowest: bool, party: int, top: Rows, opened: Rows, masks: Rows, dealt: Rows
) -> tuple[Rows | int, Rows]:
    """Return shares of E and L of one group; `top` is the share of L of its highest block."""
    subsets, several = 1 << (size - 1), _several(size)
    highs = 0 if lowest else 1  # rows of E before that of block 1
    products_ = np.empty((subsets, opened.shape[1]), np.uint8)
    products_[0] = 0 if party else 0xFF
    products_[_single(size)] = masks[highs : highs + size - 1]
    products_[several] = dealt[: len(several)]
    used, first_less = len(several), highs + size - 1
    found = products_
    for j in range(size - 1):
        own = np.bitwise_and(products_[:: 1 << j], opened[first_less + j])
        own[0] ^= masks[first_less + j]
        rest = len(own) - 1
        own[1:] ^= dealt[used : used + rest]
        used += rest
        if j:
            own ^= found[::2] & opened[highs + j - 1]
            own ^= found[1::2]
        found = own
    less = top ^ (found[0] & opened[highs + size - 2]) ^ found[1]
    if lowest:
        return 0, less
    found = products_ & opened[0]
    found[0] ^= masks[0]
    found[1:] ^= dealt[used:]
    for j in range(1, size):
        found = (found[::2] & opened[highs + j - 1]) ^ found[1::2]
    return found[0], less


# --- at the third -----------------------------------------------------------------------------------------------------


def tables(cut: Comparison, alpha: Words) -> list[NDArray[np.unsignedinteger]]:
    """Return the tables of each run of blocks: shape (blocks of the run, count)."""
    found: list[NDArray[np.unsignedinteger]] = []
    shifts = np.cumsum((0, *cut.blocks[:-1])).astype(np.uint64)
    for bits, first, count in cut.tables:
        place = (alpha >> shifts[first : first + count, None]) & np.uint64((1 << bits) - 1)
        kind = table_type(bits)
        found.append(np.left_shift(kind.type(1), place.astype(kind)))
    return found


def products(cut: Comparison, level: int, masks: Rows) -> Rows:
    """Return the products of masks that are dealt for a level: rows of bits, in the order in which `combine` reads."""
    found = [np.empty((0, masks.shape[1]), np.uint8)]
    row = 0
    for _, size, lowest in _groups(cut.levels[level]):
        if size == 1:
            continue
        own = masks[row : row + _opened(size, lowest)]
        row += len(own)
        highs = 0 if lowest else 1
        sets = np.empty((1 << (size - 1), masks.shape[1]), np.uint8)
        sets[0] = 0xFF
        for j in range(size - 1):
            np.bitwise_and(sets[: 1 << j], own[highs + j], out=sets[1 << j : 2 << j])
        found.append(sets[_several(size)])
        for j in range(size - 1):
            found.append(sets[:: 1 << j][1:] & own[highs + size - 1 + j])
        if not lowest:
            found.append(sets[1:] & own[0])
    return np.concatenate(found)
