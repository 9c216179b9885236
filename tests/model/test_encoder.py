"""An encoder in a file, against numpy, and from a job to a prediction."""

import hashlib
import sys

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import confide
from confide.crypto.random import SeededRandomness
from confide.errors import JobError, MissingExtra, ModelError
from confide.model.artifact import load, read_public_key
from confide.model.encoded import Encoded
from confide.model.encoder import Encoder, resized
from confide.model.preprocess import OneHot, Preprocess
from confide.model.whitening import Whitening
from confide.net.http import InProcess
from confide.serve import load_backend
from confide.serve.served import Model
from confide.serve.server import create_app
from confide.train import Output, load_data, parse, train
from confide.train.evaluate import accuracy

SIDE, FILTERS = 8, 6
WEIGHTS = np.random.default_rng(0).normal(size=(FILTERS, 1, 3, 3)).astype(np.float32)
WEIGHTS -= WEIGHTS.mean(axis=(2, 3), keepdims=True)  # blind to brightness, so that texture tells


def network(*, weights=WEIGHTS, side=SIDE, channels=1, name="x"):
    """Return a small convolutional network as ONNX bytes: 3 x 3 filters, absolute values, global mean."""
    nodes = [
        helper.make_node("Conv", [name, "w"], ["c"]),
        helper.make_node("Abs", ["c"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["y"]),
    ]
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, side, side])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", len(weights), 1, 1])
    w = numpy_helper.from_array(np.repeat(weights, channels, axis=1), "w")
    graph = helper.make_graph(nodes, "encoder", [given], [out], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def by_numpy(images):
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    return np.abs(np.einsum("nijab,fab->nfij", windows, WEIGHTS[:, 0])).mean(axis=(2, 3))


def pictures(seed, n, side=SIDE):
    return np.random.default_rng(seed).uniform(size=(n, side, side))


def test_features_are_those_of_the_network():
    encoder, body = Encoder(network()), network()
    assert encoder.sha256 == hashlib.sha256(body).hexdigest()
    assert encoder.outputs(SIDE, SIDE) == FILTERS
    np.testing.assert_allclose(encoder.apply(pictures(1, 4)), by_numpy(pictures(1, 4)), rtol=1e-4)
    three = Encoder(network(weights=WEIGHTS / 3, channels=3))
    np.testing.assert_allclose(three.apply(pictures(1, 4)), by_numpy(pictures(1, 4)), rtol=1e-4)


def test_images_of_another_size_are_interpolated_and_of_any_size_are_not():
    small = pictures(2, 1, side=5)
    expected = by_numpy(resized(small[0], SIDE, SIDE)[None])
    np.testing.assert_allclose(Encoder(network()).apply(small), expected, rtol=1e-4)
    np.testing.assert_allclose(
        Encoder(network(side="s")).apply(pictures(3, 1, side=12)), by_numpy(pictures(3, 1, 12)), rtol=1e-4
    )


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (16, 16), (1, 9)], ids=str)
def test_interpolation_keeps_planes_and_bounds(size):
    flat = resized(np.full((7, 6), 0.25), *size)
    np.testing.assert_allclose(flat, 0.25, atol=1e-6)
    image = pictures(4, 1)[0]
    found = resized(image, *size)
    assert found.shape == size
    assert image.min() - 1e-6 <= found.min() <= found.max() <= image.max() + 1e-6
    ramp = resized(np.tile(np.arange(8.0) / 8, (8, 1)), 8, 16)[0]
    np.testing.assert_allclose(np.diff(ramp[1:-1]), 1 / 16, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "Expected an encoder as ONNX"),
        (b"no network", "Expected an encoder as ONNX"),
        (network()[:-40], "Expected an encoder as ONNX"),
        (network(channels=2), "one input of shape"),
    ],
    ids=["empty", "text", "cut", "two channels"],
)
def test_files_that_are_no_encoder_are_refused(body, text):
    with pytest.raises(ModelError, match=text):
        Encoder(body)


def test_weights_outside_the_file_are_not_loaded(tmp_path):
    model = onnx.load_from_string(network(weights=np.zeros((400, 1, 3, 3), np.float32)))
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ModelError):
        Encoder.read(tmp_path / "e.onnx")


