"""`confide split`: the files are a federation that trains, and exactly the split that a job would have made."""

from __future__ import annotations

import importlib.util
import stat
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from confide.cli import main
from confide.data.schema import Schema
from confide.data.sets import load_set
from confide.data.table import read_table
from confide.ideal import Cohort
from confide.train import load, load_data, parse, train
from confide.train.parts import aggregator_of


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0


def fails(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("split") / "new" / "trial"
    run("split", "breast-cancer", "--nodes", "north,south, west", "--into", folder)
    return folder


def test_the_files_are_there_and_belong_to_their_owner(trial):
    assert sorted(contents(trial)) == [
        *("job.toml", "north.csv", "policy.toml", "schema.toml", "south.csv", "test.csv", "west.csv")
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in trial.glob("*.csv")} == {0o600}


def test_every_record_is_in_exactly_one_file(trial):
    schema, whole = load_set("breast-cancer")
    tables = [read_table(path, schema) for path in sorted(trial.glob("*.csv"))]
    names = [column.name for column in schema.columns]

    def records(table) -> Counter[tuple[float, ...]]:
        columns = [table.columns[name].tolist() for name in names]
        return Counter(zip(*columns, table.labels.tolist(), strict=True))

    assert sum(map(records, tables), Counter()) == records(whole)
    assert Schema.load(trial / "schema.toml") == schema


def test_it_is_the_split_that_a_job_over_the_set_makes(trial):
    """The oracle: the job that names the set; what its parties hold is the same, bit for bit."""
    job = load(trial / "job.toml")
    there = load_data(replace(job, data=replace(job.data, test="test.csv", evaluate="none")))
    here = load_data(parse({"data": {"set": "breast-cancer", "parties": 3, "split": "by-label", "alpha": 1.0}}))
    assert [silo.name for silo in there.silos] == ["north", "south", "west"]
    for one, other in zip((*there.silos, there.test), (*here.silos, here.test), strict=True):
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(one.y, other.y)


def test_the_job_trains_as_it_stands(trial):
    job = load(trial / "job.toml")
    assert job.privacy is not None
    rounds = train(job, load_data(job))
    done = next(rounds)
    rounds.close()
    assert done.members == {"north", "south", "west"}
    assert done.epsilon is not None


@pytest.mark.parametrize("count", range(3, 13))
def test_the_quorum_suits_any_number_of_nodes(tmp_path, count):
    names = [f"n{number}" for number in range(count)]
    run("split", "breast-cancer", "--nodes", ",".join(names), "--into", tmp_path)
    job = load(tmp_path / "job.toml")
    aggregator_of(job).check(Cohort(tuple(names), job.train.quorum))
    if job.train.quorum > 3:  # and it is the least that is accepted
        with pytest.raises(Exception, match="quorum"):
            aggregator_of(job).check(Cohort(tuple(names), job.train.quorum - 1))


def test_the_same_seed_gives_the_same_files_and_another_gives_others(trial, tmp_path):
    arguments = ("split", "breast-cancer", "--nodes", "north,south,west")
    run(*arguments, "--into", tmp_path / "same", "--seed", 1)
    run(*arguments, "--into", tmp_path / "other", "--seed", 2)
    assert contents(tmp_path / "same") == contents(trial)
    assert contents(tmp_path / "other")["north.csv"] != contents(trial)["north.csv"]
    assert tomllib.loads((tmp_path / "other" / "job.toml").read_text())["job"]["seed"] == 2


def test_a_smaller_alpha_is_less_even(tmp_path):
    schema, _ = load_set("breast-cancer")

    def spread(alpha: float) -> float:
        """How far the nodes' shares of one class lie apart."""
        folder = tmp_path / str(alpha)
        run("split", "breast-cancer", "--nodes", "a,b,c,d", "--into", folder, "--alpha", alpha)
        return float(np.std([read_table(folder / f"{name}.csv", schema).labels.mean() for name in "abcd"]))

    assert spread(0.1) > 2 * spread(1000.0)


def test_the_policy_allows_its_own_job(trial):
    table = tomllib.loads((trial / "policy.toml").read_text())
    job = load(trial / "job.toml")
    assert job.model.kind in table["allow"]["models"]
    assert job.train.aggregate in table["allow"]["aggregates"]
    assert job.privacy is not None
    limits = table["limits"]
    assert job.privacy.epsilon <= limits["most_epsilon_per_job"] <= limits["greatest_epsilon"]
    assert job.privacy.colluding >= limits["least_colluding"]
    assert job.train.quorum >= limits["smallest_cohort"]
    assert table["approval"]["by"] == "person"


def test_the_policy_is_one_that_a_node_reads(trial):
    if importlib.util.find_spec("confide.train.policy") is None:
        pytest.skip("there is no confide.train.policy in this checkout")
    from confide.train.policy import load_policy

    assert load_policy(trial / "policy.toml").allow.models == ("logistic",)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ("north,south", "at least 3 different names"),
        ("north,south,north", "at least 3 different names"),
        ("north,south,../west", "change '../west'"),
        ("north,south,.west", "change '.west'"),
        ("north,south,", "change ''"),
        ("north,south,server", "change 'server'"),
        ("north,south,test", "change 'test'"),
        (f"north,south,{'w' * 65}", "at most 64 long"),
        ("north,south,w\u00e9st", "change 'w"),
    ],
)
def test_names_that_no_federation_takes_are_refused(capsys, tmp_path, nodes, says):
    assert says in fails(capsys, "split", "breast-cancer", "--nodes", nodes, "--into", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_with_something_in_it_stays_as_it_is(capsys, tmp_path):
    (tmp_path / "job.toml").write_text("mine")
    says = fails(capsys, "split", "breast-cancer", "--nodes", "a,b,c", "--into", tmp_path)
    assert "a new or an empty folder" in says
    assert contents(tmp_path) == {"job.toml": b"mine"}
    says = fails(capsys, "split", "breast-cancer", "--nodes", "a,b,c", "--into", tmp_path / "job.toml")
    assert "a new or an empty folder" in says


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("breast-canser", "--nodes", "a,b,c"), 'did you mean "breast-cancer"'),
        (("breast-cancer", "--nodes", "a,b,c", "--alpha", "0"), "alpha=0.0"),
        (("breast-cancer", "--nodes", ",".join(f"n{number}" for number in range(50))), "take fewer parties"),
    ],
)
def test_what_cannot_be_split_is_one_line_and_no_file(capsys, tmp_path, arguments, says):
    assert says in fails(capsys, "split", *arguments, "--into", tmp_path / "x")
    assert not (tmp_path / "x").exists()
