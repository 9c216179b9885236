"""The broker over HTTP, and a server that asks it, in one process: same bytes, no port."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import IntegrityError, ProtocolError, ServiceError, StoreError, UsageError
from confide.net.http import InProcess
from confide.serve.broker import LIMITS, BrokerServer, network_of
from confide.serve.unseal import unsealed
from confide.tee.broker import Broker, BrokerKeys
from confide.tee.evidence import MAX_BUNDLE_BYTES, Bundle, Provider, Quoted
from confide.tee.simulated import Simulated
from tee.released import MEASUREMENT, RNG, Lines, evidence, memory, model_file, policy, sealed_model

FREE = replace(LIMITS, requests_per_second=None)


class Case:
    """A broker's application, its log, and the sealed file on disk."""

    def __init__(self, folder=None, *, limits=FREE, audit=None, **settings) -> None:
        self.store, self.audit, self.log = memory(), Lines() if audit is None else audit, io.StringIO()
        body, self.key, self.head = sealed_model(self.store)
        given = {"allow_simulated": True} | settings
        self.broker = Broker(given.pop("policy", policy()), BrokerKeys(self.store), self.audit, rng=RNG, **given)
        self.app = BrokerServer(self.broker, rng=RNG, limits=limits, log=self.log)
        self.transport = InProcess(self.app)
        self.http = httpx2.Client(transport=self.transport, base_url="http://localhost")
        if folder is not None:
            self.path = folder / "model.sealed"
            self.path.write_bytes(body)

    def __enter__(self) -> Case:
        return self

    def __exit__(self, *_) -> None:
        self.http.close()
        self.transport.close()
        self.app.close()

    def nonce(self) -> bytes:
        return bytes.fromhex(self.http.post("/v1/challenge").json()["nonce"])

    def ask(self, body: bytes, key_id: str = "") -> httpx2.Response:
        return self.http.post(f"/v1/release/{key_id or self.head.key_id}", content=body)

    def unsealed(self, attester=None, **settings) -> bytes:
        transport = settings.pop("transport", None) or InProcess(self.app)  # which is closed behind it
        attester = attester or Simulated(MEASUREMENT)
        return unsealed(self.path, "http://localhost", attester, rng=RNG, transport=transport, **settings)


@pytest.fixture
def case(tmp_path):
    with Case(tmp_path) as made:
        yield made


# --- a server asks ----------------------------------------------------------------------------------------------------


def test_a_server_gets_its_model(case):
    assert case.unsealed() == model_file()
    assert [line["verdict"] for line in case.audit] == ["released"]


def test_endorsements_are_added_to_the_evidence(case, monkeypatch):
    seen = []
    release = Broker.release
    monkeypatch.setattr(Broker, "release", lambda self, *a, **k: (seen.append(a[1]), release(self, *a, **k))[1])
    case.unsealed(endorse=lambda quoted: Quoted(quoted.evidence, {"crl": b"list"}))
    assert Bundle.decode(seen[0]).endorsements == {"crl": b"list"}


@pytest.mark.parametrize(
    ("attester", "check"),
    [(Simulated("cd" * 48), "measurement"), (Simulated(MEASUREMENT, debug=True), "debug")],
)
def test_a_server_that_the_policy_refuses(case, attester, check):
    with pytest.raises(ServiceError, match=f"403.*what fails is: {check} ") as refused:
        case.unsealed(attester)
    assert MEASUREMENT not in str(refused.value)
    assert "cd" * 48 not in str(refused.value)


def test_a_broker_without_the_option_refuses_simulated_evidence(tmp_path):
    with Case(tmp_path, allow_simulated=False) as case:
        with pytest.raises(ServiceError, match="what fails is: provider"):
            case.unsealed()
        assert case.http.post("/v1/challenge").headers["x-confide-protection"] == "hardware"


def test_a_sealed_file_that_was_changed_is_refused(case):
    body = bytearray(case.path.read_bytes())
    body[-20] ^= 1
    case.path.write_bytes(body)
    with pytest.raises(IntegrityError, match=r"model\.sealed as it was sealed"):
        case.unsealed()


def test_a_head_that_was_changed_asks_for_another_key(case):
    body = case.path.read_bytes()
    case.path.write_bytes(body.replace(case.head.key_id.encode(), b"00" * 32))
    with pytest.raises(ServiceError, match="what fails is: key"):
        case.unsealed()


class Hardware(Simulated):
    provider = Provider.SGX


def test_a_server_on_hardware_asks_no_broker_that_simulates(case):
    with pytest.raises(IntegrityError, match="anybody gets its keys"):
        case.unsealed(Hardware(MEASUREMENT))
    assert not case.audit  # no evidence was sent


@pytest.mark.parametrize("url", ["http://192.0.2.1", "ftp://localhost", "https://user@localhost"])
def test_a_broker_elsewhere_needs_tls(case, url):
    with pytest.raises(UsageError, match="https"):
        unsealed(case.path, url, Simulated(MEASUREMENT))


SIMULATED = {"x-confide-protection": "none (simulated)"}
NONCE = msgspec.json.encode({"nonce": "00" * 32})


