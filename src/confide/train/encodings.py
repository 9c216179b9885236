"""What a silo puts into a sum, and what the server reads out of it.

Every algorithm is a sum of vectors, so each runs under every aggregator: an `Encoding` says which integers a silo
contributes and which change of the parameters their sum stands for.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.fixed import FixedPoint, RandomRounding
from confide.crypto.random import Randomness
from confide.dp.plan import PrivacyPlan, Releases
from confide.errors import Aborted, DataError
from confide.train.clip import Clip
from confide.train.compress import Rotation, Whole, compression_of
from confide.train.job import TrainSection
from confide.train.learner import GraphLearner, Learner
from confide.train.local import Silo
from confide.wire import Store

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: Where a silo keeps its control variate, and the one that it takes over when its contribution counted.
_CONTROL, _NEXT_CONTROL = "scaffold/control", "scaffold/next"

#: A silo may hold this many times the expected number of records.
_LARGEST_WEIGHT = 16.0


class Encoding(ABC):
    """What a silo contributes to a sum and how the server reads the sum.

    Args:
        learner: the model's parameters, and what a silo does with its records.
        length: the number of integers in a contribution.
        bound: the largest absolute value of any of them.
        releases: how many sums may be taken in all, failed attempts included.
    """

    learner: Learner[Any]
    length: int
    bound: int
    releases: int

    def broadcast(self, parameters: Matrix) -> Matrix:
        """Return everything that the silos' contributions of this round start from; its hash is in the session."""
        return parameters

    @abstractmethod
    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        """Return the silo's integers of round `number`, shape (length,); `store` is the silo's own."""

    def settle(self, store: Store, member: bool) -> None:
        """Tell a silo, through its `store`, whether its last contribution is in a released sum."""
        return

    @abstractmethod
    def update(self, parameters: Matrix, sums: Vector, members: int, number: int) -> Matrix:
        """Return the change of the parameters, shape (parameters,), that the sum over `members` silos stands for."""

    def epsilon(self, releases: int) -> float | None:
        """Return what `releases` sums have spent, or None without differential privacy."""
        return None


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

    def bounded(self, change: Matrix) -> Matrix:
        largest = float(np.abs(change).max())
        return change * min(1.0, self._train.update_bound / largest) if largest else change


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
        self.learner, self._scale = learner, _Scale(train)
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

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        weight = self._scale.weight(silo)
        change = self._scale.bounded(self.learner.change(parameters, silo, number=number))
        clipped, within = self.clip.apply(weight * change)
        sent, grid = self._map.forward(clipped, number), self._grid()
        numbers = grid.encode(sent, rng) if isinstance(grid, RandomRounding) else grid.encode(sent, clip=True)
        answer = [int(within)] if self.clip.follows else []
        digits = self._digits.split(self._scale.fixed.encode(np.array([weight])).item())
        return np.concatenate([numbers, np.array(answer + digits, np.int64)])

    def update(self, parameters: Matrix, sums: Vector, members: int, number: int) -> Matrix:
        numbers, rest = np.split(sums, [self._map.size])
        weight = float(self._scale.fixed.decode(np.array([self._digits.join(rest[-self._digits.count :])]))[0])
        if weight <= 0:
            raise Aborted("Expected a positive sum of weights; some party did not follow the protocol")
        change = self._map.backward(self._grid().decode(numbers) / weight, number)
        if self.clip.follows:
            self.clip.follow(int(rest[0]), members)
        return change


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

    def broadcast(self, parameters: Matrix) -> Matrix:
        return np.append(parameters, self.control)

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        body = store.get(_CONTROL)
        own = np.zeros_like(self.control) if body is None else np.frombuffer(body, "<f8")
        weight = self._scale.weight(silo)
        change = self.learner.change(parameters, silo, number=number, shift=self.control - own)
        turn = self._scale.bounded(-change / self.learner.travel - self.control)
        store.commit({_NEXT_CONTROL: (own + turn).astype("<f8").tobytes()})
        return self._scale.fixed.encode(np.concatenate([weight * self._scale.bounded(change), weight * turn, [weight]]))

    def settle(self, store: Store, member: bool) -> None:
        taken = {_CONTROL: store.get(_NEXT_CONTROL)} if member else {}
        store.commit({**taken, _NEXT_CONTROL: None})

    def update(self, parameters: Matrix, sums: Vector, members: int, number: int) -> Matrix:
        values = self._scale.fixed.decode(sums)
        change, turn = np.split(values[:-1] / values[-1], 2)
        self.control = self.control + turn * members / self._parties
        return change


class PrivateGradients(Encoding):
    """Noisy gradient descent: the clipped sum of the records' gradients plus the silo's share of the noise.

    Every attempt spends a release of the plan, so a run that repeats a round ends with fewer steps, never with more
    epsilon.
    """

    def __init__(self, learner: GraphLearner, plan: PrivacyPlan, train: TrainSection) -> None:
        self.learner, self._gradients = learner, learner.record_gradients
        self._plan, self._train = plan, train
        self._releases: dict[str, Releases] = {}  # each silo's own count: it does not rely on the server to stop
        self.length = plan.length
        self.bound = plan.bound
        self.releases = plan.rounds

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        clipped = self._plan.clipped_sum(self._gradients(parameters, silo))
        return self._releases.setdefault(silo.name, Releases(self._plan)).release(clipped, rng)

    def update(self, parameters: Matrix, sums: Vector, members: int, number: int) -> Matrix:
        mean = self._plan.decode(sums) / self._plan.expected_records
        return -self._train.learning_rate * (mean + self._train.weight_decay * parameters)

    def epsilon(self, releases: int) -> float | None:
        return self._plan.spent(releases)
