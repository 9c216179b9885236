"""Our side of bench/simulate.py, under each aggregator: what a client-round costs beside its training.

    python bench/simulation_ours.py [--aggregate plain masked amortised] [--profile] [--json FILE] [--data FILE]

The task is that of bench/peers/SIMULATION.md: 100 clients with 60 MNIST images each, a small convolutional network, 20
rounds of federated averaging with everybody, one torch thread. `plain` is what peers' simulations do: the server sees
every update. Under `masked` and `amortised` every client runs its side of secure aggregation in this process, so the
overhead is the cryptography of all 100 clients and the server.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import Figure, command_line, write

from confide.train import Silo, TorchLearner, fit, train_section

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from network import fill, judge, network, warm
from task import Run, Spent, Task, clients, memory_mb, order, start

MNIST = Path(__file__).parents[1] / "../shared/data/mnist/mnist.npz"


class Timed(TorchLearner):
    """The task's order of batches, and a clock around the local training alone."""

    def __init__(self, task: Task, module: torch.nn.Module, settings: Any) -> None:
        super().__init__(module, settings, batch_size=task.batch_size)
        self._task, self.spent = task, Spent()

    def order(self, silo: Silo, number: int) -> Iterator[np.ndarray]:
        for epoch in range(self._task.local_epochs):
            yield order(self._task, client=int(silo.name), number=number, epoch=epoch, count=len(silo.x))

    def descend(self, silo: Silo, number: int, *rest: Any) -> None:
        begin = Spent.thread()
        super().descend(silo, number, *rest)
        self.spent += Spent.thread() - begin


def simulate(task: Task, aggregate: str = "plain") -> tuple[Run, torch.nn.Module]:
    """Return what a run took, and the model at its end."""
    torch.set_num_threads(1)
    called = time.perf_counter()
    silos = [Silo(str(client), images, labels) for client, (images, labels) in enumerate(clients(task))]
    module = network()
    fill(module, start(task))
    settings = train_section(
        aggregate=aggregate,
        rounds=task.rounds,
        local_steps=task.local_epochs,
        learning_rate=task.learning_rate,
        expected_records=task.samples,
    )
    learner = Timed(task, module, settings)
    warm(task)
    ready = time.perf_counter()
    begin = Spent.tree()
    for done in fit(learner, silos, settings):
        module = done.model
    rounds = Spent.tree() - begin
    return Run(f"confide, {aggregate}", 1, rounds, learner.spent, ready - called, memory_mb()), module


def line(task: Task, aggregate: str = "plain") -> str:
    """Return a run's line of results, as bench/simulate.py reads it."""
    run, module = simulate(task, aggregate)
    return run.line(task, judge(module, task), {"torch": torch.__version__})


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--aggregate", nargs="+", default=["plain", "masked", "amortised"])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--data", type=Path, default=MNIST)
    options = parser.parse_args()
    if not options.data.is_file():
        print(f"left out: no data at {options.data}")
        write([], options.json)
        return
    task = Task(str(options.data), clients=options.clients, rounds=options.rounds)
    figures: list[Figure] = []
    for aggregate in options.aggregate:
        if options.profile:
            with cProfile.Profile() as profile:
                simulate(task, aggregate)
            pstats.Stats(profile).sort_stats("tottime").print_stats(35)
            continue
        found = json.loads(line(task, aggregate))
        print(
            f"{found['peer']:20s} rounds {found['wall_seconds']:7.2f} s   training {found['train_seconds']:7.2f} s   "
            f"overhead {found['overhead_ms_per_client_round']:7.3f} ms   processor "
            f"{found['overhead_cpu_ms_per_client_round']:7.3f} ms per client-round   "
            f"accuracy {found['accuracy']:.4f}   test loss {found['test_loss']:.5f}   {found['memory_mb']:.0f} MB",
            flush=True,
        )
        title = f"simulation overhead per client-round, {aggregate}"
        figures.append(Figure(title, round(found["overhead_ms_per_client_round"], 3), "ms"))
    write(figures, options.json)


if __name__ == "__main__":
    main()
