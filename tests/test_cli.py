"""The command line as a user meets it: the whole life of a model in processes, and one line for every mistake."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from confide.cli import main
from confide.compare.hosted import hosted
from confide.crypto.keys import SigningKey
from confide.data.sets import load_set
from confide.model.artifact import UnverifiedModel, load, read_public_key
from confide.model.graph import Graph, Linear

JOB = """
[data]
set = "breast-cancer"
[train]
quorum = 3
rounds = 20
[privacy]
expected_records = 455
[output]
model = "model.confide"
ledger = "ledger.jsonl"
signing_key = "signing.pem"
"""


def cli(*arguments, folder=None):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "confide", *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=120
    )


def fails(capsys, *arguments):
    """Run the command line here, expect exit code 2, and return its one line."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("warning: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which `confide train` ran, with raw rows to ask about."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "job.toml").write_text(JOB)
    done = cli("train", "job.toml", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "epsilon = 1.0" in done.stdout
    assert "wrote" in done.stdout
    _, table = load_set("breast-cancer")
    with (folder / "x.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        writer.writerows(np.column_stack([values[:20] for values in table.columns.values()]).tolist())
    return folder


def expected_answers(folder: Path):
    """The plain model on the same rows, without server, client or encryption."""
    artifact = load(folder / "model.confide", trust=read_public_key(folder / "signing.pem.pub"))
    _, table = load_set("breast-cancer")
    columns = {name: values[:20] for name, values in table.columns.items()}
    return artifact.graph.apply(artifact.preprocess.apply(columns))[:, 0]


@pytest.mark.parametrize(("backend", "options"), [("plain", ()), ("he", ()), ("he", ("--open-model",))])
def test_train_serve_predict_verify(trained, backend, options):
    """The flow of the README over real processes and HTTP: predictions equal those of the model in the clear."""
    with hosted(trained / "model.confide", [backend], *options, "--trust", str(trained / "signing.pem.pub")) as url:
        asked = cli("predict", url, "x.csv", "--backend", backend, "--keys", "keys.sqlite", folder=trained)
        again = cli(
            "predict", url, "x.csv", "--backend", backend, "--keys", "keys.sqlite", "--out", "y.csv", folder=trained
        )
    assert asked.returncode == again.returncode == 0, asked.stderr + again.stderr
    rows = list(csv.DictReader(asked.stdout.splitlines()))
    answers = np.array([float(row["p(malignant)"]) for row in rows])
    np.testing.assert_allclose(answers, expected_answers(trained), atol=2e-3)
    assert [row["decision"] for row in rows] == [
        "malignant" if p > 0.5 else "benign" for p in expected_answers(trained)
    ]
    assert (trained / "keys.sqlite").stat().st_mode & 0o077 == 0
    assert len((trained / "y.csv").read_text().splitlines()) == 21
    verified = cli("ledger", "verify", "ledger.jsonl", "--model", "model.confide", folder=trained)
    assert verified.returncode == 0
    assert "42 entries hold" in verified.stdout  # the job, 20 releases and rounds, the model
    assert "together" in verified.stdout


def test_plain_serving_must_be_asked_for(trained):
    with hosted(trained / "model.confide", ["plain"]) as url:
        refused = cli("predict", url, "x.csv", folder=trained)
    assert refused.returncode == 2
    assert "backend" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (JOB.replace("rounds", "ronds"), r'"train.ronds" \(did you mean "rounds"\?\)'),
        (JOB.replace("rounds = 20", 'rounds = "many"'), "train.rounds to be a whole number, got 'many'"),
        (JOB.replace("quorum = 3", "quorum = 9"), "train.quorum=9"),
        (JOB.replace("breast-cancer", "breast"), "Unknown data set 'breast'"),
        (JOB + "x = [", "Expected TOML"),
    ],
)
def test_a_wrong_job_is_one_line_and_writes_nothing(tmp_path, capsys, job, text):
    (tmp_path / "job.toml").write_text(job)
    assert re.search(text, fails(capsys, "train", tmp_path / "job.toml"))
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]


def test_a_value_outside_its_bounds_names_column_and_row_and_no_value(tmp_path, capsys):
    schema = (
        '[label]\nname = "ill"\nclasses = ["no", "yes"]\n[columns]\nage = { type = "number", low = 0, high = 120 }\n'
    )
    (tmp_path / "schema.toml").write_text(schema)
    (tmp_path / "a.csv").write_text("ill,age\nno,30\nyes,31\n")
    (tmp_path / "b.csv").write_text("ill,age\nno,30\nyes,1300\n")
    job = '[data]\nschema = "schema.toml"\ntables = { a = "a.csv", b = "b.csv" }\n[output]\nledger = "l.jsonl"\n'
    (tmp_path / "job.toml").write_text(job)
    line = fails(capsys, "train", tmp_path / "job.toml")
    assert all(word in line for word in ("b.csv", "age", "row 2", "120")), line
    assert "1300" not in line
    assert not (tmp_path / "l.jsonl").exists()


