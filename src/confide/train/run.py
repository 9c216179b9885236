"""From a job to a signed model: load what each party holds, train, label, save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness, SystemRandomness
from confide.data.schema import Schema
from confide.data.sets import load_set, schema_text
from confide.data.source import open_source
from confide.data.split import alike, aside, by_column, by_label, even, holdout
from confide.data.table import Table, read_table
from confide.dp.client_plan import ClientPlan
from confide.dp.plan import PrivacyPlan
from confide.errors import JobError, PrivacyError
from confide.ideal import Aggregator, Cohort
from confide.model.encoder import Encoder
from confide.model.graph import Graph
from confide.model.preprocess import Preprocess, Scale
from confide.train.contradictions import ADAPTIVE
from confide.train.course import approve, parameters_hash
from confide.train.data_budget import JobBudget, name_of, schema_hash
from confide.train.federated_evaluation import tally_of
from confide.train.job import describe
from confide.train.joining import trained_alone
from confide.train.learner import Learner, Model
from confide.train.ledger import Ledger
from confide.train.local import Silo, flatten
from confide.train.parts import (
    aggregator_named,
    aggregator_of,
    checked_aggregator,
    checked_quorum,
    classes_of,
    encoding_of,
    plan_of,
    preprocess_of,
    start_of,
    updates_of,
)
from confide.train.preparing import Preparation, PreparingSum, prepared, preparing_of
from confide.train.rounds import Round, federate
from confide.train.sections import Job, TrainSection, default_quorum, names_of, parties_of
from confide.train.units import require_unit, silo_of, unit_of
from confide.wire import Fault, Store

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a job stands for once its data is read.

    Args:
        preprocess: public, from the schema's bounds, or from a sum over the parties if the job standardises.
        silos: the parties with their training records.
        test: records that no party trains on.
        start: the public starting point.
        held: the parties with the records of `test` that are theirs; none if data.test names a table of nobody's.
        plan: under which it was prepared from records, if it was under one.
        begun: the last line of the ledger that says so.
        class_weights: from the same sum, if the job balances the classes.
        budget: that every training is charged to, if the job names one.
        origin: where the secret randomness of the preparation came from; empty if there was none.
    """

    preprocess: Preprocess
    silos: tuple[Silo, ...]
    test: Silo
    start: Graph
    held: tuple[Silo, ...] = ()
    plan: PrivacyPlan | None = None
    begun: str | None = None
    class_weights: tuple[float, ...] = ()
    budget: JobBudget | None = None
    origin: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the parties' names in their order."""
        return tuple(silo.name for silo in self.silos)


