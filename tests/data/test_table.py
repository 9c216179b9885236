"""Tables: CSV and npz against the csv module of the tests' own, every refusal, and real hospital and census data."""

import csv
import gzip
import io
import math
import pickle
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.format import write_array_header_1_0

from confide.data.files import present
from confide.data.schema import Schema
from confide.data.table import Table, check, read_columns, read_table
from confide.errors import DataError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"

SCHEMA = Schema.parse(
    {
        "label": {"name": "ill", "classes": ["no", {"name": "yes", "values": ["yes", "1"]}]},
        "columns": {
            "age": {"type": "number", "unit": "years", "low": 0, "high": 120},
            "dose": {"type": "number", "low": 0, "high": 1, "missing": "low", "outside": "clip"},
            "sex": {"type": "category", "categories": ["f", "m"]},
            "pain": {"type": "category", "categories": ["a", "b"], "missing": "level"},
        },
    }
)
HEADER = "age,dose,sex,pain,ill"
ROW = "50,0.5,f,a,no"


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


def refusal(tmp_path, text):
    with pytest.raises(DataError) as caught:
        read_table(written(tmp_path, text), SCHEMA)
    assert str(tmp_path / "table.csv") in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- csv --------------------------------------------------------------------------------------------------------------


def test_a_table_is_read(tmp_path):
    table = read_table(written(tmp_path, f"{HEADER}\n{ROW}\n1e1,?,m,NA,yes\n 7 ,2.5, f ,,1\n"), SCHEMA)
    np.testing.assert_array_equal(table.columns["age"], [50.0, 10.0, 7.0])
    np.testing.assert_array_equal(table.columns["dose"], [0.5, math.nan, 2.5])
    assert table.columns["sex"].tolist() == ["f", "m", "f"]
    assert table.columns["pain"].tolist() == ["a", "", ""]
    np.testing.assert_array_equal(table.labels, [0, 1, 1])
    assert (table.n, table.labels.dtype, table.columns["age"].dtype) == (3, np.int64, np.float64)
    assert table.columns["sex"].dtype == object


