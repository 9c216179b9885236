"""How a process of a mode stands: what an operator sees as one line, and Prometheus as figures."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

import msgspec

from confide.serve.parties.messages import Order
from confide.serve.parties.sessions import Ended


@dataclass(slots=True)
class _Totals:
    ended: Counter[str] = field(default_factory=Counter[str])
    failed: Counter[str] = field(default_factory=Counter[str])
    rows: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict[str, float](float))
    worked_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict[str, float](float))
    sent_bytes: Counter[str] = field(default_factory=Counter[str])
    received_bytes: Counter[str] = field(default_factory=Counter[str])


#: What links say when the process at their other end was told to stop.
_STOPPED = ("this member stops", "the coordinator stops")


def departed(who: str, reason: str) -> str:
    """Return in one line that somebody's link has ended, and why."""
    return f"{who} has left" + ("" if reason in _STOPPED else f": {reason}")


def _line(order: Order, ended: Ended) -> dict[str, object]:
    """Return what the log says of a session: no value of an input, and no text of a peer."""
    figures, error = ended.figures, ended.error
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": ended.session.rpartition("/")[2][:32],
        "route": order.kind,
        "model": order.model.hex()[:12],
        "caller": order.client,
        "rows": order.rows,
        "count": order.count,
        "code": "ok" if error is None else type(error).__name__,
        "request_bytes": sum(figures.received.values()),
        "reply_bytes": sum(figures.sent.values()),
        "seconds": round(figures.seconds, 6),
    }


class Standing:
    """Counts the sessions of one process; safe for threads.

    Args:
        role: the process's.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        #: Where a JSON line for each session goes, as `confide serve` writes one for each request; None writes none.
        self.log: TextIO | None = None
        #: Why everything says INSECURE, "" if it does not.
        self.insecure = ""
        self._totals = _Totals()
        self._stock: dict[tuple[str, str], int] = {}
        self._alone = threading.Lock()

    def ended(self, order: Order, ended: Ended) -> None:
        """Count a session, and write its line."""
        if self.log is not None:
            with suppress(OSError, ValueError):  # its reader has gone, or it was closed: predictions go on
                self.log.write(msgspec.json.encode(_line(order, ended)).decode() + "\n")
                self.log.flush()
        with self._alone:
            totals, figures = self._totals, ended.figures
            counted = totals.failed if ended.error is not None else totals.ended
            counted[order.kind] += 1
            totals.seconds[order.kind] += figures.seconds
            totals.worked_seconds[order.kind] += figures.worked_seconds
            totals.sent_bytes[order.kind] += sum(figures.sent.values())
            totals.received_bytes[order.kind] += sum(figures.received.values())
            if ended.error is None and order.kind == "predict":
                totals.rows += order.rows
            pair = order.model.hex()[:12], order.client
            if ended.error is None and order.kind == "deal":
                self._stock[pair] = self._stock.get(pair, 0) + order.count
            elif order.kind == "predict" and not order.dealt and self._stock.get(pair, 0):
                self._stock[pair] -= 1

    def stock(self) -> Mapping[tuple[str, str], int]:
        """Return how many predictions were dealt ahead for, and not asked for since, by model and client.

        At a dealer, who takes no part in what is asked for from stock: how many it has dealt for.
        """
        with self._alone:
            return dict(self._stock)

    def line(self) -> str:
        """Return it in one line."""
        with self._alone:
            totals = self._totals
            parts = [
                f"{totals.ended['predict']} predictions ({totals.rows} rows)",
                f"{totals.ended['setup']} set-ups",
                f"{totals.failed.total()} ended early",
            ]
            if self.role == "dealer":
                pairs = f"{len(self._stock)} pairs of client and model"
                parts.append(f"dealt ahead for {sum(self._stock.values())} predictions of {pairs}")
                parts.append(f"{totals.sent_bytes.total()} bytes dealt")
            return (f"INSECURE ({self.insecure}): " if self.insecure else "") + ", ".join(parts)

    def _ahead(self) -> tuple[str, str, str]:
        if self.role == "dealer":
            return "confide_parties_dealt_total", "counter", "Predictions dealt ahead for"
        return "confide_parties_stock", "gauge", "Predictions dealt ahead for, and not asked for since"

    def exposition(self) -> bytes:
        """Return figures in Prometheus's text format; names of clients stay out."""
        with self._alone:
            totals = self._totals
            kinds = ("setup", "deal", "predict")
            tables: tuple[tuple[str, str, str, Mapping[str, float]], ...] = (
                ("confide_parties_sessions_total", "counter", "Sessions that ended with a result", totals.ended),
                ("confide_parties_aborts_total", "counter", "Sessions that ended without one", totals.failed),
                ("confide_parties_seconds_total", "counter", "Seconds of sessions", totals.seconds),
                ("confide_parties_work_seconds_total", "counter", "Seconds at work here", totals.worked_seconds),
                ("confide_parties_sent_bytes_total", "counter", "Bytes of bodies sent", totals.sent_bytes),
                ("confide_parties_received_bytes_total", "counter", "Bytes of bodies received", totals.received_bytes),
            )
            lines: list[str] = []
            for name, kind, text, values in tables:
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                lines += [f'{name}{{role="{self.role}",kind="{one}"}} {values.get(one, 0):.17g}' for one in kinds]
            single = (
                ("confide_parties_rows_total", "counter", "Rows answered", totals.rows),
                (*self._ahead(), sum(self._stock.values())),
                ("confide_parties_insecure", "gauge", "1 where roles share a machine", int(bool(self.insecure))),
            )
            for name, kind, text, value in single:
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f'{name}{{role="{self.role}"}} {value}']
        return ("\n".join(lines) + "\n").encode()
