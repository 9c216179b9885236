"""What a comparison runs across real nodes, and what that costs them: protected trainings alone, one run for each cell.

A run across nodes is a release: it is charged to the budget of every node's data and never given back. So nothing is
trained here that is not protected twice: by an aggregator that hides each node's update from the coordinator, and by
noise. The baselines (one party alone, all records in one place, plain sums) are not run, and neither is a curve of
which each point would be a run. Predictions are asked with rows that belong to no node.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.compare.cells import (
    BASELINES,
    ON_SHARES,
    Cell,
    Cells,
    asked_cells,
    check_only,
    inference_choices,
    reason,
    size_cells,
    training_choices,
    variant,
)
from confide.compare.measure import with_noise
from confide.compare.settings import Comparison, protected_names
from confide.crypto.random import public_stream
from confide.data.schema import Category, Image, Number, Schema
from confide.data.table import read_inputs
from confide.errors import ConfideError, JobError
from confide.guarantee import Guarantee
from confide.model.preprocess import Preprocess
from confide.train.offer import job_hash
from confide.train.sections import Job
from confide.train.setting import Setting

Matrix = NDArray[np.float64]

#: Why a technique is never offered to a node.
_REFUSED: Mapping[str, str] = {
    "local": "a model of one node's records alone has no noise, and its figures would leave the node",
    "pooled": "records do not leave their nodes",
    ON_SHARES: "the model that is opened in the end has no noise",
}
_NO_NOISE = "it has no noise, and no epsilon bounds what it releases"
_RULE = "never run across real nodes"

#: Rows that are drawn, at most; further queries ask them again.
_MOST_DRAWN = 1000

#: What inference was asked with.
DRAWN = "rows drawn from the schema's public bounds, which look like nobody's records"


@dataclass(frozen=True, slots=True)
class Charge:
    """What one run spends at each node, as the nodes' own accounts count it.

    Args:
        epsilon, delta: of all its releases together: a failed attempt spends a release of these, and never more.
    """

    epsilon: float
    delta: float

    @staticmethod
    def of(setting: Setting) -> Charge:
        """Return the charge of a run from its beginning to its end."""
        assert setting.plan is not None
        course = setting.course()
        spent = course.encoding.epsilon(course.rounds)
        if setting.job.data.evaluate == "federated":
            spent = setting.evaluation_epsilon(spent)
        assert spent is not None
        return Charge(spent, setting.plan.delta)


@dataclass(frozen=True, slots=True)
class Bill:
    """What will be run and charged, told before anything starts.

    Args:
        nodes: who is charged.
        new: cells that are begun, each with its charge.
        going_on: cells whose run was interrupted and goes on; their charge is of the whole run, part of which may have
            been charged already, and counts once.
        measured: cells that are taken from the cache, which charges nothing.
        again: cells of `new` that were run before; what those runs spent is not given back.
    """

    nodes: tuple[str, ...]
    new: tuple[tuple[Cell, Charge], ...]
    going_on: tuple[tuple[Cell, Charge], ...] = ()
    measured: int = 0
    again: tuple[Cell, ...] = ()

    @property
    def charges(self) -> tuple[tuple[Cell, Charge], ...]:
        """Return everything that is charged."""
        return (*self.going_on, *self.new)

    @property
    def epsilon(self) -> float:
        """Return what each node is charged in all: runs add up, as in the nodes' budgets."""
        return math.fsum(charge.epsilon for _, charge in self.charges)

    @property
    def delta(self) -> float:
        """Return the same for delta."""
        return math.fsum(charge.delta for _, charge in self.charges)

    def sentences(self) -> list[str]:
        """Return the bill in lines."""
        lines = [f"{_runs(len(self.charges))} across {len(self.nodes)} real nodes ({', '.join(self.nodes)}):"]
        for cell, charge in self.charges:
            goes_on = any(cell == one for one, _ in self.going_on)
            note = ", which was interrupted and goes on" if goes_on else ""
            note = ", again: what the run before spent is not given back" if cell in self.again else note
            lines.append(f"  {cell.words()}: epsilon={charge.epsilon:.6g}, delta={charge.delta:.3g}{note}")
        lines.append(
            f"each node is charged epsilon={self.epsilon:.6g} and delta={self.delta:.3g} in all at most, added up over "
            "runs as its budget adds them; no charge is given back"
        )
        if self.measured:
            lines.append(f"{_runs(self.measured)} of before taken from the cache, which charges nothing")
        lines.append("a node whose policy, people or budget refuse a run is not charged for it, and nobody else is")
        return lines


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"


def schema_text(job: Job) -> str:
    """Return the text of a job's schema, which travels to the nodes.

    Raises:
        JobError: the job names none.
        DataError: it cannot be read.
    """
    if job.data.schema is None:
        raise JobError("Expected data.schema with data.nodes; the nodes read their tables by it")
    return Schema.text(job.path(job.data.schema))


