"""What attacks find in a comparison: each training technique beside the same training without any protection.

Every aggregator that opens the exact sum leads to one model, so its membership is attacked once, under "plain"; what
the aggregator itself sees is attacked under each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from confide.compare.audit import Settings, Variant, attack_inversion, attack_membership
from confide.compare.findings import Finding
from confide.compare.shadows import opens_exact_sums
from confide.crypto.random import Randomness
from confide.errors import UsageError
from confide.train.run import Prepared
from confide.train.sections import Job

#: Without any protection: what all others stand beside.
BARE = "plain"

#: Of one party, of all records in one place, and on shares, where no sum of updates is taken.
NOT_ATTACKED: tuple[str, ...] = ("local", "pooled", "mpc")

#: Of one record at each party: the worst case.
_WORST = "1 record each"


class Attacked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one attack found under one technique.

    Args:
        choice: the technique; `BARE` stands for all that open the exact sum.
        attack: "membership", "one-run epsilon" or "inversion".
        figures: by name with the unit at its end: the value, and the ends of its interval at 95 %.
        headline: the figure that a table shows, in words.
        sentence: what it means.
        found: whether the attack found what the protection should hide.
        allowed: whether it found something, and no more than the label states.
    """

    choice: str
    attack: str
    figures: dict[str, tuple[float, float, float]]
    headline: str
    sentence: str
    found: bool
    allowed: bool

    @property
    def verdict(self) -> str:
        """Return the finding in a word or two."""
        return "FOUND" if self.found else "within the label" if self.allowed else "not found"


def choices(trained: Sequence[str], left_out: Sequence[str]) -> tuple[str, ...]:
    """Return which techniques are attacked.

    Args:
        trained: techniques that are compared.
        left_out: those whose training these attacks do not repeat.
    """
    own = [name for name in trained if name not in left_out and name != BARE]
    return (BARE, *own) if trained else ()


def attacked(choice: str, job: Job, data: Prepared, *, shadows: int, rng: Randomness) -> tuple[Attacked, ...]:
    """Attack one technique: the model, unless it is that of `BARE`, and what the aggregator sees.

    Args:
        choice: the technique.
        job: under it.
        data: of the job.
        shadows: models beside the attacked one.
        rng: of coins, keys and noise.

    Raises:
        UsageError: too few records.
    """
    settings, variant = Settings(shadows=shadows, rounds=1), Variant(choice, job)
    found: list[Finding] = []
    if choice == BARE or job.privacy is not None or not opens_exact_sums(job):
        found += [step for step in attack_membership(variant, data, settings, rng) if isinstance(step, Finding)]
    try:
        steps = [step for step in attack_inversion(variant, data, settings, rng) if isinstance(step, Finding)]
    except UsageError:  # trees and sums of moments have no gradients: the page says so
        steps = []
    found += [step for step in steps if _WORST in step.headline]
    return tuple(_told(choice, one) for one in found)


def _told(choice: str, found: Finding) -> Attacked:
    return Attacked(
        choice=choice,
        attack=found.attack,
        figures={name: (one.value, one.low, one.high) for name, one in found.figures.items()},
        headline=found.headline,
        sentence=found.sentence,
        found=found.broken,
        allowed=found.allowed,
    )


def by_technique(
    attacked_ones: Sequence[str], found: Sequence[Attacked]
) -> Mapping[str, Mapping[str, tuple[Attacked, Attacked]]]:
    """Return for each technique and attack what was found without protections, and under the technique.

    Args:
        attacked_ones: techniques whose attacks were run to their end.
        found: by them.
    """
    bare = {one.attack: one for one in found if one.choice == BARE}
    rows: dict[str, dict[str, tuple[Attacked, Attacked]]] = {}
    for choice in attacked_ones:
        own = {one.attack: one for one in found if one.choice == choice}
        rows[choice] = {attack: (before, own.get(attack, before)) for attack, before in bare.items()}
    return rows
