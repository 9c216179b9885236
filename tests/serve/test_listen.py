"""Real server processes on the loopback interface: TLS, kill -9, hostile bytes below ASGI, a clean stop."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import confide.serve
from confide.errors import IntegrityError, UsageError
from confide.serve.client import Client
from confide.serve.listen import _HeadFirst, serve
from confide.serve.server import create_app
from confide.store import SqliteStore
from serve.toy import GRAPH, Toy, toy_model

ROOT = Path(__file__).parents[2]
X = np.array([[0.5, -0.25, 1.0]])


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(confide.serve, "BACKENDS", {**confide.serve.BACKENDS, "toy": "serve.toy:Toy"})


class Running:
    """A server process and its URL."""

    def __init__(self, process: subprocess.Popen, url: str) -> None:
        self.process = process
        self.url = url
        self.port = int(url.rsplit(":", 1)[1])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@contextmanager
def running(**settings):
    command = [sys.executable, str(ROOT / "tests" / "serve" / "host.py"), json.dumps(settings)]
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        url = process.stdout.readline().decode().strip()
        try:
            assert url, process.stderr.read().decode()
            yield Running(process, url)
        finally:
            if process.poll() is None:
                process.terminate()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.jsonl"
    limits = {
        "query_bytes": 100_000, "keys_bytes": 200_000, "header_seconds": 0.6, "body_seconds": 0.6,
        "header_bytes": 8000, "connections": 40,
    }  # fmt: skip
    with running(log=str(log), limits=limits) as started:
        started.log = log
        yield started


def exchange(server: Running, request: bytes, *, slowly: float = 0.0) -> bytes:
    """Send raw bytes and return everything that comes back until the server closes."""
    with server.connect() as connection:
        try:
            connection.sendall(request)
            time.sleep(slowly)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        except (ConnectionResetError, BrokenPipeError):
            return b"reset"
        return answer


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["toy", "plain"])
def test_predicts_over_a_real_connection(server, backend):
    with Client(server.url, backend=backend) as client:
        for _ in range(3):
            assert np.array_equal(client.predict(X), GRAPH.apply(X))


def test_many_clients_at_a_time_get_their_own_answers(server):
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            x = np.random.Generator(np.random.PCG64(seed)).uniform(-1, 1, (4, 3))
            with Client(server.url) as client:
                for _ in range(10):
                    assert np.array_equal(client.predict(x), GRAPH.apply(x))
        except BaseException as error:  # shown below, in the thread of the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_answers_on_http_1_0_and_with_expect_100(server):
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [0.5, -0.25, 1.0]}]})
    path = "/v2/models/diagnosis/versions/plain/infer"
    old = f"POST {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    assert str(GRAPH.apply(X)[0, 0]).encode() in exchange(server, old)
    with server.connect() as connection:
        connection.sendall(head(path, f"Content-Length: {len(body)}", "Expect: 100-continue", "Connection: close"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body.encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 200")


# --- hostile bytes ----------------------------------------------------------------------------------------------------

INFER = "/v2/models/diagnosis/versions/plain/infer"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"MARKER nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00MARKER", b"400"),
        (bytes(range(256)) * 10, b"400"),
        (head(INFER, "Content-Length: 5", "Content-Length: 6") + b"MARKER", b"400"),
        (head(INFER, "Content-Length: -5") + b"MARKER", b"400"),
        (head(INFER, "Content-Length: 5", "Transfer-Encoding: chunked") + b"MARKER", b"400"),
        (head(INFER, "Transfer-Encoding: chunked", "Connection: close") + b"ZZ\r\nMARKER\r\n", None),
        (head(INFER, "Content-Length: 99999999999", "Connection: close"), b"413"),
        (head(INFER, "Content-Length: 99999999999999999999999999", "Connection: close"), None),
        (head(INFER, f"X: {'MARKER' * 3000}", "Connection: close") * 2, b"400"),
        (head("/" + "MARKER" * 3000, "Connection: close", method="GET"), None),
    ],
    ids=range(11),
)
def test_bytes_that_are_no_request_get_no_more_than_a_refusal(server, request_, status):
    answer = exchange(server, request_)
    assert b"MARKER" not in answer
    assert b"Traceback" not in answer
    if status is not None:
        assert answer == b"reset" or answer.split(b" ")[1] == status
    assert httpx2.get(f"{server.url}/v2/health/live").status_code == 200


def chunked(total: int):
    for _ in range(total // 10_000):
        yield bytes(10_000)


@pytest.mark.parametrize(("path", "bound"), [(INFER, 100_000), ("/v2/models/diagnosis/keys", 200_000)])
def test_chunked_bodies_are_counted(server, path, bound):
    try:
        answer = httpx2.post(f"{server.url}{path}", content=chunked(bound * 5))
    except httpx2.TransportError:
        return  # closed while the client was still sending: refused as well
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    below = httpx2.post(f"{server.url}{path}", content=chunked(bound - 10_000))
    assert below.status_code in {200, 400}


def test_a_body_shorter_than_declared_is_given_up(server):
    answer = exchange(server, head(INFER, "Content-Length: 1000") + b"MARKER")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"MARKER" not in answer


def test_a_body_longer_than_declared_is_no_body(server):
    answer = exchange(server, head(INFER, "Content-Length: 2") + b"{}MARKER\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"MARKER" not in answer


def test_headers_that_never_end_are_given_up(server):
    began = time.monotonic()
    with server.connect() as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        assert connection.recv(100) == b""
    assert time.monotonic() - began < 15  # the client's own patience is 20 s
    with server.connect() as silent:
        assert silent.recv(100) == b""


def test_headers_without_end_are_bounded_by_size(server):
    with server.connect() as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        answer = b""
        try:
            for _ in range(100):
                connection.sendall(b"MARKER" * 1000)
                time.sleep(0.001)
            answer = connection.recv(1000)
        except (BrokenPipeError, ConnectionResetError):
            answer = b"HTTP/1.1 400 reset"
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"MARKER" not in answer


@pytest.mark.parametrize("piece", [b"X:\r\n" * 2000, b"X" * 8000], ids=["many", "one"])
def test_trailers_without_end_are_bounded_by_size(server, piece):
    with server.connect() as connection:
        connection.sendall(head("/v2/models/diagnosis/infer", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012 (where it breaks is the system's)
            for _ in range(100):
                connection.sendall(piece)
                time.sleep(0.001)
            pytest.fail("they were all taken")


def test_a_few_trailers_and_chunks_of_a_few_bytes_are_no_harm(server):
    body = b"".join(b"4\r\n    \r\n" for _ in range(10_000))
    request = head("/v2/models/diagnosis/infer", "Transfer-Encoding: chunked", "Connection: close")
    answer = exchange(server, request + body + b"0\r\nX: y\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"malformed" in answer


def test_more_connections_than_allowed_are_refused(server):
    idle = [server.connect() for _ in range(45)]
    try:
        for connection in idle:
            connection.sendall(b"GET /v2 HTTP/1.1\r\n")
        time.sleep(0.2)
        assert exchange(server, head("/v2", "Connection: close", method="GET")).startswith(b"HTTP/1.1 503")
    finally:
        for connection in idle:
            connection.close()
    time.sleep(0.2)
    assert httpx2.get(f"{server.url}/v2").status_code == 200


# --- clients that do not read -----------------------------------------------------------------------------------------

SLOW = {
    "connections": 10, "query_bytes": 1 << 20, "keys_bytes": 1 << 20, "reply_bytes": 60 << 20,
    "header_seconds": 2, "body_seconds": 2, "answer_seconds": 5, "reply_seconds": 3, "idle_seconds": 1,
}  # fmt: skip
ROWS = 4000


def wide_question() -> bytes:
    """Return a request of 32 kB whose reply takes 16 MB."""
    tensor = {"name": "x", "shape": [ROWS, 1], "datatype": "FP64", "parameters": {"binary_data_size": 8 * ROWS}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    lines = (f"Content-Length: {len(text) + 8 * ROWS}", f"Inference-Header-Content-Length: {len(text)}")
    return head("/v2/models/wide/infer", *lines) + text.encode() + bytes(8 * ROWS)


def ask_and_never_read(server: Running, tls: ssl.SSLContext | None) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", server.port))
    if tls is not None:
        connection = tls.wrap_socket(connection)
    connection.sendall(wide_question())
    return connection


def status_of(http: httpx2.Client, path: str) -> int:
    try:
        return http.get(path, headers={"connection": "close"}).status_code
    except httpx2.TransportError:
        return 0


def until(condition, patience_seconds: float = 20) -> None:
    deadline = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_clients_that_never_read_are_cut_off_and_the_others_get_through(scheme, certificate):
    files = dict(zip(("certificate", "private_key"), map(str, certificate), strict=True)) if scheme == "https" else {}
    tls = ssl.create_default_context(cafile=certificate[0]) if files else None
    if tls is not None:
        tls.check_hostname = False
    with running(wide=True, limits={**SLOW, "buffered_bytes": 300 << 20}, **files) as server, ExitStack() as stack:
        with httpx2.Client(base_url=server.url, verify=tls or False, timeout=20) as http:
            idle: list[socket.socket] = []
            for _ in range(12):
                idle.append(stack.enter_context(ask_and_never_read(server, tls)))
                time.sleep(0.1)  # each is heard before the next one counts as a connection
            until(lambda: status_of(http, "/v2") == 503)  # they hold every connection
            assert status_of(http, "/v2/health/live") == 200
            assert status_of(http, "/v2/health/ready") == 200
            until(lambda: status_of(http, "/v2") == 200)
        time.sleep(SLOW["reply_seconds"] + 1)  # whichever was cut first: by now all are
        taken = b""
        with suppress(OSError):
            while chunk := idle[0].recv(1 << 20):
                taken += chunk
        assert len(taken) < 16_000_000


def test_replies_that_nobody_takes_fill_the_memory_bound_and_give_it_back():
    with (
        running(wide=True, limits={**SLOW, "connections": 40, "buffered_bytes": 60 << 20}) as server,
        ExitStack() as stack,
    ):
        for _ in range(8):
            stack.enter_context(ask_and_never_read(server, None))
        time.sleep(0.5)
        refused = exchange(server, wide_question().replace(b"Host:", b"Connection: close\r\nHost:"))
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in refused
        question = wide_question().replace(b"Host:", b"Connection: close\r\nHost:")
        until(lambda: len(exchange(server, question)) > 16_000_000)  # a client that reads gets all of it


def test_requests_one_behind_the_other_are_answered_in_order(server):
    requests = head("/v2", method="GET") + head("/v2/models/absent", "Connection: close", method="GET")
    answer = exchange(server, requests)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 404") == 1


def test_the_log_holds_nothing_of_all_that(server):
    exchange(server, head(INFER, "Content-Length: 99999999999", "X: MARKER", "Connection: close") + b"MARKER")
    exchange(server, head("/MARKER?MARKER", "Connection: close", method="GET"))
    log = server.log.read_text()
    assert '"code":"too_large"' in log
    assert '"code":"unknown_path"' in log
    assert "MARKER" not in log


def test_the_terminal_stays_silent(tmp_path):
    with running(limits={"header_bytes": 8000}) as server:
        for request in (
            b"MARKER nonsense\r\n\r\n",
            head("/MARKER", "Upgrade: websocket", "Connection: Upgrade, close"),
        ):
            exchange(server, request)
        server.process.terminate()
        out, err = server.process.communicate(timeout=30)
    assert (out, err) == (b"", b"")


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return a self-made certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "confide test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def test_predicts_over_tls_and_only_for_who_knows_the_authority(certificate):
    path, key = certificate
    with running(certificate=str(path), private_key=str(key)) as server:
        assert server.url.startswith("https://")
        with Client(server.url, ca_file=path) as client:
            assert np.array_equal(client.predict(X), GRAPH.apply(X))
        with Client(server.url) as client, pytest.raises(IntegrityError, match="ca_file"):
            client.predict(X)
        with Client(f"https://localhost:{server.port}", ca_file=path) as client, pytest.raises(IntegrityError):
            client.predict(X)  # the certificate is for 127.0.0.1
        assert exchange(server, head("/v2", method="GET")) in (b"", b"reset")  # no plain HTTP on a TLS port
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with server.connect() as connection, old.wrap_socket(connection) as secured:
            assert secured.version() == "TLSv1.3"


def test_a_handshake_that_does_not_come_is_given_up(certificate):
    path, key = certificate
    with running(certificate=str(path), private_key=str(key), limits={"header_seconds": 0.6}) as server:
        with server.connect() as silent:
            assert silent.recv(100) == b""  # within the patience of 20 s
        with Client(server.url, ca_file=path) as client:
            assert np.array_equal(client.predict(X), GRAPH.apply(X))


# --- crashes and stops ------------------------------------------------------------------------------------------------


def test_killed_while_keys_come_in_it_starts_again_and_the_client_goes_on(tmp_path):
    store = str(tmp_path / "server.db")
    mine = SqliteStore(tmp_path / "client.db")
    with running(store=store) as first:
        with Client(first.url, store=mine) as client:
            client.predict(X)
        half = first.connect()
        half.sendall(head("/v2/models/diagnosis/keys", "Content-Length: 2000000") + bytes(1_000_000))
        time.sleep(0.1)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait(30)
        half.close()
    with running(store=store, port=first.port) as second:
        requests = []

        class Spy(httpx2.HTTPTransport):
            def handle_request(self, request):
                requests.append(request.url.path.rsplit("/", 1)[-1])
                return super().handle_request(request)

        with Client(second.url, store=mine, transport=Spy()) as client:
            assert np.array_equal(client.predict(X), GRAPH.apply(X))
        assert "keys" not in requests  # what had been acknowledged is still there
    mine.close()


def test_a_request_that_has_begun_is_finished_when_the_server_is_stopped():
    with running() as server:
        with server.connect() as connection:
            body = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [0, 0, 0]}]})
            connection.sendall(head(INFER, f"Content-Length: {len(body)}") + body[:10].encode())
            time.sleep(0.2)
            server.process.terminate()
            time.sleep(0.2)
            connection.sendall(body[10:].encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        server.process.wait(30)
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_ctrl_c_ends_it_quietly():
    with running() as server:
        assert httpx2.get(f"{server.url}/v2/health/ready").status_code == 200
        server.process.send_signal(signal.SIGINT)
        out, err = server.process.communicate(timeout=30)
    assert (server.process.returncode, out, err) == (0, b"", b"")


# --- refusals before anything listens ---------------------------------------------------------------------------------


@pytest.fixture
def app():
    return create_app([toy_model("m", Toy())])


def test_another_address_needs_tls(app):
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(UsageError, match="insecure_plain_http"):
            serve(app, host=host, port=0)


def test_certificate_and_key_come_together(app, certificate, tmp_path):
    path, key = certificate
    with pytest.raises(UsageError, match="both"):
        serve(app, certificate=path)
    with pytest.raises(UsageError, match="both"):
        serve(app, private_key=key)
    (tmp_path / "nonsense.pem").write_text("nonsense")
    for wrong in (tmp_path / "nonsense.pem", tmp_path / "absent.pem"):
        with pytest.raises(UsageError, match="PEM"):
            serve(app, certificate=wrong, private_key=key)


def test_an_address_that_is_taken_is_named(app):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port={port}"):
            serve(app, port=port)
    with pytest.raises(UsageError, match="port=70000"):
        serve(app, port=70000)
    with pytest.raises(UsageError, match=r"host=192\.0\.2\.1"):
        serve(app, host="192.0.2.1", port=0, insecure_plain_http=True)


class Written:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.pieces.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def test_the_head_of_an_answer_leaves_with_its_body():
    transport = Written()
    joined = _HeadFirst(transport)
    joined.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert transport.pieces == []
    joined.write(b"HTTP/1.1 is what this body begins with")
    joined.write(b"more")
    assert transport.pieces == [b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 is what this body begins with", b"more"]


def test_a_head_without_a_body_is_not_kept():
    transport = Written()
    joined = _HeadFirst(transport)
    joined.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # the client waits for it
    assert transport.pieces == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    joined.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    joined.flush()
    joined.flush()
    joined.write(b"HTTP/1.1 400 Bad Request\r\n\r\nwhy")
    joined.close()
    assert transport.pieces[1:] == [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\nwhy"]
    assert joined.is_closing()
