"""The links over which a comparison models what it measured: loopback, a local network, a wide one, a mobile one.

`Transcript.cost` turns the messages and the work of one run into seconds over a link: every party has one uplink of the
link's rate and reaches the others after its delay. The delays and rates of LAN and WAN are those of bench/mpc.py.
Losses, TCP's slow start and other traffic are not modelled; `confide.compare.validate` says by how much a cost is off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from confide.wire import Transcript


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of network between every two parties.

    Args:
        name: "lan".
        delay_seconds: one way, >= 0.
        bits_per_second: of each party's uplink, > 0.
    """

    name: str
    delay_seconds: float
    bits_per_second: float

    def seconds(self, transcript: Transcript) -> float:
        """Return how long a run would take over this link."""
        return transcript.cost(latency_seconds=self.delay_seconds, bandwidth_bps=self.bits_per_second)

    def words(self) -> str:
        """Return the link in words."""
        return f"{self.name}: {1e3 * self.delay_seconds:g} ms one way, {self.bits_per_second / 1e6:g} Mbit/s up"


#: By name. Loopback's numbers are those of two processes on one machine, rounded.
LINKS: Mapping[str, Link] = {
    link.name: link
    for link in (
        Link(name="loopback", delay_seconds=25e-6, bits_per_second=10e9),
        Link(name="lan", delay_seconds=0.5e-3, bits_per_second=1e9),
        Link(name="wan", delay_seconds=20e-3, bits_per_second=200e6),
        Link(name="mobile", delay_seconds=30e-3, bits_per_second=10e6),
    )
}


def over_links(transcript: Transcript, links: Sequence[Link], *, stem: str) -> dict[str, float]:
    """Return a figure for each link: {"<stem>_lan_seconds": ...}."""
    return {f"{stem}_{link.name}_seconds": link.seconds(transcript) for link in links}
