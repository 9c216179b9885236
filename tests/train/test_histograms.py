"""Sums of gradients and routes, in C++ and in numpy, against loops over Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import UsageError
from confide.train import histograms as seam
from confide.train.histograms import histograms, route

ENGINES = [
    None,
    pytest.param(seam._native, marks=pytest.mark.skipif(seam._native is None, reason="installed without a compiler")),
]
LARGEST = 2**31 - 1


@pytest.fixture(params=ENGINES, ids=["numpy", "native"])
def engine(request, monkeypatch):
    """Run the seam on one engine."""
    monkeypatch.setattr(seam, "_native", request.param)


def drawn(seed: int, n: int, levels: list[int], slots: int):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, level, n) for level in levels], axis=1).astype(np.uint8)
    gradients = rng.integers(-LARGEST, LARGEST, (n, 2)).astype(np.int32)
    starts = np.array([0, *np.cumsum(levels)], np.int64)
    return codes, gradients, rng.integers(0, slots, n).astype(np.int32), starts


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(0, 60),
    levels=st.lists(st.integers(1, 256), min_size=1, max_size=12),
    slots=st.integers(1, 5),
)
@pytest.mark.parametrize("native", [False, True])
def test_sums_are_those_of_a_loop(native, seed, n, levels, slots):
    if native and seam._native is None:
        pytest.skip("installed without a compiler")
    codes, gradients, at, starts = drawn(seed, n, levels, slots)
    wanted = np.random.default_rng(seed + 1).permutation(slots).astype(np.int32) - 1  # one is not wanted
    expected = np.zeros((slots - 1, int(starts[-1]), 2), object)
    for row in range(n):
        if (to := int(wanted[at[row]])) >= 0:
            for column in range(len(levels)):
                expected[to, int(starts[column]) + int(codes[row, column])] += gradients[row].astype(object)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seam, "_native", seam._native if native else None)
        found = histograms(codes, gradients, at, wanted, starts)
    assert found.dtype == np.int64
    assert (found == expected.astype(np.int64)).all()


@pytest.mark.usefixtures("engine")
def test_two_threads_find_what_one_finds():
    codes, gradients, at, starts = drawn(3, 70_000, [256] * 17, 3)
    wanted = np.array([1, -1, 0], np.int32)
    found = histograms(codes, gradients, at, wanted, starts)
    for slot, to in ((0, 1), (2, 0)):
        own = at == slot
        for column in (0, 8, 16):
            for part in (0, 1):
                sums = np.zeros(256, np.int64)
                np.add.at(sums, codes[own, column], gradients[own, part].astype(np.int64))
                assert (found[to, starts[column] : starts[column + 1], part] == sums).all()


@pytest.mark.usefixtures("engine")
@given(seed=st.integers(0, 2**31), n=st.integers(0, 60), columns=st.integers(1, 5), slots=st.integers(1, 4))
def test_records_go_where_their_code_says(seed, n, columns, slots):
    codes, _, at, _ = drawn(seed, n, [256] * columns, slots)
    rng = np.random.default_rng(seed + 1)
    column = rng.integers(-1, columns, slots).astype(np.int32)
    left = rng.integers(0, 2, (slots, 256)).astype(np.uint8)
    expected = [
        2 * slot + (column[slot] >= 0 and not left[slot, row[column[slot]]])
        for slot, row in zip(at.tolist(), codes.tolist(), strict=True)
    ]
    assert route(codes, at, column, left).tolist() == expected


@pytest.mark.usefixtures("engine")
class TestRefused:
    def test_slots_that_are_not_there(self):
        codes, gradients, at, starts = drawn(0, 9, [4, 4], 2)
        for wrong in (np.full(9, 2, np.int32), np.full(9, -1, np.int32)):
            with pytest.raises(UsageError, match="slots"):
                histograms(codes, gradients, wrong, np.zeros(2, np.int32), starts)
            with pytest.raises(UsageError, match="slots"):
                route(codes, wrong, np.zeros(2, np.int32), np.zeros((2, 256), np.uint8))
        with pytest.raises(UsageError, match="columns that there are"):
            route(codes, at, np.full(2, 2, np.int32), np.zeros((2, 256), np.uint8))

    def test_arrays_that_do_not_fit(self):
        codes, gradients, at, starts = drawn(0, 9, [4, 4], 2)
        wanted = np.zeros(2, np.int32)
        for change in ({"gradients": gradients[:8]}, {"slots": at[:8]}, {"starts": starts[:2]}):
            given_ = {"codes": codes, "gradients": gradients, "slots": at, "wanted": wanted, "starts": starts} | change
            with pytest.raises(UsageError, match="one pair of int32 gradients"):
                histograms(**given_)
        with pytest.raises(UsageError, match="256 codes"):
            route(codes, at, wanted, np.zeros((2, 255), np.uint8))
