"""What simulating a hundred clients costs beside their training, beside Flower and pfl-research in the same run.

    python bench/simulate.py [--repeats 3] [--json FILE] [--data FILE] [--no-peer]

The task is that of bench/peers/SIMULATION.md: 100 clients with 60 MNIST images each, a small convolutional network, 20
rounds of federated averaging with everybody, one torch thread per worker. All sides hold the same images, start from
the same parameters and take their batches in the same order, so all of them must end at the same test loss; the run
stops where one does not. Each side runs in a process tree of its own, one after the other, repeat by repeat.

Rounds are timed when everything is loaded and warm. Overhead is what a client-round costs beyond its training loop, on
the clock and in processor time of all processes; the second hardly feels what else the machine does. "no framework" is
one plain loop of torch, client after client. Peers need their own environments (see the requirements.txt of
bench/peers/flower_simulation and bench/peers/pfl); one that is missing is left out, and so is everything without data.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Figure, at_most, command_line, spread, write

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from task import Task

HERE = Path(__file__).parent / "peers"
MNIST = Path(__file__).parents[1] / "../shared/data/mnist/mnist.npz"

#: Our overhead per client-round must be at most this share of Flower's.
SHARE = 1 / 5

#: Same task, same batches: what remains is the order of floating-point sums.
SAME_LOSS = 1e-3
TABLE = (
    ("wall_seconds", "rounds", "s"),
    ("cpu_seconds", "processor", "s"),
    ("overhead_ms_per_client_round", "overhead", "ms"),
    ("overhead_cpu_ms_per_client_round", "overhead, cpu", "ms"),
    ("memory_mb", "memory", "MB"),
)

Line = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One contestant: what it is called, which python runs which script, and with how many workers."""

    name: str
    python: Path
    script: Path
    workers: int = 1
    flags: tuple[str, ...] = ()

    @classmethod
    def peer(cls, name: str, folder: str, workers: int, root: Path) -> Side:
        python, script = root / folder / ".venv/bin/python", HERE / folder / "simulate.py"
        return cls(name, python, script, workers, (f"--workers={workers}",))

    def run(self, task: Task) -> Line | None:
        """Return the line that one run prints; None for ours while it is not built."""
        command = [str(self.python), str(self.script), *task.options(), *self.flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{self.name} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def measure(task: Task, sides: Sequence[Side], repeats: int) -> dict[Side, list[Line]]:
    """Return the lines of each side that has any; repeats take turns, so that a busy minute hits all alike."""
    found: dict[Side, list[Line]] = {}
    for _ in range(repeats):
        for side in sides:
            line = side.run(task)
            if line:
                found.setdefault(side, []).append(line)
    losses = {side.name: line["test_loss"] for side, lines in found.items() for line in lines}
    if losses and max(losses.values()) - min(losses.values()) > SAME_LOSS:
        raise SystemExit(f"The sides did not train the same: {losses}")
    return found


def median(lines: Sequence[Line], key: str) -> float:
    return round(statistics.median(line[key] for line in lines), 3)


def figures(found: dict[Side, list[Line]], own: Side) -> list[Figure]:
    """Return a record per peer and column, ours beside it where both ran with as many workers."""
    records: list[Figure] = []
    for side, lines in found.items():
        if side is own:
            continue
        versions = " ".join(f"{name} {version}" for name, version in lines[0]["versions"].items())
        mine = found.get(own) if side.workers == own.workers else None
        for key, title, unit in TABLE:
            value, peer_value = median(mine, key) if mine else None, median(lines, key)
            bar = SHARE * peer_value if side.name == "flower" and mine and key.startswith("overhead") else None
            records.append(
                Figure(
                    figure=f"simulation, {title}, {side.workers} workers",
                    value=value,
                    unit=unit,
                    peer=f"{side.name} ({versions})",
                    peer_value=peer_value,
                    bar=None if bar is None else round(bar, 3),
                    met=None if value is None else at_most(value, bar),
                )
            )
    return records


def show(task: Task, found: dict[Side, list[Line]]) -> None:
    print(f"{task.clients} clients x {task.rounds} rounds, {task.samples} images each; medians [fastest to slowest]\n")
    heads = "".join(f"{title + ' ' + unit:>29}" for _, title, unit in TABLE)
    print(f"{'':<32}{heads}{'accuracy':>10}")
    for side, lines in found.items():
        text = ""
        for key, _, _ in TABLE:
            values = [line[key] for line in lines]
            text += f"{statistics.median(values):.2f} [{spread(values)}]".rjust(29)
        print(f"{side.name + f', {side.workers} workers':<32}{text}{lines[0]['accuracy']:>10.4f}")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--peers", type=Path, default=HERE, help="the folder whose folders' .venv hold the peers")
    parser.add_argument("--ours", action="store_true", help="run our side alone and print its line")
    Task.flags(parser, data=str(MNIST.resolve()))
    args = parser.parse_args()
    task = Task.of(args)
    if args.ours:
        from simulation_ours import line  # torch is loaded where our side runs, in a process of its own

        print(line(task))
        return
    own = Side("confide", Path(sys.executable), Path(__file__), flags=("--ours",))
    peers = [
        Side.peer(name, folder, workers, args.peers)
        for name, folder in (("pfl-research", "pfl"), ("flower", "flower_simulation"))
        for workers in (1, 2)
    ]
    sides = [own, Side("torch, no framework", Path(sys.executable), HERE / "plain.py")]
    sides += [] if args.no_peer else [side for side in peers if side.python.exists()]
    found: dict[Side, list[Line]] = {}
    if Path(task.data).exists():
        found = measure(task, sides, args.repeats)
        show(task, found)
    else:
        print(f"left out: there is no {task.data}")
    write(figures(found, own), args.json)


if __name__ == "__main__":
    main()
