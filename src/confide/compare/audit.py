"""Attacks on a job of one's own, or on a served model: which fit, what each finds before and after the protections.

A job is trained again in this process, as it is given and with protections taken away. A failed attack proves nothing:
others may succeed. What an attack gives is a lower bound on what leaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from confide.compare import answers, attribute, extraction, inversion, membership
from confide.compare.findings import (
    Finding,
    of_answers,
    of_attribute,
    of_copies,
    of_epsilon,
    of_inversion,
    of_membership,
)
from confide.compare.record import machine, version
from confide.compare.settings import DataKind
from confide.compare.shadows import Shadow, pool_of, retrained, shadows
from confide.crypto.random import Randomness
from confide.errors import JobError, UsageError
from confide.guarantee import PrivacyLabel
from confide.model.graph import Graph
from confide.serve.client import Client
from confide.train.job import parse
from confide.train.output import label_of
from confide.train.run import Prepared, load_data
from confide.train.sections import Job

#: The attacks on a job, in the order in which they are run; `extraction` is the one on an endpoint.
ATTACKS: Sequence[str] = ("membership", "inversion", "attribute")

#: What stands beside every result.
NOTES: Sequence[str] = (
    "An attack that fails proves nothing: a better one may succeed. What attacks give are lower bounds on what leaks.",
    "Intervals are at 95 %: one in twenty misses.",
)
DO_NOT_PUBLISH = "not private: do not publish"

_NEEDS_JOB = "needs the job and its records: confide audit JOB.toml"
_DELTA = 1e-5  # at which epsilon is bounded where the job states no delta


@dataclass(frozen=True, slots=True)
class Settings:
    """How much work an audit of a job does.

    Args:
        shadows: models trained beside the attacked one, >= 3.
        sensitive: the column that attribute inference guesses; None leaves that out.
        attacks: out of `ATTACKS`.
        rounds: first rounds that inversion looks at, each over other records.
        data_kind: what the records of tables are; those of a shipped set are public.
    """

    shadows: int = 16
    sensitive: str | None = None
    attacks: tuple[str, ...] = tuple(ATTACKS)
    rounds: int = 5
    data_kind: DataKind = "own table"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an audit is: `done` of `total` steps of `what`."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit found.

    Args:
        target: the job or the URL.
        data_kind: "own table", "public" or "queries" (of an endpoint).
        private: whether figures come from private records.
        findings: in the order in which they were found.
        unfit: attacks, or protections of an attack, that were not run, and why.
        machine, version: where, by which confide.
    """

    target: str
    data_kind: str
    private: bool
    findings: tuple[Finding, ...]
    unfit: Mapping[str, str]
    machine: str = field(default_factory=machine)
    version: str = field(default_factory=version)

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        fields = asdict(self)
        fields["notes"] = list(NOTES)
        fields["mark"] = DO_NOT_PUBLISH if self.private else ""
        return fields


@dataclass(frozen=True, slots=True)
class Variant:
    """A job with some of its protections, and what these are called."""

    protection: str
    job: Job


def variants(table: Mapping[str, Any], base: Path) -> tuple[list[Variant], dict[str, str]]:
    """Return the job without protections, then with the aggregator alone, then as given; and why one is missing.

    Nothing is written and no budget is charged: an audit's figures are for the eyes of whoever has the records.

    Args:
        table: the job file's tables.
        base: the folder that its paths start from.

    Raises:
        JobError: the job does not hold.
        UsageError: it cannot be run here.
    """
    tables: dict[str, Any] = deepcopy(dict(table))
    tables.pop("output", None)
    if isinstance(tables.get("data"), dict):
        tables["data"].pop("budget", None)
    job = parse(tables, base=base)
    if job.data.nodes:
        raise UsageError("Expected tables that are here, got data.nodes; an audit is of data that one party may hold")
    if job.train.aggregate == "mpc":
        raise UsageError(
            'Expected a sum of updates, got train.aggregate="mpc", which trains on shares and shows nobody an update; '
            'audit the same job with aggregate = "masked" for what its model tells'
        )
    given = [Variant("as given", job)]
    missing: dict[str, str] = {}
    bare = job
    if job.privacy is not None:
        del tables["privacy"]
        try:
            bare = parse(tables, base=base)
            given.insert(0, Variant("without [privacy]", bare))
        except JobError as error:
            missing["without [privacy]"] = f"the job does not hold without it: {error}"
            return given, missing
    if bare.train.aggregate != "plain":
        train = msgspec.structs.replace(bare.train, aggregate="plain", norm_bound=None)
        given.insert(0, Variant('aggregate = "plain"', msgspec.structs.replace(bare, train=train)))
    return given, missing


