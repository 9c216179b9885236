"""`confide compare`: every technique that fits a job, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from confide.cli import console


def compare(
    job_file: Annotated[
        Path, typer.Argument(metavar="JOB.toml", help="A training job, with a table [compare] if you like.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the report goes; beside the job if not given.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Compare this technique; repeat it for more.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="Splits over which a training is repeated.")] = None,
    queries: Annotated[int | None, typer.Option(min=2, help="Predictions of each technique that are timed.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure anew what earlier runs have measured.")] = False,
) -> None:
    """Measure every technique that fits a job, for training and for inference, and write a report.

    Takes a training job as it is. Runs on data that one party may lawfully hold: a shipped set, one table that is
    parted again, or tables that [compare] declares with data = "own", "public" or "synthetic".

        confide compare examples/hospitals.toml

    Two techniques, quickly, as a first look:

        confide compare examples/hospitals.toml --only masked --only he --seeds 1 --queries 10

    Stop it at any time: the same command goes on where it was. What is measured once is kept in FOLDER/cells.
    """
    from confide.compare.campaign import campaign
    from confide.compare.settings import PRIVATE_WARNING, load
    from confide.compare.writing import write_all

    comparison = load(job_file)
    settings = comparison.settings
    folder = out or job_file.parent / f"{job_file.stem}.compare"
    found = None
    with _bars() as bars:
        task = bars.add_task("reading", total=None, left="")
        for event in campaign(
            comparison,
            folder / "cells",
            seeds=seeds or settings.seeds,
            queries=queries or settings.queries,
            only=tuple(only or ()),
            fresh=fresh,
        ):
            bars.update(
                task, completed=event.done, total=event.steps, description=event.words, left=_left(event.left_seconds)
            )
            found = event.result or found
    assert found is not None  # the last event has it
    written = write_all(found, folder)
    for task_name in ("training", "inference"):
        _print(found, task_name)
    for place, why in found.unfit.items():
        console.out.print(f"not measured: {place}: {why}")
    for check in found.link_check:
        console.out.print(check.sentence())
    if found.private:
        console.out.print(f"{PRIVATE_WARNING}: these figures come from private records")
    for path in written:
        console.out.print(f"wrote {path}")


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=console.err,
    )


def _left(seconds: float) -> str:
    return f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"


#: Heading, figure, factor, decimals.
_TRAINING = (
    ("accuracy %", "accuracy_share", 100, 1),
    ("rounds", "rounds_count", 1, 0),
    ("kB up", "upload_bytes", 1e-3, 1),
    ("here s", "train_seconds", 1, 2),
    ("LAN s", "train_lan_seconds", 1, 2),
    ("WAN s", "train_wan_seconds", 1, 2),
    ("mobile s", "train_mobile_seconds", 1, 2),
    ("epsilon", "epsilon_total", 1, 2),
)
_INFERENCE = (
    ("here ms", "latency_seconds", 1e3, 2),
    ("p95 ms", "latency_p95_seconds", 1e3, 2),
    ("LAN ms", "latency_lan_seconds", 1e3, 2),
    ("WAN ms", "latency_wan_seconds", 1e3, 1),
    ("mobile ms", "latency_mobile_seconds", 1e3, 1),
    ("kB up", "upload_bytes", 1e-3, 2),
    ("kB down", "download_bytes", 1e-3, 2),
    ("kB ahead", "offline_bytes", 1e-3, 2),
    ("trips", "depth_count", 1, 0),
    ("largest error", "error_largest", 1, -1),
)


def _print(result: Any, task: str) -> None:
    """Print the records of a task, the techniques down the page."""
    records = [record for record in result.records if record.task == task]
    if not records:
        return
    shown = [
        row for row in (_TRAINING if task == "training" else _INFERENCE) if any(row[1] in r.figures for r in records)
    ]
    table = Table("", *(row[0] for row in shown), title=f"{task}: {records[0].setting}")
    for record in records:
        table.add_row(record.choice, *(_cell(record.figure(name), factor, places) for _, name, factor, places in shown))
    Console(markup=False, highlight=False).print(table)


def _cell(value: float | None, factor: float, decimals: int) -> str:
    if value is None:
        return "–"
    return f"{value * factor:.1e}" if decimals < 0 else f"{value * factor:,.{decimals}f}"
