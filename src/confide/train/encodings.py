"""What a silo puts into a sum, and what the server reads out of it.

Every algorithm is a sum of vectors, so each runs under every aggregator: an `Encoding` says which integers a silo
contributes and which change of the parameters their sum stands for.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.fixed import FixedPoint, RandomRounding
from confide.crypto.random import Randomness
from confide.dp.mechanisms import Clipped
from confide.dp.plan import PrivacyPlan, Releases
from confide.errors import DataError, ModelError
from confide.train.clip import Clip
from confide.train.compress import Rotation, Whole, compression_of
from confide.train.learner import GraphLearner, Learner, staged
from confide.train.linear_head import LinearHead
from confide.train.local import Silo
from confide.train.sections import TrainSection
from confide.wire import Store

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: Where a silo keeps its control variate.
_CONTROL = "scaffold/control"

#: Where a silo counts the noisy vectors that have left it.
_RELEASED = "dp/released"

#: A silo may hold this many times the expected number of records.
_LARGEST_WEIGHT = 16.0

#: Where a mean is cut before a compression's way back, whose sums of such numbers are finite.
_FURTHEST = 1e200


class Encoding(ABC):
    """What a silo contributes to a sum and how the server reads the sum.

    Args:
        learner: the model's parameters, and what a silo does with its records.
        length: the number of integers in the next contribution.
        bound: the largest absolute value of any of them.
        releases: how many sums may be taken in all, failed attempts included.
        before: how many sums come before the rounds of [train]; they move no parameter.

    What `update` moves of an encoding is replaced and never changed in place: a copy goes its own way from there.
    """

    learner: Learner[Any]
    length: int
    bound: int
    releases: int
    before: int = 0

    @property
    def ended(self) -> bool:
        """Return whether the model is done, before all the rounds that it may take."""
        return False

    @property
    def longest(self) -> int:
        """Return the length of the longest contribution of all rounds."""
        return self.length

    def broadcast(self, parameters: Matrix) -> Matrix:
        """Return everything that the silos' contributions of this round start from; its hash is in the session."""
        return parameters

    @abstractmethod
    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        """Return the silo's integers of round `number`, shape (length,); `store` is the silo's own."""

    def _change(self, parameters: Matrix, silo: Silo, number: int, store: Store, shift: Matrix | float = 0.0) -> Matrix:
        """Return what the silo's local steps add to the parameters.

        Raises:
            ModelError: it is not finite, and would be nothing but noise in the sum; the text names the silo.
        """
        try:
            with np.errstate(all="ignore"):  # what overflows is refused below
                change = self.learner.change(parameters, silo, store, number=number, shift=shift)
        except ModelError as error:
            raise ModelError(f"{error}; seen at {silo.name}") from None
        if not np.isfinite(change).all():
            raise ModelError(f"Expected a finite update of {silo.name}; its training diverged: lower the learning rate")
        return change

    @property
    def kept(self) -> tuple[str, ...]:
        """Return the keys of a silo's store that hold what it keeps between rounds."""
        return self.learner.kept

    def settle(self, store: Store, member: bool) -> None:
        """Tell a silo, through its `store`, whether its last contribution is in a released sum.

        Only then does it take over what it staged: what it keeps stays in step with what the others have seen.
        """
        found = {key: store.get(staged(key)) for key in self.kept} if member else {}
        taken = {key: body for key, body in found.items() if body is not None}
        store.commit(taken | dict.fromkeys(map(staged, self.kept)))

    @abstractmethod
    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        """Return the change of the parameters, shape (parameters,), that the sum over `members` stands for."""

    def left(self, number: int, releases: int) -> bool:
        """Return whether a sum of round `number` may be taken after `releases` that may have been opened."""
        return releases < self.releases

    def about(self, number: int) -> Mapping[str, str]:
        """Return what a ledger's lines say of the sum of round `number` beside its figures."""
        return {}

    @property
    def importance(self) -> Mapping[str, float]:
        """Return each raw column's part of what the model says, all together 1; empty where nothing says so."""
        return {}

    @property
    def moved(self) -> Mapping[str, Matrix]:
        """Return what the sums have moved of this encoding, by name."""
        return {}

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        """Go on from what `moved` returned."""
        return

    def epsilon(self, releases: int) -> float | None:
        """Return what `releases` sums have spent, or None without differential privacy."""
        return None

    def charge(self, store: Store) -> Mapping[str, bytes | None]:
        """Return what a silo commits to its `store` before a vector leaves."""
        return {}

    def charged(self, store: Store) -> int:
        """Return how often `charge` was committed to this `store`."""
        return 0


