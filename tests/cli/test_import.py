"""`confide import`: an ONNX file becomes a signed file to serve, that answers what the network answers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from confide.cli import main
from confide.compare.hosted import hosted
from confide.guarantee import PrivacyLabel
from confide.model.artifact import load, read_public_key
from confide.model.graph import Graph, Linear, Sigmoid, Square
from confide.model.onnx import to_onnx

ROOT = Path(__file__).parents[2]
MNIST = ROOT / "../shared/data/mnist/mnist.npz"
PEOPLE = """
[label]
name = "rich"
classes = ["no", "yes"]
[columns]
age = { type = "number", low = 0, high = 100, missing = "level" }
sex = { type = "category", categories = ["f", "m"] }
"""
DIGITS = """
[label]
name = "digit"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
[columns]
x = {{ type = "image", height = {side}, width = {side}{to} }}
"""
RNG = np.random.default_rng(5)
SCORES = Linear(RNG.normal(size=(1, 4)), np.zeros(1))
IMAGES = Graph(
    (Linear(RNG.normal(size=(8, 16)), np.zeros(8)), Square(), Linear(RNG.normal(size=(10, 8)), np.zeros(10)))
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("people.toml").write_text(PEOPLE)
    Path("digits.toml").write_text(DIGITS.format(side=4, to=", to = [-1, 1]"))
    Path("silent.toml").write_text(DIGITS.format(side=4, to=""))
    Path("chance.onnx").write_bytes(to_onnx(Graph((SCORES, Sigmoid()))))
    Path("score.onnx").write_bytes(to_onnx(Graph((SCORES,))))
    Path("digits.onnx").write_bytes(to_onnx(IMAGES))
    return tmp_path


@pytest.fixture
def run(capsys):
    def run(*arguments, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert stop.value.code == code, shown.err
        return shown.out if code == 0 else shown.err

    return run


def imported(run, model, schema, *more, code=0):
    words = ("--schema", schema, "--signing-key", "k.pem", "--out", "m.confide")
    return run("import", model, *words, *more, code=code)


def test_a_file_says_what_it_is_and_claims_nothing(folder, run):
    said = imported(run, "chance.onnx", "people.toml")
    assert "age (missing below), age (missing above)" in said
    assert "made elsewhere and imported; nothing is claimed for its training" in said
    artifact = load("m.confide", trust=read_public_key("k.pem.pub"))
    assert artifact.graph.classes == ("no", "yes")
    assert artifact.preprocess.columns == ("age", "sex")
    assert artifact.label.epsilon is None
    page = run("label", "m.confide", "--trust", "k.pem.pub")
    assert "Not known: the model was made elsewhere" in page
    assert "parties" not in page
    first = artifact.signer
    imported(run, "chance.onnx", "people.toml", "--classes", "low, high")
    artifact = load("m.confide", trust=read_public_key("k.pem.pub"))
    assert (artifact.signer, artifact.graph.classes) == (first, ("low", "high"))


def test_images_answer_as_onnxruntime_does(folder, run):
    said = imported(run, "digits.onnx", "digits.toml")
    assert "x: 4 x 4 pixels, row by row, 0 to 255 become -1 to 1" in said
    artifact = load("m.confide", trust=read_public_key("k.pem.pub"))
    images = RNG.integers(0, 256, (5, 4, 4)).astype(np.uint8)
    session = onnxruntime.InferenceSession("digits.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": images.reshape(5, 16) / 127.5 - 1})[0]
    np.testing.assert_allclose(artifact.graph.apply(artifact.preprocess.apply({"x": images})), expected, atol=1e-9)


def test_one_output_needs_to_be_told_what_it_is(folder, run):
    assert "--link logit or --link probability" in imported(run, "score.onnx", "people.toml", code=2)
    imported(run, "score.onnx", "people.toml", "--link", "logit")
    assert load("m.confide", trust=read_public_key("k.pem.pub")).link == "logit"
    imported(run, "score.onnx", "people.toml", "--classes", "")
    artifact = load("m.confide", trust=read_public_key("k.pem.pub"))
    assert (artifact.link, artifact.graph.classes) == ("", ())


@pytest.mark.parametrize(
    ("model", "schema", "more", "text"),
    [
        ("digits.onnx", "silent.toml", (), "state to = [-1, 1] or to = [0, 1]"),
        ("digits.onnx", "people.toml", ("--classes", ""), "the model's 16 features, got 4 (age 2, sex 2)"),
        ("digits.onnx", "people.toml", (), "Expected 10 classes for 10 outputs, got 2, the schema's"),
        ("chance.onnx", "people.toml", ("--classes", "a,b,c"), "Expected 2 classes for 1 outputs, got 3; name them"),
        ("chance.onnx", "people.toml", ("--link", "logit"), "link='logit'"),
        ("people.toml", "people.toml", (), "an ONNX model"),
        ("absent.onnx", "people.toml", (), "an ONNX model"),
        ("chance.onnx", "people.toml", ("--out", "m.onnx"), "--out as .confide"),
        ("chance.onnx", "people.toml", ("--out", "no/m.confide"), "m.confide; no such folder"),
    ],
    ids=["range", "features", "classes", "names", "link", "suffix", "absent", "out", "folder"],
)
def test_what_does_not_fit_is_refused(folder, run, model, schema, more, text):
    assert text in imported(run, model, schema, *more, code=2)
    assert not list(folder.rglob("*.confide"))


def test_a_label_is_a_sentence():
    def label(*parties, **more):
        return PrivacyLabel(aggregator="masked", parties=parties, quorum=1, rounds=1, **more).sentence()

    assert label("a", colluding=0) == "trained by one party, no differential privacy"
    assert label("a", "b", colluding=0) == "trained by masked over 2 parties, no differential privacy"
    numbers = {"epsilon": 1.0, "delta": 1e-5, "unit": "record", "relation": "add or remove one"}
    assert "with 1 colluding party, noise" in label("a", "b", colluding=1, **numbers)
    assert "with 2 colluding parties, noise" in label("a", "b", "c", colluding=2, **numbers)


def test_the_commands_stand_in_the_order_of_a_models_life(run):
    listed = [line.split()[0] for line in run("--help").partition("Commands:")[2].splitlines() if line.strip()]
    wanted = ["demo", "train", "import", "serve", "predict"]
    assert [name for name in listed if name in wanted] == wanted


@pytest.mark.slow
def test_lola_reads_the_first_digits_of_mnist_under_encryption(folder, run):
    if not MNIST.is_file():
        pytest.skip("MNIST is not here: ../shared/data/mnist/mnist.npz")
    with np.load(MNIST) as archive:
        np.savez("six.npz", x=archive["x_test"][:6])
    Path("mnist.toml").write_text(DIGITS.format(side=28, to=", to = [-1, 1]"))
    imported(run, ROOT / "bench/models/lola.onnx", "mnist.toml")
    with hosted(folder / "m.confide", ["he"]) as url:
        run("predict", url, "six.npz", "--class-only", "--out", "y.csv")
    assert [row["decision"] for row in csv.DictReader(Path("y.csv").read_text().splitlines())] == list("721041")


def test_a_colour_image_is_three_columns(folder, run):
    head, _, _ = DIGITS.partition("x =")
    names = "plane,car,bird,cat,deer,dog,frog,horse,ship,truck"
    channels = ("red", "green", "blue")
    columns = "".join(f'{name} = {{ type = "image", height = 32, width = 32, to = [-1, 1] }}\n' for name in channels)
    Path("colours.toml").write_text(head + columns)
    imported(run, ROOT / "bench/models/cifar.onnx", "colours.toml", "--classes", names)
    artifact = load("m.confide", trust=read_public_key("k.pem.pub"))
    assert artifact.graph.classes[:2] == ("plane", "car")
    images = RNG.integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    found = artifact.graph.apply(
        artifact.preprocess.apply({name: images[:, place] for place, name in enumerate(channels)})
    )
    session = onnxruntime.InferenceSession(ROOT / "bench/models/cifar.onnx", providers=["CPUExecutionProvider"])
    x = (images / 127.5 - 1).astype(np.float32)
    expected = session.run(None, {"x": x.reshape(2, *session.get_inputs()[0].shape[1:])})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=5e-3)  # float32, sums of thousands


def test_trees_are_imported_too(folder, run):
    columns = "".join(f'c{place} = {{ type = "number", low = -1, high = 1 }}\n' for place in range(30))
    Path("trees.toml").write_text(PEOPLE.partition("age")[0] + columns)
    imported(run, ROOT / "bench/models/xgboost.onnx", "trees.toml")
    artifact = load("m.confide", trust=read_public_key("k.pem.pub"))
    assert (artifact.link, artifact.graph.classes) == ("probability", ("no", "yes"))
