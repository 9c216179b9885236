"""`confide advise` from the outside: a file, answers at a terminal, results of a comparison, a job file."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from typer.testing import CliRunner

from confide.cli import app
from confide.cli.advise import asked
from confide.compare.prices import PUBLISHED
from confide.compare.record import Record, Spread
from confide.compare.result import Result
from confide.compare.scenario import parse, questions
from confide.errors import ConfideError, UsageError
from confide.model.graph import AveragePool, Conv, Graph, Linear, Relu, Residual
from confide.model.onnx import to_onnx
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


@pytest.fixture
def network(tmp_path):
    """A residual network with ReLU, which no key of [model] describes."""
    rng = np.random.default_rng(1)
    same = Conv(rng.normal(size=(2, 2, 3, 3)) / 4, np.zeros(2), 6, 6, padding=(1, 1, 1, 1))
    first = Conv(rng.normal(size=(2, 1, 3, 3)) / 3, np.zeros(2), 6, 6, padding=(1, 1, 1, 1))
    pool, last = AveragePool(2, 6, 6, (6, 6), (1, 1)), Linear(rng.normal(size=(3, 2)), np.zeros(3))
    path = tmp_path / "network.onnx"
    path.write_bytes(to_onnx(Graph((first, Relu(), Residual((same, Relu(), same)), Relu(), pool, last))))
    return path


def test_a_model_of_ones_own_takes_the_place_of_the_described_one(network, tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO + "[trust]\nservers = 3\ndealer = true\n")
    told = json.loads(advise(path, "--model", network, "--json").output)["answers"]
    assert told[1]["choice"] in ("mpc-dealer", "mpc-3pc")
    refused = told[1]["refused"]
    assert refused["he"][0].startswith("layer 1 (Relu): encrypted arithmetic has no such function")
    assert "Conv" in refused["paillier"][0]
    assert "no job file trains such a network" in " ".join(told[0]["reasons"])
    # by hand: 72 + 72 + 72 values through ReLU
    assert "216 comparisons" in told[1]["plans"]["mpc-dealer"]
    said = advise(path, "--model", network).output
    assert "model: 36 features, 3 outputs" in said
    assert "plan of mpc-dealer: " in said


def test_what_is_no_model_is_refused(scenario, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ConfideError):
        advise(scenario, "--model", path)


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["described", "own"])
def test_a_terminal_is_asked(own, network):
    """Every question at a terminal of its own is answered by a bare return, which takes its default."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-c", "from confide.cli import main; main()", "advise"]
    words += ["--model", str(network)] if own else []
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True) as process:
        os.close(theirs)
        said, asked_for, answered = b"", len(questions()) - 3 * own, 0
        try:
            while part := os.read(ours, 4096):
                said += part
                while answered < asked_for and said.count(b"]: ") > answered:
                    os.write(ours, b"\n")
                    answered += 1
        except OSError:  # the other side is closed
            pass
    os.close(ours)
    assert process.returncode == 0, said.decode()
    assert answered == asked_for
    assert b"training: take" in said
    assert (b"How many features" in said) == (not own)
    assert (b"inference: nothing satisfies this" in said) == own
    assert (b"inference: take: Homomorphic encryption, model protected (he)" in said) == (not own)
