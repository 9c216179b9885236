"""Reading a ledger back: chain, signatures, countersignatures, and what others remember of it.

What shows what was done to the file:

    a line changed, dropped in between, repeated, moved     the chain by itself
    last lines cut off                                      a model's label, or what a node remembers
    written anew by somebody else                           the signer's key, or any of the above
    written anew by its own author                          what a node remembers; nodes' signatures are missing or bad
    a last line that was never finished                     it has no end, and is named so
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from confide.cohort.roster import Roster
from confide.errors import IntegrityError, ProtocolError, UsageError
from confide.train.ledger_lines import (
    COUNTERSIGNED,
    GENESIS,
    MAX_LINE_BYTES,
    Line,
    check_countersignature,
    read_line,
    roster_of,
    signatures_of,
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node remembers of a run's ledger.

    Args:
        run: the run's id.
        number: how many lines of the run it has seen.
        head: the hash of the last of them.
    """

    run: str
    number: int
    head: str


@dataclass(frozen=True, slots=True)
class Countersigned:
    """What one node has signed.

    Args:
        lines: how many lines.
        up_to: the last of them by its place in the file, from 1; it vouches for all lines before.
    """

    lines: int
    up_to: int


@dataclass(frozen=True, slots=True)
class Verified:
    """A ledger that holds.

    Args:
        entries: lines.
        head: hash of the last line.
        later: lines after the one that was asked for: countersignatures, later runs; 0 if none was asked for.
        runs: trainings that were begun.
        epsilon: of all runs together by basic composition, as far as they share records; None without any.
        signed: lines that carry their author's signature.
        signer: public key of the latest run's author, or None if nobody signs it.
        roster: fingerprint of the latest run's roster, or None if it names none.
        countersigned: what each node has signed.
        last: the last line.
    """

    entries: int
    head: str
    later: int
    runs: int
    epsilon: float | None
    signed: int
    signer: bytes | None
    roster: str | None
    countersigned: dict[str, Countersigned]
    last: Line | None


def verify(
    path: Path,
    *,
    head: str | None = None,
    heads: Sequence[str] = (),
    signer: bytes | None = None,
    roster: Roster | str | None = None,
    seen: Sequence[Seen] = (),
) -> Verified:
    """Check a ledger from its first line to its last.

    Args:
        path: the file.
        head: the hash of a line that must be there, from a model's label, if known. Without it, and without `heads`
            and `seen`, a ledger whose last lines were cut off still verifies.
        heads: hashes of further lines that must be there, such as people read to each other.
        signer: the public key that must have signed every line, 32 bytes.
        roster: whose signatures count: the identities that every run's roster must keep to, or the fingerprint that it
            must have; without it each run's first line is believed.
        seen: what nodes remember: these lines must be there, at the same places of the same runs.

    Raises:
        UsageError: the file is absent or unreadable.
        IntegrityError: naming the first line that does not hold, or what is missing.
    """
    walk = _Walk(head, heads, signer, roster)
    try:
        with path.open("rb") as file:
            while body := file.readline(MAX_LINE_BYTES + 1):
                walk.take(body, is_last=not file.peek(1))
    except OSError as error:
        raise UsageError(f"Expected a readable ledger at {path}; {error.strerror}") from None
    return walk.end(seen)


@dataclass(slots=True)
class _Run:
    """The run that is being read."""

    name: str = ""
    signer: bytes | None = None
    roster: Roster | None = None
    #: hash of each line and its place in the run, from 1
    places: dict[str, int] = field(default_factory=dict[str, int])
    epsilon: float | None = None


