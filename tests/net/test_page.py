"""The status page's server: what it answers, to whom, and that strangers cannot hold it up."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from confide.errors import UsageError
from confide.net.page import PageLimits, StatusPage, _content_policy

LIMITS = PageLimits(connections=4, header_seconds=0.3, crowded_seconds=0.05, write_seconds=0.5, poll_seconds=0.02)


class Source:
    """A snapshot that a test changes."""

    def __init__(self) -> None:
        self.value = b'{"round":1}'

    def __call__(self) -> bytes:
        return self.value


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def page(source) -> Iterator[StatusPage]:
    with StatusPage(source, metrics=lambda: b"confide_rounds 3\n", limits=LIMITS) as page:
        yield page


def get(page: StatusPage, path: str, *, method: str = "GET", host: str | None = None, **headers: str):
    """Return (status, headers, body) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    try:
        connection.request(method, path, headers={"Host": host or f"127.0.0.1:{page.port}", **headers})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def raw(page: StatusPage, head: bytes) -> bytes:
    """Return everything that the server answers to these bytes until it closes."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as connection:
        connection.sendall(head)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


@contextmanager
def listening(page: StatusPage) -> Iterator[Iterator[tuple[str, str]]]:
    """Open /events and yield its events as (id, data)."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.getheader("Content-Type") == "text/event-stream"

    def events() -> Iterator[tuple[str, str]]:
        fields: dict[str, str] = {}
        while line := answer.readline():
            text = line.decode().rstrip("\n")
            if text:
                name, _, value = text.partition(": ")
                fields[name] = value
            elif fields:
                if "data" in fields:
                    yield fields["id"], fields.get("event", "") + fields["data"]
                fields = {}

    try:
        yield events()
    finally:
        answer.close()
        connection.close()


# --- what it answers --------------------------------------------------------------------------------------------------


