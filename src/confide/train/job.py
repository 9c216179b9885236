"""A training job: one TOML file, read into frozen objects and printed back as it was understood.

    [job]      name, seed
    [data]     schema and tables, or a shipped set and how it is split; the test table
    [model]    kind, hidden units
    [train]    aggregate, rounds, learning rate ...
    [privacy]  epsilon, delta ...            leave the table out for a job without differential privacy
    [output]   model, ledger, signing key

Every key has its default and its meaning here and nowhere else; `docs/train.md` lists them and a test compares the two.
"""

from __future__ import annotations

import tomllib
import types
from collections.abc import Collection, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from confide.errors import JobError, nearest

_LARGEST_JOB_BYTES = 1 << 20


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the job file."""


class JobSection(_Section, frozen=True, kw_only=True):
    """[job]: what it is called, and the seed of every public choice (splits, initial weights)."""

    name: str = "confide"
    seed: int = 1


class DataSection(_Section, frozen=True, kw_only=True):
    """[data]: either `schema` + `tables` (+ `test`), or `set` + `parties` + `split`.

    Args:
        schema: the schema file, relative to the job file.
        tables: CSV file of each party, by the party's name.
        test: CSV file with the test records; without it `test_fraction` of every party's records are set aside.
        set: a shipped data set instead of files.
        parties: into how many parties the set is split.
        split: "even", or "by-label" (uneven, Dirichlet with `alpha` over the classes).
        alpha: the smaller, the more the parties differ, > 0.
        test_fraction: share of records set aside for testing, 0 < share < 1.
        standardise: take the mean and deviation of every number over all parties' records, from one more sum, in place
            of the schema's bounds; both become public with the model.
    """

    schema: str | None = None
    tables: dict[str, str] = {}
    test: str | None = None
    set: str | None = None
    parties: int = 4
    split: Literal["even", "by-label"] = "by-label"
    alpha: float = 1.0
    test_fraction: float = 0.2
    standardise: bool = False


class ModelSection(_Section, frozen=True, kw_only=True):
    """[model]: `logistic`, or `mlp` with one layer of `hidden` square units (what encrypted serving runs best).

    `unit_rows` scales every row of features to length 1, which bounds gradients for differential privacy.
    """

    kind: Literal["logistic", "mlp"] = "logistic"
    hidden: int = 16
    unit_rows: bool = False


class TrainSection(_Section, frozen=True, kw_only=True):
    """[train]: who sums, and how the sum moves the model.

    Args:
        aggregate: "plain", "masked", "amortised" or "shares"; what adds the updates of the parties.
        algorithm: what a party contributes and how the mean moves the model; "fedavg" with momentum is FedAvgM.
        quorum: smallest number of parties in any released sum; 0 stands for a majority, and for 3 at least.
        rounds: sums to take, >= 1; without the key 30, or 60 for an mlp.
        local_steps: full-batch gradient steps of a party between two sums; 1 equals training on the pooled records.
        learning_rate: step size on the mean gradient, > 0; without the key 1.0, or 0.1 for an mlp.
        server_learning_rate: factor of the server's step, > 0; without the key 1.0, or 0.1 for fedadam, fedyogi and
            fedadagrad.
        momentum: of the server's step, 0 <= momentum < 1; without the key 0.9, or 0 for scaffold.
        second_moment: of fedadam and fedyogi: how slowly the mean square of the changes follows, 0 <= it < 1.
        adaptivity: of fedadam, fedyogi and fedadagrad: the floor of the root mean square, > 0.
        proximal: of fedprox: pull of a party's local steps back to the common model, > 0.
        weight_decay: ridge coefficient, >= 0.
        average: share of the last rounds whose models are averaged into the result, 0 <= share <= 1.
        expected_records: public order of magnitude of one party's record count (never the count itself).
        update_bound: largest absolute change of a parameter in one local update; larger updates are scaled down.
        fraction_bits: fixed-point bits after the point of what is summed.
        attempts: how often a round that lost its quorum is repeated with fresh keys before the job stops.
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
    algorithm: Literal["fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "scaffold"] = "fedavg"
    quorum: int = 0
    rounds: int = 30
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
    fraction_bits: int = 22
    attempts: int = 3
    compress: Literal["none", "rotate", "rand-k", "sketch"] = "none"
    compress_bits: int = 8
    compress_share: float = 0.1
    clip_norm: float = 0.0
    clip_quantile: float = 0.0
    clip_rate: float = 1.0


class PrivacySection(_Section, frozen=True, kw_only=True):
    """[privacy]: record-level differential privacy of everything that is released.

    Args:
        epsilon: total budget, > 0.
        delta: total failure probability, below 1 / expected_records.
        clip_norm: largest L2 norm of one record's gradient, > 0.
        colluding: parties that may pool with the server; the other quorum - colluding carry the noise.
        expected_records: public size of the pooled data; the denominator of the mean gradient.
        max_records: public cap on one party's records; it sizes the ring. 0 stands for 4 * expected_records.
    """

    epsilon: float = 1.0
    delta: float = 1e-5
    unit: Literal["record"] = "record"
    clip_norm: float = 0.5
    colluding: int = 1
    expected_records: int
    max_records: int = 0


class OutputSection(_Section, frozen=True, kw_only=True):
    """[output]: where the signed model and the ledger go, relative to the job file; no path, no file."""

    model: str | None = None
    ledger: str | None = None
    signing_key: str | None = None


class Job(_Section, frozen=True, kw_only=True):
    """A whole job. `base` is the folder that relative paths start from."""

    job: JobSection = JobSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    privacy: PrivacySection | None = None
    output: OutputSection = OutputSection()
    base: str = "."

    def path(self, name: str) -> Path:
        """Return `name` as a path, relative ones from the job file's folder."""
        return Path(self.base) / name


#: What [train] takes by default for a kind of model: squares grow fast, so their steps must be smaller.
_DEFAULTS: Mapping[str, Mapping[str, float]] = {"logistic": {}, "mlp": {"rounds": 60, "learning_rate": 0.1}}

_ADAPTIVE = ("fedadam", "fedyogi", "fedadagrad")

#: The same for an algorithm.
_ALGORITHM_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    **{name: {"server_learning_rate": 0.1} for name in _ADAPTIVE},
    "scaffold": {"momentum": 0.0},
}

