"""The tables of a job file, as frozen objects: every key with its default and its meaning, here and nowhere else.

`docs/train.md` lists them and a test compares the two; `confide.train.job` reads them from a file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from confide.cohort.robust import fewest

#: Most nodes of one job.
MOST_NODES = 1000

#: What a node's policy grants in all where it says nothing; over machines jobs ask for no more unless they say so.
USUAL_DELTA = 1e-4

#: What no node may be called: the other parties of a sum, and what a path means by it.
RESERVED_NAMES = (".", "..", "server", "helper", "test")


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the job file."""


class JobSection(Section, frozen=True, kw_only=True):
    """[job]: what it is called, and the seed of every public choice (splits, initial weights)."""

    name: str = "confide"
    seed: int = 1


class DataSection(Section, frozen=True, kw_only=True):
    """[data]: `schema` with `tables` (+ `test`), `nodes`, or `table` + `split_by` + `names`; or `set` with `parties`.

    Args:
        schema: the schema file, relative to the job file.
        tables: the table of each party, or a source file, by the party's name.
        nodes: names of the organisations that keep their tables, in place of `tables`: for a federation over machines.
        table: one table with the records of all parties, which `split = "column"` parts.
        split_by: its column that says whose a record is: a bank, a hospital.
        names: the values of that column, each the name of a party.
        columns: of train.aggregate = "mpc", with tables that hold different columns of the same people: which columns
            of the schema each party brings, the label among them, by the party's name.
        link: with `columns`: the column, in the tables of both, that says whose a row is; the rows that both have are
            found by private set intersection.
        test: table with the test records; without it `test_fraction` of every party's records are set aside.
        set: a shipped data set instead of files.
        parties: into how many parties the set is split.
        split: of a set "even", or "by-label" (uneven, Dirichlet with `alpha` over the classes); "column" of a table.
        alpha: the smaller, the more the parties differ, > 0.
        test_fraction: share of records set aside for testing, 0 < share < 1.
        standardise: take the mean and deviation of every number over all parties' records, from one more sum, in place
            of the schema's bounds; both become public with the model. "centre"
            subtracts the mean of every feature instead. Under [privacy] the sum has noise and is charged.
        evaluate: "federated" evaluates the model on the parties' held-out records in one more sum, and shows no party's
            figures; "none" leaves the test records to whoever has them all.
        budget: the SQLite file with the budget of this data set, relative to the job file; a job beyond it is refused
            before a row is read. `confide budget set` makes it.
    """

    schema: str | None = None
    tables: dict[str, str] = {}
    nodes: tuple[str, ...] = ()
    table: str | None = None
    split_by: str | None = None
    names: tuple[str, ...] = ()
    columns: dict[str, tuple[str, ...]] = {}
    link: str | None = None
    test: str | None = None
    set: str | None = None
    parties: int = 4
    split: Literal["even", "by-label", "column"] = "by-label"
    alpha: float = 1.0
    test_fraction: float = 0.2
    standardise: bool | Literal["centre"] = False
    evaluate: Literal["none", "federated"] = "none"
    budget: str | None = None


class ModelSection(Section, frozen=True, kw_only=True):
    """[model]: `logistic`; `mlp` with one layer of `hidden` square units, what encrypted serving runs best; or `trees`,
    which [trees] describes.

    Or `cox`, survival: its output is a log hazard, and the schema's label states a time.

    Args:
        intervals: of cox without [privacy]: into how many the label's range of times is cut, of equal length.
        features: "columns" takes every column as the schema bounds it, images as their pixels; "scattering" puts images
            through a scattering transform, which is fixed in advance, and "scattering-mean" keeps each channel's mean;
            "encoder" puts them through a network that was trained on public data.
        scales, angles: of the scattering transform.
        channel_groups: into how many groups the channels of the scattering transform are parted; each group is
            normalised image by image. It divides their number, and 0 leaves the coefficients as they are.
        frequencies: with "scattering": k, each channel keeps the k (k + 1) / 2 slowest waves of its map in place of
            the map; 0 keeps the map.
        whiten: bring the features of images to one scale, and free them of their common directions, by what synthetic
            images say, which no record is in: "natural" suits photographs and scans, "strokes" writing and drawings.
            Without the key "none", or "natural" for an encoder.
        encoder: its file (ONNX), relative to the job file.
        public_data: what it was trained on; it stands in the label.
        project: how many features are left by a public random projection, drawn from job.seed; 0 leaves them all.
        unit_rows: scale every row of features to length 1, which bounds gradients for differential privacy.
    """

    kind: Literal["logistic", "mlp", "trees", "cox"] = "logistic"
    hidden: int = 16
    intervals: int = 100
    features: Literal["columns", "scattering", "scattering-mean", "encoder"] = "columns"
    scales: int = 2
    angles: int = 8
    channel_groups: int = 0
    frequencies: int = 0
    whiten: Literal["none", "natural", "strokes"] = "none"
    encoder: str | None = None
    public_data: str | None = None
    project: int = 0
    unit_rows: bool = False


