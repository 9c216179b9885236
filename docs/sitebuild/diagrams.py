"""Sequence diagrams as SVG, from the part of Mermaid's notation that the pages use; no script runs in a reader's browser.

    participant NAME as LABEL     a column
    A->>B: text                   what A sends to B
    A-->>B: text                  the same, dashed: back to who asked
    Note over A: text             what A does by itself

Where GitHub shows the page, Mermaid draws the same.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

_COLUMN = re.compile(r"(?:participant|actor) (\w+)(?: as (.+))?$")
_ARROW = re.compile(r"(\w+)(--?>>)(\w+): ?(.+)$")
_NOTE = re.compile(r"Note over (\w+)(?:, ?(\w+))?: ?(.+)$")

_LINE, _SMALL, _LETTER = 17, 13, 7.1
_GAP, _BOX = 250, 150


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens.

    Args:
        kind: "send", "answer" or "note".
        src, dst: columns.
        text: in one line.
    """

    kind: str
    src: str
    dst: str
    text: str


def parse(text: str) -> tuple[dict[str, str], list[Event]]:
    """Return the columns, label by name, and the events of a diagram.

    Raises:
        ValueError: something is not of the notation, or names no column.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("%%")]
    if not lines or lines[0] != "sequenceDiagram":
        raise ValueError("Expected a diagram that begins with sequenceDiagram")
    columns: dict[str, str] = {}
    events: list[Event] = []
    for line in lines[1:]:
        if found := _COLUMN.match(line):
            columns[found[1]] = found[2] or found[1]
        elif found := _ARROW.match(line):
            events.append(Event("send" if found[2] == "->>" else "answer", found[1], found[3], found[4]))
        elif found := _NOTE.match(line):
            events.append(Event("note", found[1], found[2] or found[1], found[3]))
        else:
            raise ValueError(f"Expected a participant, an arrow or a note, got {line!r}")
    for event in events:
        for name in (event.src, event.dst):
            if name not in columns:
                raise ValueError(f"Expected a participant, got {name!r} in {event.text!r}")
    return columns, events


def draw(text: str) -> str:
    """Return a diagram as an SVG element that takes its colours from the page."""
    columns, events = parse(text)
    gap = _GAP if len(columns) < 5 else _GAP - 55
    at = {name: _BOX / 2 + 10 + number * gap for number, name in enumerate(columns)}
    width = (len(columns) - 1) * gap + _BOX + 20
    head = 26 + _LINE * max(len(_wrapped(label, _BOX - 16)) for label in columns.values())
    body, y = [], head + 16.0
    for event in events:
        drawn, y = _event(event, at, y, gap, width)
        body += drawn
    height = y + 14
    lanes = [f'<line class="lane" x1="{x:g}" y1="{head}" x2="{x:g}" y2="{height - 6:g}"/>' for x in at.values()]
    heads = [piece for name, label in columns.items() for piece in _head(label, at[name], head)]
    words = "; ".join(f"{columns[e.src]} to {columns[e.dst]}: {e.text}" for e in events if e.kind != "note")
    return (
        f'<svg class="sequence" role="img" viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px"'
        f' xmlns="http://www.w3.org/2000/svg"><title>{escape(words)}</title>'
        + "".join([*lanes, *heads, *body])
        + "</svg>"
    )


def _head(label: str, x: float, height: float) -> Iterator[str]:
    yield f'<rect class="party" x="{x - _BOX / 2:g}" y="6" width="{_BOX}" height="{height - 6:g}" rx="8"/>'
    lines = _wrapped(label, _BOX - 16)
    top = 6 + (height - 6 - _LINE * len(lines)) / 2 + _SMALL
    yield from _lines(lines, x, top, "party-name")


def _event(event: Event, at: dict[str, float], y: float, gap: float, width: float) -> tuple[list[str], float]:
    start, end = at[event.src], at[event.dst]
    if event.kind == "note" or start == end:
        left, right = min(start, end) - _BOX / 2, max(start, end) + _BOX / 2
        lines = _wrapped(event.text, right - left - 14)
        height = _LINE * len(lines) + 10
        box = f'<rect class="note" x="{left:g}" y="{y:g}" width="{right - left:g}" height="{height}" rx="4"/>'
        return [box, *_lines(lines, (left + right) / 2, y + 4 + _SMALL, "said")], y + height + 14
    lines = _wrapped(event.text, abs(end - start) - 26)
    drawn = list(_lines(lines, (start + end) / 2, y + _SMALL, "said"))
    y += _LINE * len(lines) + 5
    way = 1 if end > start else -1
    tip = end - 2 * way
    style = "arrow back" if event.kind == "answer" else "arrow"
    drawn.append(f'<line class="{style}" x1="{start:g}" y1="{y:g}" x2="{tip - 6 * way:g}" y2="{y:g}"/>')
    drawn.append(
        f'<path class="tip" d="M{tip:g} {y:g} L{tip - 9 * way:g} {y - 4.5:g} L{tip - 9 * way:g} {y + 4.5:g} Z"/>'
    )
    return drawn, y + 18


def _lines(lines: Sequence[str], x: float, top: float, kind: str) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f'<text class="{kind}" x="{x:g}" y="{top + number * _LINE:g}">{escape(line)}</text>'


def _wrapped(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, max(8, int(width / _LETTER))) or [""]


class Diagram(Directive):
    """A fence that says `mermaid`."""

    has_content = True

    def run(self) -> list[Any]:
        """Return the drawing."""
        try:
            drawn = draw("\n".join(self.content))
        except ValueError as error:
            raise self.error(str(error)) from error
        return [nodes.raw("", f'<figure class="diagram">{drawn}</figure>', format="html")]
