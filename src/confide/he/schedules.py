"""The primes and the levels of a computation whose layouts are chosen: as few primes as carry it.

A key switch takes the square of the primes' number, so one prime less is worth more than any other choice. Among as
many primes, the schedule of divisions decides the time; among equal times, the most exact one is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import TypeVar

import msgspec

from confide.he.levels import errors, fits, headrooms, least_bits, outlined, scheduled, weight_bits
from confide.he.parameters import LIMIT_BITS, Parameters
from confide.he.plan_staged import StagedPlan
from confide.he.seal import ntt_primes
from confide.he.stages import Multiplied, Stage

_MOST_PRIMES = 15
_SCALES = (22, 24, 25, 26, 28, 31, 34, 40)
_FINER = (0.75, 1.5, 2.25, 3.0, 6.0, 10.0, 14.0)

Made = TypeVar("Made", bound=StagedPlan)

#: Primes' sizes, the special one last; the query's scale; the precision of each error source; divisions.
_Option = tuple[tuple[int, ...], int, float, tuple[int, ...]]


def levelled(
    stages: Sequence[Stage],
    degree: int,
    precision_bits: float,
    room_bits: float,
    make: Callable[..., Made],
    *,
    cost: Callable[[Made], float],
    largest_bits: int = 60,
) -> Made | None:
    """Return the plan at the fewest primes that carry `stages`; None if the table has none.

    Args:
        stages: without levels.
        degree: of the ring.
        precision_bits: of the outputs: their expected error is below 2^(2 - precision_bits) of their typical size.
        room_bits: bits kept free above typical values, at most.
        make: takes `parameters`, `scale_bits` and `stages` with levels.
        cost: of a plan, in seconds, by its divisions and the bits of its modulus.
        largest_bits: of a prime.
    """
    rooms, wanted = headrooms(stages, room_bits), precision_bits - 2.0
    outlines = [outlined(stage, degree) for stage in stages]
    needed = [
        (least_bits(outlines, scale_bits, wanted + finer, rooms), scale_bits, wanted + finer)
        for finer in _FINER
        for scale_bits in _SCALES
    ]

    def planned(option: _Option) -> Made:
        bits, scale_bits, precision, drops = option
        parameters = Parameters(scheme="ckks", degree=degree, primes=_primes(degree, bits))
        sized = [weight_bits(outline, precision) for outline in outlines]
        found = tuple(map(_with_levels, stages, sized, drops))
        return make(parameters=parameters, scale_bits=scale_bits, stages=found)

    for count in range(1, _MOST_PRIMES + 1):
        options: dict[tuple[tuple[int, ...], int], list[_Option]] = {}  # of one cost
        for bits in _sizes(degree, count, min(needed)[0], largest_bits):
            for least, scale_bits, precision in needed:
                size = sum(bits[:-1])
                if least <= size:
                    drops = scheduled(bits[:-1], outlines, scale_bits, precision, rooms)
                    if drops is not None:
                        options.setdefault((drops, size), []).append((bits, scale_bits, precision, drops))
        costs = sorted((cost(planned(same[0])), key) for key, same in options.items())
        for _, keys in groupby(costs, key=lambda pair: pair[0]):
            best = _most_exact((planned(option) for _, key in keys for option in options[key]), wanted, rooms)
            if best is not None:
                return best
    return None


def _most_exact(plans: Iterator[Made], wanted: float, rooms: Sequence[float]) -> Made | None:
    """Return the plan with the smallest error, None if none reaches 2^-wanted."""
    best: tuple[float, Made] | None = None
    for plan in plans:
        if fits(plan.parameters, plan.scale_bits, plan.stages, rooms):
            error = errors(plan.parameters, plan.scale_bits, plan.stages)[-1]
            if error <= 2.0**-wanted and (best is None or error < best[0]):
                best = error, plan
    return None if best is None else best[1]


def _with_levels(stage: Stage, bits: int, drops: int) -> Stage:
    if isinstance(stage, Multiplied):
        return msgspec.structs.replace(stage, drops=drops)
    return msgspec.structs.replace(stage, weight_bits=bits, drops=drops)


def _sizes(degree: int, count: int, least_bits: float, largest: int) -> Iterator[tuple[int, ...]]:
    """Yield sizes of primes whose data primes have `least_bits` in all; the reply's first, the special one last.

    A larger special prime makes key switches more exact, a larger first one leaves room in the reply.
    """
    limit = LIMIT_BITS[degree]
    for bits in range(largest, 23, -1 if count < 7 else -2) if count > 1 else (largest,):
        for extra in (0, 3, 6, 10) if count < 6 else (0, 6):
            special = min(largest, bits + extra)
            if count == 1:
                special = min(largest, limit // 2)
            first = min(largest, limit - (count - 1) * bits - special)
            if first >= max(24, bits if count > 1 else 24) and first + (count - 1) * bits >= least_bits:
                yield (first, *[bits] * (count - 1), special)
            if special == largest:
                break


@lru_cache(maxsize=4096)
def _primes(degree: int, bits: tuple[int, ...]) -> tuple[int, ...]:
    return ntt_primes(degree, bits)
