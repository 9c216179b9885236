"""`confide plan` of a model with activations."""

import numpy as np
import pytest
from typer.testing import CliRunner

from confide.cli import app
from confide.errors import ModelError
from confide.model.graph import Graph, Linear, Relu
from confide.model.onnx import to_onnx


@pytest.fixture(name="net")
def with_relu(tmp_path):
    rng = np.random.default_rng(0)
    layers = (Linear(rng.normal(size=(4, 2)), np.zeros(4)), Relu(), Linear(rng.normal(size=(2, 4)), np.zeros(2)))
    (tmp_path / "net.onnx").write_bytes(to_onnx(Graph(layers)))
    return tmp_path / "net.onnx"


def test_the_error_of_a_planned_polynomial_is_shown(net):
    shown = {
        degree: CliRunner().invoke(app, ["plan", str(net), "--activation-degree", str(degree)]).output
        for degree in (2, 4)
    }
    errors = {degree: float(text.split(f"degree {degree}, error ")[1].split(",")[0]) for degree, text in shown.items()}
    assert all("polynomial: layer 1: Relu on [" in text for text in shown.values())
    assert 0 < errors[4] < errors[2]


def test_without_a_degree_activations_are_refused(net):
    with pytest.raises(ModelError, match="fit-polynomial"):
        CliRunner().invoke(app, ["plan", str(net)], catch_exceptions=False)
