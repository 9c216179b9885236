"""One measured row: what was run, what it cost, what it promised. A report column is one figure name."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from confide.guarantee import Guarantee


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over its repeats: the median, and the 5th and 95th percentile."""

    median: float
    low: float
    high: float
    mean: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Summarise at least one finite value."""
        data = np.asarray(list(values), np.float64)
        low, median, high = np.percentile(data, [5, 50, 95])
        return Spread(float(median), float(low), float(high), float(data.mean()))


@dataclass(frozen=True, slots=True)
class Record:
    """The figures of one technique on one task, never without the guarantee beside them.

    Args:
        task: "training" or "inference".
        choice: the technique's name in `compare.techniques`.
        setting: data, model and parties, in words.
        figures: by name with the unit at its end ("latency_seconds", "upload_bytes", "accuracy_share").
        guarantee: what held while it was measured.
        machine: where.
        version: of confide.
        repeats: how many seeds (training) or queries (inference) the figures rest on.
    """

    task: str
    choice: str
    setting: str
    figures: Mapping[str, Spread]
    guarantee: Guarantee
    machine: str
    version: str
    repeats: int

    def figure(self, name: str) -> float | None:
        """Return the median of a figure, or None if it was not measured."""
        return self.figures[name].median if name in self.figures else None

    def plain(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        fields = asdict(self)
        fields["guarantee"]["claims"] = self.guarantee.sentences()
        return fields


def machine() -> str:
    """Return this machine in a few words: processor family, cores, system, Python."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def version() -> str:
    """Return confide's version, "source" if it runs without having been installed."""
    try:
        return metadata.version("confide")
    except metadata.PackageNotFoundError:
        return "source"


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Return each figure over all rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: Spread.of(row[name] for row in rows if name in row) for name in names}
