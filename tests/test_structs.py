"""Types of msgspec under several threads, in processes of their own: without the lock they crash."""

from __future__ import annotations

import subprocess
import sys

import pytest

_MANY_TYPES_FIRST_SEEN_BY_FOUR_THREADS = """
import sys, threading
import msgspec
from confide.structs import known

sys.setswitchinterval(1e-6)

def new_type():
    class Inner(msgspec.Struct, frozen=True):
        a: int = 1
        b: dict[str, list[int]] = {}
        c: float | None = None
    class Outer(msgspec.Struct, frozen=True):
        inner: Inner = Inner()
        more: tuple[Inner, ...] = ()
    return Outer

for _ in range(1500):
    kind, ready = new_type(), threading.Barrier(4)
    def convert():
        ready.wait()
        msgspec.convert({"inner": {"a": 2}, "more": [{"a": 1}]}, WHAT(kind))
    threads = [threading.Thread(target=convert) for _ in range(4)]
    for one in threads: one.start()
    for one in threads: one.join()
"""


@pytest.mark.parametrize("what", ["known", "(lambda kind: kind)"], ids=["locked", "control"])
def test_types_that_several_threads_meet_first(what):
    code = _MANY_TYPES_FIRST_SEEN_BY_FOUR_THREADS.replace("WHAT", what)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    if what != "known" and done.returncode == 0:
        pytest.skip("this msgspec did not crash: `confide.structs` may have had its day")
    assert (done.returncode == 0) == (what == "known"), done.stderr
