"""`confide node pending`, `show`, `approve` and `refuse`: what people decide of the jobs that a node is asked for."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.cli import console
from confide.errors import ConfideError, UsageError

if TYPE_CHECKING:
    from confide.train.approval import Approvals, Asked

Identity = Annotated[
    Path | None, typer.Option(help="The member's folder, as `confide federation join` made it; here if left out.")
]
_By = Annotated[str | None, typer.Option("--by", help="Who decides; the name of the system's user if left out.")]
_Hash = Annotated[
    str, typer.Argument(metavar="HASH", help="First digits of the offer's digest or of the job's hash, 6 at least.")
]


def pending(context: typer.Context, identity: Identity = None) -> None:
    """List the jobs that wait for a person.

    confide node pending --identity member
    """
    approvals = _approvals(context, identity)
    for asked in approvals.waiting():
        offer = asked.offer
        console.out.print(
            f"{offer.digest[:12]}  asked {console.plain(asked.when)}  job {offer.job_hash[:12]}  {_name(asked)}"
        )


def show(context: typer.Context, wanted: _Hash, identity: Identity = None) -> None:
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


def approve(
    context: typer.Context,
    wanted: Annotated[
        str | None, typer.Argument(metavar="[HASH]", help="As in `show`; the only job that waits if left out.")
    ] = None,
    identity: Identity = None,
    by: _By = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask when no HASH is given.")] = False,
) -> None:
    """Approve a job for the table as it is now.

    The approval binds to the job, the schema, the members and the table's file: whatever changes needs another.

        confide node approve 1a2b3c4d5e6f --identity member
    """
    from confide.data.files import digest_of

    approvals = _approvals(context, identity)
    asked = approvals.find(wanted) if wanted else _only(approvals)
    if not wanted and not yes:
        for line in _shown(asked):
            console.out.print(line)
        typer.confirm("Approve this job for this table?", abort=True)
    digest = digest_of(Path(asked.data)) if asked.data else ""  # a helper has no table
    decision = approvals.approve(asked, data=digest, who=by or _user(), when=_now())
    console.out.print(
        f"approved {asked.offer.digest[:12]} as {console.plain(decision.who)}"
        + (f" for the table {digest[:12]}" if digest else "")
    )


def refuse(
    context: typer.Context,
    wanted: _Hash,
    reason: Annotated[str, typer.Option(help="Why; the coordinator and its analyst see it.")],
    identity: Identity = None,
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
    from confide.train.parts import aggregator_of, hidden_among
    from confide.train.reasons import reasons

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
        yield from (f"  {reason}" for reason in reasons(job))
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
    yield f"table: {console.plain(asked.data) or 'none: this member is a helper'}"
    yield f"asked: {console.plain(asked.when)}, by confide {offer.confide}, run {offer.run}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without a name for its user
        return f"uid {os.getuid()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
