"""Images from the job file to a prediction: stripes that only differ in their direction, which no linear model of the
pixels can tell apart."""

import csv
import subprocess
import sys

import numpy as np
import pytest

import confide
from confide.compare.hosted import hosted
from confide.crypto.random import SeededRandomness
from confide.data.schema import Schema
from confide.errors import DataError, JobError, ModelError
from confide.model.artifact import load, read_public_key
from confide.net.http import InProcess
from confide.serve import load_backend
from confide.serve.served import Model
from confide.serve.server import create_app
from confide.train import Output, load_data, parse, train
from confide.train.dry_run import dry_run
from confide.train.evaluate import accuracy
from confide.train.job import describe
from confide.train.setting import Setting

SCHEMA = """
[label]
name = "stripes"
classes = ["lying", "standing"]
[columns]
scan = { type = "image", height = 16, width = 16 }
age = { type = "number", low = 0, high = 120 }
"""
PARTIES = {"north": 50, "south": 40, "west": 60}


def stripes(seed, n):
    """Return n images with stripes of random places and strengths, uint8, and their classes."""
    rng = np.random.default_rng(seed)
    standing = rng.integers(0, 2, n)
    wave = np.cos(np.arange(16) * rng.uniform(1.0, 2.0, (n, 1)) + rng.uniform(0, 2 * np.pi, (n, 1)))
    images = np.where(standing[:, None, None], wave[:, None, :], wave[:, :, None]) * rng.uniform(40, 100, (n, 1, 1))
    images = images + 128 + rng.normal(0, 5, (n, 16, 16))
    return np.clip(np.round(images), 0, 255).astype(np.uint8), standing


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    for seed, (name, n) in enumerate((PARTIES | {"test": 80}).items()):
        images, standing = stripes(seed, n)
        labels = np.array(["lying", "standing"])[standing]
        np.savez(tmp_path / f"{name}.npz", scan=images, age=np.full(n, 50.0), stripes=labels)
    return tmp_path


def job_of(folder, **model):
    return parse(
        {
            "data": {
                "schema": "schema.toml",
                "tables": {name: f"{name}.npz" for name in PARTIES},
                "test": "test.npz",
            },
            "model": model,
            "train": {"quorum": 3, "rounds": 20},
            "output": {"model": "m.confide", "signing_key": "k.pem"},
        },
        base=folder,
    )


def trained(folder, **model):
    """Train in this process; return the model as it was read back, and its accuracy on the test records."""
    job = job_of(folder, **model)
    data = load_data(job)
    *_, last = train(job, data, rng=SeededRandomness("images"))
    Output(job).save(data, last)
    artifact = load(folder / "m.confide", trust=read_public_key(folder / "k.pem.pub"))
    assert artifact.preprocess == data.preprocess
    return artifact, accuracy(artifact.graph, data.test.x, data.test.y)


def test_pixels_alone_do_not_tell_and_scattering_does(folder):
    assert trained(folder)[1] < 0.75
    (folder / "k.pem").unlink()
    assert trained(folder, features="scattering", angles=4, channel_groups=5)[1] > 0.95


@pytest.mark.parametrize(
    ("model", "features"),
    [
        ({"features": "scattering-mean", "unit_rows": True}, 82),
        ({"features": "scattering-mean", "channel_groups": 27}, 82),
        ({"features": "scattering", "project": 60}, 60),
        ({"features": "scattering", "angles": 4, "frequencies": 2, "whiten": "natural", "unit_rows": True}, 76),
        ({"project": 40, "unit_rows": True}, 40),
    ],
    ids=str,
)
def test_a_client_gets_the_model_s_own_answer_for_raw_images(folder, model, features):
    artifact, _ = trained(folder, **model)
    assert artifact.preprocess.features == artifact.graph.features == features
    said = artifact.label.preprocessing
    assert said.startswith("public bounds of the schema")
    assert ("fixed in advance" in said) == ("features" in model)
    assert ("public random projection" in said) == ("project" in model)
    assert ("synthetic images (natural) from a public seed, which hold no data" in said) == ("whiten" in model)
    images, _ = stripes(9, 5)
    raw = {"scan": images, "age": np.full(5, 50.0)}
    expected = artifact.graph.apply(artifact.preprocess.apply(raw))
    served = Model("stripes", artifact.graph, artifact.label, (load_backend("he"),), artifact.preprocess.encode())
    client = confide.Client("http://localhost", transport=InProcess(create_app([served])))
    np.testing.assert_allclose(client.predict(raw), expected, atol=2e-3)
    np.testing.assert_allclose(client.predict({"scan": images[0], "age": [50]}), expected[:1], atol=2e-3)
    np.testing.assert_allclose(client.predict({"scan": images.tolist(), "age": [50] * 5}), expected, atol=2e-3)
    with pytest.raises(DataError, match="'scan' with one value of 16 x 16 pixels for each row"):
        client.predict({"scan": images[:, :8], "age": np.full(5, 50.0)})
    with pytest.raises(DataError, match="pixels of 'scan' from 0 to 255, row 3 has others"):
        client.predict({"scan": images + np.array([0, 0, 300, 0, 0])[:, None, None], "age": np.full(5, 50.0)})


