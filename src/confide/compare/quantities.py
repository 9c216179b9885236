"""Figures in words: the unit that a name ends with decides how its value is printed."""

from __future__ import annotations

import math
from collections.abc import Mapping

from confide.compare.record import Record, Spread

NOT_MEASURED = "not measured"

#: Names that read badly when their underscores become spaces.
_WORDS: Mapping[str, str] = {
    "accuracy_share": "accuracy",
    "accuracy_low_share": "accuracy, at least for all that noise tells",
    "accuracy_high_share": "accuracy, at most for all that noise tells",
    "auc_low_share": "AUC, at least for all that noise tells",
    "auc_high_share": "AUC, at most for all that noise tells",
    "concordance_share": "concordance",
    "auc_share": "AUC",
    "agreement_share": "decisions that agree",
    "busiest_role_rate": "requests per second by the busiest role's work",
    "added_seconds": "added to plain",
    "clear_seconds": "in the clear, onnxruntime",
    "cpu_client_seconds": "CPU, client",
    "cpu_server_seconds": "CPU, servers",
    "cpu_offline_seconds": "CPU ahead of the query",
    "depth_count": "one-way trips",
    "epsilon_total": "epsilon",
    "error_largest": "largest error",
    "extraction_queries": "queries to copy the model",
    "factor_over_plain": "times plain",
    "first_seconds": "first answer",
    "latency_seconds": "here, p50",
    "latency_p95_seconds": "here, p95",
    "latency_p99_seconds": "here, p99",
    "load_answers_count": "answers under load",
    "load_clients_count": "clients under load",
    "load_p50_seconds": "under load, p50",
    "load_p95_seconds": "under load, p95",
    "load_p99_seconds": "under load, p99",
    "load_window_seconds": "time under load",
    "lines_of_user_code_count": "lines a user writes",
    "money_dollars": "money",
    "offline_bytes": "sent ahead",
    "query_total_bytes": "all bytes of a query",
    "requests_per_second_rate": "requests per second, under load",
    "rounds_count": "rounds",
    "setup_seconds": "set-up",
    "train_seconds": "here",
    "weight_layers_count": "layers with weights",
}
_UNITS: tuple[str, ...] = ("_seconds", "_bytes", "_share", "_count", "_dollars", "_rate", "_queries", "_factor")


def unit(name: str) -> str:
    """Return the unit at the end of a figure's name, "" where it has none."""
    return next((end[1:] for end in _UNITS if name.endswith(end)), "")


def words(name: str) -> str:
    """Return a figure's name for people."""
    if name in _WORDS:
        return _WORDS[name]
    stem = name[: -len(unit(name)) - 1] if unit(name) else name
    for task in ("latency_", "train_"):
        if stem.startswith(task):
            link = stem.removeprefix(task).replace("_", " ")
            return "over " + (link.upper() if link in ("lan", "wan") else link)
    what, of_role, role = stem.partition("_of_")
    if of_role:
        known = {"cpu": "CPU", "load_cpu": "CPU under load", "peak_memory": "peak memory under load"}
        return f"{known.get(what, what)}, {role}"
    tail = ", bytes" if name.endswith("_bytes") and stem in ("setup", "offline") else ""
    return stem.replace("_", " ") + tail


def number(value: float) -> str:
    """Return three significant digits, with commas between thousands."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3 or abs(value) >= 1e15:
        return f"{value:.1e}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def shown(name: str, value: float) -> str:
    """Return a figure's value with a unit that people read; the space between them does not break."""
    return " ".join(_parts(name, value)).replace(" ", "\N{NO-BREAK SPACE}")


def _parts(name: str, value: float) -> tuple[str, ...]:
    """Return the number and its unit."""
    kind = unit(name)
    if kind == "seconds":
        size = abs(value)
        if size >= 120:
            return number(value / 60), "min"
        scaled, short = (value, "s") if size >= 1 else (value * 1e3, "ms") if size >= 1e-4 else (value * 1e6, "µs")
        return (number(scaled), short) if value else ("0", "s")
    if kind == "bytes":
        for least, short in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if abs(value) >= least:
                return number(value / least), short
        return f"{value:.0f}", "B"
    if kind == "share":
        return f"{100 * value:.1f}", "%"
    if kind == "dollars":
        small = 0 < abs(value) < 1e-3
        return (f"${value:.{1 - math.floor(math.log10(abs(value)))}f}" if small else f"${number(value)}",)
    if kind in ("count", "queries"):
        return (f"{value:,.0f}",)
    if kind == "factor":
        return number(value), "times"
    if kind == "rate":
        return number(value), "/s"
    return (number(value),)


def ranged(name: str, spread: Spread) -> str:
    """Return the median, with the 5th to the 95th percentile where they print differently."""
    low, median, high = (_parts(name, value) for value in (spread.low, spread.median, spread.high))
    if low == high:
        return shown(name, spread.median)
    same = low[1:] == median[1:] == high[1:]  # the unit once
    ends = (low[0], high[0]) if same else (shown(name, spread.low), shown(name, spread.high))
    return f"{shown(name, spread.median)} ({ends[0]} to {ends[1]})"


def of(record: Record, name: str) -> str:
    """Return a record's figure as `ranged`, or "not measured"; without noise there is no epsilon to measure."""
    if name == "epsilon_total" and name not in record.figures:
        return "no bound"
    return ranged(name, record.figures[name]) if name in record.figures else NOT_MEASURED


def median_of(record: Record, name: str) -> str:
    """Return a record's figure without its spread, or "not measured"."""
    value = record.figure(name)
    return NOT_MEASURED if value is None else shown(name, value)
