"""From a job to a signed model: load what each party holds, train, label, save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness, SystemRandomness
from confide.data.schema import Category, Image, Number, Schema
from confide.data.sets import load_set
from confide.data.split import alike, aside, by_label, even, holdout
from confide.data.table import Table, read_table
from confide.dp.client_plan import ClientPlan
from confide.dp.factorisation import banded
from confide.dp.plan import STATISTICS, PrivacyPlan
from confide.dp.release import Portion
from confide.errors import JobError, PrivacyError, nearest
from confide.he.aggregate import EncryptedSum
from confide.ideal import Aggregator, Cohort, PlainSum
from confide.model.graph import Graph
from confide.model.preprocess import Columns, OneHot, Pixels, Preprocess, Projection, Scale
from confide.model.zoo import logistic, mlp
from confide.secagg.amortised import ROUNDS_PER_EPOCH, Amortised
from confide.secagg.groups import Groups
from confide.secagg.masked import Masked
from confide.secagg.neighbours import LARGEST_COMPLETE, degree_for
from confide.secagg.shares import Shares
from confide.train.client_level import ClientUpdates
from confide.train.contradictions import ADAPTIVE, check_groups, check_norm_bound
from confide.train.course import approve, parameters_hash
from confide.train.encodings import Encoding, PrivateGradients, Scaffold, WeightedUpdates, integer_norm_bound
from confide.train.job import describe
from confide.train.joining import trained_alone
from confide.train.learner import GraphLearner, Learner, Model
from confide.train.ledger import Ledger
from confide.train.local import Silo, flatten
from confide.train.rounds import Round, federate
from confide.train.sections import Job, ModelSection, TrainSection, default_quorum, group_size, names_of, parties_of
from confide.train.standardise import standardised
from confide.train.standardise_privately import portion_of, standardised_privately
from confide.train.statistics import Statistics, moments_of
from confide.wire import Fault, Store

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

#: What can add the updates; the conformance suite and the comparison run over this table.
AGGREGATORS: Mapping[str, type[Aggregator]] = {
    "amortised": Amortised,
    "groups": Groups,
    "he": EncryptedSum,
    "masked": Masked,
    "plain": PlainSum,
    "shares": Shares,
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a job stands for once its data is read.

    Args:
        preprocess: public, from the schema's bounds, or from a sum over the parties if the job standardises.
        silos: the parties with their training records.
        test: records that no party trains on.
        start: the public starting point.
        held: the parties with the records of `test` that are theirs; none if data.test names a table of nobody's.
        plan: under which it was standardised, if it was under one.
        begun: the last line of the ledger that says so.
    """

    preprocess: Preprocess
    silos: tuple[Silo, ...]
    test: Silo
    start: Graph
    held: tuple[Silo, ...] = ()
    plan: PrivacyPlan | None = None
    begun: str | None = None

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
        job: what to read; with data.standardise the parties take one sum here.
        rng: secret randomness of that sum; the operating system's if None.
        ledger: gets the job and that sum, before it is taken, if it has noise; nothing is written otherwise.

    Raises:
        DataError: a schema or table does not hold, or a party has no records.
        JobError: the job contradicts itself (a quorum above the parties ...).
    """
    seed = job.job.seed
    if job.data.nodes:
        raise JobError(
            "Expected data.tables, got data.nodes; their tables stay with the nodes: run this job as `confide "
            "coordinator`, or name a table for each party"
        )
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
        tables = {name: read_table(job.path(path), schema) for name, path in job.data.tables.items()}
        if job.data.test is not None:
            test, held = read_table(job.path(job.data.test), schema), {}
        else:
            parts = {name: set_aside(job, table) for name, table in tables.items()}
            tables, held = ({name: part[side] for name, part in parts.items()} for side in (0, 1))
            test = Table.concatenate(list(held.values()))
    preprocess = preprocess_of(schema, job.model, seed=seed)
    start, plan = start_of(job, preprocess.features, schema.label.classes), None
    centre = job.data.standardise == "centre"
    if job.data.standardise and job.privacy:
        columns = {name: table.columns for name, table in tables.items()}
        preprocess, plan = _standardised_privately(job, preprocess, columns, start, rng, ledger)
    elif job.data.standardise:
        preprocess = standardised(
            preprocess,
            {name: table.columns for name, table in tables.items()},
            centre=centre,
            aggregator=aggregator_of(job, of_updates=False),
            quorum=_checked_quorum(job, len(tables)),
            expected_records=job.train.expected_records,
            rng=rng or SystemRandomness(),
            run_id=job.job.name,
        )

    def silo(name: str, table: Table) -> Silo:
        return Silo(name, preprocess.apply(table.columns), table.labels)

    return Prepared(
        preprocess=preprocess,
        silos=tuple(silo(name, table) for name, table in tables.items()),
        test=silo("test", test),
        start=start,
        held=tuple(silo(name, table) for name, table in held.items()),
        plan=plan,
        begun=ledger.head if ledger is not None and plan is not None else None,
    )


def _standardised_privately(
    job: Job,
    preprocess: Preprocess,
    columns: Mapping[str, Columns],
    start: Graph,
    rng: Randomness | None,
    ledger: Ledger | None,
) -> tuple[Preprocess, PrivacyPlan | None]:
    """Return the preparation after its noisy sum and the plan that the sum is a part of; None if there is no number."""
    names = tuple(columns)
    checked_aggregator(job, names)
    plan = plan_of(job, start, len(names), preprocess=preprocess)
    if not isinstance(plan, PrivacyPlan) or plan.preparation is None:
        return preprocess, None
    approve(encoding_of(job, start, len(names), preprocess=preprocess).learner.start, job.train.start_hash)
    _begin(job, names, start, ledger)
    done = standardised_privately(
        preprocess,
        columns,
        plan=plan,
        centre=job.data.standardise == "centre",
        aggregator=aggregator_of(job, of_updates=False),
        quorum=plan.quorum,
        rng=rng or SystemRandomness(),
        run_id=job.job.name,
        ledger=ledger,
    )
    return done, plan


def _begin(job: Job, names: tuple[str, ...], start: Graph, ledger: Ledger | None) -> None:
    if ledger is not None:
        fields = {"run": job.job.name, "job": describe(job), "parties": list(names)}
        ledger.append("job", fields | {"start": parameters_hash(flatten(start)).hex()})


def set_aside(job: Job, table: Table) -> tuple[Table, Table]:
    """Return a party's (training records, held-out records) as a job splits them.

    Under a privacy plan each record goes to its side by its own content: it may not decide where others go.
    """
    apart = aside if job.privacy else holdout
    return apart(table, fraction=job.data.test_fraction, seed=job.job.seed)


def start_of(job: Job, features: int, classes: tuple[str, ...]) -> Graph:
    """Return the public starting point of a job's model: a function of the job and the schema alone."""
    outputs = 1 if len(classes) <= 2 else len(classes)
    if job.model.kind == "mlp":
        return mlp(features, job.model.hidden, outputs, seed=job.job.seed, classes=classes)
    return logistic(features, outputs, classes=classes)


