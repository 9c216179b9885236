"""One self-contained HTML file: plots, tables, guarantees, the strategic table. No script, no request to anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from confide.compare.advise import Advice
from confide.compare.plots import Picture
from confide.compare.record import Record, Spread
from confide.compare.techniques import INFERENCE, TRAINING, Technique
from confide.errors import MissingExtra, UsageError
from confide.model.artifact import write_whole

try:
    import jinja2
except ImportError:  # the compare extra
    jinja2 = None

#: Table columns: heading, figure name, factor to the printed unit, decimals (-1: scientific). A new column is one line.
TRAINING_COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("accuracy %", "accuracy_share", 100, 1),
    ("AUC %", "auc_share", 100, 1),
    ("rounds", "rounds_count", 1, 0),
    ("kB sent per party", "upload_bytes", 1e-3, 1),
    ("seconds", "train_seconds", 1, 2),
    ("epsilon", "epsilon_total", 1, 2),
)
INFERENCE_COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("set-up s", "setup_seconds", 1, 2),
    ("first answer ms", "first_seconds", 1e3, 1),
    ("p50 ms", "latency_seconds", 1e3, 2),
    ("p95 ms", "latency_p95_seconds", 1e3, 2),
    ("added ms", "added_seconds", 1e3, 2),
    ("times plain", "factor_over_plain", 1, 1),
    ("up B", "upload_bytes", 1, 0),
    ("down B", "download_bytes", 1, 0),
    ("keys B", "key_bytes", 1, 0),
    ("largest error", "error_largest", 1, -1),
    ("decisions agree %", "agreement_share", 100, 1),
    ("queries to copy it", "extraction_queries", 1, 0),
)


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the report: a heading, a paragraph, pictures, records as a table."""

    title: str
    text: str
    pictures: tuple[Picture, ...] = ()
    records: tuple[Record, ...] = ()


def cell(record: Record, name: str, factor: float, decimals: int) -> str:
    """Return a figure as the table prints it: the median, with its spread where it has one; a dash if absent."""
    spread = record.figures.get(name)
    if spread is None:
        return "–"
    if decimals < 0:
        return f"{spread.median * factor:.1e}"
    text = f"{spread.median * factor:,.{decimals}f}"
    if spread.high - spread.low > 10.0**-decimals / factor:
        text += f" ({spread.low * factor:,.{decimals}f} to {spread.high * factor:,.{decimals}f})"
    return text


def techniques(task: str) -> Mapping[str, Technique]:
    """Return the techniques of a task by name."""
    return TRAINING if task == "training" else INFERENCE


def title(record: Record) -> str:
    """Return the printable name of the technique that a record measured."""
    return techniques(record.task)[record.choice].title


def columns(task: str) -> tuple[tuple[str, str, float, int], ...]:
    """Return the columns of a task's table."""
    return TRAINING_COLUMNS if task == "training" else INFERENCE_COLUMNS


@dataclass(frozen=True, slots=True)
class StrategicRow:
    """One technique in the strategic table."""

    title: str
    cryptography: str
    latency: str
    communication: str
    state: str
    guarantee: tuple[str, ...]
    leaks: str
    use_case: str
    framework: str
    needs: str
    measured: bool


def _latency(record: Record) -> str:
    if record.task == "inference":
        return f"{_median(record, 'latency_seconds') * 1e3:.2f} ms per query"
    rounds = record.figure("rounds_count")
    return f"{_median(record, 'train_seconds'):.2f} s" + (f" for {rounds:.0f} rounds" if rounds else "")


def _communication(record: Record) -> str:
    up, down = _median(record, "upload_bytes"), _median(record, "download_bytes")
    if record.task == "inference":
        return f"{up:,.0f} B up, {down:,.0f} B down, {_median(record, 'key_bytes'):,.0f} B of keys once"
    return f"{up / 1e3:,.1f} kB sent per party in all"


def _median(record: Record, name: str) -> float:
    return record.figures.get(name, Spread(0.0, 0.0, 0.0, 0.0)).median


def strategic(records: Sequence[Record], task: str) -> list[StrategicRow]:
    """Return the strategic table of one phase: every technique, measured or not."""
    measured = {record.choice: record for record in records if record.task == task}
    rows: list[StrategicRow] = []
    for name, known in techniques(task).items():
        record = measured.get(name)
        no = "not measured"
        bits = record.guarantee.security_bits if record else None
        rows.append(
            StrategicRow(
                title=known.title,
                cryptography=no if record is None else record.guarantee.primary + (f", {bits} bits" if bits else ""),
                latency=_latency(record) if record else no,
                communication=_communication(record) if record else no,
                state=known.state,
                guarantee=tuple(record.guarantee.sentences()) if record else (no,),
                leaks=record.guarantee.leaks if record else no,
                use_case=known.use_case,
                framework=known.framework if record else no,
                needs=known.needs,
                measured=record is not None,
            )
        )
    return rows


def write(path: Path, *, heading: str, intro: str, sections: Sequence[Section], advice: Mapping[str, Advice]) -> None:
    """Write the report; the file appears whole or not at all.

    Args:
        path: the HTML file, replaced if it exists.
        heading, intro: the head of the page.
        sections: in their order.
        advice: recommendations by the question they answer.

    Raises:
        MissingExtra: jinja2 is absent.
        UsageError: the folder is absent or may not be written to.
    """
    if jinja2 is None:
        raise MissingExtra("jinja2", "compare")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("confide.compare", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    records = [record for section in sections for record in section.records]
    text = environment.get_template("report.html.j2").render(
        heading=heading,
        intro=intro,
        sections=sections,
        advice=advice,
        cell=cell,
        title=title,
        columns=columns,
        strategic={"Training": strategic(records, "training"), "Inference": strategic(records, "inference")},
        techniques=techniques,
        data=json.dumps([record.plain() for record in records], indent=1),
    )
    try:
        write_whole(path, text.encode(), mode=0o644)
    except OSError as error:
        raise UsageError(f"Expected a folder that can be written to for {path}; {error.strerror}") from None
