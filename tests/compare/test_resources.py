"""What the system says of processes, against processes whose work is known; what a store keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

from confide.compare.resources import kept_bytes, process_peak_bytes, process_seconds
from confide.wire import MemoryStore

READY = "print('ready', flush=True); input()"


def child(work):
    process = subprocess.Popen(
        [sys.executable, "-c", f"{work}\n{READY}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    return process


def test_names_and_values_are_counted():
    store = MemoryStore()
    assert kept_bytes(store) == 0
    store.commit({"keys/é": b"12345", "journal": b""})
    assert kept_bytes(store) == len("keys/é".encode()) + 5 + len("journal")
    store.commit({"keys/é": None})
    assert kept_bytes(store) == len("journal")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_process_that_works_and_one_that_keeps_much_are_told_apart():
    busy = child("import time\nwhile time.process_time() < 0.5: pass")
    idle = child("held = bytearray(80_000_000)\nfor place in range(0, len(held), 4096): held[place] = 1")
    try:
        assert process_seconds(busy.pid) >= 0.4
        assert process_peak_bytes(idle.pid) >= 80e6 > process_peak_bytes(busy.pid)
        family = child(
            "import subprocess, sys\n"
            "other = subprocess.Popen([sys.executable, '-c', 'import time\\nwhile time.process_time() < 0.5: pass\\n"
            "print(1, flush=True)\\ninput()'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            "other.stdout.readline()"
        )
        assert process_seconds(family.pid) >= 0.4  # its child's
        family.communicate("\n")
    finally:
        for process in (busy, idle):
            process.communicate("\n")
    assert process_seconds(busy.pid) is None  # it has ended
    assert process_peak_bytes(busy.pid) is None
