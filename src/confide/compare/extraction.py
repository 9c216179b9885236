"""How much of a served model do its answers give away? Copies made from answers alone, within a budget of rows.

A linear model is its answers at features + 1 points, exactly. Any other model is copied: a regression on the features
and on random ramps of them is fitted to the answers, and compared with fresh answers on rows that it was not fitted to.
Encryption hides the question and not what the right answer says; only a quota bounds it.

Paper: Tramèr et al., Stealing Machine Learning Models via Prediction APIs (USENIX Security 2016), section 4.1, for
linear models. The copy is a least-squares fit on random features (Rahimi and Recht, 2008): it needs nothing but numpy,
and a better attacker copies better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.compare.attack import extract_affine, logits
from confide.compare.membership import share
from confide.crypto.random import public_stream
from confide.errors import ServiceError, UsageError
from confide.model.graph import Linear
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.train.figures import Figure

Matrix = NDArray[np.float64]
Ask = Callable[[Matrix], Matrix]
Copy = Callable[[Matrix], Matrix]

#: Fewest rows that an extraction is worth: some to learn from, some to compare on.
FEWEST_ROWS = 10

_HELD_OUT, _MOST_HELD_OUT = 5, 200  # one of so many rows of the budget compares, at most so many
_FEWEST_COMPARED = 2
_FIRST = 16  # a client parts a longer first question, and a refusal of the rest loses what was answered
_AT_ONCE = 64  # rows of one question, so that a quota's edge is found closely
_EXACT = 1e-2  # of the spread of scores: beyond every backend's error, below every copy that is not the model
_CLOSE = 0.05  # an answer that is no class agrees within this share of the spread
_QUOTA = 429
_RAMPS = 192
_RIDGES = (1e-8, 1e-5, 1e-3, 1e-1, 1e1)


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy from so many answers.

    Args:
        queries: rows that it was made from.
        agreement: share of other rows on which it decides like the model, at 95 %.
    """

    queries: int
    agreement: Figure


@dataclass(frozen=True, slots=True)
class Stolen:
    """What an extraction found.

    Args:
        exact: True if the answers at features + 1 points gave the model itself.
        needed: features + 1.
        enough: whether so many answers at the points that a linear model is read from were given.
        copies: from fewer answers to more; one if exact, none if no answers were left to compare or to fit.
        rows: answered rows in all, those for comparison included.
        commonest: share of the commonest decision on the rows of comparison: what a copy that knows nothing gets.
        stopped: the server's words if it refused further rows; "".
    """

    exact: bool
    needed: int
    enough: bool
    copies: tuple[Copied, ...]
    rows: int
    commonest: float
    stopped: str


class Counted:
    """Asks a service and counts: never more than the budget, and no more once the server has refused.

    Args:
        ask: (batch, features) -> (batch, outputs).
        budget: rows, >= 1.
        each: called after every question with the rows answered so far.
        at_once: rows of one question; a client that parts a question loses what was answered before a refusal.
    """

    def __init__(
        self, ask: Ask, budget: int, each: Callable[[int], None] = lambda rows: None, *, at_once: int = _AT_ONCE
    ) -> None:
        self._ask, self._budget, self._each, self._at_once = ask, budget, each, max(1, min(at_once, _AT_ONCE))
        self.rows, self.stopped = 0, ""

    @property
    def left(self) -> int:
        """Return how many rows may still be asked."""
        return 0 if self.stopped else self._budget - self.rows

    def answers(self, x: Matrix) -> Matrix:
        """Return answers for as many of the first rows of `x` as there are any, shape (rows, outputs)."""
        parts, done, size = list[Matrix](), 0, self._at_once if self.rows else min(_FIRST, self._at_once)
        while done < len(x) and self.left:
            part = x[done : done + min(size, self.left)]
            try:
                parts.append(self._ask(part))
            except ServiceError as error:
                if error.status != _QUOTA:
                    raise
                size = len(part) // 2  # a quota refuses a question as a whole; what is left of it is found by halves
                self.stopped = "" if size else str(error)
                continue
            done += len(part)
            if not self.rows:
                size = self._at_once
            self.rows += len(part)
            self._each(self.rows)
        return np.concatenate(parts) if parts else np.zeros((0, 1))


