"""Gradient boosting over silos: trees grown level by level from sums of histograms.

    round 1            records of each class, for the offset
    every other one    the histograms of one level of one tree

A silo sends, for each node of the level, the sums of the first and second derivatives of the loss over its records
there, by column and code. The sum over all silos decides the splits, so the trees are those of the pooled records: sums
of integers do not depend on how they are grouped. Of two sisters only the lighter one's histogram is sent; the other's
is their parent's minus it.

A tree's parameters are set once, by addition to zeros: parameters are always those of a model, and a silo that knows a
part of a tree knows it for good. Who is in a level's sum must have been in those above it, or the tree ends there.

**Leaks** to everybody who follows the course: the histograms over all silos, so how many records of which class lie in
every interval of every column, in every node. Under a secure sum nothing else. They are exact: without [privacy] a rare
value can be that of one record.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import DataError, UsageError
from confide.ideal import Sums
from confide.model.graph import Graph
from confide.model.preprocess import Preprocess
from confide.model.trees import Trees
from confide.train.course import Course
from confide.train.encodings import Encoding
from confide.train.learner import Learner
from confide.train.local import Silo, flatten, unflatten
from confide.train.sections import TrainSection, TreesSection
from confide.train.tree_columns import candidates_of, columns_of, starts_of
from confide.train.tree_records import STEPS, TreeRecords
from confide.train.tree_splits import Chosen, Penalty, best
from confide.wire import MemoryStore, Store

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: A silo may hold this many times the expected number of records.
_LARGEST_WEIGHT = 16

#: Of the share of a class that is not there at all.
_LARGEST_LOGIT = 12.0


class TreesLearner(Learner[Graph]):
    """Trees as one vector of parameters. They have no gradient: what moves them are sums of histograms.

    Args:
        start: perfect trees of zeros, then a sigmoid.
    """

    def __init__(self, start: Graph) -> None:
        self._graph, self.start = start, flatten(start)
        self._last = self.start, cast("Trees", start.layers[0])

    def travel(self, silo: Silo) -> float:
        return math.inf

    def model(self, parameters: Matrix) -> Graph:
        return unflatten(self._graph, parameters)

    def trees(self, parameters: Matrix) -> Trees:
        """Return the layer of trees with these parameters, which are never changed in place: silos ask one by one."""
        known, trees = self._last
        if known is not parameters:
            trees = cast("Trees", self.model(parameters).layers[0])
            self._last = parameters, trees
        return trees

    def change(
        self,
        parameters: Matrix,
        silo: Silo,
        store: Store,
        *,
        number: int,
        shift: Matrix | float = 0.0,
        begin: Matrix | None = None,
    ) -> Matrix:
        raise UsageError("Expected a model that steps move; trees grow by sums")


class Boosting(Encoding):
    """Trees, level by level.

    Args:
        start: perfect trees of zeros, then a sigmoid.
        train: learning_rate, expected_records, attempts.
        asked: [trees].
        preprocess: whose features x are.
        class_weights: of each class's records in the loss; empty weighs all alike.
    """

    def __init__(
        self,
        start: Graph,
        train: TrainSection,
        asked: TreesSection,
        preprocess: Preprocess,
        *,
        class_weights: tuple[float, ...] = (),
    ) -> None:
        self.learner = self._learner = TreesLearner(start)
        self._train, self._asked, self._weights = train, asked, class_weights
        self._columns = columns_of(preprocess, asked.monotone)
        self._starts, self._candidates = starts_of(self._columns), candidates_of(self._columns)
        self._penalty = Penalty(ridge=asked.ridge, least_hessian=asked.least_hessian, least_gain=asked.least_gain)
        self._most_records = _LARGEST_WEIGHT * train.expected_records
        self.bound = self._most_records * STEPS
        self.releases = train.rounds * train.attempts
        self._records: dict[Silo, TreeRecords] = {}  # of silos of this process, wherever they are
        first = self._learner.trees(self._learner.start)
        self._outputs, self._trees = len(first.offset), len(first.roots)
        self._depth = asked.depth
        self._place = np.array([-1.0, 0.0, 0.0])  # tree, level, whether that was all
        self._score = np.array([math.inf, 0.0])  # the best score, and of how many trees
        self._gain = np.zeros(len(self._columns))
        self._from, self._sides = (
            np.zeros(8),
            np.zeros((0, 2)),
        )  # whose the parents' sums are, and leaves in their place
        self._enter(np.zeros(0), np.zeros((0, int(self._starts[-1]), 2)), np.zeros((1, 2)))

    @property
    def ended(self) -> bool:
        return bool(self._place[2])

    @property
    def longest(self) -> int:
        return int(self._starts[-1]) * 2 * max(1, 2 ** (self._depth - 2)) + 2

    def _enter(self, wanted: Matrix, parents: Matrix, bounds: Matrix) -> None:
        """Take what the next sum is about.

        Args:
            wanted: slots of the level whose histograms are sent, rising.
            parents: the sums of their parents, shape (wanted, codes, 2); none at the top.
            bounds: of the leaves below each slot of the level, shape (2^level, 2).
        """
        self._wanted, self._parents, self._bounds = wanted, parents, bounds
        if self._place[0] < 0:
            self.length = 1 + self._outputs
        else:
            self.length = len(wanted) * int(self._starts[-1]) * 2 + 2 * self._scored

    @property
    def _scored(self) -> bool:
        """Return whether the next sum brings a score along: before each new round of trees, if it may be the last."""
        return bool(self._asked.patience and self._place[1] == 0 and self._place[0] % self._outputs == 0)

    @property
    def moved(self) -> Mapping[str, Matrix]:
        return {
            "place": self._place,
            "score": self._score,
            "gain": self._gain,
            "wanted": self._wanted,
            "parents": self._parents.ravel(),
            "bounds": self._bounds.ravel(),
            "from": self._from,
            "sides": self._sides.ravel(),
        }

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        self._place, self._score, self._gain = moved["place"], moved["score"], moved["gain"]
        self._from, self._sides = moved["from"], moved["sides"].reshape(-1, 2)
        parents = moved["parents"].reshape(-1, int(self._starts[-1]), 2)
        self._enter(moved["wanted"], parents, moved["bounds"].reshape(-1, 2))

    def broadcast(self, parameters: Matrix) -> Matrix:
        return np.concatenate([parameters, self._place, self._wanted])

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        if not 0 < len(silo.x) <= self._most_records:
            raise DataError(
                f"Expected between 1 and {_LARGEST_WEIGHT} * train.expected_records={self._train.expected_records} "
                f"records at {silo.name}; set train.expected_records to the public order of magnitude"
            )
        records = self._records_of(silo)
        if self._place[0] < 0:
            return records.prior()
        trees, (tree, level) = self._learner.trees(parameters), self._place[:2].astype(int).tolist()
        wanted = np.full(1 << level, -1, np.int32)
        wanted[self._wanted.astype(np.int64)] = np.arange(len(self._wanted))
        found = records.histograms(trees, parameters, tree, level, wanted)
        return np.concatenate([found, records.score(trees, parameters, tree)]) if self._scored else found

    def _records_of(self, silo: Silo) -> TreeRecords:
        if silo not in self._records:
            self._records[silo] = TreeRecords(
                self._columns,
                silo.x,
                silo.y,
                outputs=self._outputs,
                weights=self._weights,
                held_out=self._asked.held_out if self._asked.patience else 0.0,
            )
        return self._records[silo]

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        if self._place[0] < 0:
            return self._begun(parameters, sums)
        values = sums / STEPS
        if self._scored:
            values, told = values[:-2], values[-2:]
            stopped = self._stopped(parameters, float(told[0]) / max(float(told[1]), 1e-9))
            if stopped is not None:
                return stopped
        if self._place[1] > 0 and (self._from != _digest(members)).any():
            return self._closed(parameters)
        self._from = _digest(members)
        return self._grown(parameters, values.reshape(-1, int(self._starts[-1]), 2))

    def _begun(self, parameters: Matrix, sums: Vector) -> Matrix:
        """Return the offset: the log odds of each output's class."""
        counts = sums.astype(np.float64) / STEPS
        with np.errstate(all="ignore"):  # a class that is not there, or counts that no honest silos have
            logits = np.nan_to_num(np.log(counts[1:]) - np.log(counts[0] - counts[1:]))
        self._place = np.zeros(3)
        self._enter(np.zeros(1), self._parents, np.array([[-math.inf, math.inf]]))
        change = np.zeros_like(parameters)
        change[-self._outputs :] = np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)
        return change

    def _stopped(self, parameters: Matrix, score: float) -> Matrix | None:
        """Return what takes the trees back that made the score no better, once there were enough of them."""
        trees = int(self._place[0])
        if score < self._score[0]:
            self._score = np.array([score, trees])
        if trees - self._score[1] < self._asked.patience * self._outputs:
            return None
        self._place = np.array([*self._place[:2], 1.0])
        layer = self._learner.trees(parameters)
        kept = np.arange(self._trees) < self._score[1]
        feature, threshold = (
            part.reshape(self._trees, -1) * kept[:, None] for part in (layer.feature, layer.threshold)
        )
        value = layer.value.reshape(self._trees, -1) * kept[:, None]
        left = replace(layer, feature=feature.ravel(), threshold=threshold.ravel(), value=value.ravel())
        return flatten(Graph((left,))) - parameters

    def _grown(self, parameters: Matrix, sent: Matrix) -> Matrix:
        """Return the change that the histograms of one level make, and go on to the next."""
        tree, level = self._place[:2].astype(int).tolist()
        slots = np.zeros(1, np.int64)
        if level:
            light = self._wanted.astype(np.int64)
            slots, both = np.concatenate([light, light ^ 1]), np.empty((2, *sent.shape))
            both[0] = sent
            np.subtract(self._parents, sent, out=both[1])
            sent = both.reshape(-1, *sent.shape[1:])
        bounds = self._bounds[slots]
        chosen = best(self._candidates, sent, self._columns[0].levels, bounds, self._penalty)
        change = self._changed(parameters, tree, level, slots, chosen)
        self._next(tree, level, slots, sent, chosen)
        return change

    def _closed(self, parameters: Matrix) -> Matrix:
        """Return a tree's end at the level before, whose sums were others': sisters' sums do not follow from these."""
        tree, level = self._place[:2].astype(int).tolist()
        change = np.zeros_like(parameters)
        values, width = self._leaves(change, tree), 1 << (self._depth - level)
        for slot, sides in zip((self._wanted.astype(int) >> 1).tolist(), self._sides, strict=True):
            for side in (0, 1):
                first = (2 * slot + side) * width
                values[first : first + width] = self._train.learning_rate * sides[side]
        self._next_tree(tree)
        return change

    def _leaves(self, change: Matrix, tree: int) -> Matrix:
        """Return the place of a tree's leaves among the parameters."""
        first = 2 * self._trees * ((1 << self._depth) - 1)
        return change[first + (tree << self._depth) : first + ((tree + 1) << self._depth)]

    def _changed(self, parameters: Matrix, tree: int, level: int, slots: Vector, chosen: Chosen) -> Matrix:
        """Return the splits of a level and the values of its leaves, at their places among the parameters."""
        change, depth = np.zeros_like(parameters), self._depth
        nodes = self._trees * (2**depth - 1)
        splits, rate, last = chosen.split >= 0, self._train.learning_rate, level == depth - 1
        first = tree * (2**depth - 1) + 2**level - 1
        at, split = first + slots[splits], chosen.split[splits]
        change[at] = self._candidates.feature[split]
        change[nodes + at] = self._candidates.threshold[split]
        values = self._leaves(change, tree)
        for slot, whole, sides, inner in zip(slots, chosen.value, chosen.sides, splits, strict=True):
            if not inner:
                values[slot << (depth - level) : (slot + 1) << (depth - level)] = rate * whole
            elif last:
                values[2 * slot : 2 * slot + 2] = rate * sides
        return change

    def _next(self, tree: int, level: int, slots: Vector, sums: Matrix, chosen: Chosen) -> None:
        """Go on to the next level, or to the next tree."""
        inner = np.flatnonzero(chosen.split >= 0)
        gain = self._gain.copy()
        np.add.at(gain, self._candidates.column[chosen.split[inner]], chosen.gain[inner])
        self._gain = gain
        if not len(inner) or level == self._depth - 1:
            self._next_tree(tree)
            return
        bounds = np.zeros((2 << level, 2))
        bounds[2 * slots[inner]], bounds[2 * slots[inner] + 1] = chosen.bounds[inner, 0], chosen.bounds[inner, 1]
        light = 2 * slots[inner] + (chosen.weights[inner, 0] > chosen.weights[inner, 1])
        order = np.argsort(light)
        self._place = np.array([tree, level + 1.0, 0.0])
        self._sides = chosen.sides[inner[order]]
        self._enter(light[order].astype(np.float64), sums[inner[order]], bounds)

    def _next_tree(self, tree: int) -> None:
        self._place, self._sides = np.array([tree + 1.0, 0.0, float(tree + 1 == self._trees)]), self._sides[:0]
        self._enter(np.zeros(1), self._parents[:0], np.array([[-math.inf, math.inf]]))

    @property
    def importance(self) -> Mapping[str, float]:
        total = float(self._gain.sum()) or 1.0
        return {column.name: gain / total for column, gain in zip(self._columns, self._gain.tolist(), strict=True)}


def _digest(members: frozenset[str]) -> Matrix:
    """Return who is in a sum, as numbers that a state can hold."""
    told = hashlib.sha256("\0".join(sorted(members)).encode()).digest()
    return np.frombuffer(told, "<u4").astype(np.float64)


def boosted_alone(
    train: TrainSection,
    asked: TreesSection,
    preprocess: Preprocess,
    start: Graph,
    x: Matrix,
    y: Vector,
    *,
    class_weights: tuple[float, ...] = (),
) -> Graph:
    """Return the trees of these records alone."""
    train = msgspec.structs.replace(train, expected_records=max(1, len(x)))
    encoding = Boosting(start, train, asked, preprocess, class_weights=class_weights)
    course, silo, rng = Course(encoding, train), Silo("alone", x, y), SystemRandomness()
    while not course.ended:
        vector = encoding.contribution(course.parameters, silo, course.number + 1, rng, MemoryStore())
        course.advance(Sums(vector[None], (frozenset({silo.name}),)))
    return encoding.learner.model(course.kept)
