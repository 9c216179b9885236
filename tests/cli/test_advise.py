"""`confide advise` from the outside: a file, answers at a terminal, results of a comparison, a job file."""

from __future__ import annotations

import json
import tomllib

import pytest
from typer.testing import CliRunner

from confide.cli import app
from confide.cli.advise import asked
from confide.compare.prices import PUBLISHED
from confide.compare.record import Record, Spread
from confide.compare.result import Result
from confide.compare.scenario import parse
from confide.errors import UsageError
from confide.serve import load_backend
from confide.train.job import parse as parse_job

SCENARIO = """
[scenario]
regulation = "the board must agree"
[hide]
updates = ["server"]
query = ["server"]
weights = ["client"]
[expected]
training = "amortised"
inference = "paillier"
"""


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return path


def advise(*words):
    return CliRunner().invoke(app, ["advise", *map(str, words)], catch_exceptions=False)


def test_an_answer_for_each_phase_with_what_changes_it(scenario):
    done = advise(scenario)
    assert done.exit_code == 0
    assert "training: take: Secure aggregation, amortised keys (amortised)" in done.output
    assert "inference: take: Homomorphic encryption, model protected (he)" in done.output
    assert "if the client may learn the weights: Homomorphic encryption, open model (he-open)" in done.output
    assert "modelled: fitted to measurements of" in done.output
    assert "the board must agree" in done.output
    assert done.output.count("the file expects") == 1
    assert "the file expects paillier" in done.output


def test_json_says_the_same(scenario):
    told = json.loads(advise(scenario, "--json").output)
    assert [(one["task"], one["choice"]) for one in told["answers"]] == [("training", "amortised"), ("inference", "he")]
    assert told["answers"][1]["price"]["source"] == "modelled"
    assert "does not hide the query from the server" in told["answers"][1]["refused"]["plain"]


def test_the_job_file_is_written_once(scenario, tmp_path):
    path = tmp_path / "job.toml"
    assert advise(scenario, "--job", path).exit_code == 0
    assert parse_job(tomllib.loads(path.read_text())).train.aggregate == "amortised"
    with pytest.raises(UsageError, match="name another"):
        advise(scenario, "--job", path)


def test_without_a_file_and_a_terminal_it_says_what_to_give():
    with pytest.raises(UsageError, match="SCENARIO"):
        advise()


def test_what_is_no_result_is_refused(scenario, tmp_path):
    path = tmp_path / "compare.json"
    path.write_text('{"records": []}')
    with pytest.raises(UsageError, match="confide compare"):
        advise(scenario, "--results", path)


def test_results_of_a_comparison_rank_before_the_models(scenario, tmp_path):
    """Paillier is the slowest by far; a comparison that measured it fastest wins."""

    def record(choice, seconds):
        figures = {"latency_lan_seconds": Spread(seconds, seconds, seconds, seconds)}
        guarantee = load_backend(choice).guarantee
        return Record("inference", choice, "", figures, guarantee, "", "", 5)

    found = Result(
        name="job", job="", records=(record("he", 0.5), record("paillier", 0.001)), curves=(), unfit={}, machine="",
        commit="", data_kind="synthetic", private=False, links=(), link_check=(), people=(), prices=PUBLISHED,
        seconds=1.0,
    )  # fmt: skip
    path = tmp_path / "compare.json"
    path.write_bytes(found.encode())
    told = json.loads(advise(scenario, "--results", path, "--json").output)["answers"][1]
    assert (told["choice"], told["price"]["source"]) == ("paillier", "measured")
    assert told["runner_up"]["choice"] == "he"
    assert told["runner_up"]["price"]["seconds"] == 0.5


def test_answers_at_a_terminal_make_a_scenario():
    """The defaults hide updates, queries and weights; "nobody" is an empty list."""
    given = {"Who must not see a prediction? (server outsiders, or nobody)": "nobody"}
    table = asked(lambda text, default, type: type(given.get(text, default)), lambda text, default: default)
    made = parse(table)
    assert made.hide.query == ("server",)
    assert made.hide.weights == ("client",)
    assert made.hide.prediction == ()
    assert made.trust.servers == 1
