"""What a job says and cannot mean: keys that nobody would read, and settings that break each other's promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confide.cohort.robust import fewest
from confide.dp.client_plan import MOST_NOISE, fewest_clients, noise_of_mean
from confide.errors import JobError
from confide.train.contradictions_in_enclaves import check_enclave, check_enclave_for_nodes
from confide.train.sections import Job, ModelSection, TrainSection, group_size, parties_of

ADAPTIVE = ("fedadam", "fedyogi", "fedadagrad")

#: Most parties that may hold records of one unit under "statistics": each gets 16 parts of its weight at least.
MOST_SHARING = 16

#: Which compressions read a key of [train].
COMPRESSED_BY: Mapping[str, tuple[str, ...]] = {
    "compress_bits": ("rotate",),
    "compress_share": ("rand-k", "sketch"),
}

#: Algorithms that move a model step by step.
STEPWISE = ("fedavg", "fedprox", *ADAPTIVE, "scaffold")

#: Which algorithms read a key of [train]; all read those that are not here.
READ_BY: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("server_learning_rate", "update_bound", "fraction_bits"), STEPWISE),
    "momentum": (*STEPWISE, "sgd"),
    "learning_rate": (*STEPWISE, "newton", "boosting", "sgd"),
    "class_weights": (*STEPWISE, "newton", "boosting", "additive"),
    "average": (*STEPWISE, "newton"),
    "weight_decay": (*STEPWISE, "statistics", "newton", "risk-sets", "sgd"),
    "solver": ("statistics", "newton"),
    "proximal": ("fedprox",),
    "second_moment": ("fedadam", "fedyogi"),
    "adaptivity": ADAPTIVE,
}

#: Intervals of a number that grown trees tell apart: a code is one byte, and a missing number has one.
MOST_GROWN = 255

#: The keys of [trees] that only trees without [privacy] read.
OF_BOOSTING = (
    *("count", "depth", "cells", "ridge", "least_hessian", "least_gain", "monotone", "patience", "held_out"),
)

#: The keys of [train] that "groups" reads.
OF_GROUPS = ("group_size", "rule", "liars")

#: Which aggregators read a key of [train]; all read those that are not here.
AGGREGATED_BY: Mapping[str, tuple[str, ...]] = {
    "group_size": ("groups",),
    "rule": ("groups", "tee"),
    "liars": ("groups", "tee"),
    "attester": ("tee",),
}

#: The keys of [model] that only a scattering transform reads.
OF_SCATTERING = ("scales", "angles", "channel_groups", "frequencies", "whiten")


def check_readers(train: TrainSection, given: Mapping[str, Any]) -> None:
    """Refuse what [train] names and would be ignored."""
    name = train.algorithm
    for key, readers in READ_BY.items():
        if key in given and name not in readers:
            raise JobError(f'Expected no train.{key} with train.algorithm="{name}"; it belongs to {", ".join(readers)}')
    for key, readers in AGGREGATED_BY.items():
        if key in given and train.aggregate not in readers:
            belongs = " and ".join(readers)
            raise JobError(f'Expected no train.{key} with train.aggregate="{train.aggregate}"; it belongs to {belongs}')


def check_features(model: ModelSection, given: Mapping[str, Any]) -> None:
    """Refuse what [model] names and would be ignored."""
    for key in OF_SCATTERING:
        if key in given and model.features == "columns":
            raise JobError(f'Expected no model.{key} with model.features="columns"; it belongs to "scattering"')
        if key in given and model.features == "encoder" and key != "whiten":
            raise JobError(f'Expected no model.{key} with model.features="encoder"; it belongs to "scattering"')
    if model.features == "encoder" and (not model.encoder or not model.public_data or model.whiten == "none"):
        raise JobError(
            "Expected model.encoder (its ONNX file) and model.public_data (what it was trained on) with model.features="
            '"encoder", and whiten = "natural" or "strokes", which brings its features to one scale'
        )
    if model.features != "encoder" and (model.encoder or model.public_data):
        raise JobError(f'Expected no model.encoder and no public_data with model.features="{model.features}"')
    if model.frequencies and (model.features != "scattering" or model.channel_groups):
        raise JobError(
            f'Expected no model.frequencies with model.features="{model.features}" and channel_groups='
            f'{model.channel_groups}; they are waves of whole maps, so take features = "scattering" and no groups'
        )


def check_survival(job: Job, given: Mapping[str, Any]) -> None:
    """Refuse what a cox model does not know of, and its keys elsewhere.

    Args:
        given: the keys that somebody wrote in [model].
    """
    cox, private, train = job.model.kind == "cox", job.privacy is not None, job.train
    if "intervals" in given and (not cox or private):
        raise JobError(
            'Expected no model.intervals but with model.kind="cox" and without [privacy]; no other sum has a grid of '
            "times. Leave it out"
        )
    if not cox:
        if train.algorithm == "risk-sets":
            raise JobError(f'Expected model.kind="cox" with train.algorithm="risk-sets", got "{job.model.kind}"')
        return
    wanted = "fedavg" if private else "risk-sets"
    if train.algorithm != wanted or train.local_steps != 1:
        raise JobError(
            f'Expected train.algorithm="{wanted}" and train.local_steps=1 with model.kind="cox"'
            f'{" and a [privacy]" if private else ""}, got "{train.algorithm}" and {train.local_steps}; leave them out'
        )
    if job.privacy is not None and (job.privacy.unit != "record" or not job.model.unit_rows):
        raise JobError(
            'Expected privacy.unit="record" and model.unit_rows=true with model.kind="cox" and a [privacy]; they bound '
            "what is summed of one record"
        )
    if train.class_weights != "none" or job.data.evaluate != "none" or job.data.set is not None:
        raise JobError(
            'Expected no train.class_weights, no data.evaluate and no data.set with model.kind="cox"; they know of '
            "classes alone. Leave them out, and name tables"
        )
    if train.aggregate == "groups" or train.compress != "none" or train.clip_norm or train.norm_bound is not None:
        raise JobError(
            'Expected no train.aggregate="groups", train.compress, train.clip_norm or train.norm_bound with '
            'model.kind="cox"; what is summed are counts over risk sets, which no rule outvotes and nothing compresses'
        )


def check_combinations(job: Job, given: Mapping[str, Any], privacy: Mapping[str, Any]) -> None:
    """Refuse what [train] names and would be ignored, and what [privacy] cannot account for.

    Args:
        job: with every default in its place.
        given, privacy: the keys that somebody wrote in [train] and [privacy].
    """
    name, steps = job.train.algorithm, job.train.local_steps
    check_readers(job.train, given)
    check_units(job)
    if name in ("statistics", "newton"):
        _check_statistics(job, "clip_norm" in privacy)
    check_norm_bound(job.train, private=job.privacy is not None)
    check_compression(job.train, given, private=job.privacy is not None)
    if job.train.aggregate == "groups":
        check_groups(job.train, parties_of(job), private=job.privacy is not None)
    check_enclave(job.train, parties_of(job), private=job.privacy is not None)
    if job.data.evaluate == "federated" and job.data.test is not None:
        raise JobError(
            'Expected no data.test with data.evaluate="federated"; each party evaluates on records of its own. Leave '
            "data.test out, so that data.test_fraction sets them aside"
        )
    if job.data.budget is not None and (job.privacy is None or job.data.nodes):
        raise JobError(
            "Expected [privacy], and data.tables or data.set, with data.budget; no budget bounds a job without noise, "
            "and nodes keep budgets of their own by their policies"
        )
    of_clients = job.privacy is not None and job.privacy.unit == "client"
    if job.privacy is not None and not of_clients and (steps > 1 or name in ("fedprox", "scaffold")):
        raise JobError(
            f'Expected train.local_steps=1 and no fedprox or scaffold with [privacy], got {steps} and "{name}"; '
            "what is clipped and released there is one gradient of each record"
        )
    if name in ("fedprox", "scaffold") and steps == 1:
        raise JobError(
            f'Expected train.local_steps above 1 with train.algorithm="{name}"; after one step no party has drifted, '
            'so take "fedavg", which then equals training on the pooled records'
        )


def check_trees(job: Job, table: Mapping[str, Any]) -> None:
    """Refuse what trees cannot do, and [trees] without them.

    Args:
        job: with every default in its place.
        table: what somebody wrote.
    """
    name = job.train.algorithm
    if job.model.kind != "trees":
        if "trees" in table:
            raise JobError(f'Expected no [trees] with model.kind="{job.model.kind}"; take kind = "trees"')
        if name in ("boosting", "additive"):
            raise JobError(f'Expected model.kind="trees" with train.algorithm="{name}"; other models have gradients')
        return
    assert job.trees is not None
    asked = "additive" if job.privacy else "boosting"
    if name != asked:
        raise JobError(f'Expected train.algorithm="{asked}" with model.kind="trees", got "{name}"; leave it out')
    if job.privacy is not None:
        _check_private_trees(job, table.get("trees", {}))
    elif "effects" in table.get("trees", {}):
        raise JobError("Expected no trees.effects without [privacy]; trees are grown then")
    elif job.trees.bins > MOST_GROWN:
        raise JobError(
            f"Expected trees.bins={job.trees.bins} to be at most {MOST_GROWN} without [privacy]; a code is one byte"
        )
    elif job.train.rounds != 1 + job.trees.count * job.trees.depth:
        raise JobError(
            f'Expected no train.rounds with model.kind="trees": trees.count={job.trees.count} of trees.depth='
            f"{job.trees.depth} take {1 + job.trees.count * job.trees.depth}; leave it out"
        )
    if job.model.features != "columns" or job.model.unit_rows or job.model.project or job.data.standardise:
        raise JobError(
            'Expected columns as the schema has them with model.kind="trees": no model.features, unit_rows or project, '
            "and no data.standardise. Leave them out"
        )
    if job.train.aggregate == "groups" or job.train.compress != "none" or job.train.clip_norm:
        raise JobError(
            'Expected no train.aggregate="groups", compress or clip_norm with model.kind="trees"; splits need the sums '
            'of all parties as they are. Take "masked"'
        )
    if job.train.norm_bound is not None or job.train.local_steps != 1:
        raise JobError('Expected no train.norm_bound and no local_steps with model.kind="trees"; leave them out')
    if wrong := [column for column, rises in job.trees.monotone.items() if rises not in (-1, 1)]:
        raise JobError(f"Expected 1 (rises) or -1 (falls) in trees.monotone for {', '.join(map(repr, wrong))}")


def _check_private_trees(job: Job, given: Mapping[str, Any]) -> None:
    """Refuse what trees under [privacy] do not know; they are one function of each column, and none is grown."""
    assert job.privacy is not None
    assert job.trees is not None
    for key in OF_BOOSTING:
        if key in given:
            raise JobError(f"Expected no trees.{key} with [privacy]: trees are then one function of each column")
    if job.privacy.unit != "record":
        raise JobError(
            f'Expected privacy.unit="record" with model.kind="trees", got "{job.privacy.unit}"; take kind = "logistic" '
            "for units of more than one record"
        )
    if job.trees.edges != "uniform":
        raise JobError('Expected trees.edges="uniform" with [privacy]: many even intervals cost no more noise than few')
    if job.train.rounds < 3:
        raise JobError(f"Expected train.rounds={job.train.rounds} of at least 3 with private trees: counts come first")


def check_units(job: Job) -> None:
    """Refuse what does not know of units that are more than a record; it would be silently wrong about them."""
    privacy = job.privacy
    if privacy is None or privacy.unit in ("record", "client"):
        if privacy is not None and privacy.parties_per_unit > 1:
            raise JobError(
                f'Expected no privacy.parties_per_unit with privacy.unit="{privacy.unit}"; it is at one party'
            )
        return
    unit = f'privacy.unit="{privacy.unit}"'
    if privacy.parties_per_unit > parties_of(job):
        raise JobError(
            f"Expected privacy.parties_per_unit={privacy.parties_per_unit} to be at most the {parties_of(job)} parties"
        )
    if job.train.algorithm == "statistics" and privacy.parties_per_unit > MOST_SHARING:
        raise JobError(
            f"Expected privacy.parties_per_unit={privacy.parties_per_unit} to be at most {MOST_SHARING} with "
            "statistics, whose units share a weight of 256 parts; take fedavg"
        )
    if job.train.algorithm not in ("fedavg", *ADAPTIVE, "statistics"):
        raise JobError(f'Expected train.algorithm "fedavg" or "statistics" with {unit}, got "{job.train.algorithm}"')
    if job.data.standardise:
        raise JobError(f"Expected data.standardise = false with {unit}: its sum is bounded for records only")
    if job.train.class_weights != "none":
        raise JobError(f'Expected train.class_weights="none" with {unit}: its sum is bounded for records only')
    if job.data.evaluate != "none":
        raise JobError(f'Expected data.evaluate="none" with {unit}: its sum is bounded for records only')
    if job.data.set is not None:
        raise JobError(f"Expected data.tables with {unit}; a shipped set does not say whose its records are")


def check_client_level(job: Job, given: Mapping[str, Any], privacy: Mapping[str, Any]) -> None:
    """Refuse what hides no whole clients, or hides them under more noise than a model survives.

    Args:
        job, given, privacy: as in `check_combinations`.
    """
    if job.privacy is None or job.privacy.unit != "client":
        for section, key, asked in (("train", "rotation", given), ("privacy", "bands", privacy)):
            if key in asked:
                raise JobError(
                    f'Expected no {section}.{key} without privacy.unit="client"; elsewhere every party is in every '
                    "round, and each round has noise of its own"
                )
        return
    if job.data.budget is not None:
        raise JobError('Expected no data.budget with privacy.unit="client"; it counts what is told about records')
    if job.train.algorithm in ("scaffold", "statistics", "newton"):
        raise JobError(
            f'Expected fedavg, fedprox, fedadam, fedyogi or fedadagrad with privacy.unit="client", got '
            f'"{job.train.algorithm}"; what is clipped there is one update of each party'
        )
    if job.data.budget is not None:
        raise JobError(
            'Expected no data.budget with privacy.unit="client"; budgets add up epsilons of records. Leave it out'
        )
    if job.data.standardise or job.train.class_weights != "none" or job.data.evaluate == "federated":
        raise JobError(
            'Expected no data.standardise, no train.class_weights and no data.evaluate="federated" with '
            'privacy.unit="client"; their sums are accounted for single records. Leave them out'
        )
    for key in ("expected_records", "max_records", "preprocessing_share", "statistics_share"):
        if key in privacy:
            raise JobError(f'Expected no privacy.{key} with privacy.unit="client"; every party weighs the same')
    parties, train = parties_of(job), job.train
    if train.rotation > min(parties, train.rounds):
        raise JobError(
            f"Expected train.rotation={train.rotation} to be at most the {parties} parties and train.rounds="
            f"{train.rounds}; else there are rounds or parties without training"
        )
    if job.privacy.bands > train.rotation:
        raise JobError(
            f"Expected privacy.bands={job.privacy.bands} to be at most train.rotation={train.rotation}; a party whose "
            "updates overlap in a round would count twice. Leave privacy.bands out"
        )
    if job.privacy.delta * parties >= 1:
        raise JobError(
            f"Expected privacy.delta={job.privacy.delta} below 1 / parties; at that delta a mechanism may publish "
            "everything that one party holds. Leave it out for parties ** -1.1"
        )
    _check_enough_clients(job, parties)


def _check_enough_clients(job: Job, parties: int) -> None:
    """Refuse client level where its noise would drown the mean: there is no key for it, since no model comes out."""
    assert job.privacy is not None
    asked, shares = job.privacy, job.train.quorum - job.privacy.colluding
    if not 1 <= shares <= parties:
        return  # refused with the quorum
    noise = noise_of_mean(asked.epsilon, asked.delta, clients=parties, shares=shares)
    if noise > MOST_NOISE:
        needed = fewest_clients(asked.epsilon, asked.delta, honest=shares / parties)
        raise JobError(
            f'Expected about {needed} parties or more with privacy.unit="client", got {parties}: at epsilon='
            f"{asked.epsilon:g} and delta={asked.delta:.2g} each number of their mean update carries noise of "
            f"{noise:.2g} times privacy.clip_norm, and above {MOST_NOISE:g} little is learnt. Take "
            'privacy.unit = "record", a larger epsilon, or more parties; a quorum nearer to all of them and fewer '
            f"colluding bring it to {noise * (shares / parties) ** 0.5:.2g} at best"
        )


def _check_statistics(job: Job, has_norm: bool) -> None:
    """Refuse what one sum over records cannot do."""
    train, name = job.train, job.train.algorithm
    if job.model.kind != "logistic":
        raise JobError(
            f'Expected model.kind="logistic" with train.algorithm="{name}", got "{job.model.kind}"; only linear '
            "models follow from sums over records. Take fedavg for this one"
        )
    if (name == "statistics" and train.rounds != 1) or train.local_steps != 1:
        raise JobError(
            f'Expected train.rounds=1 and train.local_steps=1 with train.algorithm="{name}", got {train.rounds} '
            f"and {train.local_steps}; one sum is all it takes. Leave them out"
            if name == "statistics"
            else f'Expected train.local_steps=1 with train.algorithm="newton", got {train.local_steps}; leave it out'
        )
    if name == "newton" and train.rounds < 2:
        raise JobError(
            'Expected train.rounds of at least 2 with train.algorithm="newton": statistics, and gradients after them. '
            'Take "statistics" for one sum'
        )
    if name == "newton" and train.aggregate == "groups":
        raise JobError(
            'Expected no train.aggregate="groups" with train.algorithm="newton"; no rule outvotes liars in statistics. '
            "Take fedavg"
        )
    if train.compress != "none" or train.clip_norm or train.norm_bound is not None:
        raise JobError(
            f'Expected no train.compress, train.clip_norm or train.norm_bound with train.algorithm="{name}"; what '
            "is summed is exact and bounded by the schema. Leave them out"
        )
    if job.privacy is not None and name == "newton" and not job.model.unit_rows:
        raise JobError(
            'Expected model.unit_rows=true with train.algorithm="newton" and a [privacy]; it bounds what a record adds '
            "to the first sum"
        )
    if job.privacy is not None and not job.model.unit_rows and not has_norm:
        raise JobError(
            'Expected privacy.clip_norm or model.unit_rows=true with train.algorithm="statistics"; the noise is scaled '
            "to the largest norm that a record's features may have. unit_rows makes it 1"
        )


def check_norm_bound(train: TrainSection, *, private: bool = False) -> None:
    """Refuse a bound on norms that nobody would check.

    Raises:
        JobError: with what to take instead.
    """
    if train.norm_bound is None:
        return
    if train.aggregate != "shares":
        raise JobError(
            f'Expected no train.norm_bound with train.aggregate="{train.aggregate}"; it needs two servers that check '
            'it: take aggregate = "shares"'
        )
    if train.algorithm == "scaffold" or private:
        against = "[privacy]" if private else 'train.algorithm="scaffold"'
        raise JobError(
            f"Expected no train.norm_bound with {against}; what is bounded is one update and its weight. Leave out one "
            "of the two"
        )
    if train.norm_bound * 2**train.fraction_bits < 1:
        raise JobError(
            f"Expected train.norm_bound={train.norm_bound} to be at least one step of the grid, 2^-"
            f"{train.fraction_bits} (train.fraction_bits); raise it above a party's records / train.expected_records"
        )


def check_for_nodes(job: Job) -> None:
    """Refuse what parties of one process can do and nodes cannot.

    Raises:
        JobError: with what to take instead.
    """
    if job.privacy is not None and job.privacy.unit != "record":
        raise JobError(
            'Expected privacy.unit="record" in a job for nodes: their budgets count records; it is the default'
        )
    if (job.data.standardise or job.train.class_weights != "none") and job.train.aggregate == "groups":
        raise JobError(
            'Expected no data.standardise and no train.class_weights in a job for nodes with train.aggregate="groups"; '
            "each group's sum would say something else. Leave them out, or take another aggregator"
        )
    check_enclave_for_nodes(job)


def check_groups(train: TrainSection, parties: int, *, private: bool = False) -> None:
    """Refuse a [train] whose groups cannot keep what `aggregate = "groups"` is for.

    Args:
        train: with its group_size, rule and liars.
        parties: how many there are.
        private: True if there is a [privacy].

    Raises:
        JobError: with the reason and the price.
    """
    size = group_size(train, parties)
    groups = max(1, parties // size)
    if size < 3:
        raise JobError(f"Expected train.group_size={size} to be 3 at least, or 0 for the size that the rule allows")
    if train.rule == "mean" and train.liars:
        raise JobError(f'Expected train.liars=0 with train.rule="mean", got {train.liars}; a mean outvotes nobody')
    if groups < fewest(train.rule, train.liars):
        needed = fewest(train.rule, train.liars)
        raise JobError(
            f'Expected at least {needed} groups, which train.rule="{train.rule}" needs to outvote train.liars='
            f"{train.liars} of them; {parties} parties in groups of {size} make {groups}. Take {needed * size} "
            "parties, smaller groups (3 at least) or fewer liars"
        )
    if train.algorithm == "scaffold":
        raise JobError(
            'Expected no scaffold with train.aggregate="groups"; its control variate must stay the mean of the '
            "parties' own, and a rule that leaves some out breaks that"
        )
    if private:
        raise JobError(
            f'Expected no [privacy] with train.aggregate="groups"; the sum of each group is a release of its own that '
            f"needs the whole noise, so the mean of {groups} groups would carry sqrt({groups}) = {groups**0.5:.2f} "
            'times the noise of one sum over all. Take "masked"'
        )


def check_compression(train: TrainSection, given: Mapping[str, Any], *, private: bool = False) -> None:
    """Refuse compression and clipping where they would be ignored or break what is promised.

    Args:
        train: with every default in its place.
        given: the keys that somebody wrote.
        private: True if there is a [privacy].

    Raises:
        JobError: with what to take instead.
    """
    for key, readers in COMPRESSED_BY.items():
        if key in given and train.compress not in readers:
            raise JobError(
                f'Expected no train.{key} with train.compress="{train.compress}"; it belongs to {", ".join(readers)}'
            )
    changed = train.compress != "none" or train.clip_norm > 0
    if changed and private:
        raise JobError(
            "Expected neither train.compress nor train.clip_norm with [privacy]; the noise is accounted for gradients "
            "that are summed whole, and privacy.clip_norm is their clip"
        )
    if changed and train.algorithm == "scaffold":
        raise JobError(
            'Expected neither train.compress nor train.clip_norm with train.algorithm="scaffold"; its control variates '
            'assume that the whole update arrives. Take "fedavg" or "fedadam"'
        )
    if train.norm_bound is not None and changed:
        raise JobError(
            "Expected neither train.compress nor train.clip_norm with train.norm_bound; it bounds the vector as it is "
            "sent, and is a clip already"
        )
    if train.clip_quantile and train.aggregate == "groups":
        raise JobError(
            f'Expected train.clip_quantile={train.clip_quantile} to be 0 with train.aggregate="groups"; a group with a '
            "liar would move the clip of all. Set clip_quantile = 0 and choose a clip_norm that stays"
        )
    if train.compress == "rotate" and not train.clip_norm:
        raise JobError(
            'Expected train.clip_norm above 0 with train.compress="rotate"; its bits are spread over that norm'
        )
    for key, needed in (("clip_quantile", train.clip_norm), ("clip_rate", train.clip_quantile)):
        if given.get(key) and not needed:
            other = "clip_norm" if key == "clip_quantile" else "clip_quantile"
            raise JobError(f"Expected train.{other} above 0 with train.{key}; without it nothing follows")
