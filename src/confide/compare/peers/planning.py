"""Which of the peers' cells a comparison runs, and what keeps the others out: nobody is silently left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from confide.compare.cells import PRIVATE, Cell, Cells, reason, variant
from confide.compare.peers.catalogue import Variant
from confide.compare.peers.environment import Environment
from confide.compare.peers.measured import Asking
from confide.compare.settings import Comparison
from confide.errors import ConfideError

#: Seconds that one measurement of a peer may take, if nothing else is said.
SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Peers:
    """The peers of a comparison.

    Args:
        environments: of those that are asked for, installed or not.
        seconds: that one measurement may take.
    """

    environments: tuple[Environment, ...] = ()
    seconds: float = SECONDS

    def asking(self, choice: str) -> Asking | None:
        """Return what is asked of whom under a choice; None for what is no peer's."""
        for environment in self.environments:
            for one in environment.peer.variants:
                if one.choice == choice:
                    return Asking(environment, one, self.seconds)
        return None


def with_peers(cells: Cells, comparison: Comparison, peers: Peers, *, seeds: int, queries: int) -> Cells:
    """Return cells with those of the peers behind them, and why a peer has none.

    Args:
        cells: of confide's own techniques.
        comparison: from the job file.
        peers: that are asked for.
        seeds, queries: how many.
    """
    found, unfit, jobs = list(cells.cells), dict(cells.unfit), dict(cells.jobs)
    first, trainings, asked = comparison.job.job.seed, list[Variant](), list[Cell]()
    for environment in peers.environments:
        peer = environment.peer
        for one in peer.variants:
            why = peer.refused or environment.absent()
            if why is None and one.task == "training":
                try:
                    jobs[one.choice] = variant(comparison.table, comparison.base, PRIVATE if one.private else "plain")
                except ConfideError as error:
                    why = reason(error)
            if why is not None:
                unfit[f"{one.task}/{one.choice}"] = why
            elif one.task == "training":
                trainings.append(one)
            else:
                asked.append(Cell(kind="inference", choice=one.choice, count=queries))
    if asked and not any(cell.kind == "model" for cell in found):
        found.insert(0, Cell(kind="model", choice=comparison.job.train.aggregate, seed=first))
    found += asked
    found += [
        Cell(kind="training", choice=one.choice, seed=seed) for seed in range(first, first + seeds) for one in trainings
    ]
    return replace(cells, cells=tuple(found), unfit=unfit, jobs=jobs)


def installed(environments: Sequence[Environment]) -> list[str]:
    """Return the names of the peers that can be asked."""
    return [one.peer.name for one in environments if one.absent() is None]
