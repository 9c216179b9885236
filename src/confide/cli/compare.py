"""`confide compare`: every technique that fits a job, measured."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from confide.cli import console
from confide.cli.coordinator import listening
from confide.cli.peers import environments, folder_of
from confide.errors import UsageError

if TYPE_CHECKING:
    from confide.compare.across import Bill
    from confide.compare.campaign import Event
    from confide.compare.federation import Federation


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
    federation: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Of a job with data.nodes: the coordinator's folder, as `confide federation init` made it.",
        ),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="With --federation: ADDRESS:PORT to listen on; the federation's own if left out.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="With --federation: journal, a file or postgresql://...; a file in the folder if left out."),
    ] = None,
    agree_hours: Annotated[
        float,
        typer.Option(min=0, help="With --federation: how long each run waits until every node has accepted it."),
    ] = 168.0,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --federation: agree to what the runs charge, for scripts.")
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

    Across the real nodes of a federation (data.nodes) only protected runs are made. Each is charged to every node's
    budget; what they are charged is said before anything starts, and somebody must agree:

        confide compare job.toml --federation federation
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
    with console.stops_cleanly(), _bars() as bars:
        task = bars.add_task("reading", total=None, left="")
        nodes = None
        if federation is not None:
            nodes = _nodes(federation, listen, store, folder, agree_hours, _Bill(bars, agreed=yes))
            nodes.progress = lambda text: bars.update(task, description=text)
        for event in campaign(
            comparison,
            folder / "cells",
            seeds=seeds or settings.seeds,
            queries=queries or settings.queries,
            only=tuple(only or ()),
            fresh=fresh,
            federation=nodes,
            peers=Peers(others, peer_seconds) if others else None,
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
    reasons: dict[str, list[str]] = {}
    for place, why in found.unfit.items():
        if not place.startswith(("size/", "network/", "set/")):  # the report has them
            reasons.setdefault(why, []).append(place)
    for why, places in reasons.items():
        console.out.print(f"not measured: {', '.join(places)}: {why}")
    for rule in found.rules if comparison.settings.networks or comparison.settings.sets else ():
        console.out.print(f"rule of thumb: {rule.said} {rule.verdict}")
    for check in found.link_check:
        console.out.print(check.sentence())
    for sentence in found.across.sentences() if found.across else ():
        console.out.print(sentence)
    if found.private:
        console.out.print(f"{PRIVATE_WARNING}: these figures come from private records")
    for path in written:
        console.out.print(f"wrote {path}")


class _Bill:
    """Shows what runs across nodes will charge, and asks."""

    def __init__(self, bars: Progress, *, agreed: bool) -> None:
        self._bars, self._agreed = bars, agreed

    def __call__(self, bill: Bill) -> bool:
        self._bars.stop()
        for line in bill.sentences():
            console.out.print(console.plain(line))
        if not self._agreed and not sys.stdin.isatty():
            raise UsageError("Expected --yes where nobody can be asked; read the charges above. Nothing was offered")
        agreed = self._agreed or typer.confirm("Shall these runs be made and charged?", err=True)
        self._bars.start()
        return agreed


def _nodes(
    folder: Path, listen: str | None, store: str | None, out: Path, agree_hours: float, consent: _Bill
) -> Federation:
    """Return the coordinator that a comparison across nodes is."""
    from confide.compare.federation import Federation
    from confide.net.founding import read_settings
    from confide.train.attendance import Patience

    address, port = listening(listen, read_settings(folder).coordinator)
    return Federation(
        folder,
        consent,
        address,
        port,
        store=store,
        models=out / "models",
        patience=Patience(agree_seconds=3600 * agree_hours),
        say=lambda text: console.err.print(console.plain(text)),
    )


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
    ("concordance %", "concordance_share", 100, 1),
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
    table = Table(
        title=f"{task}: {records[0].setting.partition(';')[0]}", box=box.SIMPLE, pad_edge=False, collapse_padding=True
    )
    for heading in ("", *(row[0] for row in shown)):
        table.add_column(heading, no_wrap=True)
    for record in records:
        table.add_row(record.choice, *(_cell(record.figure(name), factor, places) for _, name, factor, places in shown))
    Console(markup=False, highlight=False).print(table)


def _cell(value: float | None, factor: float, decimals: int) -> str:
    if value is None:
        return "–"
    return f"{value * factor:.1e}" if decimals < 0 else f"{value * factor:,.{decimals}f}"
