"""`confide node check`: a look at a table beside a schema and a job, before anything is connected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from confide.cli import console
from confide.errors import DataError, UsageError

if TYPE_CHECKING:
    from confide.train.dry_run import DryRun, JobCheck


def check(
    data: Annotated[Path, typer.Option(help="The table: CSV, .npz, Parquet, Arrow, or a source file.")],
    job: Annotated[Path | None, typer.Option(help="The job that is to be taken part in; it names the schema.")] = None,
    schema: Annotated[Path | None, typer.Option(help="The schema, without a job or in place of the job's.")] = None,
    policy: Annotated[Path | None, typer.Option(help="The policy; without it the defaults of one.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: counts and rows, no value of the table.")
    ] = False,
    texts: Annotated[
        bool, typer.Option("--texts", help="Show the most frequent unknown texts of the table, here only.")
    ] = False,
) -> None:
    """Look at a table beside a schema and a job, all problems at once; nothing leaves this machine.

    Ends with 0 if the node could take part, and with 2 if something keeps it from it.

        confide node check --data table.csv --job job.toml --policy policy.toml
    """
    from confide.train.dry_run import dry_run
    from confide.train.job import load
    from confide.train.policy import enclaves_of, load_policy

    asked = None if job is None else load(job)
    where = schema
    if where is None and asked is not None and asked.data.schema is not None:
        where = asked.path(asked.data.schema)
    if where is None:
        raise UsageError("Expected --schema, or a --job with data.schema; name what the table shall look like")
    rules = None if policy is None else load_policy(policy)
    enclaves = None if rules is None or policy is None else enclaves_of(rules, policy)
    found = dry_run(data, _read_text(where), job=asked, policy=rules, enclaves=enclaves)
    if as_json:
        console.out.print(msgspec.json.format(msgspec.json.encode(_builtins(found))).decode())
    else:
        _print_survey(found, shown=texts)
        if found.job is not None:
            _print_job(found.job, defaults=rules is None)
    if not found.passes:
        raise typer.Exit(2)


def _read_text(path: Path) -> str:
    from confide.data.schema import LARGEST_SCHEMA_BYTES

    try:
        with path.open("rb") as file:
            body = file.read(LARGEST_SCHEMA_BYTES + 1)
        if len(body) > LARGEST_SCHEMA_BYTES:
            raise DataError(f"Expected a schema of at most {LARGEST_SCHEMA_BYTES} bytes at {path}")
        return body.decode()
    except OSError as error:
        raise DataError(f"Expected a readable schema at {path}; {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"Expected TOML in {path}; {error}") from None


def _builtins(found: DryRun) -> dict[str, Any]:
    """Return a dry run as JSON has it, without texts of the table: it may be passed on."""
    without = [replace(finding, texts={}) for finding in found.findings]
    survey, job = len(found.survey.findings), found.job
    found = replace(
        found,
        survey=replace(found.survey, findings=tuple(without[:survey])),
        job=None if job is None else replace(job, findings=tuple(without[survey:])),
    )
    return msgspec.to_builtins(found) | {"passes": found.passes}


def _print_survey(found: DryRun, *, shown: bool) -> None:
    seen = found.survey
    table = Table("column", "kind", "unit", "missing", "wrong", "outside", title=f"{seen.records} records")
    for column in seen.columns:
        share = f"{column.missing} ({100 * column.missing / max(1, seen.records):.1f} %)"
        cells = (column.name, column.kind, column.unit, share, column.wrong, column.outside)
        table.add_row(*(console.plain(str(cell)) for cell in cells))
    Console(markup=False, highlight=False).print(table)
    counts = ", ".join(f"{console.plain(name)} {count}" for name, count in seen.classes.items())
    console.out.print(f"classes: {counts or 'none'}")
    if seen.ignored:
        console.out.print(f"columns left out: {console.plain(', '.join(seen.ignored))}")
    for one in found.findings:
        where = f"{console.plain(one.where)}: " if one.where else ""
        count = f"{one.count} " if one.count and one.rows else ""
        rows = (
            f" (rows {', '.join(map(str, one.rows))}{' ...' if one.count > len(one.rows) else ''})" if one.rows else ""
        )
        texts = "; ".join(f'"{console.plain(text)}": {number}' for text, number in one.texts.items() if shown)
        console.out.print(f"{one.level}: {where}{count}{console.plain(one.text)}{rows}{f' [{texts}]' if texts else ''}")


def _print_job(job: JobCheck, *, defaults: bool) -> None:
    if job.hash:
        console.out.print(f"job hash: {job.hash}")
        console.out.print(f"guarantee: {'; '.join(job.guarantee)}")
    if job.step_seconds is not None:
        console.out.print(
            f"{job.training} records to train on, {job.testing} set aside; one round's local work took "
            f"{job.step_seconds:.3g} s here"
        )
    for line in job.refusals:
        console.out.print(f"refused by {'the default policy' if defaults else 'the policy'}: {console.plain(line)}")
    if job.hash and not job.refusals:
        console.out.print(
            f"allowed by {'the default policy' if defaults else 'the policy'}, as far as it depends on the job; "
            "coordinator, roster and what the budget has spent are looked at when the job is offered"
        )
