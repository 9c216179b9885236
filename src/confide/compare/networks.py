"""The networks on which a comparison measures "per image": known shapes, their weights drawn from a public stream.

What a layer computes does not change what it costs: no technique here branches on a weight, so the latency of a network
with drawn weights is that of a trained one of the same shape. How accurate it is, nobody asks here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import public_stream
from confide.errors import JobError, ModelError
from confide.model.graph import AveragePool, Conv, Graph, Layer, Linear, MaxPool, Relu, Residual, Square
from confide.model.onnx import from_onnx, to_onnx

Matrix = NDArray[np.float64]


class _Normal(Protocol):
    """What draws normal numbers."""

    def normal(self, mean: float, deviation: float, size: tuple[int, ...], /) -> Matrix: ...


@dataclass(slots=True)
class _Drawn:
    """Layers with drawn weights, each of a size that keeps what it gives about 1.

    Args:
        stream: of the weights.
        gain: the variance of a weight times the numbers that it is summed over: 2 before a rectifier, less where sums
            grow by themselves or are squared.
    """

    stream: _Normal = field(repr=False)
    gain: float

    def linear(self, inputs: int, outputs: int) -> Linear:
        weight = self.stream.normal(0.0, math.sqrt(self.gain / inputs), (outputs, inputs))
        return Linear(weight, self.stream.normal(0.0, 0.05, (outputs,)))

    def conv(
        self, channels: int, outputs: int, kernel: int, size: int, *, stride: int = 1, padding: int | None = None
    ) -> Conv:
        """Return a square convolution of a square image, padded so that stride 1 keeps its size unless told."""
        weight = self.stream.normal(
            0.0, math.sqrt(self.gain / (channels * kernel * kernel)), (outputs, channels, kernel, kernel)
        )
        bias = self.stream.normal(0.0, 0.05, (outputs,))
        pad = kernel // 2 if padding is None else padding
        return Conv(weight, bias, size, size, (stride, stride), (pad, pad, pad, pad))


def mnist_squares() -> Graph:
    """Return LoLa's network for MNIST: a convolution 5 @ 5x5 / 2, a square, 100 units, a square, 10 outputs.

    Paper: Brutzkus, Oren and Gilad-Bachrach, ICML 2019 (arXiv 1812.10659): what papers on encryption compare on.
    """
    make = _Drawn(public_stream("mnist-squares", "network weights"), 1.0)
    return Graph(
        (make.conv(1, 5, 5, 28, stride=2, padding=1), Square(), make.linear(845, 100), Square(), make.linear(100, 10))
    )


def cifar_squares() -> Graph:
    """Return a network for CIFAR-10 that leveled encryption carries: three convolutions with squares, 10 outputs."""
    make = _Drawn(public_stream("cifar-squares", "network weights"), 1.0)
    return Graph(
        (
            make.conv(3, 32, 4, 32, stride=2, padding=1),
            Square(),
            make.conv(32, 128, 5, 16, stride=2, padding=2),
            Square(),
            make.conv(128, 256, 3, 8, stride=2, padding=1),
            Square(),
            make.linear(4096, 10),
        )
    )


def mnist_relu() -> Graph:
    """Return a network for MNIST with rectifiers: 16 @ 3x3, pool, 32 @ 3x3, pool, 64 units, 10 outputs."""
    make = _Drawn(public_stream("mnist-relu", "network weights"), 2.0)
    return Graph(
        (
            make.conv(1, 16, 3, 28),
            Relu(),
            MaxPool(16, 28, 28, (2, 2), (2, 2)),
            make.conv(16, 32, 3, 14),
            Relu(),
            MaxPool(32, 14, 14, (2, 2), (2, 2)),
            make.linear(1568, 64),
            Relu(),
            make.linear(64, 10),
        )
    )


def resnet20() -> Graph:
    """Return ResNet-20 for CIFAR-10, batch norm folded; a convolution 1x1 / 2 where a shortcut changes its shape.

    Paper: He, Zhang, Ren and Sun, CVPR 2016, 4.2.
    """
    make = _Drawn(public_stream("resnet20", "network weights"), 1.0)
    layers: list[Layer] = [make.conv(3, 16, 3, 32), Relu()]
    channels, size = 16, 32
    for outputs in (16, 32, 64):
        for place in range(3):
            stride = 2 if outputs > channels and place == 0 else 1
            inner = size // stride
            body = (
                make.conv(channels, outputs, 3, size, stride=stride), Relu(), make.conv(outputs, outputs, 3, inner),
            )  # fmt: skip
            shortcut = (make.conv(channels, outputs, 1, size, stride=stride),) if stride > 1 else ()
            layers += [Residual(body, shortcut), Relu()]
            channels, size = outputs, inner
    return Graph((*layers, AveragePool(64, 8, 8, (8, 8), (1, 1)), make.linear(64, 10)))


#: By the name that `[compare] networks` gives.
NETWORKS: Mapping[str, Callable[[], Graph]] = {
    "mnist-squares": mnist_squares,
    "cifar-squares": cifar_squares,
    "mnist-relu": mnist_relu,
    "resnet20": resnet20,
}


def inputs(graph: Graph, count: int) -> Matrix:
    """Return inputs of a network, uniform in [-1, 1] from a public stream, shape (count, features)."""
    return public_stream("images", "network inputs").uniform(-1.0, 1.0, (count, graph.features))


def load_network(name: str, base: Path) -> Graph:
    """Return a network by its name in `NETWORKS`, or from an ONNX file.

    Args:
        name: as `[compare] networks` gives it; what ends with ".onnx" is a path.
        base: of relative paths.

    Raises:
        JobError: there is no such file.
        ModelError: the file is none that is run here.
    """
    if name in NETWORKS:
        return NETWORKS[name]()
    try:
        return from_onnx((base / name).read_bytes())
    except OSError as error:
        raise JobError(f"Expected a network at {Path(name).name}; {error.strerror}") from None


def weight_layers(layers: Sequence[Layer]) -> int:
    """Return how many layers with weights stand after each other: 1 is a linear model, more is deep."""
    return sum(
        max(weight_layers(layer.body), weight_layers(layer.shortcut))
        if isinstance(layer, Residual)
        else isinstance(layer, Linear | Conv)
        for layer in layers
    )


def clear_seconds(graph: Graph, x: Matrix, *, repeats: int = 30) -> float | None:
    """Return the median seconds of onnxruntime for one row in the clear: what a network costs without protection.

    Our own plain backend computes with numpy in float64 and would flatter every technique beside it.

    Args:
        graph: the network.
        x: rows, shape (n, features); the first is asked again and again.
        repeats: how often, after one that is cold.

    Returns:
        None where onnxruntime is not installed, or does not run the network.
    """
    try:
        import onnxruntime
    except ImportError:  # the encoder extra
        return None
    runtime: Any = onnxruntime
    try:
        session = runtime.InferenceSession(to_onnx(graph), providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0]
        kind = np.float32 if "float)" in entry.type else np.float64
        row = np.ascontiguousarray(x[:1], kind)
        session.run(None, {entry.name: row})
    except (ModelError, RuntimeError, ValueError):
        return None
    seconds: list[float] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        session.run(None, {entry.name: row})
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))