def test_files_that_are_not_there_or_not_ours(tmp_path, trained, capsys):
    assert "No such file" in fails(capsys, "train", tmp_path / "absent.toml")
    assert "absent.confide" in fails(capsys, "serve", tmp_path / "absent.confide")
    (tmp_path / "other").write_bytes(b"something else entirely")
    assert "Expected a confide model" in fails(capsys, "serve", tmp_path / "other")
    assert "No such file" in fails(capsys, "ledger", "verify", tmp_path / "absent.jsonl")
    cut = (trained / "ledger.jsonl").read_bytes().splitlines(keepends=True)[:-1]
    (tmp_path / "cut.jsonl").write_bytes(b"".join(cut))
    line = fails(capsys, "ledger", "verify", tmp_path / "cut.jsonl", "--model", trained / "model.confide")
    assert "last lines were cut off" in line


def test_a_model_under_another_key_or_with_a_flipped_bit_is_not_served(tmp_path, trained, capsys):
    line = fails(capsys, "serve", trained / "model.confide", "--trust", "00" * 32)
    assert "pinned key" in line
    body = bytearray((trained / "model.confide").read_bytes())
    body[-5] ^= 1
    (tmp_path / "flipped.confide").write_bytes(body)
    fails(capsys, "serve", tmp_path / "flipped.confide")


def test_a_layer_that_a_backend_cannot_run_is_named_with_its_replacement(tmp_path, capsys):
    from confide.crypto.random import SystemRandomness
    from confide.guarantee import PrivacyLabel
    from confide.model.artifact import Artifact, create_signing_key
    from confide.model.graph import Graph, Linear, Sigmoid
    from confide.model.preprocess import Preprocess, Scale

    deep = Graph((Linear(np.ones((2, 1)), np.zeros(2)), Sigmoid(), Linear(np.ones((1, 2)), np.zeros(1)), Sigmoid()))
    label = PrivacyLabel(aggregator="pooled", parties=("a",), quorum=1, colluding=0, rounds=1)
    key = create_signing_key(tmp_path / "k.pem", SystemRandomness())
    Artifact(deep, Preprocess((Scale(name="x", low=0, high=1),)), label).save(tmp_path / "deep.confide", key)
    line = fails(capsys, "serve", tmp_path / "deep.confide", "--backend", "he")
    assert "Sigmoid" in line
    assert "Square" in line


