"""What would happen if this table took part in a job: looked at by its owner, before any connection is opened."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from confide.crypto.random import SystemRandomness
from confide.data.schema import Schema
from confide.data.survey import Finding, Survey, survey
from confide.data.table import read_table
from confide.errors import ConfideError, DataError, JobError
from confide.tee.aggregate import Enclaves
from confide.train.budget import Budget
from confide.train.local import Silo
from confide.train.offer import job_hash, offered
from confide.train.parts import aggregator_of, preprocess_of, rounds_of, start_of
from confide.train.policy import Policy, refusals_of_enclaves, refusals_of_job
from confide.train.run import set_aside
from confide.train.sections import Job, parties_of
from confide.train.units import outcomes_of
from confide.wire import MemoryStore


@dataclass(frozen=True, slots=True)
class JobCheck:
    """How a table and a policy stand to a job.

    Args:
        hash: of the job, hex; "" if it cannot run.
        findings: about the job, or about the table as its data.
        refusals: what the policy says, as the coordinator would see it; without pins of coordinators and rosters.
        guarantee: sentences of the job's aggregator.
        training, testing: records on either side of data.test_fraction.
        step_seconds: that one round's local work took here; None if the table cannot be read.
    """

    hash: str
    findings: tuple[Finding, ...] = ()
    refusals: tuple[str, ...] = ()
    guarantee: tuple[str, ...] = ()
    training: int = 0
    testing: int = 0
    step_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class DryRun:
    """A table beside a schema and, if there is one, a job."""

    survey: Survey
    job: JobCheck | None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return the findings about the table, then those about the job."""
        return (*self.survey.findings, *(self.job.findings if self.job else ()))

    @property
    def passes(self) -> bool:
        """Return whether this node could take part: no problem, and no refusal of its own policy."""
        return not any(one.level == "problem" for one in self.findings) and not (self.job and self.job.refusals)


def dry_run(
    data: Path,
    schema_text: str,
    *,
    job: Job | None = None,
    policy: Policy | None = None,
    budget: Budget | None = None,
    enclaves: Enclaves | None = None,
) -> DryRun:
    """Return what would happen with a table; nothing is written and nothing leaves.

    Args:
        data: the table.
        schema_text: of the schema file.
        job: to take part in; None looks at the table alone.
        policy: what it would say about the job; None for what defaults say.
        budget: what the data set has spent; None for nothing.
        enclaves: which evidence the policy accepts (`enclaves_of`); None does not look at it.

    Raises:
        DataError: the schema is none.
    """
    schema = Schema.read(schema_text)
    seen = survey(data, schema)
    if job is None:
        return DryRun(seen, None)
    try:
        hash_ = job_hash(job, schema_text)
        job = offered(job)
    except JobError as error:
        return DryRun(seen, JobCheck("", tuple(Finding("problem", "", line) for line in str(error).splitlines())))
    policy = policy or Policy()
    budget = budget or Budget(MemoryStore(), policy.data.data_set)
    guarantee = aggregator_of(job).guarantee
    refused = (
        *refusals_of_job(policy, job, guarantee, budget, job_hash=hash_),
        *(refusals_of_enclaves(job, enclaves) if enclaves else ()),
    )
    findings, training, testing, seconds = _rehearsed(data, schema, job) if not seen.problems else ([], 0, 0, None)
    sentences = tuple(guarantee.sentences())
    return DryRun(seen, JobCheck(hash_, tuple(findings), refused, sentences, training, testing, seconds))


def _rehearsed(data: Path, schema: Schema, job: Job) -> tuple[list[Finding], int, int, float | None]:
    """Return findings, records on both sides of the test share, and the seconds of one round's local work."""
    preprocess = preprocess_of(schema, job)
    try:
        kept, tested = set_aside(job, read_table(data, schema))
    except DataError as error:
        return [Finding("problem", "", str(error))], 0, 0, None
    findings = list(_sizes(job, kept.n))
    start = start_of(job, preprocess.features, schema.label.classes, preprocess=preprocess)
    encoding = rounds_of(job, start, parties_of(job), preprocess)
    silo = Silo("this node", preprocess.apply(kept.columns), outcomes_of(job, kept), kept.columns)
    begin = time.perf_counter()
    try:
        encoding.contribution(encoding.learner.start, silo, 1, SystemRandomness(), MemoryStore())
    except ConfideError as error:
        return [*findings, Finding("problem", "", str(error))], kept.n, tested.n, None
    return findings, kept.n, tested.n, time.perf_counter() - begin


def _sizes(job: Job, records: int) -> list[Finding]:
    """Return what the number of training records means beside the public sizes of a job's [privacy]."""
    if job.privacy is None or job.privacy.unit == "client":
        return []  # what cannot be weighed is refused by the rehearsed round itself
    expected, most = job.privacy.expected_records, job.privacy.max_records
    found: list[Finding] = []
    if records > most:
        text = f"the table has more training records than privacy.max_records={most}; sums are cut to that many"
        found.append(Finding("warning", "", text, records))
    if records > expected:
        text = (
            f"the table alone has more training records than privacy.expected_records={expected} says of all parties "
            "together; steps will be too long"
        )
        found.append(Finding("warning", "", text, records))
    elif records * parties_of(job) < 0.1 * expected:
        text = (
            f"the table has few training records beside privacy.expected_records={expected} of all parties together; "
            "steps will be short and the noise large"
        )
        found.append(Finding("warning", "", text, records))
    return found
