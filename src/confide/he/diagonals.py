"""Weights as what multiplies slots, for any engine: the diagonals of each map, its bias, constants of combinations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.he.packing import Indices, diagonal, folded, imaginary, parts
from confide.he.plan_network import NetworkPlan
from confide.he.shapes import Dense, LinearMap, Shape
from confide.he.stages import Mapped

Slots = NDArray[np.float64] | NDArray[np.complex128]


@dataclass(frozen=True, slots=True, eq=False)
class Diagonal:
    """One plaintext of a map; private.

    Args:
        giant, baby: its place in the schedule.
        values: what meets the baby before the giant's rotation, shape (slots,); complex if the input is.
    """

    giant: int
    baby: int
    values: Slots

    def __repr__(self) -> str:
        return f"Diagonal({self.giant}, {self.baby})"


def diagonals(plan: NetworkPlan, number: int, part: LinearMap) -> Iterator[Diagonal]:
    """Yield the plaintexts of stage `number`: those that its shape can fill, whatever the weights are.

    An input in both halves of complex slots, z = x + u x', meets w - u w': the real part of the product is w x + w' x',
    half of which is taken here, because z is added to its conjugate afterwards. The client takes u = i, a folded input
    u = i or -i (`packing.imaginary`).
    """
    stage = plan.stages[number]
    assert isinstance(stage, Mapped)
    step = stage.layout.rotations.giant[1]
    units = imaginary(plan.slots) if stage.layout.rotations.fold else np.full(plan.slots, 1j)
    for giant, baby, rotation, results, inputs in _met(plan, number, part):
        halves = [diagonal(part.at, results, labels, rotation) for labels in inputs]
        values = halves[0] if len(halves) == 1 else (halves[0] - np.roll(units, -rotation) * halves[1]) / 2
        yield Diagonal(giant, baby, np.roll(values, giant * step))


def places(plan: NetworkPlan, number: int, shape: Shape) -> Iterator[tuple[int, int]]:
    """Yield (giant, baby) of the plaintexts of stage `number`, in the order of `diagonals`: from the shape alone."""
    blank = LinearMap(shape, np.zeros(_weights_of(shape)), np.zeros(shape.outputs))
    for giant, baby, _, _, _ in _met(plan, number, blank):
        yield giant, baby


def _weights_of(shape: Shape) -> tuple[int, ...]:
    if isinstance(shape, Dense):
        return shape.outputs, shape.inputs
    return shape.channels[1], shape.channels[0], *shape.kernel


def _met(
    plan: NetworkPlan, number: int, part: LinearMap
) -> Iterator[tuple[int, int, int, Indices, tuple[Indices, ...]]]:
    """Yield giant, baby, whole rotation, and the labels of results and inputs, where any slot pairs two of them."""
    stage = plan.stages[number]
    assert isinstance(stage, Mapped)
    rotations, slots = stage.layout.rotations, plan.slots
    results = parts(stage.layout.packed.labels(slots), rotations.sums)
    inputs = input_labels(plan, number)
    for giant, baby, rotation in rotations.distinct(slots):
        if any(_reaches(part, results, labels, rotation) for labels in inputs):
            yield giant, baby, rotation, results, inputs


def input_labels(plan: NetworkPlan, number: int) -> tuple[Indices, ...]:
    """Return which number stands in each slot of the input of stage `number`, for each half."""
    stage = plan.stages[number]
    assert isinstance(stage, Mapped)
    if stage.source == 0:
        return plan.entry.labels(plan.slots)
    packed = plan.registers[stage.source].packed
    assert packed is not None
    return folded(packed.labels(plan.slots), stage.layout.rotations.fold)


def bias(plan: NetworkPlan, number: int, part: LinearMap) -> NDArray[np.float64]:
    """Return what is added after stage `number`, shape (slots,)."""
    stage = plan.stages[number]
    assert isinstance(stage, Mapped)
    labels = stage.layout.packed.labels(plan.slots)
    return np.where(labels >= 0, part.bias[np.maximum(labels, 0)], 0.0)


def _reaches(part: LinearMap, results: Indices, inputs: Indices, rotation: int) -> bool:
    """Return whether any slot pairs an output with an input that it can depend on."""
    moved = np.roll(inputs, -rotation)
    if isinstance(part.shape, Dense):
        return bool(((results >= 0) & (moved >= 0)).any())
    return bool(part.connected(results, moved).any())
