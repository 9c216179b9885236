"""Where vectors stand in the slots of a ciphertext, and which rotations a linear map takes between two such places.

A packing says which number of a vector stands in each slot; everything else follows from it. For a map y = W x, slot s
of the result collects W[o(s), i(s + k)] · x over the rotations k of a set: `diagonals` reads the weights off, whatever
the packings are. The set of rotations is a grid, so that few keys serve each axis: babies are rotations of the input,
giants rotations of sums (Horner's rule), and `sums` add parts of results that lie at a distance. Where the input is
`folded`, the imaginary part of a slot holds what stands further on, and half as many rotations meet all inputs.

    n      slots
    label  the number that stands in a slot; -1 where there is none, and whatever is there then counts as rubbish

Paper: diagonals after Halevi and Shoup (CRYPTO 2014, 2018); several outputs per block after GAZELLE (USENIX Security
2018); strided convolutions in one level by multiplexed packing after Lee et al. (ICML 2022); several rotations of one
ciphertext from one decomposition, hoisted, after Halevi and Shoup (CRYPTO 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError

Indices = NDArray[np.int64]

_MOST_AXES = 6
_MOST_SUMS = 16
_MOST_SLOTS = 1 << 14
_MOST_ROTATIONS = 1 << 12

#: A count and the distance between neighbours.
Axis = tuple[int, int]


class Packing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Number i of a vector, in mixed radix (d_0, d_1, ...) over the axes' counts, stands in slot Σ d_j · stride_j.

    Args:
        size: numbers of the vector; slots of larger numbers hold rubbish.
        axes: (count, stride), from the most significant digit to the least; no two numbers share a slot.
        period: the whole repeats after so many slots; a power of two that divides n.
        copies: repetitions that hold numbers, from the first on.
    """

    size: int
    axes: tuple[Axis, ...]
    period: int
    copies: int

    def slots_of(self) -> Indices:
        """Return the slot of each number in the first copy, shape (size,)."""
        number, slot = np.arange(self.size), np.zeros(self.size, np.int64)
        for count, stride in reversed(self.axes):
            slot += (number % count) * stride
            number = number // count
        return slot

    def labels(self, slots: int) -> Indices:
        """Return the number in each slot, -1 for rubbish, shape (slots,)."""
        labels = np.full(slots, -1, np.int64)
        base = self.slots_of()
        for copy in range(self.copies):
            labels[base + copy * self.period] = np.arange(self.size)
        return labels

    def checked(self, slots: int) -> Packing:
        """Return self if it fits `slots`; a stranger may have sent it. Raises ProtocolError if not."""
        _check_axes(self.axes)
        if not (1 <= self.size <= prod(count for count, _ in self.axes) and 1 <= self.copies <= slots):
            raise ProtocolError("Expected a packing whose axes hold its numbers")
        if self.size > self.period:  # axes may overlap, so their counts alone bound nothing
            raise ProtocolError("Expected a packing with a slot for each number")
        if not 1 <= self.period <= slots or self.period * self.copies > slots:
            raise ProtocolError("Expected a packing that fits the slots")
        if sum((count - 1) * stride for count, stride in self.axes) >= self.period:
            raise ProtocolError("Expected a packing whose numbers lie within its period")
        return self


