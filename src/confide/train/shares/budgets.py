"""What an owner's data spends by trainings on shares over machines: each training once, however often it goes on."""

from __future__ import annotations

import msgspec

from confide.train.budget import Budget
from confide.train.shares.checkpoints import Mark
from confide.wire import Store, decode, encode

_PREFIX = "training-on-shares/charged/"


class _Charged(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A training that was charged and has not ended: its runs, of which one may go on from another's checkpoint."""

    runs: tuple[str, ...]


class Charges:
    """The charges of one owner.

    Args:
        store: its own, durable.
        budget: of its data set, in that store.
        job: hex hash of the job.
    """

    def __init__(self, store: Store, budget: Budget, job: str) -> None:
        self._store, self.budget, self._job = store, budget, job

    def charge(self, training: str, run: str, mark: Mark | None, *, epsilon: float, delta: float) -> None:
        """Charge a run before rows leave for it; one that goes on from a run that was charged, and opened nothing, is.

        Raises:
            PrivacyError: the budget has no room for it; nothing may leave.
            StoreError: it is not kept.
        """
        body = self._store.get(_PREFIX + training)
        runs = () if body is None else decode(body, _Charged, max_bytes=len(body)).runs
        changes: dict[str, bytes | None] = {}
        if mark is None or mark.run not in runs:
            runs = ()
            changes |= self.budget.charge(run=run, job=self._job, round=1, attempt=0, epsilon=epsilon, delta=delta)
        self._store.commit(changes | {_PREFIX + training: encode(_Charged((*runs, run)))})

    def ended(self, training: str) -> None:
        """The training has ended: whatever comes next is another one."""
        self._store.commit({_PREFIX + training: None})
