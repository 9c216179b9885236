"""A node's eye on the coordinator's ledger: it is told each line, remembers the head, and countersigns.

A chain of hashes does not stop its own author, who can write another chain. A node that keeps the head of the one that
it was shown can: whoever drops, changes or replaces a line afterwards contradicts what the node remembers, and whoever
shows two nodes two ledgers leaves each with a signature that the other's does not have.

    coordinator -> node    the line, byte for byte as it stands in the file
    node -> coordinator    a signature over (purpose, run, number of the line in the run, hash of the line)

A signature on one line vouches for all lines before it. The lines that bring signatures are followed and not signed
themselves: the next round's line covers them.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from confide.crypto.keys import SigningKey
from confide.errors import ProtocolError
from confide.train.ledger_check import Seen
from confide.train.ledger_lines import COUNTERSIGNED, Line, Value, countersign, read_line
from confide.wire import Store, decode, encode

#: Where a node keeps the names of the runs that it has watched, and under it what it remembers of each.
WITNESSED = "ledger/witness"


class _Runs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    names: tuple[str, ...]


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    head: str


class Witness:
    """One node's memory of one run's ledger.

    Args:
        run: the run's id, as its first line must name it; no two runs have the same.
        key: the node's identity; it signs.
        signer: the coordinator's public identity, 32 bytes: every line must carry its signature.
        store: the node's own; keys start with `WITNESSED`.

    **Guarantees**: of each place in the run the node signs one line at most, whatever it is told and however often it
    is restarted; what it has signed is on a chain that begins with the run's first line; the head is durable before
    the signature leaves.
    **Leaks**: nothing but that the node has seen the line.
    """

    def __init__(self, run: str, *, key: SigningKey, signer: bytes, store: Store) -> None:
        self._run, self._key, self._signer, self._store = run, key, signer, store

    @property
    def head(self) -> str | None:
        """Return the hash of the last line that was seen: `Ledger.lines_after` gives the rest. None before any."""
        at = self._at()
        return at.head if at else None

    @property
    def number(self) -> int:
        """Return how many lines of the run were seen."""
        at = self._at()
        return at.number if at else 0

    def see(self, body: bytes, expected: Mapping[str, Value] | None = None) -> bytes | None:
        """Take the next line and return the signature on it; the last line once more gives the same signature again.

        Args:
            body: the line with its end.
            expected: fields that the node knows by itself, and `event`: the line must say exactly the same. A field
                that is not named is not compared.

        Returns:
            64 bytes for `Ledger.countersigned`; None for a line that brings signatures.

        Raises:
            ProtocolError: the line is not whole, not signed by the coordinator, says something else than the node
                knows, or stands at a wrong place: a fork, a gap or a replay. What the node remembers is as it was.
        """
        line = read_line(body)
        if not line.is_signed_by(self._signer):
            raise ProtocolError("Expected a line of the ledger with the coordinator's signature")
        for key, value in (expected or {}).items():
            if not line.says(line.event, {key: value}):
                raise ProtocolError(
                    f"Expected a line of the ledger that says the same {key} as this node has seen; it is not signed"
                )
        at = self._at()
        if at is not None and at.head == line.hash:  # the answer to it was lost
            return self._signature(line, at.number)
        number = self._place(line, at)
        self._remember(line, number)
        return self._signature(line, number)

    def _signature(self, line: Line, number: int) -> bytes | None:
        return None if line.event == COUNTERSIGNED else countersign(self._key, self._run, number, line.hash)

    def _place(self, line: Line, at: _Head | None) -> int:
        """Return the number of a line that follows on what was seen."""
        if at is None:
            if not line.begins:
                raise ProtocolError(f"Expected the first line of run {self._run}, lines before this one are missing")
            if line.entry.get("run") != self._run or line.signer != self._signer:
                raise ProtocolError(f"Expected a first line that names run {self._run} and the coordinator's key")
            return 1
        if (known := self._seen_at(line.hash)) is not None:
            raise ProtocolError(f"Expected the line after {at.number} of run {self._run}, line {known} was replayed")
        if line.previous == at.head and not line.begins:
            return at.number + 1
        if line.begins and line.entry.get("run") != self._run:
            raise ProtocolError(f"Expected a line of run {self._run}, another run begins here")
        before = self._seen_at(line.previous)
        if before is not None or line.begins:
            raise ProtocolError(
                f"Expected one ledger of run {self._run}, this is another line {(before or 0) + 1} than was shown "
                "before: the ledger was forked"
            )
        raise ProtocolError(
            f"Expected the line after {at.number} of run {self._run}, lines in between are missing; send what follows "
            f"{at.head[:16]}..."
        )

    def _remember(self, line: Line, number: int) -> None:
        runs = _runs(self._store)
        changes: dict[str, bytes | None] = {
            _head_key(self._run): encode(_Head(number, line.hash)),
            _line_key(self._run, line.hash): number.to_bytes(8, "little"),
        }
        if self._run not in runs:
            changes[WITNESSED] = encode(_Runs((*runs, self._run)))
        self._store.commit(changes)

    def _at(self) -> _Head | None:
        return _head(self._store, self._run)

    def _seen_at(self, digest: str) -> int | None:
        body = self._store.get(_line_key(self._run, digest))
        return None if body is None else int.from_bytes(body, "little")


def seen(store: Store) -> tuple[Seen, ...]:
    """Return what a node's store remembers of every run that it watched: what `verify` compares a ledger with."""
    heads = ((run, _head(store, run)) for run in _runs(store))
    return tuple(Seen(run, head.number, head.head) for run, head in heads if head is not None)


def _head_key(run: str) -> str:
    return f"{WITNESSED}/head/{run}"


def _line_key(run: str, digest: str) -> str:
    return f"{WITNESSED}/line/{run}/{digest}"


def _head(store: Store, run: str) -> _Head | None:
    body = store.get(_head_key(run))
    return None if body is None else decode(body, _Head, max_bytes=len(body))


def _runs(store: Store) -> tuple[str, ...]:
    body = store.get(WITNESSED)
    return () if body is None else decode(body, _Runs, max_bytes=len(body)).names
