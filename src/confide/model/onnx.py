"""A graph as ONNX bytes and back: the saved form that any viewer and any ONNX runtime opens.

    Linear     Gemm with transB = 1, weight and bias as float64 initializers
    Square     Mul of a tensor with itself
    Sigmoid    Sigmoid
    Trees      TreeEnsemble (ai.onnx.ml 5) and Add of the offset, as the first nodes; see onnx_trees.py

One input "x" (batch, features), one output "y" (batch, outputs). Foreign models are read if they are such a chain,
with weights in float32 or float64; a graph computes in float64 either way. Bytes from elsewhere are hostile until
shown otherwise: nothing is loaded from outside the bytes, no size is believed before it is checked against them, and
everything that cannot run is listed at once.
"""

# `onnx` builds its message classes at run time, and its stubs leave their fields untyped.
# pyright: basic

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import MissingExtra, ModelError
from confide.model import onnx_trees
from confide.model.graph import Graph, Layer, Linear, Problem, Sigmoid, Square
from confide.model.trees import Trees

if TYPE_CHECKING:
    import onnx

Matrix = NDArray[np.float64]

#: Largest file that is parsed: 8 million float64 parameters.
LARGEST_BYTES = 1 << 26

#: Most parameters of a graph; an initializer counts each time that a node takes it, because each layer keeps its own.
MOST_PARAMETERS = LARGEST_BYTES // 4  # as many as float32 weights fill a file

_OPSET = 13
_OLDEST_OPSET = 7  # the first whose Gemm and Mul broadcast as today
_IR_VERSION = 8
_IR_VERSION_OF_TREES = 10
_MOST_NODES = 1000
_MOST_PROBLEMS = 20  # listed; a hostile file shall not fill the terminal
_LONGEST_NAME = 40
_CLASSES = "confide.classes"  # the metadata property that carries the names of the outcomes

_REPLACEMENTS: Mapping[str, str] = {
    "Add": "put the sum into the bias of a Gemm",
    "Constant": "store the value as an initializer",
    "Conv": "flatten the image and take a Gemm, for now",
    "Dropout": "export the model in inference mode",
    "MatMul": "take a Gemm, whose bias may be zero",
    "Pow": "write the square as Mul(x, x)",
    "Relu": "train with squares instead: Mul(x, x)",
    "Softmax": "train with one Sigmoid for each class",
    "Tanh": "take Sigmoid: tanh(x) = 2 sigmoid(2 x) - 1",
    "LinearClassifier": "export the coefficients as Gemm and Sigmoid",
    "TreeEnsembleClassifier": "export the trees as a TreeEnsemble of ai.onnx.ml 5 whose leaves are sums",
    "TreeEnsembleRegressor": "export the trees as a TreeEnsemble of ai.onnx.ml 5",
}
# What a supported node may carry, with AttributeProto's type of it: FLOAT = 1, INT = 2.
_ATTRIBUTES: Mapping[str, Mapping[str, int]] = {
    "Gemm": {"alpha": 1, "beta": 1, "transA": 2, "transB": 2},
    "Mul": {},
    "Sigmoid": {},
    "TreeEnsemble": onnx_trees.ATTRIBUTES,
}
_ANY_REPLACEMENT = "build the model from Gemm, Mul(x, x) and Sigmoid"


