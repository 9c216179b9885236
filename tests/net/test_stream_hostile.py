"""Peers that no program of ours would be: each is cut off with a reason, what it can take up is bounded, others go on.

Every test ends with an honest member beside the hostile one, which still gets its answers.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from confide.net.exchange import Envelope
from confide.net.frames import FRAME_BYTES, LARGEST_FRAME_BYTES, UNFINISHED
from confide.net.limits import Limits
from confide.net.link import Arrived, Joined, Left
from confide.net.stream import Join
from confide.wire import Message
from net.federation import Federation, until, wait_for
from net.test_frames import FULL, first, following

#: Small and quick, so that a test can go beyond them.
LIMITS = Limits(
    message_bytes=8 << 20,
    waiting_bytes=4 << 20,
    arrived_bytes=4 << 20,
    total_bytes=64 << 20,
    frames_per_second=1000.0,
    frames_burst=2000.0,
    handshake_seconds=0.5,
    ping_seconds=0.5,
    silence_seconds=1.5,
)


class Besieged(Federation):
    """A federation with an honest member."""

    def __init__(self, folder: Path, **host: object) -> None:
        super().__init__(folder, **{"limits": LIMITS, **host})
        self.honest = self.joined("honest")

    def works(self) -> None:
        """Check that the honest member is served; what the host hears of others is dropped."""
        body = bytes(100_000)
        self.honest.send("server", Envelope("s", Message("honest", "server", f"{time.monotonic()}", body)))
        came = wait_for(self.host, lambda event: isinstance(event, Arrived) and event.peer == "honest")
        self.host.send("honest", came.envelope)
        assert wait_for(self.honest, lambda event: isinstance(event, Arrived) or not isinstance(event, Joined)) == (
            Arrived("server", came.envelope)
        )

    @contextmanager
    def raw(self, name: str | None = "mallory") -> Iterator[ClientConnection]:
        """Yield an open WebSocket that sends what it is told to."""
        authority = self.authority
        context = authority.stranger_context() if name is None else authority.join_context(name)
        with connect(
            self.url, ssl=context, compression=None, max_size=None, proxy=None, ping_interval=None, close_timeout=1
        ) as websocket:
            yield websocket

    def left(self, name: str = "mallory") -> str:
        """Return why the host says that somebody has left."""
        return wait_for(self.host, lambda event: isinstance(event, Left) and event.peer == name).reason


@pytest.fixture
def besieged(tmp_path: Path) -> Iterator[Besieged]:
    with Besieged(tmp_path) as made:
        yield made


def reason_told(websocket: ClientConnection) -> str:
    """Return the reason with which the other side closes."""
    try:
        while True:
            websocket.recv(timeout=30)
    except ConnectionClosed as closed:
        return closed.rcvd.reason if closed.rcvd else ""


MALLORY = {"src": "mallory"}


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ([bytes(LARGEST_FRAME_BYTES + 1)], "frame with"),
        (["text"], "binary"),
        ([[b"in", b"pieces"]], "in one piece"),
        ([b""], "well-formed"),
        ([b"\xc1 garbage"], "well-formed"),
        ([b"\x91" * 100_000], "well-formed"),
        ([msgspec.msgpack.encode({"session": "s"})], "well-formed"),
        ([msgspec.msgpack.encode([7, 1, b""])], "well-formed"),
        ([first(3, b"abc", src="honest")], "of mallory alone"),
        ([first(3, b"abc", src="server")], "of mallory alone"),
        ([first(LIMITS.message_bytes + 1, FULL, **MALLORY)], "at most"),
        ([first(1 << 52, FULL, **MALLORY)], "at most"),
        ([first(4, b"abc", **MALLORY)], "Expected a first frame"),
        ([first(2 * FRAME_BYTES, FULL, **MALLORY), following(b"short")], "Expected a continuation"),
        ([following(FULL)], "that has begun"),
    ],
    ids=range(15),
)
def test_a_frame_that_no_honest_peer_sends(besieged: Besieged, sent: list[object], reason: str) -> None:
    with besieged.raw() as websocket:
        for message in sent:
            with suppress(ConnectionClosed):
                websocket.send(message)
        assert reason in reason_told(websocket)
    assert reason in besieged.left()
    besieged.works()


def test_what_is_refused_is_not_delivered(besieged: Besieged) -> None:
    with besieged.raw() as websocket:
        websocket.send(first(5, b"right", **MALLORY))
        websocket.send(first(5, b"wrong", src="honest"))
        websocket.send(first(5, b"later", **MALLORY))
        reason_told(websocket)
    events = []
    while (event := besieged.host.receive(0.05)) is not None:
        events.append(event)
    bodies = [event.envelope.message.body for event in events if isinstance(event, Arrived)]
    assert bodies == [b"right"]
    assert isinstance(events[-1], Left)


def test_announced_bytes_are_not_allocated_and_unfinished_messages_are_few(besieged: Besieged) -> None:
    with besieged.raw() as websocket:
        for stream in range(UNFINISHED - 1):
            websocket.send(first(FRAME_BYTES + 1, FULL, stream=stream, **MALLORY))
        besieged.works()
        member = besieged.host._listener._members["mallory"]
        until(lambda: member.assembly.bytes == (UNFINISHED - 1) * FRAME_BYTES)
        for stream in (UNFINISHED, UNFINISHED + 1):
            websocket.send(first(FRAME_BYTES + 1, FULL, stream=stream, **MALLORY))
        assert "unfinished" in reason_told(websocket)
        until(lambda: member.assembly.bytes == 0)
    besieged.works()


def test_half_a_frame_and_silence(besieged: Besieged) -> None:
    """The rest of the frame never comes, nor can an answer to a ping come in between."""
    context = besieged.authority.join_context("mallory")
    with (
        socket.create_connection(("127.0.0.1", besieged.host.port)) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        upgrade(tls)
        tls.sendall(struct.pack("!BBQ", 0x82, 0x80 | 127, FRAME_BYTES) + b"mask" + b"half")
        assert "nothing moved" in besieged.left()
    besieged.works()


def test_bytes_that_are_no_websocket(besieged: Besieged) -> None:
    with besieged.raw() as websocket:
        websocket.socket.sendall(b"\xff" * 1000)
        assert "WebSocket" in besieged.left()
    besieged.works()


# --- floods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["messages", "pings", "empty"])
def test_a_flood_of_tiny_frames(besieged: Besieged, kind: str) -> None:
    frame = {
        "messages": first(0, b"", **MALLORY),
        "pings": b"",
        "empty": b"",
    }[kind]
    opcode = 0x89 if kind == "pings" else 0x82
    flood = (struct.pack("!BB", opcode, 0x80 | len(frame)) + bytes(4) + frame) * (20 * int(LIMITS.frames_burst))
    with besieged.raw() as websocket:
        with suppress(OSError):
            websocket.socket.sendall(flood)
        reason = besieged.left()
        assert ("frames per second" in reason) == (kind != "empty")
    besieged.works()


def test_coming_again_gives_no_more(besieged: Besieged) -> None:
    for number in range(2):
        with besieged.raw() as websocket:
            frame = first(0, b"", **MALLORY)
            count = int(LIMITS.frames_burst * (1.5 if number == 0 else 0.9))
            with suppress(OSError):
                websocket.socket.sendall((struct.pack("!BB", 0x82, 0x80 | len(frame)) + bytes(4) + frame) * count)
            assert "frames per second" in besieged.left()
    besieged.works()


def test_a_flood_of_bytes_is_slowed_and_the_others_are_not(tmp_path: Path) -> None:
    limits = Limits(bytes_per_second=20e6, bytes_burst=2e6, handshake_seconds=5.0)
    with Besieged(tmp_path, limits=limits) as besieged, besieged.raw() as websocket:
        begin, count, stop = time.monotonic(), 0, threading.Event()

        def flood() -> None:
            nonlocal count
            with suppress(ConnectionClosed, OSError):
                while not stop.is_set():
                    websocket.send(first(FRAME_BYTES, FULL, **MALLORY))
                    count += 1

        thread = threading.Thread(target=flood)
        thread.start()
        while time.monotonic() < begin + 1.0:
            besieged.works()
        seconds = time.monotonic() - begin
        came = besieged.host._listener._accounts["mallory"].arrived_bytes
        stop.set()
        besieged.host.close()
        thread.join()
        assert came <= 2e6 + 20e6 * seconds + FRAME_BYTES
        assert count >= 2


@pytest.mark.parametrize("bounded", [True, False])
def test_what_nobody_takes_is_bounded_over_all_connections_of_a_name(tmp_path: Path, bounded: bool) -> None:
    """Each of these connections leaves as much as it can; the coordinator's thread is busy elsewhere."""
    limits = LIMITS if bounded else Limits(arrived_bytes=1 << 40)
    size, connections = 1 << 20, 4
    most = LIMITS.arrived_bytes + connections * (size + 1024)
    with Besieged(tmp_path, limits=limits) as besieged:
        for _ in range(connections):
            with besieged.raw() as websocket:

                def fill(websocket: ClientConnection = websocket) -> None:
                    with suppress(ConnectionClosed, OSError):
                        for _ in range(24):
                            websocket.send(first(size, FULL, **MALLORY))

                thread = threading.Thread(target=fill)
                thread.start()
                thread.join(0.5)
                websocket.socket.shutdown(socket.SHUT_RDWR)
                thread.join()
        account = besieged.host._listener._accounts["mallory"]
        if bounded:
            assert account.held_bytes <= most
        else:
            until(lambda: account.held_bytes > most)
        besieged.works()


