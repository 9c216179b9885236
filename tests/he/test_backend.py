"""The backend "he": kits, guarantees, problems, batches; the wire is in tests/conformance."""

import msgspec
import numpy as np
import pytest

from confide.errors import DataError, ModelError, ProtocolError, UsageError
from confide.guarantee import Adversary
from confide.he import Homomorphic
from confide.he.envelope import SealedQuery
from confide.he.kits import ClientKit
from confide.he.packed import packed_bytes
from confide.he.plan_linear import LinearPlan
from confide.he.plan_network import NetworkPlan
from confide.he.replies import LinearReply, NetworkReply, Query
from confide.model.graph import Graph, Linear, Relu, Sigmoid, Square
from confide.wire import alter, decode, encode
from he.oracle import RNG, Pair, corners, linear, logistic, mlp, ready


def kits(backend: Homomorphic, graph: Graph):
    made = backend.prepare(graph, RNG)
    return made["client"], made["server"]


def test_the_plan_is_chosen_by_the_model():
    backend = Homomorphic()
    assert isinstance(backend.plan(logistic(1, 30)), LinearPlan)
    assert isinstance(backend.plan(Graph((linear(1, 4, 9), linear(2, 3, 4)))), LinearPlan)
    assert isinstance(backend.plan(mlp(1, 30, 16, 1)), NetworkPlan)


def test_precision_is_what_was_asked_for():
    graph = Graph((linear(1, 1, 30),))
    range_ = np.abs(graph.layers[0].weight).sum() + abs(graph.layers[0].bias.item())
    for bits in (6, 14, 20):
        _, server = kits(Homomorphic(precision_bits=bits), graph)
        assert server.error_bound.max() <= 2 * range_ * 2.0**-bits


@pytest.mark.parametrize("graph", [logistic(7, 30), mlp(7, 30, 16, 1)], ids=["linear", "mlp"])
def test_client_kits_hold_nothing_of_the_model(graph):
    """Two models of one shape have the same kit, byte by byte, so no byte of it can depend on a weight."""
    backend = Homomorphic()
    loud = Graph(
        tuple(
            Linear(-1e6 * layer.weight[::-1], 3e-5 * layer.bias) if isinstance(layer, Linear) else layer
            for layer in graph.layers
        )
    )
    client, server = kits(backend, graph)
    assert client.encode() == kits(backend, loud)[0].encode()
    values = [v for layer in graph.layers if isinstance(layer, Linear) for v in layer.weight.ravel().tolist()]
    assert not any(np.float64(value).tobytes() in client.encode() for value in values)
    assert not any(np.float64(value).byteswap().tobytes() in client.encode() for value in values)
    with pytest.raises(UsageError):
        server.encode()
    assert "[" not in repr(server)


def test_the_control_a_kit_with_weights_would_be_seen():
    value = logistic(7, 30).layers[0].weight.ravel()[0]
    assert np.float64(value).byteswap().tobytes() in msgspec.msgpack.encode([float(value)])


def test_kits_come_back_from_their_bytes():
    for backend, graph in ((Homomorphic(), logistic(1, 30)), (Homomorphic(protect_model=False), mlp(1, 9, 4, 2))):
        client, _ = kits(backend, graph)
        again = Homomorphic().decode_kit("client", client.encode())
        assert isinstance(again, ClientKit)
        assert again.plan == backend.plan(graph)
        assert again.encode() == client.encode()


@pytest.mark.parametrize("body", [b"", b"\x80", b"\x81\xa6format\x01", bytes(100), b"\xff" * 70000])
def test_other_bytes_are_no_kit(body):
    with pytest.raises(ProtocolError):
        Homomorphic().decode_kit("client", body)


def test_kits_are_the_clients_and_of_this_format():
    client, _ = kits(Homomorphic(), logistic(1, 3))
    with pytest.raises(ProtocolError):
        Homomorphic().decode_kit("server", client.encode())
    with pytest.raises(ProtocolError, match="format"):
        Homomorphic().decode_kit("client", client.encode().replace(b"\xa6format\x02", b"\xa6format\x01"))


