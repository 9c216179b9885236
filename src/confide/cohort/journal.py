"""The journal of a party that sends one body in a session: the newest session of a run, and the bytes that left in it.

Committed before the body leaves, so whoever is built again sends the same bytes or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from confide.errors import Aborted
from confide.ideal import Session
from confide.wire import Store, decode, encode


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a store holds of a run: the newest session, and the bytes that may leave again in it."""

    round: int
    attempt: int
    context: bytes
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Journal:
    """One session's place in a party's journal.

    Args:
        key: where the journal of the run lies in the party's store.
        session: what the sum is about.
        context: all that the parties agree on, 32 bytes.
    """

    key: str
    session: Session
    context: bytes

    def resumed(self, store: Store) -> bytes | None:
        """Return the bytes that may leave again in this session, or None for a new session.

        Raises:
            Aborted: the journal knows this session or a newer one, and holds no bytes to send again.
        """
        saved = store.get(self.key)
        if saved is None:
            return None
        entry = decode(saved, Entry, max_bytes=len(saved))
        now, newest = (self.session.round, self.session.attempt), (entry.round, entry.attempt)
        if now > newest:
            return None
        if now == newest and entry.context == self.context and entry.body:
            return entry.body
        raise Aborted(
            f"Expected a session after round={entry.round}, attempt={entry.attempt} of run={self.session.run}; "
            "that one is in the journal, so take the next attempt"
        )

    def entry(self, body: bytes = b"") -> dict[str, bytes | None]:
        """Return what to save before `body` leaves; without a body nothing leaves again."""
        return {self.key: encode(Entry(self.session.round, self.session.attempt, self.context, body))}
