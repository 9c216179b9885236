"""Who asks: client certificates over real TLS, quotas and deletion by caller; and several servers at one port."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import signal
import ssl
import time

import httpx2
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import confide.serve
from confide.errors import UsageError
from confide.net.http import InProcess
from confide.serve.access import hash_api_key
from confide.serve.client import Client
from confide.serve.limits import Limits
from confide.serve.listen import serve
from confide.serve.server import create_app
from confide.store import SqliteStore
from confide.wire import MemoryStore
from serve.test_listen import running
from serve.toy import GRAPH, KEY_BYTES, toy_model

X = np.array([[0.5, -0.25, 1.0]])
QUESTION = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [0.5, -0.25, 1.0]}]}
PLAIN = "/v2/models/diagnosis/versions/plain/infer"


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(confide.serve, "BACKENDS", {**confide.serve.BACKENDS, "toy": "serve.toy:Toy"})


class Authority:
    """A certificate authority of the tests."""

    def __init__(self, folder, name: str) -> None:
        self.folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self._key.public_key(), authority=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, name: str, public, *, authority: bool = False, days: int = 1) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(address, False)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), True)
            .sign(self._key, hashes.SHA256())
        )

    def certify(self, name: str, *, days: int = 1):
        """Return the files of a certificate for `name` and of its new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        places = [self.folder / f"{name}-{time.monotonic_ns()}.{kind}" for kind in ("pem", "key")]
        certificate = self._sign(name, key.public_key(), days=days)
        places[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        places[1].write_bytes(key.private_bytes(*form))
        return places


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def server(authority, tmp_path_factory):
    certificate, key = authority.certify("server")
    folder = tmp_path_factory.mktemp("server")
    files = {"certificate": str(certificate), "private_key": str(key), "client_ca": str(authority.path)}
    with running(
        **files, log=str(folder / "log"), store=str(folder / "keys.db"), limits={"query_quota": 3, "total_quota": 4}
    ) as started:
        started.log = folder / "log"
        yield started


def connected(server, authority, files=None) -> httpx2.Client:
    tls = ssl.create_default_context(cafile=authority.path)
    if files:
        tls.load_cert_chain(*files)
    return httpx2.Client(base_url=server.url, verify=tls, timeout=20)


# --- client certificates ----------------------------------------------------------------------------------------------


def test_without_a_certificate_nothing_is_answered(server, authority):
    for files in (None, Authority(authority.folder, "stranger").certify("clinic"), authority.certify("old", days=-1)):
        with connected(server, authority, files) as http, pytest.raises(httpx2.TransportError):
            http.get("/v2/health/live")


def test_the_quota_counts_the_subject_whatever_its_certificate(server, authority):
    for _ in range(3):  # each time with a new certificate of the same subject
        with connected(server, authority, authority.certify("clinic-1")) as http:
            assert http.post(PLAIN, json=QUESTION).status_code == 200
    with connected(server, authority, authority.certify("clinic-1")) as http:
        refused = http.post(PLAIN, json=QUESTION)
        assert (refused.status_code, refused.json()["code"]) == (429, "quota")
    with connected(server, authority, authority.certify("clinic-2")) as http:
        assert http.post(PLAIN, json=QUESTION).status_code == 200
    deadline = time.monotonic() + 30  # a line is written once its answer has left
    while not {"CN=clinic-1", "CN=clinic-2"} <= (found := callers(server.log)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {"CN=clinic-1", "CN=clinic-2"} <= found


def callers(log):
    lines = log.read_text().split("\n")[:-1]  # whole ones
    return {json.loads(line)["caller"] for line in lines}


def test_keys_belong_to_the_subject(server, authority):
    with connected(server, authority, authority.certify("clinic-3")) as http:
        key_id = http.post("/v2/models/diagnosis/keys", content=bytes(KEY_BYTES)).text
        place = f"/v2/models/diagnosis/keys/{key_id}"
        assert http.get(place).status_code == 200
    with connected(server, authority, authority.certify("clinic-4")) as http:
        refused = http.delete(place)
        assert (refused.status_code, refused.json()["code"]) == (403, "not_owner")
    with connected(server, authority, authority.certify("clinic-3")) as http:
        assert http.delete(place).json() == {"deleted": True}
        assert http.get(place).json()["code"] == http.delete(place).json()["code"] == "unknown_key"


def test_what_client_certificates_need_is_asked_for(authority, tmp_path):
    certificate, key = authority.certify("server")
    app = create_app([toy_model()], certificates=True)
    with pytest.raises(UsageError, match="client_ca"):
        serve(app, certificate=certificate, private_key=key, port=0)
    with pytest.raises(UsageError, match="need TLS"):
        serve(app, client_ca=authority.path, port=0)
    (tmp_path / "nonsense.pem").write_text("nonsense")
    with pytest.raises(UsageError, match="PEM"):
        serve(app, certificate=certificate, private_key=key, client_ca=tmp_path / "nonsense.pem", port=0)
    with httpx2.Client(transport=InProcess(app), base_url="http://127.0.0.1") as http:  # no TLS, so no certificate
        assert http.get("/v2").status_code == 401
        assert http.get("/v2/health/live").status_code == 200


# --- API keys ---------------------------------------------------------------------------------------------------------


def test_keys_belong_to_the_holder_of_the_api_key_and_anonymous_ones_to_who_knows_them():
    keys = {"one": hash_api_key("1"), "two": hash_api_key("2")}
    with httpx2.Client(
        transport=InProcess(create_app([toy_model("m")], api_keys=keys)), base_url="http://127.0.0.1"
    ) as http:
        one, two = {"Authorization": "Bearer 1"}, {"Authorization": "Bearer 2"}
        key_id = http.post("/v2/models/m/keys", content=bytes(KEY_BYTES), headers=one).text
        place = f"/v2/models/m/keys/{key_id}"
        http.post("/v2/models/m/keys", content=bytes(KEY_BYTES), headers=two)  # again, by another
        refused = http.delete(place)
        assert refused.status_code == 401
        assert "--api-key-file" in refused.text  # what to do, not only what is missing
        assert http.delete(place, headers=two).status_code == 403
        assert http.delete(place, headers=one).status_code == 200
    with httpx2.Client(transport=InProcess(create_app([toy_model("m")])), base_url="http://127.0.0.1") as http:
        key_id = http.post("/v2/models/m/keys", content=bytes(KEY_BYTES)).text
        assert http.delete(f"/v2/models/m/keys/{'0' * 64}").status_code == 404
        assert http.delete(f"/v2/models/m/keys/{key_id}").status_code == 200
        assert "DELETE" in http.post(f"/v2/models/m/keys/{key_id}").headers["allow"]


def test_a_client_whose_keys_were_deleted_uploads_again():
    store, app = MemoryStore(), create_app([toy_model("m")])
    with Client("http://localhost", store=store, transport=InProcess(app)) as client:
        assert np.array_equal(client.predict(X), GRAPH.apply(X))
        key_id = next(iter(app._keys.keys("m/toy/known/"))).rsplit("/", 1)[-1]
        with httpx2.Client(transport=InProcess(app), base_url="http://127.0.0.1") as http:
            assert http.delete(f"/v2/models/m/keys/{key_id}").status_code == 200
        assert app._keys.keys() == []
        assert np.array_equal(client.predict(X), GRAPH.apply(X))
        assert len(app._keys.keys("m/toy/known/")) == 1


# --- several servers --------------------------------------------------------------------------------------------------


def test_two_servers_at_one_port_share_keys_and_one_may_die(tmp_path):
    """Workers behind both; the first is killed, its clients go on at the second with the keys they have uploaded."""
    shared = {"store": str(tmp_path / "keys.db"), "share_port": True, "processes": True, "limits": {"workers": 1}}
    mine = SqliteStore(tmp_path / "client.db")
    logs = [tmp_path / "one", tmp_path / "two"]
    with running(**shared, log=str(logs[0])) as one:
        with Client(one.url, store=mine) as client:
            assert np.array_equal(client.predict(X), GRAPH.apply(X))
        with running(**shared, log=str(logs[1]), port=one.port) as two:
            assert two.port == one.port
            for _ in range(24):  # connections are spread by their ports
                with httpx2.Client(base_url=one.url) as http:
                    assert http.get("/v2").status_code == 200
            assert all('"route":"server"' in log.read_text() for log in logs)
            os.kill(one.process.pid, signal.SIGKILL)
            one.process.wait(30)
            with Client(two.url, store=mine) as client:
                assert np.array_equal(client.predict(X), GRAPH.apply(X))
            assert '"route":"keys"' not in logs[1].read_text()
    mine.close()


@pytest.mark.slow
def test_servers_on_postgresql_go_on_after_they_are_killed_and_after_the_database_is(tmp_path, postgres, database):
    shared = {"store": database, "processes": True, "limits": {"workers": 1}}
    mine, log = SqliteStore(tmp_path / "client.db"), tmp_path / "log"
    with running(**shared) as one:
        with Client(one.url, store=mine) as client:
            assert np.array_equal(client.predict(X), GRAPH.apply(X))
        os.kill(one.process.pid, signal.SIGKILL)
        one.process.wait(30)
    with running(**shared, log=str(log), port=one.port) as two:
        with Client(two.url, store=mine) as client:
            assert np.array_equal(client.predict(X), GRAPH.apply(X))
            assert '"route":"keys"' not in log.read_text()
            postgres.stop(crash=True)
            with httpx2.Client(base_url=two.url, timeout=60) as http:
                refused = http.get(f"/v2/models/diagnosis/keys/{'0' * 64}")
                assert (refused.status_code, refused.json()["code"]) == (503, "busy")
                assert refused.headers["retry-after"] == "1"
                assert http.get("/v2/health/live").status_code == 200
                postgres.start()
                assert http.get(f"/v2/models/diagnosis/keys/{'0' * 64}").status_code == 404
            assert np.array_equal(client.predict(X), GRAPH.apply(X))
        assert '"route":"keys"' not in log.read_text()
    mine.close()


def test_a_port_is_shared_only_where_both_want_it(tmp_path):
    with running(store=str(tmp_path / "keys.db")) as one, pytest.raises(UsageError, match="to be free"):
        serve(create_app([toy_model()]), port=one.port, share_port=True)


def test_limits_of_calls_hold_with_workers(tmp_path):
    """A stop while a request is under way finishes it, with the workers; and none of them is left."""
    shared = {"store": str(tmp_path / "keys.db"), "processes": True, "limits": {"workers": 1, "query_bytes": 2000}}
    with running(**shared) as server:
        with httpx2.Client(base_url=server.url) as http:
            assert http.post(PLAIN, json=QUESTION).status_code == 200
            assert http.post(PLAIN, content=bytes(3000)).status_code == 413
        body = json.dumps(QUESTION).encode()
        with server.connect() as connection:
            head = f"POST {PLAIN} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body[:10])
            time.sleep(0.2)
            server.process.terminate()
            time.sleep(0.2)
            connection.sendall(body[10:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        out, err = server.process.communicate(timeout=30)
    assert (out, err) == (b"", b"")


def test_a_quota_of_any_kind_needs_callers():
    for name in ("query_quota", "total_quota"):
        with pytest.raises(UsageError, match="api_keys or client certificates"):
            create_app([toy_model()], limits=Limits(**{name: 3}))
        create_app([toy_model()], limits=Limits(**{name: 3}), certificates=True)
