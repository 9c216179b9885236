"""The steps of an encrypted computation, as data: what an engine executes, one after the other.

Stage j reads registers and writes register j + 1; register 0 is the query. A register holds one ciphertext, or, in a
batch, one for each of its numbers. Each stage says how many primes it divides by (`drops`), so that the level and the
scale of every register follow from the plan alone (`trace`), and weights are encoded at the level that they meet.

    level   primes that are left
    scale   what 1 is represented by; it grows with every product and shrinks with every division by a prime
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from confide.errors import ProtocolError
from confide.he.layouts import Entry, Layout
from confide.he.packing import Packing
from confide.he.parameters import Parameters
from confide.he.shapes import Convolution, Dense

_MOST_BITS = 60
_MOST_SOURCES = 16


class Mapped(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="linear"):
    """y = W x + b: rotations and products (`packing`), the division, sums, and the bias.

    Args:
        source: register of x.
        shape: of W.
        layout: rotations, and where y stands.
        weight_bits: weights are encoded at scale 2^weight_bits.
        drops: primes divided by, before the sums.
        conjugate: whether the real part is taken at the end: x came in both halves of complex slots.
        encrypted: whether W and b are encryptions, for a server that must not see them (`outsourced`).
    """

    source: int
    shape: Dense | Convolution
    layout: Layout
    weight_bits: int
    drops: int
    conjugate: bool = False
    encrypted: bool = False

    @property
    def sources(self) -> tuple[int, ...]:
        """Return the registers that are read."""
        return (self.source,)


class Summed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sum"):
    """y = W x + b in a batch, where every number has a ciphertext of its own: sums of ciphertexts times integers.

    Args:
        source: register of x.
        shape: of W.
        weight_bits: weights are rounded to multiples of 2^-weight_bits.
        drops: primes divided by.
    """

    source: int
    shape: Dense | Convolution
    weight_bits: int
    drops: int

    @property
    def sources(self) -> tuple[int, ...]:
        """Return the registers that are read."""
        return (self.source,)


class Multiplied(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="product"):
    """y = a · b in every slot, relinearised; a square if both are one.

    Args:
        left, right: registers.
        drops: primes divided by.
    """

    left: int
    right: int
    drops: int

    @property
    def sources(self) -> tuple[int, ...]:
        """Return the registers that are read."""
        return (self.left, self.right)


class Combined(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="combination"):
    """y = Σ c_j x_j + c in every slot, with private constants; brings registers of any level and scale together.

    Args:
        terms: registers, packed alike.
        weight_bits: the constants are encoded at scale 2^weight_bits or more.
        drops: primes divided by.
    """

    terms: tuple[int, ...]
    weight_bits: int
    drops: int

    @property
    def sources(self) -> tuple[int, ...]:
        """Return the registers that are read."""
        return self.terms


Stage = Mapped | Summed | Multiplied | Combined


@dataclass(frozen=True, slots=True)
class Register:
    """The level of a ciphertext, its scale, and where its numbers stand (`None`: as the entry says).

    Args:
        limbs: primes that are left.
        scale: what 1 is represented by.
        packed: places of its numbers; none in a batch.
    """

    limbs: int
    scale: float
    packed: Packing | None


def trace(parameters: Parameters, scale_bits: int, stages: Sequence[Stage]) -> list[Register]:
    """Return every register of a computation, the query first.

    Raises:
        ProtocolError: stages that read what is not there, that run out of primes, or that do not fit each other.
    """
    registers = [Register(len(parameters.data_primes), 2.0**scale_bits, None)]
    for stage in stages:
        if any(not 0 <= source < len(registers) for source in stage.sources):
            raise ProtocolError("Expected stages that read earlier ones")
        read = [registers[source] for source in stage.sources]
        limbs, packed = min(register.limbs for register in read), read[0].packed
        if any(register.packed != packed for register in read):
            raise ProtocolError("Expected stages that bring together what is packed alike")
        scale = product_scale(stage, read)
        if isinstance(stage, Mapped):
            packed = stage.layout.packed
        if not 0 <= stage.drops < limbs:
            raise ProtocolError("Expected enough primes for every stage")
        for place in range(stage.drops):
            scale /= parameters.data_primes[limbs - 1 - place]
        registers.append(Register(limbs - stage.drops, scale, packed))
    return registers


def product_scale(stage: Stage, read: Sequence[Register]) -> float:
    """Return the scale of a stage's product, before it is divided."""
    match stage:
        case Mapped() | Summed():
            return read[0].scale * 2.0**stage.weight_bits
        case Multiplied():
            return read[0].scale * read[1].scale
        case Combined():
            return max(register.scale for register in read) * 2.0**stage.weight_bits


