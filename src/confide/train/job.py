"""A training job: one TOML file, read into frozen objects and printed back as it was understood.

    [job]      name, seed
    [data]     schema and tables, or a shipped set and how it is split; the test table
    [model]    kind, hidden units
    [train]    aggregate, rounds, learning rate ...
    [privacy]  epsilon, delta ...            leave the table out for a job without differential privacy
    [output]   model, ledger, signing key

Every key has its default and its meaning in `confide.train.sections`.
"""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Collection, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from confide.errors import JobError, nearest
from confide.train.contradictions import (
    ADAPTIVE,
    COMPRESSED_BY,
    OF_GROUPS,
    READ_BY,
    check_combinations,
    check_compression,
    check_readers,
)
from confide.train.sections import DataSection, Job, Section, TrainSection, default_quorum, group_size

_LARGEST_JOB_BYTES = 1 << 20


#: What [train] takes by default for a kind of model: squares grow fast, so their steps must be smaller.
_DEFAULTS: Mapping[str, Mapping[str, float]] = {"logistic": {}, "mlp": {"rounds": 60, "learning_rate": 0.1}}

#: The same for a network that the caller brings: many local steps take the place of the server's momentum.
_OWN_MODEL: Mapping[str, float] = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "average": 0.0}

#: The same for an algorithm.
_ALGORITHM_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    **{name: {"server_learning_rate": 0.1, "momentum": 0.9} for name in ADAPTIVE},
    "scaffold": {"momentum": 0.0},
}

#: The same for a compression.
_COMPRESSION_DEFAULTS: Mapping[str, Mapping[str, float]] = {"rotate": {"clip_norm": 1.0, "clip_quantile": 0.9}}

#: (section, key): lowest, highest, lowest excluded, highest excluded
_RANGES: Mapping[tuple[str, str], tuple[float, float, bool, bool]] = {
    ("job", "seed"): (-(2**63), 2**63 - 1, False, False),
    ("data", "parties"): (2, 1000, False, False),
    ("data", "alpha"): (0, 1e6, True, False),
    ("data", "test_fraction"): (0, 1, True, True),
    ("model", "hidden"): (1, 4096, False, False),
    ("train", "quorum"): (0, 1000, False, False),
    ("train", "rounds"): (1, 100_000, False, False),
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
    ("privacy", "epsilon"): (0, 32, True, False),
    ("privacy", "delta"): (0, 1, True, True),
    ("privacy", "clip_norm"): (0, 1e6, True, False),
    ("privacy", "colluding"): (0, 999, False, False),
    ("privacy", "expected_records"): (1, 1e9, False, False),
    ("privacy", "max_records"): (0, 1e10, False, False),
}


