"""Finished cells on disk: one small file each, named by what was measured, so that nothing is measured twice.

The name is the SHA-256 of the cell, the job as it was understood, the records' hash, the version and the source of
confide, and the machine: whatever could change a figure changes the name. A file that is damaged, or somebody else's,
is measured again. A cell is written whole or not at all, so a killed process loses the one under way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

import confide
from confide.compare.audited import Attacked
from confide.compare.record import machine, version
from confide.compare.settings import Comparison
from confide.data.sets import load_set
from confide.errors import UsageError
from confide.guarantee import Guarantee
from confide.model.artifact import write_whole
from confide.structs import known

_MOST_BYTES = 1 << 28


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one cell gave.

    Args:
        name: of its file, so that a file under another's name is not taken for it.
        figures: as in `Record.figures`.
        samples: of figures that were measured query by query.
        curve: a figure after each round; () where there are none.
        guarantee: what held; None for what is no technique.
        graph: the model, as ONNX; b"" where nobody needs it.
        model: the signed file of a model that real nodes trained, which knows how rows are prepared; else b"".
        setting: in words.
        repeats: queries, or 1.
        seconds: what measuring took.
        attacks: what attacks found.
    """

    name: str
    figures: dict[str, float] = {}
    samples: dict[str, tuple[float, ...]] = {}
    curve: tuple[float, ...] = ()
    guarantee: Guarantee | None = None
    graph: bytes = b""
    model: bytes = b""
    setting: str = ""
    repeats: int = 1
    seconds: float = 0.0
    attacks: tuple[Attacked, ...] = ()


class Cache:
    """A folder of outcomes.

    Args:
        folder: made if it is absent.
        fresh: take nothing that an earlier run has left.

    Its attribute `fresh` says so.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self._folder, self.fresh = folder, fresh
        self._mine: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # a cell may hold a model of private records
        except OSError as error:
            raise UsageError(f"Expected a folder that can be written at {folder}; {error.strerror}") from None

    def path(self, name: str) -> Path:
        """Return where an outcome is kept."""
        return self._folder / f"{name}.json"

    def get(self, name: str) -> Outcome | None:
        """Return an outcome; None if there is none, or what is there is no outcome of that name.

        Raises:
            UsageError: a folder or a device is in its place, so that nothing could be kept.
        """
        if self.path(name).exists() and not self.path(name).is_file():
            raise UsageError(f"Expected a file at {self.path(name)}, where a cell is kept; move what is there away")
        if self.fresh and name not in self._mine:
            return None
        try:
            path = self.path(name)
            if path.stat().st_size > _MOST_BYTES:
                return None
            found = msgspec.json.decode(path.read_bytes(), type=known(Outcome))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        said = found.figures or found.samples or found.attacks
        return found if found.name == name and said else None

    def put(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        try:
            write_whole(self.path(outcome.name), msgspec.json.encode(outcome))
        except OSError as error:
            raise UsageError(f"Expected a folder that can be written at {self._folder}; {error.strerror}") from None
        self._mine.add(outcome.name)


def name_of(parts: Mapping[str, Any]) -> str:
    """Return hex SHA-256 over named parts of JSON types, their names included."""
    return hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(parts), order="deterministic")).hexdigest()


@cache
def source_hash() -> str:
    """Return hex SHA-256 of the package's source files, by name."""
    root, state = Path(confide.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        body = path.read_bytes()
        state.update(f"{path.relative_to(root)}\0{len(body)}\0".encode() + body)
    return state.hexdigest()


def commit() -> str:
    """Return the version of confide and the beginning of its source's hash."""
    return f"{version()}, source {source_hash()[:12]}"


def where() -> dict[str, str]:
    """Return the parts of a name that say by what and on what machine a cell was measured."""
    return {"version": version(), "source": source_hash(), "machine": machine()}


def file_hash(path: Path) -> str:
    """Return hex SHA-256 of a file, "absent" if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "absent"


def records_hash(comparison: Comparison) -> str:
    """Return hex SHA-256 of the files that a job names, or of its shipped set.

    A database behind a source file is not hashed: `--fresh` measures anew where its records have changed.
    """
    data, state = comparison.job.data, hashlib.sha256()
    if data.set is not None:
        _, table = load_set(data.set)
        for name, column in sorted(table.columns.items()):
            state.update(f"{name}\0{column.dtype}\0".encode() + column.tobytes())
        return state.hexdigest()
    model = comparison.job.model
    named = [data.schema, data.table, data.test, model.encoder, *data.tables.values(), comparison.settings.rows]
    for name in [one for one in named if one is not None]:
        state.update(f"{name}\0{file_hash(comparison.job.path(name))}\0".encode())
    return state.hexdigest()
