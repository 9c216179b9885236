"""One table through every door is one table: files, data frames, databases. Hostile ones are refused."""

from __future__ import annotations

import csv
import gzip
import io
import math
import sqlite3
import zipfile
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pandas
import polars
import psycopg
import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.data.describe import kinds_of
from confide.data.files import digest_of, raw_columns
from confide.data.reading import read_number
from confide.data.schema import Number, Schema
from confide.data.source import Origin, open_source
from confide.data.survey import survey
from confide.data.table import read_inputs, read_table
from confide.errors import DataError, JobError
from confide.train.job import parse
from confide.train.run import load_data

SCHEMA = Schema.read("""
identifiers = ["customer"]
[label]
name = "fraud"
classes = [{ name = "no", values = ["0"] }, { name = "yes", values = ["1"] }]
[columns]
amount = { type = "number", unit = "euro", low = 0, high = 1e6, missing = "low", outside = "clip" }
channel.type = "category"
channel.missing = "level"
channel.categories = ["shop", { name = "online", values = ["web", "app", "2"] }]
booked = { type = "date", low = 2020-01-01, high = 2024-12-31, missing = "low", parts = ["weekday", "hour", "month"] }
""")
NAMES = ["customer", "amount", "channel", "booked", "fraud"]
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2024, 12, 31, 23, 59))
ROWS = st.lists(
    st.tuples(
        st.integers(0, 10**15),
        st.none() | st.floats(-10, 1e5, allow_nan=False).map(lambda value: value + 0.0),
        st.none() | st.sampled_from(["shop", "web", "app", "2"]),
        st.none() | MOMENTS,
        st.sampled_from([0, 1]),
    ),
    min_size=1,
    max_size=12,
)


def as_csv(rows):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(NAMES)
    for customer, amount, channel, booked, fraud in rows:
        cells = [customer, "" if amount is None else repr(amount), channel or "", booked.isoformat() if booked else ""]
        writer.writerow([*cells, fraud])
    return text.getvalue().encode()


def as_arrow(rows):
    kinds = [pyarrow.int64(), pyarrow.float64(), pyarrow.string(), pyarrow.timestamp("us"), pyarrow.int8()]
    return pyarrow.table(
        [pyarrow.array([row[place] for row in rows], kind) for place, kind in enumerate(kinds)], names=NAMES
    )


def csv_file(folder, rows):
    (folder / "t.csv").write_bytes(as_csv(rows))
    return folder / "t.csv"


def packed_csv(folder, rows):
    (folder / "t.csv.gz").write_bytes(gzip.compress(as_csv(rows)))
    return folder / "t.csv.gz"


def archive(folder, rows):
    customers, amounts, channels, booked, frauds = zip(*rows, strict=True)
    np.savez(
        folder / "t.npz",
        customer=np.array(customers),
        amount=np.array([math.nan if amount is None else amount for amount in amounts]),
        channel=np.array([channel or "" for channel in channels]),
        booked=np.array(booked, "datetime64[us]"),
        fraud=np.array(frauds),
    )
    return folder / "t.npz"


def parquet(folder, rows):
    pyarrow.parquet.write_table(as_arrow(rows), folder / "t.parquet", row_group_size=3)
    return folder / "t.parquet"


def arrow(folder, rows):
    with (
        pyarrow.OSFile(str(folder / "t.arrow"), "wb") as sink,
        pyarrow.ipc.new_file(sink, as_arrow(rows).schema) as out,
    ):
        out.write_table(as_arrow(rows), max_chunksize=2)
    return folder / "t.arrow"


def feather(folder, rows):
    pyarrow.feather.write_feather(as_arrow(rows), str(folder / "t.feather"), compression="zstd")
    return folder / "t.feather"


def in_pandas(folder, rows):
    return pandas.DataFrame(rows, columns=NAMES)


def in_polars(folder, rows):
    return polars.DataFrame(as_arrow(rows))


def in_pyarrow(folder, rows):
    return as_arrow(rows)


def coded(folder, rows):
    """Text columns as dictionaries: what `category` columns of data frames are."""
    table = as_arrow(rows)
    return table.set_column(2, "channel", table["channel"].dictionary_encode())


def in_sqlite(folder, rows):
    with sqlite3.connect(folder / "bank.db") as connection:
        connection.execute("DROP TABLE IF EXISTS t")
        connection.execute("CREATE TABLE t (customer INTEGER, amount REAL, channel TEXT, booked TEXT, fraud INTEGER)")
        connection.executemany(
            "INSERT INTO t VALUES (?, ?, ?, ?, ?)",
            [(c, a, ch, b and b.isoformat(), f) for c, a, ch, b, f in rows],
        )
    connection.close()
    (folder / "sqlite.toml").write_text(
        f'url = "sqlite:///{folder}/bank.db"\nquery = "SELECT * FROM t ORDER BY rowid"\n'
    )
    return folder / "sqlite.toml"


DOORS = [csv_file, packed_csv, archive, parquet, arrow, feather, in_pandas, in_polars, in_pyarrow, coded, in_sqlite]


