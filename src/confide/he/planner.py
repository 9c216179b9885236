"""Chooses the plan of a network: ring, primes, scale and layouts, for the least estimated time.

    1. For a ring degree, layouts: the cheapest way through the linear maps, by the packing that each leaves behind.
    2. Primes: as few as carry the computation at the wanted precision within the 128-bit table.
    3. The cheapest of the ring degrees.

Everything here reads shapes, never weights: two models of one shape have one plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TypeVar

import msgspec

from confide.he.layouts import Entry, Layout, entries, layouts, leftovers
from confide.he.levels import errors, fits, headrooms, least_bits, scheduled
from confide.he.network import Network, Operation
from confide.he.packing import Packing
from confide.he.parameters import LIMIT_BITS, Parameters
from confide.he.plan_batch import BatchPlan, products
from confide.he.plan_network import NetworkPlan
from confide.he.plan_staged import StagedPlan
from confide.he.seal import ntt_primes
from confide.he.shapes import LinearMap
from confide.he.stages import Combined, Mapped, Multiplied, Stage, Summed

#: Room above typical values that plans are made for: the smallest that holds a model's largest values is taken.
ROOMS_BITS = (10.0, 14.0, 18.0, 22.0, 26.0, 32.0, 40.0, 50.0)

#: Milliseconds of one transform of one prime, measured once on an AVX-512 core: only ratios matter for the choice.
TRANSFORM_MS: Mapping[int, float] = MappingProxyType({4096: 0.04, 8192: 0.08, 16384: 0.178, 32768: 0.4})

_PRODUCT = 0.45  # of a plaintext product and its sum, in transforms per prime
_SQUARE = 0.9
_ENCRYPTED_PRODUCT = 1.1  # of two ciphertexts, left at three polynomials
_DIVISION = 2.0
_SUM = 0.05  # of an integer product in a matrix product over whole ciphertexts, with its part of the memory traffic
_SECONDS_PER_BYTE = 1e-8  # of a batch's question: packing, checking, a line
_MOVED = 6.0  # of a ciphertext between SEAL and the matrix product
_MOST_PRIMES = 15
_DEAR_KEY_BYTES = 1e9  # keys of this size are worth twice the time
_SCALES = (22, 24, 25, 26, 28, 31, 34, 40)
_FINER = (0.75, 1.5, 2.25, 3.0, 6.0, 10.0, 14.0)

Made = TypeVar("Made", bound=StagedPlan)


@dataclass(frozen=True, slots=True)
class Way:
    """A way through the network so far: what it costs, in key switches, and its stages without levels."""

    cost: float
    entry: Entry
    stages: tuple[Stage, ...]
    packed: Packing


def plan_network(
    net: Network,
    *,
    protected: bool,
    input_bound: float,
    precision_bits: int,
    room_bits: float,
    encrypted: bool = False,
) -> NetworkPlan | None:
    """Return the plan with the least estimated time, or None if no parameters of the table carry the network.

    Args:
        net: its shapes matter, its weights do not.
        protected: whether replies must not show the weights.
        input_bound: largest absolute value of a feature.
        precision_bits: the error of an output is expected to be below 2^(2 - precision_bits) of its typical size; its
            range over the box is far more than four times that.
        room_bits: bits kept free above typical values, at most.
        encrypted: whether the server gets the weights of the maps encrypted.
    """
    found: list[tuple[float, NetworkPlan]] = []
    cheapest = math.inf  # key switches times the time of a transform: what a larger ring has to beat
    for degree, transform in TRANSFORM_MS.items():
        way = ways(net.operations, degree // 2, protected=protected)
        if way is None or way.cost * transform > cheapest:
            continue
        make = partial(
            NetworkPlan,
            input_bound=input_bound,
            entry=way.entry,
            room_bits=room_bits,
            sigmoid=net.sigmoid,
            protected=protected,
        )
        stages = _encrypted(way.stages) if encrypted else way.stages
        plan = levelled(stages, degree, precision_bits, room_bits, make, cost=seconds)
        if plan is not None:
            cheapest = way.cost * transform
            found.append((seconds(plan) * (1 + plan.key_bytes / _DEAR_KEY_BYTES), plan))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _encrypted(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    return tuple(msgspec.structs.replace(s, encrypted=True) if isinstance(s, Mapped) else s for s in stages)


def plan_batch(
    net: Network, *, protected: bool, input_bound: float, precision_bits: int, room_bits: float
) -> BatchPlan | None:
    """Return the batch plan with the least estimated time for a row, or None if no parameters carry the network.

    Args: as for `plan_network`.
    """
    stages = tuple(map(_batched, net.operations))
    first = stages[0]
    assert isinstance(first, Summed)
    make = partial(
        BatchPlan,
        input_bound=input_bound,
        features=first.shape.inputs,
        room_bits=room_bits,
        sigmoid=net.sigmoid,
        protected=protected,
    )
    for degree in TRANSFORM_MS:  # rows of larger rings take longer transforms, and no fewer bits
        plan = levelled(stages, degree, precision_bits, room_bits, make, cost=_with_traffic)
        if plan is not None:
            return plan
    return None


def _with_traffic(plan: BatchPlan) -> float:
    return seconds(plan) + _SECONDS_PER_BYTE * plan.block_bytes


def _batched(operation: Operation) -> Stage:
    match operation.kind:
        case "linear":
            assert isinstance(operation.part, LinearMap)
            return Summed(source=operation.sources[0], shape=operation.part.shape, weight_bits=1, drops=0)
        case "product":
            return Multiplied(left=operation.sources[0], right=operation.sources[1], drops=0)
        case "combination":
            return Combined(terms=operation.sources, weight_bits=1, drops=0)


def seconds(plan: StagedPlan) -> float:
    """Return the estimated time of the server for one row, of a batch for one of N/2 rows.

    It is for the core that `TRANSFORM_MS` was measured on.
    """
    total = 0.0
    counts = plan.sizes[1:] if isinstance(plan, BatchPlan) else [1] * len(plan.stages)
    for stage, after, count in zip(plan.stages, plan.registers[1:], counts, strict=True):
        limbs = min(plan.registers[source].limbs for source in stage.sources)
        total += count * _DIVISION * limbs * stage.drops
        match stage:
            case Mapped():
                rotations = stage.layout.rotations
                product = _ENCRYPTED_PRODUCT if stage.encrypted else _PRODUCT
                total += rotations.before * _switch(limbs) + rotations.products * product * limbs
                total += rotations.giant[0] * stage.encrypted * _switch(limbs)
                total += (len(rotations.sums) + stage.conjugate) * _switch(after.limbs)
            case Summed():
                total += (_SUM * products(stage) + _MOVED * (stage.shape.inputs + count)) * limbs
            case Multiplied():
                total += count * (_switch(limbs) + _SQUARE * limbs)
            case Combined():
                total += count * len(stage.terms) * _PRODUCT * limbs
    return total * TRANSFORM_MS[plan.parameters.degree] / 1e3


def _switch(limbs: int) -> float:
    return limbs * limbs + 3 * limbs + 2


# --- layouts ----------------------------------------------------------------------------------------------------------


def ways(operations: Sequence[Operation], slots: int, *, protected: bool = True) -> Way | None:
    """Return the cheapest way through all operations, None if some vector does not fit the slots.

    Args:
        operations: of a network.
        slots: of a ciphertext.
        protected: whether the last ciphertext must hold outputs and nothing else: no partial sums.
    """
    first = operations[0].part
    assert isinstance(first, LinearMap)
    states: dict[Packing, Way] = {}
    for entry, layout in entries(first.shape, slots):
        stage = Mapped(source=0, shape=first.shape, layout=layout, weight_bits=1, drops=0, conjugate=entry.halves == 2)
        _keep(states, Way(_cost(layout) + stage.conjugate, entry, (stage,), layout.packed))
    for operation in operations[1:]:
        states = _step(states, operation)
    ends = [way for way in states.values() if not (protected and _shows_sums(way, slots))]
    return min(ends, key=lambda way: way.cost, default=None)


def _shows_sums(way: Way, slots: int) -> bool:
    """Return whether the last ciphertext holds partial sums beside the outputs."""
    maps = [stage for stage in way.stages if isinstance(stage, Mapped) and stage.layout.packed == way.packed]
    return any(leftovers(stage.layout, slots).any() for stage in maps)


def _step(states: Mapping[Packing, Way], operation: Operation) -> dict[Packing, Way]:
    after: dict[Packing, Way] = {}
    for way in states.values():
        for layout, stage in _stages(way, operation):
            cost = way.cost + (_cost(layout) if layout else 1.0)
            _keep(after, Way(cost, way.entry, (*way.stages, stage), layout.packed if layout else way.packed))
    return after


def _stages(way: Way, operation: Operation) -> Iterator[tuple[Layout | None, Stage]]:
    """Yield the stages that an operation can become, with the layouts of maps."""
    packings = [_packing(way.stages, source) for source in operation.sources]
    match operation.kind:
        case "linear":
            assert isinstance(operation.part, LinearMap)
            shape, slots = operation.part.shape, _slots(way)
            for layout in layouts(shape, packings[0], slots):
                yield layout, Mapped(source=operation.sources[0], shape=shape, layout=layout, weight_bits=1, drops=0)
        case "product":
            yield None, Multiplied(left=operation.sources[0], right=operation.sources[1], drops=0)
        case "combination":
            if len(set(packings)) == 1:
                yield None, Combined(terms=operation.sources, weight_bits=1, drops=0)


def _packing(stages: Sequence[Stage], register: int) -> Packing:
    while True:
        stage = stages[register - 1]
        if isinstance(stage, Mapped):
            return stage.layout.packed
        register = stage.sources[0]


def _slots(way: Way) -> int:
    first = way.stages[0]
    assert isinstance(first, Mapped)
    return first.layout.packed.period * first.layout.packed.copies


def _cost(layout: Layout) -> float:
    rotations = layout.rotations
    return rotations.before + 0.6 * len(rotations.sums) + 0.07 * rotations.products + 0.01 * len(rotations.keys)


def _keep(states: dict[Packing, Way], way: Way) -> None:
    before = states.get(way.packed)
    if before is None or way.cost < before.cost:
        states[way.packed] = way


# --- primes -----------------------------------------------------------------------------------------------------------


def levelled(
    stages: Sequence[Stage],
    degree: int,
    precision_bits: float,
    room_bits: float,
    make: Callable[..., Made],
    *,
    cost: Callable[[Made], float],
) -> Made | None:
    """Return the plan at the fewest primes that carry `stages`; None if the table has none.

    Args:
        stages: without levels.
        degree: of the ring.
        precision_bits: of the outputs, as for `plan_network`.
        room_bits: bits kept free above typical values, at most.
        make: takes `parameters`, `scale_bits` and `stages` with levels.
        cost: of a plan, in seconds.
    """
    rooms, wanted = headrooms(stages, room_bits), precision_bits - 2.0
    needed = {
        (finer, scale_bits): least_bits(stages, degree, scale_bits, wanted + finer, rooms)
        for finer in _FINER
        for scale_bits in _SCALES
    }
    least = min(needed.values())
    for count in range(1, _MOST_PRIMES + 1):
        best: tuple[float, float, Made] | None = None
        for bits in _sizes(degree, count, least):
            for parameters, scale_bits, found, error in _candidates(stages, degree, bits, wanted, rooms, needed):
                plan = make(parameters=parameters, scale_bits=scale_bits, stages=found)
                rank = cost(plan), error
                if best is None or rank < best[:2]:
                    best = *rank, plan
        if best is not None:
            return best[2]
    return None


def _sizes(degree: int, count: int, least_bits: float) -> Iterator[tuple[int, ...]]:
    """Yield sizes of primes whose data primes have `least_bits` in all; the reply's first, the special one last.

    A larger special prime makes key switches more exact, a larger first one leaves room in the reply.
    """
    limit = LIMIT_BITS[degree]
    for bits in range(60, 23, -1 if count < 7 else -2) if count > 1 else (60,):
        for extra in (0, 3, 6, 10) if count < 6 else (0, 6):
            special = min(60, bits + extra)
            if count == 1:
                special = min(60, limit // 2)
            first = min(60, limit - (count - 1) * bits - special)
            if first >= max(24, bits if count > 1 else 24) and first + (count - 1) * bits >= least_bits:
                yield (first, *[bits] * (count - 1), special)
            if special == 60:
                break


def _candidates(
    unlevelled: Sequence[Stage],
    degree: int,
    bits: tuple[int, ...],
    wanted: float,
    rooms: Sequence[float],
    needed: Mapping[tuple[float, int], float],
) -> Iterator[tuple[Parameters, int, tuple[Stage, ...], float]]:
    """Yield computations that fit these primes and reach 2^-wanted, at different scales."""
    parameters = Parameters(scheme="ckks", degree=degree, primes=_primes(degree, bits))
    for (finer, scale_bits), least in needed.items():
        if least > sum(bits[:-1]):
            continue
        stages = scheduled(parameters, scale_bits, unlevelled, wanted + finer)
        if fits(parameters, scale_bits, stages, rooms):
            error = errors(parameters, scale_bits, stages)[-1]
            if error <= 2.0**-wanted:
                yield parameters, scale_bits, stages, error


@lru_cache(maxsize=4096)
def _primes(degree: int, bits: tuple[int, ...]) -> tuple[int, ...]:
    return ntt_primes(degree, bits)
