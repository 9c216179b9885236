"""What every script here shares: how it is told what to do, how it answers, and that it ends with who started it.

Runs in the environments of the peers, so it imports numpy and the standard library alone. `FOLDER/task.json` and
`FOLDER/arrays.npz` come in, `FOLDER/answer.json` goes out; `confide.compare.peers.answers` says what it holds, and
checks it.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np


def end_with_parent():
    """Have Linux end this process when the one that started it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def run(version, **work):
    """Do what the command line asks for.

    Args:
        version: returns the framework's; imports it.
        work: by task, a function of the task and the arrays that returns the answer's fields.
    """
    end_with_parent()
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"{version()}\n")
        return
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    answer = work[task["task"]](task, arrays)
    for name in ("predictions", "outputs"):
        if not np.isfinite(np.array(answer.get(name, []), float)).all():
            raise SystemExit(f"{name} are no finite numbers: the training or the computation diverged at this setting")
    used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    answer = {"version": version(), "peak_memory_bytes": sum(used) << 10, **answer}
    with (folder / "answer.part").open("w") as file:
        json.dump(answer, file)
    (folder / "answer.part").rename(folder / "answer.json")
    sys.stdout.flush()
    os._exit(0)  # what a framework still has running in the background says nothing any more


def until_enough(task, rows):
    """Yield rows, each of shape (features,), until the seconds of the task are over; at least 3, or all."""
    begin = time.perf_counter()
    for place, row in enumerate(rows):
        if place >= 3 and time.perf_counter() - begin > task["enough_seconds"]:
            return
        yield row


def dense(task, arrays, stem="layer"):
    """Return the layers of a dense network: pairs of a kind and its arrays."""
    found = []
    for number, kind in enumerate(task["layers"]):
        parts = [arrays[f"{stem}.{number}.{name}"] for name in ("weight", "bias")] if kind == "Linear" else []
        found.append((kind, parts))
    return found


def parties(task, arrays):
    """Return the records of each party: (x, targets), targets of shape (n, outputs)."""
    return [(arrays[f"x.{number}"], arrays[f"y.{number}"]) for number in range(task["parties"])]


class Network:
    """A dense network under the logistic loss of each output, in numpy: what numpy's clients train.

    Args:
        layers: as `dense` gives them; the last sigmoid is left out.
    """

    def __init__(self, layers):
        self.layers = [(kind, [part.copy() for part in parts]) for kind, parts in layers]

    @property
    def parameters(self):
        return [part for _, parts in self.layers for part in parts]

    @parameters.setter
    def parameters(self, values):
        for old, new in zip(self.parameters, values, strict=True):
            old[...] = new

    def logits(self, x):
        for kind, parts in self.layers:
            x = x @ parts[0].T + parts[1] if kind == "Linear" else x * x if kind == "Square" else np.maximum(x, 0)
        return x

    def predict(self, x):
        return 1 / (1 + np.exp(-np.clip(self.logits(x), -700, 700)))

    def step(self, x, y, rate):
        """Go one step down the mean loss of some records."""
        inputs = []
        for kind, parts in self.layers:
            inputs.append(x)
            x = x @ parts[0].T + parts[1] if kind == "Linear" else x * x if kind == "Square" else np.maximum(x, 0)
        back = (1 / (1 + np.exp(-np.clip(x, -700, 700))) - y) / len(y)
        for (kind, parts), given in zip(reversed(self.layers), reversed(inputs), strict=True):
            if kind == "Linear":
                weight, bias = back.T @ given, back.sum(0)
                back = back @ parts[0]
                parts[0] -= rate * weight
                parts[1] -= rate * bias
            else:
                back = back * (2 * given if kind == "Square" else given > 0)

    def descend(self, x, y, task, draw):
        """Go once through the records in a random order."""
        order = draw.permutation(len(x))
        for first in range(0, len(x), task["batch"]):
            places = order[first : first + task["batch"]]
            self.step(x[places], y[places], task["learning_rate"])