def same(one, other):
    assert one.n == other.n
    assert one.labels.tolist() == other.labels.tolist()
    assert one.identifiers["customer"].tolist() == other.identifiers["customer"].tolist()
    assert list(one.columns) == list(other.columns)
    for name, values in one.columns.items():
        np.testing.assert_array_equal(values, other.columns[name], err_msg=name)
        assert values.dtype == other.columns[name].dtype


@given(ROWS)
@settings(max_examples=25, deadline=None)
def test_every_door_gives_the_same_table(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("doors")
    first = read_table(csv_file(folder, rows), SCHEMA)
    for door in DOORS[1:]:
        same(first, read_table(door(folder, rows), SCHEMA))


@given(ROWS)
@settings(max_examples=25, deadline=None)
def test_a_table_is_what_its_rows_say(tmp_path_factory, rows):
    """The oracle is Python's own datetime."""
    table = read_table(parquet(tmp_path_factory.mktemp("rows"), rows), SCHEMA)
    names = {"shop": "shop", "web": "online", "app": "online", "2": "online", None: ""}
    for at, (customer, amount, channel, booked, fraud) in enumerate(rows):
        row = {name: values[at] for name, values in table.columns.items()}
        assert table.identifiers["customer"][at] == str(customer)
        assert row["amount"] == amount or (amount is None and math.isnan(row["amount"]))
        assert row["channel"] == names[channel]
        assert table.labels[at] == fraud
        if booked is None:
            assert math.isnan(row["booked"])
            assert row["booked weekday"] == row["booked hour"] == row["booked month"] == ""
            continue
        assert row["booked"] == (booked - datetime(1970, 1, 1)) / timedelta(days=1)
        assert row["booked weekday"] == booked.strftime("%A")
        assert (row["booked hour"], row["booked month"]) == (str(booked.hour), str(booked.month))


# --- what a party says of its own table -------------------------------------------------------------------------------

TODAY = datetime(2024, 2, 29, 13, 30)
RAW = "kunde;betrag;kanal;datum;betrug\n7;1999;W;29.02.2024 13:30;J\n8;99999;POS;01.03.2024 00:00;N\n9;-1;-;;N\n"
SOURCE = """
file = "raw.csv"
separator = ";"
encoding = "latin-1"
[columns]
customer = { from = "kunde" }
amount = { from = "betrag", unit = "cent", factor = 0.01, missing = ["-1"] }
channel = { from = "kanal", values = { online = ["W", "2"], shop = ["POS"] }, missing = ["-"] }
booked = { from = "datum", format = "%d.%m.%Y %H:%M" }
fraud = { from = "betrug", values = { no = ["N"], yes = ["J"] } }
"""


def bank(folder, source=SOURCE, raw=RAW):
    (folder / "raw.csv").write_text(raw, encoding="latin-1")
    (folder / "bank.toml").write_text(source)
    return folder / "bank.toml"


def test_a_source_file_maps_names_units_codings_dates_and_gaps(tmp_path):
    table = read_table(bank(tmp_path), SCHEMA)
    rows = [(7, 19.99, "web", TODAY, 1), (8, 999.99, "shop", datetime(2024, 3, 1), 0), (9, None, None, None, 0)]
    same(table, read_table(csv_file(tmp_path, rows), SCHEMA))
    assert survey(tmp_path / "bank.toml", SCHEMA).problems == ()


def test_a_mapping_for_a_table_in_memory(tmp_path):
    (tmp_path / "map.toml").write_text('[columns]\namount = { from = "cents", factor = "1/100" }\n')
    frame = pandas.DataFrame(
        {"customer": [1, 2], "cents": [1999, None], "channel": ["shop", None], "booked": [TODAY, None], "fraud": [0, 1]}
    )
    table = read_table(frame, SCHEMA, mapping=tmp_path / "map.toml")
    np.testing.assert_array_equal(table.columns["amount"], [19.99, math.nan])
    with pytest.raises(DataError, match="Expected no file, url or url_file in"):
        read_table(frame, SCHEMA, mapping=bank(tmp_path))
    with pytest.raises(DataError, match="Expected one of file, url and url_file in"):
        read_table(tmp_path / "map.toml", SCHEMA)


@given(st.integers(0, 10**9), st.sampled_from([("0.01", 100), ("0.001", 1000), ("0.1", 10)]))
def test_units_convert_to_the_float_that_a_party_with_the_other_unit_has(cents, unit):
    """Else a record on the edge of a bin lands on the other side at one party."""
    from fractions import Fraction

    from confide.data.reading import linear

    factor, per = unit
    [value] = linear(np.array([float(cents)]), Fraction(factor), Fraction(0)).tolist()
    assert value == float(f"{cents // per}.{cents % per:0{len(str(per)) - 1}d}")
    [celsius] = linear(np.array([212.0]), Fraction("5/9"), Fraction("-160/9")).tolist()
    assert celsius == 100.0


def test_a_party_may_lack_a_column_that_may_be_missing(tmp_path):
    source = SOURCE.replace(
        'channel = { from = "kanal", values = { online = ["W", "2"], shop = ["POS"] }, missing = ["-"] }',
        "channel = { absent = true }",
    )
    table = read_table(bank(tmp_path, source), SCHEMA)
    assert table.columns["channel"].tolist() == ["", "", ""]
    source = source.replace("fraud = {", "fraud = { absent = true,")
    with pytest.raises(DataError, match="no absent column in columns.fraud"):
        read_table(bank(tmp_path, source), SCHEMA)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('file = "raw.csv"', "", "Expected one of file, url and url_file"),
        ('file = "raw.csv"', 'file = "raw.csv"\nquery = "SELECT 1"', "url or url_file together with query"),
        ('file = "raw.csv"', 'file = "raw.csv"\npassword = "s3cret"', "unknown field `password`"),
        ('separator = ";"', 'separator = ";;"', "Expected separator in .* to be one character"),
        ('encoding = "latin-1"', 'encoding = "klingon"', "an encoding that Python knows"),
        ("amount = {", "amonut = {", r'got columns.amonut of .*did you mean "amount"'),
        ("factor = 0.01", "factor = 1", r"Expected a factor in columns.amount .*'cent' is not the schema's 'euro'"),
        ('unit = "cent"', 'unit = "euro"', "Expected no factor or offset in columns.amount"),
        ("factor = 0.01", "factor = 0", "a factor other than 0"),
        ("factor = 0.01", 'factor = "x"', 'a number of at most 15 digits, or a fraction such as "5/9"'),
        ("factor = 0.01", 'factor = "1/0"', "at most 15 digits"),
        ("factor = 0.01", "factor = 1e300", "at most 15 digits"),
        (
            "online = [",
            "inline = [",
            r"categories of the schema in columns.channel of .*'inline' \(did you mean \"online\"",
        ),
        ('["W", "2"]', '["W", "POS"]', "different texts in columns.channel"),
        ('format = "%d.%m.%Y %H:%M"', 'format = "%H:%M"', "Expected format in columns.booked"),
        ('{ from = "kunde" }', '{ from = "kunde", format = "iso" }', "Expected no format in columns.customer"),
        (
            '{ from = "kunde" }',
            '{ from = "kunde", factor = 2 }',
            "Expected no unit, factor or offset in columns.customer",
        ),
        ('from = "betrag"', 'from = "betragg"', r'a column \'betragg\' in .*did you mean "betrag"'),
        ('from = "kunde"', "from = 3", "Expected a source of records"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(tmp_path, old, new, text):
    assert old in SOURCE
    path = bank(tmp_path, SOURCE.replace(old, new, 1))
    with pytest.raises(DataError, match=text):
        read_table(path, SCHEMA)
    assert survey(path, SCHEMA).problems


def test_inputs_are_read_without_a_label(tmp_path):
    raw = "\n".join(line.rpartition(";")[0] for line in RAW.splitlines())
    columns = read_inputs(bank(tmp_path, raw=raw), SCHEMA)
    assert list(columns) == [column.name for column in SCHEMA.columns]
    assert columns["channel"].tolist() == ["online", "shop", ""]


# --- dates ------------------------------------------------------------------------------------------------------------


def dated(cells, form="iso"):
    schema = Schema.parse(
        {
            "label": {"name": "y", "classes": ["0", "1"]},
            "columns": {
                "seen": {
                    "type": "date",
                    "format": form,
                    "low": date(2000, 1, 1),
                    "high": date(2030, 1, 1),
                    "missing": "low",
                }
            },
        }
    )
    return read_table(pyarrow.table({"seen": cells, "y": [0] * len(cells)}), schema).columns["seen"].tolist()


def test_dates_in_every_form_are_one_day():
    day = float((date(2024, 2, 29) - date(1970, 1, 1)).days)
    noon = datetime(2024, 2, 29, 12, tzinfo=UTC)
    assert dated(["2024-02-29", "20240229", "2024-02-29T00:00", "2024-02-29T02:00:00+02:00"]) == [day] * 4
    assert dated(["29/2/24"], "%d/%m/%y") == [day]
    assert dated([20240229], "%Y%m%d") == [day]
    assert dated([int(noon.timestamp())], "unix") == [day + 0.5]
    assert dated([str(int(noon.timestamp())), None], "unix")[0] == day + 0.5
    assert dated([date(2024, 2, 29)]) == [day]
    assert dated([noon, noon.astimezone(timezone(timedelta(hours=5)))]) == [day + 0.5] * 2
    assert dated(pyarrow.array([noon.replace(tzinfo=None)], pyarrow.timestamp("ns"))) == [day + 0.5]


@pytest.mark.parametrize("cell", ["2024-13-01", "yesterday", "29.02.2024", "2024-02-30", "0000-00-00", "1" * 5000])
def test_what_is_no_date_is_counted_and_not_shown(cell):
    with pytest.raises(DataError, match=r"Expected dates in the table, column 'seen'; 1 of 2 records") as caught:
        dated(["2024-01-01", cell])
    assert cell[:6] not in str(caught.value)


def test_the_last_day_belongs_to_the_bounds():
    assert len(dated(["2030-01-01T23:59:59"])) == 1
    with pytest.raises(DataError, match=r"values from 2000-01-01 up to 2030-01-02 in .*1 of 1 records"):
        dated(["2030-01-02T00:00:01"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"low": 3}, "low is no date"),
        ({"low": date(2040, 1, 1)}, "not below high"),
        ({"format": "%H"}, 'format is \'%H\'; take "iso", "unix"'),
        ({"parts": ["week"]}, "parts has 'week'"),
        ({"parts": ["hour", "hour"]}, "parts has 'hour'"),
        ({"missing": 5}, "missing is a number; take a date"),
        ({"unit": "days"}, "unit is unknown"),
    ],
)
def test_a_schema_s_dates_are_checked(change, text):
    column = {"type": "date", "low": date(2000, 1, 1), "high": date(2030, 1, 1), **change}
    with pytest.raises(DataError, match=text):
        Schema.parse({"label": {"name": "y", "classes": ["0", "1"]}, "columns": {"seen": column}})


