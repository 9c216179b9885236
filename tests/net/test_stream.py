"""The driver between honest ends: who is there, what arrives, and how both sides get over what breaks."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException

from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError, UsageError
from confide.net.caller import Waits
from confide.net.exchange import Envelope
from confide.net.frames import FRAME_BYTES
from confide.net.limits import Limits
from confide.net.link import Arrived, Joined, Left
from confide.net.listener import LARGEST_ENROLMENT_BYTES
from confide.net.relay import Relay
from confide.net.stream import Host, Join
from confide.wire import Message
from net.federation import Authority, Federation, ask, host_context, join_context, until, wait_for


def envelope(src: str, dst: str, body: bytes = b"body", *, session: str = "s", tag: str = "t") -> Envelope:
    return Envelope(session, Message(src, dst, tag, body))


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with Federation(tmp_path) as made:
        yield made


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES, FRAME_BYTES + 1, 5 * FRAME_BYTES])
def test_bodies_arrive_as_they_left_in_both_directions(federation: Federation, size: int) -> None:
    node = federation.joined("a")
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    node.send("server", envelope("a", "server", body))
    assert wait_for(federation.host, Arrived) == Arrived("a", envelope("a", "server", body))
    federation.host.send("a", envelope("server", "a", body))
    assert wait_for(node, Arrived) == Arrived("server", envelope("server", "a", body))


def test_many_messages_of_many_sessions_keep_each_sessions_order(federation: Federation) -> None:
    node = federation.joined("a")
    sent = [envelope("a", "server", bytes(n * 300), session=str(n % 3), tag=str(n)) for n in range(200)]
    for one in sent:
        node.send("server", one)
    came = [wait_for(federation.host, Arrived).envelope for _ in sent]
    for session in "012":
        assert [one for one in came if one.session == session] == [one for one in sent if one.session == session]


def test_the_coordinator_forwards_under_the_name_of_whoever_sent(federation: Federation) -> None:
    a, b = federation.joined("a"), federation.joined("b")
    a.send("server", envelope("a", "b"))
    arrived = wait_for(federation.host, Arrived)
    federation.host.send(arrived.envelope.message.dst, arrived.envelope)
    assert wait_for(b, Arrived).envelope == envelope("a", "b")


def test_what_is_sent_to_nobody_is_lost(federation: Federation) -> None:
    federation.host.send("nobody", envelope("server", "nobody"))
    lonely = federation.join("a", url="wss://127.0.0.1:1")
    lonely.send("server", envelope("a", "server"))
    assert federation.host.receive(0.05) is None


def test_nothing_that_the_wire_cannot_hold_leaves(federation: Federation) -> None:
    node = federation.joined("a")
    with pytest.raises(UsageError, match="Expected names"):
        node.send("server", envelope("a" * 65, "server"))
    with pytest.raises(UsageError, match="the only peer"):
        node.send("b", envelope("a", "b"))
    with pytest.raises(UsageError, match="message_bytes"):
        federation.join("c", limits=Limits(message_bytes=10)).send("server", envelope("c", "server", bytes(11)))


def test_a_connection_lives_while_its_party_computes(tmp_path: Path) -> None:
    limits = Limits(ping_seconds=0.05, silence_seconds=0.7)
    with Federation(tmp_path, limits=limits) as federation:
        node = federation.joined("a", limits=limits)
        assert federation.host.receive(2.5) is None  # neither side takes or sends anything meanwhile
        assert node.receive(0) is None
        node.send("server", envelope("a", "server"))
        wait_for(federation.host, Arrived)


def test_what_nobody_takes_stops_the_reading_and_nothing_is_lost(tmp_path: Path) -> None:
    with Federation(tmp_path, limits=Limits(arrived_bytes=1 << 20)) as federation:
        node = federation.joined("a")
        sent = [envelope("a", "server", bytes([n]) * (1 << 18), tag=str(n)) for n in range(60)]
        for one in sent:
            node.send("server", one)
        account = federation.host._listener._accounts["a"]
        until(lambda: account.held_bytes > 1 << 20)
        assert account.held_bytes < 3 << 20
        assert [wait_for(federation.host, Arrived).envelope for _ in sent] == sent


def test_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The library below writes down whole frames for whoever turns its logger on."""
    with caplog.at_level(logging.DEBUG), Federation(tmp_path) as federation:
        logging.getLogger("websockets.server").debug("this is caught")
        node = federation.joined("a")
        node.send("server", envelope("a", "server", b"private"))
        wait_for(federation.host, Arrived)
    assert [record.message for record in caplog.records if record.name != "asyncio"] == ["this is caught"]
    assert not [record for record in caplog.records if "private" in record.getMessage()]