def test_the_page_its_data_and_its_figures(page, source):
    status, headers, body = get(page, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"<!doctype html>" in body
    assert get(page, "/status.json")[2] == source.value
    source.value = b'{"round":2}'
    assert get(page, "/status.json?x=1")[2] == source.value
    status, headers, body = get(page, "/metrics")
    assert (status, body) == (200, b"confide_rounds 3\n")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_without_metrics_there_are_none(source):
    with StatusPage(source, limits=LIMITS) as page:
        assert get(page, "/metrics")[0] == 404


@pytest.mark.parametrize("path", ["/nothing", "/../etc/passwd", "//", "/page.html", "/Status.json"])
def test_nothing_else_is_there(page, path):
    assert get(page, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT"])
def test_it_is_read_only(page, method):
    status, headers, _ = get(page, "/status.json", method=method)
    assert (status, headers["Allow"]) == (405, "GET")


def test_events_follow_the_snapshot(page, source):
    with listening(page) as events:
        before = time.time()
        identity, data = next(events)
        assert data == '{"round":1}'
        assert abs(float(identity) - before) < 60  # this clock, in seconds
        for number in (2, 3):
            source.value = json.dumps({"round": number}).encode()
            assert json.loads(next(events)[1]) == {"round": number}


def test_a_quiet_stream_shows_that_it_is_alive(source):
    limits = PageLimits(poll_seconds=0.01, silence_seconds=0.05)
    with StatusPage(source, limits=limits) as page, listening(page) as events:
        assert [data for _, data in (next(events), next(events), next(events))] == ['{"round":1}', "alive", "alive"]


def test_a_line_break_in_a_snapshot_ends_no_event(page, source):
    source.value = b'{"a":1,\n\n"b":2}\r\n'
    with listening(page) as events:
        assert json.loads(next(events)[1]) == {"a": 1, "b": 2}


# --- to whom ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["attacker.example", "attacker.example:{port}", "127.0.0.1.attacker.example:{port}", "localhost.", ":{port}"],
)
def test_a_name_that_was_bent_to_this_machine_is_refused(page, host):
    for path in ("/", "/status.json", "/events", "/metrics"):
        assert get(page, path, host=host.format(port=page.port))[0] == 421


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:{port}", "[::1]"])
def test_the_names_of_this_machine_are_accepted(page, host):
    assert get(page, "/status.json", host=host.format(port=page.port))[0] == 200


def test_a_proxy_s_name_can_be_added(source):
    with StatusPage(source, names=("status.hospital.example",)) as page:
        assert get(page, "/", host="status.hospital.example")[0] == 200
        assert get(page, "/", host="other.hospital.example")[0] == 421


def test_other_sites_may_link_to_the_page_and_read_nothing(page):
    for site in ("cross-site", "same-site"):
        assert get(page, "/", **{"Sec-Fetch-Site": site})[0] == 200
        for path in ("/status.json", "/events", "/metrics"):
            assert get(page, path, **{"Sec-Fetch-Site": site})[0] == 403
    for site in ("same-origin", "none"):
        assert get(page, "/status.json", **{"Sec-Fetch-Site": site})[0] == 200


def test_no_answer_lets_another_origin_in(page):
    for path in ("/", "/status.json", "/metrics", "/nothing"):
        _, headers, _ = get(page, path, Origin="http://attacker.example")
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_the_page_runs_and_loads_nothing_but_its_own(page):
    _, headers, body = get(page, "/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"'sha256-[\w+/]{43}='", policy)) == 2
    text = body.decode()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\son\w+=", text)
    changed = text.replace('"use strict"', '"use strict" ')
    assert changed != text
    assert _content_policy(changed) != policy  # a script that was tampered with has another hash


def test_it_listens_on_loopback_unless_told_otherwise(source):
    with pytest.raises(UsageError, match=r"host=0\.0\.0\.0 to be a loopback address"):
        StatusPage(source, host="0.0.0.0")
    with StatusPage(source, host="0.0.0.0", open_to_network=True) as page:
        assert get(page, "/")[0] == 200


def test_an_address_that_is_taken_is_a_line(source, page):
    with pytest.raises(UsageError, match="choose another port"):
        StatusPage(source, port=page.port)
    with pytest.raises(UsageError, match="port=99999 from 0 to 65535"):
        StatusPage(source, port=99999)


# --- hostile connections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost 127.0.0.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n folded\r\n\r\n", 400),
        (b"GET /\xff\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"G" * 20000, 431),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", 408),
        (b"", 408),
    ],
)
def test_malformed_requests_get_a_line_and_an_end(page, head, status):
    answer = raw(page, head)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Expected" in answer
    assert get(page, "/")[0] == 200


def test_a_slow_sender_is_cut_however_lively_it_is(page):
    """Bytes that trickle in reset no clock."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        ended = threading.Event()

        def trickle() -> None:
            while not ended.wait(0.02):
                try:
                    connection.sendall(b"X")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
        finally:
            ended.set()
            thread.join()


def test_more_connections_than_allowed_are_told_to_come_back(page):
    with ExitStack() as stack:
        streams = [stack.enter_context(listening(page)) for _ in range(LIMITS.connections)]
        for events in streams:
            next(events)
        assert get(page, "/")[0] == 503
    for _ in range(200):  # the places become free again
        if get(page, "/")[0] == 200:
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the places stayed taken")


def test_a_listener_that_does_not_read_is_cut(page, source):
    """Its connection ends while another listener goes on."""
    source.value = b"x" * (1 << 20)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(10)
        deaf.connect(("127.0.0.1", page.port))
        deaf.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        with listening(page) as events:
            next(events)
            for number in range(100):
                source.value = b"%d" % number * (1 << 18)
                next(events)
                time.sleep(0.01)
        received = 0
        try:
            while part := deaf.recv(1 << 16):
                received += len(part)
        except ConnectionResetError:
            pass
        assert received < 20 << 20


def test_closing_ends_open_streams_and_the_thread(source):
    before = set(threading.enumerate())
    page = StatusPage(source, limits=LIMITS)
    with listening(page) as events:
        next(events)
        page.close()
        assert list(events) == []
    page.close()  # again does no harm
    assert set(threading.enumerate()) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", page.port), timeout=10)
