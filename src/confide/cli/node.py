"""`confide node`: an organisation's side of a federation: run it, look at what is asked, approve, check the table."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from confide.cli import console
from confide.cli.proxies import Surroundings, proxy_for, surroundings
from confide.errors import ConfideError, DataError, UsageError

if TYPE_CHECKING:
    from confide.net.flower import FlowerJoin
    from confide.net.membership import Membership
    from confide.net.stream import Join
    from confide.train.approval import Approvals, Asked
    from confide.train.dry_run import DryRun, JobCheck
    from confide.train.offer import Offer

node_app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="An organisation's side of a federation; without a command, run it.",
)

_Identity = Annotated[
    Path | None, typer.Option(help="The member's folder, as `confide federation join` made it; here if left out.")
]
_By = Annotated[str | None, typer.Option("--by", help="Who decides; the name of the system's user if left out.")]
_Hash = Annotated[
    str, typer.Argument(metavar="HASH", help="First digits of the offer's digest or of the job's hash, 6 at least.")
]


@dataclass(frozen=True, slots=True)
class _Way:
    """How the coordinator is met: at a URL, through a proxy or not; or on a socket, over Flower."""

    url: str
    proxy: str | None
    flower: Path | None
    group: bool

    def meeting(self, folder: Path) -> AbstractContextManager[tuple[Join | FlowerJoin, Membership]]:
        from confide.train.operate import joining, joining_over_flower

        if self.flower is None:
            return joining(folder, url=self.url, proxy=self.proxy)
        return joining_over_flower(folder, self.flower, group=self.group)


@node_app.callback()
def run(
    context: typer.Context,
    coordinator: Annotated[
        str | None, typer.Option(help="wss://HOST:PORT of the coordinator; the member's own if left out.")
    ] = None,
    identity: _Identity = None,
    data: Annotated[Path | None, typer.Option(help="This organisation's table: CSV or .npz.")] = None,
    policy: Annotated[Path | None, typer.Option(help="What this organisation allows; docs/policy.md.")] = None,
    proxy: Annotated[
        str | None,
        typer.Option(help="http://HOST:PORT of a proxy, or direct; HTTPS_PROXY if left out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the released model; in the folder if left out.")] = None,
    once: Annotated[bool, typer.Option("--once", help="End after one job.")] = False,
    flower: Annotated[
        Path | None,
        typer.Option(
            metavar="SOCKET", help="Over Flower: the socket on which its ClientApps call; nothing is dialled."
        ),
    ] = None,
    flower_group: Annotated[
        bool, typer.Option("--flower-group", help="The group of the socket may call too, for a SuperNode's own user.")
    ] = False,
) -> None:
    """Run a node: one outbound connection, this organisation's table, its policy.

    confide node --identity member --data table.csv --policy policy.toml
    """
    context.obj = identity
    if context.invoked_subcommand is not None:
        if any((coordinator, data, policy, proxy, out, once, flower, flower_group)):
            raise UsageError(
                f"Expected only --identity before {context.invoked_subcommand}, which runs no node; put its options "
                "behind it"
            )
        return
    if policy is None:
        raise UsageError("Expected --policy, what this organisation allows; docs/policy.md has one to start from")
    if flower is not None and (coordinator is not None or proxy is not None):
        raise UsageError("Expected --flower without --coordinator and --proxy: nothing is dialled; leave them out")
    folder = identity or Path()
    way = _way(folder, coordinator, proxy, flower, group=flower_group, said=surroundings(context))
    _run(folder, data, policy, way, out, once=once)


def _way(
    folder: Path, url: str | None, proxy: str | None, flower: Path | None, *, group: bool, said: Surroundings
) -> _Way:
    from confide.net.membership import membership

    # looked up before anything is written, so that a coordinator's folder is named as such and stays as it is
    own_coordinator = membership(folder).coordinator
    address = url or own_coordinator
    return _Way(address, None if flower else proxy_for(address, proxy, said), flower, group)


def _run(identity: Path, data: Path | None, policy: Path, way: _Way, out: Path | None, *, once: bool) -> None:
    from confide.cli.progress import NodeView, node_display
    from confide.crypto.keys import SigningKey
    from confide.crypto.random import SystemRandomness
    from confide.model.artifact import write_whole
    from confide.net.folders import identity_seed
    from confide.net.membership import own
    from confide.store import Patient, open_store
    from confide.train.approval import Approvals
    from confide.train.gate import PolicyGate
    from confide.train.node import Member, Node
    from confide.train.operate import take_part
    from confide.train.policy import load_policy

    rules, me = load_policy(policy), own(identity)
    if me.role == "node" and data is None:
        raise UsageError("Expected --data, this organisation's table; `confide node check` looks at it first")
    place, own_place = out or identity / "model.confide", identity / "own.confide"
    with ExitStack() as stack:
        stack.enter_context(console.stops_cleanly())
        store = open_store(identity / "node.db")
        stack.callback(store.close)
        stack.enter_context(store.exclusive("node"))
        kept = Patient(store, say=console.err.print)
        join, said = stack.enter_context(way.meeting(identity))
        display = stack.enter_context(node_display())
        gate = PolicyGate(rules, kept, Approvals(identity), data, coordinator=said.coordinator_identity)

        def release(offer: Offer, model: bytes) -> None:
            write_whole(place, model)
            lines = [f"job {_name_of(offer)}: wrote {place}"]
            if (found := node.joining()) is not None:
                joining, alone = found
                alone.save(own_place, SigningKey(identity_seed(identity)))
                use = "use your own" if joining.fall_back else "your own, if you need to fall back"
                lines += [*joining.sentences(), f"{use}: {own_place}, from your records alone and not to be passed on"]
            for line in lines:
                display.tell(console.plain(line))

        node = Node(
            Member(me.name, me.role, identity_seed(identity)),
            data if me.role == "node" else None,
            gate,
            kept,
            rng=SystemRandomness(),
            say=lambda text: console.err.print(console.plain(text)),
            release=release,
        )

        def show() -> None:
            now, budget = node.standing, gate.budget
            over = node.ended and now.state == "accepted"  # else the next job asks
            phase = {
                "": "waiting for the coordinator and its job",
                "pending": f"{now.reason} --identity {identity}",  # the reason ends with the command to run
                "refused": f"refused: {now.reason}",
                "accepted": "in the run",
            }[now.state]
            display.show(
                NodeView(
                    name=me.name,
                    coordinator=said.coordinator,
                    job=now.job,
                    phase=console.plain("done" if over else phase),
                    round=now.round,
                    rounds=now.rounds,
                    taken=now.taken,
                    epsilon=budget.spent().epsilon,
                    epsilon_budget=budget.greatest_epsilon,
                )
            )

        show()
        take_part(
            node,
            join,
            identity,
            url=way.url,
            proxy=way.proxy,
            say=console.err.print,
            ended=lambda: once and node.ended is not None,
            shown=show,
            scrub=store.scrub,
        )


def _name_of(offer: Offer) -> str:
    from confide.train.offer import read

    return read(offer)[0].job.name


# --- what people decide -----------------------------------------------------------------------------------------------


@node_app.command()
def pending(context: typer.Context, identity: _Identity = None) -> None:
    """List the jobs that wait for a person.

    confide node pending --identity member
    """
    approvals = _approvals(context, identity)
    for asked in approvals.waiting():
        offer = asked.offer
        console.out.print(
            f"{offer.digest[:12]}  asked {console.plain(asked.when)}  job {offer.job_hash[:12]}  {_name(asked)}"
        )


@node_app.command()
def show(context: typer.Context, wanted: _Hash, identity: _Identity = None) -> None:
    """Show a job as this node understood it: guarantee, epsilon beside the budget, members.

    confide node show 1a2b3c4d5e6f --identity member
    """
    approvals = _approvals(context, identity)
    asked = approvals.find(wanted)
    for line in _shown(asked):
        console.out.print(line)
    decision = approvals.decision(asked.offer.digest)
    if decision is None:
        console.out.print(f"waiting for a person: confide node approve {asked.offer.digest[:12]}")
    else:
        word = "approved" if decision.approved else f"refused ({console.plain(decision.reason)})"
        console.out.print(f"{word} by {console.plain(decision.who)} at {console.plain(decision.when)}")


@node_app.command()
def approve(
    context: typer.Context,
    wanted: Annotated[
        str | None, typer.Argument(metavar="[HASH]", help="As in `show`; the only job that waits if left out.")
    ] = None,
    identity: _Identity = None,
    by: _By = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask when no HASH is given.")] = False,
) -> None:
    """Approve a job for the table as it is now.

    The approval binds to the job, the schema, the members and the table's file: whatever changes needs another.

        confide node approve 1a2b3c4d5e6f --identity member
    """
    from confide.train.approval import data_digest

    approvals = _approvals(context, identity)
    asked = approvals.find(wanted) if wanted else _only(approvals)
    if not wanted and not yes:
        for line in _shown(asked):
            console.out.print(line)
        typer.confirm("Approve this job for this table?", abort=True)
    digest = data_digest(Path(asked.data))
    decision = approvals.approve(asked, data=digest, who=by or _user(), when=_now())
    console.out.print(
        f"approved {asked.offer.digest[:12]} as {console.plain(decision.who)} for the table {digest[:12]}"
    )


@node_app.command()
def refuse(
    context: typer.Context,
    wanted: _Hash,
    reason: Annotated[str, typer.Option(help="Why; the coordinator and its analyst see it.")],
    identity: _Identity = None,
    by: _By = None,
) -> None:
    """Refuse a job, with a reason that the coordinator sees.

    confide node refuse 1a2b3c4d5e6f --reason "no vote of the ethics board yet" --identity member
    """
    approvals = _approvals(context, identity)
    asked = approvals.find(wanted)
    decision = approvals.refuse(asked, reason=reason, who=by or _user(), when=_now())
    console.out.print(f"refused {asked.offer.digest[:12]} as {console.plain(decision.who)}")


def _approvals(context: typer.Context, identity: Path | None) -> Approvals:
    from confide.train.approval import Approvals

    folder = identity or context.obj or Path()
    if not folder.is_dir():
        raise UsageError(f"Expected --identity={folder} to be a member's folder; `confide federation join` makes one")
    return Approvals(folder)


def _only(approvals: Approvals) -> Asked:
    waiting = approvals.waiting()
    if len(waiting) != 1:
        raise UsageError(f"Expected a HASH while {len(waiting)} jobs wait; `confide node pending` lists them")
    return waiting[0]


def _name(asked: Asked) -> str:
    from confide.train.offer import read

    try:
        return console.plain(read(asked.offer)[0].job.name)
    except ConfideError:
        return "(asked before this version was installed, which understands it differently)"


def _shown(asked: Asked) -> Iterable[str]:
    """Yield what a person must know of a job; every text of the coordinator's without what could move a cursor."""
    from confide.train.offer import read
    from confide.train.run import aggregator_of, hidden_among

    offer = asked.offer
    job, schema = read(offer)  # again: what is shown is what this node's code makes of it
    guarantee = aggregator_of(job).guarantee
    yield from (console.plain(line) for line in offer.job.rstrip().splitlines())
    yield f"columns: {console.plain(', '.join(column.name for column in schema.columns))}"
    yield f"predicts: {console.plain(schema.label.name)} ({console.plain(', '.join(schema.label.classes))})"
    yield f"guarantee: {'; '.join(guarantee.sentences())}"
    yield f"leaks: {guarantee.leaks}"
    if job.privacy is None:
        yield "privacy: NO differential privacy: the model may tell about single records"
    else:
        yield (
            f"privacy: epsilon={job.privacy.epsilon:g} at delta={job.privacy.delta:g} per {job.privacy.unit}, against "
            f"the coordinator with {job.privacy.colluding} of the others"
        )
    yield (
        f"budget: epsilon={asked.epsilon:.6g} of {asked.greatest_epsilon:g} and delta={asked.delta:.3g} of "
        f"{asked.greatest_delta:g} were spent when the node last looked; left: "
        f"epsilon={max(0.0, asked.greatest_epsilon - asked.epsilon):.6g}"
    )
    among = hidden_among(job, len(offer.roster.members))
    yield f"cohort: {len(offer.roster.members)} nodes, released with {offer.quorum} or more, hidden among {among or 1}"
    yield from (f"  {name}  {key.hex()}" for name, key in offer.roster.members)
    yield f"coordinator: {offer.coordinator.hex()}"
    yield f"helper: {offer.helper.hex() or 'none'}"
    yield f"roster, to compare by telephone: {offer.roster.fingerprint}"
    yield f"starting model: {offer.start_hash}"
    yield f"job hash, for allow.jobs: {offer.job_hash}"
    yield f"digest of this offer: {offer.digest}"
    yield f"table: {console.plain(asked.data)}"
    yield f"asked: {console.plain(asked.when)}, by confide {offer.confide}, run {offer.run}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without a name for its user
        return f"uid {os.getuid()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- the dry run ------------------------------------------------------------------------------------------------------


