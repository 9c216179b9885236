"""The job file of a comparison: a training job, and the table [compare], which says what is compared.

A comparison trains many times on the same records, evaluates in the clear, and charges no budget. So it runs on data
that one party may lawfully hold and on no other: a shipped set, one table that is parted again, or tables that the file
declares to be the user's own, public or synthetic. Across real nodes (data.nodes) it makes protected runs alone, each
charged to their budgets: see `confide.compare.across`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from confide.compare.links import LINKS, Link
from confide.compare.networks import NETWORKS
from confide.compare.prices import PUBLISHED, Prices
from confide.compare.techniques import INFERENCE, TRAINING
from confide.data.sets import SETS
from confide.errors import JobError, nearest
from confide.structs import known
from confide.train.job import parse as parse_job
from confide.train.keys import Range, faults, load_tables
from confide.train.parts import AGGREGATORS
from confide.train.sections import Job, Section

DataKind = Literal["own table", "public", "synthetic", "real nodes"]

#: What stands on every page with figures from private records.
PRIVATE_WARNING = "not private: do not publish"


class CompareSection(Section, frozen=True, kw_only=True):
    """[compare]: what is compared, how often, and over which links.

    Args:
        training: names of techniques; () takes all that fit the job. docs/compare.md lists them.
        inference: the same for predictions.
        seeds: splits and starts over which a training is repeated, 1 to 100; one if left out across nodes, where each
            is a run that is charged.
        queries: predictions of each technique that are timed, 2 to 100000; a slow one is stopped earlier.
        clients: how many ask at once where a technique is measured under load, each a process of its own, 0 to 64; 0
            leaves that out.
        links: networks for which costs are modelled.
        data: what the records are: "own" records of one organisation, which may hold them all; "public"; or
            "synthetic", a stand-in. It is needed with data.tables of several parties. Across nodes it says what `rows`
            are.
        rows: across nodes, a table of public or synthetic rows that are asked for predictions, as the schema has them;
            None draws rows from the schema's bounds.
        epsilons: budgets of the curve of accuracy against epsilon; of jobs with a [privacy].
        sizes: units of the hidden layer of the networks on which latency, bytes and money are measured against model
            size; () leaves that out.
        networks: known networks, or ONNX files, on which every prediction technique is measured as well; () for none.
        sets: further shipped data sets on which trainings are compared with pooled records; () for none.
        check_link: measures one prediction over a shaped link as well, and prints how far its modelled cost is off.
        audit: attacks every training technique as well (docs/audit.md): who was in the training, and what the
            aggregator sees; with audit_shadows models beside the attacked one, 3 to 256.
        client_core_hour_dollars, server_core_hour_dollars, gigabyte_dollars: prices in place of the published ones.
    """

    training: tuple[str, ...] = ()
    inference: tuple[str, ...] = ()
    seeds: int = 5
    queries: int = 100
    clients: int = 4
    links: tuple[str, ...] = tuple(LINKS)
    data: Literal["own", "public", "synthetic"] | None = None
    rows: str | None = None
    epsilons: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    sizes: tuple[int, ...] = (8, 32, 128)
    networks: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    check_link: bool = True
    audit: bool = False
    audit_shadows: int = 8
    client_core_hour_dollars: float = PUBLISHED.client_core_hour_dollars
    server_core_hour_dollars: float = PUBLISHED.server_core_hour_dollars
    gigabyte_dollars: float = PUBLISHED.gigabyte_dollars


_RANGES: Mapping[tuple[str, str], Range] = {
    ("compare", "seeds"): (1, 100, False, False),
    ("compare", "queries"): (2, 100_000, False, False),
    ("compare", "clients"): (0, 64, False, False),
    ("compare", "audit_shadows"): (3, 256, False, False),
    ("compare", "client_core_hour_dollars"): (0, 1e6, False, False),
    ("compare", "server_core_hour_dollars"): (0, 1e6, False, False),
    ("compare", "gigabyte_dollars"): (0, 1e6, False, False),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison as a job file asks for it.

    Args:
        table: the job without [compare], as it was written; variants of the job are read from it.
        base: the folder that relative paths start from.
        job: the job as it stands.
        settings: [compare].
        data_kind: what the records are.
    """

    table: Mapping[str, Any]
    base: Path
    job: Job
    settings: CompareSection
    data_kind: DataKind

    @property
    def private(self) -> bool:
        """Return whether figures come from private records, so that nobody may publish them."""
        return self.data_kind == "own table"

    @property
    def across(self) -> bool:
        """Return whether it runs across real nodes."""
        return self.data_kind == "real nodes"

    @property
    def links(self) -> tuple[Link, ...]:
        """Return the links for which costs are modelled."""
        return tuple(LINKS[name] for name in self.settings.links)

    @property
    def prices(self) -> Prices:
        """Return the prices."""
        asked = {name: getattr(self.settings, name) for name in Prices.__struct_fields__ if name != "source"}
        found = Prices(**asked, source=PUBLISHED.source)
        return found if found == PUBLISHED else msgspec.structs.replace(found, source="given in the job file")


def load(path: Path) -> Comparison:
    """Read a job file.

    Raises:
        JobError: the file is absent or is no TOML; or as in `parse`.
    """
    return parse(load_tables(path, "job file", JobError), base=path.parent)


