"""A federation for many rounds under faults: does anything grow, get lost, or come out otherwise?

    python bench/churn.py [--rounds 1000] [--quick] [--seed 1] [--json FILE]

Eight nodes and a coordinator over TLS. On the way, by a seed: nodes leave and come back; the coordinator is killed with
kill -9 once in 100 rounds and started again; nodes renew their certificates; the authority is replaced half way, every
node renews, and the old one is retired. A shorter run under [privacy] follows, and a calm one of twice the rounds, in
which memory has the time to show whether it grows. At the end, each a check that fails:

* every round is there once, in order, over a quorum of nodes of the roster at least;
* the ledger holds, with the nodes' countersignatures and what each node's store remembers;
* accuracy is that of the same job in one process without faults, at most 3 percentage points below it;
* of each private sum that a node is in, its own budget has the charge, and so has the coordinator's ledger;
* memory of the coordinator (each of its lives apart) and of the nodes: slope per round with its 95 % interval.

`--quick` is a minute and a half, `--rounds 1000` about ten minutes on two cores.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the processes that the tests start

from federation import one_thread_each
from federation_nodes import slope
from figures import Figure, command_line, machine, write

from confide.crypto.keys import SigningKey
from confide.model.artifact import decode as decode_artifact
from confide.net.authority import issued_by
from confide.net.folders import identity_seed
from confide.net.founding import retire, rotate
from confide.net.membership import own_certificate, trusted
from confide.store import open_store
from confide.train import load, load_data, train
from confide.train.attendance import Patience
from confide.train.evaluate import accuracy
from confide.train.ledger import verify
from confide.train.witness import seen
from train.deployment import Deployment, Nodes, start_coordinator

NODES, QUORUM, FEATURES, RECORDS = 8, 4, 10, 60
PATIENCE = Patience(stage_seconds=60, grace_seconds=0.3, gather_seconds=2)
CLOSE = 0.03  # three of the 96 test records


def job_text(rounds: int, *, private: bool) -> str:
    privacy = f"[privacy]\nepsilon = 2.0\ndelta = 1e-5\nexpected_records = {NODES * RECORDS}\n" if private else ""
    return f"""
[train]
aggregate = "amortised"
rounds = {rounds}
quorum = {QUORUM}
expected_records = {RECORDS}
learning_rate = 0.5
attempts = 20
{privacy}"""


class Weather:
    """What befalls a federation, by a seed.

    Args:
        made: its folders.
        nodes: the process with its nodes.
        rounds: of the run.
        seed: of the faults.
        every: rounds between two kills of the coordinator; 0 for a calm run.
    """

    def __init__(self, made: Deployment, nodes: Nodes, rounds: int, seed: int, every: int) -> None:
        self.made, self.nodes, self.rounds, self.every = made, nodes, rounds, every
        self.random, self.away = random.Random(seed), list[str]()
        self.kills = self.churns = self.renewals = 0
        self.next_kill, self.next_renewal = every // 2, every // 4
        self.rotated = self.retired = False
        self.samples: list[tuple[int, int]] = []

    def befall(self, done: int, coordinator: Any) -> Any:
        """Do what is due after `done` rounds; return the coordinator's process, perhaps another one."""
        self.samples.append((done, self.nodes.tell("figures")["rss"]))
        if not self.every:
            return coordinator
        self._churn()
        if done >= self.next_renewal and not self.rotated:
            self.next_renewal += self.every
            self._renew([self.random.choice(self.made.names)])
        if done >= self.rounds // 2 and not self.rotated:
            self.rotated = True
            rotate(self.made.federation)
            self._return_all()
            self._renew(self.made.names)
        if self.rotated and not self.retired and self._all_renewed():
            retire(self.made.federation)
            self.retired = True
        if done >= self.next_kill and done < self.rounds:
            self.next_kill, self.kills = self.next_kill + self.every, self.kills + 1
            coordinator.kill()
            coordinator.join()
            coordinator = start_coordinator(self.made, PATIENCE)
        return coordinator

    def _churn(self) -> None:
        here = [name for name in self.made.names if name not in self.away]
        if self.away and (len(here) <= QUORUM + 1 or self.random.random() < 0.5):
            name = self.away.pop(0)
            self.nodes.tell("return", name)
        elif not self.rotated or self.retired:
            name = self.random.choice(here)
            self.away.append(name)
            self.nodes.tell("leave", name)
            self.churns += 1

    def _return_all(self) -> None:
        while self.away:
            self.nodes.tell("return", self.away.pop())

    def _renew(self, names: Any) -> None:
        for name in names:
            self.nodes.tell("renew", name)
            self.renewals += 1

    def _all_renewed(self) -> bool:
        newest = trusted(self.made.federation)[0]
        late = [name for name in self.made.names if not issued_by(own_certificate(self.made.folder / name), newest)]
        self._renew(late)
        return not late


