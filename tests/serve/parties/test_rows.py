"""Tables of any length are asked in batches that fit: what a prediction takes is known ahead."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pytest

from confide import serve
from confide.errors import ConfideError, ProtocolError
from confide.mpc import holdings, replicated
from confide.mpc.two_party import WithDealer
from confide.serve.client import Client
from confide.serve.limits import Limits
from confide.serve.parties.asking import JointAsking
from confide.serve.parties.guest import Guest
from confide.serve.parties.service import prepared
from confide.serve.parties.sessions import Bounds
from mpc.nets import mnist
from mpc.sessions import RNG
from serve.parties.houses import houses, model
from serve.parties.networks import NETWORK
from serve.parties.test_backends import PARTNERS


@pytest.mark.parametrize("mode", sorted(PARTNERS))
def test_a_server_offers_no_more_rows_than_a_prediction_holds(mode):
    backend = serve.load_backend(mode)
    for limits, most in ((Limits(), 1000), (Limits(batch_rows=3), 3)):
        (one,) = prepared(model(backend, graph=mnist()), limits, RNG)
        offered = msgspec.msgpack.decode(one.client_kit)["max_rows"]
        assert 3 <= offered == one.max_rows <= most
        one.kits["client"].plans.of(offered)


@pytest.mark.parametrize("mode", sorted(PARTNERS))
def test_a_table_is_asked_in_batches_that_fit(mode, tmp_path, monkeypatch):
    kind, partners = PARTNERS[mode]
    monkeypatch.setattr(holdings, "PROGRAM_BYTES", 40_000)
    monkeypatch.setattr(replicated, "PROGRAM_BYTES", 4_000)
    x = np.random.default_rng(5).uniform(-1, 1, (100, NETWORK.features))
    with (
        houses(tmp_path, kind(), partners, graph=NETWORK, limits=Limits()) as found,
        Client(found.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True) as client,
    ):
        assert np.allclose(client.predict(x), NETWORK.apply(x), atol=2e-3)
    asked = {session for session, _ in found.seen["server"] if "/predict/" in session}
    assert 4 <= len(asked) <= 50
    assert not found.broken


def test_much_stock_is_ordered_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(holdings, "ORDER_BYTES", 30_000)
    x = np.random.default_rng(5).uniform(-1, 1, (1, NETWORK.features))
    bounds = Bounds(session_bytes=60_000)
    with (
        houses(tmp_path, WithDealer(), {"dealer": "broker"}, graph=NETWORK, stock=64, bounds=bounds) as found,
        Client(found.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True, ahead=64) as client,
    ):
        assert np.allclose(client.predict(x), NETWORK.apply(x), atol=2e-3)
    assert len({session for session, _ in found.seen["broker"] if "/deal/" in session}) > 4
    assert not found.broken


@pytest.mark.parametrize("mode", sorted(PARTNERS))
def test_no_more_rows_are_answered_than_were_ordered(mode, tmp_path, monkeypatch):
    """A client that orders one row and asks fifty is answered none: what is ordered is what is counted."""
    kind, partners = PARTNERS[mode]
    run = Guest.run

    def understating(self, kind, build, *, rows=0, **more):
        return run(self, kind, build, rows=min(rows, 1), **more)

    monkeypatch.setattr(Guest, "run", understating)
    x = np.random.default_rng(5).uniform(-1, 1, (50, NETWORK.features))
    with (
        houses(tmp_path, kind(), partners, graph=NETWORK) as found,
        Client(found.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True) as client,
    ):
        with pytest.raises(ConfideError, match="as many rows as were ordered"):
            client.predict(x)
        assert "0 predictions (0 rows)" in found.servers["server"].standing.line()
        assert np.allclose(client.predict(x[:1]), NETWORK.apply(x[:1]), atol=2e-3)
    assert not found.broken


@pytest.mark.parametrize("mode", sorted(PARTNERS))
def test_every_role_that_serves_holds_to_the_rows_of_its_session(mode):
    kits = serve.load_backend(mode).prepare(NETWORK, RNG)
    for role in set(kits) - {"client"}:
        ordered = kits[role].for_rows(3)
        assert ordered.plans.of(3) is kits[role].plans.of(3)
        for rows in (1, 2, 4):
            with pytest.raises(ProtocolError, match="as many rows as were ordered"):
                ordered.plans.of(rows)
        kits[role].plans.of(2)  # that of other sessions


@pytest.mark.parametrize("mode", ["mpc-dealer", "mpc-outsourced"])
def test_a_dealer_refuses_an_order_of_more_than_is_dealt_at_a_time(mode, tmp_path, monkeypatch):
    kind, partners = PARTNERS[mode]
    monkeypatch.setattr(holdings, "ORDER_BYTES", 30_000)
    deal = JointAsking.deal

    def whole(self, session, *, rows, count):
        monkeypatch.setattr(session.backend, "deals_at_a_time", lambda kit, *, rows: 64, raising=False)
        return deal(self, session, rows=rows, count=count)

    monkeypatch.setattr(JointAsking, "deal", whole)
    x = np.random.default_rng(5).uniform(-1, 1, (1, NETWORK.features))
    with (
        houses(tmp_path, kind(), partners, graph=NETWORK, stock=64) as found,
        Client(found.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True, ahead=64) as client,
    ):
        with pytest.raises(ConfideError, match="dealt for at a time"):
            client.predict(x)
        end = time.monotonic() + 10.0  # everybody is told
        while any(one.circle.sessions.count for one in found.servers.values()) and time.monotonic() < end:
            time.sleep(0.02)
        assert not any(one.circle.sessions.count for one in found.servers.values())
    assert not found.broken
