"""A minute of a deployed federation under faults: departures, kill -9 of the coordinator, certificates that change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from confide.train.attendance import Patience
from train.deployment import Deployment, Nodes, finished, start_coordinator

CHURN = Path(__file__).parents[2] / "bench" / "churn.py"


_JOB = """
[train]
aggregate = "amortised"
rounds = 2
quorum = 3
expected_records = 30
"""


def test_what_the_measurements_stand_on_runs(tmp_path: Path) -> None:
    """A coordinator and nodes in processes of their own, as every script in bench/ starts them."""
    made = Deployment.make(tmp_path, 4, features=5, records=30, job=_JOB)
    coordinator, nodes = start_coordinator(made, Patience()), Nodes(made, made.names)
    try:
        finished(coordinator, [nodes])
        figures = nodes.tell("figures")
    finally:
        nodes.end()
        coordinator.kill()
    assert [line["round"] for line in made.lines()] == [1, 2]
    assert len(figures["training"]) == 2 * len(made.names)
    assert not figures["failures"]


@pytest.mark.slow
def test_a_federation_under_faults_loses_nothing_and_charges_everything(tmp_path: Path) -> None:
    """The checks are those of the script, which ends with an error if one fails."""
    place = tmp_path / "churn.json"
    done = subprocess.run(
        [sys.executable, CHURN, "--quick", "--json", place], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {one["figure"]: one for one in json.loads(place.read_text())}
    assert figures["open, accuracy"]["value"] > 0.7
    assert "every sum's among them" in done.stdout
