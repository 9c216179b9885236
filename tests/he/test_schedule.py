"""What the server does, and in which order, does not depend on the weights: only its own clock could tell them."""

import numpy as np
import pytest

from confide.he import Homomorphic
from confide.he.seal import Context, Evaluation
from confide.model.graph import Graph, Linear, Sigmoid, Square
from he.oracle import Pair, corners

#: Every operation of the engine on ciphertexts and plaintexts.
OPERATIONS = {
    Context: [name for name in vars(Context) if not name.startswith("_")],
    Evaluation: ["encrypt", "zero", "relinearise", "rotate", "conjugate"],
}


class Recorder:
    """Notes every operation with what is public about its arguments: levels, scales, steps, sizes."""

    def __init__(self, monkeypatch) -> None:
        self.seen: list[tuple] = []
        for kind, names in OPERATIONS.items():
            for name in names:
                method = getattr(kind, name, None)
                if callable(method):
                    monkeypatch.setattr(kind, name, self.wrapped(name, method))

    def wrapped(self, name, method):
        def call(owner, *args, **settings):
            public = tuple(value for value in args if isinstance(value, int | str))
            sizes = tuple(len(value) for value in args if isinstance(value, bytes | bytearray))
            self.seen.append((name, public, sizes, tuple(sorted(settings.items()))))
            return method(owner, *args, **settings)

        return call


def network(scale: float, *, square: bool) -> Graph:
    stream = np.random.default_rng(7)

    def layer(outputs: int, inputs: int) -> Linear:
        weight = scale * stream.normal(size=(outputs, inputs))
        return Linear(weight, scale * stream.normal(size=outputs))

    if not square:
        return Graph((layer(3, 6), Sigmoid()))
    return Graph((layer(5, 6), Square(), layer(3, 5)))


def sparse(graph: Graph, keep: int) -> Graph:
    """The same shape with all but `keep` weights of each layer zero."""
    layers = []
    for layer in graph.layers:
        if isinstance(layer, Linear):
            weight = np.zeros_like(layer.weight)
            weight.reshape(-1)[:keep] = 1.0
            layer = Linear(weight, np.zeros_like(layer.bias))
        layers.append(layer)
    return Graph(tuple(layers))


@pytest.mark.parametrize(
    ("square", "protect", "names"),
    [
        (False, False, "all"),
        (False, True, "all"),
        (True, True, "zero large"),
        pytest.param(True, True, "all", marks=pytest.mark.slow),
        pytest.param(True, False, "all", marks=pytest.mark.slow),
    ],
    ids=["linear open", "linear", "network", "network in full", "network open in full"],
)
def test_zero_tiny_large_and_sparse_weights_take_the_same_steps(square, protect, names, monkeypatch):
    recorder = Recorder(monkeypatch)
    base = network(1.0, square=square)
    models = {
        "ordinary": base,
        "zero": sparse(base, 0),
        "one weight": sparse(base, 1),
        "one diagonal": sparse(base, 5),
        "tiny": network(1e-6, square=square),
        "large": network(1e6, square=square),
    }
    backend = Homomorphic(protect_model=protect, engine="seal")  # a native program is one call: test_engine_native
    schedules = {}
    chosen = models if names == "all" else ["ordinary", *names.split()]
    for name in chosen:
        graph = models[name]
        recorder.seen.clear()
        pair = Pair(backend, graph)
        prepared = len(recorder.seen)
        pair.setup().output("client")
        transcript = pair.predict(corners(2, 6))
        assert "server" not in transcript.failures, name
        assert np.isfinite(transcript.output("client")).all(), name
        schedules[name] = (recorder.seen[prepared:], transcript.sizes)  # what was before nobody waited for
    for name, schedule in schedules.items():
        assert schedule == schedules["ordinary"], name


def test_the_control_one_product_more_is_seen(monkeypatch):
    recorder = Recorder(monkeypatch)
    pair = Pair(Homomorphic(protect_model=False, engine="seal"), network(1.0, square=True))
    pair.setup()
    pair.predict(corners(1, 6)).output("client")  # the server has parsed the keys
    lengths = []
    for _ in range(2):
        recorder.seen.clear()
        assert "server" not in pair.predict(corners(1, 6)).failures
        lengths.append(len(recorder.seen))
        giants = pair.server.engine.machine._encoded[0].giants
        giants[0].append(giants[0][0])
    assert lengths[0] < lengths[1]
