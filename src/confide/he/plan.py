"""From a graph to a plan: what the client must know, and what an engine executes. No key, no weight.

A plan is public: it is the client's kit. It depends on shapes, the input box and the wanted precision alone, so two
models of one shape have the same plan. `linear` executes a `LinearPlan`, `engine_seal` an `MlpPlan`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from confide.errors import ModelError
from confide.he.encode import normalise
from confide.he.plan_linear import LinearPlan, plan_linear
from confide.he.plan_mlp import MlpPlan, plan_mlp
from confide.model.graph import Graph, Linear, Problem, Sigmoid, Square
from confide.model.trees import Trees

Plan = LinearPlan | MlpPlan

_WIDEST = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the owner of a model asks of a plan.

    Args:
        protect_model: whether replies must not show the weights.
        input_bound: largest absolute value of a feature.
        precision_bits: outputs may be off by 2^-precision_bits of their range over the box.
    """

    protect_model: bool
    input_bound: float
    precision_bits: int


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
            assert isinstance(layer, Linear | Square)  # others are refused by `layer_problems`
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


def problems(graph: Graph, settings: Settings) -> list[Problem]:
    """Return everything in `graph` that no plan covers, each with its replacement."""
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
                Problem(name, "trees do not run under encryption yet", "use the backend plain, or train Linear")
            )
        elif type(layer) is Square:
            found.append(Problem(name, "this backend adds and scales only", "use the backend he, or a linear model"))
        else:
            found.append(Problem(name, "it has no encrypted form", "use Linear and Square, and Sigmoid at the end"))
    return found


def _name(number: int, layer: object) -> str:
    return f"layer {number} ({type(layer).__name__})"