# --- who is there -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["node", "helper", "analyst"])
def test_roles_come_from_certificates(federation: Federation, role: str) -> None:
    federation.joined("a", role)


def test_admit_sees_the_certificate(tmp_path: Path) -> None:
    seen = []
    with Federation(tmp_path, admit=lambda peer: seen.append(peer)) as federation:
        federation.joined("a", "helper")
    (peer,) = seen
    assert (peer.name, peer.role) == ("a", "helper")
    pem = (tmp_path / "authority-a-helper.pem").read_text()
    assert ssl.DER_cert_to_PEM_cert(peer.certificate) == pem
    assert peer.serial > 0


def test_leaving_is_heard_on_both_sides(federation: Federation) -> None:
    node = federation.joined("a")
    node.close()
    assert wait_for(federation.host, Left) == Left("a", "this member stops")
    other = federation.joined("b")
    federation.host.close()
    assert wait_for(other, Left) == Left("server", "the coordinator stops")
    assert other.given_up is None


def test_a_newer_connection_replaces_the_older_one_for_good(federation: Federation) -> None:
    older = federation.joined("a")
    newer = federation.join("a")
    assert wait_for(newer, Joined)
    assert wait_for(federation.host, lambda event: True) == Left("a", "somebody else has connected as a")
    assert wait_for(federation.host, lambda event: True) == Joined("a", "node")
    assert wait_for(older, Left) == Left("server", "somebody else has connected as a")
    until(lambda: older.given_up)
    federation.host.send("a", envelope("server", "a"))
    assert wait_for(newer, Arrived)


def test_a_dropped_member_hears_why_and_comes_again_unless_it_is_final(federation: Federation) -> None:
    a, b = federation.joined("a"), federation.joined("b")
    federation.host.drop("a", "it sent what nobody expected", final=False)
    assert wait_for(federation.host, Left) == Left("a", "it sent what nobody expected")
    assert wait_for(a, Left) == Left("server", "it sent what nobody expected")
    assert wait_for(a, Joined)
    federation.host.drop("b", "revoked on Monday")
    assert wait_for(b, Left) == Left("server", "revoked on Monday")
    until(lambda: b.given_up == "revoked on Monday")
    federation.host.drop("nobody", "")


def test_whoever_is_not_admitted_is_told_and_not_there(tmp_path: Path) -> None:
    def admit(peer):
        if peer.name == "b":
            raise UsageError("unknown here")
        return "revoked on Monday" if peer.name == "a" else None

    with Federation(tmp_path, admit=admit) as federation:
        for name, reason in (("a", "revoked on Monday"), ("b", "unknown here")):
            node = federation.join(name)
            assert wait_for(node, lambda event: True) == Left("server", reason)
            until(lambda node=node, reason=reason: node.given_up == reason)
            refusal = federation.host.refusals()[-1]
            assert (refusal.name, refusal.reason, refusal.address) == (name, reason, "127.0.0.1")
        federation.joined("c")
        assert federation.host.receive(0) is None


def test_a_recheck_drops_whom_admit_refuses_now(tmp_path: Path) -> None:
    revoked: set[str] = set()
    with Federation(tmp_path, admit=lambda peer: "revoked" if peer.name in revoked else None) as federation:
        a, b = federation.joined("a"), federation.joined("b")
        federation.host.recheck()
        assert federation.host.receive(0.1) is None
        revoked.add("a")
        federation.host.recheck()
        assert wait_for(federation.host, Left) == Left("a", "revoked")
        until(lambda: a.given_up == "revoked")
        federation.host.send("b", envelope("server", "b"))
        assert wait_for(b, Arrived)


# --- certificates -----------------------------------------------------------------------------------------------------


def refused(federation: Federation, **join: object) -> str:
    """Return why a member gives up, after checking that the host has not let it in and still serves others."""
    node = federation.join("a", **join)
    assert wait_for(node, lambda event: True).reason
    until(lambda: node.given_up)
    federation.joined("honest")
    assert federation.host.receive(0) is None
    assert federation.host.refusals()[-1].reason
    assert node.receive(0) is None
    return node.given_up


def test_an_expired_certificate(federation: Federation) -> None:
    context = federation.authority.join_context("a", days=(-3, -1))
    assert "expired" in refused(federation, context=context)
    assert "expired" in federation.host.refusals()[-1].reason


