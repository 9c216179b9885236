"""How a member reaches the coordinator: addresses, and HTTP proxies of every temper on the way."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from confide.errors import UsageError
from confide.net.dial import Address, Proxy
from confide.net.exchange import Envelope
from confide.net.link import Arrived, Left
from confide.wire import Message
from net.federation import Federation, wait_for


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with Federation(tmp_path) as made:
        yield made


class HttpProxy:
    """A proxy that answers CONNECT with `answer`, and after a 200 passes everything on."""

    def __init__(self, answer: bytes) -> None:
        self.answer, self.heads = answer, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:p%40ss@127.0.0.1:{self.socket.getsockname()[1]}"
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.socket.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self._serve, args=(near,)))
            self.threads[-1].start()

    def _serve(self, near: socket.socket) -> None:
        with near:
            head = b""
            while b"\r\n\r\n" not in head and (data := near.recv(4096)):
                head += data
            self.heads.append(head)
            near.sendall(self.answer)
            if b" 200 " not in self.answer:
                return
            host, _, port = head.split(b" ")[1].partition(b":")
            with socket.create_connection((host.decode(), int(port))) as far:
                back = threading.Thread(target=self._pass_on, args=(far, near))
                back.start()
                self._pass_on(near, far)
                back.join()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def __enter__(self) -> HttpProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for thread in self.threads:
            thread.join(10)


def test_through_a_proxy(tmp_path: Path) -> None:
    with (
        HttpProxy(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n") as proxy,
        Federation(tmp_path) as federation,
    ):
        node = federation.joined("a", proxy=proxy.url)
        body = bytes(range(256)) * 8192
        node.send("server", Envelope("s", Message("a", "server", "t", body)))
        assert wait_for(federation.host, Arrived).envelope.message.body == body
        lines = proxy.heads[0].decode().split("\r\n")
        place = f"127.0.0.1:{federation.host.port}"
        assert lines[:2] == [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
        assert f"Proxy-Authorization: Basic {base64.b64encode(b'user:p@ss').decode()}" in lines


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "the proxy answered 407"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nand more", "the proxy answered 200"),
        (b"x" * 10_000, "does not speak HTTP"),
        (b"HTTP/1.1 200", "the proxy hung up"),
    ],
)
def test_a_proxy_that_lets_nothing_pass(federation: Federation, answer: bytes, reason: str) -> None:
    with HttpProxy(answer.replace(b" 200", b"  200") if answer == b"HTTP/1.1 200" else answer) as proxy:
        if b" 200 " in answer:
            proxy.answer = answer.replace(b" 200 ", b" 299 ")  # it does not pass on, and says that it does
            reason = reason.replace("200", "299")
        node = federation.join("a", proxy=proxy.url)
        assert reason in wait_for(node, Left).reason
        assert node.given_up is None
        node.close()
    assert federation.host.receive(0) is None


@pytest.mark.parametrize(
    "url", ["https://proxy:3128", "socks5://proxy", "http://", "http://proxy:x", "http://proxy/path"]
)
def test_other_proxies_are_refused_without_their_password(url: str) -> None:
    secret = url.replace("://", "://user:secret@")
    for one in (url, secret):
        with pytest.raises(UsageError, match="Expected a proxy") as raised:
            Proxy.parse(one)
        assert "secret" not in str(raised.value)


def test_a_proxys_password_is_not_shown() -> None:
    proxy = Proxy.parse("http://user:secret@proxy:3128")
    assert "secret" not in repr(proxy)
    assert base64.b64encode(b"user:secret").decode() not in repr(proxy)
    assert Proxy.parse("proxy") == Proxy("proxy", 80)


@pytest.mark.parametrize(
    "url", ["ws://host:1", "https://host", "wss://", "wss://host:port", "host:8443", "wss://a:b@host", "wss://h/?q"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="wss://host:port"):
        Address.parse(url)
