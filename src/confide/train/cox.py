"""Cox regression over silos: the partial likelihood of the pooled records, from sums over risk sets on a public grid.

A record's risk set holds everybody who is still under observation at its event, whichever silo they are at. So time is
cut into K public intervals, and for each of them a silo sends what its records at risk add to

    S0_k = sum exp(eta)      S1_k = sum exp(eta) x      with   D_k = its events,   U = sum over events of x.

All are plain sums, so any aggregator adds them, and their totals give the gradient of Breslow's partial likelihood of
the pooled records exactly, with times rounded up to the grid:

    U - sum_k D_k S1_k / S0_k.

A second matrix of sums, of exp(eta) H(t) x x^T with the cumulative hazard H of the round before, gives the curvature

    sum_k h_k S0_k Var_k(x),   which is never negative, whatever the hazard h,

so each round is a step of Newton's method; it is halved where the likelihood, which the same sums hold, has fallen.
The model's output is a log hazard: the bias makes the expected events, under a constant hazard, as many as there were.

Source: Breslow, discussion of Cox (1972); Lu et al., WebDISCO (2015) for the sums over sites.

    paper    here                               paper   here
    lambda   hazard h, one for each interval    Lambda  cumulative hazard H
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.fixed import FixedPoint
from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import DataError
from confide.ideal import Sums
from confide.model.graph import Graph
from confide.train.course import Course
from confide.train.encodings import Encoding
from confide.train.learner import GraphLearner
from confide.train.local import Silo
from confide.train.sections import TrainSection
from confide.train.statistics import MOST_TIMES, ridge_regression
from confide.wire import MemoryStore, Store

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: Hazards are at most exp(8) = 3000 times that of a record whose features are 0; the grid of the sums is sized by it.
_REACH = 8.0

#: A sum over 16 times the expected records at that hazard has 16 bits before the point; 35 after it leave 2^10 parties.
_FRACTION_BITS = 35

#: A time that is this share of an interval beyond an edge lies on it: division has rounded it.
_AN_EDGE = 1e-9

#: Largest sum of the absolute changes of one step, which is how far it moves a log hazard.
_FURTHEST = 4.0

#: Below every likelihood.
_NO_LIKELIHOOD = -1e300

_ROUNDS_ALONE = 8

#: A likelihood that falls by less than this share of itself has not fallen.
_FALLEN = 1e-9


class Cox(Encoding):
    """Every round sums risk sets at the current coefficients, and takes one step of Newton's method.

    Args:
        learner: of the starting graph, one linear layer with one output.
        train: weight_decay (the ridge for each record), rounds and expected_records.
        intervals: K, of equal length on the label's range of times.

    A silo's `y` has shape (n, 2): times as shares of the range, within [0, 1], and 1 for an event, 0 for a record that
    was lost sight of.

    **Guarantees**: with enough rounds the coefficients are those of the pooled records, up to 2^-35 on a sum.
    **Leaks** the totals of D, S0, S1 and the curvature each round: an interval in which few are left tells about these
    few. No differential privacy; `HazardHead` is for that.
    """

    def __init__(self, learner: GraphLearner, train: TrainSection, *, intervals: int) -> None:
        self.learner, self._train, self._intervals = learner, train, intervals
        self._features = len(learner.start) - 1
        self._most_records = MOST_TIMES * train.expected_records
        self._fixed = FixedPoint(fraction_bits=_FRACTION_BITS, bound=MOST_TIMES * math.exp(_REACH))
        self.hazard = np.full(intervals, 1.0 / intervals)
        self._step, self._likelihood = np.zeros(self._features), np.array([_NO_LIKELIHOOD])
        triangle = self._features * (self._features + 1) // 2
        self._sizes = (1, 1, intervals, self._features, intervals, intervals * self._features, triangle)
        self.length, self.bound = sum(self._sizes), self._fixed.largest
        self.releases = train.rounds * train.attempts

    def broadcast(self, parameters: Matrix) -> Matrix:
        return np.concatenate([parameters, self.hazard])

    @property
    def moved(self) -> Mapping[str, Matrix]:
        return {"hazard": self.hazard, "step": self._step, "likelihood": self._likelihood}

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        self.hazard, self._step, self._likelihood = moved["hazard"], moved["step"], moved["likelihood"]

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        times, events = outcomes(silo)
        if len(times) > self._most_records:
            raise DataError(
                f"Expected at most {MOST_TIMES} * train.expected_records={self._train.expected_records} records at "
                f"{silo.name}; set train.expected_records to the public order of magnitude"
            )
        places = places_of(times, self._intervals)
        logs = np.clip(silo.x @ parameters[:-1], -_REACH, _REACH)
        risks, died = np.exp(logs), events == 1
        at_end = np.zeros((self._intervals, self._features))
        np.add.at(at_end, places, risks[:, None] * silo.x)
        ended = np.bincount(places, weights=risks, minlength=self._intervals).astype(np.float64)
        exposed = np.minimum(risks * np.cumsum(self.hazard)[places], math.exp(_REACH))
        curvature = (silo.x * exposed[:, None]).T @ silo.x
        parts = [
            np.array([float(len(times)), logs[died].sum()]),
            np.bincount(places[died], minlength=self._intervals).astype(np.float64),
            silo.x[died].sum(axis=0),
            _from_here_on(ended),
            _from_here_on(at_end).ravel(),
            curvature[np.triu_indices(self._features)],
        ]
        return self._fixed.encode(np.concatenate(parts) / self._train.expected_records)

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        values = self._fixed.decode(sums) * self._train.expected_records
        count, logs, deaths, sum_x, risk, risk_x, upper = np.split(values, np.cumsum(self._sizes)[:-1])
        deaths, risk = np.maximum(deaths, 0.0), np.maximum(risk, 2.0**-_FRACTION_BITS)  # what honest silos send
        weights, pull = parameters[:-1], self._train.weight_decay * max(1.0, float(count[0]))
        means = risk_x.reshape(self._intervals, self._features) / risk[:, None]
        likelihood = float(logs[0] - (deaths * np.log(risk)).sum() - pull / 2 * (weights**2).sum())
        events, spread = float(deaths.sum()), float((self.hazard * risk).sum())
        bias = math.log(max(events, 0.5) * self._intervals / float(risk.sum()))
        if likelihood < self._likelihood[0] - _FALLEN * abs(likelihood):
            self._step = self._step / 2
            return np.append(-self._step, bias - parameters[-1])
        gradient = sum_x - (deaths[:, None] * means).sum(axis=0) - pull * weights
        # the curvature for the hazard of the round before, brought to as many events as there were
        curvature = np.zeros((self._features, self._features))
        curvature[np.triu_indices(self._features)] = upper
        curvature = curvature + np.triu(curvature, 1).T
        for one, mean in zip((self.hazard * risk).tolist(), means, strict=True):
            curvature -= one * mean[:, None] * mean[None, :]
        step = ridge_regression(curvature * (events / spread), gradient[:, None], ridge=max(pull, 1e-9))[:, 0]
        self._step = step * min(1.0, _FURTHEST / max(float(np.abs(step).sum()), 1e-9))
        self._likelihood = np.array([likelihood])
        if events > 0:
            self.hazard = deaths / risk
        return np.append(self._step, bias - parameters[-1])


def outcomes(silo: Silo) -> tuple[Matrix, Vector]:
    """Return a silo's times, shape (n,), within [0, 1], and events, 0 or 1, shape (n,).

    Raises:
        DataError: it holds something else.
    """
    if silo.y.ndim != 2 or silo.y.shape[1] != 2 or silo.x.ndim != 2:
        raise DataError(f"Expected times and events (n, 2) at {silo.name}, got {silo.y.shape}; state label.time")
    times, events = silo.y[:, 0].astype(np.float64), silo.y[:, 1]
    if len(times) and not (times.min() >= 0 and times.max() <= 1 and np.isin(events, (0, 1)).all()):
        raise DataError(f"Expected times within [0, 1] and events of 0 or 1 at {silo.name}")
    return times, events.astype(np.int64)


def places_of(times: Matrix, intervals: int) -> Vector:
    """Return the interval of each time: number k holds (k / K, (k + 1) / K], and the first one holds 0."""
    return np.clip(np.ceil(times * intervals - _AN_EDGE).astype(np.int64) - 1, 0, intervals - 1)


def _from_here_on(values: Matrix) -> Matrix:
    """Return sums over an entry and all later ones: who ends in an interval was at risk in it and before."""
    return np.cumsum(values[::-1], axis=0)[::-1]


def cox_alone(train: TrainSection, start: Graph, x: Matrix, y: Matrix, *, intervals: int = 100) -> Graph:
    """Return the model of these records alone, without privacy; y as a `Silo` has it.

    Args:
        train: weight_decay, and rounds if they are enough.
    """
    rounds = max(train.rounds, _ROUNDS_ALONE)
    alone = {"algorithm": "risk-sets", "momentum": 0.0, "average": 0.0, "rounds": rounds}
    train = msgspec.structs.replace(train, **alone, expected_records=max(1, len(x)))
    encoding, silo = Cox(GraphLearner(start, train), train, intervals=intervals), Silo("alone", x, y)
    course, rng = Course(encoding, train), SystemRandomness()
    while course.number < course.rounds:
        vector = encoding.contribution(course.parameters, silo, course.number + 1, rng, MemoryStore())
        course.advance(Sums(vector[None], (frozenset({silo.name}),)))
    return encoding.learner.model(course.kept)
