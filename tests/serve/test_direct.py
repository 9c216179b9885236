"""The client's own HTTP: answers as http.client reads them, connections that are kept, and what goes wrong."""

import http.client
import io
import socket
import threading
import time
from contextlib import contextmanager

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.serve.connect import PIECE_BYTES, Address
from confide.serve.direct import Direct, _Answer
from confide.serve.effects import Send

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Scripted:
    """A server that sends what a test says: answers for each connection, None hangs up, a number waits first."""

    def __init__(self, *connections) -> None:
        self.script = connections
        self.requests: list[bytes] = []
        self.accepted = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        for answers in self.script:
            connection, _ = self.listener.accept()
            self.accepted += 1
            with connection:
                for answer in answers:
                    if answer is None or not self._read(connection):
                        break
                    if isinstance(answer, float):
                        time.sleep(answer)
                        break
                    connection.sendall(answer)

    def _read(self, connection: socket.socket) -> bool:
        body = b""
        while b"\r\n\r\n" not in body:
            piece = connection.recv(1 << 16)
            if not piece:
                return False
            body += piece
        head, _, rest = body.partition(b"\r\n\r\n")
        length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        while length and len(rest) < int(length[0]):
            rest += connection.recv(1 << 16)
        self.requests.append(head + b"\r\n\r\n" + rest)
        return True


@contextmanager
def scripted(*connections, seconds=5.0, path="", api_key=None):
    server = Scripted(*connections)
    client = Direct(Address(server.url + path, api_key, None, False, seconds))
    try:
        yield server, client
    finally:
        client.close()
        server.thread.join(5)
        server.listener.close()


def get(client, path="/v2", **options):
    return client.send(Send("GET", path, **options), lambda done, total: None)


def test_a_request_is_written_as_http_has_it():
    told = []
    with scripted([PLAIN], path="/behind/a/proxy", api_key="k") as (server, client):
        body = bytes(range(256)) * 3000
        answer = client.send(Send("POST", "/v2/x", body, {"X-One": "two"}), lambda *now: told.append(now))
    assert (answer.status, answer.body) == (200, b"hi")
    head, _, rest = server.requests[0].partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert first == "POST /behind/a/proxy/v2/x HTTP/1.1"
    assert dict(line.split(": ", 1) for line in headers) == {
        "host": server.url.removeprefix("http://"), "accept": "*/*", "accept-encoding": "identity",
        "user-agent": "confide", "authorization": "Bearer k", "X-One": "two", "content-length": str(len(body)),
    }  # fmt: skip
    assert rest == body
    ends = range(PIECE_BYTES, len(body) + PIECE_BYTES, PIECE_BYTES)
    assert told == [(min(end, len(body)), len(body)) for end in ends]


def test_a_connection_is_kept_and_one_that_the_server_closed_is_not_used():
    with scripted([PLAIN, PLAIN, PLAIN], [PLAIN]) as (server, client):
        for _ in range(3):
            assert get(client).body == b"hi"
        assert server.accepted == 1
        server.thread.join(0.2)  # until the first connection is closed
        assert get(client).body == b"hi"
        assert server.accepted == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\n\r\nhi",  # until the connection ends
        PLAIN + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray",
    ],
    ids=["close", "http 1.0", "no length", "bytes behind"],
)
def test_a_connection_that_cannot_go_on_is_closed(answer):
    with scripted([answer], [PLAIN]) as (server, client):
        assert get(client).body == get(client).body == b"hi"
        assert server.accepted == 2


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([None], (httpx2.ReadError, httpx2.RemoteProtocolError)),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", None], httpx2.RemoteProtocolError),
        ([b"SSH-2.0-OpenSSH\r\n", None], httpx2.RemoteProtocolError),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", None], httpx2.RemoteProtocolError),
        ([b"HTTP/1.1 200 OK\r\nX: " + bytes(1 << 17).replace(b"\0", b"y")], httpx2.RemoteProtocolError),
        ([CHUNKED + b"2\r\nhi\r\n0\r\nX: " + bytes(1 << 18).replace(b"\0", b"y")], httpx2.RemoteProtocolError),
        ([CHUNKED + b"2;" + bytes(1 << 18).replace(b"\0", b"y")], httpx2.RemoteProtocolError),
        ([b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi"], ProtocolError),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789"], ProtocolError),
        ([CHUNKED + b"9\r\n123456789\r\n0\r\n\r\n"], ProtocolError),
    ],
    ids=[
        "nothing",
        "half",
        "another protocol",
        "length",
        "headers",
        "trailers",
        "extensions",
        "compressed",
        "too large",
        "too large in chunks",
    ],
)
def test_what_is_no_answer_is_an_error_and_the_next_request_gets_a_new_connection(answers, error):
    with scripted(answers, [PLAIN]) as (server, client):
        with pytest.raises(error):
            get(client, max_bytes=8)
        assert get(client).body == b"hi"
        assert server.accepted == 2


