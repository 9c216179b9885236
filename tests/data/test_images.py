"""Columns of images: what a schema may say of them, what a table of them is, and every refusal."""

import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.data.schema import Image, Schema
from confide.data.split import aside, holdout
from confide.data.survey import survey
from confide.data.table import Table, check, read_table
from confide.data.write import csv_text
from confide.errors import DataError

SCHEMA = Schema.read("""
[label]
name = "ill"
classes = [{ name = "no", values = ["0"] }, { name = "yes", values = ["1"] }]
[columns]
scan = { type = "image", height = 3, width = 4, low = 0, high = 200 }
age = { type = "number", low = 0, high = 120 }
""")


def arrays(n=6, **changes):
    scan = np.arange(n * 12).reshape(n, 3, 4).astype(np.uint8)
    return {"scan": scan, "age": np.full(n, 40.0), "ill": np.arange(n) % 2} | changes


def written(folder, **changes):
    np.savez(folder / "table.npz", **arrays(**changes))
    return folder / "table.npz"


def test_images_are_read_as_they_are(tmp_path):
    table = read_table(written(tmp_path), SCHEMA)
    np.testing.assert_array_equal(table.columns["scan"], arrays()["scan"])
    assert table.columns["scan"].dtype == np.uint8
    seen = survey(tmp_path / "table.npz", SCHEMA)
    assert not seen.problems
    assert next((one.name, one.kind, one.outside) for one in seen.columns) == ("scan", "image", 0)


def test_images_follow_their_records(tmp_path):
    table = read_table(written(tmp_path, n=40, scan=np.arange(480).reshape(40, 3, 4) / 3.0), SCHEMA)
    for apart in (holdout, aside):
        parts = apart(table, fraction=0.3, seed=1)
        again = Table.concatenate(parts)
        assert sorted(again.columns["scan"][:, 0, 0].tolist()) == table.columns["scan"][:, 0, 0].tolist()
        places = np.round(again.columns["scan"][:, 0, 0] / 4.0).astype(int)
        np.testing.assert_array_equal(again.labels, table.labels[places])


WRONG = {
    "turned": (np.zeros((6, 4, 3)), "images of 3 x 4 pixels .* got an array of shape"),
    "flat": (np.zeros((6, 12)), "one value for each of its records"),
    "one axis more": (np.zeros((6, 3, 4, 1)), "one value for each of its records"),
    "one image less": (np.zeros((5, 3, 4)), "one value for each of its records"),
    "text": (np.full((6, 3, 4), "0"), "Expected numbers in"),
    "complex": (np.zeros((6, 3, 4), complex), "Expected numbers in"),
    "objects": (np.zeros((6, 3, 4), object), "numpy archive of number and text arrays"),
}


@pytest.mark.parametrize(("scan", "text"), WRONG.values(), ids=WRONG)
def test_arrays_that_are_no_such_images_are_refused(tmp_path, scan, text):
    path = written(tmp_path, scan=scan)
    with pytest.raises(DataError, match=text):
        read_table(path, SCHEMA)
    assert survey(path, SCHEMA).problems


@pytest.mark.parametrize("pixel", [-1.0, 200.5, np.nan, np.inf, -np.inf])
def test_a_pixel_beyond_the_bounds_is_refused_by_its_row(tmp_path, pixel):
    scan = np.full((6, 3, 4), 200.0)
    scan[0] = 0.0
    scan[4, 2, 1] = pixel
    path = written(tmp_path, scan=scan)
    with pytest.raises(DataError, match=r"pixels from 0 to 200 in .*column 'scan', row 5 has others"):
        read_table(path, SCHEMA)
    [problem] = survey(path, SCHEMA).problems
    assert (problem.where, problem.count, problem.rows) == ("scan", 1, (5,))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=5))
