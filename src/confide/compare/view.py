"""A browser view of a comparison, finished or running: one file that filters and sorts, offline, from a folder.

The page is complete without its script: every row and every guarantee stands in it. The script is ours, inlined, and
the only one that the page's own policy lets run. A page from a folder may not read other files, so a running
comparison writes the page anew and the page loads itself again; no server and no port is needed.
"""

from __future__ import annotations

import base64
import hashlib
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import msgspec

from confide.compare.document import banner, heading, introduction, unfit
from confide.compare.people import Asks
from confide.compare.quantities import NOT_MEASURED, of, ranged, words
from confide.compare.record import Record
from confide.compare.result import Result, load_result
from confide.compare.tables import HEADLINES, TASKS, Entry, name, of_task
from confide.compare.writing import published, render, write_files
from confide.errors import UsageError

#: The file's name, beside compare.json.
NAME = "view.html"


@dataclass(frozen=True, slots=True)
class Running:
    """How far a comparison is.

    Args:
        done, steps: cells measured, and all of them.
        words: what is being measured.
        left: an estimate in words.
        when: of the clock, as people read it.
    """

    done: int
    steps: int
    words: str
    left: str
    when: str


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    value: str


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    choice: str
    trust: str
    quantum: str
    claims: str
    cells: tuple[_Cell, ...]
    details: tuple[tuple[str, Entry], ...]


@dataclass(frozen=True, slots=True)
class _Phase:
    task: str
    columns: tuple[str, ...]
    rows: tuple[_Row, ...]
    unfit: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Head:
    title: str
    banner: str
    intro: tuple[str, ...]


def view(result: Result, running: Running | None = None) -> str:
    """Return the page. Raises MissingExtra without jinja2."""
    script = files("confide.compare").joinpath("view.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    phases = [_phase(result, task) for task in TASKS if of_task(result, task) or unfit(result, task)]
    claims = {_claim(asset, who) for one in result.records for asset, who in _hidden(one)}
    return render(
        "view.html.j2",
        page=_Head(heading(result), banner(result), introduction(result)),
        running=running,
        phases=phases,
        trusts=sorted({record.guarantee.trust.value for record in result.records}),
        hidden=sorted(claims),
        script=script,
        script_hash=f"sha256-{digest}",
    )


def write_view(result: Result, folder: Path, running: Running | None = None) -> Path:
    """Write the page into a folder, which is made, and return it; raises as `writing.write_all`."""
    (path,) = write_files(folder, {NAME: view(result, running).encode()}, own=not published(result))
    return path


def viewed(folder: Path) -> Path:
    """Return the page of a comparison: as the run left or leaves it, or made from what has finished.

    Raises:
        UsageError: no comparison was written into the folder.
    """
    page, found = folder / NAME, folder / "compare.json"
    try:
        if page.is_file() and not (found.is_file() and found.stat().st_mtime > page.stat().st_mtime):
            return page
        return write_view(load_result(found), folder)
    except OSError as error:
        raise UsageError(
            f"Expected the folder of a comparison, with compare.json in it, got {folder}; {error.strerror}"
        ) from None


def show(page: Path) -> bool:
    """Open a page in the user's browser; return whether there was one."""
    return webbrowser.open(page.resolve().as_uri())


def _hidden(record: Record) -> Iterator[tuple[str, str]]:
    for claim in record.guarantee.claims:
        yield claim.asset, claim.hidden_from


def _claim(asset: str, who: str) -> str:
    return f"{asset} from {who}"


def _phase(result: Result, task: str) -> _Phase:
    records = of_task(result, task)
    asks = {one.choice: one for one in result.people if one.task == task}
    figures = tuple(one for one in HEADLINES[task] if any(one in record.figures for record in records))
    columns = ("technique", "rests on", "security bits", *(words(one) for one in figures))
    rows = tuple(
        _row(result, record, figures, asks.get(record.choice), key=f"{task}-{place}")
        for place, record in enumerate(records)
    )
    return _Phase(task, columns, rows, tuple(unfit(result, task)))


def _row(result: Result, record: Record, figures: tuple[str, ...], asks: Asks | None, *, key: str) -> _Row:
    held = record.guarantee
    bits = "" if held.security_bits is None else str(held.security_bits)
    cells = [_Cell(name(record), name(record)), _Cell(held.trust.value, held.trust.value), _Cell(bits or "none", bits)]
    for figure in figures:
        value = record.figure(figure)
        text = of(record, figure) if value is None else of(record, figure).partition(" (")[0]
        cells.append(_Cell(text, "" if value is None else repr(value)))
    return _Row(
        key=key,
        choice=record.choice,
        trust=held.trust.value,
        quantum="yes" if held.post_quantum and held.claims else "no",
        claims=msgspec.json.encode(sorted({_claim(*one) for one in _hidden(record)})).decode(),
        cells=tuple(cells),
        details=tuple(_details(result, record, asks)),
    )


def _details(result: Result, record: Record, asks: Asks | None) -> Iterator[tuple[str, Entry]]:
    held = record.guarantee
    yield "guarantee", tuple(held.sentences())
    yield "holds against", held.adversary.value
    yield "what still leaks", held.leaks
    yield "cryptography", held.primary
    yield "post-quantum", "yes" if held.post_quantum else "no"
    yield "source", held.paper or NOT_MEASURED
    if asks is not None:
        yield (
            "asks for",
            f"organisations: {asks.organisations}; machines: {asks.machines}; lines to write: {asks.lines}",
        )
        yield "may not pool", ", ".join(asks.apart) or "–"
    yield "figures", tuple(f"{figure}: {ranged(figure, spread)}" for figure, spread in record.figures.items())
    yield "measured", f"{record.setting}; {record.repeats} repeats; {record.machine}; confide {result.commit}"
