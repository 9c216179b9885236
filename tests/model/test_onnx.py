"""ONNX in and out: onnxruntime is the oracle, `onnx.helper` builds the foreign and the hostile models."""

import sys
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from confide.errors import MissingExtra, ModelError
from confide.model import onnx as confide_onnx
from confide.model import onnx_tensors
from confide.model.graph import Graph, Linear, Sigmoid, Square
from confide.model.onnx import from_onnx, to_onnx
from confide.model.zoo import logistic, mlp

RNG = np.random.default_rng(7)


def runtime(body, x):
    return onnxruntime.InferenceSession(body, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def foreign(nodes, arrays, *, features=3, inputs=None, outputs=None, opset=13, domain="", width=None):
    """Return a model as another tool may have written it, unchecked."""
    kind = width or TensorProto.DOUBLE
    graph = helper.make_graph(
        nodes,
        "foreign",
        inputs if inputs is not None else [helper.make_tensor_value_info("x", kind, ["n", features])],
        outputs if outputs is not None else [helper.make_tensor_value_info("y", kind, ["n", None])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)], ir_version=8)


def gemm(*inputs, out="y", **attributes):
    return helper.make_node("Gemm", list(inputs), [out], **attributes)


W, B = RNG.normal(size=(2, 3)), RNG.normal(size=2)


@st.composite
def graphs(draw):
    widths = draw(st.lists(st.integers(1, 8), min_size=2, max_size=4))
    layers = []
    for inputs, outputs in pairwise(widths):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        layers.append(Linear(rng.normal(size=(outputs, inputs)), rng.normal(size=outputs)))
        layers += draw(st.lists(st.sampled_from((Square(), Sigmoid())), max_size=2))
    names = [f"c{number}" for number in range(max(widths[-1], 2))]
    return Graph(tuple(layers), tuple(names) if draw(st.booleans()) else ())


# --- out --------------------------------------------------------------------------------------------------------------


@given(graphs(), st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_runtime_computes_what_the_graph_computes(graph, batch, seed):
    x = np.random.default_rng(seed).uniform(-1, 1, (batch, graph.features))
    body = to_onnx(graph)
    np.testing.assert_allclose(runtime(body, x), graph.apply(x), rtol=1e-12, atol=1e-12)


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_written_models_are_valid_repeatable_and_read_back_exactly(graph):
    body = to_onnx(graph)
    onnx.checker.check_model(onnx.load_from_string(body), full_check=True)
    again = from_onnx(body)
    assert to_onnx(again) == body
    assert again.classes == graph.classes
    for before, after in zip(graph.layers, again.layers, strict=True):
        assert type(before) is type(after)
        if isinstance(before, Linear):
            np.testing.assert_array_equal(before.weight, after.weight)
            np.testing.assert_array_equal(before.bias, after.bias)


def test_names_of_outcomes_in_any_script_survive():
    assert from_onnx(to_onnx(logistic(2, classes=("gutartig", "悪性")))).classes == ("gutartig", "悪性")


def test_a_view_of_an_array_is_written_by_its_values():
    weight = np.asfortranarray(RNG.normal(size=(6, 4)))[::2]
    np.testing.assert_array_equal(from_onnx(to_onnx(Graph((Linear(weight, np.zeros(3)),)))).layers[0].weight, weight)


# --- in: other tools' chains ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "arrays"),
    [
        (gemm("x", "w", "b", transB=1), {"w": W, "b": B}),
        (gemm("x", "w", "b"), {"w": W.T.copy(), "b": B}),
        (gemm("x", "w"), {"w": W.T.copy()}),
        (gemm("x", "w", ""), {"w": W.T.copy()}),
        (gemm("x", "w", "b", transB=1, alpha=0.5, beta=-3.0), {"w": W, "b": B[None, :]}),
        (gemm("x", "w", "b", transB=1, transA=0, beta=2.0), {"w": W, "b": np.array(0.25)}),
        (gemm("x", "w", "b", transB=1), {"w": W, "b": np.array([0.25])}),
        (gemm("x", "w", "b", transB=1), {"w": W, "b": B, "unused": np.ones(3)}),
    ],
)
@pytest.mark.parametrize("opset", [11, 13, 17])
def test_every_form_of_gemm_is_read(node, arrays, opset):
    body = foreign([node], arrays, opset=opset).SerializeToString()
    x = RNG.uniform(-1, 1, (5, 3))
    np.testing.assert_allclose(from_onnx(body).apply(x), runtime(body, x), rtol=1e-12, atol=1e-12)


