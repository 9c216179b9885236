"""What advice writes, runs: jobs of scenarios of the grid, at small sizes, to a model; and a comparison of them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from confide.cli import main
from confide.compare import costs
from confide.compare.recommend import recommend
from confide.compare.scenario import load
from confide.model.artifact import load as load_model
from confide.model.artifact import read_public_key

GRID = Path(__file__).parent / "scenarios"
MODELS = costs.load()
FEATURES, RECORDS = 6, 60

#: Of the grid, so that every aggregator, noise, trees, squares and training on shares are among them.
SCENARIOS = (
    "four-hospitals-lan", "four-hospitals-two-servers", "malicious-server", "one-liar-in-twelve", "public-data",
    "published-model", "published-model-malicious", "hundred-clinics-two-servers-wan", "second-server-no-dealer",
    "squares-one-server", "trees-updates-hidden", "model-stays-hidden", "lawful-pool-published-model",
    "parties-may-pool-post-quantum", "published-model-devices", "records-stay", "public-trees",
)  # fmt: skip


def small(name):
    """Return a scenario of the grid with few parties, features, rounds and trees: what decides it is not in them."""
    scenario = load(GRID / f"{name}.toml")
    replace = msgspec.structs.replace
    parties = min(scenario.holders.parties, 9 if scenario.needs.liars else 4)
    return replace(
        scenario,
        scenario=replace(scenario.scenario, phases=("training",)),
        holders=replace(scenario.holders, parties=max(parties, 9 if scenario.needs.liars else parties)),
        needs=replace(scenario.needs, rounds=2, training_seconds=0.0),
        model=replace(scenario.model, features=FEATURES, hidden=(4,), trees=2, depth=2),
    )


def write_tables(folder, parties):
    """Write the tables that the job file names, with made-up records in them."""
    rng = np.random.default_rng(1)
    names = [f"x{number}" for number in range(FEATURES)]
    columns = "".join(f'{name} = {{ type = "number", low = -1, high = 1 }}\n' for name in names)
    classes = '[{ name = "no", values = ["0"] }, { name = "yes", values = ["1"] }]'
    (folder / "schema.toml").write_text(
        f'name = "made up"\n\n[label]\nname = "y"\nclasses = {classes}\n\n[columns]\n{columns}'
    )
    for number in range(1, parties + 1):
        x = rng.uniform(-1, 1, (RECORDS, FEATURES))
        rows = [",".join([*names, "y"])]
        rows += [",".join(map(str, [*row, int(row[0] + row[1] > 0)])) for row in x.tolist()]
        (folder / f"party-{number}.csv").write_text("\n".join([*rows, ""]))


def ended(*words):
    with pytest.raises(SystemExit) as end:
        main([*map(str, words)])
    return end.value.code


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_job_that_is_written_trains_to_the_end(name, tmp_path, capsys):
    scenario = small(name)
    (answer,) = recommend(scenario, MODELS, (), relax=False)
    assert answer.runs, answer
    job = tomllib.loads(answer.runs)
    (tmp_path / "job.toml").write_text(answer.runs)
    write_tables(tmp_path, len(job["data"]["tables"]))
    assert ended("train", tmp_path / "job.toml") == 0, capsys.readouterr().err
    if "folder" in job.get("shares", {}):
        assert len(list((tmp_path / job["shares"]["folder"]).iterdir())) >= 2  # a file for each server
        return
    model = load_model(tmp_path / "model.confide", trust=read_public_key(str(tmp_path / "signing.pem.pub")))
    base, _, noise = answer.choice.partition("+")
    assert model.label.aggregator == {"pooled": "plain"}.get(base, base)
    assert (model.label.epsilon is not None) == bool(noise)
    assert model.graph.features == FEATURES


def test_all_that_are_advised_are_among_them():
    """The list covers what the grid expects, but for enclaves, which have no hardware here."""
    expected = {load(path).expected.training for path in GRID.glob("*.toml")}
    covered = {load(GRID / f"{name}.toml").expected.training for name in SCENARIOS}
    left = {choice for choice in expected - covered if not choice.startswith("tee")}
    assert left <= {"", "local", "nothing", "not measured"}, left


@pytest.mark.parametrize("name", ["four-hospitals-lan", "published-model"])
def test_a_comparison_of_the_job_measures_what_was_advised(name, tmp_path, capsys):
    scenario = small(name)
    (answer,) = recommend(scenario, MODELS, (), relax=False)
    aggregator = answer.choice.partition("+")[0]
    settings = '[compare]\ndata = "synthetic"\nseeds = 1\nqueries = 2\nclients = 0\ncheck_link = false\nsizes = []\n'
    text = answer.runs[: answer.runs.index("[output]")]
    (tmp_path / "job.toml").write_text(text + settings)
    write_tables(tmp_path, scenario.holders.parties)
    out = tmp_path / "out"
    words = ["compare", tmp_path / "job.toml", "--only", f"training/{aggregator}", "--only", "training/pooled"]
    assert ended(*words, "--out", out) == 0, capsys.readouterr().err
    told = json.loads((out / "compare.json").read_text())
    assert {record["choice"] for record in told["records"]} == {aggregator, "pooled"}
    (tmp_path / "scenario.toml").write_text((GRID / f"{name}.toml").read_text())
    assert ended("advise", tmp_path / "scenario.toml", "--results", out / "compare.json") == 0
    assert "measured" in capsys.readouterr().out
