"""Private trees over silos: an additive model whose structure is public and whose leaves are learnt together.

    release 1            counts of the codes of every column, from which everything below takes its scales
    release 2            with trends: products of the trends, for steps that know how they go together
    every other one      gradients at the model that the sums so far have led to

Splits chosen from noisy histograms waste most of a budget on the choice, and trees grown one after the other spend the
rest on few leaves at a time. Here nothing is chosen: each release is about all leaves of all columns at once, all
releases are averaged, each at the model of its time, and what one leaf has too little of is taken from its neighbours
(`smoothing`), which costs nothing. A column's codes weigh by (their share of the records)^-3/8, so that rare ones,
which tell most, are told apart from the noise; long rows are scaled down.

"steps" learns a value for each code. Where numbers are many and records few, noise in each code would drown them all:
"trends" learns one slope for each number along a score that its counts give, (x - median) / spread, bent so that far
tails count less. Categories have steps in either case. Which it is follows from public figures.

    symbol   here           meaning
    c        clip           largest absolute residual
    h        share          curvature of the loss times the records of a code
    theta    values         of slopes and codes; its averages with weight k, the number of the round, are `seen`
    V        variance       of seen - pulled / h, which is what is observed of theta, pulled the averaged gradients

Clipping residuals and rows changes the loss, not the guarantee: `additive_sums`, docs/private-trees.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.mechanisms import count_step, counted
from confide.dp.plan import PrivacyPlan, Releases
from confide.dp.release import Portion
from confide.errors import UsageError
from confide.model.graph import Graph
from confide.train.additive_columns import AdditiveColumns, leaves_of
from confide.train.additive_scales import Scales, scales_of
from confide.train.additive_sums import BESIDE, GRID, RESIDUAL, ROW, SHORT, SQUARE, CodedSilo, gradients, products
from confide.train.boosting import TreesLearner
from confide.train.encodings import Encoding, charge, charges
from confide.train.local import Silo, sigmoid_by_record
from confide.train.smoothing import shrunk, smoothed
from confide.train.statistics import ridge_regression, solve
from confide.wire import Store

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: What the label calls the mechanism, and its first release.
MECHANISM = "counts of the codes of every column, then full-batch gradient sums, with discrete Gaussian noise"
COUNTS = "counts of the codes of every column"

#: Grid steps of the norm of a record's counts.
COUNTS_GRID = 1 << 12

#: Noise of all gradient releases together, as a share of the expected records, from which on numbers have trends.
TREND_FROM = 0.0025

_MOST_LOGIT = 30.0
_LEAST_SQUARE = 0.3  # mean square of a trend
_OUTWEIGHED = 0.05  # of the diagonal
_LEAST_FACTOR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How steps are taken; measured in docs/private-trees.md.

    Args:
        clip: of residuals.
        curvature, pace: of the values of codes: mean of p (1 - p), and the share of the way that one round goes.
        slope_curvature, slope_pace: the same for trends.
        slope_ridge: a priori precision of a slope.
    """

    clip: float
    curvature: float = 0.1
    pace: float = 0.5
    slope_curvature: float = 0.06
    slope_pace: float = 0.5
    slope_ridge: float = 1.0


_STEPS, _TRENDS = Recipe(clip=0.5, curvature=0.17), Recipe(clip=1.0, slope_pace=0.35)


