"""Train the networks that encrypted inference is measured on, and write them as ONNX: every activation is a square.

    python bench/train_models.py --model lola [--data FILE] [--out bench/models] [--seed 0] [--epochs N] [--threads 1]
    torchrun --nproc-per-node 2 bench/train_models.py --model cifar --data FILE    (one process per core: faster)

    mlp    MNIST     784-128-128-10
    lola   MNIST     convolution 5 @ 5x5 / 2, dense 100, dense 10
    lenet  MNIST     convolution 32 @ 5x5 / 2, convolution 64 @ 5x5 / 2, dense 512, dense 10
    cifar  CIFAR-10  convolutions of 32 @ 4x4 / 2, 128 @ 5x5 / 2, 256 @ 3x3 / 2, dense 10

The data are one .npz with x_train, y_train, x_test, y_test (uint8 images (n, 28, 28), flat, or (n, 32, 32, 3)). A
network's input is (batch, features), channel by channel, pixels in [-1, 1]: x = pixel / 127.5 - 1.

Squares grow fast, so each is preceded by batch norm while training: it is folded into the layer before it at the end.
It starts as 1 + z / 2, whose square 1 + z + z^2 / 4 is nearly linear: a network of plain z^2 learns worse. A penalty on
|z| > 4 keeps the tails short, since what is computed under encryption has one error bound for the whole range.
Weights are trained by Muon (matrices) and AdamW (the rest), written as int8 with a scale for each output channel;
biases are float32.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor, distributed, nn
from torch.nn import functional

MODELS = Path(__file__).parent / "models"
MNIST = Path(__file__).parents[1] / "../shared/data/mnist/mnist.npz"
#: What is squared stays within +-LIMIT for the most part: beyond it a penalty grows.
LIMIT = 4.0

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Affine(nn.Module):
    """A dense layer or a convolution, then batch norm where a square follows.

    The weight is a matrix (outputs, inputs * height * width), as Muon wants it.
    """

    def __init__(
        self, outputs: int, inputs: int, kernel: int = 0, stride: int = 1, pad: tuple[int, ...] = (), norm: bool = True
    ):
        super().__init__()
        self.kernel, self.stride, self.pad = kernel, stride, pad
        width = inputs * max(kernel, 1) ** 2
        self.weight = nn.Parameter(torch.randn(outputs, width) / math.sqrt(width))
        self.norm = (nn.BatchNorm2d if kernel else nn.BatchNorm1d)(outputs) if norm else None
        self.bias = None if norm else nn.Parameter(torch.zeros(outputs))
        if self.norm is not None:
            nn.init.constant_(self.norm.weight, 0.5)
            nn.init.constant_(self.norm.bias, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel:
            weight = self.weight.unflatten(1, (-1, self.kernel, self.kernel))
            top, left, bottom, right = self.pad
            if top == bottom == left == right:
                x = functional.conv2d(x, weight, self.bias, self.stride, top)
            else:
                x = functional.conv2d(functional.pad(x, (left, right, top, bottom)), weight, self.bias, self.stride)
        else:
            x = functional.linear(x.flatten(1), self.weight, self.bias)
        return x if self.norm is None else self.norm(x)


class Square(torch.autograd.Function):
    """z * z, with the gradient of penalty * mean(max(|z| - LIMIT, 0)^2) added on the way back: short tails, cheaply."""

    @staticmethod
    def forward(context: Any, z: Tensor, penalty: float) -> Tensor:
        context.save_for_backward(z)
        context.penalty = penalty
        return z * z

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (z,) = context.saved_tensors
        beyond = (z - z.clamp(-LIMIT, LIMIT)) * (2 * context.penalty / z.numel())
        return torch.addcmul(beyond, gradient, z, value=2), None


class Net(nn.Module):
    """Affine layers with squares between them."""

    def __init__(self, *layers: Affine, penalty: float = 0.01):
        super().__init__()
        self.layers, self.penalty = nn.ModuleList(layers), penalty

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = Square.apply(layer(x), self.penalty)
        return self.layers[-1](x)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained; `shape` is (channels, height, width) of its input."""

    shape: tuple[int, int, int]
    layers: Callable[[], Net]
    augment: Augment
    epochs: int
    accuracy: float
    batch: int = 250
    muon_rate: float = 0.02
    adam_rate: float = 0.002
    decay: float = 0.02
    smoothing: float = 0.05
    int8: bool = False
    half: bool = True  # trained in bfloat16: faster where the processor has it


