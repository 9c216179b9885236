"""Correlated noise for training in rounds, in integers: a banded factorisation of the sums that training takes.

A model after t rounds is a function of the prefix sums x_1 + ... + x_t. With A the matrix of prefix sums and C lower
triangular, Toeplitz and of b bands, round t releases

    y_t = c_0 x_t + c_1 x_(t-1) + ... + c_(b-1) x_(t-b+1) + z_t,        z_t fresh and independent,

and whoever reads y decodes C^-1 y = x + C^-1 z. The noise of a prefix sum is a row of A C^-1 times z: it partly cancels
from round to round. What C costs is sensitivity: somebody whose x is in round t alone moves y by the norm of a column
of C. A client that is on in every p-th round only, p >= b, moves it by sqrt(participations) columns at most, since its
columns do not overlap.

Nobody holds z: each party adds its share afresh in every round. That is why the multiples c_j x_(t-j) are sent, by
those who know x_(t-j), in place of noise that is correlated by whoever drew it. Multiples are whole numbers of a public
grid, c_j = steps[j] / steps[0], so that sensitivity is exact and integers stay integers.

    paper   here                        paper   here
    A       prefix sums                 n, T    rounds
    C       Bands                       b       len(steps)
    b-min-separation                    period

Papers: Denisov, McMahan, Rush, Smith, Thakurta (arXiv 2202.08312) for factorisations and adaptive streams;
Choquette-Choo et al., (Amplified) Banded Matrix Factorization (arXiv 2306.08153) for bands and separate participations;
Fichtenberger, Henzinger, Upadhyay (arXiv 2202.11205) for the square root of A, from which the search here starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.errors import UsageError

Values = NDArray[np.float64]

#: Steps of the public grid that the first coefficient is made of.
SCALE = 256

#: Most rounds for which coefficients are searched.
MOST_ROUNDS = 10_000

_SEARCH_STEPS = 200
_ENOUGH = 1e-10  # of the logarithm of the error


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands:
    """A banded lower-triangular Toeplitz matrix over the rounds, and who is on when.

    Args:
        steps: the bands in whole steps, steps[0] the diagonal; all >= 0, steps[0] > 0. (1,) is independent noise.
        rounds: T, 1 and more.
        period: a client is on in every `period`-th round, at least as many as there are bands.

    Example:
        >>> bands = Bands(steps=(4, 2), rounds=5, period=2)
        >>> [bands.lag(0, number) for number in range(1, 6)], [bands.lag(1, number) for number in range(1, 6)]
        ([0, 1, 0, 1, 0], [None, 0, 1, 0, 1])
        >>> bands.squared_norm()
        56
    """

    steps: tuple[int, ...]
    rounds: int
    period: int = 1

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 0 or self.steps[0] < 1:
            raise UsageError("Expected steps of 0 and more, the first above 0; `banded` finds good ones")
        if self.rounds < 1 or self.period < len(self.steps):
            raise UsageError(
                f"Expected period={self.period} to be at least the {len(self.steps)} bands, and rounds={self.rounds} "
                "at least 1; a client whose participations overlap would be in a release twice"
            )

    def latest(self, place: int, number: int) -> int:
        """Return the last round up to `number` in which the client at `place` is on; 0 or less if there is none yet.

        Args:
            place: of the client in the public order, from 0.
            number: a round, from 1.
        """
        return number - (number - 1 - place) % self.period

    def lag(self, place: int, number: int) -> int | None:
        """Return which band the client at `place` sends in round `number`, 0 where it is on; None if it sends none."""
        begun = self.latest(place, number)
        lag = number - begun
        return lag if begun >= 1 and lag < len(self.steps) else None

    def on(self, number: int, clients: int) -> int:
        """Return how many of `clients` are on in round `number`."""
        return len(range((number - 1) % self.period, clients, self.period))

    def squared_norm(self, rounds: int | None = None) -> int:
        """Return the largest sum of squared multipliers that one client sends in the first `rounds` rounds, exactly.

        That is the squared sensitivity of all releases together for contributions of norm 1: participations do not
        overlap, so their squares add up, and whatever a client leaves out makes the sum smaller.
        """
        last = self.rounds if rounds is None else min(rounds, self.rounds)
        # The client at place 0 is on first, hence at least as often as any other and in as many later rounds.
        found = [self.lag(0, number) for number in range(1, last + 1)]
        return sum(self.steps[lag] ** 2 for lag in found if lag is not None)

    @property
    def coefficients(self) -> Values:
        """Return c_0 = 1, c_1 ..., float64, shape (bands,)."""
        return np.array(self.steps, np.float64) / self.steps[0]

    def prefix_deviations(self) -> Values:
        """Return the deviation of each decoded prefix sum where every z_t has one of steps[0], shape (rounds,)."""
        weights = np.cumsum(_inverse(self.coefficients, self.rounds))
        return np.sqrt(np.cumsum(weights**2))

    def error(self) -> float:
        """Return the root mean square error of the decoded prefix sums.

        In units of the clip times the noise multiplier of a single release: what one participation in one release
        needs for the same epsilon.
        """
        norm = math.sqrt(self.squared_norm()) / self.steps[0]
        return norm * math.sqrt(float(np.mean(self.prefix_deviations() ** 2)))


def independent(rounds: int, period: int = 1) -> Bands:
    """Return the identity: every round has noise of its own, and a client sends nothing where it is not on."""
    return Bands(steps=(1,), rounds=rounds, period=period)


def banded(rounds: int, period: int, bands: int, *, scale: int = SCALE) -> Bands:
    """Return the bands with about the least error of prefix sums.

    Args:
        rounds: T, at most 10,000 for more than one band.
        period: in every which round a client is on.
        bands: b, 1 to `period`.
        scale: steps of the first band; the others are rounded to whole steps, which costs accuracy alone.

    Raises:
        UsageError: an argument is out of its range.
    """
    if not 1 <= bands <= period or scale < 1 or rounds < 1:
        raise UsageError(f"Expected bands={bands} from 1 to period={period}, rounds and scale of at least 1")
    if bands == 1:
        return independent(rounds, period)
    if rounds > MOST_ROUNDS:
        raise UsageError(f"Expected at most {MOST_ROUNDS} rounds with several bands, got {rounds}; take bands = 1")
    found = least_error(rounds, period, min(bands, rounds))
    steps = tuple(max(0, round(scale * value)) for value in found.tolist())
    return Bands(steps=steps, rounds=rounds, period=period)


def square_root(bands: int) -> Values:
    """Return the first coefficients of (1 - x)^-1/2, the square root of prefix sums: 1, 1/2, 3/8, 5/16 ..."""
    found = [1.0]
    for place in range(1, bands):
        found.append(found[-1] * (2 * place - 1) / (2 * place))
    return np.array(found)


def least_error(rounds: int, period: int, bands: int) -> Values:
    """Return c_0 = 1, c_1 ... that minimise the mean squared error of prefix sums times the squared sensitivity.

    The logarithm of the product is smooth; Broyden, Fletcher, Goldfarb and Shanno's steps go down from the square root.
    """
    counts = np.array([len(range(0, rounds - lag, period)) for lag in range(bands)], np.float64)
    where = square_root(bands)[1:]
    value, slope = _objective(where, rounds, counts)
    curvature = np.eye(bands - 1)
    for _ in range(_SEARCH_STEPS):
        direction, length = -curvature @ slope, 1.0
        while True:
            further, next_slope = _objective(where + length * direction, rounds, counts)
            if further <= value + 1e-4 * length * float(slope @ direction) or length < _ENOUGH:
                break
            length /= 2
        if not value - further > _ENOUGH:
            break
        step, turn = length * direction, next_slope - slope
        along = float(step @ turn)
        if along > 0:
            left = np.eye(bands - 1) - np.outer(step, turn) / along
            curvature = left @ curvature @ left.T + np.outer(step, step) / along
        where, value, slope = where + step, further, next_slope
    return np.concatenate([[1.0], where])


def _objective(rest: Values, rounds: int, counts: Values) -> tuple[float, Values]:
    """Return log(error^2 sensitivity^2) of (1, rest) and its gradient.

    With c(x), 1 / c(x) = w(x) and w(x) / (1 - x) = beta(x): the error is a weighted sum of beta^2, and the derivative
    of beta by c_j is -x^j beta(x) w(x). `counts` says how often a client sends each band.
    """
    coefficients = np.concatenate([[1.0], rest])
    inverse = _inverse(coefficients, rounds)
    beta, times = np.cumsum(inverse), rounds - np.arange(rounds, dtype=np.float64)
    product = np.convolve(beta, inverse)[:rounds]
    error, norm = float(times @ beta**2), float(counts @ coefficients**2)
    slope = np.array([-2 * float((times * beta)[lag:] @ product[: rounds - lag]) for lag in range(1, len(counts))])
    return math.log(error) + math.log(norm), slope / error + 2 * counts[1:] * rest / norm


def _inverse(coefficients: Values, rounds: int) -> Values:
    """Return the first column of C^-1, shape (rounds,); coefficients[0] is 1."""
    found = np.zeros(rounds)
    found[0] = 1.0
    rest = coefficients[1:]
    for place in range(1, rounds):
        reach = min(place, len(rest))
        found[place] = -float(rest[:reach] @ found[place - reach : place][::-1])
    return found
