"""Attesters: how code that runs inside gets the hardware's signature under 64 bytes of its own choice."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from confide.errors import UsageError, nearest
from confide.tee.evidence import Provider, Quoted
from confide.tee.simulated import Simulated


class Attester(Protocol):
    """One source of evidence. `provider` may be known only after the first quote; it is asked for after that."""

    name: str

    @property
    def provider(self) -> Provider:
        """Return whose hardware signs."""
        ...

    def quote(self, report_data: bytes) -> Quoted:
        """Return evidence whose report data are the 64 bytes `report_data`.

        Raises:
            UsageError: there is no such hardware here, or it refuses; the text says what to do.
        """
        ...


#: What makes an attester, by its name in options.
ATTESTERS: Mapping[str, type[Simulated]] = MappingProxyType({"simulated": Simulated})


def load_attester(name: str) -> Attester:
    """Return the attester called `name`. Raises UsageError for a name that is none."""
    if name not in ATTESTERS:
        known = ", ".join(sorted(ATTESTERS))
        raise UsageError(f"Expected attester={name!r} to be one of {known}{nearest(name, ATTESTERS)}")
    return ATTESTERS[name]()
