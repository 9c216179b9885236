"""`confide plan --backend mpc-dealer`: the planner's figures, as a table."""

from __future__ import annotations

import pytest

from confide.cli import main
from confide.model.onnx import to_onnx
from mpc.nets import mnist


def test_a_plan_on_shares_lists_layers_rounds_and_bytes(tmp_path, capsys, monkeypatch):
    path = tmp_path / "mnist.onnx"
    path.write_bytes(to_onnx(mnist()))
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(path), "--backend", "mpc-dealer"])
    assert not ended.value.code
    output = capsys.readouterr().out
    lines = output.splitlines()
    total = next(line.split() for line in lines if line.strip().startswith("total"))
    assert total[1:4] == ["19", "310,712", "304,520"]
    assert any(line.strip().startswith("4 max") for line in lines)
    assert "20 ms, 200 Mbit/s: 0.392 s of messages" in output
