"""Train the networks that inference on shares is measured on, and write their numbers: ReLU, max-pool, residual blocks.

    python bench/train_relu.py --model mnist [--data FILE] [--out FOLDER] [--seed 0] [--epochs N] [--threads 1]
    python bench/train_relu.py --model resnet20 --data cifar10.npz --out FOLDER

    mnist     MNIST     convolutions 16 and 32 @ 3x3, each with ReLU and max-pool 2, dense 64, ReLU, dense 10
    resnet20  CIFAR-10  ResNet-20 (arXiv 1512.03385), a convolution 1x1 / 2 where a shortcut changes its shape

The data and the inputs are those of train_models.py, whose optimisers and images these networks share. Batch norm is
folded at the end. FOLDER/<model>.npz holds `0.weight`, `0.bias`, `1.weight`, ... in the order of mpc_nets.py, as
float32, and `accuracy`, that of the folded numbers on the 10,000 test images. The images of a test choose nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mpc_nets import affine_layers, apply
from torch import Tensor, nn
from torch.nn import functional
from train_models import DIGIT, MNIST, PHOTO, Affine, Recipe, cropped, fit, folded, images, warped

SAME = (1, 1, 1, 1)


def affine(outputs: int, inputs: int, kernel: int = 0, stride: int = 1, pad: tuple[int, ...] = ()) -> Affine:
    """Return a layer whose batch norm begins at mean 0, variance 1, as before a ReLU."""
    layer = Affine(outputs, inputs, kernel, stride, pad)
    assert layer.norm is not None
    nn.init.ones_(layer.norm.weight)
    nn.init.zeros_(layer.norm.bias)
    return layer


class Digits(nn.Module):
    """Two convolutions, each before a ReLU and a max-pool of 2x2, then 1568-64-10."""

    def __init__(self) -> None:
        super().__init__()
        last = Affine(10, 64, norm=False)
        self.layers = nn.ModuleList(
            [affine(16, 1, 3, 1, SAME), affine(32, 16, 3, 1, SAME), affine(64, 1568), last],
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second, dense, last = self.layers
        for layer in (first, second):
            x = functional.max_pool2d(layer(x).relu(), 2)
        return last(dense(x).relu())


class Block(nn.Module):
    """relu(convolutions(x) + shortcut(x))."""

    def __init__(self, outputs: int, inputs: int, stride: int) -> None:
        super().__init__()
        pads = [SAME, SAME, (0, 0, 0, 0)]
        layers = [affine(outputs, inputs, 3, stride, pads[0]), affine(outputs, outputs, 3, 1, pads[1])]
        if stride > 1:
            layers.append(affine(outputs, inputs, 1, stride, pads[2]))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.layers[2](x) if len(self.layers) == 3 else x
        return (self.layers[1](self.layers[0](x).relu()) + shortcut).relu()


class ResNet20(nn.Module):
    """Nine blocks of two convolutions, 16, 32 and 64 channels, then the mean of each channel and 64-10."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(16, 16, 1)] * 3 + [(32, 16, 2)] + [(32, 32, 1)] * 2 + [(64, 32, 2)] + [(64, 64, 1)] * 2
        self.stem = affine(16, 3, 3, 1, SAME)
        self.blocks = nn.ModuleList([Block(*shape) for shape in shapes])
        self.last = Affine(10, 64, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = block(x)
        return self.last(x.mean((2, 3)))


RECIPES = {
    "mnist": Recipe(DIGIT, Digits, warped(0.6), epochs=6, accuracy=0.989, muon_rate=0.02, half=False),
    "resnet20": Recipe(PHOTO, ResNet20, cropped, epochs=6, accuracy=0.78, muon_rate=0.02, half=False, batch=500),
}


def numbers(net: nn.Module) -> dict[str, np.ndarray]:
    """Return the folded weights and biases, layer by layer in the order of construction."""
    found = {}
    layers = [module for module in net.modules() if isinstance(module, Affine)]
    for number, layer in enumerate(layers):
        weight, bias = folded(layer)
        found[f"{number}.weight"], found[f"{number}.bias"] = weight.astype(np.float32), bias.astype(np.float32)
    return found


def accuracy_of(model: str, arrays: dict[str, np.ndarray], x: Tensor, y: Tensor) -> float:
    """Return the accuracy of the numbers as they are written, on images."""
    hits = [
        (apply(model, arrays, rows.numpy()).argmax(1) == labels.numpy()).sum()
        for rows, labels in zip(x.split(250), y.split(250), strict=True)
    ]
    return float(sum(hits)) / len(y)


def main() -> None:
    """Train one network, write it, print its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=RECIPES)
    parser.add_argument("--data", type=Path, default=MNIST, help="an .npz of the images; by default MNIST's")
    parser.add_argument("--out", type=Path, default=Path("build/models"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    recipe = RECIPES[arguments.model]
    if arguments.epochs:
        recipe = replace(recipe, epochs=arguments.epochs)
    data, net = images(arguments.data, recipe.shape), recipe.layers()
    net = net.to(memory_format=torch.channels_last)
    fit(net, data, recipe, arguments.seed, lambda line: print(line, flush=True))
    net.eval()
    arrays = numbers(net)
    assert len(arrays) == 2 * len(affine_layers(arguments.model))
    accuracy = accuracy_of(arguments.model, arrays, *data[2:])
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.savez(arguments.out / f"{arguments.model}.npz", accuracy=np.float64(accuracy), **arrays)
    print(f"{arguments.model}.npz: accuracy {accuracy:.4f} on {len(data[3])} test images")
    if accuracy < recipe.accuracy:
        raise SystemExit(f"Expected an accuracy of at least {recipe.accuracy}; train longer, or with another seed")


if __name__ == "__main__":
    main()
