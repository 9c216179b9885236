"""A coordinator and a node at work, as far as no network is needed: ways that are taken, and who is told what."""

from __future__ import annotations

from pathlib import Path

from confide.net.link import Joined
from confide.net.membership import Membership
from confide.train import operate
from confide.train.operate import take_part


def test_a_certificate_is_renewed_on_the_way_of_the_connection(monkeypatch):
    """Another address or no proxy, and a node behind one would end with its first certificate."""
    said = Membership("three", "wss://train.example.org:8443", "north", "node", "00" * 32)
    ways: list[tuple[str, str | None]] = []
    lines: list[str] = []

    class Connection(operate.Join):
        given_up = None

        def __init__(self) -> None:  # opens nothing
            self.renewals = 0

        def receive(self, timeout_seconds: float):
            return arriving.pop() if arriving else None

        def renewed(self, context, *, reconnect: bool = False) -> None:
            self.renewals += 1

    class Node:
        ended = None

        def handle(self, event) -> None: ...

        def take(self):
            return []

    def asking(url, authorities, identity, *, proxy=None):
        ways.append((url, proxy))

    monkeypatch.setattr(operate, "asking", asking)
    for name, value in {
        "renewal_due": True,
        "membership": said,
        "trusted": (),
        "client_context": None,
    }.items():
        monkeypatch.setattr(operate, name, lambda *_, value=value: value)
    arriving, renewed = [Joined("server", "coordinator")], list[str]()
    monkeypatch.setattr(operate, "renew", lambda *_: renewed.append("a new file"))
    monkeypatch.setattr(operate, "stamp", lambda path: len(renewed))
    connection, turns = Connection(), iter([False, False, True])
    way = {"url": "wss://10.0.0.1:443", "proxy": "http://proxy:3128"}
    take_part(Node(), connection, Path(), **way, say=lines.append, ended=lambda: next(turns))
    assert ways == [("wss://10.0.0.1:443", "http://proxy:3128")]
    assert connection.renewals == 1
    assert lines == ["the certificate was renewed"]