# --- hostile files ----------------------------------------------------------------------------------------------------

PLAIN = Schema.parse(
    {
        "label": {"name": "y", "classes": ["0", "1"]},
        "columns": {"a": {"type": "number", "low": 0, "high": 9}, "b": {"type": "category", "categories": ["u", "v"]}},
    }
)
GOOD = {"a": [1, 2], "b": ["u", "v"], "y": [0, 1]}


PLAIN_TEXT = '[label]\nname = "y"\nclasses = ["0", "1"]\n[columns]\na = { type = "number", low = 0, high = 9 }\n'


def refused(place, schema=PLAIN):
    with pytest.raises(DataError) as caught:
        read_table(place, schema)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([[1], [2]], "Expected plain values in column 'a' of .*, got a list"),
        ([{"x": 1}, {"x": 2}], "got a struct;"),
        ([b"1", b"2"], "got binary"),
        ([timedelta(1), timedelta(2)], "got duration"),
        ([datetime(2020, 1, 1)] * 2, "Expected numbers in .*datetime64"),
        (["x", "y"], "2 of 2 records"),
    ],
)
def test_columns_of_other_types_are_refused_by_their_type(tmp_path, values, text):
    table = pyarrow.table({**GOOD, "a": values})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    for place in (table, tmp_path / "t.parquet"):
        with pytest.raises(DataError, match=text):
            read_table(place, PLAIN)
    pyarrow.parquet.write_table(pyarrow.table({**GOOD, "other": values}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", PLAIN).n == 2  # what the schema does not name is not looked at


def test_damaged_files_tables_without_records_and_columns_of_one_name_are_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table(GOOD), tmp_path / "t.parquet")
    body = (tmp_path / "t.parquet").read_bytes()
    for broken in (b"", b"PAR1", body[:-9], body[: len(body) // 2], b"PAR1" + bytes(40) + b"PAR1", b"\0" * 99):
        for name in ("t.parquet", "t.arrow", "t.feather"):
            (tmp_path / name).write_bytes(broken)
            assert "damaged" in refused(tmp_path / name)
    assert "No such file" in refused(tmp_path / "absent.parquet")
    assert "at least one record" in refused(pyarrow.table(GOOD).slice(0, 0))
    twice = pyarrow.Table.from_arrays([pyarrow.array([1])] * 4, names=["a", "b", "y", "a"])
    assert "columns 1 and 4 have the same" in refused(twice)
    assert "a column 'b'" in refused(pyarrow.table({"a": [1], "y": [0]}))
    assert "Expected a path or a table with an Arrow stream" in refused({"a": [1]})
    assert "a table that Arrow can hold" in refused(pandas.DataFrame([[1, "u", 0, 2]], columns=["a", "b", "y", "a"]))


def test_bytes_that_were_flipped_are_refused_or_read_but_never_crash(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table(GOOD), tmp_path / "good.parquet")
    body = (tmp_path / "good.parquet").read_bytes()
    for place in range(0, len(body), 7):
        changed = bytearray(body)
        changed[place] ^= 0xFF
        (tmp_path / "t.parquet").write_bytes(changed)
        with suppress(DataError):
            read_table(tmp_path / "t.parquet", PLAIN)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    table = pyarrow.table(
        {"a": np.zeros(300_000), "b": pyarrow.array(["u"] * 300_000), "y": np.zeros(300_000, np.int8)}
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b,y\n" + b"1,u,0\n" * 300_000))
    assert (tmp_path / "t.csv.gz").stat().st_size < 10_000
    assert read_table(tmp_path / "t.parquet", PLAIN).n == 300_000
    for module in ("files", "arrow"):
        monkeypatch.setattr(f"confide.data.{module}.LARGEST_UNPACKED_BYTES", 1 << 20)
    assert "to unpack to at most" in refused(tmp_path / "t.parquet")
    assert "to unpack to at most" in refused(tmp_path / "t.csv.gz")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (gzip.compress(b"a,b,y\n1,u,0\n", mtime=0)[:-6], "comma-separated UTF-8 text"),
        (b"a,b,y\n1,u,0\n", "no gzip file"),
        (gzip.compress("a,b,y\n1,ü,0\n".encode("latin-1"), mtime=0), "UTF-8 text"),
        (gzip.compress(b"a,b,y\n1,u," + b"0" * 200_000 + b"\n", mtime=0), "field larger"),
        (gzip.compress(b"1,2,0\n2,3,1\n", mtime=0), "Expected a header in .*3 of the 3 cells"),
    ],
)
def test_packed_text_that_is_none_is_refused(tmp_path, body, text):
    (tmp_path / "t.csv.gz").write_bytes(body)
    with pytest.raises(DataError, match=text):
        read_table(tmp_path / "t.csv.gz", PLAIN)


def test_a_first_record_where_names_belong_is_not_shown(tmp_path):
    (tmp_path / "t.csv").write_text("41.5,170,1\n67,181,0\n")
    for said in (refused(tmp_path / "t.csv"), repr(survey(tmp_path / "t.csv", PLAIN))):
        assert "Expected a header" in said
        assert "41.5" not in said
        assert "170" not in said


def test_a_column_of_a_million_texts_is_counted_and_not_shown():
    n = 10**6
    table = pyarrow.table({"a": np.ones(n), "b": [f"p{row:07d}" for row in range(n)], "y": np.zeros(n, np.int64)})
    said = refused(table)
    assert "1000000 of 1000000 records (first in row 1) hold 1000000 others" in said
    assert "p0" not in said
    assert len(said) < 300


def test_a_schema_of_too_many_categories_is_refused_without_a_list():
    column = {"type": "category", "categories": [f"c{number}" for number in range(10**6)]}
    with pytest.raises(DataError, match="has 1000000 entries, at most 65536 are read; group them") as caught:
        Schema.parse({"label": {"name": "y", "classes": ["0", "1"]}, "columns": {"b": column}})
    assert len(str(caught.value)) < 300


# --- databases --------------------------------------------------------------------------------------------------------


def asked(folder, query, url=None):
    (folder / "s.toml").write_text(f'url = \'{url or f"sqlite:///{folder}/bank.db"}\'\nquery = """{query}"""\n')
    return folder / "s.toml"


@pytest.fixture
def bank_db(tmp_path):
    in_sqlite(tmp_path, [(1, 2.5, "shop", TODAY, 0), (2, None, "sECRET", None, 1)])
    return tmp_path


def test_queries_that_fail_show_neither_url_nor_rows(bank_db):
    urls = ["nothing", "postgresql+psycopg://me:s3cret@127.0.0.1:1/x", "sqlite:////absent/s3cret.db", "odd+s3cret://x"]
    for url in urls:
        said = refused(asked(bank_db, "SELECT 1", url), SCHEMA)
        assert "s3cret" not in said
        assert "sqlite" not in said.replace(str(bank_db), "")
    for query in ("SELECT * FROM absent", "SELEKT", "SELECT * FROM t WHERE (", "SELECT abs(channel, 's3cret') FROM t"):
        said = refused(asked(bank_db, query), SCHEMA)
        assert "Expected the query of" in said
        assert "s3cret" not in said
    assert "a query that gives rows" in refused(asked(bank_db, "DELETE FROM t"), SCHEMA)
    assert "at least one record" in refused(asked(bank_db, "SELECT * FROM t WHERE 1 = 0"), SCHEMA)
    assert "columns 1 and 2 have the same" in refused(asked(bank_db, "SELECT 1 AS a, 2 AS a"), SCHEMA)
    said = refused(asked(bank_db, "SELECT * FROM t"), SCHEMA)
    assert "1 of 2 records (first in row 2) hold 1 others" in said
    assert "sECRET" not in said


def test_a_query_that_writes_leaves_no_trace(bank_db):
    refused(asked(bank_db, "DELETE FROM t"), SCHEMA)
    connection = sqlite3.connect(bank_db / "bank.db")
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (2,)
    connection.close()


def test_percent_and_colon_in_a_query_are_its_own(bank_db):
    query = "SELECT * FROM t WHERE channel LIKE 'sh%' AND ':x' = ':x' AND '%(x)s' <> '?'"
    assert read_table(asked(bank_db, query), SCHEMA).n == 1


def test_a_url_may_lie_in_a_file_of_its_own(bank_db):
    (bank_db / "secret").write_text(f"sqlite:///{bank_db}/bank.db\n")
    (bank_db / "s.toml").write_text('url_file = "secret"\nquery = "SELECT * FROM t WHERE fraud = 0"\n')
    assert read_table(bank_db / "s.toml", SCHEMA).n == 1
    (bank_db / "secret").write_text("two words s3cret\n")
    assert "s3cret" not in refused(bank_db / "s.toml", SCHEMA)


def test_a_path_that_is_no_text_is_no_source(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe")
    assert "Expected TOML" in refused(Path(tmp_path / "s.toml"))


def test_a_query_of_postgresql_is_read_and_may_not_write(tmp_path, database):
    with psycopg.connect(database) as connection:
        connection.execute(
            "CREATE TABLE t (customer uuid, amount numeric(12, 2), channel text, booked timestamptz, fraud smallint)"
        )
        connection.execute("CREATE SEQUENCE s")
        rows = [(UUID(int=n), Decimal(f"{n}.99"), "web", datetime(2024, 2, 29, n, tzinfo=UTC), n % 2) for n in range(9)]
        rows.append((UUID(int=9), None, None, None, 0))
        connection.cursor().executemany("INSERT INTO t VALUES (%s, %s, %s, %s, %s)", rows)
    url = database.replace("postgresql://", "postgresql+psycopg://")
    table = read_table(asked(tmp_path, "SELECT * FROM t ORDER BY customer", url), SCHEMA)
    np.testing.assert_array_equal(table.columns["amount"], [n + 0.99 for n in range(9)] + [math.nan])
    assert table.columns["booked hour"].tolist() == [*map(str, range(9)), ""]
    assert table.columns["channel"].tolist() == ["online"] * 9 + [""]
    assert table.identifiers["customer"][3] == str(UUID(int=3))
    assert table.labels.tolist() == [n % 2 for n in range(9)] + [0]
    assert "Expected the query of" in refused(asked(tmp_path, "DELETE FROM t RETURNING *", url), SCHEMA)
    said = refused(asked(tmp_path, "SELECT nextval('s')", url), SCHEMA)
    assert "ReadOnlySqlTransaction (25006)" in said
    said = refused(asked(tmp_path, "SELECT channel::int FROM t", url), SCHEMA)
    assert "InvalidTextRepresentation (22P02)" in said  # whose text, in the driver, quotes the cell
    assert "web" not in said
    assert "UndefinedTable (42P01)" in refused(asked(tmp_path, "SELECT * FROM absent", url), SCHEMA)
    said = refused(
        asked(tmp_path, "SELECT 1", url.replace("user=confide", "user=confide&password=s3cret&port=1")), SCHEMA
    )
    assert "OperationalError" in said
    assert "s3cret" not in said
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (10,)


# --- what an approval binds to ----------------------------------------------------------------------------------------


def test_a_digest_covers_the_source_file_and_the_table_behind_it(tmp_path):
    path = bank(tmp_path)
    first = digest_of(path)
    assert first == digest_of(path)
    (tmp_path / "raw.csv").write_text(RAW + "1;1;W;;N\n", encoding="latin-1")
    changed = digest_of(path)
    path.write_text(SOURCE.replace("factor = 0.01", "factor = 0.1"))
    assert len({first, changed, digest_of(path)}) == 3
    (tmp_path / "raw.csv").unlink()
    with pytest.raises(DataError, match="readable table"):
        digest_of(path)


def test_a_digest_of_a_query_covers_its_rows_in_any_order(bank_db):
    forward = digest_of(asked(bank_db, "SELECT * FROM t"))
    assert digest_of(asked(bank_db, "SELECT * FROM t")) == forward
    source = asked(bank_db, "SELECT * FROM t ORDER BY random()")
    assert len({digest_of(source) for _ in range(4)}) == 1
    connection = sqlite3.connect(bank_db / "bank.db")
    connection.execute("UPDATE t SET amount = 2.75 WHERE fraud = 0")
    connection.commit()
    connection.close()
    assert digest_of(asked(bank_db, "SELECT * FROM t")) != forward


def test_one_query_for_two_parties_is_refused(bank_db):
    (bank_db / "schema.toml").write_text(PLAIN_TEXT)
    for name in "ab":
        source = "url = 'sqlite:///bank.db'\nquery = 'SELECT * FROM t'\n"
        (bank_db / f"{name}.toml").write_text(source)
    tables = {"schema": "schema.toml", "tables": {"a": "a.toml", "b": "b.toml"}}
    with pytest.raises(JobError, match="a table for each party, got one for a and b"):
        load_data(parse({"data": tables}, base=bank_db))


def damaged_arrow(folder, column, old, new):
    """A file of eight records whose buffer `old` was overwritten."""
    table = pyarrow.table({"x": column, "y": ["a"] * 8})
    with pyarrow.ipc.new_file(folder / "d.arrow", table.schema) as writer:
        writer.write_table(table)
    raw = (folder / "d.arrow").read_bytes()
    assert raw.count(np.array(old, np.int32).tobytes()) >= 1
    (folder / "d.arrow").write_bytes(raw.replace(np.array(old, np.int32).tobytes(), np.array(new, np.int32).tobytes()))
    return folder / "d.arrow"


@pytest.mark.parametrize("new", [[0] + [2**31 - 1] * 8, [0, -(2**30), 8, -8, 16, -(2**31), 8, 8, 8]])
def test_offsets_beyond_an_arrow_file_s_texts_are_refused(tmp_path, new):
    place = damaged_arrow(tmp_path, ["secretAA"] * 8, range(0, 72, 8), new)
    assert "damaged" in read_columns(place, ["x"])


@pytest.mark.parametrize("place", [2**31 - 1, -(2**30), 10**6])
def test_places_beyond_an_arrow_file_s_dictionary_are_refused(tmp_path, place):
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1] * 4, pyarrow.int32()), ["u", "v"])
    assert "damaged" in read_columns(damaged_arrow(tmp_path, column, [0, 1] * 4, [place] * 8), ["x"])


