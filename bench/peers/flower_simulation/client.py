"""Flower's side of a client, in a module of its own: Ray then pickles its name, not its code, with every message."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

sys.path.insert(0, str(Path(__file__).parents[1]))
from network import network, tensors, train, warm
from task import Task, order

app = ClientApp()


@cache
def resident(text: str) -> tuple[Task, torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return what a worker keeps between messages: the task, one module, every client's records."""
    torch.set_num_threads(1)
    task = Task.loads(text)
    warm(task)
    return task, network(), tensors(task)


@app.query()
def ready(message: Message, context: Context) -> Message:
    resident(str(message.content["config"]["task"]))
    return Message(RecordDict(), reply_to=message)


@app.train()
def fit(message: Message, context: Context) -> Message:
    config = message.content["config"]
    task, module, records = resident(str(config["task"]))
    client, number = int(context.node_config["partition-id"]), int(config["server-round"])
    own = records[client]
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    count = len(own[1])
    orders = [order(task, client=client, number=number, epoch=epoch, count=count) for epoch in range(task.local_epochs)]
    spent = train(module, own, orders, task)
    metrics = MetricRecord({"num-examples": count, "train-seconds": spent.wall, "train-cpu-seconds": spent.cpu})
    return Message(RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics}), reply_to=message)
