"""What people agreed to: jobs that wait, and decisions that bind to exactly what was looked at.

    FOLDER/approvals/DIGEST.offer       written by the node: the offer, where its table lies, what the budget had spent
    FOLDER/approvals/DIGEST.decision    written by `confide node approve` or `refuse`: the decision and what it binds

DIGEST is `Offer.digest`: SHA-256 over the job, the schema, the start, the roster, the coordinator and the helper. So an
offer under a name never changes, and what a person looked at is what the person approves. A decision repeats what it
was made on, the digest of the table's file included; a node follows it while all of that still holds. Files are
written whole, each by one side, and the node looks at one of them when it wants to know.

The folder is its owner's: whoever can write there can approve, so it is made for its owner alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from confide.errors import Aborted, ProtocolError, UsageError
from confide.model.artifact import write_whole
from confide.structs import known
from confide.train.budget import Spent
from confide.train.offer import LARGEST_OFFER_BYTES, Offer
from confide.wire import decode, encode

#: Offers that may wait for a person; a coordinator that sends more fills no disk.
MOST_WAITING = 100

_LARGEST_DECISION_BYTES = 1 << 14
_PIECE_BYTES = 1 << 20


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job that waits for a person.

    Args:
        offer: what was asked.
        data: the table's file at the node, an absolute path; "" at a helper, which has none.
        when: ISO 8601 time of the first asking.
        epsilon, delta: what the budget had spent when the node last looked.
        greatest_epsilon, greatest_delta: what it may spend.
    """

    offer: Offer
    data: str
    when: str
    epsilon: float
    delta: float
    greatest_epsilon: float
    greatest_delta: float


class Decision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person decided, and on what.

    Args:
        approved: or refused.
        job: hex hash of the job.
        roster: hex fingerprint of the roster.
        coordinator, helper: hex identities; helper "" if there is none.
        data: hex SHA-256 of the table at that time (`confide.data.files.digest_of`); "" of a refusal.
        who: who decided.
        when: ISO 8601 time.
        reason: of a refusal; the coordinator sees it.
    """

    approved: bool
    job: str
    roster: str
    coordinator: str
    helper: str
    data: str
    who: str
    when: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a job stands with the people of a node.

    Args:
        state: "waiting" for a person, "approved", "refused" by one, or "changed": the table is not the approved one.
        reason: in one line, for the coordinator; "" if approved.
    """

    state: Literal["waiting", "approved", "refused", "changed"]
    reason: str = ""


