"""`confide serve --federation`, `confide dealer` and `confide predict wss://` as real processes."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from confide import serve
from serve.parties.processes import organisations
from serve.toy import GRAPH, PREPROCESS


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(serve, "BACKENDS", {**serve.BACKENDS, "standin": "serve.parties.standin:Standin"})
    monkeypatch.setattr(serve, "JOINT", (*serve.JOINT, "standin"))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with organisations(tmp_path_factory.mktemp("joint"), "standin", {"dealer": "broker"}) as found:
        yield found


def test_predict_prints_predictions_and_who_answered(running, run, tmp_path):
    (tmp_path / "x.csv").write_text("age,sex\n" + "".join(f"{age},{'fm'[age % 2]}\n" for age in range(40)))
    out, err = run(
        *("predict", running.url, tmp_path / "x.csv", "--identity", running.folder / "clinic"),
        "--insecure-colocated-dealer",
    )
    rows = list(csv.reader(out.splitlines()))
    ages = np.arange(40.0)
    y = GRAPH.apply(PREPROCESS.apply({"age": ages, "sex": np.array(["fm"[age % 2] for age in range(40)], object)}))
    assert np.allclose([float(row[0]) for row in rows[1:]], y[:, 0], atol=1e-3)
    assert "INSECURE: " in err
    assert "dealer broker" in err
    assert "3 questions with 40 rows together" in err
    assert "nothing is hidden" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("serve", "MODEL", "--backend", "mpc-dealer"), "--federation"),
        (("serve", "MODEL", "--backend", "mpc-dealer", "--backend", "he", "--federation", "HOME"), "not he"),
        (("serve", "MODEL", "--backend", "mpc-3pc", "--dealer", "broker"), "--federation"),
        (("serve", "MODEL", "--backend", "mpc-dealer", "--federation", "HOME", "--metrics"), "--metrics"),
        (("dealer", "CLINIC"), "a member as a client"),
        (("helper", "BROKER"), "a member as a dealer"),
        (("dealer", "BROKER", "--listen", "nowhere"), "--listen ADDRESS:PORT"),
        (("dealer", "HOME"), "coordinator"),
        (("predict", "URL", "X"), "--identity"),
        (("predict", "wss://127.0.0.1:1", "X", "--identity", "CLINIC"), "nobody answers"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(running, run, arguments, told, tmp_path):
    (tmp_path / "x.csv").write_text("age,sex\n1,f\n")
    places = {
        "MODEL": running.model, "HOME": running.home, "CLINIC": running.folder / "clinic",
        "BROKER": running.folder / "broker", "URL": running.url, "X": tmp_path / "x.csv",
    }  # fmt: skip
    _, err = run(*(places.get(one, one) for one in arguments), code=2)
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_a_dealer_that_is_refused_with_the_server_on_its_machine_ends(running, run, tmp_path):
    _, err = run(
        *("dealer", running.folder / "broker", "--listen", "127.0.0.1:0", "--coordinator", running.url),
        *("--store", tmp_path / "own.db"),
        code=2,
    )
    assert "Expected organisations apart: the server and the dealer broker run on one machine" in err
    assert err.count("Expected organisations apart") == 1


def test_a_port_that_is_taken_is_told_with_where_it_comes_from(running, run):
    port = running.url.rpartition(":")[2]
    _, err = run(
        *("serve", running.model, "--backend", "standin", "--federation", running.home, "--dealer", "broker"),
        *("--host", "127.0.0.1", "--port", port),
        code=2,
    )
    assert "federation init --address" in err
