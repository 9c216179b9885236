"""The budget of a data set that jobs read here: set once by a command, charged by every run before anything leaves.

A store beside the tables holds, for each data set by its name, a limit and an account for each run (`budget.Budget`, as
nodes have it). A job with `data.budget` is refused before a row is read if its epsilon and delta do not fit into what
is left. Once its tables are read, and before the first vector that depends on them leaves a party, the whole job is
charged in one commit: a crash after it has spent everything, an unreadable table nothing.

A limit has one rule, chosen with it, by which runs add up:

    sum         epsilons and deltas are added: basic composition (Dwork and Roth, theorem 3.16)
    gaussian    mu^2 of Gaussian mechanisms are added: with many runs far less; other mechanisms are refused

Both hold however a job is chosen in view of earlier results: Rogers, Roth, Ullman, Vadhan (arXiv 1605.08294) for sums
under a limit that was fixed before, Smith and Thakurta (arXiv 2210.17520) for mu^2. Taking whichever rule is kinder
at the end would not: the two would have to hold together. Under "gaussian" a thousandth of the limit is kept for what
integers add to epsilon and delta (theorem 2 of docs/protocols/dp-gradient.md), so that one number, mu, is counted.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec

from confide.crypto.random import SystemRandomness
from confide.dp.accountant import check_target, gaussian_epsilon, gaussian_mu
from confide.dp.plan import PrivacyPlan
from confide.errors import IntegrityError, JobError, PrivacyError, ProtocolError, StoreError, UsageError
from confide.store import DurableStore, Lease, SqliteStore
from confide.train.budget import Account, Budget, Spent, Told
from confide.train.job import describe
from confide.train.sections import Job
from confide.wire import decode, encode

Rule = Literal["sum", "gaussian"]

_LIMIT = "budget-limit/"
_ACCOUNT = "budget/"
_WAIT_SECONDS = 30.0
_KEPT = 0.001  # of a limit under "gaussian", for what integers add
_LARGEST_EPSILON = 32.0  # tails are charged as at this epsilon


class Limit(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a data set may spend over its lifetime.

    Args:
        epsilon, delta: of all runs together.
        rule: how runs add up.
        set_on: UTC, ISO 8601.
        unit: whose presence epsilon is about: "record", or an identifier of the schema.
    """

    epsilon: float
    delta: float
    rule: Rule
    set_on: str
    unit: str = "record"

    @property
    def mu(self) -> float:
        """Return the mu that runs may have together under "gaussian"; the rest of the limit is for integers."""
        kept = 1 - _KEPT
        return gaussian_mu(kept * self.epsilon, kept * self.delta * math.exp(-_KEPT * self.epsilon))


