"""How much a mechanism leaks at least: lower bounds on epsilon from canaries that were put in or left out.

A fair coin decides for each canary whether it is put in (`draw_coins`), the mechanism runs, and the auditor gives each
canary one score, high where it believes that the canary was there (`Scores`). Each bound below holds for every true
epsilon with probability `confidence` over coins and noise, under its own assumption:

    bound             assumption on the scores                            20,000 canaries find of a true epsilon of 1
    gaussian_bound    independent normal draws, one width, in and out     0.8 to 0.95
    threshold_bound   independent draws of any law                        0.3 to 0.4
    one_run_bound     none: all may come from one run of any mechanism    hardly anything if the noise is Gaussian

A bound above the claim refutes the claim: the code, the accounting or the assumption is wrong. A bound below it says
"no gross bug was seen by these canaries" and nothing more; in particular it is no estimate of epsilon.

    paper   here                            paper   here
    m       canaries                        alpha   1 - confidence
    r, v    guesses, correct guesses        mu      parameter of Gaussian differential privacy
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.accountant import gaussian_epsilon
from confide.errors import UsageError

Values = NDArray[np.float64]
Coins = NDArray[np.bool_]

#: Fewest canaries put in, and fewest left out.
FEWEST = 10

#: No bound is above it: "at least 32".
LARGEST = 32.0

_LARGEST_MU = 10.0  # no epsilon up to 32 belongs to a larger one
_UNFAIR = 1e-9  # fair coins are refused this rarely
_CHOOSING = 5  # every fifth canary chooses a threshold, if none is given
_CANDIDATES = 40  # thresholds that these choose among
_ROUND_DOWN = 1 - 2.0**-30  # more than every rounding here
_STEPS = 44  # of each bisection, which ends on the safe side


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One score for each canary, and whether it was put in.

    Args:
        values: float64, shape (m,), finite; high where the auditor believes that the canary was put in. Several looks
            at one canary (rounds, models) must be made into one score first: copies would feign certainty.
        present: bool, shape (m,): the coins. At least 10 fall on either side.

    Raises:
        UsageError: shapes, types or values do not fit, or no fair coin falls like this (one in 10^9 does).
    """

    values: Values
    present: Coins

    def __post_init__(self) -> None:
        values, present = self.values, self.present
        if values.ndim != 1 or values.shape != present.shape or values.dtype != np.float64 or present.dtype != np.bool_:
            raise UsageError(
                f"Expected float64 values and bool present of one shape (m,), got {values.dtype} {values.shape} and "
                f"{present.dtype} {present.shape}; give one score and one coin for each canary"
            )
        if not np.isfinite(values).all():
            raise UsageError("Expected finite scores; a canary that cannot be scored gets a constant, in and out alike")
        count = int(present.sum())
        if min(count, len(present) - count) < FEWEST:
            raise UsageError(f"Expected at least {FEWEST} canaries put in and left out; take more canaries")
        if abs(count - len(present) / 2) > math.sqrt(len(present) * math.log(2 / _UNFAIR) / 2):  # Hoeffding
            raise UsageError(
                f"Expected a fair coin for each canary, got {count} of {len(present)} put in; take draw_coins"
            )

    @property
    def inside(self) -> Values:
        """Return the scores of the canaries that were put in."""
        return self.values[self.present]

    @property
    def outside(self) -> Values:
        """Return the scores of the canaries that were left out."""
        return self.values[~self.present]


@dataclass(frozen=True, slots=True)
class LowerBound:
    """The true epsilon at `delta` is at least `epsilon`, with probability `confidence`.

    Args:
        epsilon: 0 to 32; 0 says nothing, 32 stands for "at least 32".
        delta: at which epsilon is meant.
        confidence: 0 < confidence < 1.
        canaries: how many scores it rests on.
        mu: the same for Gaussian differential privacy, 0 to 10, if the bound is about it.
    """

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    mu: float | None = None

    def refutes(self, claim: float) -> bool:
        """Return True if the claim `epsilon <= claim` at `delta` cannot be held up."""
        return self.epsilon > claim

    def sentence(self) -> str:
        """Return the bound in one line."""
        return (
            f"epsilon is at least {self.epsilon:.3g} at delta={self.delta:.2g} with {self.confidence:.6g} confidence "
            f"({self.canaries} canaries); a low bound is no guarantee"
        )