def endure(made: Deployment, rounds: int, seed: int, every: int, limit_seconds: float) -> Weather:
    """Run the job to its end under faults.

    Raises:
        SystemExit: it did not come to its end in time.
    """
    nodes = Nodes(made, made.names)
    coordinator = start_coordinator(made, PATIENCE)
    weather = Weather(made, nodes, rounds, seed, every)
    deadline = time.monotonic() + limit_seconds
    try:
        while True:
            coordinator.join(0.4)
            lines = made.lines()
            done = lines[-1]["round"] if lines else 0
            if coordinator.exitcode == 0:
                break
            if coordinator.exitcode is not None or not nodes.process.is_alive() or time.monotonic() > deadline:
                said = (made.folder / "coordinator.log").read_text()[-1500:]
                raise SystemExit(f"it ended after round {done}: coordinator {coordinator.exitcode}, {said}")
            if done:
                coordinator = weather.befall(done, coordinator)
        weather._return_all()
        if failures := nodes.tell("figures")["failures"]:
            raise SystemExit(f"nodes failed: {failures}")
    finally:
        nodes.end()
        if coordinator.is_alive():
            coordinator.kill()
    return weather


# --- the checks -------------------------------------------------------------------------------------------------------


def entries(made: Deployment) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.federation / "ledger.jsonl").read_text().splitlines()]


