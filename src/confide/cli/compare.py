"""`confide compare`: every technique that fits a job, measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from confide.cli import console
from confide.cli.peers import environments, folder_of

if TYPE_CHECKING:
    from confide.compare.campaign import Event


def compare(
    context: typer.Context,
    job_file: Annotated[
        Path,
        typer.Argument(
            metavar="JOB.toml",
            help="A training job, with a table [compare] if you like; with --open also the folder of a comparison.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the report goes; beside the job if not given.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Compare this technique; repeat it for more. inference/he is he for one task."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="Splits over which a training is repeated.")] = None,
    queries: Annotated[int | None, typer.Option(min=2, help="Predictions of each technique that are timed.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure anew what earlier runs have measured.")] = False,
    opened: Annotated[
        bool, typer.Option("--open", help="Show the comparison in a browser, also while it runs; works offline.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Measure other people's frameworks as well; docs/peers.md.")
    ] = False,
    peer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Measure this peer as well; repeat it for more.")
    ] = None,
    peers_folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where `confide peers install` has put them, if not at home.")
    ] = None,
    peer_seconds: Annotated[float, typer.Option(min=1, help="Longest measurement of a peer.")] = 600.0,
) -> None:
    """Measure every technique that fits a job, for training and for inference, and write a report.

    Takes a training job as it is. Runs on data that one party may lawfully hold: a shipped set, one table that is
    parted again, or tables that [compare] declares with data = "own", "public" or "synthetic".

        confide compare examples/hospitals.toml

    Two techniques, quickly, as a first look:

        confide compare examples/hospitals.toml --only masked --only he --seeds 1 --queries 10

    Stop it at any time: the same command goes on where it was. What is measured once is kept in FOLDER/cells.

    Beside the frameworks that `confide peers install` has brought here:

        confide compare examples/hospitals.toml --peers

    Look at one that has finished or still runs:

        confide compare FOLDER --open
    """
    from confide.compare.campaign import campaign
    from confide.compare.peers.planning import Peers
    from confide.compare.settings import PRIVATE_WARNING, load
    from confide.compare.view import viewed, write_view
    from confide.compare.writing import write_all

    if opened and job_file.is_dir():
        _show(viewed(job_file))
        return
    others = environments(folder_of(context, peers_folder), tuple(peer or ())) if peers or peer else ()
    comparison = load(job_file)
    settings = comparison.settings
    folder = out or job_file.parent / f"{job_file.stem}.compare"
    found, watched = None, _Watched(folder, opened=opened)
    with _bars() as bars:
        task = bars.add_task("reading", total=None, left="")
        for event in campaign(
            comparison,
            folder / "cells",
            seeds=seeds or settings.seeds,
            queries=queries or settings.queries,
            only=tuple(only or ()),
            fresh=fresh,
            peers=Peers(others, peer_seconds),
        ):
            bars.update(
                task, completed=event.done, total=event.steps, description=event.words, left=_left(event.left_seconds)
            )
            watched.take(event)
            found = event.result or found
    assert found is not None  # the last event has it
    written = (*write_all(found, folder), write_view(found, folder))
    for task_name in ("training", "inference"):
        _print(found, task_name)
    for place, why in found.unfit.items():
        if place.startswith("size/"):  # points of a curve
            continue
        console.out.print(f"not measured: {place}: {why}")
    for check in found.link_check:
        console.out.print(check.sentence())
    if found.private:
        console.out.print(f"{PRIVATE_WARNING}: these figures come from private records")
    for path in written:
        console.out.print(f"wrote {path}")


class _Watched:
    """Writes the browser view of a running comparison, not too often, and opens it once if that is wanted."""

    _SECONDS = 2.0

    def __init__(self, folder: Path, *, opened: bool) -> None:
        self._folder, self._opened, self._next = folder, opened, 0.0

    def take(self, event: Event) -> None:
        """Write what an event knows."""
        if event.so_far is None or time.monotonic() < self._next:
            return
        from confide.compare.view import Running, write_view

        left, now = _left(event.left_seconds), time.strftime("%H:%M:%S")
        running = Running(event.done, event.steps, event.words, left, now)
        page = write_view(event.so_far(), self._folder, running)
        self._next = time.monotonic() + self._SECONDS
        if self._opened:
            self._opened = False
            _show(page)


def _show(page: Path) -> None:
    from confide.compare.view import show

    console.out.print(f"open {page}" if show(page) else f"no browser was found here: open {page} in one")


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
_TRAINING: tuple[tuple[str, str, float, int], ...] = (
    ("accuracy %", "accuracy_share", 100, 1),
    ("rounds", "rounds_count", 1, 0),
    ("kB up", "upload_bytes", 1e-3, 1),
    ("here s", "train_seconds", 1, 2),
    ("LAN s", "train_lan_seconds", 1, 2),
    ("WAN s", "train_wan_seconds", 1, 2),
    ("mobile s", "train_mobile_seconds", 1, 2),
    ("epsilon", "epsilon_total", 1, 2),
)
_INFERENCE: tuple[tuple[str, str, float, int], ...] = (
    ("here ms", "latency_seconds", 1e3, 2),
    ("LAN ms", "latency_lan_seconds", 1e3, 2),
    ("WAN ms", "latency_wan_seconds", 1e3, 1),
    ("kB up", "upload_bytes", 1e-3, 1),
    ("kB down", "download_bytes", 1e-3, 1),
    ("ahead", "offline_bytes", 1e-3, 1),
    ("trips", "depth_count", 1, 0),
    ("error", "error_largest", 1, -1),
)


def _print(result: Any, task: str) -> None:
    """Print the records of a task, the techniques down the page."""
    records = [record for record in result.records if record.task == task]
    if not records:
        return
    shown = [
        row for row in (_TRAINING if task == "training" else _INFERENCE) if any(row[1] in r.figures for r in records)
    ]
    table = Table(title=f"{task}: {records[0].setting}", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("", *(row[0] for row in shown)):
        table.add_column(heading, no_wrap=True)
    for record in records:
        table.add_row(record.choice, *(_cell(record.figure(name), factor, places) for _, name, factor, places in shown))
    Console(markup=False, highlight=False).print(table)


def _cell(value: float | None, factor: float, decimals: int) -> str:
    if value is None:
        return "–"
    return f"{value * factor:.1e}" if decimals < 0 else f"{value * factor:,.{decimals}f}"
