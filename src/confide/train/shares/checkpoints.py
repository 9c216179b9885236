"""What a server keeps of a training over machines, so that a later run goes on where the one before it was stopped.

    checkpoint     its own shares of the weights after a step, and which run they are of: uniform without the other's

Both servers keep the last two of a training. Neither can finish a step without the other, so they are never more than
one checkpoint apart, and there is one that both have. Shares of different runs do not fit together: what names a
checkpoint is the run's id and the number of steps. Masks and correlations are not kept; what goes on has new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import StoreError
from confide.train.shares.course import Course
from confide.train.shares.parties import shapes_kept
from confide.wire import Array, Store, decode, encode

Words = NDArray[np.uint64]

#: How many a server keeps, and most steps between two of them.
KEPT, MOST_BETWEEN = 2, 100


class Kept(Store, Protocol):
    """A store that can clear away what was deleted."""

    def scrub(self) -> None:
        """Clear away what deleted entries have left behind."""
        ...


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which checkpoint: the run that made it, 32 hex digits, and how many steps of the training it has."""

    run: str
    taken: int


class _Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mark: Mark
    parts: dict[str, Array]

    def __repr__(self) -> str:
        return f"_Checkpoint({self.mark})"


def is_due(course: Course, taken: int) -> bool:
    """Return whether both servers keep their shares after `taken` steps: after a pass, each 100 steps, and the last."""
    return taken % len(course.batches) == 0 or taken % MOST_BETWEEN == 0 or taken == course.steps


class Checkpoints:
    """The checkpoints of one training in a server's store.

    Args:
        store: its own, durable; this process alone writes to it.
        training: which training, hex: a hash of the job and the numbers of rows.
    """

    def __init__(self, store: Kept, training: str) -> None:
        self._store, self._prefix = store, f"training-on-shares/{training}/"

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Return which there are, the newest last."""
        found: list[Mark] = []
        for key in self._store.keys(self._prefix):
            _, taken, run = key.removeprefix(self._prefix).split("/")
            found.append(Mark(run, int(taken)))
        return tuple(sorted(found, key=lambda mark: mark.taken))

    def keep(self, mark: Mark, shares: Callable[[], Mapping[str, Words]]) -> None:
        """Make a checkpoint durable, and forget those before the last two.

        Raises:
            StoreError: it is not kept.
        """
        body = encode(_Checkpoint(mark, {name: Array.of(words) for name, words in shares().items()}))
        changes: dict[str, bytes | None] = {self._key(mark): body}
        earlier = [one for one in self.marks if one != mark]
        for old in earlier:
            if old not in earlier[-(KEPT - 1) :]:
                changes[self._key(old)] = None
        self._store.commit(changes)

    def read(self, mark: Mark, course: Course) -> dict[str, Words]:
        """Return a checkpoint's shares.

        Raises:
            StoreError: it is not there, or not of this training.
        """
        body = self._store.get(self._key(mark))
        if body is None:
            raise StoreError(f"Expected a checkpoint of step {mark.taken} of run {mark.run}; begin anew with --anew")
        found = decode(body, _Checkpoint, max_bytes=len(body))
        shapes = shapes_kept(course)
        if found.parts.keys() != shapes.keys():
            raise StoreError("Expected a checkpoint of this training's weights; begin anew with --anew")
        return {name: np.array(found.parts[name].numpy("uint64", shape)) for name, shape in shapes.items()}

    def only(self, mark: Mark | None) -> None:
        """Forget every checkpoint but one, whose run goes on: what others were made beside it fits nothing any more."""
        if gone := {self._key(one): None for one in self.marks if one != mark}:
            self._store.commit(gone)
            self._store.scrub()

    def _key(self, mark: Mark) -> str:
        return f"{self._prefix}step/{mark.taken}/{mark.run}"
