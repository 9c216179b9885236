"""A training job: one TOML file, read into frozen objects and printed back as it was understood.

    [job]      name, seed
    [data]     schema and tables or nodes, or a shipped set and how it is split; the test table
    [model]    kind, hidden units
    [trees]    how many, how deep ...        of model.kind = "trees" only
    [train]    aggregate, rounds, learning rate ...
    [shares]   who computes ...              of train.aggregate = "mpc" only
    [privacy]  epsilon, delta ...            leave the table out for a job without differential privacy
    [output]   model, ledger, signing key

Every key has its default and its meaning in `confide.train.sections`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import msgspec

from confide.cohort.robust import RULES, fewest
from confide.dp.accountant import gaussian_mu
from confide.dp.plan import default_delta
from confide.errors import JobError
from confide.structs import known
from confide.train.contradictions import (
    ADAPTIVE,
    AGGREGATED_BY,
    COMPRESSED_BY,
    OF_BOOSTING,
    OF_GROUPS,
    OF_SCATTERING,
    READ_BY,
    check_client_level,
    check_combinations,
    check_compression,
    check_features,
    check_readers,
    check_survival,
    check_trees,
)
from confide.train.contradictions_in_shares import ON_SHARES_CLIP, check_shares
from confide.train.keys import Range, faults, load_tables, sections_of, table_faults, toml_value
from confide.train.sections import (
    MOST_NODES,
    USUAL_DELTA,
    DataSection,
    Job,
    PrivacySection,
    SharesSection,
    TrainSection,
    TreesSection,
    default_quorum,
    group_size,
    is_node_name,
)

#: What [train] takes by default for a kind of model: squares grow fast, so their steps must be smaller.
_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "logistic": {},
    "mlp": {"rounds": 60, "learning_rate": 0.1},
    "trees": {},
    "cox": {"weight_decay": 1e-3},
}

#: The same for a network that the caller brings: many local steps take the place of the server's momentum.
_OWN_MODEL: Mapping[str, float] = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "average": 0.0}

#: The same for an algorithm.
_ALGORITHM_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    **{name: {"server_learning_rate": 0.1, "momentum": 0.9} for name in ADAPTIVE},
    "scaffold": {"momentum": 0.0},
    "statistics": {"rounds": 1, "momentum": 0.0, "average": 0.0},
    "newton": {"rounds": 17, "learning_rate": 0.5, "momentum": 0.0},
    "boosting": {"learning_rate": 0.1, "momentum": 0.0, "average": 0.0, "weight_decay": 0.0},
    "additive": {"rounds": 25, "momentum": 0.0, "average": 0.0, "weight_decay": 0.0},
    "risk-sets": {"rounds": 8, "momentum": 0.0, "average": 0.0},
    "sgd": {"rounds": 30, "learning_rate": 1.0, "momentum": 0.0, "average": 0.0, "weight_decay": 0.0},
}

#: What [trees] takes under [privacy]: noise is the same however many intervals there are.
_ADDITIVE: Mapping[str, Any] = {"bins": 1024, "edges": "uniform"}

#: The share of mu^2 of the counts that private trees take first.
_COUNTS_SHARE = 0.05

#: Records over the noise of statistics from which on they pay up to some 200 features.
_STATISTICS_PAY = 3000.0

#: The same for a compression.
_COMPRESSION_DEFAULTS: Mapping[str, Mapping[str, float]] = {"rotate": {"clip_norm": 1.0, "clip_quantile": 0.9}}

#: (section, key): lowest, highest, lowest excluded, highest excluded
_RANGES: Mapping[tuple[str, str], Range] = {
    ("job", "seed"): (-(2**63), 2**63 - 1, False, False),
    ("data", "parties"): (2, 1000, False, False),
    ("data", "alpha"): (0, 1e6, True, False),
    ("data", "test_fraction"): (0, 1, True, True),
    ("model", "hidden"): (1, 4096, False, False),
    ("model", "intervals"): (1, 1000, False, False),
    ("model", "scales"): (1, 5, False, False),
    ("model", "angles"): (1, 16, False, False),
    ("model", "channel_groups"): (0, 4096, False, False),
    ("model", "frequencies"): (0, 128, False, False),
    ("model", "project"): (0, 65_536, False, False),
    ("trees", "count"): (1, 10_000, False, False),
    ("trees", "depth"): (1, 10, False, False),
    ("trees", "bins"): (2, 4095, False, False),
    ("trees", "cells"): (2, 65_536, False, False),
    ("trees", "ridge"): (0, 1e9, False, False),
    ("trees", "least_hessian"): (1e-6, 1e9, False, False),
    ("trees", "least_gain"): (0, 1e9, False, False),
    ("trees", "patience"): (0, 10_000, False, False),
    ("trees", "held_out"): (0, 0.5, True, False),
    ("train", "quorum"): (0, 1000, False, False),
    ("train", "rounds"): (1, 100_000, False, False),
    ("train", "rotation"): (1, 1000, False, False),
    ("train", "local_steps"): (1, 10_000, False, False),
    ("train", "learning_rate"): (0, 1e6, True, False),
    ("train", "momentum"): (0, 1, False, True),
    ("train", "server_learning_rate"): (0, 1e6, True, False),
    ("train", "second_moment"): (0, 1, False, True),
    ("train", "adaptivity"): (0, 1e6, True, False),
    ("train", "proximal"): (0, 1e6, True, False),
    ("train", "weight_decay"): (0, 1e3, False, False),
    ("train", "average"): (0, 1, False, False),
    ("train", "expected_records"): (1, 1e9, False, False),
    ("train", "update_bound"): (0, 1e6, True, False),
    ("train", "norm_bound"): (0, 1e6, True, False),
    ("train", "fraction_bits"): (8, 40, False, False),
    ("train", "attempts"): (1, 100, False, False),
    ("train", "group_size"): (0, 1000, False, False),
    ("train", "liars"): (0, 499, False, False),
    ("train", "compress_bits"): (2, 16, False, False),
    ("train", "compress_share"): (0, 1, True, False),
    ("train", "clip_norm"): (0, 1e6, False, False),
    ("train", "clip_quantile"): (0, 1, False, True),
    ("train", "clip_rate"): (0, 10, True, False),
    ("shares", "batch"): (0, 1 << 20, False, False),
    ("privacy", "epsilon"): (0, 32, True, False),
    ("privacy", "delta"): (0, 1, False, True),
    ("privacy", "clip_norm"): (1e-6, 1e6, False, False),
    ("privacy", "bands"): (0, 1000, False, False),
    ("privacy", "colluding"): (0, 999, False, False),
    ("privacy", "expected_records"): (1, 1e9, False, False),
    ("privacy", "max_records"): (0, 1e10, False, False),
    ("privacy", "preprocessing_share"): (1e-6, 1 - 1e-6, False, False),
    ("privacy", "parties_per_unit"): (1, 1000, False, False),
    ("privacy", "statistics_share"): (1e-6, 1 - 1e-6, False, False),
}


def load(path: Path) -> Job:
    """Read a job file.

    Raises:
        JobError: the file is absent or is no TOML; or as in `parse`.
    """
    return parse(load_tables(path, "job file", JobError), base=path.parent)


def parse(table: dict[str, Any], *, base: Path = Path()) -> Job:
    """Return the job that `table` describes.

    Raises:
        JobError: with every unknown key, wrong type, value out of range and contradiction, one in a line.
    """
    if problems := list(_problems(table)):
        raise JobError("\n".join(problems))
    try:
        job = msgspec.convert(_resolved(table) | {"base": str(base)}, known(Job))
    except msgspec.ValidationError as error:  # everything that a user can cause was named above
        raise JobError(f"Expected a well-formed job; {error}") from None
    check_features(job.model, table.get("model", {}))
    check_trees(job, table)
    check_survival(job, table.get("model", {}))
    check_combinations(job, table.get("train", {}), table.get("privacy", {}))
    check_client_level(job, table.get("train", {}), table.get("privacy", {}))
    check_shares(job, table)
    return job


def train_section(**given: Any) -> TrainSection:
    """Return a [train] for a model of your own: keys and checks of a job file, plain averaging unless it is named.

    Its defaults are those of [train] but for learning_rate 0.1, momentum 0 (0.9 for fedadam, fedyogi and fedadagrad),
    weight_decay 0 and average 0.

    Raises:
        JobError: with every unknown key, wrong type and value out of range, one in a line.
    """
    if problems := [*faults("train", TrainSection, given, _RANGES, "job file"), *_faults_of_hash(given)]:
        raise JobError("\n".join(problems))
    own = _ALGORITHM_DEFAULTS.get(given.get("algorithm", "fedavg"), {})
    compressed = _COMPRESSION_DEFAULTS.get(given.get("compress", "none"), {})
    outvoted = {"liars": 0} if given.get("rule") == "mean" else {}
    outvoted |= _inside_enclave(given) if given.get("aggregate") == "tee" else {}
    train = msgspec.convert({**_OWN_MODEL, **own, **compressed, **outvoted, **given}, known(TrainSection))
    check_readers(train, given)
    check_compression(train, given)
    return train


def _problems(table: dict[str, Any]) -> Iterator[str]:
    sections = sections_of(Job)
    yield from table_faults(table, sections, "a job")
    for name, kind in sections.items():
        section = table.get(name, {})
        if not isinstance(section, dict):
            continue
        section = cast("dict[str, Any]", section)
        found = list(faults(name, kind, section, _RANGES, "job file"))
        yield from found
        if name == "job" and not str(section.get("name", "job")).isprintable():
            yield "Expected job.name of printable characters on one line; ledgers and budgets show it"
        if name == "train":
            yield from _faults_of_hash(section)
        if name == "data":
            yield from _contradictions_in_data(section)
        if name == "privacy" and name in table:
            yield from _contradictions_in_privacy(section, usable=not found)
            chosen = _value(table, "privacy", "mechanism") == "auto"
            if "preprocessing_share" in section and not (chosen or _prepares(table)):
                yield (
                    "Expected no privacy.preprocessing_share without data.standardise = true or train.class_weights = "
                    '"balanced"; it would go to nothing'
                )
            counts = _value(table, "model", "kind") == "trees"
            if "statistics_share" in section and not (
                chosen or counts or _value(table, "train", "algorithm") == "newton"
            ):
                yield (
                    'Expected no privacy.statistics_share without train.algorithm = "newton", whose first sum it is for'
                )


def _prepares(table: Mapping[str, Any]) -> bool:
    balanced = _value(table, "train", "class_weights") == "balanced"
    return balanced or _value(table, "data", "standardise") in (True, "centre")


def _value(table: Mapping[str, Any], section: str, key: str) -> object:
    found = table.get(section, {})
    return cast("dict[str, Any]", found).get(key) if isinstance(found, dict) else None


def _faults_of_hash(train: Mapping[str, Any]) -> Iterator[str]:
    if not re.fullmatch("[0-9a-f]{64}", str(train.get("start_hash", "0" * 64))):
        yield (
            "Expected train.start_hash to be 64 hex digits in lower case; `confide train` prints it before the first "
            "round"
        )


def _contradictions_in_data(data: dict[str, Any]) -> Iterator[str]:
    if ("set" in data) == ("schema" in data):
        yield 'Expected either data.set or data.schema with data.tables; for a trial: set = "breast-cancer"'
    elif "set" in data:
        if data.get("split") == "column" or any(key in data for key in ("table", "split_by", "names")):
            yield 'Expected no split="column" with data.set, which has no parties; name data.schema and data.table'
        if "nodes" in data:
            yield "Expected no data.nodes with data.set; nodes bring tables of their own, so name their data.schema"
    elif data.get("split") == "column" or any(key in data for key in ("table", "split_by", "names")):
        yield from _faults_of_column(data)
    elif "tables" in data and "nodes" in data:
        yield "Expected either data.tables, which are read here, or data.nodes, which keep their own; leave one out"
    elif "nodes" in data:
        yield from _faults_of_nodes(data)
    elif isinstance(tables := data.get("tables", {}), dict) and len(cast("Sized", tables)) < 2:
        parties = len(cast("Sized", tables))
        yield f"Expected at least 2 parties in data.tables, got {parties}; name each party's table"


def _faults_of_column(data: dict[str, Any]) -> Iterator[str]:
    wanted = {"table", "split_by", "names"}
    if data.get("split") != "column" or not wanted <= data.keys() or "tables" in data or "nodes" in data:
        yield (
            'Expected split="column" in [data] with table, split_by and names, and without tables and nodes: one '
            "table, the column that says whose a record is, and its values"
        )
        return
    names = data["names"]
    if isinstance(names, list) and len(set(map(str, cast("list[object]", names)))) < max(2, len(cast("Sized", names))):
        yield "Expected at least 2 different values in data.names; name each party once"


def _faults_of_nodes(data: dict[str, Any]) -> Iterator[str]:
    try:
        nodes = msgspec.convert(data["nodes"], list[str])
    except msgspec.ValidationError:
        return  # named already
    if not 2 <= len(nodes) <= MOST_NODES:
        yield f"Expected 2 to {MOST_NODES} names in data.nodes, got {len(nodes)}; name each node that takes part"
        return
    yield from (
        f"Expected names of letters, digits, '-', '_' and '.' in data.nodes, at most 64, got {name!r}; rename that node"
        for name in nodes
        if not is_node_name(name)
    )
    twice = sorted({name for name in nodes if nodes.count(name) > 1})
    yield from (f"Expected different names in data.nodes, got {name!r} twice; each node has its own" for name in twice)
    if "test" in data:
        yield "Expected no data.test with data.nodes; nodes set aside data.test_fraction of their own records"


def _contradictions_in_privacy(privacy: dict[str, Any], *, usable: bool) -> Iterator[str]:
    delta = privacy.get("delta", 0.0)
    if privacy.get("unit") == "client":
        if privacy.get("mechanism", "as-given") != "as-given":
            yield 'Expected no privacy.mechanism with privacy.unit="client"; there is one, so leave it out'
        return  # the size is the number of parties
    if "expected_records" not in privacy:
        yield "Expected privacy.expected_records: the public size of the pooled data, which divides the noisy sum"
    elif usable and delta * privacy["expected_records"] >= 1:
        yield (
            f"Expected privacy.delta={delta} below 1 / expected_records; at that delta a mechanism may publish whole "
            "records. Leave it out for expected_records ** -1.1"
        )


def _chosen(table: dict[str, Any]) -> dict[str, Any]:
    """Return `table` with what privacy.mechanism = "auto" stands for; docs/private-learning.md says why."""
    model, train = table.get("model", {}), table.get("train", {})
    if _value(table, "privacy", "mechanism") != "auto" or model.get("kind") == "trees":
        return table
    privacy: dict[str, Any] = table["privacy"]
    records = privacy.get("unit", "record") == "record"  # a preparation is bounded for records only
    if model.get("kind", "logistic") == "logistic":
        usual = PrivacySection(expected_records=privacy["expected_records"])
        delta = privacy.get("delta") or default_delta(privacy["expected_records"])
        told = 0.6 * privacy["expected_records"] * gaussian_mu(privacy.get("epsilon", usual.epsilon), delta)
        columns = records and model.get("features", "columns") == "columns"
        train = {"algorithm": "newton" if columns and told >= _STATISTICS_PAY else "fedavg"} | train
    data = ({"standardise": "centre"} if records else {}) | table.get("data", {})
    return table | {"data": data, "model": {"unit_rows": True} | model, "train": train}


def _resolved(table: dict[str, Any]) -> dict[str, Any]:
    """Return `table` with the defaults that depend on other keys, so that what is printed is what runs."""
    table = _chosen(table)
    data: dict[str, Any] = table.get("data", {})
    model: dict[str, Any] = table.get("model", {})
    tables: Sized = next((data[key] for key in ("nodes", "names") if key in data), data.get("tables", ()))
    parties = len(tables) if "schema" in data else data.get("parties", DataSection().parties)
    given: dict[str, Any] = table.get("train", {})
    private, kind = "privacy" in table, model.get("kind", "logistic")
    of_kind = {"trees": "additive" if private else "boosting", "cox": "fedavg" if private else "risk-sets"}
    on_shares = given.get("aggregate") == "mpc"
    given = {"algorithm": "sgd" if on_shares else of_kind.get(kind, "fedavg")} | given
    own = _ALGORITHM_DEFAULTS.get(given["algorithm"], {})
    own = {**own, **_COMPRESSION_DEFAULTS.get(given.get("compress", "none"), {})}
    train: dict[str, Any] = {**_DEFAULTS[model.get("kind", "logistic")], **own, **given}
    train["quorum"] = train.get("quorum") or (parties if on_shares else default_quorum(parties))
    if train.get("aggregate") == "groups":
        train["liars"] = train.get("liars", 0 if train.get("rule") == "mean" else 1)
        of = TrainSection(**{key: train[key] for key in OF_GROUPS if key in train})
        train["group_size"] = group_size(of, parties)
    if train.get("aggregate") == "tee":
        train |= _inside_enclave(train)
        needed = fewest(train["rule"], train["liars"]) if train["rule"] in RULES else 1
        train["quorum"] = given.get("quorum") or min(parties, max(train["quorum"], needed))
    resolved = table | {"train": train}
    if on_shares:
        asked = SharesSection(**{"batch": 0 if private else SharesSection().batch} | table.get("shares", {}))
        resolved["shares"] = msgspec.structs.asdict(asked)
    if kind == "trees":
        asked = TreesSection(**(_ADDITIVE if private else {}) | table.get("trees", {}))
        if not private:
            train["rounds"] = given.get("rounds", 1 + asked.count * asked.depth)
        resolved["trees"] = msgspec.structs.asdict(asked)
    if model.get("features") == "encoder":
        resolved["model"] = {"whiten": "natural", **model}
    if privacy := dict(table.get("privacy", {})):
        if on_shares:
            privacy.setdefault("clip_norm", ON_SHARES_CLIP)
        if privacy.get("unit") == "client":
            privacy.setdefault("expected_records", parties)
            privacy["bands"] = privacy.get("bands") or train.get("rotation", 1)
            if train.get("algorithm", "fedavg") in ("fedavg", "fedprox"):
                train["momentum"] = given.get("momentum", 0.0)  # it adds up the noise of ten rounds
        privacy["max_records"] = privacy.get("max_records") or 4 * privacy["expected_records"]
        if kind == "trees":
            privacy.setdefault("statistics_share", _COUNTS_SHARE)
        if train.get("algorithm") == "statistics" and model.get("unit_rows"):
            privacy.setdefault("clip_norm", 1.0)  # what unit rows have
        asked = default_delta(privacy["expected_records"])
        if "nodes" in data:  # whose policies ask for less where they say nothing
            asked = min(asked, USUAL_DELTA)
        privacy["delta"] = privacy.get("delta") or asked
        resolved["privacy"] = privacy
        descends = train.get("algorithm", "fedavg") == "fedavg" and model.get("kind", "logistic") == "logistic"
        if descends and model.get("unit_rows") and privacy.get("unit") != "client":
            resolved["train"] = train | _private_descent(privacy) | given | {"quorum": train["quorum"]}
        elif model.get("kind") == "cox" and model.get("unit_rows"):
            steps = _private_descent(privacy)
            slower = {"rounds": 20, "momentum": 0.0, "learning_rate": float(f"{steps['learning_rate'] / 5:.3g}")}
            resolved["train"] = train | slower | given | {"quorum": train["quorum"]}
    return resolved


def _inside_enclave(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return rule and liars of "tee": an enclave adds up unless it is told a rule."""
    rule = given.get("rule", "mean")
    return {"rule": rule, "liars": given.get("liars", 0 if rule == "mean" else 1)}


