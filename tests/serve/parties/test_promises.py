"""What a server says that it guarantees: once partners are there, and no more than holds with them."""

from __future__ import annotations

import time

import numpy as np

from confide.mpc.two_party import WithDealer
from confide.serve.client import Client
from serve.parties.houses import houses
from serve.parties.networks import NETWORK

X = np.zeros((1, NETWORK.features))


def said(found):
    return [line for line in found.lines if line.startswith("server: mpc-dealer: ")]


def test_partners_on_one_machine_are_in_the_first_promise(tmp_path):
    with houses(tmp_path, WithDealer(), {"dealer": "broker"}, graph=NETWORK) as found:
        assert not said(found) or "broker, the dealer, is there" in " ".join(found.lines)
        with Client(found.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True) as client:
            client.predict(X)
        lines = said(found)
    assert lines[0] == "server: mpc-dealer: nothing is hidden"
    assert "INSECURE" in lines[1]
    assert "hidden from" not in " ".join(lines)
    assert len(lines) == 2  # the same is said once
    there = found.lines.index("server: broker, the dealer, is there")
    assert there < found.lines.index(lines[0])


def test_partners_apart_promise_what_the_protocol_does(tmp_path, monkeypatch):
    monkeypatch.setattr("confide.serve.parties.circle.together", lambda a, b: "")
    with houses(tmp_path, WithDealer(), {"dealer": "broker"}, graph=NETWORK, one_machine=False) as found:
        end = time.monotonic() + 20.0
        while len(said(found)) < 6 and time.monotonic() < end:
            time.sleep(0.02)
    lines = said(found)
    assert lines[0].startswith("server: mpc-dealer: semi-honest")
    assert "100-bit" in lines[0]
    assert "private unless dealer pools what it sees with client or server" in lines[0]
    assert "server: mpc-dealer: server does not learn: prediction, query (unless it pools with dealer)" in lines
    assert "INSECURE" not in " ".join(lines)
    assert "nothing is hidden" not in " ".join(lines)
