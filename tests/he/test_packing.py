"""Layouts of linear maps over slots: every one that is offered computes the map, whatever stands in the other slots."""

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he.cost import mapped, tuned
from confide.he.layouts import Entry, Layout, entries, layouts
from confide.he.packing import Packing, Rotations, parts, simulate
from confide.he.shapes import Convolution, Dense, LinearMap
from confide.he.speeds import NATIVE, SEAL

SLOTS = 1024


def a_map(shape, seed):
    stream = np.random.default_rng(seed)
    size = (shape.outputs, shape.inputs) if isinstance(shape, Dense) else (*shape.channels[::-1], *shape.kernel)
    return LinearMap(shape, stream.normal(size=size), np.zeros(shape.outputs))


def expected(linear, x):
    """The map by torch."""
    weight, given = torch.tensor(linear.weight), torch.tensor(x)
    if isinstance(linear.shape, Dense):
        return torch.nn.functional.linear(given, weight).numpy()
    shape = linear.shape
    top, left, bottom, right = shape.padding
    image = torch.nn.functional.pad(given.reshape(1, shape.channels[0], *shape.image), (left, right, top, bottom))
    return torch.nn.functional.conv2d(image, weight, stride=shape.stride).numpy().ravel()


def slots_of(labels, x, rubbish):
    return np.where(labels >= 0, x[np.maximum(labels, 0)], rubbish)


def check_entered(shape, seed, slots=SLOTS):
    """Check every way to send a first map's input; return the packings that results are left in."""
    linear, stream = a_map(shape, seed), np.random.default_rng(seed)
    x = stream.normal(size=shape.inputs)
    found = set()
    for entry, layout in entries(shape, slots):
        assert entry.checked(slots) is entry
        labels = layout.packed.checked(slots).labels(slots)
        results = parts(labels, layout.rotations.checked(slots).sums)
        total = sum(
            simulate(linear.at, layout.rotations, results, half, slots_of(half, x, 0.0)) for half in entry.labels(slots)
        )
        assert np.allclose(total[labels >= 0], expected(linear, x)[labels[labels >= 0]])
        found.add(layout.packed)
    assert found
    return found


def check_inner(shape, packed, seed, slots=SLOTS):
    linear, stream = a_map(shape, seed), np.random.default_rng(seed)
    x, before = stream.normal(size=shape.inputs), packed.labels(slots)
    given = slots_of(before, x, 1e3 * stream.normal(size=slots))
    found = set()
    for layout in layouts(shape, packed, slots):
        labels = layout.packed.checked(slots).labels(slots)
        results = parts(labels, layout.rotations.checked(slots).sums)
        total = simulate(linear.at, layout.rotations, results, before, given)
        assert np.allclose(total[labels >= 0], expected(linear, x)[labels[labels >= 0]])
        found.add(layout.packed)
    return found


def some(packings):
    """A few of many packings, always the same ones."""
    return sorted(packings, key=str)[::3]


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=3, max_size=3), st.integers(0, 1 << 30))
def test_dense_maps_in_a_row_are_the_matrices(sizes, seed):
    inputs, hidden, outputs = sizes
    for packed in some(check_entered(Dense(inputs=inputs, outputs=hidden), seed)):
        for after in some(check_inner(Dense(inputs=hidden, outputs=outputs), packed, seed)):
            check_inner(Dense(inputs=outputs, outputs=5), after, seed)