@pytest.mark.parametrize(
    ("challenge", "release", "error", "reason"),
    [
        ((200, b"<html>"), None, ProtocolError, "nonce"),
        ((200, b'{"nonce": "00"}'), None, ProtocolError, "nonce"),
        ((200, b'{"nonce": null}'), None, ProtocolError, "nonce"),
        ((200, b"[" * 100_000), None, ProtocolError, "of at most"),
        ((500, b"<html>"), None, ServiceError, "500"),
        ((200, NONCE), (200, b""), ProtocolError, "sealed key"),
        ((200, NONCE), (200, bytes(1200)), ProtocolError, "enclave's key"),
        ((200, NONCE), (200, bytes(70_000)), ProtocolError, "of at most"),
        ((200, NONCE), (403, b"secret \x1b[2J"), ServiceError, "403"),
    ],
)
def test_a_wrong_brokers_answers_are_errors(case, challenge, release, error, reason):
    answers = [challenge, release]

    def answer(request: httpx2.Request) -> httpx2.Response:
        status, body = answers.pop(0)
        return httpx2.Response(status, content=body, headers=SIMULATED)

    with pytest.raises(error, match=reason) as raised:
        case.unsealed(transport=httpx2.MockTransport(answer), give_up_seconds=0)
    assert "\x1b" not in str(raised.value)


def test_what_is_no_broker_gets_no_evidence(case):
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        return httpx2.Response(200, content=NONCE)

    with pytest.raises(ProtocolError, match="a broker's"):
        case.unsealed(transport=httpx2.MockTransport(answer))
    assert asked == ["/v1/challenge"]


def test_another_files_key_is_refused(case, monkeypatch):
    """A broker that gives a key of its own: sealed well, for this very enclave."""
    other = sealed_model(case.store)[1]
    find = BrokerKeys.find
    monkeypatch.setattr(BrokerKeys, "find", lambda self, key_id: find(self, other.key_id))
    with pytest.raises(ProtocolError, match="another one"):
        case.unsealed()


# --- the application --------------------------------------------------------------------------------------------------


def test_every_answer_says_that_it_protects_nothing(case):
    answers = [
        case.http.post("/v1/challenge"), case.http.get("/"), case.http.get("/v2/health/live"), case.ask(b"x"),
        case.ask(evidence(case.nonce(), case.head.graph_sha256, now=time.time()).encode()),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 404, 200, 403, 200]
    assert {answer.headers["x-confide-protection"] for answer in answers} == {"none (simulated)"}
    lines = [json.loads(line) for line in case.log.getvalue().splitlines()]
    assert {line["protection"] for line in lines} == {"simulated"}
    assert all(line["simulated"] for line in case.audit if line["provider"])


def test_logs_and_refusals_repeat_nothing(case):
    case.ask(b"secret-body", "secret-path")
    case.ask(evidence(case.nonce(), case.head.graph_sha256, now=time.time()).encode())
    shown = case.log.getvalue() + repr(case.audit)
    assert "secret" not in shown
    assert case.key.secret.hex() not in shown
    refusal = case.ask(b"secret-body", "secret-path").json()
    assert refusal["error"] == "Expected evidence that the broker's policy accepts; what fails is: form"
    assert set(refusal) == {"error", "code", "request_id"}


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/challenge", 405, "POST"),
        ("GET", "/v1/release/" + "00" * 32, 405, "POST"),
        ("POST", "/v2/health/live", 405, "GET, HEAD"),
        ("POST", "/v1/release", 404, None),
        ("POST", "/v1/release/a/b", 404, None),
        ("POST", "/v1//challenge", 404, None),
        ("GET", "/metrics", 404, None),
    ],
)
def test_other_paths_and_methods(case, method, path, status, allow):
    answer = case.http.request(method, path)
    assert (answer.status_code, answer.headers.get("allow")) == (status, allow)


def test_bodies_are_bounded(case):
    assert case.ask(b"x" * MAX_BUNDLE_BYTES).status_code == 403  # the control
    assert case.ask(b"x" * (MAX_BUNDLE_BYTES + 1)).status_code == 413
    assert case.http.post("/v1/challenge", content=b"x").status_code == 413
    chunks = (b"x" * 65536 for _ in range(1000))
    assert case.http.post("/v1/release/a", content=chunks).status_code == 413  # without a length
    assert case.http.post("/v1/release/a", content=b"x", headers={"content-encoding": "gzip"}).status_code == 415
    assert case.http.post("/v1/release/a", content=b"", headers={"content-length": "1e3"}).status_code == 400
    assert case.app._bodies.held_bytes == 0


def test_an_address_has_a_rate():
    with Case(limits=replace(LIMITS, requests_per_second=0.1)) as case:
        assert case.http.post("/v1/challenge").status_code == 200
        refused = case.http.post("/v1/challenge")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 9
        assert case.http.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("nobody", "nobody"),
    ],
)
def test_whom_the_rate_counts(address, network):
    assert network_of(address) == network


class Broken(Lines):
    """An audit that cannot be written."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def append(self, line) -> None:
        raise self._error


def test_without_an_audit_nothing_leaves():
    with Case(audit=Broken(StoreError("secret"))) as case:
        answer = case.ask(evidence(case.nonce(), case.head.graph_sha256, now=time.time()).encode())
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_a_bug_is_told_by_its_place_alone():
    with Case(audit=Broken(ValueError("secret"))) as case:
        answer = case.ask(evidence(case.nonce(), case.head.graph_sha256, now=time.time()).encode())
        assert answer.status_code == 500
        assert "secret" not in answer.text + case.log.getvalue()
        assert "ValueError at append" in case.log.getvalue()


def test_a_broker_that_stops_gives_nothing(case):
    nonce = case.nonce()
    case.app.close()
    assert case.http.get("/v2/health/ready").status_code == 503
    assert case.ask(evidence(nonce, case.head.graph_sha256, now=time.time()).encode()).status_code == 503


@pytest.fixture(scope="module")
def hostile():
    with Case() as made:
        yield made


PATHS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#.%"), min_size=1, max_size=80)


@given(path=PATHS, body=st.binary(max_size=100))
def test_any_path_and_body_is_refused(hostile, path, body):
    assert hostile.ask(body, path).status_code in (403, 404)
