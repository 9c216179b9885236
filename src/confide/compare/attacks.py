"""The part of a report that says what attacks found: each technique beside the same training without protections."""

from __future__ import annotations

from confide.compare.audit import NOTES
from confide.compare.audited import BARE, NOT_ATTACKED, Attacked, by_technique, choices
from confide.compare.result import Result
from confide.compare.tables import Table, described

_HEADS = ("technique", "attack", "without protections", "under it", "", "in a sentence")


def attacks(result: Result) -> Table | None:
    """Return what attacks found by technique; None where none was run."""
    if not result.attacks:
        return None
    compared = (record.choice for record in result.records if record.task == "training")
    trained = [name for name in choices(tuple(compared), NOT_ATTACKED) if f"audit/{name}" not in result.unfit]
    rows = [
        (described("training", choice).title, attack, before.headline, after.headline, after.verdict,
         _sentence(choice, before, after))
        for choice, pairs in by_technique(trained, result.attacks).items()
        for attack, (before, after) in pairs.items()
    ]  # fmt: skip
    text = (
        "Membership is measured with shadow models (the likelihood-ratio attack), inversion on one record of each "
        f"party, the worst case; intervals are at 95 %. {NOTES[0]}"
    )
    return Table("What attacks find, before and after", text, _HEADS, tuple(rows))


def _sentence(choice: str, before: Attacked, after: Attacked) -> str:
    said = after.sentence[:1].upper() + after.sentence[1:]
    if choice != BARE and before is after:
        return f"The sum is exact, so the model is that of a plain sum, and tells as much: {after.sentence}"
    return said