def read_columns(place, names):
    """What a table's columns are refused for."""
    with pytest.raises(DataError) as caught:
        raw_columns(open_source(place), names)
    return str(caught.value)


def test_a_dictionary_that_decodes_to_gigabytes_is_refused():
    column = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(np.zeros(1 << 16, np.int32)), pyarrow.array(["x" * (1 << 16)])
    )
    assert "unpack" in read_columns(pyarrow.table({"x": column}), ["x"])


def test_names_within_a_column_are_not_shown_and_large_numbers_refused():
    text = read_columns(pyarrow.table({"x": [{"SECRET": 1}]}), ["x"])
    assert "a struct" in text
    assert "SECRET" not in text
    assert "Arrow" in read_columns(pandas.DataFrame({"x": [10**30, 1]}), ["x"])
    with pytest.raises(DataError, match="Arrow"):
        kinds_of(pandas.DataFrame({"x": [10**30, 1]}))


@pytest.mark.parametrize("kind", ["s", "ms"])
def test_times_that_no_calendar_has_are_wrong_and_do_not_wrap(kind):
    for far in (2**62 // 10**3, -(2**62)):
        raw = raw_columns(
            open_source(pyarrow.table({"x": pyarrow.array([far, 0, None], pyarrow.timestamp(kind))})), ["x"]
        )
        column = Number(name="x", low=0.0, high=1.0, unit="", date="iso")
        found = read_number(raw["x"], column, Origin(name="x"), "x")
        assert found.wrong.tolist() == [True, False, False]
        assert found.missing.tolist() == [False, False, True]


@pytest.mark.parametrize("key", ["file", "url_file"])
def test_a_url_where_a_path_belongs_is_not_shown(tmp_path, key):
    rest = "" if key == "file" else 'query = "SELECT 1"\n'
    (tmp_path / "s.toml").write_text(f'{key} = "postgresql://u:SECRET@h/db"\n{rest}')
    for place in (tmp_path / "s.toml", Path("postgresql://u:SECRET@h/db"), Path("postgresql://u:SECRET@h/db.npz")):
        for read in (digest_of, kinds_of):
            with pytest.raises(DataError, match="got a URL") as caught:
                read(place)
            assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *(f'encoding = "{name}"' for name in ("zlib_codec", "rot13", "base64", "hex", "utf-8\\u0000")),
        "separator = '\"'",
        'separator = "\\n"',
        'separator = "\\u0000"',
        *(f'columns.b.format = "{form}"' for form in ("%Y-%m-%d %Y", "%c %c")),
        *(f'columns.b.factor = "{factor}"' for factor in ("1e999999999", "1e-99999999", "nan", "inf", "1/0")),
    ],
)
def test_a_source_file_with_what_python_stumbles_over_is_refused(tmp_path, text):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "s.toml").write_text(f'file = "a.csv"\n{text}\n')
    with pytest.raises(DataError):
        open_source(tmp_path / "s.toml")


