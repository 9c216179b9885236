"""A graph as ONNX bytes and back: the saved form that any viewer and any ONNX runtime opens.

    Linear         Gemm with transB = 1, weight and bias as float64 initializers
    Conv           Conv in float32, the only type in which onnxruntime has it; weights are kept exactly
    AveragePool    AveragePool in float32
    MaxPool        MaxPool in float32
    Square         Mul of a tensor with itself
    Relu, Sigmoid, Tanh    as they are
    Gelu           x (1 + erf(x / sqrt 2)) / 2, written out in float32
    Polynomial     PolynomialN of the domain "confide", with its definition by standard operators in the file
    Softmax, Argmax    Softmax and ArgMax along axis 1
    LayerNorm, Attention    operators of the domain "confide", with their definitions in the file
    Residual       Add
    Trees          TreeEnsemble (ai.onnx.ml 5) and Add of the offset, as the first nodes; see onnx_trees.py

One input "x" (batch, features), one output "y" (batch, outputs), both float64. Foreign models are read if they are such
graphs, or close to it: scales, shifts and batch normalisation are merged into the layers beside them, images may come
as (batch, channels, height, width), weights in float32, float64 or as whole numbers with scales. A graph computes in
float64 either way. Bytes from elsewhere are hostile until shown otherwise: nothing is loaded from outside the bytes, no
size is believed before it is checked against them, no definition of an operator is run, and everything that cannot run
is listed at once.
"""

# `onnx` builds its message classes at run time, and its stubs leave their fields untyped.
# pyright: basic

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from confide.errors import MissingExtra, ModelError
from confide.model import onnx_attention, onnx_rules, onnx_tensors, onnx_trees, onnx_write
from confide.model.graph import Graph, Layer, Problem, parts_of
from confide.model.layers import MOST_DEGREE, MOST_UNITS
from confide.model.trees import Trees

if TYPE_CHECKING:
    import onnx

#: Largest file that is parsed: 8 million float64 parameters.
LARGEST_BYTES = 1 << 26

#: Most parameters of a graph; an initializer counts each time that a node takes it, because each layer keeps its own.
MOST_PARAMETERS = LARGEST_BYTES // 4  # as many as float32 weights fill a file

_OLDEST_OPSET = 7  # the first whose Gemm and Mul broadcast as today
_IR_VERSION = 8
_IR_VERSION_OF_TREES = 10
_MOST_NODES = 1000
_MOST_PROBLEMS = 20  # listed; a hostile file shall not fill the terminal
_LONGEST_NAME = 40
_CLASSES = "confide.classes"  # the metadata property that carries the names of the outcomes

# What converters of scikit-learn and XGBoost write has shorter ways here than another export.
_ITSELF = "read the model itself with from_sklearn or from_xgboost (docs/models.md)"

