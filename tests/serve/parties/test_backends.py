"""The MPC backends over TLS: what they answer, and that the driver carries the bytes that they say in one process."""

from __future__ import annotations

import numpy as np
import pytest

from confide.mpc.outsourced import Outsourced
from confide.mpc.replicated import Replicated
from confide.mpc.two_party import WithDealer
from confide.serve.client import Client
from confide.serve.parties.service import as_served
from serve.parties.houses import houses
from serve.parties.networks import NETWORK

PARTNERS = {
    "mpc-dealer": (WithDealer, {"dealer": "broker"}),
    "mpc-3pc": (Replicated, {"helper": "second", "third": "last"}),
    "mpc-outsourced": (Outsourced, {"dealer": "broker", "helper": "second"}),
}


@pytest.fixture(params=sorted(PARTNERS), scope="module")
def running(request, tmp_path_factory):
    kind, partners = PARTNERS[request.param]
    with houses(tmp_path_factory.mktemp("houses"), kind(), partners, graph=NETWORK) as found:
        yield found


def test_predictions_are_right(running):
    x = np.random.default_rng(5).uniform(-1, 1, (5, NETWORK.features))
    with Client(running.url, identity=running.folder / "clinic", insecure_colocated_dealer=True) as client:
        for _ in range(2):
            assert np.allclose(client.predict(x), NETWORK.apply(x), atol=2e-3)
    assert not running.broken


def test_predictions_from_stock_need_no_dealer(running):
    if "dealer" not in running.partners:
        pytest.skip("nobody deals")
    x = np.random.default_rng(6).uniform(-1, 1, (1, NETWORK.features))
    identity = running.folder / "clinic"
    with Client(running.url, identity=identity, insecure_colocated_dealer=True, ahead=6) as client:
        for _ in range(3):
            transcript = client.ask(x)
            assert np.allclose(transcript.output("client"), NETWORK.apply(x), atol=2e-3)
            assert not {"dealer"} & {name for one in transcript.messages for name in (one.src, one.dst)}
        for _ in range(12):
            assert np.allclose(client.predict(x), NETWORK.apply(x), atol=2e-3)
    assert not running.broken


@pytest.mark.parametrize("mode", sorted(PARTNERS))
def test_no_guarantee_hides_the_model_from_the_server_that_shares_it_out(mode):
    whole = PARTNERS[mode][0]().guarantee
    served = as_served(whole)
    assert not served.hides("weights", "server")
    assert {claim for claim in whole.claims if claim.hidden_from != "server"} <= served.claims
    assert served.hides("query", "server")
    assert (served == whole) == (mode == "mpc-dealer")
