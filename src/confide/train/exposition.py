"""A status as figures for Prometheus (text format 0.0.4): one process has one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from confide.train.status import NodeState, Phase, Status


def exposition(status: Status) -> bytes:
    """Return the figures of `status`; names and reasons of nodes stay out, so that series do not grow without end."""
    lines: list[str] = []
    for name, kind, text, values in _figures(status):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{labels} {value:.17g}" for labels, value in values.items()]
    return ("\n".join(lines) + "\n").encode()


def _figures(status: Status) -> Iterator[tuple[str, str, str, Mapping[str, float]]]:
    """Yield name, type, help and the values by labels of each figure that is known."""
    labels = f'{{run="{_escaped(status.run)}",job="{_escaped(status.job)}",job_hash="{status.job_hash}"}}'
    yield "confide_run_info", "gauge", "Which run this is", {labels: 1}
    by_phase = {f'{{phase="{phase.value}"}}': float(phase is status.phase) for phase in Phase}
    yield "confide_run_phase", "gauge", "1 at what the run is doing", by_phase
    in_state = {
        f'{{state="{state.value}"}}': float(sum(node.state is state for node in status.nodes)) for state in NodeState
    }
    yield "confide_nodes", "gauge", "Members of the federation by what they do", in_state
    plain: list[tuple[str, str, str, float | None]] = [
        ("confide_rounds", "gauge", "Rounds of the job", status.rounds),
        ("confide_rounds_finished", "gauge", "Rounds that have finished", status.finished),
        ("confide_quorum", "gauge", "Smallest number of nodes in a released sum", status.quorum),
        ("confide_failed_attempts_total", "counter", "Attempts that released no sum", status.failed_attempts),
        ("confide_epsilon_spent", "gauge", "Epsilon spent, failed attempts included", status.epsilon),
        ("confide_epsilon_budget", "gauge", "Epsilon that the job may spend", status.epsilon_budget),
        ("confide_up_bytes_total", "counter", "Bytes from nodes", sum(node.bytes_up for node in status.nodes)),
        ("confide_down_bytes_total", "counter", "Bytes to nodes", sum(node.bytes_down for node in status.nodes)),
    ]
    if status.history:
        last = status.history[-1]
        accuracy = next((one.accuracy for one in reversed(status.history) if one.accuracy is not None), None)
        plain += [
            ("confide_round_seconds", "gauge", "Seconds of the last finished round", last.seconds),
            ("confide_round_members", "gauge", "Nodes in the last finished sum", last.members),
            ("confide_accuracy", "gauge", "Accuracy of the last evaluated model", accuracy),
        ]
    yield from ((name, kind, text, {"": value}) for name, kind, text, value in plain if value is not None)


def _escaped(text: str) -> str:
    """Return a label's value; texts in a status hold no line break."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
