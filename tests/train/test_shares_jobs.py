"""Jobs whose aggregate is "mpc": what they train, what they refuse, what their labels and folders say."""

from __future__ import annotations

import copy
import importlib.util
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from confide.cli import main
from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.errors import JobError, ModelError, PrivacyError
from confide.guarantee import NOISE_FROM_SYSTEM
from confide.model.artifact import load as load_model
from confide.model.artifact import read_public_key
from confide.mpc.halves import kits, read_public, read_shares
from confide.mpc.outsourced import Outsourced
from confide.train.contradictions_in_shares import RESERVED
from confide.train.evaluate import accuracy
from confide.train.job import describe, load, parse
from confide.train.ledger import Ledger
from confide.train.parts import aggregator_of
from confide.train.shares import load_rows, prepare
from confide.train.shares.course import DEALER, SERVERS
from confide.train.shares.run import graph_of
from confide.train.shares.simulate import joined
from confide.wire import MemoryStore, run

from ..bench import script

EXAMPLES = Path(__file__).parents[2] / "examples" / "shares"
JOB = {"data": {"set": "breast-cancer", "parties": 3}, "train": {"aggregate": "mpc", "rounds": 6}}
COLUMNS = {
    "data": {
        "schema": "schema.toml",
        "tables": {"a": "a.csv", "b": "b.csv"},
        "columns": {"a": ["age", "ill"], "b": ["dose"]},
        "link": "patient",
    },
    "train": {"aggregate": "mpc", "rounds": 4},
    "shares": {"batch": 16},
}
PRIVATE_END = (
    "[privacy]\nepsilon = 1.0\ndelta = 1e-4\nexpected_records = 455\n"
    '[output]\nmodel = "m.confide"\nledger = "ledger.jsonl"\nsigning_key = "k.pem"\n'
)
PRIVATE = {"privacy": {"epsilon": 1.0, "delta": 1e-4, "expected_records": 455}}


def merged(base: dict, **sections) -> dict:
    found = copy.deepcopy(base)
    for name, section in sections.items():
        found[name] = found.get(name, {}) | section
    return found


def trained(job, seed: str = "job"):
    rng = SeededRandomness(seed)
    return prepare(job, load_rows(job, rng)).run(rng=rng)


def against_scikit_learn(finished) -> tuple[float, float]:
    """Return our accuracy and scikit-learn's, both on the test records."""
    rows = finished.prepared.rows
    x = np.concatenate(list(rows.features.values()))
    y = np.concatenate(list(rows.labels.values()))
    theirs = LogisticRegression(C=1e3, max_iter=5000).fit(x, y)
    return accuracy(finished.graph, rows.test_x, rows.test_y), float(theirs.score(rows.test_x, rows.test_y))


def test_breast_cancer_is_learnt_as_well_as_by_scikit_learn():
    ours, theirs = against_scikit_learn(trained(parse(merged(JOB, train={"rounds": 15, "learning_rate": 2.0}))))
    assert ours > 0.93
    assert ours > theirs - 0.03


def test_four_hospitals_learn_heart_disease_as_well_as_scikit_learn_on_pooled_records(tmp_path):
    job_file = script("hospital_tables").hospital_tables(tmp_path)
    if job_file is None:
        pytest.skip("the shared data set heart_disease is not on this machine")
    job = load(job_file)
    tables = {"schema": str(tmp_path / "heart.schema.toml"), "test_fraction": 0.34}
    tables["tables"] = {name: str(tmp_path / path) for name, path in job.data.tables.items()}
    job = parse(
        {
            "data": tables,
            "train": {"aggregate": "mpc", "rounds": 20, "learning_rate": 0.25, "momentum": 0.75},
            "shares": {"batch": 128},
        }
    )
    finished = trained(job)
    ours, theirs = against_scikit_learn(finished)
    assert set(finished.label.parties) == {"cleveland", "hungarian", "switzerland", "va"}
    assert ours > 0.72
    assert ours > theirs - 0.04


