"""Networks in batches: against the plain model, strangers' bytes, steps that do not depend on weights, the service."""

import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ModelError, ProtocolError, UsageError
from confide.guarantee import PrivacyLabel
from confide.he.backend import Homomorphic
from confide.he.batch_machines import NativeBatch
from confide.he.cost import seconds
from confide.he.engine_batch import BatchClient, BatchServer
from confide.he.engine_native import available
from confide.he.integer_sums import groups, weighted_sums
from confide.he.kits import ClientKit, ServerKit
from confide.he.network import Network, linear_map
from confide.he.plan_batch import BatchPlan
from confide.he.planner import plan_batch
from confide.he.seal import Context, Evaluation, ntt_primes
from confide.he.speeds import SEAL
from confide.he.stages import Combined, Mapped, Multiplied, Summed
from confide.model.graph import AveragePool, Conv, Graph, Linear, Polynomial, Residual, Sigmoid, Square
from confide.net.http import InProcess
from confide.serve.client import Client
from confide.serve.limits import Limits
from confide.serve.served import Model
from confide.serve.server import create_app
from he.oracle import RNG, corners, linear, mlp, public_keys, ready

BATCH = Homomorphic(goal="throughput")
SMALL = ready(BATCH, Graph((linear(1, 4, 6, 0.3), Square(), linear(2, 2, 4, 0.3), Sigmoid())))
WIDE = np.random.default_rng(1).normal(size=(2, 1, 3, 3)) / 3
POLYNOMIAL = Polynomial(np.array([0.2, 0.5, -0.3, 0.1]), -8.0, 9.0)
SHAPES = {
    "conv and pool": Graph(
        (Conv(WIDE, np.ones(2), 4, 4, (1, 1), (1, 1, 1, 1)), Square(), AveragePool(2, 4, 4, (2, 2), (2, 2)))
    ),
    "stride": Graph((Conv(WIDE, np.zeros(2), 5, 5, (2, 2), (0, 0, 0, 0)), Square(), linear(3, 3, 8, 0.3))),
    "polynomial": Graph((linear(1, 3, 5, 0.5), POLYNOMIAL, linear(2, 2, 3))),
    "residual": Graph(
        (linear(4, 4, 3, 0.3), Residual((linear(5, 4, 4, 0.2), Square(), linear(6, 4, 4, 0.2))), linear(7, 2, 4, 0.3))
    ),
    "square at the end": Graph((linear(5, 3, 4, 0.4), Square(), Square())),
    "one feature": Graph((linear(10, 1, 1), Square(), linear(11, 1, 1))),
}


def engines(pair) -> tuple[BatchClient, BatchServer]:
    assert isinstance(pair.client, ClientKit)
    assert isinstance(pair.server, ServerKit)
    client, server = pair.client.engine, pair.server.engine
    assert isinstance(client, BatchClient)
    assert isinstance(server, BatchServer)
    return client, server


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_shape_is_the_model_within_the_bound(name):
    graph = SHAPES[name]
    pair = ready(Homomorphic(goal="throughput", protect_model=name > "r"), graph)
    x = corners(5, graph.features)
    y = pair.predict(x).output("client")
    assert (np.abs(y - graph.apply(x)) <= pair.server.error_bound).all()
    assert (np.abs(y - graph.apply(x)) < 0.02 * (1 + np.abs(graph.apply(x)).max())).all()


@given(st.integers(0, 1 << 30), st.integers(1, 9))
@settings(max_examples=5, deadline=None)
def test_predictions_are_the_models_within_the_bound(seed, rows):
    x = corners(rows, 6, seed)
    y = SMALL.predict(x).output("client")
    assert y.shape == (rows, 2)
    assert (np.abs(y - SMALL.graph.apply(x)) <= SMALL.server.error_bound).all()


def test_more_rows_than_slots_take_more_ciphertexts_in_the_same_order():
    plan = SMALL.client.plan
    x = corners(plan.slots + 2, 6)
    transcript = SMALL.predict(x)
    y = transcript.output("client")
    assert (np.abs(y - SMALL.graph.apply(x)) <= SMALL.server.error_bound).all()
    one, full = (SMALL.predict(x[:rows]).sizes for rows in (1, plan.slots))
    assert [abs(a - b) < 9 for a, b in zip(one, full, strict=True)] == [True, True]
    assert transcript.sizes[0] > 1.9 * full[0]