def planned(comparison: Comparison, *, seeds: int, queries: int, only: tuple[str, ...] = ()) -> Cells:
    """Return what will be run: trainings first, since the model that is asked comes from one of them.

    Args:
        comparison: of a job with data.nodes.
        seeds, queries, only: as in `cells.planned`.

    Raises:
        UsageError: `only` holds what is no technique.
        DataError: the schema cannot be read.
    """
    check_only(only, more=protected_names())
    settings, job, text = comparison.settings, comparison.job, schema_text(comparison.job)
    schema = Schema.read(text, where="the schema")
    asked = {
        "training": _asked(only, "training") if only else settings.training,
        "inference": _asked(only, "inference") if only else settings.inference,
    }
    unfit, jobs = dict[str, str](), dict[str, Job]()
    for choice in training_choices():
        wanted = not asked["training"] or choice in asked["training"]
        if wanted and "+" not in choice:
            unfit[f"training/{choice}"] = f"{_RULE}: {_REFUSED.get(choice, _why_plain(choice))}"
    for choice in _own_first(job):
        if asked["training"] and choice not in asked["training"]:
            continue
        try:
            jobs[choice] = _protected(comparison, choice, schema)
        except ConfideError as error:
            unfit[f"training/{choice}"] = reason(error)
    backends = [name for name in inference_choices() if not asked["inference"] or name in asked["inference"]]
    if only and not asked["inference"]:
        backends = []
    if only and not asked["training"]:  # the model that is asked must come from somewhere
        jobs = dict(list(jobs.items())[:1])
        unfit = {}
    if "masked+dp" in jobs and settings.epsilons:
        unfit["epsilon/masked+dp"] = "each point would be a run across real nodes, and be charged"
    first = job.job.seed
    trainings = [
        Cell(kind="training", choice=choice, seed=seed) for seed in range(first, first + seeds) for choice in jobs
    ]
    rest = (*asked_cells(settings, backends, queries=queries), *size_cells(settings, backends, queries=queries))
    return Cells((*trainings, *rest), unfit, jobs)


def _asked(only: Sequence[str], task: str) -> tuple[str, ...]:
    """Return the techniques of one task that --only names; "he" names that of either."""
    other = "inference" if task == "training" else "training"
    names = [name.removeprefix(f"{task}/") for name in only if not name.startswith(f"{other}/")]
    known = (*training_choices(), *protected_names()) if task == "training" else inference_choices()
    return tuple(name for name in names if name in known)


def _why_plain(choice: str) -> str:
    return "it shows the coordinator each node's update" if choice == "plain" else _NO_NOISE


def _own_first(job: Job) -> Iterator[str]:
    """Yield the protected techniques, the job's own first: its model is the one that is asked."""
    own = f"{job.train.aggregate}+dp"
    yield from dict.fromkeys((own, "masked+dp", *protected_names())) if own in protected_names() else protected_names()


def _protected(comparison: Comparison, choice: str, schema: Schema) -> Job:
    """Return the job of a technique that may be offered to nodes.

    Raises:
        ConfideError: it may not; the text says why.
    """
    if choice.partition("+")[0] in BASELINES:
        raise JobError(_RULE)
    job = variant(comparison.table, comparison.base, choice)
    setting = Setting.of(job, schema)
    if not setting.aggregator().guarantee.hides("update", "server"):
        raise JobError(f"{_RULE}: it shows the coordinator each node's update")
    return job


def setting_of(job: Job, text: str) -> Setting:
    """Return what a job stands for at every node."""
    return Setting.of(job, Schema.read(text, where="the schema"))


def guarantee_of(setting: Setting) -> Guarantee:
    """Return what a protected run promises."""
    assert setting.plan is not None
    return with_noise(setting.aggregator().guarantee, setting.plan)


def name_parts(cell: Cell, job: Job, text: str, roster: bytes, coordinator: bytes) -> dict[str, Any]:
    """Return what a run across nodes is kept by: nothing that changes while it would not be run again.

    Neither the version of confide nor the machine is in it: another run would be another charge.
    """
    return {
        "cell": msgspec.structs.replace(cell, count=0),
        "job": job_hash(job, text),
        "roster": roster.hex(),
        "coordinator": coordinator.hex(),
    }


# --- rows that belong to no node --------------------------------------------------------------------------------------


def rows_of(comparison: Comparison, preprocess: Preprocess, count: int) -> Matrix:
    """Return rows to ask with, float64, shape (count, features): the declared ones, repeated if they are too few.

    Raises:
        DataError: the table of compare.rows does not keep to the schema.
    """
    schema = Schema.read(schema_text(comparison.job), where="the schema")
    if comparison.settings.rows is not None:
        columns = read_inputs(comparison.job.path(comparison.settings.rows), schema)
    else:
        columns = drawn(schema, min(count, _MOST_DRAWN))
    x = preprocess.apply(columns)
    return np.resize(x, (count, x.shape[1]))


def rows_words(comparison: Comparison) -> str:
    """Return what the rows are, in words."""
    if comparison.settings.rows is None:
        return DRAWN
    return f"{comparison.settings.data} rows, as the job file declares"


def drawn(schema: Schema, count: int) -> dict[str, NDArray[Any]]:
    """Return columns drawn evenly within a schema's public bounds, the same for the same schema."""
    rng = public_stream("compare", "rows within public bounds")
    columns: dict[str, NDArray[Any]] = {}
    for column in schema.columns:
        match column:
            case Number(low=low, high=high):
                columns[column.name] = rng.uniform(low, high, count)
            case Category(categories=categories):
                columns[column.name] = np.array(categories, object)[rng.integers(0, len(categories), count)]
            case Image(low=low, high=high):
                columns[column.name] = rng.uniform(low, high, (count, column.height, column.width))
    return columns