def preprocess_of(schema: Schema, model: ModelSection, *, seed: int) -> Preprocess:
    """Return the public preprocessing that a schema's bounds and categories give, with what [model] does to features.

    Args:
        seed: of the public choice of a projection.

    Raises:
        JobError: [model] asks for features of images, and the schema has none.
        ModelError: images too small, or features too many or too few, for what [model] asks.
    """
    rules: list[Scale | OneHot | Pixels] = []
    transform: dict[str, Any] = {}
    if model.features != "columns":
        transform = {
            "scales": model.scales,
            "angles": model.angles,
            "averaged": model.features == "scattering-mean",
            "groups": model.channel_groups,
        }
    for column in schema.columns:
        match column:
            case Number(name=name, low=low, high=high, missing=missing, outside=outside, bins=bins):
                rules.append(Scale(name=name, low=low, high=high, missing=missing, outside=outside, bins=bins))
            case Category(name=name, categories=categories, missing=missing):
                rules.append(OneHot(name=name, categories=categories, missing=missing))
            case Image(name=name, height=height, width=width, low=low, high=high):
                rules.append(Pixels(name=name, height=height, width=width, low=low, high=high, **transform))
    if transform and not any(isinstance(rule, Pixels) for rule in rules):
        raise JobError(
            f'Expected a column of images in the schema for model.features="{model.features}"; take "columns", which '
            "uses every column as the schema bounds it"
        )
    projection = Projection(outputs=model.project, seed=seed) if model.project else None
    return Preprocess(tuple(rules), model.unit_rows, projection)


def _quorum(job: Job, parties: int) -> int:
    return job.train.quorum or default_quorum(parties)


def _checked_quorum(job: Job, parties: int) -> int:
    if job.train.quorum > parties:
        raise JobError(f"Expected train.quorum={job.train.quorum} to be at most the {parties} parties")
    return _quorum(job, parties)