class Approvals:
    """The approvals of one node, shared by the node and the command line beside it.

    Args:
        folder: of the node; the files lie in "approvals" below it.

    **Guarantees**: `verdict` is "approved" only for the very job, roster, coordinator, helper and table that a person
    approved; a crash leaves a decision whole or not there at all.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "approvals"

    # --- the node's side ----------------------------------------------------------------------------------------------

    def ask(
        self,
        offer: Offer,
        *,
        data: Path | None,
        when: str,
        spent: Spent,
        greatest_epsilon: float,
        greatest_delta: float,
    ) -> None:
        """Put an offer where people find it; one that is there already keeps its time, and its budget is refreshed.

        Raises:
            Aborted: too many offers wait; the text is for the coordinator.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        earlier = self._asked(offer.digest)
        if earlier is None and len(self.waiting()) >= MOST_WAITING:
            raise Aborted(f"Expected fewer than {MOST_WAITING} jobs that wait for this node's people; withdraw some")
        asked = Asked(
            offer=offer if earlier is None else earlier.offer,
            data=str(data.absolute()) if data else "",
            when=when if earlier is None else earlier.when,
            epsilon=spent.epsilon,
            delta=spent.delta,
            greatest_epsilon=greatest_epsilon,
            greatest_delta=greatest_delta,
        )
        if asked != earlier:
            write_whole(self._folder / f"{offer.digest}.offer", encode(asked))

    def verdict(self, offer: Offer, data: str) -> Verdict:
        """Return where an offer stands.

        Args:
            offer: as it was read.
            data: hex SHA-256 of the table that would be trained on.
        """
        short = offer.digest[:12]
        try:
            decision = self.decision(offer.digest)
        except UsageError:
            return Verdict("waiting", "Expected a decision that can be read; this node's people must decide again")
        if decision is None:
            return Verdict("waiting", f"Waiting for this node's people: confide node show {short}")
        if decision != msgspec.structs.replace(decision, **_bound(offer)):
            return Verdict("waiting", "Expected the members that were decided on; this node's people must decide again")
        if not decision.approved:
            return Verdict("refused", f"Refused by this node's people: {decision.reason}")
        if decision.data != data:
            return Verdict(
                "changed",
                f"Expected the table that was approved on {decision.when}, it has changed since; this node's people "
                f"can approve again: confide node approve {short}",
            )
        return Verdict("approved")

    def withdraw(self, offer: Offer) -> None:
        """Take away an offer that nobody waits for any more; a decision stays."""
        (self._folder / f"{offer.digest}.offer").unlink(missing_ok=True)

    # --- the people's side --------------------------------------------------------------------------------------------

    def all(self) -> list[Asked]:
        """Return every offer that was put here, the oldest first; files that cannot be read are left out."""
        names = sorted(path.stem for path in self._folder.glob("*.offer")) if self._folder.is_dir() else []
        found = [asked for name in names if (asked := self._asked(name)) is not None]
        return sorted(found, key=lambda asked: (asked.when, asked.offer.digest))

    def waiting(self) -> list[Asked]:
        """Return the offers on which nobody has decided."""
        return [asked for asked in self.all() if not self._place(asked.offer.digest).exists()]

    def find(self, prefix: str) -> Asked:
        """Return the one offer whose digest, or whose job's hash, begins with `prefix`.

        Raises:
            UsageError: there is none, or more than one.
        """
        asked = self.all()
        found = [one for one in asked if prefix in (one.offer.digest[: len(prefix)], one.offer.job_hash[: len(prefix)])]
        if len(found) == 1 and len(prefix) >= 6:
            return found[0]
        if len(prefix) < 6:
            raise UsageError(
                f"Expected at least 6 digits of a job's hash, got {prefix!r}; `confide node pending` lists"
            )
        if not found:
            raise UsageError(f"Expected a job that was offered, got {prefix!r}; `confide node pending` lists them")
        names = ", ".join(one.offer.digest[:12] for one in found)
        raise UsageError(
            f"Expected one job, {prefix!r} stands for {len(found)}: one job with different members; name one of {names}"
        )

    def decision(self, digest: str) -> Decision | None:
        """Return what was decided on an offer, or None.

        Raises:
            UsageError: the file is none of a decision.
        """
        try:
            with self._place(digest).open("rb") as file:
                body = file.read(_LARGEST_DECISION_BYTES + 1)
        except FileNotFoundError:
            return None
        try:
            if len(body) > _LARGEST_DECISION_BYTES:
                raise msgspec.DecodeError
            return msgspec.json.decode(body, type=known(Decision))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise UsageError(f"Expected a decision in {self._place(digest)}; approve or refuse again") from None

    def approve(self, asked: Asked, *, data: str, who: str, when: str) -> Decision:
        """Write down that a person approves an offer for the table with the digest `data`, and return it."""
        return self._decide(asked, approved=True, data=data, who=who, when=when, reason="")

    def refuse(self, asked: Asked, *, reason: str, who: str, when: str) -> Decision:
        """Write down that a person refuses an offer, and why, in one line; return the decision."""
        return self._decide(asked, approved=False, data="", who=who, when=when, reason=" ".join(reason.split()))

    def _decide(self, asked: Asked, *, approved: bool, data: str, who: str, when: str, reason: str) -> Decision:
        bound = _bound(asked.offer)
        decision = Decision(approved=approved, data=data, who=who, when=when, reason=reason, **bound)
        body = msgspec.json.format(msgspec.json.encode(decision)) + b"\n"
        if len(body) > _LARGEST_DECISION_BYTES:
            raise UsageError(f"Expected a reason of at most {_LARGEST_DECISION_BYTES // 2} bytes; shorten it")
        write_whole(self._place(asked.offer.digest), body)
        return decision

    def _place(self, digest: str) -> Path:
        return self._folder / f"{digest}.decision"

    def _asked(self, digest: str) -> Asked | None:
        path = self._folder / f"{digest}.offer"
        try:
            with path.open("rb") as file:
                body = file.read(LARGEST_OFFER_BYTES + 1 + _PIECE_BYTES)
            asked = decode(body, Asked, max_bytes=LARGEST_OFFER_BYTES + _PIECE_BYTES)
        except (OSError, ProtocolError):
            return None
        return asked if asked.offer.digest == digest else None


def _bound(offer: Offer) -> dict[str, str]:
    """Return the fields of a decision that an offer fixes."""
    return {
        "job": offer.job_hash,
        "roster": offer.roster.fingerprint,
        "coordinator": offer.coordinator.hex(),
        "helper": offer.helper.hex(),
    }
