"""What a coordinator's store holds of its runs, beside protocols' own: the structs, and which run goes on.

federation/run             the newest run
run/<id>/ keys             the set-up that is complete       keys-<k>/  what its parties keep
attempt          on its way, unless it is the first  charged    the last one charged, and how many
course           the model after an earlier round    sums/<n>   what round n released
number           of the last finished round
line             the ledger's line of the last round
"""

from __future__ import annotations

from typing import Any

import msgspec

from confide.cohort.roster import Roster
from confide.crypto.random import SystemRandomness
from confide.wire import Store, decode, encode

CURRENT = "federation/run"


class Current(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest run of a coordinator's store: its id, the hash of its job, the digest of its roster."""

    run: str
    job: str
    roster: bytes
    finished: bool = False


class Charged(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last attempt that was charged, and how many releases there are in all."""

    number: int
    attempt: int
    releases: int


class RoundLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ledger's line of a round."""

    entry: dict[str, Any]


def unfinished(store: Store) -> Current | None:
    """Return the newest run of a coordinator's store if it has not ended, else None."""
    saved = store.get(CURRENT)
    current = None if saved is None else decode(saved, Current, max_bytes=len(saved))
    return None if current is None or current.finished else current


def is_over(store: Store) -> bool:
    """Return whether the newest run of a coordinator's store has ended, for better or worse."""
    return unfinished(store) is None


def current_run(store: Store, name: str, job: str, roster: Roster) -> tuple[Current, bool]:
    """Return the run that the store holds if it is this job's and not finished, else a new one; and whether it was."""
    saved = store.get(CURRENT)
    if saved is not None:
        current = decode(saved, Current, max_bytes=len(saved))
        if not current.finished and (current.job, current.roster) == (job, roster.digest):
            return current, True
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)[:32]
    current = Current(f"{name}-{SystemRandomness().bytes(8).hex()}", job, roster.digest)
    store.commit({CURRENT: encode(current)})
    return current, False
