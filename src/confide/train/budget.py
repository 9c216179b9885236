"""A node's own budget: what its data set has spent over its lifetime, whoever asked, kept in the node's store.

Each run has an account: the epsilon that its releases have spent together, as the node's own accountant says, and its
delta. Across runs they add up (basic composition: Dwork and Roth, The Algorithmic Foundations of Differential Privacy,
theorem 3.16), which holds however the runs were chosen. A run is one coordinator's id, not a job's hash: the same job
run twice releases twice.

Within a run a record is either trained on or held out, so training and evaluation count as the larger of the two; this
holds because one run has one split, by each record's content. Another run may have another seed or test_fraction and
train on what the first held out: runs add up in full, whatever side a record was on.

A release is charged in the commit that precedes the first message after which its sum can be opened. What is charged is
never given back, whether or not the sum was opened.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import msgspec

from confide.errors import IntegrityError, PrivacyError, ProtocolError, UsageError
from confide.wire import Store, decode, encode

_NAME = r"[A-Za-z0-9_.-]{1,64}"


class Told(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a person wants to know of a run beside its epsilon, and what tighter accounts need.

    Args:
        name: of the job.
        when: UTC, ISO 8601, when it was charged.
        mechanism: what was released, printable.
        schema: hex hash of the schema that the run read by.
        mu: of the Gaussian mechanisms behind, all its releases together; None if they are others.
        surcharge, tail: what integers add to epsilon and to delta (`accountant.Composition`).
        unit: whose presence epsilon is about.
    """

    name: str
    when: str
    mechanism: str
    schema: str
    mu: float | None = None
    surcharge: float = 0.0
    tail: float = 0.0
    unit: str = "record"


