"""Four hospitals under one plan and a real secure sum: what noise tests and audits drive. No test lives here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from confide.crypto.random import SeededRandomness
from confide.dp.plan import PrivacyPlan
from confide.ideal import Aggregator, Cohort, Session
from confide.secagg.masked import Masked
from confide.train.encodings import PrivateGradients
from confide.train.local import Silo
from confide.wire import MemoryStore, drop, run

CLIENTS = ("north", "east", "south", "west")
Share = Callable[[str, np.ndarray, np.ndarray], np.ndarray]


def honest(name: str, total: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return what a silo submits: its clipped sum and its share of the noise."""
    return total + noise


def half_noise(name: str, total: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return what silos would submit if the noise were half as wide as calibrated."""
    return total + noise // 2


def hardly_any_noise(name: str, total: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return what silos would submit if the noise were an eighth of what was calibrated."""
    return total + noise // 8


def north_leaves_out(name: str, total: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return what silos submit when one of them adds no noise."""
    return total if name == "north" else total + noise


def twice_as_long(name: str, total: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return what silos would submit if records were clipped to twice the norm that the noise is made for."""
    return 2 * total + noise


def plan_of(length: int, rounds: int = 1, grid: int | None = None) -> PrivacyPlan:
    """Return the plan of the hospitals: epsilon 1, quorum 3, one colluding, so two shares carry the claim."""
    return PrivacyPlan.calibrate(
        epsilon=1.0,
        delta=1e-5,
        clip_norm=0.5,
        rounds=rounds,
        length=length,
        grid=grid,
        silos=4,
        quorum=3,
        colluding=1,
        expected_records=455,
    )


@dataclass
class Hospitals:
    """A federation after its set-up; repeatable from `seed`, each silo with a stream of its own.

    With an `encoding` the silos' records are those of training: features and classes, from which `contribution` makes
    what is submitted. Without one they are gradients.
    """

    plan: PrivacyPlan
    seed: str
    aggregator: Aggregator = field(default_factory=Masked)
    encoding: PrivateGradients | None = None
    one_stream: bool = False  # all silos draw from equal streams: a mistake to be noticed
    done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.cohort = Cohort(CLIENTS, self.plan.quorum)
        self.roles = self.cohort.parties(self.aggregator.roles)
        self.rngs = {name: SeededRandomness(f"{self.seed}/{name}") for name in self.roles}
        self.noise_rngs = {
            name: SeededRandomness(f"{self.seed}/noise/{'' if self.one_stream else name}") for name in CLIENTS
        }
        self.stores = {name: MemoryStore() for name in self.roles}
        run(
            {
                me: self.aggregator.setup(role, me, self.cohort, self.stores[me], self.rngs[me])
                for me, role in self.roles.items()
            },
            stores=self.stores,
        )

    def submitted(self, name: str, records: np.ndarray | Silo) -> tuple[np.ndarray, np.ndarray]:
        """Return a silo's clipped sum, and what the code adds its noise to and submits."""
        if isinstance(records, Silo):
            learner = self.encoding.learner
            clipped = self.plan.clipped_sum(learner.record_gradients(learner.start, records))
            rng, store = self.noise_rngs[name], MemoryStore()
            return clipped.total, self.encoding.contribution(learner.start, records, 1, rng, store)
        clipped = self.plan.clipped_sum(records)
        return clipped.total, self.plan.release(clipped, self.noise_rngs[name])

    def release(
        self, records: Mapping[str, np.ndarray | Silo], *, share: Share = honest, missing: str | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the sum that the server opens and each silo's noise, which the server does not see.

        Noise is drawn by the code under audit itself and found again by taking the clipped sum away, so that a silo
        that deviates (`share`) deviates from what it would really have sent.
        """
        self.done += 1
        session = Session("audit", self.done, self.cohort, self.plan.length, 2 * self.plan.bound)
        noise: dict[str, np.ndarray] = {}
        vectors: dict[str, np.ndarray] = {}
        for name in CLIENTS:
            total, submitted = self.submitted(name, records[name])
            noise[name] = submitted - total
            vectors[name] = share(name, total, noise[name])
        parties = {
            me: self.aggregator.party(role, me, session, vectors.get(me), self.stores[me], self.rngs[me])
            for me, role in self.roles.items()
        }
        fault = drop(src=missing) if missing else None
        opened = run(parties, stores=self.stores, fault=fault, keep_bodies=False).output("server")
        assert opened.members[0] == frozenset(CLIENTS) - {missing}
        return opened.values[0], noise