def test_a_convolution_is_that_of_torch():
    found = {}
    for stride, padding in ((1, 1), (2, 0), (2, 2)):
        layer = Conv(WIDE, np.array([0.5, -1.0]), 5, 5, (stride, stride), (padding,) * 4)
        part = linear_map(layer)
        primes = ntt_primes(4096, (50, 30))
        x = np.random.default_rng(2).integers(0, 1 << 20, size=(25, 2, 2, 4))
        maps = groups(part, 10)
        outputs = part.shape.outputs
        sums = weighted_sums(maps, x.astype(np.uint64), [0] * outputs, primes)
        images = torch.tensor(x.reshape(5, 5, -1).transpose(2, 0, 1)[:, None].astype(float))
        weight = torch.tensor(np.rint(WIDE * 1024))
        want = torch.nn.functional.conv2d(images, weight, stride=stride, padding=padding).numpy().astype(np.int64)
        want = want.reshape(len(want), -1).T.reshape(outputs, 2, 2, 4)
        for place, prime in enumerate(primes):
            assert (sums[:, :, place] == want[:, :, place] % prime).all()
        found[stride, padding] = outputs
    assert found == {(1, 1): 50, (2, 0): 8, (2, 2): 32}


@given(st.integers(24, 60), st.integers(1, 6), st.integers(1, 20), st.integers(0, 1 << 30))
@settings(max_examples=25, deadline=None)
def test_sums_are_those_of_integers(bits, outputs, inputs, seed):
    stream = np.random.default_rng(seed)
    (prime,) = ntt_primes(1024, (bits,))
    part = linear_map(Linear(stream.normal(size=(outputs, inputs)) * 2.0 ** stream.uniform(-4, 12), np.zeros(outputs)))
    x = stream.integers(0, prime, size=(inputs, 2, 1, 5), dtype=np.uint64)
    x[0, 0, 0, :2] = prime - 1, 0
    biases = stream.integers(-(1 << 62), 1 << 62, size=outputs).tolist()
    (one,) = groups(part, 12)
    sums = weighted_sums([one], x, biases, (prime,))
    for o, c, w in np.ndindex(outputs, 2, 5):
        exact = sum(int(a) * int(b) for a, b in zip(one.weights[o].tolist(), x[:, c, 0, w].tolist(), strict=True))
        assert int(sums[o, c, 0, w]) == (exact + (biases[o] if c == 0 else 0)) % prime


def test_weights_beyond_exact_sums_are_refused():
    apart = Linear(np.array([[2.0**25, 1.0]]), np.zeros(1))
    with pytest.raises(ModelError):
        groups(linear_map(apart), 12)


# --- plans ------------------------------------------------------------------------------------------------------------


def plan(graph: Graph, **changes) -> BatchPlan:
    given_ = {"protected": False, "input_bound": 1.0, "precision_bits": 10, "room_bits": 10.0, **changes}
    found = plan_batch(Network.of(graph), **given_)
    assert found is not None
    return found


def test_a_plan_needs_one_key_and_is_data():
    found = plan(mlp(1, 30, 16, 1), protected=True)
    assert found.checked() is found
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=BatchPlan) == found
    assert not found.needs.steps
    assert found.needs.relinearisation
    assert found.key_bytes < 1e6
    assert found.products == 30 * 16 + 16
    assert found.sizes == [30, 16, 16, 1]
    assert found.queries(1) == found.queries(found.slots) == 30
    assert found.replies(found.slots + 1) == 2
    assert "no rotations" in str(found)
    assert seconds(plan(mlp(1, 30, 64, 1)), SEAL) > seconds(found, SEAL)


def test_linear_models_stay_exact():
    assert BATCH.plan(Graph((linear(1, 1, 30),))) == Homomorphic().plan(Graph((linear(1, 1, 30),)))


def test_what_is_absurd_is_refused_with_the_replacement():
    wide = Graph((Linear(np.ones((8, 3000)), np.zeros(8)), Square()))
    (problem,) = BATCH.check(wide)
    assert "latency" in str(problem)
    with pytest.raises(ModelError):
        BATCH.prepare(wide, RNG)
    assert Homomorphic().check(wide) == []
    with pytest.raises(UsageError):
        Homomorphic(goal="speed")  # type: ignore[arg-type]


GOOD = plan(mlp(1, 6, 4, 1))
FIRST = GOOD.stages[0]
LATENCY = Homomorphic().plan(mlp(1, 6, 4, 1)).stages[0]


