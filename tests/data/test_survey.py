"""A survey against tables of every kind, with counts made by hand over the csv module as the oracle."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.data.schema import Schema
from confide.data.survey import MOST_NAMED, survey
from confide.data.table import read_table
from confide.errors import DataError

SCHEMA = Schema.read("""
[label]
name = "ill"
classes = [{ name = "no", values = ["0", "n"] }, { name = "yes", values = ["1"] }]
[columns]
age = { type = "number", unit = "years", low = 0, high = 120 }
height = { type = "number", unit = "cm", low = 30, high = 250, missing = "middle", outside = "clip" }
sex = { type = "category", categories = ["f", "m"] }
stage = { type = "category", categories = ["I", "II"], missing = "level" }
""")
HEADER = ["age", "height", "sex", "stage", "ill"]
GOOD = [
    ["41.5", "170", "f", "I", "0"],
    ["67", "181", "m", "II", "1"],
    ["30", "160", "m", "", "n"],
    ["55", "", "f", "I", "1"],
]


def written(folder, rows, header=None):
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER if header is None else header, *rows])
    return path


def found(folder, rows, header=None):
    return survey(written(folder, rows, header), SCHEMA)


def changed(row, column, cell):
    """Return good rows with one cell changed."""
    return [
        [cell if (at, name) == (row, column) else old for name, old in zip(HEADER, cells, strict=True)]
        for at, cells in enumerate(GOOD, 1)
    ]


def test_a_good_table_has_no_findings(tmp_path):
    seen = found(tmp_path, [[*row, "x"] for row in GOOD], [*HEADER, "ward"])
    assert seen.findings == ()
    assert seen.records == 4
    assert seen.classes == {"no": 2, "yes": 2}
    assert seen.ignored == ("ward",)
    assert [(column.name, column.kind, column.missing) for column in seen.columns] == [
        ("age", "number", 0),
        ("height", "number", 1),
        ("sex", "category", 0),
        ("stage", "category", 1),
        ("ill", "label", 0),
    ]


@pytest.mark.parametrize(
    ("rows", "where", "text", "row"),
    [
        (changed(2, "age", "old"), "age", "hold no number; write a number", 2),
        (changed(2, "age", "41,5"), "age", "decimal comma", 2),
        (changed(3, "age", "inf"), "age", "hold no number", 3),
        (changed(3, "age", "1_0"), "age", "hold no number", 3),
        (changed(3, "age", "NA"), "age", "cells are empty, and the schema refuses", 3),
        (changed(3, "age", "-1"), "age", "outside of 0 to 120 years; correct them", 3),
        (changed(1, "age", "120.01"), "age", "outside of 0 to 120 years", 1),
        (changed(4, "sex", "x"), "sex", "hold 1 categories that the schema does not know", 4),
        (changed(4, "sex", "F"), "sex", "differ in upper and lower case alone", 4),
        (changed(4, "sex", "?"), "sex", "cells are empty", 4),
        (changed(4, "stage", "III"), "stage", "hold 1 categories", 4),
        (changed(1, "ill", "2"), "ill", "hold 1 classes that the schema does not know", 1),
        (changed(1, "ill", ""), "ill", "cells are empty", 1),
    ],
)
def test_each_problem_by_itself(tmp_path, rows, where, text, row):
    seen = found(tmp_path, rows)
    [problem] = seen.problems
    assert (problem.where, problem.count, problem.rows) == (where, 1, (row,))
    assert text in problem.text
    with pytest.raises(DataError):
        read_table(tmp_path / "table.csv", SCHEMA)


@pytest.mark.parametrize("gone", HEADER)
def test_a_missing_column_is_named_with_the_nearest(tmp_path, gone):
    header = [f"{name}s" if name == gone else name for name in HEADER]
    [problem] = found(tmp_path, GOOD, header).problems
    assert problem.where == gone
    assert f'did you mean "{gone}s"' in problem.text


def test_many_problems_are_found_at_once_and_rows_are_those_of_the_file(tmp_path):
    rows = [
        ["1", "2"],
        ["x", "170", "f", "I", "0"],
        ["50", "170", "q", "I", "0"],
        ["1"] * 9,
        ["-5", "9", "q", "I", "9"],
    ]
    seen = found(tmp_path, rows)
    assert {(p.where, p.count, p.rows) for p in seen.problems} == {
        ("", 2, (1, 4)),
        ("age", 1, (2,)),
        ("age", 1, (5,)),
        ("sex", 2, (3, 5)),
        ("ill", 1, (5,)),
    }
    assert seen.records == 5
    [clipped] = [f for f in seen.findings if f.where == "height" and "clips" in f.text]
    assert (clipped.level, clipped.rows) == ("warning", (5,))


def test_only_the_first_rows_are_named_and_the_most_frequent_texts(tmp_path):
    rows = [["50", "170", "a" * 99 if n % 3 else f"t{n}", "I", str(n % 2)] for n in range(1, 61)]
    [problem] = found(tmp_path, rows).problems
    assert problem.count == 60
    assert problem.rows == tuple(range(1, MOST_NAMED + 1))
    assert next(iter(problem.texts.items())) == ("a" * 40, 40)
    assert len(problem.texts) == MOST_NAMED
    assert "hold 21 categories" in problem.text


def test_no_number_of_the_table_is_in_a_finding(tmp_path):
    rows = [["987.125", "1234.5", "f", "I", "0"], ["876.25", "2345.5", "m", "I", "1"], ["55", "170", "m", "I", "1"]]
    said = repr(found(tmp_path, rows).findings)
    assert "outside" in said
    for number in ("987", "1234", "876", "2345", "170", "55"):
        assert number not in said


UNITS = [
    ("age", [f"{a}" for a in (14000, 21000, 25000, 9000)], "in days"),
    ("height", ["1.71", "1.65", "1.9", "1.55"], "in m;"),
    ("height", ["1710", "1650", "1900", "1550"], "in mm;"),
]


@pytest.mark.parametrize(("column", "cells", "words"), UNITS)
def test_another_unit_is_noticed(tmp_path, column, cells, words):
    rows = [
        [cell if name == column else old for name, old in zip(HEADER, row, strict=True)]
        for cell, row in zip(cells, GOOD, strict=True)
    ]
    warnings = [f.text for f in found(tmp_path, rows).findings if f.level == "warning" and f.where == column]
    assert any(words in text for text in warnings), warnings


def test_values_that_fill_a_sliver_of_the_range_are_noticed(tmp_path):
    rows = [[f"{1 + n / 50}", "170", "fm"[n % 2], "I", str(n % 2)] for n in range(30)]
    [warning] = [f for f in found(tmp_path, rows).findings if f.where == "age"]
    assert "within 2 % of the schema's range, at its low end" in warning.text
    spread = [[f"{20 + n}", "170", "fm"[n % 2], "I", str(n % 2)] for n in range(30)]
    assert not [f for f in found(tmp_path, spread).findings if f.where == "age"]


def test_what_tells_nothing_is_noticed(tmp_path):
    rows = [["50", "", "f", "I", "0"], ["50", "", "f", "II", "0"], ["50", "170", "f", "II", "n"]]
    said = {(f.where, f.text.partition(";")[0]) for f in found(tmp_path, rows).findings}
    assert said == {
        ("age", "every record has the same value"),
        ("sex", "every record has the same value"),
        ("height", "cells are empty: 67 % of the records"),
        ("ill", "no record is of the class 'yes'"),
    }


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"age;height\n1;2\n", b"a,a\n1,2\n", b'age\n"1', b"age,height\n"],
    ids=["empty", "utf-16", "semicolons", "twice", "quote", "no records"],
)
def test_files_that_are_no_table_are_one_problem(tmp_path, body):
    (tmp_path / "table.csv").write_bytes(body)
    seen = survey(tmp_path / "table.csv", SCHEMA)
    assert len(seen.findings) == len(seen.problems) == 1
    assert seen.records == 0
    assert len(survey(tmp_path / "absent.csv", SCHEMA).problems) == 1


def test_archives_are_surveyed_too(tmp_path):
    columns = {
        "age": np.array([41.5, np.nan, np.inf, 300.0]),
        "height": np.array([170, 181, 160, 20]),
        "sex": np.array(["f", "x", "m", ""]),
        "stage": np.array(["I", "II", "", "I"]),
        "ill": np.array([0, 1, 2, 1]),
    }
    np.savez(tmp_path / "table.npz", **columns)
    seen = survey(tmp_path / "table.npz", SCHEMA)
    assert {(p.where, p.rows) for p in seen.problems} == {
        ("age", (2,)),
        ("age", (3, 4)),
        ("sex", (4,)),
        ("sex", (2,)),
        ("ill", (3,)),
    }
    np.savez(tmp_path / "table.npz", **{**columns, "sex": np.array([1j] * 4)})
    assert {p.where: p.count for p in survey(tmp_path / "table.npz", SCHEMA).problems}["sex"] == 0


CELLS = {
    "age": ["50", "0", "120", "-1", "121", "x", "", "NA", "1,5", "1e3", "inf", "nan"],
    "height": ["170", "", "1.7", "300", "x", "-inf", "?"],
    "sex": ["f", "m", "F", "", "x", "NA"],
    "stage": ["I", "II", "", "?", "iii"],
    "ill": ["0", "1", "n", "N", "", "2"],
}
ROWS = st.lists(st.tuples(*(st.sampled_from(cells) for cells in CELLS.values())).map(list), min_size=1, max_size=8)


def by_hand(path):
    """Count with the csv module alone: (column, what) -> rows."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    empty = ("", "NA", "?")
    numbers = ("50", "0", "120", "-1", "121", "1e3", "170", "1.7", "300")
    counts = {}
    for name in HEADER:
        cells = [row[name] for row in rows]
        counts[name, "missing"] = sum(cell in empty for cell in cells)
        if name in ("age", "height"):
            low, high = {"age": (0, 120), "height": (30, 250)}[name]
            counts[name, "wrong"] = sum(cell not in empty and cell not in numbers for cell in cells)
            counts[name, "outside"] = sum(cell in numbers and not low <= float(cell) <= high for cell in cells)
        else:
            known = {"sex": "fm", "stage": ("I", "II"), "ill": "01n"}[name]
            counts[name, "wrong"] = sum(cell not in empty and cell not in known for cell in cells)
    return counts, sum(row["ill"] in "0n" and row["ill"] != "" for row in rows), sum(row["ill"] == "1" for row in rows)


@given(rows=ROWS)
def test_the_counts_are_those_of_a_count_by_hand(tmp_path_factory, rows):
    path = written(tmp_path_factory.mktemp("survey"), rows)
    seen, (counts, no, yes) = survey(path, SCHEMA), by_hand(path)
    for column in seen.columns:
        assert column.missing == counts[column.name, "missing"]
        assert column.wrong == counts[column.name, "wrong"]
        assert column.outside == counts.get((column.name, "outside"), 0)
    assert seen.classes == {"no": no, "yes": yes}


@given(rows=st.lists(st.tuples(*(st.sampled_from(c[:4]) for c in CELLS.values())).map(list), min_size=1, max_size=3))
def test_there_are_problems_exactly_where_the_reader_refuses(tmp_path_factory, rows):
    path = written(tmp_path_factory.mktemp("survey"), rows)
    try:
        read_table(path, SCHEMA)
        refused = False
    except DataError:
        refused = True
    assert bool(survey(path, SCHEMA).problems) == refused


@given(st.text(max_size=80))
def test_no_content_makes_it_fail(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("survey") / "table.csv"
    path.write_text(io.StringIO(text).getvalue(), encoding="utf-8", errors="replace")
    survey(path, SCHEMA)
