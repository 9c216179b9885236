"""The sums of weights times babies, of every instruction set, under the sanitizers."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native" / "ckks"
FLAGS = "-std=c++17 -g -O1 -pthread -Wall -Wextra -Wpedantic -Wconversion".split()
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
OPTIONS = {
    "ifma": "-mavx512f -mavx512dq -mavx512vl -mavx512ifma -mavx512bw -mavx512vbmi".split(),
    "avx2": "-mavx2 -mfma -ffp-contract=off".split(),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    sources = [*NATIVE.glob("kernels*.cpp"), *NATIVE.glob("switch_loops*.cpp"), *NATIVE.glob("weights*.cpp")]
    objects: list[str] = []
    for source in [NATIVE / "context.cpp", *(one for one in sources if one.stem != "kernels_test")]:
        kind = next((name for name in OPTIONS if f"_{name}" in source.stem), "")
        options = OPTIONS[kind] if kind and platform.machine() in ("x86_64", "AMD64") else []
        objects.append(str(folder / f"{source.stem}.o"))
        quiet = ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
        subprocess.run(["g++", *FLAGS, *SANITIZE, *options, *quiet, "-c", str(source), "-o", objects[-1]], check=True)
    subprocess.run(["g++", *SANITIZE, *objects, "-pthread", "-o", str(folder / "weights_test")], check=True)
    return folder / "weights_test"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on this machine")
def test_weights_under_the_sanitizers(program):
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the sums match\n"), done.stderr
    spoiled = subprocess.run([str(program), "control"], capture_output=True, text=True, check=False)
    assert spoiled.returncode == 1
    assert "differs" in spoiled.stdout