def test_single_precision_weights_are_taken_exactly():
    nodes = [gemm("x", "w", "b", out="a", transB=1), helper.make_node("Sigmoid", ["a"], ["y"])]
    arrays = {"w": W.astype(np.float32), "b": B.astype(np.float32)}
    graph = from_onnx(foreign(nodes, arrays, width=TensorProto.FLOAT).SerializeToString())
    np.testing.assert_array_equal(graph.layers[0].weight, arrays["w"].astype(np.float64))


def test_values_outside_raw_data_are_read():
    model = foreign([gemm("x", "w", transB=1)], {})
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.DOUBLE, W.shape, W.ravel().tolist()))
    np.testing.assert_array_equal(from_onnx(model.SerializeToString()).layers[0].weight, W)


def test_weights_may_be_listed_among_the_inputs():
    inputs = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, s) for n, s in (("w", (2, 3)), ("x", ("n", 3)))]
    assert from_onnx(foreign([gemm("x", "w", transB=1)], {"w": W}, inputs=inputs).SerializeToString()).features == 3


# --- in: what no rule covers ------------------------------------------------------------------------------------------


def refusal(model):
    with pytest.raises(ModelError) as caught:
        from_onnx(model.SerializeToString())
    return str(caught.value)


def test_every_unsupported_node_is_listed_with_its_replacement():
    nodes = [
        gemm("x", "w", out="a", transB=1),
        helper.make_node("Sigmoid", ["a"], ["gate"]),
        helper.make_node("Mul", ["a", "gate"], ["swish"]),
        helper.make_node("LSTM", ["a"], ["b"], name="pool"),
        helper.make_node("Gemm", ["b", "w"], ["e"], transA=1),
        helper.make_node("Conv", ["b", "w"], ["g"], group=2),
        helper.make_node("Attention9000", ["e"], ["f"]),
        helper.make_node("LinearClassifier", ["f"], ["y"], domain="ai.onnx.ml"),
    ]
    text = refusal(foreign(nodes, {"w": W, "v": np.ones(2)}))
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "Expected a model that a graph can hold; change:"
    assert lines[1] == "Mul: Expected a product of a tensor with itself or a constant"
    assert lines[2] == "LSTM 'pool': no rule covers this node; flatten a window of the series and take Gemm or Conv"
    kinds = ["Mul", "LSTM 'pool'", "Gemm", "Conv", "Attention9000", "LinearClassifier"]
    assert [line.split(":")[0] for line in lines[1:]] == kinds
    assert "transpose the weights" in text
    assert "grouped convolution" in text
    assert "build the model from" in text
    assert "the operator domain 'ai.onnx.ml'; export the coefficients" in text


def test_a_long_list_is_cut_and_counted():
    nodes = [helper.make_node("LSTM", ["x"], ["x"]) for _ in range(1001)]
    text = refusal(foreign(nodes, {}))
    assert "1001 nodes; take at most 1000" in text
    assert text.count("\n") == 21
    assert text.endswith("and 981 more")


def test_hostile_names_cannot_reach_a_terminal():
    node = helper.make_node("\x1b[2J" + "A" * 9999, ["x"], ["y"], name="\x1b]0;" + "B" * 9999)
    text = refusal(foreign([node], {}))
    assert "\x1b" not in text
    assert len(text) < 300


@pytest.mark.parametrize("location", [TensorProto.EXTERNAL, TensorProto.DEFAULT])
def test_external_data_is_refused_and_never_opened(location, tmp_path, monkeypatch):
    (tmp_path / "weights.bin").write_bytes(W.tobytes())
    monkeypatch.chdir(tmp_path)
    model = foreign([gemm("x", "w", transB=1)], {"w": W})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = location
    tensor.external_data.add(key="location", value="weights.bin")
    assert "initializer 'w': weights in another file; save them inside the model" in refusal(model)


@pytest.mark.parametrize(
    ("opset", "domain", "text"),
    [(6, "", "from 7 to"), (999, "", "from 7 to"), (1, "com.example", "operator set [] of ai.onnx")],
)
def test_operator_sets_that_are_not_known_are_refused(opset, domain, text):
    assert text in refusal(foreign([gemm("x", "w", transB=1)], {"w": W}, opset=opset, domain=domain))


