"""From a graph to a plan: what the client must know, and what an engine executes. No key, no weight.

A plan is public: it is the client's kit. It depends on shapes, the input box and the wanted precision alone, so two
models of one shape have the same plan. `linear` executes a `LinearPlan`, `engine_seal` an `MlpPlan`, `engine_trees` a
`TreesPlan`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from confide.errors import ModelError
from confide.he.encode import normalise
from confide.he.plan_linear import LinearPlan, plan_linear
from confide.he.plan_mlp import MlpPlan, plan_mlp
from confide.he.plan_trees import MOST_BINS, MOST_DEPTH, TreesPlan, bins_for, plan_trees
from confide.he.trees import shape_of
from confide.model.graph import Graph, Linear, Problem, Sigmoid, Square
from confide.model.trees import Trees

Plan = LinearPlan | MlpPlan | TreesPlan

_WIDEST = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the owner of a model asks of a plan.

    Args:
        protect_model: whether replies must not show the weights.
        input_bound: largest absolute value of a feature.
        precision_bits: outputs may be off by 2^-precision_bits of their range over the box.
        tree_bins: intervals that trees tell apart in a feature; None leaves it to the planner.
    """

    protect_model: bool
    input_bound: float
    precision_bits: int
    tree_bins: int | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """A graph as a plan sees it: neighbouring linear layers multiplied out, the last sigmoid set apart."""

    layers: tuple[Linear | Square, ...]
    sigmoid: bool

    @staticmethod
    def of(graph: Graph) -> Network:
        """Return the network of a graph whose only sigmoid, if any, is its last layer."""
        layers: list[Linear | Square] = []
        for layer in graph.layers:
            if isinstance(layer, Sigmoid):
                continue
            assert not isinstance(layer, Trees)  # refused by `layer_problems`
            before = layers[-1] if layers else None
            if isinstance(layer, Linear) and isinstance(before, Linear):
                layers[-1] = Linear(layer.weight @ before.weight, layer.weight @ before.bias + layer.bias)
            else:
                layers.append(layer)
        return Network(tuple(layers), isinstance(graph.layers[-1], Sigmoid))

    @property
    def linear(self) -> Linear | None:
        """Return the one linear layer of a linear model, None if there is a square."""
        first = self.layers[0]
        return first if len(self.layers) == 1 and isinstance(first, Linear) else None


def make_plan(net: Network, settings: Settings) -> Plan | None:
    """Return the cheapest plan for a network, or None if no parameters of the table give the wanted precision."""
    layer = net.linear
    if layer is None:
        return plan_mlp(
            net.layers,
            sigmoid=net.sigmoid,
            protected=settings.protect_model,
            input_bound=settings.input_bound,
            precision_bits=settings.precision_bits,
        )
    outputs, features = layer.weight.shape
    return plan_linear(
        (outputs, features),
        sigmoid=net.sigmoid,
        protected=settings.protect_model,
        input_bound=settings.input_bound,
        precision_bits=settings.precision_bits,
    )


def plan_of(graph: Graph, settings: Settings) -> Plan | None:
    """Return the cheapest plan for a graph without problems, or None as `make_plan`."""
    trees = graph.layers[0]
    if not isinstance(trees, Trees):
        return make_plan(Network.of(graph), settings)
    return plan_trees(
        shape_of(trees),
        bins=settings.tree_bins or bins_for(trees.features),
        sigmoid=isinstance(graph.layers[-1], Sigmoid),
        protected=settings.protect_model,
        input_bound=settings.input_bound,
        precision_bits=settings.precision_bits,
    )


def tree_problems(graph: Graph, settings: Settings) -> list[Problem]:
    """Return everything in a graph of trees that no plan covers, each with its replacement."""
    trees = graph.layers[0]
    assert isinstance(trees, Trees)
    found = [
        Problem(_name(number, layer), "only a last sigmoid follows trees", "put its weights into the leaves' values")
        for number, layer in enumerate(graph.layers[1:], 1)
        if not (isinstance(layer, Sigmoid) and number == len(graph.layers) - 1)
    ]
    features, _, depth, leaves = shape_of(trees)
    name = _name(0, trees)
    if depth > MOST_DEPTH:
        found.append(Problem(name, f"its depth {depth} is above {MOST_DEPTH}", "train with a smaller depth"))
    if features > MOST_BINS:
        found.append(Problem(name, f"it has more than {MOST_BINS} features", "reduce its inputs"))
    if not found and plan_of(graph, settings) is None:
        reason = f"no parameters of the 128-bit table hold {leaves} leaves of one output at depth {depth}"
        found.append(Problem(name, reason, "use fewer or smaller trees, fewer tree_bins or a lower precision_bits"))
    return found


def problems(graph: Graph, settings: Settings) -> list[Problem]:
    """Return everything in `graph` that no plan covers, each with its replacement."""
    if isinstance(graph.layers[0], Trees):
        return tree_problems(graph, settings)
    found = layer_problems(graph)
    for number, layer in enumerate(graph.layers):
        if isinstance(layer, Linear) and max(layer.weight.shape) > _WIDEST:
            found.append(Problem(_name(number, layer), f"it is wider than {_WIDEST}", "reduce its inputs or outputs"))
    if not found:
        found += range_problems(graph, settings.input_bound)
    if not found and make_plan(Network.of(graph), settings) is None:
        reason = (
            f"no parameters of the 128-bit table give precision_bits={settings.precision_bits} at its size and depth"
        )
        found.append(Problem("the model", reason, "use fewer squares or inputs, or lower precision_bits"))
    return found


def range_problems(graph: Graph, input_bound: float) -> list[Problem]:
    """Return a problem if outputs on the box are too large to come back as reals."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            normalise(Network.of(graph).layers, input_bound)
    except ModelError:
        return [Problem("the model", "its outputs can exceed 2^512 on the input box", "scale its weights down")]
    return []


def layer_problems(graph: Graph, *, squares: bool = True) -> list[Problem]:
    """Return the layers that cannot be computed on, each with its replacement.

    Args:
        graph: any.
        squares: whether products of two encrypted values are possible.
    """
    found: list[Problem] = []
    for number, layer in enumerate(graph.layers):
        last = number == len(graph.layers) - 1
        if (
            isinstance(layer, Linear)
            or (isinstance(layer, Sigmoid) and last)
            or (isinstance(layer, Square) and squares)
        ):
            continue
        name = _name(number, layer)
        if isinstance(layer, Sigmoid):
            found.append(
                Problem(name, "a sigmoid runs at the client only, as the last layer", "train with Square here")
            )
        elif isinstance(layer, Trees):
            found.append(
                Problem(name, "trees need products of encrypted values", "use the backend he or plain, or train Linear")
            )
        elif type(layer) is Square:
            found.append(Problem(name, "this backend adds and scales only", "use the backend he, or a linear model"))
        else:
            found.append(Problem(name, "it has no encrypted form", "use Linear and Square, and Sigmoid at the end"))
    return found


def _name(number: int, layer: object) -> str:
    return f"layer {number} ({type(layer).__name__})"