@settings(max_examples=4, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9)),
    st.tuples(st.integers(5, 9), st.integers(5, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(*[st.integers(0, 1)] * 4),
    st.integers(0, 1 << 30),
)
def test_convolutions_in_a_row_are_torchs(channels, image, kernel, stride, padding, seed):
    first = Convolution(channels=channels[:2], image=image, kernel=kernel, stride=stride, padding=padding)
    assert first.checked() is first
    for packed in some(check_entered(first, seed)):
        second = Convolution(channels=channels[1:], image=first.map, kernel=(1, 1), stride=stride)
        third = Convolution(channels=channels[1:], image=first.map, kernel=(3, 3), padding=(1, 1, 1, 1))
        for after in some(check_inner(second, packed, seed) | check_inner(third, packed, seed)):
            shape = second if after.size == second.outputs else third
            check_inner(Dense(inputs=shape.outputs, outputs=4), after, seed)


def test_strides_leave_gaps_that_hold_further_channels():
    first = Convolution(channels=(1, 8), image=(16, 16), kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    second = Convolution(channels=(8, 16), image=(8, 8), kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    packings = {packed.axes[1][0]: packed for packed in check_entered(first, 1)}.values()  # one of each multiplexing
    multiplexed = [after for packed in packings for after in check_inner(second, packed, 1) if len(after.axes) == 5]
    assert multiplexed
    assert {after.axes[1][0] for after in multiplexed} == {2, 4}  # from patches, and from whole images


def test_a_wrong_rotation_is_seen():
    """The negative control: one step of one axis wrong, and the product is another one."""
    shape = Dense(inputs=30, outputs=16)
    linear, x = a_map(shape, 1), np.random.default_rng(1).normal(size=30)
    entry, layout = next(
        (entry, layout) for entry, layout in entries(shape, SLOTS) if entry.halves == 1 and layout.rotations.babies
    )
    wrong = msgspec.structs.replace(layout.rotations, giant=(1, 1))
    labels = layout.packed.labels(SLOTS)
    (half,) = entry.labels(SLOTS)
    results = parts(labels, wrong.sums)
    total = simulate(linear.at, wrong, results, half, slots_of(half, x, 0.0))
    assert layout.rotations.giant[0] == 1 or not np.allclose(
        total[labels >= 0], expected(linear, x)[labels[labels >= 0]]
    )
    shifted = np.roll(slots_of(half, x, 0.0), 1)
    total = simulate(linear.at, layout.rotations, parts(labels, layout.rotations.sums), half, shifted)
    assert not np.allclose(total[labels >= 0], expected(linear, x)[labels[labels >= 0]])


def rotated(rotations):
    """Where each baby comes to stand if every one is its origin, rotated by the step from there."""
    places = []
    for origin, step in rotations.derived():
        places.append(step + (places[origin] if origin >= 0 else 0))
    return tuple(places)


def test_babies_come_from_their_neighbours_with_one_key_for_each_axis():
    rotations = Rotations(base=-7, babies=((3, 16), (2, 1)), giant=(4, 256), sums=((2, 1024), (2, 2048)))
    assert rotated(rotations) == rotations.offsets == (-7, -6, 9, 10, 25, 26)
    assert rotations.keys == {-7, 16, 1, 256, 1024, 2048}
    assert (rotations.before, rotations.after, rotations.products) == (6 + 3, 2, 24)


def test_hoisted_babies_come_from_the_first_of_their_line():
    rotations = Rotations(base=0, babies=((3, 16), (4, 1)), giant=(1, 1), sums=((4, 1024),), fold=64, hoisted=1)
    derived = list(rotations.derived())
    assert derived[:5] == [(-1, 0), (0, 1), (0, 2), (0, 3), (0, 16)]
    assert derived[5:9] == [(4, 1), (4, 2), (4, 3), (4, 16)]
    assert rotations.keys == {1, 2, 3, 16, 64, 1024, 2048, 3072}
    assert (rotations.before, rotations.after, rotations.depth) == (1 + 11, 3, 1 + 2 + 1)


AXES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 40)), max_size=3).map(tuple)


@given(st.sampled_from([0, -3]), AXES, st.integers(0, 3))
def test_every_form_of_babies_makes_all_of_them_from_what_was_made_before(base, babies, hoisted):
    rotations = Rotations(base=base, babies=babies, giant=(1, 1), sums=(), hoisted=min(hoisted, len(babies)))
    assert rotated(rotations) == rotations.offsets
    derived = list(rotations.derived())
    assert {step for _, step in derived} - {0} == rotations.baby_keys
    assert rotations.origins == len({origin for origin, step in derived if step})
    depths: list[int] = []
    for origin, step in derived:
        depths.append((step != 0) + (depths[origin] if origin >= 0 else 0))
    assert rotations.depth == max(depths)