def test_all_together_are_bounded_and_the_greediest_goes(tmp_path: Path) -> None:
    limits = Limits(total_bytes=20 << 20, message_bytes=64 << 20)
    with Besieged(tmp_path, limits=limits) as besieged, besieged.raw() as greedy, besieged.raw("small") as small:
        small.send(first(2 * FRAME_BYTES, FULL, src="small"))
        greedy.send(first(64 << 20, FULL, **MALLORY))
        for _ in range(24):
            greedy.send(following(FULL))
        assert "no room" in besieged.left()
        assert "small" in besieged.host._listener._members
        besieged.works()


# --- peers that do not read -------------------------------------------------------------------------------------------


def test_a_peer_that_never_reads_is_dropped_beyond_what_may_wait(besieged: Besieged) -> None:
    with besieged.raw():
        for number in range(60):
            besieged.host.send("mallory", Envelope("s", Message("server", "mallory", str(number), FULL)))
        assert "wait to be read" in besieged.left()
        besieged.works()


def test_a_peer_whose_bytes_do_not_move_is_dropped(tmp_path: Path) -> None:
    """It keeps talking, so it is not silent; what is sent to it stays below what may wait."""
    limits = Limits(ping_seconds=0.5, silence_seconds=1.5)
    with Besieged(tmp_path, limits=limits) as besieged, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", besieged.host.port))
        with besieged.authority.join_context("mallory").wrap_socket(raw, server_hostname="127.0.0.1") as tls:
            upgrade(tls)
            wait_for(besieged.host, Joined)
            besieged.host.send("mallory", Envelope("s", Message("server", "mallory", "t", bytes(32 << 20))))
            stop = threading.Event()

            def talk() -> None:
                with suppress(OSError):
                    while not stop.wait(0.1):
                        tls.sendall(struct.pack("!BB", 0x8A, 0x80) + bytes(4))  # pongs that nobody asked for

            thread = threading.Thread(target=talk)
            thread.start()
            try:
                assert "nothing moved" in besieged.left()
            finally:
                stop.set()
                thread.join()
        besieged.works()


