"""Objective perturbation: logistic regression by one release, with nothing to tune.

A random linear term is added to the objective, and its minimiser is released. For records (x, y), y in {0, 1}, rows of
norm at most B, and b ~ N(0, sigma^2 I):

    theta = argmin  sum_i log(1 + exp(x_i theta)) - y_i x_i theta  +  ridge/2 |theta|^2  +  b theta.

A record's gradient is (p - y) x: its sign is that of its label, and where it is long (p far from y) its curvature
p (1 - p) |x|^2 is small. So for ridge >= B^2 / epsilon the minimiser's privacy profile at epsilon is that of one
Gaussian release of sensitivity B and deviation sigma, without a term for the curvature and without a factor 2: theorem
1 of docs/protocols/objective-perturbation.md. Published bounds (Redberg, Koskela, Wang, arXiv 2401.00583) hold for all
generalised linear losses and pay both.

Nothing here is continuous. The noise is an exact discrete Gaussian on a fine grid, which is as good as a rounded
continuous one; what rounding moves, and how far floats stop from the minimiser, is one slack gamma on the gradient,
which is checked with bounds on every rounding error; and the minimiser, known up to gamma / ridge, is released in
integers with a little noise against that (Iyengar et al., AMP, IEEE S&P 2019: approximate minima).

This is the central model: one holder of all records. Across silos the minimiser would have to be found in rounds, whose
iterates would be seen, and this account does not cover them; take gradients or statistics there.

    docs    here                    docs    here
    B       norm                    v, w    variance, output_variance
    rho     ridge                   c       output_step
    a       step                    s, t    grid, output_sensitivity
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from confide.crypto.noise import discrete_gaussian
from confide.crypto.random import Randomness
from confide.dp.accountant import Composition, NoisySums, check_target, gaussian_delta, gaussian_mu
from confide.dp.mechanisms import LARGEST_GRID, to_grid
from confide.dp.plan import default_delta
from confide.errors import PrivacyError, UsageError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: Goes into the privacy label.
ACCOUNTANT = "Gaussian profile of objective perturbation (docs/protocols/objective-perturbation.md, theorem 2)"

_ROWS = 1 << 24  # grid steps of a row's norm
_OUTPUT = 0.01  # of epsilon and delta, for the noise on the released integers
_UNIT = 2.0**-53  # of float64's rounding
_ROOM = 2.0**6  # times what floats need, for a table that is larger than was stated
_SPREAD = 4.0  # B |theta| / sqrt(d), about: noise makes it 3.3 to 3.7 from epsilon 0.1 to 1
_LARGEST = 1 << 44  # of released integers: quotients below it are off by less than 2^-9
_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectivePlan:
    """What is promised and everything that keeps the promise. Made by `calibrate`; each `minimise` is a release.

    Args:
        epsilon, delta: the promise for one release, add or remove one record.
        features: d, of a row, the constant one included.
        clip_norm: largest norm of a row without its constant feature; longer rows are scaled down.
        constant: the feature that every record has, for the bias.
        ridge: of the whole objective (a sum over records, not a mean).
        expected_records: public size of the data; it sets the slack, and divides nothing.
        grid: integer steps s per largest gradient.
        variance: of the objective's noise, in these steps squared.
        output_variance: of the noise on the released integers, in output steps squared.

    Example:
        >>> plan = ObjectivePlan.calibrate(epsilon=1.0, delta=1e-5, features=30, expected_records=455)
        >>> round(plan.deviation, 2), 0.99 < plan.epsilon_spent <= 1.0
        (4.21, True)

    **Guarantees**: the released weights are (epsilon, delta)-differentially private, for any rows and labels.
    **Leaks**: what epsilon allows; how long it took; an error, if a minimiser was ever not found to the slack.
    """

    epsilon: float
    delta: float
    features: int
    clip_norm: float
    constant: float
    ridge: float
    expected_records: int
    grid: int
    variance: float
    output_variance: float

    def __post_init__(self) -> None:
        check_target(self.epsilon, self.delta)
        if min(self.features, self.expected_records) < 1 or not (0 < self.clip_norm < math.inf and self.constant >= 0):
            raise UsageError("Expected features and expected_records of at least 1, and a clip_norm above 0")
        if not self.norm**2 / self.ridge <= self._first:
            raise PrivacyError(
                f"Expected ridge={self.ridge} of at least {self.norm**2 / self._first:.4g}, the squared norm of a row "
                "over epsilon; below it curvature tells more than is accounted"
            )
        if not self.delta_at(self.epsilon) <= self.delta:
            raise PrivacyError(
                "Expected noise for the epsilon and delta that are promised; use ObjectivePlan.calibrate"
            )

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float | None = None,
        features: int,
        clip_norm: float = 1.0,
        constant: float = 0.5,
        ridge: float | None = None,
        expected_records: int,
    ) -> Self:
        """Return the plan with the least noise that keeps (epsilon, delta).

        Args:
            delta: None takes `expected_records` ** -1.1.
            features: of a row, without the constant one.
            ridge: None takes the least that the account allows, which is about the best on the sets that were tried.
            epsilon, clip_norm, constant, expected_records: as in the class.

        Raises:
            UsageError: a value is out of its range.
            PrivacyError: the ridge is too small, or no noise is enough.
        """
        delta = default_delta(expected_records) if delta is None else delta
        check_target(epsilon, delta)
        if not 0 <= features < 1 << 16 or not (0 < clip_norm < math.inf and constant >= 0):
            raise UsageError(
                f"Expected features={features} of at least 0 and below 2^16, and clip_norm={clip_norm} above 0"
            )
        length, norm = features + 1, _norm(clip_norm, constant)
        first = (1 - _OUTPUT) * epsilon
        mu = gaussian_mu(first * (1 - 1e-9), delta * (1 - 2 * _OUTPUT))
        ridge = norm**2 / first * (1 + 1e-9) if ridge is None else ridge
        sensitivity = _output_sensitivity(length)
        second = gaussian_mu(_OUTPUT * epsilon * (1 - 1e-9), delta * _OUTPUT * (1 - 1e-3))
        return cls(
            epsilon=epsilon,
            delta=delta,
            features=length,
            clip_norm=clip_norm,
            constant=constant,
            ridge=ridge,
            expected_records=expected_records,
            grid=LARGEST_GRID,
            variance=(LARGEST_GRID / mu) ** 2 * (1 + 1e-9),
            output_variance=(sensitivity / second) ** 2 * (1 + 1e-6),
        )

    @property
    def norm(self) -> float:
        """Return B, the largest norm of a row, its constant feature and every rounding included."""
        return _norm(self.clip_norm, self.constant)

    @property
    def step(self) -> float:
        """Return a, one grid step of the objective's noise."""
        return self.norm / self.grid

    @property
    def deviation(self) -> float:
        """Return sigma, the deviation of each entry of the objective's noise."""
        return math.sqrt(self.variance) * self.step

    @property
    def slack(self) -> float:
        """Return the largest norm of the gradient at what floats take for the minimiser, their errors included."""
        each = 0.26 * self.features * _SPREAD * math.sqrt(self.features) + 8  # as in `_gradient`
        return max(1, self.expected_records) * self.norm * each * _ROOM * _UNIT

    @property
    def radius(self) -> float:
        """Return how far the minimiser under unrounded noise may be from what is released, without its noise."""
        return (self.slack + self.step * math.sqrt(self.features) / 2) / self.ridge

    @property
    def output_step(self) -> float:
        """Return c, one step of the released integers: `radius` is 8 sqrt(d) of them."""
        return self.radius / (8 * math.sqrt(self.features))

    @property
    def output_sensitivity(self) -> int:
        """Return t, in output steps: twice the radius and its roundings."""
        return _output_sensitivity(self.features)

    @property
    def mu(self) -> float:
        """Return the parameter of the Gaussian mechanism whose profile is accounted; the output's noise is apart."""
        return self._objective.mu

    @property
    def epsilon_spent(self) -> float:
        """Return the least epsilon that the noise keeps at `delta`, rounded up to a thousandth of it."""
        found = (step / 1000 * self.epsilon for step in range(1001))
        return next(one for one in found if self.delta_at(one) <= self.delta)

    @property
    def _first(self) -> float:
        return (1 - _OUTPUT) * self.epsilon

    @property
    def _objective(self) -> NoisySums:
        return NoisySums(sensitivity=self.grid, share_variance=self.variance, shares=1, length=self.features, rounds=1)

    @property
    def _output(self) -> NoisySums:
        return NoisySums(
            sensitivity=self.output_sensitivity,
            share_variance=self.output_variance,
            shares=1,
            length=self.features,
            rounds=1,
        )

    def delta_at(self, epsilon: float) -> float:
        """Return a delta at which a release is (epsilon, delta)-private (theorem 2); 1 where the theorem says nothing.

        A hundredth of the promised epsilon is always kept for the output.
        """
        objective, second = self._objective, _OUTPUT * self.epsilon
        surcharge = objective.surcharge
        first = epsilon - second - surcharge
        if not (first >= objective.mu**2 / 2 and self.norm**2 / self.ridge <= first + objective.mu**2 / 2):
            return 1.0
        both = gaussian_delta(objective.mu, first) + self._output.delta(second)
        return min(1.0, (1 + 2.0**-48) * (math.exp(surcharge) * both + self.tail(epsilon)))

    def tail(self, epsilon: float) -> float:
        """Return what the cut tails of the noise add to delta at `epsilon`."""
        return Composition((self._objective,)).tail(epsilon)

    def minimise(self, x: Matrix, y: Vector, rng: Randomness) -> tuple[Matrix, float]:
        """Return weights, shape (features - 1,), and bias of a logistic model. Each call is a release.

        Args:
            x: float64, shape (n, features - 1), n >= 0. Longer rows are scaled down to `clip_norm`; rows with NaN or
                infinity count for nothing.
            y: int64, shape (n,), 0 or 1.
            rng: secret randomness; a fixed seed voids the claim.

        Raises:
            UsageError: shapes or labels are others.
            PrivacyError: floats did not come as close to the minimiser as the account needs. Nothing was released but
                this, which is not accounted; it takes records far beyond `expected_records`.
        """
        rows = self._rows(x, y)
        noise = discrete_gaussian(self.variance, self.features, rng)
        found = self._minimum(rows, y.astype(np.float64), noise.astype(np.float64) * self.step)
        inside = np.clip(np.rint(found / self.output_step), -_LARGEST, _LARGEST).astype(np.int64)
        released = inside + discrete_gaussian(self.output_variance, self.features, rng)
        weights = released.astype(np.float64) * self.output_step
        return weights[:-1], float(weights[-1] * self.constant)

    def label_fields(self) -> dict[str, Any]:
        """Return this plan's fields of `guarantee.PrivacyLabel`."""
        return {
            "unit": "record",
            "relation": "add or remove one",
            "epsilon": self.epsilon,
            "delta": self.delta,
            "epsilon_outsiders": self.epsilon,
            "mechanism": (
                f"objective perturbation of logistic regression: ridge {self.ridge:.4g}, noise of deviation "
                f"{self.deviation:.4g} on the objective's linear term; released in steps of {self.output_step:.3g}"
            ),
            "clip_norm": self.norm,
            "noise_multiplier": self.deviation / self.norm,
            "sampling": "full batch: no amplification is claimed",
            "noise": "exact discrete Gaussian on a grid, in the objective and on the released integers",
            "accountant": f"confide {metadata.version('confide')}: {ACCOUNTANT}",
        }

    def _rows(self, x: Matrix, y: Vector) -> Matrix:
        """Return rows with their constant feature, of norm at most `norm`."""
        if x.ndim != 2 or x.shape[1] != self.features - 1 or x.dtype != np.float64 or y.shape != (len(x),):
            raise UsageError(f"Expected float64 rows of {self.features - 1} features with a label each, got {x.shape}")
        if len(y) and not ((y == 0) | (y == 1)).all():
            raise UsageError(
                "Expected labels 0 and 1; train several classes one against the rest, each with its budget"
            )
        integers, _ = to_grid(x, self.clip_norm, _ROWS)
        constant = np.where(np.isfinite(x).all(axis=1), self.constant, 0.0)
        scaled = integers.astype(np.float64) * (self.clip_norm / _ROWS)
        return np.concatenate([scaled, constant[:, None]], axis=1)

    def _minimum(self, rows: Matrix, y: Matrix, noise: Matrix) -> Matrix:
        """Return where the gradient is at most `slack`, by Newton's method with halved steps."""
        theta = np.zeros(self.features)
        value = self._value(rows, y, noise, theta)
        for _ in range(_STEPS):
            p = _sigmoid(rows @ theta)
            gradient = rows.T @ (p - y) + self.ridge * theta + noise
            if float(np.linalg.norm(gradient)) < self.slack / 2 and self._gradient(rows, y, noise, theta) <= self.slack:
                return theta
            hessian = (rows * (p * (1 - p))[:, None]).T @ rows + self.ridge * np.eye(self.features)
            direction = np.linalg.solve(hessian, -gradient)
            size, slope = 1.0, float(gradient @ direction)
            while size > 1e-3:
                tried = theta + size * direction
                after = self._value(rows, y, noise, tried)
                if after <= value + 1e-4 * size * slope + 1e-9 * abs(value):
                    break
                size /= 2
            theta, value = theta + size * direction, self._value(rows, y, noise, theta + size * direction)
        raise PrivacyError(
            "Expected a minimiser to be found; state the public expected_records, or clip the rows lower"
        )

    def _value(self, rows: Matrix, y: Matrix, noise: Matrix, theta: Matrix) -> float:
        margin = rows @ theta
        return float(np.logaddexp(0.0, margin).sum() - y @ margin + self.ridge / 2 * theta @ theta + noise @ theta)

    def _gradient(self, rows: Matrix, y: Matrix, noise: Matrix, theta: Matrix) -> float:
        """Return an upper bound on the gradient's norm, every rounding error included.

        With e = 2^-53: a margin is off by d e |x| |theta|, a probability by a quarter of that and 5 e, a product by e;
        `fsum` rounds once, and so does each of the other terms.
        """
        residual = _sigmoid(rows @ theta) - y
        summed = np.array([math.fsum((residual * column).tolist()) for column in rows.T])
        gradient = summed + self.ridge * theta + noise
        length = float(np.linalg.norm(theta))
        each = self.norm * (0.26 * self.features * self.norm * length + 8)
        others = 4 * (self.ridge * length + float(np.linalg.norm(noise)) + float(np.linalg.norm(summed)))
        error = 1.1 * _UNIT * (len(rows) * each + others)
        return float(np.linalg.norm(gradient)) * (1 + 1e-9) + error


def _norm(clip_norm: float, constant: float) -> float:
    return math.hypot(clip_norm, constant) * (1 + 2.0**-50)


def _output_sensitivity(length: int) -> int:
    """Return ceil(2 (8 sqrt(d) + sqrt(d))) and one for the quotients, for d up to 2^16."""
    return math.ceil(18 * math.sqrt(length)) + 1


def _sigmoid(margin: Matrix) -> Matrix:
    small = np.exp(-np.abs(margin))
    return np.where(margin >= 0, 1.0, small) / (1.0 + small)
