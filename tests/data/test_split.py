"""Splits: every record exactly once, the same under the same seed, and as uneven as asked for."""

import math

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.data.schema import Schema
from confide.data.split import alike, by_column, by_label, even, holdout
from confide.data.table import Table
from confide.errors import DataError
from confide.train.job import parse
from confide.train.run import load_data


def table_of(labels):
    """Return a table whose column "id" tells its records apart."""
    return Table({"id": np.arange(len(labels), dtype=np.float64)}, np.array(labels, np.int64))


def ids(table):
    return table.columns["id"].astype(int).tolist()


def names(count):
    return tuple(f"p{number}" for number in range(count))


def is_partition(table, parts):
    everything = sorted(record for part in parts for record in ids(part))
    kept_together = all(
        table.labels[record] == label
        for part in parts
        for record, label in zip(ids(part), part.labels.tolist(), strict=True)
    )
    return everything == list(range(table.n)) and kept_together


labels = st.lists(st.integers(0, 3), min_size=2, max_size=120)
seeds = st.integers(0, 2**40)


@given(labels, st.integers(1, 10), seeds)
def test_even_parts_hold_every_record_once_and_differ_by_one_at_most(values, count, seed):
    table = table_of(values)
    if table.n < count:
        with pytest.raises(DataError, match="take fewer parties"):
            even(table, names(count), seed=seed)
        return
    parts = even(table, names(count), seed=seed)
    assert tuple(parts) == names(count)
    assert is_partition(table, parts.values())
    sizes = [part.n for part in parts.values()]
    assert max(sizes) - min(sizes) <= 1


@given(labels, st.integers(1, 6), st.floats(1e-4, 1e6), seeds, st.integers(1, 12))
@settings(max_examples=200)
def test_parts_by_label_hold_every_record_once_and_enough_of_them(values, count, alpha, seed, at_least):
    table = table_of(values)
    if table.n < count * at_least:
        with pytest.raises(DataError, match="take fewer parties"):
            by_label(table, names(count), alpha=alpha, seed=seed, at_least=at_least)
        return
    parts = by_label(table, names(count), alpha=alpha, seed=seed, at_least=at_least)
    assert is_partition(table, parts.values())
    assert min(part.n for part in parts.values()) >= at_least


@given(labels, st.floats(0.01, 0.99), seeds)
def test_holdout_keeps_every_record_once_and_every_class_in_proportion(values, fraction, seed):
    table = table_of(values)
    kept, aside = holdout(table, fraction=fraction, seed=seed)
    assert is_partition(table, (kept, aside))
    assert kept.n >= 1
    assert aside.n == min(max(round(fraction * table.n), 1), table.n - 1)
    for label in set(values):
        share = fraction * values.count(label)
        assert abs((aside.labels == label).sum() - share) <= 1 + len(set(values)) / 2


@given(labels.filter(lambda values: len(values) >= 40), seeds)
def test_splits_repeat_under_their_seed(values, seed):
    table = table_of(values)
    for split in (
        lambda: even(table, names(3), seed=seed),
        lambda: by_label(table, names(3), alpha=0.5, seed=seed),
        lambda: dict(enumerate(holdout(table, fraction=0.3, seed=seed))),
    ):
        assert [ids(part) for part in split().values()] == [ids(part) for part in split().values()]


def test_other_seeds_give_other_splits():
    table = table_of([0, 1] * 50)
    assert ids(even(table, names(2), seed=1)["p0"]) != ids(even(table, names(2), seed=2)["p0"])
    assert ids(by_label(table, names(2), alpha=1, seed=1)["p0"]) != ids(
        by_label(table, names(2), alpha=1, seed=2)["p0"]
    )
    assert ids(holdout(table, fraction=0.2, seed=1)[1]) != ids(holdout(table, fraction=0.2, seed=2)[1])


def spread(alpha):
    """Return how far the parties' shares of class 1 lie apart, on average over 40 splits."""
    table = table_of([0] * 500 + [1] * 500)
    ranges = []
    for seed in range(40):
        shares = [part.labels.mean() for part in by_label(table, names(4), alpha=alpha, seed=seed).values()]
        ranges.append(max(shares) - min(shares))
    return np.mean(ranges)


def test_a_smaller_alpha_makes_the_parties_differ_more():
    assert spread(0.1) > 0.7
    assert 0.2 < spread(2.0) < 0.6
    assert spread(1000.0) < 0.1


def test_class_shares_have_the_moments_of_a_dirichlet():
    # A party's share of a class is Beta(alpha, 3 alpha) for 4 parties: for alpha = 1 mean 1/4 and variance 3/80.
    # Over 1500 seeds 4 standard errors are 0.02 and 0.0055 (false alarm 1.3e-4; the seeds are fixed: it cannot flake).
    table = table_of([0] * 400)
    shares = np.array([by_label(table, names(4), alpha=1, seed=seed, at_least=1)["p0"].n / 400 for seed in range(1500)])
    assert abs(shares.mean() - 0.25) < 0.02
    assert abs(shares.var() - 3 / 80) < 0.0055


