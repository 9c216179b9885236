"""Two servers that were told different things find out with their first message, and send no second one."""

from __future__ import annotations

import numpy as np
import pytest

from confide.errors import ProtocolError
from confide.mpc.agreed import AGREEMENT_BYTES, agreement
from confide.mpc.messages import Ask, Query
from confide.mpc.outsourced import Outsourced
from confide.wire import alter, decode, encode
from he.oracle import mlp
from mpc.sessions import ready

GRAPH = mlp(7, 6, 4, 2)
X = np.random.default_rng(0).uniform(-1, 1, (2, 6))
FIRST = "mpc-outsourced/run/2"  # the client's shares come in what the program calls its first round
ASK = Ask(1, bytes(16), 7, 2, bytes(32), False)


def told(**change):
    """A fault on what the client tells the helper."""

    def altered(body: bytes) -> bytes:
        query = decode(body, Query, max_bytes=1 << 20)
        fields = {name: getattr(query.ask, name) for name in query.ask.__struct_fields__}
        return encode(Query(Ask(**(fields | change)), query.share))

    return alter(altered, tag="mpc-outsourced/ask", dst="helper")


def between(transcript, src):
    return [m for m in transcript.messages if m.src == src and m.tag.startswith("mpc-outsourced/run/") and m.body]


def test_servers_under_two_ids_stop_after_their_first_message():
    session = ready(Outsourced(), GRAPH)
    session.deal(rows=2, count=2)
    transcript = session.predict(X, fault=told(counter=1))
    for role in ("server", "helper"):
        assert isinstance(transcript.failures[role], ProtocolError)
        assert "one id" in str(transcript.failures[role])
        assert len(between(transcript, role)) <= 1
    assert "client" in transcript.failures
    session = ready(Outsourced(), GRAPH)
    again = session.predict(X)
    assert np.abs(again.output("client") - GRAPH.apply(X)).max() < 1e-3
    assert len(between(again, "server")) == len(between(again, "helper")) > 1


@pytest.mark.parametrize("src", ["server", "helper"])
@pytest.mark.parametrize("change", [lambda body: bytes(16) + body[16:], lambda body: body[16:], lambda body: body[:7]])
def test_an_agreement_that_is_another_or_missing_is_refused(src, change):
    session = ready(Outsourced(), GRAPH)
    session.deal(rows=2)
    transcript = session.predict(X, fault=alter(change, src=src, tag=FIRST))
    other = {"server": "helper", "helper": "server"}[src]
    assert "one id" in str(transcript.failures[other])
    assert "client" in transcript.failures


@pytest.mark.parametrize(
    "change",
    [{"run": b"x" * 16}, {"counter": 8}, {"rows": 1}, {"binding": b"x" * 32}, {"on_demand": True}, {"format": 2}],
)
def test_everything_that_the_servers_are_told_is_in_it(change):
    fields = {name: getattr(ASK, name) for name in ASK.__struct_fields__}
    assert agreement(ASK) == agreement(Ask(**fields))
    assert agreement(Ask(**(fields | change))) != agreement(ASK)
    assert len(agreement(ASK)) == AGREEMENT_BYTES


def test_it_costs_no_round_and_sixteen_bytes_each_way():
    session = ready(Outsourced(), GRAPH)
    session.deal(rows=2)
    transcript = session.predict(X)
    first = between(transcript, "server")[0], between(transcript, "helper")[0]
    assert first[0].body[:AGREEMENT_BYTES] == first[1].body[:AGREEMENT_BYTES]
    assert all(len(message.body) == AGREEMENT_BYTES + X.size * 8 for message in first)
