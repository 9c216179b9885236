"""What a comparison will run, cell by cell, and what does not fit the job, with the reason.

A cell is the smallest thing that is measured and kept: one training with one seed, one technique's predictions, one
point of a curve. The list follows from the registries of aggregators and backends, so a technique that is added there
is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from confide.compare.audited import NOT_ATTACKED, choices
from confide.compare.settings import CompareSection, Comparison
from confide.compare.techniques import INFERENCE, TRAINING
from confide.data.sets import load_set
from confide.errors import ConfideError, JobError, UsageError, nearest
from confide.serve import BACKENDS
from confide.train.job import parse as parse_job
from confide.train.parts import AGGREGATORS, checked_aggregator
from confide.train.sections import DataSection, Job, names_of

Kind = Literal["model", "training", "epsilon", "audit", "inference", "load", "size", "link", "network", "set"]

#: Trainings that are no aggregator: each party alone, all records in one place, noise under secure aggregation.
BASELINES: tuple[str, ...] = ("local", "pooled")
PRIVATE = "masked+dp"
ON_SHARES = "mpc"

#: Inference under a backend's other setting: (choice, backend).
VARIANTS: Mapping[str, str] = {"he-open": "he"}

#: Over HTTP, small messages and large ones: on these the model of links is checked.
_CHECKED: tuple[str, ...] = ("plain", "he")

#: What [train] says beside the aggregate where there is no hardware for it.
_SIMULATED: Mapping[str, Mapping[str, str]] = {"tee": {"attester": "simulated"}}

#: What is trained on further sets: the ceiling, and the federation with and without noise.
ON_SETS: tuple[str, ...] = ("pooled", "plain", "masked", PRIVATE)

#: Keys of [data] that say how a set is parted.
_PARTED: tuple[str, ...] = ("parties", "split", "alpha", "test_fraction", "standardise")

#: Images that each technique is asked for on each network, at most.
_NETWORK_QUERIES = 12

#: Points of the curve against epsilon rest on as many seeds at most.
_EPSILON_SEEDS = 3

#: Keys of [train] that mean the same to sums of updates and to training on shares.
_OF_BOTH: tuple[str, ...] = ("aggregate",)


class Cell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing to measure.

    Args:
        kind: "model" trains what is served, "training" and "inference" measure a technique, "load" asks it from many
            clients at once, "epsilon" and "size" are points of curves, "audit" attacks a training, "link" checks the
            model of links, "network" and "set" measure a technique on something else than the job's model and data.
        choice: the technique.
        seed: of public choices, for trainings.
        at: epsilon, or units of the hidden layer; 0 where neither is asked.
        count: queries, for predictions; clients, under load; models beside an attacked one; 0 for trainings.
        on: the network or the set, "" for the job's own.
    """

    kind: Kind
    choice: str
    seed: int = 0
    at: float = 0.0
    count: int = 0
    on: str = ""

    @property
    def task(self) -> str:
        """Return "training" or "inference"."""
        return "training" if self.kind in ("model", "training", "epsilon", "audit", "set") else "inference"

    def words(self) -> str:
        """Return the cell in a few words, for progress."""
        match self.kind:
            case "model":
                return "the model to serve"
            case "training":
                return f"training: {self.choice}, seed {self.seed}"
            case "epsilon":
                return f"training: {self.choice} at epsilon {self.at:g}, seed {self.seed}"
            case "audit":
                return f"attacks: {self.choice}"
            case "inference":
                return f"inference: {self.choice}"
            case "load":
                return f"inference: {self.choice}, {self.count} clients at once"
            case "size":
                return f"inference: {self.choice}, {self.at:g} hidden units"
            case "network":
                return f"inference: {self.choice} on {self.on}"
            case "set":
                return f"training: {self.choice} on {self.on}, seed {self.seed}"
            case "link":
                return f"a shaped link: {self.choice}"


