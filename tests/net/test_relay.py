"""The relay delays, keeps every byte in order, cuts, blocks, and ends; nothing here says how long a thing may take."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from confide.crypto.random import SeededRandomness
from confide.net.relay import Relay
from net.federation import until


class Echo:
    """A server that sends back what comes, and hangs up after the other side has."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self.threads.append(thread)
            thread.start()

    @staticmethod
    def _serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError:
                pass

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for thread in self.threads:
            thread.join(10)


def dial(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=30)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while data := connection.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def through(relay: Relay, data: bytes) -> bytes:
    """Send `data` to the echo while reading; return what came back until it hung up."""
    with dial(relay) as connection:

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        back = read_all(connection)
        sender.join()
    return back


@pytest.mark.parametrize("bits_per_second", [None, 400e6])
def test_every_byte_comes_back_in_order(bits_per_second: float | None) -> None:
    data = SeededRandomness("relay").bytes(5_000_001)
    with Echo() as echo:
        for jitter in (0.0, 0.003):
            with Relay(
                "127.0.0.1",
                echo.port,
                delay_seconds=0.002,
                bits_per_second=bits_per_second,
                jitter_seconds=jitter,
                rng=SeededRandomness("jitter"),
            ) as relay:
                assert through(relay, data) == data
                until(lambda relay=relay: relay.connections() == 0)


def test_an_answer_takes_both_delays() -> None:
    with Echo() as echo, Relay("127.0.0.1", echo.port, delay_seconds=0.05) as relay, dial(relay) as connection:
        connection.sendall(b"a")
        connection.recv(1)
        for _ in range(3):
            begin = time.monotonic()
            connection.sendall(b"b")
            assert connection.recv(1) == b"b"
            assert time.monotonic() - begin >= 0.1


def test_a_rate_holds_bytes_back() -> None:
    with Echo() as echo, Relay("127.0.0.1", echo.port, delay_seconds=0.0, bits_per_second=8e6) as relay:
        begin = time.monotonic()
        assert through(relay, bytes(200_000)) == bytes(200_000)
        assert time.monotonic() - begin >= 0.2


def test_a_cut_kills_what_there_is_and_no_more() -> None:
    with Echo() as echo, Relay("127.0.0.1", echo.port, delay_seconds=0.0) as relay:
        with dial(relay) as connection:
            connection.sendall(b"a")
            assert connection.recv(1) == b"a"
            assert relay.connections() == 1
            relay.cut()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert through(relay, b"again") == b"again"


def test_what_is_on_its_way_is_lost_with_a_cut() -> None:
    with Echo() as echo, Relay("127.0.0.1", echo.port, delay_seconds=5.0) as relay, dial(relay) as connection:
        connection.sendall(b"a")
        until(lambda: relay.connections() == 1)
        relay.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_blocked_until_it_is_not() -> None:
    with Echo() as echo, Relay("127.0.0.1", echo.port, delay_seconds=0.0) as relay:
        relay.block()
        with pytest.raises(ConnectionResetError), dial(relay) as connection:
            connection.recv(1)
        relay.unblock()
        assert through(relay, b"again") == b"again"


def test_nobody_at_the_other_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        Relay("127.0.0.1", port, delay_seconds=0.0) as relay,
        pytest.raises(ConnectionResetError),
        dial(relay) as connection,
    ):
        connection.recv(1)


def test_it_ends_with_connections_open_and_twice() -> None:
    with Echo() as echo:
        relay = Relay("127.0.0.1", echo.port, delay_seconds=1.0)
        with dial(relay) as connection:
            connection.sendall(b"a")
            until(lambda: relay.connections() == 1)
            relay.close()
            relay.close()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"delay_seconds": -1.0},
        {"delay_seconds": 0.0, "bits_per_second": 0.0},
        {"delay_seconds": 0.0, "jitter_seconds": -1.0},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Relay("127.0.0.1", 1, **wrong)
