"""What a durable commit costs in each store, beside what the disk alone costs and what other settings of SQLite would.

    python bench/store.py [--repeats 40] [--folder FOLDER] [--postgres URL] [--json FILE]

Each commit writes one value of 1 kB, 400 kB or 3 MB and deletes the one of four commits before, as the rounds of a
federation do. The stores take turns, so that a busy disk hits all of them. The peer is one write and one `fsync` of the
same bytes into a file that is there: no durable commit can cost less. "power cut loses" is no choice, only a measure of
what durability costs. FOLDER should lie on the disk that is asked about, and never in memory.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from figures import Figure, command_line, write

from confide.store import SqliteStore, open_store

SIZES: Mapping[str, int] = {"1 kB": 1_000, "400 kB": 400_000, "3 MB": 3_000_000}
#: Settings of SQLite by what is said of them; all with secure_delete and pages of 16 kB, as the store has them.
SETTINGS: Mapping[str, tuple[str, str]] = {
    "sqlite, rollback journal": ("delete", "extra"),
    "sqlite, persistent rollback journal": ("persist", "extra"),
    "sqlite, power cut loses commits": ("wal", "normal"),
}

Commit = Callable[[Mapping[str, bytes | None]], None]


def plain_sqlite(path: Path, journal: str, synchronous: str, stack: ExitStack) -> Commit:
    """Return the commit of a bare table with these settings."""
    connection = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
    connection.execute("PRAGMA page_size = 16384")
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT")

    def commit(changes: Mapping[str, bytes | None]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for key, value in changes.items():
            connection.execute("DELETE FROM entries WHERE key = ?", (key,))
            if value is not None:
                connection.execute("INSERT INTO entries VALUES (?, ?)", (key, value))
        connection.execute("COMMIT")

    return commit


def written_and_synced(path: Path, stack: ExitStack) -> Commit:
    """Return what writes the values at the start of a file and waits for the disk."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    stack.callback(os.close, descriptor)

    def commit(changes: Mapping[str, bytes | None]) -> None:
        os.pwrite(descriptor, b"".join(value for value in changes.values() if value is not None), 0)
        os.fsync(descriptor)

    return commit


def milliseconds(folder: Path, postgres: str | None, size: int, repeats: int) -> dict[str, list[float]]:
    """Return the times of each store's commits of `size` bytes."""
    with ExitStack() as stack:
        ours = stack.enter_context(closing(SqliteStore(folder / f"store-{size}.db")))
        commits: dict[str, Commit] = {"fsync": written_and_synced(folder / "raw", stack), "sqlite": ours.commit}
        if postgres is not None:
            commits["postgresql"] = stack.enter_context(closing(open_store(postgres))).commit
        for number, (name, setting) in enumerate(SETTINGS.items()):
            commits[name] = plain_sqlite(folder / f"other-{size}-{number}.db", *setting, stack)
        bodies = [os.urandom(size) for _ in range(4)]
        times: dict[str, list[float]] = {name: [] for name in commits}
        for number in range(repeats):
            changes = {f"bench/{number}": bodies[number % 4], f"bench/{number - 4}": None}
            for name, commit in commits.items():
                begin = time.perf_counter()
                commit(changes)
                times[name].append(1e3 * (time.perf_counter() - begin))
        begin = time.perf_counter()
        ours.scrub()
        times["sqlite, scrub"] = [1e3 * (time.perf_counter() - begin)]
    return times


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("build"))
    parser.add_argument("--postgres", help="an empty database to measure as well")
    asked = parser.parse_args()
    figures: list[Figure] = []
    asked.folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for label, size in SIZES.items():
            times = milliseconds(Path(folder), asked.postgres, size, asked.repeats)
            least = statistics.median(times.pop("fsync"))
            print(f"{label}: one write and fsync {least:.2f} ms")
            for name, values in times.items():
                median, worst = statistics.median(values), sorted(values)[int(0.9 * len(values))]
                print(f"    {name:36} {median:8.2f} ms, one in ten {worst:8.2f} ms")
                figures.append(Figure(f"{name}, {label}", median, "ms per commit", "write and fsync", least))
    write(figures, asked.json)


if __name__ == "__main__":
    main()
