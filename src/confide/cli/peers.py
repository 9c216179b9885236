"""`confide peers`: environments of other people's frameworks, which `confide compare --peers` measures beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from confide.cli import console
from confide.errors import UsageError

if TYPE_CHECKING:
    from confide.compare.peers.environment import Environment

#: Where the root command leaves the folder of the user's data.
DATA_HOME = "confide.data-home"

peers_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Install other people's frameworks, each in an environment of its own, for `confide compare --peers`.",
)

_Folder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where the environments are; $XDG_DATA_HOME/confide/peers if not given."),
]


def folder_of(context: typer.Context, given: Path | None) -> Path:
    """Return the folder of all peers: the given one, or that of the user's data."""
    return given or Path(context.meta[DATA_HOME]) / "confide" / "peers"


def environments(folder: Path, names: tuple[str, ...] = ()) -> tuple[Environment, ...]:
    """Return where peers are, or would be; () for all of them. Raises UsageError for an unknown name."""
    from confide.compare.peers.catalogue import PEERS, named
    from confide.compare.peers.environment import Environment

    return tuple(Environment(peer, folder) for peer in (named(names) if names else PEERS.values()))


@peers_app.command("list")
def list_peers(context: typer.Context, folder: _Folder = None) -> None:
    """Show every peer: what it is, at which version, whether it is installed, where, and what it takes on disk.

    confide peers list
    """
    place = folder_of(context, folder)
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("name", "framework", "for", "measured on", "installed", "size"):
        table.add_column(heading, overflow="fold")
    notes = list[str]()
    for one in environments(place):
        peer = one.peer
        absent = peer.refused or one.absent()
        size = f"{one.size_bytes() / 1e9:.2f} GB" if absent is None else f"about {peer.disk}" if peer.disk else "–"
        tasks = ", ".join(dict.fromkeys(variant.task for variant in peer.variants))
        table.add_row(
            peer.name, f"{peer.title} {peer.version}", peer.purpose, tasks, "yes" if absent is None else "no", size
        )
        if absent is not None and not absent.startswith("not installed"):
            notes.append(f"{peer.name}: {absent}")
    Console(markup=False, highlight=False).print(table)
    for line in notes:
        console.out.print(console.plain(line))
    console.out.print(f"`confide peers install NAME` makes an environment in {place}")


@peers_app.command()
def install(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Peers, as `confide peers list` names them.")],
    folder: _Folder = None,
    index: Annotated[
        str | None,
        typer.Option(metavar="URL", help="One more index of packages; one of torch's CPU builds saves gigabytes."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make it anew even if it is there.")] = False,
) -> None:
    """Make the environment of each peer named: a virtual environment with pinned versions, checked by an import.

    Killed at any time, it leaves nothing that is taken for an environment. A failure is remembered, so that a
    comparison shows it, and the others go on.

        confide peers install tenseal diffprivlib
    """
    failed = list[str]()
    for one in environments(folder_of(context, folder), tuple(names)):
        name, total = one.peer.name, one.packages()
        with _bars() as bars:
            task = bars.add_task(name, total=total, words="")

            def progress(words: str, *, bars: Progress = bars, task: object = task) -> None:
                bars.update(task, advance=1, words=words)  # type: ignore[arg-type]

            try:
                stamp = one.install(progress=progress, index=index, again=again)
            except UsageError as error:
                failed.append(name)
                console.err.print(f"{name}: not installed: {console.one_line(console.plain(str(error)))}")
                continue
        size = one.size_bytes() / 1e9
        console.out.print(f"{name}: {one.peer.title} {stamp.version}, Python {stamp.python}, {size:.2f} GB, {one.home}")
    if failed:
        raise UsageError(f"Expected to install {', '.join(failed)} as well; the reasons are above")


@peers_app.command()
def remove(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Peers, as `confide peers list` names them.")],
    folder: _Folder = None,
) -> None:
    """Take environments away, and what is remembered of attempts that failed.

    confide peers remove concrete-ml
    """
    for one in environments(folder_of(context, folder), tuple(names)):
        console.out.print(f"{one.peer.name}: " + ("removed" if one.remove() else "there was nothing"))


def _bars() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}", markup=False),
        console=console.err,
        transient=True,
    )
