"""A simulated enclave behind the server: what goes over HTTP, what is logged, and what happens when keys end."""

import asyncio
import io
import json
import threading
import time
from dataclasses import replace

import httpx2
import msgspec
import numpy as np
import pytest

from confide.crypto.keys import SigningKey
from confide.errors import AttestationError, IntegrityError, PrivacyError, UsageError
from confide.guarantee import imported_label
from confide.ideal import PlainPredict
from confide.model.artifact import Artifact, load
from confide.model.graph import Graph, Linear
from confide.model.preprocess import Preprocess, Scale
from confide.net.http import InProcess
from confide.serve.async_client import AsyncClient
from confide.serve.client import Client
from confide.serve.limits import Limits
from confide.serve.observe import Standing
from confide.serve.protocol import ClientKit, Refusal, digest
from confide.serve.served import Model
from confide.serve.server import create_app
from confide.serve.work import Figures
from confide.tee.backend import ClientKit as EnclaveKit
from confide.tee.backend import Enclaved
from confide.tee.evidence import SIMULATED_MEDIA_TYPE, Provider
from confide.tee.simulated import Simulated
from confide.wire import MemoryStore
from tee.enclaves import GRAPH, Clock, policy_for

X = np.array([[0.1, -0.2, 0.3], [0.987654321, 0.5, -0.25]])
URL = "http://127.0.0.1:1"


class Watching(httpx2.BaseTransport):
    """Passes requests on and keeps what goes both ways."""

    def __init__(self, app) -> None:
        self._inside = InProcess(app)
        self.asked: list[httpx2.Request] = []
        self.answered: list[httpx2.Response] = []
        self.seen = b""

    def handle_request(self, request):
        self.seen += request.read()
        answer = self._inside.handle_request(request)
        self.asked.append(request)
        self.answered.append(answer)
        self.seen += answer.read()
        return answer

    def paths(self) -> list[str]:
        return [request.url.path.rsplit("/", 1)[1] for request in self.asked]

    def close(self) -> None:
        self._inside.close()


def served(*backends, graph=GRAPH, statement=b"", prepare=b"", **settings):
    made = backends or (Enclaved(attester=Simulated()), PlainPredict())
    return create_app([Model("m", graph, imported_label(), made, preprocess=prepare, statement=statement)], **settings)


def client(transport, **changes) -> Client:
    settings = {"policy": policy_for(), "attester": "simulated", "transport": transport}
    return Client(URL, **(settings | changes))


def test_answers_are_the_model_s_and_evidence_is_asked_for_once():
    watching = Watching(served())
    with client(watching) as asking:
        for _ in range(3):
            assert (asking.predict(X) == GRAPH.apply(X)).all()
    assert watching.paths() == ["v2", "kit", "keys", "infer", "infer", "infer"]


def test_nothing_on_the_wire_shows_a_question_or_an_answer():
    """The plain backend must fail this, or it says nothing."""
    shown = {}
    for name in ("tee", "plain"):
        watching = Watching(served())
        with client(
            watching, **({"backend": "plain", "policy": None, "attester": None} if name == "plain" else {})
        ) as one:
            one.predict(X)
        values = (*X.ravel(), *GRAPH.apply(X).ravel())
        shown[name] = [value.tobytes() in watching.seen for value in values]
    assert not any(shown["tee"])
    assert all(shown["plain"])


def test_everything_says_that_it_is_simulated():
    log = io.StringIO()
    app = served(log=log, metrics=True)
    watching = Watching(app)
    with client(watching) as asking:
        asking.predict(X)
        assert not asking.guarantee.claims
        assert "INSECURE" in asking.guarantee.leaks
    by_path = dict(zip(watching.paths(), watching.answered, strict=True))
    assert by_path["keys"].headers["content-type"] == SIMULATED_MEDIA_TYPE
    for path in ("kit", "keys", "infer"):
        assert by_path[path].headers["x-confide-protection"] == "none (simulated)"
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert {line["protection"] for line in lines if line["backend"] == "tee"} == {"simulated"}
    text = app._observer.exposition(Standing(0, 0, Figures(0, 0, 0, 0, 0))).decode()
    assert 'confide_requests_total{backend="tee",code="ok",model="m",protection="simulated"}' in text


