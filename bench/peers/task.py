"""The task that every side of bench/simulate.py runs, numpy only: flags, data, start, batches, one line of results.

SIMULATION.md states it in words. Scripts in other environments import this file by its folder, so all of them train on
the same images, from the same parameters, in the same order: what remains between them is floating point and time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np

#: The network's parameters by the names that torch gives them, in its order.
SHAPES = {
    "0.weight": (8, 1, 5, 5),
    "0.bias": (8,),
    "2.weight": (16, 8, 5, 5),
    "2.bias": (16,),
    "5.weight": (10, 16 * 7 * 7),
    "5.bias": (10,),
}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """One federation and its training.

    Args:
        data: an npz with x_train, y_train, x_test, y_test; images of 28 x 28 bytes.
        clients: how many, all in every round.
        rounds: of federated averaging.
        samples: images of a client: so many, on average under `alpha`, at most under `by_writer`.
        local_epochs: passes of a client over its images in a round.
        batch_size: images of a step; the last one of a pass may hold fewer.
        learning_rate: of plain stochastic gradient descent.
        seed: of the split, of the start and of the order of batches.
        alpha: of the Dirichlet distribution that shares out each class; 0 is the even split.
        by_writer: each client is a writer; needs writer_train in the data.
    """

    data: str
    clients: int = 100
    rounds: int = 20
    samples: int = 60
    local_epochs: int = 1
    batch_size: int = 20
    learning_rate: float = 0.1
    seed: int = 1
    alpha: float = 0.0
    by_writer: bool = False

    @classmethod
    def flags(cls, parser: argparse.ArgumentParser, *, data: str | None = None) -> None:
        """Add a flag for every field; `data` is what stands for --data where it is not given."""
        parser.add_argument("--data", type=lambda text: str(Path(text).resolve()), required=data is None, default=data)
        for field in fields(cls)[1:]:
            name = "--" + field.name.replace("_", "-")
            if field.name == "by_writer":
                parser.add_argument(name, action="store_true")
            else:
                parser.add_argument(name, type=type(field.default), default=field.default)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Task:
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    @classmethod
    def loads(cls, text: str) -> Task:
        return cls(**json.loads(text))

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    def options(self) -> list[str]:
        """Return the flags that give this task."""
        texts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "by_writer"}
        found = [f"--{name.replace('_', '-')}={value}" for name, value in texts.items()]
        return found + ["--by-writer"] * self.by_writer


def split(task: Task, labels: np.ndarray, writers: np.ndarray | None = None) -> list[np.ndarray]:
    """Return the places in the training set of each client's images.

    Evenly: a permutation of the set is cut into `clients` parts, and a client has the first `samples` of its part.
    Under `alpha` those same images are shared out again, class by class, by proportions from a Dirichlet distribution
    (Yurochkin et al., arXiv 1905.12022, section 4); who comes out empty gets one image of the largest. By writer: the
    first `samples` images of so many writers, drawn without replacement.
    """
    draw = np.random.default_rng([task.seed, 1])
    if task.by_writer:
        assert writers is not None, "The data has no writer_train"
        chosen = draw.choice(np.unique(writers), task.clients, replace=False)
        return [np.flatnonzero(writers == writer)[: task.samples] for writer in chosen]
    parts = [part[: task.samples] for part in np.array_split(draw.permutation(len(labels)), task.clients)]
    assert min(map(len, parts)) == task.samples, "The data has too few images"
    if not task.alpha:
        return parts
    pool = np.concatenate(parts)
    shared: list[list[int]] = [[] for _ in range(task.clients)]
    for label in np.unique(labels):
        members = draw.permutation(pool[labels[pool] == label])
        cuts = np.rint(np.cumsum(draw.dirichlet(np.full(task.clients, task.alpha)))[:-1] * len(members)).astype(int)
        for own, given in zip(shared, np.split(members, cuts), strict=True):
            own.extend(given.tolist())
    while not min(map(len, shared)):
        min(shared, key=len).append(max(shared, key=len).pop())
    return [np.array(own) for own in shared]


@cache
def clients(task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each client's images, float32 in [0, 1], shape (n, 1, 28, 28), and labels, int64, shape (n,)."""
    with np.load(task.data) as file:
        images, labels = file["x_train"], file["y_train"].astype(np.int64).ravel()
        writers = file["writer_train"] if task.by_writer else None
    return [(_images(images[places]), labels[places]) for places in split(task, labels, writers)]


