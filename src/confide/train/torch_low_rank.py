"""Low-rank additions to linear layers: a large model of which only small factors are trained and travel."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn, zeros
from torch.nn import Module
from torch.nn.utils import parametrize

from confide.crypto.random import public_stream
from confide.errors import ModelError
from confide.train.torch_state import matching, tensor_of

Matrix = NDArray[np.float64]


class _LowRank(Module):
    """W + scale B A: B is trained from 0, A is constant."""

    def __init__(self, weight: Tensor, a: Matrix, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(tensor_of(a).to(weight), requires_grad=False)
        self.b = nn.Parameter(zeros(len(weight), len(a)).to(weight))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a)


def low_rank(module: nn.Module, layers: Sequence[str], *, rank: int, scale: float = 1.0, seed: int = 1) -> nn.Module:
    """Return a copy of `module` that is frozen but for a low-rank addition to the weights of some linear layers.

    A layer's weight becomes W + scale B A. A is drawn from the public seed and stays, B starts at 0, is trained and
    travels: the mean of the silos' B gives exactly the mean of their weights, which averaging A and B apart would miss.
    The layers stay what they were; `torch.nn.utils.parametrize.remove_parametrizations` merges the addition in.

    Paper: Hu et al., LoRA (2021); A frozen as in Sun et al., Improving LoRA in Privacy-preserving FL (2024).

    Args:
        module: the public starting point.
        layers: patterns of the names of `nn.Linear` layers.
        rank: of the addition, from 1 to the smaller side of a weight.
        scale: of the addition; the learning rate for B counts times scale.
        seed: public; of A, uniform within sqrt(3 / inputs).

    Raises:
        ModelError: a pattern matches no linear layer, or the rank does not fit one.
    """
    module = copy.deepcopy(module).requires_grad_(False)
    named = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())
    linear = {name: layer for name, layer in named if isinstance(layer, nn.Linear)}
    for name in sorted(matching(layers, list(linear), of="the name of an nn.Linear layer")):
        layer = linear[name]
        if not 1 <= rank <= min(layer.in_features, layer.out_features):
            raise ModelError(f"Expected rank={rank} from 1 to the smaller side of {name}, {tuple(layer.weight.shape)}")
        bound = math.sqrt(3 / layer.in_features)
        a = public_stream(seed, f"low rank {name}").uniform(-bound, bound, (rank, layer.in_features))
        parametrize.register_parametrization(layer, "weight", _LowRank(layer.weight, a, scale))
    return module
