"""A preparation as the first sum of a run: what nodes need, who learn of it as they learn of every other sum.

Parties in one process prepare their records before a training begins (`preparing.prepared`). Over a network there is
one kind of sum, with its journal, its charge, its announcement and its line in the ledger, so there the preparation is
the first of them: it moves no parameter, and every party takes its own records through what it says from then on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from copy import copy

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import DataError
from confide.train.encodings import Encoding
from confide.train.local import Silo
from confide.train.preparing import Preparation, PreparingSum
from confide.wire import Store

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: Where a silo notes that its part of the preparation has left it.
_PREPARED = "dp/prepared"

#: What the arrays of the encoding behind are called in `moved`.
_THEN = "then/"


class PreparedRounds(Encoding):
    """Round 1 sums what a preparation takes; the others are those of an encoding, over prepared records.

    Args:
        asked: the first sum.
        then: returns the encoding of the other rounds under a preparation; its sizes are the same under all.

    Silos bring their raw `columns`. What `asked` says of its sum becomes part of the course, and of the hash that every
    contribution starts from.
    """

    before = 1

    def __init__(self, asked: PreparingSum, then: Callable[[Preparation], Encoding]) -> None:
        self._asked, self._make = asked, then
        self._found = np.zeros(asked.preparing.length + 2)  # whether there are, the noise, the sums
        self._seen: dict[Silo, Silo] = {}
        self._enter()
        self.releases = (1 if asked.plan else self._then.releases) + self._then.releases

    def _enter(self) -> None:
        """Take the encoding of the other rounds, and the length and the bound of what is summed next."""
        done = Preparation(self._asked.preparing.preprocess)
        if self.started:
            done = self._asked.preparing.read(self._found[2:], noise=float(self._found[1]))
        self.preparation, self._then, self._seen = done, self._make(done), {}
        self._resize()

    def _resize(self) -> None:
        self.learner = self._then.learner
        self.length = self._then.length if self.started else self._asked.preparing.length
        self.bound = self._then.bound if self.started else self._asked.bound

    @property
    def started(self) -> bool:
        """Return whether the preparation is known."""
        return bool(self._found[0])

    @property
    def ended(self) -> bool:
        return self.started and self._then.ended

    @property
    def longest(self) -> int:
        return max(self._asked.preparing.length, self._then.longest)

    @property
    def kept(self) -> tuple[str, ...]:
        return self._then.kept

    def broadcast(self, parameters: Matrix) -> Matrix:
        return np.concatenate([self._then.broadcast(parameters), self._found])

    @property
    def importance(self) -> Mapping[str, float]:
        return self._then.importance

    @property
    def moved(self) -> Mapping[str, Matrix]:
        return {"preparation": self._found, **{_THEN + name: values for name, values in self._then.moved.items()}}

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        self._found = moved["preparation"]
        self._enter()
        self._then.resumed({name.removeprefix(_THEN): moved[name] for name in moved if name.startswith(_THEN)})
        self._resize()

    def prepared(self, silo: Silo) -> Silo:
        """Return a silo with its records as the preparation has them."""
        if silo not in self._seen:
            if silo.columns is None:
                raise DataError(f"Expected the raw columns of {silo.name}; a preparation is applied to them")
            self._seen[silo] = Silo(silo.name, self.preparation.preprocess.apply(silo.columns), silo.y)
        return self._seen[silo]

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        if self.started:
            return self._then.contribution(parameters, self.prepared(silo), number - 1, rng, store)
        if silo.columns is None:
            raise DataError(f"Expected the raw columns of {silo.name}; a preparation sums them")
        return self._asked.contribution(silo.name, silo.columns, silo.y, rng, prepared=bool(store.get(_PREPARED)))

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        if self.started:
            self._then = copy(self._then)  # a fork goes its own way
            change = self._then.update(parameters, sums, members, number - 1)
            self._resize()
            return change
        values, noise = self._asked.decoded(sums, len(members))
        self._found = np.concatenate([[1.0, noise], values])
        self._enter()
        return np.zeros_like(parameters)

    def left(self, number: int, releases: int) -> bool:
        if self._asked.plan is None:
            return releases < self.releases
        return releases == 0 if number == 1 else self._then.left(number - 1, max(0, releases - 1))

    def about(self, number: int) -> Mapping[str, str]:
        if number > self.before:
            return {}
        made = {"preprocess": hashlib.sha256(self.preparation.preprocess.encode()).hexdigest()} if self.started else {}
        return {"of": "preparation", **made}

    def epsilon(self, releases: int) -> float | None:
        return self._then.epsilon(max(0, releases - 1))

    def charge(self, store: Store) -> Mapping[str, bytes | None]:
        if self.started:
            return self._then.charge(store)
        return {_PREPARED: b"1"} if self._asked.plan else {}

    def charged(self, store: Store) -> int:
        """Return how many releases are counted; who was not in the preparation counts it all the same."""
        return 1 + self._then.charged(store) if self.started else int(store.get(_PREPARED) is not None)
