"""Further networks and data sets in a campaign, and the yardsticks of the rules: passes, and the clear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from confide.compare.campaign import campaign
from confide.compare.cells import on_set
from confide.compare.networks import NETWORKS, clear_seconds, inputs, weight_layers
from confide.compare.settings import parse
from confide.errors import JobError
from confide.model.onnx import to_onnx
from confide.model.zoo import logistic, mlp


def test_networks_and_sets_become_records_beside_the_job(tmp_path):
    (tmp_path / "own.onnx").write_bytes(to_onnx(mlp(5, 3, 2, seed=1)))
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    table = {
        "data": {"set": "breast-cancer", "parties": 3},
        "train": {"rounds": 3},
        "compare": {
            "training": ["pooled", "plain"], "inference": ["plain"], "seeds": 1, "sizes": [],
            "check_link": False, "clients": 0, "networks": ["own.onnx", "broken.onnx"], "sets": ["digits"],
        },
    }  # fmt: skip
    for event in campaign(parse(table, base=tmp_path), tmp_path / "cells", seeds=1, queries=3):
        found = event.result
    assert found is not None
    beside = {(one.kind, one.on, one.record.choice): one.record for one in found.asides}
    assert set(beside) == {("network", "own.onnx", "plain"), ("set", "digits", "pooled"), ("set", "digits", "plain")}
    own = beside["network", "own.onnx", "plain"]
    assert own.figure("parameters_count") == 5 * 3 + 3 + 3 * 2 + 2
    assert own.figure("weight_layers_count") == 2
    assert "digits, 3 parties" in beside["set", "digits", "plain"].setting
    assert "ONNX" in found.unfit["network/broken.onnx/plain"]
    passes = next(curve for curve in found.curves if curve.kind == "passes")
    rounds = next(curve for curve in found.curves if curve.kind == "rounds")
    # a sum over parties is the gradient over pooled records: the same accuracy after every round and pass
    assert [one.median for one in passes.y] == pytest.approx([one.median for one in rounds.y], abs=0.02)
    pooled = next(one for one in found.records if (one.task, one.choice) == ("training", "pooled"))
    assert passes.y[-1].median == pytest.approx(pooled.figure("accuracy_share"), abs=0.01)


def test_a_set_in_place_of_records_keeps_how_they_are_parted():
    table = {
        "data": {"schema": "s.toml", "tables": {"a": "a.csv"}, "split": "column", "test_fraction": 0.5, "budget": "b"},
        "privacy": {"epsilon": 2.0, "expected_records": 3},
    }
    made = on_set(table, "digits")
    assert made["data"] == {"set": "digits", "test_fraction": 0.5}
    assert made["privacy"] == {"epsilon": 2.0, "expected_records": 898}  # half of 1,797
    assert table["privacy"]["expected_records"] == 3


def test_networks_that_nobody_knows_are_refused():
    with pytest.raises(JobError, match='did you mean "resnet20"'):
        parse({"data": {"set": "digits"}, "compare": {"networks": ["resnet2"]}})
    with pytest.raises(JobError, match=r"compare\.sets"):
        parse({"data": {"set": "digits"}, "compare": {"sets": ["mnist"]}})
    with pytest.raises(JobError, match="different names"):
        parse({"data": {"set": "digits"}, "compare": {"networks": ["resnet20", "resnet20"]}})


@pytest.mark.parametrize(
    ("name", "features", "parameters", "deep"),
    [("mnist-squares", 784, 85_740, 3), ("cifar-squares", 3072, 440_234, 4), ("mnist-relu", 784, 105_866, 4),
     ("resnet20", 3072, 271_690, 20)],
)  # fmt: skip
def test_networks_have_their_published_shapes_and_keep_values_small(name, features, parameters, deep):
    graph = NETWORKS[name]()
    assert (graph.features, graph.outputs, graph.parameters) == (features, 10, parameters)
    assert weight_layers(graph.layers) == deep
    y = graph.apply(inputs(graph, 2))
    assert 0.01 < np.abs(y).max() < 20
    assert np.array_equal(NETWORKS[name]().apply(inputs(graph, 2)), y)  # drawn alike everywhere


def test_the_first_network_computes_what_torch_does():
    graph = NETWORKS["mnist-squares"]()
    first, _, second, _, third = graph.layers
    x = inputs(graph, 3)
    image = torch.from_numpy(x.reshape(3, 1, 28, 28))
    y = functional.conv2d(image, torch.from_numpy(first.weight), torch.from_numpy(first.bias), 2, 1).flatten(1) ** 2
    y = (y.numpy() @ second.weight.T + second.bias) ** 2 @ third.weight.T + third.bias
    assert np.allclose(graph.apply(x), y)


def test_the_clear_is_timed_by_onnxruntime():
    graph = mlp(5, 3, 2, seed=1)
    seconds = clear_seconds(graph, inputs(graph, 1), repeats=3)
    assert seconds is not None
    assert seconds > 0
    assert weight_layers(logistic(5).layers) == 1
