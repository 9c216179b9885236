"""Writes what a comparison found: `compare.html` and `compare.md` for people, `compare.json` and `.csv` for programs.

All four say the same: one document is printed twice, one result is encoded twice. Names of parties, techniques and
paths are text wherever they stand: escaped in HTML and Markdown, no formula in a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from confide.compare.document import Document, document
from confide.compare.quantities import unit
from confide.compare.record import Record, Spread
from confide.compare.result import ASK_FIRST, Curve, Result
from confide.compare.settings import PRIVATE_WARNING
from confide.compare.tables import Entry, Table, name, simulated
from confide.errors import MissingExtra, UsageError
from confide.model.artifact import whole_file

try:
    import jinja2
except ImportError:  # the compare extra
    jinja2 = None

#: Of files that anybody may read, and of those with figures from private records or from nodes.
_OPEN, _OWN = 0o644, 0o600

#: The columns of `compare.csv`, a line for each figure, each point of a curve, and each measurement of a rule of thumb.
COLUMNS: tuple[str, ...] = (
    "kind", "task", "choice", "technique", "figure", "unit", "median", "low", "high", "mean", "x_name", "x", "repeats",
    "machine", "commit", "version", "setting", "simulated", "publish", "trust", "adversary", "security_bits",
    "post_quantum", "verified_result", "claims", "leaks", "primary", "paper", "verdict",
)  # fmt: skip


def write_all(result: Result, folder: Path) -> tuple[Path, ...]:
    """Write the four files of a result into a folder, which is made; return them. All appear, or none.

    Raises:
        MissingExtra: the report needs what is not installed.
        UsageError: the folder cannot be written.
    """
    found = document(result)
    return write_files(
        folder,
        {
            "compare.json": result.encode() + b"\n",
            "compare.html": render("compare.html.j2", page=found).encode(),
            "compare.md": markdown(found).encode(),
            "compare.csv": table(result).encode(),
        },
        own=not published(result),
    )


def published(result: Result) -> bool:
    """Return whether anybody may read a result as far as it says."""
    return not result.private and result.across is None


def write_files(folder: Path, bodies: Mapping[str, bytes], *, own: bool = True) -> tuple[Path, ...]:
    """Write files into a folder, which is made; every one is whole before the first gets its name.

    Args:
        folder: of them.
        bodies: by name.
        own: whether they are for this user alone.

    Raises:
        UsageError: the folder cannot be written, or one of the names is a folder.
    """
    paths = {folder / name: body for name, body in bodies.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            if path.is_dir():
                raise UsageError(f"Expected a file at {path}, got a folder; move it away")
        with ExitStack() as stack:  # every body is on the disk before the first gets its name
            for path, body in paths.items():
                file = stack.enter_context(whole_file(path, mode=_OWN if own else _OPEN))
                file.write(body)
                file.flush()
    except OSError as error:
        raise UsageError(f"Expected a folder that can be written at {folder}; {error.strerror}") from None
    return tuple(paths)


def render(template: str, **given: Any) -> str:
    """Return a template of this room filled in, with everything escaped. Raises MissingExtra without jinja2."""
    if jinja2 is None:
        raise MissingExtra("jinja2", "compare")
    loader = jinja2.PackageLoader("confide.compare", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template).render(**given)


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(page: Document) -> str:
    """Return a document as Markdown; pictures are named, they stand in the HTML file."""
    lines = [f"# {_text(page.title)}", ""]
    if page.banner:
        lines += [f"> **{_text(page.banner)}**", ""]
    for text in page.intro:
        lines += [_text(text), ""]
    for part in page.parts:
        lines += [f"## {_text(part.title)}", ""]
        for text in part.paragraphs:
            lines += [_text(text), ""]
        lines += [f"* Picture in compare.html: {_text(picture.caption)}" for picture in part.pictures]
        lines += [f"* {_text(text)}" for text in part.bullets]
        lines += [""] * bool(part.pictures or part.bullets)
        for one in part.tables:
            lines += _table(one)
    # a fence longer than any in the job: nothing in it ends the block
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", page.job)), default=0))
    return "\n".join([*lines, "## The job", "", f"{fence}toml", page.job.rstrip("\n"), fence, ""])


def _table(one: Table) -> Iterator[str]:
    if one.title:
        yield from (f"### {_text(one.title)}", "")
    if one.text:
        yield from (_text(one.text), "")
    yield "| " + " | ".join(_text(column) for column in one.columns) + " |"
    yield "|" + "---|" * len(one.columns)
    for row in one.rows:
        yield "| " + " | ".join(_entry(entry) for entry in row) + " |"
    yield ""


def _entry(entry: Entry) -> str:
    return _text(entry) if isinstance(entry, str) else "; ".join(_text(one) for one in entry)


def _text(text: str) -> str:
    """Return text that Markdown prints as it is: no markup, no link, one line."""
    flat = re.sub(r"[^\S\N{NO-BREAK SPACE}]+", " ", text).strip()
    plain = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;/")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", plain)


# --- CSV --------------------------------------------------------------------------------------------------------------


def table(result: Result) -> str:
    """Return every figure and every point of a curve as a line of CSV, with its guarantee."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    records = {(record.task, record.choice): record for record in result.records}
    for record in result.records:
        for figure, spread in record.figures.items():
            writer.writerow(_line(result, record, "figure", figure, spread, "", ""))
    for curve in result.curves:
        if record := records.get((curve.task, curve.choice)):
            writer.writerows(_points(result, record, curve))
    for aside in result.asides:
        for figure, spread in aside.record.figures.items():
            writer.writerow(_line(result, aside.record, aside.kind, figure, spread, aside.kind, aside.on))
    measured = records | {(one.record.task, one.record.choice, one.on): one.record for one in result.asides}
    for rule in result.rules:
        for one in rule.measured:
            if record := measured.get((one.task, one.choice, one.on) if one.on else (one.task, one.choice)):
                line = _line(result, record, "rule", rule.figure, one.value, "rule", rule.key)
                writer.writerow({**line, "verdict": _cell(one.verdict), "setting": _cell(one.what)})
    return text.getvalue()


