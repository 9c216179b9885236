"""Who is revoked is let in nowhere: the server tells its partners, those that come later too."""

from __future__ import annotations

import time

import numpy as np
import pytest

from confide import serve
from confide.errors import ConfideError
from confide.net.contexts import client_context
from confide.net.link import Left
from confide.net.registrar import Registrar
from confide.serve.client import Client
from confide.serve.parties import service
from confide.serve.parties.messages import Revoked, letter
from confide.serve.parties.service import partnering
from serve.parties.houses import GRAPH, houses
from serve.parties.standin import Standin
from serve.parties.test_hostile import Rogue

X = np.array([[0.5, -0.25, 0.125]])


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(serve, "BACKENDS", {**serve.BACKENDS, "standin": "serve.parties.standin:Standin"})
    monkeypatch.setattr(service, "_RECHECK_SECONDS", 0.05)


class Visitor(Rogue):
    """A member at a partner alone."""

    def __init__(self, found, name: str) -> None:
        super().__init__(found.url, found.folder / name)
        url, context = found.servers["broker"].circle.me.url, client_context(found.folder / name)
        self.mesh.call(lambda: self.mesh.dial("broker", url, context, role="dealer"))

    def left(self, peer: str) -> str:
        while True:
            event = self.next(Left)
            if event.peer == peer:
                return event.reason


def test_a_revoked_member_is_dropped_by_partners_and_does_not_come_back(tmp_path):
    with houses(tmp_path, Standin(), {"dealer": "broker"}, clients=("clinic", "rogue")) as found:
        with Client(found.url, identity=tmp_path / "rogue", insecure_colocated_dealer=True) as client:
            assert np.allclose(client.predict(X), GRAPH.apply(X), atol=1e-3)
            Registrar(tmp_path / "federation").revoke("rogue")
            end = time.monotonic() + 10.0
            while "rogue" in found.servers["broker"].circle.peers and time.monotonic() < end:
                time.sleep(0.01)
            assert "rogue" not in found.servers["broker"].circle.peers
            with pytest.raises(ConfideError):
                client.predict(X)
        again = Visitor(found, "rogue")
        try:
            assert "rogue was revoked" in again.left("broker")
        finally:
            again.mesh.close()
        with Client(found.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True) as client:
            assert np.allclose(client.predict(X), GRAPH.apply(X), atol=1e-3)
    assert not found.broken


def test_a_partner_that_comes_later_is_told_before_it_takes_part(tmp_path):
    with houses(tmp_path, Standin(), {"dealer": "broker"}, clients=("clinic", "rogue")) as found:
        Registrar(tmp_path / "federation").revoke("rogue")
        identities = Registrar(tmp_path / "federation").revoked()
        assert len(identities) == 1
        end = time.monotonic() + 10.0
        while found.servers["server"]._revoked != identities and time.monotonic() < end:
            time.sleep(0.01)
        conditions = found.conditions("broker2", "dealer")
        with partnering(tmp_path / "broker", conditions, stock=8, load=lambda _: Standin(), coordinator=found.url) as (
            partner,
            _,
        ):  # it takes the place of the first
            end = time.monotonic() + 10.0
            while not partner._parts and time.monotonic() < end:
                time.sleep(0.01)
            assert partner._parts
            assert partner.refusal("rogue", identities[0]) == "Expected a member, rogue was revoked"
            assert partner.refusal("clinic", bytes(32)) is None


def test_only_the_server_says_who_is_revoked(tmp_path):
    with houses(tmp_path, Standin(), {"dealer": "broker"}, clients=("clinic", "rogue")) as found:
        rogue = Rogue(found.url, tmp_path / "rogue")
        try:
            rogue.hello()
            rogue.say(letter("rogue", "server", Revoked((bytes(32),))))
            assert "Expected a question" in rogue.next(Left).reason
        finally:
            rogue.mesh.close()
