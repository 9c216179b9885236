"""What leaves in a reply under CKKS: one row's outputs, however many rows a client hides in its slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from confide.crypto.random import SeededRandomness
from confide.he import Homomorphic, machines
from confide.he.engine_batch import BatchClient, BatchServer
from confide.he.engine_native import available
from confide.he.engine_seal import NetworkClient, NetworkServer
from confide.he.engine_trees import TreesClient, TreesServer, vectors
from confide.he.kits import ClientKit, ServerKit
from confide.he.plan_network import NetworkPlan
from confide.he.traces import hiding, orbits, traced
from confide.model.graph import Graph, Square
from confide.wire import encode
from he.oracle import RNG, Pair, corners, forest, linear, mlp, public_keys

Matrix = NDArray[np.float64]
Slots = NDArray[np.complex128]

ENGINES = [
    "seal",
    pytest.param("native", marks=pytest.mark.skipif(not available(), reason="installed without a C++ compiler")),
]
NETWORK = Graph((linear(1, 8, 6, 0.3), Square(), linear(2, 2, 8, 0.3)))
LINEAR = Graph((linear(3, 3, 6),))
TREES = Graph((forest(4, 2, 2, 2, steps=8, outputs=2),))


# --- the trace --------------------------------------------------------------------------------------------------------

PRIME = 97  # 1 modulo 32


def words_of(coefficients: Sequence[int]) -> list[int]:
    """Values of a polynomial of degree below 16 at psi^(2 bitrev(i) + 1), by the definition."""
    psi = next(base for base in range(2, PRIME) if pow(base, 16, PRIME) == PRIME - 1)
    places = [int(f"{place:04b}"[::-1], 2) for place in range(16)]
    return [sum(c * pow(psi, (2 * p + 1) * k, PRIME) for k, c in enumerate(coefficients)) % PRIME for p in places]


def moved(coefficients: Sequence[int], exponent: int) -> list[int]:
    """m(X^exponent) modulo X^16 + 1."""
    found = [0] * 16
    for power, value in enumerate(coefficients):
        sign, place = divmod(power * exponent % 32, 16)
        found[place] += -value if sign else value
    return found


def trace(coefficients: Sequence[int], period: int) -> list[int]:
    """The sum over the automorphisms that rotate by multiples of the period, and over their conjugates."""
    exponents = [sign * pow(3, period * k, 32) % 32 for k in range(8 // period) for sign in (1, -1)]
    return [sum(column) for column in zip(*(moved(coefficients, one) for one in exponents), strict=True)]


COEFFICIENTS = st.lists(st.integers(0, PRIME - 1), min_size=16, max_size=16)


@given(COEFFICIENTS, st.sampled_from([1, 2, 4, 8]))
def test_orbits_give_the_trace(coefficients, period):
    words = np.array([words_of(coefficients)], np.uint64)
    found = traced(words, (PRIME,), period)[0]
    whole = [value * (8 // period) % PRIME for value in found.tolist()]
    assert whole == words_of(trace(coefficients, period))


@given(st.sampled_from([(16, 1), (16, 8), (4096, 4), (8192, 1024)]))
def test_orbits_are_all_words(sizes):
    degree, period = sizes
    assert sorted(orbits(degree, period).ravel().tolist()) == list(range(degree))


@pytest.mark.parametrize("period", [1, 2, 8])
def test_what_hides_has_no_trace_and_is_uniform_otherwise(period):
    """Every word is uniform; all but one of an orbit are independent, and that one is what makes the sum zero."""
    rng = SeededRandomness("hiding")
    draws = np.array([hiding(16, period, (PRIME,), rng)[0] for _ in range(97 * 60)])
    assert not traced(draws[0][None], (PRIME,), period).any()
    every = orbits(16, period)
    for orbit in every:
        assert not (draws[:, orbit].sum(axis=1) % PRIME).any()
        for place in orbit:
            counts = np.bincount(draws[:, place].astype(int), minlength=PRIME)
            assert ((counts - 60) ** 2 / 60).sum() < 96 + 5 * np.sqrt(2 * 96)
    if every.shape[1] > 2:
        pairs = draws[:, every[0, 0]] * 3 + draws[:, every[0, 1]] * 5  # any combination but the sum of all
        counts = np.bincount((pairs % PRIME).astype(int), minlength=PRIME)
        assert ((counts - 60) ** 2 / 60).sum() < 96 + 5 * np.sqrt(2 * 96)


# --- a client that asks for more than it is charged ------------------------------------------------------------------


@dataclass
class Attack:
    """A client of one model that fills the slots as it likes."""

    pair: Pair

    @classmethod
    def on(cls, graph: Graph, **settings) -> Attack:
        return cls(Pair(Homomorphic(precision_bits=12, **settings), graph))

    @property
    def client(self) -> NetworkClient | BatchClient | TreesClient:
        assert isinstance(self.pair.client, ClientKit)
        engine = self.pair.client.engine
        assert isinstance(engine, NetworkClient | BatchClient | TreesClient)
        return engine

    def answers(self, slots: Sequence[Slots]) -> tuple[Slots, Matrix]:
        """Return what the reply's slots decrypt to, in the model's numbers, and what an honest client reads.

        Args:
            slots: of each ciphertext of the question.
        """
        assert isinstance(self.pair.server, ServerKit)
        client, server = self.client, self.pair.server.engine
        assert isinstance(server, NetworkServer | BatchServer | TreesServer)
        context, plan = client.context, client.plan
        secret, public = context.generate(bytes(16), plan.needs)
        bits = getattr(plan, "input_scale_bits", None) or plan.scale_bits
        limbs = len(plan.parameters.data_primes)
        query = tuple(
            context.to_bytes(secret.encrypt(context.encode(one, limbs=limbs, scale=2.0**bits))) for one in slots
        )
        replies = server.answer(public_keys(self.pair.server, public), query, RNG)
        read = client.decrypt(secret, replies)
        form = client._reply
        raw = []
        for body in replies:
            plain = secret.decrypt(context.load(body, form))
            turned = context.times_imaginary(context.load(body, form))  # slots times i or -i
            real, imaginary = context.decode(plain), context.decode(secret.decrypt(turned))
            raw.append(real - 1j * imaginary * np.resize([1, -1], plan.slots))
        scale = np.ldexp(1.0, server.exponents)
        return np.array(raw) * scale[0], read * scale

    def blocks(self, x: Matrix) -> tuple[Slots, int]:
        """Return slots with row r in repetitions 2r and 2r + 1 of the entry, and the slots of a repetition."""
        plan = self.client.plan
        assert isinstance(plan, NetworkPlan)
        entry = plan.entry
        each = entry.packed.period * entry.packed.copies * entry.copies
        rows = np.arange(plan.slots) // (2 * each) % len(x)
        halves = [np.where(labels >= 0, x[rows, np.maximum(labels, 0)], 0.0) for labels in entry.labels(plan.slots)]
        return (halves[0] + 1j * halves[1] if len(halves) == 2 else halves[0].astype(complex)), each


def open_gate(monkeypatch) -> None:
    """Let everything leave, as it did before."""
    monkeypatch.setattr(
        machines, "hiding", lambda degree, period, primes, rng: np.zeros((len(primes), degree), np.uint64)
    )


def right_rows(found: Slots, graph: Graph, x: Matrix, plan: NetworkPlan, each: int) -> int:
    """Return how many rows' outputs stand in the reply's slots, where the attacker looks for them."""
    places, want = plan.packed.slots_of(), graph.apply(x)
    return sum(
        np.abs(found[0, places + 2 * row * each].real - want[row]).max() < 0.05 * np.abs(want).max()
        for row in range(len(x))
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("protect", [True, False], ids=["protected", "open"])
@pytest.mark.parametrize("graph", [NETWORK, LINEAR], ids=["network", "linear"])
def test_different_rows_in_the_blocks_of_a_question_get_one_answer(graph, protect, engine, monkeypatch):
    """Eight rows for the charge of one: their mean leaves, and with the gate open all eight do."""
    attack = Attack.on(graph, scheme="ckks", engine=engine, protect_model=protect)
    plan, x = attack.client.plan, corners(8, 6, seed=1)
    assert isinstance(plan, NetworkPlan)
    slots, each = attack.blocks(x)
    found, read = attack.answers([slots])
    assert right_rows(found, graph, x, plan, each) == 0
    beyond = np.abs(found[0]) > 10 * np.abs(graph.apply(x)).max()
    assert beyond.mean() > 0.9, np.abs(found).mean()  # what else leaves is as large as the modulus lets it be
    assert read.shape == (1, graph.outputs)
    assert (read.min(axis=0) >= graph.apply(x).min() - 1).all()
    assert (read.max(axis=0) <= graph.apply(x).max() + 1).all()
    open_gate(monkeypatch)
    found, _ = attack.answers([slots])
    assert right_rows(found, graph, x, plan, each) == 8


@pytest.mark.parametrize("engine", ENGINES)
def test_a_second_row_in_the_imaginary_parts_is_not_answered(engine, monkeypatch):
    graph = Graph((linear(3, 3, 1),))  # one feature: no half of a slot is free for another
    attack = Attack.on(graph, scheme="ckks", engine=engine)
    plan, x = attack.client.plan, np.array([[0.5], [-0.75]])
    assert isinstance(plan, NetworkPlan)
    assert plan.entry.halves == 1
    (slots, _), (second, _) = (attack.blocks(row[None]) for row in x)
    want = graph.apply(x)
    weights = want[1] - graph.layers[0].bias
    places = plan.packed.slots_of()
    found, read = attack.answers([slots + 1j * second])
    assert np.abs(read[0] - want[0]).max() < 0.05
    assert np.abs(found[0, places].imag - weights).max() > 10
    open_gate(monkeypatch)
    found, _ = attack.answers([slots + 1j * second])
    assert np.abs(found[0, places].imag - weights).max() < 0.05


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_answers_a_row_in_each_slot_and_none_in_the_imaginary_parts(engine, monkeypatch):
    graph = Graph((linear(5, 2, 3),))
    attack = Attack.on(graph, scheme="ckks", goal="throughput", engine=engine)
    slots = attack.client.plan.slots
    x, second = corners(slots, 3, seed=1), corners(slots, 3, seed=2)
    want, beside = graph.apply(x), graph.apply(second) - graph.layers[0].bias
    found, read = attack.answers(list((x + 1j * second).T))
    assert np.abs(read - want).max() < 0.05
    assert np.abs(found.imag - beside.T).max() > 10
    open_gate(monkeypatch)
    found, _ = attack.answers(list((x + 1j * second).T))
    assert np.abs(found.imag - beside.T).max() < 0.05


@pytest.mark.parametrize("engine", ENGINES)
def test_trees_answer_one_row(engine, monkeypatch):
    """Few features leave room for several repetitions of a row."""
    attack = Attack.on(TREES, tree_bins=8, engine=engine)
    plan, x = attack.client.plan, corners(8, 2, seed=3)
    digits = plan.bin_of(x)
    each = plan.copies * plan.period
    assert plan.slots >= 16 * each
    rows = np.arange(plan.slots) // (2 * each) % 8
    every = np.array([next(iter(vectors(plan, row))) for row in digits])
    slots = every[rows, plan.source()]
    want = TREES.apply(x)

    def right(found: Slots) -> int:
        firsts = np.array([found[0, 2 * row * each : 2 * row * each + 2].real for row in range(8)])
        return int((np.abs(firsts - want).max(axis=1) < 0.05 * np.abs(want).max()).sum())

    found, read = attack.answers([slots])
    assert right(found) == 0
    assert read.shape == (1, 2)
    open_gate(monkeypatch)
    found, _ = attack.answers([slots])
    assert right(found) == 8


def test_a_question_is_charged_for_the_rows_that_it_is_answered():
    for graph, goal in ((NETWORK, "latency"), (LINEAR, "latency"), (mlp(1, 3, 2, 1), "throughput")):
        kit = Homomorphic(goal=goal).prepare(graph, RNG)["server"]
        assert isinstance(kit, ServerKit)
        assert kit.rows(encode({"rows": 3})) == (3 if goal == "latency" else kit.plan.parameters.degree // 2)