def test_a_kit_with_weak_parameters_is_refused():
    client, _ = kits(Homomorphic(), logistic(1, 3))
    assert isinstance(client, ClientKit)
    parameters = msgspec.structs.replace(client.plan.parameters, degree=2048)
    weak = ClientKit(msgspec.structs.replace(client.plan, parameters=parameters))
    with pytest.raises(ProtocolError):
        Homomorphic().decode_kit("client", weak.encode())


# --- guarantees -------------------------------------------------------------------------------------------------------


def test_weights_are_claimed_hidden_only_where_the_reply_is_flooded():
    for protect in (True, False):
        backend = Homomorphic(protect_model=protect)
        for graph in (logistic(1, 30), mlp(1, 30, 16, 1)):
            guarantee = backend.guarantee_for(graph)
            assert guarantee.hides("query", "server")
            assert guarantee.hides("prediction", "server")
            assert guarantee.hides("weights", "client") is (protect and graph.parameters == 31)
            assert guarantee.claims >= backend.guarantee.claims  # what holds for every model
            assert guarantee.security_bits == 128
            assert guarantee.post_quantum
            assert guarantee.adversary is Adversary.SEMI_HONEST
        assert not backend.guarantee.hides("weights", "client")


def test_guarantees_say_what_leaks():
    protected, visible = Homomorphic(), Homomorphic(protect_model=False)
    assert "features + 1 queries" in protected.guarantee_for(logistic(1, 30)).leaks
    assert "before any sigmoid" in protected.guarantee_for(logistic(1, 30)).leaks
    assert "visible to the client" in visible.guarantee_for(logistic(1, 30)).leaks
    assert "No claim is made for the weights" in protected.guarantee_for(mlp(1, 30, 16, 1)).leaks
    assert "No claim is made for the weights" in protected.guarantee.leaks
    for guarantee in (protected.guarantee, visible.guarantee, protected.guarantee_for(mlp(1, 30, 16, 1))):
        for assumed in ("honest but curious", "not verified", "honestly generated"):
            assert assumed in guarantee.leaks
    assert protected.guarantee_for(logistic(1, 30)).primary == "BFV, N=4096, log q=109 (Microsoft SEAL)"


# --- what cannot run --------------------------------------------------------------------------------------------------


def test_everything_that_cannot_run_is_listed_at_once():
    class Softmax:
        pass

    graph = Graph((linear(1, 3, 4), Sigmoid(), linear(2, 3, 3), Sigmoid(), linear(3, 2, 3), Softmax()))  # type: ignore[arg-type]
    found = Homomorphic().check(graph)
    assert [problem.layer for problem in found] == ["layer 1 (Sigmoid)", "layer 3 (Sigmoid)", "layer 5 (Softmax)"]
    assert all(problem.reason and problem.replacement for problem in found)
    with pytest.raises(ModelError, match=r"layer 1(.|\n)*layer 3(.|\n)*layer 5"):
        Homomorphic().prepare(graph, RNG)


@pytest.mark.parametrize(
    "graph",
    [
        Graph((Linear(np.zeros((20000, 2)), np.zeros(20000)),)),
        Graph((Linear(np.ones((1, 9000)), np.zeros(1)),)),
        Graph((Linear(np.full((1, 2), 1e200), np.zeros(1)),)),
        Graph((Linear(np.full((1, 2), 1e100), np.zeros(1)), Square(), Square())),
        Graph((linear(1, 2, 2), *[Square()] * 16)),
    ],
    ids=["wide", "long", "large", "large squares", "deep"],
)
def test_models_beyond_the_parameters_are_problems(graph):
    assert len(Homomorphic().check(graph)) == 1
    with pytest.raises(ModelError):
        Homomorphic().prepare(graph, RNG)


