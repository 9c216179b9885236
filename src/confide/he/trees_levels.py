"""How "no condition of this leaf is broken" is computed from their number, and what each step does to scale and error.

A leaf of depth d or less is reached if S, the number of its conditions that a row breaks, is 0. With h = (d + 1) / 2
and r = S / h - 1 in [-1, 1]:

    f(S) = Π_k (1 - S / k), k = 1 ... d         1 at S = 0, and 0 at S = 1 ... d
         = F · Π_k (r - r_k)                    r_k = k / h - 1, which come in pairs ±r_k, and 0 if d is odd
         = F · [r] · Π_j (r² - r_j²)            F = Π_k 1 / (-1 - r_k)

so one square serves all factors. Factors are multiplied in pairs, smallest scale first. A product is divided by the
last prime as soon as enough of its scale is left; until then products pile up, so that a prime of 60 bits serves two
levels ("level packing"): the time of a key switch grows with the square of the number of primes, not with their bits.

The steps are written once, over `Steps`: the planner runs them on `Level`s alone, an engine on ciphertexts as well, so
the two cannot disagree. Nothing here depends on a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from confide.he import noise

_LEAST_REPLY_BITS = 28  # what the divisions before the reply must leave of the scale
_MARGIN_BITS = 2  # between the largest value, times the scale, and half of the modulus


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a ciphertext without its key; values in its slots are at most 1, but for leaf values.

    Args:
        limbs: primes that it has left.
        scale: of its slots.
        error: bound of the error in a slot, in parts of a leaf value where those are in it.
        added: bound of the error beside that, where leaf values are in it; None where not.
    """

    limbs: int
    scale: float
    error: float
    added: float | None = None

    def noisier(self, more: float) -> Level:
        """Return the level with so much more error, whatever the slot holds."""
        error, added = (self.error + more, None) if self.added is None else (self.error, self.added + more)
        return Level(limbs=self.limbs, scale=self.scale, error=error, added=added)


_Value = TypeVar("_Value")


class Steps(Protocol[_Value]):
    """What an engine does; every result is divided by as many primes as `Chain.settled` says."""

    def square(self, value: _Value) -> _Value: ...
    def product(self, one: _Value, other: _Value) -> _Value: ...
    def minus(self, value: _Value, constant: float) -> _Value: ...
    def times_leaves(self, value: _Value) -> _Value: ...
    def level(self, value: _Value) -> Level: ...


def leaf_factor(depth: int) -> float:
    """Return F."""
    half = (depth + 1) / 2
    return math.prod(-half / k for k in range(1, depth + 1))


def reached(steps: Steps[_Value], broken: _Value, depth: int) -> _Value:
    """Return each leaf's value times f(S) / F.

    Args:
        steps: the engine's.
        broken: r = S / h - 1 in every slot.
        depth: d, from 1 to 8.
    """
    half = (depth + 1) / 2
    roots = [(k / half - 1) ** 2 for k in range(1, depth // 2 + 1)]
    factors = [steps.times_leaves(broken)] if depth % 2 else []
    if roots:
        squared = steps.square(broken)
        factors += [steps.minus(squared, root) for root in roots]
        if not depth % 2:
            factors[0] = steps.times_leaves(factors[0])
    while len(factors) > 1:
        factors.sort(key=lambda factor: (-steps.level(factor).limbs, steps.level(factor).scale))
        factors = [*factors[2:], steps.product(factors[0], factors[1])]
    return factors[0]


class NoRoom(Exception):
    """The modulus is too small for a product."""


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """The primes and what products, divisions and key switches by them cost in error; `Steps` on levels alone.

    Args:
        degree: N.
        primes: data primes, as numbers.
        special: the special prime.
        leaf_scale: scale of leaf values.
        least_scale: what a division must leave of the scale.
    """

    degree: int
    primes: tuple[float, ...]
    special: float
    leaf_scale: float
    least_scale: float

    @property
    def encoding(self) -> float:
        """Return the error in a slot of an encoding, times its scale."""
        return noise.encoding_bound(self.degree)

    @property
    def rounding(self) -> float:
        """Return the error in a slot after a division, times the scale."""
        return noise.rounding_bound(self.degree)

    def switching(self, limbs: int) -> float:
        """Return the error in a slot after a key switch, times the scale."""
        return noise.switching_bound(self.degree, self.primes[:limbs], self.special)

    def settled(self, level: Level) -> Level:
        """Return the level after all divisions that leave enough scale. Raises NoRoom if a value does not fit."""
        if math.log2(level.scale) + _MARGIN_BITS >= sum(map(math.log2, self.primes[: level.limbs])):
            raise NoRoom
        return self._divided(level, self.least_scale)

    def divided(self, level: Level) -> Level:
        """Return the level after the divisions before the reply."""
        return self._divided(level, 2.0**_LEAST_REPLY_BITS)

    def finished(self, level: Level) -> Level:
        """Return the level of the reply: one prime. Raises NoRoom if a value does not fit."""
        level = self.divided(level)
        if math.log2(level.scale) + _MARGIN_BITS >= math.log2(self.primes[0]):
            raise NoRoom
        return Level(limbs=1, scale=level.scale, error=level.error, added=level.added)

    def _divided(self, level: Level, least: float) -> Level:
        while level.limbs > 1 and level.scale / self.primes[level.limbs - 1] >= least:
            scale = level.scale / self.primes[level.limbs - 1]
            level = Level(limbs=level.limbs - 1, scale=scale, error=level.error, added=level.added)
            level = level.noisier(self.rounding / scale)
        return level

    def square(self, value: Level) -> Level:
        """Return the level of value²."""
        return self.product(value, value)

    def product(self, one: Level, other: Level) -> Level:
        """Return the level of the product of two values, relinearised."""
        limbs, scale = min(one.limbs, other.limbs), one.scale * other.scale
        error = one.error + other.error + one.error * other.error
        found = [level.added for level in (one, other) if level.added is not None]
        added = sum(found) * (1 + error) if found else None
        level = Level(limbs=limbs, scale=scale, error=error, added=added)
        return self.settled(level.noisier(self.switching(limbs) / scale))

    def minus(self, value: Level, constant: float) -> Level:
        """Return the level of value - constant; both lie in [0, 1]."""
        return value.noisier(self.encoding / value.scale)

    def times_leaves(self, value: Level) -> Level:
        """Return the level of the product with leaf values; their own encoding counts where they are summed."""
        scale = value.scale * self.leaf_scale
        return self.settled(Level(limbs=value.limbs, scale=scale, error=value.error, added=0.0))

    def level(self, value: Level) -> Level:
        """Return it."""
        return value


def total(errors: Sequence[float]) -> float:
    """Return the bound of a sum of independent errors, each bounded at the same number of standard deviations."""
    return math.sqrt(math.fsum(error * error for error in errors))
