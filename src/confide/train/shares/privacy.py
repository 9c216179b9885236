"""Noise inside the shares: what a record adds to a step's sum is bounded, and each server adds noise of its own to it.

A step of logistic regression adds, for every row of its batch, x~ e with x~ = (x, 1) and e = sigmoid3(z) - y. The error
is at most 1 in size by construction, whatever the weights are, so a clipped row bounds the whole of it: owners clip
rows once, before they share them, and no gate is needed in a step.

    C      clip_norm         largest norm of x~; rows are scaled down to sqrt(C^2 - 1)
    t      row_bits          fraction bits of a row's entries: they lie on a grid of 2^-t
    s      grid              sensitivity in grid steps of 2^-(16 + t): ceil((2^16 + 4) 2^t C sqrt(outputs))
    T      rounds            passes: every record is in one batch of each
    h      shares            servers whose noise counts: 2 - colluding

The sum X~^T E is exact in the ring, on the grid 2^-(16 + t), and each server's noise is a discrete Gaussian on that
grid. Truncations and signs move e by at most 4 units of 2^-16, which the 4 above covers; the window that signs are
exact in is as wide as the largest noise that can be drawn asks for. Nothing between the steps is opened. What is
accounted is as if every step's sum were: T releases, one for each pass, since a record is in one of its batches.

Proof: docs/protocols/mpc-training.md, section "Differential privacy"; the accounting is that of `PrivacyPlan`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.noise import largest_draw
from confide.crypto.random import Randomness
from confide.dp.plan import PrivacyPlan
from confide.errors import PrivacyError
from confide.mpc.operations import SCALE
from confide.mpc.training_plan import MOST_WINDOW, WINDOW, Rates
from confide.train.shares.course import SERVERS
from confide.train.shares.parties import Noise

Matrix = NDArray[np.float64]
Words = NDArray[np.uint64]

#: By how many units of 2^-16 rounding moves an error beyond 1.
SLACK = 4
#: Grids stay below 2^29 steps, and rows keep at most 12 fraction bits.
_GRID_BITS, _MOST_ROW_BITS = 29, 12
_MECHANISM = "gradient sums with discrete Gaussian noise, added to the servers' shares"


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """What a training under [privacy] promises, and what each server adds for it.

    Args:
        plan: calibrated for the servers as those who add noise.
        row_norm: largest norm of a row of features.
        row_bits: fraction bits of a row's entries.
        shape: of the weights, the bias's row included.
    """

    plan: PrivacyPlan
    row_norm: float
    row_bits: int
    shape: tuple[int, int]

    @staticmethod
    def calibrate(
        *,
        epsilon: float,
        delta: float | None,
        clip_norm: float,
        passes: int,
        features: int,
        outputs: int = 1,
        colluding: int = 1,
        expected_records: int,
        max_records: int | None = None,
    ) -> NoisePlan:
        """Return the plan with the least noise that keeps (epsilon, delta).

        Args:
            clip_norm: C, above 1.
            passes: over the rows.
            features: columns of a row, the 1 in the bias's place not counted.
            outputs: of the model.
            colluding: servers whose noise the adversary knows, 0 or 1.
            delta, expected_records, max_records: as in `PrivacyPlan.calibrate`.

        Raises:
            PrivacyError, UsageError: as `PrivacyPlan.calibrate`.
        """
        if not clip_norm > 1:
            raise PrivacyError(f"Expected clip_norm={clip_norm} above 1, which the bias takes")
        most = clip_norm * math.sqrt(outputs)
        row_bits = min(_MOST_ROW_BITS, math.floor(_GRID_BITS - SCALE - math.log2(most) - 0.001))
        if row_bits < 1:
            raise PrivacyError(
                f"Expected fewer outputs than {outputs} at clip_norm={clip_norm}; the grid is too coarse"
            )
        plan = PrivacyPlan.calibrate(
            epsilon=epsilon,
            delta=delta,
            clip_norm=most,
            rounds=passes,
            length=(features + 1) * outputs,
            silos=len(SERVERS),
            quorum=len(SERVERS),
            colluding=colluding,
            expected_records=expected_records,
            max_records=max_records,
            grid=math.ceil(((1 << SCALE) + SLACK) * (1 << row_bits) * most),
            mechanism=_MECHANISM,
        )
        return NoisePlan(plan, math.sqrt(clip_norm**2 - 1), row_bits, (features + 1, outputs))

    def noise(self, rng: Randomness) -> Noise:
        """Return one server's source of noise: fresh words for every step, at the scale of products."""

        def drawn() -> dict[str, Words]:
            steps = self.plan.noise(rng).reshape(self.shape)
            return {"n1": (steps << (SCALE - self.row_bits)).view(np.uint64)}

        return drawn

    def clipped(self, x: Matrix, *, parts: int = 1) -> Matrix:
        """Return rows that are scaled down to the norm and rounded towards zero on the grid.

        Args:
            x: float64, shape (rows, columns): whole rows, or an owner's part of them.
            parts: how many owners have a part of a row; each clips to an equal share of the norm's square.
        """
        most = self.row_norm / math.sqrt(parts)
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        scaled = x * np.minimum(1.0, most * (1 - 1e-12) / np.maximum(norms, 1e-300))
        return np.trunc(scaled * 2.0**self.row_bits) / 2.0**self.row_bits

    def window(self, rates: Rates, *, rows: int, steps: int) -> int:
        """Return the window of signs that no score leaves, even under the largest noise that can be drawn.

        Args:
            rates: of a step.
            rows: of the largest batch.
            steps: of the whole training.

        Raises:
            PrivacyError: there is none, with what to lower.
        """
        plan = self.plan
        unit = plan.clip_norm / plan.grid
        noise = len(SERVERS) * largest_draw(plan.share_variance) * math.sqrt(plan.length) * unit
        moved = rates.factor / 2.0**rates.shift * (rows * plan.clip_norm + noise) / (1 - rates.inertia)
        reach = steps * moved * math.hypot(self.row_norm, 1.0)
        bits = math.ceil(math.log2(reach + 2)) + 2 * SCALE
        if bits > MOST_WINDOW or reach >= 2.0 ** (62 - rates.sum_scale):
            raise PrivacyError(
                f"Expected scores and weights within the range of shares, {steps} steps may reach {reach:.3g} under "
                "the largest noise; lower the learning rate, the momentum or the number of passes"
            )
        return max(WINDOW, bits)

    def label_fields(self, *, batches: int) -> dict[str, Any]:
        """Return the fields of `guarantee.PrivacyLabel`.

        Args:
            batches: of one pass.
        """
        plan = self.plan
        full = "every record is in every step" if batches == 1 else "every record is in one batch of each pass"
        return plan.label_fields() | {
            "relation": "take one away: its row becomes zeros; how many rows each party has is public",
            "mechanism": (
                f"{_MECHANISM}: {plan.rounds} passes over {batches} batches, {plan.grid} grid steps per clip norm, "
                f"share variance {plan.share_variance:.6g}, {plan.shares} of {plan.silos} servers' noise counted"
            ),
            "sampling": f"{full}; batches are public, and no amplification is claimed, nor that sums stay hidden",
        }
