"""The plan of a network under CKKS: how the client packs its input, stages, levels; frozen, serialisable, public."""

from __future__ import annotations

import math
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.he.layouts import Entry
from confide.he.levels import SLACK_BITS, errors, headrooms, reply_limbs
from confide.he.noise import TAIL
from confide.he.packing import Packing, parts
from confide.he.parameters import Parameters
from confide.he.seal import CONJUGATION, Needs
from confide.he.stages import Mapped, Multiplied, Register, Stage, check_stages, trace

#: More room than outputs below 2^512 can need.
MOST_ROOM_BITS = 512.0

#: Bits that a mask of partial sums has above the largest value, where the last level has room for them.
MASK_BITS = 20.0

_LARGEST_MASK = 2.0**36  # times the flooding: the float64 error of its encoding stays far below that
_MOST_KEY_BYTES = 1 << 30


class NetworkPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="network", dict=True):
    """A network as stages over slots, one row in one ciphertext.

    Args:
        parameters: CKKS.
        scale_bits: inputs are encrypted at scale 2^scale_bits.
        input_bound: largest absolute value of a feature.
        entry: how the client fills the slots.
        stages: in order; the last one's register is the reply.
        room_bits: bits kept free above typical values, at most.
        certified: whether no input in the box makes a value exceed them; otherwise such an input gets a wrong answer.
        sigmoid: whether the client applies a sigmoid to what it decrypts.
        protected: whether replies are masked, re-randomised and flooded.
    """

    parameters: Parameters
    scale_bits: int
    input_bound: float
    entry: Entry
    stages: tuple[Stage, ...]
    room_bits: float
    sigmoid: bool
    protected: bool
    certified: bool = False

    @property
    def slots(self) -> int:
        """Return the slots of a ciphertext."""
        return self.parameters.degree // 2

    @property
    def features(self) -> int:
        """Return the columns of x."""
        return self.entry.features

    @cached_property
    def registers(self) -> list[Register]:
        """Return the level and the scale of each register."""
        return trace(self.parameters, self.scale_bits, self.stages)

    @cached_property
    def rooms(self) -> list[float]:
        """Return the bits above 1 that each register's largest value may have."""
        return headrooms(self.stages, self.room_bits)

    @property
    def packed(self) -> Packing:
        """Return where the outputs stand in a reply."""
        packed = self.registers[-1].packed
        assert packed is not None
        return packed

    @property
    def outputs(self) -> int:
        """Return the columns of y."""
        return self.packed.size

    @cached_property
    def reply_limbs(self) -> int:
        """Return the primes of a reply."""
        bits = MASK_BITS if self.protected and self.leftovers.any() else 0.0
        return reply_limbs(self.parameters, self.registers[-1], self.rooms[-1] + bits)

    @property
    def reply_scale(self) -> float:
        """Return the scale of a reply."""
        return self.registers[-1].scale

    @property
    def estimated_error(self) -> float:
        """Return the deviation that is expected of an output's error, where typical outputs are 1."""
        return errors(self.parameters, self.scale_bits, self.stages)[-1]

    @property
    def flooding(self) -> float:
        """Return B: a protected reply gets uniform noise in [-B, B] on both parts of every slot, as large as the
        error that is expected: what a reply's error says of the weights is hidden in as much again, no more.
        Slots with `leftovers` get the `mask` instead.
        """
        return math.sqrt(3.0) * self.estimated_error if self.protected else 0.0

    @cached_property
    def leftovers(self) -> NDArray[np.bool_]:
        """Return which slots of the last register hold something that is no output: partial sums, shape (slots,)."""
        labels, stage = self.packed.labels(self.slots), self.stages[-1]
        filled = np.ones(self.slots, np.bool_)
        if isinstance(stage, Mapped):
            sums = stage.layout.rotations.sums
            filled = parts(labels, sums) >= 0
            for step in sums:
                filled = filled | np.roll(filled, -step)
        return filled & (labels < 0)

    @cached_property
    def mask(self) -> float:
        """Return M: a protected reply gets uniform noise in [-M, M] on both parts of the slots with `leftovers`.

        As much as the modulus has room for: an encoded coefficient of it is a sum of many independent terms.
        """
        if not self.protected or not self.leftovers.any():
            return 0.0
        bits = math.log2(math.prod(self.parameters.data_primes[: self.reply_limbs]))
        room = 2.0 ** (bits - math.log2(self.reply_scale) - SLACK_BITS) - 2.0 ** self.rooms[-1]
        return min(max(room, 0.0) * math.sqrt(self.parameters.degree) / (2 * TAIL), self.flooding * _LARGEST_MASK)

    @cached_property
    def needs(self) -> Needs:
        """Return the public keys that the server needs."""
        mapped = [stage for stage in self.stages if isinstance(stage, Mapped)]
        steps = {step % self.slots for stage in mapped for step in stage.layout.rotations.keys}
        if any(stage.conjugate for stage in mapped):
            steps.add(CONJUGATION)
        return Needs(
            encryption=self.protected,
            relinearisation=any(isinstance(stage, Multiplied) for stage in self.stages),
            steps=tuple(sorted(steps)),
        )

    @property
    def key_bytes(self) -> int:
        """Return the bytes of the evaluation keys as SEAL has them, uncompressed."""
        digits = len(self.parameters.data_primes)
        keys = len(self.needs.steps) + self.needs.relinearisation
        return keys * 16 * self.parameters.degree * digits * (digits + 1)

    @property
    def rotations(self) -> int:
        """Return the rotations of a prediction."""
        found = 0
        for stage in self.stages:
            if isinstance(stage, Mapped):
                rotations = stage.layout.rotations
                found += rotations.before + len(rotations.sums) + stage.conjugate
        return found

    def checked(self) -> NetworkPlan:
        """Return self if it is a plan of ours; a stranger may have sent it. Raises ProtocolError if not."""
        self.parameters.checked()
        if self.parameters.scheme != "ckks" or self.parameters.degree < 1 << 12:
            raise ProtocolError("Expected CKKS parameters")
        if not (10 <= self.scale_bits <= 58 and 0 < self.input_bound < math.inf):
            raise ProtocolError("Expected a scale and an input box in use")
        check_stages(self.parameters, self.scale_bits, self.entry, self.stages)
        last = self.registers[-1]
        if last.packed is None or not 0 < self.room_bits <= MOST_ROOM_BITS:
            raise ProtocolError("Expected outputs that stand in slots")
        bits = math.log2(math.prod(self.parameters.data_primes[: last.limbs]))
        if math.log2(last.scale) + self.rooms[-1] + SLACK_BITS > bits:
            raise ProtocolError("Expected room for the outputs")
        if self.key_bytes > _MOST_KEY_BYTES:
            raise ProtocolError(f"Expected evaluation keys of at most {_MOST_KEY_BYTES} bytes")
        return self

    def __str__(self) -> str:
        keys = f"{len(self.needs.steps) + self.needs.relinearisation} evaluation keys"
        keys = f"{keys} of {self.key_bytes / 1e6:.0f} MB"
        return f"{self.parameters}; scale {self.scale_bits} bits; {self.rotations} rotations, {keys}"
