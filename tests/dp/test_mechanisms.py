"""Sensitivity audit: neighbours replayed through the real clipping, wild rows included; what must fail does fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.dp.mechanisms import LARGEST_GRID, clipped_sum, count_step, counted, default_grid
from confide.errors import UsageError

CLIP = 0.5
GRID = 512
WILD = (np.nan, np.inf, -np.inf, 0.0, 1e308, -1e308, 5e-324, 1e-200, 1e200, CLIP, -CLIP, 1.0)


def ours(rows: np.ndarray) -> np.ndarray:
    return clipped_sum(rows, clip_norm=CLIP, grid=GRID).total


def without_clipping(rows: np.ndarray) -> np.ndarray:
    return np.rint(np.nan_to_num(rows) * (GRID / CLIP)).sum(axis=0)


def rounded_after_summing(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.rint((rows * np.minimum(1, CLIP / np.maximum(norms, 1e-300))).sum(axis=0) * (GRID / CLIP))


def mean_by_the_data_s_own_count(rows: np.ndarray) -> np.ndarray:
    return ours(rows) / max(1, len(rows)) * 20


def largest_distance(mechanism, *, wild: bool, pairs: int = 240) -> float:
    """Replay `pairs` neighbours: data with and without one record, sizes 0 to 30, some of one record alone."""
    draw = np.random.Generator(np.random.PCG64(7))
    worst = 0.0
    for number in range(pairs):
        count = (0, 1, 30)[number % 3]
        length = (1, 3, 31, 100)[number % 4]
        scale = 10.0 ** draw.uniform(-3, 3, (count + 1, 1))
        rows = draw.normal(0, 1, (count + 1, length)) * scale
        if wild and number % 2:
            where = draw.random(rows.shape) < 0.3
            rows[where] = draw.choice(WILD, int(where.sum()))
        with_it, without = mechanism(rows), mechanism(rows[:-1])
        worst = max(worst, float(np.sqrt(((with_it - without).astype(np.float64) ** 2).sum())))
    return worst


def test_no_record_moves_the_sum_by_more_than_the_grid():
    assert largest_distance(ours, wild=True) <= GRID
    assert largest_distance(ours, wild=False) > 0.9 * GRID  # the audit does reach the bound


@pytest.mark.parametrize("wrong", [without_clipping, rounded_after_summing, mean_by_the_data_s_own_count])
def test_the_audit_catches_wrong_mechanisms(wrong):
    assert largest_distance(wrong, wild=False) > GRID


@given(
    length=st.integers(1, 60),
    exponent=st.integers(0, 20),
    clip_norm=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**32),
)
def test_each_integer_row_has_norm_at_most_the_grid_exactly(length, exponent, clip_norm, seed):
    grid = math.isqrt(length) + 1 + (1 << exponent)
    draw = np.random.Generator(np.random.PCG64(seed))
    row = draw.normal(0, 1, (1, length)) * 10.0 ** draw.uniform(-5, 5) * clip_norm
    total = clipped_sum(row, clip_norm=clip_norm, grid=grid).total
    assert sum(int(value) ** 2 for value in total) <= grid**2


def test_rounding_all_entries_up_still_fits():
    # 100 equal entries whose grid value ends in .5 and more: the worst case that the margin sqrt(d) / 2 is for
    for grid in range(20, 400):
        total = clipped_sum(np.full((1, 100), 9.0), clip_norm=1.0, grid=grid).total
        assert int((total**2).sum()) <= grid**2


def test_the_norm_check_in_integers_holds_even_if_the_floats_were_wrong(monkeypatch):
    monkeypatch.setattr("confide.dp.mechanisms._SHRINK", 1.5)
    clipped = clipped_sum(np.full((3, 4), 9.0), clip_norm=1.0, grid=100)
    assert not clipped.total.any()


def test_short_records_pass_unchanged_but_for_the_grid():
    rows = np.array([[0.25, -0.125, 0.0], [0.0, 0.0, 0.3]])
    clipped = clipped_sum(rows, clip_norm=CLIP, grid=1 << 20)
    assert clipped.total / (1 << 20) * CLIP == pytest.approx(rows.sum(axis=0), abs=1e-6)


def test_long_records_keep_their_direction():
    total = clipped_sum(np.array([[3e300, -4e300]]), clip_norm=1.0, grid=1000).total
    assert np.allclose(total, [600, -800], atol=1)


def test_wild_and_zero_rows_count_as_zero_and_are_counted_silently():
    rows = np.array([[np.nan, 1.0], [np.inf, 0.0], [0.0, 0.0], [0.3, 0.4], [-np.inf, np.nan]])
    clipped = clipped_sum(rows, clip_norm=CLIP, grid=GRID)
    assert clipped.ignored == 4
    assert np.array_equal(clipped.total, ours(rows[3:4]))


def test_no_records_give_zero():
    clipped = clipped_sum(np.empty((0, 5)), clip_norm=CLIP, grid=GRID)
    assert clipped.total.tolist() == [0] * 5
    assert clipped.total.dtype == np.int64
    assert clipped.ignored == 0


def test_blocks_do_not_change_the_sum():
    rows = np.random.Generator(np.random.PCG64(1)).normal(0, 1, (700, 3000))
    grid = default_grid(3000)
    whole = clipped_sum(rows, clip_norm=1.0, grid=grid).total  # 3 blocks
    parts = sum(clipped_sum(rows[at : at + 50], clip_norm=1.0, grid=grid).total for at in range(0, 700, 50))
    assert np.array_equal(whole, parts)


def test_a_clipped_sum_shows_nothing_of_itself():
    clipped = clipped_sum(np.full((3, 2), 0.1), clip_norm=CLIP, grid=GRID)
    assert repr(clipped) == "Clipped()"


@pytest.mark.parametrize("length", [1, 31, 650, 40_000, 1_000_000])
def test_the_default_grid_costs_at_most_one_percent(length):
    grid = default_grid(length)
    assert grid & (grid - 1) == 0
    assert grid >= 50 * math.sqrt(length) > grid / 2
    assert math.sqrt(length) / (2 * grid) <= 0.01


@pytest.mark.parametrize(
    ("rows", "clip_norm", "grid", "text"),
    [
        (np.zeros((2, 0)), 1.0, 64, "rows of shape"),
        (np.zeros(4), 1.0, 64, "rows of shape"),
        (np.zeros((2, 2), np.float32), 1.0, 64, "rows of shape"),
        (np.zeros((2, 2)), 0.0, 64, "clip_norm"),
        (np.zeros((2, 2)), math.inf, 64, "clip_norm"),
        (np.zeros((2, 2)), math.nan, 64, "clip_norm"),
        (np.zeros((2, 100)), 1.0, 9, "grid=9"),
        (np.zeros((2, 2)), 1.0, 1 << 31, "grid="),
    ],
)
def test_misuse_is_refused_by_shape_alone(rows, clip_norm, grid, text):
    with pytest.raises(UsageError, match=text):
        clipped_sum(rows, clip_norm=clip_norm, grid=grid)


@pytest.mark.parametrize("length", [7, 31, 9000])
def test_a_rows_integers_do_not_depend_on_the_number_of_rows(length):
    rng = np.random.default_rng(length)
    for _ in range(8):
        row = rng.normal(size=length)

        def rows(n, entry, row=row):
            return clipped_sum(np.tile([*row[:-1], entry], (n, 1)), clip_norm=CLIP, grid=LARGEST_GRID).total

        low, high = 0.3, 1.0
        start = rows(1, low)[-1]
        while low < (middle := (low + high) / 2) < high:  # to where the last bit of the norm decides a rounding
            low, high = (middle, high) if rows(1, middle)[-1] == start else (low, middle)
        for ulp in range(-10, 11):
            entry = low + ulp * np.spacing(low)
            assert (rows(2, entry) == 2 * rows(1, entry)).all()


@given(st.integers(1, 6), st.integers(0, 30))
def test_all_marks_of_a_record_together_have_norm_at_most_the_grid_exactly(marks, exponent):
    grid = max(marks, 2**exponent)
    step = count_step(marks, grid)
    assert marks * step**2 <= grid**2 < marks * (step + 1) ** 2


@given(st.lists(st.permutations(range(5)), max_size=20), st.permutations(range(5)), st.integers(1, 4))
def test_counting_moves_by_the_marks_of_one_record(records, one, marks):
    def cells(rows):
        return np.array(rows, np.int64).reshape(-1, 5)[:, :marks].copy()

    less = counted(cells(records), length=5, grid=512)
    more = counted(cells([*records, one]), length=5, grid=512)
    step = count_step(marks, 512)
    expected = [step * sum(cell in row[:marks] for row in records) for cell in range(5)]
    assert less.total.tolist() == expected
    moved = (more.total - less.total).tolist()
    assert moved == [step if cell in one[:marks] else 0 for cell in range(5)]
    assert (less.sensitivity, less.clip_norm) == (512, 512 / step)


@pytest.mark.parametrize(
    ("cells", "grid", "text"),
    [
        ([[1, 1]], 64, "different cells from 0 to 4"),  # twice one cell would move it by twice the step
        ([[0, 5]], 64, "different cells"),
        ([[-1, 0]], 64, "different cells"),
        ([[0, 1]], 1, "grid=1 from sqrt"),
        ([[0, 1]], 2**32, r"to 2\^30"),
        ([0, 1], 64, r"of shape \(n, marks\)"),
        ([[], []], 64, r"of shape \(n, marks\)"),
        ([[0.0, 1.0]], 64, "int64 cells"),
    ],
)
def test_cells_that_cannot_be_counted_are_refused(cells, grid, text):
    found = np.array(cells)
    with pytest.raises(UsageError, match=text):
        counted(found.astype(np.int64) if found.dtype.kind != "f" or not found.size else found, length=5, grid=grid)