class _Scale:
    """A silo's public weight, the bound on its change, and the grid that both travel on."""

    def __init__(self, train: TrainSection) -> None:
        self._train = train
        bound = max(train.update_bound, 1.0) * _LARGEST_WEIGHT
        self.fixed = FixedPoint(fraction_bits=train.fraction_bits, bound=bound)

    def weight(self, silo: Silo) -> float:
        weight = len(silo.x) / self._train.expected_records
        if not 0 < weight <= _LARGEST_WEIGHT:
            raise DataError(
                f"Expected between 1 and {_LARGEST_WEIGHT:.0f} * train.expected_records={self._train.expected_records} "
                f"records at {silo.name}; set train.expected_records to the public order of magnitude"
            )
        return weight

    def within_norm(self, change: Matrix, weight: float) -> Matrix:
        """Return `change` scaled so that the integers of (weight * change, weight) keep `integer_norm_bound`."""
        if self._train.norm_bound is None:
            return change
        # what rounding to the grid can add: half a step for each value, and a step for the bound's own rounding
        steps = math.sqrt(len(change) + 1) / 2 + 1
        room = self._train.norm_bound * (1 - 1e-9) - steps * 2.0**-self._train.fraction_bits
        if room <= weight:
            raise DataError(
                f"Expected train.norm_bound={self._train.norm_bound} to be above a party's share of "
                "train.expected_records; raise it, or set expected_records to the public order of magnitude"
            )
        norm, allowed = weight * float(np.linalg.norm(change)), math.sqrt(room**2 - weight**2)
        return change * min(1.0, allowed / norm) if norm else change

    def bounded(self, change: Matrix) -> Matrix:
        largest = max(float(change.max()), -float(change.min()))
        return change if largest <= self._train.update_bound else change * (self._train.update_bound / largest)

    def mean(self, sums: Vector) -> Matrix:
        """Return the weighted mean that (sum of weight * change, sum of weights) stands for, within its bound."""
        values = self.fixed.decode(sums)
        with np.errstate(all="ignore"):  # weights that no honest silos have may add up to nothing
            return self.within_bound(np.nan_to_num(values[:-1] / values[-1]))

    def within_bound(self, mean: Matrix) -> Matrix:
        """Return a mean change, cut where no silos that keep to their bounds can have moved it."""
        return np.clip(mean, -self._train.update_bound, self._train.update_bound)


def integer_norm_bound(train: TrainSection) -> int | None:
    """Return train.norm_bound in steps of the grid that updates travel on, rounded down, or None."""
    return None if train.norm_bound is None else int(Fraction(train.norm_bound) * 2**train.fraction_bits)


class WeightedUpdates(Encoding):
    """Federated averaging: (weight * update, weight), so that the example counts stay inside the sum.

    The weight is the record count over the public `expected_records`. With one local step the weighted mean of the
    updates is exactly the gradient step on the pooled records. FedProx differs in the local steps alone, the adaptive
    algorithms in what the server does with the mean.

    weight * update may be clipped, and is compressed as [train] says. The weight is exact under every compression: it
    is written in as many digits as fit the ring that the compressed numbers need, one where nothing is compressed.

    Args:
        seed: public; with the round it gives the compression's map. Everyone's must be the same.
    """

    def __init__(self, learner: Learner[Any], train: TrainSection, *, seed: int | str = 0) -> None:
        self.learner, self._train, self._scale = learner, train, _Scale(train)
        self._map = compression_of(train, len(learner.start), seed)
        self.clip = Clip(norm=train.clip_norm or math.inf, quantile=train.clip_quantile, rate=train.clip_rate)
        self.bound = self._grid().largest
        self._digits = _Digits(self.bound + 1, self._scale.fixed.encode(np.array([_LARGEST_WEIGHT])).item())
        self.length = self._map.size + self.clip.follows + self._digits.count
        self.releases = train.rounds * train.attempts

    def _grid(self) -> FixedPoint | RandomRounding:
        """Return the grid that the numbers of this round travel on."""
        if isinstance(self._map, Rotation):
            return RandomRounding(bits=self._map.bits, reach=self._map.reach(self.clip.norm))
        return self._scale.fixed

    def broadcast(self, parameters: Matrix) -> Matrix:
        started = [parameters]
        if math.isfinite(self.clip.norm):
            started.append(np.array([self.clip.norm]))
        if not isinstance(self._map, Whole):  # parties with different maps cannot be summed together
            started.append(np.frombuffer(hashlib.sha256(repr(self._map).encode()).digest(), "<u4").astype(np.float64))
        return np.concatenate(started)

    @property
    def moved(self) -> Mapping[str, Matrix]:
        return {"clip_norm": np.array([self.clip.norm])} if self.clip.follows else {}

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        if self.clip.follows:
            self.clip = self.clip.at(float(moved["clip_norm"][0]))

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        weight = self._scale.weight(silo)
        change = self._scale.bounded(self._change(parameters, silo, number, store))
        clipped, within = self.clip.apply(weight * self._scale.within_norm(change, weight))
        sent, grid = self._map.forward(clipped, number), self._grid()
        numbers = grid.encode(sent, rng) if isinstance(grid, RandomRounding) else grid.encode(sent, clip=True)
        answer = [int(within)] if self.clip.follows else []
        digits = self._digits.split(self._scale.fixed.encode(np.array([weight])).item())
        return np.concatenate([numbers, np.array(answer + digits, np.int64)])

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        numbers, rest = np.split(sums, [self._map.size])
        weight = self._digits.join(rest[-self._digits.count :]) / 2**self._train.fraction_bits  # beyond int64 if forged
        with np.errstate(all="ignore"):  # weights that no honest silos have may add up to nothing
            mean = np.clip(np.nan_to_num(self._grid().decode(numbers) / np.float64(weight)), -_FURTHEST, _FURTHEST)
        change = self._map.backward(mean, number)
        if self.clip.follows:
            self.clip = self.clip.followed(int(rest[0]), len(members))
        return self._scale.within_bound(change)