def test_absent_files_and_an_absent_runtime_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"an encoder \(ONNX\) at .*No such file"):
        Encoder.read(tmp_path / "e.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"pip install 'confide\[encoder\]'"):
        Encoder(network())


# --- as a rule --------------------------------------------------------------------------------------------------------


def rule(encoder, **changes):
    whitening = Whitening(images="natural", count=50)
    given = {"name": "scan", "height": SIDE, "width": SIDE, "low": 0, "high": 1, "count": FILTERS}
    return Encoded(**given | changes, sha256=encoder.sha256, whitening=whitening)


def test_a_record_s_features_do_not_depend_on_the_other_records():
    encoder = Encoder(network())
    prepare = Preprocess((rule(encoder),), unit_rows=True).opened(encoder)
    images, order = pictures(5, 80), np.random.default_rng(1).permutation(80)
    whole = prepare.apply({"scan": images})
    assert (np.abs(whole) <= 1.0).all()
    assert np.array_equal(prepare.apply({"scan": images[order]}), whole[order])
    assert np.array_equal(prepare.apply({"scan": images[:1]})[0], whole[0])


def test_the_rule_travels_by_hash_and_another_encoder_is_refused():
    encoder, other = Encoder(network()), Encoder(network(weights=2 * WEIGHTS))
    prepare = Preprocess((rule(encoder),))
    assert Preprocess.decode(prepare.opened(encoder).encode()) == prepare == prepare.opened(encoder)
    assert prepare.encoders == (encoder.sha256,)
    with pytest.raises(
        ModelError, match=f"Expected the encoder that column 'scan' goes through, SHA-256 {encoder.sha256}"
    ):
        prepare.apply({"scan": pictures(1, 1)})
    with pytest.raises(ModelError, match="take the file that the model was trained with"):
        prepare.opened(other)
    with pytest.raises(ModelError, match="no column of this model goes through one"):
        Preprocess((OneHot(name="sex", categories=("f", "m")),)).opened(encoder)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 0},
        {"count": 2049},
        {"height": 0},
        {"width": 10**9},
        {"sha256": "0" * 63},
        {"low": 1},
        {"whitening": None},
    ],
    ids=str,
)
def test_hostile_rules_are_refused(changes):
    good = msgspec.to_builtins(Preprocess((rule(Encoder(network())),)))
    assert Preprocess.decode(msgspec.msgpack.encode(good)).features == FILTERS
    good["rules"] = [good["rules"][0] | changes]
    with pytest.raises(ModelError):
        Preprocess.decode(msgspec.msgpack.encode(good))


# --- from a job to a prediction ---------------------------------------------------------------------------------------

SCHEMA = """
[label]
name = "kind"
classes = ["smooth", "rough"]
[columns]
scan = { type = "image", height = 8, width = 8, low = 0, high = 255 }
"""
PARTIES = ("north", "south", "west")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    (tmp_path / "encoder.onnx").write_bytes(network())
    for seed, name in enumerate((*PARTIES, "test")):
        rng = np.random.default_rng(seed)
        rough = rng.integers(0, 2, 60)
        scan = 128 + np.where(rough, 40, 10)[:, None, None] * rng.normal(size=(60, SIDE, SIDE))
        np.savez(tmp_path / f"{name}.npz", scan=np.clip(scan, 0, 255), kind=np.array(["smooth", "rough"])[rough])
    return tmp_path


def table(**model):
    given = {"features": "encoder", "encoder": "encoder.onnx", "public_data": "noise of our own", **model}
    return {
        "data": {"schema": "schema.toml", "tables": {name: f"{name}.npz" for name in PARTIES}, "test": "test.npz"},
        "model": {key: value for key, value in given.items() if value is not None},
        "train": {"quorum": 3, "rounds": 20},
        "output": {"model": "m.confide", "signing_key": "k.pem"},
    }


def test_a_model_on_an_encoder_is_trained_saved_and_asked(folder):
    job = parse(table(), base=folder)
    data = load_data(job)
    *_, last = train(job, data, rng=SeededRandomness("encoder"))
    assert accuracy(last.model, data.test.x, data.test.y) > 0.9
    Output(job).save(data, last)
    artifact = load(folder / "m.confide", trust=read_public_key(folder / "k.pem.pub"))
    assert artifact.label.public_data == "noise of our own"
    assert "encoder trained on public data" in artifact.label.preprocessing
    assert "synthetic images (natural)" in artifact.label.preprocessing
    images = np.load(folder / "test.npz")["scan"][:5]
    served = Model("kinds", artifact.graph, artifact.label, (load_backend("he"),), artifact.preprocess.encode())
    app = create_app([served])
    client = confide.Client("http://localhost", transport=InProcess(app), encoder=folder / "encoder.onnx")
    np.testing.assert_allclose(client.predict({"scan": images}), artifact.graph.apply(data.test.x[:5]), atol=2e-3)
    with pytest.raises(ModelError, match="name its file"):
        confide.Client("http://localhost", transport=InProcess(app)).predict({"scan": images})
    (folder / "encoder.onnx").write_bytes(network(weights=2 * WEIGHTS))
    with pytest.raises(ModelError, match="take the file that the model was trained with"):
        confide.Client("http://localhost", transport=InProcess(app), encoder=folder / "encoder.onnx").predict(
            {"scan": images}
        )


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"public_data": None}, r"model.public_data \(what it was trained on\)"),
        ({"encoder": None}, r"Expected model.encoder \(its ONNX file\)"),
        ({"whiten": "none"}, "brings its features to one scale"),
        ({"scales": 2}, 'Expected no model.scales with model.features="encoder"'),
        ({"features": "columns"}, 'no model.encoder and no public_data with model.features="columns"'),
    ],
    ids=str,
)
def test_jobs_that_leave_something_open_are_refused(model, text):
    with pytest.raises(JobError, match=text):
        parse(table(**model))


def test_nodes_cannot_get_an_encoder(folder):
    given = table()
    given["data"] = {"schema": "schema.toml", "nodes": list(PARTIES)}
    from confide.data.schema import Schema
    from confide.train.setting import Setting

    with pytest.raises(JobError, match="nodes have no way to get the encoder"):
        Setting.of(parse(given, base=folder), Schema.read(SCHEMA))