def test_a_peer_that_asks_and_does_not_read(tmp_path: Path) -> None:
    limits = Limits(frames_per_second=1e9, frames_burst=1e9)
    with Besieged(tmp_path, limits=limits) as besieged:
        context = besieged.authority.join_context("mallory")
        with (
            socket.create_connection(("127.0.0.1", besieged.host.port)) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
        ):
            upgrade(tls)
            ping = struct.pack("!BB", 0x89, 0x80 | 125) + bytes(4 + 125)
            with suppress(OSError):
                for _ in range(400):
                    tls.sendall(ping * 1000)
            assert "does not read" in besieged.left()
        besieged.works()


def upgrade(tls: ssl.SSLSocket) -> None:
    """Make a TLS socket a WebSocket, by hand."""
    lines = ["GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    tls.sendall("\r\n".join([*lines, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += tls.recv(1)
    assert b" 101 " in head


# --- handshakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["nothing", "half of TLS", "TLS", "half of HTTP"])
def test_half_a_handshake_and_silence(besieged: Besieged, said: str) -> None:
    with socket.create_connection(("127.0.0.1", besieged.host.port), timeout=30) as raw:
        if said in ("TLS", "half of HTTP"):
            context = besieged.authority.join_context("mallory")
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
                if said == "half of HTTP":
                    tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
                assert tls.recv(1) == b""
        else:
            if said == "half of TLS":
                raw.sendall(bytes.fromhex("16030101000100"))
            assert raw.recv(1) == b""
    until(lambda: besieged.host.refusals())
    assert "within" in besieged.host.refusals()[-1].reason
    besieged.works()


def test_one_byte_now_and_then_does_not_stop_the_clock(besieged: Besieged) -> None:
    context = besieged.authority.join_context("mallory")
    with (
        socket.create_connection(("127.0.0.1", besieged.host.port), timeout=30) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        tls.settimeout(0.05)
        with suppress(OSError):
            for byte in b"GET / HTTP/1.1\r\nX: " + bytes(1000):
                tls.sendall(bytes([byte]))
                with suppress(TimeoutError):
                    if not tls.recv(1):
                        break
    until(lambda: besieged.host.refusals())
    assert "within" in besieged.host.refusals()[-1].reason
    besieged.works()


def test_plain_http_and_noise(besieged: Besieged) -> None:
    for noise in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 4096, b"\xff" * 300_000):
        with socket.create_connection(("127.0.0.1", besieged.host.port), timeout=30) as raw, suppress(OSError):
            raw.sendall(noise)
            while raw.recv(4096):
                pass
    until(lambda: len(besieged.host.refusals()) == 3)
    besieged.works()


def test_http_that_is_no_websocket(besieged: Besieged) -> None:
    context = besieged.authority.join_context("mallory")
    for request in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST / HTTP/1.0\r\n\r\n", b"x" * 100_000):
        with (
            socket.create_connection(("127.0.0.1", besieged.host.port), timeout=30) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
            suppress(OSError),
        ):
            tls.sendall(request)
            while tls.recv(4096):
                pass
    until(lambda: len(besieged.host.refusals()) == 3)
    assert all("WebSocket" in refusal.reason for refusal in besieged.host.refusals())
    besieged.works()


def test_tls_before_1_3(besieged: Besieged) -> None:
    context = besieged.authority.join_context("mallory")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", besieged.host.port), timeout=30) as raw,
        pytest.raises(ssl.SSLError, match="(?i)protocol version"),
    ):
        context.wrap_socket(raw, server_hostname="127.0.0.1")
    until(lambda: besieged.host.refusals())
    assert "TLS 1.3" in besieged.host.refusals()[-1].reason
    node = besieged.join("mallory", context=context)
    assert wait_for(node, Left).reason
    besieged.works()