@node_app.command()
def check(
    data: Annotated[Path, typer.Option(help="The table: CSV or .npz.")],
    job: Annotated[Path | None, typer.Option(help="The job that is to be taken part in; it names the schema.")] = None,
    schema: Annotated[Path | None, typer.Option(help="The schema, without a job or in place of the job's.")] = None,
    policy: Annotated[Path | None, typer.Option(help="The policy; without it the defaults of one.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: counts and rows, no value of the table.")
    ] = False,
) -> None:
    """Look at a table beside a schema and a job, all problems at once; nothing leaves this machine.

    Ends with 0 if the node could take part, and with 2 if something keeps it from it.

        confide node check --data table.csv --job job.toml --policy policy.toml
    """
    from confide.train.dry_run import dry_run
    from confide.train.job import load
    from confide.train.policy import load_policy

    asked = None if job is None else load(job)
    where = schema
    if where is None and asked is not None and asked.data.schema is not None:
        where = asked.path(asked.data.schema)
    if where is None:
        raise UsageError("Expected --schema, or a --job with data.schema; name what the table shall look like")
    rules = None if policy is None else load_policy(policy)
    found = dry_run(data, _read_text(where), job=asked, policy=rules)
    if as_json:
        console.out.print(msgspec.json.format(msgspec.json.encode(_builtins(found))).decode())
    else:
        _print_survey(found)
        if found.job is not None:
            _print_job(found.job, defaults=rules is None)
    if not found.passes:
        raise typer.Exit(2)


