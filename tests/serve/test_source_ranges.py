"""Ranges of public rows reach the backend that a worker makes of a model file."""

from __future__ import annotations

import numpy as np
import pytest

from confide.crypto.keys import SigningKey
from confide.errors import ModelError
from confide.model.artifact import Artifact
from confide.model.preprocess import Preprocess, Scale
from confide.mpc.ranges import by_rows
from confide.serve import load_backend
from confide.serve.source import model_file
from mpc.compared_nets import transformer
from serve.toy import LABEL

KEY = SigningKey(bytes(range(32)))


@pytest.mark.parametrize("backend", ["mpc-dealer", "mpc-outsourced", "mpc-3pc"])
def test_a_transformer_is_served_with_ranges_alone(backend):
    graph = transformer(tokens=3, numbers=2)
    preprocess = Preprocess(tuple(Scale(name=f"x{place}", low=-1, high=1) for place in range(6)))
    body = Artifact(graph, preprocess, LABEL).encode(KEY)
    signer = KEY.public
    ranges = by_rows(graph, np.random.default_rng(0).uniform(-1, 1, (40, 6)))
    source = model_file("model", body, signer=signer, backends=(backend,), ranges=ranges)
    (model,) = source.models()
    assert model.backends[0].check(model.graph) == []
    (other,) = model_file("model", body, signer=signer, backends=(backend,)).models()
    assert other.backends[0].check(other.graph)


def test_backends_that_take_no_ranges_are_given_none():
    ranges = by_rows(transformer(), np.zeros((1, 20)))
    assert load_backend("plain", ranges=ranges).name == "plain"
    with pytest.raises(ModelError):
        load_backend("none of them", ranges=ranges)