class TreesSection(Section, frozen=True, kw_only=True):
    """[trees]: the trees of model.kind = "trees".

    Args:
        count: trees in all; of more than two classes they take turns.
        depth: questions from the top of a tree to a leaf.
        bins: intervals that a number is told apart by, a missing one not counted.
        edges: "quantiles" puts as many records into each interval, from one sum before the training over `cells` even
            intervals; "uniform" divides the schema's bounds evenly. A column with bins in the schema keeps those.
        cells: even intervals between the schema's bounds that quantiles are read from.
        ridge: penalty on the square of a leaf's value.
        least_hessian: smallest sum of second derivatives, p (1 - p) of each record, on each side of a split.
        least_gain: smallest gain of a split.
        monotone: columns of numbers that the model may only rise with (1) or fall with (-1).
        patience: trees without a better score after which the training stops and takes them back; 0 never stops.
        held_out: share of every party's training records that the score of `patience` is taken on; no tree is grown
            from them.
        effects: under [privacy], where trees are one function of each column: "steps" learns a value for every interval
            of a number, "trends" one slope for each number, and "auto" steps where the noise allows.
    """

    count: int = 100
    depth: int = 5
    bins: int = 64
    edges: Literal["quantiles", "uniform"] = "quantiles"
    cells: int = 1024
    ridge: float = 1.0
    least_hessian: float = 1.0
    least_gain: float = 0.0
    monotone: dict[str, int] = {}
    patience: int = 0
    held_out: float = 0.1
    effects: Literal["auto", "steps", "trends"] = "auto"


