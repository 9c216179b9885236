"""A training on shares in one process: owners, two servers and a dealer, each behind its own messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import Aborted, UsageError
from confide.mpc.operations import SCALE
from confide.mpc.training_plan import Task
from confide.train.shares.course import DEALER, SERVERS, Course, Run
from confide.train.shares.parties import Noise, Trained, dealer, owner, server
from confide.wire import Fault, Transcript, run

Matrix = NDArray[np.float64]
Words = NDArray[np.uint64]

#: What an entry of a row may be: products of 2^24 rows then stay within the ring.
LARGEST_ENTRY = 1 << 10


@dataclass(frozen=True, slots=True)
class Weights:
    """What was trained, opened.

    Args:
        weights: float64 of each layer, shape (columns in, columns out).
        biases: float64 of each layer, shape (columns out,).
    """

    weights: tuple[Matrix, ...] = field(repr=False)
    biases: tuple[Matrix, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Result:
    """What a training left.

    Args:
        opened: the weights, or None if they stay shares.
        shares: of server 0 and of server 1.
        transcript: sizes, rounds and seconds; without bodies.
        offline_bytes: that the dealer sent to each server.
    """

    opened: Weights | None
    shares: tuple[Trained, Trained]
    transcript: Transcript = field(repr=False)
    offline_bytes: Mapping[str, int]


def words_of(values: Matrix, scale: int = SCALE) -> Words:
    """Return real numbers as words at a scale.

    Raises:
        UsageError: a number is not finite, or above 1024 in size.
    """
    if not (np.isfinite(values).all() and np.abs(values).max(initial=0.0) <= LARGEST_ENTRY):
        raise UsageError(f"Expected finite numbers of at most {LARGEST_ENTRY} in size; scale the columns first")
    return np.rint(np.asarray(values, np.float64) * 2.0**scale).astype(np.int64).view(np.uint64)


def numbers_of(words: Words, scale: int) -> Matrix:
    """Return the real numbers of words at a scale."""
    return np.ascontiguousarray(words).view(np.int64).astype(np.float64) / 2.0**scale


def beginning_of(task: Task, weights: Sequence[Matrix] | None = None) -> list[dict[str, Words]]:
    """Return the starting words of each layer.

    Args:
        weights: float64, shape (columns in, columns out); zeros if None. Biases begin at zero.
    """
    shapes = [*pairwise(task.widths)]
    chosen = [np.zeros(shape) for shape in shapes] if weights is None else list(weights)
    if [weight.shape for weight in chosen] != shapes:
        raise UsageError(f"Expected starting weights of shapes {shapes}")
    return [{"sum": words_of(weight, task.rates.sum_scale), "w": words_of(weight)} for weight in chosen]


def simulate(
    course: Course,
    rows: Mapping[str, tuple[Matrix, Matrix | None]],
    rng: Randomness,
    *,
    start: Sequence[Matrix] | None = None,
    noise: Callable[[Randomness], Noise] | None = None,
    fault: Fault | None = None,
    done: Callable[[Run], None] | None = None,
) -> Result:
    """Train as `course` says.

    Args:
        rows: of each owner: its columns of its rows, and its targets, float64 of shape (rows, outputs), or None.
        rng: secret randomness; every party draws from a branch of its own.
        start: starting weights; zeros if None.
        noise: makes a server's source of noise from its randomness.
        fault: what the simulated network does to messages.
        done: is called after every run, at server 0.

    Raises:
        ProtocolError: a party broke off.
        UsageError: numbers out of range.
    """
    words = {
        name: (words_of(x), None if y is None else words_of(y.reshape(len(y), course.task.outputs)))
        for name, (x, y) in rows.items()
    }
    begun = beginning_of(course.task, start)
    parties = {name: owner(name, course, *words[name], rng.branch()) for name in course.pieces}
    for party, name in enumerate(SERVERS):
        mine = rng.branch()
        source = None if noise is None else noise(rng.branch())
        parties[name] = server(party, course, begun, mine, noise=source, done=done if party == 0 else None)
    parties[DEALER] = dealer(course, rng.branch())
    found = run(parties, fault=fault, keep_bodies=False)
    # who broke off says why; the others merely waited in vain
    causes = sorted(found.failures.values(), key=lambda error: isinstance(error, Aborted))
    if causes:
        raise causes[0]
    shares = tuple(found.output(name) for name in SERVERS)
    dealt = found.output(DEALER)
    told = [found.output(name) for name in course.pieces]
    opened = None if not course.opened else opened_by(course.task, told[0])
    return Result(opened, (shares[0], shares[1]), found, dealt)


def opened_by(task: Task, words: Mapping[str, Words]) -> Weights:
    """Return the weights in an owner's output."""
    layers = range(1, len(task.widths))
    weights = [numbers_of(words[f"sum{layer}"], task.rates.sum_scale) for layer in layers]
    biases = [numbers_of(words[f"b{layer}"], 2 * SCALE) for layer in layers] if task.biases else []
    return _parted(task, weights, biases)


def _parted(task: Task, weights: Sequence[Matrix], biases: Sequence[Matrix]) -> Weights:
    """Return weights and biases apart, where the last column of the rows is 1 in the place of biases too."""
    if task.biases:
        return Weights(tuple(weights), tuple(biases))
    return Weights((weights[0][:-1],), (weights[0][-1],))


def joined(task: Task, shares: Sequence[Trained]) -> Weights:
    """Return the weights of both servers' shares put together, at the precision of serving: for tests and openings."""
    total = {name: np.add(*(one.parts[name] for one in shares)) for name in shares[0].parts}
    layers = range(1, len(task.widths))
    weights = [numbers_of(total[f"w{layer}"], SCALE) for layer in layers]
    return _parted(task, weights, [numbers_of(total[f"b{layer}"], 2 * SCALE) for layer in layers])


def steps_of(course: Course) -> int:
    """Return how many steps a training takes."""
    return course.passes * math.ceil(course.rows / course.batch)
