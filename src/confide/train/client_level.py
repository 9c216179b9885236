"""Federated averaging that hides whole clients: what a client sends, and how the server reads it.

Several local steps are allowed, any learner too: what is clipped is the client's whole update, and its weight is fixed,
never its record count. In a round in which a client is on (every train.rotation-th, by its place in the job's public
order) it trains; in the others it sends a multiple of its last update, kept in its store (`dp/client_plan.py`).

An update is kept only once its client is told that it is in a released sum, so the multiples that follow belong to
something that the server has seen. A client that misses a later round makes its own update count for less, by no more
than all of it; it costs accuracy alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.client_plan import ClientPlan, Participation
from confide.errors import ModelError, PrivacyError
from confide.train.encodings import Encoding, charge, charges
from confide.train.learner import Learner, staged
from confide.train.local import Silo
from confide.wire import Store

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: Where a client keeps the round of its latest update that is in a sum, and the update (little-endian int64).
_OWN = "client/own"

#: Where a client keeps the last round whose vector has left it, and the round that its next vector is of.
_LAST, _PENDING = "client/last", "client/pending"


class ClientUpdates(Encoding):
    """Noisy averaging of clipped client updates under a plan.

    A sum that was lost after vectors left would be a second release of the same round, which nobody has accounted
    for: the training ends there with the last round's model, and a client refuses to send a round's vector twice.

    Args:
        learner: the model, and the local training of a client.
        plan: the noise, and who is on when.
        names: the clients in their public order.
    """

    def __init__(self, learner: Learner[Any], plan: ClientPlan, names: Sequence[str]) -> None:
        self.learner, self._plan = learner, plan
        self._places = {name: place for place, name in enumerate(names)}
        self.length, self.bound, self.releases = plan.length, plan.bound, plan.rounds
        self._decoded = np.zeros((len(plan.bands.steps) - 1, plan.length))  # the latest first

    @property
    def kept(self) -> tuple[str, ...]:
        return (_OWN, *self.learner.kept)

    @property
    def moved(self) -> Mapping[str, Matrix]:
        return {"decoded": self._decoded.ravel()}

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        self._decoded = moved["decoded"].reshape(self._decoded.shape)

    def broadcast(self, parameters: Matrix) -> Matrix:
        """Return the parameters with the plan's public numbers: clients with other multiples cannot be summed."""
        bands = self._plan.bands
        public = [*bands.steps, bands.period, bands.rounds, self._plan.grid, self._plan.share_variance]
        return np.concatenate([parameters, np.array(public, np.float64)])

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        if int(store.get(_LAST) or 0) >= number:
            raise PrivacyError(
                f"Expected round {number} at {silo.name} for the first time; its vector has left once, and a second "
                "release of it is not accounted for"
            )
        place = self._places.get(silo.name, 0)  # a rehearsal is by nobody of the job
        own = _read(store.get(_OWN), self._plan.length)
        if self._plan.bands.lag(place, number) == 0:
            own = self._plan.participation(self.update_of(parameters, silo, number, store), number)
            store.commit({staged(_OWN): np.append(own.number, own.values).astype("<i8").tobytes()})
        store.commit({_PENDING: str(number).encode()})
        return self._plan.release(place, number, own, rng)

    def update_of(self, parameters: Matrix, silo: Silo, number: int, store: Store) -> Matrix:
        """Return a client's update; one without records, or whose training diverged, has none and sends zeros.

        What goes wrong in training may depend on what the client holds, so it must not show.
        """
        if not len(silo.x):
            return np.zeros(self._plan.length)
        try:
            with np.errstate(all="ignore"):
                return self.learner.change(parameters, silo, store, number=number)
        except ModelError:
            return np.zeros(self._plan.length)

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        decoded = self._plan.decode(sums, self._decoded)
        self._decoded = np.concatenate([decoded[None], self._decoded])[: len(self._decoded)]
        return self._plan.mean(decoded, number)

    def left(self, number: int, releases: int) -> bool:
        return releases < number  # one for each round before

    def epsilon(self, releases: int) -> float | None:
        return self._plan.spent(min(releases, self._plan.rounds))

    def charge(self, store: Store) -> Mapping[str, bytes | None]:
        return {**charge(store), _LAST: store.get(_PENDING)}

    def charged(self, store: Store) -> int:
        return charges(store)


def _read(body: bytes | None, length: int) -> Participation | None:
    """Return what a client keeps of its own.

    Raises:
        ModelError: the store is another model's.
    """
    if body is None:
        return None
    if len(body) != 8 * (length + 1):
        raise ModelError("Expected a store with an update of this model; take an empty one")
    values = np.frombuffer(body, "<i8").astype(np.int64)
    return Participation(int(values[0]), values[1:])