def plan_of(
    job: Job, start: Graph, parties: int, *, preprocess: Preprocess | None = None
) -> PrivacyPlan | ClientPlan | None:
    """Return the privacy plan of a job from its starting point, calibrated; None without [privacy].

    Args:
        preprocess: what is standardised; needed if the job standardises.

    Raises:
        PrivacyError: the job standardises, and `preprocess` is not given: its release would not be accounted.
        JobError: nobody honest is left to carry the noise.
    """
    if job.privacy is None:
        return None
    quorum = _quorum(job, parties)
    _check_noise(job, quorum)
    if job.privacy.unit == "client":
        return ClientPlan.calibrate(
            epsilon=job.privacy.epsilon,
            delta=job.privacy.delta,
            clip_norm=job.privacy.clip_norm,
            bands=banded(job.train.rounds, job.train.rotation, job.privacy.bands or job.train.rotation),
            length=start.parameters,
            clients=parties,
            quorum=quorum,
            colluding=job.privacy.colluding,
        )
    if job.train.algorithm == "statistics":
        moments = moments_of(start, job.train, job.privacy)
        vector: dict[str, Any] = {
            "clip_norm": moments.clip_norm,
            "length": moments.length,
            "grid": moments.sensitivity,
            "mechanism": STATISTICS,
        }
    else:
        vector = {"clip_norm": job.privacy.clip_norm, "length": start.parameters}
    return PrivacyPlan.calibrate(
        **vector,
        epsilon=job.privacy.epsilon,
        delta=job.privacy.delta,
        rounds=job.train.rounds,
        silos=parties,
        quorum=quorum,
        colluding=job.privacy.colluding,
        expected_records=job.privacy.expected_records,
        max_records=job.privacy.max_records or 4 * job.privacy.expected_records,
        preparation=_portion(job, job.privacy.preprocessing_share, preprocess),
    )


def _portion(job: Job, share: float, preprocess: Preprocess | None) -> Portion | None:
    if not job.data.standardise:
        return None
    if preprocess is None:
        raise PrivacyError("Expected what is standardised; without it that release is not accounted")
    return portion_of(preprocess, share, centre=job.data.standardise == "centre")


def _check_noise(job: Job, quorum: int) -> None:
    if job.privacy is not None and quorum <= job.privacy.colluding:
        raise JobError(
            f"Expected privacy.colluding={job.privacy.colluding} below the quorum of {quorum}; "
            "the other parties of the quorum carry the noise"
        )


def aggregator_of(job: Job, *, of_updates: bool = True) -> Aggregator:
    """Return the aggregator that [train] names.

    Args:
        of_updates: False for sums of anything else, which train.norm_bound does not bound.

    Raises:
        JobError: there is none of that name, or its groups cannot outvote the liars.
    """
    private = job.privacy is not None
    aggregator = _aggregator_named(job.train, parties_of(job), private=private, of_updates=of_updates)
    if job.train.aggregate == "masked" and job.privacy is not None:
        return Masked(colluding=job.privacy.colluding)  # the sum must hold against as many as the noise does
    return aggregator


def checked_aggregator(job: Job, names: tuple[str, ...]) -> Aggregator:
    """Return the aggregator of a job after checking that it makes sums over parties with these `names`.

    Raises:
        JobError: the quorum is above the parties, nobody honest is left to carry the noise, or the server would see
            single noisy updates.
        UsageError: as `Aggregator.check` says.
    """
    aggregator = aggregator_of(job)
    quorum = _checked_quorum(job, len(names))
    _check_noise(job, quorum)
    if job.privacy is not None and not aggregator.guarantee.hides("update", "server"):
        raise JobError(
            f'Expected train.aggregate to hide updates when there is a [privacy]; under "{aggregator.name}" the server '
            'would see each party with its own share of the noise only: take "masked"'
        )
    aggregator.check(Cohort(names, quorum))
    return aggregator


def encoding_of(job: Job, start: Graph, parties: int, *, preprocess: Preprocess | None = None) -> Encoding:
    """Return what the parties of a job contribute, from its starting point; `preprocess` as in `plan_of`.

    Raises:
        JobError: nobody honest is left to carry the noise.
        PrivacyError: no noise keeps what [privacy] promises.
    """
    learner = GraphLearner(start, job.train)
    plan = plan_of(job, start, parties, preprocess=preprocess)
    if isinstance(plan, ClientPlan):
        return ClientUpdates(learner, plan, names_of(job))
    if job.train.algorithm == "statistics":
        return Statistics(learner, job.train, moments_of(start, job.train, job.privacy), plan=plan)
    if plan is None:
        return _encoding_of(learner, job.train, parties, seed=job.job.seed)
    return PrivateGradients(learner, plan, job.train)