def test_a_schema_s_date_that_utc_cannot_hold_is_refused():
    for low, high in (("0001-01-01T00:00:00+23:59", "2021-01-01"), ("2020-01-01", "9999-12-31T23:59:59-23:59")):
        with pytest.raises(DataError, match="9999"):
            Schema.read(
                '[label]\nname = "y"\nclasses = ["a", "b"]\n'
                f'[columns]\nd = {{ type = "date", low = {low}, high = {high} }}\n'
            )


def test_one_number_in_a_first_line_shows_that_it_is_no_header(tmp_path):
    (tmp_path / "t.csv").write_text("Alice Smith,Berlin,HIV+,42\nBob Stone,Paris,flu,43\n")
    with pytest.raises(DataError, match="Expected a header") as caught:
        kinds_of(tmp_path / "t.csv")
    assert "Alice" not in str(caught.value)


def test_an_archive_with_two_members_for_one_name_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", a=np.zeros(2))
    with zipfile.ZipFile(tmp_path / "t.npz", "a") as file:
        file.writestr("a", file.read("a.npy"))
    assert "different names" in read_columns(tmp_path / "t.npz", ["a"])


@pytest.mark.parametrize("packing", ["zstd", "lz4"])
def test_a_packed_arrow_file_is_refused_before_it_is_unpacked(tmp_path, packing, monkeypatch):
    monkeypatch.setattr("confide.data.arrow.LARGEST_UNPACKED_BYTES", 1 << 20)
    zeros = pyarrow.array(np.zeros(1 << 18))
    for rows, column in ((1 << 18, zeros), (100, pyarrow.DictionaryArray.from_arrays(np.zeros(100, np.int32), zeros))):
        table = pyarrow.table({"x": column, "y": pyarrow.array(["a"] * rows)})
        options = pyarrow.ipc.IpcWriteOptions(compression=packing)
        with pyarrow.ipc.new_file(tmp_path / "t.arrow", table.schema, options=options) as writer:
            writer.write_table(table)
        before = pyarrow.total_allocated_bytes()
        monkeypatch.setattr("confide.data.arrow._gathered", None)  # nothing is unpacked
        assert "unpack" in read_columns(tmp_path / "t.arrow", ["x"])
        assert pyarrow.total_allocated_bytes() - before < 1 << 20