def test_models_that_can_run_have_no_problems():
    assert Homomorphic().check(logistic(1, 30)) == []
    assert Homomorphic().check(mlp(1, 30, 16, 1)) == []


@pytest.mark.parametrize(
    "settings", [{"input_bound": 0.0}, {"input_bound": np.inf}, {"precision_bits": 0}, {"precision_bits": 50}]
)
def test_settings_are_checked(settings):
    with pytest.raises(UsageError):
        Homomorphic(**settings)


# --- predictions ------------------------------------------------------------------------------------------------------


def test_batches_and_several_outputs():
    graph = logistic(3, 6, outputs=4)
    pair = ready(Homomorphic(), graph)
    x = corners(300, 6)
    transcript = pair.predict(x)
    assert (np.abs(transcript.output("client") - graph.apply(x)) <= pair.server.error_bound).all()
    sealed = decode(transcript.messages[0].body, SealedQuery, max_bytes=1 << 28)
    assert len(decode(sealed.body, Query, max_bytes=1 << 28).ciphertexts) == 2
    assert transcript.output("server") == 300


def test_rows_outside_the_box_never_leave():
    pair = ready(Homomorphic(), logistic(3, 6))
    for x in (np.full((1, 6), 1.5), np.zeros((1, 5)), np.full((1, 6), np.nan)):
        transcript = pair.predict(x)
        assert isinstance(transcript.failures["client"], DataError)
        assert not transcript.messages


def test_roles_and_kits_must_match():
    pair = ready(Homomorphic(), logistic(3, 6))
    backend, stores = pair.backend, pair.stores
    for role, kit in (("server", pair.client), ("client", pair.server), ("dealer", pair.client)):
        with pytest.raises(UsageError):
            backend.setup(role, kit, stores["client"], RNG)
        with pytest.raises(UsageError):
            backend.predict(role, kit, np.zeros((1, 6)), stores["client"], RNG)
    with pytest.raises(UsageError):
        backend.predict("client", pair.client, None, stores["client"], RNG)


def test_another_models_keys_are_refused_by_their_form():
    """Keys for one plan do not pass as keys for another, even under the same store."""
    linear_pair, mlp_pair = Pair(Homomorphic(), logistic(1, 6)), Pair(Homomorphic(), mlp(1, 6, 3, 1))
    body = linear_pair.setup().messages[0].body
    with pytest.raises(ProtocolError):
        mlp_pair.server.parse_keys(body)


def altered_struct(pair: Pair, x, tag: str, kind: type, **change) -> dict:
    """The failures of a prediction in which a message's struct is changed, under a tag that holds."""

    def inner(body: bytes) -> bytes:
        return encode(msgspec.structs.replace(decode(body, kind, max_bytes=1 << 28), **change))

    rows = change.pop("rows", None)
    if tag == "he/query":
        return pair.altered(x, tag, lambda honest, body: (honest if rows is None else rows, inner(body))).failures
    return pair.altered(x, tag, inner).failures


PRIMES = Homomorphic().plan(logistic(1, 6)).parameters.data_primes
C0, C1 = packed_bytes(PRIMES, rows=1, count=1), packed_bytes(PRIMES, rows=1, count=4096)


@pytest.mark.parametrize(
    "change",
    [
        {"exponents": b""},
        {"exponents": bytes(4)},
        {"exponents": (513).to_bytes(2, "little")},
        {"exponents": (-513).to_bytes(2, "little", signed=True)},
        {"c0": b""},
        {"c0": bytes(C0 + 1)},
        {"c0": b"\xff" * C0},
        {"c1": b""},
        {"c1": bytes(C1 - 1)},
        {"c1": bytes(C1 + 1)},
        {"c1": b"\xff" * C1},
    ],
    ids=[
        "no exponents",
        "two",
        "large",
        "small",
        "no c0",
        "long c0",
        "c0 from q on",
        "no c1",
        "short",
        "long",
        "from q on",
    ],
)
def test_odd_linear_replies_are_refused(change):
    pair = ready(Homomorphic(), logistic(1, 6))
    failures = altered_struct(pair, corners(1, 6), "he/reply", LinearReply, **change)
    assert isinstance(failures["client"], ProtocolError)