def test_a_refused_member_reads_why_in_the_answer_to_its_request(tmp_path: Path) -> None:
    refused = {"mallory": "revoked"}
    with Besieged(tmp_path, admit=lambda peer: refused.get(peer.name)) as besieged:
        with pytest.raises(InvalidStatus) as raised, besieged.raw():
            pass
        assert raised.value.response.status_code == 403
        assert raised.value.response.body == b"revoked"
        besieged.works()


# --- strangers and crowds ---------------------------------------------------------------------------------------------


def test_a_stranger_may_say_one_thing_and_a_short_one(tmp_path: Path) -> None:
    asked = []

    def enrol(body: bytes) -> bytes:
        asked.append(body)
        return b"answer"

    with Besieged(tmp_path, enrol=enrol) as besieged:
        with besieged.raw(None) as websocket:
            websocket.send(b"first")
            with suppress(ConnectionClosed):
                websocket.send(b"second")
            assert websocket.recv(timeout=30) == b"answer"
            reason_told(websocket)
        assert asked == [b"first"]
        with besieged.raw(None) as websocket:
            with suppress(ConnectionClosed):
                websocket.send(bytes(100_000))
            assert "frame with" in reason_told(websocket)
        with besieged.raw(None) as websocket:
            assert "within" in reason_told(websocket)  # silence
        with besieged.raw(None) as websocket:
            websocket.send(first(3, b"abc", src="honest"))
            assert websocket.recv(timeout=30) == b"answer"  # a frame is an enrolment here, and no message
        assert asked[1:] == [first(3, b"abc", src="honest")]
        besieged.works()


def masked(opcode: int, body: bytes = b"") -> bytes:
    """Return a whole frame of a client, with a mask of zeros."""
    return bytes([0x80 | opcode, 0x80 | len(body)]) + bytes(4) + body


