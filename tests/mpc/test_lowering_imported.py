"""Models of torch and scikit-learn on shares: the library that trained them is the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from confide.model.graph import Trees
from confide.model.sklearn_import import from_sklearn
from confide.mpc.ranges import by_rows
from confide.mpc.two_party import WithDealer
from mpc.sessions import ready


def test_a_torch_encoder_gives_torchs_probabilities():
    torch = pytest.importorskip("torch")
    from confide.model.torch_attention import TokenMean
    from confide.model.torch_import import from_torch

    torch.manual_seed(1)
    encoder = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", norm_first=True)
    taken, head = torch.nn.Linear(4, 16), torch.nn.Linear(16, 3)
    with torch.no_grad():
        taken.bias.normal_()
    module = torch.nn.Sequential(
        taken, encoder, torch.nn.LayerNorm(16), TokenMean(), head, torch.nn.Softmax(dim=-1)
    ).eval()
    graph = from_torch(module, (6, 4))
    rows = np.random.default_rng(0).normal(size=(40, 24))
    x = np.random.default_rng(1).normal(size=(3, 24))
    session = ready(WithDealer(ranges=by_rows(graph, rows)), graph)
    found = session.predict(x).output("client")
    truth = module(torch.tensor(x.reshape(3, 6, 4), dtype=torch.float32)).detach().numpy()
    assert np.abs(found - truth).max() < 1e-3


def test_boosted_trees_give_scikit_learns_classes():
    ensemble = pytest.importorskip("sklearn.ensemble")
    rng = np.random.default_rng(2)
    x = np.rint(rng.normal(size=(200, 4)) * 64) / 64  # what float32 and the ring hold as it is
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] * x[:, 2] > 0)
    trained = ensemble.GradientBoostingClassifier(n_estimators=4, max_depth=3, random_state=0).fit(x, y)
    graph = from_sklearn(trained)
    assert isinstance(graph.layers[0], Trees)
    found = ready(WithDealer(), graph).predict(x[:30]).output("client")
    np.testing.assert_allclose(found, graph.apply(x[:30]), atol=1e-4)
    assert np.argmax(found, axis=1).tolist() == trained.predict(x[:30]).tolist()