class TrainSection(Section, frozen=True, kw_only=True):
    """[train]: who sums, and how the sum moves the model.

    Args:
        aggregate: "plain", "masked", "amortised", "shares", "he", "groups" or "tee"; what adds the updates of the
            parties. Or "mpc": parties share their rows to two servers that train on them, and no update exists.
        algorithm: what a party contributes and how the mean moves the model; "fedavg" with momentum is FedAvgM;
            "statistics" takes one sum over records, from which a logistic model's weights are solved; "newton" goes on
            from there by gradients that the same sums precondition; "boosting" grows trees, and is what they have;
            "risk-sets" sums those of a cox model, and is its default without [privacy]; "sgd" takes steps over batches
            of shared rows, and is what "mpc" has.
        class_weights: "balanced" weighs a record by the smallest class's size over that of its own, so that rare
            classes count as much as common ones; the sizes come from one sum before the training, with noise and
            charged under [privacy].
        solver: of statistics and newton's start: "discriminant", linear discriminant analysis, or "ridge", least
            squares; weight_decay is the ridge of both, for each record.
        helper: of "shares", "he" and "tee" over a network: the name of whoever runs the second server, keeps the key or
            is the enclave.
        quorum: smallest number of parties in any released sum; 0 stands for a majority, and for 3 at least.
        rounds: sums to take, or passes over the rows of "mpc", >= 1; without the key 30, 60 for an mlp, 1 for
            statistics, 17 for newton, 8 for risk-sets, 1 and one for each level of each tree, 40 for private gradients
            of unit rows, or 20 for those of cox.
        rotation: of privacy.unit = "client": a party trains in every which round, in the order of the job, and sends
            multiples of its last update in the others; 1 trains everybody in every round, which has the least noise.
        local_steps: passes of a party over its records between two sums; full-batch gradient steps, and 1 equals
            training on the pooled records, unless the model comes with batches of its own.
        learning_rate: step size on the mean gradient, > 0, or the share of its best value that a leaf of trees gets;
            without the key 1.0, 0.1 for an mlp and trees, 0.5 for newton, or (records / noise) ** 0.75 / 2 for private
            gradients of unit rows, noise that of one release at clip 1; for cox a fifth of that.
        server_learning_rate: factor of the server's step, > 0; without the key 1.0, or 0.1 for fedadam, fedyogi and
            fedadagrad.
        momentum: of the server's step, 0 <= momentum < 1; without the key 0.9, or 0 for scaffold, newton,
            private gradients of unit rows and privacy.unit = "client".
        second_moment: of fedadam and fedyogi: how slowly the mean square of the changes follows, 0 <= it < 1.
        adaptivity: of fedadam, fedyogi and fedadagrad: the floor of the root mean square, > 0.
        proximal: of fedprox: pull of a party's local steps back to the common model, > 0.
        weight_decay: ridge coefficient, >= 0; without the key 0.0001, 0.001 for cox, or 0 for private gradients of a
            logistic model's unit rows.
        average: share of the last rounds whose models are averaged into the result, 0 <= share <= 1.
        expected_records: public order of magnitude of one party's record count (never the count itself).
        update_bound: largest absolute change of a parameter in one local update; larger updates are scaled down.
        norm_bound: largest L2 norm of what a party adds, (weight * update, weight) with weight = records /
            expected_records: larger updates are scaled down, and under "shares" the servers leave out and name a party
            whose vector is 2.5 times as long or longer. None bounds nothing.
        fraction_bits: fixed-point bits after the point of what is summed.
        attempts: how often a round that lost its quorum is repeated with fresh keys before the job stops.
        start_hash: hex SHA-256 of the starting parameters; a party takes part from these and from no others. Without
            the key the parties start from what the job gives.
        group_size: of "groups": fewest parties in a group; a party hides among its group only. 0 stands for as many as
            leave enough groups for the rule, at most 5; 3 is the least.
        rule: of "groups": how the groups' means become one change; all groups weigh the same. Of "tee": how the
            enclave makes one vector of the parties'; without the key "mean", the exact sum.
        liars: of "groups": how many groups may hold a liar; of "tee": how many parties may; without the key 1, or 0
            for "mean".
        attester: of "tee": "simulated" is a trial on machines without the hardware, and protects nothing; nodes and
            the enclave must ask for it as well.
        compress: how an update is made smaller before it is summed; "none" sends every parameter at fraction_bits.
        compress_bits: of rotate: bits of one party's number, sign included.
        compress_share: of rand-k and sketch: numbers sent per parameter, 0 < share <= 1.
        clip_norm: largest L2 norm of a party's update times its weight (records / expected_records); longer ones are
            scaled down. 0 clips nothing; without the key 0, or 1 for rotate, whose bits are spread over this norm.
        clip_quantile: clip_norm follows this quantile of the parties' norms, 0 < it < 1; 0 keeps it. Without the key 0,
            or 0.9 for rotate.
        clip_rate: how far one round moves the logarithm of a clip_norm that follows, > 0.
    """

    aggregate: str = "masked"
    helper: str = "helper"
    algorithm: Literal[
        "fedavg",
        "fedprox",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "scaffold",
        "statistics",
        "newton",
        "boosting",
        "additive",
        "risk-sets",
        "sgd",
    ] = "fedavg"
    class_weights: Literal["none", "balanced"] = "none"
    solver: Literal["discriminant", "ridge"] = "discriminant"
    quorum: int = 0
    rounds: int = 30
    rotation: int = 1
    local_steps: int = 1
    learning_rate: float = 1.0
    server_learning_rate: float = 1.0
    momentum: float = 0.9
    second_moment: float = 0.99
    adaptivity: float = 1e-3
    proximal: float = 0.1
    weight_decay: float = 1e-4
    average: float = 0.5
    expected_records: int = 150
    update_bound: float = 2.0
    norm_bound: float | None = None
    fraction_bits: int = 22
    attempts: int = 3
    start_hash: str | None = None
    group_size: int = 0
    rule: Literal["mean", "median", "trimmed-mean", "multi-krum"] = "trimmed-mean"
    liars: int = 1
    attester: Literal["hardware", "simulated"] = "hardware"
    compress: Literal["none", "rotate", "rand-k", "sketch"] = "none"
    compress_bits: int = 8
    compress_share: float = 0.1
    clip_norm: float = 0.0
    clip_quantile: float = 0.0
    clip_rate: float = 1.0