def test(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return the test images and labels, as `clients` does."""
    with np.load(task.data) as file:
        return _images(file["x_test"]), file["y_test"].astype(np.int64).ravel()


def _images(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255)


def start(task: Task) -> Arrays:
    """Return the parameters before the first round: uniform within 1 / sqrt(fan-in), as torch draws them by default."""
    draw = np.random.default_rng([task.seed, 2])
    found: Arrays = {}
    for name, shape in SHAPES.items():
        bound = 1 / math.sqrt(math.prod(SHAPES[name.replace("bias", "weight")][1:]))
        found[name] = draw.uniform(-bound, bound, shape).astype(np.float32)
    return found


def order(task: Task, *, client: int, number: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of a client's `count` images in one pass of round `number`, from 1."""
    return np.random.default_rng([task.seed, 3, client, number, epoch]).permutation(count)


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock and seconds of processor time; the second hardly feels what else the machine does."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.cpu - other.cpu)

    @classmethod
    def thread(cls) -> Spent:
        """Return the clock and what this thread has used."""
        return cls(time.perf_counter(), time.thread_time())

    @classmethod
    def tree(cls, root: int | None = None) -> Spent:
        """Return the clock and what a process, by default this one, and all below it have used; Linux only."""
        ticks = sum(sum(map(int, _stat(pid)[11:13])) for pid in _tree(root))
        return cls(time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True)
class Run:
    """What one run took and gave.

    Args:
        rounds: from the first round's start to the last round's end, everything loaded and warm before, all processes.
        training: inside the clients' training loops, summed over clients and rounds.
        start_seconds: from the call of the framework until it was ready for the first round.
        memory_mb: proportional set size of all processes after the last round.
    """

    peer: str
    workers: int
    rounds: Spent
    training: Spent
    start_seconds: float
    memory_mb: float

    def line(self, task: Task, judged: tuple[int, float], versions: dict[str, str]) -> str:
        """Return one JSON object. Overhead is what is not training: of the clock, each worker trains an even share."""
        each = 1e3 / (task.clients * task.rounds)
        found = {
            "peer": self.peer,
            "workers": self.workers,
            "wall_seconds": self.rounds.wall,
            "cpu_seconds": self.rounds.cpu,
            "train_seconds": self.training.wall,
            "train_cpu_seconds": self.training.cpu,
            "overhead_ms_per_client_round": each * (self.rounds.wall - self.training.wall / self.workers),
            "overhead_cpu_ms_per_client_round": each * (self.rounds.cpu - self.training.cpu),
            "start_seconds": self.start_seconds,
            "memory_mb": self.memory_mb,
            "right": judged[0],
            "test_loss": judged[1],
            "accuracy": judged[0] / 10_000,
            "versions": versions,
        }
        return json.dumps(found)


def memory_mb(root: int | None = None) -> float:
    """Return the proportional set size of a process, by default this one, and of all below it; Linux only."""
    return sum(map(_pss_kb, _tree(root))) / 1e3


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name; those of a process that is gone are zero."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 50


def _tree(root: int | None) -> list[int]:
    parents = {int(folder.name): int(_stat(int(folder.name))[1]) for folder in Path("/proc").glob("[0-9]*")}
    own = {root or os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return sorted(own)


def _pss_kb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) for line in lines if line.startswith("Pss:"))
