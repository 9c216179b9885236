"""The networks of bench/models: what they consist of, their accuracy under onnxruntime, and how they are written."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import bench

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "bench" / "models"
MNIST = ROOT / "../shared/data/mnist/mnist.npz"
LARGEST_BYTES = 2 << 20
OPERATORS = {"Conv", "Gemm", "Mul", "Flatten", "DequantizeLinear"}
#: Lowest accuracies on the test images, and the most numbers that a layer may give: the slots of one ciphertext.
DIGITS = {"mlp": (0.975, 784), "lola": (0.989, 845), "lenet": (0.992, 14 * 14 * 32)}
NAMES = [*DIGITS, "cifar"]
SLOTS = 8192


def network(name):
    """Return the bytes of a network of bench/models."""
    return (MODELS / f"{name}.onnx").read_bytes()


def outputs(body, x):
    """Return what onnxruntime computes for images (n, ...)."""
    session = onnxruntime.InferenceSession(body, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.reshape(-1, *session.get_inputs()[0].shape[1:])})[0]


def squared(body):
    """Return the network with everything that it squares as outputs, in order, and the number of squares."""
    model = onnx.load_from_string(body)
    names = [node.input[0] for node in model.graph.node if node.op_type == "Mul"]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    return model.SerializeToString(), len(names)


@pytest.fixture(scope="module")
def digits():
    """Return MNIST's test images (10000, 784) in [-1, 1] and their labels."""
    if not MNIST.is_file():
        pytest.skip("MNIST is not here: ../shared/data/mnist/mnist.npz")
    with np.load(MNIST) as archive:
        return archive["x_test"].reshape(-1, 784).astype(np.float32) / 127.5 - 1, archive["y_test"]


@pytest.fixture(scope="module")
def script():
    return bench.script("train_models")


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_small_and_squares_only(name):
    model = onnx.load_from_string(network(name))
    onnx.checker.check_model(model, full_check=True)
    assert len(network(name)) <= LARGEST_BYTES
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert all(node.input[0] == node.input[1] for node in model.graph.node if node.op_type == "Mul")
    assert model.opset_import[0].version == 13


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_needs_more_slots_than_one_ciphertext_of_the_second_largest_ring_has(name):
    body, squares = squared(network(name))
    shape = [1, 3, 32, 32] if name == "cifar" else [1, 1, 28, 28]
    session = onnxruntime.InferenceSession(body, providers=["CPUExecutionProvider"])
    x = np.zeros([1, *session.get_inputs()[0].shape[1:]], np.float32)
    assert x.size == np.prod(shape)
    sizes = [value.size for value in session.run(None, {"x": x})[1:]]
    assert len(sizes) == squares
    assert max(sizes) <= SLOTS


@pytest.mark.parametrize("name", ["mlp", "lola", pytest.param("lenet", marks=pytest.mark.slow)])
def test_digits_are_told_apart_as_stated_and_what_is_squared_stays_small(name, digits):
    x, y = digits
    body, _ = squared(network(name))
    found, *inputs = [np.concatenate(part) for part in zip(*parts(body, x), strict=True)]
    assert (found.argmax(1) == y).mean() >= DIGITS[name][0]
    assert all(np.abs(z).max() <= 16 for z in inputs)


def parts(body, x):
    """Yield all outputs of a network for a thousand images at a time."""
    session = onnxruntime.InferenceSession(body, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    for part in np.split(x, len(x) // 1000):
        yield session.run(None, {"x": part.reshape(-1, *shape)})


@pytest.mark.parametrize("name", ["mlp", "lola", "cifar"])
def test_what_is_written_computes_what_was_trained(name, script):
    torch = pytest.importorskip("torch")
    recipe, generator = script.RECIPES[name], torch.Generator().manual_seed(5)
    net = recipe.layers()
    for layer in net.layers[:-1]:  # any statistics but those that batch norm starts with
        for value, low, high in (
            (layer.norm.running_mean, -1, 1),
            (layer.norm.running_var, 0.5, 3),
            (layer.norm.weight.data, -1, 1),
            (layer.norm.bias.data, -1, 1),
        ):
            value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    x = torch.rand(20, *recipe.shape, generator=generator) * 2 - 1
    net.eval()
    with torch.no_grad():
        expected = net(x).numpy()
    np.testing.assert_allclose(
        outputs(script.to_onnx(net, recipe.shape, False), x.numpy()), expected, rtol=1e-4, atol=1e-5
    )
    rounded = outputs(script.to_onnx(net, recipe.shape, True), x.numpy())
    assert not np.array_equal(rounded, expected)
    assert np.abs(rounded - expected).max() <= 0.2 * np.abs(expected).max()


def test_a_square_gives_the_gradient_of_the_square_and_of_the_penalty(script):
    torch = pytest.importorskip("torch")
    z = torch.tensor([-9.0, -4.0, 0.5, 3.0, 6.0], dtype=torch.float64, requires_grad=True)
    pull = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0], dtype=torch.float64)
    (found,) = torch.autograd.grad((script.Square.apply(z, 0.3) * pull).sum(), z)
    excess = (z.abs() - script.LIMIT).clamp(min=0).square().mean()
    (expected,) = torch.autograd.grad((z.square() * pull).sum() + 0.3 * excess, z)
    torch.testing.assert_close(found, expected)


def test_training_learns(script):
    torch = pytest.importorskip("torch")
    recipe = script.replace(script.RECIPES["mlp"], epochs=4, batch=50, augment=lambda x, _: x)
    torch.manual_seed(0)
    y = torch.arange(500) % 10
    x = torch.randn(500, *recipe.shape).clamp(-1, 1) * 0.5
    x[torch.arange(500), 0, 0, y] = 5.0
    net = recipe.layers()
    script.fit(net, (x, y, x, y), recipe, 0, lambda _: None)
    assert script.correct(net, x, y) >= 0.9
