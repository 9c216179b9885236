"""`confide coordinator` and `confide submit`: run a federation's jobs, and hand one in."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.cli import console
from confide.cli.progress import Display, coordinator_display
from confide.errors import ConfideError, JobError, UsageError

if TYPE_CHECKING:
    from confide.model.artifact import Artifact
    from confide.net.link import Link
    from confide.net.registrar import Registrar
    from confide.train.attendance import Patience
    from confide.train.board import Board
    from confide.train.control import Release
    from confide.train.desk import Desk
    from confide.train.sections import Job
    from confide.train.status import Status

_SHOW_SECONDS = 0.25
_POLL_SECONDS, _AGREE_HOURS = 1.0, 168.0


def coordinator(
    job_file: Annotated[
        Path | None,
        typer.Argument(metavar="[JOB.toml]", help="One job to run; without it, those that analysts submit."),
    ] = None,
    federation: Annotated[Path, typer.Option(help="The folder that `confide federation init` made.")] = Path(),
    listen: Annotated[
        str | None,
        typer.Option(help="ADDRESS:PORT to listen on; the port of the federation on every address if left out."),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Journal: a file, or postgresql://...; a file in the folder if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The model file; [output] or the folder if left out.")] = None,
    status_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the status page, a port of this machine; 0 for none.")
    ] = 0,
    status_host: Annotated[
        str,
        typer.Option(help="Where the status page listens; beyond loopback everybody who can reach it may look."),
    ] = "127.0.0.1",
    stage_seconds: Annotated[
        float, typer.Option(min=1, help="Longest wait for a connected node in one stage, its training included.")
    ] = 600.0,
    grace_seconds: Annotated[
        float | None,
        typer.Option(
            min=0, help="How long a round waits for a node whose connection broke; 5 if left out, 60 over Flower."
        ),
    ] = None,
    agree_hours: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How long a job waits until every node has accepted; 168 if analysts submit jobs, since the next one "
            "waits behind it, else for ever.",
        ),
    ] = None,
    flower: Annotated[
        Path | None,
        typer.Option(metavar="SOCKET", help="Over Flower: the socket on which its ServerApp calls; nothing listens."),
    ] = None,
    flower_group: Annotated[
        bool, typer.Option("--flower-group", help="The group of the socket may call too, for a SuperLink's own user.")
    ] = False,
) -> None:
    """Run a federation: wait for nodes and their approvals, train, release the signed model.

    Start it before members join: it is what answers them. It reads no table. Started again after a crash or an
    interruption, with the same job, it goes on where it stopped.

        confide coordinator job.toml --federation federation --status-port 8081
    """
    from confide.crypto.keys import SigningKey
    from confide.model.artifact import write_whole
    from confide.net.folders import identity_seed
    from confide.store import Patient, open_store
    from confide.train.desk import Desk
    from confide.train.ledger import Ledger
    from confide.train.operate import run_job

    if flower is not None and (job_file is None or listen is not None):
        raise UsageError("Expected --flower with a JOB and without --listen: analysts cannot call over Flower")
    job = _job(job_file) if job_file else None
    if agree_hours is None:
        agree_hours = math.inf if job else _AGREE_HOURS
    patience = _patience(stage_seconds, grace_seconds, agree_hours, over_flower=flower is not None)
    with ExitStack() as stack:
        stack.enter_context(console.stops_cleanly())
        opened = open_store(store or federation / "coordinator.db")
        stack.callback(opened.close)
        stack.enter_context(opened.exclusive("coordinator"))
        kept = Patient(opened, say=_note)
        ledger = Ledger(
            federation / "ledger.jsonl", signer=SigningKey(identity_seed(federation)), patiently=kept.patiently
        )
        link, registrar = stack.enter_context(
            _hosting(federation, listen) if flower is None else _over_flower(federation, flower, group=flower_group)
        )
        desk = Desk(link, kept, say=_note)
        shown = _Shown()
        if status_port:
            stack.enter_context(_status_page(shown, federation, status_host, status_port))
        display = stack.enter_context(_shown_on(shown, idle="waiting for members" if job else "waiting for jobs"))
        run = partial(
            run_job,
            registrar=registrar,
            desk=desk,
            store=kept,
            ledger=ledger,
            patience=patience,
            say=_note,
            started=shown.show,
        )
        if job is not None:
            place = out or (job.path(job.output.model) if job.output.model else federation / "model.confide")
            artifact, _ = run(job, _schema_text(job), keep=partial(write_whole, place))
            shown.update()
            chain = federation / "ledger.jsonl"
            display.tell(artifact.label.sentence())
            display.tell(f"wrote {place}, signed by {artifact.signer}")
            display.tell(f"wrote {chain}")
            display.note(f"next: confide ledger verify {chain} --model {place}")
            display.note(f"and:  confide serve {place} --trust {artifact.signer}")
            return
        _note("waiting for jobs: an analyst hands one in with `confide submit`")
        while True:
            desk.receive(_POLL_SECONDS)
            if desk.next is not None:
                name, _ = desk.next
                release = _worked_off(desk, partial(run, progress=desk.progress), federation / "ledger.jsonl")
                desk.done(release)
                shown.update()
                display.note(f"the job of {name} was not done: {release.reason}" if release.reason else _handed(name))


def _handed(analyst: str) -> str:
    return f"the model is for {analyst}, who receives it by `confide submit`, now or later"


@contextmanager
def _status_page(shown: _Shown, federation: Path, host: str, port: int) -> Generator[None]:
    from confide.net.founding import read_settings
    from confide.net.http import is_loopback
    from confide.net.page import StatusPage

    names = tuple(read_settings(federation).hosts)
    with StatusPage(shown.json, metrics=shown.metrics, host=host, port=port, names=names, open_to_network=True) as page:
        console.out.print(f"status: {page.url}")
        if not is_loopback(host):
            _note("warning: the status page asks nobody who they are; everybody who can reach this address may look")
        yield


@contextmanager
def _hosting(federation: Path, listen: str | None) -> Generator[tuple[Link, Registrar]]:
    from confide.net.founding import read_settings
    from confide.train.operate import hosting

    address, port = listening(listen, read_settings(federation).coordinator)
    with hosting(federation, address=address, port=port, say=_note) as (host, registrar):
        console.out.print(f"listening on {address}:{host.port}")
        yield host, registrar


@contextmanager
def _over_flower(federation: Path, socket: Path, *, group: bool) -> Generator[tuple[Link, Registrar]]:
    from confide.train.operate import hosting_over_flower

    with hosting_over_flower(federation, socket, group=group, say=_note) as (host, registrar):
        console.out.print(f"waiting for Flower's ServerApp on {socket}")
        yield host, registrar
    console.out.print(f"{host.requests} Flower messages")


def _patience(stage_seconds: float, grace_seconds: float | None, agree_hours: float, *, over_flower: bool) -> Patience:
    from confide.train.attendance import FLOWER_GATHER_SECONDS, FLOWER_GRACE_SECONDS, Patience

    found = Patience(stage_seconds=stage_seconds, agree_seconds=3600 * agree_hours)
    if over_flower:
        found = replace(found, grace_seconds=FLOWER_GRACE_SECONDS, gather_seconds=FLOWER_GATHER_SECONDS)
    return found if grace_seconds is None else replace(found, grace_seconds=grace_seconds)


class _Shown:
    """The board of the job on its way, for the terminal and the page."""

    def __init__(self) -> None:
        from confide.guarantee import nothing_hidden
        from confide.train.board import Board
        from confide.train.status import Status

        self.board: Board = Board(
            Status.start(
                run="",
                job="no job yet",
                job_hash="",
                aggregator="plain",
                guarantee=nothing_hidden("nothing runs"),
                rounds=0,
                quorum=1,
                members={},
                at_seconds=0.0,
            )
        )

        self._idle, self._lock = self.board, threading.Lock()
        self.display: Display[Status] | None = None

    def show(self, board: Board) -> None:
        self.board = board

    def update(self) -> None:
        """Bring the terminal up to date."""
        with self._lock:
            if self.display is not None and self.board is not self._idle:
                self.display.show(self.board.snapshot())

    def json(self) -> bytes:
        return self.board.json()

    def metrics(self) -> bytes:
        return self.board.metrics()


@contextmanager
def _shown_on(shown: _Shown, *, idle: str) -> Generator[Display[Status]]:
    """Show the board as it changes, until the block ends."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(_SHOW_SECONDS):
            shown.update()

    with coordinator_display(idle=idle) as display:
        shown.display = display
        thread = threading.Thread(target=follow, name="display", daemon=True)
        thread.start()
        try:
            yield display
        finally:
            ended.set()
            thread.join()
            shown.update()


