"""Joining and renewing over a real connection: WebSocket over TLS, by a server that is not our code."""

import socket
import threading

import pytest

from confide.crypto.keys import SigningKey
from confide.errors import MissingExtra, ProtocolError, UsageError
from confide.net import membership
from confide.net.asking import asking
from confide.net.folders import identity_seed
from net.coordinators import answering, free_port
from net.federations import Houses


@pytest.fixture
def houses(tmp_path):
    listener = free_port()
    houses = Houses(tmp_path, address=f"127.0.0.1:{listener.getsockname()[1]}")
    houses.listener = listener
    yield houses
    listener.close()


def by(invitation, **changed):
    """How the invitation says to ask."""
    fields = {"url": invitation.coordinator, "authorities": invitation.authorities, "identity": invitation.identity}
    return asking(**(fields | changed))


def test_join_and_renew_over_the_network(houses):
    invitation = houses.invited("north")
    with answering(houses.coordinator, houses.listener, houses.registrar.answer):
        member = membership.join(houses.root / "north", invitation, by(invitation))
        houses.registrar.admit(member)
        renewed = membership.renew(houses.root / "north", by(invitation))
        houses.registrar.admit(renewed)
        assert renewed.fingerprint != member.fingerprint


@pytest.mark.parametrize("how", ["answer", "reply"])
def test_a_refusal_says_why(houses, how):
    """By the close frame, or in the body."""
    invitation = houses.invited("north")
    houses.registrar.revoke("north")
    with (
        answering(houses.coordinator, houses.listener, getattr(houses.registrar, how)),
        pytest.raises(ProtocolError, match="The coordinator refused: Expected an open invitation"),
    ):
        membership.join(houses.root / "north", invitation, by(invitation))


def test_a_lost_answer_is_asked_for_again(houses):
    """The coordinator grants, the answer is lost; the next try gets the certificate."""
    invitation = houses.invited("north")

    def lose(body):
        houses.registrar.answer(body)
        raise ProtocolError("")

    second = houses.listener.dup()
    with answering(houses.coordinator, houses.listener, lose), pytest.raises(ProtocolError, match="it hung up"):
        membership.join(houses.root / "north", invitation, by(invitation))
    with answering(houses.coordinator, second, houses.registrar.answer):
        member = membership.join(houses.root / "north", invitation, by(invitation))
    houses.registrar.admit(member)
    assert len(houses.registrar.members()) == 1


def test_the_wrong_coordinator_gets_no_request(houses, tmp_path):
    """Another authority, another identity: refused before anything is sent."""
    (tmp_path / "other").mkdir()
    other = Houses(tmp_path / "other")
    invitation, sent = houses.invited("north"), []
    stranger = SigningKey(identity_seed(other.coordinator)).public
    with answering(houses.coordinator, houses.listener, sent.append):
        with pytest.raises(UsageError, match="not by this federation's authority"):
            by(invitation, authorities=membership.trusted(other.coordinator))(b"secret")
        with pytest.raises(ProtocolError, match="Expected the coordinator of the invitation"):
            by(invitation, identity=stranger)(b"secret")
    assert sent == []


def test_through_an_http_proxy(houses):
    """A proxy that knows CONNECT alone carries it; it sees the address, and bytes that are not the request."""
    invitation, seen = houses.invited("north"), []

    def carry(listener):
        client, _ = listener.accept()
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            asked += client.recv(1)
        seen.append(asked)
        host, port = asked.split()[1].decode().split(":")
        with client, socket.create_connection((host, int(port))) as server:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

            def pump(source, target):
                while body := source.recv(1 << 16):
                    seen.append(body)
                    target.sendall(body)
                target.shutdown(socket.SHUT_WR)

            back = threading.Thread(target=pump, args=(server, client))
            back.start()
            pump(client, server)
            back.join()

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        answering(houses.coordinator, houses.listener, houses.registrar.answer),
    ):
        thread = threading.Thread(target=carry, args=(listener,))
        thread.start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        membership.join(houses.root / "north", invitation, by(invitation, proxy=proxy))
        thread.join()
    assert seen[0].startswith(f"CONNECT {invitation.coordinator.removeprefix('wss://')} HTTP/1.1".encode())
    assert not any(b"north" in body or invitation.key.public in body for body in seen[1:])
    with pytest.raises(UsageError, match="and the proxy"):
        by(invitation, proxy="nonsense")(b"x")


def test_an_answer_that_is_text_is_refused(houses):
    invitation = houses.invited("north")
    with (
        answering(houses.coordinator, houses.listener, lambda body: "text"),
        pytest.raises(ProtocolError, match="well-formed answer"),
    ):
        by(invitation)(b"x")


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", None])
def test_what_is_no_coordinator_is_told(says):
    """A plain server, one that hangs up, nobody: one line for people."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(says)

        thread = threading.Thread(target=serve)
        if says is None:
            listener.close()
        else:
            thread.start()
        with pytest.raises(UsageError, match=rf"^No connection to wss://127.0.0.1:{port}: ") as caught:
            asking(f"wss://127.0.0.1:{port}", CERTIFICATE, bytes(32))(b"x")
        assert "\n" not in str(caught.value)
        if says is not None:
            thread.join()


def test_without_websockets_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "websockets.exceptions", None)
    with pytest.raises(MissingExtra, match=r"pip install 'confide\[federate\]'"):
        asking("wss://127.0.0.1:1", CERTIFICATE, bytes(32))(b"x")


def _certificate():
    from datetime import UTC, datetime

    from confide.crypto.random import SystemRandomness
    from confide.net.authority import Authority

    return (Authority.create("three", SystemRandomness(), now=datetime.now(UTC)).certificate,)


CERTIFICATE = _certificate()
