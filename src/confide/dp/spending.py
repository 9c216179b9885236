"""A budget that many releases of one data holder share, composed as tightly as Gaussian noise allows.

Every release here is an integer sum with exact discrete Gaussian noise, so together they are one Gaussian mechanism
whose mu^2 is the sum of theirs (theorem 2 of docs/protocols/dp-gradient.md). Ten releases of epsilon 0.3 each cost 1.0
together, where adding epsilons says 3. A release may be chosen in view of every answer before it, its noise and its
kind included: a limit on the sum of mu^2 that was fixed beforehand holds all the same (Smith and Thakurta, arXiv
2210.17520, fully adaptive composition of Gaussian differential privacy).

So that one number, mu, has to be counted, a millionth of epsilon and a thousandth of delta are kept for what integers
and their cut tails add; releases whose grids are so coarse that this does not suffice are refused.

    paper   here
    mu      Budget.mu, Release.mu
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from importlib import metadata
from numbers import Real
from threading import Lock
from typing import Any, NoReturn, Self

from confide.crypto.noise import MAX_DEVIATION, REACH, TAIL
from confide.dp.accountant import (
    ACCOUNTANT,
    LARGEST_EPSILON,
    LEAST_SHARE_VARIANCE,
    NoisySums,
    check_target,
    gaussian_epsilon,
    gaussian_mu,
)
from confide.errors import PrivacyError, UsageError
from confide.guarantee import PrivacyLabel

_KEPT_EPSILON = 1e-6  # of epsilon, for what integers add
_KEPT_DELTA = 1e-3  # of delta, for cut tails
_EDGE = 1e-9  # of mu^2: float64's rounding when shares of a budget are added up


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One line of what a budget has spent.

    Args:
        of: what was released, in a few words.
        mu: what it counts for.
        epsilon: what it costs alone, at the budget's delta.
    """

    of: str
    mu: float
    epsilon: float