def _aggregator_named(
    train: TrainSection, parties: int, *, private: bool = False, of_updates: bool = True
) -> Aggregator:
    name = train.aggregate
    if name not in AGGREGATORS:
        raise JobError(
            f'Unknown train.aggregate "{name}"{nearest(name, AGGREGATORS)}; there are {", ".join(sorted(AGGREGATORS))}'
        )
    check_norm_bound(train, private=private)
    if name == "masked" and parties > LARGEST_COMPLETE:  # a sparse graph withstands as many as it is told, no more
        spare = 2 * (train.quorum or default_quorum(parties)) - parties - 1
        return Masked(colluding=max(0, min(spare, degree_for(parties) // 4)))
    if name == "shares" and of_updates:
        return Shares(norm_bound=integer_norm_bound(train))
    if name == "groups":
        check_groups(train, parties, private=private)
        return Groups(group_size(train, parties))
    if name == "amortised":  # whose set-up prepares keys for every round, from 1, and for the evaluation after them
        return Amortised(epochs=(train.rounds + 1) // ROUNDS_PER_EPOCH + 1)
    return AGGREGATORS[name]()


def _encoding_of(learner: Learner[Any], train: TrainSection, parties: int, *, seed: int = 0) -> Encoding:
    """Return what the parties contribute under the algorithm that [train] names, without a privacy plan."""
    if train.algorithm == "scaffold":
        return Scaffold(learner, train, parties=parties)
    return WeightedUpdates(learner, train, seed=seed)


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
    aggregator = aggregator or _aggregator_named(train, len(silos))
    names = tuple(silo.name for silo in silos)
    aggregator.check(Cohort(names, train.quorum or default_quorum(len(names))))
    if ledger is not None:
        fields = {"run": run_id, "train": msgspec.json.encode(train).decode(), "parties": list(names)}
        ledger.append("fit", fields | {"start": parameters_hash(learner.start).hex()})
    return federate(
        silos,
        _encoding_of(learner, train, len(silos)),
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
    """
    names = data.names
    aggregator = checked_aggregator(job, names)  # before a ledger says that there is a run
    encoding = encoding_of(job, data.start, len(names), preprocess=data.preprocess)
    approve(encoding.learner.start, job.train.start_hash)
    _check_prepared(job, data)
    if ledger is not None and not (data.begun and ledger.head == data.begun):  # else the run has begun
        _begin(job, names, data.start, ledger)
        if data.plan is not None:
            ledger.append("release", {"of": "preparation", "attempt": 1, "epsilon": data.plan.spent(0)})
    return federate(
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


def _check_prepared(job: Job, data: Prepared) -> None:
    """Refuse data whose preparation was computed from records and is not accounted together with this training.

    Raises:
        PrivacyError: the job has a [privacy], and `load_data` did not prepare the data under it.
    """
    plan = plan_of(job, data.start, len(data.names), preprocess=data.preprocess)
    if plan is None:
        return
    charged = plan if isinstance(plan, PrivacyPlan) and plan.preparation is not None else None
    from_records = any(isinstance(rule, Scale) and rule.standard is not None for rule in data.preprocess.rules)
    if data.plan != charged or (from_records and charged is None):
        raise PrivacyError(
            "Expected data that load_data has prepared under this job's [privacy] and data.standardise; means and "
            "deviations of records are accounted together with the training"
        )


def start_hash(data: Prepared) -> str:
    """Return hex SHA-256 of the starting parameters: what parties compare before the first round."""
    return parameters_hash(flatten(data.start)).hex()


def pooled_model(job: Job, data: Prepared) -> Graph:
    """Return the model of all training records in one place: the non-private ceiling."""
    x = np.concatenate([silo.x for silo in data.silos])
    y = np.concatenate([silo.y for silo in data.silos])
    return trained_alone(job.train, data.start, x, y)


def local_models(job: Job, data: Prepared) -> dict[str, Graph]:
    """Return the model of each party alone: the fall-back that a federation must beat."""
    return {silo.name: trained_alone(job.train, data.start, silo.x, silo.y) for silo in data.silos}


def hidden_among(job: Job, parties: int) -> int | None:
    """Return the fewest parties in any sum that the server sees; None where it sees their vectors."""
    aggregator, quorum = aggregator_of(job), _quorum(job, parties)
    if not aggregator.guarantee.hides("update", "server"):
        return None
    return aggregator.fewest(parties, quorum) if isinstance(aggregator, Groups) else quorum