def test_other_backends_of_the_server_claim_no_protection():
    watching = Watching(served())
    with client(watching, backend="plain", policy=None, attester=None) as asking:
        asking.predict(X)
    assert not any("x-confide-protection" in answer.headers for answer in watching.answered)


@pytest.mark.parametrize(
    ("changes", "kind", "most"),
    [
        ({"policy": policy_for(model_sha256=("00" * 32,))}, AttestationError, ["v2", "kit", "keys"]),
        ({"policy": policy_for(simulated=None)}, AttestationError, ["v2", "kit", "keys"]),
        ({"attester": None}, AttestationError, ["v2", "kit"]),
        ({"policy": None, "attester": None}, PrivacyError, ["v2", "kit"]),
    ],
)
def test_a_server_that_the_client_does_not_accept_is_asked_nothing(changes, kind, most):
    watching = Watching(served())
    with client(watching, **changes) as asking, pytest.raises(kind):
        asking.predict(X)
    assert watching.paths() == most


class Lying(Watching):
    """A server, or a relay, that says something else of its kit than is true."""

    def __init__(self, app, **changes) -> None:
        super().__init__(app)
        self.changes = changes
        self.pins = (b"", b"")

    def handle_request(self, request):
        body = request.read()
        told, true = self.pins
        if told and told in body:  # the pin travels in the clear beside the sealed question
            request = httpx2.Request(
                request.method, request.url, headers=request.headers, content=body.replace(told, true)
            )
        answer = super().handle_request(request)
        if not request.url.path.endswith("/kit"):
            return answer
        kit = msgspec.structs.replace(ClientKit.decode(answer.read()), **self.changes)
        self.pins = (digest(kit.encode()).encode(), digest(answer.read()).encode())
        return httpx2.Response(200, headers={"content-type": "application/msgpack"}, content=kit.encode())


def test_a_server_that_calls_its_simulation_hardware_is_refused_with_and_without_the_option():
    kit = EnclaveKit(provider=Provider.TDX, outputs=1).encode()
    store, app = MemoryStore(), served()
    for attester in ("simulated", None):
        lying = Lying(app, kit=kit, guarantee=Enclaved.guarantee)
        with client(lying, store=store, attester=attester) as asking, pytest.raises(AttestationError, match="provider"):
            asking.predict(X)
        assert "infer" not in lying.paths()


def test_what_was_accepted_as_a_simulation_is_not_asked_without_the_option():
    store, app = MemoryStore(), served()
    with client(Watching(app), store=store) as asking:
        asking.predict(X)
    again = Watching(app)
    with client(again, store=store, attester=None) as asking, pytest.raises(AttestationError):
        asking.predict(X)
    assert "infer" not in again.paths()


def test_a_simulation_that_claims_what_hardware_gives_is_refused():
    with (
        client(Lying(served(), guarantee=Enclaved.guarantee)) as asking,
        pytest.raises(IntegrityError, match="overstates"),
    ):
        asking.predict(X)


def test_a_relay_that_renames_the_classes_gets_no_answer():
    lying = Lying(served(), classes=tuple(reversed(GRAPH.classes)))
    with client(lying, retries=0) as asking, pytest.raises(Refusal, match="sealed"):
        asking.decide(X)


def test_rows_are_counted_before_any_work():
    """A model that overflows on every question: the quota counts it all the same."""
    huge = Graph((Linear(np.array([[1e308, 1e308, 1e308]]), np.array([0.0])),))
    app = served(graph=huge, limits=Limits(query_quota=2), api_keys={"clinic": "00" * 32})
    app._api_keys.holder = lambda header: "clinic"
    with client(Watching(app), policy=policy_for(huge), retries=0) as asking:
        for text in ("finite", "quota", "quota"):
            with pytest.raises(Refusal, match=text):
                asking.predict(np.full((2, 3), 100.0))


def test_more_rows_than_a_question_may_have_are_refused_unopened():
    app = served(limits=Limits(batch_rows=3))
    with client(Watching(app), retries=0) as asking:
        asking.setup()
        session = asking._open()
        session.rows = 50  # a client that does not keep to what it was told
        app._done.served["m", "tee"]._kit.enclave.open = None  # opening it would be an error of another kind
        with pytest.raises(Refusal, match="at most 3 rows"):
            asking.predict(np.zeros((50, 3)))


