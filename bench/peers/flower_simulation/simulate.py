"""The task of SIMULATION.md in Flower's simulation engine; prints one JSON line.

    python bench/peers/flower_simulation/simulate.py --data mnist.npz [--workers 2] [the flags of task.py]

Everything as Flower's documentation has it: a ClientApp and a ServerApp, FedAvg with arrays, Ray behind. In Flower's
favour: workers keep module and data between messages, the first round starts when all workers are loaded and warm, no
client evaluates, the log is off, and nothing of Ray's start or end is counted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import flwr
import ray
import torch
from client import app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

sys.path.insert(0, str(Path(__file__).parents[1]))
from network import fill, judge, network
from task import Run, Spent, Task, memory_mb, start

logging.getLogger("flwr").setLevel(logging.ERROR)


def summed(replies: Iterable[RecordDict], weighted_by: str) -> MetricRecord:
    """Return the sums over clients, where Flower would return means."""
    metrics = [next(iter(reply.metric_records.values())) for reply in replies]
    return MetricRecord({key: sum(one[key] for one in metrics) for key in ("train-seconds", "train-cpu-seconds")})


def server(task: Task, workers: int, found: dict[str, Any]) -> ServerApp:
    """Return the app that warms the workers up, runs the rounds and leaves run and parameters in `found`."""
    made, called = ServerApp(), time.perf_counter()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < task.clients:  # they are registered beside this thread
            time.sleep(0.01)
        config = {"task": task.dumps()}
        calls = [Message(RecordDict({"config": ConfigRecord(config)}), node, "query") for node in grid.get_node_ids()]
        answers = list(grid.send_and_receive(calls))
        assert len(answers) == task.clients
        assert not any(answer.has_error() for answer in answers)
        module = network()
        fill(module, start(task))
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=task.clients, train_metrics_aggr_fn=summed)
        ready = time.perf_counter()
        begin = Spent.tree()
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(module.state_dict()),
            num_rounds=task.rounds,
            train_config=ConfigRecord(config),
        )
        rounds = Spent.tree() - begin
        training = Spent()
        for metrics in result.train_metrics_clientapp.values():
            training += Spent(metrics["train-seconds"], metrics["train-cpu-seconds"])
        assert len(result.train_metrics_clientapp) == task.rounds
        found["run"] = Run("flwr simulation", workers, rounds, training, ready - called, memory_mb())
        found["arrays"] = result.arrays.to_torch_state_dict()

    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    Task.flags(parser)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    task, found = Task.of(args), dict[str, Any]()
    torch.set_num_threads(1)
    run_simulation(
        server_app=server(task, args.workers, found),
        client_app=app,
        num_supernodes=task.clients,
        backend_config={"init_args": {"num_cpus": args.workers}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    module = network()
    module.load_state_dict(found["arrays"])
    versions = {"flwr": flwr.__version__, "ray": ray.__version__, "torch": torch.__version__}
    print(found["run"].line(task, judge(module, task), versions))


if __name__ == "__main__":
    main()
