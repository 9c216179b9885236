"""A training on shares by five organisations on loopback: as real processes, or as threads that talk over TLS too.

Every organisation has a folder of its own with the job, the schema and its identity. No test lives here.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from cli.federation_processes import LOST_SECONDS, Running
from confide.crypto.random import SeededRandomness
from confide.errors import ConfideError
from confide.net.founding import found
from confide.net.membership import join
from confide.net.registrar import Registrar
from confide.store import SqliteStore
from confide.train.job import load
from confide.train.shares import Prepared, load_rows, prepare
from confide.train.shares.cast import Patience
from confide.train.shares.checkpoints import Mark
from confide.train.shares.machines import Conditions, take_part
from confide.train.shares.run import starting_weights
from mpc.float_training import Float, train_in_float
from net.coordinators import free_port

OWNERS = ("north", "south")
ROLES = {"insurer": "helper", "auditor": "dealer", "north": "node", "south": "node"}
NAMES = ("university", *ROLES)

SCHEMA = """\
name = "trial"

[label]
name = "ill"
classes = ["no", "yes"]

[columns]
age = { type = "number", low = 0, high = 100 }
dose = { type = "number", low = 0, high = 10 }
sex = { type = "category", categories = ["f", "m"] }
"""

JOB = """\
[job]
name = "trial"

[data]
schema = "schema.toml"
{data}

[model]
kind = "{kind}"
{model}

[train]
aggregate = "mpc"
rounds = {rounds}
learning_rate = {rate}
momentum = 0.75

[shares]
servers = ["university", "insurer"]
dealer = "auditor"
batch = 16
{shares}
"""


def table(rng: np.random.Generator, rows: int) -> str:
    """Return records of which the label follows from the columns, with some noise."""
    lines = ["age,dose,sex,ill"]
    for _ in range(rows):
        age, dose, sex = rng.uniform(0, 100), rng.uniform(0, 10), "fm"[rng.integers(2)]
        ill = "yes" if (age - 50) / 25 + (dose - 5) / 4 + (sex == "m") * 0.5 + rng.normal() * 0.3 > 0 else "no"
        lines.append(f"{age:.2f},{dose:.3f},{sex},{ill}")
    return "\n".join(lines) + "\n"


class Organisations:
    """Five of them in `folder`; a context manager that leaves no process behind.

    Args:
        folder: empty.
        kind, model, rounds, rate, shares: of the job, the last one lines of [shares].
        apart: whether the job lets servers and dealer share this machine.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kind: str = "logistic",
        model: str = "",
        rounds: int = 4,
        rate: float = 1.0,
        shares: str = "",
        apart: bool = False,
    ) -> None:
        self.folder, self.running = folder, dict[str, Running]()
        with free_port() as one, free_port() as other:
            self.ports = [int(each.getsockname()[1]) for each in (one, other)]
        self.said = {"kind": kind, "model": model, "rounds": rounds, "rate": rate}
        self.shares = shares
        extra = [f'address = "wss://127.0.0.1:{self.ports[1]}"', shares]
        extra += [] if apart else ["insecure_colocated_dealer = true"]
        text = JOB.format(**self.said, data='nodes = ["north", "south"]', shares="\n".join(extra))
        rng = np.random.default_rng(7)
        for name in NAMES:
            (folder / name).mkdir()
            (folder / name / "job.toml").write_text(text)
            (folder / name / "schema.toml").write_text(SCHEMA)
        for name, rows in zip(OWNERS, (90, 61), strict=True):
            (folder / name / "table.csv").write_text(table(rng, rows))
        home = folder / "university" / "identity"
        found(home, name="trial", address=f"127.0.0.1:{self.ports[0]}")
        registrar = Registrar(home)
        for name, role in ROLES.items():
            hosts = ("127.0.0.1",) if role in ("helper", "dealer") else ()
            join(folder / name / "identity", registrar.invite(name, role, hosts=hosts), registrar.reply)

    def __enter__(self) -> Organisations:
        return self

    def __exit__(self, *exc: object) -> None:
        for one in self.running.values():
            one.kill()

    def start(self, *names: str, more: dict[str, tuple[object, ...]] | None = None) -> None:
        """Start processes, all of them if none is named."""
        for name in names or NAMES:
            data = ("--data", self.folder / name / "table.csv") if name in OWNERS else ()
            place = self.folder / name
            self.running[name] = Running(
                place / "log",
                *("train", place / "job.toml", "--identity", place / "identity", *data),
                *(more or {}).get(name, ()),
            )

    def threads(self, **given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Take part as everybody, each in a thread; return what each was left with, or its error, and what it said.

        Args:
            given: further `Conditions`, by organisation.
        """
        found: dict[str, Any] = {}
        heard: dict[str, list[str]] = {name: [] for name in NAMES}

        def be(name: str) -> None:
            place, mine = self.folder / name, given.get(name, {})
            say = heard[name].append
            conditions = {
                "folder": place / "identity",
                "table": place / "table.csv" if name in OWNERS else None,
                "patience": Patience(gather_seconds=60.0, stage_seconds=60.0),
                "say": say,
                "tell": say,
                "broken": lambda error: say(f"broken: {error!r}"),
            }
            try:
                found[name] = take_part(load(place / "job.toml"), Conditions(**conditions | mine))
            except ConfideError as error:
                found[name] = error

        threads = [threading.Thread(target=be, args=(name,), name=name, daemon=True) for name in NAMES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LOST_SECONDS)
            assert not thread.is_alive(), (thread.name, heard)
        return found, {name: "\n".join(lines) for name, lines in heard.items()}

    def marks(self, name: str) -> tuple[Mark, ...]:
        """Return the checkpoints that a server has."""
        place = self.folder / name / "identity" / "training.db"
        if not place.exists():
            return ()
        store = SqliteStore(place)
        try:
            keys = store.keys("training-on-shares/")
            return tuple(Mark(key.split("/")[-1], int(key.split("/")[-2])) for key in keys)
        finally:
            store.close()

    def text(self, name: str) -> str:
        return self.running[name].text()

    def ends(self) -> dict[str, int]:
        """Return every process's exit code."""
        return {name: one.ends() for name, one in self.running.items()}

    def in_one_process(self):
        """Return the same job over the same tables in this process."""
        tables = ", ".join(f'{name} = "{self.folder / name / "table.csv"}"' for name in OWNERS)
        place = self.folder / "one.toml"
        (self.folder / "schema.toml").write_text(SCHEMA)
        place.write_text(JOB.format(**self.said, data=f"tables = {{ {tables} }}", shares=self.shares))
        return load(place)

    def in_float(self) -> tuple[Float, Prepared]:
        """Return the same training in float64, from the same tables, and what is known of it."""
        job = self.in_one_process()
        rows = load_rows(job, SeededRandomness("rows"))
        prepared = prepare(job, rows)
        course, owners = prepared.course, list(rows.pieces)
        x = np.concatenate([rows.features[name] for name in owners])
        y = np.concatenate([rows.targets(name) for name in owners])
        batches = [(x[at], y[at]) for _ in range(course.passes) for at in course.batches]
        start = starting_weights(course.task, job.job.seed)
        return train_in_float(course.task, start, batches, batch=course.batch), prepared


__all__ = ["NAMES", "OWNERS", "Organisations"]