def test_who_asks_for_evidence_does_not_hold_up_who_asks_for_answers():
    class Slow(Simulated):
        def quote(self, report_data):
            time.sleep(0.4)
            return super().quote(report_data)

    app = served(Enclaved(attester=Slow()), PlainPredict())
    with client(Watching(app), backend="plain", policy=None, attester=None) as asking:
        asking.predict(X)
        asking_evidence = [threading.Thread(target=_evidence, args=(app,)) for _ in range(8)]
        for thread in asking_evidence:
            thread.start()
        time.sleep(0.1)
        asking.predict(X)
        assert any(thread.is_alive() for thread in asking_evidence)  # they wait for each other, and nobody for them
        for thread in asking_evidence:
            thread.join()


def _evidence(app) -> None:
    with client(Watching(app), retries=0) as asking:
        asking.evidence(bytes(32))


def test_a_server_with_another_model_is_refused_before_any_input_leaves():
    other = Graph((Linear(np.array([[1.0, 2.0, 3.0]]), np.array([0.0])),))
    watching = Watching(served(graph=other))
    with client(watching) as asking, pytest.raises(AttestationError, match="model"):
        asking.predict(X)
    assert "infer" not in watching.paths()


def test_settings_that_do_not_go_together_are_refused():
    for changes in ({"attester": "gramine"}, {"policy": None}):
        with pytest.raises(UsageError):
            client(Watching(served()), **changes)


def test_a_client_asks_for_evidence_again_when_the_enclave_s_key_has_ended():
    clock = Clock(1_800_000_000.0)
    watching = Watching(served(Enclaved(attester=Simulated(), lifetime_seconds=100, clock=clock)))
    asking = client(watching)
    session = asking._open()
    session.backend._accept = replace(session.backend._accept, clock=clock)
    asking.predict(X)
    clock.now += 101  # the client's own time says so too
    asking.predict(X)
    assert watching.paths().count("keys") == 2


def test_a_restarted_enclave_is_asked_for_evidence_again():
    store = MemoryStore()
    first, second = Watching(served()), Watching(served())
    with client(first, store=store) as asking:
        asking.predict(X)
    with client(second, store=store) as asking:
        assert (asking.predict(X) == GRAPH.apply(X)).all()
    assert second.paths() == ["v2", "kit", "infer", "keys", "infer"]  # sealed to the old key first: nobody reads it


def test_a_key_in_the_store_is_not_taken_under_another_policy():
    store, app = MemoryStore(), served()
    with client(Watching(app), store=store) as asking:
        asking.predict(X)
    stricter = Watching(app)
    with (
        client(stricter, store=store, policy=policy_for(model_sha256=("00" * 32,))) as asking,
        pytest.raises(AttestationError),
    ):
        asking.predict(X)
    assert "infer" not in stricter.paths()


def test_rows_count_against_the_quota_before_an_answer_leaves():
    app = served(limits=Limits(query_quota=3), api_keys={"clinic": "00" * 32})
    app._api_keys.holder = lambda header: "clinic"
    watching = Watching(app)
    with client(watching, retries=0) as asking:
        asking.predict(X)
        with pytest.raises(Refusal, match="quota"):
            asking.predict(X)
    assert watching.answered[-1].status_code in (403, 429)


def test_an_attester_that_fails_is_a_server_that_is_busy():
    class Broken(Simulated):
        def quote(self, report_data):
            raise UsageError("Expected /sys/kernel/config/tsm to be free")

    watching = Watching(served(Enclaved(attester=Broken())))
    with client(watching, retries=0) as asking, pytest.raises(Refusal) as raised:
        asking.predict(X)
    assert raised.value.status == 503
    assert "/sys" not in str(raised.value)


