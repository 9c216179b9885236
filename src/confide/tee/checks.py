"""Checks of evidence: what was asked, what was found, by name."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from confide.errors import ProtocolError
from confide.tee.evidence import Purpose
from confide.tee.policy import Policy


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, whether it holds, and what was found, for people."""

    name: str
    holds: bool
    detail: str


class Stop(Exception):
    """The checks after this one would have nothing to rest on."""


class Checks:
    """The checks that were made so far."""

    def __init__(self) -> None:
        self.made: list[Check] = []

    def add(self, name: str, holds: bool, detail: str, *, stop: bool = False) -> None:
        """Write one down. Raises Stop if it fails and the others rest on it."""
        self.made.append(Check(name, holds, detail))
        if stop and not holds:
            raise Stop

    @contextmanager
    def reading(self, name: str) -> Generator[None]:
        """Make a check that fails of what cannot be read inside. Raises Stop then."""
        try:
            yield
        except ProtocolError as error:
            self.add(name, False, str(error), stop=True)

    def named(self, name: str, found: str, allowed: Collection[str]) -> None:
        """Write down whether `found`, in hex, is among those that a policy names."""
        self.add(name, found in allowed, found if found in allowed else f"{found}, which the policy does not name")

    def pin(self, pins: Collection[str], names: Collection[str], *, why_none: str = "") -> None:
        """Write down whether this machine, under one of its `names`, is one of those that a policy pins, if it does."""
        if not pins:
            return
        known = [name for name in names if name]
        if not known:
            self.add("instance", False, why_none or "the evidence does not say which machine it is of")
        else:
            self.add("instance", any(name in pins for name in known), " or ".join(known))


@dataclass(frozen=True, slots=True)
class Facts:
    """What the hardware signed, once its signature holds: the report data, and which machine."""

    report_data: bytes
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller of `confide.tee.verify.verify` asked."""

    policy: Policy
    now: float
    nonce: bytes | None
    purpose: Purpose
    allow_simulated: bool
    model_sha256: str | None
