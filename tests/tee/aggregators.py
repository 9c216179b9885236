"""Aggregators inside simulated enclaves, for tests of what is around the hardware. No test lives here."""

from __future__ import annotations

from dataclasses import replace

from confide.tee.aggregate import Enclaves, Tee
from confide.tee.policy import Policy, SimulatedRules
from confide.tee.simulated import Simulated
from confide.train.parts import AGGREGATORS

#: Of the code under test, in place of a hash of all source files, which every change moves.
MEASUREMENT = "5e" * 48
NOW = 1_800_000_000.0


def accepted(*, measurement: str = MEASUREMENT) -> Policy:
    return Policy(simulated=SimulatedRules(measurements=(measurement,)))


def enclaves(**changes: object) -> Enclaves:
    """Return what a member brings that accepts the enclave under test, and is one, at a time that stands still."""
    brought = Enclaves(accepted(), allow_simulated=True, attester=Simulated(MEASUREMENT), now=lambda: NOW)
    return replace(brought, **changes)


def as_on_hardware(rule: str = "mean", liars: int = 0, **changes: object) -> Tee:
    """Return an aggregator that runs on simulated evidence and promises what hardware would keep."""
    tee = Tee(rule=rule, liars=liars, simulated=True, enclaves=enclaves(**changes))
    tee.guarantee = Tee(rule=rule, liars=liars).guarantee
    return tee


#: Every aggregator of the registry, ready to run in one process.
MADE = {**AGGREGATORS, "tee": as_on_hardware}


def asked_for(aggregate: str) -> dict[str, str]:
    """Return what a job in one process says in [train] beside `aggregate`."""
    return {"attester": "simulated"} if aggregate == "tee" else {}
