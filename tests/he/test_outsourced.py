"""Encrypted weights: right, within the bound, invisible to the cloud, and refused in any other form."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from confide.errors import KeysExpired, ModelError, ProtocolError, UsageError
from confide.he import Homomorphic, Outsourced
from confide.he.error_bound import error_bound
from confide.he.network import Network
from confide.he.normalise import normalise, samples
from confide.he.outsourced_kits import CloudKit, OwnerKit, Upload
from confide.he.plan_network import NetworkPlan
from confide.he.setup import Owned, owned
from confide.he.stages import Mapped
from confide.ideal import PlainPredict
from confide.model.graph import Conv, Graph, Linear, Polynomial, Sigmoid, Square
from confide.wire import MemoryStore, Transcript, alter, decode, encode
from he.oracle import RNG, Pair, corners, linear, logistic, mlp, ready

SHAPES = {
    "linear": logistic(1, 6),
    "several outputs": Graph((linear(2, 3, 6),)),
    "small": mlp(3, 6, 4, 2),
    "two squares": Graph((*mlp(5, 6, 5, 4, 1).layers, Sigmoid())),
}


@cache
def pair_of(name: str) -> Pair:
    return ready(Outsourced(), SHAPES[name])


def by_hand(graph: Graph, x: np.ndarray) -> np.ndarray:
    """The model in numpy, layer by layer."""
    for layer in graph.layers:
        match layer:
            case Linear(weight, bias):
                x = x @ weight.T + bias
            case Square():
                x = x * x
            case Sigmoid():
                x = 1 / (1 + np.exp(-x))
            case _:
                raise AssertionError(layer)
    return x


def kits(pair: Pair) -> tuple[OwnerKit, CloudKit]:
    assert isinstance(pair.client, OwnerKit)
    assert isinstance(pair.server, CloudKit)
    return pair.client, pair.server


# --- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_are_those_of_numpy_within_the_bound(name):
    pair, graph = pair_of(name), SHAPES[name]
    x = corners(6, graph.features, 4)
    error = np.abs(pair.predict(x).output("client") - by_hand(graph, x))
    owner, _ = kits(pair)
    assert (error <= owner.error_bound).all()
    assert error.max() > 0  # it is not the model in the clear
    assert error.max() <= 2.0**-9 * np.abs(by_hand(graph, corners(512, 6))).max()  # of the range; 2^-10 is asked for


def test_encryption_of_weights_counts_in_the_bound():
    """The same plan and weights with plaintexts for the weights has a smaller bound and a smaller estimate."""
    plan = Outsourced().plan(SHAPES["small"])
    stages = tuple(msgspec.structs.replace(s, encrypted=False) if isinstance(s, Mapped) else s for s in plan.stages)
    open_plan = msgspec.structs.replace(plan, stages=stages)
    net = Network.of(SHAPES["small"])
    scaled_weights = normalise(net, plan.rooms, plan.input_bound, samples(net.entry, plan.input_bound))
    assert (error_bound(open_plan, scaled_weights) < error_bound(plan, scaled_weights)).all()
    assert open_plan.estimated_error < plan.estimated_error
    linear_plan = Outsourced().plan(SHAPES["linear"])
    assert linear_plan.needs.relinearisation  # though nothing is squared


def test_weights_of_zero_are_encrypted_like_others():
    zero = Graph((Linear(np.zeros((4, 6)), np.zeros(4)), Square(), Linear(np.zeros((2, 4)), np.array([0.0, 0.75]))))
    pair = ready(Outsourced(), zero)
    owner, _ = kits(pair)
    y = pair.predict(corners(2, 6)).output("client")
    assert (np.abs(y - [0.0, 0.75]) <= owner.error_bound).all()


def test_weights_of_very_different_sizes_stay_within_the_bound():
    stream = np.random.default_rng(7)
    weight = stream.normal(size=(4, 6)) * 10.0 ** stream.uniform(-4, 2, (4, 6))
    graph = Graph((Linear(weight, np.full(4, 30.0)), Square(), linear(8, 2, 4)))
    pair = ready(Outsourced(input_bound=3.0), graph)
    owner, _ = kits(pair)
    x = 3.0 * corners(4, 6, 9)
    error = np.abs(pair.predict(x).output("client") - by_hand(graph, x))
    assert (error <= owner.error_bound).all()


def test_the_other_backend_still_multiplies_by_plaintexts():
    plan = Homomorphic().plan(SHAPES["small"])
    assert isinstance(plan, NetworkPlan)
    assert not any(isinstance(stage, Mapped) and stage.encrypted for stage in plan.stages)
    ckks = Homomorphic(scheme="ckks", protect_model=False).plan(SHAPES["linear"])
    assert not ckks.needs.relinearisation


# --- what the cloud sees ----------------------------------------------------------------------------------------------


def numbers_of(graph: Graph) -> list[float]:
    every = [layer for layer in graph.layers if isinstance(layer, Linear)]
    return [float(number) for layer in every for number in (*layer.weight.ravel(), *layer.bias)]


def shows(view: bytes, graph: Graph) -> bool:
    """Some weight stands in `view` as a float64, or two neighbours as float32.

    Either is eight bytes: four of chance are found in megabytes of ciphertexts once in a few runs.
    """
    numbers = numbers_of(graph)
    doubles = [np.array(number, "<f8").tobytes() for number in numbers]
    singles = [np.array(pair, "<f4").tobytes() for pair in pairwise(numbers)]
    return any(piece in view for piece in doubles + singles)


def view_of(transcripts: list[Transcript], pair: Pair) -> bytes:
    """All that the server has: what it was sent, what it sent, what it keeps, its kit."""
    messages = [message.body for transcript in transcripts for message in transcript.messages]
    store = pair.stores["server"]
    assert isinstance(store, MemoryStore)
    kept = [body for name in store.keys() if (body := store.get(name))]  # noqa: SIM118
    return b"".join([*messages, *kept, pair.backend.prepare(pair.graph, RNG)["server"].encode()])


def test_the_servers_view_holds_no_weight():
    graph = SHAPES["small"]
    pair = Pair(Outsourced(), graph)
    view = view_of([pair.setup(), pair.predict(corners(2, 6))], pair)
    assert not shows(view, graph)
    owner, cloud = kits(pair)
    assert not any(isinstance(value, Graph | Linear | np.ndarray) for value in vars(cloud).values())
    for kind in ("<f8", "<f4"):
        assert shows(view + graph.layers[0].weight.astype(kind).tobytes(), graph)  # the test would see one
    assert "OwnerKit" in repr(owner)
    assert not any(f"{number:.4f}" in repr(owner) for number in numbers_of(graph))


def test_the_owners_kit_is_not_written():
    owner, cloud = kits(pair_of("small"))
    with pytest.raises(UsageError, match="holds the model"):
        owner.encode()
    with pytest.raises(ProtocolError):
        Outsourced().decode_kit("client", cloud.encode())


def test_the_same_weights_never_look_the_same():
    """Two uploads of one model, by one key, differ everywhere, those of zeros too."""
    owner, _ = kits(pair_of("small"))
    secret = owner.keys(owned("he-outsourced", owner.place, pair_of("small").stores["client"])).secret
    for one, other in zip(*(sum(owner.encrypted(secret), ()) for _ in range(2)), strict=True):
        same = np.frombuffer(one, np.uint8) == np.frombuffer(other, np.uint8)
        assert same.mean() < 0.1


def test_models_of_one_shape_look_alike():
    """Kits, plans and the sizes of all messages are the shape's, however large the weights are."""
    sizes, plans = [], []
    for graph in (SHAPES["small"], mlp(77, 6, 4, 2), scaled(mlp(8, 6, 4, 2), 1e3), scaled(mlp(9, 6, 4, 2), 0.0)):
        pair = Pair(Outsourced(), graph)
        done = [pair.setup(), pair.predict(corners(2, 6))]
        sizes.append([len(message.body) for transcript in done for message in transcript.messages])
        plans.append(pair.server.encode())
    assert all(one == sizes[0] for one in sizes)
    assert all(one == plans[0] for one in plans)