def test_a_network_with_a_hidden_layer_and_many_classes_is_trained():
    job = parse(
        {
            "data": {"set": "digits", "parties": 2, "split": "even", "test_fraction": 0.6},
            "model": {"kind": "mlp", "hidden": 16},
            "train": {"aggregate": "mpc", "rounds": 12, "learning_rate": 0.0625, "momentum": 0.75},
        }
    )
    finished = trained(job)
    assert finished.graph is not None
    assert [type(layer).__name__ for layer in finished.graph.layers] == ["Linear", "Relu", "Linear", "Sigmoid"]
    rows = finished.prepared.rows
    assert accuracy(finished.graph, rows.test_x, rows.test_y) > 0.6  # by chance: 0.1


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A folder with the example's two tables about the same patients."""
    folder = tmp_path_factory.mktemp("columns")
    spec = importlib.util.spec_from_file_location("make_tables", EXAMPLES / "make_tables.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.main(folder)
    for job in EXAMPLES.glob("*.toml"):
        shutil.copy(job, folder)
    return folder


def test_columns_of_two_parties_are_matched_and_the_model_stays_shares(tables, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tables / "columns.toml")])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "people whom both tables have: 49" in said
    assert "accuracy" not in said
    assert sorted(path.name for path in (tables / "shares").iterdir()) == [
        "model.json",
        "server-0.npz",
        "server-1.npz",
    ]
    public = read_public(tables / "shares")
    assert public.servers == ("university", "insurer")
    assert public.label.released.startswith("nothing")
    assert {(tables / "shares" / f"server-{one}.npz").stat().st_mode & 0o777 for one in (0, 1)} == {0o600}
    parts = [read_shares(tables / "shares", public, one) for one in (0, 1)]
    assert np.abs((parts[0]["w1"] + parts[1]["w1"]).view(np.int64) / 2**16).max() < 10  # together a model, apart none
    assert np.abs(parts[0]["w1"].view(np.int64) / 2**16).max() > 2**40


def test_the_model_of_matched_columns_is_as_good_as_scikit_learn(tables):
    text = (tables / "columns.toml").read_text().replace('folder = "shares"', 'loss = "logistic"')
    (tables / "opened.toml").write_text(text)
    finished = trained(load(tables / "opened.toml"))
    ours, theirs = against_columns(finished)
    assert ours > 0.93
    assert ours > theirs - 0.04
    assert finished.prepared.rows.common is not None
    assert "which of its own rows the other has too" in (finished.label.parties_see or "")


def against_columns(finished) -> tuple[float, float]:
    rows = finished.prepared.rows
    x = np.empty((rows.count, rows.preprocess.features))
    for name, piece in rows.pieces.items():
        x[:, piece.columns] = rows.features[name]
    (y,) = rows.labels.values()
    theirs = LogisticRegression(C=1e3, max_iter=5000).fit(x, y)
    return accuracy(finished.graph, rows.test_x, rows.test_y), float(theirs.score(rows.test_x, rows.test_y))


def test_folders_of_shares_are_checked(tables, tmp_path):
    place = tmp_path / "shares"
    job = parse(merged(JOB, train={"rounds": 1}, shares={"folder": str(place)}))
    finished = trained(job)
    assert finished.graph is None
    with pytest.raises(JobError, match="weights are opened"):
        finished.artifact()
    finished.write_shares(place)
    public = read_public(place)
    both = [read_shares(place, public, one) for one in (0, 1)]
    weights = joined(finished.prepared.course.task, finished.result.shares)
    assert np.array_equal((both[0]["w1"] + both[1]["w1"]).view(np.int64) / 2.0**16, weights.weights[0])
    good = (place / "server-0.npz").read_bytes()
    for body in (b"", good[:100], b"\x80\x04pickle", good[:-30]):
        (place / "server-0.npz").write_bytes(body)
        with pytest.raises(ModelError):
            read_shares(place, public, 0)
    (place / "server-0.npz").write_bytes(good)
    with pytest.raises(ModelError, match="layers"):
        read_shares(place, msgspec.structs.replace(public, widths=(7, 1)), 0)
    (place / "model.json").write_text("{}")
    with pytest.raises(ModelError):
        read_public(place)


