"""Schemas: what is understood, and that every problem is listed with what to do."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.data.schema import Category, Number, Schema
from confide.data.source import read_source
from confide.errors import DataError
from confide.train.parts import preprocess_of
from confide.train.sections import Job

GOOD = """
name = "heart"
source = "UCI"

[label]
name = "num"
classes = ["healthy", { name = "ill", values = ["1", "2"] }]

[columns]
age = { type = "number", unit = "years", low = 0, high = 120 }
pressure = { type = "number", low = 60.0, high = 260.0, missing = "middle", outside = "clip" }
pain = { type = "category", categories = ["typical", "none"], missing = "level" }
sex = { type = "category", categories = ["f", "m"] }
"""


def parse(text):
    return Schema.parse(tomllib.loads(text))


def problems(text):
    with pytest.raises(DataError) as caught:
        parse(text)
    return str(caught.value)


def changed(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_schema_is_understood():
    schema = parse(GOOD)
    assert (schema.name, schema.source) == ("heart", "UCI")
    assert schema.columns == (
        Number(name="age", unit="years", low=0.0, high=120.0),
        Number(name="pressure", low=60.0, high=260.0, missing=160.0, outside="clip"),
        Category(name="pain", categories=("typical", "none"), missing="level"),
        Category(name="sex", categories=("f", "m")),
    )
    assert schema.label.classes == ("healthy", "ill")
    assert schema.label.values == {"healthy": ("healthy",), "ill": ("1", "2")}


@pytest.mark.parametrize(
    ("stated", "value"), [('"low"', 60.0), ('"middle"', 160.0), ('"high"', 260.0), ("100", 100.0), ('"refuse"', None)]
)
def test_missing_numbers_have_a_public_constant(stated, value):
    assert parse(changed('missing = "middle"', f"missing = {stated}")).columns[1].missing == value


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('name = "heart"', 'nmae = "heart"', r'nmae is unknown (did you mean "name"?); a schema has the keys'),
        ('name = "heart"', "name = 3", "name is 3; state a text"),
        ('name = "num"', "", "label.name is missing; state a text"),
        ("low = 0,", "lwo = 0,", 'columns.age.lwo is unknown (did you mean "low"?)'),
        ("low = 0,", "", "columns.age.low is missing; state a number"),
        ("low = 0,", 'low = "0",', "columns.age.low is '0'; state a number"),
        ("low = 0,", "low = true,", "columns.age.low is True; state a number"),
        ("low = 0,", "low = nan,", "columns.age.low is nan; state a finite number"),
        ("low = 0,", "low = -inf,", "columns.age.low is -inf; state a finite number"),
        ("low = 0,", "low = 120,", "columns.age.low is 120, which is not below high = 120"),
        ("low = 60.0, high = 260.0", "low = -1e308, high = 1e308", "at a finite distance"),
        ("low = 60.0, high = 260.0", "low = 0.0, high = 5e-324", "than float64 can scale"),
        (
            '"middle"',
            '"median"',
            """columns.pressure.missing is 'median'; take "refuse", "level", "low", "middle", "high" or""",
        ),
        ('"middle"', "nan", "columns.pressure.missing is nan"),
        ('"middle"', "300", "columns.pressure.missing is 300"),
        ('"middle"', "true", "columns.pressure.missing is True"),
        ('"middle"', "[1]", "columns.pressure.missing is [1]"),
        (
            '"clip"',
            '"clamp"',
            """columns.pressure.outside is 'clamp' (did you mean "clip"?); take "refuse" or "clip\"""",
        ),
        ('age = { type = "number"', 'age = { type = "numer"', "columns.age.type is 'numer' (did you mean \"number\"?)"),
        ('age = { type = "number",', "age = {", 'columns.age.type is missing; take "number" or "category"'),
        ('["f", "m"]', '["f", "f"]', "columns.sex.categories names 'f' twice"),
        ('["f", "m"]', "[]", "columns.sex.categories is empty; list every value"),
        ('["f", "m"]', "[1, 2]", "columns.sex.categories is [1, 2]; state a list of texts"),
        ('["f", "m"]', '["f", "NA"]', "columns.sex.categories names 'NA', which a table cannot hold"),
        ('["f", "m"]', '["f", " m"]', "columns.sex.categories names ' m', which a table cannot hold"),
        ('["f", "m"] }', '["f", "m"], low = 0 }', "columns.sex.low is unknown"),
        ('["f", "m"] }', '["f", "m"], missing = "own" }', "columns.sex.missing is 'own'"),
        ('name = "num"', 'name = "age"', "columns.age is the label; leave it out"),
        ('"healthy", {', "{", "label.classes has 1 entries; name at least two"),
        ('"healthy"', '"1"', "label.classes, entry 2, names '1' twice"),
        ('"healthy"', '"ill"', "label.classes, entry 2, names 'ill' again"),
        ('"healthy"', "3", "label.classes is [3,"),
        ('values = ["1", "2"]', "values = 1", "label.classes, entry 2, values is 1; state a list of texts"),
        ("values =", "value =", 'label.classes, entry 2, value is unknown (did you mean "values"?)'),
        ("age = {", '"" = {', "columns names a column with an empty name"),
        ("age = {", "bmi = 3\nage = {", "columns.bmi is 3; state a table"),
    ],
)
def test_every_mistake_is_named_with_what_to_do(old, new, text):
    assert text in problems(changed(old, new))


