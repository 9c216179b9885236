"""The ideal functions and the plain techniques: sums and predictions in the clear, and what a session checks."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.guarantee import Adversary
from confide.ideal import Cohort, PlainPredict, PlainSum, Session, Vector, names
from confide.model.graph import Graph, Linear
from confide.wire import Fault, MemoryStore, Transcript, drop, run, truncate

COHORT = Cohort(("a", "b", "c"), quorum=2)
SESSION = Session("run", 1, COHORT, length=3, bound=10)


# --- cohort and session -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [("a", "a"), ("a", "server"), ("b", "a", "b")])
def test_names_in_a_cohort_differ(clients: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="different names"):
        Cohort(clients, quorum=1)


@pytest.mark.parametrize("quorum", [0, 4, -1])
def test_the_quorum_lies_between_one_and_all(quorum: int) -> None:
    with pytest.raises(UsageError, match=f"Expected quorum={quorum} between 1 and the 3 clients"):
        Cohort(("a", "b", "c"), quorum)


@given(st.integers(1, 60), st.integers(0, 2**50))
def test_the_ring_is_the_smallest_that_no_sum_wraps(clients: int, bound: int) -> None:
    cohort = Cohort(tuple(map(str, range(clients))), 1)
    bits = Session("run", 1, cohort, 1, bound).ring_bits
    sums = 2 * clients * bound + 1  # how many different sums there are
    assert 2**bits >= sums
    assert bits == 0 or 2 ** (bits - 1) < sums


CHANGES = {
    "run": "other",
    "round": 2,
    "cohort": Cohort(("a", "c", "b"), quorum=2),
    "length": 4,
    "bound": 11,
    "attempt": 1,
    "model_hash": b"\1" * 32,
}


def test_every_field_changes_the_context() -> None:
    assert set(CHANGES) == {field.name for field in fields(Session)}
    contexts = {replace(SESSION, **{name: value}).context for name, value in CHANGES.items()}
    contexts |= {replace(SESSION, cohort=Cohort(COHORT.clients, 3)).context}
    contexts |= {replace(SESSION, cohort=Cohort(COHORT.clients, 2, "hub")).context}
    assert len(contexts | {SESSION.context}) == len(CHANGES) + 3
    assert all(len(context) == hashlib.sha256().digest_size for context in contexts)


def test_fields_cannot_run_into_each_other() -> None:
    """Names that join to the same text are other cohorts."""
    first = replace(SESSION, run="r", cohort=Cohort(("ab", "c"), 2))
    second = replace(SESSION, run="r", cohort=Cohort(("a", "bc"), 2))
    third = replace(SESSION, run="r1", round=1)
    fourth = replace(SESSION, run="r", round=11)
    assert len({session.context for session in (first, second, third, fourth)}) == 4


def test_vectors_that_fit_pass() -> None:
    vector = np.array([10, -10, 0])
    assert SESSION.checked(vector) is vector
    empty = np.zeros(0, np.int64)
    assert replace(SESSION, length=0).checked(empty) is empty


@pytest.mark.parametrize(
    "vector",
    [
        np.array([11, 0, 0]),
        np.array([0, 0, -11]),
        np.array([0, np.iinfo(np.int64).min, 0]),  # its absolute value is no int64
        np.zeros(2, np.int64),
        np.zeros((3, 1), np.int64),
        np.zeros(3),
        np.zeros(3, np.int32),
    ],
)
def test_vectors_that_do_not_fit_are_refused_without_showing_a_value(vector: Vector) -> None:
    with pytest.raises(UsageError, match="Expected") as caught:
        SESSION.checked(vector)
    assert "11" not in str(caught.value)


# --- the sum in the clear ---------------------------------------------------------------------------------------------


def plain_sum(vectors: dict[str, Vector], fault: Fault | None = None, session: Session = SESSION) -> Transcript:
    stores = {name: MemoryStore() for name in ("server", *vectors)}
    roles = {"server": "server"} | dict.fromkeys(vectors, "client")
    rng = SeededRandomness("plain")
    aggregator = PlainSum()
    setup = run({name: aggregator.setup(role, name, COHORT, stores[name], rng) for name, role in roles.items()})
    assert setup.messages == []
    return run(
        {
            name: aggregator.party(role, name, session, vectors.get(name), stores[name], rng)
            for name, role in roles.items()
        },
        fault=fault,
    )


VECTORS = {name: np.array([value, -value, 10]) for name, value in (("a", 1), ("b", 2), ("c", 4))}


def test_the_plain_sum_is_the_sum() -> None:
    sums = plain_sum(VECTORS).output("server")
    assert sums.values.tolist() == [[7, -7, 30]]
    assert sums.members == (frozenset("abc"),)
    ideal = PlainSum().ideal(VECTORS)
    assert ideal.values.tolist() == [[7, -7, 30]]
    assert (ideal.values.dtype, ideal.members) == (np.int64, sums.members)


def test_the_plain_sum_survives_dropouts_to_the_quorum() -> None:
    sums = plain_sum(VECTORS, drop(src="b")).output("server")
    assert sums.values.tolist() == [[5, -5, 20]]
    assert sums.members == (frozenset("ac"),)
    alone = plain_sum(VECTORS, lambda message: [(0, message)] if message.src == "a" else [])
    with pytest.raises(Aborted, match="Expected quorum=2 vectors, got 1"):
        alone.output("server")


def test_a_malformed_vector_counts_as_a_dropout() -> None:
    assert plain_sum(VECTORS, truncate(5, src="b")).output("server").members == (frozenset("ac"),)


def test_a_vector_beyond_the_bound_or_of_another_length_is_left_out() -> None:
    wide, long = replace(SESSION, bound=99), replace(SESSION, length=4)
    for liar in (wide, long):
        vector = np.full(liar.length, liar.bound)
        aggregator, rng, store = PlainSum(), SeededRandomness("plain"), MemoryStore()
        parties = {name: aggregator.party("client", name, SESSION, VECTORS[name], store, rng) for name in ("a", "b")}
        parties["c"] = aggregator.party("client", "c", liar, vector, store, rng)
        parties["server"] = aggregator.party("server", "server", SESSION, None, store, rng)
        assert run(parties).output("server").members == (frozenset("ab"),)


def test_the_plain_techniques_claim_nothing() -> None:
    for guarantee in (PlainSum.guarantee, PlainPredict.guarantee):
        assert guarantee.claims == frozenset()
        assert guarantee.adversary is Adversary.NONE
        assert guarantee.sentences() == ["nothing is hidden"]
        assert guarantee.leaks


# --- the prediction in the clear --------------------------------------------------------------------------------------


GRAPH = Graph((Linear(np.array([[1.0, -2.0], [0.0, 3.0]]), np.array([0.5, 0.0])),))
X = np.array([[1.0, 1.0], [2.0, -1.0], [0.0, 0.0]])


def predict(x: np.ndarray, fault: Fault | None = None) -> Transcript:
    backend, store, rng = PlainPredict(), MemoryStore(), SeededRandomness("predict")
    kits = backend.prepare(GRAPH, rng)
    client = backend.decode_kit("client", kits["client"].encode())
    return run(
        {
            "client": backend.predict("client", client, x, store, rng),
            "server": backend.predict("server", kits["server"], None, store, rng),
        },
        fault=fault,
    )


def test_the_plain_prediction_is_the_model_s() -> None:
    done = predict(X)
    expected = [[x0 - 2 * x1 + 0.5, 3 * x1] for x0, x1 in X]
    assert done.output("client").tolist() == expected
    assert done.depth == 2


def test_set_up_of_the_plain_prediction_needs_no_message() -> None:
    backend, store, rng = PlainPredict(), MemoryStore(), SeededRandomness("predict")
    assert backend.check(GRAPH) == []
    kits = backend.prepare(GRAPH, rng)
    done = run({role: backend.setup(role, kits[role], store, rng) for role in backend.roles})
    assert done.outputs == {"client": "plain", "server": "plain"}
    assert done.messages == []


def test_malformed_queries_and_replies_are_protocol_errors() -> None:
    assert isinstance(predict(X, truncate(4, src="client")).failures["server"], ProtocolError)
    assert isinstance(predict(X, truncate(4, src="server")).failures["client"], ProtocolError)
    assert isinstance(predict(np.zeros((1, 3))).failures["server"], ProtocolError)


def test_a_client_kit_holds_nothing() -> None:
    backend = PlainPredict()
    kit = backend.prepare(GRAPH, SeededRandomness("kit"))["client"]
    assert kit.encode() == b""
    for role, body in (("server", b""), ("client", b"weights")):
        with pytest.raises(ProtocolError, match="empty client kit"):
            backend.decode_kit(role, body)
    with pytest.raises(UsageError, match="which holds the model"):
        backend.predict("server", kit, None, MemoryStore(), SeededRandomness("kit"))


def test_names_of_a_registry_are_sorted() -> None:
    assert names({"b": 1, "a": 2}) == names(["b", "a"]) == "a, b"
