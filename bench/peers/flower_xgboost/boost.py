"""Train XGBoost by Flower's strategies over silos and write the scores. Runs in its own environment.

    .venv/bin/python boost.py ARRAYS.npz SETTINGS SCORES.npy

The arrays are x, y, x_test, and `silo`, who holds each record. SETTINGS as JSON: `strategy`, "bagging" or "cyclic",
`rounds`, and `xgboost`, its own. Flower's strategy runs every round as it does anywhere (`Strategy.start`); its grid
is one that calls the silos in this process, so neither network nor simulation engine costs anything. A silo does what
Flower's own example does: it adds one tree to the model that it gets. Printed as one JSON line: the seconds of all
rounds, the trees of the model and the bytes that the silos sent.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable

import numpy as np
import xgboost
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic
from flwr.supercore.task_identity import TaskIdentity


class InProcess(Grid):
    """A grid whose nodes are silos of this process.

    Args:
        silos: records of each.
        settings: XGBoost's.
        bagging: whether a silo sends its new tree alone, or the whole model.
    """

    def __init__(self, silos: list[xgboost.DMatrix], settings: dict, *, bagging: bool) -> None:
        self.silos, self.settings, self.bagging, self.bytes = silos, settings, bagging, 0

    def set_run(self, run_id: int) -> None:
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self.silos) + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self.answer(message) for message in messages]

    def answer(self, message: Message) -> Message:
        """Return what a silo answers: the model with one tree more, or that tree."""
        records = self.silos[message.metadata.dst_node_id - 1]
        if message.content["config"]["server-round"] == 1:
            model = xgboost.train(self.settings, records, num_boost_round=1)
        else:
            model = xgboost.Booster(params=self.settings)
            model.load_model(bytearray(message.content["arrays"]["0"].numpy().tobytes()))
            model.update(records, model.num_boosted_rounds())
            if self.bagging:
                model = model[model.num_boosted_rounds() - 1 : model.num_boosted_rounds()]
        body = model.save_raw("json")
        self.bytes += len(body)
        found = {"arrays": ArrayRecord([np.frombuffer(body, np.uint8)])}
        found["metrics"] = MetricRecord({"num-examples": records.num_row()})
        return Message(RecordDict(found), reply_to=message)


def main() -> None:
    """Train, write, print."""
    arrays, settings = np.load(sys.argv[1]), json.loads(sys.argv[2])
    logging.getLogger("flwr").setLevel(logging.ERROR)
    bagging = settings["strategy"] == "bagging"
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as Flower's own process of a run sets them
    begin = time.perf_counter()
    holders = [arrays["silo"] == number for number in range(int(arrays["silo"].max()) + 1)]
    silos = [xgboost.DMatrix(arrays["x"][own], arrays["y"][own]) for own in holders]
    grid = InProcess(silos, {"objective": "binary:logistic", **settings["xgboost"]}, bagging=bagging)
    strategy = (FedXgbBagging if bagging else FedXgbCyclic)(fraction_train=1.0, fraction_evaluate=0.0)
    nothing = ArrayRecord([np.frombuffer(b"", np.uint8)])
    done = strategy.start(grid=grid, initial_arrays=nothing, num_rounds=settings["rounds"])
    seconds = time.perf_counter() - begin
    model = xgboost.Booster(model_file=bytearray(done.arrays["0"].numpy().tobytes()))
    np.save(sys.argv[3], model.predict(xgboost.DMatrix(arrays["x_test"])))
    print(json.dumps({"seconds": seconds, "trees": len(model.get_dump()), "bytes": grid.bytes}))


if __name__ == "__main__":
    main()