@pytest.mark.parametrize("alpha", [0, -1, math.nan, math.inf])
def test_alphas_that_cannot_work_are_refused(alpha):
    with pytest.raises(DataError, match="Expected alpha="):
        by_label(table_of([0, 1] * 50), names(2), alpha=alpha, seed=1)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, math.nan])
def test_fractions_that_cannot_work_are_refused(fraction):
    with pytest.raises(DataError, match="Expected a fraction="):
        holdout(table_of([0, 1] * 5), fraction=fraction, seed=1)


def test_tables_and_parties_that_cannot_work_are_refused():
    with pytest.raises(DataError, match="at least 2 records, got 1"):
        holdout(table_of([0]), fraction=0.5, seed=1)
    for parties in ((), ("a", "a")):
        with pytest.raises(DataError, match="different names"):
            even(table_of([0, 1]), parties, seed=1)
    with pytest.raises(DataError, match="at_least=0"):
        by_label(table_of([0, 1]), ("a",), alpha=1, seed=1, at_least=0)


@given(labels, labels, st.integers(1, 6), seeds)
def test_records_are_shared_out_as_their_class_is(values, held, count, seed):
    parts = {name: table_of(values[number::count]) for number, name in enumerate(names(count))}
    table = table_of(held)
    found = alike(table, parts, seed=seed)
    assert list(found) == list(parts)
    assert is_partition(table, found.values())
    for label in set(held):
        holding = sum((part.labels == label).sum() for part in parts.values())
        for name, part in found.items():
            if holding:
                share = (parts[name].labels == label).sum() / holding
                assert abs((part.labels == label).sum() - share * held.count(label)) <= 1


def test_sharing_out_repeats_under_its_seed():
    parts = {name: table_of([0, 1] * 10) for name in names(2)}
    table = table_of([0, 1] * 20)
    one, same, other = (alike(table, parts, seed=seed) for seed in (1, 1, 2))
    assert [ids(part) for part in one.values()] == [ids(part) for part in same.values()]
    assert [ids(part) for part in one.values()] != [ids(part) for part in other.values()]


# --- by a column ------------------------------------------------------------------------------------------------------

WARDS = Schema.parse(
    {
        "label": {"name": "ill", "classes": ["no", "yes"]},
        "columns": {
            "age": {"type": "number", "low": 0, "high": 120},
            "sex": {"type": "category", "categories": ["f", "m"]},
        },
    }
)


def of_wards(*wards):
    n = len(wards)
    return pyarrow.table(
        {"age": list(range(n)), "sex": ["f", "m"] * (n // 2) + ["f"] * (n % 2), "ward": wards, "ill": ["no"] * n}
    )


def test_every_record_goes_to_the_party_that_its_column_names():
    parts = by_column(of_wards("b", "a", "b", "c"), WARDS, "ward", ["a", "b", "c"])
    assert {name: part.columns["age"].tolist() for name, part in parts.items()} == {"a": [1], "b": [0, 2], "c": [3]}
    assert all(part.identifiers == {} for part in parts.values())
    by_sex = by_column(of_wards("a", "a", "a"), WARDS, "sex", ["f", "m"])
    assert {name: part.n for name, part in by_sex.items()} == {"f": 2, "m": 1}


@pytest.mark.parametrize(
    ("wards", "parties", "text"),
    [
        (["a", "b", "secret"], ["a", "b"], r"1 of 3 records \(first in row 3\) name another"),
        (["a", "a"], ["a", "b"], "records of 'b' in column 'ward', there are none"),
        (["a", None], ["a", "b"], "say of every record whose it is; 1 of 2"),
        (["a", "b"], ["a", "a"], "different names"),
    ],
)
def test_records_of_nobody_and_parties_without_records_are_refused(wards, parties, text):
    with pytest.raises(DataError, match=text) as caught:
        by_column(of_wards(*wards), WARDS, "ward", parties)
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="a column 'bed'"):
        by_column(of_wards("a", "b"), WARDS, "bed", ["a", "b"])


def test_a_job_on_one_table_is_the_job_on_its_parts(tmp_path):
    rows = [(age, "fm"[age % 2], ["north", "south"][age % 3 == 0], ["no", "yes"][age > 40]) for age in range(90)]
    (tmp_path / "s.toml").write_text("""
[label]
name = "ill"
classes = ["no", "yes"]
[columns]
age = { type = "number", low = 0, high = 120 }
sex = { type = "category", categories = ["f", "m"] }
""")
    for name in ("all", "north", "south"):
        kept = [f"{age},{sex},{ward},{ill}" for age, sex, ward, ill in rows if name in ("all", ward)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["age,sex,ward,ill", *kept]))
    one = {"table": "all.csv", "split": "column", "split_by": "ward", "names": ["north", "south"]}
    two = {"tables": {"north": "north.csv", "south": "south.csv"}}
    found = [
        load_data(parse({"data": {"schema": "s.toml", **data}, "train": {"aggregate": "plain"}}, base=tmp_path))
        for data in (one, two)
    ]
    for silo, other in zip(found[0].silos, found[1].silos, strict=True):
        assert silo.name == other.name
        np.testing.assert_array_equal(silo.x, other.x)
        np.testing.assert_array_equal(silo.y, other.y)
