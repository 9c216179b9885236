"""A party that only works leaves the thread between its steps, and does the same as without."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from confide import serve
from confide.errors import Aborted
from confide.mpc.two_party import WithDealer
from confide.serve.client import Client
from confide.serve.parties import turns
from confide.serve.parties.turns import in_turns
from confide.wire import Message, Step
from serve.parties.houses import houses
from serve.parties.networks import NETWORK
from serve.parties.standin import Standin

X = np.random.default_rng(5).uniform(-1, 1, (1, NETWORK.features))


def works(steps: int):
    """A party that asks once, then sends without waiting."""
    got = yield Step(await_tag="ask", wait_for=("client",))
    for number in range(steps):
        yield Step((Message("dealer", "client", f"piece/{number}", got["client"].body),), save={f"{number}": b"x"})
    return steps


def test_a_step_that_waits_for_nobody_waits_for_its_own_role():
    asked: list[str] = []
    party = in_turns(works(3), "dealer", asked.append)
    step = next(party)
    assert (step.await_tag, step.wait_for, asked) == ("ask", ("client",), [])
    received = {"client": Message("client", "dealer", "ask", b"body")}
    for number in range(3):
        step = party.send(received)
        assert [message.tag for message in step.send] == [f"piece/{number}"]
        assert step.save == {f"{number}": b"x"}
        assert (step.await_tag, step.wait_for) == (f"turn/{number + 1}", ("dealer",)) == (asked[-1], ("dealer",))
        received = {"dealer": Message("dealer", "dealer", step.await_tag, b"")}
    with pytest.raises(StopIteration) as ended:
        party.send(received)
    assert ended.value.value == 3
    assert len(asked) == 3


def test_it_ends_with_the_party_that_it_wraps():
    closed = []

    def inner():
        try:
            yield Step()
            yield Step()
        finally:
            closed.append(True)

    party = in_turns(inner(), "dealer", lambda tag: None)
    next(party)
    with pytest.raises(Aborted):
        party.throw(Aborted("over"))
    assert closed
    party = in_turns(inner(), "dealer", lambda tag: None)
    next(party)
    party.close()
    assert len(closed) == 2


@pytest.fixture
def running(tmp_path):
    with houses(
        tmp_path, WithDealer(), {"dealer": "broker"}, clients=("many", "one"), graph=NETWORK, stock=64
    ) as found:
        yield found


def test_a_prediction_on_demand_is_answered_while_another_client_is_dealt_many(running):
    """The dealer's steps of the two clients alternate: none waits for the end of the other's deal."""
    order: list[str] = []
    seen = running.servers["broker"].circle.sessions._seen

    def watched(session, message):
        if message.src == "dealer":
            order.append(session.split("/")[0])
        seen(session, message)

    running.servers["broker"].circle.sessions._seen = watched
    identity = {name: running.folder / name for name in ("many", "one")}
    with (
        Client(running.url, identity=identity["many"], insecure_colocated_dealer=True, ahead=64) as many,
        Client(running.url, identity=identity["one"], insecure_colocated_dealer=True) as one,
    ):
        one.predict(X)
        many.setup()
        order.clear()
        beside = threading.Thread(target=lambda: many.predict(X))
        beside.start()
        while not order:
            pass
        while beside.is_alive():
            assert np.allclose(one.predict(X), NETWORK.apply(X), atol=2e-3)
        beside.join()
    first, last = order.index("many"), len(order) - 1 - order[::-1].index("many")
    assert "one" in order[first:last]
    assert not running.broken


def test_nothing_is_made_while_the_links_are_full(running, monkeypatch):
    monkeypatch.setattr(turns, "MOST_WAITING_BYTES", 0)
    mesh = running.servers["broker"].circle.mesh
    most = [0]
    whole = type(mesh).waiting_bytes

    def measured(self, peer):
        waits = whole(self, peer)
        most[0] = max(most[0], waits)
        return waits

    monkeypatch.setattr(type(mesh), "waiting_bytes", measured)
    with Client(running.url, identity=running.folder / "many", insecure_colocated_dealer=True, ahead=64) as many:
        assert np.allclose(many.predict(X), NETWORK.apply(X), atol=2e-3)
    assert most[0] < 100_000


def test_backends_that_wait_for_others_at_each_step_are_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "BACKENDS", {**serve.BACKENDS, "standin": "serve.parties.standin:Standin"})
    with (
        houses(tmp_path, Standin(), {"dealer": "broker"}) as found,
        Client(found.url, identity=found.folder / "clinic", insecure_colocated_dealer=True, ahead=4) as client,
    ):
        assert client.predict(np.array([[0.5, -0.25, 0.125]])).shape == (1, 2)
    assert not found.broken
