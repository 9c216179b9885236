"""How long a plan takes at the server, by the numbers of a speeds, and the cheapest form of a map's rotations.

The same sums of rotations have many forms: babies in a chain with one key, or hoisted with a key each; results added up
two by two, or more at a time. Fewer decompositions take more keys, which take bytes to upload and to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import msgspec

from confide.he.packing import Axis, Rotations
from confide.he.plan_batch import BatchPlan, products
from confide.he.plan_staged import StagedPlan
from confide.he.speeds import Speeds
from confide.he.stages import Combined, Mapped, Multiplied, Summed

_ENCRYPTED_PRODUCT = 4.0  # products of rows in a product of two ciphertexts, by prime
_ENCRYPTED_ROWS = 3
_SUM = 0.05  # of an integer product in a matrix product over whole ciphertexts, in transforms, with its memory traffic
_MOVED = 6.0  # of a ciphertext between SEAL and the matrix product, in transforms
_LARGEST_SUM = 5  # log2 of the most parts that are added up at once


def seconds(plan: StagedPlan, speeds: Speeds) -> float:
    """Return the estimated time of the server for one row, of a batch for one of N/2 rows."""
    total, degree = 0.0, plan.parameters.degree
    transform = speeds.transform_ms[degree]
    counts = plan.sizes[1:] if isinstance(plan, BatchPlan) else [1] * len(plan.stages)
    for stage, after, count in zip(plan.stages, plan.registers[1:], counts, strict=True):
        limbs = min(plan.registers[source].limbs for source in stage.sources)
        total += count * rescaled(speeds, degree, limbs, stage.drops)
        match stage:
            case Mapped():
                rotations = stage.layout.rotations
                total += mapped(speeds, degree, rotations, (limbs, after.limbs), encrypted=stage.encrypted)
                total += stage.conjugate * _keyed(speeds, degree, after.limbs)
            case Summed():
                total += (_SUM * products(stage) + _MOVED * (stage.shape.inputs + count)) * limbs * transform
            case Multiplied():
                total += count * multiplied(speeds, degree, limbs)
            case Combined():
                total += speeds.products(degree, limbs, count * len(stage.terms))
    return total / 1e3


def rescaled(speeds: Speeds, degree: int, limbs: int, drops: int) -> float:
    """Return the milliseconds of dividing a ciphertext by its last `drops` primes, one after the other."""
    return speeds.transform_ms[degree] * 2 * sum(range(limbs - drops + 1, limbs + 1))


def multiplied(speeds: Speeds, degree: int, limbs: int) -> float:
    """Return the milliseconds of a product of two ciphertexts, relinearised."""
    product = _ENCRYPTED_PRODUCT * speeds.product * speeds.transform_ms[degree] * limbs
    return _keyed(speeds, degree, limbs) + product


def _keyed(speeds: Speeds, degree: int, limbs: int) -> float:
    """Return the milliseconds of a key switch with a key of its own."""
    return speeds.switch(degree, limbs) + speeds.key_read(degree, limbs)


def mapped(
    speeds: Speeds, degree: int, rotations: Rotations, limbs: tuple[int, int], *, encrypted: bool = False
) -> float:
    """Return the milliseconds of a map, without its division and its conjugation.

    Args:
        speeds: whose.
        degree: of the ring.
        rotations: of the map.
        limbs: primes before the division, and after it.
        encrypted: whether the weights are.
    """
    before, after = limbs
    giants = rotations.giant[0]
    sums = sum(summed(speeds, degree, count, after) for count, _ in rotations.sums)
    keys = _first_keys(rotations) * speeds.key_read(degree, before)
    if encrypted:
        each = _ENCRYPTED_PRODUCT * speeds.product * speeds.transform_ms[degree] * before
        each += _ENCRYPTED_ROWS * 8 * degree * before / speeds.bytes_per_ms
        switches = (rotations.before + giants) * speeds.switch(degree, before)
        return sums + keys + switches + rotations.products * each
    fold = (rotations.fold != 0) * speeds.switch(degree, before)
    if not speeds.hoists:
        switches = (rotations.before - (rotations.fold != 0)) * speeds.switch(degree, before)
        return sums + fold + switches + speeds.products(degree, before, rotations.products)
    babies = rotations.grid - (rotations.base == 0)
    decomposed, met = speeds.decomposed(degree, before), speeds.met(degree, before)
    brought = speeds.divided(degree, before) / 2  # of the one polynomial whose digits come next
    inner = max(rotations.origins - 1, 0)  # babies that others come from
    rotated = rotations.origins * decomposed + inner * brought + babies * met
    horner = (giants - 1) * (decomposed + brought + met)
    weights = speeds.products(degree, before + 1, rotations.products)  # modulo the special prime, too
    return sums + keys + fold + rotated + horner + weights + 2 * brought


def summed(speeds: Speeds, degree: int, count: int, limbs: int) -> float:
    """Return the milliseconds of adding up `count` rotations of a ciphertext, itself among them."""
    if not speeds.hoists:
        return (count - 1) * speeds.switch(degree, limbs)
    each = speeds.met(degree, limbs) + speeds.key_read(degree, limbs)
    return speeds.decomposed(degree, limbs) + (count - 1) * each + speeds.divided(degree, limbs) / 2


# --- forms of the same rotations --------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 14)
def tuned(speeds: Speeds, degree: int, rotations: Rotations, limbs: tuple[int, int]) -> tuple[float, Rotations]:
    """Return the cheapest form of `rotations`, and its price: milliseconds, and what its keys are worth."""
    if not speeds.hoists:
        return _price(speeds, degree, rotations, limbs), rotations
    shorter = msgspec.structs.replace(rotations, sums=_gathered(speeds, degree, rotations.sums, limbs[1]))
    forms = [msgspec.structs.replace(shorter, babies=axes, hoisted=count) for axes, count in _hoisted(rotations.babies)]
    return min(((_price(speeds, degree, form, limbs), form) for form in forms), key=lambda pair: pair[0])


def _price(speeds: Speeds, degree: int, rotations: Rotations, limbs: tuple[int, int]) -> float:
    before, after = limbs
    size = _first_keys(rotations) * key_bytes(degree, before) + len(rotations.sum_keys) * key_bytes(degree, after)
    return mapped(speeds, degree, rotations, limbs) + size * speeds.key_ms_per_byte


@lru_cache(maxsize=1 << 14)
def _first_keys(rotations: Rotations) -> int:
    """Return how many keys babies and giants take: the planner asks for the same ones at every level."""
    return len(rotations.first_keys)


def key_bytes(degree: int, limbs: int) -> int:
    """Return the bytes of a key, or of the part of it that a level with `limbs` primes reads."""
    return 16 * degree * limbs * (limbs + 1)


def _hoisted(babies: tuple[Axis, ...]) -> Iterator[tuple[tuple[Axis, ...], int]]:
    """Yield babies with their hoisted axes, the first axis also as two: fewer keys, more decompositions."""
    for hoisted in range(len(babies) + 1):
        yield babies, hoisted
    if babies:
        (count, step), *rest = babies
        for inner in range(2, count // 2 + 1):
            if count % inner == 0:
                axes = ((count // inner, inner * step), (inner, step), *rest)
                yield axes, len(axes)
                yield axes, len(axes) - 1


def _gathered(speeds: Speeds, degree: int, sums: tuple[Axis, ...], limbs: int) -> tuple[Axis, ...]:
    """Return sums two by two, at doubling distances, as sums of more parts at once where that is cheaper."""
    place = 0
    found: list[Axis] = []
    for size in _sizes(speeds, degree, len(sums), limbs):
        found.append((1 << size, sums[place][1]))
        place += size
    return tuple(found)


@lru_cache(maxsize=4096)
def _sizes(speeds: Speeds, degree: int, doublings: int, limbs: int) -> tuple[int, ...]:
    """Return the cheapest way to share `doublings` among sums, as log2 of each sum's parts."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for total in range(1, doublings + 1):
        options: list[tuple[float, tuple[int, ...]]] = []
        for size in range(1, min(total, _LARGEST_SUM) + 1):
            keys = ((1 << size) - 1) * key_bytes(degree, limbs) * speeds.key_ms_per_byte
            before, sizes = best[total - size]
            options.append((before + summed(speeds, degree, 1 << size, limbs) + keys, (*sizes, size)))
        best.append(min(options))
    return best[doublings][1]
