"""The largest error of a network's outputs for every input in the box, followed through the stages.

Bounds of single errors (`noise`) are added with the absolute weights that they meet, so nothing is assumed of how
errors under one key depend on each other. One output leaves the bound with probability below 2^-72, a thousand of them
together below 2^-62, over keys and encryptions, as far as digits and roundings look uniform. It holds where the plan is
certified; elsewhere it holds for inputs whose values stay within the plan's room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from confide.he import noise
from confide.he.normalise import Constants, Ready
from confide.he.plan_staged import StagedPlan
from confide.he.shapes import LinearMap
from confide.he.stages import Combined, Mapped, Multiplied, Summed, product_scale

Matrix = NDArray[np.float64]

#: Relative error of the few float64 operations around the ciphertexts, generously.
FLOAT_ERROR = 2.0**-44


def error_bound(plan: StagedPlan, ready: Ready) -> Matrix:
    """Return the largest error of each output, in the model's own numbers, shape (outputs,)."""
    degree = plan.parameters.degree
    errors = [np.full(ready.largest[0].shape, noise.fresh_bound(degree) / plan.registers[0].scale)]
    slots = [1.5]  # largest absolute value in any slot, rubbish included
    for number, part in enumerate(ready.parts):
        stage = plan.stages[number]
        read = [errors[source] for source in stage.sources]
        match stage:
            case Mapped():
                assert isinstance(part, LinearMap)
                error, most = _mapped(plan, number, part, read[0], ready.largest[stage.source], slots[stage.source])
            case Summed():
                assert isinstance(part, LinearMap)
                error, most = _summed(plan, number, part, read[0], ready.largest[stage.source])
            case Multiplied():
                left, right = (ready.largest[source] for source in stage.sources)
                error = left * read[1] + right * read[0] + read[0] * read[1] + _switched(plan, number)
                most = slots[stage.left] * slots[stage.right]
            case Combined():
                assert isinstance(part, Constants)
                error, most = _combined(stage, part, read, [slots[source] for source in stage.terms])
        if stage.drops:
            error = error + noise.rounding_bound(degree) / plan.registers[number + 1].scale
        errors.append(error)
        slots.append(most)
    last = errors[-1] + FLOAT_ERROR * (1 + ready.largest[-1])
    if plan.protected:
        last = last + noise.zero_bound(degree, plan.parameters.special) / plan.reply_scale + plan.flooding
    return np.ldexp(last, ready.exponent)


def _switched(plan: StagedPlan, number: int, *, slots: int = 1) -> float:
    """Return the error of a stage's key switch, or its sum over slots, at the scale of its product."""
    stage = plan.stages[number]
    read = [plan.registers[source] for source in stage.sources]
    limbs = min(register.limbs for register in read)
    return _switching(plan, limbs, slots) / product_scale(stage, read)


def _switching(plan: StagedPlan, limbs: int, slots: int) -> float:
    parameters = plan.parameters
    return noise.switching_bound(parameters.degree, parameters.data_primes[:limbs], parameters.special, slots=slots)


def _mapped(
    plan: StagedPlan, number: int, part: LinearMap, error: Matrix, largest: Matrix, most: float
) -> tuple[Matrix, float]:
    stage, after, degree = plan.stages[number], plan.registers[number + 1], plan.parameters.degree
    assert isinstance(stage, Mapped)
    rotations = stage.layout.rotations
    halves, parts = 1 << stage.conjugate, rotations.parts  # what is added up: conjugates, and values of one polynomial
    before = _switched(plan, number) * 2.0**stage.weight_bits
    weights = np.abs(part.weight)
    each = noise.fresh_bound(degree) if stage.encrypted else noise.encoding_bound(degree)
    rounded = halves * each * math.sqrt(rotations.products * parts) / 2.0**stage.weight_bits
    if rotations.fold:  # the imaginary part of another slot's error joins each, and a slot holds two values
        error, most = error + error.max(), math.sqrt(2.0) * most
    found = part.applied(weights, error + rotations.depth * before) + rounded * (most + error.max())
    switches = rotations.giant[0] * (1 + stage.encrypted) - 1
    found = found + switches * halves * _switched(plan, number, slots=parts)
    found = found + _folded(plan, stage, after.limbs) / after.scale
    if stage.drops:
        found = found + (halves * math.sqrt(parts) - 1) * noise.rounding_bound(degree) / after.scale
    found = found + each / after.scale
    partial = part.applied(weights, largest) + np.abs(part.bias)
    return found, float(partial.max())


def _folded(plan: StagedPlan, stage: Mapped, limbs: int) -> float:
    """Return the error of the key switches that add up a map's parts, times the scale; later sums add theirs up."""
    found, later = 0.0, stage.layout.rotations.parts
    for count, _ in stage.layout.rotations.sums:
        later //= count
        found += (count - 1) * _switching(plan, limbs, later)
    return 2 * found + _switching(plan, limbs, 1) if stage.conjugate else found


def _summed(plan: StagedPlan, number: int, part: LinearMap, error: Matrix, largest: Matrix) -> tuple[Matrix, float]:
    """Return the error of integer sums: weights are off by half a step, one in a row of zeros by a whole one."""
    stage = plan.stages[number]
    assert isinstance(stage, Summed)
    reached = error + largest
    rounded = part.applied(np.ones_like(part.weight), reached) / 2 + reached.max() / 2
    scale = product_scale(stage, [plan.registers[stage.source]])
    found = part.applied(np.abs(part.weight), error) + rounded / 2.0**stage.weight_bits + 1 / scale
    return found, float((part.applied(np.abs(part.weight), largest) + np.abs(part.bias)).max())


def _combined(stage: Combined, part: Constants, read: Sequence[Matrix], slots: Sequence[float]) -> tuple[Matrix, float]:
    error, most = np.zeros(1), abs(part.offset)
    for factor, term, largest in zip(part.factors, read, slots, strict=True):
        error = error + abs(factor) * term + largest * 2.0**-stage.weight_bits
        most += abs(factor) * largest
    return error + 2.0**-stage.weight_bits, most