class _Limits(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Every limit that a data set ever had, the present one last."""

    limits: tuple[Limit, ...]


def name_of(job: Job, schema_name: str) -> str:
    """Return the name that a job's data set has in a budget: the shipped set's, or the schema's.

    Raises:
        JobError: the schema has no such name.
    """
    name = job.data.set or schema_name
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise JobError(
            f"Expected name={name!r} in the schema to be letters, digits, '-', '_' and '.', at most 64; a budget is "
            "kept by it"
        )
    return name


def limits_of(store: DurableStore, data_set: str) -> tuple[Limit, ...]:
    """Return every limit that a data set has had, the present one last; none if none was set.

    Raises:
        IntegrityError: the store holds something else there.
    """
    body = store.get(_LIMIT + data_set)
    if body is None:
        return ()
    try:
        return decode(body, _Limits, max_bytes=len(body)).limits
    except ProtocolError:
        raise IntegrityError(f"Expected a limit under {_LIMIT + data_set!r}; restore the store from a copy") from None


def data_sets(store: DurableStore) -> tuple[str, ...]:
    """Return the names of the data sets that have a limit or have spent something."""
    limited = {key.removeprefix(_LIMIT) for key in store.keys(_LIMIT)}
    spent = {parts[1] for key in store.keys(_ACCOUNT) if len(parts := key.split("/")) == 2}
    return tuple(sorted(limited | spent))


def set_limit(
    store: DurableStore,
    data_set: str,
    *,
    epsilon: float,
    delta: float,
    rule: Rule = "sum",
    unit: str = "record",
    raising: bool = False,
) -> Limit:
    """Set what a data set may spend over its lifetime. What was set before is kept beside it, with its date.

    Args:
        epsilon, delta: of all runs together, those that were charged already included.
        rule: how runs add up; it stays.
        unit: whose presence it is about; it stays.
        raising: allow more than before. Every earlier promise was made under the lower limit.

    Raises:
        UsageError: a number is out of its range, rule or unit differ from those before, or the limit would rise.
    """
    check_target(epsilon, delta)
    if not unit.isprintable():
        raise UsageError('Expected a unit of printable characters: "record", or an identifier of the schema')
    with alone(store):
        earlier = limits_of(store, data_set)
        if earlier and (earlier[-1].rule, earlier[-1].unit) != (rule, unit):
            raise UsageError(
                f'Expected rule "{earlier[-1].rule}" and unit "{earlier[-1].unit}", as this budget has from its start'
            )
        if earlier and not raising and (epsilon > earlier[-1].epsilon or delta > earlier[-1].delta):
            raise UsageError(
                f"Expected at most epsilon={earlier[-1].epsilon:g} and delta={earlier[-1].delta:g}, which were set on "
                f"{earlier[-1].set_on}; a budget that grows promised too much before. If its owner wants that, say "
                "--raise: it is noted"
            )
        limit = Limit(float(epsilon), float(delta), rule, now(), unit)
        Budget(store, data_set)  # refuses a name that none can have
        store.commit({_LIMIT + data_set: encode(_Limits((*earlier, limit)))})
    return limit


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a data set stands.

    Args:
        data_set: its name.
        limits: every limit that it has had, the present one last; none for a node's, whose policy has it.
        accounts: of its runs, in the order of their first charges.
    """

    data_set: str
    limits: tuple[Limit, ...]
    accounts: tuple[Account, ...]

    @property
    def limit(self) -> Limit | None:
        """Return the present limit."""
        return self.limits[-1] if self.limits else None

    @property
    def spent(self) -> Spent:
        """Return what all runs have spent by basic composition."""
        private = [account for account in self.accounts if account.epsilon is not None]
        return Spent(
            math.fsum(account.epsilon or 0.0 for account in private),
            math.fsum(account.delta for account in private),
            len(self.accounts) - len(private),
        )

    @property
    def mu(self) -> float | None:
        """Return the mu of all runs together; None if one was no Gaussian mechanism, or did not say."""
        found = [account.told.mu if account.told else None for account in self.accounts]
        known = [mu for mu in found if mu is not None]
        return math.hypot(*known) * (1 + 2.0**-48) if len(known) == len(found) else None

    def epsilon_by_mu(self, delta: float) -> float | None:
        """Return the epsilon of all runs together at `delta` where all are Gaussian; None if they are not."""
        mu = self.mu
        if not mu:
            return mu
        surcharge, tail = self._integers()
        left = (delta - tail) * math.exp(-surcharge)
        return gaussian_epsilon(mu, left) + surcharge if left > 0 else math.inf

    @property
    def left(self) -> tuple[float, float]:
        """Return the epsilon and delta of the largest job that still fits; (0, 0) without a limit or room."""
        limit = self.limit
        if limit is None or self.spent.without:
            return 0.0, 0.0
        if limit.rule == "sum":
            return max(0.0, limit.epsilon - self.spent.epsilon), max(0.0, limit.delta - self.spent.delta)
        mu = self.mu
        room = 0.0 if mu is None else math.sqrt(max(0.0, limit.mu**2 - mu**2))
        return (gaussian_epsilon(room, limit.delta), limit.delta) if room > 0 else (0.0, 0.0)

    def require(self) -> None:
        """Refuse accounts that pass the limit.

        Raises:
            PrivacyError: they do, or the rule cannot count one of them.
        """
        limit = self.limit
        if limit is None:
            raise PrivacyError(
                f"Expected a budget for the data set {self.data_set}; its owner sets it once: confide budget set"
            )
        if self.spent.without:
            raise PrivacyError(f"Expected only runs with [privacy] on {self.data_set}; no budget bounds another")
        if any(account.told and account.told.unit != limit.unit for account in self.accounts):
            raise PrivacyError(
                f'Expected privacy.unit="{limit.unit}" for the data set {self.data_set}, whose budget counts these; '
                "epsilons of other units do not add up with it"
            )
        if limit.rule == "sum":
            fits = self.spent.epsilon <= limit.epsilon and self.spent.delta <= limit.delta
        else:
            if self.mu is None:
                raise PrivacyError(
                    f'Expected Gaussian noise for the data set {self.data_set}, whose budget has rule = "gaussian"'
                )
            surcharge, tail = self._integers()
            small = surcharge <= _KEPT * limit.epsilon and tail <= _KEPT * limit.delta
            fits = small and self.mu <= limit.mu
        if not fits:
            raise PrivacyError("Expected a job within its data set's budget")

    def _integers(self) -> tuple[float, float]:
        told = [account.told for account in self.accounts if account.told]
        return math.fsum(one.surcharge for one in told), math.fsum(one.tail for one in told)


def standing(store: DurableStore, data_set: str) -> Standing:
    """Return where a data set stands."""
    return Standing(data_set, limits_of(store, data_set), Budget(store, data_set).accounts)


class JobBudget:
    """The account of one job's run with its data set's budget.

    Args:
        job: with its data.budget.
        data_set: from `name_of`.
        schema_hash: hex hash of the schema that its tables are read by.
        plans: of all that the job releases: its training first, then sums over records that the training does not see,
            so that the largest counts.
        cost: epsilon of a search among many runs of the job, at the job's delta; None for one run.

    **Guarantees**: `charge` returns only once the whole job is on disk as spent; two processes that charge at the same
    time never pass the limit together; a training that is begun twice is charged twice.
    """

    def __init__(
        self, job: Job, data_set: str, schema_hash: str, plans: Sequence[PrivacyPlan], *, cost: float | None = None
    ) -> None:
        self._where = job.path(str(job.data.budget))
        self._job = hashlib.sha256(describe(job, output=False).encode()).hexdigest()
        self.data_set, self._plan = data_set, plans[0]
        self._epsilon = self._plan.epsilon if cost is None else cost
        counted = [plan.composition(plan.shares) for plan in plans]
        self._told = Told(
            name=job.job.name,
            when="",
            mechanism=plans[0].mechanism
            if cost is None
            else f"the best of a secret number of runs: {plans[0].mechanism}",
            schema=schema_hash,
            mu=max(one.mu for one in counted) if cost is None else None,
            surcharge=max(one.surcharge for one in counted),
            tail=max(one.tail(_LARGEST_EPSILON) for one in counted),
            unit=plans[0].unit,
        )
        self._run = ""  # the account that was charged

    def check(self) -> None:
        """Refuse the job if it does not fit, before anything is read; nothing is charged.

        Raises:
            PrivacyError: no budget was set, or less is left than the job asks for.
        """
        with self._opened() as store:
            self._fitting(store, "check")

    def charge(self) -> None:
        """Charge the whole job, once.

        Raises:
            PrivacyError: as in `check`.
            StoreError: it could not be written; nothing may leave.
        """
        if not self._run:
            with self._opened() as store, alone(store):
                self._charge(store, begun=False)

    def _charge(self, store: DurableStore, *, begun: bool) -> None:
        run = SystemRandomness().bytes(8).hex()
        self._fitting(store, run)
        note = {self._begun(run): b"1"} if begun else {}
        store.commit(self._entry(Budget(store, self.data_set), run) | note)
        self._run = run

    def _begun(self, run: str) -> str:
        """Return where the store says that the training of an account has begun, for every copy of this object."""
        return f"begun/{self.data_set}/{run}"

    def begin(self) -> None:
        """Charge a training: what was charged for its preparation covers the first, another one is charged again."""
        with self._opened() as store, alone(store):
            if self._run and store.get(self._begun(self._run)) is None:
                store.commit({self._begun(self._run): b"1"})
            else:
                self._charge(store, begun=True)

    @contextmanager
    def _opened(self) -> Generator[DurableStore]:
        if not self._where.is_file():
            raise PrivacyError(
                f"Expected a budget at data.budget={self._where}; whoever answers for the records sets it: confide "
                "budget set JOB.toml --epsilon E --delta D"
            )
        if self._where.stat().st_nlink > 1:  # each name has a log and a lease of its own: charges would be lost
            raise PrivacyError(f"Expected one name for the file of data.budget={self._where}; remove its hard links")
        store = SqliteStore(self._where)
        try:
            yield store
        finally:
            store.close()

    def _entry(self, budget: Budget, run: str) -> dict[str, bytes | None]:
        told = msgspec.structs.replace(self._told, when=now())
        return budget.charge(
            run=run,
            job=self._job,
            round=0,
            attempt=0,
            epsilon=self._epsilon,
            delta=self._plan.delta,
            told=told,
        )

    def _fitting(self, store: DurableStore, run: str) -> None:
        """Refuse what would pass the limit together with everything that was charged."""
        before = standing(store, self.data_set)
        after = Budget(store, self.data_set)
        self._entry(after, run)
        try:
            Standing(self.data_set, before.limits, after.accounts).require()
        except PrivacyError as error:
            if before.limit is None or before.limit.unit != self._told.unit:
                raise
            epsilon, delta = before.left
            too_much = [
                f"privacy.{name}"
                for name, asked, left in (("epsilon", self._epsilon, epsilon), ("delta", self._plan.delta, delta))
                if asked > left
            ]
            advice = f"lower {' and '.join(too_much or ['privacy.epsilon'])}"
            if min(epsilon, delta) <= 0:
                advice = "it is spent, and only who answers for the records can raise it: confide budget set --raise"
            raise PrivacyError(
                f"{error}: data set {self.data_set} has epsilon={epsilon:.4g} and delta={delta:.3g} left of "
                f"{before.limit.epsilon:g} and {before.limit.delta:g}, this job asks for {self._epsilon:.6g} and "
                f"{self._plan.delta:.3g}; {advice}. Nothing was charged, and nothing has left"
            ) from None


@contextmanager
def alone(store: DurableStore, *, wait_seconds: float = _WAIT_SECONDS) -> Generator[None]:
    """Hold a store's budgets for a moment, so that nobody reads what another is about to change.

    Raises:
        StoreError: another process has held them all the time.
    """
    lease: Lease | None = None
    until = time.monotonic() + wait_seconds
    while lease is None:
        try:
            lease = store.exclusive("budget")
        except UsageError as error:
            if time.monotonic() > until:
                raise StoreError(f"{error}; nothing was charged") from None
            time.sleep(0.02)
    with lease:
        yield


def schema_hash(text: str) -> str:
    """Return the hex SHA-256 of a schema's text, for the account: what the same name meant at the time."""
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
