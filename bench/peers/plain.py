"""The floor: the task in one loop of plain torch, without a framework, a message or a copy too many.

Run with any python that has torch, by default that of bench/peers/pfl; prints one JSON line.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from network import fill, judge, network, tensors, train, warm
from task import Run, Spent, Task, memory_mb, order, start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    Task.flags(parser)
    task = Task.of(parser.parse_args())
    torch.set_num_threads(1)
    called = time.perf_counter()
    records, module = tensors(task), network()
    total = sum(len(labels) for _, labels in records)
    fill(module, start(task))
    parameters = list(module.parameters())
    warm(task)
    ready = time.perf_counter()
    begin, inside = Spent.tree(), Spent()
    for number in range(1, task.rounds + 1):
        before = [parameter.detach().clone() for parameter in parameters]
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for client, own in enumerate(records):
            count = len(own[1])
            orders: list[np.ndarray] = [
                order(task, client=client, number=number, epoch=epoch, count=count)
                for epoch in range(task.local_epochs)
            ]
            inside += train(module, own, orders, task)
            with torch.no_grad():
                torch._foreach_add_(sums, parameters, alpha=count / total)
                torch._foreach_copy_(parameters, before)
        with torch.no_grad():
            torch._foreach_copy_(parameters, sums)
    rounds = Spent.tree() - begin
    run = Run("torch, no framework", 1, rounds, inside, ready - called, memory_mb())
    print(run.line(task, judge(module, task), {"torch": torch.__version__}))


if __name__ == "__main__":
    main()
