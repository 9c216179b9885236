"""Chooses the plan of a network: ring, primes, scale and layouts, for the least estimated time.

    1. For a ring degree, layouts: the cheapest way through the linear maps, by the packing that each leaves behind.
    2. Primes: as few as carry the computation at the wanted precision within the 128-bit table.
    3. Layouts again, now that each stage's primes are known; and the cheapest of the ring degrees.

What is cheap depends on who executes the plan (`speeds`). Everything here reads shapes, never weights: two models of
one shape have one plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import msgspec

from confide.he.cost import multiplied, seconds, tuned
from confide.he.layouts import Entry, entries, layouts, leftovers
from confide.he.network import Network, Operation
from confide.he.packing import Packing
from confide.he.plan_batch import BatchPlan
from confide.he.plan_network import NetworkPlan
from confide.he.schedules import levelled
from confide.he.shapes import LinearMap
from confide.he.speeds import SEAL, Speeds
from confide.he.stages import Combined, Mapped, Multiplied, Stage, Summed

#: Room above typical values that plans are made for: the smallest that holds a model's largest values is taken.
ROOMS_BITS = (10.0, 14.0, 18.0, 22.0, 26.0, 32.0, 40.0, 50.0)

_SECONDS_PER_BYTE = 1e-8  # of a batch's question: packing, checking, a line
_DEAR_KEY_BYTES = 1e9  # keys of this size are worth twice the time


@dataclass(frozen=True, slots=True)
class Way:
    """A way through the network so far: its price in milliseconds (`cost.tuned`), and its stages without levels."""

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
    speeds: Speeds = SEAL,
) -> NetworkPlan | None:
    """Return the plan with the least estimated time, or None if no parameters of the table carry the network.

    Args:
        net: its shapes matter, its weights do not.
        protected: whether replies are re-randomised and flooded.
        input_bound: largest absolute value of a feature.
        precision_bits: the error of an output is expected to be below 2^(2 - precision_bits) of its typical size; its
            range over the box is far more than four times that.
        room_bits: bits kept free above typical values, at most.
        encrypted: whether the server gets the weights of the maps encrypted.
        speeds: what operations cost.
    """

    def levels_of(way: Way, degree: int) -> NetworkPlan | None:
        make = partial(
            NetworkPlan,
            input_bound=input_bound,
            entry=way.entry,
            room_bits=room_bits,
            sigmoid=net.sigmoid,
            protected=protected,
        )
        stages = _encrypted(way.stages) if encrypted else way.stages
        cost = partial(seconds, speeds=speeds)
        return levelled(stages, degree, precision_bits, room_bits, make, cost=cost, largest_bits=speeds.largest_bits)

    ready = partial(ways, net.operations, speeds=speeds, single=not encrypted)
    found: list[tuple[float, NetworkPlan]] = []
    cheapest = math.inf  # milliseconds by guessed primes: what a larger ring has to beat
    for degree in speeds.transform_ms:
        way = ready(degree, _guessed(len(net.operations)))
        if way is None or way.cost > cheapest:
            continue
        plan = levels_of(way, degree)
        if plan is not None:
            cheapest = way.cost
        limbs = _guessed(len(net.operations)) if plan is None else _limbs(plan)
        others = [ready(degree, limbs), ready(degree, limbs, folds=False)]  # a folded map takes some bits more
        stages = {other.stages: other for other in others if other is not None and other.stages != way.stages}
        plans = [plan, *(levels_of(other, degree) for other in stages.values())]
        found += [(_worth(one, speeds), one) for one in plans if one is not None]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _worth(plan: NetworkPlan, speeds: Speeds) -> float:
    return 1e3 * seconds(plan, speeds) + plan.key_bytes * speeds.key_ms_per_byte


def _guessed(count: int) -> list[tuple[int, int]]:
    """Return the primes before and after each of `count` stages, as they often are."""
    left = [max(1, round(1 + 0.7 * (count - number))) for number in range(count + 1)]
    return list(pairwise(left))


def _limbs(plan: NetworkPlan) -> list[tuple[int, int]]:
    """Return the primes before and after each stage of a plan."""
    registers = plan.registers
    before = [min(registers[source].limbs for source in stage.sources) for stage in plan.stages]
    return [(limbs, after.limbs) for limbs, after in zip(before, registers[1:], strict=True)]


def _encrypted(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    return tuple(msgspec.structs.replace(s, encrypted=True) if isinstance(s, Mapped) else s for s in stages)


def plan_batch(
    net: Network,
    *,
    protected: bool,
    input_bound: float,
    precision_bits: int,
    room_bits: float,
    speeds: Speeds = SEAL,
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

    def cost(plan: BatchPlan) -> float:
        return seconds(plan, speeds) + _SECONDS_PER_BYTE * plan.block_bytes

    for degree in speeds.transform_ms:  # rows of larger rings take longer transforms, and no fewer bits
        plan = levelled(stages, degree, precision_bits, room_bits, make, cost=cost, largest_bits=speeds.largest_bits)
        if plan is not None:
            return plan
    return None


def _batched(operation: Operation) -> Stage:
    match operation.kind:
        case "linear":
            assert isinstance(operation.part, LinearMap)
            return Summed(source=operation.sources[0], shape=operation.part.shape, weight_bits=1, drops=0)
        case "product":
            return Multiplied(left=operation.sources[0], right=operation.sources[1], drops=0)
        case "combination":
            return Combined(terms=operation.sources, weight_bits=1, drops=0)


# --- layouts ----------------------------------------------------------------------------------------------------------


def ways(
    operations: Sequence[Operation],
    degree: int,
    limbs: Sequence[tuple[int, int]],
    *,
    speeds: Speeds = SEAL,
    single: bool = True,
    folds: bool = True,
) -> Way | None:
    """Return the cheapest way through all operations, None if some vector does not fit the slots.

    Args:
        operations: of a network.
        degree: of the ring.
        limbs: primes before and after each stage, a guess.
        speeds: what operations cost.
        single: whether the last ciphertext must hold outputs, over and over, and nothing else: no partial sums. Else
            more than one row's outputs could leave in a reply (`traces`); not where the client owns the weights.
        folds: whether inputs of maps may be folded.
    """
    first = operations[0].part
    assert isinstance(first, LinearMap)
    tune = partial(_tuned, speeds, degree)
    slots = degree // 2
    states: dict[Packing, Way] = {}
    for entry, layout in entries(first.shape, slots):
        cost, stage = tune(
            limbs[0],
            Mapped(source=0, shape=first.shape, layout=layout, weight_bits=1, drops=0, conjugate=entry.halves == 2),
        )
        _keep(states, Way(cost, entry, (stage,), layout.packed))
    for operation, levels in zip(operations[1:], limbs[1:], strict=True):
        after: dict[Packing, Way] = {}
        for way in states.values():
            for stage in _stages(way, operation):
                if isinstance(stage, Mapped) and stage.conjugate and not folds:
                    continue
                cost, packed = multiplied(speeds, degree, levels[0]), way.packed
                if isinstance(stage, Mapped):
                    cost, stage = tune(levels, stage)
                    packed = stage.layout.packed
                _keep(after, Way(way.cost + cost, way.entry, (*way.stages, stage), packed))
        states = after
    ends = [way for way in states.values() if not single or _repeats(way, slots)]
    return min(ends, key=lambda way: way.cost, default=None)


def _tuned(speeds: Speeds, degree: int, limbs: tuple[int, int], stage: Mapped) -> tuple[float, Mapped]:
    """Return the price of a map in milliseconds, and the map with its rotations in their cheapest form."""
    price, rotations = tuned(speeds, degree, stage.layout.rotations, limbs)
    layout = msgspec.structs.replace(stage.layout, rotations=rotations)
    price += stage.conjugate * speeds.switch(degree, limbs[1])
    return price, msgspec.structs.replace(stage, layout=layout)


def _repeats(way: Way, slots: int) -> bool:
    """Return whether the last ciphertext holds outputs, over and over, and no partial sums beside them."""
    maps = [stage for stage in way.stages if isinstance(stage, Mapped) and stage.layout.packed == way.packed]
    repeated = way.packed.period * way.packed.copies == slots
    return repeated and not any(leftovers(stage.layout, slots).any() for stage in maps)


def _stages(way: Way, operation: Operation) -> Iterator[Stage]:
    """Yield the stages that an operation can become."""
    packings = [_packing(way.stages, source) for source in operation.sources]
    match operation.kind:
        case "linear":
            assert isinstance(operation.part, LinearMap)
            source, shape = operation.sources[0], operation.part.shape
            for layout in layouts(shape, packings[0], _slots(way)):
                folded = layout.rotations.fold != 0
                yield Mapped(source=source, shape=shape, layout=layout, weight_bits=1, drops=0, conjugate=folded)
        case "product":
            yield Multiplied(left=operation.sources[0], right=operation.sources[1], drops=0)
        case "combination":
            if len(set(packings)) == 1:
                yield Combined(terms=operation.sources, weight_bits=1, drops=0)


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


def _keep(states: dict[Packing, Way], way: Way) -> None:
    before = states.get(way.packed)
    if before is None or way.cost < before.cost:
        states[way.packed] = way
