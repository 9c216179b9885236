"""The task's network in torch, its local training and its judgement: the same for every peer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from task import Arrays, Spent, Task, clients, start, test
from torch import nn
from torch.nn.functional import cross_entropy

Records = tuple[torch.Tensor, torch.Tensor]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


def fill(module: nn.Module, arrays: Arrays) -> None:
    """Copy arrays into the module's parameters."""
    module.load_state_dict({name: torch.from_numpy(values) for name, values in arrays.items()})


def tensors(task: Task) -> list[Records]:
    """Return each client's images and labels."""
    return [(torch.from_numpy(images), torch.from_numpy(labels)) for images, labels in clients(task)]


def train(module: nn.Module, records: Records, orders: Iterable[np.ndarray], task: Task) -> Spent:
    """Descend once through the records in each order and return what it took, orders included."""
    begin = Spent.thread()
    images, labels = records
    optimiser = torch.optim.SGD(module.parameters(), lr=task.learning_rate)
    for order in orders:
        for places in torch.from_numpy(order).split(task.batch_size):
            optimiser.zero_grad()
            cross_entropy(module(images[places]), labels[places]).backward()
            optimiser.step()
    return Spent.thread() - begin


def warm(task: Task) -> None:
    """Train a module that is thrown away, so that nobody pays for torch's first steps."""
    module, records = network(), tensors(task)[0]
    fill(module, start(task))
    for _ in range(10):
        train(module, records, [np.arange(len(records[0]))], task)


@torch.no_grad()
def judge(module: nn.Module, task: Task) -> tuple[int, float]:
    """Return how many test images are right, and the mean loss."""
    images, labels = map(torch.from_numpy, test(task))
    logits = module(images)
    return int((logits.argmax(1) == labels).sum()), float(cross_entropy(logits.double(), labels))