@settings(max_examples=25, deadline=None)
@given(AXES, st.integers(0, 6), st.integers(1, 7), st.booleans())
def test_tuned_rotations_are_the_same_rotations(babies, doublings, limbs, native):
    axes = tuple(axis for axis in babies if axis[0] > 1)
    sums = tuple((2, 8 << place) for place in range(doublings))
    chained = Rotations(base=0, babies=axes, giant=(3, 7), sums=sums)
    for before, after in ((limbs, limbs), (limbs, max(1, limbs - 1))):
        _, found = tuned(NATIVE if native else SEAL, 8192, chained, (before, after))
        assert found.offsets == chained.offsets
        assert found.giant == chained.giant
        results, inputs = np.arange(SLOTS) % 8, np.arange(SLOTS)
        x = np.random.default_rng(limbs).normal(size=SLOTS)
        one, other = (simulate(lambda o, i: o + 0.1 * i, form, results, inputs, x) for form in (found, chained))
        assert np.allclose(one, other)
        assert native or found == chained


def test_hoisting_takes_keys_and_saves_time_on_the_machine_that_does_it():
    chained = Rotations(base=0, babies=((6, 14), (6, 1)), giant=(8, 256), sums=((2, 4096), (2, 8192)))
    price, found = tuned(NATIVE, 16384, chained, (4, 2))
    assert found.hoisted
    assert len(found.keys) > len(chained.keys)
    assert mapped(NATIVE, 16384, found, (4, 2)) < price < mapped(NATIVE, 16384, chained, (4, 2))
    assert tuned(SEAL, 16384, chained, (4, 2))[1] == chained


@pytest.mark.parametrize(
    "change",
    [
        {"axes": ((16, 1), (16, 16), (16, 16))},
        {"axes": ()},
        {"axes": ((1 << 20, 1),)},
        {"period": 16},
        {"period": 4096},
        {"copies": 0},
        {"copies": 100},
        {"size": 0},
        {"size": 1000},
        {"axes": ((1 << 14, 0), (1 << 14, 0)), "size": 1 << 28},  # gigabytes of labels for one slot
    ],
)
def test_a_strangers_packing_is_checked(change):
    good = Packing(size=30, axes=((32, 2),), period=64, copies=4)
    assert good.checked(SLOTS) is good
    with pytest.raises(ProtocolError):
        msgspec.structs.replace(good, **change).checked(SLOTS)


@pytest.mark.parametrize(
    "change",
    [
        {"sums": ((2, 0),)},
        {"sums": ((2, 5000),)},
        {"sums": ((3, 512),)},
        {"sums": ((2, 1),) * 99},
        {"sums": ((1 << 14, 0),) * 2},
        {"hoisted": 2},
        {"hoisted": -1},
        {"fold": -1},
        {"fold": SLOTS},
        {"base": 5000},
        {"babies": ((0, 1),)},
        {"babies": ((4096, 1), (4096, 1))},
        {"babies": ((1, 1),) * 9},
        {"giant": (1 << 20, 1)},
    ],
)
def test_a_strangers_rotations_are_checked(change):
    good = Rotations(base=0, babies=((4, 1),), giant=(2, 4), sums=((2, 8),))
    assert good.checked(SLOTS) is good
    with pytest.raises(ProtocolError):
        msgspec.structs.replace(good, **change).checked(SLOTS)


@pytest.mark.parametrize("change", [{"halves": 3}, {"copies": 0}, {"copies": 999}, {"features": 0}, {"shift": -1}])
def test_a_strangers_entry_is_checked(change):
    good, layout = next(iter(entries(Dense(inputs=30, outputs=4), SLOTS)))
    assert isinstance(layout, Layout)
    assert isinstance(good, Entry)
    with pytest.raises(ProtocolError):
        msgspec.structs.replace(good, **change).checked(SLOTS)


def test_one_copy_over_all_slots_is_an_entry_that_clients_take():
    shape = Convolution(channels=(3, 32), image=(16, 16), kernel=(4, 4), stride=(2, 2), padding=(1, 1, 1, 1))
    for entry, _ in entries(shape, 32 * 64):  # as many channels as there are maps of slots
        assert entry.checked(32 * 64) is entry