def check_rounds(made: Deployment, rounds: int, *, private: bool) -> int:
    """Check that every round is in the ledger once, over whom it may be; return how many nodes were missing in all."""
    found = [entry for entry in entries(made) if entry["event"] == "round"]
    last = found[-1]["round"]
    assert [entry["round"] for entry in found] == list(range(1, last + 1))
    assert last == rounds or (private and last > rounds // 2), f"{last} of {rounds} rounds"
    for entry in found:
        assert set(entry["members"]) <= set(made.names), "a stranger in a sum"
        assert len(entry["members"]) >= QUORUM, "a sum below its quorum"
        assert sorted([*entry["members"], *entry["missing"]]) == list(made.names)
    return sum(len(entry["missing"]) for entry in found)


def check_ledger(made: Deployment) -> None:
    """Check the chain, the signatures, and that every node's memory is in it."""
    key = SigningKey(identity_seed(made.federation)).public
    remembered = []
    for name in made.names:
        store = open_store(made.folder / name / "node.db")
        remembered += seen(store)
        store.close()
    holds = verify(made.federation / "ledger.jsonl", signer=key, seen=remembered)
    assert holds.signed == holds.entries
    assert len(remembered) == len(made.names)
    assert set(holds.countersigned) == set(made.names), "a node has countersigned nothing"
    assert min(one.up_to for one in holds.countersigned.values()) > holds.entries // 2


def check_charges(made: Deployment) -> int:
    """Check that nothing is uncharged, at the coordinator and at each node; return the charges of all nodes."""
    listed = entries(made)
    run = next(entry["run"] for entry in listed if entry["event"] == "job")
    charged = [(entry["round"], entry["attempt"]) for entry in listed if entry["event"] == "release"]
    assert len(charged) == len(set(charged)), "an attempt was charged twice"
    sums = [(entry["round"], entry["attempts"], set(entry["members"])) for entry in listed if entry["event"] == "round"]
    assert {(number, attempt) for number, attempt, _ in sums} <= set(charged), "the coordinator has not charged a sum"
    total = 0
    for name in made.names:
        store = open_store(made.folder / name / "node.db")
        kept = set(store.keys(f"budget/records/{run}/"))
        store.close()
        wanted = {f"budget/records/{run}/{number}/{attempt - 1}" for number, attempt, who in sums if name in who}
        assert wanted <= kept, f"{name} has not charged a sum that it is in"
        total += len(kept)
    return total


def accuracies(made: Deployment, rounds: int) -> tuple[float, float]:
    """Return the accuracy of the released model, and of the same job in one process without faults."""
    quoted = ", ".join(f'{name} = "{name}.csv"' for name in made.names)
    heading = f'[job]\nname = "bench"\n[data]\nschema = "schema.toml"\ntables = {{ {quoted} }}\n'
    place = made.folder / "alone.toml"
    place.write_text(heading + job_text(rounds, private=False))
    job = load(place)
    data = load_data(job)
    *_, last = train(job, data)
    key = SigningKey(identity_seed(made.federation)).public
    released = decode_artifact((made.folder / "model.confide").read_bytes(), trust=key, where="the model")
    return accuracy(released.graph, data.test.x, data.test.y), accuracy(last.model, data.test.x, data.test.y)


def memory(made: Deployment, weather: Weather, settled: float) -> list[tuple[str, float, float, float]]:
    """Return for the coordinator's longest life and for the nodes: kB per round, half its interval, MB at the end.

    `settled` is the share of the rounds that are left out, in which caches fill (SQLite's has 2 MB per node).
    """
    lives: dict[int, list[float]] = {}
    for line in made.lines():
        lives.setdefault(line["pid"], []).append(line["rss"] / 1e3)
    life = max(lives.values(), key=len)
    life = life[int(settled * len(life)) :]
    more, error = slope(life)
    found = [("coordinator", more, error, life[-1] / 1e3)]
    samples = weather.samples[int(settled * len(weather.samples)) :]
    more, error = slope([rss / 1e3 for _, rss in samples])
    each = (samples[-1][0] - samples[0][0]) / (len(samples) - 1)
    return [*found, (f"{NODES} nodes in one process", more / each, error / each, samples[-1][1] / 1e6)]


def endured(folder: Path, name: str, rounds: int, seed: int, every: int) -> list[Figure]:
    """Run and check one federation, "open", "private" or "calm", print what was found, and return the figures."""
    private, limit_seconds = name == "private", 120 + 3.0 * rounds
    job = job_text(rounds, private=private)
    made = Deployment.make(folder, NODES, features=FEATURES, records=RECORDS, job=job)
    begun = time.monotonic()
    weather = endure(made, rounds, seed, every, limit_seconds)
    seconds = time.monotonic() - begun
    missing = check_rounds(made, rounds, private=private)
    check_ledger(made)
    assert weather.retired or not every, "the authority was not replaced"
    done = made.lines()[-1]["round"]
    print(
        f"{name}: {done} rounds in {seconds:.0f} s; {weather.churns} departures ({missing} node-rounds missed), "
        f"{weather.kills} coordinators killed, {weather.renewals} renewals asked for, "
        f"{weather.retired:d} authorities replaced; "
        f"the ledger holds ({len(entries(made))} lines)"
    )
    size = (made.federation / "coordinator.db").stat().st_size / 1e6
    figures = [Figure(f"{name}, coordinator's store", size, "MB")]
    print(f"    coordinator's store {size:.1f} MB")
    for who, more, error, megabytes in memory(made, weather, 0.25 if every else 0.5):
        print(f"    memory of {who}: {more:+.2f} +- {error:.2f} kB per round, {megabytes:.0f} MB")
        figures += [Figure(f"{name}, memory of {who}, slope per round", more, "kB")]
        figures += [Figure(f"{name}, memory of {who}, half width of that", error, "kB")]
    if private:
        print(f"    {check_charges(made)} charges at the nodes, every sum's among them")
    elif name == "open":
        ours, alone = accuracies(made, rounds)
        print(f"    accuracy {ours:.3f}, without faults {alone:.3f}")
        assert ours >= alone - CLOSE, "the faults cost accuracy"
        figures.append(Figure(f"{name}, accuracy", ours, "share", "one process, no faults", alone))
    return figures


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    one_thread_each()
    rounds = 80 if options.quick else options.rounds
    lengths = {"open": rounds, "private": 30 if options.quick else rounds // 5, "calm": 2 * rounds}
    print(f"{machine()} before, seed {options.seed}")
    figures: list[Figure] = []
    for name, count in lengths.items():
        every = 0 if name == "calm" else min(count // 2, 100)
        with tempfile.TemporaryDirectory() as folder:
            figures += endured(Path(folder), name, count, options.seed, every)
    print(f"{machine()} after")
    write(figures, options.json)


if __name__ == "__main__":
    main()