class Account(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one run has spent.

    Args:
        run: its id.
        job: hex hash of its job.
        epsilon: of all its releases together; None if they had no noise.
        delta: of the same.
        releases: sums that it was charged for, failed attempts included; or whole trainings, where a run is charged at
            once before it begins.
        told: who asked for what and when, if it was noted.
    """

    run: str
    job: str
    epsilon: float | None
    delta: float
    releases: int
    told: Told | None = None


class _Book(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    accounts: tuple[Account, ...]


@dataclass(frozen=True, slots=True)
class Spent:
    """What a data set has spent by basic composition over runs.

    Args:
        epsilon, delta: sums over the runs with differential privacy.
        without: runs that released sums without noise, which no epsilon bounds.
    """

    epsilon: float
    delta: float
    without: int = 0


class Budget:
    """The budget of one data set. One object per store and data set: it is ahead of the store until its changes commit.

    Args:
        store: the node's own.
        data_set: its name, which stays when the file changes: letters, digits, '-', '_' and '.', at most 64.
        greatest_epsilon, greatest_delta: over the data set's lifetime, all runs together; None for a budget that is
            only looked at.

    Raises:
        UsageError: the name is none.
        IntegrityError: the store holds something else where the budget should be.

    **Guarantees**: `spent` never exceeds the limits by any sequence of charges; a release is charged once, however
    often it is retried; a crash loses no charge whose messages have left.
    """

    def __init__(
        self,
        store: Store,
        data_set: str,
        *,
        greatest_epsilon: float | None = None,
        greatest_delta: float | None = None,
    ) -> None:
        if not re.fullmatch(_NAME, data_set):
            raise UsageError(
                f"Expected data.data_set={data_set!r} to be letters, digits, '-', '_' and '.', at most 64; rename it"
            )
        self.data_set = data_set
        self.greatest_epsilon, self.greatest_delta = greatest_epsilon, greatest_delta
        self._store = store
        self._accounts = {account.run: account for account in _read(store, self._key)}
        self._charged: set[str] = set()  # not in the store yet, perhaps

    @property
    def accounts(self) -> tuple[Account, ...]:
        """Return the account of every run, in the order of their first releases."""
        return tuple(self._accounts.values())

    def spent(self, *, besides: str | None = None) -> Spent:
        """Return what all runs together have spent; without the run `besides`, if one is named."""
        return _total([account for account in self._accounts.values() if account.run != besides])

    def releases(self, run: str) -> int:
        """Return how many sums `run` was charged for; its next one is one more."""
        account = self._accounts.get(run)
        return account.releases if account else 0

    def is_charged(self, *, run: str, round: int, attempt: int) -> bool:
        """Return whether this release was charged already."""
        key = self._charge_key(run, round, attempt)
        return key in self._charged or self._store.get(key) is not None

    def charge(
        self,
        *,
        run: str,
        job: str,
        round: int,
        attempt: int,
        epsilon: float | None,
        delta: float,
        told: Told | None = None,
    ) -> dict[str, bytes | None]:
        """Charge one release and return the changes to commit with the messages that it lets leave.

        Args:
            run: id of the run.
            job: hex hash of its job.
            round, attempt: which of its sums.
            epsilon: what the run has spent in all, this release included; None for a sum without noise.
            delta: of the run.
            told: what is noted beside.

        Returns:
            Changes of the store; none if they are there already. A retry before they were committed gets them again.

        Raises:
            PrivacyError: the data set would spend more than its budget; nothing is charged and nothing may leave.
            UsageError: the id is none, or epsilon or delta cannot be right: less than the run has spent already.
        """
        if not re.fullmatch(_NAME, run):
            raise UsageError("Expected letters, digits, '-', '_' and '.' in the id of a run, at most 64")
        key = self._charge_key(run, round, attempt)
        if self._store.get(key) is not None:
            return {}
        if key in self._charged:  # its changes may have been lost with the step that asked for them
            return {self._key: encode(_Book(self.accounts)), key: b""}
        earlier = self._accounts.get(run, Account(run, job, None if epsilon is None else 0.0, 0.0, 0))
        if earlier.job != job:
            raise UsageError("Expected one job under the id of a run; another was charged under it")
        _check(earlier, epsilon, delta)
        account = Account(run, job, epsilon, delta, earlier.releases + 1, told or earlier.told)
        accounts = {**self._accounts, run: account}
        if epsilon is not None:
            self._require_room(_total(list(accounts.values())))
        self._accounts = accounts
        self._charged.add(key)
        return {self._key: encode(_Book(self.accounts)), key: b""}

    def sentence(self) -> str:
        """Return in one line what was spent, of how much, and by what rule."""
        spent, runs = self.spent(), sum(account.epsilon is not None for account in self.accounts)
        limit = "" if self.greatest_epsilon is None else f" of {self.greatest_epsilon:.6g}"
        text = (
            f"data set {self.data_set}: epsilon={spent.epsilon:.6g}{limit} and delta={spent.delta:.3g} spent by {runs} "
            "runs, added up (basic composition)"
        )
        if spent.without:
            text += f"; and {spent.without} runs without differential privacy, which no epsilon bounds"
        return text

    @property
    def _key(self) -> str:
        return f"budget/{self.data_set}"

    def _charge_key(self, run: str, round: int, attempt: int) -> str:
        return f"{self._key}/{run}/{round}/{attempt}"

    def _require_room(self, total: Spent) -> None:
        for name, asked, most in (
            ("epsilon", total.epsilon, self.greatest_epsilon),
            ("delta", total.delta, self.greatest_delta),
        ):
            if most is not None and asked > most:
                raise PrivacyError(
                    f"Expected the lifetime budget of this node's data to allow one more release; it would pass "
                    f"limits.greatest_{name}={most:g}. The node stops here"
                )


def _read(store: Store, key: str) -> tuple[Account, ...]:
    body = store.get(key)
    if body is None:
        return ()
    try:
        return decode(body, _Book, max_bytes=len(body)).accounts
    except ProtocolError:
        raise IntegrityError(f"Expected a budget in the store under {key!r}; restore the store from a copy") from None


def _check(earlier: Account, epsilon: float | None, delta: float) -> None:
    """Refuse what no accountant says about one more release."""
    numbers = (delta,) if epsilon is None else (epsilon, delta)
    grows = all(math.isfinite(number) and number >= 0 for number in numbers) and delta >= earlier.delta
    if not grows or (epsilon is None) != (earlier.epsilon is None) or (epsilon or 0.0) < (earlier.epsilon or 0.0):
        raise UsageError("Expected the epsilon and delta of a run with one more release; they never shrink")


def _total(accounts: list[Account]) -> Spent:
    """Return the sums, each the float nearest to the exact one."""
    private = [account for account in accounts if account.epsilon is not None]
    return Spent(
        epsilon=math.fsum(account.epsilon or 0.0 for account in private),
        delta=math.fsum(account.delta for account in private),
        without=len(accounts) - len(private),
    )
