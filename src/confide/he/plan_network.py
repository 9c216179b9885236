"""The plan of a network under CKKS: how the client packs its input, stages, levels; frozen, serialisable, public."""

from __future__ import annotations

from confide.errors import ProtocolError
from confide.he.layouts import Entry
from confide.he.packing import Packing
from confide.he.plan_staged import StagedPlan
from confide.he.stages import Mapped, check_packed


class NetworkPlan(StagedPlan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="network", dict=True):
    """A network as stages over slots, one row in one ciphertext.

    Args:
        entry: how the client fills the slots.
    """

    entry: Entry

    @property
    def features(self) -> int:
        """Return the columns of x."""
        return self.entry.features

    @property
    def packed(self) -> Packing:
        """Return where the outputs stand in a reply."""
        packed = self.registers[-1].packed
        assert packed is not None
        return packed

    @property
    def reply_period(self) -> int:
        """Return the slots after which outputs repeat in a reply; 0 where the client owns the weights."""
        owned = any(isinstance(stage, Mapped) and stage.encrypted for stage in self.stages)
        return 0 if owned else self.packed.period

    @property
    def outputs(self) -> int:
        """Return the columns of y."""
        return self.packed.size

    def queries(self, rows: int) -> int:
        """Return the ciphertexts of a question."""
        return rows

    def replies(self, rows: int) -> int:
        """Return the ciphertexts of a reply."""
        return rows

    @property
    def rotations(self) -> int:
        """Return the rotations of a prediction."""
        found = 0
        for stage in self.stages:
            if isinstance(stage, Mapped):
                rotations = stage.layout.rotations
                found += rotations.before + rotations.after + stage.conjugate
        return found

    def checked(self, *, encrypted: bool = False) -> NetworkPlan:
        """Return self if it is a plan of ours; a stranger may have sent it. Raises ProtocolError if not.

        Args:
            encrypted: whether the weights of all maps must be encrypted, or of none.
        """
        if any(isinstance(stage, Mapped) and stage.encrypted != encrypted for stage in self.stages):
            raise ProtocolError(f"Expected weights {'encrypted' if encrypted else 'at the server'}")
        self.parameters.checked()
        check_packed(self.parameters, self.entry, self.stages)
        self.check_levels()
        if self.registers[-1].packed is None:
            raise ProtocolError("Expected outputs that stand in slots")
        if not encrypted and self.packed.period * self.packed.copies != self.slots:
            raise ProtocolError("Expected outputs that repeat over all slots")
        return self

    def __str__(self) -> str:
        keys = f"{len(self.needs.steps) + self.needs.relinearisation} evaluation keys"
        keys = f"{keys} of {self.key_bytes / 1e6:.0f} MB"
        return f"{self.parameters}; scale {self.scale_bits} bits; {self.rotations} rotations, {keys}"
