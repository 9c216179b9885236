"""A client in a process of its own, which asks as fast as answers come: one of those that load a technique.

It reads one line of JSON, sets itself up, asks once, says "ready", waits for a line, asks, and says what happened.
"""

from __future__ import annotations

import sys
import time

import msgspec
import numpy as np

from confide.compare.resources import process_peak_bytes, process_seconds
from confide.errors import ConfideError
from confide.serve.client import Client
from confide.tee.policy import Policy, SimulatedRules

READY = "ready"


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client does.

    Args:
        url: of the server.
        backend: to ask with.
        rows: file of the queries, .npy, float64, shape (queries, features).
        first: the row to begin with.
        identity: its folder, where clients are members of a federation.
        measurements, model_sha256: of a simulated enclave, that it accepts; "" and () for others.
        seconds: how long it asks.
        fewest: answers that it waits for beyond that.
        most_seconds: after which it ends all the same.
    """

    url: str
    backend: str
    rows: str
    first: int
    identity: str | None = None
    measurements: tuple[str, ...] = ()
    model_sha256: tuple[str, ...] = ()
    seconds: float
    fewest: int
    most_seconds: float


class Told(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client saw.

    Args:
        begin: when it began to ask; of the clock that all processes of a machine share.
        ends: when each answer was there.
        took: its seconds.
        cpu_seconds: of this process while it asked.
        peak_bytes: of memory, of this process, None where the system does not tell.
        error: why it asked no more, "" if all went well.
    """

    begin: float = 0.0
    ends: tuple[float, ...] = ()
    took: tuple[float, ...] = ()
    cpu_seconds: float | None = None
    peak_bytes: float | None = None
    error: str = ""


def ask(task: Task) -> Told:
    """Set up, wait for the word, ask. Raises ConfideError if the server refuses or breaks off."""
    x = np.load(task.rows)
    policy = None
    if task.measurements:
        policy = Policy(model_sha256=task.model_sha256, simulated=SimulatedRules(measurements=task.measurements))
    with Client(
        task.url, backend=task.backend, policy=policy, attester="simulated" if policy else None,
        identity=task.identity, insecure_colocated_dealer=task.identity is not None,
    ) as client:  # fmt: skip
        client.setup()
        client.ask(x[task.first % len(x)][None, :])  # the first one is cold
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        sys.stdin.readline()
        before = process_seconds()
        begin, ends, took = time.monotonic(), list[float](), list[float]()
        while True:
            start = time.monotonic()
            client.ask(x[(task.first + len(ends)) % len(x)][None, :])
            ends.append(time.monotonic())
            took.append(ends[-1] - start)
            passed = ends[-1] - begin
            if passed >= task.most_seconds or (passed >= task.seconds and len(ends) >= task.fewest):
                break
        after = process_seconds()
    cpu = None if before is None or after is None else after - before
    return Told(begin=begin, ends=tuple(ends), took=tuple(took), cpu_seconds=cpu, peak_bytes=process_peak_bytes())


def main() -> None:
    """Do what standard input says."""
    try:
        told = ask(msgspec.json.decode(sys.stdin.readline(), type=Task))
    except ConfideError as error:
        told = Told(error=f"{type(error).__name__}: {error}")
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