@pytest.mark.parametrize(
    "change",
    [
        {"stages": ()},
        {"stages": GOOD.stages[1:]},
        {"stages": (FIRST, msgspec.structs.replace(FIRST, source=1))},
        {"stages": (LATENCY,)},
        {"stages": (FIRST, Multiplied(left=1, right=0, drops=0))},
        {"stages": (FIRST, Multiplied(left=7, right=1, drops=0))},
        {"stages": (FIRST, Combined(terms=(), weight_bits=10, drops=0))},
        {"stages": (msgspec.structs.replace(FIRST, weight_bits=1 << 40), *GOOD.stages[1:])},
        {"features": 5},
        {"features": -6},
        {"scale_bits": 2000},
        {"room_bits": math.nan},
        {"input_bound": math.inf},
    ],
)
def test_a_strangers_plan_is_checked(change):
    assert isinstance(FIRST, Summed)
    assert isinstance(LATENCY, Mapped)
    with pytest.raises(ProtocolError):
        msgspec.structs.replace(GOOD, **change).checked()


def test_a_latency_plan_has_no_stages_of_a_batch():
    network = Homomorphic().plan(mlp(1, 6, 4, 1))
    with pytest.raises(ProtocolError):
        msgspec.structs.replace(network, stages=(*network.stages[:2], FIRST)).checked()


# --- strangers, and what a clock tells --------------------------------------------------------------------------------


def test_a_strangers_ciphertexts_are_checked_on_both_sides():
    client, server = engines(SMALL)
    secret, public = client.context.generate(bytes(16), client.plan.needs)
    keys = public_keys(SMALL.server, public)
    query = client.encrypt(secret, corners(1, 6))
    reply = server.answer(keys, query, RNG)
    assert client.decrypt(secret, reply).shape == (client.plan.slots, 2)
    for body in (b"", query[0][:-1], query[0] + b"\0", reply[0], b"\xff" * len(query[0])):
        with pytest.raises(ProtocolError):
            server.answer(keys, (body, *query[1:]), RNG)
        with pytest.raises(ProtocolError):
            client.decrypt(secret, (reply[0], body if body != reply[0] else query[0]))
    with pytest.raises(ProtocolError):
        server.answer(keys, (bytes(len(query[0])),) * 6, RNG)  # nothing but numbers in the clear


@pytest.mark.parametrize("change", [lambda q: q[:-1], lambda q: (*q, q[0]), lambda q: ()], ids=["less", "more", "none"])
def test_questions_of_another_length_are_refused(change):
    def changed(rows, body):
        query = msgspec.msgpack.decode(body)
        query["ciphertexts"] = list(change(tuple(query["ciphertexts"])))
        return rows, msgspec.msgpack.encode(query)

    failures = SMALL.altered(corners(2, 6), "he/query", changed).failures
    assert isinstance(failures["server"], ProtocolError)


def test_steps_do_not_depend_on_weights(monkeypatch):
    seen: list[tuple] = []

    def recorded(kind, name):
        method = getattr(kind, name)

        def call(owner, *args, **settings_):
            sizes = tuple(len(one) for one in args if isinstance(one, bytes | bytearray))
            seen.append((name, sizes, tuple(sorted(settings_.items()))))
            return method(owner, *args, **settings_)

        monkeypatch.setattr(kind, name, call)

    for name in [name for name in vars(Context) if not name.startswith("_") and callable(getattr(Context, name))]:
        recorded(Context, name)
    for name in ("zero", "relinearise"):
        recorded(Evaluation, name)
    schedules = []
    for scale, keep in ((1.0, 99), (1e-6, 99), (1e6, 99), (1.0, 1), (1.0, 0)):
        layers = [linear(seed, *shape, scale) for seed, shape in ((1, (4, 6)), (2, (2, 4)))]
        for layer in layers:
            layer.weight.reshape(-1)[keep:] = 0.0
            layer.bias[:] = 0.0
        graph = Graph((layers[0], Square(), layers[1]))
        pair = ready(Homomorphic(goal="throughput", engine="seal"), graph)
        seen.clear()
        y = pair.predict(corners(2, 6)).output("client")
        assert np.allclose(y, graph.apply(corners(2, 6)), rtol=0.1, atol=0.02 * scale**3)
        schedules.append(list(seen))
    assert all(schedule == schedules[0] for schedule in schedules)
    assert [name for name, _, _ in schedules[0]].count("relinearise") == 4