def test_a_packed_arrow_file_cannot_hide_behind_messages_that_only_its_end_leads_to(tmp_path, monkeypatch):
    """pyarrow goes by the file's end; a reader of its messages in order stops at the first damaged one."""
    table = pyarrow.table({"x": np.zeros(1 << 18), "y": ["a"] * (1 << 18)})
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.ipc.new_file(tmp_path / "t.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    body = bytearray((tmp_path / "t.arrow").read_bytes())
    body[8:16] = bytes(8)
    (tmp_path / "t.arrow").write_bytes(body)
    assert len(raw_columns(open_source(tmp_path / "t.arrow"), ["x"])["x"]) == 1 << 18  # whole all the same
    monkeypatch.setattr("confide.data.arrow.LARGEST_UNPACKED_BYTES", 1 << 20)
    monkeypatch.setattr("confide.data.arrow._gathered", None)  # nothing is unpacked
    assert "unpack" in read_columns(tmp_path / "t.arrow", ["x"])


@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_byte_of_an_arrow_file_that_was_changed_ends_in_an_answer(tmp_path_factory, at, value):
    folder = tmp_path_factory.mktemp("arrow")
    table = pyarrow.table({"x": np.arange(50.0), "y": pyarrow.array(["a", "b"] * 25).dictionary_encode()})
    options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
    with pyarrow.ipc.new_file(folder / "t.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    body = bytearray((folder / "t.arrow").read_bytes())
    body[at % len(body)] = value
    (folder / "t.arrow").write_bytes(body)
    with suppress(DataError):
        raw_columns(open_source(folder / "t.arrow"), ["x", "y"])


def test_arrow_files_of_every_sort_are_read_whole(tmp_path):
    kinds = [pyarrow.null(), pyarrow.string(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), pyarrow.float64()]
    for kind in kinds:
        for packing in (None, "zstd", "lz4"):
            column = pyarrow.array([None] * 5, kind)
            table = pyarrow.table({"x": column, "y": ["a", "b", "c", "d", ""]})
            options = pyarrow.ipc.IpcWriteOptions(compression=packing)
            with pyarrow.ipc.new_file(tmp_path / "t.arrow", table.schema, options=options) as writer:
                writer.write_table(table, max_chunksize=2)
                writer.write_table(table.slice(0, 0))
                writer.write_table(table)
            raw = raw_columns(open_source(tmp_path / "t.arrow"), ["x", "y"])
            assert raw["y"].tolist() == ["a", "b", "c", "d", ""] * 2
            assert len(raw["x"]) == 10


def test_an_arrow_file_that_a_data_frame_wrote_is_read(tmp_path):
    frame = polars.DataFrame({"x": ["a", "b", None], "y": [1, 2, 3]}).with_columns(
        polars.col("x").cast(polars.Categorical)
    )
    frame.write_ipc(tmp_path / "t.arrow", compression="zstd")
    assert raw_columns(open_source(tmp_path / "t.arrow"), ["x", "y"])["x"].tolist() == ["a", "b", None]


def test_long_texts_of_a_query_count(tmp_path, monkeypatch):
    monkeypatch.setattr("confide.data.database.LARGEST_UNPACKED_BYTES", 1 << 20)
    (tmp_path / "s.toml").write_text(
        'url = "sqlite://"\nquery = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t WHERE x < 300) '
        "SELECT x, printf('%10000d', x) AS y FROM t\"\n"
    )
    assert "at most" in read_columns(tmp_path / "s.toml", ["x"])


HEADLESS = 'file = "h.data"\nheader = ["a", "b", "y"]\n'
TWO = Schema.read('[label]\nname = "y"\nclasses = ["0", "1"]\n[columns]\nb = { type = "number", low = 0, high = 9 }\n')


def test_names_of_a_file_without_a_line_of_names_stand_in_its_source(tmp_path):
    (tmp_path / "h.data").write_text("5,1,0\n6,2,1\n7,9,1\n")
    (tmp_path / "s.toml").write_text(HEADLESS)
    table = read_table(tmp_path / "s.toml", TWO)
    assert table.columns["b"].tolist() == [1, 2, 9]  # the first line is a record
    assert table.labels.tolist() == [0, 1, 1]
    assert not survey(tmp_path / "s.toml", TWO).problems
    with pytest.raises(DataError, match=r"header = \[...\] in a source file"):
        read_table(tmp_path / "h.data", TWO)


@pytest.mark.parametrize(
    ("source", "raw", "text"),
    [
        (HEADLESS, "a,b,y\n5,1,0\n", "begins with these names itself"),
        (HEADLESS.replace('"b"', '"a"'), "5,1,0\n", "different column names"),
        (HEADLESS.replace('"b"', '"7"'), "5,1,0\n", "Expected a header"),
        (HEADLESS.replace('"a", ', ""), "5,1,0\n", "Expected 2 cells"),
        (HEADLESS.replace("h.data", "h.npz"), "", "has names of its own"),
        (HEADLESS.replace("h.data", "h.parquet"), "", "has names of its own"),
        (HEADLESS.replace('file = "h.data"', 'url = "sqlite://"\nquery = "SELECT 1"'), "", "together with file"),
    ],
)
def test_a_header_that_does_not_belong_there_is_refused(tmp_path, source, raw, text):
    (tmp_path / "h.data").write_text(raw)
    (tmp_path / "s.toml").write_text(source)
    with pytest.raises(DataError, match=text):
        read_table(tmp_path / "s.toml", TWO)
