"""Four hospitals under one plan and the real masked sum: what noise tests and audit drive. No test lives here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from confide.crypto.random import SeededRandomness
from confide.dp.plan import PrivacyPlan
from confide.ideal import Cohort, Session
from confide.secagg.masked import Masked
from confide.wire import MemoryStore, drop, run

CLIENTS = ("north", "east", "south", "west")
Share = Callable[[str, np.ndarray, np.ndarray], np.ndarray]


def honest(name: str, total: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return what a silo submits: its clipped sum and its share of the noise."""
    return total + noise


def half_noise(name: str, total: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return what silos would submit if the noise were half as wide as calibrated."""
    return total + noise // 2


def north_leaves_out(name: str, total: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return what silos submit when one of them adds no noise."""
    return total if name == "north" else total + noise


def plan_of(length: int, rounds: int = 1) -> PrivacyPlan:
    """Return the plan of the hospitals: epsilon 1, quorum 3, one colluding, so two shares carry the claim."""
    return PrivacyPlan.calibrate(
        epsilon=1.0,
        delta=1e-5,
        clip_norm=0.5,
        rounds=rounds,
        length=length,
        silos=4,
        quorum=3,
        colluding=1,
        expected_records=455,
    )


@dataclass
class Hospitals:
    """A masked federation after its set-up; repeatable from `seed`, each silo with a stream of its own."""

    plan: PrivacyPlan
    seed: str
    done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.cohort = Cohort(CLIENTS, self.plan.quorum)
        self.roles = {"server": "server"} | dict.fromkeys(CLIENTS, "client")
        self.rngs = {name: SeededRandomness(f"{self.seed}/{name}") for name in self.roles}
        self.stores = {name: MemoryStore() for name in self.roles}
        aggregator = Masked()
        run(
            {
                me: aggregator.setup(role, me, self.cohort, self.stores[me], self.rngs[me])
                for me, role in self.roles.items()
            },
            stores=self.stores,
        )

    def release(
        self, records: Mapping[str, np.ndarray], *, share: Share = honest, missing: str | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the sum that the server opens and each silo's noise, which the server does not see.

        Noise is drawn by `plan.release` itself and found again by taking the clipped sum away, so that a silo that
        deviates (`share`) deviates from what it would really have sent.
        """
        self.done += 1
        session = Session("audit", self.done, self.cohort, self.plan.length, self.plan.bound)
        aggregator = Masked()
        parties = {
            "server": aggregator.party("server", "server", session, None, self.stores["server"], self.rngs["server"])
        }
        noise: dict[str, np.ndarray] = {}
        for name in CLIENTS:
            clipped = self.plan.clipped_sum(records[name])
            noise[name] = self.plan.release(clipped, self.rngs[name]) - clipped.total
            vector = share(name, clipped.total, noise[name])
            parties[name] = aggregator.party("client", name, session, vector, self.stores[name], self.rngs[name])
        fault = drop(src=missing) if missing else None
        opened = run(parties, stores=self.stores, fault=fault, keep_bodies=False).output("server")
        assert opened.members[0] == frozenset(CLIENTS) - {missing}
        return opened.values[0], noise