def check_packed(parameters: Parameters, entry: Entry, stages: Sequence[Stage]) -> None:
    """Check the places of what a stranger sent, one row in a ciphertext. Raises ProtocolError if they do not fit."""
    slots = parameters.degree // 2
    entry.checked(slots)
    if not stages or not isinstance(stages[0], Mapped):
        raise ProtocolError("Expected a linear map as the first stage")
    for number, stage in enumerate(stages):
        if isinstance(stage, Summed):
            raise ProtocolError("Expected no stages of a batch")
        if isinstance(stage, Mapped):
            stage.shape.checked()
            stage.layout.packed.checked(slots)
            stage.layout.rotations.checked(slots)
            if stage.layout.packed.size != stage.shape.outputs or bool(number) != bool(stage.source):
                raise ProtocolError("Expected layouts of their maps, and one map of the query")
            _check_halves(entry, stage)


def _check_halves(entry: Entry, stage: Mapped) -> None:
    """Refuse a real part of what is real, or none of what is not."""
    fold = stage.layout.rotations.fold
    complex_slots = bool(fold) if stage.source else entry.halves == 2
    if stage.conjugate != complex_slots or (fold and not stage.source):
        raise ProtocolError("Expected the real part of a map whose input uses both halves of slots, and of no other")


def sizes(features: int, stages: Sequence[Stage]) -> list[int]:
    """Return how many ciphertexts each register of a batch is, the query first.

    Raises:
        ProtocolError: stages that do not fit each other, or none of a batch.
    """
    found = [features]
    for stage in stages:
        if any(not 0 <= source < len(found) for source in stage.sources):
            raise ProtocolError("Expected stages that read earlier ones")
        read = {found[source] for source in stage.sources}
        inputs, outputs = next(iter(read), 0), next(iter(read), 0)
        if isinstance(stage, Summed):
            inputs, outputs = stage.shape.inputs, stage.shape.outputs
        if isinstance(stage, Mapped) or read != {inputs}:
            raise ProtocolError("Expected stages of a batch that fit each other")
        found.append(outputs)
    return found


def check_stages(parameters: Parameters, scale_bits: int, stages: Sequence[Stage]) -> None:
    """Check levels and scales of what a stranger sent. Raises ProtocolError if no engine can execute them."""
    if not 1 <= len(stages) <= 1024:
        raise ProtocolError("Expected stages")
    for stage in stages:
        if isinstance(stage, Mapped | Summed):
            stage.shape.checked()
        if isinstance(stage, Combined) and not 1 <= len(stage.terms) <= _MOST_SOURCES:
            raise ProtocolError("Expected combinations of few registers")
        if not isinstance(stage, Multiplied) and not 1 <= stage.weight_bits <= _MOST_BITS:
            raise ProtocolError("Expected weights at a scale in use")
    for register in trace(parameters, scale_bits, stages):
        bits = math.log2(math.prod(parameters.data_primes[: register.limbs]))
        if not 1 <= math.log2(register.scale) < bits:
            raise ProtocolError("Expected scales within the modulus")