_REPLACEMENTS: Mapping[str, str] = {
    "Clip": "train with Relu or Square",
    "Concat": "give the columns in one input",
    "Elu": "train with Gelu or Square",
    "HardSigmoid": "train with Sigmoid",
    "HardSwish": "train with Gelu or Square",
    "LayerNormalization": "train with BatchNormalization, which merges into its neighbours",
    "LeakyRelu": "train with Relu or Square",
    "LinearClassifier": f"export the coefficients as Gemm and Sigmoid, or {_ITSELF}",
    "LinearRegressor": f"export the coefficients as Gemm, or {_ITSELF}",
    "LogSoftmax": "end at the logits; the client applies it",
    "LSTM": "flatten a window of the series and take Gemm or Conv",
    "Pad": "put the padding into the Conv",
    "PRelu": "train with Relu or Square",
    "Scaler": f"put the scale into the first Gemm, or {_ITSELF}",
    "Selu": "train with Gelu or Square",
    "Shape": "flatten with Flatten, or Reshape to a fixed shape",
    "Softplus": "train with Gelu or Square",
    "TreeEnsembleClassifier": f"{_ITSELF}, or export a TreeEnsemble of ai.onnx.ml 5 whose leaves are sums",
    "TreeEnsembleRegressor": f"{_ITSELF}, or export a TreeEnsemble of ai.onnx.ml 5",
    "ZipMap": "export the probabilities as one tensor",
}
_WINDOW: Mapping[str, int] = {"auto_pad": 3, "dilations": 7, "kernel_shape": 7, "pads": 7, "strides": 7}
# What a supported node may carry, with AttributeProto's type of it: FLOAT 1, INT 2, STRING 3, TENSOR 4, INTS 7.
_ATTRIBUTES: Mapping[str, Mapping[str, int]] = {
    "Add": {},
    "ArgMax": {"axis": 2, "keepdims": 2, "select_last_index": 2},
    "AveragePool": {**_WINDOW, "ceil_mode": 2, "count_include_pad": 2},
    "BatchNormalization": {"epsilon": 1, "momentum": 1, "spatial": 2, "training_mode": 2},
    "Cast": {"round_mode": 3, "saturate": 2, "to": 2},
    "Constant": {"value": 4, "value_float": 1, "value_int": 2, "value_ints": 7},
    "Conv": {**_WINDOW, "group": 2},
    "DequantizeLinear": {"axis": 2, "block_size": 2, "output_dtype": 2},
    "Div": {},
    "Dropout": {"ratio": 1, "seed": 2},
    "Erf": {},
    "Flatten": {"axis": 2},
    "Gelu": {"approximate": 3},
    "Gemm": {"alpha": 1, "beta": 1, "transA": 2, "transB": 2},
    "GlobalAveragePool": {},
    "Identity": {},
    "MatMul": {},
    "MaxPool": {**_WINDOW, "ceil_mode": 2, "storage_order": 2},
    "Mul": {},
    "Pow": {},
    "ReduceMean": {"axes": 7, "keepdims": 2, "noop_with_empty_axes": 2},
    "Relu": {},
    "Reshape": {"allowzero": 2},
    "Sigmoid": {},
    "Softmax": {"axis": 2},
    "Sub": {},
    "Tanh": {},
    "Transpose": {"perm": 7},
    "TreeEnsemble": onnx_trees.ATTRIBUTES,
}
_ANY_REPLACEMENT = "build the model from Gemm, Conv, AveragePool, MaxPool, Add and activations"
_NO_TENSOR = "Expected an ONNX graph whose nodes take what nodes before them give, each under a name of its own"


def to_onnx(graph: Graph, *, int8: bool = False) -> bytes:
    """Return `graph` as an ONNX model: the same bytes for the same graph.

    Args:
        graph: any.
        int8: store each weight matrix as int8 with one float32 scale for each output, and biases as float32: an eighth
            of the bytes, and weights off by up to 1/254 of the largest of their row. What is read back is the rounded
            model.

    Raises:
        MissingExtra: `onnx` is not installed.
        ModelError: the model is larger than 64 MiB.
    """
    onnx = _library("train")
    make, writer = onnx.helper, onnx_write.Writer(onnx, int8)
    onnx_write.finish(writer, onnx_write.write(writer, graph.layers, onnx_write.Flow("x")))
    double = onnx.TensorProto.DOUBLE
    body = make.make_graph(
        writer.nodes,
        "confide",
        [make.make_tensor_value_info("x", double, ["batch", graph.features])],
        [make.make_tensor_value_info("y", double, ["batch", graph.outputs])],
        writer.initializers,
    )
    versions, ir_version = [make.make_opsetid("", onnx_write.OPSET)], _IR_VERSION
    if isinstance(graph.layers[0], Trees):
        versions.append(make.make_opsetid(onnx_trees.DOMAIN, onnx_trees.VERSION))
        ir_version = _IR_VERSION_OF_TREES
    if writer.functions:
        versions.append(make.make_opsetid(onnx_write.DOMAIN, onnx_write.VERSION))
    functions = [definition for _, definition in sorted(writer.functions.items())]
    model = make.make_model(
        body, producer_name="confide", ir_version=ir_version, opset_imports=versions, functions=functions
    )
    if graph.classes:
        make.set_model_props(model, {_CLASSES: json.dumps(list(graph.classes), ensure_ascii=False)})
    written = model.SerializeToString(deterministic=True)
    if len(written) > LARGEST_BYTES:
        raise ModelError(
            f"Expected a model of at most {LARGEST_BYTES} bytes, got {len(written)}; take fewer parameters"
        )
    return written


