"""What a coordinator spends on 100 nodes: CPU and memory per node and round, and whether they stay flat.

    python bench/federation_nodes.py [--nodes 100] [--rounds 40] [--json FILE]

Nodes with a light model (31 parameters) in four processes, each node with its own TLS connection, store and identity;
the coordinator in a process of its own. CPU seconds are the coordinator's process with all its threads. The slopes are
least squares over the rounds after the first ones, with their 95 % intervals: flat is what has zero within it, or what
would double in no time that anybody trains for.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from figures import Figure, command_line, machine, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the processes that the tests start

from federation import WARM_UP, job_text, one_thread_each

from confide.train.attendance import Patience
from train.deployment import Deployment, Nodes, finished, start_coordinator

FEATURES, PROCESSES = 30, 4
PATIENCE = Patience(stage_seconds=120, grace_seconds=20, gather_seconds=60)


def slope(values: list[float]) -> tuple[float, float]:
    """Return the slope of `values` over their places, and the half width of its 95 % interval."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    y = np.array(values) - np.mean(values)
    found = float(x @ y / (x @ x))
    error = float(np.sqrt(((y - found * x) ** 2).sum() / (len(values) - 2) / (x @ x)))
    return found, 2 * error


def measure(folder: Path, aggregate: str, nodes: int, rounds: int) -> list[dict]:
    """Return what the coordinator wrote about each round after the first ones, the last of those in front."""
    job = job_text(rounds + WARM_UP, nodes, aggregate, hidden=0)
    made = Deployment.make(folder, nodes, features=FEATURES, records=24, job=job)
    coordinator = start_coordinator(made, PATIENCE)
    running: list[Nodes] = []
    try:
        running += [Nodes(made, made.names[number::PROCESSES]) for number in range(PROCESSES)]
        finished(coordinator, running)
    finally:
        for one in running:
            one.end()
        if coordinator.is_alive():
            coordinator.kill()
    return made.lines()[WARM_UP - 1 :]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    one_thread_each()
    print(f"{machine()} before")
    figures: list[Figure] = []
    for aggregate in ("amortised", "masked"):
        with tempfile.TemporaryDirectory() as folder:
            lines = measure(Path(folder), aggregate, options.nodes, options.rounds)
        cpu = [1e3 * (two["cpu"] - one["cpu"]) / options.nodes for one, two in pairwise(lines)]
        kilobytes = [line["rss"] / 1e3 for line in lines[1:]]
        seconds = statistics.median(line["seconds"] for line in lines[1:])
        (more_cpu, cpu_error), (more, error) = slope(cpu), slope(kilobytes)
        name = f"{aggregate}, {options.nodes} nodes"
        print(f"{name}: {1e3 * seconds:.0f} ms a round; the coordinator's process {kilobytes[-1] / 1e3:.0f} MB")
        each = statistics.median(cpu)
        print(f"    CPU {each:.3f} ms per node and round; each round {more_cpu:+.4f} +- {cpu_error:.4f} ms more")
        print(f"    memory: each node and round {more / options.nodes:+.3f} +- {error / options.nodes:.3f} kB more")
        figures += [
            Figure(f"{name}, coordinator's CPU per node-round", each, "ms"),
            Figure(f"{name}, its slope per round", more_cpu, "ms"),
            Figure(f"{name}, half width of that", cpu_error, "ms"),
            Figure(f"{name}, coordinator's memory", kilobytes[-1] / 1e3, "MB"),
            Figure(f"{name}, memory's slope per node-round", more / options.nodes, "kB"),
            Figure(f"{name}, half width of that", error / options.nodes, "kB"),
        ]
    print(f"{machine()} after")
    write(figures, options.json)


if __name__ == "__main__":
    main()
