"""What a job that trains on shares says and cannot mean."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from confide.errors import JobError
from confide.train.sections import Job, is_node_name

#: What [privacy] clips a record's gradient to under "mpc": rows to length 1, and 1 for the bias.
ON_SHARES_CLIP = math.sqrt(2.0)
#: What the messages of such a training call its servers and its dealer; no owner of rows may have such a name.
RESERVED = frozenset({"server-0", "server-1", "dealer"})


def check_shares(job: Job, table: Mapping[str, Any]) -> None:
    """Refuse what training on shares does not do, and its keys elsewhere.

    Args:
        job: with every default in its place.
        table: what somebody wrote.

    Raises:
        JobError: with every contradiction, one in a line.
    """
    on_shares = job.train.aggregate == "mpc"
    if not on_shares:
        problems = list(_outside(job, table))
    else:
        problems = [*_of_training(job), *_of_servers(job), *_of_columns(job), *_of_machines(job), *_of_privacy(job)]
    if problems:
        raise JobError("\n".join(problems))


def _outside(job: Job, table: Mapping[str, Any]) -> Iterator[str]:
    if "shares" in table:
        yield f'Expected no [shares] with train.aggregate="{job.train.aggregate}"; it belongs to "mpc"'
    if job.train.algorithm == "sgd":
        yield 'Expected train.aggregate="mpc" with train.algorithm="sgd"; it takes steps over shared rows'
    if job.data.columns or job.data.link is not None:
        yield (
            'Expected no data.columns and no data.link without train.aggregate="mpc"; no sum joins columns of '
            "different parties"
        )


def _of_training(job: Job) -> Iterator[str]:
    train = job.train
    if train.algorithm != "sgd":
        yield f'Expected train.algorithm="sgd" with train.aggregate="mpc", got "{train.algorithm}"; leave it out'
    if job.model.kind not in ("logistic", "mlp"):
        yield f'Expected model.kind="logistic" or "mlp" with train.aggregate="mpc", got "{job.model.kind}"'
    unused = {
        "data.standardise": job.data.standardise is not False,
        "data.evaluate": job.data.evaluate != "none",
        "data.budget": job.data.budget is not None,
        "train.class_weights": train.class_weights != "none",
        "train.compress": train.compress != "none",
        "train.norm_bound": train.norm_bound is not None,
        "train.clip_norm": bool(train.clip_norm),
        "train.local_steps": train.local_steps != 1,
        "train.start_hash": train.start_hash is not None,
    }
    if said := [name for name, wrong in unused.items() if wrong]:
        yield f'Expected no {", ".join(said)} with train.aggregate="mpc"; leave them out'
    parties = len(job.data.nodes or job.data.names or job.data.tables) if job.data.set is None else job.data.parties
    if train.quorum != parties:
        yield (
            f'Expected train.quorum={train.quorum} to be all {parties} parties with train.aggregate="mpc"; rows are '
            "shared once, so leave it out"
        )


def _of_servers(job: Job) -> Iterator[str]:
    assert job.shares is not None
    names = job.shares.servers
    if len(names) != 2 or len(set(names)) != 2:
        yield f"Expected two different names in shares.servers, got {', '.join(map(repr, names)) or 'none'}"
    yield from (
        f"Expected letters, digits, '-', '_' and '.' in shares.servers and shares.dealer, got {name!r}"
        for name in (*names, job.shares.dealer)
        if not is_node_name(name)
    )
    if job.shares.dealer in names and not job.shares.insecure_colocated_dealer:
        yield (
            f'Expected shares.dealer="{job.shares.dealer}" to be neither of shares.servers: a server that deals can '
            "read every row and weight. Name another organisation, or for a trial set insecure_colocated_dealer = true"
        )
    if taken := sorted(RESERVED & {*job.data.nodes, *job.data.names, *job.data.tables}):
        yield (
            f'Expected parties with other names than {", ".join(taken)} with train.aggregate="mpc": messages call '
            "the servers and the dealer so; rename the party"
        )
    if job.shares.folder is not None and job.output.model is not None:
        yield (
            "Expected either shares.folder, which keeps the weights as shares, or output.model, for which they are "
            "opened; leave one out"
        )


def _of_columns(job: Job) -> Iterator[str]:
    data = job.data
    if not data.columns and data.link is None:
        return
    if data.nodes:
        yield (
            "Expected no data.columns with data.nodes: columns of the same people are matched and trained on in one "
            "process so far; over machines every node has rows with all columns"
        )
        return
    if not data.columns or data.link is None or not data.tables:
        yield (
            "Expected data.tables, data.columns and data.link together: each party's table, the columns of the schema "
            "that it brings, and the column that says whose a row is"
        )
        return
    if set(data.columns) != set(data.tables) or len(data.tables) != 2:
        yield (
            f"Expected the same two parties in data.tables and data.columns, got {', '.join(sorted(data.tables))} and "
            f"{', '.join(sorted(data.columns))}; rows are matched between two"
        )
    if data.test is not None:
        yield "Expected no data.test with data.columns; data.test_fraction of the common rows are set aside"
    if job.model.unit_rows or job.model.project or job.model.features != "columns":
        yield "Expected no model.unit_rows, project or features with data.columns; nobody has a whole row"


def _of_machines(job: Job) -> Iterator[str]:
    shares, nodes = job.shares, job.data.nodes
    assert shares is not None
    if not nodes:
        if shares.address is not None or shares.identities:
            yield "Expected shares.address and shares.identities with data.nodes alone; here all run in one process"
        return
    if shares.address is None or not shares.address.startswith("wss://"):
        yield (
            'Expected shares.address="wss://HOST:PORT" with data.nodes: where nodes and dealer dial '
            f"{' '.join(shares.servers[1:2])}, the second server"
        )
    if twice := sorted({*nodes, "server"} & {*shares.servers[1:], shares.dealer}):
        yield (
            f"Expected members of their own as second server and dealer, got {', '.join(twice)}; over machines each "
            "member of the federation has one part"
        )
    elif shares.dealer in shares.servers:
        yield f'Expected shares.dealer="{shares.dealer}" to be a member of its own with data.nodes'
    known = {*nodes, *shares.servers, shares.dealer}
    if strange := sorted(name for name in shares.identities if name not in known):
        yield f"Expected names of nodes, servers or dealer in shares.identities, got {', '.join(strange)}"
    yield from (
        f"Expected 64 hex digits in lower case as shares.identities.{name}; `confide federation roster` prints them"
        for name, shown in shares.identities.items()
        if not re.fullmatch("[0-9a-f]{64}", shown)
    )


def _of_privacy(job: Job) -> Iterator[str]:
    privacy, shares = job.privacy, job.shares
    assert shares is not None
    if privacy is None:
        return
    if privacy.unit != "record" or privacy.mechanism != "as-given":
        yield 'Expected privacy.unit="record" and no privacy.mechanism with train.aggregate="mpc"; leave them out'
    if job.model.kind != "logistic" or shares.loss != "logistic":
        yield (
            'Expected model.kind="logistic" and shares.loss="logistic" with train.aggregate="mpc" and a [privacy]: '
            "there alone is an error at most 1, so that clipped rows bound what a record adds"
        )
    if privacy.colluding > 1:
        yield f"Expected privacy.colluding={privacy.colluding} of 0 or 1: of two servers one must add honest noise"
    if not privacy.clip_norm > 1:
        yield (
            f"Expected privacy.clip_norm={privacy.clip_norm} above 1, which the bias takes; sqrt(2) clips rows to 1: "
            "leave it out"
        )
    if shares.insecure_colocated_dealer:
        yield "Expected no [privacy] with shares.insecure_colocated_dealer; it hides nothing from that server"
