"""`confide data`: an organisation's own table, before it takes part in anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confide.cli import console
from confide.errors import UsageError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Your own table, before it takes part in anything.")


@app.command()
def describe(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="CSV, .npz, Parquet, Arrow, or a source file.")],
    label: Annotated[str, typer.Option(help="The column to predict.")] = "",
) -> None:
    """Print a draft of a schema from the names and types of a table's columns; no value is shown.

    confide data describe transactions.parquet --label fraud > schema.toml
    """
    from confide.data.describe import draft, kinds_of
    from confide.errors import nearest

    kinds = kinds_of(table)
    if label and label not in kinds:
        raise UsageError(f"Expected --label={label} to be a column of {table}{nearest(label, kinds)}; name one")
    console.out.print(draft(table, label=label).rstrip("\n"))
