"""`confide train --identity` as five real processes: what a run comes to, and what is left when one is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli.federation_processes import until
from cli.shares_processes import NAMES, OWNERS, Organisations
from confide.cli import main
from confide.crypto.keys import SigningKey
from confide.model.artifact import load as load_model
from confide.net.folders import identity_seed
from confide.train.local import flatten
from confide.train.shares.run import graph_of
from confide.train.shares.simulate import Weights
from net.coordinators import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"


def is_trained(five: Organisations) -> bool:
    """Return whether every owner has the model that float training gives."""
    model, prepared = five.in_float()
    wanted = graph_of(prepared.course.task, Weights(tuple(model.weights), tuple(model.biases)), prepared.rows.classes)
    for name in OWNERS:
        place = five.folder / name / "identity"
        graph = load_model(place / "model.confide", trust=SigningKey(identity_seed(place)).public).graph
        pairs = zip(flatten(graph), flatten(wanted), strict=True)
        if max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs) > 8e-4:
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("who", ["insurer", "auditor", "university", "south"])
def test_whoever_is_killed_ends_the_run_at_all_and_a_second_run_goes_on(tmp_path, who):
    with Organisations(tmp_path, rounds=200) as five:
        five.start()
        until(lambda: any(mark.taken >= 80 for mark in five.marks("university")))
        five.running[who].kill()
        codes = five.ends()
        member = "server" if who == "university" else who
        for name in set(NAMES) - {who}:
            assert codes[name] not in (0, None), five.text(name)
            assert member in five.text(name).splitlines()[-1], five.text(name)
            assert "no model and no shares were written" in five.text(name)
            assert "Traceback" not in five.text(name)
        assert not list(tmp_path.rglob("model.confide"))
        assert five.marks("university")
        five.start()
        assert set(five.ends().values()) == {0}, [five.text(name) for name in NAMES]
        assert all("goes on after step" in five.text(name) for name in NAMES)
        assert is_trained(five)


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    with free_port() as one, free_port() as other:
        ports = [str(each.getsockname()[1]) for each in (one, other)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", EXAMPLES / "shares_machines.sh", tmp_path / "example", *ports],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("trained by mpc over 3 parties") == 3


@pytest.mark.parametrize(
    ("folder", "more", "told"),
    [
        ("north", (), "Expected --data"),
        ("auditor", ("--data", "table.csv"), "Expected --data"),
        ("insurer", ("--listen", "nowhere"), "--listen ADDRESS:PORT"),
        (None, (), "Expected --identity FOLDER with data.nodes"),
        (None, ("--anew",), "Expected --identity FOLDER with those options"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(tmp_path, capsys, folder, more, told):
    with Organisations(tmp_path) as five:
        place = five.folder / (folder or "north")
        identity = () if folder is None else ("--identity", str(place / "identity"))
        with pytest.raises(SystemExit) as stop:
            main(["train", str(place / "job.toml"), *identity, *more])
        assert stop.value.code == 2
        assert told in capsys.readouterr().err
