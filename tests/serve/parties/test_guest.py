"""What a client does that is refused, that waits for somebody, or whose organisations have lost what was set up."""

from __future__ import annotations

import io
import json
import threading
import time

import numpy as np
import pytest

from confide import serve
from confide.crypto.random import SystemRandomness
from confide.errors import IntegrityError, PrivacyError, ProtocolError, UsageError
from confide.mpc.outsourced import Outsourced
from confide.mpc.planner import plan
from confide.mpc.two_party import WithDealer
from confide.serve.client import Client
from confide.serve.limits import Limits
from confide.serve.parties.asking import held_in_stock
from confide.serve.parties.service import Conditions, prepared, serving
from confide.wire import MemoryStore
from serve.parties.federation import founded
from serve.parties.houses import GRAPH, houses, model
from serve.parties.networks import NETWORK
from serve.parties.standin import Standin

X = np.zeros((1, GRAPH.features))


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(serve, "BACKENDS", {**serve.BACKENDS, "standin": "serve.parties.standin:Standin"})


@pytest.fixture
def alone(tmp_path):
    """A server whose dealer does not run."""
    with houses(tmp_path, Standin(), {"dealer": "broker"}, absent=("broker",)) as found:
        yield found


@pytest.fixture
def running(tmp_path):
    with houses(tmp_path, Standin(), {"dealer": "broker"}) as found:
        yield found


def client(found, **more):
    options = {"insecure_colocated_dealer": True, "give_up_seconds": 30.0} | more
    return Client(found.url, identity=found.folder / "clinic", **options)


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [({"model": "nosuch"}, "model= one of diagnosis"), ({"backend": "he"}, "backend= one of standin")],
)
def test_a_refusal_that_came_before_anybody_asked_is_told_at_once(running, asked, expected):
    with client(running, **asked) as refused:
        guest = refused._asking._guest
        until(lambda: guest._final)
        for _ in range(2):
            with pytest.raises(ProtocolError, match=f"The server refuses: Expected {expected}"):
                refused.predict(X)


def test_one_machine_is_told_at_once_although_nobody_asked_yet(running):
    with client(running) as first:
        first.predict(X)  # everybody is there: the server's offer says that it is one machine
    with client(running, insecure_colocated_dealer=False) as apart:
        guest = apart._asking._guest
        until(lambda: guest._final or guest._trouble)
        with pytest.raises((PrivacyError, ProtocolError, UsageError), match="Expected organisations apart"):
            apart.predict(X)


def test_a_client_says_for_whom_it_waits_and_gives_up_in_its_time(alone):
    told = []
    with (
        client(alone, give_up_seconds=2.5, progress=lambda done, total, what: told.append(what)) as waiting,
        pytest.raises(UsageError, match="broker"),
    ):
        waiting.predict(X)
    assert told == ["waiting for broker (the dealer)"]


def test_a_client_that_is_closed_lets_go_of_whoever_waits(alone):
    told, errors = threading.Event(), []
    waiting = client(alone, give_up_seconds=100.0, progress=lambda done, total, what: told.set())

    def ask():
        try:
            waiting.predict(X)
        except UsageError as error:
            errors.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert told.wait(20.0)
    waiting.close()
    thread.join(20.0)
    assert errors == ["Expected an answer while this client was open; it was closed first"]


def test_a_member_that_is_not_whom_the_offer_names_is_asked_nothing_the_second_time_either(running, monkeypatch):
    taken = []
    with client(running) as one:
        guest = one._asking._guest
        honest = guest.circle.facts
        monkeypatch.setattr(
            guest.circle, "facts", lambda peer: honest("server") if peer == "broker" and honest(peer) else honest(peer)
        )
        for _ in range(2):
            guest.circle.mesh.call(lambda: guest.greeted("broker"))
            with pytest.raises(IntegrityError, match="Expected broker with the identity"):
                taken.append(one.predict(X))
    assert not taken


# --- correlations ahead --------------------------------------------------------------------------------------------


def stock_of(one) -> int:
    asking = one._asking
    session = asking.session
    return held_in_stock(session.backend, session.client, asking._store_of(session), rows=1)


def test_a_client_that_begins_anew_uses_what_lies_in_stock_first(tmp_path):
    store, x = MemoryStore(), np.zeros((1, NETWORK.features))
    with houses(tmp_path, WithDealer(), {"dealer": "broker"}, graph=NETWORK) as found:
        for _ in range(4):
            with client(found, store=store, ahead=4) as one:
                one.predict(x)
                assert stock_of(one) <= 4