class PrivateTrees(Encoding):
    """Counts, then gradients at the model so far.

    Args:
        start: from `additive_columns.additive`.
        columns: of the same preparation.
        plan: with `statistics` for the counts; `releases_of` says what it has to hold.
        effects: "steps", "trends" or "auto".
        class_weights: of each class's records in the loss; empty weighs all alike.
    """

    def __init__(
        self,
        start: Graph,
        columns: AdditiveColumns,
        plan: PrivacyPlan,
        *,
        effects: str = "auto",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        if start.outputs != 1 or plan.statistics is None:
            raise UsageError("Expected two classes, and a plan with counts; see releases_of")
        self.learner = self._learner = TreesLearner(start)
        self._columns, self._plan, self._weights = columns, plan, class_weights
        self._trended = columns.numbers if trends(effects, plan, columns) else ()
        self._recipe = _TRENDS if self._trended else _STEPS
        self._leaves = leaves_of(columns.columns)
        self._length = len(self._trended) + 1 + columns.codes
        self.releases = plan.releases
        self._scales: Scales | None = None
        self._silos: dict[Silo, CodedSilo] = {}
        self._found = dict[str, Matrix]()
        self._take({"counts": np.zeros(0), "products": np.zeros(0), **self._nothing()})

    def _nothing(self) -> dict[str, Matrix]:
        empty = ("pulled", "seen", "values")  # sums of k gradient and of k theta, and theta
        return {name: np.zeros(self._length) for name in empty} | {"rounds": np.zeros(3)}

    def _take(self, found: Mapping[str, Matrix]) -> None:
        """Take what the sums have led to, and the length and bound of the next one."""
        before, self._found = self._found.get("counts"), dict(found)
        counts = self._found["counts"]
        if counts is not before:
            self._scales = (
                scales_of(counts, self._columns, self._trended, self._noise_of_counts) if len(counts) else None
            )
        kind = self._plan.statistics if self._scales is None else self._plan.training
        assert kind is not None
        self.length, self.bound = kind.length, kind.bound

    @property
    def _noise_of_counts(self) -> float:
        """Return the deviation of the noise on a count."""
        assert self._plan.statistics is not None
        step = count_step(len(self._columns.columns), COUNTS_GRID)
        return math.sqrt(self._plan.silos * self._plan.statistics.share_variance) / step

    @property
    def longest(self) -> int:
        return max(self._columns.codes, self._plan.length)

    @property
    def moved(self) -> Mapping[str, Matrix]:
        return self._found

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        self._take(moved)

    def broadcast(self, parameters: Matrix) -> Matrix:
        return np.concatenate([parameters, *(self._found[name] for name in sorted(self._found))])

    @property
    def importance(self) -> Mapping[str, float]:
        """Return the variance of every column's function over the records, as shares of 1; columns are in the model."""
        if self._scales is None:
            return {}
        values, _ = self._functions(self._scales)
        found = [self._variance(self._scales, values, place) for place in range(len(self._columns.columns))]
        total = math.fsum(found) or 1.0
        return {column.name: one / total for column, one in zip(self._columns.columns, found, strict=True)}

    def _variance(self, scales: Scales, values: Matrix, place: int) -> float:
        part = self._columns.part(place)
        share, own = scales.share[part], values[part]
        middle = float((share * own).sum())
        return float((share * (own - middle) ** 2).sum())

    # what a silo does

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        if silo not in self._silos:
            weights = np.array(self._weights)[silo.y] if self._weights else np.ones(len(silo.y))
            self._silos[silo] = CodedSilo(self._columns.read(silo.x), silo.y == 1, weights)
        own = self._silos[silo]
        if self._scales is None:
            clipped = counted(own.codes, length=self._columns.codes, grid=COUNTS_GRID)
        elif self._wants_products:
            clipped = products(self._scales.rows, own, length=self._plan.length, clip_norm=self._plan.clip_norm)
        else:
            clipped = gradients(
                self._scales.rows,
                own,
                self._residuals(parameters, own),
                residual_clip=self._recipe.clip,
                length=self._plan.length,
                clip_norm=self._plan.clip_norm,
            )
        return Releases(self._plan, done=self._made(store)).release(clipped, rng)

    @property
    def _wants_products(self) -> bool:
        return bool(self._trended) and not len(self._found["products"])

    def _residuals(self, parameters: Matrix, silo: CodedSilo) -> Matrix:
        """Return the loss's derivative at every record's score, added up column by column: from its own codes alone."""
        layer = self._learner.trees(parameters)
        values, scores = layer.value[self._leaves], np.full(len(silo.codes), layer.offset[0])
        for column in range(silo.codes.shape[1]):
            scores += values[silo.codes[:, column]]
        found = sigmoid_by_record(np.clip(scores, -_MOST_LOGIT, _MOST_LOGIT)) - silo.positive
        return found * silo.weights

    def _made(self, store: Store) -> int:
        """Return how many releases a silo has made; one that was not in the first sum counts it all the same."""
        return max(charges(store), int(self._scales is not None))

    def left(self, number: int, releases: int) -> bool:
        return releases == 0 if number == 1 else releases < self.releases  # there is one release of counts

    def charge(self, store: Store) -> Mapping[str, bytes | None]:
        return charge(store, made=self._made(store))

    def charged(self, store: Store) -> int:
        return self._made(store)

    def epsilon(self, releases: int) -> float | None:
        return self._plan.spent(releases)

    # what the sums lead to

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        change = np.zeros_like(parameters)
        if self._scales is None:
            step = count_step(len(self._columns.columns), COUNTS_GRID)
            self._take({**self._found, "counts": sums.astype(np.float64) / step})
            return change
        if self._wants_products:
            self._take({**self._found, "products": self._read_products(sums)})
            return change
        opened = bool(self._found["rounds"][2])
        self._take({**self._found, **(self._went_on if opened else self._opened)(self._scales, sums)})
        values, offset = self._functions(self._scales)
        layer = self._learner.trees(parameters)
        first = 2 * len(layer.feature)
        change[first + self._leaves] = values - layer.value[self._leaves]
        change[-1] = offset - float(layer.offset[0])
        return change

    def _read_products(self, sums: Vector) -> Matrix:
        """Return the products of the trends as they were before rounding, flat; they are of records on average."""
        assert self._scales is not None
        count = len(self._trended) + 1
        at = np.triu_indices(count)
        found = np.zeros((count, count))
        often = np.where(at[0] == at[1], SQUARE, BESIDE) * (self._scales.unit * SHORT / ROW) ** 2
        found[at] = sums[: len(at[0])].astype(np.float64) / often
        return (found + np.triu(found, 1).T).ravel()

    def _opened(self, scales: Scales, sums: Vector) -> dict[str, Matrix]:
        """Return the offset that the first gradients lead to: the log odds of the second class.

        At an offset of 0 every residual is 1/2 less or more by the class alone, so their sum says how many records each
        class has, but for long rows, which count less. Codes are not moved by it: far from the right offset all of them
        are pulled the same way, those without records least, which would leave these apart from the others.
        """
        constant, line = scales.rows.constant, len(self._trended)
        unit = self._recipe.clip / RESIDUAL
        noise = math.sqrt(self._plan.silos * self._plan.share_variance) * unit / (constant * scales.records)
        share = 0.5 - float(sums[line]) * unit / (constant * scales.records)
        share = min(max(share, 2.0 * noise), 1.0 - 2.0 * noise) if 2.0 * noise < 0.5 else 0.5
        values = self._found["values"].copy()
        values[line] = math.log(share / (1.0 - share)) * scales.unit / constant
        return {"values": values, "rounds": np.array([0.0, 0.0, 1.0])}

    def _went_on(self, scales: Scales, sums: Vector) -> dict[str, Matrix]:
        """Return the sums over all rounds with this one, and the values that they lead to."""
        own = sums[: self._length].astype(np.float64) * (self._recipe.clip / RESIDUAL)
        entries = self._entries(scales)
        told = entries > 0
        gradient = np.where(told, own / np.where(told, entries, 1.0), 0.0)
        weight = float(self._found["rounds"][0]) + 1.0  # k: later rounds are nearer to where it ends
        total = self._found["rounds"][1] + weight
        values = self._found["values"]
        seen = self._found["seen"] + weight * values
        pulled = self._found["pulled"] + weight * gradient
        return {
            "seen": seen,
            "pulled": pulled,
            "rounds": np.array([weight, total, 1.0]),
            "values": self._moved_values(scales, values, seen / total, pulled / total, weight, total, entries),
        }

    def _entries(self, scales: Scales) -> Matrix:
        """Return what a coordinate's sum is divided by for the gradient of its value."""
        lines = np.full(len(self._trended) + 1, scales.unit)
        return np.concatenate([lines, scales.rows.own.astype(np.float64)])

    def _moved_values(
        self,
        scales: Scales,
        values: Matrix,
        seen: Matrix,
        pulled: Matrix,
        rounds: float,
        total: float,
        entries: Matrix,
    ) -> Matrix:
        """Return slopes, the constant's weight and the codes' values after this round."""
        recipe, lines = self._recipe, len(self._trended) + 1
        noise = math.sqrt(self._plan.silos * self._plan.share_variance) * recipe.clip / RESIDUAL
        often = rounds * (rounds + 1.0) * (2.0 * rounds + 1.0) / 6.0 / total**2  # sum of k^2 over (sum of k)^2
        spread = noise * noise * often
        found = values.copy()
        fitted = self._slopes(scales, seen[:lines], pulled[:lines], spread)
        found[:lines] += recipe.slope_pace * (fitted - values[:lines])
        share = recipe.curvature * scales.records * scales.share
        told = entries[lines:] > 0
        variance = spread / np.where(told, entries[lines:] * share, 1.0) ** 2 + 1.0 / share
        observed = seen[lines:] - pulled[lines:] / share
        numbers = [place for place in self._columns.numbers if not self._trended]
        parts = [self._columns.part(place) for place in range(len(self._columns.columns))]
        apart = [self._columns.columns[place].kind == "missing" for place in numbers]
        smooth = smoothed([observed[parts[n]] for n in numbers], [variance[parts[n]] for n in numbers], apart)
        fits = dict(zip(numbers, smooth, strict=True))
        for place, part in enumerate(parts):
            if place in self._trended:
                continue
            fit = fits[place] if place in fits else shrunk(observed[part], variance[part])
            fit = fit - float((scales.share[part] * fit).sum())  # the constant's
            at = slice(lines + part.start, lines + part.stop)
            found[at] = values[at] + recipe.pace * (fit - values[at])
        return found

    def _slopes(self, scales: Scales, seen: Matrix, pulled: Matrix, spread: float) -> Matrix:
        """Return where slopes and the constant's weight are pulled: ridge regression by the products of the trends."""
        recipe, ridge = self._recipe, self._recipe.slope_ridge
        entry = scales.rows.constant / scales.unit
        gram = np.array([[scales.records * entry * entry]])
        if self._trended:
            gram = self._steadied(scales)
            ridge *= 1.0 + spread / scales.unit**2 / (recipe.slope_curvature * scales.records)
        hessian = recipe.slope_curvature * gram
        target = (hessian * seen).sum(axis=1) - pulled
        return ridge_regression(hessian, target[:, None], ridge=ridge)[:, 0]

    def _steadied(self, scales: Scales) -> Matrix:
        """Return the noisy products, those beside the diagonal made smaller until a part of it outweighs them.

        Noise gives products directions in which there seems to be next to nothing, and steps along these would go far.
        A ridge against them would be a penalty on the slopes; this only makes steps more careful.
        """
        count = len(self._trended) + 1
        gram = self._found["products"].reshape(count, count)
        entry = scales.rows.constant / scales.unit
        least = scales.records * np.append(np.full(count - 1, _LEAST_SQUARE), entry * entry)
        diagonal = np.diag(np.maximum(np.diag(gram), least))
        beside, factor = gram - np.diag(np.diag(gram)), 1.0
        while factor > _LEAST_FACTOR:
            try:
                solve((1.0 - _OUTWEIGHED) * diagonal + factor * beside, diagonal)
                return diagonal + factor * beside
            except np.linalg.LinAlgError:
                factor *= 0.8
        return diagonal

    def _functions(self, scales: Scales) -> tuple[Matrix, float]:
        """Return the value of every code, and the offset."""
        lines, values = len(self._trended) + 1, self._found["values"]
        found = values[lines:].copy()
        for trend, place in enumerate(self._trended):
            part = self._columns.part(place)
            found[part] += values[trend] * scales.score[part]
        return found, float(values[lines - 1]) * scales.rows.constant / scales.unit


def trends(effects: str, plan: PrivacyPlan, columns: AdditiveColumns) -> bool:
    """Return whether numbers have trends and not steps: a function of public figures."""
    if effects != "auto":
        return effects == "trends"
    noise = math.sqrt(plan.shares * plan.share_variance) / plan.grid * math.sqrt(len(columns.columns))
    return noise / plan.expected_records > TREND_FROM


def releases_of(columns: AdditiveColumns, *, rounds: int, counts_share: float) -> dict[str, Any]:
    """Return what is released, for `PrivacyPlan.calibrate`.

    Args:
        rounds: of the job, the counts included; >= 2.
        counts_share: of mu^2 that the counts get.
    """
    marks, lines = len(columns.columns), len(columns.numbers) + 1
    step = count_step(marks, COUNTS_GRID)
    return {
        "clip_norm": 1.0,  # one residual at its clip, of a row of the expected length
        "grid": GRID,
        "length": max(lines + columns.codes, lines * (lines + 1) // 2),
        "rounds": rounds - 1,
        "mechanism": MECHANISM,
        "statistics": Portion(
            share=counts_share, length=columns.codes, clip_norm=COUNTS_GRID / step, grid=COUNTS_GRID, of=COUNTS
        ),
    }
