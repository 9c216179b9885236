"""A table that is written and read again is the same table, bit for bit."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.data.schema import MISSING_MARKERS, Schema
from confide.data.sets import SETS, load_set, schema_text
from confide.data.table import check, read_table
from confide.data.write import csv_text
from confide.errors import DataError

SCHEMA = Schema.parse(
    {
        "label": {"name": "ill", "classes": ["no", {"name": "yes", "values": ["1", "2"]}]},
        "columns": {
            "a, b": {"type": "number", "low": -1e300, "high": 1e300, "missing": 0.0},
            "pain": {"type": "category", "categories": ['so "so"', "x,y", "line\nbreak", "é"], "missing": "level"},
        },
    }
)
numbers = st.floats(-1e300, 1e300) | st.just(np.nan)
pains = st.sampled_from(['so "so"', "x,y", "line\nbreak", "é", ""])


@given(st.lists(st.tuples(numbers, pains, st.sampled_from(["no", "1", "2"])), min_size=1, max_size=20))
def test_whatever_a_table_holds_comes_back(tmp_path_factory, rows):
    raw = {
        "a, b": np.array([row[0] for row in rows]),
        "pain": np.array([row[1] for row in rows], object),
        "ill": np.array([row[2] for row in rows], object),
    }
    table = check(raw, SCHEMA, where="here")
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    path.write_text(csv_text(table, SCHEMA), newline="")
    again = read_table(path, SCHEMA)
    assert again.columns["a, b"].tobytes() == table.columns["a, b"].tobytes()
    assert again.columns["pain"].tolist() == table.columns["pain"].tolist()
    assert again.labels.tolist() == table.labels.tolist()


def test_fewer_digits_would_be_noticed():
    """The control: six digits, as `%g` writes them, are not the same number."""
    table = check(
        {"a, b": np.array([1 / 3]), "pain": np.array(["é"], object), "ill": np.array(["no"], object)},
        SCHEMA,
        where="here",
    )
    cell = next(csv.DictReader(io.StringIO(csv_text(table, SCHEMA))))["a, b"]
    assert float(cell) == 1 / 3
    assert float(f"{1 / 3:g}") != 1 / 3


def test_missing_values_are_empty_cells():
    raw = {"a, b": np.array([np.nan]), "pain": np.array([""], object), "ill": np.array(["2"], object)}
    assert csv_text(check(raw, SCHEMA, where="here"), SCHEMA).splitlines()[1] == ",,1"
    assert "" in MISSING_MARKERS


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_shipped_set_s_schema_file_is_its_schema(name, tmp_path):
    (tmp_path / "schema.toml").write_text(schema_text(name))
    assert Schema.load(tmp_path / "schema.toml") == load_set(name)[0]


def test_a_set_that_is_not_shipped_has_no_schema():
    with pytest.raises(DataError, match="did you mean"):
        schema_text("breast-canser")