def _worked_off(desk: Desk, run: Callable[..., tuple[Artifact, bytes]], ledger: Path) -> Release:
    """Return what the job that waits longest came to; what is wrong with it is its analyst's to read."""
    from confide.data.toml_text import read_toml
    from confide.errors import StoreError
    from confide.train.control import Release
    from confide.train.job import parse
    from confide.train.offer import LARGEST_JOB_BYTES

    assert desk.next is not None
    _, submission = desk.next
    if (kept := desk.kept) is not None:
        return kept  # its run ended, and then the process did
    try:
        job = parse(read_toml(submission.job, max_bytes=LARGEST_JOB_BYTES))

        def keep(body: bytes) -> None:
            desk.keep(Release(model=body, ledger=ledger.read_bytes()))

        _, body = run(job, submission.schema, keep=keep)
    except StoreError:
        raise
    except (ConfideError, ValueError) as error:
        return Release(str(error))
    return Release(model=body, ledger=ledger.read_bytes())


def _job(path: Path) -> Job:
    from confide.train import load

    job = load(path)
    if job.data.schema is None:
        raise JobError("Expected data.schema with data.nodes in a job for a federation; a shipped set has no nodes")
    return job


def _schema_text(job: Job) -> str:
    path = job.path(str(job.data.schema))
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        raise JobError(f"Expected a readable schema at {path}; name it in data.schema") from None