class _Walk:
    """A reader's state between two lines."""

    def __init__(
        self, head: str | None, heads: Sequence[str], signer: bytes | None, roster: Roster | str | None
    ) -> None:
        self._wanted, self._signer, self._roster = head, signer, roster
        self._absent = {*heads, *([] if head is None else [head])}
        self._run, self._begun = _Run(), 0
        self._runs: list[_Run] = [self._run]  # the first holds lines that stand before any run
        self._count, self._signed = 0, 0
        self._found: int | None = None
        self._last: Line | None = None
        self._by: dict[str, dict[int, None]] = {}  # places of the lines that each node has signed

    @property
    def _head(self) -> str:
        return self._last.hash if self._last else GENESIS

    def take(self, body: bytes, *, is_last: bool) -> None:
        """Check the next line of the file."""
        self._count += 1
        if is_last and not body.endswith(b"\n") and len(body) <= MAX_LINE_BYTES:
            raise IntegrityError(
                f"Line {self._count} of the ledger, its last, is torn: it has no end, so it was never acknowledged (a "
                f"crash, a full disk) or was cut; the {self._count - 1} lines before it hold. The next run drops it"
            )
        try:
            line = read_line(body)
            if line.previous != self._head:
                raise ProtocolError("Expected the hash of the line before")
        except ProtocolError:
            raise self._broken("does not hold: it was changed, removed or reordered") from None
        if line.begins:
            self._begin(line)
        self._check_signature(line)
        self._run.places[line.hash] = len(self._run.places) + 1
        self._last = line
        self._absent.discard(line.hash)
        if line.hash == self._wanted:
            self._found = self._count
        epsilon = line.entry.get("epsilon")
        if isinstance(epsilon, float | int):  # also of a run that never ended, and of releases that failed
            self._run.epsilon = max(self._run.epsilon or 0.0, float(epsilon))
        if line.event == COUNTERSIGNED:
            self._countersigned(line)

    def _broken(self, what: str) -> IntegrityError:
        return IntegrityError(f"Line {self._count} of the ledger {what}")

    def _begin(self, line: Line) -> None:
        try:
            signer, roster = line.signer, roster_of(line)
        except ProtocolError as error:
            raise self._broken(f"names no signer or roster that can be: {error}") from None
        if roster is not None:
            self._check_roster(roster)
        self._run = _Run(str(line.entry.get("run", "")), signer, roster)
        self._runs.append(self._run)
        self._begun += 1

    def _check_roster(self, roster: Roster) -> None:
        match self._roster:
            case Roster():
                known = self._roster.keys()
                strange = sorted(name for name, key in roster.members if known.get(name) != key)
                if strange:
                    raise self._broken(f"names identities that the given roster does not know: {', '.join(strange)}")
            case str() if roster.fingerprint != self._roster:
                raise self._broken(f"names the roster {roster.fingerprint}, expected {self._roster}")
            case _:
                pass

    def _check_signature(self, line: Line) -> None:
        expected = self._run.signer
        if self._signer is not None and expected != self._signer:
            raise self._broken("belongs to a run that the given key did not sign")
        if expected is not None and not line.is_signed_by(expected):
            raise self._broken("does not carry the signature of its run's signer: somebody else wrote it")
        if expected is None and line.signature is not None:
            raise self._broken("carries a signature, and its run names no signer")
        self._signed += expected is not None

    def _countersigned(self, line: Line) -> None:
        try:
            digest, by = signatures_of(line)
            place = self._run.places[digest]
        except (ProtocolError, KeyError):
            raise self._broken("brings signatures on no earlier line of its run") from None
        keys = self._run.roster.keys() if self._run.roster else {}
        for name, signature in by.items():
            if name not in keys:
                raise self._broken(f"brings a signature of {name}, whom its run's roster does not name")
            try:
                check_countersignature(keys[name], signature, self._run.name, place, digest)
            except ProtocolError:
                raise self._broken(f"brings a signature that {name} did not give for that line") from None
            self._by.setdefault(name, {})[self._count - len(self._run.places) + place] = None

    def end(self, seen: Sequence[Seen]) -> Verified:
        """Check what must be there, and return what there is."""
        if self._absent:
            raise IntegrityError(
                f"Expected a line with the hash {min(self._absent)[:16]}... in the ledger; "
                "its last lines were cut off, or it was written anew"
            )
        for one in seen:
            self._check_seen(one)
        spent = [run.epsilon for run in self._runs if run.epsilon is not None]
        return Verified(
            entries=self._count,
            head=self._head,
            later=self._count - self._found if self._found else 0,
            runs=self._begun,
            epsilon=sum(spent) if spent else None,
            signed=self._signed,
            signer=self._run.signer,
            roster=self._run.roster.fingerprint if self._run.roster else None,
            countersigned={name: Countersigned(len(by), max(by)) for name, by in sorted(self._by.items())},
            last=self._last,
        )

    def _check_seen(self, seen: Seen) -> None:
        runs = [run for run in self._runs if run.name == seen.run and run.places]
        if any(run.places.get(seen.head) == seen.number for run in runs):
            return
        longest = max((len(run.places) for run in runs), default=0)
        reason = (
            f"it holds {longest} of that run: its last lines were cut off"
            if longest < seen.number
            else "another line stands there: it was written anew"
        )
        raise IntegrityError(
            f"Expected line {seen.number} of run {seen.run} as a node has seen it, {seen.head[:16]}...; {reason}"
        )
