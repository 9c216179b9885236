"""Programs in C++: the answers of SEAL's engine, one schedule for all weights, the switches that turn them off."""

import os
import subprocess
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError, UsageError
from confide.he import Homomorphic, engine_native
from confide.he.engine_native import NativeMachine, NativeUnavailable, available, threads_of
from confide.he.machines import SealMachine
from confide.he.packed import residue_bits
from confide.he.parameters import Parameters
from confide.he.seal import Context, ntt_primes
from confide.he.seal_format import read_plaintext
from confide.he.slots import coefficients
from confide.model.graph import Conv, Graph, Linear, Polynomial, Square
from he.oracle import RNG, Pair, corners, forest, linear, ready

pytestmark = pytest.mark.skipif(not available(), reason="installed without a C++ compiler")

NETWORK = Graph((linear(1, 16, 30, 0.3), Square(), linear(2, 5, 16, 0.3)))
IMAGES = Graph(
    (
        Conv(np.random.default_rng(1).normal(size=(4, 1, 3, 3)) / 3, np.zeros(4), 8, 8, (2, 2), (1, 1, 1, 1)),
        Square(),
        linear(3, 6, 64, 0.1),
        Polynomial(np.array([0.1, 0.5, 0.2, 0.05]), -4.0, 4.0),
        linear(4, 2, 6, 0.3),
    )
)
MODELS = {"network": NETWORK, "images": IMAGES, "trees": Graph((forest(3, 6, 5, 3),))}
SMALL = Context(Parameters(scheme="ckks", degree=4096, primes=ntt_primes(4096, (36, 36, 37))))


def machine_of(pair: Pair) -> NativeMachine:
    found = pair.server.engine.machine
    assert isinstance(found, NativeMachine)
    return found


class Asked:
    """One model on one engine, with keys and a question."""

    def __init__(self, graph: Graph, engine: str = "native", **settings) -> None:
        self.pair = ready(Homomorphic(engine=engine, **settings), graph)
        self.client, self.server = self.pair.client.engine, self.pair.server.engine
        self.secret, self.public = self.client.context.generate(bytes(16), self.client.plan.needs)
        self.query = self.client.encrypt(self.secret, corners(1, graph.features))

    def reply(self, query=None) -> tuple[bytes, ...]:
        return self.server.answer(self.server.keys(self.public), self.query if query is None else query, RNG)


# --- the same answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MODELS))
def test_answers_are_the_models_and_those_of_seal(name):
    graph, x = MODELS[name], corners(2, MODELS[name].features)
    answers = []
    for engine in ("native", "seal"):
        pair = ready(Homomorphic(engine=engine, activation_degree=3), graph)
        assert isinstance(pair.server.engine.machine, NativeMachine if engine == "native" else SealMachine)
        answers.append((pair.predict(x).output("client"), pair.server.error_bound))
    expected = graph.apply(x)
    for y, bound in answers:
        assert (np.abs(y - expected) <= bound).all()
        assert np.abs(y - expected).max() < 0.01 * np.abs(expected).max()


def test_any_number_of_threads_gives_the_same_bytes():
    asked = Asked(IMAGES, protect_model=False, activation_degree=3)
    keys, machine = asked.server.keys(asked.public), machine_of(asked.pair)
    found = set()
    for threads in (1, 2, 3, 2, 1, 8):
        machine._threads = threads
        found |= {asked.server.answer(keys, asked.query, SeededRandomness("one")) for _ in range(3)}
    assert len(found) == 1


@pytest.mark.parametrize(("said", "threads"), [("", 3), ("1", 1), ("64", 64)])
def test_the_environment_says_how_many_threads(monkeypatch, said, threads):
    monkeypatch.setenv("CONFIDE_THREADS", said)
    assert threads_of(3) == threads


@pytest.mark.parametrize("said", ["0", "-1", "65", "9" * 30, "two", "2 cores", "1.5", " "])
def test_a_number_of_threads_that_is_none_is_refused(monkeypatch, said):
    monkeypatch.setenv("CONFIDE_THREADS", said)
    with pytest.raises(UsageError, match="Expected CONFIDE_THREADS to be a number from 1 to 64"):
        ready(Homomorphic(engine="native", activation_degree=3), NETWORK)


def test_protected_replies_are_fresh():
    asked = Asked(NETWORK)
    assert asked.reply() != asked.reply()