@dataclass(frozen=True, slots=True)
class Cells:
    """What will be run.

    Args:
        cells: in the order in which they run.
        unfit: by "<task>/<choice>": why it is not run.
        jobs: the job of each training choice, as it was read; the baselines take "plain"'s.
    """

    cells: tuple[Cell, ...]
    unfit: Mapping[str, str]
    jobs: Mapping[str, Job]


def training_choices() -> tuple[str, ...]:
    """Return every training technique in the order of the strategic table, newer aggregators last."""
    built = (*BASELINES, *AGGREGATORS, PRIVATE, ON_SHARES)
    return (*(name for name in TRAINING if name in built), *(name for name in built if name not in TRAINING))


def inference_choices() -> tuple[str, ...]:
    """Return every inference technique in the order of the strategic table, newer backends last."""
    built = (*BACKENDS, *VARIANTS)
    return (*(name for name in INFERENCE if name in built), *(name for name in built if name not in INFERENCE))


def variant(table: Mapping[str, Any], base: Path, choice: str, *, epsilon: float | None = None, on: str = "") -> Job:
    """Return the job of one training technique: the job as it was written, with another aggregate.

    Args:
        table: of the job file, without [compare].
        base: of relative paths.
        choice: out of `training_choices`.
        epsilon: in place of the job's, for techniques with noise.
        on: a shipped set in place of the job's records, parted as they are; "" for the job's own.

    Raises:
        JobError: the technique contradicts the job; the text says why.
    """
    table = on_set(table, on) if on else table
    name, _, noise = choice.partition("+")
    private, aggregate = bool(noise), name if choice not in BASELINES else "plain"
    left = {"output", *(() if private else ("privacy",))}
    made: dict[str, Any] = {name: value for name, value in table.items() if name not in left}
    given: dict[str, Any] = dict(table.get("train", {}))
    kind = cast("dict[str, Any]", table.get("model", {})).get("kind", "logistic")
    if aggregate == ON_SHARES and kind not in ("logistic", "mlp"):
        raise JobError(f'training on shares runs model.kind="logistic" and "mlp", and no "{kind}"')
    if (aggregate == ON_SHARES) != (given.get("aggregate") == ON_SHARES):  # what the other kind of training reads
        given = {key: value for key, value in given.items() if key in _OF_BOTH}
        made.pop("shares", None)
    if isinstance(shares := made.get("shares"), dict):
        made["shares"] = {key: value for key, value in shares.items() if key != "folder"}  # type: ignore[misc]
    if "nodes" not in table.get("data", {}):  # real nodes take real hardware
        given |= _SIMULATED.get(aggregate, {})
    made["train"] = {**given, "aggregate": aggregate}
    if private:
        if "privacy" not in table:
            raise JobError("the job has no [privacy]; add one with expected_records to compare it")
        privacy: dict[str, Any] = dict(table["privacy"])
        made["privacy"] = privacy if epsilon is None else {**privacy, "epsilon": epsilon}
    job = parse_job(made, base=base)
    if choice not in (*BASELINES, ON_SHARES):
        checked_aggregator(job, names_of(job))
    return job


