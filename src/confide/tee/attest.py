"""Attesters: how code that runs inside gets the hardware's signature under 64 bytes of its own choice.

    configfs-tsm   TDX and SEV-SNP guests (`tsm`)        nitro       AWS Nitro enclaves (`nsm`)
    gramine        SGX enclaves under Gramine (`gramine`) simulated   no hardware, no protection (`simulated`)

The caller names one. If that one is not there, that is an error, and never a reason to take another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from confide.errors import UsageError, nearest
from confide.tee.evidence import Provider, Quoted
from confide.tee.gramine import Gramine
from confide.tee.nsm import Nitro
from confide.tee.simulated import Simulated
from confide.tee.tsm import ConfigfsTsm


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


#: What makes an attester, by its name in options; it raises UsageError where there is none.
ATTESTERS: Mapping[str, Callable[[], Attester]] = MappingProxyType(
    {"configfs-tsm": ConfigfsTsm, "gramine": Gramine, "nitro": Nitro, "simulated": Simulated}
)

#: Those with hardware behind them.
HARDWARE = ("configfs-tsm", "gramine", "nitro")


def load_attester(name: str) -> Attester:
    """Return the attester called `name`.

    Raises:
        UsageError: there is no such name, or not that hardware here; the text says what was looked for.
    """
    if name not in ATTESTERS:
        known = ", ".join(sorted(ATTESTERS))
        raise UsageError(f"Expected attester={name!r} to be one of {known}{nearest(name, ATTESTERS)}")
    return ATTESTERS[name]()


def found() -> list[str]:
    """Return the names of the attesters with hardware that can be used here; for people and tests, never to choose."""
    names: list[str] = []
    for name in HARDWARE:
        try:
            ATTESTERS[name]()
        except UsageError:
            continue
        names.append(name)
    return names