_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("who", [None, "mallory"])
@pytest.mark.parametrize(
    "last",
    [masked(8, b"\x03\xe8"), masked(8), masked(3), masked(9) + masked(8), b"\x82\xff" * 8],
    ids=["close with a code", "close", "no opcode", "ping and close", "too large"],
)
@pytest.mark.parametrize(
    "message",
    [b"", masked(2, b"hello"), masked(9), masked(2, b"a") + masked(2, b"b")],
    ids=["nothing", "a message", "a ping", "two messages"],
)
def test_what_comes_in_one_piece_with_an_end(
    tmp_path: Path, message: bytes, last: bytes, who: str | None, at_once: bool
) -> None:
    """The end is known before what came with it is looked at, and to answer then is no longer possible."""
    with Besieged(tmp_path, enrol=lambda body: body) as besieged:
        authority = besieged.authority
        context = authority.join_context(who) if who else authority.stranger_context()
        with (
            socket.create_connection(("127.0.0.1", besieged.host.port), timeout=30) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
            suppress(OSError),
        ):
            if at_once:
                tls.sendall(_UPGRADE + message + last)
            else:
                upgrade(tls)
                tls.sendall(message + last)
            while tls.recv(4096):
                pass
        besieged.works()


@pytest.mark.parametrize("limit", ["connections", "connections_per_address", "strangers", "strangers_per_address"])
def test_a_crowd_is_kept_out(tmp_path: Path, limit: str) -> None:
    limits = Limits(**{limit: 40}, handshake_seconds=5.0)
    with Besieged(tmp_path, limits=limits) as besieged:
        crowd = []
        try:
            for _ in range(300):
                crowd.append(socket.create_connection(("127.0.0.1", besieged.host.port), timeout=30))
            listener = besieged.host._listener
            until(lambda: len(besieged.host.refusals()) == 100)
            until(lambda: len(listener._all) <= 41)
            besieged.works()
        finally:
            for one in crowd:
                one.close()
        until(lambda: len(listener._all) == 1)
        assert listener._per_address == {"127.0.0.1": 1}
        assert not listener._strangers
        assert not listener._strangers_per_address
        besieged.joined("late")
        besieged.works()


@pytest.mark.parametrize("limit", ["connections", "strangers"])
def test_a_crowd_from_several_addresses_takes_its_own_places(tmp_path: Path, limit: str) -> None:
    """A member gets in while they hold their places: each newcomer costs the largest crowd its oldest."""
    limits = Limits(**{limit: 40}, handshake_seconds=60.0)
    with Besieged(tmp_path, limits=limits) as besieged:
        crowd = []
        try:
            for number in range(60):
                source = (f"127.0.{1 + number % 6}.2", 0)
                crowd.append(
                    socket.create_connection(("127.0.0.1", besieged.host.port), timeout=30, source_address=source)
                )
                crowd[-1].send(b"\x16")
            listener = besieged.host._listener
            until(lambda: len(besieged.host.refusals()) >= 20)
            assert len(listener._strangers) <= 40
            besieged.joined("late")
            besieged.works()
            assert len(listener._strangers) <= 40
        finally:
            for one in crowd:
                one.close()
        until(lambda: len(listener._all) == 2)
        assert listener._per_address == {"127.0.0.1": 2}


def test_memory_stays_bounded_under_all_of_it(tmp_path: Path) -> None:
    """An end that keeps whatever comes, for comparison, would hold the 400 MB that are sent here."""

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with Besieged(tmp_path) as besieged:
        besieged.works()
        before = resident_bytes()
        for _ in range(10):
            with besieged.raw() as websocket:
                frame = first(FRAME_BYTES, FULL, **MALLORY)
                header = struct.pack("!BBQ", 0x82, 0x80 | 127, len(frame)) + bytes(4)

                def flood(websocket: ClientConnection = websocket, sent: bytes = header + frame) -> None:
                    with suppress(OSError):
                        for _ in range(40):
                            websocket.socket.sendall(sent)

                thread = threading.Thread(target=flood)
                thread.start()
                thread.join(0.2)
                websocket.socket.shutdown(socket.SHUT_RDWR)
                thread.join()
        assert resident_bytes() - before < 100e6
        besieged.works()


# --- hostile coordinators ---------------------------------------------------------------------------------------------


def test_a_member_drops_a_coordinator_that_sends_nonsense(besieged: Besieged) -> None:
    member: Join = besieged.joined("a")
    listener = besieged.host._listener
    besieged.host._thread.post(lambda: listener._members["a"].reply(b"\xc1 garbage"))
    assert "well-formed" in wait_for(member, Left).reason
    assert wait_for(member, Joined)  # at most once: it comes again, and others decide what that is worth
    besieged.works()