# --- encoding ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1 << 30), st.sampled_from([20, 30, 40]), st.booleans())
def test_coefficients_are_those_of_seal_up_to_rounding(seed, bits, imaginary):
    stream = np.random.default_rng(seed)
    slots = stream.normal(size=2048) + (1j * stream.normal(size=2048) if imaginary else 0)
    found, shift = coefficients(slots, 2.0**bits, 4096)
    primes, degree = SMALL.parameters.data_primes, 4096
    rows = read_plaintext(SMALL.encode(slots, limbs=2, scale=2.0**bits).value.to_bytes(), 2 * degree).reshape(2, -1)
    form = SMALL.form(limbs=2, ntt=True)
    cipher = SMALL.from_residues(np.stack([rows, np.ones_like(rows)]), form)
    SMALL.from_ntt(cipher)
    residues = SMALL.residues(cipher, replace(form, ntt=False))[0]
    assert not shift
    for row, prime in zip(residues, primes, strict=True):
        apart = (found - row.astype(np.int64)) % prime
        assert np.minimum(apart, prime - apart).max() <= 1


def test_constants_and_large_scales_are_encoded():
    found, shift = coefficients(0.75, 2.0**40, 4096)
    assert (found[0], shift) == (3 << 38, 0)
    assert not found[1:].any()
    slots = np.random.default_rng(1).normal(size=2048)
    small, _ = coefficients(slots, 2.0**50, 4096)
    large, shift = coefficients(slots, 2.0**90, 4096)
    assert shift > 20
    assert np.abs(np.ldexp(large.astype(float), shift - 40) - small).max() <= 1
    with pytest.raises(OverflowError):
        coefficients(np.full(2048, np.inf), 1.0, 4096)


# --- what shows -------------------------------------------------------------------------------------------------------


def blank(graph: Graph) -> Graph:
    layers = [Linear(0 * one.weight, 0 * one.bias) if isinstance(one, Linear) else one for one in graph.layers]
    return Graph(tuple(layers))


def test_the_program_depends_on_shapes_alone():
    other = Graph((linear(7, 16, 30, 0.3), Square(), linear(8, 5, 16, 0.3)))
    listings = [machine_of(Pair(Homomorphic(), one)).program.listing() for one in (NETWORK, other, blank(NETWORK))]
    assert listings[0] == listings[1] == listings[2]
    wider = Graph((linear(7, 17, 30, 0.3), Square(), linear(8, 80, 17, 0.3)))
    assert machine_of(Pair(Homomorphic(), wider)).program.listing() != listings[0]
    trees = [Graph((forest(seed, 6, 5, 3),)) for seed in (3, 4)]
    one, same = (machine_of(Pair(Homomorphic(), tree)).program.listing() for tree in trees)
    assert one == same


def test_zero_weights_are_answered():
    graph = Graph((*blank(NETWORK).layers[:2], Linear(np.zeros((1, 16)), np.array([0.25]))))
    y = ready(Homomorphic(engine="native"), graph).predict(corners(1, 30)).output("client")
    assert abs(y.item() - 0.25) < 1e-3


def test_a_run_tells_where_its_time_went():
    asked = Asked(NETWORK)
    asked.reply()
    program = machine_of(asked.pair).program
    profile = program.profile()
    assert len(profile) == len(program.listing())
    assert all(count == 1 and seconds == least >= 0 for _, count, seconds, least in profile)
    assert {kind.split()[0] for kind, *_ in profile} >= {"transform", "product", "divide", "add_plain"}
    assert program.arena_bytes > 0
    assert program.plain_bytes > 0


# --- strangers --------------------------------------------------------------------------------------------------------