def test_a_pinned_signer_names_the_model(tmp_path):
    key, other = SigningKey(bytes(32)), SigningKey(bytes([1] * 32))
    prepare = Preprocess(tuple(Scale(name=name, low=-1, high=1) for name in "abc"))
    Artifact(GRAPH, prepare, imported_label()).save(tmp_path / "m", key)
    artifact = load(tmp_path / "m", trust=key.public)
    app = served(statement=artifact.statement, prepare=prepare.encode())
    alone = policy_for(model_sha256=())
    with client(Watching(app), policy=alone, signer=key.public.hex()) as asking:
        assert (asking.predict({"a": [0.5], "b": [0.5], "c": [0.5]}) == GRAPH.apply(np.full((1, 3), 0.5))).all()
    with client(Watching(app), policy=alone) as asking, pytest.raises(AttestationError, match="model"):
        asking.predict(X)
    with client(Watching(app), signer=other.public.hex()) as asking, pytest.raises(IntegrityError):
        asking.predict(X)


def test_a_signed_statement_over_another_graph_is_refused(tmp_path):
    """The server shows the owner's signature and runs something else inside."""
    key = SigningKey(bytes(32))
    prepare = Preprocess(tuple(Scale(name=name, low=-1, high=1) for name in "abc"))
    Artifact(GRAPH, prepare, imported_label()).save(tmp_path / "m", key)
    statement = load(tmp_path / "m", trust=key.public).statement
    other = Graph((Linear(np.array([[9.0, 9.0, 9.0]]), np.array([0.0])), GRAPH.layers[1]), GRAPH.classes)
    watching = Watching(served(graph=other, statement=statement, prepare=prepare.encode()))
    with (
        client(watching, policy=policy_for(model_sha256=()), signer=key.public.hex()) as asking,
        pytest.raises(AttestationError, match="model"),
    ):
        asking.predict(X)
    assert "infer" not in watching.paths()


async def _ask(app):
    async with AsyncClient(
        URL, policy=policy_for(), attester="simulated", transport=httpx2.ASGITransport(app)
    ) as asking:
        return await asking.predict(X)


def test_the_client_for_an_event_loop_does_the_same():
    assert (asyncio.run(_ask(served())) == GRAPH.apply(X)).all()


def test_evidence_can_be_had_without_a_policy_and_says_what_it_is():
    with client(Watching(served()), policy=None, attester=None) as asking:
        bundle = asking.evidence(bytes(32))
    assert bundle.provider == "insecure-simulated"
    assert msgspec.json.decode(bundle.claims)["nonce"] == "00" * 32
    with Client(URL, backend="plain", transport=Watching(served())) as plain, pytest.raises(UsageError, match="tee"):
        plain.evidence(bytes(32))


@pytest.mark.parametrize("order", [("plain", "tee"), ("tee", "plain")])
def test_with_a_policy_the_enclave_is_asked_whatever_the_server_s_choice_is(order):
    made = {"plain": PlainPredict(), "tee": Enclaved(attester=Simulated())}
    watching = Watching(served(*(made[name] for name in order)))
    with client(watching) as asking:
        assert (asking.predict(X) == GRAPH.apply(X)).all()
        assert asking.backend == "tee"
    assert not any(value.tobytes() in watching.seen for value in X.ravel())


def test_with_a_policy_a_server_without_an_enclave_gets_no_row():
    watching = Watching(served(PlainPredict()))
    with client(watching) as asking, pytest.raises(UsageError, match=r"policy.*it serves plain"):
        asking.predict(X)
    assert watching.paths() == ["v2", "kit"]
    assert not any(value.tobytes() in watching.seen for value in X.ravel())
    control = Watching(served(PlainPredict()))
    with client(control, policy=None, attester=None, backend="plain") as asking:  # what a row looks like
        asking.predict(X)
    assert any(value.tobytes() in control.seen for value in X.ravel())


@pytest.mark.parametrize("backend", ["plain", "he", "mpc"])
def test_a_policy_goes_with_no_other_backend(backend):
    watching = Watching(served())
    for kind in (client, lambda _, **changes: AsyncClient(URL, policy=policy_for(), **changes)):
        with pytest.raises(UsageError, match="tee"):
            kind(watching, backend=backend)
    assert watching.paths() == []
    with pytest.raises(UsageError, match="several organisations"):
        Client("wss://127.0.0.1:1", policy=policy_for(), backend=backend)


@pytest.mark.parametrize("policy", [{"simulated": {}}, ["policy.toml"], 1])
def test_a_policy_of_another_type_is_refused_by_name(policy):
    with pytest.raises(UsageError, match=type(policy).__name__):
        Client(URL, policy=policy)
