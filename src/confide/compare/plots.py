"""Pictures of a report, as inline SVG: where people would rather look than read."""

# pyright: basic
# matplotlib's types are partly unknown; this file is its only user.

from __future__ import annotations

import hashlib
import html
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from confide.compare.record import Spread
from confide.errors import MissingExtra

try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
except ImportError:  # the compare extra
    Figure = None

_INK, _MUTED = "#1f3a5f", "#8a94a3"
#: Inches of a picture whose names stand below it: its width, what is around the axes, a line of names.
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _LINE = 5.6, 0.8, 0.15, 0.12, 0.5, 0.18
_RAISED: Mapping[int, str] = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: Letters of a name in a line of one column, and of two.
_WHOLE_LINE, _HALF_LINE = 66, 31
#: Points between the middles of two numbered discs, so that none hides another.
_APART = 17.0
_COLOURS = ("#1f6f8b", "#c8553d", "#5a8f29", "#7a4fa3", "#b8860b", "#444444", "#c2408f")

#: Characters of a name beside an axis; longer ones are cut.
_TICK = 64


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG element with the sentence that says what to see in it."""

    svg: str
    caption: str


def _style():
    """Return the settings under which a picture is drawn: names are text and no formulas, the same bytes every time."""
    if Figure is None:
        raise MissingExtra("matplotlib", "compare")
    return rc_context({"svg.fonttype": "none", "svg.hashsalt": "confide", "text.parse_math": False, "font.size": 10})


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
    said = f'<svg role="img" aria-label="{html.escape(caption)}" '
    return Picture(said + _own_names(svg[svg.index("<svg ") + 5 :]), caption)


def _own_names(svg: str) -> str:
    """Return an SVG whose ids are its own, so that many stand in one page; the names of matplotlib's groups go."""
    svg = re.sub(r'<g id="[a-z_]+\d+">', "<g>", svg)
    mark = hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|"#|url\(#)([A-Za-z0-9_-]+)', rf"\g<1>{mark}-\g<2>", svg)


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


