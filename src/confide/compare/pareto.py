"""Which techniques are beaten in everything: the Pareto front of privacy, accuracy, latency and cost.

Privacy is no number here. One record is at least as private as another if its guarantee implies every claim of the
other, against no weaker an adversary, on no weaker a ground, with no larger an epsilon; many pairs are incomparable,
and then neither beats the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from confide.compare.record import Record
from confide.guarantee import Adversary, Claim, Guarantee, Trust

_ADVERSARIES = (Adversary.NONE, Adversary.SEMI_HONEST, Adversary.MALICIOUS)
_GROUNDS = (Trust.NOBODY, Trust.OPERATOR, Trust.HARDWARE, Trust.NON_COLLUSION, Trust.CRYPTOGRAPHY)


def as_private(one: Record, other: Record) -> bool:
    """Return whether `one` protects everything that `other` protects, as well or better."""
    budget, other_budget = one.figure("epsilon_total"), other.figure("epsilon_total")
    if other_budget is not None and (budget is None or budget > other_budget):
        return False
    return _implies(one.guarantee, other.guarantee)


def _implies(one: Guarantee, other: Guarantee) -> bool:
    if not other.claims:
        return True
    if _ADVERSARIES.index(one.adversary) < _ADVERSARIES.index(other.adversary):
        return False
    # with claims, to trust nobody is the strongest ground: they hold unconditionally
    if one.trust is not Trust.NOBODY and _GROUNDS.index(one.trust) < _GROUNDS.index(other.trust):
        return False
    return all(any(_covers(mine, claim) for mine in one.claims) for claim in other.claims)


def _covers(mine: Claim, claim: Claim) -> bool:
    same = (mine.asset, mine.hidden_from) == (claim.asset, claim.hidden_from)
    return same and set(mine.if_honest) <= set(claim.if_honest)


def beats(one: Record, other: Record, axes: Mapping[str, bool]) -> bool:
    """Return whether `one` is at least as good in privacy and every figure, and better in something.

    Args:
        one, other: of the same phase.
        axes: figure names; True where more is better. A figure that a record lacks counts as its worst.
    """
    if not as_private(one, other):
        return False
    better = not as_private(other, one)
    for figure, more in axes.items():
        mine, theirs = (_signed(record.figure(figure), more) for record in (one, other))
        if mine < theirs:
            return False
        better = better or mine > theirs
    return better


def _signed(value: float | None, more: bool) -> float:
    if value is None:
        return float("-inf")
    return value if more else -value


def front(records: Sequence[Record], axes: Mapping[str, bool]) -> dict[str, str | None]:
    """Return for each technique who beats it, None for those on the front.

    Args:
        records: of one phase, one for each technique.
        axes: as in `beats`.
    """
    return {
        record.choice: next((other.choice for other in records if beats(other, record, axes)), None)
        for record in records
    }