def test_columns_are_found_by_name_and_others_left_out(tmp_path):
    text = "ill,patient,pain,sex,dose,age\nno,Smith,a,f,0.5,50\n"
    table = read_table(written(tmp_path, text), SCHEMA)
    assert list(table.columns) == ["age", "dose", "sex", "pain"]
    assert table.columns["age"].tolist() == [50.0]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (f"{HEADER}\r\n{ROW}\r\n", "utf-8"),
        (f"{HEADER}\n{ROW}", "utf-8-sig"),
        (f"{HEADER}\n\n{ROW}\n\n", "utf-8"),
        ('"age","dose",sex,pain,ill\n"50","0.5","f","a","no"\n', "utf-8"),
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path, text, encoding):
    assert read_table(written(tmp_path, text, encoding), SCHEMA).columns["age"].tolist() == [50.0]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["a header and at least one record", "the file is empty"]),
        ("\n\n", ["the file is empty"]),
        (f"{HEADER}\n", ["the file is empty"]),
        (f"agee,dose,sex,pain,ill\n{ROW}\n", ["a column 'age'", 'did you mean "agee"?', "add or rename it"]),
        ("age,dose,sex,pain\n50,0.5,f,a\n", ["a column 'ill'"]),
        (f"{HEADER},age\n{ROW},1\n", ["columns 1 and 6 have the same: rename one"]),
        (f"{HEADER}\n{ROW}\n50,0.5\n", ["5 cells", "row 2, got 2", "quote cells"]),
        (f"{HEADER}\n{ROW},9\n", ["row 1, got 6"]),
        (
            f"{HEADER}\n{ROW}\n130,0.5,f,a,no\n",
            ["from 0 to 120 years", "'age'; 1 of 2 records (first in row 2)", 'outside = "clip"'],
        ),
        (f"{HEADER}\n-0.1,0.5,f,a,no\n", ["'age'; 1 of 1 records (first in row 1) are outside"]),
        (
            f"{HEADER}\nold,0.5,f,a,no\n",
            ["numbers in", "'age'; 1 of 1 records (first in row 1) hold no finite number: write them with a decimal"],
        ),
        (f'{HEADER}\n"1,5",0.5,f,a,no\n', ["numbers in"]),
        (f"{HEADER}\n1_0,0.5,f,a,no\n", ["numbers in"]),
        (f"{HEADER}\n50,nan,f,a,no\n", ["'dose'; 1 of 1 records", "leave the cell empty"]),
        (f"{HEADER}\n50,inf,f,a,no\n", ["'dose'; 1 of 1 records"]),
        (
            f"{HEADER}\n{ROW}\n{ROW}\n?,0.5,f,a,no\n",
            ["a value in", "'age' for every record; 1 of 3 records (first in row 3)", "or set missing ="],
        ),
        (f"{HEADER}\n50,0.5,,a,no\n", ["a value in", "'sex'", "(first in row 1)", 'missing = "level"']),
        (
            f"{HEADER}\n50,0.5,F,a,no\n",
            ["known categories in", "'sex'; 1 of 1 records (first in row 1) hold 1 others", "schema of every party"],
        ),
        (f"{HEADER}\n50,0.5,f,a,on\n", ["known classes in", "'ill'; 1 of 1 records (first in row 1) hold 1 others"]),
        (f"{HEADER}\n50,0.5,f,a,\n", ["a class in", "1 of 1 records (first in row 1) have none"]),
        (f'{HEADER}\n50,0.5,f,"a,no\n', ["Expected comma-separated UTF-8 text"]),
        (f"{HEADER}\n50,0.5,f,a\0,no\n", ["Expected"]),
        (f"{HEADER}\n50,0.5,f,{'a' * 200_000},no\n", ["Expected comma-separated UTF-8 text"]),
    ],
)
def test_every_mistake_names_the_place_and_what_to_do_and_no_value(tmp_path, text, parts):
    said = refusal(tmp_path, text)
    for part in parts:
        assert part in said


def test_semicolons_are_named(tmp_path):
    assert "separated by semicolons" in refusal(tmp_path, HEADER.replace(",", ";") + "\n" + ROW.replace(",", ";"))


def test_other_encodings_and_absent_files_are_refused(tmp_path):
    path = written(tmp_path, f"{HEADER}\n50,0.5,f,ä,no\n", "latin-1")
    with pytest.raises(DataError, match="comma-separated UTF-8 text"):
        read_table(path, SCHEMA)
    with pytest.raises(DataError, match=r"readable table at .*absent.csv; No such file"):
        read_table(tmp_path / "absent.csv", SCHEMA)
    with pytest.raises(DataError, match="Is a directory"):
        read_table(tmp_path, SCHEMA)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 120), st.none() | st.floats(-9, 9), st.sampled_from("fm"), st.sampled_from(("", "a", "b"))
        ),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=40, deadline=None)
