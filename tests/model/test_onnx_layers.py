"""Images, activations, residual blocks and polynomials as ONNX, out and in; onnxruntime is the oracle."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from confide.errors import ModelError
from confide.model.fitted import approximated
from confide.model.graph import (
    AveragePool,
    Conv,
    Gelu,
    Graph,
    Linear,
    MaxPool,
    Polynomial,
    Relu,
    Residual,
    Sigmoid,
    Square,
    Tanh,
    parts_of,
)
from confide.model.onnx import from_onnx, to_onnx


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape) / 4


def session(body):
    return onnxruntime.InferenceSession(body, providers=["CPUExecutionProvider"])


def runtime(body, x):
    return session(body).run(None, {"x": x})[0]


def form(layers):
    """Return everything of layers but their parameters."""
    found = []
    for layer in layers:
        if isinstance(layer, Residual):
            found.append(("Residual", form(layer.body), form(layer.shortcut)))
        elif isinstance(layer, Polynomial):
            found.append((layer.degree, layer.low, layer.high))
        else:
            found.append((repr(layer), getattr(layer, "padding", None)))
    return found


def same(one, other):
    return form(one.layers) == form(other.layers) and all(
        (a == b).all()
        for left, right in zip(one.layers, other.layers, strict=True)
        for a, b in zip(parts_of(left), parts_of(right), strict=True)
    )


CONV = Conv(drawn(2, 2, 3, 3), drawn(2), 6, 6, padding=(1, 1, 1, 1))
ELEMENTWISE = st.sampled_from(
    (
        Square,
        Relu,
        Tanh,
        Sigmoid,
        Gelu,
        lambda: Polynomial(drawn(5), -2.0, 3.0),
        lambda: Polynomial(drawn(2), -1.0, 1.0),
    )
)


@st.composite
def images(draw):
    """Return graphs of every layer over 2 x 6 x 6 images."""
    layers = [Conv(drawn(2, 1, 2, 3, seed=5), drawn(2, seed=5), 13, 14, (2, 2), draw(st.sampled_from(PADDINGS)))]
    size = layers[0].out_height, layers[0].out_width
    for _ in range(draw(st.integers(0, 3))):
        act = draw(ELEMENTWISE)()
        weight = Conv(drawn(2, 2, 3, 3, seed=draw(st.integers(0, 9))), drawn(2), *size, padding=(1, 1, 1, 1))
        inner = draw(
            st.sampled_from(
                (
                    (act,),
                    (weight, act),
                    (Residual((weight, act)),),
                    (Residual((weight, act, weight), (Conv(drawn(2, 2, 1, 1), drawn(2), *size),)), act),
                    (Residual((Residual((act,)), weight), (act,)),),
                )
            )
        )
        layers += inner
    if draw(st.booleans()):
        layers.append(MaxPool(2, *size, (2, 3), (1, 1), draw(st.sampled_from(((1, 1, 0, 1), (0, 2, 1, 0))))))
        size = layers[-1].out_height, layers[-1].out_width
    layers.append(AveragePool(2, *size, (2, 3), (2, 1)))
    if draw(st.booleans()):
        layers += [draw(ELEMENTWISE)(), Linear(drawn(3, layers[-1].outputs), drawn(3))]
        layers += draw(st.sampled_from(((), (Residual((Square(), Linear(drawn(3, 3), drawn(3)))),), (Sigmoid(),))))
    return Graph(tuple(layers))


PADDINGS = ((0, 0, 0, 0), (0, 1, 1, 0), (1, 2, 0, 1))


@given(images(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_the_runtime_computes_what_the_graph_computes(graph, batch):
    x = drawn(batch, graph.features)
    body = to_onnx(graph)
    onnx.checker.check_model(onnx.load_from_string(body), full_check=True)
    wanted = graph.apply(x)
    largest = max(np.abs(Graph(graph.layers[: count + 1]).apply(x)).max() for count in range(len(graph.layers)))
    np.testing.assert_allclose(runtime(body, x), wanted, rtol=1e-4, atol=1e-4 * (1 + largest))


@given(images())
@settings(max_examples=60, deadline=None)
def test_written_models_read_back_exactly(graph):
    body = to_onnx(graph)
    again = from_onnx(body)
    assert same(again, graph)
    assert to_onnx(again) == body


@pytest.mark.parametrize("degree", [1, 2, 3, 8, 31])
def test_polynomials_run_elsewhere_by_their_definition(degree):
    graph = Graph((Linear(np.eye(1), np.zeros(1)), Polynomial(drawn(degree + 1), -1.5, 4.0)))
    x = np.linspace(-1.5, 4, 101)[:, None]
    np.testing.assert_allclose(runtime(to_onnx(graph), x), graph.apply(x), rtol=1e-11, atol=1e-12)


def test_weights_that_float32_has_are_written_so():
    exact = Conv(np.float64(np.float32(CONV.weight)), np.float64(np.float32(CONV.bias)), 6, 6)
    sizes = {each.name: each.data_type for each in onnx.load_from_string(to_onnx(Graph((exact,)))).graph.initializer}
    assert sizes["weight0"] == sizes["bias0"] == TensorProto.FLOAT
    other = {each.name: each.data_type for each in onnx.load_from_string(to_onnx(Graph((CONV,)))).graph.initializer}
    assert other["double_weight0"] == TensorProto.DOUBLE


@given(images())
@settings(max_examples=20, deadline=None)
def test_int8_weights_are_near_and_the_runtime_agrees(graph):
    body = to_onnx(graph, int8=True)
    rounded, x = from_onnx(body), drawn(2, graph.features)
    wanted = rounded.apply(x)
    np.testing.assert_allclose(runtime(body, x), wanted, rtol=1e-4, atol=1e-4 * (1 + np.abs(wanted).max()))
    assert form(rounded.layers) == form(graph.layers)
    for before, after in zip(graph.layers, rounded.layers, strict=True):
        if isinstance(before, Linear | Conv):
            largest = np.abs(before.weight.reshape(len(before.weight), -1)).max(axis=1)
            error = np.abs(before.weight - after.weight).reshape(len(before.weight), -1).max(axis=1)
            assert (error <= largest / 253).all()
            np.testing.assert_array_equal(after.bias, np.float64(np.float32(before.bias)))


def test_int8_takes_about_a_byte_for_each_weight():
    graph = Graph((Linear(drawn(300, 1000), np.zeros(300)), Square(), Linear(np.zeros((1, 300)), np.ones(1))))
    assert len(to_onnx(graph, int8=True)) < 1.05 * 300_300 + 3_000
    assert (from_onnx(to_onnx(graph, int8=True)).layers[2].weight == 0).all()


# --- in: other tools' models ------------------------------------------------------------------------------------------


def foreign(nodes, arrays, shape=(1, 8, 8), *, opset=17, kind=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", kind, ["n", *shape])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def node(kind, inputs, out, **attributes):
    return helper.make_node(kind, inputs.split(), out.split(), **attributes)


def single(*shape, seed=0):
    return drawn(*shape, seed=seed).astype(np.float32)


def norm(name, channels):
    arrays = {f"{name}{k}": single(channels, seed=k) for k in (1, 2, 3)}
    return arrays | {f"{name}4": np.abs(single(channels, seed=4)) + np.float32(0.5)}


W = {"w": single(4, 1, 3, 3), "b": single(4), "v": single(5, 4 * 9), "c": single(5), "k": single(4, 4, 1, 1)}
PARTS = {
    "FIRST": "a=Conv x w b",
    "POOL": "f=AveragePool p kernel_shape=[2,2] strides=[2,2]",
    "HEAD": "g=Flatten f; y=Gemm g v c transB=1",
    "END": "y=Gemm g z",
}


def written(text):
    """Return nodes from lines such as "out=Kind input input attribute=json"."""
    nodes = []
    for line in ";".join(PARTS.get(part.strip(), part) for part in text.split(";")).split(";"):
        (out, _, kind), *rest = line.split()[0].partition("="), *line.split()[1:]
        attributes = {key: json.loads(value) for key, _, value in (part.partition("=") for part in rest if "=" in part)}
        nodes.append(helper.make_node(kind, [part for part in rest if "=" not in part], [out], **attributes))
    return nodes


GELU = {"root": np.float32(0.5**0.5), "double": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
RESHAPED = {"shape": np.array([0, -1]), "m": single(36, 5)}
INT8 = {
    "q": np.arange(36, dtype=np.int8).reshape(4, 1, 3, 3) - np.int8(18),
    "s": np.abs(single(4)) / np.float32(10),
    "r": (np.arange(180) % 251).astype(np.uint8).reshape(5, 36),
    "t": np.float32(0.01),
    "z": np.uint8(128),
}
NORM = "BatchNormalization"
MODELS = {
    "relu": ("FIRST; p=Relu a; POOL; HEAD", {}),
    "batch norm after a convolution": (f"FIRST; p={NORM} a n1 n2 n3 n4; POOL; HEAD", norm("n", 4)),
    "batch norm after a pool": (
        f"p=Conv x w b; POOL; h={NORM} f n1 n2 n3 n4 epsilon=0.01; g=Flatten h; y=Gemm g v c transB=1",
        norm("n", 4),
    ),
    "batch norm before a convolution": (f"z={NORM} x n1 n2 n3 n4; p=Conv z w b; POOL; HEAD", norm("n", 1)),
    "batch norm before a padded convolution": (
        f"z={NORM} x n1 n2 n3 n4; p=Conv z w b pads=[1,0,0,1] strides=[1,1]; POOL; HEAD",
        norm("n", 1),
    ),
    "batch norm between activations": (f"FIRST; r=Relu a; s={NORM} r n1 n2 n3 n4; p=Tanh s; POOL; HEAD", norm("n", 4)),
    "batch norm of a vector": (
        f"FIRST; p=Relu a; POOL; g=Flatten f; h={NORM} g n1 n2 n3 n4; y=Gemm h v c transB=1",
        norm("n", 36),
    ),
    "gelu": ("FIRST; p=Gelu a; POOL; HEAD", {"opset": 20}),
    "gelu written out": ("FIRST; s=Div a double; e=Erf s; t=Add e one; u=Mul a t; p=Mul u half; POOL; HEAD", GELU),
    "gelu, halved first": ("FIRST; h=Mul a half; s=Mul a root; e=Erf s; t=Add one e; p=Mul t h; POOL; HEAD", GELU),
    "a power": ("FIRST; p=Pow a two; POOL; HEAD", {"two": np.float32(2)}),
    "a square": ("FIRST; p=Mul a a; POOL; HEAD", {}),
    "a residual block": ("FIRST; r=Relu a; d=Conv r k b; p=Add d r; POOL; HEAD", {}),
    "a block whose branch comes second": ("FIRST; r=Relu a; d=Conv r k b; t=Tanh d; p=Add r t; POOL; HEAD", {}),
    "a block of two branches, with batch norm": (
        f"FIRST; r=Relu a; d=Conv r k b; e={NORM} d n1 n2 n3 n4; s=Conv r k; t=Add e s; p=Relu t; POOL; HEAD",
        norm("n", 4),
    ),
    "a difference of branches": ("FIRST; r=Relu a; d=Conv r k b; p=Sub d r; POOL; HEAD", {}),
    "blocks in blocks": ("FIRST; r=Relu a; t=Tanh r; u=Add t r; d=Conv u k b; p=Add d a; POOL; HEAD", {}),
    "twice the same": ("FIRST; p=Add a a; POOL; HEAD", {}),
    "matmul and add": ("FIRST; p=Relu a; POOL; g=Reshape f shape; q=MatMul g m; y=Add q c", RESHAPED),
    "add before matmul, and identity": (
        "FIRST; i=Identity a; p=Dropout i; POOL; g=Reshape f shape; h=Cast g to=1; q=MatMul h m; y=Add c q",
        RESHAPED | {"shape": np.array([-1, 36])},
    ),
    "a global average": ("FIRST; p=Mul a a; f=GlobalAveragePool p; g=Flatten f; END", {"z": single(4, 3)}),
    "a mean over height and width": ("FIRST; g=ReduceMean a axes=[2,3] keepdims=0; END", {"z": single(4, 3)}),
    "the same padding above": (
        'a=Conv x w b auto_pad="SAME_UPPER" strides=[2,2]; g=Flatten a; END',
        {"z": single(64, 3)},
    ),
    "the same padding below": (
        'a=Conv x w b auto_pad="SAME_LOWER" strides=[2,1]; g=Flatten a; END',
        {"z": single(128, 3)},
    ),
    "pixels as bytes": (
        "z=Div x full; u=Sub z mean; p=Conv u w b strides=[1,1]; POOL; HEAD",
        {"full": np.float32(255), "mean": np.float32([[[0.3]]])},
    ),
    "int8 for each channel": (
        "e=DequantizeLinear q s axis=0; p=Conv x e b; POOL; g=Flatten f; h=DequantizeLinear r t z; "
        "y=Gemm g h c transB=1",
        INT8,
    ),
    "transposed weights": ("p=Conv x w; POOL; m=Transpose v; g=Flatten f; y=MatMul g m", {}),
    "a shift for each pixel": ("s=Add x mean; g=Flatten s; END", {"mean": single(1, 1, 8, 8), "z": single(64, 2)}),
}


@pytest.mark.parametrize("name", MODELS)
def test_foreign_models_are_read(name):
    text, arrays = MODELS[name]
    arrays = dict(arrays)
    body = foreign(written(text), W | arrays, opset=arrays.pop("opset", 17))
    x = single(4, 1, 8, 8, seed=3) * np.float32(4)
    wanted = runtime(body, x)
    graph = from_onnx(body)
    assert graph.features == 64
    np.testing.assert_allclose(graph.apply(x.reshape(4, -1).astype(float)), wanted, rtol=2e-4, atol=2e-4)
    again = to_onnx(graph)
    assert same(from_onnx(again), graph)
    np.testing.assert_allclose(runtime(again, x.reshape(4, -1).astype(float)), wanted, rtol=2e-4, atol=2e-4)


def kinds(name):
    text, arrays = MODELS[name]
    return [type(layer).__name__ for layer in from_onnx(foreign(written(text), W | arrays)).layers]


def test_scales_become_no_layer_where_a_neighbour_takes_them():
    assert kinds("batch norm after a convolution") == ["Conv", "AveragePool", "Linear"]
    assert kinds("batch norm after a pool") == ["Conv", "AveragePool", "Linear"]
    assert kinds("batch norm before a convolution") == ["Conv", "AveragePool", "Linear"]
    assert kinds("batch norm of a vector") == ["Conv", "Relu", "AveragePool", "Linear"]
    assert kinds("matmul and add") == ["Conv", "Relu", "AveragePool", "Linear"]
    assert kinds("pixels as bytes") == ["Conv", "AveragePool", "Linear"]
    assert kinds("gelu written out") == ["Conv", "Gelu", "AveragePool", "Linear"]
    assert kinds("a shift for each pixel") == ["Linear"]


def test_scales_that_no_neighbour_takes_exactly_become_a_layer():
    assert kinds("batch norm before a padded convolution")[:2] == ["Conv", "Conv"]
    assert kinds("batch norm between activations")[:4] == ["Conv", "Relu", "Conv", "Tanh"]


EXAMPLES = sorted((Path(__file__).parents[2] / "bench" / "models").glob("*.onnx"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_networks_are_read(path):
    body = path.read_bytes()
    asked = session(body).get_inputs()[0]
    x = np.random.default_rng(0).uniform(0, 1, (3, *asked.shape[1:]))
    wanted = runtime(body, x.astype(np.float32 if asked.type == "tensor(float)" else np.float64))
    np.testing.assert_allclose(from_onnx(body).apply(x.reshape(3, -1)), wanted, atol=1e-4 * np.abs(wanted).max())


def test_constants_may_stand_in_nodes():
    made = helper.make_node("Constant", [], ["e"], value=numpy_helper.from_array(W["w"]))
    body = foreign([made, *written("p=Conv x e; POOL; HEAD")], W)
    x = single(2, 1, 8, 8)
    np.testing.assert_allclose(from_onnx(body).apply(x.reshape(2, -1)), runtime(body, x), rtol=1e-4, atol=1e-4)


# --- in: what is refused ----------------------------------------------------------------------------------------------


FIRST = node("Conv", "x w b", "a")


def refusal(nodes, arrays, **settings):
    with pytest.raises(ModelError) as caught:
        from_onnx(foreign(nodes, W | arrays, **settings))
    return str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([node("Conv", "x w b", "y", group=2)], "grouped convolution; take group=1"),
        ([node("Conv", "x w b", "y", dilations=[2, 1])], "a dilated window"),
        ([node("Conv", "x k b", "y")], "takes 1 channels"),
        ([node("Conv", "x w b", "y", pads=[0, 0, 0])], "four pads"),
        ([node("Conv", "x w b", "y", pads=[-1, 0, 0, 0])], "four pads"),
        ([node("Conv", "x w b", "y", pads=[2**20, 2**20, 0, 0])], "images of at most"),
        ([node("Conv", "x w b", "y", strides=[0, 1])], "sizes of at least 1"),
        ([node("Conv", "x w b", "y", strides=[1])], "over two axes"),
        ([node("Conv", "x w b", "y", kernel_shape=[2, 2])], "whose kernel_shape"),
        ([node("Conv", "x v b", "y")], "weights of shape"),
        ([FIRST, node("AveragePool", "a", "y", kernel_shape=[2, 2], pads=[1, 1, 1, 1])], "without padding"),
        ([FIRST, node("AveragePool", "a", "y", kernel_shape=[2, 2], ceil_mode=1)], "ceil_mode=0"),
        ([FIRST, node("AveragePool", "a", "y", kernel_shape=[9, 9])], "a kernel that fits"),
        ([FIRST, node("MaxPool", "a", "y", kernel_shape=[2, 2], pads=[2, 0, 0, 0])], "less than the kernel"),
        ([FIRST, node("MaxPool", "a", "y", kernel_shape=[2, 2], dilations=[2, 2])], "dilat"),
        ([FIRST, node("MaxPool", "a", "y", kernel_shape=[2, 2], ceil_mode=1)], "ceil_mode=0"),
        ([FIRST, node("BatchNormalization", "a b b b b", "y", training_mode=1)], "inference mode"),
        ([FIRST, node("BatchNormalization", "a c c c c", "y")], "four numbers for each channel"),
        ([FIRST, node("Pow", "a three", "y")], "exponent 2"),
        ([FIRST, node("Sigmoid", "a", "g"), node("Mul", "a g", "y")], "a product of a tensor with itself"),
        ([FIRST, node("Erf", "a", "y")], "erf as a part of GELU"),
        ([FIRST, node("Gelu", "a", "y", approximate="tanh")], "exact form"),
        ([FIRST, node("Add", "a x", "y")], "of one shape"),
        ([FIRST, node("Add", "a c", "y")], "one number for each channel"),
        ([FIRST, node("Flatten", "a", "y", axis=2)], "axis 1"),
        ([FIRST, node("Reshape", "a bad", "y")], "keep the batch"),
        ([FIRST, node("Reshape", "a odd", "y")], "each record's numbers"),
        ([FIRST, node("Softmax", "a", "y")], "along the axis of the channels"),
        ([FIRST, node("Relu", "a", "r"), node("MatMul", "v r", "y")], "weight and bias from initializers"),
        ([FIRST, node("MatMul", "a v", "y")], "a matrix that takes 4 x 6 x 6"),
        ([FIRST, node("Cast", "a", "y", to=7)], "a cast to something else"),
        ([FIRST, node("Dropout", "a half on", "y")], "Dropout switched off"),
        ([node("QuantizeLinear", "x half", "q"), node("DequantizeLinear", "q half", "y")], "no rule covers"),
        ([FIRST, node("DequantizeLinear", "a half", "y")], "activations stay real"),
        ([node("Sub", "b x", "a"), node("Mul", "b b", "y")], "not of constants"),
    ],
)
def test_what_no_layer_is_is_refused_with_its_reason(nodes, text):
    arrays = {"three": np.float32(3), "bad": np.array([-1, -1]), "odd": np.array([0, 5, -1]), "half": np.float32(0.5)}
    assert text in refusal(nodes, arrays | {"on": np.array(True)})


def test_everything_that_is_refused_is_listed_at_once():
    nodes = [
        FIRST,
        node("MaxPool", "a", "m", kernel_shape=[2, 2], ceil_mode=1),
        node("Conv", "x w b", "d", group=3),
        node("Pow", "a half", "e"),
        node("Relu", "m", "r"),
        node("LSTM", "x", "y"),
    ]
    lines = refusal(nodes, {"half": np.float32(0.5)}).splitlines()
    assert [line.strip().split(":")[0] for line in lines[1:]] == ["MaxPool", "Conv", "Pow", "LSTM"]


def test_branches_that_would_double_with_each_node_are_refused():
    nodes = [node("Conv", "x k", "a0"), node("Relu", "a0", "b0")]
    for i in range(40):
        nodes += [node("Relu", f"a{i}", f"r{i}"), node("Tanh", f"b{i}", f"t{i}")]
        nodes += [node("Add", f"r{i} b{i}", f"a{i + 1}"), node("Add", f"a{i} t{i}", f"b{i + 1}")]
    nodes.append(node("Add", "a40 b40", "y"))
    with pytest.raises(ModelError, match="layers, blocks within blocks"):
        from_onnx(foreign(nodes, {"k": single(1, 1, 1, 1)}))


def test_weights_in_blocks_are_counted_each_time():
    nodes = [node("Conv", "x k", "a0")]
    for i in range(60):
        nodes += [node("Conv", f"a{i} k", f"c{i}"), node("Add", f"a{i} c{i}", f"a{i + 1}")]
    big = {"k": np.zeros((600, 600, 1, 1), np.float32)}
    with pytest.raises(ModelError, match="at most 16777216 parameters"):
        from_onnx(foreign(nodes, big, (600, 1, 1)))


def test_a_definition_that_says_something_else_is_refused():
    graph = Graph((Linear(np.eye(2), np.zeros(2)), Polynomial(drawn(4), -1.0, 1.0)))
    model = onnx.load_from_string(to_onnx(graph))
    assert same(from_onnx(model.SerializeToString()), graph)
    next(each for each in model.functions[0].node if each.op_type == "Sub").op_type = "Add"
    with pytest.raises(ModelError, match="functions or training"):
        from_onnx(model.SerializeToString())


@pytest.mark.parametrize("name", ["Polynomial0", "Polynomial256", "Polynomial9999999999999", "Polynomialx", "Sigmoid"])
def test_operators_of_our_domain_that_are_none_are_refused(name):
    body = foreign([helper.make_node(name, ["x", "w", "b"], ["y"], domain="confide")], W)
    with pytest.raises(ModelError, match="the operator domain 'confide'|a polynomial"):
        from_onnx(body)


BODY = to_onnx(
    approximated(Graph((CONV, Relu(), Residual((CONV, Gelu())), Linear(drawn(2, 72), drawn(2)))), -1, 1, 3)[0]
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_models_are_refused_or_are_another_valid_graph(data):
    body = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        graph = from_onnx(bytes(body[: data.draw(st.integers(len(body) - 30, len(body)))]))
    except ModelError:
        return
    with np.errstate(all="ignore"):
        assert graph.apply(np.zeros((1, graph.features))).shape == (1, graph.outputs)
