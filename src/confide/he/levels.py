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
from dataclasses import dataclass
from itertools import accumulate

from confide.he import noise
from confide.he.parameters import Parameters
from confide.he.stages import Combined, Mapped, Multiplied, Register, Stage, Summed, product_scale, trace

#: Bits that are kept free above the largest value for signs and errors.
SLACK_BITS = 1.0

#: The same of a reply, of which the client reads twice the values (`traces`).
REPLY_SLACK_BITS = 2.0


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
    rotated = math.hypot(error, switch * math.sqrt(rotations.depth) / before)
    weights = _rounded(degree, stage) / 2.0**stage.weight_bits
    relinearised = rotations.giant[0] if stage.encrypted else 0
    giants = switch * math.sqrt(float(rotations.giant[0] - 1 + relinearised)) / scale
    bias = noise.fresh(degree) / after.scale if stage.encrypted else 0.0
    parts = _parts(stage)
    sums = noise.switching(degree, parameters.data_primes[: after.limbs], parameters.special) if parts > 1 else 0.0
    folded = (giants, sums / after.scale, noise.rounding(degree) / after.scale if stage.drops else 0.0)
    return math.hypot(rotated, weights, bias, *(part * math.sqrt(parts) for part in folded))


def _parts(stage: Mapped | Summed) -> int:
    """Return how many parts are added up in a result after its products."""
    return stage.layout.rotations.parts << stage.conjugate if isinstance(stage, Mapped) else 1


def _rounded(degree: int, stage: Mapped | Summed) -> float:
    """Return the deviation of an output by rounding or encrypting weights, for inputs of about 1."""
    if isinstance(stage, Summed):
        return math.sqrt(stage.shape.fan_in / 12)
    each = noise.fresh(degree) if stage.encrypted else noise.encoding(degree)
    return each * math.sqrt(stage.layout.rotations.products * _parts(stage))


@dataclass(frozen=True, slots=True)
class Outline:
    """What counts of a stage for its level and scale.

    Args:
        sources: registers that are read.
        product: whether its scale is the product of theirs.
        weights: log2 of what rounding weights at scale 1 changes; 2 for constants of combinations, None without.
        divided: log2 of what a division's rounding changes at scale 1, where that is spread over parts; None elsewhere.
    """

    sources: tuple[int, ...]
    product: bool
    weights: float | None
    divided: float | None


def outlined(stage: Stage, degree: int) -> Outline:
    """Return the outline of a stage."""
    if isinstance(stage, Mapped | Summed):
        divided = math.log2(noise.rounding(degree)) + math.log2(_parts(stage)) / 2
        return Outline(stage.sources, False, math.log2(_rounded(degree, stage)), divided)
    combined = isinstance(stage, Combined)
    return Outline(stage.sources, not combined, 2.0 if combined else None, None)


def weight_bits(outline: Outline, precision_bits: float) -> int:
    """Return the scale at which rounded weights change an output by less than 2^-precision_bits."""
    return 0 if outline.weights is None else max(1, math.ceil(outline.weights + precision_bits))


def least_bits(outlines: Sequence[Outline], scale_bits: int, precision_bits: float, rooms: Sequence[float]) -> float:
    """Return the bits of data primes without which no division of the stages fits: those of exact divisions."""
    spent = [0.0]
    for outline in outlines:
        scale = scale_bits * (1 + outline.product) + weight_bits(outline, precision_bits)
        spent.append(max(spent[source] for source in outline.sources) + scale - scale_bits)
    return spent[-1] + scale_bits + rooms[-1] + REPLY_SLACK_BITS


def scheduled(
    bits: Sequence[int], outlines: Sequence[Outline], scale_bits: int, precision_bits: float, rooms: Sequence[float]
) -> tuple[int, ...] | None:
    """Return how many primes each stage divides by, None where a value or a product does not fit its modulus.

    Args:
        bits: of the data primes.
        outlines: of the stages.
        scale_bits: of the query.
        precision_bits: each error source stays below 2^-precision_bits.
        rooms: bits that each register's values may exceed 1 by.
    """
    modulus = list(accumulate(bits, initial=0))
    limbs, scales = [len(bits)], [float(scale_bits)]
    drops: list[int] = []
    if scale_bits + rooms[0] + SLACK_BITS > modulus[-1]:
        return None
    for outline, room in zip(outlines, rooms[1:], strict=True):
        left = min(limbs[source] for source in outline.sources)
        read = [scales[source] for source in outline.sources]
        scale = (sum(read) if outline.product else max(read)) + weight_bits(outline, precision_bits)
        if scale + room + SLACK_BITS > modulus[left]:
            return None
        waterline, before = scale_bits - 0.5, left
        if outline.divided is not None:
            waterline = max(waterline, outline.divided + precision_bits)
        while left > 1 and scale - bits[left - 1] >= waterline:
            left, scale = left - 1, scale - bits[left - 1]
        slack = REPLY_SLACK_BITS if len(scales) == len(outlines) else SLACK_BITS
        if scale + room + slack > modulus[left]:
            return None
        limbs.append(left)
        scales.append(scale)
        drops.append(before - left)
    return tuple(drops)


def fits(parameters: Parameters, scale_bits: int, stages: Sequence[Stage], rooms: Sequence[float]) -> bool:
    """Return whether every register and every product stays within the modulus of its level, at its largest."""
    registers = trace(parameters, scale_bits, stages)
    for number, stage in enumerate(stages):
        read = [registers[source] for source in stage.sources]
        limbs = min(register.limbs for register in read)
        if math.log2(product_scale(stage, read)) + rooms[number + 1] + SLACK_BITS > _bits(parameters, limbs):
            return False
    slacks = [SLACK_BITS] * len(stages) + [REPLY_SLACK_BITS]
    return all(
        math.log2(register.scale) + room + slack <= _bits(parameters, register.limbs)
        for register, room, slack in zip(registers, rooms, slacks, strict=True)
    )


def reply_limbs(parameters: Parameters, last: Register, room_bits: float) -> int:
    """Return how many primes a reply needs: the rest of the modulus need not travel."""
    limbs = 1
    while limbs < last.limbs and math.log2(last.scale) + room_bits + REPLY_SLACK_BITS > _bits(parameters, limbs):
        limbs += 1
    return limbs


def _bits(parameters: Parameters, limbs: int) -> float:
    return sum(map(math.log2, parameters.data_primes[:limbs]))
