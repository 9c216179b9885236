"""Who was in the training, from the answers of one finished model alone, without shadows?

The attacker holds rows that were in the training and rows of the same kind that were not, as whoever audits its own
model does. A row's score is how sure the model is of its class, and a threshold tells members from others; it is chosen
on one half of the rows and judged on the other, so that chance alone does not look like a leak.

Paper: Yeom, Giacomelli, Fredrikson and Jha, Privacy Risk in Machine Learning (arXiv 1709.01604), section 3.2: the
threshold on the loss, and the advantage. Without the class the score is the largest confidence (Salem et al., ML-Leaks,
arXiv 1806.01246, adversary 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.compare.attack import logits
from confide.compare.extraction import Counted
from confide.compare.membership import advantage, area, rates
from confide.crypto.random import public_stream
from confide.dp.audit import Scores
from confide.errors import UsageError
from confide.train.figures import Figure

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

#: Fewest rows of each kind: half of them choose a threshold, half judge it.
FEWEST_ROWS = 20

_MOST_SURE = 1e-12  # a probability further from 1/2 than this from its end says no more


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one kind.

    Args:
        x: features, float64, shape (n, features).
        y: classes, int64, shape (n,); None where they are not known.
    """

    x: Matrix
    y: Labels | None


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What the attack found.

    Args:
        area: chance that a member scores above another; 0.5 is guessing.
        hits, alarms: shares above the threshold that at most 1 % of the others reach.
        advantage: share of members above a threshold that other rows chose, less that of the others.
        members, others: rows that were answered.
        stopped: the server's words if it refused further rows; "".
    """

    area: Figure
    hits: Figure
    alarms: Figure
    advantage: Figure
    members: int
    others: int
    stopped: str = ""

    @property
    def leaks(self) -> bool:
        """Return whether more was found than chance gives: once in twenty audits of what leaks nothing, at most."""
        return self.hits.low > self.alarms.high or self.advantage.low > 0


def confidences(answers: Matrix, y: Labels | None, link: str) -> Matrix:
    """Return how sure answers are of a class, shape (n,): the logit of its share.

    Args:
        answers: of the model, shape (n, outputs).
        y: the classes; None takes the one that the model prefers.
        link: what an output is, `confide.model.links`.
    """
    bare = link == "probability" or (link == "" and bool((answers >= 0).all() and (answers <= 1).all()))
    scores = logits(np.clip(answers, _MOST_SURE, 1 - _MOST_SURE)) if bare else answers
    if answers.shape[1] == 1:
        sure = scores[:, 0]
        return np.abs(sure) if y is None else np.where(y == 1, sure, -sure)
    ordered = np.sort(scores, axis=1)
    if y is None:
        return ordered[:, -1] - ordered[:, -2]
    own = scores[np.arange(len(y)), y]
    rest = np.where(own == ordered[:, -1], ordered[:, -2], ordered[:, -1])
    return own - rest


def told_apart(asked: Counted, members: Rows, others: Rows, *, link: str, seed: int = 1) -> Answered:
    """Ask for members and others in turns, so that a quota leaves as many of both, and attack the answers.

    Args:
        asked: the model, with its budget.
        members, others: rows that were in its training, and that were not.
        link: what an output is.
        seed: of which rows choose the threshold.

    Raises:
        UsageError: too few rows, or too few were answered.
        ServiceError: the server refused for another reason than its quota.
    """
    count = min(len(members.x), len(others.x), asked.left // 2)
    if count < FEWEST_ROWS:
        raise UsageError(
            f"Expected {FEWEST_ROWS} rows or more of members and of others within the budget, got {len(members.x)} and "
            f"{len(others.x)} within {asked.left} rows; give more, or raise --budget"
        )
    stream = public_stream(seed, "membership from answers")
    picked = [stream.permutation(len(rows.x))[:count] for rows in (members, others)]
    mixed = np.empty((2 * count, members.x.shape[1]))
    mixed[0::2], mixed[1::2] = members.x[picked[0]], others.x[picked[1]]
    answers = np.asarray(asked.answers(mixed), np.float64)
    if len(answers) < 2 * FEWEST_ROWS:
        raise UsageError(
            f"Expected {2 * FEWEST_ROWS} answers, got {len(answers)} before the server stopped: {asked.stopped}"
        )
    found: list[Matrix] = []
    for start, rows, places in zip((0, 1), (members, others), picked, strict=True):
        own = answers[start::2]
        y = None if rows.y is None else rows.y[places][: len(own)]
        found.append(confidences(own, y, link))
    inside, outside = found
    scores = _scores(inside, outside)
    hits, alarms = rates(scores)
    learnt = _scores(inside[0::2], outside[0::2])
    judged = _scores(inside[1::2], outside[1::2])
    return Answered(
        area=area(scores),
        hits=hits,
        alarms=alarms,
        advantage=advantage(judged, _threshold(learnt)),
        members=len(inside),
        others=len(outside),
        stopped=asked.stopped,
    )


def _scores(inside: Matrix, outside: Matrix) -> Scores:
    return Scores(np.concatenate([inside, outside]), np.arange(len(inside) + len(outside)) < len(inside))


def _threshold(scores: Scores) -> float:
    """Return the threshold with the largest difference of shares on these scores."""
    values = np.unique(np.concatenate([scores.inside, scores.outside]))
    places = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values  # in between: others fall on either side
    gains = [float((scores.inside > one).mean() - (scores.outside > one).mean()) for one in places]
    return float(places[int(np.argmax(gains))])
