"""What a comparison found, as one file: records, curves, what does not fit and why, and where it was measured."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

import msgspec

from confide.compare.audited import Attacked
from confide.compare.links import Link
from confide.compare.people import Asks
from confide.compare.prices import Prices
from confide.compare.record import Record, Spread
from confide.compare.settings import DataKind
from confide.errors import UsageError
from confide.structs import known

#: Version of the file.
FORMAT = 1


class Curve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a plot.

    Args:
        kind: "rounds" is accuracy after each round, "epsilon" accuracy against the privacy budget, "size" latency
            against the parameters of a network with random weights, "passes" accuracy after each pass over pooled
            records.
        task, choice: as in `Record`.
        x_name, y_name: figures with their units at the end.
        x: in order.
        y: over the repeats, as long as `x`.
    """

    kind: Literal["rounds", "epsilon", "size", "passes"]
    task: str
    choice: str
    x_name: str
    y_name: str
    x: tuple[float, ...]
    y: tuple[Spread, ...]


class LinkCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A modelled cost beside the same prediction over a shaped link.

    Args:
        link: its name.
        choice: the technique that was asked.
        measured_seconds: median over the queries, through the relay.
        modelled_seconds: `Transcript.cost` of the same queries without a network.
        measured_loopback_seconds, modelled_loopback_seconds: the same without the relay.
        queries: how many.
    """

    link: str
    choice: str
    measured_seconds: float
    modelled_seconds: float
    measured_loopback_seconds: float
    modelled_loopback_seconds: float
    queries: int

    @property
    def error_share(self) -> float:
        """Return by how much the model is off: 0.1 where it says 10 % more than was measured."""
        return self.modelled_seconds / self.measured_seconds - 1

    @property
    def link_error_share(self) -> float:
        """Return the same of what the link adds alone: no cost has HTTP and the server's process in it."""
        return self._added_modelled / self._added - 1

    @property
    def _added(self) -> float:
        return self.measured_seconds - self.measured_loopback_seconds

    @property
    def _added_modelled(self) -> float:
        return self.modelled_seconds - self.modelled_loopback_seconds

    def sentence(self) -> str:
        """Return the check in words."""
        return (
            f"modelled cost over {self.link} checked on {self.choice}: {1e3 * self.modelled_seconds:.2f} ms modelled, "
            f"{1e3 * self.measured_seconds:.2f} ms measured over HTTP through a shaped link "
            f"({100 * self.error_share:+.1f} %); what the link adds to loopback: {1e3 * self._added_modelled:.2f} ms "
            f"modelled, {1e3 * self._added:.2f} ms measured ({100 * self.link_error_share:+.1f} %)"
        )


