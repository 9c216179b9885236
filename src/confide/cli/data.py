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
    numbers: Annotated[
        str, typer.Option(help="The columns of numbers: age,income. With --epsilon, for CSV and queries.")
    ] = "",
    delta: Annotated[float, typer.Option(help="Of that release; well below one over the number of records.")] = 1e-6,
) -> None:
    """Print a draft of a schema from the names and types of a table's columns; no value is shown.

    With --epsilon, bounds come from a histogram with differential privacy. Each run spends epsilon anew, and no file
    keeps an account: note it down.

        confide data describe transactions.parquet --label fraud > schema.toml
    """
    from confide.data.describe import draft, kinds_of, states_types
    from confide.errors import nearest

    said = [name.strip() for name in numbers.split(",") if name.strip()]
    if said and epsilon is None:
        raise UsageError("Expected --numbers together with --epsilon; leave it out, or state both")
    if epsilon is not None and not said and not states_types(table):
        raise UsageError(
            f"Expected --numbers with --epsilon, since {table} states no types: which columns hold numbers would be "
            "read off the records, with no privacy; name them, --numbers age,income"
        )
    kinds = kinds_of(table, numbers=said or None)
    if label and label not in kinds:
        raise UsageError(f"Expected --label={label} to be a column of {table}{nearest(label, kinds)}; name one")
    if epsilon is None:
        console.out.print(draft(table, label=label).rstrip("\n"))
        return
    for name in said:
        if name not in kinds or name == label or said.count(name) > 1:
            raise UsageError(
                f"Expected --numbers to name different columns of {table} other than the label, got "
                f"{name}{nearest(name, kinds)}; name each once"
            )
    found = said or [name for name, kind in kinds.items() if kind in ("number", "whole number") and name != label]
    if not found:
        raise UsageError(f"Expected a column of numbers in {table} with --epsilon; leave the option out")
    lines, spent = _released(table, found, epsilon, delta)
    console.out.print(spent)
    console.out.print(draft(table, label=label, bounds=lines, numbers=said or None).rstrip("\n"))
    console.err.print(
        f"spent epsilon={epsilon:g}, delta={delta:g} of this table's records, as each run does anew: note it down"
    )


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
