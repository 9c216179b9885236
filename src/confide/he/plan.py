"""From a graph to a plan: what the client must know, and what an engine executes. No key, no weight.

A plan is public: it is the client's kit. It depends on shapes, the input box and the wanted precision, and of a
network on the bits of room that it needs; two linear models of one shape have the same plan. `linear` executes a
`LinearPlan`, an engine (`engine_seal`, `engine_batch`) a `NetworkPlan` or a `BatchPlan`, `engine_trees` a `TreesPlan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.he.cost import seconds
from confide.he.encode import LARGEST_EXPONENT, exponents_of
from confide.he.network import MOST_DEGREE, Network
from confide.he.normalise import Ready, normalise, samples
from confide.he.plan_batch import BatchPlan
from confide.he.plan_linear import LinearPlan, plan_linear
from confide.he.plan_network import NetworkPlan
from confide.he.plan_trees import MOST_DEPTH, MOST_FEATURES, TreesPlan, bins_for, plan_trees
from confide.he.planner import ROOMS_BITS, plan_batch, plan_network
from confide.he.speeds import SEAL, SPEEDS, Executor
from confide.he.trees import shape_of
from confide.model.graph import (
    AveragePool,
    Conv,
    Gelu,
    Graph,
    Layer,
    Linear,
    MaxPool,
    Polynomial,
    Problem,
    Relu,
    Residual,
    Sigmoid,
    Square,
    Tanh,
)
from confide.model.trees import Trees

Matrix = NDArray[np.float64]
Made = TypeVar("Made")
Plan = LinearPlan | NetworkPlan | BatchPlan | TreesPlan

_WIDEST = 1 << 14
_LONGEST_SECONDS = 60.0  # of a batch, by `speeds.SEAL`
_LARGEST_BYTES = 250 << 20  # of a batch's question or reply: below `message_bytes.MOST_QUERY_BYTES`
_FEW = 8  # samples by which outputs are known to be far too large
_DEAR = 1.25  # times longer: what certified ranges may cost unless they are asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the owner of a model asks of a plan.

    Args:
        protect_model: whether replies must not show the weights.
        input_bound: largest absolute value of a feature.
        precision_bits: outputs may be off by 2^-precision_bits of their range over the box.
        scheme: "bfv" or "ckks" for linear models, None takes BFV; networks are CKKS.
        certify: whether a network keeps room for every input of the box; None does if that costs little.
        goal: the least time for one row, or for each of many: then networks run in batches (`plan_batch`).
        rows: inputs by which typical values are judged, shape (rows, features); points of the box if None.
        tree_bins: intervals that trees tell apart in a feature; None leaves it to the planner.
        engine: who is to execute it soonest; every engine can execute every plan.
    """

    protect_model: bool
    input_bound: float
    precision_bits: int
    scheme: str | None = None
    certify: bool | None = None
    goal: Literal["latency", "throughput"] = "latency"
    rows: Matrix | None = None
    tree_bins: int | None = None
    engine: Executor = "seal"


def plan_of(graph: Graph, settings: Settings) -> tuple[Plan, Ready | None] | None:
    """Return the cheapest plan for a graph without problems, as `make_plan` does."""
    trees = graph.layers[0]
    if not isinstance(trees, Trees):
        return make_plan(Network.of(graph), settings)
    plan = plan_trees(
        shape_of(trees),
        bins=settings.tree_bins or bins_for(trees.features),
        sigmoid=isinstance(graph.layers[-1], Sigmoid),
        protected=settings.protect_model,
        input_bound=settings.input_bound,
        precision_bits=settings.precision_bits,
        speeds=SPEEDS[settings.engine],
    )
    return None if plan is None else (plan, None)


def _first(make: Callable[..., Made | None], settings: Settings) -> Made | None:
    """Return the plan for the engine that is asked for; where its primes are too small, with the largest."""
    plan = make(speeds=SPEEDS[settings.engine])
    return make(speeds=SEAL) if plan is None and settings.engine != "seal" else plan


