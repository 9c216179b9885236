"""Ways to lay a linear map out over the slots: each takes a packing of the input and gives rotations and a packing.

    folded       results with period Q beside each other; every slot meets min(P, Q) inputs, parts are folded together
    blocks       one block of P slots makes g results: few rotations where the input repeats often
    gathered     from results that stand g to a block back to one period
    shifted      images: the kernel as shifts within a map, channels as shifts of whole maps; strides leave gaps, which
                 hold further channels (multiplexed packing)

All but `gathered` also on an input that is folded (`packing`), with half of the rotations.

The first map's input is packed by the client, which may repeat it, shift the repetitions against each other, cut an
image into the patches of a convolution and use both halves of a complex slot: rotations that happen before encryption.
The planner takes whatever is cheapest; nothing here depends on a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.he.packing import Axis, Indices, Packing, Rotations, parts
from confide.he.shapes import Convolution, Dense, Shape


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the client fills the slots.

    Args:
        features: columns of x.
        packed: places of the features, or of (tap, place in the output map) of `patches`, in one half of one copy;
            what does not fit into the first half stands in the second.
        patches: the convolution whose patches are sent instead of the image.
        halves: 1, or 2 if the imaginary parts are used too.
        copies: repetitions of the packed whole, the c-th of them shifted by c · shift slots.
        shift: see `copies`.
    """

    features: int
    packed: Packing
    patches: Convolution | None = None
    halves: int = 1
    copies: int = 1
    shift: int = 0

    def labels(self, slots: int) -> tuple[Indices, ...]:
        """Return the feature in each slot, -1 for none, for each half, shape (slots,)."""
        slot, span = np.arange(slots), self.packed.period * self.packed.copies
        place = (slot + slot // span % self.copies * self.shift) % span
        first = self.packed.labels(span)
        room = prod(count for count, _ in self.packed.axes)
        halves: list[Indices] = []
        for half in range(self.halves):
            label = np.where(first >= 0, first + half * room, -1)[place]
            halves.append(self._features(np.where(label < self._numbers, label, -1)))
        return tuple(halves)

    @property
    def _numbers(self) -> int:
        return self.features if self.patches is None else self.patches.taps * prod(self.patches.map)

    def _features(self, label: Indices) -> Indices:
        if self.patches is None:
            return label
        places = prod(self.patches.map)
        known = np.maximum(label, 0)
        return np.where(label >= 0, self.patches.source(known % places, known // places), -1)

    def checked(self, slots: int) -> Entry:
        """Return self if it fits `slots`; a stranger may have sent it. Raises ProtocolError if not."""
        self.packed.checked(slots)
        if self.patches is not None and self.patches.checked().inputs != self.features:
            raise ProtocolError("Expected patches of the features")
        if self.halves not in (1, 2) or not 1 <= self.copies * self.packed.period * self.packed.copies <= slots:
            raise ProtocolError("Expected an entry that fits the slots")
        if not (1 <= self.features <= 1 << 16 and 0 <= self.shift < slots):
            raise ProtocolError("Expected an entry that fits the slots")
        return self


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A linear map over slots: its rotations, and where its results stand."""

    rotations: Rotations
    packed: Packing


def leftovers(layout: Layout, slots: int) -> NDArray[np.bool_]:
    """Return which slots hold partial sums that are no results, shape (slots,): they would show what is summed up."""
    labels = layout.packed.labels(slots)
    filled = parts(labels, layout.rotations.sums) >= 0
    for count, step in layout.rotations.sums:
        filled = np.logical_or.reduce([np.roll(filled, -multiple * step) for multiple in range(count)])
    return filled & (labels < 0)


def power(size: int) -> int:
    """Return the smallest power of two from `size` on."""
    return 1 << (size - 1).bit_length()


def entries(shape: Shape, slots: int) -> Iterator[tuple[Entry, Layout]]:
    """Yield ways to send the input of the first map, each with a layout of it."""
    for halves in (1, 2):
        if isinstance(shape, Dense):
            yield from _entered(shape.inputs, shape.outputs, 1, halves, slots, None)
        else:
            yield from _image_entries(shape, halves, slots)


def layouts(shape: Shape, packed: Packing, slots: int) -> Iterator[Layout]:
    """Yield layouts of a map whose input is packed so."""
    repeated = packed.period * packed.copies == slots
    if isinstance(shape, Convolution) and repeated and len(packed.axes) == 5:
        yield from _shifted(shape, packed, slots, folds=True)
    if repeated:
        yield from _folded(packed.period, shape.outputs, slots)
        yield from _blocks(packed.period, shape.outputs, slots)
    elif len(packed.axes) == 2:
        yield from _gathered(packed, shape.outputs, slots)


def _splits(axes: tuple[Axis, ...], base: int, sums: tuple[Axis, ...], *, folds: bool) -> Iterator[Rotations]:
    """Yield every division of the rotations base + grid into babies and giants; the first axis gives the giants.

    Where its count is a power of two the babies are one, too: rotations beyond the last would meet inputs twice. The
    input may be folded by half of the first axis, whose other half meets the same inputs then.
    """
    (count, step), *rest = axes
    if folds and count % 2 == 0:
        half = ((count // 2, step), *rest)
        for rotations in _splits(half, base, sums, folds=False):
            if rotations.products * 2 == prod(count for count, _ in axes):
                yield msgspec.structs.replace(rotations, fold=count // 2 * step)
    whole = count & (count - 1) == 0
    for babies in range(1, count + 1):
        giants = -(-count // babies)
        if whole and count % babies:
            continue
        if babies > 1 and -(-count // (babies - 1)) == giants:
            continue  # fewer babies do as well
        inner = [(babies, step)] if babies > 1 else []
        grid = tuple(axis for axis in (*inner, *rest) if axis[0] > 1)
        yield Rotations(base=base, babies=grid, giant=(giants, babies * step), sums=sums)


def _doubling(first: int, end: int) -> tuple[Axis, ...]:
    """Return sums over distances first, 2 first, 4 first ... below `end`."""
    return tuple((2, first << place) for place in range((end // first).bit_length() - 1))


def _folded(period: int, outputs: int, slots: int) -> Iterator[Layout]:
    width = power(outputs)
    if max(period, width) > slots:
        return
    packed = Packing(size=outputs, axes=((width, 1),), period=width, copies=slots // width)
    sums = _doubling(width, max(period, width))
    for rotations in _splits(((min(period, width), 1),), 0, sums, folds=True):
        yield Layout(rotations=rotations, packed=packed)


def _blocks(period: int, outputs: int, slots: int) -> Iterator[Layout]:
    count = slots // period
    each = power(-(-outputs // count))
    if each >= period:
        return
    packed = Packing(size=outputs, axes=((count, period), (each, 1)), period=slots, copies=1)
    for rotations in _splits(((each, 1),), 0, _doubling(each, period), folds=True):
        yield Layout(rotations=rotations, packed=packed)


def _gathered(packed: Packing, outputs: int, slots: int) -> Iterator[Layout]:
    (_, period), (each, stride) = packed.axes
    if outputs + each - 1 > period or stride != 1 or slots % period:
        return
    after = Packing(size=outputs, axes=((power(outputs), 1),), period=period, copies=slots // period)
    for rotations in _splits(((outputs + each - 1, 1),), 1 - outputs, _doubling(period, slots), folds=False):
        last = rotations.offsets[-1] + (rotations.giant[0] - 1) * rotations.giant[1]
        if outputs - 1 + last < period:
            yield Layout(rotations=rotations, packed=after)


def _entered(
    inputs: int, outputs: int, unit: int, halves: int, slots: int, image: Convolution | None
) -> Iterator[tuple[Entry, Layout]]:
    """Yield folded layouts of a first map over units of slots: one number each, or one map of an image each."""
    held, width = power(-(-inputs // halves)), power(outputs)
    period = max(held, width)
    if period * unit > slots or (halves == 2 and inputs < 2):
        return
    inner: tuple[Axis, ...] = ()
    size, results = held, outputs
    if image is not None:
        inner, places = (image.map, (image.map[1], 1)), prod(image.map)
        size, results = held * places, outputs * places
    for copies in (1 << place for place in range((slots // (period * unit)).bit_length())):
        if copies > min(held, width):
            break
        each = min(held, width) // copies
        span = copies * period * unit if copies > 1 else period * unit
        entry = Entry(
            features=inputs if image is None else image.inputs,
            packed=Packing(size=size, axes=((held, unit), *inner), period=held * unit, copies=period // held),
            patches=image,
            halves=halves,
            copies=copies,
            shift=each * unit if copies > 1 else 0,
        )
        axes, count = (((width, unit), *inner), slots // (width * unit))
        if image is not None:
            rows, columns = image.map
            axes = ((width, unit), (1, columns), (1, 1), (rows, columns), (columns, 1))
        packed = Packing(size=results, axes=axes, period=width * unit, copies=count)
        for rotations in _splits(((each, unit),), 0, _doubling(width * unit, span), folds=False):
            yield entry, Layout(rotations=rotations, packed=packed)


def _image_entries(shape: Convolution, halves: int, slots: int) -> Iterator[tuple[Entry, Layout]]:
    unit = power(prod(shape.map))
    yield from _entered(shape.taps, shape.channels[1], unit, halves, slots, shape)
    if halves == 1:
        yield from _whole_images(shape, slots)


def _whole_images(shape: Convolution, slots: int) -> Iterator[tuple[Entry, Layout]]:
    """Yield layouts of a first convolution whose image is sent as it is: fewer slots than its patches take."""
    (rows, columns), blocks, unit = shape.image, power(shape.channels[0]), power(prod(shape.image))
    period = blocks * unit
    if period > slots:
        return
    axes = ((blocks, unit), (1, columns), (1, 1), (rows, columns), (columns, 1))
    packed = Packing(size=shape.inputs, axes=axes, period=period, copies=1)
    entry = Entry(features=shape.inputs, packed=packed, copies=slots // period)
    for layout in _shifted(shape, msgspec.structs.replace(packed, copies=slots // period), slots, folds=False):
        yield entry, layout


def _shifted(shape: Convolution, packed: Packing, slots: int, *, folds: bool) -> Iterator[Layout]:
    (blocks, unit), (phases_y, row), (phases_x, column), (rows, _), (columns, _) = packed.axes
    after_y, after_x = phases_y * shape.stride[0], phases_x * shape.stride[1]
    height, width = shape.map
    count = power(-(-shape.channels[1] // (after_y * after_x)))
    axes = ((count, unit), (after_y, row), (after_x, column), (height, after_y * row), (width, after_x * column))
    after = Packing(size=shape.outputs, axes=axes, period=count * unit, copies=max(1, slots // (count * unit)))
    fits = height * after_y <= rows * phases_y and width * after_x <= columns * phases_x
    if count * unit > slots or not fits:
        return
    down = phases_y * shape.kernel[0] + after_y - 1
    across = phases_x * shape.kernel[1] + after_x - 1
    if (down - 1) * row + (across - 1) * column >= unit:
        return  # shifts would reach into the next channel
    base = -(phases_y * shape.padding[0] + after_y - 1) * row - (phases_x * shape.padding[1] + after_x - 1) * column
    sums = _doubling(count * unit, max(blocks, count) * unit)
    axes = ((min(blocks, count), unit), (down, row), (across, column))
    for rotations in _splits(axes, base, sums, folds=folds):
        yield Layout(rotations=rotations, packed=after)
