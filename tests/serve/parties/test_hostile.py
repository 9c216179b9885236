"""Whatever a member or a stranger sends: its session or its connection ends, and the others are served."""

from __future__ import annotations

import queue
import socket
import ssl
import uuid

import numpy as np
import pytest

from confide import serve
from confide.crypto.keys import SigningKey
from confide.net.contexts import client_context
from confide.net.exchange import Envelope
from confide.net.folders import identity_seed
from confide.net.link import Arrived, Joined, Left
from confide.net.mesh import Mesh
from confide.serve.client import Client
from confide.serve.parties.messages import ABORT, VERSION, Ask, Hello, Offer, Order, letter, read
from confide.wire import Message
from serve.parties.federation import founded
from serve.parties.houses import GRAPH, houses
from serve.parties.standin import BYTES, Standin

X = np.array([[0.5, -0.25, 0.125]])
SESSION = "rogue/predict/"  # and what makes it one of its own


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(serve, "BACKENDS", {**serve.BACKENDS, "standin": "serve.parties.standin:Standin"})


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with houses(folder, Standin(), {"dealer": "broker"}, clients=("clinic", "rogue")) as found:
        yield found


class Rogue:
    """A member that writes its own messages."""

    def __init__(self, url: str, folder) -> None:
        self.events: queue.Queue = queue.Queue()
        self.session = SESSION + uuid.uuid4().hex
        self.mesh = Mesh(self.events.put, broken=lambda error: None, first_seconds=5.0)
        self.mesh.call(lambda: self.mesh.dial("server", url, client_context(folder)))

    def next(self, kind, seconds: float = 10.0):
        while True:
            event = self.events.get(timeout=seconds)
            if isinstance(event, kind):
                return event

    def say(self, envelope: Envelope) -> None:
        self.mesh.post(self.mesh.send, "server", envelope)

    def hello(self) -> None:
        self.next(Joined)
        self.say(letter("rogue", "server", Hello(VERSION, "", bytes(32), True)))

    def offer(self) -> Offer:
        self.say(letter("rogue", "server", Ask("", "")))
        while True:
            body = read(self.next(Arrived).envelope.message)
            if isinstance(body, Offer):
                return body

    def ended(self) -> str:
        """Return why the session was aborted."""
        while True:
            envelope = self.next(Arrived).envelope
            if envelope.session == self.session and envelope.message.tag == ABORT:
                return read(envelope.message).reason


@pytest.fixture
def rogue(running):
    one = Rogue(running.url, running.folder / "rogue")
    yield one
    one.mesh.close()


@pytest.fixture(autouse=True)
def others_are_served(running):
    yield
    with Client(running.url, identity=running.folder / "clinic", insecure_colocated_dealer=True) as client:
        assert np.allclose(client.predict(X), GRAPH.apply(X), atol=1e-3)
    assert not running.broken


@pytest.mark.parametrize(
    "tag", ["parties/hello", "parties/ask", "parties/order", "parties/part", "parties/taken", "nothing"]
)
@pytest.mark.parametrize("body", [b"", b"\xc1" * 50, b"\x81" * 20_000, bytes(1 << 20)])
def test_hostile_bytes_end_the_connection(rogue, tag, body):
    rogue.hello()
    rogue.say(Envelope("", Message("rogue", "server", tag, body)))
    assert "Expected" in rogue.next(Left).reason


def test_nothing_is_heard_before_a_hello(rogue):
    rogue.next(Joined)
    rogue.say(letter("rogue", "server", Ask("", "")))
    assert "hello" in rogue.next(Left).reason


def test_messages_under_another_name_end_the_connection(rogue):
    rogue.hello()
    rogue.say(letter("clinic", "server", Ask("", "")))
    assert "rogue alone" in rogue.next(Left).reason


def test_a_flood_ahead_of_an_order_ends_the_connection(rogue):
    rogue.hello()
    for number in range(70):
        rogue.say(Envelope(f"rogue/flood/{number}", Message("rogue", "server", "begin", b"x")))
    assert "order" in rogue.next(Left).reason


def parted(running):
    """Return what was said of links between server and dealer that ended."""
    return [line for line in running.lines if "server is gone" in line or "the dealer, is gone" in line]


@pytest.mark.parametrize("session", ["clinic/predict/" + "0" * 32, "rogue2/predict/1", "x"])
def test_messages_of_somebody_elses_session_end_the_connection(rogue, session):
    rogue.hello()
    rogue.say(Envelope(session, Message("rogue", "server", "begin", b"x")))
    assert "its own sessions" in rogue.next(Left).reason