class Trained(Protocol):
    """What a label and a saved model say about a training, beside its rounds: `Prepared`, or a federation's setting."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def preprocess(self) -> Preprocess: ...
    @property
    def start(self) -> Graph: ...


def load_data(job: Job, *, rng: Randomness | None = None, ledger: Ledger | None = None) -> Prepared:
    """Read what `job` names and prepare it.

    Args:
        job: what to read; with data.standardise or train.class_weights the parties take one sum here.
        rng: secret randomness of that sum; the operating system's if None.
        ledger: gets the job and that sum, before it is taken, if it has noise; nothing is written otherwise.

    Raises:
        DataError: a schema or table does not hold, or a party has no records.
        JobError: the job contradicts itself (a quorum above the parties ...).
        ModelError: the encoder that it names cannot run.
        PrivacyError: the job does not fit into its data set's budget; no row was read.
    """
    seed, rng = job.job.seed, rng or SystemRandomness()
    if job.data.nodes:
        raise JobError(
            "Expected data.tables, got data.nodes; their tables stay with the nodes: run this job as `confide "
            "coordinator`, or name a table for each party"
        )
    if job.train.aggregate == "tee" and job.train.attester != "simulated":
        raise JobError(
            'Expected train.attester="simulated" with train.aggregate="tee" in one process, which has no enclave: '
            "it is a trial then; on hardware it takes nodes, and `confide node --attester NAME` at the enclave's"
        )
    budget = budget_of(job)
    if budget is not None:
        budget.check()
    if job.data.set is not None:
        schema, table = load_set(job.data.set)
        train_part, test = holdout(table, fraction=job.data.test_fraction, seed=seed)
        names = names_of(job)
        if job.data.split == "even":
            tables = even(train_part, names, seed=seed)
        else:
            tables = by_label(train_part, names, alpha=job.data.alpha, seed=seed)
        held = alike(test, tables, seed=seed)
    else:
        schema = Schema.load(job.path(str(job.data.schema)))
        require_unit(job, schema)
        _check_different(job)
        tables = _read(job, schema)
        if job.data.test is not None:
            test, held = read_table(job.path(job.data.test), schema), {}
        else:
            parts = {name: set_aside(job, table) for name, table in tables.items()}
            tables, held = ({name: part[side] for name, part in parts.items()} for side in (0, 1))
            test = Table.concatenate(list(held.values()))
    encoder = Encoder.read(job.path(job.model.encoder)) if job.model.encoder else None
    preprocess = preprocess_of(schema, job, encoder=encoder)
    start = start_of(job, preprocess.features, schema.label.classes, preprocess=preprocess)
    if budget is not None and preparing_of(job, preprocess, classes_of(start)) is not None:
        budget.charge()
    # A centre follows from features that are needed again; those of images take minutes.
    once = job.data.standardise == "centre"
    fixed = {name: preprocess.fixed(table.columns) for name, table in tables.items()} if once else {}
    done, plan = _prepared(job, preprocess, tables, start, rng, ledger, fixed)
    preprocess = done.preprocess

    def silo(name: str, table: Table) -> Silo:
        return silo_of(job, name, preprocess, table, fixed=fixed.pop(name, None))

    return Prepared(
        preprocess=preprocess,
        silos=tuple(silo(name, table) for name, table in tables.items()),
        test=silo("test", test),
        start=start,
        held=tuple(silo(name, table) for name, table in held.items()),
        plan=plan,
        begun=ledger.head if ledger is not None and plan is not None else None,
        class_weights=done.class_weights,
        budget=budget,
        origin=rng.origin if plan is not None else "",
    )


def budget_of(job: Job, *, cost: float | None = None) -> JobBudget | None:
    """Return the account that a job is charged to, from its schema alone; None without data.budget.

    Args:
        cost: epsilon of a search among many runs of the job; None for one run.

    Raises:
        DataError: the schema does not hold.
        JobError: it has no name that a budget can be kept by.
    """
    if job.data.budget is None:
        return None
    plans, text, name = plans_of(job)
    return JobBudget(job, name_of(job, name), schema_hash(text), plans, cost=cost)


def plans_of(job: Job) -> tuple[list[PrivacyPlan], str, str]:
    """Return the plans of all that a job releases, its training first, with its schema's text and name."""
    where = job.data.set or str(job.path(str(job.data.schema)))
    text = schema_text(job.data.set) if job.data.set else Schema.text(Path(where))
    schema, parties = Schema.read(text, where=where), parties_of(job)
    require_unit(job, schema)
    preprocess = preprocess_of(schema, job)
    start = start_of(job, preprocess.features, schema.label.classes, preprocess=preprocess)
    plan = plan_of(job, start, parties, preprocess=preprocess)
    assert not isinstance(plan, ClientPlan)  # refused when the job was read
    plans = [plan]
    if job.data.evaluate == "federated":
        plans.append(tally_of(job, start, parties).plan)
    return [plan for plan in plans if isinstance(plan, PrivacyPlan)], text, schema.name


def _read(job: Job, schema: Schema) -> dict[str, Table]:
    """Return the table of each party."""
    if job.data.split_by is None:
        return {name: read_table(job.path(path), schema) for name, path in job.data.tables.items()}
    return by_column(job.path(str(job.data.table)), schema, job.data.split_by, job.data.names)


def _check_different(job: Job) -> None:
    """Refuse one file or query for two parties: its records would count twice, and be hidden half."""
    whole = {"data.table": job.data.table, "data.test": job.data.test}
    files = {**job.data.tables, **{name: path for name, path in whole.items() if path}}
    seen: dict[tuple[object, object], str] = {}
    for name, path in files.items():
        if not job.path(path).exists():
            continue  # named when it is read
        source = open_source(job.path(path))
        if source.file is not None and not source.file.exists():
            continue
        found = None if source.file is None else source.file.stat()
        place = (source.url, source.query) if found is None else (found.st_dev, found.st_ino)
        other = seen.setdefault(place, name)
        if other != name:
            raise JobError(f"Expected a table for each party, got one for {other} and {name}; name different ones")


