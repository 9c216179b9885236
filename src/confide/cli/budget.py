"""`confide budget`: what a data set may spend, what it has spent on what, and what is left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from confide.cli import console
from confide.errors import UsageError

if TYPE_CHECKING:
    from confide.store import SqliteStore
    from confide.train.data_budget import Standing

app = typer.Typer(
    no_args_is_help=True,
    help="""The privacy budget of a data set, kept in a file beside it.

    Every training under differential privacy lets a little of each record out: epsilon bounds how much, delta how often
    more. Trainings on the same records add up, whoever ran them and however different they were. A budget is the most
    that all of them together may spend, chosen once by whoever answers for the records. A job that names the budget
    (data.budget) is refused before it reads a row if it does not fit; what was spent never comes back.

    \b
    1. confide budget set JOB.toml --epsilon 3 --delta 1e-4
    2. confide train JOB.toml
    3. confide budget show JOB.toml
    """,
)

_WHERE = "A job with data.budget, or the budget file itself."


@app.command("set")
def set_(
    where: Annotated[Path, typer.Argument(metavar="JOB.toml", help=_WHERE)],
    epsilon: Annotated[float, typer.Option(help="Of all runs together. Up to 1 is strong, beyond 10 promises little.")],
    delta: Annotated[float, typer.Option(help="Of all runs together; well below one over the number of records.")],
    rule: Annotated[
        str, typer.Option(help='How runs add up: "sum" takes every job, "gaussian" allows more of Gaussian ones.')
    ] = "sum",
    unit: Annotated[str, typer.Option(help='Whose presence it is about: "record", or an identifier of the schema.')] = (
        "record"
    ),
    data_set: Annotated[str | None, typer.Option(help="Its name, if a budget file is named.")] = None,
    raising: Annotated[bool, typer.Option("--raise", help="Allow more than was set before; it is noted.")] = False,
) -> None:
    """Set what a data set may spend over its lifetime: once, by whoever answers for the records.

    No job can change it. A lower limit is always taken, a higher one with --raise alone, and every limit that there was
    is shown ever after. The rule stays: "sum" adds epsilons and deltas of any mechanisms; "gaussian" adds mu^2, so that
    four jobs of epsilon 0.5 spend about 1.07 and not 2, and refuses jobs whose noise is not Gaussian.

        confide budget set job.toml --epsilon 3 --delta 1e-4
    """
    from confide.dp.accountant import check_target
    from confide.store import SqliteStore
    from confide.train.budget import Budget
    from confide.train.data_budget import set_limit, standing
    from confide.wire import MemoryStore

    place, name = _place(where)
    name = data_set or name
    if name is None:
        raise UsageError("Expected --data-set NAME with a budget file; or name a job with data.budget")
    if rule not in ("sum", "gaussian"):
        raise UsageError(f'Expected --rule sum or gaussian, got "{rule}"')
    check_target(epsilon, delta)  # and the name: before there is a file
    Budget(MemoryStore(), name)
    store = SqliteStore(place)
    try:
        set_limit(store, name, epsilon=epsilon, delta=delta, rule=rule, unit=unit, raising=raising)
        _print(standing(store, name))
    finally:
        store.close()


@app.command("show")
def show(
    where: Annotated[Path, typer.Argument(metavar="JOB.toml", help=_WHERE)],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, for programs.")] = False,
) -> None:
    """Show each data set's limit, what every run has spent on what, and what is left.

    A run is charged whole before its first sum leaves, so one that crashed stands here too. "together" is what all runs
    have spent on a record that was in each: added up, and, where all noise is Gaussian, also by mu, which is the
    tighter figure of the same runs.

        confide budget show job.toml
    """
    from confide.train.data_budget import data_sets, standing

    place, name = _place(where)
    store = _opened(place)
    try:
        found = [standing(store, one) for one in ((name,) if name else data_sets(store))]
    finally:
        store.close()
    if as_json:
        console.out.print(msgspec.json.format(msgspec.json.encode([_facts(one) for one in found])).decode())
        return
    for one in found:
        _print(one)


def _place(where: Path) -> tuple[Path, str | None]:
    """Return the budget's file and, of a job, its data set's name."""
    from confide.train.job import load
    from confide.train.run import budget_of

    if where.suffix != ".toml":
        return where, None
    job = load(where)
    budget = budget_of(job)
    if budget is None:
        raise UsageError(f'Expected data.budget in {where}, the file of the budget: budget = "budget.db" in [data]')
    return job.path(str(job.data.budget)), budget.data_set


def _opened(place: Path) -> SqliteStore:
    from confide.store import SqliteStore

    if not place.is_file():
        raise UsageError(f"Expected a budget at {place}; confide budget set makes it")
    return SqliteStore(place)


def _print(found: Standing) -> None:
    console.out.print(f"data set {found.data_set}")
    for limit in found.limits[:-1]:
        console.out.print(f"  earlier limit: epsilon={limit.epsilon:g}, delta={limit.delta:.3g}, set {limit.set_on}")
    if found.limit is not None:
        limit = found.limit
        console.out.print(
            f"  limit: epsilon={limit.epsilon:g}, delta={limit.delta:.3g} of all runs together, set {limit.set_on}, "
            f"runs add up by rule: {limit.rule}, unit: {limit.unit}"
        )
    for account in found.accounts:
        told = account.told
        when, name = (told.when, told.name) if told else ("", "")
        spent = "no noise" if account.epsilon is None else f"epsilon={account.epsilon:.4g}, delta={account.delta:.3g}"
        mu = "" if told is None or told.mu is None else f", mu={told.mu:.4g}"
        console.out.print(f"  run {account.run} {when}: job {name or account.job[:8]}, {spent}{mu}")
        if told is not None:
            console.out.print(f"    {told.mechanism}; job {account.job[:8]}, schema {told.schema[:8]}")
    spent = found.spent
    line = f"  together: epsilon={spent.epsilon:.4g}, delta={spent.delta:.3g} added up ({len(found.accounts)} runs)"
    by_mu = None if found.limit is None or not found.accounts else found.epsilon_by_mu(found.limit.delta)
    if by_mu is not None and found.limit is not None:
        line += f"; by mu={found.mu:.4g}: epsilon={by_mu:.4g} at delta={found.limit.delta:.3g}"
    if spent.without:
        line += f"; {spent.without} runs without noise, which no epsilon bounds"
    console.out.print(line)
    if found.limit is not None:
        epsilon, delta = found.left
        console.out.print(f"  left: epsilon={epsilon:.4g} at delta={delta:.3g} for one more job")


def _facts(found: Standing) -> dict[str, Any]:
    limit, (epsilon, delta) = found.limit, found.left
    return {
        "data_set": found.data_set,
        "limits": [
            {"epsilon": one.epsilon, "delta": one.delta, "rule": one.rule, "unit": one.unit, "set_on": one.set_on}
            for one in found.limits
        ],
        "runs": [
            {
                "run": account.run,
                "job_hash": account.job,
                "epsilon": account.epsilon,
                "delta": account.delta,
                "job": account.told.name if account.told else None,
                "when": account.told.when if account.told else None,
                "mechanism": account.told.mechanism if account.told else None,
                "mu": account.told.mu if account.told else None,
                "schema_hash": account.told.schema if account.told else None,
            }
            for account in found.accounts
        ],
        "spent": {"epsilon": found.spent.epsilon, "delta": found.spent.delta, "without": found.spent.without},
        "mu": found.mu,
        "epsilon_by_mu": found.epsilon_by_mu(limit.delta) if limit and found.accounts else None,
        "left": {"epsilon": epsilon, "delta": delta},
    }