def test_what_the_csv_module_writes_comes_back_exactly(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        writer.writerows(
            [repr(age), "" if dose is None else repr(dose), sex, pain, "no"] for age, dose, sex, pain in rows
        )
    table = read_table(path, SCHEMA)
    ages, doses, sexes, pains = zip(*rows, strict=True)
    assert table.columns["age"].tolist() == list(ages)
    np.testing.assert_array_equal(table.columns["dose"], [math.nan if dose is None else dose for dose in doses])
    assert table.columns["sex"].tolist() == list(sexes)
    assert table.columns["pain"].tolist() == list(pains)


def test_a_client_reads_columns_without_schema_and_label(tmp_path):
    path = written(tmp_path, "age,sex,note\n50,f,x\n?,NA,y\n")
    columns = read_columns(path, numbers=["age"], texts=["sex"])
    np.testing.assert_array_equal(columns["age"], [50.0, math.nan])
    assert columns["sex"].tolist() == ["f", ""]
    assert list(columns) == ["age", "sex"]
    with pytest.raises(DataError, match="a column 'weight'"):
        read_columns(path, numbers=["weight"], texts=[])


# --- npz --------------------------------------------------------------------------------------------------------------


def arrays(**changes):
    base = {"age": np.array([50, 60]), "dose": np.array([0.5, np.nan], np.float32), "sex": np.array(["f", "m"])}
    return base | {"pain": np.array(["a", ""]), "ill": np.array([1, 1]), "other": np.zeros(7)} | changes


def test_an_archive_is_read(tmp_path):
    np.savez(tmp_path / "t.npz", **arrays())
    table = read_table(tmp_path / "t.npz", SCHEMA)
    np.testing.assert_array_equal(table.columns["age"], [50.0, 60.0])
    np.testing.assert_array_equal(table.columns["dose"], [0.5, math.nan])
    assert table.columns["pain"].tolist() == ["a", ""]
    assert table.labels.tolist() == [1, 1]


def test_columns_of_an_archive_may_be_tables_of_one_column(tmp_path):
    """MedMNIST stores its labels so."""
    np.savez(tmp_path / "t.npz", **{name: each[:, None] for name, each in arrays().items()})
    table = read_table(tmp_path / "t.npz", SCHEMA)
    np.testing.assert_array_equal(table.columns["age"], [50.0, 60.0])
    assert table.columns["pain"].tolist() == ["a", ""]
    assert table.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"age": np.array([50, 130])}, r"from 0 to 120 years in .*, column 'age'; 1 of 2 records \(first in row 2\)"),
        (
            {"age": np.array([50.0, np.nan])},
            r"column 'age' for every record; 1 of 2 records \(first in row 2\) have none",
        ),
        ({"age": np.array([50.0, np.inf])}, r"\(first in row 2\) are outside"),
        ({"age": np.array(["50", "old"])}, "Expected numbers in .*column 'age'; 1 of 2 records"),
        ({"age": np.array([1j, 2j])}, "Expected numbers in .*column 'age', got complex128; store them as numbers"),
        ({"age": np.array([50])}, "column 'age' of .* one value for each"),
        ({"age": np.array([[50, 60]])}, "column 'age' of .* one value for each"),
        ({"age": np.array([[50, 1], [60, 1]])}, "column 'age' of .* one value for each"),
        ({"age": np.array([[[50]], [[60]]])}, "column 'age' of .* one value for each"),
        ({"sex": np.array([1j, 2j])}, "Expected text in .*column 'sex', got complex128"),
        ({"sex": np.array([0.0, 1.0])}, r"column 'sex'; 2 of 2 records \(first in row 1\) hold 2 others"),
        ({"sex": np.array(["f", "x"])}, r"column 'sex'; 1 of 2 records \(first in row 2\) hold 1 others"),
        ({"ill": np.array([1, 5])}, r"column 'ill'; 1 of 2 records \(first in row 2\) hold 1 others"),
        ({"ill": np.array([[1, 1]])}, "one value for each"),
        ({"ill": np.array(1)}, "one value for each"),
        ({name: np.zeros(0) for name in ("age", "dose", "sex", "pain", "ill")}, "one value for each"),
        ({"sex": np.array(["f", None], object)}, "Expected a numpy archive"),
    ],
)
def test_archives_that_break_the_schema_are_refused(tmp_path, changes, text):
    np.savez(tmp_path / "t.npz", **arrays(**changes))
    with pytest.raises(DataError, match=text):
        read_table(tmp_path / "t.npz", SCHEMA)


def test_a_missing_array_is_named(tmp_path):
    np.savez(tmp_path / "t.npz", **{"agee" if name == "age" else name: each for name, each in arrays().items()})
    with pytest.raises(DataError, match=r"a column 'age' in .*t.npz \(did you mean \"agee\"\?\)"):
        read_table(tmp_path / "t.npz", SCHEMA)


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize("body", [b"", b"PK\x03\x04 no archive", b"text", pickle.dumps(_Bomb())])
def test_files_that_are_no_archive_are_refused_and_nothing_in_them_runs(tmp_path, body):
    (tmp_path / "t.npz").write_bytes(body)
    with pytest.raises(DataError, match="numpy archive"):
        read_table(tmp_path / "t.npz", SCHEMA)


