"""The privacy label as a page for people: the guarantee first, then who sees what, then what can undermine it.

The order is that of NIST SP 800-226 (guarantee on top, threats below, trust and access as its base), and the fields are
those of How to DP-fy ML (arXiv 2303.00654, section 5.3): setting, unit, relation, accesses covered, sampling.
Nothing here is measured: every line follows from the label.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec

from confide.guarantee import FALSE_POSITIVE_RATE, IMPORTED, PrivacyLabel
from confide.model.artifact import Artifact

_WIDTH = 110
_UNSTATED = "not stated in this file"

#: Up to which epsilon a promise is called what (arXiv 2303.00654, section 5.2).
_TIERS = ((1.0, "strong"), (10.0, "reasonable"), (math.inf, "weak: little is promised"))


def facts(artifact: Artifact, *, pinned: bool) -> dict[str, Any]:
    """Return the label as data: every field, what follows from it, and which file says so.

    Args:
        artifact: as it was loaded.
        pinned: whether the caller named the key that must have signed it.
    """
    label = artifact.label
    return {
        "label": msgspec.to_builtins(label),
        "claims_privacy": label.epsilon is not None and not label.voided,
        "worst_true_positive_rate_at_1_percent": label.worst_true_positive_rate(),
        "advantage": label.advantage,
        "file": {
            "fingerprint": artifact.fingerprint,
            "signer": artifact.signer,
            "signer_pinned": pinned,
            "created": artifact.created,
            **{f"metadata.{name}": value for name, value in sorted(artifact.metadata.items())},
        },
    }


def page(artifact: Artifact, *, pinned: bool) -> Iterator[str]:
    """Yield the lines of the page; see `facts` for the arguments."""
    label = artifact.label
    yield "PRIVACY LABEL"
    yield from _section("What is promised", _promise(label))
    yield from _section("Who sees what", _views(label))
    if label.epsilon is not None:
        yield from _section("How the promise is kept", _mechanism(label))
    yield from _section("What else was computed from records", _accesses(label))
    yield from _section("What can undermine it", _threats(label))
    yield from _section("Which model", _file(artifact, pinned))


def _section(title: str, lines: Iterator[tuple[str, str]]) -> Iterator[str]:
    yield ""
    yield title
    for name, text in lines:
        yield from textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=f"  {name:<22}" if name else "  ",
            subsequent_indent=" " * 24 if name else "  ",
            break_on_hyphens=False,
        )


def _promise(label: PrivacyLabel) -> Iterator[tuple[str, str]]:
    if label.epsilon is None:
        yield "", "NO DIFFERENTIAL PRIVACY. The model may tell whether a person's record was in the training, and more."
        return
    if label.voided:
        yield "", f"NO PRIVACY CLAIM, whatever the numbers below say: the noise is not secret ({label.seed})."
    tier = next(text for most, text in _TIERS if label.epsilon <= most)
    delta, unit = label.delta or 0.0, label.unit or "record"
    yield "epsilon", f"{above(label.epsilon)}  ({tier})"
    yield "delta", f"{delta:.3g}  (how likely the promise may fail altogether; must be below 1 over the records)"
    yield "unit", f"each {unit}; neighbouring data: {label.relation}"
    yield (
        "meaning",
        f"Whether or not one {unit} took part, anything that can be learnt is about as likely: by a factor of "
        f"{above(math.exp(label.epsilon))} at most, but for a probability of delta.",
    )
    rate = label.worst_true_positive_rate()
    if rate is not None and label.advantage is not None:
        yield (
            "worst attacker",
            f"who knows all other records and wrongly accuses {100 * FALSE_POSITIVE_RATE:.0f} % of those that took no "
            f"part, recognises at most {above(100 * rate)} % of those that did (guessing: "
            f"{100 * FALSE_POSITIVE_RATE:.0f} %); advantage at most {above(label.advantage)} of 1; mu = "
            f"{above(label.mu or 0.0)}",
        )


def _views(label: PrivacyLabel) -> Iterator[tuple[str, str]]:
    if label.aggregator == IMPORTED:
        yield "", "Not known: the model was made elsewhere, and nothing is claimed for its training."
        return
    yield "parties", f"{len(label.parties)}: {', '.join(label.parties)}; {label.quorum} or more in every released sum"
    allies = f" together with up to {_parties(label.colluding)}" if label.colluding else ""
    yield "the server", f"{label.server_sees or _UNSTATED}{_against(label.epsilon, allies)}"
    yield "a party by itself", f"{label.parties_see or _UNSTATED}{_against(label.epsilon_party)}"
    yield "everybody else", f"{label.outsiders_see or _UNSTATED}{_against(label.epsilon_outsiders)}"
    yield "summed by", f'"{label.aggregator}"; docs/train.md says what each technique hides and from whom'


def _against(epsilon: float | None, allies: str = "") -> str:
    return "" if epsilon is None else f"; epsilon={above(epsilon)} against it{allies}"


def _parties(count: int) -> str:
    return f"{count} {'party' if count == 1 else 'parties'}"


def _mechanism(label: PrivacyLabel) -> Iterator[tuple[str, str]]:
    yield "mechanism", label.mechanism or _UNSTATED
    if label.clip_norm is not None and label.noise_multiplier is not None:
        yield (
            "noise scale",
            f"clip norm {label.clip_norm:g}; the noise of one release is {label.noise_multiplier:.4g} times it",
        )
    yield "sampling", label.sampling or _UNSTATED
    yield "noise", label.noise or _UNSTATED
    yield "random bytes from", label.seed
    yield "accountant", label.accountant or _UNSTATED


def _accesses(label: PrivacyLabel) -> Iterator[tuple[str, str]]:
    if label.aggregator == IMPORTED:
        yield "", "Not known, neither what was measured nor how settings were chosen."
        return
    yield "released", f"{label.released}, {label.rounds} rounds"
    yield "metrics", label.metrics or _UNSTATED
    cost = label.preprocessing_epsilon
    yield "preprocessing", label.preprocessing + (f" (alone: epsilon {above(cost)})" if cost else "")
    yield "tuning", label.tuning
    yield "public data", label.public_data or _UNSTATED
    if label.epsilon is not None:
        lost = label.utility_lost
        yield (
            "utility lost",
            f"{lost.points:g} points of {lost.figure}, from {lost.measured_on}"
            if lost
            else "not measured: a comparison on private records would itself have to be paid for",
        )


def _threats(label: PrivacyLabel) -> Iterator[tuple[str, str]]:
    if label.epsilon is None:
        yield "", "- Records can be told from the model by its answers alone; serve it only to those who may see them."
        return
    unit = label.unit or "record"
    if label.colluding:
        yield "", f"- More than {_parties(label.colluding)} siding with the server, or leaving out their noise."
    else:
        yield "", "- Any party that sides with the server, or leaves out its share of the noise: none is allowed for."
    yield "", f"- A person with k {unit}s is protected k times more weakly: about k times epsilon, and a larger delta."
    yield "", "- Other trainings on the same records: their epsilons add up. This label knows of one run alone."
    yield "", "- Settings chosen by looking at results on these records, and figures that somebody publishes beside it."
    yield (
        "",
        "- What is true of everybody: a model may tell things about a person who took no part. That is its purpose.",
    )
    if not label.accountant:
        yield "", "- The file does not say what computed epsilon."


def _file(artifact: Artifact, pinned: bool) -> Iterator[tuple[str, str]]:
    yield "fingerprint", artifact.fingerprint or "not from a file"
    signed = "the key that you named" if pinned else "as the file says; name the key with --trust to be sure"
    yield "signed by", f"{artifact.signer or 'nobody'} ({signed})"
    yield "ledger", artifact.label.ledger or "none was kept"
    yield from {"created": artifact.created, **artifact.metadata}.items()


def above(value: float) -> str:
    """Return three significant digits that are not below `value`: no bound looks smaller than it is."""
    if not 0 < value < math.inf:
        return f"{value:g}"
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / step * (1 - 1e-9)) * step:.3g}"