def scaled(graph: Graph, factor: float) -> Graph:
    return Graph(
        tuple(
            Linear(layer.weight * factor, layer.bias * factor) if isinstance(layer, Linear) else layer
            for layer in graph.layers
        )
    )


def test_another_model_of_the_same_shape_uploads_its_own_weights():
    """Small uploads are kept and sent again: never those of the model before."""
    store, server = MemoryStore(), MemoryStore()
    for graph in (SHAPES["linear"], logistic(50, 6)):
        pair = Pair(Outsourced(), graph, client=store, server=server)
        pair.setup().output("client")
        x = corners(2, 6)
        owner, _ = kits(pair)
        assert (np.abs(pair.predict(x).output("client") - by_hand(graph, x)) <= owner.error_bound).all()


def test_the_guarantee_names_the_weights():
    guarantee = Outsourced().guarantee
    assert all(guarantee.hides(asset, "server") for asset in ("query", "prediction", "weights"))
    assert not Homomorphic().guarantee.hides("weights", "server")
    assert not PlainPredict().guarantee.hides("weights", "server")
    assert not guarantee.verified_result


# --- hostile uploads and plans ----------------------------------------------------------------------------------------


def changed(change) -> ProtocolError | None:
    """What the server says to an upload whose weights were changed."""
    pair = Pair(Outsourced(), SHAPES["small"])

    def fault(body: bytes) -> bytes:
        upload = decode(body, Upload, max_bytes=1 << 28)
        return encode(msgspec.structs.replace(upload, weights=change(upload.weights)))

    found = pair.setup(fault=alter(fault, tag="he-outsourced/keys")).failures.get("server")
    assert found is None or isinstance(found, ProtocolError)
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: (),
        lambda weights: weights[:1],
        lambda weights: (*weights, weights[0]),
        lambda weights: (weights[0][1:], *weights[1:]),
        lambda weights: ((*weights[0], weights[0][0]), *weights[1:]),
        lambda weights: ((weights[0][0][:-1], *weights[0][1:]), *weights[1:]),
        lambda weights: ((weights[0][0] + b"\0", *weights[0][1:]), *weights[1:]),
        lambda weights: ((b"", *weights[0][1:]), *weights[1:]),
        lambda weights: ((b"\xff" * len(weights[0][0]), *weights[0][1:]), *weights[1:]),
        lambda weights: ((weights[1][0], *weights[0][1:]), *weights[1:]),  # of a lower level
        lambda weights: (weights[0], (weights[0][0], *weights[1][1:])),  # of a higher one
    ],
    ids=["none", "a map less", "a map more", "fewer", "more", "short", "long", "empty", "too large", "low", "high"],
)
def test_uploads_of_another_form_are_refused(change):
    assert changed(change) is not None


