"""Flower's federated averaging over the parties' own parts, plain or under its SecAgg+.

Flower's strategy and workflow run at the server, its mod at each client, on Flower's own messages; what stands where the
network was hands each message to its client. Local training is numpy's, with the batches and the rate of the task.
"""

import importlib.metadata
import logging
import time

import exchange
import numpy as np


def version():
    import flwr.server  # noqa: F401 (that it can be imported)

    return importlib.metadata.version("flwr")


class Proxy:
    """What the workflow reads of a client."""

    def __init__(self, node_id):
        self.node_id = node_id


class Nobody:
    """A client manager, of which the workflow only prints the size."""

    def num_available(self):
        return 0


class Clients:
    """Stands where the network was: each message goes to its client's own app, and the bytes are counted."""

    def __init__(self, task, arrays, secagg):
        from flwr.app import Context, RecordDict

        self.task, self.secagg = task, secagg
        self.records = dict(enumerate(exchange.parties(task, arrays), 1))
        self.layers = exchange.dense(task, arrays)
        self.contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in self.records
        }
        self.draws = {node: np.random.default_rng([task["seed"], node]) for node in self.records}
        self.seconds = self.sent = self.received = 0.0

    def send_and_receive(self, messages, *, timeout=None):
        return [self.reply(message) for message in messages]

    def reply(self, message):
        from flwr.app import ConfigRecord, Message, MessageType, RecordDict
        from flwr.client.mod import secaggplus_mod
        from flwr.common.serde import recorddict_to_proto

        node = message.metadata.dst_node_id
        self.received += recorddict_to_proto(message.content).ByteSize()
        content = RecordDict(dict(message.content.items()))  # a copy of its own, as over the network
        for name, config in list(content.config_records.items()):
            content.config_records[name] = ConfigRecord(dict(config))
        given = Message(content, node, MessageType.TRAIN)
        begin = time.perf_counter()
        context = self.contexts[node]
        reply = secaggplus_mod(given, context, self.train) if self.secagg else self.train(given, context)
        self.seconds += time.perf_counter() - begin
        self.sent += recorddict_to_proto(reply.content).ByteSize()
        return reply

    def train(self, message, context):
        from flwr.app import Message
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
        from flwr.compat.common import recorddict_compat as compat

        node = context.node_id
        asked = compat.recorddict_to_fitins(message.content, keep_input=True)
        x, y = self.records[node]
        network = exchange.Network(self.layers)
        network.parameters = parameters_to_ndarrays(asked.parameters)
        network.descend(x, y, self.task, self.draws[node])
        found = [part.astype(np.float32) for part in network.parameters]
        answer = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(found), len(x), {})
        return Message(compat.fitres_to_recorddict(answer, keep_input=False), reply_to=message)


def train(task, arrays):
    from flwr.app import ConfigRecord, Context, RecordDict
    from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common import recorddict_compat as compat
    from flwr.server import LegacyContext
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.supercore.task_identity import TaskIdentity

    class AllClients(FedAvg):
        """Every client takes part in every round."""

        def configure_fit(self, server_round, parameters, client_manager):
            return [(Proxy(node), FitIns(parameters, {})) for node in clients.records]

        def aggregate_fit(self, server_round, results, failures):
            if not task["secagg"]:
                return super().aggregate_fit(server_round, results, failures)
            self.summed = results[0][1].parameters
            return self.summed, {}

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0
    logging.getLogger("flwr").setLevel(logging.ERROR)
    clients = Clients(task, arrays, task["secagg"])
    network = exchange.Network(clients.layers)
    network.parameters = [part.astype(np.float32) for part in network.parameters]
    parameters = ndarrays_to_parameters([part.astype(np.float32) for part in network.parameters])
    strategy, curve, begin, judging = AllClients(), [], time.perf_counter(), 0.0
    # a share for every client and a threshold of two thirds of them, as in confide's default
    count = len(clients.records)
    workflow = SecAggPlusWorkflow(
        num_shares=count,
        reconstruction_threshold=max(2, 2 * count // 3),
        clipping_range=8.0,
        quantization_range=1 << 22,
    )
    for number in range(1, task["rounds"] + 1):
        if task["secagg"]:
            state = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
            context = LegacyContext(state, strategy=strategy, client_manager=Nobody())
            context.state.config_records["config"] = ConfigRecord({"current_round": number})
            context.state.array_records["parameters"] = compat.parameters_to_arrayrecord(parameters, keep_input=True)
            strategy.summed = None
            workflow(clients, context)
            parameters = strategy.summed
        else:
            parameters = plainly(clients, strategy, parameters, number)
        if parameters is None:
            raise SystemExit(f"round {number} of Flower gave no aggregate")
        judge = time.perf_counter()
        network.parameters = parameters_to_ndarrays(parameters)
        curve.append(network.predict(arrays["x_test"]).tolist())
        judging += time.perf_counter() - judge
    seconds = time.perf_counter() - begin - judging
    return {
        "predictions": curve[-1],
        "curve": curve,
        "rounds": task["rounds"],
        "train_seconds": seconds,
        "client_seconds": clients.seconds / count,
        "server_seconds": max(0.0, seconds - clients.seconds),
        "upload_bytes": clients.sent / count,
        "download_bytes": clients.received / count,
    }


def plainly(clients, strategy, parameters, number):
    """Return the aggregate of a round by Flower's own messages and strategy."""
    from flwr.app import Message, MessageType
    from flwr.compat.common import recorddict_compat as compat

    asked = strategy.configure_fit(number, parameters, Nobody())
    messages = [
        Message(compat.fitins_to_recorddict(given, keep_input=True), proxy.node_id, MessageType.TRAIN)
        for proxy, given in asked
    ]
    replies = clients.send_and_receive(messages)
    results = [
        (proxy, compat.recorddict_to_fitres(reply.content, keep_input=False))
        for (proxy, _), reply in zip(asked, replies, strict=True)
    ]
    return strategy.aggregate_fit(number, results, [])[0]


if __name__ == "__main__":
    exchange.run(version, training=train)
