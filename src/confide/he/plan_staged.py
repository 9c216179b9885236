"""What plans under CKKS have in common: stages with levels and scales, room for large values, errors, the reply."""

from __future__ import annotations

import math
from functools import cached_property

import msgspec

from confide.errors import ProtocolError
from confide.he import noise
from confide.he.levels import REPLY_SLACK_BITS, errors, headrooms, reply_limbs
from confide.he.parameters import Parameters
from confide.he.seal import CONJUGATION, Needs
from confide.he.stages import Mapped, Multiplied, Register, Stage, check_stages, trace

#: More room than outputs below 2^512 can need.
MOST_ROOM_BITS = 512.0

_MOST_KEY_BYTES = 1 << 30


class StagedPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """A network as stages over slots.

    Args:
        parameters: CKKS.
        scale_bits: inputs are encrypted at scale 2^scale_bits.
        input_bound: largest absolute value of a feature.
        stages: in order; the last one's register is the reply.
        room_bits: bits kept free above typical values, at most.
        certified: whether no input in the box makes a value exceed them; otherwise such an input gets a wrong answer.
        sigmoid: whether the client applies a sigmoid to what it decrypts.
        protected: whether replies are re-randomised and flooded.
    """

    parameters: Parameters
    scale_bits: int
    input_bound: float
    stages: tuple[Stage, ...]
    room_bits: float
    sigmoid: bool
    protected: bool
    certified: bool = False

    @property
    def slots(self) -> int:
        """Return the slots of a ciphertext."""
        return self.parameters.degree // 2

    @cached_property
    def registers(self) -> list[Register]:
        """Return the level and the scale of each register."""
        return trace(self.parameters, self.scale_bits, self.stages)

    @cached_property
    def rooms(self) -> list[float]:
        """Return the bits above 1 that each register's largest value may have."""
        return headrooms(self.stages, self.room_bits)

    @cached_property
    def reply_limbs(self) -> int:
        """Return the primes of a reply."""
        return reply_limbs(self.parameters, self.registers[-1], self.rooms[-1])

    @property
    def reply_period(self) -> int:
        """Return the slots after which results repeat in a reply (`traces`); 0 where all slots are one's own."""
        return 0

    @property
    def reply_scale(self) -> float:
        """Return the scale of a reply."""
        return self.registers[-1].scale

    @property
    def estimated_error(self) -> float:
        """Return the deviation that is expected of an output's error, where typical outputs are 1."""
        return errors(self.parameters, self.scale_bits, self.stages)[-1]

    @property
    def least_error(self) -> float:
        """Return what every honest bound of an output's error is above, in units: the client knows it from the plan."""
        return noise.TAIL * self.estimated_error

    @property
    def flooding(self) -> float:
        """Return B: a protected reply gets uniform noise in [-B, B] on each output, the same in all copies, as
        large as the error that is expected: what a reply's error says of the weights is hidden in as much again, no
        more.
        """
        return math.sqrt(3.0) * self.estimated_error if self.protected else 0.0

    @cached_property
    def needs(self) -> Needs:
        """Return the public keys that the server needs."""
        levels: dict[int, int] = {}
        for stage, after in zip(self.stages, self.registers[1:], strict=True):
            if isinstance(stage, Mapped):
                rotations, before = stage.layout.rotations, self.registers[stage.source].limbs
                for step in rotations.first_keys:
                    levels[step % self.slots] = max(before, levels.get(step % self.slots, 0))
                for step in (*rotations.sum_keys, *[CONJUGATION] * stage.conjugate):
                    levels[step % self.slots] = max(after.limbs, levels.get(step % self.slots, 0))
        steps = tuple(sorted(levels))
        return Needs(
            encryption=self.protected,
            relinearisation=any(
                isinstance(s, Multiplied) or (isinstance(s, Mapped) and s.encrypted) for s in self.stages
            ),
            steps=steps,
            limbs=tuple(levels[step] for step in steps),
        )

    @property
    def key_bytes(self) -> int:
        """Return the bytes of the evaluation keys, of each as much as is used, in whole words."""
        digits = len(self.parameters.data_primes)
        used = [*self.needs.limbs, *[digits] * self.needs.relinearisation]
        return sum(16 * self.parameters.degree * limbs * (limbs + 1) for limbs in used)

    def check_levels(self) -> None:
        """Check numbers, levels and scales of what a stranger sent. Raises ProtocolError if they are not ours."""
        self.parameters.checked()
        if self.parameters.scheme != "ckks" or self.parameters.degree < 1 << 12:
            raise ProtocolError("Expected CKKS parameters")
        if not (10 <= self.scale_bits <= 58 and 0 < self.input_bound < math.inf):
            raise ProtocolError("Expected a scale and an input box in use")
        check_stages(self.parameters, self.scale_bits, self.stages)
        if not 0 < self.room_bits <= MOST_ROOM_BITS:
            raise ProtocolError("Expected room in use")
        last = self.registers[-1]
        bits = math.log2(math.prod(self.parameters.data_primes[: last.limbs]))
        if math.log2(last.scale) + self.rooms[-1] + REPLY_SLACK_BITS > bits:
            raise ProtocolError("Expected room for the outputs")
        if self.key_bytes > _MOST_KEY_BYTES:
            raise ProtocolError(f"Expected evaluation keys of at most {_MOST_KEY_BYTES} bytes")
