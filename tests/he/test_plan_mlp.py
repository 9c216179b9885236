"""Plans of networks with squares: layouts, rotations, scales; the layout is run on plain vectors."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he.parameters import LIMIT_BITS
from confide.he.plan_mlp import MatVec, MlpPlan, Squaring, plan_mlp
from confide.he.seal import ntt_primes
from confide.model.graph import Linear, Square
from he.oracle import linear, mlp


def plan(*sizes: int, precision_bits: int = 10, protected: bool = False) -> MlpPlan:
    layers = [layer for layer in mlp(1, *sizes).layers if isinstance(layer, Linear | Square)]
    found = plan_mlp(layers, sigmoid=False, protected=protected, input_bound=1.0, precision_bits=precision_bits)
    assert found is not None
    return found


def run_in_plain(stage: MatVec, weight: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """The schedule of a stage on plain slots: rotate, multiply with diagonals, add. Diagonals from first principles:
    whatever input stands in the rotated slot meets the weight of that slot's output."""
    padded = np.zeros((stage.padded_outputs, stage.padded_inputs))
    padded[: stage.outputs, : stage.inputs] = weight
    count = len(slots)
    at = np.arange(count)
    source = stage.source(count)
    total = np.zeros(count)
    for giant in reversed(range(stage.giants)):
        total = np.roll(total, -stage.babies)
        for baby in range(stage.babies):
            diagonal = padded[(at - giant * stage.babies) % stage.padded_outputs, source[(at + baby) % count]]
            total += diagonal * np.roll(slots, -baby)
    for step in stage.sums:
        total = total + np.roll(total, -step)
    return total


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), st.integers(0, 5), st.integers(0, 1 << 30))
def test_every_layout_is_the_matrix_product(inputs, outputs, copies, babies, seed):
    shape = MatVec(inputs=inputs, outputs=outputs, copies=1, babies=1, giants=1)
    count = 4096
    copies = min(1 << copies, shape.diagonals, count // shape.period)
    diagonals = shape.diagonals // copies
    babies = min(1 << babies, diagonals)
    stage = MatVec(inputs=inputs, outputs=outputs, copies=copies, babies=babies, giants=diagonals // babies)
    assert stage.checked(count) is stage
    layer = linear(seed, outputs, inputs)
    x = np.random.default_rng(seed).normal(size=inputs)
    slots = np.concatenate([x, np.zeros(stage.padded_inputs - inputs)])[stage.source(count)]
    found = run_in_plain(stage, layer.weight, slots)
    expected = np.zeros(stage.padded_outputs)
    expected[:outputs] = layer.weight @ x
    assert np.allclose(found, np.resize(expected, count), atol=1e-9)  # and it repeats: the next stage needs that


def test_thirty_features_get_the_parameters_of_the_documentation():
    found = plan(30, 16, 1)
    assert str(found) == "CKKS, N=8192, q=44+41+41+41+51 bits; scale 41 bits; 9 rotations, 8 evaluation keys of 21 MB"
    assert found.parameters.total_bits == LIMIT_BITS[8192] == 218
    assert (found.features, found.outputs, len(found.stages)) == (30, 1, 3)
    assert found.needs.relinearisation
    assert not found.needs.encryption
    assert plan(30, 16, 1, protected=True).needs.encryption


@given(st.lists(st.integers(1, 200), min_size=2, max_size=4), st.integers(4, 14))
def test_every_plan_is_secure_and_steps_down_one_prime_per_stage(sizes, precision_bits):
    found = plan(*sizes, 3, precision_bits=precision_bits)
    assert found.checked() is found
    assert found.parameters.total_bits <= LIMIT_BITS[found.parameters.degree]
    assert found.parameters.special > max(found.parameters.data_primes)
    assert len(found.parameters.data_primes) == len(found.stages) + 1
    levels = list(found.levels())
    assert [limbs for _, limbs, _, _ in levels] == list(range(len(found.stages) + 1, 1, -1))
    assert all(abs(math.log2(after) - found.scale_bits) < 0.01 for *_, after in levels)
    assert found.parameters.data_primes[0] > 4 * found.reply_scale  # room for results up to 1, and their errors
    assert set(found.needs.steps) <= set(range(1, found.slots))


def test_plans_depend_on_shapes_alone():
    """Weights of any size give the same plan: it is public."""
    quiet = [linear(1, 16, 30, 1e-3), Square(), linear(2, 1, 16, 1e-3)]
    loud = [linear(3, 16, 30, 1e3), Square(), linear(4, 1, 16, 1e3)]
    plans = [
        plan_mlp(layers, sigmoid=True, protected=True, input_bound=1.0, precision_bits=10) for layers in (quiet, loud)
    ]
    assert plans[0] == plans[1]


def test_deeper_networks_take_larger_rings_and_end():
    assert plan(30, 16, 16, 1).parameters.degree == 16384
    deep = [layer for _ in range(9) for layer in (linear(1, 4, 4), Square())]
    assert plan_mlp(deep, sigmoid=False, protected=False, input_bound=1.0, precision_bits=10) is None
    wide = [linear(1, 20000, 2), Square()]
    assert plan_mlp(wide, sigmoid=False, protected=False, input_bound=1.0, precision_bits=10) is None


def test_more_weight_gives_a_larger_bound():
    found = plan(30, 16, 1)
    small = [np.full((16, 30), 1 / 60), np.full((1, 16), 1 / 32)]
    large = [np.full((16, 30), 1 / 30), np.full((1, 16), 1 / 16)]
    assert found.error_bound(small) < found.error_bound(large)


GOOD = plan(30, 16, 1)
FIRST = GOOD.stages[0]


def test_a_stranger_cannot_ask_for_gigabytes_of_keys():
    rings = msgspec.structs.replace(GOOD.parameters, degree=32768, primes=ntt_primes(32768, (44, 41, 41, 41, 51)))
    first = MatVec(inputs=1024, outputs=1024, copies=1, babies=1024, giants=1)
    stages = (first, Squaring(), MatVec(inputs=1024, outputs=1, copies=1, babies=1, giants=1))
    greedy = msgspec.structs.replace(GOOD, parameters=rings, stages=stages)
    assert greedy.key_bytes > 1 << 30
    with pytest.raises(ProtocolError, match="keys"):
        greedy.checked()


@pytest.mark.parametrize(
    "change",
    [
        {"stages": ()},
        {"stages": (Squaring(), *GOOD.stages[1:])},
        {"stages": GOOD.stages[:2]},
        {"stages": (*GOOD.stages, Squaring())},
        {"stages": (FIRST, Squaring(), MatVec(inputs=15, outputs=1, copies=1, babies=1, giants=1))},
        {"stages": (FIRST, Squaring(), MatVec(inputs=16, outputs=2, copies=2, babies=1, giants=1))},
        {"stages": (msgspec.structs.replace(FIRST, babies=3), *GOOD.stages[1:])},
        {"stages": (msgspec.structs.replace(FIRST, giants=4), *GOOD.stages[1:])},
        {"stages": (msgspec.structs.replace(FIRST, copies=1 << 14), *GOOD.stages[1:])},
        {"stages": (msgspec.structs.replace(FIRST, inputs=0), *GOOD.stages[1:])},
        {"stages": (msgspec.structs.replace(FIRST, inputs=-5), *GOOD.stages[1:])},
        {"stages": (msgspec.structs.replace(FIRST, inputs=1 << 40), *GOOD.stages[1:])},
        {"scale_bits": 10},
        {"scale_bits": 2000},
        {"input_bound": math.inf},
        {"input_bound": -1.0},
        {"parameters": msgspec.structs.replace(GOOD.parameters, degree=4096)},
    ],
)
def test_a_strangers_plan_is_checked(change):
    with pytest.raises(ProtocolError):
        msgspec.structs.replace(GOOD, **change).checked()