class Budget:
    """An epsilon and a delta for everything that is released under it.

    Args:
        epsilon: of all releases together, 0 < epsilon <= 32.
        delta: of all releases together: below one over the number of records. The default suits up to 100,000.

    Example:
        >>> import numpy as np
        >>> from confide.dp.queries import count, mean
        >>> ages = np.array([31.0, 45.0, 62.0] * 1000)
        >>> with Budget(epsilon=1.0) as budget:
        ...     records = count(ages, budget=budget, share=0.2)
        ...     average = mean(ages, bounds=(0, 120), budget=budget, share=0.5)
        >>> len(budget.releases), 0.81 < budget.spent < 0.84
        (2, True)

    It works without `with` too; leaving the block closes it, and a closed budget refuses every further release. Threads
    may share one object. Copying it gives the same object, because two copies would spend twice; sending it to another
    process is refused.

    **Guarantees**: all releases charged to it are together (epsilon, delta)-differentially private for adding or
    removing one record, however each was chosen in view of those before, if their noise was secret. What does not fit
    is refused before the data is looked at, and leaves the budget as it was.
    """

    def __init__(self, epsilon: float, delta: float = 1e-6) -> None:
        if not (is_real(epsilon) and is_real(delta)):
            raise UsageError("Expected numbers as epsilon and delta of a budget")
        check_target(epsilon, delta)
        self.epsilon, self.delta = float(epsilon), float(delta)
        self._lock, self._releases, self._closed = Lock(), list[Release](), False
        self._process = os.getpid()
        self._square = self._surcharge = self._tail = 0.0
        self.mu = self.mu_of(self.epsilon)

    def mu_of(self, epsilon: float) -> float:
        """Return the mu that a release of `epsilon` may have at this budget's delta; `mu` is that of the whole."""
        check_target(epsilon, self.delta)
        kept = epsilon * _KEPT_EPSILON
        found = gaussian_mu(epsilon - kept, self.delta * (1 - _KEPT_DELTA) * math.exp(-kept) * (1 - 1e-12))
        return found * (1 - _EDGE)  # so that `charge` may round up by as much

    @property
    def releases(self) -> tuple[Release, ...]:
        """Return what was released, in order."""
        with self._lock:
            return tuple(self._releases)

    @property
    def spent(self) -> float:
        """Return the epsilon of all releases so far, together, at `delta`; never above `epsilon`."""
        with self._lock:
            square = self._square
        if square == 0.0:
            return 0.0
        found = gaussian_epsilon(math.sqrt(square) * (1 - _EDGE), self.delta * (1 - _KEPT_DELTA))
        return min(self.epsilon, found * (1 + 2 * _KEPT_EPSILON))

    @property
    def mu_left(self) -> float:
        """Return the mu that is left: sqrt of what is left of mu^2, nothing once it is closed."""
        self._check_process()
        with self._lock:
            return 0.0 if self._closed else math.sqrt(max(0.0, self.mu**2 - self._square))

    @property
    def left(self) -> float:
        """Return the largest epsilon that one more release may have; the sum with `spent` is above `epsilon`."""
        room, low, high = self.mu_left, 0.0, self.epsilon
        if room >= self.mu * (1 - _EDGE):
            return self.epsilon
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if middle > 0 and self.mu_of(middle) <= room else (low, middle)
        return low

    def charge(self, *events: NoisySums, of: str) -> None:
        """Spend what `events` cost together, or nothing.

        Args:
            events: of one holder, all of whose noise counts.
            of: what is released.

        Raises:
            PrivacyError: it does not fit, the budget is closed, or this is a process that was forked from its own.
        """
        self._check_process()
        square = math.fsum(event.mu**2 for event in events)
        surcharge = math.fsum(event.surcharge for event in events)
        draws = math.fsum(event.rounds * event.length * (1 + event.shares) for event in events)
        tail = TAIL * draws * (1 + math.exp(min(self.epsilon, LARGEST_EPSILON)))
        with self._lock:
            self.check_open(of)
            if self._square + square > self.mu**2 * (1 + _EDGE):
                left = 1 - self._square / self.mu**2
                raise PrivacyError(
                    f"Expected {of} to fit: it asks for {square / self.mu**2:.4g} of the budget of epsilon="
                    f"{self.epsilon:g}, and {max(0.0, left):.4g} of it is left; lower its epsilon or its share"
                )
            if self._surcharge + surcharge > _KEPT_EPSILON * self.epsilon or self._tail + tail > self._most_tail:
                raise PrivacyError(f"Expected finer grids or fewer numbers for {of}; integers add too much to epsilon")
            self._square += square
            self._surcharge += surcharge
            self._tail += tail
            alone = gaussian_epsilon(math.sqrt(square), self.delta)
            self._releases.append(Release(of=of, mu=math.sqrt(square), epsilon=alone))

    def close(self) -> None:
        """Refuse every release from now on."""
        with self._lock:
            self._closed = True

    def check_open(self, of: str) -> None:
        """Raise PrivacyError if it is closed."""
        if self._closed:
            raise PrivacyError(f"Expected an open budget for {of}; this one was closed, make a new one")

    def _check_process(self) -> None:
        """Raise PrivacyError in a fork, whose copy of what was spent would let both spend all of it."""
        if os.getpid() != self._process:
            raise PrivacyError("Expected a budget to stay in its process, not in a fork; two copies would spend twice")

    @property
    def _most_tail(self) -> float:
        return _KEPT_DELTA * self.delta * math.exp(-_KEPT_EPSILON * self.epsilon) / 2

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Budget(epsilon={self.epsilon:g}, delta={self.delta:g})"

    def __str__(self) -> str:
        lines = [f"{self!r}: spent {self.spent:.4g}, left {self.left:.4g} for one more release"]
        return "\n".join([*lines, *(f"  {one.epsilon:8.4g}  {one.of}" for one in self.releases)])

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise PrivacyError("Expected a budget to stay in its process; two copies would spend twice. Use threads")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one call may spend: a part of a budget.

    Args:
        budget: what is charged.
        mu: how much of it, > 0.
    """

    budget: Budget
    mu: float

    def part(self, share: float) -> Allowance:
        """Return `share` of this, of its mu^2."""
        return Allowance(self.budget, self.mu * math.sqrt(share))

    def check(self, of: str) -> None:
        """Raise PrivacyError unless all of this is left: for whoever spends it in several steps."""
        self.budget.check_open(of)
        if self.mu > self.budget.mu_left * (1 + _EDGE):
            left = (self.budget.mu_left / self.budget.mu) ** 2
            raise PrivacyError(
                f"Expected {of} to fit: it asks for {(self.mu / self.budget.mu) ** 2:.4g} of the budget of epsilon="
                f"{self.budget.epsilon:g}, and {left:.4g} of it is left; lower its epsilon or its share"
            )

    def sums(self, *, sensitivity: int, length: int, rounds: int = 1) -> NoisySums:
        """Return the event that spends all of this on integer sums of this L2 sensitivity.

        Raises:
            PrivacyError: the grid is too coarse for so large an epsilon, or too fine for so small a share.
        """
        variance = (sensitivity / self.mu) ** 2 * rounds * (1 + 1e-12) + 0.1  # rounding costs a twelfth
        if variance < LEAST_SHARE_VARIANCE:
            raise PrivacyError(f"Expected a finer grid than {sensitivity} steps, or a smaller epsilon")
        if variance > MAX_DEVIATION**2:
            raise PrivacyError("Expected a larger share of the budget; its noise would be above 2^40 grid steps")
        return NoisySums(sensitivity=sensitivity, share_variance=variance, shares=1, length=length, rounds=rounds)


def is_real(value: Any) -> bool:
    """Return whether an argument is one number, True and False not among them."""
    return type(value) is not bool and isinstance(value, Real)


def allowance(
    *,
    epsilon: Any = None,
    delta: Any = None,
    budget: Any = None,
    share: Any = None,
) -> Allowance:
    """Return what a call may spend, from the arguments that every query and estimator takes.

    Args:
        epsilon, delta: of this release alone; without a budget both are needed.
        budget: shared with others; its delta counts, and either `epsilon` or `share` says how much this release takes.
        share: of the budget's mu^2, 0 < share <= 1: ten releases of a tenth fit exactly.

    Raises:
        UsageError: they contradict each other, or one is out of its range.
    """
    for name, number in (("epsilon", epsilon), ("delta", delta), ("share", share)):
        if number is not None and not is_real(number):
            raise UsageError(f"Expected {name} to be a number, got {type(number).__name__}")
    if budget is not None and not isinstance(budget, Budget):
        raise UsageError(f"Expected budget=Budget(epsilon, delta), got {type(budget).__name__}")
    if budget is None:
        if epsilon is None or delta is None or share is not None:
            raise UsageError(
                "Expected epsilon and delta, or budget with epsilon or share; nothing is private by itself"
            )
        whole = Budget(epsilon, delta)
        return Allowance(whole, whole.mu)
    if delta is not None:
        raise UsageError("Expected delta to be that of the budget; leave it out")
    if (epsilon is None) == (share is None):
        raise UsageError("Expected either epsilon or share with a budget; share=0.1 takes a tenth of it")
    if epsilon is not None:
        return Allowance(budget, budget.mu_of(epsilon))
    if share is None or not 0 < share <= 1:
        raise UsageError(f"Expected share={share} above 0 and at most 1")
    return Allowance(budget, budget.mu * math.sqrt(share))


def label_of(
    taken: Allowance, *, mechanism: str, releases: int, noise_from: str, released: str = "what was fitted"
) -> PrivacyLabel:
    """Return the privacy label of what one holder has released under an allowance.

    Args:
        mechanism: name and constants, printable.
        releases: noisy sums.
        released: what leaves the holder.
        noise_from: where the noise's random bytes came from; anything but the operating system voids the claim.
    """
    delta = taken.budget.delta
    epsilon = min(taken.budget.epsilon, gaussian_epsilon(taken.mu, delta) * (1 + 2 * _KEPT_EPSILON))
    return PrivacyLabel(
        aggregator="pooled",
        parties=("holder",),
        quorum=1,
        colluding=0,
        rounds=releases,
        unit="record",
        relation="add or remove one",
        epsilon=epsilon,
        delta=delta,
        epsilon_outsiders=epsilon,
        mu=taken.mu,
        mechanism=mechanism,
        sampling="full batch: every record is in every release; no amplification is claimed",
        noise=(
            f"integers from record to sum: exact discrete Gaussian, cut at {REACH} deviations (below {TAIL:.1g} of its "
            "mass, charged to delta)"
        ),
        accountant=f"confide {metadata.version('confide')}: {ACCOUNTANT}",
        released=released,
        preprocessing="public bounds, given as arguments",
        seed=noise_from,
    )
