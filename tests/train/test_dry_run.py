"""The dry run says what would happen, and what it says is what the node's own code then does."""

import csv

import numpy as np
import pytest

from confide.errors import DataError
from confide.train.budget import Budget
from confide.train.dry_run import dry_run
from confide.train.job import parse
from confide.train.offer import job_hash
from confide.train.policy import parse_policy
from confide.wire import MemoryStore
from train.offers import JOB, SCHEMA, job_of


def table(folder, records=60, **columns):
    """Write a table that keeps to the schema but for the given columns."""
    rng = np.random.default_rng(7)
    cells = {
        "age": rng.integers(20, 90, records),
        "height": rng.integers(150, 200, records),
        "sex": rng.choice(["f", "m"], records),
        "ill": rng.choice(["no", "yes"], records),
    } | columns
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(cells)
        writer.writerows(zip(*cells.values(), strict=True))
    return path


def test_a_table_by_itself(tmp_path):
    found = dry_run(table(tmp_path), SCHEMA)
    assert found.passes
    assert found.job is None
    assert found.survey.records == 60


def test_a_table_a_job_and_a_policy(tmp_path):
    found = dry_run(table(tmp_path), SCHEMA, job=job_of(), policy=parse_policy({}))
    assert found.passes
    assert found.findings == ()
    assert found.job.hash == job_hash(job_of(), SCHEMA)
    assert found.job.training + found.job.testing == 60
    assert 0 < found.job.testing < 30
    assert found.job.step_seconds > 0
    assert any("update hidden from server" in sentence for sentence in found.job.guarantee)


def test_the_policy_speaks_without_a_coordinator(tmp_path):
    policy = parse_policy({"limits": {"most_rounds": 1}, "allow": {"coordinators": ["0" * 64], "roster": "0" * 64}})
    found = dry_run(table(tmp_path), SCHEMA, job=job_of(), policy=policy)
    assert not found.passes
    assert [line.partition("(")[2][:18] for line in found.job.refusals] == ["limits.most_rounds"]
    assert len(dry_run(table(tmp_path), SCHEMA, job=job_of(privacy=None)).job.refusals) == 1  # the defaults speak


def test_the_budget_is_looked_at_if_there_is_one(tmp_path):
    store = MemoryStore()
    budget = Budget(store, "records")
    store.commit(budget.charge(run="earlier", job="0" * 64, round=1, attempt=0, epsilon=2.5, delta=1e-5))
    assert not dry_run(table(tmp_path), SCHEMA, job=job_of(), budget=budget).passes
    assert dry_run(table(tmp_path), SCHEMA, job=job_of()).passes


def test_a_broken_table_is_surveyed_and_the_job_is_judged_all_the_same(tmp_path):
    found = dry_run(table(tmp_path, sex=["x"] * 60), SCHEMA, job=job_of(privacy=None))
    assert [one.where for one in found.survey.problems] == ["sex"]
    assert len(found.job.refusals) == 1
    assert found.job.step_seconds is None
    assert not found.passes


@pytest.mark.parametrize(
    ("changes", "records", "level", "text"),
    [
        ({"privacy": {"expected_records": 30, "max_records": 40, "delta": 1e-5}}, 60, "warning", "max_records=40"),
        (
            {"privacy": {"expected_records": 30, "delta": 1e-5}},
            60,
            "warning",
            "expected_records=30 says of all",
        ),
        ({"privacy": {"expected_records": 9000, "delta": 1e-5}}, 60, "warning", "few training records"),
        ({"privacy": None, "train": {"expected_records": 2}}, 60, "problem", "train.expected_records=2"),
        ({}, 2, "problem", "more records for a test share"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, changes, records, level, text):
    policy = parse_policy({"limits": {"require_privacy": False}})
    found = dry_run(table(tmp_path, records), SCHEMA, job=job_of(**changes), policy=policy)
    assert any(one.level == level and text in one.text for one in found.job.findings), found.job.findings
    assert found.passes == (level == "warning")


def test_a_job_that_cannot_be_offered_is_a_problem_in_words(tmp_path):
    for data in ({"set": "breast-cancer"}, {"schema": "s", "tables": {"a": "a", "b": "b", "c": "c"}, "test": "t"}):
        found = dry_run(table(tmp_path), SCHEMA, job=parse(JOB | {"data": data}))
        assert found.job.hash == ""
        assert not found.passes
        assert len(found.job.findings) == 1


def test_a_schema_that_is_none_is_an_error(tmp_path):
    with pytest.raises(DataError, match="usable schema"):
        dry_run(table(tmp_path), "x = 1")
