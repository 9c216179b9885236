"""A step of training on shares, batch 128: seconds online, rounds, and the bytes of a step and of a pass.

    python bench/training_on_shares.py [--repeats 20] [--json FILE]

Both servers run in this process, one after the other, with the correlations of the step there: what is timed is all
work of both, made ready ("prepare") and online apart, and the dealer's. Two machines work at the same time, so the
larger server's part is printed too. Seconds are those that the processor worked, so that other processes do not count;
no link is in them: rounds and bytes say what one adds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np
from figures import Figure, at_most, command_line, machine, show, write

from confide.crypto.random import Randomness, SystemRandomness
from confide.mpc.ahead import Fixed, Held, add_corrections, prepare
from confide.mpc.correlations import DealId
from confide.mpc.dealer import Masked, Seeds, deal
from confide.mpc.party import Place, run_program, sent_bytes
from confide.mpc.training import admission, beginning, step
from confide.mpc.training_plan import Rates, Task
from confide.train.shares.course import Plan
from confide.train.shares.run import starting_weights
from confide.train.shares.simulate import words_of
from confide.wire import Step

BATCH, PASS_ROWS = 128, 60_000
NAMES = ("server-0", "server-1")
CASES = {
    "logistic regression, 30 features": (
        Task(features=30, rates=Rates.of(learning_rate=1.0, batch=BATCH)),
        0.008,
    ),
    "network 784-128-128-10, one against the rest": (
        Task(features=784, hidden=(128, 128), outputs=10, rates=Rates.of(learning_rate=0.125, batch=BATCH)),
        0.060,
    ),
    "network 784-128-128-10, softmax": (
        Task(
            features=784,
            hidden=(128, 128),
            outputs=10,
            loss="softmax",
            rates=Rates.of(learning_rate=0.125, batch=BATCH),
        ),
        None,
    ),
}


class Pair:
    """Two servers and their dealer, in lockstep."""

    def __init__(self, rng: Randomness) -> None:
        self.seeds = Seeds(rng.bytes(32), rng.bytes(32))
        self.run, self.counter = rng.bytes(16), 0
        self.masks: dict[str, Masked] = {}
        self.state: tuple[dict[str, Held], dict[str, Held]] = ({}, {})

    def go(
        self, plan: Plan, inputs: tuple[Mapping[str, Any], Mapping[str, Any]]
    ) -> tuple[float, list[float], list[float]]:
        """Run a program; return the seconds of the dealer, of preparing and of being online, of each server."""
        deal_id = DealId(self.run, self.counter)
        self.counter += 1
        begin = time.thread_time()
        words, *corrections = deal(plan.layout, self.seeds, deal_id, model={}, state=self.masks)
        dealing = time.thread_time() - begin
        preparing, online, parties = [0.0, 0.0], [0.0, 0.0], []
        for party, key in enumerate((self.seeds.client, self.seeds.server)):
            begin = time.thread_time()
            state, fixed = self.state[party], Fixed()
            ready = prepare(plan.layout, party, key, deal_id, words if party else b"", fixed, state=state)
            for place, body in enumerate(corrections):
                add_corrections(plan.layout, ready, place, body)
            preparing[party] = time.thread_time() - begin
            where = Place(party, NAMES, "bench")
            parties.append(run_program(where, plan.layout, plan.schedule, fixed, ready, inputs[party], state=state))
        outcomes = self._lockstep(parties, online)
        for state, outcome in zip(self.state, outcomes, strict=True):
            state.update(outcome.state)
        return dealing, preparing, online

    def _lockstep(self, parties: list[Any], online: list[float]) -> list[Any]:
        received: list[Any] = [None, None]
        outcomes: list[Any] = [None, None]
        while None in outcomes:
            steps: list[Step] = [Step(), Step()]
            for party in (0, 1):
                begin = time.thread_time()
                try:
                    steps[party] = parties[party].send(received[party])
                except StopIteration as end:
                    outcomes[party] = end.value
                online[party] += time.thread_time() - begin
            received = [{message.src: message for message in steps[1 - party].send} for party in (0, 1)]
        return outcomes


def measure(name: str, task: Task, bar: float | None, repeats: int) -> list[Figure]:
    """Return the figures of one model."""
    rng, numbers = SystemRandomness(), np.random.default_rng(1)
    pair = Pair(rng)
    x, y = (
        numbers.uniform(-1, 1, (BATCH, task.features)),
        np.eye(task.outputs)[numbers.integers(task.outputs, size=BATCH)],
    )
    pair.go(Plan.of(admission(task, BATCH)), ({"x": words_of(x), "y": words_of(y)}, {}))
    start = {
        f"{kind}{layer}": words_of(weight, scale)
        for layer, weight in enumerate(starting_weights(task, 1), 1)
        for kind, scale in (("w", 16), ("sum", task.rates.sum_scale))
    }
    pair.go(Plan.of(beginning(task)), (start, {}))
    plan = Plan.of(step(task, BATCH))
    timed = [pair.go(plan, ({}, {})) for _ in range(repeats)]
    layout, steps = plan.layout, -(-PASS_ROWS // BATCH)
    sent = sum(sent_bytes(layout, 0, number) for each in plan.schedule.rounds for number in each.sends)
    offline = layout.keys_bytes + layout.words_bytes
    both = [sum(online) for _, _, online in timed]
    slower = [max(online) for _, _, online in timed]
    whole = [sum(prepared) + sum(online) for _, prepared, online in timed]
    note = f"{1000 * min(both):.1f} to {1000 * max(both):.1f}"
    return [
        Figure(
            f"{name}: step online, both servers",
            1000 * median(both),
            "ms",
            bar=bar and 1000 * bar,
            met=at_most(median(both), bar),
            note=note,
        ),
        Figure(f"{name}: step online, the slower server", 1000 * median(slower), "ms"),
        Figure(f"{name}: step, made ready and online, both", 1000 * median(whole), "ms"),
        Figure(f"{name}: dealer for a step", 1000 * median(dealing for dealing, _, _ in timed), "ms"),
        Figure(f"{name}: rounds of a step", len(plan.schedule.rounds), ""),
        Figure(f"{name}: sent by each server in a step", sent / 1e6, "MB"),
        Figure(f"{name}: offline to the second server, a step", offline / 1e6, "MB"),
        Figure(f"{name}: offline to it, a pass of {PASS_ROWS} rows", steps * offline / 1e6, "MB"),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    print(machine())
    figures: list[Figure] = []
    for name, (task, bar) in CASES.items():
        found = measure(name, task, bar, given.repeats)
        show(found, digits=3)
        figures += found
    write(figures, given.json)


if __name__ == "__main__":
    main()