def to_onnx(graph: Graph) -> bytes:
    """Return `graph` as an ONNX model: the same bytes for the same graph.

    Raises:
        MissingExtra: `onnx` is not installed.
        ModelError: the model is larger than 64 MiB.
    """
    onnx = _library("train")
    make, initializers, nodes = onnx.helper, [], []
    tensor = "x"
    for number, layer in enumerate(graph.layers):
        out = "y" if number == len(graph.layers) - 1 else f"layer{number}"
        match layer:
            case Linear(weight, bias):
                names = f"weight{number}", f"bias{number}"
                pairs = zip((weight, bias), names, strict=True)
                initializers += [onnx.numpy_helper.from_array(np.asarray(a, "<f8"), name) for a, name in pairs]
                nodes.append(make.make_node("Gemm", [tensor, *names], [out], name=f"linear{number}", transB=1))
            case Square():
                nodes.append(make.make_node("Mul", [tensor, tensor], [out], name=f"square{number}"))
            case Sigmoid():
                nodes.append(make.make_node("Sigmoid", [tensor], [out], name=f"sigmoid{number}"))
            case Trees():
                made, held = onnx_trees.to_nodes(layer, tensor, out, number, onnx)
                nodes, initializers = nodes + made, initializers + held
            case _:
                raise ModelError(f"Expected a layer that ONNX export knows, got {type(layer).__name__}")
        tensor = out
    double = onnx.TensorProto.DOUBLE
    body = make.make_graph(
        nodes,
        "confide",
        [make.make_tensor_value_info("x", double, ["batch", graph.features])],
        [make.make_tensor_value_info("y", double, ["batch", graph.outputs])],
        initializers,
    )
    versions, ir_version = [make.make_opsetid("", _OPSET)], _IR_VERSION
    if isinstance(graph.layers[0], Trees):
        versions.append(make.make_opsetid(onnx_trees.DOMAIN, onnx_trees.VERSION))
        ir_version = _IR_VERSION_OF_TREES
    model = make.make_model(body, producer_name="confide", ir_version=ir_version, opset_imports=versions)
    if graph.classes:
        make.set_model_props(model, {_CLASSES: json.dumps(list(graph.classes), ensure_ascii=False)})
    written = model.SerializeToString(deterministic=True)
    if len(written) > LARGEST_BYTES:
        raise ModelError(
            f"Expected a model of at most {LARGEST_BYTES} bytes, got {len(written)}; take fewer parameters"
        )
    return written


