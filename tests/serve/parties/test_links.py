"""Links over time: a connection that is cut between, certificates that change beside, and rows that are counted."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest

from confide.errors import ConfideError
from confide.mpc.outsourced import Outsourced
from confide.mpc.two_party import WithDealer
from confide.net.founding import refresh
from confide.net.membership import own_certificate
from confide.serve.access import Quota
from confide.serve.client import Client
from confide.serve.keys import Counts
from confide.serve.parties import service
from confide.store import open_store
from serve.parties.houses import houses
from serve.parties.networks import NETWORK

X = np.random.default_rng(5).uniform(-1, 1, (2, NETWORK.features))


def right(client, x=X) -> bool:
    return np.allclose(client.predict(x), NETWORK.apply(x), atol=2e-3)


def until(true, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


class Relay:
    """Passes bytes on to a port, until it is cut; whoever connects again is passed on again."""

    def __init__(self, port: int) -> None:
        self.port, self.connections = port, 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"wss://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def cut(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()
        for one in (self._listener, *self._open):
            one.close()

    def _start(self, work, *arguments) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
                self.connections += 1
                self._open += [near, far]
                self._start(self._pass, near, far)
                self._start(self._pass, far, near)

    def _pass(self, src: socket.socket, dst: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := src.recv(1 << 16):
                dst.sendall(data)
        with contextlib.suppress(OSError):
            dst.shutdown(socket.SHUT_RDWR)


# --- a connection that is cut -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 4])
def test_a_client_whose_link_is_cut_connects_and_predicts_again(tmp_path, ahead):
    with houses(tmp_path, WithDealer(), {"dealer": "broker"}, graph=NETWORK) as found:
        relay = Relay(urlsplit(found.url).port or 0)
        with (
            contextlib.closing(relay),
            Client(relay.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True, ahead=ahead) as client,
        ):
            assert right(client)
            for cuts in (1, 2):
                relay.cut()
                assert until(lambda cuts=cuts: relay.connections == cuts + 1)
                assert right(client)
            setups = {session for session, _ in found.seen["server"] if "/setup/" in session}
        assert len(setups) == 1  # what was set up holds
    assert not found.broken


def test_a_prediction_that_is_cut_ends_and_the_next_one_is_answered(tmp_path):
    with houses(tmp_path, WithDealer(), {"dealer": "broker"}, graph=NETWORK) as found:
        relay = Relay(urlsplit(found.url).port or 0)
        with (
            contextlib.closing(relay),
            Client(relay.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True) as client,
        ):
            assert right(client)
            circle = found.servers["server"].circle
            seen = circle.sessions._seen

            def cutting(session, message):
                circle.sessions._seen = seen
                relay.cut()
                seen(session, message)

            circle.sessions._seen = cutting  # at the first message of the next session
            with pytest.raises(ConfideError):
                client.predict(X)
            assert until(lambda: not any(one.circle.sessions.count for one in found.servers.values()))
            assert right(client)
    assert not found.broken


# --- certificates -----------------------------------------------------------------------------------------------------


def test_certificates_are_renewed_while_predictions_run(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_RENEW_SECONDS", 0.0)
    monkeypatch.setattr(service, "_RECHECK_SECONDS", 0.1)
    monkeypatch.setattr(service, "renewal_due", lambda folder: True)
    monkeypatch.setattr(service, "refresh", lambda folder: refresh(folder, force=True))
    partners = {"dealer": "broker", "helper": "second"}
    with (
        houses(tmp_path, Outsourced(), partners, graph=NETWORK) as found,
        Client(found.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True) as client,
    ):
        assert right(client)
        folders = [tmp_path / name for name in ("federation", "broker", "second")]
        before = [own_certificate(folder) for folder in folders]
        gone = len([line for line in found.lines if " has left" in line])
        asked = 0
        end = time.monotonic() + 30.0
        while time.monotonic() < end and (
            asked < 5 or any(own_certificate(folder) == old for folder, old in zip(folders, before, strict=True))
        ):
            assert right(client)
            asked += 1
        for folder, old in zip(folders, before, strict=True):
            assert own_certificate(folder) != old
        assert sum("certificate was renewed" in line for line in found.lines) >= 3
        assert len([line for line in found.lines if " has left" in line]) == gone  # no link ended for it
        with Client(found.url, identity=tmp_path / "clinic", insecure_colocated_dealer=True) as later:
            assert right(later)  # with the certificates that are shown now
    assert not found.broken


# --- quota ------------------------------------------------------------------------------------------------------------


def test_rows_are_counted_by_certificate_and_refused_beyond_the_quota(tmp_path):
    with contextlib.closing(open_store(tmp_path / "counts.db")) as store:
        for rows in (6, 2):  # after a restart of the server the count goes on
            quota = Quota(8, Counts(store, "serve/usage/"))
            with houses(
                tmp_path / str(rows),
                WithDealer(),
                {"dealer": "broker"},
                clients=("clinic", "other"),
                graph=NETWORK,
                quota=quota,
            ) as found:
                home = tmp_path / str(rows)
                with (
                    Client(found.url, identity=home / "clinic", insecure_colocated_dealer=True) as client,
                    Client(found.url, identity=home / "other", insecure_colocated_dealer=True) as other,
                ):
                    for _ in range(rows // 2):
                        assert right(client)
                    if rows == 2:
                        for _ in range(12):  # each orders from the dealer too: it is told, and stays
                            with pytest.raises(ConfideError, match="at most 8 rows"):
                                client.predict(X)
                        assert until(lambda: not any(one.circle.sessions.count for one in found.servers.values()))
                        assert right(other)
                        assert not found.servers["server"].circle.sessions._early  # nothing of them waits for an order
                    assert not any("broker, the dealer, has left" in line for line in found.lines)
            quota.close()
            assert not found.broken