JOB = """
[data]
schema = "schema.toml"
tables = { north = "north.npz", south = "south.npz", west = "west.npz" }
test = "test.npz"
[model]
features = "scattering-mean"
angles = 4
[train]
quorum = 3
rounds = 5
[output]
model = "m.confide"
ledger = "l.jsonl"
signing_key = "k.pem"
"""


def cli(*arguments, folder):
    done = subprocess.run(
        [sys.executable, "-m", "confide", *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_trains_serves_and_predicts(folder):
    (folder / "job.toml").write_text(JOB)
    assert 'features = "scattering-mean"' in cli("train", "job.toml", folder=folder)
    with hosted(folder / "m.confide", ["he"], "--trust", str(folder / "k.pem.pub")) as url:
        answers = list(csv.DictReader(cli("predict", url, "test.npz", folder=folder).splitlines()))
    artifact = load(folder / "m.confide", trust=read_public_key(folder / "k.pem.pub"))
    with np.load(folder / "test.npz") as test:
        expected = artifact.graph.apply(artifact.preprocess.apply({"scan": test["scan"], "age": test["age"]}))[:, 0]
    np.testing.assert_allclose([float(row["p(standing)"]) for row in answers], expected, atol=2e-3)


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        ({"features": "scattering", "scales": 4}, ModelError, "twice 2\\^scales"),
        ({"features": "scattering", "channel_groups": 26}, ModelError, "to divide the 81 channels"),
        ({"features": "scattering", "frequencies": 5}, ModelError, "frequencies=5 from 1 to 4"),
        ({"features": "scattering", "angles": 16, "whiten": "strokes"}, ModelError, "at most 2048 features"),
        ({"project": 258}, ModelError, "outputs=258 from 1 to the features=257"),
    ],
    ids=str,
)
def test_features_that_do_not_fit_the_images_are_refused(folder, model, error, text):
    with pytest.raises(error, match=text):
        load_data(job_of(folder, **model))


def test_a_scattering_of_no_image_is_refused():
    with pytest.raises(JobError, match="a column of images in the schema"):
        load_data(parse({"data": {"set": "breast-cancer"}, "model": {"features": "scattering"}}))


@pytest.mark.parametrize("key", ["scales", "angles", "channel_groups", "frequencies", "whiten"])
def test_keys_that_nobody_would_read_are_refused_and_not_printed(key):
    data = {"data": {"set": "breast-cancer"}}
    with pytest.raises(JobError, match=f'no model.{key} with model.features="columns"'):
        parse(data | {"model": {key: "natural" if key == "whiten" else 1}})
    assert key not in describe(parse(data))
    assert key in describe(parse(data | {"model": {"features": "scattering"}}))


@pytest.mark.parametrize("model", [{"features": "scattering-mean"}, {"features": "scattering", "channel_groups": 27}])
def test_waves_of_anything_but_whole_maps_are_refused(model):
    with pytest.raises(JobError, match=r"Expected no model.frequencies with .* waves of whole maps"):
        parse({"data": {"set": "breast-cancer"}, "model": model | {"frequencies": 2}})


def test_a_node_prepares_the_same_features_and_its_dry_run_passes(folder):
    """What nodes compute from job and schema is what training in one process computes."""
    model = {"features": "scattering-mean", "project": 30, "unit_rows": True}
    schema = Schema.read(SCHEMA)
    sections = {"model": model, "train": {"quorum": 3, "rounds": 2}}
    job = parse({"data": {"schema": "schema.toml", "nodes": list(PARTIES)}, **sections}, base=folder)
    assert Setting.of(job, schema).preprocess == load_data(job_of(folder, **model)).preprocess
    found = dry_run(folder / "north.npz", SCHEMA, job=job)
    assert found.survey.problems == ()
    assert found.job is not None
    assert found.job.training + found.job.testing == PARTIES["north"]
    assert found.job.step_seconds > 0
