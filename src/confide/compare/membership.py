"""Who was among the training records? The likelihood-ratio attack on models of the job, from their answers alone.

Each model is attacked once, with all others as its shadows: for each record the others say how sure a model is that has
seen it, and one that has not; the ratio of the two likelihoods is the record's score. A coin decided for each model and
record, so guessing hits as often as it raises false alarms.

Paper: Carlini et al., Membership Inference Attacks From First Principles (arXiv 2112.03570), Algorithm 1, with one
width of each law for all records, as its section VI advises for few shadows: that of each record would be noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.compare.shadows import Shadow
from confide.dp.audit import LowerBound, Scores, one_run_bound
from confide.errors import UsageError
from confide.guarantee import FALSE_POSITIVE_RATE, worst_true_positive_rate
from confide.model.graph import Graph
from confide.train.figures import Figure
from confide.train.joining import clopper_pearson
from confide.train.local import targets

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
Coins = NDArray[np.bool_]

#: Fewest models: each needs others that have and others that have not seen a record.
FEWEST_MODELS = 4

_TAIL = 0.025  # each side of an interval at 95 %
_SURE = 1.96
_WIDTH = 1e-9  # below every difference of two confidences that is no rounding
_GUESSED = 10  # one guess "in" and one "out" for every so many records


@dataclass(frozen=True, slots=True, eq=False)
class Membership:
    """What the attack found.

    Args:
        scores: of each model and record, and whether the model has seen it.
        area: chance that a seen record scores above one that was not seen; 0.5 is guessing.
        hits: share of seen records above the threshold that at most 1 % of the others reach.
        alarms: share of the others above it, as measured; on few records it may truly be larger.
        advantage: share of seen records scored above 0, where the two likelihoods are equal, less that of the others.
        bound: lower bound on epsilon from the first model alone.
        records, models: attacked records, and models attacked.
    """

    scores: Scores
    area: Figure
    hits: Figure
    alarms: Figure
    advantage: Figure
    bound: LowerBound
    records: int
    models: int

    def refutes(self, mu: float) -> bool:
        """Return whether these hits are beyond what mu allows any attack, at the most false alarms that there may be.

        Both intervals are two-sided at 95 %, so a true claim is refuted at most once in twenty audits.
        """
        return self.hits.low > worst_true_positive_rate(mu, self.alarms.high)


def confidences(graph: Graph, x: Matrix, y: Labels) -> Matrix:
    """Return log(p / (1 - p)) of each record, shape (n,), with -log p its loss: near normal over models.

    Args:
        graph: outputs are probabilities of classes, one against the rest.
    """
    found = graph.apply(x)
    likelihood = np.clip(np.where(targets(y, graph.outputs) == 1, found, 1 - found), 1e-300, 1)
    loss = np.maximum(-np.log(likelihood).sum(axis=1), 1e-12)
    return -loss - np.log(-np.expm1(-loss))


def likelihood_ratios(seen: Coins, known: Matrix, target: Matrix) -> Matrix:
    """Return the score of each record against one model.

    Args:
        seen: bool, shape (shadows, n): which shadow has seen which record.
        known: confidence of each shadow in each record, shape (shadows, n).
        target: the attacked model's, shape (n,).

    Returns:
        shape (n,); 0 for a record that all shadows have seen, or none.
    """

    def mean(where: Coins) -> Matrix:
        return (known * where).sum(axis=0) / np.maximum(1, where.sum(axis=0))

    def distance(centre: Matrix, where: Coins) -> Matrix:
        """Return minus the logarithm of the target's density, but for a constant."""
        width = math.sqrt(float(((known - centre) ** 2 * where).sum()) / max(1, int(where.sum()))) + _WIDTH
        return ((target - centre) / width) ** 2 / 2 + math.log(width)

    ratio = distance(mean(~seen), ~seen) - distance(mean(seen), seen)
    return np.where(seen.any(axis=0) & ~seen.all(axis=0), ratio, 0.0)


def membership(shadows: Sequence[Shadow], x: Matrix, y: Labels, *, delta: float) -> Membership:
    """Attack each model with the others as its shadows.

    Args:
        shadows: at least `FEWEST_MODELS` models of one job.
        x, y: the records that coins decided about, in their order.
        delta: at which a lower bound on epsilon is meant, 0 <= delta < 1.

    Raises:
        UsageError: too few models, or too few records for fair coins.
    """
    if len(shadows) < FEWEST_MODELS:
        raise UsageError(f"Expected {FEWEST_MODELS} models or more, got {len(shadows)}; raise --shadows")
    seen = np.array([shadow.seen for shadow in shadows])
    known = np.array([confidences(shadow.graph, x, y) for shadow in shadows])
    values = np.empty_like(known)
    for number in range(len(shadows)):
        others = np.arange(len(shadows)) != number
        values[number] = likelihood_ratios(seen[others], known[others], known[number])
    scores, first = Scores(values.ravel(), seen.ravel()), Scores(values[0], seen[0])
    guesses = 2 * max(1, len(y) // _GUESSED)
    hits, alarms = rates(scores)
    return Membership(
        scores=scores,
        area=area(scores),
        hits=hits,
        alarms=alarms,
        advantage=advantage(scores, 0.0),
        bound=one_run_bound(first, guesses=guesses, delta=delta),
        records=len(y),
        models=len(shadows),
    )


def rates(scores: Scores, false_positive_rate: float = FALSE_POSITIVE_RATE) -> tuple[Figure, Figure]:
    """Return the rates of true and of false positives at the threshold that `false_positive_rate` allows, at 95 %.

    Intervals are Clopper and Pearson's, which take every pair of a model and a record for an independent trial.
    """
    outside = np.sort(scores.outside)[::-1]
    threshold = outside[math.floor(false_positive_rate * len(outside))]  # so many of them lie above, at most
    counted = (int((part > threshold).sum()) for part in (scores.inside, outside))
    sizes = len(scores.inside), len(outside)
    true, false = (share(hits, size) for hits, size in zip(counted, sizes, strict=True))
    return true, false


def advantage(scores: Scores, threshold: float) -> Figure:
    """Return the share of members above a threshold less that of the others, with an interval at 95 % at least.

    The interval goes from the lowest of the one less the highest of the other to the reverse: it is wide, never narrow.

    Args:
        threshold: chosen without these scores.
    """
    inside, outside = (share(int((part > threshold).sum()), len(part)) for part in (scores.inside, scores.outside))
    return Figure(inside.value - outside.value, inside.low - outside.high, inside.high - outside.low)


def share(hits: int, trials: int) -> Figure:
    """Return hits out of trials with Clopper and Pearson's interval at 95 %."""
    low, high = clopper_pearson(hits, trials, _TAIL)
    return Figure(hits / trials, low, high)


def area(scores: Scores) -> Figure:
    """Return the area under the curve at 95 %; its deviation is Hanley and McNeil's bound, where the larger side rules.

    Source: Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic curve (1982).
    """
    inside, outside = scores.inside, np.sort(scores.outside)
    below = np.searchsorted(outside, inside, side="left").sum()
    up_to = np.searchsorted(outside, inside, side="right").sum()
    found = float((below + up_to) / (2 * len(inside) * len(outside)))
    error = _SURE * math.sqrt(found * (1 - found) / min(len(inside), len(outside)))
    return Figure(found, max(0.0, found - error), min(1.0, found + error))