def unfit(job: Job, settings: Settings) -> dict[str, str]:
    """Return why attacks that were asked for do not fit a job, before a record is read."""
    found = {name: "left out by --attack" for name in ATTACKS if name not in settings.attacks}
    if job.model.kind == "cox":
        why = "of survival it would need the likelihood of a time, which a hazard alone does not give"
        found |= dict.fromkeys(("membership", "inversion", "attribute"), why)
    if settings.sensitive is None and "attribute" not in found:
        found["attribute"] = "no sensitive column was named; name one with --sensitive"
    return found


def audit_job(
    table: Mapping[str, Any], base: Path, settings: Settings, rng: Randomness
) -> Iterator[Progress | Finding | Report]:
    """Run every attack that fits a job, yielding progress, each finding as it is made, and the report at the end.

    Args:
        table, base: as in `variants`.
        settings: how much work.
        rng: of coins, keys and noise.

    Raises:
        UsageError: the job cannot be audited here.
    """
    given, missing = variants(table, base)
    job = given[-1].job
    wrong, findings = {**missing, **unfit(job, settings)}, list[Finding]()
    yield Progress("reading records", 0, 1)
    data = {variant.protection: load_data(variant.job, rng=rng) for variant in given}
    yield Progress("reading records", 1, 1)
    runs = {"membership": attack_membership, "inversion": attack_inversion, "attribute": attack_attribute}
    for name, attack in runs.items():
        if name in wrong:
            continue
        for variant in given:
            if name != "inversion" and variant.protection.startswith("aggregate"):
                continue  # every aggregator opens the same sums, which lead to the same model
            try:
                for step in attack(variant, data[variant.protection], settings, rng):
                    if isinstance(step, Finding):
                        findings.append(step)
                    yield step
            except UsageError as error:
                wrong[f"{name}, {variant.protection}"] = str(error)
    kind = "public" if job.data.set is not None else settings.data_kind
    yield Report(
        target=job.job.name,
        data_kind=kind,
        private=kind == "own table",
        findings=tuple(findings),
        unfit=wrong,
    )


def _label(variant: Variant, data: Prepared, rng: Randomness) -> tuple[Graph, PrivacyLabel]:
    """Return the variant's model over all training records, with its label."""
    done = retrained(variant.job, data, data.silos, rng)
    return done.model, label_of(variant.job, data, done)


def attack_membership(
    variant: Variant, data: Prepared, settings: Settings, rng: Randomness
) -> Iterator[Progress | Finding]:
    """Attack who was in a job's training; yields progress, then what was found, then the lower bound on epsilon."""
    what, total = f"membership, {variant.protection}", settings.shadows + 2
    yield Progress(what, 0, total)
    _, label = _label(variant, data, rng)
    pool = pool_of(data)
    trained: list[Shadow] = []
    for shadow in shadows(variant.job, data, pool, models=settings.shadows + 1, rng=rng):
        yield Progress(what, 1 + len(trained), total)
        trained.append(shadow)
    found = membership.membership(trained, pool.x, pool.y, delta=label.delta or _DELTA)
    yield Progress(what, total, total)
    yield of_membership(variant.protection, found, label)
    yield of_epsilon(variant.protection, found.bound, label)


def attack_inversion(
    variant: Variant, data: Prepared, settings: Settings, rng: Randomness
) -> Iterator[Progress | Finding]:
    """Attack what a job's aggregator sees. Raises UsageError where there is nothing to divide."""
    why = inversion.unfit(variant.job, data.start, len(data.silos), data)
    if why:
        raise UsageError(why)
    what = f"inversion, {variant.protection}"
    for number, records in enumerate((1, None)):
        yield Progress(what, number, 2)
        times = settings.rounds if records else 1
        found = inversion.inversion(variant.job, data, records=records, times=times, rng=rng)
        yield of_inversion(variant.protection, found, len(data.silos), records)
    yield Progress(what, 2, 2)


def attack_attribute(
    variant: Variant, data: Prepared, settings: Settings, rng: Randomness
) -> Iterator[Progress | Finding]:
    """Attack a column that was kept back. Raises UsageError where it does not fit."""
    why = attribute.unfit(data.preprocess, settings.sensitive)
    if why or settings.sensitive is None:
        raise UsageError(why)
    what = f"attribute, {variant.protection}"
    yield Progress(what, 0, 1)
    graph, _ = _label(variant, data, rng)
    plain = load_data(_unmixed(variant.job), rng=rng) if attribute.mixes(data.preprocess) else None
    found = attribute.attribute(graph, data, settings.sensitive, seed=variant.job.job.seed, plain=plain)
    yield Progress(what, 1, 1)
    yield of_attribute(variant.protection, found)


