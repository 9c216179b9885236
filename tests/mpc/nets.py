"""Networks whose costs are known by hand, and small random ones of every layer."""

from __future__ import annotations

import numpy as np

from confide.model.graph import (
    AveragePool,
    Conv,
    Graph,
    Linear,
    MaxPool,
    Polynomial,
    Relu,
    Residual,
    Sigmoid,
    Square,
    Tanh,
)


def conv(rng, outputs, channels, size, kernel=3, stride=1):
    """A convolution of a square image with zeros around it, its weights of a size that keeps values about 1."""
    weight = rng.normal(size=(outputs, channels, kernel, kernel)) / np.sqrt(channels * kernel * kernel / 2)
    pad = kernel // 2
    return Conv(weight, rng.normal(size=outputs) / 8, size, size, (stride, stride), (pad, pad, pad, pad))


def linear(rng, outputs, inputs):
    return Linear(rng.normal(size=(outputs, inputs)) / np.sqrt(inputs / 2), rng.normal(size=outputs) / 8)


def mnist(seed=0):
    """3x3x16 - ReLU - pool2 - 3x3x32 - ReLU - pool2 - 1568-64-10."""
    rng = np.random.default_rng(seed)
    return Graph(
        (
            conv(rng, 16, 1, 28),
            Relu(),
            MaxPool(16, 28, 28, (2, 2), (2, 2)),
            conv(rng, 32, 16, 14),
            Relu(),
            MaxPool(32, 14, 14, (2, 2), (2, 2)),
            linear(rng, 64, 1568),
            Relu(),
            linear(rng, 10, 64),
        )
    )


def resnet20(seed=0):
    """ResNet-20 of CIFAR-10, batch norm folded, convolutions 1x1 where a shortcut changes its shape."""
    rng = np.random.default_rng(seed)
    layers = [conv(rng, 16, 3, 32), Relu()]
    channels, size = 16, 32
    for outputs in (16, 32, 64):
        for place in range(3):
            stride = 2 if outputs > channels and place == 0 else 1
            inner = size // stride
            body = (conv(rng, outputs, channels, size, 3, stride), Relu(), conv(rng, outputs, outputs, inner))
            shortcut = (conv(rng, outputs, channels, size, 1, stride),) if stride > 1 else ()
            layers += [Residual(body, shortcut), Relu()]
            channels, size = outputs, inner
    return Graph((*layers, AveragePool(64, 8, 8, (8, 8), (1, 1)), linear(rng, 10, 64)))


def small(seed=0):
    """Return networks in which every layer meets every other, by a name."""
    rng = np.random.default_rng(seed)
    cubic = Polynomial(np.array([0.3, -0.5, 0.4, 0.2]), -3.0, 4.0)
    third = AveragePool(2, 6, 6, (3, 3), (3, 3))
    front = conv(rng, 2, 1, 6)
    block = Residual((conv(rng, 2, 2, 6), Relu(), conv(rng, 2, 2, 6)))
    return {
        "a matrix": Graph((linear(rng, 3, 5),)),
        "two matrices": Graph((linear(rng, 4, 5), linear(rng, 3, 4))),
        "a regression": Graph((linear(rng, 1, 5), Sigmoid())),
        "relu at the end": Graph((linear(rng, 4, 5), Relu())),
        "a pool of inputs": Graph((MaxPool(1, 4, 4, (2, 2), (2, 2)),)),
        "an average of inputs": Graph((AveragePool(1, 4, 4, (2, 2), (2, 2)),)),
        "an average of nine": Graph((conv(rng, 2, 1, 6), Relu(), third, linear(rng, 3, 8))),
        "an average of nine before relu": Graph((conv(rng, 2, 1, 6), third, Relu(), linear(rng, 3, 8))),
        "an average of nine at the end": Graph((conv(rng, 2, 1, 6), third)),
        "an average of nine, squared": Graph((conv(rng, 2, 1, 6), third, Square(), linear(rng, 3, 8))),
        "an average of six": Graph((front, Relu(), AveragePool(2, 6, 6, (2, 3), (1, 3)), linear(rng, 3, 20))),
        "averages of averages": Graph(
            (front, Relu(), AveragePool(2, 6, 6, (2, 2), (1, 1)), AveragePool(2, 5, 5, (3, 3), (2, 2)), Relu())
        ),
        "a pool with an edge": Graph(
            (conv(rng, 2, 1, 7), Relu(), MaxPool(2, 7, 7, (3, 3), (2, 2), (1, 1, 1, 1)), conv(rng, 2, 2, 4))
        ),
        "a crooked pool": Graph((conv(rng, 2, 1, 7), MaxPool(2, 7, 7, (2, 3), (3, 1), (1, 2, 0, 1)), Relu())),
        "a pool and no relu": Graph((conv(rng, 2, 1, 6), MaxPool(2, 6, 6, (2, 2), (2, 2)), linear(rng, 3, 18))),
        "pools after each other": Graph(
            (front, Relu(), MaxPool(2, 6, 6, (2, 2), (2, 2)), MaxPool(2, 3, 3, (2, 2), (1, 1)), linear(rng, 2, 8))
        ),
        "squares": Graph((linear(rng, 4, 5), Square(), linear(rng, 3, 4), Square())),
        "a polynomial": Graph((linear(rng, 4, 5), cubic, linear(rng, 3, 4))),
        "a polynomial of degree one": Graph((linear(rng, 4, 5), Polynomial(np.array([0.5, 1.5]), -0.1, 0.3))),
        "a residual block": Graph(
            (front, Relu(), block, Relu(), linear(rng, 3, 72))
        ),
        "an average beside a convolution": Graph(
            (
                conv(rng, 2, 1, 6),
                Residual((conv(rng, 2, 2, 6, 3, 2),), (AveragePool(2, 6, 6, (2, 2), (2, 2)),)),
                Residual((AveragePool(2, 3, 3, (3, 3), (1, 1)), Relu()), (linear(rng, 2, 18),)),
            )
        ),
        "a tangent": Graph((linear(rng, 4, 5), Tanh(), linear(rng, 3, 4))),
    }  # fmt: skip
