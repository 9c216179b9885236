"""What an engine does, written down once as a program for `confide._native.ckks`: `Arithmetic` that executes nothing.

Which instructions there are depends on the plan alone. Results of key switches stay in extended form (times the special
prime) until something else than a division or a fold reads them, so one division takes the rescaling with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from confide.he.arithmetic import Baby, Slots
from confide.he.packing import imaginary
from confide.he.parameters import Parameters
from confide.he.seal import CONJUGATION
from confide.he.slots import coefficients


class Recorded:
    """A ciphertext of a program: its register, and what is known of it.

    Args:
        register: its place in the program.
        limbs: primes that it has, after the divisions that are due.
        scale: what 1 is represented by.
        extended: whether the register holds it times the special prime.
        drops: divisions by its last primes that are due.
    """

    __slots__ = ("drops", "extended", "limbs", "register", "scale")

    def __init__(self, register: int, limbs: int, scale: float, *, extended: bool = False) -> None:
        self.register, self.limbs, self.scale, self.extended, self.drops = register, limbs, scale, extended, 0


class RecordedPlain:
    """A plaintext of a program."""

    __slots__ = ("limbs", "place", "scale")

    def __init__(self, place: int, limbs: int, scale: float) -> None:
        self.place, self.limbs, self.scale = place, limbs, scale


class Recorder:
    """`Arithmetic` that makes a program.

    Args:
        program: `confide._native.ckks.Program`.
        parameters: its parameters.
    """

    def __init__(self, program: Any, parameters: Parameters) -> None:
        self.program = program
        self._degree = parameters.degree

    def element(self, step: int) -> int:
        """Return the Galois element of a rotation to the left, or of `CONJUGATION`."""
        return galois_element(step, self._degree)

    def input(self, *, limbs: int, scale: float) -> Recorded:
        """Return a ciphertext that comes from outside; all of them come before any operation."""
        return Recorded(self.program.input(limbs), limbs, scale)

    def finish(self, ciphers: Sequence[Recorded], *, limbs: int) -> None:
        """End the program: these are its results, at so many primes."""
        for cipher in ciphers:
            self._settle(cipher)
        self.program.finish([cipher.register for cipher in ciphers], [limbs] * len(ciphers))

    # --- plaintexts ---------------------------------------------------------------------------------------------------

    def encode(self, slots: Slots, *, limbs: int, scale: float) -> RecordedPlain:
        found, shift = coefficients(slots, scale, self._degree)
        return RecordedPlain(self.program.plain(found, shift, limbs, False), limbs, scale)

    def weight(self, slots: Slots, *, limbs: int, scale: float) -> RecordedPlain:
        found, shift = coefficients(slots, scale, self._degree)
        if not found.any():
            found = np.zeros(self._degree, np.int64)
            found[0] = 1
        return RecordedPlain(self.program.plain(found, shift, limbs, True), limbs, scale)

    # --- ciphertexts --------------------------------------------------------------------------------------------------

    def add(self, cipher: Recorded, other: Recorded) -> None:
        self._settle(cipher)
        self._settle(other)
        cipher.register = self.program.add(cipher.register, other.register, cipher.limbs)

    def plus_plain(self, cipher: Recorded, plain: RecordedPlain) -> Recorded:
        self._settle(cipher)
        register = self.program.add_plain(cipher.register, cipher.limbs, plain.place)
        return Recorded(register, cipher.limbs, cipher.scale)

    def inner(
        self, ciphers: Sequence[Recorded], plains: Sequence[RecordedPlain], *, scale: float | None = None
    ) -> Recorded:
        for cipher in ciphers:
            self._settle(cipher)
        limbs = ciphers[0].limbs
        registers, places = [cipher.register for cipher in ciphers], [plain.place for plain in plains]
        made = self.program.combine(registers, limbs, places)
        return Recorded(made, limbs, ciphers[0].scale * plains[0].scale if scale is None else scale)

    def times(self, cipher: Recorded, other: Recorded) -> Recorded:
        self._settle(cipher)
        self._settle(other)
        register = self.program.product(cipher.register, other.register, cipher.limbs)
        return Recorded(register, cipher.limbs, cipher.scale * other.scale, extended=True)

    def switch(self, cipher: Recorded, *, limbs: int) -> Recorded:
        if cipher.limbs == limbs:
            return cipher
        self._settle(cipher)
        return Recorded(cipher.register, limbs, cipher.scale)  # reads fewer primes of the same register

    def divide(self, cipher: Recorded, drops: int, *, scale: float) -> None:
        cipher.drops += drops
        cipher.limbs -= drops
        cipher.scale = scale

    def fold(self, cipher: Recorded, groups: Sequence[Sequence[int]]) -> None:
        if not groups:
            return
        if cipher.drops:
            self._settle(cipher)
        elements = [[self.element(step) for step in steps] for steps in groups]
        cipher.register = self.program.fold(cipher.register, cipher.limbs, elements)
        cipher.extended = True

    def joined(self, cipher: Recorded, step: int) -> Recorded:
        self._settle(cipher)
        units = self.encode(imaginary(self._degree // 2), limbs=cipher.limbs, scale=1.0)
        rotated = self.program.rotate(cipher.register, cipher.limbs, self.element(step))
        rotated = self.program.divide(rotated, cipher.limbs, 0)
        half = self.program.combine([rotated], cipher.limbs, [units.place])
        return Recorded(self.program.add(cipher.register, half, cipher.limbs), cipher.limbs, cipher.scale)

    def transform(
        self,
        ciphers: Sequence[Recorded],
        babies: Sequence[Baby],
        giants: Sequence[Sequence[tuple[int, RecordedPlain]]],
        giant_step: int,
    ) -> Recorded:
        for cipher in ciphers:
            self._settle(cipher)
        limbs = ciphers[0].limbs
        weights = [[(baby, plain.place) for baby, plain in giant] for giant in giants]
        moved = [(parent, self.element(step) if step else 1) for parent, step in babies]
        element = self.element(giant_step) if len(giants) > 1 else 1
        register = self.program.transform([cipher.register for cipher in ciphers], limbs, moved, weights, element)
        scale = ciphers[0].scale * next(plain.scale for giant in giants for _, plain in giant)
        return Recorded(register, limbs, scale, extended=True)

    def _settle(self, cipher: Recorded) -> None:
        """Do the divisions that are due."""
        if cipher.extended or cipher.drops:
            before = cipher.limbs + cipher.drops
            cipher.register = self.program.divide(cipher.register, before, cipher.drops)
            cipher.extended, cipher.drops = False, 0


def galois_element(step: int, degree: int) -> int:
    """Return the exponent of the automorphism that rotates by `step` slots to the left, or that conjugates."""
    return 2 * degree - 1 if step == CONJUGATION else pow(3, step, 2 * degree)
