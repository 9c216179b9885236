"""Why a job's privacy is what it is: what each number means, and why it is the default where it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist

from confide.dp.accountant import gaussian_mu
from confide.dp.factorisation import banded, independent
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
    if asked.mechanism == "auto" and job.model.kind != "cox":
        told = asked.expected_records * gaussian_mu(asked.epsilon, asked.delta)
        yield (
            f'privacy.mechanism = "auto": algorithm "{job.train.algorithm}", as {asked.expected_records} records are '
            f"{told:.0f} times the noise of one release; statistics pay from about 5,000 on"
        )
    yield (
        f"privacy.epsilon = {asked.epsilon:g}{_default(asked.epsilon == usual.epsilon)}: up to 1 a promise is called "
        f"strong; here the best attacker recognises at most {rate:.2f} % of the {asked.unit}s at "
        f"{100 * FALSE_POSITIVE_RATE:.0f} % false alarms"
    )
    default = asked.delta == default_delta(asked.expected_records)
    if asked.unit == "client":
        yield from _of_clients(job, asked, default)
        return
    yield (
        f"privacy.delta = {asked.delta:.3g}{_default(default, ', expected_records ** -1.1')}: how likely the promise "
        f"may fail altogether; at 1 / expected_records = {1 / asked.expected_records:.3g} a mechanism may publish a "
        "whole record, so it is below"
    )
    if job.data.standardise or job.train.class_weights != "none":
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


def _of_clients(job: Job, asked: PrivacySection, default: bool) -> Iterator[str]:
    parties, train = asked.expected_records, job.train
    yield (
        f"privacy.delta = {asked.delta:.3g}{_default(default, ', parties ** -1.1')}: how likely the promise may fail "
        f"altogether; at 1 / parties = {1 / parties:.3g} a mechanism may publish everything that one party holds, so "
        "it is below"
    )
    yield 'privacy.unit = "client": everything that one party holds is hidden, however many records and rounds that is'
    if train.rotation > 1:
        bands = banded(train.rounds, train.rotation, asked.bands or train.rotation)
        alone, everybody = independent(train.rounds, train.rotation), independent(train.rounds).error()
        yield (
            f"train.rotation = {train.rotation}: a party trains in every {train.rotation}. round; the noise on the "
            f"model is {bands.error() * train.rotation / everybody:.2f} times that of everybody in every round "
            f"({alone.error() * train.rotation / everybody:.2f} times with privacy.bands = 1)"
        )


def _default(is_default: bool, formula: str = "") -> str:
    return f" (the default{formula})" if is_default else ""


def doubts(job: Job, records: Sequence[int]) -> Iterator[str]:
    """Yield what does not fit between [privacy]'s public numbers and the tables, for whoever holds them all.

    Args:
        records: training records of each party.
    """
    asked, total = job.privacy, sum(records)
    if asked is None or asked.unit == "client":
        return
    expected = asked.expected_records
    if asked.delta * total >= 1:
        yield (
            f"privacy.delta = {asked.delta:.3g} is above 1 / {total} training records; a mechanism of that delta may "
            f"publish a whole record. State expected_records near {total}, and leave delta out"
        )
    if not 0.5 * expected <= total <= 2 * expected:
        steps = "long" if total > expected else "short, and the noise large"
        yield f"privacy.expected_records = {expected} and there are {total} training records; steps are too {steps}"
    if max(records, default=0) > asked.max_records:
        yield (
            f"a party has {max(records)} training records and privacy.max_records = {asked.max_records}: its sums are "
            "cut to what that many can reach"
        )
