"""A draft says names and types and nothing else; filled in, it is a schema."""

from __future__ import annotations

import datetime
import sqlite3
import tomllib

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from confide.cli import app
from confide.data.describe import draft, kinds_of, numbers_of
from confide.data.schema import Schema
from confide.errors import DataError, UsageError

FRAME = {
    "amount": [1999.125, 2.5, None],
    "visits": [3, 4, 5],
    "channel": ["secret shop", "secret web", None],
    "booked": [datetime.datetime(2024, 2, 29), None, None],
    "member": [True, False, True],
    'odd "name"': ["a", "b", "c"],
    "fraud": ["no", "no", "yes"],
}


def places(folder):
    table = pyarrow.table(FRAME)
    pyarrow.parquet.write_table(table, folder / "bank.parquet")
    table.to_pandas().to_csv(folder / "bank.csv", index=False)
    connection = sqlite3.connect(folder / "bank.db")
    table.to_pandas().to_sql("t", connection)
    connection.close()
    (folder / "bank.toml").write_text(f'url = "sqlite:///{folder}/bank.db"\nquery = "SELECT * FROM t"\n')
    arrays = {name: np.array([value or 0 for value in values]) for name, values in FRAME.items() if name != "booked"}
    np.savez(folder / "bank.npz", **arrays)
    return [table, pandas.DataFrame(FRAME), *(folder / f"bank.{kind}" for kind in ("parquet", "csv", "toml", "npz"))]


def test_no_value_is_in_a_draft_whatever_the_source(tmp_path):
    for place in places(tmp_path):
        text = draft(place, label="fraud")
        for value in ("1999", "125", "2.5", "secret", "2024-02", '"yes"', '"no"'):
            assert value not in text
        found = tomllib.loads(text)
        assert found["label"] == {"name": "fraud", "classes": []}
        assert set(FRAME) - {"fraud", "booked"} <= set(found["columns"])
        assert found["columns"]["amount"]["type"] == "number"
        assert found["columns"]["channel"] == {"type": "category", "categories": []}
        with pytest.raises(DataError):  # nobody trains on a draft
            Schema.read(text)


def test_kinds_are_those_of_the_table(tmp_path):
    table, _, _, comma, *_ = places(tmp_path)
    kinds = dict(zip(FRAME, ["number", "whole number", "text", "date", "yes or no", "text", "text"], strict=True))
    assert kinds_of(table) == kinds
    texts = {"whole number": "number", "yes or no": "text"}  # a CSV file has cells only
    assert kinds_of(comma) == {name: texts.get(kind, kind) for name, kind in kinds.items()}


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=20))
def test_other_values_give_the_same_draft(values):
    assert draft(pyarrow.table({"x": values})) == draft(pyarrow.table({"x": [0.5, 1.5]}))


def test_columns_are_called_as_a_source_file_says(tmp_path):
    (tmp_path / "raw.csv").write_text("betrag;am\n1,5;29.02.2024\n")
    source = 'file = "raw.csv"\nseparator = ";"\ndecimal = ","\n[columns]\n'
    source += 'amount = { from = "betrag" }\nbooked = { from = "am", format = "%d.%m.%Y" }\n'
    (tmp_path / "s.toml").write_text(source)
    assert kinds_of(tmp_path / "s.toml") == {"amount": "number", "booked": "date"}


def test_a_file_without_a_header_is_refused_before_its_first_record_is_shown(tmp_path):
    (tmp_path / "raw.csv").write_text("41.5,170,secret\n42,171,other\n")
    with pytest.raises(DataError, match="Expected a header") as caught:
        draft(tmp_path / "raw.csv")
    assert "41" not in str(caught.value)


def lines_of(folder, text):
    """What does not come from the noise: a draft without bounds, for one said column of numbers."""
    (folder / "t.csv").write_text(text)
    return draft(folder / "t.csv", numbers=["age"])


def test_no_cell_decides_the_kind_of_a_column_where_somebody_says_it(tmp_path):
    rows = "age,sum\n1,2\n3,4\n"
    for record in ("x,5\n", "5,x\n", ",\n", "2024-01-01,2024-01-01\n", "1,2,3\n"):
        assert lines_of(tmp_path, rows) == lines_of(tmp_path, rows + record)
    assert kinds_of(tmp_path / "t.csv", numbers=["age"]) == {"age": "number", "sum": "open"}


def test_what_is_no_number_counts_for_nothing(tmp_path):
    (tmp_path / "t.csv").write_text("age,sum\n1,2\nx,4\n5\n,6\n")
    found = numbers_of(tmp_path / "t.csv", ["age"])["age"]
    assert found[~np.isnan(found)].tolist() == [1]


def test_bounds_of_a_table_without_types_need_its_numbers_said(tmp_path):
    *_, comma, query, _ = places(tmp_path)
    for place in (comma, query):
        told = CliRunner().invoke(app, ["data", "describe", str(place), "--epsilon", "1"])
        assert isinstance(told.exception, UsageError)
        assert "--numbers" in str(told.exception)
        done = CliRunner().invoke(
            app, ["data", "describe", str(place), "--epsilon", "1", "--numbers", "amount, visits"]
        )
        assert done.exit_code == 0, done.output
    for wrong in ("amount,amount", "amonut", "fraud"):
        words = ["data", "describe", str(comma), "--label", "fraud", "--epsilon", "1", "--numbers", wrong]
        assert isinstance(CliRunner().invoke(app, words).exception, UsageError)
    assert isinstance(
        CliRunner().invoke(app, ["data", "describe", str(comma), "--numbers", "amount"]).exception, UsageError
    )