def _prepared(
    job: Job,
    preprocess: Preprocess,
    tables: Mapping[str, Table],
    start: Graph,
    rng: Randomness,
    ledger: Ledger | None,
    fixed: Mapping[str, Matrix],
) -> tuple[Preparation, PrivacyPlan | None]:
    """Return the preparation after its sum, if the job has one, and the plan that a noisy sum is a part of."""
    names = tuple(tables)
    preparing = preparing_of(job, preprocess, classes_of(start))
    if preparing is None:
        return Preparation(preprocess), None
    if job.privacy is not None:
        checked_aggregator(job, names)
    plan = plan_of(job, start, len(names), preprocess=preprocess)
    assert not isinstance(plan, ClientPlan)  # refused when the job was read
    if plan is not None:
        approve(flatten(start), job.train.start_hash)
        _begin(job, names, start, ledger)
    done = prepared(
        PreparingSum(preparing, job.train.expected_records, plan),
        tables,
        aggregator=aggregator_of(job, of_updates=False),
        quorum=checked_quorum(job, len(names)),
        rng=rng,
        run_id=job.job.name,
        ledger=ledger,
        fixed=fixed,
    )
    return done, plan


def _begin(job: Job, names: tuple[str, ...], start: Graph, ledger: Ledger | None) -> None:
    if ledger is not None:
        fields = {"run": job.job.name, "job": describe(job), "parties": list(names)}
        ledger.append("job", fields | {"start": parameters_hash(flatten(start)).hex()})


def set_aside(job: Job, table: Table) -> tuple[Table, Table]:
    """Return a party's (training records, held-out records) as a job splits them.

    Under a privacy plan each record goes to its side by its own content: it may not decide where others go. Where a
    unit is more than a record, all of its records go to one side, at every party the same.
    """
    if job.privacy is None:
        return holdout(table, fraction=job.data.test_fraction, seed=job.job.seed)
    return aside(table, fraction=job.data.test_fraction, seed=job.job.seed, unit=unit_of(job))


def _check_statistics(learner: Learner[Any], train: TrainSection) -> None:
    """Refuse what would make running statistics into something that no data has, such as a negative variance.

    Raises:
        JobError: with what to take instead.
    """
    moved = train.momentum > 0 or train.server_learning_rate > 1 or train.algorithm in ADAPTIVE
    if learner.statistics and (moved or train.compress != "none"):
        raise JobError(
            f"Expected no running statistics (BatchNorm) in what travels, with train.momentum={train.momentum}, "
            f'train.algorithm="{train.algorithm}" and train.compress="{train.compress}"; only plain averages keep a '
            "variance above 0. Keep them at the silos (private=...), or take momentum 0, no adaptive algorithm and no "
            "compression"
        )


def fit(
    learner: Learner[Model],
    silos: Sequence[Silo],
    train: TrainSection,
    *,
    aggregator: Aggregator | None = None,
    rng: Randomness | None = None,
    run_id: str = "fit",
    ledger: Ledger | None = None,
    fault: Fault | None = None,
    stores: Mapping[str, Store] | None = None,
) -> Iterator[Round[Model]]:
    """Train a model of your own over `silos`, yielding after every round; leaving the loop stops the training.

    No differential privacy: the model may tell about single records.

    Args:
        learner: the model and its local training, such as a `TorchLearner`.
        silos: the parties.
        train: from `train_section`.
        aggregator: who sums, instead of the one that `train` names.
        rng: secret randomness; the operating system's if None.
        ledger: gets [train], the parties and every round.
        fault: what the simulated network does to messages.
        stores: of the silos, for what they keep (control variates, personal models); in memory if None.

    Raises:
        JobError: no aggregator has that name.
        Aborted: a round lost its quorum in each of its attempts.
    """
    approve(learner.start, train.start_hash)
    _check_statistics(learner, train)
    aggregator = aggregator or aggregator_named(train, len(silos))
    names = tuple(silo.name for silo in silos)
    aggregator.check(Cohort(names, train.quorum or default_quorum(len(names))))
    if ledger is not None:
        fields = {"run": run_id, "train": msgspec.json.encode(train).decode(), "parties": list(names)}
        ledger.append("fit", fields | {"start": parameters_hash(learner.start).hex()})
    return federate(
        silos,
        updates_of(learner, train, len(silos)),
        train,
        aggregator=aggregator,
        rng=rng or SystemRandomness(),
        run_id=run_id,
        ledger=ledger,
        fault=fault,
        stores=stores,
    )


