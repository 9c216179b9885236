"""Threads of the native code that are not to be had, that fail, or that a fork left behind."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("confide._native")

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native" / "ckks"
FLAGS = "-std=c++17 -g -O1 -pthread -Wall -Wextra -Wpedantic -Wconversion -Werror".split()
SANITIZERS = {"address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], "thread": ["-fsanitize=thread"]}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on this machine")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_threads_under_the_sanitizers(tmp_path, sanitizer):
    """The program lets the system refuse threads; a control shows that it does, and what became of that before."""
    program = tmp_path / "threads_test"
    sources = [str(NATIVE / "threads_test.cpp"), str(NATIVE / "pool.cpp")]
    subprocess.run(["g++", *FLAGS, *SANITIZERS[sanitizer], *sources, "-ldl", "-o", str(program)], check=True)
    quiet = ["setarch", "-R"] if sanitizer == "thread" and shutil.which("setarch") else []
    environment = os.environ | {"TSAN_OPTIONS": "die_after_fork=0"}  # or a child may start no threads
    done = subprocess.run(
        [*quiet, str(program)], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert (done.returncode, done.stdout) == (0, "the threads hold\n"), done.stderr
    careless = subprocess.run([*quiet, str(program), "control"], capture_output=True, text=True, check=False)
    assert careless.returncode in (-signal.SIGABRT, 128 + signal.SIGABRT)
    assert "terminate called" in careless.stderr


#: Everything that takes threads, by one thread and by four.
WORK = """
import numpy as np
from confide import _native
from he.test_native_hostile import CIPHER, PRIMES, rotation

program, keys = rotation()

def answers(threads):
    one, two = np.zeros_like(CIPHER), np.zeros((2, *CIPHER.shape), np.uint64)
    program.run(keys, [CIPHER], [one], threads)
    program.run_each(keys, [np.stack([CIPHER, CIPHER])], [two], threads)
    sums = np.zeros((1, *CIPHER.shape), np.uint64)
    part = np.zeros(1, np.uint32), np.zeros(1, np.uint32), np.full((1, 1), 3.0)
    _native.ckks.IntegerMap(1, 1, [part]).sums(
        CIPHER[None], np.zeros((1, len(PRIMES)), np.uint64), list(PRIMES), sums, threads)
    assert one.any() and (two == one).all() and sums.any()
    return one.tobytes() + sums.tobytes()

expected = answers(1)
"""

NONE_TO_BE_HAD = """
import threading
try:
    threading.Thread(target=print).start()
    raise SystemExit("a thread was to be had")
except RuntimeError:
    pass
for _ in range(3):
    assert answers(4) == expected
print("the same")
"""

FORKED = """
import gc, os, signal
assert answers(4) == expected
child = os.fork()
if child == 0:
    signal.alarm(60)
    assert answers(4) == expected
    del program
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0) == (child, 0)
assert answers(4) == expected
print("the same")
"""


def ran(script: str, *before: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [*before, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_answers_are_the_same_where_no_thread_is_to_be_had():
    """Each thread would take a stack of 2^50 bytes, which no machine has."""
    if resource.getrlimit(resource.RLIMIT_STACK)[1] != resource.RLIM_INFINITY:
        pytest.skip("stacks are bounded here")
    code, out, err = ran(WORK + NONE_TO_BE_HAD, "sh", "-c", f'ulimit -s {1 << 40} && exec "$@"', "sh")
    assert (code, out) == (0, "the same\n"), err


def test_a_child_of_a_fork_computes_with_threads_of_its_own():
    code, out, err = ran(WORK + FORKED)
    assert (code, out) == (0, "the same\n"), err