def _private_descent(privacy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of [train] for noisy gradients of a logistic model on unit rows, from public numbers alone.

    Few long steps, no momentum and no ridge, which such steps would make a strong one: noise counts by their number,
    and what the average of the last half leaves of it falls with the records over the noise, to which the steps may
    then be longer (docs/private-learning.md).
    """
    usual = PrivacySection(expected_records=privacy["expected_records"])
    mu = gaussian_mu(privacy.get("epsilon", usual.epsilon), privacy["delta"])
    rate = 0.5 * max(4.0, privacy["expected_records"] * mu) ** 0.75
    return {"rounds": 40, "momentum": 0.0, "learning_rate": float(f"{rate:.3g}"), "weight_decay": 0.0}


def describe(job: Job, *, output: bool = True) -> str:
    """Return the job as TOML with every default filled in: what will run; without [output] if told so."""
    lines: list[str] = []
    for name in ("job", "data", "model", "trees", "train", "shares", "privacy", *(["output"] if output else [])):
        section = getattr(job, name)
        if section is None:
            if name in ("trees", "shares"):
                continue
            lines.append("# no [privacy]: no differential privacy\n")
            continue
        lines.append(f"[{name}]")
        for key, value in msgspec.structs.asdict(section).items():
            if (name, key) in _not_used(job):
                continue
            if isinstance(value, dict):
                pairs = ", ".join(f"{toml_value(k)} = {toml_value(v)}" for k, v in sorted(value.items()))  # type: ignore[misc]
                lines += [f"{key} = {{ {pairs} }}"] if value else []
            elif value is not None and value != ():
                lines.append(f"{key} = {toml_value(value)}")
        lines.append("")
    return "\n".join(lines)


def _not_used(job: Job) -> set[tuple[str, str]]:
    """Return the (section, key) pairs that say nothing about this job."""
    of_sets = {("data", "parties"), ("data", "split"), ("data", "alpha")}
    unused = {("model", "hidden")} if job.model.kind != "mlp" else set[tuple[str, str]]()
    if job.model.kind != "cox" or job.privacy is not None:
        unused.add(("model", "intervals"))
    if job.model.features == "columns":
        unused |= {("model", key) for key in OF_SCATTERING}
    elif job.model.features == "encoder":
        unused |= {("model", key) for key in OF_SCATTERING if key != "whiten"}
    unused |= {("train", key) for key, readers in READ_BY.items() if job.train.algorithm not in readers}
    unused |= {("train", key) for key, readers in AGGREGATED_BY.items() if job.train.aggregate not in readers}
    if job.train.aggregate == "mpc":
        sums = ("attempts", "compress", "clip_norm", "clip_quantile", "local_steps", "expected_records", "quorum")
        unused |= {("train", key) for key in (*sums, "class_weights", "rotation")}
    if job.train.aggregate not in ("shares", "he", "tee"):
        unused.add(("train", "helper"))
    unused |= {("train", key) for key, readers in COMPRESSED_BY.items() if job.train.compress not in readers}
    if job.privacy is None or job.privacy.unit != "client":
        unused |= {("train", "rotation"), ("privacy", "bands")}
    else:
        unused |= {("privacy", "expected_records"), ("privacy", "max_records"), ("train", "expected_records")}
        unused |= {("train", "update_bound"), ("train", "fraction_bits"), ("train", "attempts")}
    if not job.train.clip_quantile:
        unused.add(("train", "clip_rate"))
    if job.privacy is not None and job.privacy.unit == "record":
        unused.add(("privacy", "parties_per_unit"))
    if not job.data.standardise and job.train.class_weights == "none":
        unused.add(("privacy", "preprocessing_share"))
    if job.train.algorithm not in ("newton", "additive"):
        unused.add(("privacy", "statistics_share"))
    if job.train.algorithm == "additive":
        unused |= {("trees", key) for key in OF_BOOSTING} | {("privacy", "clip_norm"), ("train", "learning_rate")}
    if job.trees is not None:
        unused |= {("trees", "effects")} if job.privacy is None else set()
        unused |= {("trees", "held_out")} if not job.trees.patience else set()
        unused |= {("trees", "cells")} if job.trees.edges == "uniform" else set()
        unused |= {("train", "local_steps"), ("model", "unit_rows")}
    if job.data.set is None:
        unused |= of_sets | ({("data", "test_fraction")} if job.data.test else set())
        unused -= {("data", "split")} if job.data.split == "column" else set()
    elif job.data.split == "even":
        unused.add(("data", "alpha"))
    return unused