def train(
    job: Job,
    data: Prepared,
    *,
    rng: Randomness | None = None,
    ledger: Ledger | None = None,
    fault: Fault | None = None,
) -> Iterator[Round[Graph]]:
    """Train as `job` says, yielding after every round; leaving the loop stops the training.

    Args:
        job: what to run.
        data: from `load_data`.
        rng: secret randomness; the operating system's if None. A fixed seed voids every privacy claim.
        ledger: gets the job and every round.
        fault: what the simulated network does to messages.

    Raises:
        JobError: the job contradicts itself.
        IntegrityError: the starting parameters are not those of train.start_hash.
        Aborted: a round lost its quorum in each of its attempts.
        PrivacyError: the job does not fit into its data set's budget.
    """
    names = data.names
    aggregator = checked_aggregator(job, names)  # before a ledger says that there is a run
    encoding = encoding_of(job, data.start, len(names), preprocess=data.preprocess, class_weights=data.class_weights)
    approve(encoding.learner.start, job.train.start_hash)
    _check_prepared(job, data)
    if data.budget is not None:
        data.budget.begin()
    if ledger is not None and not (data.begun and ledger.head == data.begun):  # else the run has begun
        _begin(job, names, data.start, ledger)
        if data.plan is not None:
            ledger.append("release", {"of": "preparation", "attempt": 1, "epsilon": data.plan.spent(0)})
    rounds = federate(
        data.silos,
        encoding,
        job.train,
        aggregator=aggregator,
        rng=rng or SystemRandomness(),
        run_id=job.job.name,
        ledger=ledger,
        fault=fault,
        start_hash=job.train.start_hash,
    )
    if data.origin in ("", SystemRandomness.origin):
        return rounds
    return (replace(done, origin=data.origin) for done in rounds)  # the weaker of the two is what the label must say


def _check_prepared(job: Job, data: Prepared) -> None:
    """Refuse data whose preparation was computed from records and is not accounted together with this training.

    Raises:
        PrivacyError: the job has a [privacy], and `load_data` did not prepare the data under it.
    """
    plan = plan_of(job, data.start, len(data.names), preprocess=data.preprocess)
    if plan is None:
        return
    charged = plan if isinstance(plan, PrivacyPlan) and plan.preparation is not None else None
    from_records = bool(data.class_weights or data.preprocess.centre) or any(
        isinstance(rule, Scale) and rule.standard is not None for rule in data.preprocess.rules
    )
    if data.plan != charged or (from_records and charged is None):
        raise PrivacyError(
            "Expected data that load_data has prepared under this job's [privacy], data.standardise and "
            "train.class_weights; what it takes from records is accounted together with the training"
        )


def start_hash(data: Prepared) -> str:
    """Return hex SHA-256 of the starting parameters: what parties compare before the first round."""
    return parameters_hash(flatten(data.start)).hex()


def pooled_model(job: Job, data: Prepared) -> Graph:
    """Return the model of all training records in one place: the non-private ceiling."""
    x = np.concatenate([silo.x for silo in data.silos])
    y = np.concatenate([silo.y for silo in data.silos])
    return trained_alone(job, data.preprocess, data.start, x, y, class_weights=data.class_weights)


def local_models(job: Job, data: Prepared) -> dict[str, Graph]:
    """Return the model of each party alone: the fall-back that a federation must beat."""
    return {
        silo.name: trained_alone(job, data.preprocess, data.start, silo.x, silo.y, class_weights=data.class_weights)
        for silo in data.silos
    }
