"""What a comparison has so far: its cells, what they gave, what did not fit, and the model that is served."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from confide.compare import training as trainings
from confide.compare.cache import Outcome
from confide.compare.cells import Cell, Cells, variant
from confide.compare.federation import Federation
from confide.compare.peers.planning import Peers
from confide.compare.settings import Comparison
from confide.model.graph import Graph
from confide.train.sections import Job

#: Over which link the model of links is checked.
CHECKED_LINK = "wan"


@dataclass(slots=True)
class State:
    """What a campaign has so far."""

    comparison: Comparison
    cells: Cells
    records: str
    federation: Federation | None = None
    peers: Peers = field(default_factory=Peers)
    loader: trainings.Loader = field(default_factory=trainings.Loader)
    unfit: dict[str, str] = field(default_factory=dict[str, str])
    found: list[tuple[Cell, Outcome]] = field(default_factory=list[tuple[Cell, Outcome]])
    model: Outcome | None = None
    graph: Graph | None = None

    def misfits(self, cell: Cell) -> bool:
        """Return whether an earlier cell of the same technique showed that it does not fit."""
        if cell.on:  # another model or other records than the job's
            return place_of(cell) in self.unfit
        if f"{cell.task}/{cell.choice}" in self.unfit:
            return True
        if cell.task == "training" or self.model is not None:
            return False
        if self.federation is not None and cell.kind == "inference":
            self.unfit[f"inference/{cell.choice}"] = "no model to serve: no run across the nodes was finished"
        return True


def place_of(cell: Cell) -> str:
    """Return where a cell's failure stands in `Result.unfit`."""
    if cell.on:
        return f"{cell.kind}/{cell.on}/{cell.choice}"
    return f"{cell.task}/{cell.choice}" if cell.kind in ("training", "inference") else f"{cell.kind}/{cell.choice}"


def job_of(state: State, cell: Cell) -> Job:
    """Return the job that a training cell runs."""
    if cell.kind == "model":
        return model_job(state)
    if cell.kind == "audit":
        return trainings.seeded(variant(state.comparison.table, state.comparison.base, cell.choice), cell.seed)
    if cell.kind == "set":
        made = variant(state.comparison.table, state.comparison.base, cell.choice, on=cell.on)
        return trainings.seeded(made, cell.seed)
    if cell.kind == "epsilon":
        made = variant(state.comparison.table, state.comparison.base, cell.choice, epsilon=cell.at)
        return trainings.seeded(made, cell.seed)
    return trainings.seeded(state.cells.jobs[cell.choice], cell.seed)


def model_job(state: State) -> Job:
    """Return the job as it stands, whose model is served: on shares it is opened in the end."""
    job = state.comparison.job
    opened = None if job.shares is None else msgspec.structs.replace(job.shares, folder=None)
    return msgspec.structs.replace(job, shares=opened)
