"""A server, a dealer and a client over TLS: answers are right, and what a driver carries is what the parties said."""

from __future__ import annotations

import numpy as np
import pytest

from confide import serve
from confide.serve.client import Client
from serve.parties.houses import GRAPH, houses
from serve.parties.standin import Standin

X = np.array([[0.5, -0.25, 0.125], [0.25, 0.75, -0.5]])


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(serve, "BACKENDS", {**serve.BACKENDS, "standin": "serve.parties.standin:Standin"})


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with houses(tmp_path_factory.mktemp("houses"), Standin(), {"dealer": "broker"}) as found:
        yield found


def test_a_prediction(running):
    with Client(running.url, identity=running.folder / "clinic", insecure_colocated_dealer=True) as client:
        y = client.predict(X)
        assert np.allclose(y, GRAPH.apply(X), atol=1e-3)
        print(client.costs(), client.guarantee, running.lines)
    assert not running.broken