def load(path: Path) -> Job:
    """Read a job file.

    Raises:
        JobError: the file is absent or is no TOML; or as in `parse`.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_JOB_BYTES + 1)
        if len(text) > _LARGEST_JOB_BYTES:
            raise JobError(f"Expected a job file of at most {_LARGEST_JOB_BYTES} bytes at {path}")
        return parse(tomllib.loads(text.decode()), base=path.parent)
    except OSError as error:
        raise JobError(f"Expected a readable job file at {path}; {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, numbers or nesting without end
        raise JobError(f"Expected TOML in {path}; {error}") from None


def parse(table: dict[str, Any], *, base: Path = Path()) -> Job:
    """Return the job that `table` describes.

    Raises:
        JobError: with every unknown key, wrong type, value out of range and contradiction, one in a line.
    """
    if problems := list(_problems(table)):
        raise JobError("\n".join(problems))
    try:
        job = msgspec.convert(_resolved(table) | {"base": str(base)}, Job)
    except msgspec.ValidationError as error:  # everything that a user can cause was named above
        raise JobError(f"Expected a well-formed job; {error}") from None
    check_combinations(job, table.get("train", {}))
    return job


def train_section(**given: Any) -> TrainSection:
    """Return a [train] for a model of your own: keys and checks of a job file, plain averaging unless it is named.

    Its defaults are those of [train] but for learning_rate 0.1, momentum 0 (0.9 for fedadam, fedyogi and fedadagrad),
    weight_decay 0 and average 0.

    Raises:
        JobError: with every unknown key, wrong type and value out of range, one in a line.
    """
    if problems := [*_faults("train", TrainSection, given), *_faults_of_hash(given)]:
        raise JobError("\n".join(problems))
    own = _ALGORITHM_DEFAULTS.get(given.get("algorithm", "fedavg"), {})
    compressed = _COMPRESSION_DEFAULTS.get(given.get("compress", "none"), {})
    outvoted = {"liars": 0} if given.get("rule") == "mean" else {}
    train = msgspec.convert({**_OWN_MODEL, **own, **compressed, **outvoted, **given}, TrainSection)
    check_readers(train, given)
    check_compression(train, given)
    return train


def _problems(table: dict[str, Any]) -> Iterator[str]:
    sections = {key: kind for key, kind in get_type_hints(Job).items() if key != "base"}
    yield from (_unknown(key, sections, "a job has the tables") for key in table if key not in sections)
    for name, kind in sections.items():
        section = table.get(name, {})
        if not isinstance(section, dict):
            yield f"Expected [{name}] to be a table, got {name} = {section!r}; write [{name}] and its keys below it"
            continue
        section = cast("dict[str, Any]", section)
        faults = list(_faults(name, _section_type(kind), section))
        yield from faults
        if name == "train":
            yield from _faults_of_hash(section)
        if name == "data":
            yield from _contradictions_in_data(section)
        if name == "privacy" and name in table:
            yield from _contradictions_in_privacy(section, usable=not faults)


def _faults(name: str, kind: type[Section], section: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with each key of a section by itself."""
    hints = get_type_hints(kind)
    for key, value in section.items():
        if key not in hints:
            yield _unknown(key, hints, f"[{name}] has the keys", f"{name}.")
            continue
        try:
            msgspec.convert(value, hints[key])
        except msgspec.ValidationError:
            close = nearest(str(value), _choices(hints[key]))
            wanted = _readable(hints[key])
            yield f"Expected {name}.{key} to be {wanted}, got {value!r}{close}; change it in the job file"
            continue
        texts = cast("list[Any]", [*value, *value.values()] if isinstance(value, dict) else [value])
        if any(isinstance(text, str) and "\0" in text for text in texts):
            yield f"Expected {name}.{key} without the character NUL, which no path can hold; remove it"
        if (name, key) in _RANGES:
            yield from _out_of_range(name, key, cast("float", value))


def _faults_of_hash(train: Mapping[str, Any]) -> Iterator[str]:
    if not re.fullmatch("[0-9a-f]{64}", str(train.get("start_hash", "0" * 64))):
        yield (
            "Expected train.start_hash to be 64 hex digits in lower case; `confide train` prints it before the first "
            "round"
        )


def _out_of_range(name: str, key: str, value: float) -> Iterator[str]:
    low, high, open_low, open_high = _RANGES[name, key]
    if not ((low < value if open_low else low <= value) and (value < high if open_high else value <= high)):
        bounds = f"{'above' if open_low else 'at least'} {low:g} and {'below' if open_high else 'at most'} {high:g}"
        yield f"Expected {name}.{key}={value} to be {bounds}; change it in the job file"


def _unknown(key: str, known: Collection[str], what: str, where: str = "") -> str:
    return f'Unknown key "{where}{key}"{nearest(key, known)}; {what} {", ".join(known)}'


def _contradictions_in_data(data: dict[str, Any]) -> Iterator[str]:
    if ("set" in data) == ("schema" in data):
        yield 'Expected either data.set or data.schema with data.tables; for a trial: set = "breast-cancer"'
    elif "schema" in data and isinstance(tables := data.get("tables", {}), dict) and len(cast("Sized", tables)) < 2:
        parties = len(cast("Sized", tables))
        yield f"Expected at least 2 parties in data.tables, got {parties}; name each party's CSV file"