def listening(listen: str | None, url: str) -> tuple[str, int]:
    """Return where to listen: as asked, or at the federation's port, on loopback if that is its address."""
    from confide.net.enrolment import split_url

    found = split_url(url if listen is None else f"wss://{listen}")
    if found is None:
        raise UsageError(f"Expected --listen ADDRESS:PORT, got {listen}; 0.0.0.0 stands for every address")
    host, port = found
    return (host if listen is not None or host in ("127.0.0.1", "::1") else "0.0.0.0"), port  # noqa: S104


def _note(text: str) -> None:
    """Print what happens; a text may hold a node's words, which must not move anybody's cursor."""
    console.err.print(console.plain(text))


def submit(
    context: typer.Context,
    job_file: Annotated[
        Path, typer.Argument(metavar="JOB.toml", help="The job; its schema lies where data.schema says.")
    ],
    identity: Annotated[
        Path, typer.Option(help="The analyst's folder, as `confide federation join` made it.")
    ] = Path(),
    out: Annotated[Path, typer.Option(help="The model file.")] = Path("model.confide"),
    ledger: Annotated[
        Path | None, typer.Option(help="File for the coordinator's ledger; not kept if left out.")
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(help="wss://HOST:PORT of the coordinator; the member's own if left out.")
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(help="http://HOST:PORT of a proxy, or direct; HTTPS_PROXY if left out."),
    ] = None,
) -> None:
    """Hand a job in as an analyst, wait for the nodes' approvals and the training, receive the model.

    Asked again after an interruption, it receives the same release.

        confide submit job.toml --identity analyst --out model.confide
    """
    from confide.cli.proxies import proxy_for, surroundings
    from confide.model.artifact import decode, write_whole
    from confide.net.membership import membership
    from confide.train.operate import joining
    from confide.train.operate import submit as hand_in

    job = _job(job_file)
    address = coordinator or membership(identity).coordinator
    with joining(identity, url=address, proxy=proxy_for(address, proxy, surroundings(context))) as (join, said):
        release = hand_in(join, said.name, job_file.read_text(), _schema_text(job), say=_note)
    if release.reason:
        raise UsageError(f"The job was not done: {console.plain(release.reason)}")
    artifact = decode(release.model, trust=bytes.fromhex(said.coordinator_identity), where="the released model")
    write_whole(out, release.model)
    if ledger is not None:
        write_whole(ledger, release.ledger)
        console.out.print(f"wrote {ledger}")
    console.out.print(artifact.label.sentence())
    console.out.print(f"wrote {out}, signed by {artifact.signer}")
    console.err.print(f"next: confide serve {out} --trust {artifact.signer}")
