"""Writes what a comparison found: `compare.json` for programs, `compare.html` for people."""

from __future__ import annotations

from pathlib import Path

from confide.compare.report import Section, title, write
from confide.compare.result import Result
from confide.compare.settings import PRIVATE_WARNING
from confide.errors import UsageError
from confide.model.artifact import write_whole


def write_all(result: Result, folder: Path) -> tuple[Path, ...]:
    """Write the files of a result into a folder, which is made; return them.

    Raises:
        MissingExtra: the report needs what is not installed.
        UsageError: the folder cannot be written.
    """
    found, page = folder / "compare.json", folder / "compare.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(found, result.encode() + b"\n", mode=0o644)
    except OSError as error:
        raise UsageError(f"Expected a folder that can be written at {folder}; {error.strerror}") from None
    write(page, heading=heading(result), intro=intro(result), sections=_sections(result), advice={})
    return found, page


def heading(result: Result) -> str:
    """Return the title of a report; figures from private records say so in it."""
    marked = f" ({PRIVATE_WARNING})" if result.private else ""
    return f"{result.name}: which technique should it be?{marked}"


def intro(result: Result) -> str:
    """Return what was measured, on what, and how far the model of links is off."""
    kinds = {
        "own table": "private records of one organisation",
        "public": "public records",
        "synthetic": "a synthetic stand-in for records, as the job file declares",
    }
    links = "; ".join(link.words() for link in result.links)
    checks = " ".join(check.sentence()[:1].upper() + check.sentence()[1:] + "." for check in result.link_check)
    return (
        f"Measured on {kinds[result.data_kind]}. {result.machine}, confide {result.commit}. Seconds over links are "
        f"modelled from measured work, bytes and chains of messages ({links}). {checks} Money: {result.prices.source}."
    )


def _sections(result: Result) -> list[Section]:
    found: list[Section] = []
    for task, name in (("training", "Training"), ("inference", "Inference")):
        records = tuple(record for record in result.records if record.task == task)
        absent = [
            f"{choice}: {why}" for place, why in result.unfit.items() for at, _, choice in [place.partition("/")]
            if at == task
        ]  # fmt: skip
        left = "Every technique fits." if not absent else "Not measured: " + "; ".join(absent)
        if records:
            found.append(Section(name, left, (), records))
    return found


def short_title(record_title: str) -> str:
    """Return a title that fits a table of the command line."""
    return record_title[:40]


__all__ = ["heading", "intro", "short_title", "title", "write_all"]
