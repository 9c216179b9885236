"""Grey-box sensitivity: a mechanism runs on records and on their neighbour, and sees the same noisy answers in both.

`Replay` stands between a mechanism and its noise. The first run notes every exact sum and the noisy one that left; the
second is given the noisy ones of the first, so that whatever follows from them is the same, and its exact sums are held
against the first's. The distance of the two has to be within the sensitivity that the budget was charged for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from confide.dp.queries import Asked
from confide.dp.release import SumRelease
from confide.dp.spending import Budget


class Replay:
    """What left a mechanism, and how far the neighbour's sums are from it."""

    def __init__(self) -> None:
        self.exact: list[np.ndarray] = []
        self.noisy: list[np.ndarray] = []
        self.charged: list[int] = []  # the sensitivity that each release was accounted with
        self.worst, self.again = 0.0, 0
        self.second = False

    def sums(self, exact: np.ndarray, make: Callable[[], np.ndarray]) -> np.ndarray:
        if not self.second:
            self.exact.append(exact.copy())
            self.noisy.append(make())
            return self.noisy[-1]
        place = self.again
        self.again += 1
        assert place < len(self.charged), "a release was not charged"
        apart = [int(one) for one in exact - self.exact[place]]
        self.worst = max(self.worst, sum(one * one for one in apart) ** 0.5 / self.charged[place])
        return self.noisy[place]


@contextmanager
def listening(replay: Replay) -> Iterator[None]:
    """Let `replay` stand between every mechanism and its noise."""
    asked, release, charge = Asked.noisy, SumRelease.release, Budget.charge

    def noisy(self, exact):
        return replay.sums(exact, lambda: asked(self, exact))

    def released(self, clipped, rng):
        assert clipped.sensitivity == self.grid
        return replay.sums(clipped.total, lambda: release(self, clipped, rng))

    def charged(self, *events, of):
        if not replay.second:
            replay.charged += [event.sensitivity for event in events for _ in range(event.rounds)]
        return charge(self, *events, of=of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Asked, "noisy", noisy)
        patch.setattr(SumRelease, "release", released)
        patch.setattr(Budget, "charge", charged)
        yield


def distance(mechanism: Callable[..., object], records: tuple, neighbour: tuple) -> float:
    """Return the largest distance of neighbours over what was charged, of all releases of a mechanism."""
    replay = Replay()
    with listening(replay):
        mechanism(*records)
        replay.second = True
        mechanism(*neighbour)
    assert replay.again == len(replay.exact) == len(replay.charged), "what is charged is released, and nothing else"
    return replay.worst


WILD = (np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 0.0)


def tables(pairs: int, columns: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and the place of the one that the neighbour lacks: empty neighbours, one row, wild values, twins."""
    draw = np.random.Generator(np.random.PCG64(seed))
    for number in range(pairs):
        count = (1, 2, 7, 40)[number % 4]
        rows = draw.normal(0.0, 10.0 ** draw.uniform(-2, 2), (count, columns))
        match number // 4 % 4:
            case 1:
                where = draw.random(rows.shape) < 0.3
                rows[where] = draw.choice(WILD, int(where.sum()))
            case 2:
                rows[:] = rows[-1]
            case 3:
                rows[-1] = draw.choice([*WILD, -7.0, 7.0, 100.0])
        yield rows, np.delete(rows, number % count, axis=0)