def against_range(
    rows: Mapping[str, Spread], *, low: float, high: float, label: str, caption: str, factor: float, log: bool
) -> Picture:
    """Return one dot with its spread per row over a shaded range: a rule of thumb beside what was measured.

    Args:
        rows: spread by printable name, top to bottom.
        low, high: of the range.
        label: of the axis, with its unit.
        caption: the sentence below.
        factor: to the printed unit.
        log: a logarithmic axis; what is not above 0 has no place on it and is left out.
    """
    with _style():
        figure, axes = _figure(7.8, 1.0 + 0.3 * len(rows))
        axes.axvspan(low * factor, high * factor, color=_MUTED, alpha=0.3, lw=0)
        for place, spread in enumerate(rows.values()):
            ends = [one * factor for one in (spread.low, spread.median, spread.high) if one > 0 or not log]
            axes.plot(ends[:1] + ends[-1:], [place] * len(ends[:1] + ends[-1:]), color=_COLOURS[0], lw=2.5, alpha=0.45)
            if spread.median > 0 or not log:
                axes.plot([spread.median * factor], [place], "o", color=_COLOURS[0], ms=6)
        short = [" ".join(name.split()) for name in rows]
        ticks = [name if len(name) <= _TICK else f"{name[: _TICK - 1]}…" for name in short]
        axes.set_yticks(range(len(rows)), ticks, fontsize=8.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _axes(axes, label, "", log_x=log, log_y=False)
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


def lines(
    rows: Mapping[str, tuple[Sequence[float], Sequence[Spread]]],
    *,
    across: str,
    label: str,
    caption: str,
    factor: float = 1.0,
    log_x: bool = False,
    log_y: bool = False,
    levels: Mapping[str, float] | None = None,
    places: Sequence[str] = (),
) -> Picture:
    """Return one line per row through given points, with a band over the repeats.

    Args:
        rows: (x, spread of y) by printable name.
        across, label: of the axes, with their units.
        caption: the sentence below.
        factor: of y, to the printed unit.
        log_x, log_y: logarithmic axes; a zero has no place on them and is left out.
        levels: further values of y by name, as dotted lines over the whole width.
        places: names of x = 0, 1, 2 ... in place of numbers.
    """
    with _style():
        names = [_shown(name) for name in (*rows, *(levels or {}))]
        figure, axes, legend = _above(names, height=2.9, more=0.32 * bool(places))
        for place, (name, (across_values, spreads)) in enumerate(rows.items()):
            kept = [
                (x, y)
                for x, y in zip(across_values, spreads, strict=True)
                if (x > 0 or not log_x) and (y.median > 0 or not log_y)
            ]
            colour, style, mark = _look(place)
            x = [point for point, _ in kept]
            axes.plot(
                x, [y.median * factor for _, y in kept], style, color=colour, label=_shown(name), lw=1.8, ms=5,
                marker=mark if len(kept) <= 12 else "",
            )  # fmt: skip
            low = [(y.low if y.low > 0 or not log_y else y.median) * factor for _, y in kept]
            axes.fill_between(x, low, [y.high * factor for _, y in kept], color=colour, alpha=0.1, lw=0)
        for place, (name, value) in enumerate((levels or {}).items()):
            axes.axhline(value * factor, ls=":", color=_look(len(rows) + place)[0], lw=1.3, label=_shown(name))
        _axes(axes, across, label, log_x=log_x, log_y=log_y)
        if places:
            axes.set_xticks(range(len(places)), list(places))
        legend(axes, 2.2)
        return _picture(figure, caption)


def cloud(
    rows: Sequence[tuple[str, float, float, str, bool]],
    *,
    across: str,
    label: str,
    caption: str,
    log_x: bool = True,
    log_y: bool = True,
    places: Sequence[str] = (),
) -> Picture:
    """Return a numbered disc for each point, with the names below; discs of points that lie close stand beside them.

    Args:
        rows: (printable name, x, y, group, filled); points of a group share a colour.
        across, label: of the axes, with their units.
        caption: the sentence below.
        log_x, log_y: logarithmic axes.
        places: names of x = 0, 1, 2 ... in place of numbers.
    """
    groups = list(dict.fromkeys(group for _, _, _, group, _ in rows))
    names = [_shown(f"{number}  {name}") for number, (name, *_) in enumerate(rows, 1)]
    with _style():
        figure, axes, legend = _above([*names, *map(_shown, groups)], height=3.1)
        colours = [_COLOURS[groups.index(group) % len(_COLOURS)] for _, _, _, group, _ in rows]
        for (_, x, y, _, _), colour, name in zip(rows, colours, names, strict=True):
            axes.plot([x], [y], ".", ms=4, color=colour)  # where it is
            axes.plot([], [], ls="none", label=name)
        for place, group in enumerate(groups):
            axes.plot([], [], "o", color=_COLOURS[place % len(_COLOURS)], ms=7, label=_shown(group))
        _axes(axes, across, label, log_x=log_x, log_y=log_y)
        axes.margins(0.14)
        if places:
            axes.set_xticks(range(len(places)), list(places))
            axes.set_xlim(-0.6, len(places) - 0.4)
        scale = 72 / figure.dpi
        at = [tuple(scale * v for v in axes.transData.transform((x, y))) for _, x, y, _, _ in rows]
        for number, ((_, x, y, _, filled), colour, here, there) in enumerate(
            zip(rows, colours, at, spread_out(at, apart=_APART), strict=True), 1
        ):
            axes.annotate(
                str(number), (x, y), (there[0] - here[0], there[1] - here[1]), textcoords="offset points", ha="center",
                va="center", fontsize=8.5, weight="bold", color="white" if filled else colour, annotation_clip=False,
                bbox={"boxstyle": "circle,pad=0.22", "fc": colour if filled else "white", "ec": colour, "lw": 1.5},
                arrowprops=None if here == there else {"arrowstyle": "-", "color": colour, "lw": 0.9},
            )  # fmt: skip
        legend(axes, 1.0)
        return _picture(figure, caption)


def spread_out(points: Sequence[tuple[float, float]], *, apart: float) -> list[tuple[float, float]]:
    """Return places for points at least nearly `apart` from each other, each as near its point as that allows.

    Args:
        points: (x, y).
        apart: the least distance, > 0.
    """
    places = [list(point) for point in points]
    for _ in range(300):
        moved = False
        for one in range(len(places)):
            for other in range(one):
                across, up = (places[one][axis] - places[other][axis] for axis in (0, 1))
                distance = math.hypot(across, up)
                if distance >= apart - 1e-6:
                    continue
                if distance < 1e-6:  # on one another: apart in a direction of their own
                    across, up, distance = math.cos(2.4 * one), math.sin(2.4 * one), 1.0
                    push = apart / 2
                else:
                    push = (apart - distance) / 2
                for axis, way in ((0, across / distance), (1, up / distance)):
                    places[one][axis] += push * way
                    places[other][axis] -= push * way
                moved = True
        if not moved:
            break
    return [(x, y) for x, y in places]


def _above(names: Sequence[str], *, height: float, more: float = 0.0):
    """Return a figure, its axes, and what writes the names below them, in as many columns as they need.

    Args:
        names: that will stand below.
        height: of the axes, in inches.
        more: inches for marks of several lines.
    """
    if Figure is None:
        raise MissingExtra("matplotlib", "compare")
    columns = 2 if all(len(line) <= _HALF_LINE for name in names for line in name.split("\n")) else 1
    texts = sum(_wrapped(name).count("\n") + 1 for name in names)
    below = _LINE * -(-texts // columns) + 0.1
    whole = _TOP + height + _BOTTOM + more + below
    figure = Figure(figsize=(_WIDTH, whole))
    axes = figure.add_axes(
        (_LEFT / _WIDTH, (below + more + _BOTTOM) / whole, 1 - (_LEFT + _RIGHT) / _WIDTH, height / whole)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)

    def legend(axes, handle: float) -> None:
        lines, labels = axes.get_legend_handles_labels()
        figure.legend(
            lines, list(map(_wrapped, labels)), frameon=False, fontsize=8.5, loc="lower left",
            bbox_to_anchor=(0.01, 0.0), ncols=columns, handlelength=handle, labelspacing=0.35, borderpad=0.2,
        )  # fmt: skip

    return figure, axes, legend


def _wrapped(name: str) -> str:
    """Return a name in lines that fit."""
    return "\n".join("\n".join(textwrap.wrap(line, _WHOLE_LINE, drop_whitespace=False)) for line in name.split("\n"))


def _look(place: int) -> tuple[str, str, str]:
    """Return colour, line and mark of the line at a place; no two of the first thirty look the same."""
    turn = place // len(_COLOURS)
    return _COLOURS[place % len(_COLOURS)], ("-", "--", "-.", ":")[turn % 4], "osD^v"[place % 5]


def _shown(name: str) -> str:
    """Return a name for the legend, which leaves out those that begin with a line."""
    return f" {name}" if name.startswith("_") else name


def _tick(value: float) -> str:
    if value >= 1e-3:
        return f"{value:,g}"
    digits, _, power = f"{value:.0e}".partition("e")
    raised = str(int(power)).translate(_RAISED)
    return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"


def _axes(axes, across: str, label: str, *, log_x: bool, log_y: bool) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.grid(color=_MUTED, alpha=0.25)
    for axis, scale, log in ((axes.xaxis, axes.set_xscale, log_x), (axes.yaxis, axes.set_yscale, log_y)):
        if log:
            scale("log")
            low, high = axis.get_data_interval()
            narrow = low > 0 and high / low < 50
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=8))
            axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
            axis.set_minor_formatter(NullFormatter())
