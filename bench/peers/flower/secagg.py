"""Flower's own SecAgg+ in one process: its workflow at the server, its mod at each client, each timed apart.

Run by bench/secagg.py in this folder's environment; prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.serde import recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0
logging.getLogger("flwr").setLevel(logging.ERROR)


class Proxy:
    """What the workflow reads of a client."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id


class AllClients(FedAvg):
    """Every client takes part, and the aggregate is kept."""

    def __init__(self, node_ids: Iterable[int], parameters: Any) -> None:
        super().__init__()
        self.instructions = [(Proxy(node_id), FitIns(parameters, {})) for node_id in node_ids]
        self.aggregate: Any = None

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        return self.instructions

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.aggregate = results[0][1].parameters
        return None, {}


class Nobody:
    """A client manager, of which the workflow only prints the size."""

    def num_available(self) -> int:
        return 0


class Clients:
    """Stands where the network was: each message runs the mod of its client, timed, training left out.

    Args:
        vectors: each client's parameters by node id.
        lost: who dies before its masked vector leaves.
    """

    def __init__(self, vectors: dict[int, np.ndarray], lost: set[int]) -> None:
        self.contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}) for node in vectors
        }
        self.results = {
            node: compat.fitres_to_recorddict(
                FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), 1000, {}), keep_input=False
            )
            for node, vector in vectors.items()
        }
        self.lost = lost
        self.seconds = dict.fromkeys(vectors, 0.0)
        self.sent_bytes = dict.fromkeys(vectors, 0)
        self.elapsed = 0.0

    def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
        begin = time.perf_counter()
        replies = [self.reply(message) for message in messages]
        self.elapsed += time.perf_counter() - begin
        return replies

    def reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        stage = message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
        if stage == Stage.COLLECT_MASKED_VECTORS and node in self.lost:
            return Message(Error(0, "lost"), reply_to=message)
        content = RecordDict(dict(message.content.items()))  # a copy of its own, as over the network
        content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(dict(content.config_records[RECORD_KEY_CONFIGS]))
        received = Message(content, node, MessageType.TRAIN)
        begin = time.perf_counter()
        reply = secaggplus_mod(received, self.contexts[node], self.train)
        self.seconds[node] += time.perf_counter() - begin
        self.sent_bytes[node] += recorddict_to_proto(reply.content).ByteSize()
        return reply

    def train(self, message: Message, context: Context) -> Message:
        return Message(self.results[context.node_id], reply_to=message)


def one_round(args: argparse.Namespace, seed: int) -> tuple[float, float, int, float]:
    """Return median client seconds, server seconds, bytes up, and the error of the mean."""
    rng = np.random.default_rng(seed)
    vectors = {node: rng.uniform(-1, 1, args.length).astype(np.float32) for node in range(1, args.clients + 1)}
    lost = set(list(vectors)[:: args.clients // args.drops][: args.drops]) if args.drops else set()
    zeros = ndarrays_to_parameters([np.zeros(args.length, np.float32)])
    strategy = AllClients(vectors, zeros)
    state = RecordDict()
    context = LegacyContext(
        Context(run_id=1, node_id=0, node_config={}, state=state, run_config={}),
        strategy=strategy,
        client_manager=Nobody(),
    )
    context.state.config_records["config"] = ConfigRecord({"current_round": 1})
    context.state.array_records["parameters"] = compat.parameters_to_arrayrecord(zeros, keep_input=True)
    clients = Clients(vectors, lost)
    begin = time.perf_counter()
    SecAggPlusWorkflow(num_shares=args.shares, reconstruction_threshold=args.threshold)(clients, context)
    server = time.perf_counter() - begin - clients.elapsed
    left = [node for node in vectors if node not in lost]
    mean = np.mean([vectors[node] for node in left], axis=0)
    error = float(np.abs(parameters_to_ndarrays(strategy.aggregate)[0] - mean).max())
    seconds = statistics.median(clients.seconds[node] for node in left)
    return seconds, server, round(statistics.median(clients.sent_bytes[node] for node in left)), error


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("clients", "length", "drops", "shares", "threshold", "repeats"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    rounds = [one_round(args, seed) for seed in range(args.repeats)]
    client, server, sent, error = zip(*rounds, strict=True)
    assert max(error) < 1e-3, error
    print(json.dumps({"client_seconds": client, "server_seconds": server, "up_bytes": sent}))


main()
