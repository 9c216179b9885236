"""`confide audit`: attacks on a job of one's own, or on a served model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from confide.cli import console
from confide.cli.console import progress_bars, warnings_as_lines
from confide.cli.keys import read_api_key
from confide.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from confide.compare.answers import Rows
    from confide.compare.audit import Report
    from confide.model.preprocess import Preprocess

_FILE = ".confide"
_SCHEMES = ("http://", "https://", "wss://")
_QUICK_SHADOWS, _QUICK_ROUNDS, _QUICK_BUDGET = 7, 1, 100


def audit(
    target: Annotated[
        str,
        typer.Argument(
            metavar="JOB.toml|URL|MODEL", help="A job whose tables you may hold, a served model, or a file."
        ),
    ],
    shadows: Annotated[
        int, typer.Option(min=3, help="Of a job: models trained on other records beside the attacked one.")
    ] = 16,
    sensitive: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of a job: the column that attribute inference guesses.")
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="Of a job: run this attack alone; again for more. membership, inversion, attribute."),
    ] = None,
    budget: Annotated[int, typer.Option(min=10, help="Of a URL: rows that may be asked in all.")] = 1000,
    table: Annotated[
        Path | None, typer.Option("--data", metavar="X.csv", help="Of a URL: rows of your own, asked first.")
    ] = None,
    members: Annotated[
        Path | None, typer.Option(metavar="X.csv", help="Of a URL or a file: rows that were in the training.")
    ] = None,
    others: Annotated[
        Path | None, typer.Option(metavar="X.csv", help="With --members: rows of the same kind that were not.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="With --members: the column of the class; left out if unknown.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of a URL: which model; left out if the server has one.")] = None,
    backend: Annotated[str | None, typer.Option(help="Of a URL: how to ask; plain must be named.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="Of a URL: file whose first line is your API key.")] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="Of a URL: PEM file of the authority that signed its certificate.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="7 shadows, 100 rows: not figures to quote.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report.")] = None,
) -> None:
    """Attack your own job or served model, with its protections and without them.

    Of a job: who was in the training, a lower bound on epsilon, records read out of updates, a column guessed from
    answers. Of a URL: a copy of the model from its answers, and with --members and --others who was in the training;
    of a .confide file the latter alone. Every attack gets a sentence; a failed one proves nothing.

        confide audit examples/breast_cancer.toml --quick
        confide audit http://127.0.0.1:8080 --budget 200 --backend he

        confide audit model.confide --members north.csv --others later.csv --label diagnosis
    """
    if out is not None and (not out.parent.is_dir() or out.is_dir()):
        raise UsageError(f"Expected --out {out} to be a file in a folder that exists; make the folder first")
    if (members is None) != (others is None) or (label is not None and members is None):
        raise UsageError("Expected --members with --others, and --label with both; name both tables")
    known = None if members is None or others is None else (members, others)
    if Path(target).suffix == _FILE:
        _print_and_write(_file(Path(target), known, label), out)
        return
    if target.startswith(_SCHEMES):
        key = read_api_key(api_key_file) if api_key_file else None
        rows = min(budget, _QUICK_BUDGET) if quick else budget
        options = {"model": model, "backend": backend, "api_key": key, "ca_file": ca_file}
        report = _shown(_endpoint(target, rows, table, known, label, **options))
    else:
        if known is not None:
            raise UsageError("Expected no --members with a job: its own tables say who was in; leave it out")
        report = _shown(_job(Path(target), shadows, sensitive, tuple(attack or ()), quick))
    _print_and_write(report, out)


def _print_and_write(report: Report, out: Path | None) -> None:
    from confide.model.artifact import write_whole

    _print(report)
    if out is not None:
        write_whole(out, msgspec.json.format(msgspec.json.encode(report.plain()), indent=2) + b"\n")
        console.out.print(f"wrote {out}")


def _job(path: Path, shadows: int, sensitive: str | None, attacks: tuple[str, ...], quick: bool) -> Iterator[Any]:
    from confide.compare.audit import ATTACKS, Settings, audit_job
    from confide.crypto.random import SystemRandomness
    from confide.errors import JobError
    from confide.train.keys import load_tables

    unknown = sorted(set(attacks) - set(ATTACKS))
    if unknown:
        raise UsageError(f"Expected --attack out of {', '.join(ATTACKS)}, got {unknown[0]}")
    settings = Settings(
        shadows=min(shadows, _QUICK_SHADOWS) if quick else shadows,
        sensitive=sensitive,
        attacks=attacks or tuple(ATTACKS),
        rounds=_QUICK_ROUNDS if quick else Settings().rounds,
    )
    job = load_tables(path, "job file", JobError)
    match job.pop("compare", None):  # one file does for `confide compare` too, which says there what tables are
        case {"data": "public" | "synthetic" as declared}:
            settings = replace(settings, data_kind=declared)
        case _:
            pass
    yield from audit_job(job, path.parent, settings, SystemRandomness())


def _file(path: Path, known: tuple[Path, Path] | None, label: str | None) -> Report:
    """Attack a model file with rows that were in its training and rows that were not."""
    from confide.compare.audit import audit_model
    from confide.model.artifact import load
    from confide.model.links import link_of

    if known is None:
        raise UsageError("Expected --members and --others with a model file: who was in its training is what it tells")
    with warnings_as_lines():
        artifact = load(path)
    graph, prepare = artifact.graph, artifact.preprocess
    members, others = (_rows(table, prepare, prepare.apply, label, graph.classes) for table in known)
    return audit_model(graph.apply, members, others, link=link_of(graph, artifact.link or ""), name=path.name)


def _rows(
    table: Path, prepare: Preprocess, features: Callable[[Any], Any], label: str | None, classes: tuple[str, ...]
) -> Rows:
    """Return the rows of a table, with their classes if it has them."""
    from confide.cli.predict import columns_of
    from confide.compare.answers import Rows, classes_of
    from confide.data.table import read_columns

    x = features(columns_of(table, prepare, None))
    if label is None:
        return Rows(x, None)
    return Rows(x, classes_of(read_columns(table, numbers=(), texts=(label,))[label], classes, label))


def _endpoint(
    url: str, budget: int, table: Path | None, known: tuple[Path, Path] | None, label: str | None, **options: Any
) -> Iterator[Any]:
    from confide.cli.predict import columns_of
    from confide.compare.audit import audit_endpoint
    from confide.serve.client import Client

    with Client(url, **options) as client:
        if table is not None and client.preprocess is None:
            raise UsageError(f"Expected no --data: {client.model} takes bare features and names no columns")
        if known is not None and client.preprocess is None:
            raise UsageError(f"Expected no --members: {client.model} takes bare features and names no columns")
        own = None if table is None else client.features(columns_of(table, client.preprocess, None))
        rows = None
        if known is not None and client.preprocess is not None:
            members, others = (_rows(one, client.preprocess, client.features, label, client.classes) for one in known)
            rows = members, others
        yield from audit_endpoint(client, budget=budget, own=own, known=rows)


def _shown(steps: Iterator[Any]) -> Report:
    """Draw progress until there is a report."""
    from confide.compare.audit import Progress, Report

    tasks: dict[str, TaskID] = {}
    with progress_bars() as bars:
        for step in steps:
            if isinstance(step, Report):
                return step
            if isinstance(step, Progress):
                if step.what not in tasks:
                    tasks[step.what] = bars.add_task(step.what, total=step.total)
                bars.update(tasks[step.what], completed=step.done)
    raise UsageError("Expected a report")


def _print(report: Report) -> None:
    from confide.compare.audit import DO_NOT_PUBLISH, NOTES

    title = f"audit of {console.plain(report.target)}"
    table = Table("attack", "protection", "found", "", title=title)
    for finding in report.findings:
        table.add_row(finding.attack, finding.protection, finding.headline, finding.verdict)
    Console(markup=False, highlight=False).print(table)
    for finding in report.findings:
        console.out.print(console.plain(f"{finding.attack}, {finding.protection}: {finding.sentence}"))
    for name, why in report.unfit.items():
        console.out.print(f"not run: {name}: {console.one_line(why)}")
    for note in NOTES:
        console.out.print(note)
    if report.private:
        console.out.print(f"These figures are {DO_NOT_PUBLISH}: they were computed from private records.")
