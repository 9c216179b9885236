"""The gate of a real node: its policy first, then its people, then its budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from confide.data.files import digest_of
from confide.errors import ProtocolError
from confide.tee.aggregate import Enclaves
from confide.train.approval import Approvals
from confide.train.budget import Budget
from confide.train.node import Decision
from confide.train.offer import Offer
from confide.train.policy import Policy, refusals, refusals_of_enclaves
from confide.train.setting import Setting
from confide.wire import Store

_NO_ENCLAVE = Enclaves()


def utc_now() -> str:
    """Return the time that this machine's clock says, for people."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class PolicyGate:
    """Decides for one organisation; see `confide.train.node.Gate`.

    Args:
        policy: of the organisation.
        store: of the node, where its budget is.
        approvals: where people decide.
        data: the node's table; None for a helper, which has none.
        coordinator: hex identity of the only coordinator whose offers are looked at, pinned when the node joined.
        enclaves: which evidence of an enclave the node accepts.
        now: the time, for people.

    **Guarantees**: an offer of another coordinator, or one that the policy refuses, never reaches the people; what
    people approved is the very job, roster and table; nothing is charged beyond the policy's budget.
    """

    def __init__(
        self,
        policy: Policy,
        store: Store,
        approvals: Approvals,
        data: Path | None,
        *,
        coordinator: str,
        enclaves: Enclaves = _NO_ENCLAVE,
        now: Callable[[], str] = utc_now,
    ) -> None:
        self._policy, self._approvals, self._data = policy, approvals, data
        self._coordinator, self._enclaves, self._now = coordinator, enclaves, now
        limits = policy.limits
        self.budget = Budget(
            store,
            policy.data.data_set,
            greatest_epsilon=limits.greatest_epsilon,
            greatest_delta=limits.greatest_delta,
        )

    def decide(self, offer: Offer, setting: Setting) -> Decision:
        """Return whether the node takes part, with every reason if it does not."""
        if offer.coordinator.hex() != self._coordinator:
            raise ProtocolError("Expected an offer of the coordinator that this node joined")
        trains = self._data is not None
        reasons = [
            *refusals(self._policy, offer, setting.job, setting.aggregator().guarantee, self.budget, trains=trains),
            *(refusals_of_enclaves(setting.job, self._enclaves) if trains else ()),
        ]
        if reasons:
            return Decision("refused", "; ".join(reasons))
        if self._policy.approval.by == "policy":
            return Decision("accepted")
        digest = digest_of(self._data) if self._data else ""
        verdict = self._approvals.verdict(offer, digest)
        if verdict.state == "approved":
            return Decision("accepted")
        if verdict.state == "refused":
            return Decision("refused", verdict.reason)
        limits = self._policy.limits
        self._approvals.ask(
            offer,
            data=self._data,
            when=self._now(),
            spent=self.budget.spent(),
            greatest_epsilon=limits.greatest_epsilon,
            greatest_delta=limits.greatest_delta,
        )
        return Decision("pending", verdict.reason)

    def charge(
        self, offer: Offer, *, number: int, attempt: int, epsilon: float | None, delta: float
    ) -> Mapping[str, bytes | None]:
        """Charge one release to the data set's budget; see `Budget.charge`."""
        return self.budget.charge(
            run=offer.run, job=offer.job_hash, round=number, attempt=attempt, epsilon=epsilon, delta=delta
        )
