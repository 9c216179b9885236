"""Predictions of every kind of backend, with all roles in one process."""

from __future__ import annotations

import numpy as np
import pytest

from confide.compare.inference import Sitting, asked, backend_of, misfit
from confide.compare.links import LINKS
from confide.compare.prices import PUBLISHED
from confide.errors import ModelError, UsageError
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.zoo import mlp

STREAM = np.random.default_rng(3)
MODEL = Graph((Linear(STREAM.normal(size=(1, 4)), STREAM.normal(size=1)), Sigmoid()))
X = STREAM.uniform(-1, 1, (4, 4))


def figures(choice: str, graph: Graph = MODEL, **given):
    return asked(choice, graph, X, links=list(LINKS.values()), prices=PUBLISHED, **given)


@pytest.fixture(scope="module")
def rows():
    return {choice: figures(choice) for choice in ("plain", "he", "mpc-dealer", "tee")}


def test_the_ideal_backend_is_exact(rows):
    plain = rows["plain"].figures
    assert plain["error_largest"] == 0.0
    assert plain["agreement_share"] == 1.0
    assert plain["depth_count"] == 2
    assert plain["offline_bytes"] == plain["key_bytes"] == plain["between_servers_bytes"] == 0.0
    assert plain["extraction_queries"] == 5
    assert plain["extraction_agreement_share"] == 1.0


def test_what_protects_is_right_and_dearer(rows):
    plain = rows["plain"]
    for choice in ("he", "mpc-dealer", "tee"):
        found = rows[choice]
        assert found.figures["error_largest"] < 0.02
        assert found.figures["agreement_share"] == 1.0
        assert found.figures["money_dollars"] > plain.figures["money_dollars"]
        for name, values in plain.samples.items():
            assert len(found.samples[name]) == len(values) == len(X) - 1
    assert np.median(rows["he"].samples["upload_bytes"]) > 100 * np.median(plain.samples["upload_bytes"])
    assert rows["tee"].figures["error_largest"] == 0.0


def test_correlations_are_dealt_ahead_and_counted_apart(rows):
    dealt = rows["mpc-dealer"].figures
    assert dealt["offline_bytes"] > 0
    assert dealt["offline_wan_seconds"] > dealt["offline_lan_seconds"] > 0
    sitting = Sitting(backend_of("mpc-dealer", MODEL, X), MODEL)
    sitting.setup()
    sitting.stock(2)
    online = sitting.predict(X[:1])
    assert "dealer" not in {event.party for event in online.events}
    sitting.predict(X[:1])
    assert "dealer" in {event.party for event in sitting.predict(X[:1]).events}  # nothing is left in stock


def test_what_roles_keep_and_send_adds_up(rows):
    plain, he, dealt = (rows[choice].figures for choice in ("plain", "he", "mpc-dealer"))
    assert plain["disk_of_client_bytes"] == plain["disk_of_server_bytes"] == 0.0
    assert he["disk_of_server_bytes"] >= he["key_bytes"] > 0  # the client's public keys
    assert he["disk_of_client_bytes"] > 1000  # its secret ones
    assert dealt["disk_of_dealer_bytes"] > 0
    assert figures("plain", attack=False, model_bytes=1234).figures["disk_of_server_bytes"] == 1234
    for choice, found in rows.items():
        sums = found.figures
        parts = [np.median(found.samples[name]) for name in ("upload_bytes", "download_bytes")]
        sent = sum(parts) + sums["between_servers_bytes"] + sums["offline_bytes"]
        assert sums["query_total_bytes"] == pytest.approx(sent), choice
        money = [value for name, value in sums.items() if name.startswith("money_of_")]
        assert sums["money_dollars"] == pytest.approx(sum(money))
        assert len(money) == len(backend_of(choice, MODEL, X).roles)


def test_links_only_add(rows):
    for found in rows.values():
        means = [np.median(found.samples[f"latency_{name}_seconds"]) for name in ("loopback", "lan", "wan", "mobile")]
        assert means == sorted(means)
        assert means[2] >= found.figures["depth_count"] * 0.02


def test_a_guarantee_stands_beside_every_figure(rows):
    assert not rows["plain"].guarantee.claims
    assert not rows["tee"].guarantee.claims  # simulated: it protects nothing
    assert rows["he"].guarantee.hides("query", "server")
    assert rows["mpc-dealer"].guarantee.hides("query", "server")


def test_three_servers_exchange_bytes():
    found = figures("mpc-3pc", attack=False).figures
    assert found["between_servers_bytes"] > 0
    assert "extraction_queries" not in found


def test_what_does_not_fit_says_why():
    network = mlp(4, 3, seed=1)
    with pytest.raises(ModelError, match="Square"):
        figures("paillier", network)
    assert "same as he" in str(misfit("he-open", backend_of("he-open", network, X), network))
    assert misfit("he-open", backend_of("he-open", MODEL, X), MODEL) is None
    with pytest.raises(ModelError, match="nonesuch"):
        backend_of("nonesuch", MODEL, X)


def test_inputs_beyond_the_usual_box_are_taken():
    x = 3 * X
    found = asked("he", MODEL, x, links=[], prices=PUBLISHED, attack=False).figures
    assert found["error_largest"] < 0.02


def test_one_query_is_no_measurement():
    with pytest.raises(UsageError, match="at least 2"):
        asked("plain", MODEL, X[:1], links=[], prices=PUBLISHED)
