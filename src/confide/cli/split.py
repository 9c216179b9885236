"""`confide split`: a shipped data set as the tables of several organisations, with a job and a policy to try."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.cli import console
from confide.errors import UsageError

if TYPE_CHECKING:
    from confide.data.table import Table

_TEST_FRACTION = 0.2
_COLLUDING = 1
_FEWEST = 3  # nodes of a federation whose sums hide an update
_EPSILON, _LIFETIME_EPSILON, _DELTA = 1.0, 3.0, 1e-5

#: What a federation calls its own parties, and what this folder calls its own files.
_TAKEN = ("server", "helper", "test")

_JOB = """\
# {count} organisations train one model on the set "{set}". Every key is explained in docs/train.md.
#     confide train job.toml         all of them in one process, to see what to expect
#     confide coordinator job.toml   over a network: each node reads its own table, the coordinator none
[job]
name = "{set}"
seed = {seed}

[data]
schema = "schema.toml"
tables = {{ {tables} }}
evaluate = "federated"   # on a fifth of each organisation's records, which it sets aside; test.csv is nobody's

[train]
aggregate = "masked"
quorum = {quorum}
rounds = 30

[privacy]
epsilon = {epsilon}
delta = {delta}
expected_records = {records}
colluding = {colluding}

[output]
model = "model.confide"
ledger = "ledger.jsonl"
signing_key = "signing.pem"
"""

_POLICY = """\
# What a node agrees to, whatever a coordinator asks: a start, to be made stricter. Every key is explained in
# docs/policy.md; one that is left out has a default that protects.
[allow]
models = ["logistic"]
aggregates = ["masked", "amortised"]

[limits]
smallest_cohort = 3         # no sum that the coordinator sees holds fewer nodes
require_privacy = true
most_epsilon_per_job = {epsilon}
greatest_epsilon = {lifetime}      # of all jobs on these data, ever
least_colluding = {colluding}

[data]
data_set = "{set}"  # whose budget this is; the name stays when the file changes

[approval]
by = "person"               # `confide node approve` agrees to a job; "policy" lets this file decide alone
"""


def split(
    name: Annotated[str, typer.Argument(metavar="SET", help="A shipped data set: breast-cancer.")],
    nodes: Annotated[str, typer.Option(help="Names of the organisations, separated by commas; 3 at least.")],
    into: Annotated[Path, typer.Option(help="Folder for the files; new or empty.")],
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the split; the same seed gives the same files.")
    ] = 1,
    alpha: Annotated[float, typer.Option(help="The smaller, the more the organisations differ; above 0.")] = 1.0,
) -> None:
    """Split a shipped data set among organisations, to try a federation in minutes.

    Writes schema.toml, one table per organisation, test.csv, job.toml and policy.toml.

        confide split breast-cancer --nodes north,south,west --into trial
    """
    from confide.data.sets import load_set, schema_text
    from confide.data.split import by_label, holdout
    from confide.data.write import csv_text
    from confide.model.artifact import write_whole

    names = _names(nodes)
    _check_folder(into)
    schema, table = load_set(name)
    kept, test = holdout(table, fraction=_TEST_FRACTION, seed=seed)
    parts = by_label(kept, names, alpha=alpha, seed=seed)
    files = {
        "schema.toml": schema_text(name),
        **{f"{node}.csv": csv_text(part, schema) for node, part in parts.items()},
        "test.csv": csv_text(test, schema),
        "job.toml": _job(name, parts, seed=seed),
        "policy.toml": _POLICY.format(set=name, epsilon=_EPSILON, lifetime=_LIFETIME_EPSILON, colluding=_COLLUDING),
    }
    into.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_whole(into / file, text.encode())
    for node, part in parts.items():
        counts = (f"{int((part.labels == place).sum())} {one}" for place, one in enumerate(schema.label.classes))
        console.out.print(f"wrote {into / node}.csv: {part.n} records ({', '.join(counts)})")
    console.out.print(f"wrote {into / 'test.csv'}: {test.n} records that no node trains on")
    console.out.print(f"wrote {into / 'schema.toml'}, {into / 'job.toml'} and {into / 'policy.toml'}")


def _names(nodes: str) -> list[str]:
    names = [node.strip() for node in nodes.split(",")]
    for node in names:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", node) or node in _TAKEN:
            raise UsageError(
                f"Expected --nodes={nodes} to be names of letters, digits, '-', '_' and '.', at most 64 long, none of "
                f"them {', '.join(_TAKEN)}; change {node!r}"
            )
    if len(names) < _FEWEST or len(set(names)) < len(names):
        raise UsageError(
            f"Expected --nodes={nodes} to be at least {_FEWEST} different names; a sum of two shows each the other's "
            "part"
        )
    return names


def _check_folder(into: Path) -> None:
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UsageError(f"Expected --into={into} to be a new or an empty folder; name another one")


def _quorum(nodes: int) -> int:
    """Return the fewest nodes that double masking accepts beside the colluding ones."""
    return max(_FEWEST, (nodes + _COLLUDING) // 2 + 1)


def _job(name: str, parts: Mapping[str, Table], *, seed: int) -> str:
    return _JOB.format(
        count=len(parts),
        set=name,
        seed=seed,
        tables=", ".join(f"{json.dumps(node)} = {json.dumps(f'{node}.csv')}" for node in parts),
        quorum=_quorum(len(parts)),
        epsilon=_EPSILON,
        delta=_DELTA,
        records=round(0.8 * sum(part.n for part in parts.values())),  # each sets data.test_fraction of its own aside
        colluding=_COLLUDING,
    )
