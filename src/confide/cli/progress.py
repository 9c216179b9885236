"""What a coordinator and a node show in a terminal: a few lines that follow the run; elsewhere one line per event.

    with coordinator_display() as display:
        ...
        display.show(board.snapshot())

`show` may be called as often as one likes. On a terminal the lines are drawn anew, four times a second; in a log file
or a pipe only what has changed since the last call is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from confide.cli import console
from confide.train.status import PRESENT, Finished, Node, NodeState, Phase, Status

_View = TypeVar("_View")

_LINES = 12  # of nodes on a terminal; those that need somebody come first
_BAR_WIDTH = 40
_STYLES: Mapping[NodeState, str] = {
    NodeState.REFUSED: "red",
    NodeState.ASKING: "magenta",
    NodeState.AWAY: "yellow",
    NodeState.EXPECTED: "dim",
    NodeState.WORKING: "blue",
    NodeState.CONNECTED: "cyan",
    NodeState.SUMMED: "green",
}


class Display(Generic[_View]):
    """Shows a view as it changes; used in a `with` statement.

    Args:
        picture: what a terminal shows of a view at a time (Unix seconds).
        lines: what has happened between two views, the first of which is None at the start.
        to: where to print; standard error if None.
        idle: what a terminal shows before there is a view.
    """

    def __init__(
        self,
        picture: Callable[[_View, float], RenderableType],
        lines: Callable[[_View | None, _View], Iterable[str]],
        to: Console | None = None,
        *,
        idle: str = "starting",
    ) -> None:
        self._picture, self._lines, self._idle = picture, lines, idle
        self._console = to or console.err
        self._view: _View | None = None
        self._live: Live | None = None

    def show(self, view: _View) -> None:
        """Show the newest view."""
        before, self._view = self._view, view
        if self._live is None:
            for line in self._lines(before, view):
                self._console.print(line)

    def note(self, text: str) -> None:
        """Print a line for people, above the picture."""
        self._console.print(text)

    def tell(self, text: str) -> None:
        """Print a line of data on standard output; above the picture where both are one terminal."""
        if self._live is not None and console.out.is_terminal:
            self._console.print(text)
        else:
            console.out.print(text)

    def __enter__(self) -> Display[_View]:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._now,
                console=self._console,
                refresh_per_second=4,
                redirect_stdout=False,  # standard output stays data
                vertical_overflow="crop",
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _now(self) -> RenderableType:
        return Text(self._idle) if self._view is None else self._picture(self._view, time.time())


# --- the coordinator --------------------------------------------------------------------------------------------------


def coordinator_display(to: Console | None = None, *, idle: str = "starting") -> Display[Status]:
    """Return the display of `confide coordinator`."""
    return Display(_run_picture, run_lines, to, idle=idle)


def run_lines(before: Status | None, after: Status) -> Iterator[str]:
    """Yield one line for everything that has happened to a run between two snapshots."""
    if before is None:
        yield (
            f"run {after.run} of job {after.job}: {_few(after.rounds, 'round')}, sums of at least {after.quorum} "
            f"nodes by {after.aggregator}"
        )
    if before is None or before.phase is not after.phase:
        yield from _phase_lines(after)
    old = {} if before is None else {node.name: node for node in before.nodes}
    for node in after.nodes:
        yield from _node_lines(old.get(node.name), node)
    if before is not None and after.failed_attempts > before.failed_attempts:
        yield f"round {after.round}: an attempt released no sum ({after.failed_attempts} in this run)"
    known = {} if before is None else {one.number: one for one in before.history}
    for one in after.history:
        earlier = known.get(one.number)
        if earlier is None and one.number > (before.finished if before else 0):
            yield _round_line(one, after)
        if one.accuracy is not None and (earlier is None or earlier.accuracy is None):
            yield f"accuracy after round {one.number}: {100 * one.accuracy:.1f} %"


def _phase_lines(status: Status) -> Iterator[str]:
    if status.phase is Phase.FAILED:
        yield f"failed: {status.reason}"
    elif status.phase is Phase.DONE:
        yield f"done after {_few(status.finished, 'round')}; the model is {status.model_hash or 'unnamed'}"
    else:
        yield f"{status.phase.value}"


def _node_lines(before: Node | None, after: Node) -> Iterator[str]:
    """Yield what people must know of a node; that it works, and has worked, is told with its round."""
    was, now = before.state if before else NodeState.EXPECTED, after.state
    if was is now:
        return
    who = after.name if after.role == "node" else f"{after.name} ({after.role})"
    because = f": {after.reason}" if after.reason else ""
    if now in (NodeState.AWAY, NodeState.REFUSED, NodeState.ASKING):
        yield f"{who} {'is ' if now is not NodeState.REFUSED else ''}{now.value}{because}"
    elif was is NodeState.ASKING:
        yield f"{who} takes part"
    elif was not in PRESENT:
        yield f"{who} is connected"


def _round_line(one: Finished, status: Status) -> str:
    parts = [f"round {one.number} of {status.rounds}: {_few(one.members, 'node')}"]
    if one.missing:
        parts.append(f"without {', '.join(one.missing)}")
    if one.attempts > 1:
        parts.append(_few(one.attempts, "attempt"))
    parts += [duration(one.seconds), _size(one.bytes_up + one.bytes_down)]
    if one.epsilon is not None:
        parts.append(_spent(one.epsilon, status.epsilon_budget))
    return ", ".join(parts)


def _run_picture(status: Status, now_seconds: float) -> RenderableType:
    head = Text.assemble((status.job, "bold"), "  ", (status.phase.value, _phase_style(status)), f"  run {status.run}")
    parts: list[RenderableType] = [head]
    if status.reason:
        parts.append(Text(status.reason, "red"))
    parts += [_bar(status.finished, status.rounds, _left(status, now_seconds)), Text(_figures(status))]
    ranked = sorted(status.nodes, key=lambda node: list(_STYLES).index(node.state))
    nodes = Table.grid(padding=(0, 2))
    for node in ranked[:_LINES]:
        since = "" if node.state is NodeState.SUMMED else duration(now_seconds - node.since_seconds)
        words = Text.assemble(
            (node.state.value, _STYLES[node.state]), f" {since}", f": {node.reason}" * bool(node.reason)
        )
        nodes.add_row(
            Text(node.name), words, Text(_few(node.rounds, "sum") if node.role == "node" else node.role, "dim")
        )
    parts.append(nodes)
    if len(ranked) > _LINES:
        parts.append(Text(f"and {len(ranked) - _LINES} more", "dim"))
    return Group(*parts)


def _phase_style(status: Status) -> str:
    return {Phase.DONE: "green", Phase.FAILED: "red"}.get(status.phase, "blue")


def _figures(status: Status) -> str:
    attempt = f", attempt {status.attempt}" if status.attempt > 1 else ""
    parts = [f"round {status.round} of {status.rounds}{attempt}" if status.round else "no round yet"]
    if status.epsilon is not None:
        parts.append(_spent(status.epsilon, status.epsilon_budget))
    accuracy = next((one.accuracy for one in reversed(status.history) if one.accuracy is not None), None)
    if accuracy is not None:
        parts.append(f"accuracy {100 * accuracy:.1f} %")
    return ", ".join(parts)


def _left(status: Status, now_seconds: float) -> str:
    if status.expected_end_seconds is None or status.finished >= status.rounds:
        return ""
    return f"about {duration(max(1.0, status.expected_end_seconds - now_seconds))} left"


# --- a node -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """What one node shows of itself.

    Args:
        name, coordinator: who it is, and whom it talks to.
        job: the job's name; empty before there is one.
        phase: what a log should tell, in words ("waiting for the coordinator", "waiting for a person: confide node
            approve ...", "in the run", "done").
        doing: what it does at this moment, for a terminal alone ("trains", "waits for the other nodes").
        round, rounds: the coordinator's; 0 before the first.
        taken: sums that this node was in.
        epsilon, epsilon_budget: of its data set over its lifetime, by this node's own account; None without one.
    """

    name: str
    coordinator: str
    job: str = ""
    phase: str
    doing: str = ""
    round: int = 0
    rounds: int = 0
    taken: int = 0
    epsilon: float | None = None
    epsilon_budget: float | None = None


def node_display(to: Console | None = None) -> Display[NodeView]:
    """Return the display of `confide node`."""
    return Display(_node_picture, node_lines, to)


def node_lines(before: NodeView | None, after: NodeView) -> Iterator[str]:
    """Yield one line for everything that has happened to a node between two views."""
    if before is None:
        yield f"node {after.name} of {after.coordinator}"
    if after.job and (before is None or before.job != after.job):
        yield f"job {after.job}: {_few(after.rounds, 'round')}"
    if before is None or before.phase != after.phase:
        yield after.phase
    if before is not None and after.taken > before.taken:
        spent = (
            "" if after.epsilon is None else f"; {_spent(after.epsilon, after.epsilon_budget)} by this node's account"
        )
        yield f"took part in round {after.round} of {after.rounds}{spent}"


def _node_picture(view: NodeView, now_seconds: float) -> RenderableType:
    head = Text.assemble((view.name, "bold"), f"  {view.job}" * bool(view.job), (f"  {view.phase}", "blue"))
    parts: list[RenderableType] = [head]
    if view.doing:
        dots = "." * (1 + int(now_seconds) % 3)
        parts.append(Text(f"{view.doing} {dots}"))
    if view.rounds:
        parts.append(_bar(view.round, view.rounds, f"took part in {_few(view.taken, 'sum')}"))
    if view.epsilon is not None:
        parts.append(Text(f"{_spent(view.epsilon, view.epsilon_budget)} over the lifetime of these data"))
    return Group(*parts)


# --- words ------------------------------------------------------------------------------------------------------------


def _bar(done: int, total: int, text: str) -> RenderableType:
    row = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, total), completed=done, width=_BAR_WIDTH)
    row.add_row(bar, Text(f"{done}/{total}"), Text(text, "dim"))
    return row


def _few(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _spent(epsilon: float, budget: float | None) -> str:
    return f"epsilon {epsilon:.3g}" + ("" if budget is None else f" of {budget:.3g}")


def _size(body_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if body_bytes < 1000:
            return f"{body_bytes:.3g} {unit}"
        body_bytes /= 1000
    return f"{body_bytes:.3g} TB"


def duration(seconds: float) -> str:
    """Return a time as a person says it: "0.25 s", "42 s", "3 min 5 s", "2 h 10 min", "5 days".

    Example:
        >>> [duration(seconds) for seconds in (0.2534, 42.4, 185, 7800, 432000)]
        ['0.25 s', '42 s', '3 min 5 s', '2 h 10 min', '5 days']
    """
    if seconds < 9.95:
        return f"{max(0.0, seconds):.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"