def test_an_unchanged_upload_is_taken():
    assert changed(lambda weights: weights) is None


def test_weights_in_the_clear_are_a_protocol_error():
    """All-zero ciphertexts have the right form; SEAL refuses the products, and so does the server, at a question."""
    pair = Pair(Outsourced(), SHAPES["linear"])
    owner, cloud = kits(pair)
    pair.setup().output("client")
    key_id = owned("he-outsourced", owner.place, pair.stores["client"]).key_id
    name = f"he-outsourced/keys/{key_id}"
    upload = decode(pair.stores["server"].get(name) or b"", Upload, max_bytes=1 << 28)
    zeros = tuple(tuple(bytes(len(body)) for body in bodies) for bodies in upload.weights)
    pair.stores["server"].commit({name: encode(msgspec.structs.replace(upload, weights=zeros))})
    cloud.keys.loaded.forget(cloud.keys, key_id)
    assert isinstance(pair.predict(corners(1, 6)).failures["server"], ProtocolError)


def test_plans_of_the_other_backend_are_refused():
    plan = Homomorphic(protect_model=False).plan(SHAPES["small"])
    for wrong in (
        plan,
        msgspec.structs.replace(Outsourced().plan(SHAPES["small"]), protected=True),
        msgspec.structs.replace(Outsourced().plan(SHAPES["small"]), stages=()),
    ):
        with pytest.raises(ProtocolError):
            Outsourced().decode_kit("server", msgspec.msgpack.encode({"format": 1, "plan": wrong}))
    kit = msgspec.msgpack.encode({"format": 2, "plan": plan, "needs": plan.needs})
    Homomorphic().decode_kit("client", kit)  # what is refused below is the kind of weights, not the rest
    Outsourced().decode_kit("server", msgspec.msgpack.encode({"format": 1, "plan": Outsourced().plan(SHAPES["small"])}))
    other = Outsourced().plan(SHAPES["small"])
    ours = msgspec.msgpack.encode({"format": 2, "plan": other, "needs": other.needs})
    with pytest.raises(ProtocolError, match="weights"):
        Homomorphic().decode_kit("client", ours)


def test_uploads_and_messages_stay_below_the_stated_bounds():
    pair = Pair(Outsourced(), SHAPES["small"])
    _, cloud = kits(pair)
    upload = len(pair.setup().messages[0].body)
    assert cloud.weights_bytes < upload <= cloud.keys_bytes <= upload + 4096
    query, reply = pair.predict(corners(3, 6)).messages
    assert cloud.rows(query.body) == 3
    assert len(query.body) <= cloud.query_bytes(3)
    assert len(reply.body) <= cloud.reply_bytes(3)


# --- what it is not for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ((linear(1, 4, 6), Polynomial(np.array([0.0, 1.0, 0.5]), -1.0, 1.0), linear(2, 1, 4)), "Polynomial"),
        ((Conv(np.ones((1, 1, 2, 2)), np.zeros(1), 4, 4), Square(), linear(2, 1, 9)), "Conv"),
        ((linear(1, 4, 6), Square()), "Square"),
    ],
    ids=["polynomial", "convolution", "last square"],
)
def test_other_layers_are_named(layers, named):
    (problem,) = Outsourced().check(Graph(layers))
    assert named in problem.layer
    with pytest.raises(ModelError, match="he-outsourced"):
        Outsourced().prepare(Graph(layers), RNG)


def test_results_are_not_published():
    pair = pair_of("linear")
    with pytest.raises(UsageError, match="owner"):
        pair.backend.publish(pair.client, corners(1, 6), pair.stores["client"], RNG)


def test_keys_and_weights_expire():
    now = [1e9]
    pair = ready(Outsourced(key_lifetime_seconds=100, clock=lambda: now[0]), SHAPES["linear"])
    pair.predict(corners(1, 6)).output("client")
    now[0] += 101
    with pytest.raises(KeysExpired):
        pair.predict(corners(1, 6))
    pair.setup().output("client")
    pair.predict(corners(1, 6)).output("client")


def test_a_kit_keeps_the_keys_that_it_parsed():
    owner, _ = kits(pair_of("small"))
    kept = owned("he-outsourced", owner.place, pair_of("small").stores["client"])
    assert isinstance(kept, Owned)
    assert owner.keys(kept) is owner.keys(kept)


@pytest.mark.parametrize("wrong", [{"input_bound": 0.0}, {"precision_bits": 0}, {"key_lifetime_seconds": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Outsourced(**wrong)
