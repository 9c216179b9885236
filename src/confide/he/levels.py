"""Where a computation divides by primes, and how exact it is then: scales, room for large values, errors.

Fewer, larger primes are faster: a key switch costs l² + 3l + 2 transforms for l primes. So a plan does not spend one
prime on each product; the scale grows until the next prime can be divided off and the scale stays above a waterline,
below which errors would show (the waterline of EVA, PLDI 2020).

Values are scaled so that typical ones are about 1. What the largest can be, over the whole input box, is far above
that; `headrooms` says how many bits are kept free for it. It depends on shapes alone: weights are scaled to fit it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from confide.he import noise
from confide.he.parameters import Parameters
from confide.he.stages import Combined, Mapped, Multiplied, Register, Stage, Summed, product_scale, trace

#: Bits that are kept free above the largest value for signs and errors.
SLACK_BITS = 1.0


def headrooms(stages: Sequence[Stage], cap_bits: float) -> list[float]:
    """Return for each register the bits that its largest value may exceed 1 by; the query's is 0.

    A sum of n products of which signs are arbitrary has a typical size of √n times that of one, and is at most n times
    that: ½ log2 n bits more. A product has the bits of both.

    Args:
        stages: of the plan.
        cap_bits: no register gets more, for networks that are too deep to keep room for what never occurs.
    """
    found = [0.0]
    for stage in stages:
        bits = [found[source] for source in stage.sources]
        match stage:
            case Mapped() | Summed():
                room = bits[0] + math.log2(stage.shape.fan_in) / 2 + 0.5
            case Multiplied():
                room = sum(bits)
            case Combined():
                room = max(bits) + math.log2(len(bits))
        found.append(min(room, cap_bits))
    for number in reversed(range(len(stages))):
        stage = stages[number]
        if isinstance(stage, Multiplied):  # nothing is scaled down after a product, so its factors are
            for source in stage.sources:
                found[source] = min(found[source], found[number + 1] / 2)
    return found


def errors(parameters: Parameters, scale_bits: int, stages: Sequence[Stage]) -> list[float]:
    """Return for each register the estimated deviation of its error in a slot, for values of about 1."""
    degree, special = parameters.degree, parameters.special
    registers = trace(parameters, scale_bits, stages)
    found = [noise.fresh(degree) / registers[0].scale]
    for stage, after in zip(stages, registers[1:], strict=True):
        read = [registers[source] for source in stage.sources]
        limbs = min(register.limbs for register in read)
        scale = product_scale(stage, read)
        switch = noise.switching(degree, parameters.data_primes[:limbs], special)
        error = [found[source] for source in stage.sources]
        match stage:
            case Mapped():
                new = _mapped(parameters, stage, error[0], (read[0].scale, scale, after), switch)
            case Summed():
                new = math.hypot(error[0], _rounded(degree, stage) / 2.0**stage.weight_bits)
            case Multiplied():
                new = math.hypot(error[0], error[1]) * math.sqrt(2) + switch / scale
            case Combined():
                new = math.hypot(*error) + len(error) * 2.0**-stage.weight_bits
        if stage.drops:
            new = math.hypot(new, noise.rounding(degree) / after.scale)
        found.append(new)
    return found


def _mapped(
    parameters: Parameters, stage: Mapped, error: float, scales: tuple[float, float, Register], switch: float
) -> float:
    """Return the error of a linear map; its weights are about 1 / √fan-in."""
    before, scale, after = scales
    degree, rotations = parameters.degree, stage.layout.rotations
    parts = len(rotations.sums) + stage.conjugate
    babies = switch * math.sqrt(sum(count for count, _ in rotations.babies) + (rotations.base != 0))
    rotated = math.hypot(error, babies / before if rotations.keys else 0.0)
    weights = _rounded(degree, stage) / 2.0**stage.weight_bits
    relinearised = rotations.giant[0] if stage.encrypted else 0
    giants = switch * math.sqrt(float(rotations.giant[0] - 1 + relinearised)) / scale
    bias = noise.fresh(degree) / after.scale if stage.encrypted else 0.0
    sums = noise.switching(degree, parameters.data_primes[: after.limbs], parameters.special) if parts else 0.0
    folded = (giants, sums / after.scale, noise.rounding(degree) / after.scale if stage.drops else 0.0)
    return math.hypot(rotated, weights, bias, *(part * math.sqrt(float(1 << parts)) for part in folded))


def _parts(stage: Mapped | Summed) -> int:
    """Return how often a result is added to itself after its products."""
    return len(stage.layout.rotations.sums) + stage.conjugate if isinstance(stage, Mapped) else 0


def _rounded(degree: int, stage: Mapped | Summed) -> float:
    """Return the deviation of an output by rounding or encrypting weights, for inputs of about 1."""
    if isinstance(stage, Summed):
        return math.sqrt(stage.shape.fan_in / 12)
    each = noise.fresh(degree) if stage.encrypted else noise.encoding(degree)
    return each * math.sqrt(float(stage.layout.rotations.products << _parts(stage)))


def _weight_bits(degree: int, stage: Mapped | Summed, precision_bits: float) -> int:
    """Return the scale at which rounded weights change an output by less than 2^-precision_bits."""
    return max(1, math.ceil(math.log2(_rounded(degree, stage)) + precision_bits))


def least_bits(
    stages: Sequence[Stage], degree: int, scale_bits: int, precision_bits: float, rooms: Sequence[float]
) -> float:
    """Return the bits of data primes without which no division of the stages fits: those of exact divisions."""
    scales, spent = [float(scale_bits)], [0.0]
    for stage in stages:
        read = [scales[source] for source in stage.sources]
        match stage:
            case Mapped() | Summed():
                scale = read[0] + _weight_bits(degree, stage, precision_bits)
            case Multiplied():
                scale = sum(read)
            case Combined():
                scale = max(read) + math.ceil(precision_bits) + 2
        spent.append(max(spent[source] for source in stage.sources) + scale - scale_bits)
        scales.append(float(scale_bits))
    return spent[-1] + scale_bits + rooms[-1] + SLACK_BITS


def scheduled(
    parameters: Parameters, scale_bits: int, stages: Sequence[Stage], precision_bits: float
) -> tuple[Stage, ...]:
    """Return the stages with scales of weights and divisions; they may still not fit (`fits`).

    Args:
        parameters: with their primes.
        scale_bits: of the query.
        stages: whose weight_bits and drops do not count.
        precision_bits: each error source stays below 2^-precision_bits.
    """
    degree = parameters.degree
    done: list[Stage] = []
    registers = [Register(len(parameters.data_primes), 2.0**scale_bits, None)]
    for stage in stages:
        read = [registers[source] for source in stage.sources]
        limbs, waterline = min(register.limbs for register in read), scale_bits - 0.5
        if isinstance(stage, Mapped | Summed):
            stage = msgspec.structs.replace(stage, weight_bits=_weight_bits(degree, stage, precision_bits))
            waterline = max(waterline, math.log2(noise.rounding(degree)) + _parts(stage) / 2 + precision_bits)
        if isinstance(stage, Combined):
            stage = msgspec.structs.replace(stage, weight_bits=math.ceil(precision_bits) + 2)
        bits, drops = math.log2(product_scale(stage, read)), 0
        while drops < limbs - 1:
            prime = math.log2(parameters.data_primes[limbs - 1 - drops])
            if bits - prime < waterline:
                break
            bits, drops = bits - prime, drops + 1
        done.append(msgspec.structs.replace(stage, drops=drops))
        registers.append(Register(limbs - drops, 2.0**bits, None))
    return tuple(done)


def fits(parameters: Parameters, scale_bits: int, stages: Sequence[Stage], rooms: Sequence[float]) -> bool:
    """Return whether every register and every product stays within the modulus of its level, at its largest."""
    registers = trace(parameters, scale_bits, stages)
    for number, stage in enumerate(stages):
        read = [registers[source] for source in stage.sources]
        limbs = min(register.limbs for register in read)
        if math.log2(product_scale(stage, read)) + rooms[number + 1] + SLACK_BITS > _bits(parameters, limbs):
            return False
    return all(
        math.log2(register.scale) + room + SLACK_BITS <= _bits(parameters, register.limbs)
        for register, room in zip(registers, rooms, strict=True)
    )


def reply_limbs(parameters: Parameters, last: Register, room_bits: float) -> int:
    """Return how many primes a reply needs: the rest of the modulus need not travel."""
    limbs = 1
    while limbs < last.limbs and math.log2(last.scale) + room_bits + SLACK_BITS > _bits(parameters, limbs):
        limbs += 1
    return limbs


def _bits(parameters: Parameters, limbs: int) -> float:
    return sum(map(math.log2, parameters.data_primes[:limbs]))