def on_set(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a job file's table with a shipped set in place of its records; the number of records follows."""
    given: dict[str, Any] = dict(table.get("data", {}))
    data = {key: given[key] for key in _PARTED if key in given and given[key] != "column"}
    made = {**table, "data": {"set": name, **data}}
    if "privacy" in table:
        records = load_set(name)[1].n
        kept = 1 - float(data.get("test_fraction", DataSection().test_fraction))
        made["privacy"] = {**table["privacy"], "expected_records": int(records * kept)}
    return made


def planned(comparison: Comparison, *, seeds: int, queries: int, only: tuple[str, ...] = ()) -> Cells:
    """Return what will be run.

    Args:
        comparison: from the job file.
        seeds, queries: how many, in place of those of [compare].
        only: techniques, of both tasks or as "training/he" of one; () takes those of [compare].

    Raises:
        UsageError: `only` holds what is no technique.
    """
    check_only(only)
    settings, unfit, jobs = comparison.settings, dict[str, str](), dict[str, Job]()
    wanted = {"training": settings.training, "inference": settings.inference}
    named = {"training": training_choices(), "inference": inference_choices()}
    chosen: dict[str, list[str]] = {}
    for task, names in named.items():
        known = TRAINING if task == "training" else INFERENCE
        asked = [name.removeprefix(f"{task}/") for name in only] if only else wanted[task] or (*names, *known)
        chosen[task] = [name for name in names if name in asked]
        absent = [name for name in known if name not in names and name in asked]
        unfit |= {f"{task}/{name}": "not built yet: no code here runs it" for name in absent}
    for choice in list(chosen["training"]):
        try:
            jobs[choice] = variant(comparison.table, comparison.base, choice)
        except ConfideError as error:
            unfit[f"training/{choice}"] = reason(error)
            chosen["training"].remove(choice)
    found = list(_cells(comparison, chosen, seeds=seeds, queries=queries))
    return Cells(tuple(found), unfit, jobs)


def check_only(only: tuple[str, ...], *, more: tuple[str, ...] = ()) -> None:
    """Refuse names of no technique; `more` are trainings beside the usual ones.

    Raises:
        UsageError: one is none.
    """
    trainings = dict.fromkeys((*TRAINING, *training_choices(), *more))
    known = {"training": tuple(trainings), "inference": (*INFERENCE, *inference_choices())}
    plain = {name for names in known.values() for name in names}
    named = plain | {f"{task}/{name}" for task, names in known.items() for name in names}
    for name in only:
        if name not in named:
            raise UsageError(
                f"Expected --only with a technique, got {name!r}{nearest(name, sorted(plain))}; there are "
                f"{', '.join(sorted(plain))}, and training/NAME or inference/NAME for one task"
            )


def _cells(comparison: Comparison, chosen: Mapping[str, list[str]], *, seeds: int, queries: int) -> Iterator[Cell]:
    first, settings = comparison.job.job.seed, comparison.settings
    if chosen["inference"]:
        yield Cell(kind="model", choice=comparison.job.train.aggregate, seed=first)
    yield from asked_cells(settings, chosen["inference"], queries=queries)
    for seed in range(first, first + seeds):
        for choice in chosen["training"]:
            yield Cell(kind="training", choice=choice, seed=seed)
    if PRIVATE in chosen["training"]:
        for seed in range(first, first + min(seeds, _EPSILON_SEEDS)):
            for epsilon in settings.epsilons:
                yield Cell(kind="epsilon", choice=PRIVATE, seed=seed, at=epsilon)
    for choice in choices(chosen["training"], NOT_ATTACKED) if settings.audit else ():
        yield Cell(kind="audit", choice=choice, seed=first, count=settings.audit_shadows)
    for on in settings.sets:
        for seed in range(first, first + seeds):
            for choice in [name for name in ON_SETS if name in chosen["training"]]:
                yield Cell(kind="set", choice=choice, seed=seed, on=on)
    yield from size_cells(settings, chosen["inference"], queries=queries)


def asked_cells(settings: CompareSection, choices: Sequence[str], *, queries: int) -> Iterator[Cell]:
    """Yield the predictions of each technique, and the check of the links."""
    for choice in choices:
        yield Cell(kind="inference", choice=choice, count=queries)
    for choice in choices if settings.clients else ():
        yield Cell(kind="load", choice=choice, count=settings.clients)
    for choice in [name for name in _CHECKED if settings.check_link and name in choices]:
        yield Cell(kind="link", choice=choice, count=20)


def size_cells(settings: CompareSection, choices: Sequence[str], *, queries: int) -> Iterator[Cell]:
    """Yield the predictions of networks of each size, and of known ones."""
    for size in settings.sizes:
        for choice in choices:
            yield Cell(kind="size", choice=choice, at=float(size), count=min(queries, 5))
    for on in settings.networks:
        for choice in [name for name in choices if name not in VARIANTS]:
            yield Cell(kind="network", choice=choice, count=min(queries, _NETWORK_QUERIES), on=on)


def reason(error: BaseException) -> str:
    """Return an error in one line."""
    lines = [line.strip().rstrip(";") for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line) or type(error).__name__
