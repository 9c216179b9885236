"""The links of bench/mpc.py: loopback, LAN and WAN, a relay for each directed pair of parties.

A process that opens a connection reaches every other through a relay of its own, which delays and limits both
directions of it (`confide.net.relay`); relays share the machine's cores with the parties. Losses, TCP's slow start over
the long way and other traffic are not modelled.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from confide.net.relay import Relay


@dataclass(frozen=True)
class Link:
    """One kind of network between every two parties; without a rate there is no relay."""

    name: str
    delay_seconds: float = 0.0
    bits_per_second: float | None = None

    def __str__(self) -> str:
        if self.bits_per_second is None:
            return self.name
        return f"{self.name} ({1e3 * self.delay_seconds:g} ms one way, {self.bits_per_second / 1e6:g} Mbit/s)"


LOOPBACK, LAN, WAN = Link("loopback"), Link("LAN", 0.5e-3, 1e9), Link("WAN", 20e-3, 200e6)
LINKS = {link.name: link for link in (LOOPBACK, LAN, WAN)}


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def meshed(link: Link, count: int) -> Iterator[list[list[str]]]:
    """Give for each of `count` parties the address of every party as that one reaches it; its own is the real one."""
    ports = free_ports(count)
    with ExitStack() as stack:

        def reached(from_party: int, to_party: int) -> str:
            if from_party == to_party or link.bits_per_second is None:
                return f"127.0.0.1:{ports[to_party]}"
            relay = Relay(
                "127.0.0.1",
                ports[to_party],
                delay_seconds=link.delay_seconds,
                bits_per_second=link.bits_per_second,
            )
            return f"127.0.0.1:{stack.enter_context(relay).port}"

        yield [[reached(here, there) for there in range(count)] for here in range(count)]
