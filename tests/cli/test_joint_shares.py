"""A model that was trained on shares, served from two folders by real processes: nobody has the whole of it, ever."""

from __future__ import annotations

import csv
import shutil
import time

import numpy as np
import pytest

from confide.crypto.random import SystemRandomness
from confide.mpc.halves import SERVERS, read_half, read_public, read_shares
from confide.train.job import parse
from confide.train.shares import load_rows, prepare
from confide.train.shares.run import graph_of
from confide.train.shares.simulate import joined
from serve.parties.federation import founded
from serve.parties.processes import Organisations

PARTNERS = {"dealer": "broker", "helper": "second"}
ROWS = 5


def trained(folder):
    """Train breast cancer on shares, give each server its own folder, and return what nobody else would see: all."""
    folder.mkdir()
    train = {"aggregate": "mpc", "rounds": 2, "learning_rate": 0.25}
    job = parse({"data": {"set": "breast-cancer"}, "train": train, "shares": {"folder": str(folder / "both")}})
    rng = SystemRandomness()
    finished = prepare(job, load_rows(job, rng)).run(rng=rng)
    finished.write_shares(folder / "both")
    for server, role in enumerate(("server", "helper")):
        (folder / role).mkdir()
        shutil.copy(folder / "both" / "model.json", folder / role)
        shutil.copy(folder / "both" / f"{SERVERS[server]}.npz", folder / role)
    return finished


class Shared(Organisations):
    """Organisations of which the server serves its half of a folder."""

    def __init__(self, folder, place):
        Organisations.__init__(self, folder, "mpc-outsourced", PARTNERS)
        self.model = folder / "shares"
        shutil.copytree(place / "server", self.model)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "shares"
    return folder, trained(folder)


@pytest.fixture(scope="module")
def running(tmp_path_factory, first):
    found = Shared(tmp_path_factory.mktemp("joint"), first[0])
    try:
        found.start_server()
        found.start_partner("dealer")
        found.start_partner("helper", "--shares", first[0] / "helper")
        yield found
    finally:
        for process in found.running.values():
            process.kill()


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    folder = tmp_path_factory.mktemp("houses")
    founded(folder, {"second": "helper"})
    return folder


def table(place, preprocess):
    """Write a table of the training's columns; return it as columns."""
    stream = np.random.default_rng(3)
    columns = {rule.name: stream.uniform(rule.low, rule.high, ROWS) for rule in preprocess.rules}
    with place.open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return columns


def test_predictions_are_those_of_the_model_that_nobody_opened(running, first, run, tmp_path):
    place, finished = first
    preprocess = read_public(place / "server").preprocess
    columns = table(tmp_path / "x.csv", preprocess)
    out, _ = run(
        *("predict", running.url, tmp_path / "x.csv", "--identity", running.folder / "clinic"),
        "--insecure-colocated-dealer",
    )
    task = finished.prepared.course.task
    graph = graph_of(task, joined(task, finished.result.shares), finished.prepared.rows.classes)
    y = graph.apply(preprocess.apply(columns))
    rows = list(csv.reader(out.splitlines()))
    assert np.abs(np.array([float(row[0]) for row in rows[1:]]) - y[:, 0]).max() < 1e-3
    assert np.ptp(y) > 0.05
    assert {row[-1] for row in rows[1:]} <= set(finished.prepared.rows.classes)
    assert "takes part in shares as its helper" in running.logs()
    # nothing of a half lies anywhere but in its own folder
    stored = b"".join(path.read_bytes() for path in running.folder.rglob("*.db*") if path.is_file())
    assert len(stored) > 10_000
    for server, role in enumerate(("server", "helper")):
        half = read_half(place / role, role)
        raw = read_shares(place / role, half.public, server)
        for words in (*half.words.values(), *raw.values()):
            assert not any(word.tobytes() in stored for word in words.ravel())


def test_a_helper_with_a_half_of_another_training_does_not_take_part(first, tmp_path):
    trained(tmp_path / "second")
    (tmp_path / "houses").mkdir()
    found, told = Shared(tmp_path / "houses", first[0]), "Expected both halves of one training"
    try:
        found.start_server()
        found.start_partner("dealer")
        found.start_partner("helper", "--shares", tmp_path / "second" / "helper")
        end = time.monotonic() + 60.0
        while told not in (found.folder / "server.log").read_text() and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        for process in found.running.values():
            process.kill()
    for name in ("server", "second"):
        assert told in (found.folder / f"{name}.log").read_text(), found.logs()
    assert "is served under" not in found.logs()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("serve", "BOTH", "--backend", "mpc-outsourced", "--federation", "HOME"), "move it to the helper"),
        (("serve", "HELPER", "--backend", "mpc-outsourced", "--federation", "HOME"), "it has that of the other"),
        (("serve", "HOME", "--backend", "mpc-outsourced", "--federation", "HOME"), "a folder of shares"),
        (("serve", "SERVER", "--backend", "mpc-3pc", "--federation", "HOME"), "--backend mpc-outsourced"),
        (("serve", "SERVER", "--backend", "he"), "--backend mpc-outsourced"),
        (("helper", "SECOND", "--shares", "BOTH"), "move it to the server"),
        (("helper", "SECOND", "--shares", "SERVER"), "it has that of the other"),
        (("helper", "SECOND", "--shares", "TAMPERED"), "it was changed"),
        (("helper", "SECOND", "--shares", "HOME"), "a folder of shares"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(houses, first, run, arguments, told, tmp_path):
    place = first[0]
    shutil.copytree(place / "helper", tmp_path / "tampered")
    file = tmp_path / "tampered" / "server-1.npz"
    with np.load(file) as arrays:
        found = dict(arrays)
    found["w1"][0, 0] += np.uint64(1)
    np.savez(file, **found)
    places = {
        "BOTH": place / "both", "SERVER": place / "server", "HELPER": place / "helper", "HOME": houses / "federation",
        "SECOND": houses / "second", "TAMPERED": tmp_path / "tampered",
    }  # fmt: skip
    _, err = run(*(places.get(one, one) for one in arguments), code=2)
    assert told in " ".join(err.split())
    assert len(err.strip().splitlines()) == 1


def test_inspect_says_whose_half_a_folder_has(first, run):
    place, finished = first
    shown = {}
    for name in ("server", "helper", "both"):
        shown[name], _ = run("inspect", place / name)
        assert finished.training in shown[name]
        assert "malignant" in shown[name]
    servers = read_public(place / "server").servers
    assert f"half of: {servers[0]}\n" in shown["server"]
    assert f"half of: {servers[1]}\n" in shown["helper"]
    assert "give each server its own" in " ".join(shown["both"].split())
    _, err = run("label", place / "server", code=2)
    assert "confide inspect" in err
    _, err = run("inspect", place / "server", "--trust", "ab" * 32, code=2)
    assert "--trust" in err
