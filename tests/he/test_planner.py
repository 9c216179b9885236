"""Plans of networks: secure, within their modulus, public; and what a stranger may not send."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he.backend import Homomorphic
from confide.he.cost import seconds
from confide.he.describe import facts, stage_lines
from confide.he.kits import ClientKit, ServerKit, client_kit
from confide.he.layouts import Entry, Layout
from confide.he.levels import errors
from confide.he.message_bytes import keys_bytes
from confide.he.network import Network
from confide.he.normalise import normalise, samples
from confide.he.packing import Packing, Rotations
from confide.he.parameters import LIMIT_BITS, Parameters
from confide.he.plan import Settings, make_plan
from confide.he.plan_network import NetworkPlan
from confide.he.planner import plan_network
from confide.he.seal import CONJUGATION, ntt_primes
from confide.he.shapes import Dense
from confide.he.speeds import SEAL, SPEEDS, Speeds
from confide.he.stages import Combined, Mapped, Multiplied, product_scale
from confide.model.graph import AveragePool, Conv, Graph, Linear, Polynomial, Residual, Square, Tanh
from he.oracle import corners, linear, mlp, ready


def plan(graph: Graph, *, precision_bits: int = 10, protected: bool = False, room_bits: float = 10.0) -> NetworkPlan:
    found = plan_network(
        Network.of(graph), protected=protected, input_bound=1.0, precision_bits=precision_bits, room_bits=room_bits
    )
    assert found is not None
    return found


def conv(seed: int, outputs: int, inputs: int, size: int, stride: int = 2, kernel: int = 3) -> Conv:
    stream = np.random.default_rng(seed)
    weight = stream.normal(size=(outputs, inputs, kernel, kernel)) / math.sqrt(inputs * kernel * kernel)
    return Conv(weight, np.zeros(outputs), size, size, (stride, stride), (1, 1, 1, 1))


IMAGES = Graph((conv(1, 4, 1, 8), Square(), conv(2, 8, 4, 4), Square(), linear(3, 3, 32)))


@settings(deadline=None, max_examples=4)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=4), st.integers(4, 14))
def test_every_plan_is_secure_and_keeps_within_its_modulus(sizes, precision_bits):
    found = plan(mlp(1, *sizes, 3), precision_bits=precision_bits)
    assert found.checked() is found
    assert found.parameters.total_bits <= LIMIT_BITS[found.parameters.degree]
    assert found.parameters.special >= max(found.parameters.data_primes[1:], default=0) / 2
    for stage, after, room in zip(found.stages, found.registers[1:], found.rooms[1:], strict=True):
        read = [found.registers[source] for source in stage.sources]
        before = math.prod(found.parameters.data_primes[: min(register.limbs for register in read)])
        assert product_scale(stage, read) * 2**room < before / 2
        assert after.scale * 2**room < math.prod(found.parameters.data_primes[: after.limbs]) / 2
    assert errors(found.parameters, found.scale_bits, found.stages)[-1] <= 2.0 ** (2 - precision_bits)
    assert found.reply_scale * 2 ** found.rooms[-1] < math.prod(found.parameters.data_primes[: found.reply_limbs]) / 2
    steps = set(found.needs.steps)
    assert steps <= set(range(found.slots))
    assert (CONJUGATION in steps) == any(isinstance(stage, Mapped) and stage.conjugate for stage in found.stages)


def test_plans_do_not_depend_on_weights():
    quiet, loud = ([linear(1, 16, 30, size), Square(), linear(2, 1, 16, size)] for size in (1e-3, 1e3))
    assert plan(Graph(tuple(quiet))) == plan(Graph(tuple(loud)))


def test_a_plan_is_data():
    found = plan(IMAGES, protected=True)
    body = msgspec.msgpack.encode(found)
    assert len(body) < 4096
    assert msgspec.msgpack.decode(body, type=NetworkPlan) == found
    assert found.needs.encryption
    assert [type(stage) for stage in found.stages] == [Mapped, Multiplied, Mapped, Multiplied, Mapped]
    lines = list(stage_lines(found))
    assert [line[0] for line in lines[:2]] == ["convolution 1 -> 4 channels, 3x3, stride 2x2", "square"]
    assert sum(int(line[1]) for line in lines) == found.rotations
    assert dict(facts(found))["security"].startswith("128 bits")
    assert keys_bytes(found) < found.key_bytes + 8 * found.parameters.degree * 2 * len(found.parameters.primes)


def test_more_is_asked_more_is_taken():
    shallow, deep = GOOD, plan(mlp(1, 30, 16, 16, 1))
    assert deep.parameters.total_bits > shallow.parameters.total_bits
    assert seconds(deep, SEAL) > seconds(shallow, SEAL)
    coarse, fine = (plan(mlp(1, 64, 4), precision_bits=bits) for bits in (8, 20))
    assert fine.estimated_error < coarse.estimated_error / 100
    assert seconds(plan(mlp(1, 30, 16, 1), room_bits=40.0), SEAL) >= seconds(GOOD, SEAL)


def test_what_no_parameters_carry_has_no_plan():
    deep = Graph(tuple(layer for _ in range(24) for layer in (linear(1, 4, 4), Square())))
    assert plan_network(Network.of(deep), protected=False, input_bound=1.0, precision_bits=10, room_bits=40.0) is None
    wide = Graph((linear(1, 20000, 2), Square()))
    assert plan_network(Network.of(wide), protected=False, input_bound=1.0, precision_bits=10, room_bits=10.0) is None


def test_linear_models_have_a_plan_under_ckks_too():
    made = make_plan(
        Network.of(Graph((linear(1, 1, 30),))),
        Settings(protect_model=True, input_bound=1.0, precision_bits=12, scheme="ckks"),
    )
    assert made is not None
    assert isinstance(made[0], NetworkPlan)
    assert made[0].parameters.degree == 4096


# --- networks and their weights ---------------------------------------------------------------------------------------

POLYNOMIAL = Polynomial(np.array([0.2, 0.5, -0.3, 0.1]), -30.0, 40.0)
BLOCK = Residual((linear(5, 6, 6, 0.2), Square(), linear(6, 6, 6, 0.2)))
GRAPHS = {
    "images": IMAGES,
    "pools": Graph((conv(1, 4, 1, 8), Square(), AveragePool(4, 4, 4, (2, 2), (2, 2)), linear(3, 3, 16))),
    "pool before": Graph((conv(1, 4, 2, 8, 1), AveragePool(4, 8, 8, (2, 2), (2, 2)), Square(), linear(3, 3, 64))),
    "convolutions": Graph((conv(1, 4, 1, 8, 1), conv(2, 2, 4, 8, 1), Square(), linear(3, 3, 128))),
    "polynomial": Graph((linear(1, 6, 9), POLYNOMIAL, linear(2, 3, 6))),
    "polynomial after polynomial": Graph((linear(1, 6, 9), POLYNOMIAL, Polynomial(np.array([0.0, 1.0, 0.5]), -9, 9))),
    "residual": Graph((linear(4, 6, 9), BLOCK, BLOCK, linear(7, 2, 6))),
    "shortcut": Graph((linear(4, 6, 9), Residual((linear(5, 3, 6), Square()), (linear(6, 3, 6),)), linear(7, 2, 3))),
    "square at the end": Graph((linear(5, 4, 6, 0.4), Square(), Square())),
    "matrices in a row": Graph((linear(7, 20, 6), linear(8, 4, 20), Square(), linear(9, 3, 4))),
}


def in_the_clear(found: NetworkPlan, ready, x):
    """The stages on plain vectors, by the parts that an engine gets."""
    registers = [x / found.input_bound]
    for stage, part in zip(found.stages, ready.parts, strict=True):
        read = [registers[source] for source in stage.sources]
        match stage:
            case Mapped():
                registers.append(part.apply(read[0]))
            case Multiplied():
                registers.append(read[0] * read[1])
            case Combined():
                terms = (factor * term for factor, term in zip(part.factors, read, strict=True))
                registers.append(part.offset + sum(terms))
    return registers


@pytest.mark.parametrize("name", sorted(GRAPHS))
@pytest.mark.parametrize("bound", [1.0, 3.0])
def test_scaled_networks_are_the_same_function(name, bound):
    graph = GRAPHS[name]
    found = plan_network(Network.of(graph), protected=False, input_bound=bound, precision_bits=10, room_bits=50.0)
    assert found is not None
    ready = normalise(Network.of(graph), found.rooms, bound, samples(Network.of(graph).entry, bound))
    x = np.random.default_rng(1).uniform(-bound, bound, size=(50, graph.features))
    registers = in_the_clear(found, ready, x)
    want = graph.apply(x)
    assert np.allclose(np.ldexp(registers[-1], ready.exponent), want, rtol=1e-9, atol=1e-9 * np.abs(want).max())
    for values, largest in zip(registers, ready.largest, strict=True):
        assert (np.abs(values) <= largest).all()


def test_the_largest_values_fit_the_room_or_the_plan_says_so():
    graph = mlp(1, 30, 16, 16, 2)
    for room_bits in (3.0, 50.0):
        found = plan(graph, room_bits=room_bits)
        given_ = samples(Network.of(graph).entry, 1.0)
        fitted = normalise(Network.of(graph), found.rooms, 1.0, given_)
        assert fitted.certified
        assert all(
            (largest <= 1.0001 * 2.0**room).all() for largest, room in zip(fitted.largest, found.rooms, strict=True)
        )
    free = normalise(Network.of(graph), plan(graph, room_bits=3.0).rooms, 1.0, given_, certify=False)
    assert not free.certified


def test_a_polynomial_outside_of_its_interval_is_not_certified():
    narrow = Graph((linear(1, 6, 9), Polynomial(np.array([0.2, 0.5, -0.3]), -0.1, 0.1), linear(2, 3, 6)))
    found = plan(narrow)
    assert not normalise(Network.of(narrow), found.rooms, 1.0, samples(Network.of(narrow).entry, 1.0)).certified


# --- what the plans of known networks take ----------------------------------------------------------------------------


def convolution(outputs: int, inputs: int, size: int, kernel: int, stride: int, padding: tuple[int, ...]) -> Conv:
    return Conv(np.zeros((outputs, inputs, kernel, kernel)), np.zeros(outputs), size, size, (stride, stride), padding)


def dense(outputs: int, inputs: int) -> Linear:
    return Linear(np.zeros((outputs, inputs)), np.zeros(outputs))


NETWORKS = {
    "mlp": (dense(128, 784), Square(), dense(128, 128), Square(), dense(10, 128)),
    "lola": (convolution(5, 1, 28, 5, 2, (1, 1, 0, 0)), Square(), dense(100, 845), Square(), dense(10, 100)),
    "lenet": (
        convolution(32, 1, 28, 5, 2, (2, 2, 2, 2)),
        Square(),
        convolution(64, 32, 14, 5, 2, (2, 2, 2, 2)),
        Square(),
        dense(512, 3136),
        Square(),
        dense(10, 512),
    ),
    "cifar": (
        convolution(32, 3, 32, 4, 2, (1, 1, 1, 1)),
        Square(),
        convolution(128, 32, 16, 5, 2, (2, 2, 2, 2)),
        Square(),
        convolution(256, 128, 8, 3, 2, (1, 1, 1, 1)),
        Square(),
        dense(10, 4096),
    ),
}


def taken(name: str, speeds: Speeds) -> tuple[int, int, int, int, int]:
    """Ring degree, data primes, rotations, products with weights, evaluation keys."""
    net = Network.of(Graph(NETWORKS[name]))
    found = plan_network(net, protected=True, input_bound=1.0, precision_bits=10, room_bits=10.0, speeds=speeds)
    assert found is not None
    assert found.estimated_error < 2.0**-8
    assert max(prime.bit_length() for prime in found.parameters.primes) <= speeds.largest_bits
    maps = [stage.layout.rotations for stage in found.stages if isinstance(stage, Mapped)]
    keys = len(found.needs.steps) + found.needs.relinearisation
    products = sum(rotations.products for rotations in maps)
    return found.parameters.degree, len(found.parameters.data_primes), found.rotations, products, keys


COUNTS = {
    ("seal", "mlp"): (8192, 4, 33, 28, 14),
    ("seal", "lola"): (8192, 4, 37, 48, 14),
    ("seal", "lenet"): (16384, 5, 96, 440, 16),
    ("seal", "cifar"): (16384, 5, 169, 1264, 16),
    ("native", "mlp"): (8192, 4, 34, 28, 14),
    ("native", "lola"): (8192, 4, 37, 48, 13),
    ("native", "lenet"): (16384, 6, 96, 440, 19),
    ("native", "cifar"): (16384, 6, 169, 1264, 21),
}


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[1] in ("lenet", "cifar") else (), id=" ".join(case))
        for case in sorted(COUNTS)
    ],
)
def test_known_networks_take_no_more_than_they_did(engine, name):
    assert taken(name, SPEEDS[engine]) == COUNTS[engine, name]


# --- strangers --------------------------------------------------------------------------------------------------------

GOOD = plan(mlp(1, 30, 16, 1))
FIRST = GOOD.stages[0]


def test_a_stranger_cannot_ask_for_gigabytes_of_keys():
    rings = Parameters(scheme="ckks", degree=32768, primes=ntt_primes(32768, (60,) * 14))
    assert isinstance(FIRST, Mapped)
    wide = msgspec.structs.replace(FIRST.layout.rotations, sums=tuple((2, step) for step in range(1, 15)))
    layout = msgspec.structs.replace(FIRST.layout, rotations=wide)
    greedy = msgspec.structs.replace(
        GOOD, parameters=rings, stages=(msgspec.structs.replace(FIRST, layout=layout), *GOOD.stages[1:])
    )
    assert greedy.key_bytes > 1 << 30
    with pytest.raises(ProtocolError):
        greedy.checked()


@pytest.mark.parametrize(
    "change",
    [
        {"stages": ()},
        {"stages": GOOD.stages[1:]},
        {"stages": (FIRST, FIRST)},
        {"stages": (*GOOD.stages, Multiplied(left=99, right=0, drops=0))},
        {"stages": (*GOOD.stages, Multiplied(left=1, right=3, drops=0))},
        {"stages": (FIRST, Multiplied(left=1, right=1, drops=9))},
        {"stages": (FIRST, Combined(terms=(), weight_bits=10, drops=0))},
        {"stages": (FIRST, Combined(terms=(1,) * 99, weight_bits=10, drops=0))},
        {"stages": (FIRST, *[Multiplied(left=1, right=1, drops=0)] * 3, Multiplied(left=4, right=4, drops=0))},
        {"stages": (msgspec.structs.replace(FIRST, weight_bits=0), *GOOD.stages[1:])},
        {"stages": (msgspec.structs.replace(FIRST, weight_bits=1 << 40), *GOOD.stages[1:])},
        {"scale_bits": 9},
        {"scale_bits": 2000},
        {"room_bits": math.nan},
        {"room_bits": 1e9},
        {"input_bound": math.inf},
        {"input_bound": -1.0},
        {"parameters": msgspec.structs.replace(GOOD.parameters, degree=4096)},
    ],
)
def test_a_strangers_plan_is_checked(change):
    with pytest.raises(ProtocolError):
        msgspec.structs.replace(GOOD, **change).checked()


def test_neighbouring_linear_layers_become_one():
    kinds = [operation.kind for operation in Network.of(GRAPHS["pool before"]).operations]
    assert kinds == ["linear", "product", "linear"]
    assert Network.of(Graph((linear(1, 4, 9), linear(2, 3, 4)))).linear is not None
    assert Network.of(IMAGES).linear is None
    assert isinstance(linear(1, 2, 3), Linear)


@pytest.mark.slow
def test_polynomials_in_a_row_can_be_certified():
    """The slack of one interval leaves the next one by some 1e-9 of its size, which is not "unknown"."""
    graph = Graph((linear(3, 6, 5, 0.4), Tanh(), linear(4, 6, 6, 0.4), Tanh(), linear(5, 2, 6, 0.4)))
    backend = Homomorphic(precision_bits=6, certify=True, activation_degree=3)
    pair = ready(backend, graph)
    assert isinstance(pair.client, ClientKit)
    assert isinstance(pair.server, ServerKit)
    assert isinstance(pair.client.plan, NetworkPlan)
    assert pair.client.plan.certified
    x = corners(6, 5)
    y = pair.predict(x).output("client")
    assert (np.abs(y - backend.arithmetic(graph).apply(x)) <= pair.server.error_bound).all()


def test_a_client_makes_no_keys_without_end():
    """Trimmed to one prime they are 200 MB to upload, and 25 GB to make."""
    shape = Dense(inputs=64, outputs=64)
    packed = Packing(size=64, axes=((64, 1),), period=64, copies=256)
    first, last = (
        Mapped(
            source=source,
            shape=shape,
            layout=Layout(rotations=Rotations(base=0, babies=(), giant=(1, 1), sums=sums), packed=packed),
            weight_bits=54,
            drops=1,
        )
        for source, sums in ((0, ()), (13, ((199, 64),)))
    )
    between = [Combined(terms=(number,), weight_bits=54, drops=1) for number in range(1, 13)]
    hostile = NetworkPlan(
        parameters=Parameters(scheme="ckks", degree=32768, primes=ntt_primes(32768, [55] * 16)),
        scale_bits=40,
        input_bound=1.0,
        stages=(first, *between, last),
        room_bits=1.0,
        sigmoid=False,
        protected=False,
        entry=Entry(features=64, packed=msgspec.structs.replace(packed, copies=1), copies=256),
    )
    assert hostile.checked() is hostile
    assert keys_bytes(hostile) < 1 << 28
    with pytest.raises(ProtocolError, match="at all primes"):
        client_kit(ClientKit(hostile).encode())
