"""The coordinator's side of countersigning: who has seen which line of the ledger, and what was signed.

Lines go out in order, each node's own way from the last that it has seen. Signatures come back a message later, and are
written into the ledger when the next lines go out; a signature on a line vouches for all lines before it, so of each
node's the latest is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from confide.errors import ProtocolError
from confide.train.control import Lines, Witnessed
from confide.train.ledger import Ledger
from confide.train.ledger_lines import check_countersignature, read_line

#: Lines go out in bodies of about this size.
_LINES_BYTES = 1 << 22


class Witnesses:
    """What the nodes of a run have seen of its ledger.

    Args:
        ledger: of the coordinator; its latest run is this one.
        run: the run's id.
        identities: public identities of the nodes, 32 bytes each by name.
    """

    def __init__(self, ledger: Ledger, run: str, identities: Mapping[str, bytes]) -> None:
        self._ledger, self._run, self._identities = ledger, run, identities
        self._told: dict[str, int] = {}  # the place in the ledger up to which a node was told, by name
        self._numbers: dict[str, int] = {}  # of the lines that are out and not countersigned yet, by hash
        self._place = self._first = -1
        self._count = 0
        self._latest: dict[str, dict[str, bytes]] = {}  # signatures by line, then by node

    def rejoined(self, name: str, head: str) -> None:
        """Go on with a node from the line with the hash `head`; from the run's first if that is none of it."""
        self._catch_up()
        self._told.pop(name, None)
        place = self._first
        for body in self._ledger.lines_from(self._first)[0] if head else ():
            place += self._ledger.width(body)
            if head.encode() in body and read_line(body).hash == head:
                self._told[name] = place
                return

    def lines_for(self, name: str) -> Iterator[Lines]:
        """Yield what a node has not been told yet."""
        self._catch_up()
        bodies, self._told[name] = self._ledger.lines_from(self._told.get(name, self._first))
        batch: list[bytes] = []
        for body in bodies:
            batch.append(body)
            if sum(map(len, batch)) > _LINES_BYTES:
                yield Lines(tuple(batch))
                batch = []
        if batch:
            yield Lines(tuple(batch))

    def signed(self, name: str, told: Witnessed) -> None:
        """Take a node's signatures.

        Raises:
            ProtocolError: one that is not this node's on a line of this run.
        """
        if name not in self._identities:
            raise ProtocolError("Expected countersignatures of a node of the roster")
        if len(told.signatures) > _NUMBERED:
            raise ProtocolError(f"Expected at most {_NUMBERED} countersignatures at once")
        for digest, number, signature in told.signatures:
            if self._numbers.get(digest) != number:
                continue  # of a line that was countersigned long ago
            check_countersignature(self._identities[name], signature, self._run, number, digest)
            for others in self._latest.values():
                others.pop(name, None)  # the newest of a node vouches for those before it
            self._latest.setdefault(digest, {})[name] = signature

    def write(self) -> None:
        """Write the signatures that have come into the ledger."""
        for digest, by in self._latest.items():
            if by:
                self._ledger.countersigned(digest, by)
        self._latest = {}

    def _catch_up(self) -> None:
        """Number the lines that were written since."""
        if self._first < 0:
            self._place = self._first = self._ledger.run_place()
        bodies, self._place = self._ledger.lines_from(self._place)
        for body in bodies:
            self._count += 1
            self._numbers[read_line(body).hash] = self._count
        while len(self._numbers) > _NUMBERED:
            del self._numbers[next(iter(self._numbers))]


#: Signatures on lines further back come too late.
_NUMBERED = 256