def test_a_server_that_is_not_there(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("a\n1\n")
    assert "127.0.0.1:9" in fails(capsys, "predict", "http://127.0.0.1:9", tmp_path / "x.csv")
    assert "https" in fails(capsys, "predict", "http://example.invalid", tmp_path / "x.csv")


def test_a_port_that_is_taken(trained, capsys):
    with hosted(trained / "model.confide", ["plain"]) as url:
        line = fails(capsys, "serve", trained / "model.confide", "--backend", "plain", "--port", url.rsplit(":")[-1])
    assert "choose another port" in line


def test_unknown_backends_and_mixed_options(trained, capsys):
    assert 'did you mean "plain"' in fails(capsys, "serve", trained / "model.confide", "--backend", "plian")
    assert "--open-model" in fails(capsys, "serve", trained / "model.confide", "--backend", "plain", "--open-model")
    quota = ["serve", trained / "model.confide", "--backend", "plain", "--query-quota", 3]
    assert "outlive a restart" in fails(capsys, *quota)
    assert "Expected --api-keys or client certificates" in fails(capsys, *quota, "--store", trained / "unused.sqlite")
    plain = ["serve", trained / "model.confide", "--backend", "plain"]
    for limit, text in (("rows", "got 'rows'"), ("workers=3", "got 'workers'"), ("keys_bytes=many", "with a number")):
        assert text in fails(capsys, *plain, "--limit", limit)
    assert "keys_bytes=-1" in fails(capsys, *plain, "--limit", "keys_bytes=-1")
    assert "need TLS" in fails(capsys, *plain, "--workers", 0, "--client-ca", trained / "signing.pem.pub")
    assert "scheme 'mysql'" in fails(capsys, *plain, "--workers", 0, "--store", "mysql://here")


def test_api_keys_open_the_server_for_their_holders(trained, tmp_path):
    made = cli("api-key", "clinic-7")
    assert made.returncode == 0
    (tmp_path / "keys.toml").write_text(made.stdout)
    (tmp_path / "mine").write_text(made.stderr.split()[-1] + "\n")
    ask = ["x.csv", "--backend", "plain"]
    with hosted(
        trained / "model.confide",
        ["plain"],
        "--api-keys",
        str(tmp_path / "keys.toml"),
        "--query-quota",
        "20",
        "--store",
        str(tmp_path / "s.sqlite"),
    ) as url:
        assert cli("predict", url, *ask, folder=trained).returncode == 2
        assert cli("predict", url, *ask, "--api-key-file", tmp_path / "mine", folder=trained).returncode == 0
        spent = cli("predict", url, *ask, "--api-key-file", tmp_path / "mine", folder=trained)
    assert spent.returncode == 2
    assert "429" in spent.stderr


def test_label_is_a_page_for_people_and_json_for_programs(trained):
    shown = cli("label", "model.confide", "--trust", "signing.pem.pub", folder=trained)
    assert shown.returncode == 0
    page = " ".join(shown.stdout.split())
    assert page.startswith("PRIVACY LABEL What is promised epsilon 1 (strong) delta 0.00119 ")
    assert "full batch: every record is in every release" in page
    assert "accuracy on the test records may be printed in the clear" in page
    told = json.loads(cli("label", "model.confide", "--json", "--trust", "signing.pem.pub", folder=trained).stdout)
    assert told["label"]["epsilon"] == 1.0
    assert 0.01 < told["worst_true_positive_rate_at_1_percent"] < 0.03
    assert told["file"]["signer_pinned"] is True
    unpinned = cli("label", "model.confide", folder=trained)
    assert "without a pinned key" in unpinned.stderr


def test_inspect_shows_the_label_and_no_weight(trained, tmp_path):
    shown = cli("inspect", "model.confide", "--trust", "signing.pem.pub", folder=trained)
    assert shown.returncode == 0
    assert "epsilon=1 at delta=0.00119" in shown.stdout
    assert "mean radius" in shown.stdout
    # weights that nothing else on the page can look like: a digest has no point, no other figure these digits
    told = load(trained / "model.confide", trust=read_public_key(trained / "signing.pem.pub"))
    layers = [
        Linear(np.full_like(layer.weight, 7654.321), np.full_like(layer.bias, 7654.321))
        if isinstance(layer, Linear)
        else layer
        for layer in told.graph.layers
    ]
    marked = replace(told, graph=Graph(tuple(layers), told.graph.classes))
    marked.save(tmp_path / "marked.confide", SigningKey(bytes(32)))
    shown = cli("inspect", "marked.confide", folder=tmp_path)
    assert shown.returncode == 0
    assert "mean radius" in shown.stdout
    assert "7654." not in shown.stdout + shown.stderr
    with pytest.warns(UnverifiedModel):
        weight = load(tmp_path / "marked.confide").graph.layers[0].weight
    assert "7654." in str(weight)  # what a leak would look like


def test_a_second_run_on_one_ledger_is_warned_of_and_added_up(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    assert cli("train", "job.toml", folder=tmp_path).returncode == 0
    (tmp_path / "model.confide").rename(tmp_path / "first.confide")
    again = cli("train", "job.toml", folder=tmp_path)
    assert "earlier runs in this ledger spent epsilon=1" in again.stderr
    verified = cli("ledger", "verify", "ledger.jsonl", "--model", "first.confide", folder=tmp_path)
    assert verified.returncode == 0
    assert "together, for records that took part in each: 2" in verified.stdout


def test_help_and_usage_errors():
    for verb in (
        (),
        ("train",),
        ("serve",),
        ("predict",),
        ("demo",),
        ("ledger",),
        ("ledger", "verify"),
        ("api-key",),
        ("inspect",),
        ("label",),
    ):
        shown = cli(*verb, "--help")
        assert shown.returncode == 0
        assert "confide" in shown.stdout
    assert cli("trian").returncode == 2
    assert cli("serve", "m", "--port", "99999").returncode == 2


@pytest.mark.parametrize("private", [False, True])
def test_an_evaluation_in_one_more_sum(tmp_path, private):
    job = '[data]\nset = "breast-cancer"\nevaluate = "federated"\n[train]\nrounds = 3\n'
    job += "[privacy]\nexpected_records = 455\n" if private else ""
    job += '[output]\nledger = "l.jsonl"\nmodel = "m.confide"\nsigning_key = "k.pem"\n'
    (tmp_path / "job.toml").write_text(job)
    done = cli("train", "job.toml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "held-out records of 4 parties, counted in one sum:" in done.stdout
    assert "AUC " in done.stdout
    assert "in the clear" not in done.stdout
    assert "party-1" not in done.stdout  # nobody's own figures
    found = cli("ledger", "verify", "l.jsonl", "--model", "m.confide", folder=tmp_path)
    assert found.returncode == 0
    assert ("epsilon of all runs together, for records that took part in each: 1\n" in found.stdout) == private
