"""`confide fit-polynomial` from files to files."""

import numpy as np
import pytest
from typer.testing import CliRunner

from confide.cli import app
from confide.crypto.random import SystemRandomness
from confide.errors import UsageError
from confide.guarantee import PrivacyLabel
from confide.model.artifact import Artifact, create_signing_key, load, read_public_key
from confide.model.graph import Graph, Linear, Polynomial, Relu, Sigmoid, Square
from confide.model.onnx import from_onnx, to_onnx
from confide.model.preprocess import Preprocess, Scale

SCHEMA = """
name = "wealth"
[label]
name = "rich"
classes = ["no", "yes"]
[columns]
age = { type = "number", low = 0, high = 100 }
debt = { type = "number", low = -10, high = 10 }
"""


def run(*arguments):
    done = CliRunner().invoke(app, ["fit-polynomial", *map(str, arguments), "--epochs", "4"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(name="folder")
def with_files(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (200, 2))
    y = (x.sum(axis=1) > 0).astype(np.int64)
    np.savez(tmp_path / "x.npz", x=x.reshape(200, 1, 2), y=y)
    rows = [f"{50 + 50 * a},{10 * b},{('no', 'yes')[c]}" for (a, b), c in zip(x, y, strict=True)]
    (tmp_path / "x.csv").write_text("\n".join(["age,debt,rich", *rows]))
    (tmp_path / "schema.toml").write_text(SCHEMA)
    layers = (
        Linear(rng.normal(size=(4, 2)), np.zeros(4)),
        Relu(),
        Linear(rng.normal(size=(1, 4)), np.zeros(1)),
        Sigmoid(),
    )
    graph = Graph(layers, ("no", "yes"))
    (tmp_path / "net.onnx").write_bytes(to_onnx(graph))
    columns = (Scale(name="age", low=0, high=100), Scale(name="debt", low=-10, high=10))
    label = PrivacyLabel(aggregator="pooled", parties=("a",), quorum=1, colluding=0, rounds=1)
    key = create_signing_key(tmp_path / "first.pem", SystemRandomness())
    Artifact(graph, Preprocess(columns), label).save(tmp_path / "net.confide", key)
    return tmp_path


def test_onnx_and_arrays(folder):
    done = run(folder / "net.onnx", folder / "x.npz", "--out", folder / "out.onnx")
    assert "1 activations became squares: Linear(2 -> 4), Square(), Linear(4 -> 1), Sigmoid()" in done.output
    assert "accuracy on held-out records" in done.output
    kinds = [type(layer) for layer in from_onnx((folder / "out.onnx").read_bytes()).layers]
    assert kinds == [Linear, Square, Linear, Sigmoid]


@pytest.mark.parametrize("source", ["net.onnx", "net.confide"])
def test_a_table_and_a_signed_file_that_says_it_was_trained_in_the_clear(folder, source):
    options = ["--schema", folder / "schema.toml", "--activation", "polynomial", "--degree", "3"]
    options += ["--trust", folder / "first.pem.pub", "--signing-key", folder / "new.pem"]
    run(folder / source, folder / "x.csv", "--out", folder / "out.confide", *options)
    artifact = load(folder / "out.confide", trust=read_public_key(folder / "new.pem.pub"))
    assert artifact.label.aggregator == "local"
    assert artifact.label.epsilon is None
    assert artifact.preprocess.columns == ("age", "debt")
    assert artifact.graph.classes == ("no", "yes")
    assert isinstance(artifact.graph.layers[1], Polynomial)
    assert artifact.graph.layers[1].degree == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["net.onnx", "x.csv", "--out", "o.onnx"], "--schema for a table"),
        (["net.onnx", "x.npz", "--out", "o.txt"], "--out as .onnx"),
        (["net.onnx", "x.npz", "--out", "o.confide"], "--signing-key"),
        (["net.onnx", "x.npz", "--out", "o.confide", "--signing-key", "k.pem"], "Expected --schema"),
        (["net.onnx", "x.npz", "--out", "o.onnx", "--activation", "cube"], "square or polynomial"),
        (["no.onnx", "x.npz", "--out", "o.onnx"], "an ONNX model"),
        (["net.onnx", "schema.npz", "--out", "o.onnx"], "or .npz with arrays"),
    ],
)
def test_what_does_not_fit_is_refused(folder, options, text, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=text):
        run(*options)