def test_all_problems_are_listed_at_once():
    text = problems(changed("low = 0,", "lwo = 0,").replace('["f", "m"]', "[]").replace('"clip"', '"no"'))
    assert text.startswith("Expected a usable schema in the schema;\n")
    assert len(text.splitlines()) == 5
    for key in ("age.lwo", "age.low", "pressure.outside", "sex.categories"):
        assert f"columns.{key} " in text


def test_one_problem_is_one_line():
    assert problems(changed('"clip"', '"no"')).count("\n") == 0


@pytest.mark.parametrize("table", [{}, {"columns": {}}, {"columns": 3, "label": 3}])
def test_empty_schemas_are_refused(table):
    with pytest.raises(DataError, match="columns holds no column; describe each input"):
        Schema.parse(table)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(json_like, json_like, json_like, json_like)
def test_no_content_makes_it_fail_otherwise(label, column, low, missing):
    number = {"type": "number", "low": low, "high": 1, "missing": missing}
    for table in (
        {"label": label, "columns": column},
        {"label": {"classes": label}, "columns": {"a": number, "b": column}},
    ):
        with pytest.raises(DataError):
            Schema.parse(table)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_named_in_its_problems(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(GOOD)
    assert Schema.load(path) == parse(GOOD)
    path.write_text(changed("low = 0,", "lwo = 0,"))
    with pytest.raises(DataError, match=re.escape(f"in {path};")):
        Schema.load(path)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[columns", "Expected TOML in .*s.toml"),
        (b"\xff\xfe", "Expected TOML in"),
        (b"a = 1\na = 2", "Expected TOML in"),
        (b"x = " + b"[" * 100_000, "Expected TOML in"),
        (b"x = " + b"9" * 5000, "Expected TOML in"),
        (b"[columns]\nx = 0x" + b"f" * 5000, "Expected TOML in"),
        (b"columns.x" + b".a" * 20_000 + b" = 1", "Expected (TOML|a usable schema) in"),
        (b"#" * (1 << 21), "at most 1048576 bytes"),
    ],
)
def test_files_that_are_no_schema_are_refused(tmp_path, body, text):
    (tmp_path / "s.toml").write_bytes(body)
    with pytest.raises(DataError, match=text):
        Schema.load(tmp_path / "s.toml")


def test_absent_files_are_named(tmp_path):
    with pytest.raises(DataError, match="readable schema at .*; No such file"):
        Schema.load(tmp_path / "absent.toml")
    with pytest.raises(DataError, match="Is a directory"):
        Schema.load(tmp_path)
    with pytest.raises(DataError, match="null byte"):
        Schema.load(tmp_path / "a\0b")


def test_the_documented_examples_parse(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "schema.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    schemas = [example for example in examples if "[label]" in example]
    assert parse(schemas[0]).columns
    (tmp_path / "database.url").write_text("sqlite://\n")
    for example in examples:
        (tmp_path / "source.toml").write_text(example)
        assert example in schemas or read_source(tmp_path / "source.toml").where


def test_the_documented_code_runs():
    page = (Path(__file__).parents[2] / "docs" / "schema.md").read_text()
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(example, "docs/schema.md", "exec"), {})


_AGE = """
[label]
name = "ill"
classes = ["no", "yes"]
[columns.age]
type = "number"
low = 0
high = 120
bins = {bins}
"""


@pytest.mark.parametrize("bins", ["[0]", "[120]", "[20, 10]", "[30, 30]", '["a"]', "[nan]"])
def test_bins_that_are_no_rising_numbers_between_the_bounds_are_refused(bins):
    text = _AGE.format(bins=bins)
    with pytest.raises(DataError, match=r"columns\.age\.bins"):
        Schema.read(text)


def test_bins_become_features_of_a_job():
    text = _AGE.format(bins=[18, 65])
    assert preprocess_of(Schema.read(text), Job()).names == ("age<18", "age>=18", "age>=65")