@settings(deadline=None)
def test_a_survey_finds_a_problem_where_a_table_is_refused(tmp_path_factory, brightest):
    n = len(brightest)
    scan = np.zeros((n, 3, 4), np.uint8)
    scan[:, 1, 1] = brightest
    path = written(tmp_path_factory.mktemp("images"), n=n, scan=scan)
    if max(brightest) > 200:
        assert survey(path, SCHEMA).problems
        with pytest.raises(DataError):
            read_table(path, SCHEMA)
    else:
        assert not survey(path, SCHEMA).problems
        assert read_table(path, SCHEMA).n == n


def test_the_same_image_everywhere_is_a_warning(tmp_path):
    seen = survey(written(tmp_path, scan=np.zeros((6, 3, 4))), SCHEMA)
    assert {one.where for one in seen.findings} >= {"scan"}
    assert not seen.problems


def test_no_csv_file_holds_images(tmp_path):
    (tmp_path / "table.csv").write_text("scan,age,ill\n1,2,0\n")
    with pytest.raises(DataError, match=r"numpy archive \(.npz\) for the images of column 'scan'"):
        read_table(tmp_path / "table.csv", SCHEMA)
    assert survey(tmp_path / "table.csv", SCHEMA).problems
    with pytest.raises(DataError, match="numpy archive"):
        csv_text(check(arrays(), SCHEMA, where="here"), SCHEMA)


def test_images_count_by_their_own_size_against_the_largest_archive(tmp_path, monkeypatch):
    path = written(tmp_path)
    monkeypatch.setattr("confide.data.files.LARGEST_UNPACKED_BYTES", 6 * (12 + 32 + 32))
    assert read_table(path, SCHEMA).n == 6
    monkeypatch.setattr("confide.data.files.LARGEST_UNPACKED_BYTES", 6 * (12 + 32 + 32) - 1)
    with pytest.raises(DataError, match="unpack to at most"):
        read_table(path, SCHEMA)


def with_image(stated):
    head = '[label]\nname = "ill"\nclasses = ["no", "yes"]\n[columns]\n'
    return tomllib.loads(f'{head}scan = {{ type = "image", {stated} }}')


@pytest.mark.parametrize(
    ("stated", "text"),
    [
        ("width = 4", "columns.scan.height is missing; state a whole number"),
        ("height = 3.5, width = 4", "columns.scan.height is 3.5; state a whole number"),
        ("height = true, width = 4", "columns.scan.height is True; state a whole number"),
        ("height = 0, width = 4", "columns.scan.height is 0; state 1 to 256 pixels"),
        ("height = 3, width = 257", "columns.scan.width is 257; state 1 to 256 pixels"),
        ("height = 3, width = 4, low = 255", "columns.scan.low is 255, which is not below high = 255"),
        ("height = 3, width = 4, low = -1e308, high = 1e308", "at a finite distance"),
        ("height = 3, width = 4, high = nan", "columns.scan.high is nan; state a finite number"),
        ("height = 3, width = 4, missing = 0", "columns.scan.missing is unknown"),
        ("height = 3, width = 4, to = [1, -1]", "columns.scan.to is no pair of rising numbers within [-1, 1]"),
        ("height = 3, width = 4, to = [0, 255]", "columns.scan.to is no pair of rising numbers"),
        ("height = 3, width = 4, to = [0, nan]", "columns.scan.to is no pair of rising numbers"),
        ("height = 3, width = 4, to = [0]", "columns.scan.to is no pair of rising numbers"),
        ("height = 3, width = 4, to = 1", "columns.scan.to is 1; state a list of numbers"),
    ],
)
def test_every_mistake_in_a_schema_is_named(stated, text):
    with pytest.raises(DataError) as caught:
        Schema.parse(with_image(stated))
    assert text in str(caught.value)


def test_a_range_is_kept_apart_from_none():
    def stated(more):
        (column,) = Schema.parse(with_image(f"height = 3, width = 4{more}")).columns
        return column.to

    assert [stated(""), stated(", to = [0, 1]"), stated(", to = [-1, 1]")] == [None, (0.0, 1.0), (-1.0, 1.0)]


def test_bounds_of_bytes_are_the_default():
    assert Schema.parse(with_image("height = 3, width = 4")).columns == (Image(name="scan", height=3, width=4),)