#: The same for a compression.
_COMPRESSION_DEFAULTS: Mapping[str, Mapping[str, float]] = {"rotate": {"clip_norm": 1.0, "clip_quantile": 0.9}}

#: Which compressions read a key of [train].
_COMPRESSED_BY: Mapping[str, tuple[str, ...]] = {
    "compress_bits": ("rotate",),
    "compress_share": ("rand-k", "sketch"),
}

#: Which algorithms read a key of [train]; all read those that are not here.
_READ_BY: Mapping[str, tuple[str, ...]] = {
    "proximal": ("fedprox",),
    "second_moment": ("fedadam", "fedyogi"),
    "adaptivity": _ADAPTIVE,
}

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
    ("train", "fraction_bits"): (8, 40, False, False),
    ("train", "attempts"): (1, 100, False, False),
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
    _check_combinations(job, table.get("train", {}))
    _check_compression(job, table.get("train", {}))
    return job


def _check_combinations(job: Job, given: Mapping[str, Any]) -> None:
    """Refuse what [train] names and would be ignored, and what [privacy] cannot account for."""
    name, steps = job.train.algorithm, job.train.local_steps
    for key, readers in _READ_BY.items():
        if key in given and name not in readers:
            raise JobError(f'Expected no train.{key} with train.algorithm="{name}"; it belongs to {", ".join(readers)}')
    if job.privacy is not None and job.data.standardise:
        raise JobError(
            "Expected no data.standardise with [privacy]; the means and deviations are computed from records and are "
            "not charged to epsilon. Leave it out: the schema's bounds scale every number"
        )
    if job.privacy is not None and (steps > 1 or name in ("fedprox", "scaffold")):
        raise JobError(
            f'Expected train.local_steps=1 and no fedprox or scaffold with [privacy], got {steps} and "{name}"; '
            "what is clipped and released there is one gradient of each record"
        )
    if name in ("fedprox", "scaffold") and steps == 1:
        raise JobError(
            f'Expected train.local_steps above 1 with train.algorithm="{name}"; after one step no party has drifted, '
            'so take "fedavg", which then equals training on the pooled records'
        )


def _check_compression(job: Job, given: Mapping[str, Any]) -> None:
    """Refuse compression and clipping where they would be ignored or break what is promised."""
    train = job.train
    for key, readers in _COMPRESSED_BY.items():
        if key in given and train.compress not in readers:
            raise JobError(
                f'Expected no train.{key} with train.compress="{train.compress}"; it belongs to {", ".join(readers)}'
            )
    changed = train.compress != "none" or train.clip_norm > 0
    if changed and job.privacy is not None:
        raise JobError(
            "Expected neither train.compress nor train.clip_norm with [privacy]; the noise is accounted for gradients "
            "that are summed whole, and privacy.clip_norm is their clip"
        )
    if changed and train.algorithm == "scaffold":
        raise JobError(
            'Expected neither train.compress nor train.clip_norm with train.algorithm="scaffold"; its control variates '
            'assume that the whole update arrives. Take "fedavg" or "fedadam"'
        )
    if train.compress == "rotate" and not train.clip_norm:
        raise JobError(
            'Expected train.clip_norm above 0 with train.compress="rotate"; its bits are spread over that norm'
        )
    for key, needed in (("clip_quantile", train.clip_norm), ("clip_rate", train.clip_quantile)):
        if given.get(key) and not needed:
            other = "clip_norm" if key == "clip_quantile" else "clip_quantile"
            raise JobError(f"Expected train.{other} above 0 with train.{key}; without it nothing follows")


def default_quorum(parties: int) -> int:
    """Return a majority, and at least 3 where there are as many: a sum of two shows each the other's vector."""
    return min(parties, max(3, parties // 2 + 1))


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
        if name == "data":
            yield from _contradictions_in_data(section)
        if name == "privacy" and name in table:
            yield from _contradictions_in_privacy(section, usable=not faults)


def _faults(name: str, kind: type[_Section], section: dict[str, Any]) -> Iterator[str]:
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
    resolved = table | {"train": train}
    if privacy := dict(table.get("privacy", {})):
        privacy["max_records"] = privacy.get("max_records") or 4 * privacy["expected_records"]
        resolved["privacy"] = privacy
    return resolved


def _section_type(kind: Any) -> type[_Section]:
    return next(part for part in (*get_args(kind), kind) if isinstance(part, type) and issubclass(part, _Section))


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
    unused |= {("train", key) for key, readers in _READ_BY.items() if job.train.algorithm not in readers}
    unused |= {("train", key) for key, readers in _COMPRESSED_BY.items() if job.train.compress not in readers}
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
