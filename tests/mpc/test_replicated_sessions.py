"""Three servers and a client from kits to predictions: the ideal function, what travels, what is refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.crypto.random import SystemRandomness
from confide.errors import ModelError, ProtocolError, UsageError
from confide.guarantee import Trust
from confide.model.graph import Graph, Tanh
from confide.mpc.architecture import WEIGHT_SCALE
from confide.mpc.replicated import Replicated
from confide.mpc.replicated_kits import ShareKit
from confide.mpc.replicated_sessions import Query, Welcome
from confide.serve import load_backend
from confide.wire import Message, Step, alter, decode, drop, encode, run, truncate
from he.oracle import corners, linear, logistic, mlp
from mpc.sessions import Session

SERVERS = ("server", "helper", "third")
GRAPH = mlp(3, 6, 4, 2)


@cache
def prepared() -> Session:
    session = Session(Replicated(), GRAPH)
    session.setup().output("client")
    return session


def predict(session: Session, x, fault=None):
    return session.predict(x, fault, dealer=False)


@pytest.mark.parametrize("graph", [logistic(1, 6), mlp(3, 6, 4, 2), mlp(4, 5, 7, 6, 3)])
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_predictions_are_the_ideal_ones(graph, rows):
    session = Session(Replicated(), graph)
    session.setup()
    x = corners(rows, graph.features, rows)
    transcript = predict(session, x)
    # roundings of 2^-17 in inputs and weights, grown by three layers of random weights; the usual ones stay below 3e-3
    assert np.abs(transcript.output("client") - graph.apply(x)).max() < 6e-3
    assert [transcript.output(role) for role in SERVERS] == [rows] * 3


def test_messages_of_set_up_and_prediction():
    session = Session(Replicated(), GRAPH)
    setup = session.setup()
    assert len(setup.messages) == 6
    assert len({setup.output(role) for role in session.backend.roles}) == 1
    transcript = predict(session, corners(2, 6))
    plan = session.client.plans.of(2)
    assert sorted(
        (m.src, m.dst, size) for m, size in zip(transcript.messages, transcript.sizes, strict=True) if m.src != "client"
    ) == sorted(plan.messages)
    assert sum(m.src == "client" for m in transcript.messages) == 3
    assert transcript.depth == plan.rounds + 3


# --- kits -------------------------------------------------------------------------------------------------------------


def test_kits_travel():
    session = prepared()
    for role, kit in session.kits.items():
        assert session.backend.decode_kit(role, kit.encode()).encode() == kit.encode()


def test_the_clients_kit_is_that_of_a_shape_and_no_server_has_the_model():
    one, other = (Session(Replicated(), mlp(seed, 6, 4, 2)) for seed in (1, 2))
    assert one.client.encode() == other.client.encode()
    weight = np.rint(one.graph.layers[0].weight * 2.0**WEIGHT_SCALE).astype("<i8")
    for role in SERVERS:
        body = one.kits[role].encode()
        assert not any(word.tobytes() in body for word in weight.reshape(-1))
    assert len(one.kits["third"].encode()) < len(one.client.encode()) + 200


def test_shares_of_a_model_add_up_and_differ_every_time():
    first, second = (Session(Replicated(), GRAPH).kits for _ in range(2))
    name = "0.weight"
    for kits in (first, second):
        parts = {role: kits[role].model[name] for role in SERVERS}
        assert (parts["server"].masked == parts["helper"].masked).all()
        assert (parts["server"].share + parts["helper"].share == parts["third"].share).all()
        whole = (parts["third"].share + parts["server"].masked).view(np.int64)
        assert (whole == np.rint(GRAPH.layers[0].weight * 2.0**WEIGHT_SCALE)).all()
        assert parts["third"].masked is None
    assert not (first["server"].model[name].masked == second["server"].model[name].masked).any()


@pytest.mark.parametrize("role", ["client", *SERVERS])
def test_other_kits_are_refused(role):
    session = prepared()
    body = session.kits[role].encode()
    for wrong in (
        b"",
        b"\xff" * 40,
        body[:-1],
        body + b"\0",
        *(one.encode() for r, one in session.kits.items() if r != role),
    ):
        with pytest.raises(ProtocolError):
            session.backend.decode_kit(role, wrong)
    with pytest.raises(ProtocolError):
        session.backend.decode_kit("dealer", body)


def test_a_share_of_other_shapes_is_refused():
    kit = prepared().kits["helper"]
    assert isinstance(kit, ShareKit)
    words = {name: part.masked if part.masked is not None else part.share for name, part in kit.model.items()}
    for wrong in ({}, words | {"more": words["0.weight"]}, words | {"0.weight": words["0.weight"].T.copy()}):
        with pytest.raises(ProtocolError):
            ShareKit("helper", kit.recipe, sharing=kit.sharing, seeds=(bytes(16),), words=wrong)
    with pytest.raises(ProtocolError):
        ShareKit("third", kit.recipe, sharing=kit.sharing, seeds=(bytes(16),), words={})


# --- who is refused ---------------------------------------------------------------------------------------------------


def test_servers_of_two_models_are_noticed():
    session, other = Session(Replicated(), GRAPH), Session(Replicated(), GRAPH)
    session.kits["third"] = other.kits["third"]
    assert "one model" in str(session.setup().failures["client"])


def test_new_weights_need_a_new_set_up():
    session, newer = Session(Replicated(), GRAPH), Session(Replicated(), GRAPH)
    session.setup()
    for role in SERVERS:
        session.kits[role] = newer.kits[role]
    found = predict(session, corners(1, 6)).failures
    assert all("set up here" in str(found[role]) for role in SERVERS)
    session.setup()
    assert not predict(session, corners(1, 6)).failures


def test_another_recipe_is_refused_at_set_up():
    session = Session(Replicated(), GRAPH)
    session.kits["client"] = Session(Replicated(), mlp(1, 6, 5, 2)).client
    assert all(isinstance(session.setup().failures[role], ProtocolError) for role in SERVERS)


def test_a_client_that_was_not_set_up_is_told_so():
    with pytest.raises(UsageError, match="setup"):
        predict(Session(Replicated(), GRAPH), corners(1, 6))


def test_inputs_that_do_not_fit_are_refused():
    for wrong in (
        np.zeros((0, 6)),
        np.zeros((1, 5)),
        np.full((1, 6), np.nan),
        np.full((1, 6), 1e9),
        np.zeros((5000, 6)),
    ):
        with pytest.raises(UsageError):
            predict(prepared(), wrong)


def test_a_kit_serves_its_role_alone():
    session, backend = prepared(), Replicated()
    with pytest.raises(UsageError):
        backend.predict("helper", session.kits["server"], None, session.stores["helper"], SystemRandomness())
    with pytest.raises(UsageError):
        backend.setup("client", session.kits["server"], session.stores["client"], SystemRandomness())
    with pytest.raises(UsageError, match="client"):
        backend.predict("client", session.client, None, session.stores["client"], SystemRandomness())


def test_layers_without_a_program_are_listed():
    graph = Graph((linear(1, 3, 4), Tanh(), linear(2, 2, 3)))
    backend = Replicated()
    if backend.check(graph):
        with pytest.raises(ModelError):
            backend.prepare(graph, SystemRandomness())


# --- queries ----------------------------------------------------------------------------------------------------------


def changed(role: str, **fields) -> dict:
    """What everyone says to a query to `role` with other fields."""

    def change(body: bytes) -> bytes:
        query = decode(body, Query, max_bytes=1 << 20)
        own = {name: getattr(query, name) for name in query.__struct_fields__} | {
            name: value(getattr(query, name)) for name, value in fields.items()
        }
        return encode(Query(**own))

    return predict(prepared(), corners(2, 6), alter(change, dst=role, tag="mpc-3pc/query")).failures


@pytest.mark.parametrize("role", SERVERS)
@pytest.mark.parametrize(
    "fields",
    [
        {"format": lambda _: 2},
        {"client": lambda old: bytes(len(old))},
        {"rows": lambda _: 3},
        {"rows": lambda _: 5000},
        {"program": lambda old: bytes(len(old))},
        {"seeds": lambda old: old * 2 if len(old) == 1 else old[:1]},
        {"seeds": lambda old: (old[0][:-1], *old[1:])},
        {"masked": lambda old: old + bytes(8)},
        {"masked": lambda old: old[8:] + bytes(1)},
    ],
)
def test_other_queries_are_refused(role, fields):
    found = changed(role, **fields)
    assert isinstance(found[role], ProtocolError)
    assert all(isinstance(one, ProtocolError) for one in found.values())


@pytest.mark.parametrize("role", SERVERS)
def test_servers_that_were_asked_different_things_stop(role):
    found = changed(role, query=lambda old: bytes([old[0] ^ 1]) + old[1:])
    assert any("same query" in str(found.get(one)) for one in ("server", "helper"))
    assert "client" in found


@pytest.mark.parametrize("tag", ["mpc-3pc/query", "mpc-3pc/run/0", "mpc-3pc/run/1", "mpc-3pc/run/result"])
@pytest.mark.parametrize("keep", [0, 1, 7, 15])
def test_truncated_messages_are_refused(tag, keep):
    failures = predict(prepared(), corners(1, 6), truncate(keep, tag=tag)).failures
    assert failures
    assert all(isinstance(one, ProtocolError) for one in failures.values())


@pytest.mark.parametrize("tag", ["mpc-3pc/query", "mpc-3pc/run/1", "mpc-3pc/run/result"])
def test_lost_messages_end_the_session(tag):
    with pytest.raises(ProtocolError):
        predict(prepared(), corners(1, 6), drop(tag=tag)).output("client")


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["mpc-3pc/query", "mpc-3pc/run/0", "mpc-3pc/run/1"]))
def test_any_bytes_are_refused(body, tag):
    failures = predict(prepared(), corners(1, 6), alter(lambda _: body, tag=tag)).failures
    assert failures
    assert all(isinstance(one, ProtocolError) for one in failures.values())


def test_a_query_that_comes_twice_is_answered_under_other_masks():
    session = prepared()
    x = corners(1, 6)
    first = predict(session, x)
    queries = [m for m in first.messages if m.tag == "mpc-3pc/query"]

    rng = SystemRandomness()
    parties = {
        role: session.backend.predict(role, session.kits[role], None, session.stores[role], rng) for role in SERVERS
    }
    second = run(parties | {"client": _send(queries)}, stores=session.stores)
    bodies = [{(m.src, m.dst, m.tag): m.body for m in t.messages if m.src != "client"} for t in (first, second)]
    assert bodies[0].keys() == bodies[1].keys()
    assert not any(bodies[0][key] == bodies[1][key] for key in bodies[0])


def _send(messages: list[Message]):
    received = yield Step(tuple(messages), await_tag="mpc-3pc/run/result", wait_for=("server", "helper"))
    return received


def test_set_up_answers_of_others_are_refused():
    def other(body: bytes) -> bytes:
        welcome = decode(body, Welcome, max_bytes=1 << 12)
        return encode(Welcome(bytes(16), welcome.sharing))

    session = Session(Replicated(), GRAPH)
    assert isinstance(session.setup(alter(other, tag="mpc-3pc/welcome")).failures["client"], ProtocolError)
    for tag in ("mpc-3pc/hello", "mpc-3pc/welcome"):
        found = session.setup(truncate(9, tag=tag)).failures
        assert found
        assert all(isinstance(one, ProtocolError) for one in found.values())


# --- what is promised -------------------------------------------------------------------------------------------------


def test_the_guarantee_names_the_others():
    backend = load_backend("mpc-3pc")
    assert isinstance(backend, Replicated)
    guarantee = backend.guarantee
    assert guarantee.trust is Trust.NON_COLLUSION
    for role in SERVERS:
        for asset in ("query", "prediction", "weights"):
            assert guarantee.hides(asset, role)
        conditions = {claim.if_honest for claim in guarantee.claims if claim.hidden_from == role}
        assert conditions == {tuple(one for one in SERVERS if one != role)}
    assert guarantee.hides("weights", "client")


def test_nothing_private_is_printed():
    session = prepared()
    for role in SERVERS:
        assert repr(session.kits[role]) == f"ShareKit({role}, 6 -> 2)"
    query = Query(1, bytes(16), bytes(16), 1, bytes(32), (b"secret seed 16 b",), b"secret")
    assert "secret" not in repr(query)