def test_functions_sparse_and_integer_weights_are_refused_together():
    model = foreign([gemm("x", "w", transB=1)], {"w": W.astype(np.complex64)})
    model.functions.add(name="f")
    model.graph.sparse_initializer.add()
    text = refusal(model)
    for part in ("functions or training", "sparse weights; store them dense", "a type that is not read"):
        assert part in text


def attribute(name, kind, value):
    made = onnx.AttributeProto(name=name, type=kind)
    setattr(made, "f" if kind == onnx.AttributeProto.FLOAT else "i", value)
    return made


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ([("alpha", onnx.AttributeProto.INT, 3)], "an attribute of the wrong type"),
        ([("transB", onnx.AttributeProto.FLOAT, 1.0)], "an attribute of the wrong type"),
        ([("gamma", onnx.AttributeProto.FLOAT, 1.0)], "an unknown or repeated attribute"),
        ([("transB", onnx.AttributeProto.INT, 0), ("transB", onnx.AttributeProto.INT, 1)], "unknown or repeated"),
    ],
)
def test_attributes_that_would_be_misread_are_refused(attributes, text):
    node = gemm("x", "w")
    node.attribute.extend(attribute(*each) for each in attributes)
    assert text in refusal(foreign([node], {"w": W}))


# --- in: shapes and chains that do not hold ---------------------------------------------------------------------------

SIGMOID = helper.make_node("Sigmoid", ["a"], ["y"])
FIRST = gemm("x", "w", out="a", transB=1)
X = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", 3])
Y = helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["n", None])


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([], "output depends on its input"),
        ([SIGMOID, FIRST], "name of its own"),
        ([FIRST, helper.make_node("Sigmoid", ["a"], ["x"])], "name of its own"),  # a cycle
        ([FIRST, helper.make_node("Sigmoid", ["a"], ["a"])], "name of its own"),
        ([FIRST, helper.make_node("Sigmoid", ["a"], ["w"])], "name of its own"),
        ([FIRST, helper.make_node("Sigmoid", ["a"], [""])], "name of its own"),
        ([FIRST, helper.make_node("Sigmoid", ["a"], [])], "name of its own"),
        ([FIRST, helper.make_node("Sigmoid", [], ["y"])], "Sigmoid to have 1 inputs"),
        ([FIRST, helper.make_node("Mul", [], ["y"])], "Mul to have 2 inputs"),
        ([FIRST, helper.make_node("Sigmoid", ["a", "a"], ["y"])], "Sigmoid to have 1 inputs"),
        ([FIRST, helper.make_node("Mul", ["a"], ["y"])], "Mul to have 2 inputs"),
        ([FIRST, helper.make_node("Mul", ["a", "a", "a"], ["y"])], "Mul to have 2 inputs"),
        ([FIRST], "output depends on its input"),
        ([FIRST, helper.make_node("Sigmoid", ["x"], ["y"])], "first layer is Linear"),  # a branch that ends
        ([FIRST, helper.make_node("Sigmoid", ["z"], ["y"])], "name of its own"),
        ([gemm("x")], "Gemm to have 3 inputs"),
        ([gemm("x", "x")], "weight and bias from initializers"),
        ([gemm("x", "w", "absent", transB=1)], "name of its own"),
        ([gemm("x", "w")], "declared 3 features, got 2"),
        ([gemm("x", "vector")], "to be a matrix"),
        ([gemm("x", "w", "vector", transB=1)], "bias of a Gemm to have 2 values"),
        ([gemm("x", "w", "column", transB=1)], "bias of a Gemm to have 2 values"),
        ([gemm("x", "cube")], "to be a matrix"),
        ([gemm("x", "nan")], "finite parameters"),
        ([gemm("x", "big", alpha=1e30)], "finite parameters"),
        ([FIRST, gemm("a", "w", transB=1)], "a matrix that takes 2, got 3"),
        ([helper.make_node("Sigmoid", ["x"], ["y"])], "first layer is Linear"),
    ],
)
def test_graphs_that_are_no_chain_are_refused(nodes, text):
    arrays = {"w": W, "vector": np.ones(3), "column": np.ones((2, 1)), "cube": np.ones((1, 1, 1))}
    arrays |= {"nan": np.full((3, 1), np.nan), "big": np.full((3, 1), 1e300)}
    assert text in refusal(foreign(nodes, arrays))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [([], None), ([X, helper.make_tensor_value_info("z", 11, [1])], None), (None, []), (None, [Y, Y])],
)
def test_several_inputs_or_outputs_are_refused(inputs, outputs):
    text = refusal(foreign([gemm("x", "w", transB=1)], {"w": W}, inputs=inputs, outputs=outputs))
    assert "one input, one output" in text


