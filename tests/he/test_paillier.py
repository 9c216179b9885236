"""The backend "paillier": exact results, what a reply shows, and what a client that leaves the box can see."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.random import SystemRandomness
from confide.errors import DataError, MissingExtra, ModelError, ProtocolError, UsageError
from confide.he import Paillier, pypaillier
from confide.he.encode import quantise
from confide.he.paillier import KEY_BITS, ClientKit, Plan, Query, Reply, ServerKit, _results
from confide.he.paillier_keys import SecretKey
from confide.he.setup import owned
from confide.model.graph import Graph, Linear, Sigmoid
from confide.wire import alter, decode, encode
from he.oracle import RNG, Pair, corners, dot_integers, linear, logistic, mlp, ready

BACKEND = Paillier(insecure_test_key_bits=2048)
PAIR = ready(BACKEND, Graph((linear(1, 2, 4),)))
assert isinstance(PAIR.server, ServerKit)
PLAN = PAIR.server.plan
SECRET = SecretKey.from_bytes(owned("paillier", PAIR.client.encode(), PAIR.stores["client"]).secret)
PUBLIC = pypaillier.PublicKey(SECRET.modulus, 2048)


def opened(transcript) -> list[int]:
    """The whole plaintexts of a reply, as the owner of the key can see them."""
    reply = decode(transcript.messages[1].body, Reply, max_bytes=1 << 28)
    return SECRET.decrypt(PUBLIC, list(reply.ciphertexts))


def lowest(value: int) -> int:
    half = 1 << (PLAN.result_bits - 1)
    return (value + half) % (2 * half) - half


@given(st.integers(0, 1 << 30))
@settings(max_examples=5, deadline=None)
def test_results_are_exact_integers_and_predictions_are_within_the_bound(seed):
    x = corners(2, 4, seed)
    transcript = PAIR.predict(x)
    y = transcript.output("client")
    assert (np.abs(y - PAIR.graph.apply(x)) <= PAIR.server.error_bound).all()
    layer = quantise(PAIR.graph.layers[0], PLAN.fixed)
    exact = dot_integers(layer.weights.tolist(), layer.biases, PLAN.fixed.inputs(x).tolist())
    assert [lowest(value) for value in opened(transcript)] == [z for row in exact for z in row]


def test_thirty_two_bits_are_more_than_enough():
    assert PAIR.server.error_bound.max() < 1e-8
    assert PLAN.result_bits == 66


def test_a_key_of_128_bits_of_security_is_the_default():
    assert KEY_BITS == 3072
    backend = Paillier()
    kits = backend.prepare(logistic(1, 3), RNG)
    assert isinstance(kits["client"], ClientKit)
    assert kits["client"].plan.key_bits == 3072
    assert backend.guarantee.security_bits == 128
    assert not backend.guarantee.post_quantum
    assert backend.guarantee.hides("weights", "client")
    assert BACKEND.guarantee.security_bits == 112
    assert "tests" in BACKEND.guarantee.leaks


def test_a_server_cannot_talk_a_client_into_a_short_key():
    with pytest.raises(ProtocolError, match="3072"):
        Paillier().decode_kit("client", PAIR.client.encode())


@pytest.mark.parametrize("bits", [512, 1024, 3071])
def test_shorter_keys_need_their_name(bits):
    with pytest.raises(UsageError, match="insecure_test_key_bits"):
        Paillier(insecure_test_key_bits=bits)


def test_kits_hold_nothing_of_the_model():
    other = Graph((Linear(-1e5 * PAIR.graph.layers[0].weight, np.zeros(2)),))
    assert BACKEND.prepare(other, RNG)["client"].encode() == PAIR.client.encode()
    with pytest.raises(UsageError):
        PAIR.server.encode()
    assert "[" not in repr(PAIR.server)


def test_everything_that_cannot_run_is_listed_at_once():
    found = BACKEND.check(mlp(1, 3, 4, 2, 1))
    assert [problem.layer for problem in found] == ["layer 1 (Square)", "layer 3 (Square)"]
    assert "he" in found[0].replacement
    with pytest.raises(ModelError, match=r"layer 1(.|\n)*layer 3"):
        BACKEND.prepare(mlp(1, 3, 4, 2, 1), RNG)
    with pytest.raises(ModelError):
        BACKEND.prepare(Graph((linear(1, 2, 2), Sigmoid(), linear(1, 1, 2))), RNG)
    with pytest.raises(ModelError):
        BACKEND.prepare(Graph((Linear(np.full((1, 2), 1e200), np.zeros(1)),)), RNG)
    assert len(BACKEND.check(Graph((Linear(np.zeros((1, 20000)), np.zeros(1)),)))) == 1


# --- what a reply shows -----------------------------------------------------------------------------------------------


def test_replies_to_one_query_share_nothing_but_the_result():
    query = PUBLIC.encrypt(PLAN.fixed.inputs(corners(1, 4))[0].tolist())
    first, second = (_results(PAIR.server, PUBLIC, tuple(query), RNG) for _ in range(2))
    assert first[0] != second[0]
    values = SECRET.decrypt(PUBLIC, [first[0], second[0]])
    assert lowest(values[0]) == lowest(values[1])
    assert values[0] >> PLAN.result_bits != values[1] >> PLAN.result_bits


def reply_without_blinding(row: list[bytes]) -> int:
    """What a server that only scales and adds would return for the first output: the control of the next test."""
    layer = quantise(PAIR.graph.layers[0], PLAN.fixed)
    weights = layer.weights[0].tolist()
    return SECRET.decrypt(PUBLIC, [PUBLIC.add(PUBLIC.scale(row, weights, bits=34))])[0]


def test_a_client_outside_the_box_cannot_read_weights_side_by_side():
    """x = (1, 2^200, 2^400, 2^600) would put every weight into one plaintext; the blinding leaves the lowest k bits."""
    layer = quantise(PAIR.graph.layers[0], PLAN.fixed)
    row = PUBLIC.encrypt([1 << 200 * place for place in range(4)])
    weights = layer.weights[0].tolist()
    apart = reply_without_blinding(row)
    read = []
    for _ in range(4):  # the digits of the plain reply are the weights
        digit = (apart + (1 << 199)) % (1 << 200) - (1 << 199)
        read.append(digit)
        apart = (apart - digit) >> 200
    assert read == weights
    query = encode(Query(PAIR.setup().output("client"), 1, tuple(row)))
    found = opened(PAIR.predict(np.zeros((1, 4)), fault=alter(lambda body: query, tag="paillier/query")))[0]
    assert lowest(found) == lowest(weights[0] + layer.biases[0])  # one equation modulo 2^k is what it gets
    rest = found >> PLAN.result_bits
    places = [rest >> (200 * place - PLAN.result_bits) for place in (1, 2, 3)]
    assert not any(abs((value + (1 << 199)) % (1 << 200) - (1 << 199)) < 1 << 40 for value in places)


def test_a_client_that_forges_ciphertexts_reads_which_weights_are_odd_as_the_label_says():
    """u, 1 modulo P^2 and -1 modulo Q^2, decrypts to 0 and lies outside the group that re-randomisation covers."""
    p, q = SECRET._p, SECRET._q
    u = (q * q * pow(q * q, -1, p * p) - p * p * pow(p * p, -1, q * q)) % (p * q) ** 2

    def symbols_differ(body: bytes) -> bool:
        value = int.from_bytes(body[1:], "big")
        return (pow(value, (p - 1) // 2, p) == 1) != (pow(value, (q - 1) // 2, q) == 1)

    weights = PAIR.server.layer.weights
    assert {0, 1} == set((weights & 1).ravel().tolist())
    for place in (None, 0, 1, 2, 3):
        query = PUBLIC.encrypt([0] * 4)
        if place is not None:
            body = query[place]
            forged = int.from_bytes(body[1:], "big") * u % (p * q) ** 2
            query[place] = body[:1] + forged.to_bytes((forged.bit_length() + 7) // 8, "big")
        PUBLIC.check(query)
        replies = _results(PAIR.server, PUBLIC, tuple(query), RNG)
        assert [lowest(value) for value in SECRET.decrypt(PUBLIC, replies)] == list(PAIR.server.layer.biases)
        odd = [False, False] if place is None else (weights[:, place] & 1).astype(bool).tolist()
        assert [symbols_differ(reply) for reply in replies] == odd
    assert "from forged ciphertexts which of them are odd, with a forged key all of them" in BACKEND.guarantee.leaks


def test_the_randomness_that_hides_is_the_servers():
    drawn: list[int] = []

    class Counting(SystemRandomness):
        def below(self, bound: int) -> int:
            drawn.append(bound)
            return SystemRandomness.below(self, bound)

    row = tuple(PUBLIC.encrypt([1, 2, 3, 4]))
    _results(PAIR.server, PUBLIC, row, Counting())
    assert len(drawn) == 2
    assert math.log2(drawn[0]) + PLAN.result_bits >= PUBLIC.plaintext_bits - 2


def test_no_factor_is_zero_and_all_are_of_one_length(monkeypatch):
    seen: list[tuple[list[int], int]] = []
    original = pypaillier.PublicKey.scale

    def watched(self, ciphertexts, factors, *, bits):
        seen.append((list(factors), bits))
        return original(self, ciphertexts, factors, bits=bits)

    monkeypatch.setattr(pypaillier.PublicKey, "scale", watched)
    graph = Graph((Linear(np.array([[0.0, 1.0, -1.0, 0.0]]), np.zeros(1)),))
    pair = Pair(BACKEND, graph, client=PAIR.stores["client"])
    pair.setup().output("client")
    y = pair.predict(np.array([[1.0, 0.5, 0.25, -1.0]])).output("client")
    assert abs(y.item() - 0.25) < 1e-8
    ((factors, bits),) = seen
    assert all(factor and abs(factor) < 1 << bits for factor in factors)
    assert bits == 34


# --- strangers --------------------------------------------------------------------------------------------------------


def test_set_up_runs_beside_other_work():
    pair = Pair(BACKEND, PAIR.graph)
    with ThreadPoolExecutor(1) as beside:
        transcript = beside.submit(pair.setup).result(timeout=60)
    assert transcript.outputs["client"] == transcript.outputs["server"]


def test_rows_outside_the_box_never_leave():
    transcript = PAIR.predict(np.full((1, 4), 1.01))
    assert isinstance(transcript.failures["client"], DataError)
    assert not transcript.messages


@pytest.mark.parametrize("change", [{"rows": 0}, {"rows": 2}, {"rows": -1}, {"key_id": "0" * 64}, {"ciphertexts": ()}])
def test_odd_queries_are_refused(change):
    def altered(body: bytes) -> bytes:
        return encode(msgspec.structs.replace(decode(body, Query, max_bytes=1 << 28), **change))

    failures = PAIR.predict(corners(1, 4), fault=alter(altered, tag="paillier/query")).failures
    assert isinstance(failures["server"], ProtocolError)


@pytest.mark.parametrize(
    "change",
    [{"exponents": (0,)}, {"exponents": (0, 600)}, {"ciphertexts": ()}, {"ciphertexts": (b"\0\1", b"\0")}],
)
def test_odd_replies_are_refused(change):
    def altered(body: bytes) -> bytes:
        return encode(msgspec.structs.replace(decode(body, Reply, max_bytes=1 << 28), **change))

    failures = PAIR.predict(corners(1, 4), fault=alter(altered, tag="paillier/reply")).failures
    assert isinstance(failures["client"], ProtocolError)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"features": 0},
        {"outputs": 1 << 20},
        {"fixed": {"input_bits": 16}},
        {"fixed": {"weight_bits": 60}},
        {"fixed": {"input_bound": math.nan}},
    ],
)
def test_a_strangers_kit_is_checked(change):
    if isinstance(change.get("fixed"), dict):
        change = {"fixed": msgspec.structs.replace(PLAN.fixed, **change["fixed"])}
    with pytest.raises(ProtocolError):
        BACKEND.decode_kit("client", encode(msgspec.structs.replace(PLAN, **change)))
    with pytest.raises(ProtocolError):
        BACKEND.decode_kit("server", PAIR.client.encode())


def test_roles_and_kits_must_match():
    for role, kit in (("server", PAIR.client), ("client", PAIR.server)):
        with pytest.raises(UsageError):
            BACKEND.setup(role, kit, PAIR.stores["client"], RNG)
    with pytest.raises(UsageError):
        BACKEND.predict("client", PAIR.client, None, PAIR.stores["client"], RNG)
    with pytest.raises(UsageError):
        Paillier(input_bound=0.0)


def test_without_the_package_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "paillier", None)
    with pytest.raises(MissingExtra, match="confide\\[paillier\\]"):
        Paillier()


def test_plans_are_small_and_public():
    assert decode(PAIR.client.encode(), Plan, max_bytes=1 << 16) == PLAN
    assert len(PAIR.client.encode()) < 256
