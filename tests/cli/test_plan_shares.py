"""`confide plan --backend mpc-dealer`: the planner's figures, as a table."""

from __future__ import annotations

import numpy as np
import pytest

from confide.cli import main
from confide.model.onnx import to_onnx
from mpc.compared_nets import transformer
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


def test_calibration_rows_give_the_ranges_that_a_transformer_needs(tmp_path, capsys, monkeypatch):
    graph = transformer()
    path, rows = tmp_path / "encoder.onnx", tmp_path / "rows.npy"
    path.write_bytes(to_onnx(graph))
    np.save(rows, np.random.default_rng(0).normal(size=(50, graph.features)))
    monkeypatch.setenv("COLUMNS", "200")

    def shown(*more):
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(path), "--backend", "mpc-dealer", *more])
        return ended.value.code, capsys.readouterr()

    code, output = shown("--calibrate", str(rows))
    assert not code
    total = next(line.split() for line in output.out.splitlines() if line.strip().startswith("total"))
    assert int(total[1]) > 20
    code, output = shown()
    assert code == 2
    assert "--calibrate" in output.err
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert "FILE.npy" in shown("--calibrate", str(tmp_path / "rows.csv"))[1].err
    np.save(rows, np.array(["text"]))
    assert "numbers" in shown("--calibrate", str(rows))[1].err
    rows.write_bytes(b"no array")
    assert "numpy.save" in shown("--calibrate", str(rows))[1].err