def make_plan(net: Network, settings: Settings) -> tuple[Plan, Ready | None] | None:
    """Return the cheapest plan for a network with its scaled weights (None for BFV, which has its own).

    None if no parameters of the table give the wanted precision. A network's plan depends on its shapes and on one
    number: how many bits of room its largest values need, in steps of four.
    """
    layer = net.linear
    if layer is None or settings.scheme == "ckks":
        return _network_plan(net, settings)
    outputs, features = layer.weight.shape
    plan = plan_linear(
        (outputs, features),
        sigmoid=net.sigmoid,
        protected=settings.protect_model,
        input_bound=settings.input_bound,
        precision_bits=settings.precision_bits,
    )
    return None if plan is None else (plan, None)


def _network_plan(net: Network, settings: Settings) -> tuple[NetworkPlan | BatchPlan, Ready] | None:
    """Return the cheapest certified plan, or, if it takes much longer, the cheapest without."""
    inputs = samples(net.entry, settings.input_bound, settings.rows)
    make, speeds = plan_batch if settings.goal == "throughput" else plan_network, SPEEDS[settings.engine]

    def planned(room_bits: float, *, certify: bool) -> tuple[NetworkPlan | BatchPlan, Ready] | None:
        asked = partial(
            make,
            net,
            protected=settings.protect_model,
            input_bound=settings.input_bound,
            precision_bits=settings.precision_bits,
            room_bits=room_bits,
        )
        plan = _first(asked, settings)
        if plan is None:
            return None
        ready = normalise(net, plan.rooms, plan.input_bound, inputs, certify=certify)
        return msgspec.structs.replace(plan, certified=certify and ready.certified and ready.exact), ready

    free = planned(ROOMS_BITS[0], certify=False)
    if free is None or settings.certify is False:
        return free
    needed = max(math.log2(max(float(largest.max()), 1.0)) for largest in free[1].largest)
    for room_bits in ROOMS_BITS:
        if room_bits < needed:
            continue
        found = planned(room_bits, certify=True)
        if found is None or (settings.certify is None and seconds(found[0], speeds) > _DEAR * seconds(free[0], speeds)):
            break
        if found[0].certified:
            return found
    return None if settings.certify else free


def tree_problems(graph: Graph) -> list[Problem]:
    """Return everything in a graph of trees that no plan covers, each with its replacement."""
    trees = graph.layers[0]
    assert isinstance(trees, Trees)
    found = [
        Problem(_name(number, layer), "only a last sigmoid follows trees", "put its weights into the leaves' values")
        for number, layer in enumerate(graph.layers[1:], 1)
        if not (isinstance(layer, Sigmoid) and number == len(graph.layers) - 1)
    ]
    features, _, depth, _ = shape_of(trees)
    if depth > MOST_DEPTH:
        found.append(Problem(_name(0, trees), f"its depth {depth} is above {MOST_DEPTH}", "train with a smaller depth"))
    if features > MOST_FEATURES:
        found.append(Problem(_name(0, trees), f"it has more than {MOST_FEATURES} features", "reduce its inputs"))
    return found


def problems(graph: Graph, settings: Settings) -> list[Problem]:
    """Return everything in `graph` that no plan covers, each with its replacement."""
    if isinstance(graph.layers[0], Trees):
        return tree_problems(graph)
    found = layer_problems(graph)
    for number, layer in enumerate(graph.layers):
        if isinstance(layer, Linear | Conv) and max(_sizes(layer)) > _WIDEST:
            found.append(Problem(_name(number, layer), f"it is wider than {_WIDEST}", "reduce its inputs or outputs"))
    if not found:
        found += range_problems(graph, settings.input_bound)
    return found


