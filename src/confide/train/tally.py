"""What held-out records add to a sum, so that the sum says how good a model is and no party's part does.

Each record marks two cells, and a party's vector counts the marks:

    confusion    (true class, chosen class)                              classes x classes cells
    scores       binary: (true class, bin of the score)                  2 x bins cells
                 several classes: (0 wrong or 1 right, bin of the chosen class's score)

Under a privacy plan the marks are counted in grid steps and carry the party's share of the noise: one record more or
less moves two cells by one step each, an L2 norm of at most the plan's grid.

The bins lie like floating-point numbers: `bins` / 2 below the decision threshold 1/2, mirrored above it, each octave
(1/4, 1/2], (1/8, 1/4] ... cut into equal parts, so that scores near 0 and 1, where rare outcomes live, are told apart
as well. A bin is open below and closed above, so 1/2 itself is the last score that chooses class 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.mechanisms import count_step, counted
from confide.dp.plan import PrivacyPlan
from confide.errors import DataError, ProtocolError, UsageError
from confide.ideal import Sums, Vector
from confide.train.evaluate import decide

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
Count = TypeVar("Count", np.int64, np.float64)

#: Cells that each record marks.
MARKS = 2

#: Bins of a sum without noise, and of one whose every cell has its own.
BINS, NOISY_BINS = 256, 32


def edges_of(bins: int) -> Matrix:
    """Return the edges of the bins from 0 to 1, shape (bins + 1,), exact in binary; 1/2 and all eighths are among them.

    Args:
        bins: a power of 2, at least 32.
    """
    if bins < NOISY_BINS or bins.bit_count() != 1:
        raise UsageError(f"Expected bins={bins} to be a power of 2 and at least {NOISY_BINS}")
    octaves = 1 << ((bins // 2).bit_length() - 1) // 2
    parts = np.arange(1, bins // 2 // octaves + 1) / (bins // 2 // octaves)
    lowest = parts * 2.0**-octaves
    below = [2.0 ** -(k + 1) * (1 + parts) for k in range(octaves - 1, 0, -1)]
    half = np.concatenate([[0.0], lowest, *below])
    return np.concatenate([half, 1 - half[-2::-1]])


def bins_of(scores: Matrix, edges: Matrix) -> Labels:
    """Return the bin of each score; a score that is no number falls into the first, as it chooses class 0."""
    found = np.searchsorted(edges[1:-1], scores, side="left").astype(np.int64)
    return np.where(np.isnan(scores), 0, found)


@dataclass(frozen=True, slots=True)
class Tally:
    """How records are counted: everybody who takes part in one evaluation has the same.

    Args:
        classes: K; a model with one output column has two.
        bins: of scores, a power of 2.
        largest: most records that a party may hold out; public.
        plan: of one release, if records need differential privacy; made by `federated_evaluation.tally_of`.
    """

    classes: int
    bins: int
    largest: int
    plan: PrivacyPlan | None = None

    def __post_init__(self) -> None:
        if self.plan is not None and (self.plan.length, self.plan.rounds) != (self.length, 1):
            raise UsageError(f"Expected a plan for one release of {self.length} cells")

    @property
    def length(self) -> int:
        """Return the number of cells: the length of a party's vector."""
        return self.classes**2 + MARKS * self.bins

    @property
    def bound(self) -> int:
        """Return the largest absolute value that a party may submit."""
        return self.largest if self.plan is None else self.plan.bound

    @property
    def step(self) -> int:
        """Return what one mark adds to its cell."""
        return 1 if self.plan is None else count_step(MARKS, self.plan.grid)

    def cells(self, scores: Matrix, labels: Labels) -> Labels:
        """Return the two cells that each record marks, shape (n, 2)."""
        if scores.shape != (len(labels), 1 if self.classes == 2 else self.classes) or labels.ndim != 1:
            raise DataError(f"Expected scores and labels of {self.classes} classes, got {scores.shape}, {labels.shape}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.classes:
            raise DataError(f"Expected labels from 0 to {self.classes - 1}")
        chosen = decide(scores)
        if self.classes == 2:
            row, score = labels, scores[:, 0]
        else:
            row, score = (chosen == labels).astype(np.int64), scores[np.arange(len(scores)), chosen]
        place = self.classes**2 + row * self.bins + bins_of(score, edges_of(self.bins))
        return np.stack([labels * self.classes + chosen, place], axis=1).astype(np.int64)

    def contribution(self, scores: Matrix, labels: Labels, rng: Randomness, *, name: str = "this party") -> Vector:
        """Return what a party adds to the sum: int64, shape (length,), entries within `bound`.

        Args:
            scores: float64, shape (n, outputs), in [0, 1], each from its record alone (`scores_by_record`).
            labels: int64 class indices, shape (n,); n may be 0.
            rng: the party's own secret randomness, for the noise.
            name: the party, for an error text.

        Raises:
            DataError: shapes do not fit, or there are more records than `largest` (not under a plan, where they are
                cut so that nobody can tell).

        Under a plan every call draws fresh noise and what it returns is a release of its own: submit it once.
        """
        cells = self.cells(scores, labels)
        if self.plan is not None:
            return self.plan.release(counted(cells, length=self.length, grid=self.plan.grid), rng)
        if len(labels) > self.largest:
            raise DataError(
                f"Expected at most {self.largest} held-out records at {name}; set train.expected_records to the "
                "public order of magnitude"
            )
        return np.bincount(cells.ravel(), minlength=self.length).astype(np.int64)

    def counts(self, sums: Sums) -> Matrix:
        """Return the marks in each cell, float64, shape (length,): of all groups together, and noisy under a plan.

        Raises:
            ProtocolError: sums that no honest parties give. A sum over one party is refused too: its figures are its
                own.
        """
        if sums.values.ndim != 2 or sums.values.shape != (len(sums.members), self.length):
            raise ProtocolError(f"Expected sums of {self.length} cells")
        for row, members in zip(sums.values, sums.members, strict=True):
            if len(members) < 2:
                raise ProtocolError("Expected sums over at least two parties; what one party counts is its own")
            if self.plan is None:
                self._check(row, members)
        return sums.values.sum(axis=0) / self.step

    def _check(self, row: Vector, members: frozenset[str]) -> None:
        """Refuse a sum without noise whose cells contradict each other."""
        confusion, scores = self.split(row)
        half = self.bins // 2
        parts = (scores[:, :half].sum(axis=1), scores[:, half:].sum(axis=1))
        if self.classes == 2:
            agree = (np.stack(parts, axis=1) == confusion).all()
        else:
            agree = int(np.trace(confusion)) == scores[1].sum() and confusion.sum() == scores.sum()
        if not agree or (row < 0).any() or confusion.sum() > self.largest * len(members):
            raise ProtocolError(
                f"Expected counts that agree with each other from {', '.join(sorted(members))}; somebody among them "
                "does not count as agreed"
            )

    def split(self, cells: NDArray[Count]) -> tuple[NDArray[Count], NDArray[Count]]:
        """Return the two tables of cells, (..., classes, classes) and (..., 2, bins)."""
        square = self.classes**2
        confusion = cells[..., :square].reshape(*cells.shape[:-1], self.classes, self.classes)
        return confusion, cells[..., square:].reshape(*cells.shape[:-1], MARKS, self.bins)
