"""How good a model is on everybody's held-out records, without anybody's figures: one more sum.

Each party counts its own held-out records (`Tally`), the aggregator of the job adds the counts up, and `Evaluation`
reads accuracy, AUC and calibration off the sum. A party sees its own figures beside (`joining`), and nobody else does.

Under [privacy] the counts are one release with the job's own epsilon and delta, and it costs nothing beyond the
training: see docs/evaluation.md for when that holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from confide.crypto.random import Randomness, SystemRandomness
from confide.dp.mechanisms import count_step, default_grid
from confide.dp.plan import RECORD, PrivacyPlan
from confide.errors import Aborted, DataError, JobError, PrivacyError
from confide.ideal import Aggregator, Cohort, Session, Sums, Vector
from confide.model.graph import Graph
from confide.train.course import parameters_hash
from confide.train.figures import Evaluation
from confide.train.ledger import Ledger, Value
from confide.train.local import Silo, flatten, scores_by_record
from confide.train.sections import Job, default_quorum
from confide.train.single_sum import SingleSum
from confide.train.tally import BINS, MARKS, NOISY_BINS, Tally
from confide.wire import Fault

#: A party may hold out this many times the expected number of its records.
_LARGEST_WEIGHT = 16


def tally_of(job: Job, graph: Graph, parties: int) -> Tally:
    """Return how the parties of a job count their held-out records: everybody derives the same from the job.

    Args:
        job: with its [privacy], if it has one.
        graph: the model, for its outputs.
        parties: how many there are.

    Raises:
        PrivacyError: nobody honest is left to carry the noise, or the unit is more than a record.
    """
    if job.privacy is not None and job.privacy.unit != RECORD:
        raise PrivacyError(f'Expected privacy.unit="{RECORD}" for an evaluation; its sum is bounded for records only')
    classes = 2 if graph.outputs == 1 else graph.outputs
    if job.privacy is None:
        return Tally(classes, BINS, _LARGEST_WEIGHT * job.train.expected_records)
    largest = job.privacy.max_records or 4 * job.privacy.expected_records
    length = Tally(classes, NOISY_BINS, largest).length
    grid = default_grid(length)
    plan = PrivacyPlan.calibrate(
        epsilon=job.privacy.epsilon,
        delta=job.privacy.delta,
        clip_norm=grid / count_step(MARKS, grid),
        rounds=1,
        length=length,
        silos=parties,
        quorum=job.train.quorum or default_quorum(parties),
        colluding=job.privacy.colluding,
        expected_records=job.privacy.expected_records,
        max_records=largest,
        grid=grid,
    )
    return Tally(classes, NOISY_BINS, largest, plan)


def evaluation_session(tally: Tally, graph: Graph, cohort: Cohort, run_id: str, *, attempt: int = 0) -> Session:
    """Return what the sum is about: everybody derives the same from run, model and job.

    Args:
        run_id: of the training.
        attempt: under a plan there is one; each would be a release.
    """
    return Session(
        run=f"{run_id}/evaluation",
        round=0,
        attempt=attempt,
        cohort=cohort,
        length=tally.length,
        bound=tally.bound,
        model_hash=parameters_hash(flatten(graph)),
    )


def contribution(tally: Tally, graph: Graph, held: Silo, rng: Randomness) -> Vector:
    """Return what a party adds: int64, shape (tally.length,). Under a plan each call is a release: submit one.

    Args:
        held: the party with its held-out records, none or more.
        rng: the party's own secret randomness.
    """
    return tally.contribution(scores_by_record(graph, held.x), held.y, rng, name=held.name)


def evaluation_of(tally: Tally, sums: Sums) -> Evaluation:
    """Return what the sums say.

    Raises:
        ProtocolError: they are none that honest parties give.
    """
    counts = tally.counts(sums)
    shares = sum(map(len, sums.members))
    noise = (shares * tally.plan.share_variance) ** 0.5 / tally.step if tally.plan else 0.0
    return Evaluation.of(tally, counts, sums.members, noise=noise)


def evaluate(
    job: Job,
    graph: Graph,
    held: Sequence[Silo],
    *,
    aggregator: Aggregator,
    spent: float | None = None,
    rng: Randomness | None = None,
    ledger: Ledger | None = None,
    fault: Fault | None = None,
) -> Evaluation:
    """Evaluate a model over parties in one process.

    Args:
        job: under which it was trained.
        graph: the model; everybody has it.
        held: the parties with records that it was not trained on (`Prepared.held`).
        aggregator: who sums, such as `aggregator_of(job, of_updates=False)`.
        spent: epsilon of the training.
        rng: secret randomness of the parties; the operating system's if None.
        ledger: gets what the release spends before it is made, and one entry for it.
        fault: what the simulated network does to messages.

    Raises:
        Aborted: the quorum was lost: in each attempt without a plan, at once under one.
        JobError: no party has records of its own to evaluate on.
    """
    if not held:
        raise JobError(
            "Expected held-out records of each party; leave out data.test, so that data.test_fraction sets them aside"
        )
    if not any(len(silo.x) for silo in held):
        raise DataError("Expected at least one held-out record to evaluate on")
    rng = rng or SystemRandomness()
    names = tuple(silo.name for silo in held)
    cohort = Cohort(names, job.train.quorum or default_quorum(len(names)))
    aggregator.check(cohort)
    tally = tally_of(job, graph, len(names))
    run_id = job.job.name
    parties = SingleSum(aggregator, evaluation_session(tally, graph, cohort, run_id), rng)
    vectors = {silo.name: contribution(tally, graph, silo, rng.branch()) for silo in held}
    epsilon = None if tally.plan is None else max(tally.plan.spent(1), spent or 0.0)
    attempts = 1 if tally.plan else job.train.attempts
    reason: object = ""
    for attempt in range(attempts):
        if ledger is not None and epsilon is not None:  # before it leaves, as for a round
            ledger.append("release", {"of": "evaluation", "attempt": attempt + 1, "epsilon": epsilon})
        session = evaluation_session(tally, graph, cohort, run_id, attempt=attempt)
        done = parties.take(session, vectors, fault=fault)
        reason = done.failures.get(cohort.server)
        if reason is None:
            found = evaluation_of(tally, done.output(cohort.server))
            if ledger is not None:
                bytes_up = {name: done.bytes_sent(name) for name in parties.roles}
                ledger.append("evaluation", evaluation_fields(found, session, aggregator.name, bytes_up, epsilon))
            return found
    raise Aborted(f"The evaluation failed {attempts} times; {reason}")


def evaluation_fields(
    found: Evaluation, session: Session, aggregator: str, bytes_up: Mapping[str, int], epsilon: float | None
) -> dict[str, Value]:
    """Return what a ledger's line says about an evaluation; its figures are in nobody's ledger."""
    cohort = session.cohort
    return {
        "aggregator": aggregator,
        "quorum": cohort.quorum,
        "length": session.length,
        "bound": session.bound,
        "cohort": sorted(cohort.clients),
        "members": sorted(found.members),
        "missing": sorted(set(cohort.clients) - found.members),
        "smallest": found.smallest,
        "bytes_up": {name: float(count) for name, count in sorted(bytes_up.items())},
        "epsilon": epsilon,
        "model": session.model_hash.hex(),
    }