@pytest.mark.parametrize(
    ("loss", "kind"), [("logistic", "logistic"), ("squared", "logistic"), ("sigmoid", "logistic"), ("logistic", "mlp")]
)
def test_a_model_that_was_never_opened_is_served_by_two_servers(tmp_path, loss: str, kind: str):
    place = tmp_path / "shares"
    train, shares = {"rounds": 2, "learning_rate": 0.25}, {"folder": str(place), "loss": loss}
    job = parse(merged(JOB, train=train, shares=shares, model={"kind": kind}))
    finished = trained(job)
    finished.write_shares(place)
    backend, rng = Outsourced(), SystemRandomness()
    found = {role: backend.decode_kit(role, kit.encode()) for role, kit in kits(place).items()}
    stores = {role: MemoryStore() for role in backend.roles}
    run({role: backend.setup(role, found[role], stores[role], rng) for role in backend.roles}, stores=stores)
    x = finished.prepared.rows.test_x[:7]
    asked = {
        role: backend.predict(role, found[role], x if role == "client" else None, stores[role], rng)
        for role in backend.roles
    }
    answers = run(asked, stores=stores).output("client")
    task = finished.prepared.course.task
    graph = graph_of(task, joined(task, finished.result.shares), finished.prepared.rows.classes)
    assert np.abs(answers - graph.apply(x)).max() < 1e-3
    assert np.ptp(answers) > 0.05


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    place = tmp_path / "shares"
    finished = trained(parse(merged(JOB, train={"rounds": 1}, shares={"folder": str(place)})))
    written = []

    def full(body, **arrays):
        if written:
            raise OSError(28, "No space left on device")
        written.append(arrays)
        body.write(b"one server's file")

    for empty in (False, True):
        if empty:
            place.mkdir()
        written.clear()
        with monkeypatch.context() as broken:
            broken.setattr(np, "savez", full)
            with pytest.raises(OSError, match="No space"):
                finished.write_shares(place)
        assert written
        assert [path.name for path in tmp_path.iterdir()] == ["shares"] * empty
        assert not empty or list(place.iterdir()) == []
    finished.write_shares(place)  # into the empty folder
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(OSError, match="not empty"):
        finished.write_shares(place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["shares"]


def test_shares_of_another_model_are_never_overwritten(tmp_path, capsys):
    (tmp_path / "shares").mkdir()
    (tmp_path / "shares" / "server-0.npz").write_text("of another training")
    (tmp_path / "job.toml").write_text(
        '[data]\nset = "breast-cancer"\n[train]\naggregate = "mpc"\nrounds = 1\n[shares]\nfolder = "shares"\n'
    )
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tmp_path / "job.toml")])
    assert stop.value.code == 2
    assert "new or empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "shares").iterdir()] == ["server-0.npz"]


@pytest.mark.parametrize("name", ["server-0", "server-1", "dealer"])
def test_no_party_has_the_name_of_a_server_or_the_dealer(tmp_path, capsys, name: str):
    assert {*SERVERS, DEALER} == RESERVED
    (tmp_path / "job.toml").write_text(
        f'[data]\nschema = "s.toml"\ntables = {{ {name} = "a.csv", b = "b.csv" }}\n[train]\naggregate = "mpc"\n'
        '[output]\nmodel = "m.confide"\nledger = "l.jsonl"\nsigning_key = "k.pem"\n'
    )
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tmp_path / "job.toml")])
    assert stop.value.code == 2
    assert "rename the party" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]


@pytest.mark.parametrize(
    ("number", "code", "end"),
    [(signal.SIGINT, 130, '[shares]\nfolder = "shares"\n'), (signal.SIGTERM, 143, PRIVATE_END)],
)
def test_a_training_that_is_stopped_leaves_nothing_half_written(tmp_path, number: int, code: int, end: str):
    (tmp_path / "job.toml").write_text(
        '[data]\nset = "breast-cancer"\nparties = 2\n[train]\naggregate = "mpc"\nrounds = 3000\n'
        f"learning_rate = 0.01\n{end}"
    )
    command = [sys.executable, "-c", "from confide.cli import main; main()", "train", str(tmp_path / "job.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("private while"):
                break
        time.sleep(0.5)  # into its steps, of which there are many
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "no model and no shares were written" in said
    assert "Traceback" not in said
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"job.toml", "ledger.jsonl"} if "ledger" in end else {"job.toml"})
    if "ledger" in end:
        assert "stays charged" in said
        assert Ledger(tmp_path / "ledger.jsonl").spent == 1.0


def test_labels_say_who_is_trusted_and_what_was_seen():
    open_label = trained(parse(merged(JOB, train={"rounds": 1}))).label
    assert open_label.aggregator == "mpc"
    assert open_label.parties == ("party-1", "party-2", "party-3")
    assert open_label.epsilon is None
    assert "no two of server-1, server-2 and dealer pool" in (open_label.server_sees or "")
    assert "semi-honest" in (open_label.server_sees or "")
    assert open_label.released == "the final model"
    assert "trained by mpc over 3 parties, no differential privacy" in open_label.sentence()
    same = {"servers": ["one", "two"], "dealer": "two", "insecure_colocated_dealer": True}
    assert "INSECURE" in (trained(parse(merged(JOB, train={"rounds": 1}, shares=same))).label.server_sees or "")