@pytest.mark.skipif(not available(), reason="installed without a C++ compiler, or switched off")
def test_programs_do_not_depend_on_weights():
    listings = []
    for scale, keep in ((1.0, 99), (1e-6, 99), (1.0, 0)):
        layers = [linear(seed, *shape, scale) for seed, shape in ((1, (4, 6)), (2, (2, 4)))]
        for layer in layers:
            layer.weight.reshape(-1)[keep:] = 0.0
            layer.bias[:] = 0.0
        machine = engines(ready(BATCH, Graph((layers[0], POLYNOMIAL, layers[1]))))[1].machine
        assert isinstance(machine, NativeBatch)
        listings.append(machine.listing())
    assert all(listing == listings[0] for listing in listings)
    assert any("product" in line for line in listings[0])
    assert any("combine" in line for line in listings[0])


@pytest.mark.skipif(not available(), reason="installed without a C++ compiler, or switched off")
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_both_engines_return_the_same_numbers(name):
    """Products are SEAL's bit for bit up to the order of two roundings, so replies are equal far below the bound."""
    graph = SHAPES[name]
    plan_, scaled = Homomorphic(goal="throughput", protect_model=False)._prepared(graph)
    servers = [BatchServer(plan_, scaled, engine) for engine in ("seal", "native")]
    client = BatchClient(plan_)
    secret, public = client.context.generate(bytes(16), plan_.needs)
    query = client.encrypt(secret, corners(7, graph.features))
    seal, native = (client.decrypt(secret, one.answer(one.keys(public), query, RNG)) for one in servers)
    assert np.abs(seal - native).max() <= np.ldexp(servers[0].error, -servers[0].exponents).max() / 8


@pytest.mark.skipif(not available(), reason="installed without a C++ compiler, or switched off")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_program_for_each_ciphertext_is_the_program_of_each(threads):
    primes = ntt_primes(1024, (40, 40, 41))
    stream = np.random.default_rng(1)
    program, keys = adding(primes)
    x, y = (np.stack([stream.integers(0, p, (5, 2, 1024), dtype=np.uint64) for p in primes[:2]], 2) for _ in range(2))
    out = np.zeros_like(x)
    program.run_each(keys, [x, y], [out], threads)
    assert (out == (x + y) % np.array(primes[:2], np.uint64)[:, None]).all()
    x[3, 1, 1, 7] = primes[1]  # not below it
    for inputs, outputs in (([x, y], [out]), ([x], [out]), ([x, y[:4]], [out]), ([x, y], [out[:, :, :1].copy()])):
        with pytest.raises(ValueError, match="Expected"):
            program.run_each(keys, inputs, outputs, threads)


def adding(primes):
    """Return a program that adds two ciphertexts, and keys without any key."""
    from confide import _native

    assert _native is not None
    context = _native.ckks.Context(1024, list(primes[:2]), primes[2])
    program = _native.ckks.Program(context)
    one, other = program.input(2), program.input(2)
    program.finish([program.add(one, other, 2)], [2])
    return program, _native.ckks.ProgramKeys(context)


# --- the service ------------------------------------------------------------------------------------------------------

LABEL = PrivacyLabel(aggregator="pooled", parties=("a",), quorum=1, colluding=0, rounds=1)


def app(backend: Homomorphic, graph: Graph, **limits):
    return create_app([Model("m", graph, LABEL, (backend,))], limits=Limits(**limits))


def test_a_client_sends_whole_batches():
    graph = Graph((linear(1, 3, 4, 0.5), Square(), linear(2, 1, 3, 0.5)))
    served = app(BATCH, graph)
    x = corners(5000, 4)
    with Client("http://localhost", model="m", backend="he", transport=InProcess(served)) as client:
        client.setup()
        y = client.predict(x)
    assert np.allclose(y, graph.apply(x), atol=0.02 * np.abs(graph.apply(x)).max())


def test_a_question_counts_every_row_that_it_has_room_for():
    kit = SMALL.server
    asked = msgspec.msgpack.encode({"rows": 1})
    assert kit.rows(asked) == kit.plan.slots
    assert kit.rows(msgspec.msgpack.encode({"rows": kit.plan.slots + 1})) == 2 * kit.plan.slots


def test_a_server_that_cannot_take_one_question_does_not_start():
    with pytest.raises(ModelError, match="query_bytes"):
        app(BATCH, SMALL.graph, query_bytes=100_000)
    with pytest.raises(ModelError, match="batch_rows"):
        app(BATCH, SMALL.graph, batch_rows=1000)
