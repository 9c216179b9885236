"""Survival under differential privacy: a loss that is a sum over records, which Cox's partial likelihood is not.

A term of the partial likelihood compares one record with everybody at risk, so one record more moves all of them. Under
a constant hazard exp(eta) each record stands for itself: over its time t, with d = 1 for an event, it adds

    t exp(eta) - d eta        to minus the log likelihood, and        (t exp(eta) - d) x        to its gradient.

eta is the linear layer's output, its bias included, which is the log of the hazard that all share. So the gradient is
residual x features as a logistic model's, `LinearHead` sums it with one record's reach clipped, and the same plan,
noise and account hold. The coefficients are log hazard ratios, as Cox's; on TCGA-BRCA they rank patients nearly
as well as Cox's do (docs/survival.md).

Source: Kalbfleisch, Prentice, The Statistical Analysis of Failure Time Data (2nd ed.), section 3.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.dp.outer import Rounded
from confide.train.cox import outcomes
from confide.train.linear_head import LinearHead
from confide.train.local import Silo, exp_by_record

Matrix = NDArray[np.float64]


class HazardHead(LinearHead):
    """What a silo's records add to the gradient of minus the log likelihood of a constant hazard.

    A silo's `y` is as `Cox` takes it: time as a share of the label's range, so the hazard is one for that range.
    """

    def _residuals(self, parameters: Matrix, silo: Silo, right: Rounded) -> Matrix:
        times, events = outcomes(silo)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # what overflows is clipped or ignored
            return times * exp_by_record(self._logits(parameters, right)) - events
