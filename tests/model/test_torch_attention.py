"""Modules of tokens: torch itself is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from confide.errors import ModelError
from confide.model.torch_attention import TokenMean
from confide.model.torch_import import Residual, from_torch

TOKENS, FEATURES = 5, 8


def encoder(**settings) -> nn.TransformerEncoderLayer:
    torch.manual_seed(3)
    made = nn.TransformerEncoderLayer(FEATURES, 2, 12, **({"batch_first": True, "activation": "gelu"} | settings))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return made


def head() -> list[nn.Module]:
    return [TokenMean(), nn.Linear(FEATURES, 3), nn.Softmax(dim=-1)]


MODULES = {
    "pre-norm": lambda: nn.Sequential(
        nn.Linear(4, FEATURES), encoder(norm_first=True), nn.LayerNorm(FEATURES), *head()
    ),
    "post-norm": lambda: nn.Sequential(nn.Linear(4, FEATURES), encoder(activation="relu"), *head()),
    "first": lambda: nn.Sequential(encoder(), *head()),
    "stack": lambda: nn.Sequential(
        nn.TransformerEncoder(encoder(norm_first=True), 2, nn.LayerNorm(FEATURES), enable_nested_tensor=False), *head()
    ),
    "activations": lambda: nn.Sequential(nn.Linear(4, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES), *head()),
    "residual": lambda: nn.Sequential(Residual(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))), TokenMean()),
    "flat from the start": lambda: nn.Sequential(nn.Flatten(), nn.Linear(TOKENS * 4, 3), nn.LayerNorm(3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_graph_computes_what_the_module_computes(name):
    torch.manual_seed(1)
    module = MODULES[name]().double().eval()
    shape = (TOKENS, FEATURES if name in ("first", "stack") else 4)
    x = np.random.default_rng(2).normal(size=(3, *shape))
    graph = from_torch(module, shape)
    with torch.no_grad():
        wanted = module(torch.tensor(x)).numpy()
    assert np.abs(graph.apply(x.reshape(3, -1)) - wanted.reshape(3, -1)).max() < 1e-9


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.Flatten(), nn.Linear(40, 2)), "TokenMean"),
        (encoder(batch_first=False), "batch_first=True"),
        (encoder(activation=torch.tanh), "activation='relu' or 'gelu'"),
        (nn.Sequential(nn.Softmax(dim=1)), "dim=-1"),
        (nn.LayerNorm((5, 8)), "last axis"),
        (nn.Sequential(nn.Linear(8, 8), nn.LogSoftmax(dim=-1)), "take Softmax"),
    ],
)
def test_what_no_layer_is_is_refused_with_what_to_do(module, text):
    shape = (
        (TOKENS, 4)
        if isinstance(module, nn.Sequential) and isinstance(module[0], nn.Linear) and module[0].in_features == 4
        else (TOKENS, FEATURES)
    )
    with pytest.raises(ModelError, match=text):
        from_torch(module, shape)