def test_series_are_refused():
    inputs = [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", 28, 28])]
    assert "got 3 axes" in refusal(foreign([gemm("x", "w", transB=1)], {"w": W}, inputs=inputs))


def test_two_weights_of_one_name_are_refused():
    model = foreign([gemm("x", "w", transB=1)], {"w": W})
    model.graph.initializer.append(numpy_helper.from_array(W, "w"))
    assert "weights of different names" in refusal(model)


@pytest.mark.parametrize("dims", [[-1, 3], [2, -3], [0, 3], [2, 2], [2**40, 2**40], [1] * 70, [2**62, 4, 3]])
def test_declared_shapes_are_checked_against_the_bytes_before_anything_is_allocated(dims):
    model = foreign([gemm("x", "w", transB=1)], {"w": W})
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    assert "fill its shape" in refusal(model)


def test_raw_bytes_that_end_inside_a_value_are_refused():
    model = foreign([gemm("x", "w", transB=1)], {"w": W})
    model.graph.initializer[0].raw_data += b"\0\0\0"
    assert "fill its shape" in refusal(model)


def test_weights_that_many_nodes_share_are_counted_each_time_before_any_is_read(monkeypatch):
    nodes = [gemm("x" if i == 0 else f"t{i}", "w", "b", out="y" if i == 299 else f"t{i + 1}") for i in range(300)]
    model = foreign(nodes, {"w": np.eye(1000), "b": np.zeros(1000)}, features=1000)  # 8 MB, or 2.4 GB when read
    monkeypatch.setattr(onnx_tensors, "array", lambda *_: pytest.fail("an array was built"))
    assert "parameters, got 300300000" in refusal(model)


def test_the_most_parameters_are_read(monkeypatch):
    monkeypatch.setattr(confide_onnx, "MOST_PARAMETERS", W.size + B.size)
    model = foreign([gemm("x", "w", "b", transB=1)], {"w": W.astype(np.float32), "b": B})
    assert from_onnx(model.SerializeToString()).parameters == W.size + B.size
    monkeypatch.setattr(confide_onnx, "MOST_PARAMETERS", W.size + B.size - 1)
    assert "at most 7 parameters, got 8" in refusal(model)


@pytest.mark.parametrize("names", ["not json", '"ab"', "{}", "[1, 2]", "[" * 100_000, '["\\ud800", "b"]', "null"])
def test_names_of_outcomes_that_are_none_are_refused(names):
    model = foreign([gemm("x", "w", transB=1)], {"w": W})
    model.metadata_props.add(key="confide.classes", value=names)
    assert "JSON list of names" in refusal(model)


def test_foreign_metadata_is_ignored():
    model = foreign([gemm("x", "w", transB=1)], {"w": W})
    model.metadata_props.add(key="author", value="somebody")
    assert from_onnx(model.SerializeToString()).classes == ()


# --- in: bytes --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_foreign_bytes_are_refused(body):
    with pytest.raises(ModelError):
        from_onnx(body)


BODY = to_onnx(mlp(3, 2, seed=1))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_models_are_refused_or_are_another_valid_graph(data):
    body = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        graph = from_onnx(bytes(body[: data.draw(st.integers(0, len(body)))]))
    except ModelError:
        return
    assert graph.apply(np.zeros((1, graph.features))).shape == (1, graph.outputs)


def test_sizes_are_limited_before_parsing(monkeypatch):
    monkeypatch.setattr(confide_onnx, "LARGEST_BYTES", len(BODY) - 1)
    with pytest.raises(ModelError, match="at most"):
        from_onnx(BODY)
    with pytest.raises(ModelError, match="take fewer parameters"):
        to_onnx(mlp(3, 2, seed=1))


def test_without_onnx_the_install_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match=r"confide\[train\]"):
        to_onnx(logistic(2))
    with pytest.raises(MissingExtra, match=r"confide\[serve\]"):
        from_onnx(b"")