class Across(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a comparison across real nodes was.

    Args:
        nodes: their names.
        runs: that were made, each charged to every node.
        epsilon, delta: what these runs have spent at each node, added up as its budget adds them.
        evaluated: whether quality comes from the federation's own evaluation, which is one more sum under noise.
        rows: what predictions were asked with; never a node's rows.
    """

    nodes: tuple[str, ...]
    runs: int
    epsilon: float
    delta: float
    evaluated: bool
    rows: str

    def sentences(self) -> list[str]:
        """Return it in words, with what may be said of publication."""
        quality = (
            "Accuracy and AUC are the federation's own, from one more sum under the same noise; no row was read here."
            if self.evaluated
            else 'Quality was not measured: the job has no data.evaluate = "federated" (survival cannot).'
        )
        return [
            f"Measured across {len(self.nodes)} real nodes ({', '.join(self.nodes)}): {self.runs} protected "
            f"run{'s' if self.runs != 1 else ''}, which each node was charged epsilon={self.epsilon:.4g} and "
            f"delta={self.delta:.3g} for in all. {quality} Predictions were asked with {self.rows}.",
            PUBLICATION,
        ]


#: What may be said of publishing figures from real nodes.
PUBLICATION = (
    "Models and their quality are releases under differential privacy: whoever reads them learns no more of a record "
    "than epsilon allows. The nodes' policies allowed these runs at this epsilon; a policy says nothing of publishing "
    "figures, so ask the nodes' people before you do. Rounds and bytes follow from the job; seconds are the "
    "coordinator's clock, and no noise covers them."
)

#: The same in a cell of a table.
ASK_FIRST = "with the nodes' consent"


class Aside(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A technique on something else than the job's model or data.

    Args:
        kind: "network": predictions of a known network; "set": a training on a further data set.
        on: its name.
        record: as of the job's own.
    """

    kind: Literal["network", "set"]
    on: str
    record: Record


class RuleMeasured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measurement beside a rule of thumb.

    Args:
        name: technique, model or data, and link, in a few words.
        what: the same with what it was measured on.
        task, choice, on: as in `Aside`; on is "" for the job's own.
        value: in the unit of the rule's figure.
        repeats: that it rests on.
        verdict: what it says of the rule.
    """

    name: str
    what: str
    task: str
    choice: str
    on: str
    value: Spread
    repeats: int
    verdict: str


class RuleJudged(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule of thumb beside what was measured.

    Args:
        key: out of `compare.rules.RULES`.
        said: the rule, in our words.
        figure: what is measured, with its unit at the end.
        low, high: the range that the rule gives.
        measured: in their order; () if nothing was.
        verdict: over all of them.
        left_out: why nothing, or not everything, was measured; "" if everything was.
    """

    key: str
    said: str
    figure: str
    low: float
    high: float
    measured: tuple[RuleMeasured, ...]
    verdict: str
    left_out: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a comparison found.

    Args:
        name: of the job.
        job: the job as it was understood, in TOML.
        records: one for each technique that was measured.
        curves: lists beside the records.
        unfit: by "<task>/<choice>": why a technique was not measured.
        people: what each measured technique asks of people.
        machine, commit: where, and the version of confide with a hash of its source.
        data_kind: what the records are.
        private: whether the figures come from private records: "not private: do not publish".
        links: for which costs are modelled.
        link_check: how far the model of links is off; None where that was not measured.
        prices: of money_dollars.
        seconds: what measuring took, cells from the cache included.
        across: of runs across real nodes; None where all was measured in one place.
        attacks: what attacks found under each training technique; () where none were asked for.
        format: of this file.
        asides: techniques on further networks and data sets.
        rules: the field's rules of thumb beside these figures.
    """

    name: str
    job: str
    records: tuple[Record, ...]
    curves: tuple[Curve, ...]
    unfit: dict[str, str]
    people: tuple[Asks, ...]
    machine: str
    commit: str
    data_kind: DataKind
    private: bool
    links: tuple[Link, ...]
    link_check: tuple[LinkCheck, ...]
    prices: Prices
    seconds: float
    across: Across | None = None
    attacks: tuple[Attacked, ...] = ()
    format: int = FORMAT
    asides: tuple[Aside, ...] = ()
    rules: tuple[RuleJudged, ...] = ()

    def encode(self) -> bytes:
        """Return it as JSON, indented for people: the same bytes for the same result."""
        plain = msgspec.to_builtins(self)
        for record in (*plain["records"], *(aside["record"] for aside in plain["asides"])):
            record["guarantee"]["claims"].sort(key=msgspec.json.encode)  # a set
        return msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=1)


#: Of a result that is read; those with every table take less than 3 MB.
LARGEST_BYTES = 64 << 20


def load_result(path: Path) -> Result:
    """Read a result from a file, which is no pipe and no device.

    Raises:
        UsageError: it is none, or larger than `LARGEST_BYTES`.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # which a pipe would wait for
    try:
        state = os.fstat(descriptor)
        fits = stat.S_ISREG(state.st_mode) and state.st_size <= LARGEST_BYTES
        body = os.read(descriptor, state.st_size) if fits else b""
    finally:
        os.close(descriptor)
    if not fits:
        raise UsageError(f"Expected a file of at most {LARGEST_BYTES} bytes at {path}, with a result in it")
    return read_result(body)


def read_result(body: bytes) -> Result:
    """Return what `Result.encode` wrote. Raises UsageError on anything else."""
    try:
        found = msgspec.json.decode(body, type=known(Result))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"Expected a result of `confide compare`; {error}") from None
    if found.format != FORMAT:
        raise UsageError(f"Expected a result of format={FORMAT}, got {found.format}; run the comparison again")
    return found
