"""`confide predict` and `confide keys` against a real server process: keys once, rows in order, files whole."""

from __future__ import annotations

import csv
import stat

import numpy as np
import pytest

from confide.compare.hosted import hosted
from confide.crypto.keys import SigningKey
from confide.model.artifact import Artifact
from confide.model.graph import Graph, Linear
from confide.store import sealed
from serve.toy import GRAPH, LABEL, PREPROCESS

OWNER, STRANGER = SigningKey(bytes(range(32))), SigningKey(bytes(32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A signed model, one of several classes, and a table of 50 rows."""
    folder = tmp_path_factory.mktemp("predict")
    Artifact(GRAPH, PREPROCESS, LABEL).save(folder / "model.confide", OWNER)
    several = Graph(
        (Linear(np.array([[1.0, 0.5, -0.5], [0.0, -1.0, 1.0], [-2.0, 0.0, 0.0]]), np.zeros(3)),), tuple("abc")
    )
    Artifact(several, PREPROCESS, LABEL).save(folder / "several.confide", OWNER)
    rows = [(age, "fm"[age % 2]) for age in range(50)]
    (folder / "x.csv").write_text("age,sex\n" + "".join(f"{age},{sex}\n" for age, sex in rows))
    (folder / "passphrase").write_text("correct horse\n")
    (folder / "wrong").write_text("wrong horse\n")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with hosted(folder / "model.confide", ["he"]) as url:
        yield url


@pytest.fixture
def run(run, monkeypatch):
    monkeypatch.setattr(sealed, "COST_BITS", 14)
    return run


def expected(graph: Graph = GRAPH) -> np.ndarray:
    ages = np.arange(50.0)
    return graph.apply(PREPROCESS.apply({"age": ages, "sex": np.array(["fm"[age % 2] for age in range(50)], object)}))


def test_keys_are_encrypted_listed_used_again_and_deleted_here_and_there(run, folder, server, tmp_path):
    keys, words = tmp_path / "mine" / "keys.sqlite", ("--passphrase-file", folder / "passphrase")
    ask = ("predict", server, folder / "x.csv", "--keys", keys, *words, "--out", tmp_path / "y.csv")
    run(*ask, "--concurrency", "3", "--signer", OWNER.public.hex())
    answers = np.array(
        [[float(row["p(malignant)"])] for row in csv.DictReader((tmp_path / "y.csv").read_text().splitlines())]
    )
    np.testing.assert_allclose(answers, expected(), atol=2e-3)
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.parent.stat().st_mode) == 0o700
    first, told = run("keys", "list", keys, *words)
    assert "encrypted" in told
    assert server in first
    run(*ask)
    assert run("keys", "list", keys, *words)[0] == first  # made, sent and written nothing
    assert "does not open" in run("keys", "list", keys, "--passphrase-file", folder / "wrong", code=2)[1]
    assert "passphrase" in run("keys", "list", keys, code=2)[1]
    assert "--all" in run("keys", "delete", keys, *words, code=2)[1]
    assert "called 'zz'" in run("keys", "delete", keys, "zz", *words, code=2)[1]
    name = first.splitlines()[1].split()[0]
    assert "here and at its server" in run("keys", "delete", keys, name[:6], *words)[0]
    assert "no keys" in run("keys", "list", keys, *words)[0]
    run(*ask)  # makes new ones


def test_keys_age(run, folder, server, tmp_path):
    keys = tmp_path / "keys.sqlite"
    run("predict", server, folder / "x.csv", "--keys", keys, "--out", tmp_path / "y.csv")
    assert "not encrypted" in run("keys", "list", keys)[1]
    assert "0 models" in run("keys", "expire", keys)[0]
    assert "1 model" in run("keys", "expire", keys, "--older-than-days", "0")[0]
    assert "no keys" in run("keys", "list", keys)[0]


def test_a_file_of_predictions_appears_whole_or_not_at_all(run, folder, server, tmp_path):
    out = tmp_path / "y.csv"
    out.write_text("as it was\n")
    (tmp_path / "bad.csv").write_text("age,sex\n30,f\n900,m\n")
    for arguments in (
        (server, tmp_path / "bad.csv"),
        (server, folder / "x.csv", "--kit-sha256", "0" * 64),
        (server, folder / "x.csv", "--signer", STRANGER.public.hex()),
        (server, folder / "x.csv", "--keyring"),
        ("http://127.0.0.1:9", folder / "x.csv"),
    ):
        run("predict", *arguments, "--out", out, code=2)
        assert out.read_text() == "as it was\n"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "y.csv"]
    assert run("predict", server, tmp_path / "bad.csv", code=2)[0] == ""


def test_classes_alone_and_softmax_at_this_side(run, folder):
    with hosted(folder / "several.confide", ["plain"]) as url:
        shown = run("predict", url, folder / "x.csv", "--backend", "plain")[0]
        alone = run("predict", url, folder / "x.csv", "--backend", "plain", "--class-only")[0]
    logits = expected(Graph((Linear(np.array([[1.0, 0.5, -0.5], [0.0, -1.0, 1.0], [-2.0, 0.0, 0.0]]), np.zeros(3)),)))
    rows = list(csv.DictReader(shown.splitlines()))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose([[float(row[f"p({one})"]) for one in "abc"] for row in rows], softmax, atol=1e-6)
    decisions = ["abc"[place] for place in logits.argmax(axis=1)]
    assert [row["decision"] for row in rows] == decisions
    assert alone.splitlines() == ["decision", *decisions]


def test_a_folder_that_is_not_there_is_named(run, folder, server, tmp_path):
    said = run("predict", server, folder / "x.csv", "--out", tmp_path / "no" / "y.csv", code=2)[1]
    assert f"no such folder, make it first: {tmp_path / 'no'}\n" in said
