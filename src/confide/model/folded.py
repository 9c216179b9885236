"""Scales and shifts, as batch normalisation and constant factors are, merged into the layers beside them.

    s      factor, one for each channel
    t      shift
    y = s x + t, then W y + b is (W s) x + (W t + b); W x + b, then s (W x + b) + t is (s W) x + (s b + t)

Encrypted, a merged factor costs nothing and a factor of its own costs a level. What no neighbour takes becomes a
convolution with one pixel, which is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.layers import AveragePool, Conv, Layer, Linear, Polynomial
from confide.model.trees import Trees

Matrix = NDArray[np.float64]

_MOST_CHANNELS = 4096  # of a scale that becomes a layer: its weights are their square


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """y = factor x + shift, one pair for each channel: no layer of a graph, a step on the way to one.

    Args:
        factor, shift: float64, shape (channels,).
        pixels: numbers of a record in each channel.
    """

    factor: Matrix
    shift: Matrix
    pixels: int

    def __repr__(self) -> str:
        return f"Scale({len(self.factor)}x{self.pixels})"

    @property
    def neutral(self) -> bool:
        """Return whether it changes nothing."""
        return bool((self.factor == 1).all() and (self.shift == 0).all())

    @property
    def number(self) -> tuple[float, float] | None:
        """Return the one factor and shift of all channels, or None if they differ."""
        same = (self.factor == self.factor[0]).all() and (self.shift == self.shift[0]).all()
        return (float(self.factor[0]), float(self.shift[0])) if same else None

    def units(self) -> tuple[Matrix, Matrix]:
        """Return factor and shift of every number of a record."""
        return self.factor.repeat(self.pixels), self.shift.repeat(self.pixels)

    def over(self, channels: int, pixels: int) -> Scale | None:
        """Return the same for vectors of other channels; None if numbers of one channel differ."""
        if len(self.factor) == channels:
            return replace(self, pixels=pixels)
        if (one := self.number) is not None:
            return Scale(np.full(channels, one[0]), np.full(channels, one[1]), pixels)
        if len(self.factor) * self.pixels != channels * pixels:
            return None
        factor, shift = (part.reshape(channels, pixels) for part in self.units())
        same = (factor == factor[:, :1]).all() and (shift == shift[:, :1]).all()
        return Scale(factor[:, 0].copy(), shift[:, 0].copy(), pixels) if same else None


def folded(items: Sequence[Layer | Scale]) -> tuple[Layer, ...]:
    """Return layers that compute what `items` do.

    Raises:
        ModelError: a scale of more than 4096 channels that no layer takes, or parameters that are not finite.
    """
    done: list[Layer] = []
    pending: Scale | None = None
    for item in items:
        if isinstance(item, Scale):
            pending = item if pending is None else _composed(pending, item)
            if (last := _after(done, pending)) is not None:
                done, pending = last, None
        elif pending is None or pending.neutral:
            done, pending = [*done, item], None
        elif isinstance(item, AveragePool) and (moved := pending.over(item.channels, 1)) is not None:
            done, pending = [*done, item], replace(moved, pixels=item.out_height * item.out_width)
        elif (merged := _before(pending, item)) is not None:
            done, pending = [*done, merged], None
        else:
            done, pending = [*done, _layer(pending), item], None
    if pending is not None and not pending.neutral:
        done.append(_layer(pending))
    return tuple(done)


def _composed(first: Scale, second: Scale) -> Scale:
    """Return one scale for two, one after the other."""
    if len(first.factor) != len(second.factor) or first.pixels != second.pixels:
        channels = max(len(first.factor), len(second.factor))
        pixels = min(first.pixels, second.pixels)
        one, other = first.over(channels, pixels), second.over(channels, pixels)
        if one is None or other is None:  # by numbers of a record, then
            one, other = (Scale(*each.units(), 1) for each in (first, second))
        first, second = one, other
    return Scale(first.factor * second.factor, first.shift * second.factor + second.shift, first.pixels)


def _after(done: list[Layer], scale: Scale) -> list[Layer] | None:
    """Return `done` with a scale merged into its last layer, or None."""
    if scale.neutral or not done:
        return done if scale.neutral else None
    *before, last = done
    match last:
        case Linear(weight, bias):
            factor, shift = scale.units()
            return [*before, Linear(weight * factor[:, None], bias * factor + shift)]
        case Conv(weight, bias):
            if (own := scale.over(len(bias), last.out_height * last.out_width)) is not None:
                weight, bias = weight * own.factor[:, None, None, None], bias * own.factor + own.shift
                return [*before, replace(last, weight=weight, bias=bias)]
        case Polynomial(coefficients):
            if (number := scale.number) is not None:
                scaled = coefficients * number[0]
                scaled[0] += number[1]
                return [*before, replace(last, coefficients=scaled)]
        case AveragePool():
            own = scale.over(last.channels, last.height * last.width)
            if own is not None and (found := _after(before, replace(own, pixels=last.height * last.width))) is not None:
                return [*found, last]
        case Trees():
            factor, shift = scale.units()
            value = _leaves_times(last, factor)
            return [*before, replace(last, value=value, offset=last.offset * factor + shift)]
        case _:
            pass
    return None


def _leaves_times(trees: Trees, factor: Matrix) -> Matrix:
    """Return the leaves' values times their output's factor."""
    if (factor == factor[0]).all():
        return trees.value * factor[0]
    raise ModelError("Expected one factor for all outputs of trees; scale the leaves instead")


def _before(scale: Scale, layer: Layer) -> Layer | None:
    """Return `layer` with a scale of its inputs merged into it, or None."""
    match layer:
        case Linear(weight, bias):
            factor, shift = scale.units()
            return Linear(weight * factor, bias + weight @ shift)
        case Conv(weight, bias):
            own = scale.over(layer.channels, layer.height * layer.width)
            if own is None or (
                any(layer.padding) and (own.shift != 0).any()
            ):  # padding is 0 after the shift, not before
                return None
            moved = bias + np.einsum("okst,k->o", weight, own.shift)
            return replace(layer, weight=weight * own.factor[:, None, None], bias=moved)
        case Polynomial(_, low, high):
            if (number := scale.number) is not None and number[0] > 0:
                return replace(layer, low=(low - number[1]) / number[0], high=(high - number[1]) / number[0])
            return None
        case _:
            return None


def _layer(scale: Scale) -> Layer:
    """Return a scale as a layer of its own."""
    channels = len(scale.factor)
    if channels > _MOST_CHANNELS:
        raise ModelError(f"Expected scales beside a linear layer, or of at most {_MOST_CHANNELS} channels")
    weight = np.diag(scale.factor)
    if scale.pixels == 1:
        return Linear(weight, scale.shift)
    return Conv(weight[:, :, None, None], scale.shift, scale.pixels, 1)
