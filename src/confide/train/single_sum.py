"""One sum outside the rounds, in one process: the parties of an aggregator set up, summed and gone."""

from __future__ import annotations

from collections.abc import Mapping

from confide.crypto.random import Randomness
from confide.ideal import Aggregator, Session, Vector
from confide.wire import Fault, MemoryStore, Store, Transcript, run


class SingleSum:
    """The parties of sums that are no rounds: of moments, of counts.

    Args:
        aggregator: who sums.
        session: of the first attempt; its cohort are the parties.
        rng: secret randomness of the parties.

    Raises:
        ProtocolError: the set-up failed.
    """

    def __init__(self, aggregator: Aggregator, session: Session, rng: Randomness) -> None:
        self._aggregator, self._rng = aggregator, rng
        self.roles = session.cohort.parties(aggregator.roles)
        self._stores: dict[str, Store] = {name: MemoryStore() for name in self.roles}
        ready = run(
            {me: aggregator.setup(role, me, session.cohort, self._stores[me], rng) for me, role in self.roles.items()},
            stores=self._stores,
        )
        for name in self.roles:
            ready.output(name)

    def take(self, session: Session, vectors: Mapping[str, Vector], *, fault: Fault | None = None) -> Transcript:
        """Return the transcript of one attempt over `vectors`; the server's output is `Sums`."""
        parties = {
            me: self._aggregator.party(role, me, session, vectors.get(me), self._stores[me], self._rng)
            for me, role in self.roles.items()
        }
        return run(parties, stores=self._stores, fault=fault, keep_bodies=False)