def test_private_jobs_are_labelled_with_what_they_promise():
    job = parse(merged(JOB | PRIVATE, model={"unit_rows": True}, train={"rounds": 5, "learning_rate": 4.0}))
    finished = trained(job)
    label = finished.label
    assert (label.epsilon, label.delta, label.colluding, label.rounds) == (1.0, 1e-4, 1, 5)
    assert label.voided  # a fixed seed
    assert label.epsilon_outsiders is not None
    assert label.epsilon_outsiders < 0.75  # both servers' noise
    assert finished.prepared.course.task.noise
    assert finished.prepared.rows.preprocess.features == finished.graph.features
    secret = prepare(job, finished.prepared.rows).run(rng=SystemRandomness()).label
    assert secret.seed == NOISE_FROM_SYSTEM
    assert not secret.voided


def test_a_private_run_is_charged_once_and_before_it_begins(tmp_path):
    job = parse(merged(JOB | PRIVATE, train={"rounds": 2}))
    rng = SeededRandomness("charged")
    prepared = prepare(job, load_rows(job, rng))
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def stop(run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared.run(rng=rng, ledger=ledger, done=stop)
    assert Ledger(tmp_path / "ledger.jsonl").spent == 1.0
    again = Ledger(tmp_path / "again.jsonl")
    prepared.run(rng=rng, ledger=again)
    assert Ledger(tmp_path / "again.jsonl").spent == 1.0


def test_a_job_is_printed_as_it_will_run():
    for base in (JOB, merged(JOB | PRIVATE, train={"learning_rate": 4.0}), COLUMNS):
        job = parse(copy.deepcopy(base))
        again = parse(tomllib.loads(describe(job)))
        assert msgspec.structs.replace(again, base=job.base) == job
    assert parse(JOB).shares.batch == 128
    assert parse(JOB | PRIVATE).shares.batch == 0


HOSTILE = {
    "shares without mpc": ({"train": {"aggregate": "masked"}, "shares": {"batch": 4}}, "belongs to"),
    "sgd without mpc": ({"train": {"aggregate": "masked", "algorithm": "sgd"}}, "shared rows"),
    "columns without mpc": ({"train": {"aggregate": "masked"}, "data": {"link": "patient"}}, "data.link"),
    "another algorithm": ({"train": {"algorithm": "newton"}}, '"sgd"'),
    "trees": ({"model": {"kind": "trees"}}, "model.kind"),
    "standardise": ({"data": {"standardise": True}}, "data.standardise"),
    "compressed": ({"train": {"compress": "rand-k"}}, "compress"),
    "a smaller quorum": ({"train": {"quorum": 2}}, "all 3 parties"),
    "one server": ({"shares": {"servers": ["one"]}}, "two different names"),
    "one server twice": ({"shares": {"servers": ["one", "one"]}}, "two different names"),
    "a path as a name": ({"shares": {"dealer": "../x"}}, "letters, digits"),
    "a server that deals": ({"shares": {"servers": ["one", "two"], "dealer": "two"}}, "can read every row"),
    "shares and a model": ({"shares": {"folder": "f"}, "output": {"model": "m", "signing_key": "k"}}, "leave one out"),
    "an unknown key": ({"shares": {"batches": 3}}, "batches"),
    "a negative batch": ({"shares": {"batch": -1}}, "batch"),
    "an unknown loss": ({"shares": {"loss": "hinge"}}, "loss"),
    "columns of a set": ({"data": {"columns": {"a": ["x"]}, "link": "p"}}, "data.tables"),
    "privacy of a network": ({"model": {"kind": "mlp"}} | PRIVATE, "model.kind"),
    "privacy without room for the bias": (merged(PRIVATE, privacy={"clip_norm": 0.5}), "above 1"),
    "both servers collude": (merged(PRIVATE, privacy={"colluding": 2}), "0 or 1"),
    "a private server that deals": (
        merged(PRIVATE, shares={"dealer": "server-1", "insecure_colocated_dealer": True}),
        "hides nothing",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_jobs_that_contradict_themselves_are_refused_in_words(name: str):
    sections, said = HOSTILE[name]
    with pytest.raises(JobError) as refused:
        parse(merged(JOB, **sections))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": ["age", "ill"], "c": ["dose"]}, "same two parties"),
        ({"a": ["age", "ill"]}, "same two parties"),
    ],
)
def test_columns_name_the_parties_of_the_tables(columns: dict, said: str):
    with pytest.raises(JobError, match=said):
        parse(merged(COLUMNS, data={"columns": columns}))


@pytest.fixture
def two_tables(tmp_path):
    (tmp_path / "schema.toml").write_text(
        'name = "two"\nsource = "invented"\n[label]\nname = "ill"\nclasses = ["no", "yes"]\n[columns]\n'
        'age = { type = "number", low = 0, high = 120 }\ndose = { type = "number", low = 0, high = 10 }\n'
    )
    people = [f"p{number}" for number in range(60)]
    (tmp_path / "a.csv").write_text(
        "patient,age,ill\n" + "".join(f"{who},{20 + n},{'yes' if n % 3 else 'no'}\n" for n, who in enumerate(people))
    )
    (tmp_path / "b.csv").write_text("patient,dose\n" + "".join(f"{who},{n % 10}\n" for n, who in enumerate(people[5:])))
    return tmp_path


def test_columns_at_two_parties_meet_the_right_rows(two_tables):
    rows = load_rows(parse(copy.deepcopy(COLUMNS), base=two_tables), SeededRandomness("rows"))
    assert rows.common == 55
    age, dose = rows.features["a"][:, 0], rows.features["b"][:, 0]
    number = np.rint((age + 1) / 2 * 120 - 20).astype(int)  # features are in [-1, 1]
    assert np.array_equal(np.rint((dose + 1) / 2 * 10).astype(int), (number - 5) % 10)
    assert np.array_equal(rows.labels["a"], (number % 3 != 0).astype(int))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": ["age", "ill"], "b": ["doze"]}, "doze"),
        ({"a": ["age", "ill"], "b": ["dose", "age"]}, "age"),
        ({"a": ["age", "dose"], "b": ["ill"]}, "beside the label"),
        ({"a": ["age"], "b": ["dose"]}, "ill"),
    ],
)
def test_columns_are_those_of_the_schema_once(two_tables, columns: dict, said: str):
    job = parse(merged(COLUMNS, data={"columns": columns}), base=two_tables)
    with pytest.raises(JobError, match=said):
        load_rows(job, SeededRandomness("rows"))