class Rotations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rotations of a linear map: k = base + a grid of babies + giant · j.

    Args:
        base: the first rotation, may be below 0.
        babies: (count, step) of each axis.
        giant: (count, step) of the giant steps.
        sums: (count, step) of each axis along which a result is added up, one after the other.
        fold: 0, or f: the map's input is z = x + u · (x rotated by f), u as in `imaginary`, and the real part of its
            result counts.
        hoisted: so many axes of babies, the last ones, have a key for each multiple of their step: babies on one line
            come from its first one, so from one decomposition. On the other axes a baby comes from its neighbour.
    """

    base: int
    babies: tuple[Axis, ...]
    giant: Axis
    sums: tuple[Axis, ...]
    fold: int = 0
    hoisted: int = 0

    @property
    def offsets(self) -> tuple[int, ...]:
        """Return the rotation of each baby, the first axis slowest."""
        parts = product(*(range(0, count * step, step) for count, step in self.babies))
        return tuple(self.base + sum(part) for part in parts)

    @property
    def baby_keys(self) -> frozenset[int]:
        """Return the rotations that lead to babies, from the input or from each other."""
        chained = len(self.babies) - self.hoisted
        steps = {step for count, step in self.babies[:chained] if count > 1}
        for count, step in self.babies[chained:]:
            steps |= set(range(step, count * step, step))
        return frozenset(steps | {self.base}) - {0}

    @property
    def first_keys(self) -> frozenset[int]:
        """Return every rotation of the input, of babies and of giants for which a key is needed."""
        return self.baby_keys | (frozenset({self.fold, self.giant[1] if self.giant[0] > 1 else 0}) - {0})

    @property
    def sum_keys(self) -> frozenset[int]:
        """Return every rotation of results for which a key is needed."""
        return frozenset(step * multiple for count, step in self.sums for multiple in range(1, count))

    @property
    def keys(self) -> frozenset[int]:
        """Return every rotation for which a key is needed."""
        return self.first_keys | self.sum_keys

    @property
    def before(self) -> int:
        """Return how often inputs or products are rotated: the fold, babies and giants."""
        return (self.fold != 0) + self.grid - (self.base == 0) + self.giant[0] - 1

    @property
    def after(self) -> int:
        """Return how often results are rotated."""
        return sum(count - 1 for count, _ in self.sums)

    @property
    def grid(self) -> int:
        """Return the babies, the input among them if it is one."""
        return prod(count for count, _ in self.babies)

    @property
    def parts(self) -> int:
        """Return how many parts are added up in a result."""
        return prod(count for count, _ in self.sums)

    @property
    def products(self) -> int:
        """Return how many plaintext products there are at most."""
        return self.grid * self.giant[0]

    @property
    def depth(self) -> int:
        """Return the most rotations, one after the other, on the way to a baby."""
        chained = len(self.babies) - self.hoisted
        steps = sum(count - 1 for count, _ in self.babies[:chained])
        return steps + sum(count > 1 for count, _ in self.babies[chained:]) + (self.base != 0) + (self.fold != 0)

    @property
    def origins(self) -> int:
        """Return how many ciphertexts other babies come from: so many are decomposed."""
        if self.grid == 1:
            return int(self.base != 0)
        counts = [count for count, _ in self.babies]
        last = max(place for place, count in enumerate(counts) if count > 1)
        each = 1 if last >= len(counts) - self.hoisted else counts[last] - 1
        return self.grid // counts[last] * each + (self.base != 0)

    def distinct(self, slots: int) -> Iterator[tuple[int, int, int]]:
        """Yield (giant, place of the baby, whole rotation), leaving out whole rotations that came before."""
        seen: set[int] = set()
        for giant in range(self.giant[0]):
            for place, offset in enumerate(self.offsets):
                whole = (offset + giant * self.giant[1]) % slots
                if whole not in seen:
                    seen.add(whole)
                    yield giant, place, whole

    def derived(self) -> Iterator[tuple[int, int]]:
        """Yield for each baby its origin's place and the step from there; the first one's origin is the input, -1."""
        yield -1, self.base
        strides = [prod(count for count, _ in self.babies[place + 1 :]) for place in range(len(self.babies))]
        for digits in list(np.ndindex(*(count for count, _ in self.babies)))[1:]:
            axis = max(place for place, digit in enumerate(digits) if digit)
            place = sum(digit * stride for digit, stride in zip(digits, strides, strict=True))
            steps = digits[axis] if axis >= len(self.babies) - self.hoisted else 1
            yield place - steps * strides[axis], steps * self.babies[axis][1]

    def checked(self, slots: int) -> Rotations:
        """Return self if it fits `slots`. Raises ProtocolError if not."""
        _check_axes(self.babies)
        _check_axes((self.giant,))
        _check_axes(self.sums, most=_MOST_SUMS)
        if not 0 <= self.hoisted <= len(self.babies):
            raise ProtocolError("Expected as many hoisted axes as there are, at most")
        if self.products > _MOST_ROTATIONS or self.parts > _MOST_SLOTS:
            raise ProtocolError("Expected not more rotations than are in use")
        if any(step and not step % slots for step in self.keys):
            raise ProtocolError("Expected rotations that move something")
        if any(not 1 <= step < slots for step in self.sum_keys):
            raise ProtocolError("Expected rotations within the slots")
        if abs(self.base) >= slots or not 0 <= self.fold < slots:
            raise ProtocolError("Expected rotations within the slots")
        return self


def _check_axes(axes: tuple[Axis, ...], *, most: int = _MOST_AXES) -> None:
    if not len(axes) <= most:
        raise ProtocolError(f"Expected at most {most} axes")
    if any(not (1 <= count <= _MOST_SLOTS and 1 <= stride <= _MOST_SLOTS) for count, stride in axes):
        raise ProtocolError("Expected axes within the slots, and steps that move something")


def folded(labels: Indices, fold: int) -> tuple[Indices, ...]:
    """Return the labels of both halves of an input that is folded by `fold`, its own alone if that is 0."""
    return (labels, np.roll(labels, -fold)) if fold else (labels,)


def imaginary(slots: int) -> NDArray[np.complex128]:
    """Return u = (i, -i, i, -i ...), shape (slots,).

    The polynomial X^(N/2) has these values, since slot s is a value at a root to the power 3^s: a product with it is
    exact, at scale 1, where one with i in all slots is not.
    """
    return np.resize(np.array([1j, -1j]), slots)


def parts(labels: Indices, sums: tuple[Axis, ...]) -> Indices:
    """Return which result each slot holds a part of, before the parts are added up, shape (slots,)."""
    before = labels.copy()
    for count, step in sums:
        result = before.copy()
        for multiple in range(1, count):
            moved = np.roll(result, multiple * step)  # slot s + step goes into slot s
            before = np.where(before >= 0, before, moved)
    return before


#: Returns the weights W[o, i] for arrays of labels, 0 where one is -1.
Weights = Callable[[Indices, Indices], NDArray[np.float64]]


def diagonal(weights: Weights, results: Indices, inputs: Indices, rotation: int) -> NDArray[np.float64]:
    """Return what multiplies the input after `rotation`: W[o(s), i(s + k)] in slot s.

    Args:
        weights: of the map.
        results: `parts` of the results, shape (slots,).
        inputs: labels of the input, shape (slots,).
        rotation: k.
    """
    return weights(results, np.roll(inputs, -rotation))


def simulate(
    weights: Weights, rotations: Rotations, results: Indices, inputs: Indices, x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what the slots hold after the map, computed in the clear as the engine would: its specification.

    Args:
        weights: of the map.
        rotations: fold, babies, giants, sums.
        results: `parts` of the results.
        inputs: labels of the input.
        x: the slots, rubbish included, float64, shape (slots,).
    """
    halves = folded(inputs, rotations.fold)
    units = imaginary(len(x))
    z = x + units * np.roll(x, -rotations.fold) * (len(halves) - 1)
    total = np.zeros(len(x))
    for _, _, rotation in rotations.distinct(len(x)):
        first, *second = (diagonal(weights, results, labels, rotation) for labels in halves)
        total += ((first - sum(second) * np.roll(units, -rotation)) * np.roll(z, -rotation)).real
    for count, step in rotations.sums:
        total = sum((np.roll(total, -multiple * step) for multiple in range(1, count)), total)
    return total