class _Digits:
    """A whole number as digits: the digits of a sum are the sums of the digits."""

    def __init__(self, base: int, largest: int) -> None:
        self._base, self.count = base, 1
        while base**self.count <= largest:
            self.count += 1

    def split(self, value: int) -> list[int]:
        return [value // self._base**place % self._base for place in range(self.count)]

    def join(self, digits: Vector) -> int:
        return sum(digit * self._base**place for place, digit in enumerate(digits.tolist()))


class Scaffold(Encoding):
    """SCAFFOLD: each silo's steps are corrected by how its gradients differ from everybody's.

    The silo keeps its control variate c_i in its store; the server keeps their weighted mean c, which it sends with the
    model. The contribution is (weight * update, weight * change of c_i, weight). A silo takes its new c_i over only
    once it is told that its contribution is in a sum, so c stays the mean of the c_i whoever drops out.

    Paper: Karimireddy et al., SCAFFOLD (2020), Algorithm 1, option II; the means are weighted by the record counts.

    Args:
        parties: how many silos there are.
        control: the server's c of an earlier run that the silos' stores come from; None starts at 0.
    """

    def __init__(
        self, learner: Learner[Any], train: TrainSection, *, parties: int, control: Matrix | None = None
    ) -> None:
        self.learner, self._scale, self._parties = learner, _Scale(train), parties
        self.control = np.zeros_like(learner.start) if control is None else control
        self.length = 2 * len(learner.start) + 1
        self.bound = self._scale.fixed.largest
        self.releases = train.rounds * train.attempts

    @property
    def kept(self) -> tuple[str, ...]:
        return (_CONTROL, *self.learner.kept)

    @property
    def moved(self) -> Mapping[str, Matrix]:
        return {"control": self.control}

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        self.control = moved["control"]

    def broadcast(self, parameters: Matrix) -> Matrix:
        return np.append(parameters, self.control)

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        body = store.get(_CONTROL)
        if body is not None and len(body) != 8 * len(self.control):
            raise ModelError(f"Expected a store with a control variate of this model at {silo.name}; take an empty one")
        own = np.zeros_like(self.control) if body is None else np.frombuffer(body, "<f8")
        weight = self._scale.weight(silo)
        change = self._change(parameters, silo, number, store, self.control - own)
        turn = self._scale.bounded(-change / self.learner.travel(silo) - self.control)
        store.commit({staged(_CONTROL): (own + turn).astype("<f8").tobytes()})
        return self._scale.fixed.encode(np.concatenate([weight * self._scale.bounded(change), weight * turn, [weight]]))

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        change, turn = np.split(self._scale.mean(sums), 2)
        self.control = self.control + turn * len(members) / self._parties
        return change


def charges(store: Store) -> int:
    """Return how many releases a silo has counted in its own store."""
    return int(store.get(_RELEASED) or 0)


def charge(store: Store, *, made: int | None = None) -> Mapping[str, bytes | None]:
    """Return what counts one more release, after as many as the store says or `made`."""
    return {_RELEASED: str((charges(store) if made is None else made) + 1).encode()}


def release(plan: PrivacyPlan, clipped: Clipped, rng: Randomness, store: Store) -> Vector:
    """Return a clipped sum with the silo's share of the noise, unless its own count says that the plan is spent."""
    return Releases(plan, done=charges(store)).release(clipped, rng)


class PrivateGradients(Encoding):
    """Noisy gradient descent: the clipped sum of the records' gradients plus the silo's share of the noise.

    Every attempt for which vectors left spends a release of the plan, so a run that repeats such a round ends
    with fewer steps, never with more epsilon. Each silo counts in its own store and does not rely on the server.

    Args:
        head: how a linear head's gradients are summed, from one matrix product; None takes every record's gradient.
    """

    def __init__(
        self, learner: GraphLearner, plan: PrivacyPlan, train: TrainSection, *, head: LinearHead | None = None
    ) -> None:
        self.learner, self._gradients = learner, learner.record_gradients
        self._plan, self._train, self._head = plan, train, head
        self.length = plan.length
        self.bound = plan.bound
        self.releases = plan.rounds

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        if self._head is not None:
            clipped = self._head.gradient_sum(parameters, silo)
        else:
            clipped = self._plan.clipped_sum(self._gradients(parameters, silo), silo.units)
        return release(self._plan, clipped, rng, store)

    def charge(self, store: Store) -> Mapping[str, bytes | None]:
        return charge(store)

    def charged(self, store: Store) -> int:
        return charges(store)

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        mean = self._plan.decode(sums) / self._plan.expected_records
        if self._head is not None:
            mean = self._head.gradient(mean)
        return -self._train.learning_rate * (mean + self._train.weight_decay * parameters)

    def epsilon(self, releases: int) -> float | None:
        return self._plan.spent(releases)
