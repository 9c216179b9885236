"""`confide data`: an organisation's own table, before it takes part in anything."""

from __future__ import annotations

from collections.abc import Sequence
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
    epsilon: Annotated[
        float | None, typer.Option(help="Fill in bounds of numbers from a release with this much privacy spent.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Of that release; well below one over the number of records.")] = 1e-6,
) -> None:
    """Print a draft of a schema from the names and types of a table's columns; no value is shown.

    With --epsilon, bounds come from a histogram with differential privacy. It counts against the table's budget.

        confide data describe transactions.parquet --label fraud > schema.toml
    """
    from confide.data.describe import draft, kinds_of
    from confide.errors import nearest

    kinds = kinds_of(table)
    if label and label not in kinds:
        raise UsageError(f"Expected --label={label} to be a column of {table}{nearest(label, kinds)}; name one")
    if epsilon is None:
        console.out.print(draft(table, label=label).rstrip("\n"))
        return
    numbers = [name for name, kind in kinds.items() if kind in ("number", "whole number") and name != label]
    if not numbers:
        raise UsageError(f"Expected a column of numbers in {table} with --epsilon; leave the option out")
    lines, spent = _released(table, numbers, epsilon, delta)
    console.out.print(spent)
    console.out.print(draft(table, label=label, bounds=lines).rstrip("\n"))
    console.err.print(f"spent epsilon={epsilon:g}, delta={delta:g} of this table's budget: keep a note of it")


def _released(table: Path, names: Sequence[str], epsilon: float, delta: float) -> tuple[dict[str, str], str]:
    """Return the lines of columns whose bounds were released, and a comment about what it cost."""
    from confide.data.describe import numbers_of
    from confide.dp.bounds import bounds
    from confide.dp.spending import Budget

    budget = Budget(epsilon, delta)
    lines: dict[str, str] = {}
    for name, found in bounds(numbers_of(table, names), budget=budget).items():
        if found.low is not None and found.high is not None:
            gaps = ', missing = "middle"' if found.gaps else ""
            ends = f"low = {found.low:g}, high = {found.high:g}"
            lines[name] = f'{{ type = "number", unit = "", {ends}, outside = "clip"{gaps} }}'
    comment = (
        f"# Bounds of numbers are from a release with differential privacy: epsilon={epsilon:g}, delta={delta:g} for\n"
        "# adding or removing one record, spent beside everything else that is released of this table."
    )
    return lines, comment