def _contradictions_in_privacy(privacy: dict[str, Any], *, usable: bool) -> Iterator[str]:
    delta = privacy.get("delta", 1e-5)
    if "expected_records" not in privacy:
        yield "Expected privacy.expected_records: the public size of the pooled data, which divides the noisy sum"
    elif usable and delta * privacy["expected_records"] >= 1:
        yield (
            f"Expected privacy.delta={delta} below 1 / expected_records; at that delta a mechanism may publish whole "
            "records"
        )


def _resolved(table: dict[str, Any]) -> dict[str, Any]:
    """Return `table` with the defaults that depend on other keys, so that what is printed is what runs."""
    data: dict[str, Any] = table.get("data", {})
    model: dict[str, Any] = table.get("model", {})
    parties = len(data["tables"]) if "schema" in data else data.get("parties", DataSection().parties)
    given: dict[str, Any] = table.get("train", {})
    own = _ALGORITHM_DEFAULTS.get(given.get("algorithm", "fedavg"), {})
    own = {**own, **_COMPRESSION_DEFAULTS.get(given.get("compress", "none"), {})}
    train: dict[str, Any] = {**_DEFAULTS[model.get("kind", "logistic")], **own, **given}
    train["quorum"] = train.get("quorum") or default_quorum(parties)
    if train.get("aggregate") == "groups":
        train["liars"] = train.get("liars", 0 if train.get("rule") == "mean" else 1)
        of = TrainSection(**{key: train[key] for key in OF_GROUPS if key in train})
        train["group_size"] = group_size(of, parties)
    resolved = table | {"train": train}
    if privacy := dict(table.get("privacy", {})):
        privacy["max_records"] = privacy.get("max_records") or 4 * privacy["expected_records"]
        resolved["privacy"] = privacy
    return resolved


def _section_type(kind: Any) -> type[Section]:
    return next(part for part in (*get_args(kind), kind) if isinstance(part, type) and issubclass(part, Section))


def _choices(kind: Any) -> tuple[str, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _readable(kind: Any) -> str:
    """Return a type as a person would say it."""
    if get_origin(kind) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_readable(part) for part in get_args(kind) if part is not type(None))
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a number", dict: "a table"}
    return words.get(get_origin(kind) or kind, str(kind))


def describe(job: Job) -> str:
    """Return the job as TOML with every default filled in: what will run."""
    lines: list[str] = []
    for name in ("job", "data", "model", "train", "privacy", "output"):
        section = getattr(job, name)
        if section is None:
            lines.append("# no [privacy]: no differential privacy\n")
            continue
        lines.append(f"[{name}]")
        for key, value in msgspec.structs.asdict(section).items():
            if (name, key) in _not_used(job):
                continue
            if isinstance(value, dict):
                pairs = ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in sorted(value.items()))  # type: ignore[misc]
                lines += [f"{key} = {{ {pairs} }}"] if value else []
            elif value is not None:
                lines.append(f"{key} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def _not_used(job: Job) -> set[tuple[str, str]]:
    """Return the (section, key) pairs that say nothing about this job."""
    of_sets = {("data", "parties"), ("data", "split"), ("data", "alpha")}
    unused = {("model", "hidden")} if job.model.kind == "logistic" else set[tuple[str, str]]()
    unused |= {("train", key) for key, readers in READ_BY.items() if job.train.algorithm not in readers}
    if job.train.aggregate != "groups":
        unused |= {("train", key) for key in OF_GROUPS}
    if job.train.aggregate not in ("shares", "he"):
        unused.add(("train", "helper"))
    unused |= {("train", key) for key, readers in COMPRESSED_BY.items() if job.train.compress not in readers}
    if not job.train.clip_quantile:
        unused.add(("train", "clip_rate"))
    if job.data.set is None:
        unused |= of_sets | ({("data", "test_fraction")} if job.data.test else set())
    elif job.data.split == "even":
        unused.add(("data", "alpha"))
    return unused


def _toml(value: object) -> str:
    """Return a scalar as TOML; JSON's strings are TOML's basic strings."""
    return msgspec.json.encode(value).decode()