def test_a_strangers_questions_are_checked():
    asked = Asked(NETWORK)
    (query,) = asked.query
    parameters = asked.client.plan.parameters
    first = parameters.data_primes[0]
    bits = residue_bits(first)
    above = b"\xff" * -(-bits // 8)  # the first number is all ones
    for body in (b"", query[:-1], query + b"\0", above + query[len(above) :], bytes(len(query)), b"\xff" * len(query)):
        with pytest.raises(ProtocolError):
            asked.reply((body,))
    assert asked.reply()


def test_a_strangers_keys_are_checked():
    asked = Asked(NETWORK)
    public = asked.public
    for change in (
        {"nonce": b""},
        {"relinearisation": b""},
        {"rotation": public.rotation[:-1]},
        {"rotation": public.rotation + public.rotation},
        {"relinearisation": b"\xff" * len(public.relinearisation)},
        {"rotation": public.rotation[:-9] + b"\xff" * 9},
        {"encryption": b""},
    ):
        with pytest.raises(ProtocolError):
            asked.server.keys(msgspec.structs.replace(public, **change))


def test_keys_of_somebody_else_give_garbage_and_nothing_worse():
    asked = Asked(NETWORK)
    _, other = asked.client.context.generate(bytes(16), asked.client.plan.needs)
    asked.public = other
    y = np.ldexp(asked.client.decrypt(asked.secret, asked.reply()), asked.server.exponents)
    assert np.abs(y - NETWORK.apply(corners(1, 30))).max() > 1


def test_programs_refuse_what_does_not_fit():
    native = engine_native.native_context(SMALL.parameters)
    program = engine_native.program(native)
    one = program.input(2)
    zeros = np.zeros(4096, np.int64)
    plain, whole = program.plain(zeros, 0, 1, False), program.plain(zeros, 0, 2, True)
    for refused in (
        lambda: program.input(3),
        lambda: program.plain(np.zeros(8, np.int64), 0, 1, False),
        lambda: program.plain(zeros, 0, 3, False),
        lambda: program.add(one, 7, 1),
        lambda: program.add(one, one, 3),
        lambda: program.add_plain(one, 2, plain),
        lambda: program.combine([one], 1, []),
        lambda: program.divide(one, 2, 0),
        lambda: program.divide(one, 2, 2),
        lambda: program.rotate(one, 2, 4),
        lambda: program.rotate(one, 2, 8193),
        lambda: program.fold(one, 2, [[]]),
        lambda: program.transform([one], 2, [(0, 1)], [[(0, whole)]], 1),
        lambda: program.transform([one], 2, [(-2, 1)], [[(0, whole)]], 1),
        lambda: program.transform([one], 2, [(-1, 1)], [[(1, whole)]], 1),
        lambda: program.transform([one], 2, [(-1, 1)], [[(0, plain)]], 1),
        lambda: program.transform([one], 2, [(-1, 1)], [[]], 1),
        lambda: program.finish([one], [3]),
        lambda: program.finish([program.rotate(one, 2, 3)], [2]),
    ):
        with pytest.raises(ValueError):
            refused()
    program.finish([one], [1])
    keys = engine_native._native.ckks.ProgramKeys(native)
    query, reply = np.zeros((2, 2, 4096), np.uint64), np.empty((2, 1, 4096), np.uint64)
    with pytest.raises(ValueError, match="keys"):
        program.run(keys, [query], [reply], 1)  # it rotates, and there is no key
    with pytest.raises(ValueError):
        program.run(keys, [], [reply], 1)


def test_residues_above_their_primes_are_refused_by_the_program_itself():
    native = engine_native.native_context(SMALL.parameters)
    program = engine_native.program(native)
    program.finish([program.input(2)], [1])
    keys = engine_native._native.ckks.ProgramKeys(native)
    query, reply = np.zeros((2, 2, 4096), np.uint64), np.empty((2, 1, 4096), np.uint64)
    program.run(keys, [query], [reply], 1)
    query[1, 1, -1] = SMALL.parameters.data_primes[1]
    with pytest.raises(ValueError, match="below"):
        program.run(keys, [query], [reply], 1)


# --- switches ---------------------------------------------------------------------------------------------------------


def test_the_engine_is_chosen_by_a_word():
    assert isinstance(ready(Homomorphic(engine="seal"), NETWORK).server.engine.machine, SealMachine)
    with pytest.raises(UsageError, match="auto, native or seal"):
        Homomorphic(engine="heaan")


def test_without_the_extension_everything_runs_on_seal_with_one_warning(monkeypatch):
    monkeypatch.setattr(engine_native, "_native", None)
    with pytest.warns(NativeUnavailable, match="Microsoft SEAL"):
        pair = ready(Homomorphic(), NETWORK)
    x = corners(1, 30)
    assert (np.abs(pair.predict(x).output("client") - NETWORK.apply(x)) <= pair.server.error_bound).all()
    with pytest.raises(UsageError, match="compiler"):
        Pair(Homomorphic(engine="native"), NETWORK)


SWITCHED_OFF = """
import numpy as np
from confide.he import Homomorphic
from confide.he.engine_native import available
from confide.he.machines import SealMachine
from confide.crypto.random import SystemRandomness
from confide.model.graph import Graph, Linear, Square
assert not available()
graph = Graph((Linear(np.ones((2, 3)), np.zeros(2)), Square()))
kits = Homomorphic().prepare(graph, SystemRandomness())
assert isinstance(kits["server"].engine.machine, SealMachine)
"""


@pytest.mark.parametrize(("named", "said"), [("foo", "portable, avx2 or ifma; unset it"), ("portable", "True")])
def test_a_path_of_no_such_name_is_refused_before_a_model_is_prepared(named, said):
    script = (
        "from confide.errors import UsageError\n"
        "from confide.he.engine_native import available\n"
        "try: print(available())\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "CONFIDE_NATIVE_PATH": named},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


def test_an_environment_variable_switches_it_off_without_a_warning():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SWITCHED_OFF],
        env={**os.environ, "CONFIDE_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