def _unmixed(job: Job) -> Job:
    """Return a job whose records are the same and whose features are one group for each column."""
    replace = msgspec.structs.replace
    model = replace(job.model, unit_rows=False, project=0)
    train = replace(job.train, class_weights="none")
    return replace(job, model=model, data=replace(job.data, standardise=False), train=train, privacy=None)


def audit_model(
    ask: extraction.Ask, members: answers.Rows, others: answers.Rows, *, link: str = "", name: str = "model",
    budget: int = 1 << 62, seed: int = 1,
) -> Report:  # fmt: skip
    """Attack who was in the training of a model that is at hand, from its answers alone.

    Args:
        ask: the model: features (n, features) to answers (n, outputs); of a torch module
            `lambda x: module(torch.from_numpy(x).float()).detach().numpy()`.
        members, others: rows of its training, and rows that it has not seen.
        link: what an output is, "probability" or "logit"; "" looks at the answers.
        name: of the model, for the report.
        budget: rows that are asked at most.
        seed: of which rows choose the threshold.

    Raises:
        UsageError: too few rows.
    """
    found = answers.told_apart(extraction.Counted(ask, budget), members, others, link=link, seed=seed)
    finding = of_answers("as it is", found, classes=members.y is not None and others.y is not None)
    rest: dict[str, str] = {attack: _NEEDS_JOB for attack in ATTACKS if attack != "membership"}
    return Report(target=name, data_kind="own table", private=True, findings=(finding,), unfit=rest)


def audit_endpoint(
    client: Client, *, budget: int, seed: int = 1, own: np.ndarray[Any, Any] | None = None,
    known: tuple[answers.Rows, answers.Rows] | None = None,
) -> Iterator[Progress | Finding | Report]:  # fmt: skip
    """Attack a served model within `budget` answered rows, yielding progress, the findings and the report.

    With `known` rows it is attacked who was in the training, with at most half of the budget; the rest copies the
    model.

    Args:
        client: of the service; what it asks counts against its holder's quota there.
        budget: rows, at least `extraction.FEWEST_ROWS`.
        seed: of the rows that are asked.
        own: float64, shape (n, features): rows that are asked first.
        known: rows of its training, and rows that it has not seen.

    Raises:
        UsageError: the budget or the quota is too small.
        ServiceError: the server refuses for another reason.
    """
    kit, found, private = client.kit, list[Finding](), own is not None or known is not None
    wrong: dict[str, str] = dict.fromkeys(ATTACKS, _NEEDS_JOB)
    wrong["membership"] = "needs rows of its training and rows that it has not seen: --members and --others"
    stopped = ""
    if known is not None:
        yield Progress(f"membership from {kit.model}", 0, 1)
        half = extraction.Counted(client.predict, budget // 2, at_once=kit.max_rows)
        try:
            members = answers.told_apart(half, *known, link=kit.link, seed=seed)
        except UsageError as error:  # too few rows, or a quota that left too few answers
            wrong["membership"] = str(error)
        else:
            del wrong["membership"]
            classes = all(rows.y is not None for rows in known)
            found.append(of_answers(f"backend {kit.backend}", members, classes=classes))
            yield found[0]
        yield Progress(f"membership from {kit.model}", 1, 1)
        stopped, budget = half.stopped, budget - half.rows
    if stopped or (found and budget < extraction.FEWEST_ROWS):
        wrong["extraction"] = f"nothing is left to ask: {stopped or 'the budget is spent'}"
        yield Report(target=kit.model, data_kind="queries", private=private, findings=tuple(found), unfit=wrong)
        return
    asked = extraction.Counted(client.predict, budget, at_once=kit.max_rows)
    yield Progress(f"extraction from {kit.model}", 0, budget)
    drawn = extraction.queries_for(client.preprocess, kit.features, seed=seed)
    rows = (row for part in (() if own is None else own, drawn) for row in part)
    deciding = bool(kit.classes) or kit.link in ("probability", "logit")
    stolen = extraction.steal(asked, kit.features, kit.link, rows, seed=seed, deciding=deciding)
    yield Progress(f"extraction from {kit.model}", budget, budget)
    found.append(of_copies(f"backend {kit.backend}", stolen, deciding))
    yield found[-1]
    yield Report(target=kit.model, data_kind="queries", private=private, findings=tuple(found), unfit=wrong)
