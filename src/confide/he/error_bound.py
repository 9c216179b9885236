"""The largest error of a network's outputs for every input in the box, followed through the stages.

Errors of encryption, rounding and key switching count as independent and are bounded at `noise.TAIL` deviations: the
bound fails with probability below 2^-64 under that usual assumption. It holds where the plan is certified; elsewhere
it holds for inputs whose values stay within the plan's room.
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
    errors = [np.full(ready.largest[0].shape, noise.TAIL * noise.fresh(degree) / plan.registers[0].scale)]
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
            error = error + noise.TAIL * noise.rounding(degree) / plan.registers[number + 1].scale
        errors.append(error)
        slots.append(most)
    last = errors[-1] + FLOAT_ERROR * (1 + ready.largest[-1])
    if plan.protected:
        last = last + noise.TAIL * noise.zero(degree, plan.parameters.special) / plan.reply_scale + plan.flooding
    return np.ldexp(last, ready.exponent)


def _switched(plan: StagedPlan, number: int) -> float:
    """Return the error of a stage's key switch at the scale of its product."""
    stage, parameters = plan.stages[number], plan.parameters
    read = [plan.registers[source] for source in stage.sources]
    primes = parameters.data_primes[: min(register.limbs for register in read)]
    return noise.TAIL * noise.switching(parameters.degree, primes, parameters.special) / product_scale(stage, read)


def _mapped(
    plan: StagedPlan, number: int, part: LinearMap, error: Matrix, largest: Matrix, most: float
) -> tuple[Matrix, float]:
    stage, after, parameters = plan.stages[number], plan.registers[number + 1], plan.parameters
    assert isinstance(stage, Mapped)
    degree, rotations = parameters.degree, stage.layout.rotations
    folds = rotations.parts << stage.conjugate
    before = _switched(plan, number) * 2.0**stage.weight_bits
    weights = np.abs(part.weight)
    each = noise.TAIL * (noise.fresh(degree) if stage.encrypted else noise.encoding(degree))
    rounded = each * np.sqrt(float(rotations.products * folds)) / 2.0**stage.weight_bits
    if rotations.fold:  # the imaginary part of another slot's error joins each, and a slot holds two values
        error, most = error + error.max(), math.sqrt(2.0) * most
    found = part.applied(weights, error + rotations.depth * before) + rounded * (most + error.max())
    switches = rotations.giant[0] * (1 + stage.encrypted) - 1
    found = found + switches * folds * _switched(plan, number)
    if folds > 1:
        switch = noise.switching(degree, parameters.data_primes[: after.limbs], parameters.special)
        found = found + folds * noise.TAIL * switch / after.scale
    if stage.drops:
        found = found + (folds - 1) * noise.TAIL * noise.rounding(degree) / after.scale
    found = found + each / after.scale
    partial = part.applied(weights, largest) + np.abs(part.bias)
    return found, float(partial.max())


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
