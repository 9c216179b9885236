"""A job file: defaults, the printed form, and one clear line for everything that can be wrong with it."""

import tomllib

import pytest

from confide.errors import JobError
from confide.train.job import describe, load, parse

GOOD = {"data": {"set": "breast-cancer"}, "privacy": {"epsilon": 1.0, "expected_records": 455}}


def test_the_printed_job_is_the_job():
    job = parse(GOOD)
    again = parse(tomllib.loads(describe(job)))
    assert again == job
    assert "epsilon = 1.0" in describe(job)
    assert "no differential privacy" in describe(parse({"data": {"set": "breast-cancer"}}))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"trian": {}}, r'Unknown key "trian" \(did you mean "train"\?\)'),
        ({"train": {"learning_rat": 1}}, r'"train.learning_rat" \(did you mean "learning_rate"\?\)'),
        ({"train": {"rounds": "many"}}, r"train.rounds to be a whole number, got 'many'"),
        ({"train": {"rounds": 0}}, r"train.rounds=0 to be at least 1"),
        ({"train": {"momentum": 1}}, r"train.momentum=1 to be at least 0 and below 1"),
        ({"train": {"momentum": float("nan")}}, r"train.momentum=nan"),
        ({"train": 3}, r"\[train\] to be a table"),
        ({"model": {"kind": "forest"}}, r'model.kind to be "logistic" or "mlp", got \'forest\''),
        ({"privacy": {"epsilon": 1.0}}, r"privacy.expected_records"),
        ({"privacy": {"epsilon": -1.0, "expected_records": 9}}, r"privacy.epsilon=-1.0 to be above 0"),
        ({"privacy": {"delta": 0, "expected_records": 9}}, r"privacy.delta=0 to be above 0"),
        ({"data": {}}, r"either data.set"),
        ({"data": {"schema": "s", "set": "x"}}, r"either data.set"),
        ({"data": {"schema": "s", "tables": {"a": "a.csv"}}}, r"at least 2 parties"),
        ({"data": {"set": 5}}, r"data.set to be text, got 5"),
    ],
)
def test_what_is_wrong_is_named(table, text):
    with pytest.raises(JobError, match=text):
        parse(GOOD | table)


def test_files(tmp_path):
    with pytest.raises(JobError, match="No such file"):
        load(tmp_path / "absent.toml")
    path = tmp_path / "job.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(JobError, match="Expected TOML"):
        load(path)
    path.write_text("[data\n")
    with pytest.raises(JobError, match="Expected TOML"):
        load(path)
    path.write_text('[data]\nset = "breast-cancer"\n')
    assert load(path).path("model.confide") == tmp_path / "model.confide"