def test_private_columns_are_clipped_by_parts(two_tables):
    job = parse(merged(COLUMNS | PRIVATE, train={"rounds": 2}, privacy={"clip_norm": 1.2}), base=two_tables)
    finished = trained(job)
    assert finished.label.epsilon == 1.0
    assert finished.graph is not None


def test_a_rate_that_noise_would_drive_out_of_range_is_refused():
    job = parse(merged(JOB | PRIVATE, train={"learning_rate": 1000.0, "rounds": 5000, "momentum": 0.96}))
    with pytest.raises(PrivacyError, match="lower the learning rate"):
        prepare(job, load_rows(job, SeededRandomness("r")))


def test_nothing_else_takes_such_a_job_for_a_sum():
    with pytest.raises(JobError, match="trains on shares of rows"):
        aggregator_of(parse(JOB))


@pytest.mark.parametrize(
    "text",
    [
        'servers = ["a", "a"]',
        'folder = "nowhere/at/all"',
        'servers = ["a", "b"]\ndealer = "a"',
    ],
)
def test_the_command_line_ends_with_one_line_and_2(tmp_path, capsys, text: str):
    (tmp_path / "job.toml").write_text(
        f'[data]\nset = "breast-cancer"\n[train]\naggregate = "mpc"\nrounds = 1\n[shares]\n{text}\n'
    )
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tmp_path / "job.toml")])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("confide: Expected")
    assert said.count("\n") == 1


def test_a_model_that_was_opened_is_signed_and_served_like_any_other(tmp_path):
    (tmp_path / "job.toml").write_text(
        '[data]\nset = "breast-cancer"\n[train]\naggregate = "mpc"\nrounds = 2\n'
        '[output]\nmodel = "m.confide"\nledger = "l.jsonl"\nsigning_key = "k.pem"\n'
    )
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tmp_path / "job.toml")])
    assert stop.value.code == 0
    artifact = load_model(tmp_path / "m.confide", trust=read_public_key(tmp_path / "k.pem.pub"))
    assert artifact.label.aggregator == "mpc"
    assert artifact.label.ledger
    assert artifact.signer
