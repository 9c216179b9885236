"""Figures: what a benchmark publishes, the line that it prints, and the list that its option --json writes.

A benchmark is a script in this folder whose usage, at its head, has that option: `make bench` runs these. Each makes
its parser with `command_line` and hands its figures to `write`. The other files here are what benchmarks share, and
train_models.py, which writes the networks that some of them measure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Figure:
    """One published number: a line of a table, and a record of the file.

    Args:
        figure: what was measured, and in which setting.
        value: in `unit`; None where there is none yet.
        peer, peer_value: what it is compared with, and what that reached in the same run.
        bar: the most that the value may be, or the least, as the script says.
        met: whether it keeps to the bar; None without a bar or a value.
        note: printed at the end of the line, and left out of the file.
    """

    figure: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    bar: float | None = None
    met: bool | None = None
    note: str = ""


def at_most(value: float, bar: float | None) -> bool | None:
    """Return whether a value keeps to an upper bar; None without a bar."""
    return None if bar is None else bool(value <= bar)


def at_least(value: float, bar: float | None) -> bool | None:
    """Return whether a value keeps to a lower bar; None without a bar."""
    return None if bar is None else bool(value >= bar)


def interval(values: Sequence[float] | np.ndarray) -> float:
    """Return half the width of the 95 % interval of a mean, by Student's t; NaN of fewer than two values."""
    count = len(values)
    if count < 2:
        return math.nan
    return float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count))


# --- print ------------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """Return the least and the largest of some repeats."""
    return f"{min(values):.2f} to {max(values):.2f}"


def verdict(bar: float, met: bool | None) -> str:
    """Return a bar, and how a value stands to it."""
    return f"bar {bar:g}: {'-' if met is None else 'met' if met else 'MISSED'}"


def line(one: Figure, *, width: int = 62, digits: int = 2) -> str:
    """Return the line of a figure; behind a peer's value stands how many times ours it is, where ours is no ratio."""
    number = "-" if one.value is None else f"{one.value:.{digits}f}"
    unit = "" if one.value is None else one.unit
    text = f"{one.figure:<{width}} {number:>12} {unit:<6}"
    if one.peer_value is not None and one.value:
        times = "" if one.unit == "ratio" else f" ({one.peer_value / one.value:.1f}x)"
        text += f" {one.peer}: {one.peer_value:.{digits}f}{times}"
    if one.bar is not None:
        text += f"  {verdict(one.bar, one.met)}"
    return (text + (f"  [{one.note}]" if one.note else "")).rstrip()


def show(figures: Sequence[Figure], *, digits: int = 2) -> None:
    """Print a line for each figure, their names as wide as the longest."""
    width = max([62, *(len(one.figure) for one in figures)])
    for one in figures:
        print(line(one, width=width, digits=digits), flush=True)


def machine() -> str:
    """Return how many cores there are, and what else they do: the load of the last 1, 5 and 15 minutes."""
    return f"{os.cpu_count()} cores, load {' '.join(f'{load:.2f}' for load in os.getloadavg())}"


# --- the file ---------------------------------------------------------------------------------------------------------


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the head of a script, and which knows --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, as a list")
    return parser


def write(figures: Sequence[Figure], path: Path | None) -> None:
    """Write a list of {figure, value, unit, peer, peer_value, bar, met}, all of it or nothing; without a path, nothing.

    What is no number, as the interval of a single run, becomes null.
    """
    if path is None:
        return
    records = [{name: _plain(value) for name, value in asdict(one).items() if name != "note"} for one in figures]
    text = json.dumps(records, indent=1, allow_nan=False) + "\n"
    if path.is_symlink() or (path.exists() and not path.is_file()):  # /dev/stdout is not to be replaced
        path.write_text(text)
        return
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def read(path: Path) -> list[Figure]:
    """Return the figures of a file."""
    return [Figure(**record) for record in json.loads(path.read_text())]


def _plain(value: object) -> object:
    """Return a number of numpy as Python's, and None for one that JSON does not have."""
    number: object = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(number, float) and not math.isfinite(number) else number
