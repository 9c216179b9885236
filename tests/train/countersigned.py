"""A run's ledger with a coordinator who signs and nodes who countersign. No test lives here."""

from __future__ import annotations

from pathlib import Path

from confide.cohort.roster import Roster
from confide.crypto.keys import SigningKey
from confide.train.ledger import Ledger
from confide.train.ledger_lines import roster_field
from confide.train.witness import Witness
from confide.wire import MemoryStore

NODES = ("north", "east", "south")
COORDINATOR = SigningKey(bytes(32))
KEYS = {name: SigningKey(name.encode().ljust(32)) for name in NODES}
ROSTER = Roster(tuple((name, KEYS[name].public) for name in NODES))


class Countersigned:
    """A coordinator's ledger and the nodes that watch it; each round is told, signed, and the signatures appended."""

    def __init__(self, path: Path | None, *, run: str = "run-1", signer: SigningKey = COORDINATOR) -> None:
        self.run, self.path = run, path
        self.ledger = Ledger(path, signer=signer)
        self.stores = {name: MemoryStore() for name in NODES}
        self.told = 0
        fields = {"run": run, "job": "[job]", "parties": list(NODES), "roster": roster_field(ROSTER)}
        self.tell(self.ledger.append("job", fields))

    def witness(self, name: str) -> Witness:
        """Return a node's witness as after a restart: it has nothing but its store."""
        return Witness(self.run, key=KEYS[name], signer=COORDINATOR.public, store=self.stores[name])

    def tell(self, digest: str, *, without: tuple[str, ...] = ()) -> None:
        """Send what each node lacks, and append what they sign."""
        by: dict[str, bytes] = {}
        for name in NODES:
            if name in without:
                continue
            witness = self.witness(name)
            lines = self.ledger.run_lines() if witness.head is None else list(self.ledger.lines_after(witness.head))
            signatures = [witness.see(line) for line in lines]
            by[name] = signatures[-1]
        self.ledger.countersigned(digest, by)

    def round(self, number: int, *, without: tuple[str, ...] = ()) -> None:
        members = sorted(set(NODES) - set(without))
        fields = {"round": number, "members": members, "epsilon": number / 8, "model": f"{number:064x}"}
        self.tell(self.ledger.append("round", fields), without=without)