class PrivacySection(Section, frozen=True, kw_only=True):
    """[privacy]: differential privacy of everything that is released.

    Args:
        epsilon: total budget, > 0.
        delta: total failure probability, below 1 / expected_records; 0 stands for expected_records ** -1.1.
        unit: whose presence is hidden: "record", an identifier of the schema for all records of one patient or customer
            together, or "client" for everything that one party holds.
        parties_per_unit: the most parties that hold records of one unit: each of them clips to an equal part. Nobody
            can check it.
        mechanism: "auto" chooses train.algorithm, centres the features and gives them unit rows, unless the job names
            them; "as-given" takes what it names.
        clip_norm: largest L2 norm of one unit's gradient, > 0; of statistics: of its features, which are scaled down
            if they are longer; without the key 0.5, or 1 for statistics of unit rows. Of unit "client": of a party's
            whole update.
        bands: of unit "client": rounds over which noise is correlated, at most train.rotation; 1 makes it independent,
            and 0 stands for train.rotation.
        colluding: parties that may pool with the server; the other quorum - colluding carry the noise.
        expected_records: public size of the pooled data; the denominator of the mean gradient. Of unit "client": the
            number of parties, and not to be given.
        max_records: public cap on one party's records; it sizes the ring. 0 stands for 4 * expected_records.
        preprocessing_share: of mu^2 that data.standardise and train.class_weights get, 0 < share < 1; the training gets
            the rest.
        statistics_share: of the training's mu^2 that newton's first sum gets, 0 < share < 1; its gradients get the
            rest.
    """

    epsilon: float = 1.0
    delta: float = 0.0
    unit: str = "record"
    parties_per_unit: int = 1
    mechanism: Literal["as-given", "auto"] = "as-given"
    clip_norm: float = 0.5
    bands: int = 0
    colluding: int = 1
    expected_records: int
    max_records: int = 0
    preprocessing_share: float = 0.1
    statistics_share: float = 0.4


class SharesSection(Section, frozen=True, kw_only=True):
    """[shares]: of train.aggregate = "mpc": who computes, and what becomes of the weights.

    Args:
        servers: names of the two organisations that compute on shares; they must not pool what they hold.
        dealer: the name of who deals correlations; it must pool with neither, and gets no rows and no weights.
        insecure_colocated_dealer: lets a server deal as well, which hides nothing from it: for trials.
        batch: rows of a step; 0 stands for all of them, and without the key it is 128, or 0 under [privacy].
        loss: "logistic": a probability is a line of slope 1 through 1/2, cut at 0 and 1; "sigmoid" and "softmax" (three
            classes or more) are those functions, at more rounds; "squared" is half the square of the difference.
        folder: keeps the weights as shares, in one file for each server there, and opens nothing.
        address: of a training over machines: where the second server is dialled, "wss://host:port".
        identities: of members of the federation, by name: hex Ed25519 keys that their certificates must show.
    """

    servers: tuple[str, ...] = ("server-1", "server-2")
    dealer: str = "dealer"
    insecure_colocated_dealer: bool = False
    batch: int = 128
    loss: Literal["logistic", "sigmoid", "softmax", "squared"] = "logistic"
    folder: str | None = None
    address: str | None = None
    identities: dict[str, str] = {}


class OutputSection(Section, frozen=True, kw_only=True):
    """[output]: where the signed model and the ledger go, relative to the job file; no path, no file."""

    model: str | None = None
    ledger: str | None = None
    signing_key: str | None = None


class Job(Section, frozen=True, kw_only=True):
    """A whole job. `base` is the folder that relative paths start from."""

    job: JobSection = JobSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    trees: TreesSection | None = None
    train: TrainSection = TrainSection()
    shares: SharesSection | None = None
    privacy: PrivacySection | None = None
    output: OutputSection = OutputSection()
    base: str = "."

    def path(self, name: str) -> Path:
        """Return `name` as a path, relative ones from the job file's folder."""
        return Path(self.base) / name


def default_quorum(parties: int) -> int:
    """Return a majority, and at least 3 where there are as many: a sum of two shows each the other's vector."""
    return min(parties, max(3, parties // 2 + 1))


def nodes_of(job: Job) -> tuple[str, ...]:
    """Return the parties' names in the order of the job; of a shipped set there are none."""
    return job.data.nodes or job.data.names or tuple(job.data.tables)


def names_of(job: Job) -> tuple[str, ...]:
    """Return the parties' names in their public order, those of a shipped set included."""
    return nodes_of(job) or tuple(f"party-{number}" for number in range(1, job.data.parties + 1))


def parties_of(job: Job) -> int:
    """Return how many parties a job names."""
    return len(nodes_of(job)) if job.data.set is None else job.data.parties


def is_node_name(name: str) -> bool:
    """Return whether `name` can be a node's: it stands in certificates, messages and file names."""
    return re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) is not None and name not in RESERVED_NAMES


def group_size(train: TrainSection, parties: int) -> int:
    """Return the fewest parties in a group: as [train] says, or as many as leave enough groups, 3 to 5."""
    return train.group_size or min(5, max(3, parties // fewest(train.rule, train.liars)))
