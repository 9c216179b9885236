"""The tables of a report as data: what HTML and Markdown print is derived here, once, from records and guarantees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from confide.compare.inference import SIMULATED_TITLE
from confide.compare.peers import catalogue
from confide.compare.people import Asks
from confide.compare.quantities import NOT_MEASURED, median_of, of, shown, words
from confide.compare.record import Record
from confide.compare.result import Result
from confide.compare.techniques import INFERENCE, TRAINING, Technique
from confide.guarantee import Trust

#: Text, or a list of texts.
Entry = str | tuple[str, ...]

TASKS: tuple[str, ...] = ("training", "inference")


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Args:
        title: above it.
        text: what to know before reading it.
        columns: headings.
        rows: as many entries in each as there are columns.
    """

    title: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]


def described(task: str, choice: str) -> Technique:
    """Return what is known of a technique; one that is not in the strategic table goes by its own name."""
    known = (TRAINING if task == "training" else INFERENCE).get(choice)
    return (
        known
        or catalogue.technique(choice)
        or Technique(choice, "not stated", "not stated", "not stated", "not stated")
    )


def simulated(record: Record) -> bool:
    """Return whether a record stands for hardware that was not there."""
    return record.choice == "tee" and (record.guarantee.trust is not Trust.HARDWARE or "simulated" in record.setting)


def name(record: Record) -> str:
    """Return the printable name of what a record measured; a simulation says so in it."""
    title = described(record.task, record.choice).title
    return f"{title} ({SIMULATED_TITLE})" if simulated(record) else title


def of_task(result: Result, task: str) -> tuple[Record, ...]:
    """Return the records of one phase."""
    return tuple(record for record in result.records if record.task == task)


# --- the strategic table ----------------------------------------------------------------------------------------------


def strategic(result: Result, task: str) -> Table:
    """Return the strategic table of one phase: every technique that is known, measured or with the reason why not."""
    records = {record.choice: record for record in of_task(result, task)}
    known = TRAINING if task == "training" else INFERENCE
    return Table(
        f"The strategic table: {task}",
        "Every technique for this phase. What a cell says of cost and protection was measured in this run or follows "
        f'from what the run promised; the rest reads "{NOT_MEASURED}".',
        (
            "technique", "primary cryptography", "latency", "communication", "state of the model",
            "what is guaranteed to whom", "use case", "framework",
        ),
        tuple(
            _strategic(result, records[choice]) if choice in records else _absent(result, task, choice)
            for choice in dict.fromkeys((*known, *records))
        ),
    )  # fmt: skip


def _strategic(result: Result, record: Record) -> tuple[Entry, ...]:
    about, held = described(record.task, record.choice), record.guarantee
    bits = "no security level applies" if held.security_bits is None else f"{held.security_bits} bits"
    quantum = "post-quantum" if held.post_quantum else "not post-quantum"
    return (
        name(record),
        (held.primary, bits, quantum) if held.claims else (held.primary,),
        _latency(result, record),
        _communication(record),
        about.state,
        (*held.sentences(), f"against: {held.adversary}", f"rests on: {held.trust}"),
        about.use_case,
        about.framework,
    )


def _absent(result: Result, task: str, choice: str) -> tuple[Entry, ...]:
    why = result.unfit.get(f"{task}/{choice}")
    about = described(task, choice)
    no = NOT_MEASURED
    return (
        about.title,
        no if why is None else f"{no}: {why}",
        no,
        no,
        about.state,
        no,
        about.use_case,
        about.framework,
    )


def over_links(result: Result, task: str) -> tuple[str, ...]:
    """Return the names of a phase's modelled seconds, in the order of the links."""
    stem = "train" if task == "training" else "latency"
    return tuple(f"{stem}_{link.name}_seconds" for link in result.links)


def _latency(result: Result, record: Record) -> tuple[str, ...]:
    here = "train_seconds" if record.task == "training" else "latency_seconds"
    rounds = record.figure("rounds_count")
    lines = [f"here: {of(record, here)}" + (f", {rounds:,.0f} rounds" if rounds else "")]
    for figure in ("latency_p95_seconds", "latency_p99_seconds", "load_p95_seconds", "load_p99_seconds"):
        if figure in record.figures:
            lines.append(f"{words(figure)}: {median_of(record, figure)}")
    links = (figure for figure in over_links(result, record.task) if figure in record.figures)
    return (*lines, *(f"{words(figure)}: {median_of(record, figure)}" for figure in links))


def _communication(record: Record) -> Entry:
    parts = {
        "upload_bytes": "up",
        "download_bytes": "down",
        "key_bytes": "keys, once",
        "offline_bytes": "ahead",
        "between_servers_bytes": "between servers",
        "depth_count": "one-way trips",
    }
    per = "per party, all rounds" if record.task == "training" else "per query"
    lines = [f"{word}: {median_of(record, figure)}" for figure, word in parts.items() if record.figure(figure)]
    return (*lines, per) if lines else ("nothing is sent" if "upload_bytes" in record.figures else NOT_MEASURED)


# --- figures, guarantees, people --------------------------------------------------------------------------------------

