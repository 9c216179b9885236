"""`pip install .` without extras gives a client that asks a running server, with neither torch nor onnx at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

#: Runs with everything installed. The model is y = sigmoid(2 a - b + 1/2).
SERVER = """
import numpy as np
from confide.guarantee import PrivacyLabel
from confide.model.graph import Graph, Linear, Sigmoid
from confide.serve import load_backend
from confide.serve.listen import serve
from confide.serve.server import Model, create_app

graph = Graph((Linear(np.array([[2.0, -1.0]]), np.array([0.5])), Sigmoid()))
label = PrivacyLabel(aggregator="pooled", parties=("one",), quorum=1, colluding=0, rounds=1)
model = Model("small", graph, label, (load_backend("plain"), load_backend("he")))
serve(create_app([model]), port=0, ready=lambda url: print(url, flush=True))
"""

#: Runs in the light environment.
CLIENT = """
import importlib.util, math, sys
import confide
for absent in ("torch", "onnx", "uvicorn", "sklearn", "matplotlib"):
    assert importlib.util.find_spec(absent) is None, absent
x = [[1.0, 0.0], [-0.5, 0.25], [0.0, 1.0]]
expected = [1 / (1 + math.exp(-(2 * a - b + 0.5))) for a, b in x]
for backend in ("plain", "he"):
    y = confide.Client(sys.argv[1], backend=backend).predict(x)
    assert y.shape == (3, 1)
    assert max(abs(have - want) for have, want in zip(y[:, 0], expected)) < 1e-3, backend
print(confide.__file__)
"""


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> Path:
    """Return the interpreter of a clean environment with confide and nothing of its extras."""
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    build = os.environ | {"SKBUILD_BUILD_DIR": str(folder / "build")}
    pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(ROOT)]
    subprocess.run(pip, check=True, env=build, capture_output=True)
    return python


@pytest.fixture
def url() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def isolated(python: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python` away from the checkout, with warnings as errors."""
    command = [str(python), "-I", "-W", "error", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def test_the_light_client_asks_a_running_server(light: Path, url: str, tmp_path):
    done = isolated(light, "-c", CLIENT, url, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(light.parents[1])


def test_the_command_line_is_installed(light: Path, tmp_path):
    done = isolated(light, "-m", "confide", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout
    assert (light.parent / "confide").is_file()


@pytest.mark.parametrize("verb", ["train", "serve"])
def test_a_verb_whose_extra_is_missing_says_what_to_install(light: Path, tmp_path, verb):
    """Gives a file that does not exist: the missing package or the missing file may be met first, each in one line."""
    done = isolated(light, "-m", "confide", verb, "absent.file", folder=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_the_wheel_holds_the_package_and_nothing_else(light: Path, tmp_path):
    script = "import importlib.metadata as m; print(*(f for f in m.files('confide')), sep='\\n')"
    done = isolated(light, "-c", script, folder=tmp_path)
    listed = [Path(line) for line in done.stdout.split()]
    tops = {path.parts[0] for path in listed if ".." not in path.parts}
    assert tops == {"confide", f"confide-{version()}.dist-info"}
    packaged = {path.as_posix() for path in listed if "__pycache__" not in path.parts}
    tracked = subprocess.run(["git", "ls-files", "src/confide"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert {line.removeprefix("src/") for line in tracked.stdout.split()} <= packaged


def version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
