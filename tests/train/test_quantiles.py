"""Intervals that hold about as many records each: from counts, exact or noisy, and through a job's preparation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.data.table import Table
from confide.dp.plan import PrivacyPlan
from confide.ideal import PlainSum
from confide.model.preprocess import Preprocess, Scale
from confide.secagg.masked import Masked
from confide.train.preparing import Preparing, PreparingSum, prepared
from confide.train.quantiles import cell_counts, edges_of, even_edges


def test_cells_are_even_and_values_on_an_edge_belong_above():
    values = np.array([0.0, 0.24, 0.25, 0.5, 0.99, 1.0, 7.0, -3.0, np.nan])
    assert cell_counts(values, 0.0, 1.0, 4).tolist() == [3, 1, 1, 3]


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=300),
    cells=st.integers(2, 64),
    bins=st.integers(2, 20),
)
def test_edges_rise_within_the_bounds_and_are_fewer_than_the_bins(values, cells, bins):
    edges = edges_of(cell_counts(np.array(values), 0.0, 1.0, cells), 0.0, 1.0, bins)
    assert len(edges) < bins
    assert all(one < other for one, other in zip((0.0, *edges), (*edges, 1.0), strict=True))
    assert set(edges) <= set(even_edges(0.0, 1.0, cells))


@given(seed=st.integers(0, 999), bins=st.integers(2, 20))
def test_no_interval_holds_more_than_a_share_and_a_cell(seed, bins):
    values = np.random.default_rng(seed).beta(0.7, 3.0, 2000)
    counts = cell_counts(values, 0.0, 1.0, 256)
    edges = edges_of(counts, 0.0, 1.0, bins)
    held = np.bincount(np.searchsorted(np.array(edges), values, side="right"), minlength=len(edges) + 1)
    assert held.max() <= 2000 / bins + counts.max()


def test_values_that_many_share_get_intervals_of_their_own():
    values = np.concatenate([np.zeros(900), np.random.default_rng(0).uniform(0.3, 1.0, 100)])
    edges = edges_of(cell_counts(values, 0.0, 1.0, 100), 0.0, 1.0, 11)
    assert edges[0] == pytest.approx(0.01)  # the zeros alone
    rest = np.bincount(np.searchsorted(np.array(edges[1:]), values[900:], side="right"))
    assert rest.max() <= 15  # the others as if the zeros were not there: about 10 each


def test_few_values_get_one_interval_each():
    values = np.repeat([0.05, 0.45, 0.95], [5, 80, 300])
    edges = edges_of(cell_counts(values, 0.0, 1.0, 10), 0.0, 1.0, 8)
    assert sorted(set(np.searchsorted(np.array(edges), values, side="right").tolist())) == list(range(len(set(values))))


def test_noise_moves_edges_and_nothing_else():
    rng = np.random.default_rng(3)
    values = rng.beta(2.0, 5.0, 20_000)
    counts = cell_counts(values, 0.0, 1.0, 256)
    edges = edges_of(counts + rng.normal(0, 20, 256), 0.0, 1.0, 16)
    held = np.bincount(np.searchsorted(np.array(edges), values, side="right"), minlength=16)
    assert (held > 20_000 / 16 * 0.6).all()
    assert (held < 20_000 / 16 * 1.6).all()
    nothing = edges_of(rng.normal(-5, 1, 64), 0.0, 1.0, 8)
    assert nothing == ()  # fewer than no records are none


# --- through a preparation --------------------------------------------------------------------------------------------

RULES = Preprocess(
    (
        Scale(name="dose", low=0.0, high=8.0, bins=even_edges(0.0, 8.0, 8), ordinal=True, outside="clip"),
        Scale(name="pulse", low=0.0, high=200.0, bins=even_edges(0.0, 200.0, 8), ordinal=True, missing="level"),
        Scale(name="own", low=0.0, high=9.0, bins=(1.0, 5.0), ordinal=True),
        Scale(name="filled", low=0.0, high=1.0, bins=even_edges(0.0, 1.0, 8), ordinal=True, missing=0.0),
    )
)


def party(n: int, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    pulse, filled = rng.normal(80, 20, n).clip(0, 200), rng.uniform(0.5, 1.0, n)
    pulse[::5], filled[::2] = np.nan, np.nan
    columns = {"dose": rng.exponential(1.0, n), "pulse": pulse, "own": rng.uniform(0, 9, n), "filled": filled}
    return Table(columns, rng.integers(0, 2, n))


PARTIES = {name: party(n, seed) for seed, (name, n) in enumerate({"a": 300, "b": 500, "c": 400}.items())}


def taken(aggregator, plan=None, classes=0):
    asked = PreparingSum(Preparing(RULES, classes=classes, bins=8, cells=64), 400, plan)
    return prepared(asked, PARTIES, aggregator=aggregator, quorum=3, rng=SystemRandomness())


def together(name: str) -> np.ndarray:
    return np.concatenate([table.columns[name] for table in PARTIES.values()])


@pytest.mark.parametrize("aggregator", [PlainSum(), Masked()], ids=["plain", "masked"])
def test_all_parties_together_decide_the_intervals(aggregator):
    dose, pulse, own, filled = taken(aggregator).preprocess.rules
    assert dose.bins == edges_of(cell_counts(together("dose"), 0.0, 8.0, 64), 0.0, 8.0, 8)
    assert pulse.bins == edges_of(cell_counts(together("pulse"), 0.0, 200.0, 64), 0.0, 200.0, 8)
    assert own.bins == (1.0, 5.0)  # what the schema names stays
    assert filled.bins[0] == pytest.approx(1 / 64)  # missing ones count as what stands for them


def plan_of(epsilon: float, share: float = 0.5, classes: int = 2) -> PrivacyPlan:
    portion = Preparing(RULES, classes=classes, bins=8, cells=64).portion(share)
    return PrivacyPlan.calibrate(
        epsilon=epsilon,
        delta=1e-4,
        clip_norm=0.5,
        rounds=5,
        length=9,
        silos=3,
        quorum=3,
        colluding=1,
        expected_records=1200,
        preparation=portion,
    )


def test_under_a_plan_the_counts_have_its_noise_and_one_record_moves_them_by_its_sensitivity():
    plan = plan_of(1.0)
    kind = plan.preparation
    assert kind is not None
    asked = PreparingSum(Preparing(RULES, classes=2, bins=8, cells=64), 400, plan)
    whole = PARTIES["a"]
    base = asked.contribution("a", whole.columns, whole.labels, SeededRandomness("a"))
    for row in range(0, len(whole.labels), 7):
        kept = np.arange(len(whole.labels)) != row
        columns = {name: values[kept] for name, values in whole.columns.items()}
        moved = base - asked.contribution("a", columns, whole.labels[kept], SeededRandomness("a"))
        assert 0 < np.linalg.norm(moved.astype(np.float64)) <= kind.grid
    again = asked.contribution("a", whole.columns, whole.labels, SeededRandomness("b"))
    assert np.std(kind.decode(base - again)) == pytest.approx(2**0.5 * kind.deviation(1), rel=0.2)


def test_little_noise_finds_the_intervals_that_no_noise_finds():
    exact, private = taken(PlainSum(), classes=2), taken(Masked(), plan_of(30.0), classes=2)
    for one, other in zip(exact.preprocess.rules, private.preprocess.rules, strict=True):
        assert np.abs(np.array(one.bins[:5]) - np.array(other.bins[:5])).max() <= 3 * (one.high - one.low) / 64
    assert private.class_weights == pytest.approx(exact.class_weights, rel=0.1)