def test_damaged_archives_lone_arrays_and_absent_files_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "t.npz", **arrays())
    body = bytearray((tmp_path / "t.npz").read_bytes())
    body[60:90] = bytes(30)
    (tmp_path / "t.npz").write_bytes(body)
    np.save(tmp_path / "lone.npy", np.zeros(3))
    (tmp_path / "lone.npy").rename(tmp_path / "lone.npz")
    for name in ("t.npz", "lone.npz"):
        with pytest.raises(DataError, match="numpy archive"):
            read_table(tmp_path / name, SCHEMA)
    with pytest.raises(DataError, match="No such file"):
        read_table(tmp_path / "absent.npz", SCHEMA)


def test_a_small_archive_that_unpacks_to_gigabytes_is_refused_unread(tmp_path, monkeypatch):
    header = io.BytesIO()
    write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    np.savez(tmp_path / "t.npz", **{name: each for name, each in arrays().items() if name != "age"})
    with zipfile.ZipFile(tmp_path / "t.npz", "a") as archive:
        archive.writestr("age.npy", header.getvalue())
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("an array was unpacked"))
    with pytest.raises(DataError, match="column 'age' of .* one value for each"):
        read_table(tmp_path / "t.npz", SCHEMA)
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        for name in arrays():
            archive.writestr(f"{name}.npy", header.getvalue())
    with pytest.raises(DataError, match="to unpack to at most 1073741824 bytes"):
        read_table(tmp_path / "t.npz", SCHEMA)


def test_members_that_are_no_arrays_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        for name in arrays():
            archive.writestr(f"{name}.npy", b"text")
    with pytest.raises(DataError, match="numpy archive of number and text arrays"):
        read_table(tmp_path / "t.npz", SCHEMA)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_take_and_concatenate_keep_records_together():
    raw = {"age": np.arange(5.0), "dose": np.zeros(5), "sex": np.array(list("fmfmf")), "pain": np.array(["a"] * 5)}
    table = check(raw | {"ill": np.array(["no", "yes", "no", "yes", "yes"])}, SCHEMA, where="here")
    taken = table.take(np.array([4, 0]))
    assert (taken.columns["age"].tolist(), taken.columns["sex"].tolist(), taken.labels.tolist()) == (
        [4, 0],
        ["f", "f"],
        [1, 0],
    )
    both = Table.concatenate([taken, table.take(np.array([1]))])
    assert (both.columns["age"].tolist(), both.labels.tolist()) == ([4, 0, 1], [1, 0, 1])


def test_no_repr_shows_a_record():
    raw = {
        "age": np.array([77.0]),
        "dose": np.zeros(1),
        "sex": np.array(["f"]),
        "pain": np.array(["a"]),
        "ill": np.array([1]),
    }
    assert repr(check(raw, SCHEMA, where="here")) == "Table(1 records, 4 columns)"


# --- real data --------------------------------------------------------------------------------------------------------


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the shared data set {name} is not on this machine")
    return path


HEART = """
[label]
name = "num"
classes = [{ name = "healthy", values = ["0"] }, { name = "ill", values = ["1", "2", "3", "4"] }]
[columns]
age = { type = "number", unit = "years", low = 0, high = 120 }
sex = { type = "category", categories = ["0.0", "1.0"] }
cp = { type = "category", categories = ["1.0", "2.0", "3.0", "4.0"] }
trestbps = { type = "number", unit = "mmHg", low = 60, high = 260, missing = 130, outside = "clip" }
chol = { type = "number", unit = "mg/dl", low = 0, high = 700, missing = 240 }
oldpeak = { type = "number", unit = "mm", low = -5, high = 10, missing = 0 }
thal = { type = "category", categories = ["3.0", "6.0", "7.0"], missing = "level" }
"""


def toml_schema(text):
    return Schema.parse(tomllib.loads(text))


