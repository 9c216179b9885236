"""Every backend realises `predict`: the same checks for all, so a new one is one line in `CASES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.errors import ModelError, ProtocolError, UsageError
from confide.he import Homomorphic, Outsourced, Paillier
from confide.ideal import Backend, PlainPredict
from confide.model.graph import Graph, Linear, Polynomial, Sigmoid
from confide.mpc import outsourced as mpc_outsourced
from confide.mpc.ranges import by_rows
from confide.mpc.replicated import Replicated
from confide.mpc.two_party import WithDealer
from confide.tee.backend import Accept, Enclaved, graph_sha256
from confide.tee.policy import Policy, SimulatedRules
from confide.tee.simulated import Simulated, measure_code
from confide.wire import MemoryStore, alter, delay, drop, repeat, truncate
from he.oracle import RNG, Pair, corners, forest, linear, logistic, mlp, ready
from mpc.compared_nets import transformer
from mpc.sessions import Session
from mpc.sessions import ready as session_ready


@dataclass(frozen=True)
class Case:
    """A backend and a model that it can run.

    Args:
        examples: hypothesis examples, fewer where one takes long.
        pattern_rows: rows of a query that has a single ciphertext, or enough small ones to count bytes in.
        bound: how far outputs may be off where no kit says it.
    """

    name: str
    make: Callable[[], Backend]
    graph: Graph
    examples: int = 8
    pattern_rows: int = 100
    bound: float = 1e-12

    @property
    def one_round(self) -> bool:
        """Whether a prediction is one question and one reply, between client and server."""
        return len(self.make().roles) == 2

    @property
    def hides(self) -> bool:
        return self.make().guarantee.hides("query", "server")


def enclaved(graph: Graph) -> Enclaved:
    """Both sides of an enclave without hardware, whose evidence a policy accepts."""
    policy = Policy(model_sha256=(graph_sha256(graph),), simulated=SimulatedRules(measurements=(measure_code(),)))
    return Enclaved(attester=Simulated(), accept=Accept(policy, allow_simulated=True))


TRANSFORMER = transformer(tokens=3, numbers=2)
CASES = [
    Case("plain", PlainPredict, logistic(1, 6)),
    Case("he, protected", Homomorphic, logistic(1, 6)),
    Case("he, open", lambda: Homomorphic(protect_model=False), logistic(2, 6, outputs=3)),
    Case("he, squares", Homomorphic, mlp(3, 6, 4, 2), 3, 1),
    Case("he, trees", Homomorphic, Graph((forest(5, 6, 3, 2), Sigmoid())), 3, 1),
    Case("he-outsourced", Outsourced, mlp(3, 6, 4, 2), 3, 1),
    Case("paillier", lambda: Paillier(insecure_test_key_bits=2048), logistic(4, 6), 2, 2),
    Case("tee, simulated", lambda: enclaved(logistic(4, 6)), logistic(4, 6), bound=0.0),
    Case("mpc-dealer", WithDealer, mlp(3, 6, 4, 2), bound=1e-3),
    Case("mpc-outsourced", mpc_outsourced.Outsourced, mlp(3, 6, 4, 2), bound=1e-3),
    Case("mpc-3pc", Replicated, mlp(3, 6, 4, 2), bound=1e-3),
    Case("mpc-dealer, trees", WithDealer, Graph((forest(5, 6, 3, 2), Sigmoid())), bound=1e-3),
    Case(
        "mpc-dealer, transformer",
        lambda: WithDealer(ranges=by_rows(TRANSFORMER, corners(50, TRANSFORMER.features, 1))),
        TRANSFORMER,
        examples=4,
        bound=1e-3,
    ),
]
ONE_ROUND = [case for case in CASES if case.one_round]
JOINT = [case for case in CASES if not case.one_round]
PRIVATE = [case for case in CASES if case.hides]


@cache
def pair_of(name: str) -> Pair | Session:
    case = next(case for case in CASES if case.name == name)
    return (ready if case.one_round else session_ready)(case.make(), case.graph)


def fresh(case: Case, **stores: MemoryStore) -> Pair | Session:
    """Parties that have not set up."""
    return (Pair if case.one_round else Session)(case.make(), case.graph, **stores)


def every(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def tags(pair: Pair | Session) -> tuple[str, str]:
    return f"{pair.backend.name}/query", f"{pair.backend.name}/reply"


def bound(pair: Pair | Session, case: Case):
    holder = pair.server if pair.backend.public_role == "client" else pair.client  # who has the model
    return getattr(holder, "error_bound", case.bound)


# --- the ideal function -----------------------------------------------------------------------------------------------


@every(CASES)
def test_predictions_are_the_ideal_ones_within_the_stated_bound(case):
    pair = pair_of(case.name)

    @settings(max_examples=case.examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 1 << 30), st.integers(1, 3))
    def check(seed, rows):
        x = corners(rows, case.graph.features, seed)
        y = pair.predict(x).output("client")
        assert y.shape == (rows, case.graph.outputs)
        assert (np.abs(y - case.graph.apply(x)) <= bound(pair, case)).all()

    check()


@every(ONE_ROUND)
def test_one_message_each_way(case):
    pair = pair_of(case.name)
    transcript = pair.predict(corners(2, case.graph.features))
    assert [(m.src, m.dst, m.tag) for m in transcript.messages] == [
        ("client", "server", tags(pair)[0]),
        ("server", "client", tags(pair)[1]),
    ]
    assert transcript.depth == 2
    assert not transcript.failures


@every(PRIVATE)
def test_sizes_depend_on_shapes_alone(case):
    pair = pair_of(case.name)
    inside = pair.predict(corners(2, case.graph.features)).sizes
    zeros = pair.predict(np.zeros((2, case.graph.features))).sizes
    slack = 8 if case.name == "paillier" else 0  # its numbers leave zeros at the front out, one in 256
    assert all(abs(one - other) <= slack for one, other in zip(inside, zeros, strict=True))


# --- what a view shows ------------------------------------------------------------------------------------------------


def plaintext_in(body: bytes, x: np.ndarray) -> bool:
    """Some feature of x stands in `body` as a float."""
    return any(value.astype(kind).tobytes() in body for value in x.ravel() for kind in ("<f8", ">f8"))


def uniform(body: bytes) -> bool:
    """The middle of a body looks like random bytes: few values in none of its columns, and low bits without a bias.

    The chi-squared statistic of 16 classes exceeds 58 with probability 5e-7: the false-alarm budget of each call.
    """
    words = np.frombuffer(body[len(body) // 4 :], np.uint8)
    columns = words[: len(words) // 16 * 8].reshape(-1, 8).T
    varied = [column & 15 for column in columns if len(set(column.tolist())) > 64]
    if len(varied) < 4:  # the high bytes of numbers below a prime vary little
        return False
    counts = np.bincount(np.concatenate(varied), minlength=16)
    expected = counts.sum() / 16
    return bool(((counts - expected) ** 2 / expected).sum() < 58)


def query_of(pair: Pair | Session, x: np.ndarray) -> bytes:
    """All that whoever computes receives in a prediction, but from a dealer."""
    messages = pair.predict(x).messages
    return b"".join(m.body for m in messages if m.dst not in ("client", "dealer") and m.src != "dealer")


PATTERN = np.array([[0.987654321, -0.55, 0.3, 0.123456789, -0.7, 0.9]]).repeat(100, axis=0)


@every(CASES)
def test_no_query_shows_an_input_where_that_is_claimed(case):
    """The plain backend must fail both halves of this test, or it says nothing about the others."""
    pair = pair_of(case.name)
    body = query_of(pair, PATTERN[: case.pattern_rows])
    assert plaintext_in(body, PATTERN[:1]) is not case.hides
    assert uniform(body) is case.hides


@every(PRIVATE)
def test_the_same_question_never_looks_the_same(case):
    pair = pair_of(case.name)
    x = corners(1 if case.one_round else 8, case.graph.features)  # a joint one begins with an id
    one, other = (np.frombuffer(query_of(pair, x), np.uint8) for _ in range(2))
    length = min(len(one), len(other))
    middle = slice(length // 4, 3 * length // 4)
    varied = (one[middle] != other[middle]).mean()
    assert varied > 0.5


@every(PRIVATE)
def test_kits_that_travel_are_the_same_for_every_model_of_a_shape(case):
    backend = case.make()
    other = Graph(
        tuple(
            linear(99 + place, *layer.weight.shape) if isinstance(layer, Linear) else layer
            for place, layer in enumerate(case.graph.layers)
        )
    )
    kits = [backend.prepare(graph, RNG)[backend.public_role].encode() for graph in (case.graph, other)]
    assert kits[0] == kits[1]


# --- malformed and misdelivered messages ------------------------------------------------------------------------------


def failure(pair: Pair | Session, side: str, change: Callable[[bytes], bytes]) -> BaseException | None:
    """What `side` says to a message that was changed on its way; None if it took it."""
    tag = tags(pair)[0 if side == "server" else 1]
    return pair.predict(corners(1, pair.graph.features), fault=alter(change, tag=tag)).failures.get(side)


@every(ONE_ROUND)
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("keep", [0, 1, 7, 60, 100])
def test_truncated_bodies_are_refused(case, side, keep):
    tag = tags(pair_of(case.name))[0 if side == "server" else 1]
    x = corners(2, case.graph.features)
    failures = pair_of(case.name).predict(x, fault=truncate(keep, tag=tag)).failures
    whole = len(pair_of(case.name).predict(x).messages[0 if side == "server" else 1].body)
    assert isinstance(failures.get(side), ProtocolError) or keep >= whole


@every(ONE_ROUND)
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize(
    "body", [b"\0" * 200, b"\xff" * 200, b"\x93\x01\x02\x03", b"\xdc\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_garbage_is_refused(case, side, body):
    assert isinstance(failure(pair_of(case.name), side, lambda _: body), ProtocolError)


@every(ONE_ROUND)
@pytest.mark.parametrize("side", ["server", "client"])
def test_more_bytes_are_refused(case, side):
    assert isinstance(failure(pair_of(case.name), side, lambda body: body + b"\0"), ProtocolError)


@every(ONE_ROUND)
@pytest.mark.parametrize("side", ["server", "client"])
def test_flipped_bits_are_refused_or_harmless(case, side):
    """A flip in the structure is a ProtocolError; one inside a number of a ciphertext may pass for another number (no
    result is verified, the guarantees say so), but nothing else is ever raised."""
    pair = pair_of(case.name)
    refused = 0

    @settings(max_examples=3 * case.examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    def check(share, bit):
        nonlocal refused

        def flip(body: bytes) -> bytes:
            changed = bytearray(body)
            changed[int(share * len(body))] ^= 1 << bit
            return bytes(changed)

        found = failure(pair, side, flip)
        assert found is None or isinstance(found, ProtocolError)
        refused += found is not None

    check()


@every(ONE_ROUND)
@pytest.mark.parametrize("side", ["server", "client"])
def test_flipped_structure_is_refused(case, side):
    pair = pair_of(case.name)
    for place in range(4):
        found = failure(pair, side, lambda body, at=place: body[:at] + bytes([body[at] ^ 0x41]) + body[at + 1 :])
        assert isinstance(found, ProtocolError)


@every(ONE_ROUND)
def test_repeated_messages_change_nothing_and_lost_ones_end_the_session(case):
    pair = pair_of(case.name)
    x = corners(1, case.graph.features)
    query, reply = tags(pair)
    for fault in (repeat(tag=query), repeat(tag=reply), delay(3, tag=query)):
        y = pair.predict(x, fault=fault).output("client")
        assert (np.abs(y - case.graph.apply(x)) <= bound(pair, case)).all()
    for tag in (query, reply):
        with pytest.raises(ProtocolError):
            pair.predict(x, fault=drop(tag=tag)).output("client")


@every(JOINT)
@pytest.mark.parametrize("side", ["server", "client"])
def test_every_message_of_another_length_is_refused(case, side):
    pair = pair_of(case.name)
    x = corners(2, case.graph.features)
    for tag in {message.tag for message in pair.predict(x).view(side)}:
        for fault in (
            alter(lambda body: body[:-1], dst=side, tag=tag),
            alter(lambda body: body + b"\0", dst=side, tag=tag),
        ):
            assert isinstance(pair.predict(x, fault=fault).failures.get(side), ProtocolError), tag


@every(JOINT)
def test_repeated_and_late_messages_change_nothing_and_lost_ones_end_it(case):
    pair = pair_of(case.name)
    x = corners(1, case.graph.features)
    for fault in (repeat(), delay(3, dst="server"), delay(1, src="client")):
        y = pair.predict(x, fault=fault).output("client")
        assert (np.abs(y - case.graph.apply(x)) <= bound(pair, case)).all()
    for tag in {message.tag for message in pair.predict(x).messages}:
        with pytest.raises(ProtocolError):
            pair.predict(x, fault=drop(tag=tag)).output("client")


# --- keys -------------------------------------------------------------------------------------------------------------


@every([case for case in PRIVATE if case.one_round])
def test_another_key_id_is_refused(case):
    pair = pair_of(case.name)
    known = pair.setup().output("client").encode()

    def other(body: bytes) -> bytes:
        assert known in body
        return body.replace(known, b"0" * 64)

    assert isinstance(failure(pair, "server", other), ProtocolError)


@every(PRIVATE)
def test_a_server_that_was_not_set_up_refuses(case):
    pair = pair_of(case.name)
    stranger = fresh(case, **{**pair.stores, "server": MemoryStore()})
    assert isinstance(stranger.predict(corners(1, case.graph.features)).failures["server"], ProtocolError)


@every(PRIVATE)
def test_a_client_that_was_not_set_up_is_told_so(case):
    pair = fresh(case)
    with pytest.raises(UsageError, match="setup"):
        pair.predict(corners(1, case.graph.features))


# --- models that cannot run -------------------------------------------------------------------------------------------


@every(JOINT)
def test_a_layer_that_has_no_program_is_listed(case):
    graph = Graph((linear(1, 2, 3), Polynomial(np.ones(40), -1.0, 1.0)))
    backend = case.make()
    assert [problem.layer for problem in backend.check(graph)] == ["layer 1 (Polynomial)"]
    with pytest.raises(ModelError, match="layer 1"):
        backend.prepare(graph, RNG)


@every([case for case in PRIVATE if case.one_round and case.name != "tee, simulated"])  # which runs every layer
def test_every_layer_that_cannot_run_is_listed(case):
    graph = Graph((linear(1, 2, 3), Sigmoid(), linear(2, 2, 2), Sigmoid(), linear(3, 1, 2)))
    backend = case.make()
    found = backend.check(graph)
    assert [problem.layer for problem in found] == ["layer 1 (Sigmoid)", "layer 3 (Sigmoid)"]
    with pytest.raises(ModelError, match=r"layer 1(.|\n)*layer 3"):
        backend.prepare(graph, RNG)
