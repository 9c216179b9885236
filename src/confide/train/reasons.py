"""Why a job's privacy is what it is: what each number means, and why it is the default where it is."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist

from confide.dp.accountant import gaussian_mu
from confide.dp.plan import default_delta
from confide.guarantee import FALSE_POSITIVE_RATE
from confide.train.sections import Job, PrivacySection


def reasons(job: Job) -> Iterator[str]:
    """Yield one line for each number of [privacy] that is a choice, to be printed when a job begins."""
    asked = job.privacy
    if asked is None:
        return
    normal = NormalDist()
    rate = 100 * normal.cdf(normal.inv_cdf(FALSE_POSITIVE_RATE) + gaussian_mu(asked.epsilon, asked.delta))
    usual = PrivacySection(expected_records=asked.expected_records)
    yield (
        f"privacy.epsilon = {asked.epsilon:g}{_default(asked.epsilon == usual.epsilon)}: up to 1 a promise is called "
        f"strong; here the best attacker recognises at most {rate:.2f} % of the records at "
        f"{100 * FALSE_POSITIVE_RATE:.0f} % false alarms"
    )
    default = asked.delta == default_delta(asked.expected_records)
    yield (
        f"privacy.delta = {asked.delta:.3g}{_default(default, ', expected_records ** -1.1')}: how likely the promise "
        f"may fail altogether; at 1 / expected_records = {1 / asked.expected_records:.3g} a mechanism may publish a "
        "whole record, so it is below"
    )
    if job.data.standardise:
        share, default = asked.preprocessing_share, asked.preprocessing_share == usual.preprocessing_share
        yield (
            f"privacy.preprocessing_share = {share:g}{_default(default)}: of mu^2 for the sum that prepares the "
            f"features; it makes the training's noise {100 * (1 / (1 - share) ** 0.5 - 1):.1f} % larger, and is part "
            "of epsilon"
        )
    if asked.unit == usual.unit:
        yield 'privacy.unit = "record": each row counts for itself; k rows of one person have k times the epsilon'
        return
    yield (
        f'privacy.unit = "{asked.unit}": all records of one {asked.unit} hide together, at {asked.parties_per_unit} of '
        "the parties at most; nobody can check that across parties, so it is assumed"
    )


def _default(is_default: bool, formula: str = "") -> str:
    return f" (the default{formula})" if is_default else ""
