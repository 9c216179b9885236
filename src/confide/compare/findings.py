"""What an attack found, as figures and as one plain sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confide.compare.answers import Answered
from confide.compare.attribute import Attribute
from confide.compare.extraction import Stolen
from confide.compare.inversion import READ_OUT, Inversion
from confide.compare.membership import Membership
from confide.dp.audit import LowerBound
from confide.guarantee import PrivacyLabel, worst_true_positive_rate
from confide.train.figures import Figure


@dataclass(frozen=True, slots=True)
class Finding:
    """One attack under one protection.

    Args:
        attack: its name.
        protection: what stood in its way.
        figures: by name with the unit at its end; each with its interval at 95 %, or with equal ends if nothing blurs
            it.
        headline: the figure that a table shows, in words.
        broken: whether the attack found what the protection should hide.
        sentence: what it means.
        allowed: whether it found something, and no more than the label states.
    """

    attack: str
    protection: str
    figures: Mapping[str, Figure]
    headline: str
    broken: bool
    sentence: str
    allowed: bool = False

    @property
    def verdict(self) -> str:
        """Return the finding in a word or two."""
        return "FOUND" if self.broken else "within the label" if self.allowed else "not found"


def percent(figure: Figure) -> str:
    """Return a share in percent, with its interval."""
    if figure.exact:
        return f"{100 * figure.value:.1f} %"
    return f"{100 * figure.value:.1f} % ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def _sure(value: float) -> Figure:
    return Figure(value, value, value)


def of_membership(protection: str, found: Membership, label: PrivacyLabel) -> Finding:
    """Return what the membership attack found beside what the label allows."""
    figures = {
        "true_positive_share": found.hits,
        "false_positive_share": found.alarms,
        "advantage_share": found.advantage,
        "area_share": found.area,
        "records_count": _sure(found.records),
        "models_count": _sure(found.models),
    }
    leaks = found.hits.low > found.alarms.high or found.area.low > 0.5
    said = (
        f"of the records that a model had seen the attack recognises {percent(found.hits)} while it wrongly accuses "
        f"{percent(found.alarms)} of the others"
    )
    verdict = "the model tells who was in its training" if leaks else "no better than guessing, as far as can be told"
    if leaks and found.hits.low <= found.alarms.high:  # no single threshold shows it
        area = f"{found.area.value:.3f} ({found.area.low:.3f} to {found.area.high:.3f})"
        verdict += f", if little: a member ranks above another record with probability {area}, and not .5"
    broken = leaks
    if label.mu is not None:
        allowed = worst_true_positive_rate(label.mu, found.alarms.value)
        figures["allowed_share"] = _sure(allowed)
        broken = found.refutes(label.mu)
        verdict += f"; the label allows at most {100 * allowed:.1f} %"
        verdict += ": the label is refuted, code or accounting are wrong" if broken else ", and is not contradicted"
    headline = (
        f"{percent(found.hits)} recognised at {100 * found.alarms.value:.1f} % false alarms, advantage "
        f"{100 * found.advantage.value:+.1f} points ({100 * found.advantage.low:+.1f} to "
        f"{100 * found.advantage.high:+.1f})"
    )
    return Finding("membership", protection, figures, headline, broken, f"{said}: {verdict}.", leaks and not broken)


def of_answers(protection: str, found: Answered, *, classes: bool) -> Finding:
    """Return what the answers of one model tell about who was in its training."""
    figures = {
        "advantage_share": found.advantage,
        "true_positive_share": found.hits,
        "false_positive_share": found.alarms,
        "area_share": found.area,
        "members_count": _sure(found.members),
        "others_count": _sure(found.others),
    }
    beside = "its confidence in their class" if classes else "its largest confidence"
    said = (
        f"from {beside} members are told from others with an advantage of {100 * found.advantage.value:+.1f} points "
        f"({100 * found.advantage.low:+.1f} to {100 * found.advantage.high:+.1f}); {percent(found.hits)} of "
        f"{found.members} members are recognised while {percent(found.alarms)} of {found.others} others are wrongly "
        "accused"
    )
    verdict = (
        "the answers tell who was in the training" if found.leaks else "no better than guessing, as far as can be told"
    )
    stopped = f"; the server stopped it ({found.stopped})" if found.stopped else ""
    headline = f"advantage {100 * found.advantage.value:+.1f} points, {percent(found.hits)} at 1 % false alarms"
    return Finding("membership", protection, figures, headline, found.leaks, f"{said}: {verdict}{stopped}.")


def of_epsilon(protection: str, found: LowerBound, label: PrivacyLabel) -> Finding:
    """Return the lower bound on epsilon beside what the label states."""
    figures = {"epsilon_at_least": _sure(found.epsilon), "canaries_count": _sure(found.canaries)}
    if label.epsilon is None:
        broken, beside = found.epsilon > 0, "the job states none"
    else:
        broken = found.refutes(label.epsilon)
        figures["epsilon_stated"] = _sure(label.epsilon)
        beside = f"the label states {label.epsilon:.3g}"
        beside += ", which this refutes: code or accounting are wrong" if broken else ", which this does not contradict"
    headline = f"epsilon at least {found.epsilon:.2f}"
    allowed = found.epsilon > 0 and not broken
    return Finding("one-run epsilon", protection, figures, headline, broken, f"{found.sentence()}; {beside}.", allowed)


def of_inversion(protection: str, found: Inversion, parties: int, records: int | None) -> Finding:
    """Return what was read out of updates or sums."""
    count = len(found.errors)
    nearest = float(found.errors.min())
    figures = {
        "read_out_share": _sure(found.read / count),
        "records_count": _sure(count),
        "nearest_distance_share": _sure(nearest),
    }
    each = "one record of each party" if records == 1 else "all records of each party"
    seen = "each party's own update" if found.single else f"sums over {parties} parties"
    verdict = (
        f"{found.read} of {count} records stand in what it sees, to within {100 * READ_OUT:.0f} % of their distance "
        "from the average record"
        if found.read
        else f"no record was read out; the nearest guess is off by {100 * min(nearest, 99.99):.0f} % of that distance"
    )
    sentence = f"with {each} in a round the aggregator sees {seen}: {verdict}."
    what = "1 record each" if records == 1 else "all records"
    headline = f"{found.read} of {count} records read out ({what})"
    return Finding("inversion", protection, figures, headline, bool(found.read), sentence)


def of_attribute(protection: str, found: Attribute) -> Finding:
    """Return how much answers help to guess a column."""
    figures = {
        "gain_share": found.members.gain,
        "gain_others_share": found.others.gain,
        "without_model_share": _sure(found.members.without),
        "with_model_share": _sure(found.members.with_model),
        "commonest_share": _sure(found.commonest),
    }
    broken = found.members.gain.low > 0
    members, others = found.members, found.others
    said = (
        f'"{found.column}" of people in the training is guessed right in {100 * members.with_model:.1f} % with the '
        f"model's answers and in {100 * members.without:.1f} % from the other columns alone"
    )
    verdict = "the answers tell the column" if broken else "the answers tell nothing that this attack can use"
    aside = (
        f"of people who took no part it is {100 * others.with_model:.1f} % and {100 * others.without:.1f} %, which no "
        "protection of the training changes; a class alone in place of probabilities would tell less"
    )
    headline = (
        f"gain {100 * members.gain.value:+.1f} points ({100 * members.gain.low:+.1f} to {100 * members.gain.high:+.1f})"
    )
    return Finding("attribute", protection, figures, headline, broken, f"{said}: {verdict}; {aside}.")


def of_copies(protection: str, found: Stolen, deciding: bool) -> Finding:
    """Return how good copies of a served model are."""
    best = found.copies[-1] if found.copies else None
    figures = {f"agreement_after_{copy.queries}_rows_share": copy.agreement for copy in found.copies}
    figures |= {"asked_rows": _sure(found.rows), "commonest_share": _sure(found.commonest)}
    alike = "decides alike" if deciding else "answers alike"
    if found.exact:
        said = (
            f"the model is linear, and {found.needed} answered rows gave it exactly; no technique hides that, a quota "
            f"below {found.needed} rows for each caller does"
        )
    elif found.enough and best is None:
        said = (
            f"{found.needed} rows were answered, which determine a linear model; none was left to see whether it is one"
        )
    elif best is None:
        said = f"{found.rows} answered rows are too few to copy anything"
    else:
        said = (
            f"a copy from {best.queries} answered rows {alike} on {percent(best.agreement)} of fresh rows (always the "
            f"commonest: {100 * found.commonest:.1f} %); a linear model would have been read exactly from "
            f"{found.needed} rows"
        )
    if found.stopped:
        said += f"; after {found.rows} rows the server stopped it ({found.stopped})"
    copied = best is not None and best.agreement.low > found.commonest
    broken = found.exact or copied or (found.enough and best is None)
    headline = "exact copy" if found.exact else "no copy" if best is None else f"agrees on {percent(best.agreement)}"
    return Finding("extraction", protection, figures, f"{headline}, {found.rows} rows asked", broken, f"{said}.")
