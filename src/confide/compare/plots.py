"""Pictures of a report, as inline SVG: where people would rather look than read."""

# pyright: basic
# matplotlib's types are partly unknown; this file is its only user.

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from confide.compare.record import Spread
from confide.errors import MissingExtra

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter
except ImportError:  # the compare extra
    Figure = None

_INK, _MUTED = "#1f3a5f", "#8a94a3"
_COLOURS = ("#1f6f8b", "#c8553d", "#5a8f29", "#7a4fa3", "#b8860b", "#444444")


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG element with the sentence that says what to see in it."""

    svg: str
    caption: str


def _figure(width: float, height: float):
    if Figure is None:
        raise MissingExtra("matplotlib", "compare")
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    return figure, axes


def _picture(figure, caption: str) -> Picture:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return Picture(svg[svg.index("<svg") :], caption)


def dots(rows: Mapping[str, Spread], *, label: str, caption: str, factor: float = 1.0, log: bool = False) -> Picture:
    """Return one dot with its spread per row: for accuracies, latencies, bytes.

    Args:
        rows: spread by printable name, top to bottom.
        label: of the axis, with its unit.
        caption: the sentence below.
        factor: to the printed unit.
        log: a logarithmic axis.
    """
    figure, axes = _figure(7.2, 0.9 + 0.42 * len(rows))
    for place, spread in enumerate(rows.values()):
        colour = _COLOURS[place % len(_COLOURS)]
        axes.plot([spread.low * factor, spread.high * factor], [place, place], color=colour, lw=2.5, alpha=0.45)
        axes.plot([spread.median * factor], [place], "o", color=colour, ms=7)
        value = spread.median * factor
        text = f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"
        at = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "color": _INK}
        axes.annotate(text, (value, place), (0, 8), **at)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=_MUTED, alpha=0.25)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    return _picture(figure, caption)


def curves(
    rows: Mapping[str, Sequence[float]], *, across: str, label: str, caption: str, factor: float = 1.0
) -> Picture:
    """Return one line per row over 1, 2, 3 ...: for accuracy by round."""
    figure, axes = _figure(7.2, 3.0)
    for place, (name, values) in enumerate(rows.items()):
        style = "-" if place % 2 == 0 else "--"
        axes.plot(
            range(1, len(values) + 1),
            [value * factor for value in values],
            style,
            color=_COLOURS[place % len(_COLOURS)],
            label=name,
        )
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.grid(color=_MUTED, alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return _picture(figure, caption)


def stacked(rows: Mapping[str, Mapping[str, float]], *, label: str, caption: str) -> Picture:
    """Return one horizontal bar per row, cut into parts: for who holds which classes."""
    figure, axes = _figure(7.2, 0.9 + 0.42 * len(rows))
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    left = dict.fromkeys(rows, 0.0)
    for place, part in enumerate(parts):
        widths = [row.get(part, 0.0) for row in rows.values()]
        axes.barh(
            list(rows), widths, left=list(left.values()), color=_COLOURS[place % len(_COLOURS)], label=part, height=0.6
        )
        left = {name: left[name] + width for name, width in zip(rows, widths, strict=True)}
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.legend(frameon=False, fontsize=8)
    return _picture(figure, caption)