def draw_coins(count: int, rng: Randomness) -> Coins:
    """Return `count` independent fair coins, bool, shape (count,): True puts a canary in.

    Args:
        count: >= 0.
        rng: what the mechanism under audit does not see.
    """
    bits = np.unpackbits(np.frombuffer(rng.bytes((count + 7) // 8), np.uint8))
    return bits[:count].astype(np.bool_)


def gaussian_bound(
    scores: Scores, *, delta: float, confidence: float = 0.95, deviation: float | None = None
) -> LowerBound:
    """Return a lower bound on epsilon from scores N(a, w^2) of canaries left out and N(a + mu w, w^2) of those put in.

    That is what a Gaussian mechanism gives for scores that are projections of its output on the canaries: for other
    laws the bound means nothing. With `deviation` None, mu is bounded through the t statistic, whose law is the
    noncentral t exactly; with a known one through the normal law of the difference of means.

    Args:
        scores: of the canaries.
        delta: 0 < delta < 1.
        confidence: 0.5 <= confidence < 1.
        deviation: w, if it is known from elsewhere (measured on releases without canaries), > 0. Never the deviation
            that the claim states: the audit would then take the noise for granted and half of it would go unseen.

    Returns:
        the bound; 0 where canaries put in score lower than those left out. (Their absolute difference is no bound.)

    Raises:
        UsageError: an argument is out of its range, or all scores are equal.

    **Guarantees** epsilon <= the true one with probability `confidence`, if the scores have the law above.
    """
    _check(delta, confidence)
    inside, outside = scores.inside, scores.outside
    count = len(scores.values)
    gap = float(inside.mean() - outside.mean())
    error = math.sqrt(1 / len(inside) + 1 / len(outside))
    if deviation is None:
        squares = float(((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum())
        spread = math.sqrt(squares / (count - 2))
        if not spread > 0:
            raise UsageError("Expected scores that differ; without any noise take threshold_bound")
        statistic = min(gap / spread, _LARGEST_MU) / error
        mu = error * _least_noncentrality(statistic, count - 2, 1 - confidence)
    else:
        if not 0 < deviation < math.inf:
            raise UsageError(f"Expected deviation={deviation} to be finite and above 0; None measures it")
        mu = min(gap / deviation, _LARGEST_MU) - error * NormalDist().inv_cdf(confidence)
    mu = max(0.0, mu)
    epsilon = min(LARGEST, gaussian_epsilon(mu, delta)) * _ROUND_DOWN if mu > 0 else 0.0
    return LowerBound(epsilon, delta, confidence, count, mu)


def threshold_bound(
    scores: Scores, *, delta: float, confidence: float = 0.95, thresholds: Sequence[float] | None = None
) -> LowerBound:
    """Return a lower bound on epsilon from how often scores reach a threshold, whatever their law.

    For an (epsilon, delta)-private mechanism, true- and false-positive rates of every test have
    TPR <= exp(epsilon) FPR + delta and 1 - FPR <= exp(epsilon) (1 - TPR) + delta. Both rates are replaced by their
    exact one-sided Clopper-Pearson bounds; all bounds of all thresholds hold together (Bonferroni).

    Args:
        scores: independent given the coins. Canaries of different runs are; those of one run of a mechanism that adds
            independent noise to orthogonal directions are; for others take `one_run_bound`.
        delta: 0 <= delta < 1.
        confidence: 0.5 <= confidence < 1.
        thresholds: fixed without looking at these scores. None: every fifth canary chooses one, the others are tested.

    Raises:
        UsageError: an argument is out of its range.

    **Guarantees** epsilon <= the true one with probability `confidence`.
    Paper: Kairouz, Oh, Viswanath (arXiv 1311.0776) for the two inequalities; Jagielski, Ullman, Oh (arXiv 2006.07709)
    for the bound.
    """
    _check(delta, confidence, least_delta=0.0)
    inside, outside = scores.inside, scores.outside
    if thresholds is None:
        tried = inside[::_CHOOSING], outside[::_CHOOSING]
        inside, outside = (np.delete(part, np.s_[::_CHOOSING]) for part in (inside, outside))
        thresholds = (_best_threshold(*tried, len(inside), len(outside), delta, 1 - confidence),)
    if not len(thresholds):
        raise UsageError("Expected at least one threshold; None lets some of the canaries choose one")
    alpha = (1 - confidence) / (2 * len(thresholds))
    found = 0.0
    for threshold in thresholds:
        hits, alarms = int((inside >= threshold).sum()), int((outside >= threshold).sum())
        found = max(found, _epsilon_of_rates(hits, len(inside), alarms, len(outside), delta, alpha))
    return LowerBound(found * _ROUND_DOWN, delta, confidence, len(inside) + len(outside))


def one_run_bound(scores: Scores, *, guesses: int, delta: float, confidence: float = 0.95) -> LowerBound:
    """Return a lower bound on epsilon from how many of `guesses` are right, for any mechanism and any scores.

    The guesses // 2 canaries with the highest scores are guessed in, as many with the lowest out, and no guess is made
    about the rest. All canaries may have been in one and the same run.

    Args:
        scores: of coins that are fair and independent.
        guesses: fixed without looking at the scores, 2 <= guesses <= m.
        delta: 0 <= delta < 1.
        confidence: 0.5 <= confidence < 1.

    Raises:
        UsageError: an argument is out of its range.

    **Guarantees** epsilon <= the true one with probability `confidence`.
    Paper: Steinke, Nasr, Jagielski (arXiv 2305.08846), corollary 5.4.
    """
    _check(delta, confidence, least_delta=0.0)
    count = len(scores.values)
    if not 2 <= guesses <= count:
        raise UsageError(f"Expected guesses={guesses} from 2 to the {count} canaries")
    order = np.argsort(scores.values, kind="stable")
    half = guesses // 2
    right = int(scores.present[order[count - half :]].sum() + (~scores.present[order[:half]]).sum())
    alpha = 1 - confidence
    epsilon = _last(lambda epsilon: _one_run_chance(count, 2 * half, right, epsilon, delta) <= alpha, LARGEST)
    return LowerBound(epsilon * _ROUND_DOWN, delta, confidence, count)


def _check(delta: float, confidence: float, *, least_delta: float | None = None) -> None:
    if not (0 < delta < 1 or delta == least_delta):
        raise UsageError(f"Expected delta={delta} between 0 and 1: the one of the claim")
    if not 0.5 <= confidence < 1:
        raise UsageError(f"Expected confidence={confidence} from 0.5 to 1, such as 0.95")


def _normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2.0)) / 2


def _last(holds: Callable[[float], bool], largest: float) -> float:
    """Return the end of the run [0, x] on which a condition that never comes back holds; 0 if it holds nowhere."""
    if holds(largest):
        return largest
    low, high = 0.0, largest
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _least_noncentrality(statistic: float, freedom: int, alpha: float) -> float:
    """Return c with P(T >= statistic) = alpha for a noncentral t of `freedom` >= 18 and noncentrality c; 0 if below 0.

    P(T >= t) = E Phi(c - t s) with freedom * s^2 chi-square. Up to mu = 10, Phi moves over at least 0.28 deviations of
    s, so that the trapezoid rule with steps of 0.15 over 9 deviations around the mode is good to 15 digits.
    """
    if statistic <= 0:
        return 0.0
    mode, width = math.sqrt((freedom - 1) / freedom), 1 / math.sqrt(2 * freedom)
    s = np.linspace(max(1e-3, mode - 9 * width), mode + 9 * width, 121)
    logarithm = (freedom - 1) * np.log(s) - freedom * s * s / 2
    weight = np.exp(logarithm - logarithm.max())
    weight /= weight.sum()

    def rare(noncentrality: float) -> bool:
        chance = [_normal_cdf(noncentrality - statistic * float(at)) for at in s]
        return float(weight @ np.array(chance)) <= alpha

    return _last(rare, 2 * statistic + 40)


def _log_factorials(count: int) -> Values:
    """Return log(0!) ... log(count!)."""
    return np.concatenate([np.zeros(1), np.cumsum(np.log(np.arange(1, count + 1, dtype=np.float64)))])


def _chances(count: int, rate: float, table: Values) -> Values:
    """Return P(Binomial(count, rate) = k) for k = 0 ... count, 0 < rate < 1; `table` holds log-factorials."""
    k = np.arange(count + 1)
    logarithm = table[count] - table[: count + 1] - table[count::-1]
    return np.exp(logarithm + k * math.log(rate) + (count - k) * math.log1p(-rate))


def _least_rate(hits: int, count: int, alpha: float) -> float:
    """Return the Clopper-Pearson lower bound: the largest rate at which `hits` or more has probability <= alpha."""
    if not hits:
        return 0.0
    table = _log_factorials(count)

    def rare(rate: float) -> bool:
        return rate <= 0 or (rate < 1 and float(_chances(count, rate, table)[hits:].sum()) <= alpha)

    return _last(rare, 1.0)


def _epsilon_of_rates(hits: int, members: int, alarms: int, others: int, delta: float, alpha: float) -> float:
    """Return the epsilon that a test's counts refute, from 0 to 32; each of its two bounds fails with `alpha`."""
    least_hits = _least_rate(hits, members, alpha)
    most_alarms = 1 - _least_rate(others - alarms, others, alpha)
    found = 0.0
    for numerator, denominator in ((least_hits, most_alarms), (1 - most_alarms, 1 - least_hits)):
        if numerator > delta and denominator > 0:
            found = max(found, math.log((numerator - delta) / denominator))
    return min(found, LARGEST)


def _best_threshold(inside: Values, outside: Values, members: int, others: int, delta: float, alpha: float) -> float:
    """Return the threshold that promises most for `members` and `others` more canaries like these.

    It may be a guess: Wilson's normal approximation of the bounds that the other canaries will be given.
    """
    pooled = np.sort(np.concatenate([inside, outside]))
    tried = pooled[np.unique(np.linspace(0, len(pooled) - 1, _CANDIDATES).astype(np.int64))]
    z = NormalDist().inv_cdf(1 - alpha / 2)

    def wilson(part: Values, count: int, sign: float) -> Values:
        rate = np.mean(part[None, :] >= tried[:, None], axis=1)
        spread = np.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2)
        return (rate + z * z / (2 * count) + sign * z * spread) / (1 + z * z / count)

    least_hits, most_alarms = wilson(inside, members, -1.0), wilson(outside, others, 1.0)
    ratios = (least_hits - delta) / most_alarms, (1 - most_alarms - delta) / (1 - least_hits)
    return float(tried[int(np.maximum(*ratios).argmax())])


def _one_run_chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return the largest probability of `right` or more right guesses under (epsilon, delta)-privacy, at most 1."""
    chances = _chances(guesses, 1 / (1 + math.exp(-epsilon)), _log_factorials(guesses))
    beyond = float(chances[right:].sum())
    if right and delta:
        just_below = np.cumsum(chances[:right][::-1]) / np.arange(1, right + 1)  # P(right > X >= right - i) / i
        beyond += 2 * canaries * delta * max(0.0, float(just_below.max()))
    return min(1.0, beyond)
