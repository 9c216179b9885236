"""Seconds of sums over a real Flower on this machine: three SuperNodes, TLS, node authentication.

    python bench/flower.py [--rounds 5] [--length 100000] [--json FILE]

The SuperLink, the SuperNodes, the processes that Flower starts for every message and the nodes share this machine's
cores, where a real federation has a machine for each. It needs bench/peers/flower/.venv (`make setup-flower`); without
it nothing is measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from figures import Figure, command_line, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the federation that the tests start

from confide.net.batch import Member
from confide.net.flower import FlowerHost
from net import parties
from net.flower_federation import FLOWER, Federation

NAMES = ("north", "south", "west")
AGGREGATORS = ("plain", "amortised", "masked")


def measure(
    coordinator: parties.Coordinator, link: FlowerHost, aggregator: str, args: argparse.Namespace
) -> tuple[float, float]:
    """Return the median seconds of a sum, and the Flower messages that one node gets for it."""
    terms = parties.rounds(aggregator, NAMES, quorum=3, sums=args.rounds, length=args.length)
    expected = parties.in_one_process(terms)
    coordinator.sum(terms[0])
    seconds: list[float] = []
    asked = link.requests
    for each, theirs in zip(terms[1:], expected[1:], strict=True):
        begin = time.perf_counter()
        have = coordinator.sum(each)
        seconds.append(time.perf_counter() - begin)
        np.testing.assert_array_equal(have.values, theirs.values)
    messages = (link.requests - asked) / args.rounds / len(NAMES)
    return statistics.median(seconds), messages


def figures(aggregator: str, seconds: float, messages: float) -> list[Figure]:
    """Print the line of one aggregator, and return its figures."""
    print(f"{aggregator:10} {seconds:6.1f} s a sum, {messages:.0f} messages a node, {seconds / messages:.1f} s each")
    return [
        Figure(f"{aggregator} over Flower, a sum", seconds, "s"),
        Figure(f"{aggregator} over Flower, messages of a node", messages, "messages"),
        Figure(f"{aggregator} over Flower, a message", seconds / messages, "s"),
    ]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=100_000)
    args = parser.parse_args()
    found: list[Figure] = []
    if not FLOWER.is_dir():
        print("Flower is not here: make setup-flower")
    else:
        with tempfile.TemporaryDirectory() as folder, Federation(Path(folder), NAMES) as federation:
            members = {name: Member("node", parties.key_of(name).public) for name in NAMES}
            link = FlowerHost(federation.folder / "coordinator.sock", parties.key_of("server"), lambda: members)
            coordinator = parties.Coordinator(link.send, lambda: link.receive(1.0))
            coordinator.wait_for(set(NAMES))
            for aggregator in AGGREGATORS:
                found += figures(aggregator, *measure(coordinator, link, aggregator, args))
            link.close()
    write(found, args.json)


if __name__ == "__main__":
    main()
