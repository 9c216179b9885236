"""`confide data describe` on the command line: names and types, bounds only for a price, exit codes."""

from __future__ import annotations

import tomllib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from confide import cli


@pytest.fixture
def table(tmp_path):
    n = 3000
    columns = {
        "amount": np.linspace(1.5, 90.25, n),
        "gone": [None] * n,
        "bank": ["secret"] * n,
        "fraud": [0, 1] * (n // 2),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def runs(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_a_draft_has_no_values(table, capsys):
    code, out, err = runs(capsys, "data", "describe", table, "--label", "fraud")
    assert (code, err) == (0, "")
    found = tomllib.loads(out)
    assert found["columns"]["amount"] == {"type": "number", "unit": "", "low": 0, "high": 0}
    assert list(found["columns"]) == ["amount", "gone", "bank"]
    assert "secret" not in out
    assert "90" not in out.replace("1900", "")


def test_bounds_have_a_price_that_is_said(table, capsys):
    code, out, err = runs(capsys, "data", "describe", table, "--label", "fraud", "--epsilon", 1, "--delta", "1e-6")
    assert code == 0
    amount = tomllib.loads(out)["columns"]["amount"]
    assert amount["outside"] == "clip"
    assert 0 <= amount["low"] < amount["high"] == 128
    assert "epsilon=1, delta=1e-06" in out
    assert "spent epsilon=1" in err
    assert "secret" not in out


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--label", "fruad"), 'did you mean "fraud"'),
        (("--epsilon", "0"), "epsilon"),
        (("--epsilon", "1", "--delta", "2"), "delta"),
    ],
)
def test_mistakes_end_with_2_and_one_line(table, capsys, more, text):
    code, out, err = runs(capsys, "data", "describe", table, *more)
    assert (code, out) == (2, "")
    assert text in err
    assert len(err.strip().splitlines()) == 1


def test_files_that_are_no_table_end_with_2(tmp_path, capsys):
    for name, body in {"t.parquet": b"none", "t.csv": b"1,2\n3,4\n", "t.toml": b"file = 3\n", "t.npz": b"PK"}.items():
        (tmp_path / name).write_bytes(body)
        code, out, err = runs(capsys, "data", "describe", tmp_path / name)
        assert (code, out) == (2, "")
        assert len(err.strip().splitlines()) == 1
    assert runs(capsys, "data", "describe", tmp_path / "absent.csv")[0] == 2