def _points(result: Result, record: Record, curve: Curve) -> Iterator[dict[str, str]]:
    for x, spread in zip(curve.x, curve.y, strict=True):
        yield _line(result, record, curve.kind, curve.y_name, spread, curve.x_name, repr(x))


def _line(
    result: Result, record: Record, kind: str, figure: str, spread: Spread, x_name: str, x: str
) -> dict[str, str]:
    held = record.guarantee
    values = (
        kind, record.task, record.choice, name(record), figure, unit(figure), repr(spread.median), repr(spread.low),
        repr(spread.high), repr(spread.mean), x_name, x, str(record.repeats), record.machine, result.commit,
        record.version, record.setting, _yes(simulated(record)), _publish(result),
        held.trust.value, held.adversary.value, "" if held.security_bits is None else str(held.security_bits),
        _yes(held.post_quantum), _yes(held.verified_result), "; ".join(held.sentences()), held.leaks, held.primary,
        held.paper, "",
    )  # fmt: skip
    return {column: _cell(value) for column, value in zip(COLUMNS, values, strict=True)}


def _publish(result: Result) -> str:
    if result.across is not None:
        return ASK_FIRST
    return PRIVATE_WARNING if result.private else "yes"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _cell(value: str) -> str:
    """Return a value that no spreadsheet takes for a formula; numbers stay numbers."""
    flat = value.replace("\r", " ").replace("\n", " ").replace("\0", " ")
    if re.fullmatch(r"-?\d[\d.]*(e[+-]?\d+)?|-?inf|nan", flat):
        return flat
    return f"'{flat}" if flat[:1] in ("=", "+", "-", "@", "\t") else flat
