"""The privacy plan of client level: everything that one client holds is hidden, over all rounds together.

In a round in which a client is on, it trains and clips its whole update: one vector of norm C, rounded to integers
like a record's (`mechanisms.to_grid`). In every round it sends a public multiple of its latest such vector and a fresh
share of the noise,

    steps[lag] * x + Z,        lag = rounds since it was on; 0 * x beyond the last band,

and the server learns the sum over at least `quorum` clients. Multiples are those of `factorisation.Bands`; (1,) and a
period of 1 are ordinary noisy federated averaging.

Nothing that others do changes what a client sends, so the joint sensitivity is exact under every pattern of dropouts:
a round that a client misses only takes a summand away. A client sends each (round, multiple) once; a sum that failed
after vectors left is not repeated.

Neighbours: everything that one client holds, or nothing. Its name stays in the public roster, it sends its share of
the noise either way, and all that changes is x. Proof: docs/protocols/dp-gradient.md, theorem 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from confide.crypto.noise import MAX_DEVIATION, REACH, TAIL, discrete_gaussian, largest_draw
from confide.crypto.random import Randomness
from confide.dp.accountant import ACCOUNTANT, Composition, NoisySums, check_target, gaussian_mu
from confide.dp.factorisation import Bands
from confide.dp.mechanisms import LARGEST_GRID, default_grid, to_grid
from confide.dp.plan import default_delta
from confide.dp.release import Asked, least_variances
from confide.errors import PrivacyError, UsageError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: The unit's name in jobs and labels.
CLIENT = "client"

#: What the label calls the mechanism.
INDEPENDENT = "clipped client updates with discrete Gaussian noise"
BANDED = "clipped client updates under banded matrix factorisation, discrete Gaussian noise"

#: The neighbouring relation, as the label states it.
RELATION = "everything that one client holds, or nothing"

#: Largest noise on a coordinate of the mean of one update of every client, in clips, that a job may ask for.
MOST_NOISE = 0.02

_LARGEST_SUM = 1 << 62


@dataclass(frozen=True, slots=True, eq=False)
class Participation:
    """A client's own clipped update of one round: it never leaves the client without noise, hence no repr.

    Args:
        number: the round in which the client was on.
        values: int64, shape (d,), of norm at most the plan's grid.
    """

    number: int
    values: Vector = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan:
    """What is promised to each client and everything that keeps the promise. Made by `calibrate`.

    Args:
        epsilon, delta: the promise for all rounds together, against the server with `colluding` clients.
        clip_norm: largest L2 norm C of one client's update in one round.
        bands: rounds, period and multiples.
        length: coordinates d of an update.
        clients, quorum, colluding: how many are in the roster, fewest in a released sum, most who side with the server.
        grid: integer steps s per clip norm.
        share_variance: variance of one client's noise in one round, in grid steps squared.

    Example:
        >>> from confide.dp.factorisation import banded
        >>> plan = ClientPlan.calibrate(
        ...     epsilon=2.0, delta=1e-5, clip_norm=0.5, bands=banded(16, 4, 4), length=100, clients=1000, quorum=900,
        ... )
        >>> plan.shares, 1.999 < plan.epsilon_server <= 2.0
        (900, True)

    **Guarantees**: all released sums together are (epsilon, delta)-differentially private for everything that one
    client holds, against the server with `colluding` clients, if the client itself and the others keep to the plan with
    secret randomness from the operating system, whoever drops out in whichever round.
    **Leaks**: what epsilon allows; the roster, who was in which sum, and who is on when.
    """

    epsilon: float
    delta: float
    clip_norm: float
    bands: Bands
    length: int
    clients: int
    quorum: int
    colluding: int
    grid: int
    share_variance: float
    unit: str = CLIENT
    relation: str = RELATION

    def __post_init__(self) -> None:
        check_target(self.epsilon, self.delta)
        _check(self.clip_norm, self.bands, self.length, self.clients, self.quorum, self.colluding, self.grid)
        if self.share_variance > MAX_DEVIATION**2 or 2 * self.clients * self.bound >= _LARGEST_SUM:
            raise PrivacyError(
                f"Expected noise of at most 2^40 grid steps and sums below 2^62; take a coarser grid than {self.grid}"
            )
        if not self.epsilon_server <= self.epsilon:
            raise PrivacyError(
                f"Expected noise for epsilon={self.epsilon}, share_variance={self.share_variance:.6g} gives "
                f"{self.epsilon_server:.6g}; use ClientPlan.calibrate"
            )

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float | None = None,
        clip_norm: float,
        bands: Bands,
        length: int,
        clients: int,
        quorum: int | None = None,
        colluding: int = 0,
        grid: int | None = None,
    ) -> Self:
        """Return the plan with the least noise that keeps (epsilon, delta).

        Args:
            delta: None takes `clients` ** -1.1.
            quorum: None takes all clients.
            grid: None takes the smallest power of two above 50 sqrt(length).
            epsilon, clip_norm, bands, length, clients, colluding: as in the class.

        Raises:
            UsageError: a value is out of its range.
            PrivacyError: nobody honest would carry noise, the grid is too coarse for the claim, or sums overflow.
        """
        quorum = clients if quorum is None else quorum
        delta = default_delta(clients) if delta is None else delta
        grid = default_grid(max(1, length)) if grid is None else grid
        check_target(epsilon, delta)
        _check(clip_norm, bands, length, clients, quorum, colluding, grid)
        asked = Asked(
            share=1.0,
            grid=max(bands.steps) * grid,
            length=length,
            rounds=bands.rounds,
            joint=bands.squared_norm() * grid**2,
        )
        (variance,) = least_variances(epsilon, delta, shares=quorum - colluding, kinds=[asked])
        return cls(
            epsilon=epsilon,
            delta=delta,
            clip_norm=clip_norm,
            bands=bands,
            length=length,
            clients=clients,
            quorum=quorum,
            colluding=colluding,
            grid=grid,
            share_variance=variance,
        )

    @property
    def shares(self) -> int:
        """Return h = quorum - colluding, the shares of the noise that the claim rests on."""
        return self.quorum - self.colluding

    @property
    def mechanism(self) -> str:
        """Return what the label calls the mechanism."""
        return BANDED if len(self.bands.steps) > 1 else INDEPENDENT

    @property
    def rounds(self) -> int:
        """Return how many sums are released."""
        return self.bands.rounds

    @property
    def bound(self) -> int:
        """Return the largest absolute value that a client may submit."""
        return max(self.bands.steps) * self.grid + largest_draw(self.share_variance)

    @property
    def noise_multiplier(self) -> float:
        """Return the deviation of the h shares of one release over the sensitivity of an update in its own round."""
        return math.sqrt(self.shares * self.share_variance) / (self.grid * self.bands.steps[0])

    @property
    def epsilon_server(self) -> float:
        """Return epsilon against the server with `colluding` clients, who know all but h shares of the noise."""
        return self.event(self.shares).epsilon(self.delta)

    @property
    def epsilon_outsiders(self) -> float:
        """Return epsilon against those who see only the released sums and models, at the same delta."""
        return self.event(self.quorum).epsilon(self.delta)

    def event(self, shares: int, *, releases: int | None = None) -> NoisySums:
        """Return what is accounted of the first `releases` rounds (None: all), where `shares` shares are not known."""
        releases = self.rounds if releases is None else releases
        return NoisySums(
            sensitivity=max(self.bands.steps) * self.grid,
            share_variance=self.share_variance,
            shares=shares,
            length=self.length,
            rounds=releases,
            joint=self.bands.squared_norm(releases) * self.grid**2,
        )

    def composition(self, shares: int) -> Composition:
        """Return what is accounted in all, as `PrivacyPlan.composition` does."""
        return Composition((self.event(shares),))

    def spent(self, releases: int) -> float:
        """Return the epsilon that the first `releases` rounds have spent against the server.

        Raises:
            PrivacyError: more releases than the plan has rounds.
        """
        if not 0 <= releases <= self.rounds:
            raise PrivacyError(f"Expected at most rounds={self.rounds} releases, got {releases}; make a new plan")
        return self.event(self.shares, releases=releases).epsilon(self.delta) if releases else 0.0

    def participation(self, update: Matrix, number: int) -> Participation:
        """Return a client's whole update of round `number`, clipped to the plan's norm and rounded to its grid.

        Args:
            update: float64, shape (length,); one that is zero or not finite counts as zero.
        """
        if update.shape != (self.length,):
            raise UsageError(f"Expected an update of length={self.length}, got shape {update.shape}")
        values, _ = to_grid(update[None], self.clip_norm, self.grid)
        return Participation(number, values[0])

    def release(self, place: int, number: int, own: Participation | None, rng: Randomness) -> Vector:
        """Return what a client submits in round `number`: a multiple of its latest update, plus its share of the noise.

        Args:
            place: of the client in the public order, from 0.
            own: its latest update; of any other round than its schedule says it counts as none.
            rng: the client's own secret randomness; a fixed seed voids the claim.

        Raises:
            PrivacyError: `own` is longer than the plan's clip, or the plan has no such round.
        """
        if not (1 <= number <= self.rounds and place >= 0):
            raise PrivacyError(f"Expected a round from 1 to {self.rounds}, got {number}; the plan has no other")
        noise = discrete_gaussian(self.share_variance, self.length, rng)
        lag = self.bands.lag(place, number)
        if own is None or lag is None or own.number != self.bands.latest(place, number):
            return noise
        if own.values.shape != (self.length,) or _squared_norm(own.values) > self.grid**2:
            raise PrivacyError("Expected an update as `participation` of this plan returned it")
        return self.bands.steps[lag] * own.values + noise

    def decode(self, total: Vector, earlier: Matrix) -> Matrix:
        """Return the noisy sum of the clients' updates of this round, in grid steps: one row of C^-1 y.

        Args:
            total: int64, shape (length,), the sum of what clients submitted.
            earlier: what this returned for the rounds before, the latest first, shape (at least bands - 1, length);
                zeros before the first round.
        """
        found = total.astype(np.float64)
        for step, before in zip(self.bands.steps[1:], earlier, strict=False):
            found = found - step * before
        return found / self.bands.steps[0]

    def mean(self, decoded: Matrix, number: int) -> Matrix:
        """Return the mean update that a decoded sum stands for: over those who are on in the round, in or out."""
        return decoded * (self.clip_norm / self.grid / self.bands.on(number, self.clients))

    def prefix_deviation(self, survivors: int) -> float:
        """Return the root mean square of the noise on the sums of mean updates up to each round, per coordinate.

        Args:
            survivors: how many clients were in each sum.
        """
        bands = self.bands
        unit = math.sqrt(survivors * self.share_variance) / bands.steps[0] * self.clip_norm / self.grid
        return unit * math.sqrt(float(np.mean(bands.prefix_deviations() ** 2))) * bands.period / self.clients

    def label_fields(self) -> dict[str, Any]:
        """Return this plan's fields of `guarantee.PrivacyLabel`."""
        bands = self.bands
        return {
            "unit": self.unit,
            "relation": self.relation,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "epsilon_outsiders": self.epsilon_outsiders,
            "epsilon_party": self.event(self.quorum - 1).epsilon(self.delta) if self.quorum > 1 else None,
            "mu": self.event(self.shares).mu,
            "mechanism": (
                f"{self.mechanism}: {self.rounds} releases, bands {_shown(bands)}, a client is on "
                f"in every {bands.period}. round, {self.grid} grid steps per clip norm, share variance "
                f"{self.share_variance:.6g}, {self.shares} of {self.clients} shares counted"
            ),
            "clip_norm": self.clip_norm,
            "noise_multiplier": self.noise_multiplier,
            "sampling": "a public rotation decides which clients are on in a round; no amplification is claimed",
            "noise": (
                "integers from update to sum: exact discrete Gaussian, cut at "
                f"{REACH} deviations (below {TAIL:.1g} of its mass, charged to delta)"
            ),
            "accountant": f"confide {metadata.version('confide')}: {ACCOUNTANT.replace('theorem 1', 'theorem 3')}",
        }


