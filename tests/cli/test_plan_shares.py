"""`confide plan --backend mpc-dealer`: the planner's figures, as a table."""

from __future__ import annotations

import re

import numpy as np
import pytest

from confide.cli import main
from confide.crypto.keys import SigningKey
from confide.model.artifact import Artifact
from confide.model.onnx import to_onnx
from confide.mpc.lowering import architecture_of, program_for
from confide.mpc.planner import plan
from mpc.compared_nets import transformer
from mpc.nets import mnist
from serve.toy import GRAPH, LABEL, PREPROCESS


def test_a_plan_on_shares_lists_layers_rounds_and_bytes(tmp_path, capsys, monkeypatch):
    path = tmp_path / "mnist.onnx"
    path.write_bytes(to_onnx(mnist()))
    monkeypatch.setenv("COLUMNS", "40")  # however narrow: no number is cut
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(path), "--backend", "mpc-dealer"])
    assert not ended.value.code
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert lines[0].startswith("one prediction of one row under mpc-dealer")
    assert lines[1].startswith("rounds: 19 ")
    assert "client to server: 310,712 bytes" in lines
    assert "server to client: 304,520 bytes" in lines
    total = next(line.split() for line in lines if line.startswith("total"))
    assert total[1:3] == ["19", f"{310_712 + 304_520:,}"]
    cost = plan(program_for(architecture_of(mnist(), None), 1)).total
    dealt = cost.keys_bytes + cost.words_bytes
    assert f"{dealt:,} bytes from the dealer to the server, of which {cost.keys_bytes:,} for comparisons" in output
    assert f"  {cost.keys_bytes:,} bytes to the client" in lines
    assert total[3:] == [f"{dealt:,}", f"{cost.comparisons:,}", f"{cost.products:,}"]
    table = lines[next(at for at, line in enumerate(lines) if line.startswith("layer ")) :]
    assert any(line.startswith("4 max") for line in table)
    assert max(map(len, table)) <= 80
    assert "20 ms, 200 Mbit/s: 0.392 s of messages" in output
    assert "dealer does not learn: weights (unless it pools with client)" in lines


def test_a_network_that_encryption_refuses_is_told_that_it_runs_on_shares(tmp_path, capsys):
    path = tmp_path / "mnist.onnx"
    path.write_bytes(to_onnx(mnist()))
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(path)])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert 'Expected a model that the backend "he" can run' in told
    assert told.strip().endswith("it runs as it is with --backend mpc-dealer, on shares: docs/mpc.md")


def test_a_plan_takes_the_key_that_must_have_signed_the_model(tmp_path, capsys):
    path, signing = tmp_path / "model.confide", SigningKey(bytes(range(32)))
    Artifact(GRAPH, PREPROCESS, LABEL).save(path, signing)

    def told(key, code):
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(path), "--backend", "mpc-dealer", "--trust", key])
        assert (ended.value.code or 0) == code
        return capsys.readouterr().err

    assert "warning" not in told(signing.public.hex(), 0)
    assert "signed" in told(SigningKey(bytes(32)).public.hex(), 2)


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
    assert re.search(r"^largest error of an output by fixed point: \d\.\de-0\d, over 32 of the rows$", output.out, re.M)
    code, output = shown()
    assert code == 2
    assert "--calibrate" in output.err
    assert "largest error" not in output.out
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert "FILE.npy" in shown("--calibrate", str(tmp_path / "rows.csv"))[1].err
    np.save(rows, np.array(["text"]))
    assert "numbers" in shown("--calibrate", str(rows))[1].err
    rows.write_bytes(b"no array")
    assert "numpy.save" in shown("--calibrate", str(rows))[1].err