#: What stands in a phase's table of costs, in this order, where some record has it.
HEADLINES: Mapping[str, tuple[str, ...]] = {
    "training": (
        "accuracy_share", "auc_share", "epsilon_total", "rounds_count", "upload_bytes", "train_seconds",
        "train_lan_seconds", "train_wan_seconds", "train_mobile_seconds", "money_dollars",
    ),
    "inference": (
        "latency_seconds", "latency_p95_seconds", "latency_p99_seconds", "latency_lan_seconds", "latency_wan_seconds",
        "latency_mobile_seconds", "requests_per_second_rate", "load_p95_seconds", "load_p99_seconds", "upload_bytes",
        "download_bytes", "setup_seconds", "key_bytes", "agreement_share", "error_largest", "money_dollars",
    ),
}  # fmt: skip


def costs(result: Result, task: str) -> Table:
    """Return the figures that people ask for first."""
    records = of_task(result, task)
    shown_ones = tuple(name for name in HEADLINES[task] if any(name in record.figures for record in records))
    money = "one training" if task == "training" else "1,000 queries"
    return Table(
        "What it costs",
        f"Medians, with the 5th to the 95th percentile where it differs. Money is of {money}.",
        ("technique", "repeats", *(words(one) for one in shown_ones)),
        tuple((name(record), f"{record.repeats:,}", *(of(record, one) for one in shown_ones)) for record in records),
    )


def guarantees(result: Result, task: str) -> Table:
    """Return what each measured technique promised while it was measured."""
    return Table(
        "What it promises",
        "No figure above holds without these.",
        (
            "technique",
            "what is hidden from whom",
            "adversary",
            "rests on",
            "post-quantum",
            "what still leaks",
            "source",
        ),
        tuple(
            (
                name(record),
                tuple(record.guarantee.sentences()),
                record.guarantee.adversary.value,
                record.guarantee.trust.value,
                "yes" if record.guarantee.post_quantum else "no",
                record.guarantee.leaks,
                record.guarantee.paper or "–",
            )
            for record in of_task(result, task)
        ),
    )


def every_figure(result: Result) -> Table:
    """Return all figures of all records, a line each."""
    rows = (
        (
            f"{name(record)}: {words(figure)}", record.task, figure,
            *(shown(figure, value) for value in (s.median, s.low, s.high, s.mean)),
            f"{record.repeats:,}", record.machine, result.commit,
        )
        for record in result.records
        for figure, s in record.figures.items()
    )  # fmt: skip
    low, high = "5th percentile", "95th percentile"
    columns = ("technique", "phase", "figure", "median", low, high, "mean", "repeats", "machine", "commit")
    return Table("", "The guarantee of each stands in the table of its phase.", columns, tuple(rows))


def people(result: Result, task: str) -> Table:
    """Return what each technique asks of people."""
    records = {record.choice: record for record in of_task(result, task)}
    found = [asks for asks in result.people if asks.task == task and asks.choice in records]
    return Table(
        f"What it asks of people: {task}",
        "Organisations count those who hold records or ask. Steps are commands from an empty machine, on all machines.",
        (
            "technique", "organisations", "roles beside the holders", "who may not pool", "machines", "open ports",
            "keys to keep", "lines a user writes", "steps", "post-quantum",
        ),
        tuple(_asks(asks, records[asks.choice]) for asks in found),
    )  # fmt: skip


def _asks(asks: Asks, record: Record) -> tuple[Entry, ...]:
    return (
        name(record),
        str(asks.organisations),
        ", ".join(asks.roles) or "none",
        ", ".join(asks.apart) or "–",
        str(asks.machines),
        f"{asks.open_ports} ({asks.why_ports})",
        asks.keys,
        str(asks.lines),
        _counted(asks.steps),
        "yes" if asks.post_quantum else "no",
    )


#: What one party of a role uses: heading, how its figure begins, the unit at its end.
_USED: tuple[tuple[str, str, str], ...] = (
    ("CPU", "cpu", "seconds"),
    ("CPU with HTTP or TLS, under load", "load_cpu", "seconds"),
    ("peak memory of its processes, under load", "peak_memory", "bytes"),
    ("disk", "disk", "bytes"),
    ("money", "money", "dollars"),
)


def roles(result: Result, task: str) -> Table:
    """Return what one party of each role uses: a line for each technique and role, and one for all in one process."""
    records = of_task(result, task)
    used = [row for row in _USED if any(name.startswith(f"{row[1]}_of_") for r in records for name in r.figures)]
    rows: list[tuple[Entry, ...]] = []
    for record in records:
        found = (figure.rpartition("_")[0].partition("_of_") for figure in record.figures)
        for role in dict.fromkeys(role for _, of_role, role in found if of_role):
            cells = (of(record, f"{stem}_of_{role}_{end}") for _, stem, end in used)
            rows.append((name(record), f"each {role}" if role == "client" else role, *cells, NOT_MEASURED))
        if "peak_memory_bytes" in record.figures:
            none = (NOT_MEASURED,) * len(used)
            rows.append((name(record), "all, in one process", *none, of(record, "peak_memory_bytes")))
    per = "one training" if task == "training" else "one query, money 1,000 queries"
    return Table(
        f"What each role uses: {task}",
        f"CPU is of {per}. Disk is the most that a role keeps in its store (keys, correlations, journals), the server "
        "with the model's file and the ledger; a database adds its pages. Memory under load is of whole processes, "
        "Python included; the last column is what the protocol adds to one process with all roles in it.",
        ("technique", "role", *(heading for heading, _, _ in used), "memory that all roles add"),
        tuple(rows),
    )


def _counted(steps: Sequence[str]) -> tuple[str, ...]:
    """Return steps with the repeated ones once, and how often."""
    return tuple(
        f"{step} ({steps.count(step)} times)" if steps.count(step) > 1 else step for step in dict.fromkeys(steps)
    )