def parse(table: Mapping[str, Any], *, base: Path = Path()) -> Comparison:
    """Return the comparison that `table` describes.

    Raises:
        JobError: with everything that is wrong with [compare], one in a line; or with the job; or since its data are
            none that a comparison may run on.
    """
    section = table.get("compare", {})
    if not isinstance(section, dict):
        raise JobError(f"Expected [compare] to be a table, got compare = {section!r}; write [compare] and its keys")
    section = cast("dict[str, Any]", section)
    problems = list(faults("compare", CompareSection, section, _RANGES, "job file"))
    if not problems:
        settings = msgspec.convert(section, known(CompareSection))
        rest = {name: value for name, value in table.items() if name != "compare"}
        data = rest.get("data")
        nodes = isinstance(data, dict) and "nodes" in data
        problems = [*_contradictions(settings, nodes=nodes), *_absent(settings, base)]
        if not problems:
            kind = _data_kind(rest.get("data", {}), settings)
            if nodes and "seeds" not in section:
                settings = msgspec.structs.replace(settings, seeds=1)
            job = parse_job(dict(rest), base=base)
            _check_charged(job)
            return Comparison(rest, base, job, settings, kind)
    raise JobError("\n".join(problems))


def _check_charged(job: Job) -> None:
    """Refuse a job whose charges would go to the wrong account, or to none."""
    if job.data.nodes and job.privacy is None:
        raise JobError(
            "Expected [privacy] in a comparison across real nodes: every run there is protected and charged to the "
            "nodes' budgets; add it with expected_records, or compare on data that you hold"
        )
    if job.data.budget is None:
        return
    if job.data.nodes:
        raise JobError("Expected no data.budget with data.nodes: nodes keep budgets of their own; leave it out")
    raise JobError(
        "Expected no data.budget in a comparison: it trains many times and evaluates in the clear, and none of that is "
        "charged; leave it out, and publish no figure"
    )


def _absent(settings: CompareSection, base: Path) -> Iterator[str]:
    for name in settings.networks:
        if name.endswith(".onnx") and not (base / name).is_file():
            yield f"Expected an ONNX file at {name} for compare.networks; change the path in the job file"


def _contradictions(settings: CompareSection, *, nodes: bool) -> Iterator[str]:
    training = (*TRAINING, *(name for name in protected_names() if name not in TRAINING)) if nodes else tuple(TRAINING)
    for key, names in (("training", training), ("inference", INFERENCE), ("links", LINKS)):
        given: tuple[str, ...] = getattr(settings, key)
        for name in given:
            if name not in names:
                there = ", ".join(names)
                yield f"Expected compare.{key} to hold {there}, got {name!r}{nearest(name, names)}; change it"
    for key, names in (("networks", NETWORKS), ("sets", SETS)):
        given = getattr(settings, key)
        for name in given:
            if name not in names and not (key == "networks" and name.endswith(".onnx")):
                there = ", ".join(names) + (", or paths that end with .onnx" if key == "networks" else "")
                yield f"Expected compare.{key} to hold {there}, got {name!r}{nearest(name, names)}; change it"
    for key in ("training", "inference", "links", "networks", "sets"):
        if len(set(getattr(settings, key))) != len(getattr(settings, key)):
            yield f"Expected different names in compare.{key}; name each once"
    if nodes and settings.audit:
        yield "Expected no compare.audit across real nodes: attacks train on all records in one place; leave it out"
    if not settings.links:
        yield f"Expected at least one name in compare.links; there are {', '.join(LINKS)}"
    if not all(0 < epsilon <= 32 for epsilon in settings.epsilons):
        yield "Expected each of compare.epsilons above 0 and at most 32; change it in the job file"
    if not all(1 <= size <= 4096 for size in settings.sizes):
        yield "Expected each of compare.sizes from 1 to 4096; change it in the job file"


def protected_names() -> tuple[str, ...]:
    """Return the names of the trainings with noise under each aggregator, as they run across nodes."""
    return tuple(f"{name}+dp" for name in AGGREGATORS)


def _data_kind(data: object, settings: CompareSection) -> DataKind:
    """Return what the records are. Raises JobError if nobody may lawfully hold them all, as far as the file says."""
    keys = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    kinds: Mapping[str, DataKind] = {"own": "own table", "public": "public", "synthetic": "synthetic"}
    declared = settings.data
    if "nodes" in keys:
        if declared == "own" or (declared is None) != (settings.rows is None):
            raise JobError(
                'Expected compare.rows with compare.data = "public" or "synthetic", or neither, across real nodes: '
                "their records stay with them, and predictions are measured on rows that belong to nobody there"
            )
        return "real nodes"
    if settings.rows is not None:
        raise JobError("Expected no compare.rows without data.nodes: predictions are asked with test records there")
    if "set" in keys:
        if declared not in (None, "public"):
            raise JobError(f'Expected no compare.data="{declared}" with data.set, which is public; leave it out')
        return "public"
    if declared is not None:
        return kinds[declared]
    if "tables" in keys:
        raise JobError(
            "Expected compare.data with data.tables of several parties: a comparison pools them, which only who may "
            'lawfully hold them all may do. Say data = "own" if that is you, or "public" or "synthetic" if they are'
        )
    return "own table"
