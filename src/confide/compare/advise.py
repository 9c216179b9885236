"""Which technique to take: the cheapest measured one whose claims cover what must be hidden, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from confide.compare.record import Record


@dataclass(frozen=True, slots=True)
class Need:
    """`asset` must stay hidden from `hidden_from`, because of `why`."""

    asset: str
    hidden_from: str
    why: str


@dataclass(frozen=True, slots=True)
class Advice:
    """A recommendation.

    Args:
        task: "training" or "inference".
        choice: the technique to take, or None if nothing measured covers the needs.
        reasons: why this one.
        refused: every other measured technique with the reason against it.
    """

    task: str
    choice: str | None
    reasons: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


def advise(
    records: Sequence[Record],
    needs: Sequence[Need],
    *,
    cost: str,
    least: tuple[str, float] | None = None,
    absent: Mapping[str, str] = MappingProxyType({}),
) -> Advice:
    """Return the cheapest record that covers every need.

    Args:
        records: measured rows of one task, at least one.
        needs: what must be hidden; an empty list means that nothing must be.
        cost: the figure to minimise ("latency_seconds").
        least: (figure, smallest median) that a choice must reach, such as ("accuracy_share", 0.9).
        absent: roles that nobody can take here ("helper"), with the reason; a choice whose claims rest on one is out.
    """
    task = records[0].task
    fitting: list[Record] = []
    refused: list[tuple[str, str]] = []
    for record in records:
        missing = [need for need in needs if not record.guarantee.hides(need.asset, need.hidden_from)]
        if missing:
            gap = "; ".join(f"does not hide the {need.asset} from the {need.hidden_from}" for need in missing)
            refused.append((record.choice, gap))
        elif lacking := [why for role, why in absent.items() if _rests_on(record, role)]:
            refused.append((record.choice, "; ".join(lacking)))
        elif least and (record.figure(least[0]) or 0.0) < least[1]:
            refused.append((record.choice, f"{_amount(record, least[0])} is below {least[1]:.3g}"))
        else:
            fitting.append(record)
    if not fitting:
        return Advice(
            task,
            None,
            ("nothing that was measured covers the needs: relax one, or wait for what is not built yet",),
            tuple(refused),
        )
    best = min(fitting, key=lambda record: record.figure(cost) or 0.0)
    refused += [
        (record.choice, f"{_amount(record, cost)} against {_amount(best, cost)}")
        for record in fitting
        if record is not best
    ]
    reasons = [f"hides the {need.asset} from the {need.hidden_from}: {need.why}" for need in needs]
    if not needs:
        reasons.append("none needed: nothing must be hidden from the server, so TLS and access control are enough")
    reasons.append(f"least of the {len(fitting)} that do: {_amount(best, cost)}")
    reasons.append(f"what still leaks: {best.guarantee.leaks}")
    return Advice(task, best.choice, tuple(reasons), tuple(refused))


def _rests_on(record: Record, role: str) -> bool:
    """Return True if some claim holds only while `role` is honest."""
    return any(role in claim.if_honest for claim in record.guarantee.claims)


def _amount(record: Record, name: str) -> str:
    """Return a figure with its name and unit, as people say it."""
    value = record.figure(name) or 0.0
    words, _, unit = name.rpartition("_")
    if unit == "seconds":
        return (
            f"{words.replace('_', ' ')} {value:.2f} s"
            if value >= 1
            else f"{words.replace('_', ' ')} {value * 1e3:.3g} ms"
        )
    return f"{words.replace('_', ' ')} {value:.3g}"
