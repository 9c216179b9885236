"""`confide serve` without a store of its own: what it kept is gone when it is told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from confide.crypto.keys import SigningKey
from confide.model.artifact import Artifact
from serve.toy import GRAPH, LABEL, PREPROCESS


@pytest.mark.parametrize(("number", "codes"), [(signal.SIGTERM, {143}), (signal.SIGINT, {0, 130})])
def test_a_signal_leaves_nothing_behind(tmp_path, number, codes):
    model, scratch = tmp_path / "model.confide", tmp_path / "scratch"
    Artifact(GRAPH, PREPROCESS, LABEL).save(model, SigningKey(bytes(range(32))))
    scratch.mkdir()
    command = [sys.executable, "-m", "confide", "serve", str(model), "--backend", "plain", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(scratch)}
    ) as process:
        assert b"listening" in process.stdout.readline()
        assert [name for name in os.listdir(scratch) if name.startswith("confide-serve-")]  # the control
        process.send_signal(number)
        assert process.wait(60) in codes  # SIGINT: before the server takes signals 130, then 0
    assert os.listdir(scratch) == []
