"""A minute of a deployed federation under faults: departures, kill -9 of the coordinator, certificates that change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHURN = Path(__file__).parents[2] / "bench" / "churn.py"


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