def test_the_four_hospitals_are_read(tmp_path):
    body = gzip.decompress(shared("heart_disease/heart_all4.csv.gz").read_bytes()).decode()
    table = read_table(written(tmp_path, body), toml_schema(HEART))
    rows = list(csv.DictReader(body.splitlines()))
    assert table.n == len(rows) == 920
    assert table.columns["age"].tolist() == [float(row["age"]) for row in rows]
    assert np.isnan(table.columns["chol"]).sum() == sum(row["chol"] in ("", "?") for row in rows)
    assert (table.columns["thal"] == "").sum() == sum(row["thal"] in ("", "?") for row in rows) > 400
    assert table.labels.sum() == sum(row["num"] != "0" for row in rows)


def test_a_bound_that_a_hospital_breaks_is_named(tmp_path):
    body = gzip.decompress(shared("heart_disease/heart_all4.csv.gz").read_bytes()).decode()
    schema = toml_schema(HEART.replace("low = 0, high = 700", "low = 100, high = 700"))
    with pytest.raises(
        DataError,
        match=r"from 100 to 700 mg/dl in .*column 'chol'; \d+ of 920 records \(first in row \d+\) are outside",
    ):
        read_table(written(tmp_path, body), schema)


ADULT_COLUMNS = (
    "age,workclass,fnlwgt,education,education-num,marital-status,occupation,relationship,race,sex,capital-gain,"
    "capital-loss,hours-per-week,native-country,income"
)
ADULT = """
[label]
name = "income"
classes = [{ name = "low", values = ["<=50K", "<=50K."] }, { name = "high", values = [">50K", ">50K."] }]
[columns]
age = { type = "number", unit = "years", low = 0, high = 100 }
education-num = { type = "number", low = 1, high = 16 }
sex = { type = "category", categories = ["Female", "Male"] }
hours-per-week = { type = "number", unit = "h", low = 0, high = 100 }
[columns.workclass]
type = "category"
categories = [
    "Private", "Self-emp-not-inc", "Self-emp-inc", "Federal-gov", "Local-gov", "State-gov", "Without-pay",
    "Never-worked",
]
missing = "level"
"""


@pytest.mark.parametrize(("name", "skipped", "records", "high"), [("data", 0, 32561, 7841), ("test", 1, 16281, 3846)])
def test_the_census_is_read(tmp_path, name, skipped, records, high):
    body = gzip.decompress(shared(f"adult/adult.{name}.gz").read_bytes()).decode()
    lines = [line for line in body.splitlines()[skipped:] if line]
    table = read_table(written(tmp_path, "\n".join([ADULT_COLUMNS, *lines])), toml_schema(ADULT))
    assert (table.n, int(table.labels.sum())) == (records, high)  # counts of the data set's own description
    assert (table.columns["workclass"] == "").sum() == sum(line.split(", ")[1] == "?" for line in lines)


def test_card_payments_are_read_from_an_archive(tmp_path):
    with np.load(shared("creditcard_fraud/creditcard_fraud_subset.npz")) as archive:
        x, y = archive["X"], archive["y"]
    names = ["Time", *(f"V{number}" for number in range(1, 29)), "Amount"]
    np.savez(tmp_path / "t.npz", fraud=y.astype(np.int64), **{name: x[:, place] for place, name in enumerate(names)})
    columns = {name: {"type": "number", "low": -200, "high": 200, "outside": "clip"} for name in names}
    schema = Schema.parse({"label": {"name": "fraud", "classes": ["0", "1"]}, "columns": columns})
    table = read_table(tmp_path / "t.npz", schema)
    assert (table.n, int(table.labels.sum())) == (13326, 492)
    np.testing.assert_array_equal(table.columns["V7"], x[:, 7].astype(np.float64))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (["worst radius", "area"], r"'mean radius' in a\.csv; add"),  # the only near one is another column's
        (["worst radius", "mean_radius"], r"'mean radius' in a\.csv \(did you mean \"mean_radius\"\?\); add"),
    ],
)
def test_no_column_that_has_its_place_is_proposed_for_an_absent_one(found, text):
    with pytest.raises(DataError, match=text):
        present(["mean radius", "worst radius"], found, "a.csv")
