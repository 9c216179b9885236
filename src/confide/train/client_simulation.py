"""Client-level training of thousands of simulated clients in seconds: the same integers, without the messages.

Sums are those of `federate` over the same clients under any aggregator, but for the noise of a sum, which is drawn at
once: a sum of n shares N_Z(0, v) and N_Z(0, n v) are the same law up to a factor of 1 + 1e-36 (lemma 3 of
docs/protocols/dp-gradient.md). All clients' updates are seen here in the clear, so what comes out makes no claim about
anybody; it says what a federation would learn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.noise import discrete_gaussian
from confide.crypto.random import Randomness
from confide.dp.client_plan import ClientPlan, Participation
from confide.ideal import Sums
from confide.train.client_level import ClientUpdates
from confide.train.course import Course
from confide.train.learner import Learner
from confide.train.local import Silo
from confide.train.sections import TrainSection
from confide.wire import MemoryStore

Matrix = NDArray[np.float64]


def simulated(
    silos: Sequence[Silo],
    learner: Learner[Any],
    plan: ClientPlan,
    train: TrainSection,
    *,
    rng: Randomness,
    present: Callable[[int], Collection[int]] | None = None,
) -> Iterator[Matrix]:
    """Yield the parameters to keep after each round of `plan` over `silos`.

    Args:
        silos: the clients in their public order.
        learner: keeps nothing at a client between rounds.
        train: the server's optimiser and averaging; rounds are those of the plan.
        rng: of the noise.
        present: which places are in the sum of a round; None stands for all in every round.
    """
    encoding = ClientUpdates(learner, plan, [silo.name for silo in silos])
    course, own = Course(encoding, train), dict[int, Participation]()
    for number in range(1, plan.rounds + 1):
        places = range(len(silos)) if present is None else sorted(present(number))
        total = discrete_gaussian(len(places) * plan.share_variance, plan.length, rng)
        for place in places:
            lag = plan.bands.lag(place, number)
            if lag == 0:
                update = encoding.update_of(course.parameters, silos[place], number, MemoryStore())
                own[place] = plan.participation(update, number)
            if lag is not None and place in own and own[place].number == plan.bands.latest(place, number):
                total += plan.bands.steps[lag] * own[place].values
        course.advance(Sums(total[None], (frozenset(silos[place].name for place in places),)))
        yield course.kept