def test_a_lost_store_of_the_server_is_mended_with_correlations_ahead_too(tmp_path):
    store, x = MemoryStore(), np.full((1, NETWORK.features), 0.5)
    with houses(tmp_path, WithDealer(), {"dealer": "broker"}, graph=NETWORK) as found:
        with client(found, store=store, ahead=2) as one:
            one.predict(x)
        lost = found.stores["server"]
        lost.commit(dict.fromkeys(lost.keys("")))
        with client(found, store=store, ahead=6) as again:
            assert np.allclose(again.predict(x), NETWORK.apply(x), atol=2e-3)


def test_more_than_the_dealer_deals_ahead_is_said(tmp_path):
    with houses(tmp_path, WithDealer(), {"dealer": "broker"}, graph=NETWORK, stock=2) as found:
        with client(found, ahead=5) as one:
            one.predict(np.zeros((1, NETWORK.features)))
            assert any("at most 2 questions, not for ahead=5" in line for line in one.costs())
        with client(found, ahead=2) as one:
            one.predict(np.zeros((1, NETWORK.features)))
            assert not any("not for ahead" in line for line in one.costs())


def test_the_report_tells_rounds_as_planned_and_what_servers_send_each_other(tmp_path):
    partners = {"dealer": "broker", "helper": "second"}
    with houses(tmp_path, Outsourced(), partners, graph=NETWORK) as found, client(found) as one:
        for rows in (1, 1, 3):
            one.predict(np.zeros((rows, NETWORK.features)))
        report = " | ".join(one.costs())
        recipe = one._asking.session.client.recipe
    costs = {rows: plan(recipe.program(rows), "mpc-outsourced").total for rows in (1, 3)}
    links = [("server", "helper"), ("helper", "server")]
    between = sum(count * costs[rows].sent[link] for rows, count in ((1, 2), (3, 1)) for link in links)
    assert f"between the servers, as planned: {between} bytes online" in report
    assert "3 questions with 5 rows together" in report
    assert f"{costs[3].rounds} rounds (messages one after the other)" in report
    seen = sum(
        len(message.body)
        for name in ("server", "second")
        for session, message in found.seen[name]
        if "/predict/" in session and {message.src, message.dst} == {"server", "helper"}
    )
    assert between <= seen / 2 <= between + 3 * 2 * 400  # every message is seen at both ends; headers come on top


# --- what is said and refused -----------------------------------------------------------------------------------------


def test_a_second_process_of_one_identity_is_the_reason_that_the_first_one_tells(running):
    with client(running) as first:
        first.predict(X)
        with client(running) as second:
            second.predict(X)
            guest = first._asking._guest
            until(lambda: guest._replaced)
    assert "one process at a time for each identity" in guest._replaced
    assert "invite a second client" in guest._replaced


def test_each_session_is_a_json_line_without_values_and_departures_are_plain(running):
    running.servers["server"].standing.log = log = io.StringIO()
    with client(running) as one:
        one.predict(X)
    until(lambda: any("clinic has left" in line for line in running.lines))
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(one["route"], one["caller"], one["rows"], one["code"]) for one in lines] == [
        ("setup", "clinic", 0, "ok"),
        ("predict", "clinic", 1, "ok"),
    ]
    assert not any("stops" in line for line in running.lines if "has left" in line)


def test_a_member_of_another_role_and_a_missing_one_are_refused_before_anything_listens(tmp_path):
    home = founded(tmp_path, {"broker": "dealer", "clinic": "client", "second": "helper"})
    served = prepared(model(Standin()), Limits(), SystemRandomness())

    def begin(partners):
        conditions = Conditions(address="127.0.0.1", port=0, store=MemoryStore())
        with serving(home, served, partners, conditions, limits=Limits()):
            raise AssertionError

    with pytest.raises(UsageError, match="Expected 'clinic' to be invited as a dealer, it is a client"):
        begin({"dealer": "clinic"})
    with pytest.raises(UsageError, match="--dealer NAME; --dealer is missing, --helper is one too many"):
        begin({"helper": "second"})
    with pytest.raises(UsageError, match="--dealer NAME; --dealer is missing$"):
        begin({})