def _read_text(path: Path) -> str:
    from confide.data.schema import LARGEST_SCHEMA_BYTES

    try:
        with path.open("rb") as file:
            body = file.read(LARGEST_SCHEMA_BYTES + 1)
        if len(body) > LARGEST_SCHEMA_BYTES:
            raise DataError(f"Expected a schema of at most {LARGEST_SCHEMA_BYTES} bytes at {path}")
        return body.decode()
    except OSError as error:
        raise DataError(f"Expected a readable schema at {path}; {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"Expected TOML in {path}; {error}") from None


def _builtins(found: DryRun) -> dict[str, Any]:
    """Return a dry run as JSON has it, without texts of the table: it may be passed on."""
    without = [replace(finding, texts={}) for finding in found.findings]
    survey, job = len(found.survey.findings), found.job
    found = replace(
        found,
        survey=replace(found.survey, findings=tuple(without[:survey])),
        job=None if job is None else replace(job, findings=tuple(without[survey:])),
    )
    return msgspec.to_builtins(found) | {"passes": found.passes}


def _print_survey(found: DryRun) -> None:
    seen = found.survey
    table = Table("column", "kind", "unit", "missing", "wrong", "outside", title=f"{seen.records} records")
    for column in seen.columns:
        share = f"{column.missing} ({100 * column.missing / max(1, seen.records):.1f} %)"
        cells = (column.name, column.kind, column.unit, share, column.wrong, column.outside)
        table.add_row(*(console.plain(str(cell)) for cell in cells))
    Console(markup=False, highlight=False).print(table)
    counts = ", ".join(f"{console.plain(name)} {count}" for name, count in seen.classes.items())
    console.out.print(f"classes: {counts or 'none'}")
    if seen.ignored:
        console.out.print(f"columns left out: {console.plain(', '.join(seen.ignored))}")
    for one in found.findings:
        where = f"{console.plain(one.where)}: " if one.where else ""
        count = f"{one.count} " if one.count and one.rows else ""
        rows = (
            f" (rows {', '.join(map(str, one.rows))}{' ...' if one.count > len(one.rows) else ''})" if one.rows else ""
        )
        texts = "; ".join(f'"{console.plain(text)}": {number}' for text, number in one.texts.items())
        console.out.print(f"{one.level}: {where}{count}{console.plain(one.text)}{rows}{f' [{texts}]' if texts else ''}")


def _print_job(job: JobCheck, *, defaults: bool) -> None:
    if job.hash:
        console.out.print(f"job hash: {job.hash}")
        console.out.print(f"guarantee: {'; '.join(job.guarantee)}")
    if job.step_seconds is not None:
        console.out.print(
            f"{job.training} records to train on, {job.testing} set aside; one round's local work took "
            f"{job.step_seconds:.3g} s here"
        )
    for line in job.refusals:
        console.out.print(f"refused by {'the default policy' if defaults else 'the policy'}: {console.plain(line)}")
    if job.hash and not job.refusals:
        console.out.print(
            f"allowed by {'the default policy' if defaults else 'the policy'}, as far as it depends on the job; "
            "coordinator, roster and what the budget has spent are looked at when the job is offered"
        )