def queries_for(preprocess: Preprocess | None, features: int, *, seed: int) -> Iterator[Matrix]:
    """Yield rows to ask, one at a time, float64, shape (features,): random values within the public bounds.

    Args:
        preprocess: the model's; None draws features, of mean 0 and deviation 1.
        features: how many.
        seed: of the public stream.
    """
    stream = public_stream(seed, "extraction queries")
    while True:
        if preprocess is None:
            yield from stream.normal(size=(_AT_ONCE, features))
        elif all(isinstance(rule, Scale | OneHot) for rule in preprocess.rules):
            columns: dict[str, NDArray[np.float64] | NDArray[np.object_]] = {}
            for rule in preprocess.rules:
                if isinstance(rule, Scale):
                    columns[rule.name] = stream.uniform(rule.low, rule.high, _AT_ONCE)
                elif isinstance(rule, OneHot):
                    places = stream.integers(len(rule.categories), size=_AT_ONCE)
                    columns[rule.name] = np.array(rule.categories, object)[places]
            yield from preprocess.apply(columns)
        else:
            yield from stream.uniform(-1, 1, (_AT_ONCE, features))


def steal(
    asked: Counted, features: int, link: str, rows: Iterator[Matrix], *, seed: int, deciding: bool = True
) -> Stolen:
    """Copy the model behind `asked` and compare the copies with it.

    Args:
        asked: the service, with its budget.
        features: columns of x.
        link: what an output is, `confide.model.links`.
        rows: what to ask beside the points that a linear model is read from.
        seed: of the copies' random ramps.
        deciding: False for a model whose outputs are no classes; answers then agree within a twentieth of their spread.

    Raises:
        UsageError: a budget of fewer than `FEWEST_ROWS` rows.
        ServiceError: the server refused for another reason than its quota.
    """
    budget = asked.left
    if budget < FEWEST_ROWS:
        raise UsageError(f"Expected a budget of {FEWEST_ROWS} rows or more, got {budget}; raise --budget")
    needed, held_out = features + 1, max(2, min(_MOST_HELD_OUT, budget // _HELD_OUT))
    if needed <= budget < needed + held_out:  # what is left over compares
        held_out = max(2, budget - needed)
    points = np.vstack([np.zeros(features), np.eye(features)])
    y = asked.answers(points) if budget >= needed else np.zeros((0, 1))
    held = _taken(rows, held_out)
    answered = asked.answers(held)
    held = held[: len(answered)]
    enough = len(y) == needed
    if len(held) < _FEWEST_COMPARED:
        return Stolen(False, needed, enough, (), asked.rows, 1.0, asked.stopped)
    compare = _Comparison(held, _scores(answered, link), deciding)
    if enough:
        found = extract_affine(lambda x: _scores(y, link), features)
        if compare.error(_affine(found)) < _EXACT:
            copy = Copied(needed, compare.agreement(_affine(found)))
            return Stolen(True, needed, enough, (copy,), asked.rows, compare.commonest, asked.stopped)
    more = _taken(rows, asked.left) if asked.left else np.zeros((0, features))
    x = np.vstack([points[: len(y)], more])
    y = np.vstack([part for part in (y, asked.answers(more)) if len(part)] or [answered[:0]])
    copies = _curve(x[: len(y)], _scores(y, link), compare, seed)
    return Stolen(False, needed, enough, tuple(copies), asked.rows, compare.commonest, asked.stopped)


def _taken(rows: Iterator[Matrix], count: int) -> Matrix:
    return np.stack([next(rows) for _ in range(count)])


def _scores(answers: Matrix, link: str) -> Matrix:
    """Return answers on the scale where a linear model is linear."""
    probable = link == "probability" or (link == "" and bool((answers >= 0).all() and (answers <= 1).all()))
    return logits(answers) if probable else answers


def _affine(layer: Linear) -> Copy:
    return lambda x: x @ layer.weight.T + layer.bias


def _curve(x: Matrix, scores: Matrix, compare: _Comparison, seed: int) -> Iterator[Copied]:
    """Yield copies from an eighth, a quarter, a half and all of the answers, in an order of chance."""
    order = public_stream(seed, "extraction order").permutation(len(x))
    for count in sorted({len(x) // parts for parts in (8, 4, 2, 1)}):
        if count >= 2:
            part = order[:count]
            yield Copied(count, compare.agreement(fitted(x[part], scores[part], seed=seed)))


class _Comparison:
    """Fresh answers that copies are held against."""

    def __init__(self, x: Matrix, scores: Matrix, deciding: bool) -> None:
        self._x, self._scores, self._deciding = x, scores, deciding
        self._spread = np.maximum(scores.std(axis=0), 1e-12)

    def error(self, copy: Copy) -> float:
        """Return the 95th percentile of a copy's error, over the spread: a few answers are cut at 0 and 1."""
        return float(np.percentile(np.abs(copy(self._x) - self._scores) / self._spread, 95))

    def agreement(self, copy: Copy) -> Figure:
        """Return the share of rows on which a copy decides alike."""
        found = copy(self._x)
        if self._deciding:
            same = _decided(found) == _decided(self._scores)
        else:
            same = (np.abs(found - self._scores) <= _CLOSE * self._spread).all(axis=1)
        return share(int(same.sum()), len(same))

    @property
    def commonest(self) -> float:
        """Return the share of the commonest decision."""
        if not self._deciding:
            return float((np.abs(self._scores - self._scores.mean(axis=0)) <= _CLOSE * self._spread).all(axis=1).mean())
        return float(np.bincount(_decided(self._scores)).max() / len(self._x))


def _decided(scores: Matrix) -> NDArray[np.int64]:
    found = scores[:, 0] > 0 if scores.shape[1] == 1 else scores.argmax(axis=1)
    return found.astype(np.int64)


def fitted(x: Matrix, scores: Matrix, *, seed: int) -> Copy:
    """Return a copy of scores (n, outputs) on x (n, features): least squares on features and random ramps of them.

    The ridge is the one that fits a fifth of the rows best when the others are fitted.
    """
    stream = public_stream(seed, "ramps of a copy")
    features = x.shape[1]
    deviation = np.maximum(x.std(axis=0), 1e-6)
    directions = stream.normal(size=(features, _RAMPS)) / np.sqrt(features) / deviation[:, None]
    offsets, centre = stream.normal(size=_RAMPS), x.mean(axis=0)

    def lifted(rows: Matrix) -> Matrix:
        ramps = np.maximum(0.0, (rows - centre) @ directions + offsets)
        return np.hstack([np.ones((len(rows), 1)), (rows - centre) / deviation, ramps])

    design = lifted(x)
    cut = max(1, len(x) // 5)

    parts, some = _ridges(design[cut:], scores[cut:]), design[:cut]
    ridge = min(_RIDGES, key=lambda ridge: float(((some @ parts(ridge) - scores[:cut]) ** 2).sum()))
    weights = _ridges(design, scores)(ridge)
    return lambda rows: lifted(rows) @ weights


def _ridges(rows: Matrix, values: Matrix) -> Callable[[float], Matrix]:
    """Return the weights of least squares by their ridge, > 0 for each row: one decomposition serves all of them."""
    wide = len(rows) < rows.shape[1]  # the smaller of the two systems that give the same weights
    eigenvalues, basis = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    turned = basis.T @ (values if wide else rows.T @ values)

    def weights(ridge: float) -> Matrix:
        found = basis @ (turned / (np.maximum(eigenvalues, 0.0) + ridge * len(rows))[:, None])
        return rows.T @ found if wide else found

    return weights
