"""What one holder of all records reaches after each pass over them: the yardstick of rounds.

The same algorithm takes the same steps as the federation, with one party that has everything and no network.
"""

from __future__ import annotations

import numpy as np

from confide.crypto.random import SystemRandomness
from confide.ideal import Sums
from confide.train.course import Course
from confide.train.evaluate import accuracy
from confide.train.local import Silo
from confide.train.parts import encoding_of
from confide.train.run import Prepared
from confide.train.sections import Job
from confide.wire import MemoryStore


def passes_of(job: Job) -> int:
    """Return how often one round goes over a party's records."""
    return job.train.local_steps


def accuracy_after_passes(job: Job, data: Prepared) -> tuple[float, ...]:
    """Return the test accuracy of the pooled training after each of its rounds' worth of passes; () without classes.

    Args:
        job: without privacy; trees and survival have no passes.
        data: of all parties.
    """
    if data.test.y.ndim != 1 or job.trees is not None or job.privacy is not None:
        return ()
    pooled = Silo(
        "pooled", np.concatenate([one.x for one in data.silos]), np.concatenate([one.y for one in data.silos])
    )
    encoding = encoding_of(job, data.start, 1, preprocess=data.preprocess, class_weights=data.class_weights)
    course, rng, store, found = Course(encoding, job.train), SystemRandomness(), MemoryStore(), list[float]()
    while not course.ended:
        vector = encoding.contribution(course.parameters, pooled, course.number + 1, rng, store)
        course.advance(Sums(vector[None], (frozenset({pooled.name}),)))
        found.append(accuracy(encoding.learner.model(course.kept), data.test.x, data.test.y))
    return tuple(found)