def from_onnx(body: bytes) -> Graph:
    """Return the graph in an ONNX model.

    Args:
        body: the file; may come from anybody.

    Raises:
        MissingExtra: `onnx` is not installed.
        ModelError: the bytes are too many or no ONNX model, the model is no chain, or it holds what no rule covers:
            then the text lists every such node with its replacement.
    """
    onnx = _library("serve")
    if len(body) > LARGEST_BYTES:
        raise ModelError(f"Expected an ONNX model of at most {LARGEST_BYTES} bytes, got {len(body)}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(body)
    except Exception:  # protobuf's DecodeError, whose module differs between its releases
        raise ModelError("Expected an ONNX model; the bytes are damaged or something else") from None
    problems = [*_unsupported(model, onnx), *_unsupported_nodes(model.graph)]
    if problems:
        lines = [*map(str, problems[:_MOST_PROBLEMS])]
        lines += [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        chain = "Expected a chain of Gemm, Mul(x, x) and Sigmoid, or a TreeEnsemble before them; change:"
        raise ModelError("\n  ".join([chain, *lines]))
    return Graph(tuple(_layers(model.graph, onnx)), _classes(model))


def require_onnx() -> None:
    """Raise MissingExtra if models cannot be written here."""
    _library("train")


def _library(extra: str) -> Any:
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise MissingExtra("onnx", extra) from None
    return onnx


def _named(kind: str, name: str) -> str:
    """Return a node's or tensor's name for a text: short, with control characters escaped."""
    kind = kind if kind.isascii() and kind.isidentifier() else repr(kind)
    return f"{kind[:_LONGEST_NAME]} {name[:_LONGEST_NAME]!r}" if name else kind[:_LONGEST_NAME]


def _unsupported(model: onnx.ModelProto, onnx: Any) -> Iterator[Problem]:
    """Yield what stands in the way before any node is looked at."""
    newest = onnx.defs.onnx_opset_version()
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1 or not _OLDEST_OPSET <= versions[0] <= newest:
        yield Problem(
            "opset", f"operator set {versions} of ai.onnx", f"export with one from {_OLDEST_OPSET} to {newest}"
        )
    trees = [entry.version for entry in model.opset_import if entry.domain == onnx_trees.DOMAIN]
    if trees not in ([], [onnx_trees.VERSION]):
        yield Problem("opset", f"operator set {trees} of {onnx_trees.DOMAIN}", f"export with {onnx_trees.VERSION}")
    if model.functions or model.training_info:
        yield Problem("model", "functions or training information", "export the plain inference graph")
    graph = model.graph
    if len(graph.node) > _MOST_NODES:
        yield Problem("graph", f"{len(graph.node)} nodes", f"take at most {_MOST_NODES}")
    if graph.sparse_initializer:
        yield Problem("initializer", "sparse weights", "store them dense")
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
            yield Problem(_named("initializer", tensor.name), "weights in another file", "save them inside the model")
        elif tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
            yield Problem(_named("initializer", tensor.name), "neither float32 nor float64", "convert it, or remove it")


def _unsupported_nodes(graph: onnx.GraphProto) -> Iterator[Problem]:
    before = ""
    for node in list(graph.node)[:_MOST_NODES]:
        where = _named(node.op_type, node.name)
        trees = node.op_type == "TreeEnsemble" and node.domain == onnx_trees.DOMAIN
        kind = node.op_type if trees or (node.op_type != "TreeEnsemble" and node.domain in ("", "ai.onnx")) else ""
        before, previous = node.op_type, before
        if kind == "Add" and previous == "TreeEnsemble" and not node.attribute:
            continue  # the trees' offset
        names = [attribute.name for attribute in node.attribute]
        if kind not in _ATTRIBUTES:
            reason = "no rule covers this node" if kind else f"the operator domain {node.domain[:_LONGEST_NAME]!r}"
            yield Problem(where, reason, _REPLACEMENTS.get(node.op_type, _ANY_REPLACEMENT))
        elif set(names) - _ATTRIBUTES[kind].keys() or len(set(names)) != len(names):
            yield Problem(where, "an unknown or repeated attribute", "export with a current operator set")
        elif any(attribute.type != _ATTRIBUTES[kind][attribute.name] for attribute in node.attribute):
            yield Problem(where, "an attribute of the wrong type", "export the model again")
        elif _attribute(node, "transA", 0):
            yield Problem(where, "a transposed input", "transpose the weights, not the input")
        elif kind == "Mul" and len(set(node.input)) > 1:
            yield Problem(where, "a product of two different tensors", "put a constant factor into a Gemm")


def _layers(graph: onnx.GraphProto, onnx: Any) -> Iterator[Layer]:
    """Yield the layers of a graph whose nodes are all supported, following the one chain from input to output."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1 or len(weights) != len(graph.initializer):
        raise ModelError("Expected an ONNX graph with one input, one output and weights of different names")
    parameters = sum(_size(weights[name], onnx) for node in graph.node for name in node.input if name in weights)
    trees: Trees | None = None  # read, and its offset still to come
    if parameters > MOST_PARAMETERS:
        raise ModelError(f"Expected an ONNX model of at most {MOST_PARAMETERS} parameters, got {parameters}")
    tensor, seen = inputs[0].name, {inputs[0].name, *weights}
    width = _declared_width(inputs[0])
    for node in graph.node:
        chained = node.input and node.input[0] == tensor and len(node.output) == 1
        if not chained or node.output[0] in seen or not node.output[0]:
            raise ModelError("Expected an ONNX graph whose nodes form one chain, each fed by the one before it")
        if trees is not None and node.op_type == "Add":
            trees, layer = None, _with_offset(trees, node, weights, onnx)
        elif node.op_type == "TreeEnsemble":
            trees, layer = onnx_trees.from_node(node, width, onnx), None
        else:
            layer = _layer(node, weights, onnx)
        if width and isinstance(layer, Linear) and layer.weight.shape[1] != width:
            raise ModelError(f"Expected a Gemm that takes the declared {width} features, got {layer.weight.shape[1]}")
        width, tensor = 0, node.output[0]
        seen.add(tensor)
        if trees is not None and layer is not None:  # no offset came
            yield trees
            trees = None
        if layer is not None:
            yield layer
    if trees is not None:
        yield trees
    if tensor != graph.output[0].name:
        raise ModelError("Expected an ONNX graph whose last node gives its output")


def _with_offset(trees: Trees, node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], onnx: Any) -> Trees:
    if len(node.input) != 2 or node.input[1] not in weights:
        raise ModelError("Expected the Add behind a TreeEnsemble to take its offset from an initializer")
    offset = _array(weights[node.input[1]], onnx).ravel()
    if len(offset) not in (1, len(trees.offset)):
        raise ModelError(f"Expected an offset of {len(trees.offset)} values behind a TreeEnsemble, got {len(offset)}")
    return replace(trees, offset=np.broadcast_to(offset, trees.offset.shape).copy())


def _layer(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], onnx: Any) -> Layer:
    most, least = {"Mul": (2, 2), "Sigmoid": (1, 1), "Gemm": (3, 2)}[node.op_type]
    if not least <= len(node.input) <= most:
        raise ModelError(f"Expected {node.op_type} to have {most} inputs, got {len(node.input)}")
    if node.op_type == "Mul":
        return Square()
    if node.op_type == "Sigmoid":
        return Sigmoid()
    names = list(node.input)[1:]
    if len(names) == 2 and not names[1]:  # ONNX writes an absent optional input as ""
        names.pop()
    if any(name not in weights for name in names):
        raise ModelError("Expected Gemm to take its weight and bias from initializers")
    with np.errstate(over="ignore", invalid="ignore"):  # Linear refuses what is not finite
        weight = _array(weights[names[0]], onnx) * _attribute(node, "alpha", 1.0)
        bias = _array(weights[names[1]], onnx) if len(names) == 2 else np.zeros(1)
        bias = bias * _attribute(node, "beta", 1.0)
    if weight.ndim != 2:
        raise ModelError(f"Expected the weight of a Gemm to be a matrix, got shape {weight.shape}")
    weight = weight if _attribute(node, "transB", 0) else weight.T
    if (bias.ndim == 2 and bias.shape[0] != 1) or bias.size not in (1, weight.shape[0]):
        raise ModelError(f"Expected the bias of a Gemm to have {weight.shape[0]} values, got shape {bias.shape}")
    return Linear(np.ascontiguousarray(weight), np.broadcast_to(bias.ravel(), weight.shape[:1]).copy())


def _size(tensor: onnx.TensorProto, onnx: Any) -> int:
    """Return how many values an initializer's bytes hold, whatever shape it declares."""
    if tensor.data_type == onnx.TensorProto.FLOAT:
        return len(tensor.raw_data) // 4 if tensor.raw_data else len(tensor.float_data)
    return len(tensor.raw_data) // 8 if tensor.raw_data else len(tensor.double_data)


def _array(tensor: onnx.TensorProto, onnx: Any) -> Matrix:
    """Return an initializer as float64, once its declared shape agrees with the bytes that are there."""
    width = 4 if tensor.data_type == onnx.TensorProto.FLOAT else 8
    values = tensor.float_data if width == 4 else tensor.double_data
    if (
        len(tensor.dims) > 2
        or any(dim < 1 for dim in tensor.dims)
        or math.prod(tensor.dims) != _size(tensor, onnx)
        or len(tensor.raw_data) % width
    ):
        raise ModelError("Expected an initializer whose values fill its shape")
    raw = np.frombuffer(tensor.raw_data, f"<f{width}") if tensor.raw_data else np.array(values)
    return raw.astype(np.float64).reshape(tuple(tensor.dims))


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return a number that a node carries: `alpha` and `beta` are float32, `transA` and `transB` integers."""
    for attribute in node.attribute:
        if attribute.name == name:
            return attribute.f if isinstance(default, float) else attribute.i
    return default


def _declared_width(value: onnx.ValueInfoProto) -> int:
    """Return the number of features that the input declares; 0 if it leaves them open."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) not in (0, 2):
        raise ModelError(f"Expected an input of shape (batch, features), got {len(dims)} axes")
    return dims[1].dim_value if dims else 0


def _classes(model: onnx.ModelProto) -> tuple[str, ...]:
    for entry in model.metadata_props:
        if entry.key == _CLASSES:
            try:
                classes = json.loads(entry.value)
                "".join(classes).encode()  # a list of texts, none with half a surrogate pair
            except (ValueError, TypeError, RecursionError):
                classes = None
            if not isinstance(classes, list):
                raise ModelError(f"Expected {_CLASSES} to be a JSON list of names")
            return tuple(classes)
    return ()