def test_what_stands_behind_the_body_is_no_header():
    with scripted([CHUNKED + b"2\r\nhi\r\n0\r\nX-Late: yes\r\n\r\n"]) as (_, client):
        answer = get(client)
    assert (answer.body, answer.headers) == (b"hi", {"transfer-encoding": "chunked"})


def test_a_server_that_says_nothing_is_not_waited_for():
    with scripted([0.5], seconds=0.1) as (_, client), pytest.raises(httpx2.ReadTimeout):
        get(client)


def test_nobody_there_is_a_connect_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(httpx2.ConnectError):
        get(Direct(Address(f"http://127.0.0.1:{port}", None, None, False, 1.0)))


def test_an_answer_before_the_end_of_the_body_is_read():
    """As 413 is given: the server hangs up while the client still sends."""
    refusal = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    def hang_up() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(refusal)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(0.5)
            try:
                while connection.recv(1 << 16):
                    pass
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up)
        thread.start()
        client = Direct(Address(f"http://127.0.0.1:{listener.getsockname()[1]}", None, None, False, 5.0))
        answer = client.send(Send("POST", "/v2", bytes(8 << 20)), lambda done, total: None)
        thread.join()
    assert answer.status == 413


@pytest.mark.parametrize(
    "send",
    [
        Send("GET", "/v2 HTTP/1.1\r\nX: y"),
        Send("GET", "/v2", None, {"x": "y\r\nz: w"}),
        Send("GET", "/v2", None, {"x\r\nz": "y"}),
        Send("GET", "/v2", None, {"x": "\u20ac"}),
    ],
    ids=["path", "value", "name", "letters"],
)
def test_nothing_can_be_smuggled_into_a_head(send):
    with scripted() as (_, client), pytest.raises(httpx2.LocalProtocolError):
        client.send(send, lambda done, total: None)


def test_what_is_done_meanwhile_is_done_after_sending_and_before_the_answer():
    order = []
    ready = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            order.append("received")
            ready.wait(5)
            connection.sendall(PLAIN)

    def meanwhile() -> None:
        order.append("meanwhile")
        ready.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        client = Direct(Address(f"http://127.0.0.1:{listener.getsockname()[1]}", None, None, False, 5.0))
        client.send(Send("POST", "/v2", b"x", meanwhile=meanwhile), lambda done, total: None)
        thread.join()
    client.close()
    assert "meanwhile" in order  # the server waited for it: it ran before the answer was there


def test_a_connection_at_work_serves_nobody_else():
    found = []
    with scripted([PLAIN], [PLAIN]) as (server, client):
        first = get(client, meanwhile=lambda: found.append(get(client)))
        assert first.body == found[0].body == b"hi"
        assert server.accepted == 2


# --- http.client as the oracle ----------------------------------------------------------------------------------------

MEANT = {"connection", "content-length", "content-encoding", "transfer-encoding", "upgrade"}
names = st.from_regex(r"[A-Za-z][A-Za-z-]{0,10}", fullmatch=True).filter(lambda name: name.lower() not in MEANT)
values = st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True)


@given(
    st.integers(200, 599).filter(lambda status: status not in (204, 304)),
    st.dictionaries(names, values, max_size=4).filter(lambda one: len({n.lower() for n in one}) == len(one)),
    st.binary(max_size=300),
    st.lists(st.integers(1, 50), max_size=10),
    st.sampled_from(["length", "chunked", "continue"]),
)
@settings(max_examples=150, deadline=None)
def test_answers_are_read_as_http_client_reads_them_however_they_arrive(status, headers, body, cuts, how):
    head = f"HTTP/1.1 {status} Some Reason\r\n".encode()
    head += b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
    if how == "chunked":
        pieces = [body[i : i + 7] for i in range(0, len(body), 7)] + [b""]
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        whole = head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    else:
        whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if how == "continue":
        whole = b"HTTP/1.1 100 Continue\r\nX-Early: yes\r\n\r\n" + whole

    class Fake:
        def makefile(self, mode):
            return io.BytesIO(whole)

    expected = http.client.HTTPResponse(Fake())  # type: ignore[arg-type]
    expected.begin()
    answer, at = _Answer(1 << 20), 0
    for cut in [*cuts, len(whole)]:
        if whole[at : at + cut]:
            answer.feed(whole[at : at + cut])
        at += cut
    received = answer.received()
    assert answer.complete
    assert answer.reusable
    assert (received.status, received.body) == (expected.status, expected.read()) == (status, body)
    assert received.headers == {name.lower(): value for name, value in expected.getheaders()}


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_answer_or_an_error_of_the_transport(data):
    answer = _Answer(100)
    try:
        answer.feed(b"HTTP/1.1 200 OK\r\n" + data)
        if not answer.complete:
            answer.feed(b"")
    except (httpx2.RemoteProtocolError, ProtocolError):
        return
    assert answer.complete