def size_problem(graph: Graph, settings: Settings) -> Problem:
    """Return the problem of a model that no plan carries."""
    if isinstance(trees := graph.layers[0], Trees):
        _, _, depth, leaves = shape_of(trees)
        reason = f"no parameters of the 128-bit table hold {leaves} leaves of one output at depth {depth}"
        replacement = "use fewer or smaller trees, fewer tree_bins or a lower precision_bits"
        return Problem(_name(0, trees), reason, replacement)
    reason = f"no parameters of the 128-bit table give precision_bits={settings.precision_bits} at its size and depth"
    return Problem("the model", reason, "use fewer squares or inputs, or lower precision_bits")


def batch_problems(plan: Plan) -> list[Problem]:
    """Return a problem if a batch takes absurdly long or is absurdly large, whatever it holds."""
    if not isinstance(plan, BatchPlan):
        return []
    taken, size = seconds(plan, SEAL), plan.block_bytes
    if taken <= _LONGEST_SECONDS and size <= _LARGEST_BYTES:
        return []
    reason = f"a batch of it takes about {taken:.0f} s and {size / 1e6:.0f} MB"
    bounds = f"{_LONGEST_SECONDS:.0f} s and {_LARGEST_BYTES / 1e6:.0f} MB"
    return [Problem("the model", f"{reason}, more than {bounds}", 'use goal="latency", or fewer features and products')]


def _sizes(layer: Linear | Conv) -> tuple[int, int]:
    return layer.weight.shape if isinstance(layer, Linear) else (layer.inputs, layer.outputs)


def range_problems(graph: Graph, input_bound: float) -> list[Problem]:
    """Return a problem if outputs on the box are too large to come back as reals."""
    net = Network.of(graph)
    layer = net.linear
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            if layer is not None:
                exponents_of(np.abs(layer.weight * input_bound).sum(axis=1) + np.abs(layer.bias))
            else:
                rooms = [float(LARGEST_EXPONENT)] * (len(net.operations) + 1)
                few = samples(net.entry, input_bound)[:_FEW]  # bounds come from intervals; samples only set their units
                normalise(net, rooms, input_bound, few)
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
        if isinstance(layer, Sigmoid) and number == len(graph.layers) - 1:
            continue  # it runs at the client
        found += _problems(_name(number, layer), layer, squares=squares)
    if not found and squares and not isinstance(graph.layers[0], Linear | Conv | AveragePool):
        found.append(Problem(_name(0, graph.layers[0]), "it is the first layer", "begin with Linear or Conv"))
    return found


def _problems(name: str, layer: Layer, *, squares: bool) -> list[Problem]:
    match layer:
        case Linear():
            return []
        case Trees():
            return [Problem(name, "trees need products of encrypted values", "use the backend he or plain")]
        case Sigmoid():
            return [Problem(name, "a sigmoid runs at the client only, as the last layer", "train with Square here")]
        case Relu() | Tanh() | Gelu():
            reason = "encrypted arithmetic has no such function"
            return [Problem(name, reason, "replace it by a square or a polynomial: confide fit-polynomial")]
        case MaxPool():
            return [Problem(name, "encrypted arithmetic has no maximum", "train with AveragePool")]
        case _ if not squares:
            return [Problem(name, "this backend adds and scales only", "use the backend he, or a linear model")]
        case Polynomial(coefficients) if len(coefficients) - 1 > MOST_DEGREE:
            return [Problem(name, f"its degree is above {MOST_DEGREE}", f"fit one of degree {MOST_DEGREE} or less")]
        case Residual(body, shortcut):
            inner = [(f"{name}, {_name(place, one)}", one) for place, one in enumerate((*body, *shortcut))]
            return [problem for where, one in inner for problem in _problems(where, one, squares=squares)]
        case Conv() | AveragePool() | Square() | Polynomial():
            return []
        case _:
            return [Problem(name, "it has no encrypted form", "use Linear and Square, and Sigmoid at the end")]


def _name(number: int, layer: object) -> str:
    return f"layer {number} ({type(layer).__name__})"