def warped(strength: float) -> Augment:
    """Return what turns, shears, scales, shifts and bends digits (n, 1, 28, 28) a little, each by its own draw."""

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        n = len(x)
        draw = (torch.rand(n, 6, generator=generator) * 2 - 1) * strength
        angle, shear = draw[:, 0] * math.radians(12), draw[:, 1] * 0.15
        zoom, shift = 1 + draw[:, 2:4] * 0.12, draw[:, 4:6] * (2.5 / 14)
        across = torch.stack([angle.cos() * zoom[:, 0], shear - angle.sin(), shift[:, 0]], 1)
        down = torch.stack([angle.sin(), angle.cos() * zoom[:, 1], shift[:, 1]], 1)
        bend = torch.randn(n, 2, 6, 6, generator=generator) * (0.9 / 14 * strength)
        bend = functional.interpolate(bend, size=(28, 28), mode="bilinear", align_corners=True)
        grid = functional.affine_grid(torch.stack([across, down], 1), [n, 1, 28, 28], align_corners=False)
        return functional.grid_sample(x + 1, grid + bend.permute(0, 2, 3, 1), align_corners=False) - 1

    return augment


def cropped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (n, 3, 32, 32) shifted by up to 3 pixels either way, half of them mirrored."""
    n, size, pad = len(x), x.shape[-1], 3
    x = functional.pad(x, (pad, pad, pad, pad), mode="reflect")
    down, right = (torch.randint(0, 2 * pad + 1, (n, 1), generator=generator) for _ in range(2))
    rows, columns = down + torch.arange(size), right + torch.arange(size)
    columns = torch.where(torch.rand(n, 1, generator=generator) < 0.5, columns, columns.flip(1))
    return x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mlp() -> Net:
    """Return 784-128-128-10."""
    return Net(Affine(128, 784), Affine(128, 128), Affine(10, 128, norm=False))


def lola() -> Net:
    """Return the network of LoLa (arXiv 1812.10659): 5 maps of 13 x 13, 100 units, 10 outputs."""
    return Net(Affine(5, 1, 5, 2, (1, 1, 0, 0)), Affine(100, 5 * 13 * 13), Affine(10, 100, norm=False))


def lenet() -> Net:
    """Return the LeNet of Orion (arXiv 2311.03470) with strides in place of its pools."""
    same = (2, 2, 2, 2)
    return Net(
        Affine(32, 1, 5, 2, same), Affine(64, 32, 5, 2, same), Affine(512, 64 * 7 * 7), Affine(10, 512, norm=False)
    )


def cifar() -> Net:
    """Return maps of 32 x 16 x 16, 128 x 8 x 8 and 256 x 4 x 4: none above 8,192 numbers.

    The first kernel has 48 taps, so that the patches of an image fit 8,192 complex slots as well: N = 16,384 does.
    """
    return Net(
        Affine(32, 3, 4, 2, (1, 1, 1, 1)),
        Affine(128, 32, 5, 2, (2, 2, 2, 2)),
        Affine(256, 128, 3, 2, (1, 1, 1, 1)),
        Affine(10, 256 * 4 * 4, norm=False),
        penalty=0.05,
    )


DIGIT, PHOTO = (1, 28, 28), (3, 32, 32)
RECIPES = {
    "mlp": Recipe(DIGIT, mlp, warped(1.0), epochs=25, accuracy=0.975),
    "lola": Recipe(DIGIT, lola, warped(0.6), epochs=45, accuracy=0.989),
    "lenet": Recipe(DIGIT, lenet, warped(0.8), epochs=10, accuracy=0.992, int8=True),
    "cifar": Recipe(PHOTO, cifar, cropped, epochs=30, accuracy=0.80, muon_rate=0.03, smoothing=0.1, int8=True),
}


def images(path: Path, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training and test images (n, channels, height, width) in [-1, 1] and their labels."""
    channels, height, width = shape
    with np.load(path) as archive:
        parts = [archive[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    for i in (0, 2):
        parts[i] = parts[i].reshape(-1, height, width, channels).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        parts[i + 1] = parts[i + 1].reshape(-1).astype(np.int64)
    x, y, test_x, test_y = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return x, y, test_x, test_y


def optimisers(net: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices but the last, AdamW for everything else."""
    matrices = [p for p in net.parameters() if p.ndim == 2 and len(p) > 10]
    others = [p for p in net.parameters() if p.ndim != 2 or len(p) <= 10]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.decay),
        torch.optim.AdamW(others, lr=recipe.adam_rate, weight_decay=recipe.decay),
    ]


def rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear over the first twentieth, then half a cosine."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def correct(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy in float32."""
    net.eval()
    with torch.no_grad():
        hits = [(net(a).argmax(1) == b).sum() for a, b in zip(x.split(500), y.split(500), strict=True)]
    net.train()
    return float(sum(hits)) / len(y)


def average(gradients: list[Tensor]) -> None:
    """Replace gradients by their mean over the processes."""
    flat = torch.cat([one.flatten() for one in gradients])
    distributed.all_reduce(flat, op=distributed.ReduceOp.SUM)
    flat /= distributed.get_world_size()
    for one, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        one.copy_(mean.view_as(one))


def fit(
    net: nn.Module, data: tuple[Tensor, Tensor, Tensor, Tensor], recipe: Recipe, seed: int, say: Callable[[str], None]
) -> None:
    """Train a network; every fifth epoch says how it does on the test images, which choose nothing.

    Processes of one group share each batch: the same rows in the same order, each its part, the gradients averaged.
    """
    x, y, test_x, test_y = data
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    order, generator = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(1000 * (rank + 1) + seed)
    chosen, done, steps = optimisers(net, recipe), 0, recipe.epochs * (len(x) // recipe.batch)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: rate(step, steps)) for one in chosen]
    begin = time.perf_counter()
    for epoch in range(recipe.epochs):
        total = 0.0
        for rows in torch.randperm(len(x), generator=order).split(recipe.batch):
            if len(rows) < recipe.batch:
                continue
            rows = rows[rank::world]
            inputs = recipe.augment(x[rows], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.half):
                outputs = net(inputs).float()
                loss = functional.cross_entropy(outputs, y[rows], label_smoothing=recipe.smoothing)
            loss.backward()
            if world > 1:
                average([p.grad for p in net.parameters()])
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            for one, schedule in zip(chosen, schedules, strict=True):
                one.step()
                one.zero_grad()
                schedule.step()
            done, total = done + 1, total + float(loss.detach())
        score = f", test {correct(net, test_x, test_y):.4f}" if epoch % 5 == 4 or epoch == recipe.epochs - 1 else ""
        seconds = time.perf_counter() - begin
        say(f"epoch {epoch + 1}: loss {total * recipe.batch / len(x):.4f}{score}, {seconds:.0f} s")


def folded(layer: Affine) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight (outputs, inputs[, height, width]) and bias of a layer with its batch norm in it."""
    weight, bias = layer.weight.detach().double(), None if layer.bias is None else layer.bias.detach().double()
    if layer.norm is not None:
        norm = layer.norm
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        weight, bias = weight * scale[:, None], norm.bias.detach().double() - norm.running_mean.double() * scale
    if layer.kernel:
        weight = weight.unflatten(1, (-1, layer.kernel, layer.kernel))
    return weight.numpy(), bias.numpy()


def to_onnx(net: Net, shape: tuple[int, int, int], int8: bool) -> bytes:
    """Return the network as ONNX: Conv, Gemm, Mul of a value by itself, Flatten, DequantizeLinear of int8 weights."""
    nodes, constants, x = [], [], "x"
    flat = not net.layers[0].kernel
    for i, layer in enumerate(net.layers):
        weight, bias = folded(layer)
        if int8:
            scale = np.abs(weight).reshape(len(weight), -1).max(1) / 127
            codes = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
            constants += [numpy_helper.from_array(codes, f"codes{i}")]
            constants += [numpy_helper.from_array(scale.astype(np.float32), f"scale{i}")]
            constants += [numpy_helper.from_array(np.zeros(len(scale), np.int8), f"zero{i}")]
            inputs = [f"codes{i}", f"scale{i}", f"zero{i}"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [f"weight{i}"], axis=0))
        else:
            constants.append(numpy_helper.from_array(weight.astype(np.float32), f"weight{i}"))
        constants.append(numpy_helper.from_array(bias.astype(np.float32), f"bias{i}"))
        if layer.kernel:
            how = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2, "pads": list(layer.pad)}
            nodes.append(helper.make_node("Conv", [x, f"weight{i}", f"bias{i}"], [f"z{i}"], **how))
        else:
            if not flat:
                nodes.append(helper.make_node("Flatten", [x], ["flat"], axis=1))
                x, flat = "flat", True
            nodes.append(helper.make_node("Gemm", [x, f"weight{i}", f"bias{i}"], [f"z{i}"], transB=1))
        x = f"z{i}"
        if i + 1 < len(net.layers):
            nodes.append(helper.make_node("Mul", [x, x], [f"square{i}"]))
            x = f"square{i}"
    nodes[-1].output[0] = "y"
    size = [math.prod(shape)] if not net.layers[0].kernel else list(shape)
    graph = helper.make_graph(
        nodes,
        "squares",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *size])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def measured(body: bytes, x: Tensor, y: Tensor) -> float:
    """Return the accuracy of an ONNX network under onnxruntime."""
    session = onnxruntime.InferenceSession(body, providers=["CPUExecutionProvider"])
    shape = [-1, *session.get_inputs()[0].shape[1:]]
    parts = [session.run(None, {"x": part.numpy().reshape(shape)})[0].argmax(1) for part in x.split(500)]
    return float((np.concatenate(parts) == y.numpy()).mean())


def ranges(net: Net, x: Tensor) -> list[str]:
    """Return for each square the root mean square of what goes into it, and quantiles of its size in that unit."""
    net.eval()
    parts: list[list[Tensor]] = []
    with torch.no_grad():
        for part in x.split(500):
            parts.append([])
            for layer in net.layers[:-1]:
                parts[-1].append(layer(part))
                part = parts[-1][-1].square()
    lines = []
    for i, layer in enumerate(zip(*parts, strict=True)):
        z = torch.cat([part.flatten() for part in layer]).abs().numpy()
        size = float(np.sqrt(np.mean(z.astype(np.float64) ** 2)))
        found = np.quantile(z, [0.5, 0.99, 0.9999, 1.0]) / size
        lines.append(
            f"square {i + 1}: rms {size:.3f}; 50 % {found[0]:.2f}, 99 % {found[1]:.2f}, "
            f"99.99 % {found[2]:.2f}, largest {found[3]:.2f} times that"
        )
    return lines


def main() -> None:
    """Train one network, write it, print its accuracy and ranges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=RECIPES)
    parser.add_argument("--data", type=Path, default=MNIST, help="an .npz of the images; by default MNIST's")
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
    torch.manual_seed(arguments.seed)
    recipe = RECIPES[arguments.model]
    if arguments.epochs:
        recipe = replace(recipe, epochs=arguments.epochs)
    data, net = images(arguments.data, recipe.shape), recipe.layers()
    fit(net, data, recipe, arguments.seed, lambda line: print(line, flush=True))
    if distributed.is_initialized() and distributed.get_rank() > 0:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    body = to_onnx(net, recipe.shape, recipe.int8)
    (arguments.out / f"{arguments.model}.onnx").write_bytes(body)
    print("\n".join(ranges(net, data[2])))
    accuracy = measured(body, *data[2:])
    print(f"{arguments.model}.onnx: {len(body)} bytes, accuracy {accuracy:.4f} on {len(data[3])} test images")
    if accuracy < recipe.accuracy:
        raise SystemExit(f"Expected an accuracy of at least {recipe.accuracy}; train longer, or with another seed")


if __name__ == "__main__":
    main()