def from_onnx(body: bytes, *, classes: tuple[str, ...] = ()) -> Graph:
    """Return the graph in an ONNX model.

    Args:
        body: the file; may come from anybody.
        classes: names of the outcomes, in the place of those that the file may have.

    Raises:
        MissingExtra: `onnx` is not installed.
        ModelError: there are not as many classes as outcomes, the bytes are too many or no ONNX model, or the model
            holds what no rule covers: then the text lists every such node with its replacement.
    """
    onnx = _library("serve")
    if len(body) > LARGEST_BYTES:
        raise ModelError(f"Expected an ONNX model of at most {LARGEST_BYTES} bytes, got {len(body)}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(body)
    except Exception:  # protobuf's DecodeError, whose module differs between its releases
        raise ModelError("Expected an ONNX model; the bytes are damaged or something else") from None
    refused = dict(_unsupported_nodes(model.graph))
    if problems := [*_unsupported(model, onnx)]:
        _refuse([*map(str, problems), *map(str, refused.values())])
    return Graph(_read(model.graph, refused), classes or _classes(model))


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


def _refuse(problems: list[str]) -> None:
    lines = problems[:_MOST_PROBLEMS]
    lines += [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
    raise ModelError("\n  ".join(["Expected a model that a graph can hold; change:", *lines]))


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
    if any(version < 13 for version in versions) and any(node.op_type == "Softmax" for node in model.graph.node):
        yield Problem("Softmax", "an operator set in which it goes over several axes", "export with 13 or a later one")
    for domain, version in ((onnx_trees.DOMAIN, onnx_trees.VERSION), (onnx_write.DOMAIN, onnx_write.VERSION)):
        found = [entry.version for entry in model.opset_import if entry.domain == domain]
        if found not in ([], [version]):
            yield Problem("opset", f"operator set {found} of {domain}", f"export with {version}")
    if model.training_info or not all(_is_ours(function, onnx) for function in model.functions):
        yield Problem("model", "functions or training information", "export the plain inference graph")
    graph = model.graph
    if len(graph.node) > _MOST_NODES:
        yield Problem("graph", f"{len(graph.node)} nodes", f"take at most {_MOST_NODES}")
    if graph.sparse_initializer:
        yield Problem("initializer", "sparse weights", "store them dense")
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
            yield Problem(_named("initializer", tensor.name), "weights in another file", "save them inside the model")
        elif not onnx_tensors.readable(tensor):
            yield Problem(_named("initializer", tensor.name), "a type that is not read", "convert it to float32")


def _is_ours(function: onnx.FunctionProto, onnx: Any) -> bool:
    """Return whether a definition is the one that we write: it is never run, but others would run it."""
    if function.domain != onnx_write.DOMAIN or not _is_defined(function.name):
        return False
    wanted = onnx_write.definition(function.name, onnx)
    forms = [
        (
            list(each.input),
            list(each.output),
            [(n.op_type, n.domain, [*n.input], [*n.output], _set(n)) for n in each.node],
        )
        for each in (function, wanted)
    ]
    return forms[0] == forms[1]


def _set(node: onnx.NodeProto) -> list[bytes]:
    return sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)


def _is_defined(kind: str) -> bool:
    return kind in onnx_attention.DEFINED or _is_polynomial(kind)


def _is_polynomial(kind: str) -> bool:
    return bool(re.fullmatch("Polynomial[1-9][0-9]{0,2}", kind, re.ASCII)) and int(kind[10:]) <= MOST_DEGREE


def _unsupported_nodes(graph: onnx.GraphProto) -> Iterator[tuple[int, Problem]]:
    """Yield the place of each node that no rule covers, and why."""
    for place, node in enumerate(list(graph.node)[:_MOST_NODES]):
        where, kind = _named(node.op_type, node.name), node.op_type
        home = {"TreeEnsemble": (onnx_trees.DOMAIN,)}.get(kind, ("", "ai.onnx"))
        ours = node.domain == onnx_write.DOMAIN and _is_defined(kind)
        known: Mapping[str, int] = {} if ours else _ATTRIBUTES.get(kind, {})
        names = [attribute.name for attribute in node.attribute]
        if not ours and (kind not in _ATTRIBUTES or node.domain not in home):
            domain = f"the operator domain {node.domain[:_LONGEST_NAME]!r}"
            reason = "no rule covers this node" if node.domain in ("", "ai.onnx") else domain
            yield place, Problem(where, reason, _REPLACEMENTS.get(kind, _ANY_REPLACEMENT))
        elif set(names) - known.keys() or len(set(names)) != len(names):
            yield place, Problem(where, "an unknown or repeated attribute", "export with a current operator set")
        elif any(attribute.type != known[attribute.name] for attribute in node.attribute):
            yield place, Problem(where, "an attribute of the wrong type", "export the model again")
        elif found := _unsupported_setting(node):
            yield place, Problem(where, *found)


def _unsupported_setting(node: onnx.NodeProto) -> tuple[str, str] | None:
    """Return why a node of a known kind cannot run as it is set, and what to do."""
    number, numbers = onnx_tensors.number, onnx_tensors.numbers
    if number(node, "transA", 0):
        return "a transposed input", "transpose the weights, not the input"
    if number(node, "group", 1) != 1:
        return "a grouped convolution", "take group=1"
    if any(each != 1 for each in numbers(node, "dilations", ())):
        return "a dilated window", "take dilation 1"
    if number(node, "ceil_mode", 0):
        return "windows beyond the image", "take ceil_mode=0"
    if number(node, "training_mode", 0):
        return "statistics of a batch", "export the model in inference mode"
    if node.op_type == "Cast" and number(node, "to", 0) not in onnx_tensors.FLOATS:
        return "a cast to something else than float32 or float64", "export the model in float32"
    if number(node, "block_size", 0):
        return "scales for blocks", "take one scale for each output"
    return None


def _read(graph: onnx.GraphProto, refused: dict[int, Problem]) -> tuple[Layer, ...]:
    """Return the layers of a graph, following its nodes from the input on."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1 or len(weights) != len(graph.initializer):
        raise ModelError("Expected an ONNX graph with one input, one output and weights of different names")
    parameters = sum(onnx_tensors.size(weights[name]) for n in graph.node for name in n.input if name in weights)
    _limit(parameters)
    problems: list[str] = []
    found: dict[str, onnx_rules.Value | None] = {inputs[0].name: onnx_rules.Signal((), _declared_shape(inputs[0]))}
    for place, node in enumerate(graph.node):
        if any(name and name not in found and name not in weights for name in node.input):
            raise ModelError(_NO_TENSOR)
        if not node.output or not node.output[0] or any(name in found or name in weights for name in node.output):
            raise ModelError(_NO_TENSOR)
        found.update(dict.fromkeys(filter(None, node.output)))  # None: not known
        if place in refused:
            problems.append(str(refused[place]))
            continue
        if any(name in found and found[name] is None for name in node.input):
            continue  # what gave it was refused
        try:
            values = [_value(name, found, weights) for name in node.input]
            result = onnx_rules.run(node, values)
        except ModelError as error:
            problems.append(f"{_named(node.op_type, node.name)}: {error}")
            continue
        parameters += _held(result, [found.get(name) for name in node.input])
        _limit(parameters)
        found[node.output[0]] = result
    if problems:
        _refuse(problems)
    last = found.get(graph.output[0].name)
    if not isinstance(last, onnx_rules.Signal) or not graph.node:
        raise ModelError("Expected an ONNX graph whose output depends on its input by nodes")
    return onnx_rules.finished(last)


def _limit(parameters: int) -> None:
    if parameters > MOST_PARAMETERS:
        raise ModelError(f"Expected an ONNX model of at most {MOST_PARAMETERS} parameters, got {parameters}")


def _value(
    name: str, found: Mapping[str, onnx_rules.Value | None], weights: Mapping[str, onnx.TensorProto]
) -> onnx_rules.Value | None:
    return onnx_tensors.array(weights[name]) if name in weights else found[name] if name else None


def _held(result: onnx_rules.Value, computed: list[onnx_rules.Value | None]) -> int:
    """Return the numbers that a layer keeps beyond those of initializers: computed constants, and copies in a block."""
    if not isinstance(result, onnx_rules.Signal):
        return 0
    last = result.items[-1] if result.items else None
    found = sum(value.size for value in computed if isinstance(value, np.ndarray))
    if isinstance(last, onnx_rules.Scale):
        return 2 * len(last.factor) + found
    return sum(part.size for part in parts_of(last)) if isinstance(last, onnx_rules.Residual) else found


def _declared_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return the shape behind the batch that the input declares; None if it leaves it open."""
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if len(dims) not in (0, 2, 4):
        raise ModelError(
            f"Expected an input (batch, features) or (batch, channels, height, width), got {len(dims)} axes"
        )
    if not dims or not all(dims[1:]):
        return None
    units = 1
    for size in dims[1:]:
        units *= size
        if size < 0 or units > MOST_UNITS:
            raise ModelError(f"Expected an input of at most {MOST_UNITS} numbers for each record")
    return tuple(dims[1:])


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
