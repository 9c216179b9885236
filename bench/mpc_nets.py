"""The networks of bench/mpc.py, as data that we, the peer and the oracle read alike: layers, and numbers by layer.

A layer is a mapping with `kind`; `conv` and `linear` also have `number`, the place of their `<number>.weight` and
`<number>.bias`, and `conv` has `stride`, `padding` (equal on all sides), `height` and `width` of its input. `residual`
has `body` and `shortcut` (empty: the input itself), `maxpool` has `size`, `mean` is that of each channel.
Images are (rows, channels, height, width), and flattened channel by channel, row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Layer = Mapping[str, Any]
Arrays = dict[str, np.ndarray]
#: Shape of one input.
INPUTS = {"mnist": (1, 28, 28), "resnet20": (3, 32, 32), "logistic": (30,)}
RELU: Layer = {"kind": "relu"}


def conv(number: int, outputs: int, inputs: int, kernel: int, size: int, *, stride: int = 1) -> Layer:
    shape = (outputs, inputs, kernel, kernel)
    padding = (kernel - 1) // 2
    named = {"kind": "conv", "number": number, "shape": shape, "stride": stride, "padding": padding}
    return {**named, "height": size, "width": size}


def linear(number: int, outputs: int, inputs: int) -> Layer:
    return {"kind": "linear", "number": number, "shape": (outputs, inputs)}


def mnist() -> list[Layer]:
    """Return 3x3x16, ReLU, max-pool, 3x3x32, ReLU, max-pool, 1568-64-10."""
    pool: Layer = {"kind": "maxpool", "size": 2}
    front = [conv(0, 16, 1, 3, 28), RELU, pool, conv(1, 32, 16, 3, 14), RELU, pool]
    return [*front, linear(2, 64, 1568), RELU, linear(3, 10, 64)]


def resnet20() -> list[Layer]:
    """Return ResNet-20 of CIFAR-10, batch norm folded; a convolution 1x1 / 2 where a shortcut changes its shape."""
    layers: list[Layer] = [conv(0, 16, 3, 3, 32), RELU]
    number, channels, size = 1, 16, 32
    for outputs in (16, 32, 64):
        for place in range(3):
            stride = 2 if outputs > channels and place == 0 else 1
            inner = size // stride
            first = conv(number, outputs, channels, 3, size, stride=stride)
            body = [first, RELU, conv(number + 1, outputs, outputs, 3, inner)]
            shortcut = [conv(number + 2, outputs, channels, 1, size, stride=stride)] if stride > 1 else []
            layers += [{"kind": "residual", "body": body, "shortcut": shortcut}, RELU]
            number, channels, size = number + 2 + len(shortcut), outputs, inner
    return [*layers, {"kind": "mean", "channels": 64, "height": size, "width": size}, linear(number, 10, 64)]


def logistic() -> list[Layer]:
    return [linear(0, 1, 30), {"kind": "sigmoid"}]


NETS = {"mnist": mnist, "resnet20": resnet20, "logistic": logistic}


def affine_layers(net: str) -> list[Layer]:
    """Return the layers that have numbers, in their order."""

    def walk(layers: Sequence[Layer]) -> Iterator[Layer]:
        for layer in layers:
            if "number" in layer:
                yield layer
            yield from walk(layer.get("body", ()))
            yield from walk(layer.get("shortcut", ()))

    return sorted(walk(NETS[net]()), key=lambda layer: layer["number"])


def drawn(net: str, seed: int = 0) -> Arrays:
    """Return numbers of a fixed seed whose outputs stay near 1: what a layer computes does not change what it costs."""
    rng, found = np.random.default_rng(seed), Arrays()
    for layer in affine_layers(net):
        shape = layer["shape"]
        fan = int(np.prod(shape[1:]))
        gain = 1.0 if net == "resnet20" else 2.0  # sums of residual blocks grow by themselves
        found[f"{layer['number']}.weight"] = rng.normal(0, np.sqrt(gain / fan), shape).astype(np.float32)
        found[f"{layer['number']}.bias"] = rng.normal(0, 0.05, shape[0]).astype(np.float32)
    return found


def apply(net: str, arrays: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return what a network gives in float64, shape (rows, outputs): the oracle of every error that is printed.

    Args:
        x: (rows, *INPUTS[net]).
    """
    numbers = {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in arrays.items()}
    with torch.no_grad():
        return _chain(NETS[net](), numbers, torch.from_numpy(np.asarray(x, np.float64))).numpy()


def _chain(layers: Sequence[Layer], numbers: Mapping[str, Tensor], x: Tensor) -> Tensor:
    for layer in layers:
        x = _one(layer, numbers, x)
    return x


def _one(layer: Layer, numbers: Mapping[str, Tensor], x: Tensor) -> Tensor:
    match layer["kind"]:
        case "conv":
            weight, bias = (numbers[f"{layer['number']}.{part}"] for part in ("weight", "bias"))
            return functional.conv2d(x, weight, bias, layer["stride"], layer["padding"])
        case "linear":
            weight, bias = (numbers[f"{layer['number']}.{part}"] for part in ("weight", "bias"))
            return functional.linear(x.flatten(1), weight, bias)
        case "relu":
            return x.relu()
        case "sigmoid":
            return x.sigmoid()
        case "maxpool":
            return functional.max_pool2d(x, layer["size"])
        case "mean":
            return x.mean((2, 3))
        case "residual":
            shortcut = _chain(layer["shortcut"], numbers, x)
            return _chain(layer["body"], numbers, x) + shortcut
        case kind:
            raise ValueError(f"Expected a kind of layer of this module, got {kind}")
