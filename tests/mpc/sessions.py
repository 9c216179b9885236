"""Set-up, deals and predictions of a dealer's mode in one process."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from confide.crypto.random import SystemRandomness
from confide.errors import ConfideError
from confide.ideal import Kit
from confide.model.graph import Graph
from confide.mpc.keys import own_record
from confide.wire import MemoryStore, Transcript, run

RNG = SystemRandomness()


class Session:
    """Everyone's kit and store; kits that travel are encoded and decoded."""

    def __init__(self, backend: Any, graph: Graph, **stores: MemoryStore) -> None:
        self.backend, self.graph = backend, graph
        made = backend.prepare(graph, RNG)
        self.kits: dict[str, Kit] = {role: backend.decode_kit(role, kit.encode()) for role, kit in made.items()}
        self.stores = {role: stores.get(role, MemoryStore()) for role in backend.roles}

    @property
    def client(self) -> Kit:
        return self.kits["client"]

    @property
    def server(self) -> Kit:
        return self.kits["server"]

    def _run(self, ask: Any, roles: Any, fault: Any) -> Transcript:
        parties = {role: ask(role, self.kits[role], self.stores[role]) for role in roles}
        return run(parties, stores=self.stores, fault=fault)

    def setup(self, fault: Any = None) -> Transcript:
        return self._run(lambda *who: self.backend.setup(*who, RNG), self.backend.roles, fault)

    def deal(self, rows: int = 1, count: int = 1, fault: Any = None) -> Transcript:
        return self._run(
            lambda *who: self.backend.deal(*who, RNG, rows=rows, count=count), self.backend.roles, fault
        )  # fmt: skip

    def predict(self, x: Any, fault: Any = None, *, dealer: bool | None = None) -> Transcript:
        """A prediction; the dealer takes part where stock is empty, or if `dealer` says so."""
        values = np.asarray(x, float)
        rows = len(values)
        if dealer is None and "dealer" in self.backend.roles:
            dealer = self.backend.needs_dealer(self.client, self.stores["client"], rows=rows)
        roles = [role for role in self.backend.roles if dealer or role != "dealer"]
        transcript = self._run(
            lambda role, *rest: self.backend.predict(role, rest[0], values if role == "client" else None, rest[1], RNG),
            roles,
            fault,
        )
        self.hold_ready(rows)
        return transcript

    def hold_ready(self, rows: int) -> None:
        """What services do after a prediction: clear away what it used, and make the next ones ready."""
        mode = getattr(self.backend, "mode", None)
        for role in () if mode is None else mode.holders:
            with suppress(ConfideError):  # a role that was set up with others
                run_id = own_record(mode, "client", self.client, self.stores["client"]).run
                self.backend.hold_ready(role, self.kits[role], self.stores[role], run_id, rows=rows)


def ready(backend: Any, graph: Graph) -> Session:
    session = Session(backend, graph)
    session.setup().output("client")
    return session
