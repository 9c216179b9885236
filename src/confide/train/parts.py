"""What a job stands for before any record is read: model, preparation, aggregator, privacy plan and encoding.

All of it is a function of the job and the schema, so every party works it out for itself and comes to the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from confide.data.schema import Category, Image, Number, Schema
from confide.dp.client_plan import ClientPlan
from confide.dp.factorisation import banded
from confide.dp.plan import NEWTON, RECORD, STATISTICS, PrivacyPlan
from confide.dp.release import Portion
from confide.errors import JobError, PrivacyError, nearest
from confide.he.aggregate import EncryptedSum
from confide.ideal import Aggregator, Cohort, PlainSum
from confide.model.encoded import Encoded
from confide.model.encoder import Encoder
from confide.model.graph import Graph
from confide.model.pixels import Pixels
from confide.model.preprocess import OneHot, Preprocess, Projection, Scale
from confide.model.zoo import boosted, hazard, logistic, mlp
from confide.secagg.amortised import ROUNDS_PER_EPOCH, Amortised
from confide.secagg.groups import Groups
from confide.secagg.masked import Masked
from confide.secagg.neighbours import LARGEST_COMPLETE, degree_for
from confide.secagg.shares import Shares
from confide.tee.aggregate import Enclaves, Tee, simulated_enclaves
from confide.train.additive_columns import AdditiveColumns, additive
from confide.train.boosting import Boosting
from confide.train.client_level import ClientUpdates
from confide.train.contradictions import check_groups, check_norm_bound
from confide.train.contradictions_in_enclaves import check_enclave
from confide.train.cox import Cox
from confide.train.encodings import Encoding, PrivateGradients, Scaffold, WeightedUpdates, integer_norm_bound
from confide.train.hazard_head import HazardHead
from confide.train.image_features import pixels_of
from confide.train.learner import GraphLearner, Learner
from confide.train.linear_head import LinearHead, is_hazard, is_head
from confide.train.newton import newton_of
from confide.train.prepared_rounds import PreparedRounds
from confide.train.preparing import Preparation, PreparingSum, preparing_of
from confide.train.private_trees import PrivateTrees, releases_of
from confide.train.quantiles import even_edges
from confide.train.sections import Job, TrainSection, default_quorum, group_size, names_of, parties_of
from confide.train.statistics import Statistics, moments_of

#: What can add the updates; the conformance suite and the comparison run over this table.
AGGREGATORS: Mapping[str, type[Aggregator]] = {
    "amortised": Amortised,
    "groups": Groups,
    "he": EncryptedSum,
    "masked": Masked,
    "plain": PlainSum,
    "shares": Shares,
    "tee": Tee,
}


def start_of(job: Job, features: int, classes: tuple[str, ...], *, preprocess: Preprocess | None = None) -> Graph:
    """Return the public starting point of a job's model: a function of the job and the schema alone.

    Args:
        preprocess: which additive trees follow from; others need the number of `features` only.
    """
    outputs = 1 if len(classes) <= 2 else len(classes)
    if job.train.algorithm == "additive":
        if preprocess is None or outputs > 1:
            raise JobError('Expected two classes with model.kind="trees" and [privacy]; take kind = "logistic"')
        return additive(preprocess, classes=classes)
    if job.trees is not None:
        return boosted(features, job.trees.count, job.trees.depth, outputs, classes=classes)
    if job.model.kind == "cox":
        return hazard(features)
    if job.model.kind == "mlp":
        return mlp(features, job.model.hidden, outputs, seed=job.job.seed, classes=classes)
    return logistic(features, outputs, classes=classes)


def preprocess_of(schema: Schema, job: Job, *, encoder: Encoder | None = None) -> Preprocess:
    """Return the public preprocessing that a schema's bounds and categories give, with what a job does to features.

    Args:
        encoder: that model.encoder names.

    Raises:
        JobError: [model] asks for features of images, and the schema has none; or for an encoder that is not here.
        ModelError: images too small, or features too many or too few, for what [model] asks.
    """
    model, trees = job.model, job.trees
    rules: list[Scale | OneHot | Pixels | Encoded] = []
    for column in schema.columns:
        match column:
            case Number(name=name, low=low, high=high, missing=missing, outside=outside, bins=bins):
                edges = bins if bins or trees is None else even_edges(low, high, trees.bins)
                rule = Scale(name=name, low=low, high=high, missing=missing, outside=outside, bins=edges)
                rules.append(rule if trees is None else msgspec.structs.replace(rule, ordinal=True))
            case Category(name=name, categories=categories, missing=missing):
                rules.append(OneHot(name=name, categories=categories, missing=missing))
            case Image():
                rules.append(pixels_of(column, model, encoder))
    if model.features != "columns" and not any(isinstance(rule, Pixels | Encoded) for rule in rules):
        raise JobError(
            f'Expected a column of images in the schema for model.features="{model.features}"; take "columns", which '
            "uses every column as the schema bounds it"
        )
    projection = Projection(outputs=model.project, seed=job.job.seed) if model.project else None
    return Preprocess(tuple(rules), model.unit_rows, projection)


def _quorum(job: Job, parties: int) -> int:
    return job.train.quorum or default_quorum(parties)


def checked_quorum(job: Job, parties: int) -> int:
    """Return the fewest parties in a sum.

    Raises:
        JobError: there are not as many.
    """
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
    preparation = _portion(job, job.privacy.preprocessing_share, start, preprocess)
    left = 1 - preparation.share if preparation else 1.0
    return PrivacyPlan.calibrate(
        **_releases(job, start, left, preprocess),
        epsilon=job.privacy.epsilon,
        delta=job.privacy.delta,
        silos=parties,
        quorum=quorum,
        colluding=job.privacy.colluding,
        expected_records=job.privacy.expected_records,
        max_records=job.privacy.max_records or 4 * job.privacy.expected_records,
        preparation=preparation,
        unit=job.privacy.unit,
        parties_per_unit=job.privacy.parties_per_unit,
    )


def _releases(job: Job, start: Graph, left: float, preprocess: Preprocess | None) -> dict[str, Any]:
    """Return what is released in a training under [privacy], for `PrivacyPlan.calibrate`; it gets `left` of mu^2."""
    assert job.privacy is not None
    if job.train.algorithm == "additive":
        if preprocess is None:
            raise PrivacyError("Expected what trees see of a record; without it their releases are not accounted")
        share = left * job.privacy.statistics_share
        return releases_of(AdditiveColumns.of(preprocess), rounds=job.train.rounds, counts_share=share)
    moments = moments_of(start, job.train, job.privacy) if is_head(start) else None
    if job.train.algorithm == "statistics" and moments is not None:
        return {
            "clip_norm": moments.clip_norm,
            "length": moments.length,
            "grid": moments.sensitivity,
            "rounds": job.train.rounds,
            "mechanism": STATISTICS,
        }
    found: dict[str, Any] = {"clip_norm": job.privacy.clip_norm, "length": start.parameters, "rounds": job.train.rounds}
    if (is_head(start) or is_hazard(start)) and job.privacy.unit == RECORD:
        found["grid"] = _head(job, start).sums.grid
    if job.train.algorithm == "newton" and moments is not None:
        share = left * job.privacy.statistics_share
        found["rounds"], found["mechanism"] = job.train.rounds - 1, NEWTON
        found["statistics"] = Portion(
            share=share, length=moments.length, clip_norm=moments.clip_norm, grid=moments.sensitivity, of=STATISTICS
        )
    return found


def _head(job: Job, start: Graph, class_weights: tuple[float, ...] = ()) -> LinearHead:
    clip_norm = None if job.privacy is None else job.privacy.clip_norm
    if is_hazard(start):
        return HazardHead(start, row_norm=_row_norm(job, start), clip_norm=clip_norm)
    return LinearHead(start, row_norm=_row_norm(job, start), clip_norm=clip_norm, class_weights=class_weights)


def _row_norm(job: Job, start: Graph) -> float:
    """Return the largest norm that a row of features can have."""
    return 1.0 if job.model.unit_rows else math.sqrt(start.features)


def classes_of(start: Graph) -> int:
    """Return how many classes a model tells apart."""
    return max(2, start.outputs)


def _portion(job: Job, share: float, start: Graph, preprocess: Preprocess | None) -> Portion | None:
    if not job.data.standardise and job.train.class_weights == "none":  # quantiles are refused under [privacy]
        return None
    if preprocess is None:
        raise PrivacyError("Expected what is prepared; without it that release is not accounted")
    preparing = preparing_of(job, preprocess, classes_of(start))
    return None if preparing is None else preparing.portion(share)


def _check_noise(job: Job, quorum: int) -> None:
    if job.privacy is not None and quorum <= job.privacy.colluding:
        raise JobError(
            f"Expected privacy.colluding={job.privacy.colluding} below the quorum of {quorum}; "
            "the other parties of the quorum carry the noise"
        )


def aggregator_of(job: Job, *, of_updates: bool = True, enclaves: Enclaves | None = None) -> Aggregator:
    """Return the aggregator that [train] names.

    Args:
        of_updates: False for sums of anything else, which train.norm_bound does not bound and no rule outvotes.
        enclaves: what this member of a federation brings to sums inside an enclave; None where all parties are in this
            process, which can only simulate one.

    Raises:
        JobError: there is none of that name, or its groups cannot outvote the liars.
    """
    private = job.privacy is not None
    aggregator = aggregator_named(job.train, parties_of(job), private=private, of_updates=of_updates, enclaves=enclaves)
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
    quorum = checked_quorum(job, len(names))
    _check_noise(job, quorum)
    if job.privacy is not None and not aggregator.guarantee.hides("update", "server"):
        raise JobError(
            f'Expected train.aggregate to hide updates when there is a [privacy]; under "{aggregator.name}" the server '
            'would see each party with its own share of the noise only: take "masked"'
        )
    aggregator.check(Cohort(names, quorum))
    return aggregator


def encoding_of(
    job: Job,
    start: Graph,
    parties: int,
    *,
    preprocess: Preprocess | None = None,
    class_weights: tuple[float, ...] = (),
) -> Encoding:
    """Return what the parties of a job contribute, from its starting point; `preprocess` as in `plan_of`.

    Args:
        class_weights: from the job's preparation, if it balances the classes.

    Raises:
        JobError: nobody honest is left to carry the noise.
        PrivacyError: no noise keeps what [privacy] promises.
    """
    if job.train.algorithm == "additive":
        plan = plan_of(job, start, parties, preprocess=preprocess)
        assert job.trees is not None
        assert preprocess is not None
        assert isinstance(plan, PrivacyPlan)
        columns, effects = AdditiveColumns.of(preprocess), job.trees.effects
        return PrivateTrees(start, columns, plan, effects=effects, class_weights=class_weights)
    if job.trees is not None:
        assert preprocess is not None
        return Boosting(start, job.train, job.trees, preprocess, class_weights=class_weights)
    learner = GraphLearner(start, job.train, class_weights=class_weights)
    plan = plan_of(job, start, parties, preprocess=preprocess)
    if isinstance(plan, ClientPlan):
        return ClientUpdates(learner, plan, names_of(job))
    if job.train.algorithm == "risk-sets":
        return Cox(learner, job.train, intervals=job.model.intervals)
    if job.train.algorithm == "statistics":
        return Statistics(learner, job.train, moments_of(start, job.train, job.privacy), plan=plan)
    if job.train.algorithm == "newton":
        return newton_of(start, job.train, job.privacy, plan=plan, head=_head(job, start, class_weights))
    if plan is None:
        return updates_of(learner, job.train, parties, seed=job.job.seed)
    # a head's sum clips records; units need every record's gradient
    summed = (is_head(start) or is_hazard(start)) and plan.unit == RECORD
    head = _head(job, start, class_weights) if summed else None
    return PrivateGradients(learner, plan, job.train, head=head)


def rounds_of(job: Job, start: Graph, parties: int, preprocess: Preprocess) -> Encoding:
    """Return what nodes contribute: a job's preparation first, if it has one, then what `encoding_of` says.

    Args:
        preprocess: from the schema alone.
    """
    preparing = preparing_of(job, preprocess, classes_of(start))
    if preparing is None:
        return encoding_of(job, start, parties, preprocess=preprocess)

    def then(done: Preparation) -> Encoding:
        return encoding_of(job, start, parties, preprocess=preprocess, class_weights=done.class_weights)

    plan = plan_of(job, start, parties, preprocess=preprocess)
    assert not isinstance(plan, ClientPlan)  # refused when the job was read
    return PreparedRounds(PreparingSum(preparing, job.train.expected_records, plan), then)


def aggregator_named(
    train: TrainSection,
    parties: int,
    *,
    private: bool = False,
    of_updates: bool = True,
    enclaves: Enclaves | None = None,
) -> Aggregator:
    """Return the aggregator that [train] names; see `aggregator_of`.

    Args:
        private: whether the vectors carry noise.
        of_updates: whether they are updates, which train.norm_bound bounds.
        enclaves: as in `aggregator_of`.
    """
    name = train.aggregate
    if name == "mpc":
        raise JobError(
            'Expected a sum of updates, got train.aggregate="mpc", which trains on shares of rows: `confide train` '
            'runs it; take "masked" for everything else'
        )
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
    if name == "tee":
        check_enclave(train, parties, private=private)
        simulated = train.attester == "simulated"
        brought = simulated_enclaves() if simulated and enclaves is None else enclaves
        rule, liars = (train.rule, train.liars) if of_updates else ("mean", 0)
        return Tee(rule=rule, liars=liars, simulated=simulated, enclaves=brought)
    if name == "groups":
        check_groups(train, parties, private=private)
        return Groups(group_size(train, parties))
    if name == "amortised":  # whose set-up prepares keys for every round, from 1, and for the evaluation after them
        return Amortised(epochs=(train.rounds + 2) // ROUNDS_PER_EPOCH + 1)  # and perhaps a preparation
    return AGGREGATORS[name]()


def updates_of(learner: Learner[Any], train: TrainSection, parties: int, *, seed: int = 0) -> Encoding:
    """Return what the parties contribute under the algorithm that [train] names, without a privacy plan."""
    if train.algorithm == "scaffold":
        return Scaffold(learner, train, parties=parties)
    return WeightedUpdates(learner, train, seed=seed)


def hidden_among(job: Job, parties: int) -> int | None:
    """Return the fewest parties in any sum that the server sees; None where it sees their vectors."""
    aggregator, quorum = aggregator_of(job), _quorum(job, parties)
    if not aggregator.guarantee.hides("update", "server"):
        return None
    return aggregator.fewest(parties, quorum) if isinstance(aggregator, Groups) else quorum