NO_IDS = ["", "rogue", "rogue/setup/1", "clinic/setup/" + "0" * 32, "rogue/predict/" + "0" * 32]


@pytest.mark.parametrize("session", NO_IDS)
def test_a_session_is_called_after_its_client_or_refused(running, rogue, session):
    rogue.hello()
    rogue.session = session
    rogue.say(letter("rogue", "server", Order("setup", rogue.offer().model, "rogue", b"", 0, 0), session=session))
    assert "called after its client" in rogue.ended()
    assert not parted(running)


def test_orders_of_set_ups_that_a_partner_refuses_spend_nothing_of_the_servers(running, rogue):
    """The rogue is not connected to the dealer, who refuses each: what the server sends of them is thrown away."""
    rogue.hello()
    order = Order("setup", rogue.offer().model, "rogue", b"", 0, 0)
    for _ in range(70):
        rogue.session = "rogue/setup/" + uuid.uuid4().hex
        rogue.say(letter("rogue", "server", order, session=rogue.session))
        assert "rogue to be connected to broker" in rogue.ended()  # whoever ordered it is told, at once
    assert not running.servers["broker"].circle.sessions._early
    assert not parted(running)


def ordered(running, rogue, **more):
    """Order a prediction from stock as a client that was set up; return what the server waits for next."""
    rogue.hello()
    offer = rogue.offer()
    key = f"set-up/{offer.model.hex()}/rogue"
    known = SigningKey(identity_seed(running.folder / "rogue")).public
    running.stores["server"].commit({key: more.pop("known", known)})
    stock = f"parties/standin/{offer.model.hex()[:32]}/rogue/stock/00000001"
    running.stores["server"].commit({stock: bytes(24)})
    order = Order("predict", offer.model, "rogue", b"", **({"rows": 1, "count": 0, "dealt": False} | more))
    rogue.say(letter("rogue", "server", order, session=rogue.session))


def message(tag: str, body: bytes) -> Envelope:
    return Envelope("", Message("rogue", "server", tag, body))


BEGIN, FIRST = message("begin", b"stock/00000001"), message("round/0", bytes(24))


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ([BEGIN, message("round/0", bytes(23))], "planned length"),
        ([BEGIN, message("round/0", b"")], "planned length"),
        ([BEGIN, FIRST, message("round/1", bytes(BYTES + 1))], "planned length"),
        ([BEGIN, BEGIN, FIRST, message("begin", b"stock/00000002")], "two different messages"),
        ([BEGIN, FIRST, message("round/1", bytes(BYTES)), message("round/0", b"\1" * 24)], "two different messages"),
        ([message("begin", b"stock/00000009")], "both have"),
    ],
)
def test_a_session_out_of_line_is_aborted(running, rogue, sent, told):
    ordered(running, rogue)
    for envelope in sent:
        rogue.say(Envelope(rogue.session, envelope.message))
    assert told in rogue.ended()


def test_a_name_that_was_given_anew_is_set_up_again(running, rogue):
    ordered(running, rogue, known=b"x" * 32)
    assert "set up again" in rogue.ended()


@pytest.mark.parametrize(
    ("more", "told"),
    [({"rows": 0}, "rows"), ({"rows": 1 << 20}, "rows"), ({"client": "clinic"}, "called after")],
)
def test_orders_beyond_what_is_allowed_are_refused(running, rogue, more, told):
    rogue.hello()
    offer = rogue.offer()
    fields = {"kind": "predict", "model": offer.model, "client": "rogue", "identity": b"", "rows": 1, "count": 0}
    rogue.say(letter("rogue", "server", Order(**(fields | more)), session=rogue.session))
    assert told in rogue.ended()


def test_a_certificate_of_another_federation_is_refused(running, tmp_path):
    founded(tmp_path, {"rogue": "client"})
    stranger = Rogue(running.url, tmp_path / "rogue")
    try:
        assert "certificate" in stranger.next(Left).reason
    finally:
        stranger.mesh.close()


def test_a_socket_without_tls_is_cut(running):
    host, _, port = running.url.removeprefix("wss://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=15) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert plain.recv(1 << 16).find(b"HTTP/1.1 2") == -1
        try:
            while plain.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass


def test_tls_without_a_certificate_hears_nothing(running):
    host, _, port = running.servers["broker"].circle.me.url.removeprefix("wss://").rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port)), timeout=15) as plain, context.wrap_socket(plain) as tls:
        tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n")
        try:
            heard = tls.recv(100)
        except (ssl.SSLError, ConnectionResetError):
            heard = b""
    assert heard == b""