def test_a_certificate_that_is_not_valid_yet(federation: Federation) -> None:
    assert refused(federation, context=federation.authority.join_context("a", days=(1, 3)))
    assert "not yet valid" in federation.host.refusals()[-1].reason


def test_a_certificate_of_another_authority(federation: Federation, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    context = join_context(*other.issue("a"), federation.authority.path)
    assert "authority" in refused(federation, context=context)


def test_no_certificate(federation: Federation) -> None:
    assert "certificate" in refused(federation, context=federation.authority.stranger_context())


@pytest.mark.parametrize(("name", "role"), [("a", ""), ("a", "king"), ("a b", "node"), ("server", "coordinator")])
def test_a_certificate_of_the_authority_that_is_not_a_members(federation: Federation, name: str, role: str) -> None:
    assert "certificate" in refused(federation, context=federation.authority.join_context(name, role))


def test_a_coordinator_of_another_authority(federation: Federation, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    node = federation.join("a", context=join_context(*federation.authority.issue("a"), other.path))
    until(lambda: node.given_up)
    assert "certificate is refused" in node.given_up


def test_a_coordinator_under_another_name(federation: Federation) -> None:
    for hosts in ((), ("coordinator.example",), ("127.0.0.2",)):
        context = federation.authority.host_context(hosts=hosts, file="elsewhere")
        with Host("127.0.0.1", 0, context, admit=lambda peer: None) as elsewhere:
            node = federation.join("a", url=f"wss://127.0.0.1:{elsewhere.port}")
            until(lambda node=node: node.given_up)
            assert "IP address mismatch" in node.given_up
            assert elsewhere.receive(0) is None


def test_a_member_that_plays_the_coordinator(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = host_context(*authority.issue("b", "node", hosts=("127.0.0.1",)), authority.path)
    with (
        Host("127.0.0.1", 0, context, admit=lambda peer: None) as host,
        Join(f"wss://127.0.0.1:{host.port}", authority.join_context("a"), first_seconds=0.02) as node,
    ):
        until(lambda: node.given_up)
        assert "not that of a coordinator" in node.given_up
        assert host.receive(0.05) is None


def test_what_has_worked_is_not_given_up_over_a_certificate(federation: Federation, tmp_path: Path) -> None:
    """A proxy on the way that shows its own certificate for an hour does not end a run of months."""
    other = Authority(tmp_path, "other")
    with Relay("127.0.0.1", federation.host.port, delay_seconds=0.0) as relay:
        node = federation.joined("a", url=f"wss://127.0.0.1:{relay.port}")
        with Host("127.0.0.1", 0, other.host_context(), admit=lambda peer: None) as false:
            relay._target = ("127.0.0.1", false.port)
            relay.cut()
            wait_for(node, lambda event: isinstance(event, Left) and "certificate" in event.reason)
            assert node.given_up is None
            relay._target = ("127.0.0.1", federation.host.port)
            wait_for(node, Joined)


# --- rotation ---------------------------------------------------------------------------------------------------------


def test_a_member_rotates_its_certificate(tmp_path: Path) -> None:
    serials = []
    with Federation(tmp_path, admit=lambda peer: serials.append(peer.serial)) as federation:
        node = federation.joined("a")
        node.renewed(federation.authority.join_context("a"))
        node.send("server", envelope("a", "server"))
        assert wait_for(federation.host, lambda event: True) == Arrived("a", envelope("a", "server"))
        assert len(serials) == 1
        node.renewed(federation.authority.join_context("a"), reconnect=True)
        wait_for(node, Joined)
        assert wait_for(federation.host, Left)
        assert wait_for(federation.host, Joined)
        assert len(set(serials)) == 2


def test_who_has_given_up_begins_again_with_another_certificate(federation: Federation) -> None:
    node = federation.join("a", context=federation.authority.join_context("a", days=(-3, -1)))
    until(lambda: node.given_up)
    node.renewed(federation.authority.join_context("a"))
    wait_for(node, Joined)
    assert node.given_up is None


# --- connections that break -------------------------------------------------------------------------------------------


def test_a_member_comes_again_after_every_cut(federation: Federation) -> None:
    with Relay("127.0.0.1", federation.host.port, delay_seconds=0.001) as relay:
        node = federation.joined("a", url=f"wss://127.0.0.1:{relay.port}")
        for number in range(3):
            relay.cut()
            wait_for(node, Left)
            wait_for(node, Joined)
            node.send("server", envelope("a", "server", tag=str(number)))
            assert wait_for(federation.host, Arrived).envelope.message.tag == str(number)


def test_a_member_waits_for_a_coordinator_that_is_not_there_yet(federation: Federation) -> None:
    with Relay("127.0.0.1", federation.host.port, delay_seconds=0.0) as relay:
        relay.block()
        node = federation.join("a", url=f"wss://127.0.0.1:{relay.port}")
        assert isinstance(wait_for(node, lambda event: True), Left)
        assert not isinstance(node.receive(0.3), Joined)
        assert node.given_up is None
        relay.unblock()
        wait_for(node, Joined)


def test_a_reason_is_told_once(tmp_path: Path) -> None:
    with Join(
        "wss://127.0.0.1:1", Authority(tmp_path).join_context("a"), first_seconds=0.02, longest_seconds=0.02
    ) as node:
        assert "127.0.0.1:1" in wait_for(node, Left).reason
        assert node.receive(0.5) is None


def test_waits_double_are_spread_and_end_somewhere() -> None:
    waits = Waits(0.2, 30.0, SeededRandomness("waits"))
    for failures, middle in ((0, 0.2), (1, 0.4), (5, 6.4), (8, 30.0), (10_000, 30.0)):
        drawn = [waits.after(failures) for _ in range(200)]
        assert middle / 2 <= min(drawn) < 0.7 * middle
        assert 1.3 * middle < max(drawn) <= 1.5 * middle


def test_a_coordinator_that_does_not_answer_is_left(tmp_path: Path) -> None:
    """The handshake's clock runs on this side, too."""
    authority = Authority(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"wss://127.0.0.1:{silent.getsockname()[1]}"
        with Join(url, authority.join_context("a"), limits=Limits(handshake_seconds=0.2)) as node:
            assert "within" in wait_for(node, Left).reason
            assert node.given_up is None


def test_ends_close_at_any_moment_and_twice(federation: Federation) -> None:
    node = federation.join("a")
    node.close()
    node.close()
    assert node.receive(0.0) in (None, Joined("server", "coordinator"), Left("server", "this member stops"))
    node.send("server", envelope("a", "server"))
    far = federation.join("b", url="wss://127.0.0.1:1")
    far.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "confide join"]
    federation.host.close()
    federation.host.send("a", envelope("server", "a"))
    federation.host.drop("a", "")


def test_a_bug_in_the_callers_thread_is_not_swallowed(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confide.net.caller.dial", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        wait_for(federation.join("a"), lambda event: True)


def test_a_port_that_is_taken(federation: Federation) -> None:
    context = federation.authority.host_context()
    with pytest.raises(UsageError, match="Expected to listen"):
        Host("127.0.0.1", federation.host.port, context, admit=lambda peer: None)


def test_a_bug_in_admit_is_not_swallowed(tmp_path: Path) -> None:
    def admit(peer):
        raise KeyError("a bug")

    with Federation(tmp_path, admit=admit) as federation:
        federation.join("a")
        with pytest.raises(KeyError):
            wait_for(federation.host, lambda event: True)


# --- enrolment --------------------------------------------------------------------------------------------------------


def test_a_stranger_gets_one_answer(tmp_path: Path) -> None:
    with Federation(tmp_path, enrol=lambda body: b"answer to " + body) as federation:
        context = federation.authority.stranger_context()
        assert ask(federation.url, context, b"question") == b"answer to question"
        body = bytes(LARGEST_ENROLMENT_BYTES)
        assert ask(federation.url, context, body) == b"answer to " + body
        federation.joined("a")
        assert federation.host.refusals() == ()
        with pytest.raises(ConnectionClosed):
            ask(federation.url, context, bytes(LARGEST_ENROLMENT_BYTES + 1))


def test_a_refused_enrolment_says_why(tmp_path: Path) -> None:
    def enrol(body: bytes) -> bytes:
        raise ProtocolError("Expected an invitation that nobody has used")

    with Federation(tmp_path, enrol=enrol) as federation:
        with pytest.raises(ConnectionClosed, match="that nobody has used"):
            ask(federation.url, federation.authority.stranger_context(), b"question")
        assert federation.host.refusals()[-1].reason == "Expected an invitation that nobody has used"


def test_nobody_without_a_certificate_is_heard_where_nobody_enrols(federation: Federation) -> None:
    with pytest.raises((OSError, WebSocketException)):
        ask(federation.url, federation.authority.stranger_context(), b"question")
    assert federation.host.receive(0.05) is None
