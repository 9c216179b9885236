"""Times of survival in a schema: read, checked, surveyed, written back, split and held out with their records."""

from __future__ import annotations

import numpy as np
import pytest

from confide.data.schema import Schema
from confide.data.split import aside, even, holdout
from confide.data.survey import survey
from confide.data.table import Table, check, read_table
from confide.data.write import csv_text
from confide.errors import DataError

TABLE = {
    "label": {
        "name": "died",
        "classes": ["no", "yes"],
        "time": {"name": "days", "unit": "days", "low": 10, "high": 1010},
    },
    "columns": {"age": {"type": "number", "low": 0, "high": 120}},
}
SCHEMA = Schema.parse(TABLE)
TEXT = "age,days,died\n60.5,10.0,no\n70.0,510.0,yes\n50.0,1010.0,no\n40.0,12.25,yes\n"


@pytest.fixture
def table(tmp_path):
    (tmp_path / "t.csv").write_text(TEXT)
    return read_table(tmp_path / "t.csv", SCHEMA)


def test_times_are_read_as_shares_of_their_range(table):
    assert table.times.values.tolist() == [10.0, 510.0, 1010.0, 12.25]
    assert table.times.shares.tolist() == [0.0, 0.5, 1.0, 0.00225]
    assert "510" not in repr(table.times)


def test_a_table_is_written_and_read_back_the_same(table, tmp_path):
    assert csv_text(table, SCHEMA) == TEXT
    np.savez(tmp_path / "t.npz", age=[60.5], days=[11], died=["no"])
    assert read_table(tmp_path / "t.npz", SCHEMA).times.values.tolist() == [11.0]


def test_times_go_with_their_records(table):
    parts = even(Table.concatenate([table, table]), ("a", "b"), seed=1)
    for part in (*parts.values(), *holdout(table, fraction=0.5, seed=1)):
        for age, days in zip(part.columns["age"], part.times.values, strict=True):
            assert days == table.times.values[table.columns["age"].tolist().index(age)]


def test_a_record_is_held_out_by_its_time_as_well():
    """Records that differ in the time alone go their own ways."""
    rows = "\n".join(f"60,{10 + day},no" for day in range(60))
    names, first, *rest = ["age", "days", "died"], *rows.split("\n")
    cells = np.array([row.split(",") for row in (first, *rest)], object)
    raw = {name: cells[:, place] for place, name in enumerate(names)}
    made = check(
        {"age": raw["age"].astype(float), "days": raw["days"].astype(float), "died": raw["died"]}, SCHEMA, where="t"
    )
    kept, tested = aside(made, fraction=0.5, seed=1)
    assert 10 < kept.n < 50
    assert kept.n + tested.n == 60


@pytest.mark.parametrize(
    ("cell", "column"), [("", "days"), ("1011", "days"), ("9.5", "days"), ("soon", "days"), ("nan", "days")]
)
def test_a_time_that_is_none_is_refused_and_found_by_the_survey(tmp_path, cell, column):
    (tmp_path / "t.csv").write_text(TEXT.replace("510.0", cell))
    with pytest.raises(DataError, match=column):
        read_table(tmp_path / "t.csv", SCHEMA)
    assert {one.where for one in survey(tmp_path / "t.csv", SCHEMA).problems} == {"days"}


def test_a_good_table_has_no_problems_and_an_absent_column_is_one(tmp_path):
    (tmp_path / "t.csv").write_text(TEXT)
    found = survey(tmp_path / "t.csv", SCHEMA)
    assert not found.problems
    assert [(column.name, column.kind) for column in found.columns] == [
        ("age", "number"),
        ("days", "number"),
        ("died", "label"),
    ]
    (tmp_path / "t.csv").write_text(TEXT.replace("days", "weeks"))
    with pytest.raises(DataError, match="column 'days'"):
        read_table(tmp_path / "t.csv", SCHEMA)
    assert survey(tmp_path / "t.csv", SCHEMA).problems


@pytest.mark.parametrize(
    ("time", "text"),
    [
        ({"name": "days", "low": 0}, "label.time.high is missing"),
        ({"name": "days", "low": 5, "high": 5}, "label.time.low is 5"),
        ({"high": 5}, "label.time.name is missing"),
        ({"name": "days", "high": 5, "missing": "low"}, "label.time.missing is unknown"),
        ({"name": "died", "high": 5}, "label.time.name is the label's own"),
        ({"name": "age", "high": 5}, "columns.age is the label"),
        ("days", "label.time"),
    ],
)
def test_a_time_that_says_too_little_is_refused(time, text):
    with pytest.raises(DataError, match=text):
        Schema.parse(TABLE | {"label": {**TABLE["label"], "time": time}})


def test_two_classes_are_needed():
    classes = ["no", "yes", "perhaps"]
    with pytest.raises(DataError, match="what is no event, and the event"):
        Schema.parse(TABLE | {"label": {**TABLE["label"], "classes": classes}})


def test_low_is_0_unless_it_is_stated():
    time = {"name": "days", "high": 100}
    assert Schema.parse(TABLE | {"label": {**TABLE["label"], "time": time}}).label.times[0].low == 0.0