def test_the_control_such_a_reply_as_it_is():
    pair = ready(Homomorphic(), logistic(1, 6))
    assert not altered_struct(pair, corners(1, 6), "he/reply", LinearReply)
    assert not altered_struct(pair, corners(1, 6), "he/reply", LinearReply, c1=bytes(C1))  # of the right form
    pair = ready(Homomorphic(), mlp(1, 6, 3, 1))
    assert not altered_struct(pair, corners(1, 6), "he/reply", NetworkReply)
    assert not altered_struct(pair, corners(1, 6), "he/query", Query)


@pytest.mark.parametrize(
    "change", [{"exponents": b""}, {"error_bits": b"\0"}, {"ciphertexts": ()}, {"ciphertexts": (b"",)}]
)
def test_odd_mlp_replies_are_refused(change):
    pair = ready(Homomorphic(), mlp(1, 6, 3, 1))
    assert isinstance(altered_struct(pair, corners(1, 6), "he/reply", NetworkReply, **change)["client"], ProtocolError)


@pytest.mark.parametrize("rows", [0, 2, -1])
def test_odd_mlp_queries_are_refused(rows):
    pair = ready(Homomorphic(), mlp(1, 6, 3, 1))
    if rows < 0:  # no tag is made for it
        body = lambda body: encode(  # noqa: E731
            msgspec.structs.replace(decode(body, SealedQuery, max_bytes=1 << 28), rows=rows)
        )
        failures = pair.predict(corners(1, 6), fault=alter(body, tag="he/query")).failures
    else:
        failures = altered_struct(pair, corners(1, 6), "he/query", Query, rows=rows)
    assert isinstance(failures["server"], ProtocolError)


# --- settings of networks ---------------------------------------------------------------------------------------------


def test_activations_become_polynomials_where_a_degree_is_given():
    graph = Graph((linear(1, 4, 6, 0.2), Relu(), linear(2, 2, 4)))
    with pytest.raises(ModelError, match="fit-polynomial"):
        Homomorphic().prepare(graph, RNG)
    backend = Homomorphic(activation_degree=4, protect_model=False)
    pair = ready(backend, graph)
    x = corners(3, 6)
    y = pair.predict(x).output("client")
    assert (np.abs(y - backend.arithmetic(graph).apply(x)) <= pair.server.error_bound).all()
    assert np.abs(y - graph.apply(x)).max() < 0.2 < np.abs(graph.apply(x)).max()


def test_linear_models_run_under_ckks_if_asked():
    graph = logistic(1, 30)
    pair = ready(Homomorphic(scheme="ckks", precision_bits=16), graph)
    assert isinstance(pair.client.plan, NetworkPlan)
    x = corners(3, 30)
    error = np.abs(pair.predict(x).output("client") - graph.apply(x))
    assert (error <= pair.server.error_bound).all()
    assert error.max() < 1e-3


def test_ranges_are_certified_or_the_plan_says_so():
    graph = mlp(3, 20, 16, 12, 2)
    asked = Homomorphic(certify=True).plan(graph)
    free = Homomorphic(certify=False).plan(graph)
    assert isinstance(asked, NetworkPlan)
    assert isinstance(free, NetworkPlan)
    assert asked.certified
    assert not free.certified
    assert asked.parameters.total_bits >= free.parameters.total_bits


@pytest.mark.parametrize("degree", [0, 9])
def test_degrees_out_of_range_are_refused(degree):
    with pytest.raises(UsageError, match="activation_degree"):
        Homomorphic(activation_degree=degree)
