"""An enclave without hardware and a client that accepts it, for tests. No test lives here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from confide.crypto.random import SystemRandomness
from confide.model.graph import Graph, Linear, Sigmoid
from confide.tee.backend import Accept, Enclaved, graph_sha256
from confide.tee.policy import Policy, SimulatedRules
from confide.tee.simulated import Simulated, measure_code
from confide.wire import MemoryStore, Transcript, run

RNG = SystemRandomness()
GRAPH = Graph((Linear(np.array([[1.5, -2.0, 0.25]]), np.array([0.125])), Sigmoid()), ("benign", "malignant"))
X = np.array([[0.1, -0.2, 0.3], [0.987654321, 0.5, -0.25]])


@dataclass
class Clock:
    """A clock that a test turns."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def policy_for(graph: Graph = GRAPH, **changes: Any) -> Policy:
    """Return the policy that accepts this code with this model."""
    fields = {"model_sha256": (graph_sha256(graph),), "simulated": SimulatedRules(measurements=(measure_code(),))}
    return Policy(**(fields | changes))


@dataclass
class Both:
    """A client and a server of the backend tee, with stores that last."""

    graph: Graph = GRAPH
    attester: Simulated = field(default_factory=Simulated)
    policy: Policy = field(default_factory=policy_for)
    allow_simulated: bool = True
    lifetime_seconds: float = 3600
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        made = Enclaved(attester=self.attester, lifetime_seconds=self.lifetime_seconds, clock=self.clock)
        kits = made.prepare(self.graph, RNG)
        self.made, self.server = made, kits["server"]
        self.stores = {"client": MemoryStore(), "server": MemoryStore()}
        self.kit = self.backend.decode_kit("client", kits["client"].encode())

    @property
    def backend(self) -> Enclaved:
        return Enclaved(accept=Accept(self.policy, allow_simulated=self.allow_simulated, clock=self.clock))

    def setup(self, fault: Any = None) -> Transcript:
        parties = {
            "client": self.backend.setup("client", self.kit, self.stores["client"], RNG),
            "server": self.made.setup("server", self.server, self.stores["server"], RNG),
        }
        return run(parties, stores=self.stores, fault=fault)

    def predict(self, x: Any = X, fault: Any = None) -> Transcript:
        parties = {
            "client": self.backend.predict("client", self.kit, x, self.stores["client"], RNG),
            "server": self.made.predict("server", self.server, None, self.stores["server"], RNG),
        }
        return run(parties, stores=self.stores, fault=fault)
