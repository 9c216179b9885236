"""Client kits that a stranger changed anywhere: each is a kit or a ProtocolError, soon and in little memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he import Homomorphic
from confide.he.kits import ClientKit, client_kit
from confide.he.plan import Plan
from confide.model.graph import AveragePool, Conv, Graph, Polynomial, Residual, Square
from he.oracle import RNG, forest, linear, logistic, mlp

IMAGE = Conv(np.random.default_rng(1).normal(size=(4, 1, 3, 3)) / 3, np.zeros(4), 8, 8, (2, 2), (1, 1, 1, 1))
MODELS: dict[str, tuple[Graph, dict[str, Any]]] = {
    "linear": (logistic(1, 5), {}),
    "ckks": (logistic(1, 5), {"scheme": "ckks"}),
    "network": (mlp(1, 6, 16, 3), {"engine": "seal"}),
    "image": (Graph((IMAGE, Square(), AveragePool(4, 4, 4, (2, 2), (2, 2)), linear(3, 3, 16))), {}),
    "residual": (
        Graph(
            (
                linear(4, 6, 9),
                Residual((linear(5, 6, 6, 0.2), Polynomial(np.array([0.2, 0.5, -0.3]), -30.0, 40.0))),
                linear(7, 2, 6),
            )
        ),
        {},
    ),
    "batch": (mlp(1, 4, 3, 1), {"goal": "throughput"}),
    "trees": (Graph((forest(1, 3, 4, 2, steps=8),)), {"tree_bins": 8}),
}


def kit_of(name: str) -> bytes:
    graph, options = MODELS[name]
    kit = Homomorphic(precision_bits=6, **options).prepare(graph, RNG)["client"]
    assert isinstance(kit, ClientKit)
    return kit.encode()


KITS = {name: kit_of(name) for name in MODELS}
LEAVES = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 5, 16, 64, 4095, 4096, 16384, 16385, 1 << 20, 1 << 31, (1 << 63) - 1, -(1 << 63)]),
    st.integers(-9, 99),
    st.sampled_from([0.0, -1.0, 1e-300, 1e300, float("inf"), float("nan"), True, None, "", "network", [], [1, 0]]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in maps and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def tried(body: bytes) -> bool:
    """Return whether it is a kit; anything but that and a ProtocolError is a failure."""
    try:
        client_kit(body)
    except ProtocolError:
        return False
    return True


@pytest.mark.parametrize("name", KITS)
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_kit_with_something_else_anywhere_is_a_kit_or_refused(name, data):
    kit = msgspec.msgpack.decode(KITS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(kit["plan"])))
        old, new = kit["plan"], data.draw(LEAVES)
        for key in path:
            old = old[key]
        if isinstance(old, list) and data.draw(st.booleans()):
            new = data.draw(st.sampled_from([old + old, old[1:], old[::-1], old[:1] * 9]))
        kit["plan"] = changed(kit["plan"], path, new)
    with_needs = data.draw(st.booleans())
    if with_needs:  # a stranger can work out what its plan needs
        kit["needs"] = needs_of(kit)
    tried(msgspec.msgpack.encode(kit))


def needs_of(kit: dict[str, Any]) -> Any:
    try:
        plan = msgspec.msgpack.decode(msgspec.msgpack.encode(kit["plan"]), type=Plan)
        return msgspec.to_builtins(plan.checked().needs)
    except Exception:
        return kit["needs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KITS)
def test_every_number_of_a_kit_may_be_an_extreme(name):
    """One at a time, all of them."""
    kit = msgspec.msgpack.decode(KITS[name])
    assert tried(KITS[name])
    tracemalloc.start()
    for path in places(kit["plan"]):
        for new in (0, -1, 16384, (1 << 63) - 1, 1e300, float("nan")):
            other = dict(kit, plan=changed(kit["plan"], path, new))
            tried(msgspec.msgpack.encode(dict(other, needs=needs_of(other))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 28


@pytest.mark.parametrize("axes", ["babies", "giant", "sums"])
def test_a_rotation_that_moves_nothing_is_refused(axes):
    """It was a ValueError: the grid's range has no step of 0."""
    kit = msgspec.msgpack.decode(KITS["network"])
    stage = next(i for i, one in enumerate(kit["plan"]["stages"]) if one["type"] == "linear")
    path = ("stages", stage, "layout", "rotations", axes)
    for new in ([4, 0], [1, 0]):
        plan = changed(kit["plan"], path, new if axes == "giant" else [new])
        with pytest.raises(ProtocolError):
            client_kit(msgspec.msgpack.encode(dict(kit, plan=plan)))
