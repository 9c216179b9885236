"""What everybody who takes part in a training on shares knows beforehand: who brings what, and every run of a program.

    admission     one run for each batch: its rows are masked, once for all passes
    beginning     the starting weights
    step          one run for each batch of each pass, in the same order
    revelation    the weights, unless they stay shares

Runs are numbered from 0; the number is the counter of the run's deal, and part of the tags of its messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import public_stream
from confide.errors import UsageError
from confide.mpc.correlations import Layout
from confide.mpc.halves import SERVERS
from confide.mpc.operations import Program
from confide.mpc.party import schedule_of
from confide.mpc.schedule import Schedule
from confide.mpc.training import admission, beginning, revelation, step
from confide.mpc.training_plan import Task

Indices = NDArray[np.int64]
Stage = Literal["admission", "beginning", "step", "revelation"]

#: What messages call who takes part beside the owners and the servers.
DEALER = "dealer"

#: Most rows, columns times rows, and steps of one training.
MOST_ROWS, MOST_CELLS, MOST_STEPS = 1 << 24, 1 << 30, 1 << 24


@dataclass(frozen=True, slots=True)
class Piece:
    """What one owner brings: some columns of some rows.

    Args:
        rows: int64, places of its rows in the pooled order.
        columns: int64, places of its columns among the features.
        targets: whether it brings the targets of its rows.
    """

    rows: Indices
    columns: Indices
    targets: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A program with what dealer and parties need of it."""

    program: Program
    layout: Layout
    schedule: Schedule

    @staticmethod
    def of(program: Program) -> Plan:
        """Return the plan of a program whose values both parties hold in shares."""
        layout = Layout.of(program, owned=False)
        return Plan(program, layout, schedule_of(layout))


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a program.

    Args:
        number: from 0.
        stage: which program.
        batch: of an admission or a step, from 0; else -1.
    """

    number: int
    stage: Stage
    batch: int = -1


@dataclass(frozen=True, kw_only=True)
class Course:
    """A training on shares in public numbers; equal at all who take part.

    Args:
        task: the model and its rates.
        pieces: of each owner, by its name; together they have every cell once.
        rows: of all owners.
        batch: rows of a step; batches differ by one row at most, and none is larger.
        passes: over all rows, >= 1.
        opened: whether the weights are revealed to the owners in the end.
        seed: of the public order of the rows.
        taken: steps that an earlier run has taken, from whose shares this one goes on; 0 begins anew.

    Raises:
        UsageError: pieces overlap or leave a gap, or a number is out of range.
    """

    task: Task
    pieces: Mapping[str, Piece]
    rows: int
    batch: int
    passes: int
    opened: bool
    seed: int = 1
    taken: int = 0

    def __post_init__(self) -> None:
        features = self.task.features
        if not self.pieces or {*SERVERS, DEALER} & set(self.pieces):
            raise UsageError(f"Expected owners, none of them called {', '.join((*SERVERS, DEALER))}")
        if not (1 <= self.rows <= MOST_ROWS and self.rows * features <= MOST_CELLS and 1 <= self.batch):
            raise UsageError(
                f"Expected 1 to {MOST_ROWS} rows and batch={self.batch} of at least 1, got {self.rows} rows"
            )
        if not 1 <= self.passes * len(self.batches) <= MOST_STEPS:
            raise UsageError(f"Expected 1 to {MOST_STEPS} steps, got {self.passes} passes of {len(self.batches)}")
        if not 0 <= self.taken <= self.steps:
            raise UsageError(f"Expected to go on from 0 to {self.steps} steps, got {self.taken}")
        filled, targets = np.zeros((self.rows, features), np.uint8), np.zeros(self.rows, np.uint8)
        for piece in self.pieces.values():
            filled[np.ix_(piece.rows, piece.columns)] += 1
            targets[piece.rows] += piece.targets
        if not ((filled == 1).all() and (targets == 1).all()):
            raise UsageError("Expected every cell and every target of the rows from one owner")

    @cached_property
    def batches(self) -> tuple[Indices, ...]:
        """Return the rows of each batch: a public order, cut into parts that differ by one row at most."""
        order = public_stream(self.seed, "batches").permutation(self.rows)
        return tuple(np.array_split(order, -(-self.rows // self.batch)))

    @property
    def steps(self) -> int:
        """Return how many steps the whole training takes."""
        return self.passes * len(self.batches)

    @property
    def runs(self) -> Iterator[Run]:
        """Yield every run in order."""
        batches = range(len(self.batches))
        stages: list[tuple[Stage, int]] = [("admission", batch) for batch in batches]
        stages.append(("beginning", -1))
        stages.extend(("step", number % len(self.batches)) for number in range(self.taken, self.steps))
        if self.opened:
            stages.append(("revelation", -1))
        for number, (stage, batch) in enumerate(stages):
            yield Run(number, stage, batch)

    def plan(self, run: Run) -> Plan:
        """Return the program of a run with its layout: made once for all batches of a size."""
        return self._plans[run.stage, len(self.batches[run.batch]) if run.batch >= 0 else 0]

    @cached_property
    def _plans(self) -> Mapping[tuple[str, int], Plan]:
        sizes = {len(batch) for batch in self.batches}
        return {
            **{("admission", size): Plan.of(admission(self.task, size)) for size in sizes},
            **{("step", size): Plan.of(step(self.task, size)) for size in sizes},
            ("beginning", 0): Plan.of(beginning(self.task)),
            ("revelation", 0): Plan.of(revelation(self.task)),
        }