def noise_of_mean(epsilon: float, delta: float, *, clients: int, shares: int) -> float:
    """Return the noise on a coordinate of the mean of one update of every client, in clips.

    That is what a plan for one round would have; more rounds than one do no better on the same mean.

    Example:
        >>> round(noise_of_mean(1.0, 1e-5, clients=10, shares=10), 2)
        0.37
    """
    return math.sqrt(clients / shares) / gaussian_mu(epsilon, delta) / clients


def fewest_clients(epsilon: float, delta: float, *, honest: float = 1.0, most: float = MOST_NOISE) -> int:
    """Return how many clients bring `noise_of_mean` down to `most` clips where a share `honest` of them is counted.

    Example:
        >>> fewest_clients(1.0, 1e-5)
        187
    """
    return math.ceil(1 / (gaussian_mu(epsilon, delta) * most * math.sqrt(honest)))


def _squared_norm(values: Vector) -> int:
    return sum(value * value for value in values.tolist())  # in Python's integers: stored bytes may be anything


def _shown(bands: Bands) -> str:
    shown = ", ".join(f"{value:.4g}" for value in bands.coefficients[:4])
    return f"({shown}{', ...' if len(bands.steps) > 4 else ''}) of {len(bands.steps)}"


def _check(clip_norm: float, bands: Bands, length: int, clients: int, quorum: int, colluding: int, grid: int) -> None:
    if not 1 <= quorum <= clients:
        raise UsageError(f"Expected quorum={quorum} between 1 and clients={clients}; it is the fewest in a sum")
    if not 0 <= colluding < quorum:
        raise PrivacyError(
            f"Expected colluding={colluding} below quorum={quorum}; somebody honest must carry the noise in every sum"
        )
    if bands.period > clients:
        raise UsageError(f"Expected period={bands.period} to be at most clients={clients}; else rounds have nobody on")
    if not 0 < clip_norm < math.inf or length < 1:
        raise UsageError(f"Expected clip_norm={clip_norm} to be finite and above 0, and length={length} at least 1")
    if not math.sqrt(length) <= grid <= LARGEST_GRID:
        raise UsageError(
            f"Expected grid={grid} from sqrt(length) to 2^30; {default_grid(length)} costs 1 % of the clip"
        )
