"""What is struck off before anybody asks: a question waits for no commit, and what a process held is lost with it."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest

from confide.errors import AskAgain
from confide.mpc.stock import Prepared
from confide.mpc.two_party import WithDealer
from confide.serve.client import Client
from confide.serve.key_store import KeyStore
from serve.parties.houses import GRAPH, houses
from serve.parties.processes import organisations
from serve.toy import GRAPH as SERVED

X = np.array([[0.5, -0.25, 0.125]])


def right(client: Client, graph=GRAPH) -> bool:
    return bool(np.allclose(client.predict(X), graph.apply(X), atol=1e-3))


def until(true, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def whole(store) -> list[bytes]:
    return [store.get(key) for key in store.keys("") if "/whole/" in key]


def test_a_client_takes_the_next_when_what_was_held_is_lost(tmp_path):
    with (
        houses(tmp_path, WithDealer(), {"dealer": "broker"}) as found,
        Client(found.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True, ahead=4) as client,
    ):
        assert right(client)
        server = found.servers["server"]
        store = found.stores["server"]
        assert until(lambda: b"\2" in whole(store))
        (model,) = server._models.values()
        server.circle.mesh.call(lambda: setattr(model.prepared.kits["server"], "prepared", Prepared()))
        before = {session for session, _ in found.seen["server"]}
        assert right(client)
        sessions = {session for session, _ in found.seen["server"]} - before
        assert len([one for one in sessions if "/predict/" in one]) == 2
        assert not any("/setup/" in one for one in sessions)  # what was set up holds
        sent = [
            (session, message.tag)
            for session, message in found.seen["server"]
            if session in sessions and message.src == "server"
        ]
        assert len({session for session, tag in sent if "/run/" in tag}) == 1  # nothing left under what was lost
    assert not found.broken


def test_no_commit_lies_between_a_question_and_its_answer(tmp_path):
    with (
        houses(tmp_path, WithDealer(), {"dealer": "broker"}) as found,
        Client(found.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True, ahead=8) as client,
    ):
        assert right(client)
        store, log = found.stores["server"], []
        commit = store.commit

        def committing(changes):
            log.append(("commit", any(value is not None for value in changes.values())))
            commit(changes)

        with contextlib.suppress(AttributeError):
            store.commit = committing
        for _ in range(2):
            assert until(lambda: b"\2" in whole(store))
            time.sleep(0.3)  # what was used is dealt anew beside
            seen = found.servers["server"].circle.sessions._seen

            def looking(session, message, seen=seen):
                log.append(("message", f"{message.src} {message.tag}"))
                seen(session, message)

            log.clear()
            found.servers["server"].circle.sessions._seen = looking
            assert right(client)
            found.servers["server"].circle.sessions._seen = seen
            last = max(at for at, (kind, what) in enumerate(log) if kind == "message" and what.startswith("server"))
            assert not any(kind == "commit" for kind, _ in log[:last])
    assert not found.broken


@pytest.mark.slow
def test_a_server_killed_between_strike_off_and_question_uses_nothing_twice(tmp_path):
    with (
        organisations(tmp_path, "mpc-dealer", {"dealer": "broker"}) as found,
        KeyStore(tmp_path / "keys") as store,
        Client(
            found.url,
            identity=tmp_path / "clinic",
            insecure_colocated_dealer=True,
            store=store,
            ahead=4,
            timeout_seconds=20,
        ) as client,
    ):
        assert right(client, SERVED), found.logs()
        set_up, guest, ends = client._asking.session.key_id, client._asking._guest, []
        run = guest.run

        def watched(kind, *rest, **more):
            ended, seen = run(kind, *rest, **more)
            if kind == "predict":
                ends.append(ended.error and type(ended.error))
            return ended, seen

        guest.run = watched
        for _ in range(2):
            time.sleep(1.0)  # the next is struck off by now
            found.restart("server")
            assert right(client, SERVED), found.logs()
            assert client._asking.session.key_id == set_up, found.logs()
        assert ends == [AskAgain, None] * 2, found.logs()
