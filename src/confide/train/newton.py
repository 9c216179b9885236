"""Newton's method with one Hessian for all steps: sufficient statistics once, then preconditioned gradient sums.

The Hessian of the logistic loss is at most 1/4 of x x^T summed over the records, so that matrix, taken once, bounds
every later one, and steps preconditioned by it go far in every direction: 16 do what takes gradient descent hundreds
where features differ much in how common they are (one-hot categories). The same sums hold x y^T, from which the steps
start at linear discriminant analysis.

Under a plan the first release is the sums, and the others are the clipped gradients; what is done with them is public.

Source: Boehning, Lindsay, Monotonicity of quadratic-approximation algorithms (1988), which takes 1/4. We take half of
it, near the mean of p (1 - p), and half steps against it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness, SystemRandomness
from confide.dp.plan import PrivacyPlan, Releases
from confide.errors import DataError
from confide.ideal import Sums
from confide.model.graph import Graph
from confide.train.course import Course
from confide.train.encodings import Encoding, charge, charges
from confide.train.learner import GraphLearner
from confide.train.linear_head import CONSTANT, LinearHead
from confide.train.local import Silo
from confide.train.sections import PrivacySection, TrainSection
from confide.train.statistics import MOST_TIMES, Statistics, moments_of, ridge_regression
from confide.wire import MemoryStore, Store

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: What the Hessian is of x x^T: the mean of p (1 - p), which is at most 1/4.
_CURVATURE = 0.12


class Newton(Encoding):
    """Round 1 sums statistics, the others gradients, whose steps the statistics precondition.

    Args:
        learner: of the starting graph, a linear layer and a sigmoid.
        train: rounds, the sums of statistics included; learning_rate of the steps, 1 for the whole step.
        first: of the same graph, under the same plan.
        head: how gradients are summed; under a plan clipped to the plan's norm.
        plan: with `statistics`; None without privacy.
    """

    def __init__(
        self,
        learner: GraphLearner,
        train: TrainSection,
        first: Statistics,
        head: LinearHead,
        *,
        plan: PrivacyPlan | None,
    ) -> None:
        self.learner, self._train, self._first, self._head, self._plan = learner, train, first, head, plan
        self._most_records = MOST_TIMES * train.expected_records
        self._gram, self._ridge = np.zeros(head.sums.columns**2), np.zeros(1)  # flat, as `moved` has arrays
        self.releases = plan.releases if plan else train.rounds * train.attempts
        self._enter()

    @property
    def longest(self) -> int:
        return max(self._first.length, self._head.sums.length)

    def _enter(self) -> None:
        """Take the length and the bound of what is summed next."""
        if not self._started:
            self.length, self.bound = self._first.length, self._first.bound
        else:
            self.length = self._head.sums.length
            self.bound = self._plan.bound if self._plan else self._most_records * self._head.sums.grid

    @property
    def _started(self) -> bool:
        return bool(self._ridge[0] > 0)

    @property
    def moved(self) -> Mapping[str, Matrix]:
        return {"gram": self._gram, "ridge": self._ridge}

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        self._gram, self._ridge = moved["gram"], moved["ridge"]
        self._enter()

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        if not self._started:
            return self._first.contribution(parameters, silo, number, rng, store)
        clipped = self._head.gradient_sum(parameters, silo)
        if self._plan is not None:
            return Releases(self._plan, done=self._made(store)).release(clipped, rng)
        if len(silo.x) > self._most_records:
            raise DataError(f"Expected at most {self._most_records} records at {silo.name}")  # named in round 1
        return clipped.total

    def left(self, number: int, releases: int) -> bool:
        first_alone = self._plan is not None and number == 1  # there is one release of statistics
        return releases == 0 if first_alone else releases < self.releases

    def _made(self, store: Store) -> int:
        """Return how many releases a silo has made; one that was not in the first sum counts it all the same."""
        return max(charges(store), int(self._started))

    def charge(self, store: Store) -> Mapping[str, bytes | None]:
        return charge(store, made=self._made(store)) if self._plan else {}

    def charged(self, store: Store) -> int:
        return self._made(store)

    def epsilon(self, releases: int) -> float | None:
        return self._plan.spent(releases) if self._plan else None

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        if not self._started:
            gram, _, ridge = self._first.read(sums)
            self._gram, self._ridge = gram.ravel(), np.array([ridge])
            self._enter()
            return self._first.update(parameters, sums, members, number)
        outer = self._head.sums
        gradient = (sums.astype(np.float64) * (outer.clip_norm / outer.grid)).reshape(outer.rows, outer.columns)
        gram = self._gram.reshape(outer.columns, outer.columns)
        pull = self._train.weight_decay * max(1.0, gram[-1, -1] / CONSTANT**2)  # the ridge's own Hessian
        ridge = float(self._ridge[0]) - pull + pull / _CURVATURE
        step = ridge_regression(gram, (gradient + pull * self._head.rows(parameters)).T, ridge=ridge)
        return -self._train.learning_rate / _CURVATURE * self._head.gradient(step.T)


def newton_of(
    start: Graph,
    train: TrainSection,
    privacy: PrivacySection | None,
    *,
    plan: PrivacyPlan | None,
    head: LinearHead,
) -> Newton:
    """Return what the parties of a job contribute.

    Args:
        start: one linear layer and a sigmoid.
        train, privacy: of the job.
        plan: under [privacy].
        head: of the gradients, with their class weights; the statistics count all records alike.
    """
    learner = GraphLearner(start, train)
    return Newton(
        learner, train, Statistics(learner, train, moments_of(start, train, privacy), plan=plan), head, plan=plan
    )


def newton_alone(
    train: TrainSection, start: Graph, x: Matrix, y: Vector, *, class_weights: tuple[float, ...] = ()
) -> Graph:
    """Return the model of these records alone, without privacy."""
    train = msgspec.structs.replace(train, expected_records=max(1, len(x)))
    norm = max(1e-6, float(np.sqrt((x * x).sum(axis=1)).max(initial=0.0)))
    head = LinearHead(start, row_norm=norm, clip_norm=None, class_weights=class_weights)
    encoding = newton_of(start, train, None, plan=None, head=head)
    course, silo, rng = Course(encoding, train), Silo("alone", x, y), SystemRandomness()
    while not course.ended:
        vector = encoding.contribution(course.parameters, silo, course.number + 1, rng, MemoryStore())
        course.advance(Sums(vector[None], (frozenset({silo.name}),)))
    return encoding.learner.model(course.kept)
