"""The organisations of a mode in one process, over TLS on 127.0.0.1, each with its own links and thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from confide.crypto.random import SystemRandomness
from confide.guarantee import PrivacyLabel
from confide.model.graph import Graph, Linear
from confide.serve.limits import Limits
from confide.serve.parties.server import Prepared
from confide.serve.parties.service import Conditions, partnering, prepared, serving
from confide.serve.served import Model
from confide.wire import MemoryStore
from serve.parties.federation import founded

GRAPH = Graph((Linear(np.array([[1.5, -2.0, 0.25], [0.5, 1.0, -1.0]]), np.array([0.125, -0.5])),))
LABEL = PrivacyLabel(aggregator="masked", parties=("north", "south"), quorum=2, colluding=0, rounds=3)


def model(*backends, graph=GRAPH) -> Model:
    return Model(name="diagnosis", graph=graph, label=LABEL, backends=backends)


class Houses:
    """What a test sees: where the server is, who has which folder, what was said, and the messages of all parties."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.partners: dict[str, str] = {}
        self.lines: list[str] = []
        self.broken: list[BaseException] = []
        self.seen: dict[str, list] = {}
        self.stores: dict[str, MemoryStore] = {}
        self.servers: dict[str, object] = {}
        self._alone = threading.Lock()

    def conditions(self, name: str, role: str, *, rng=None, **more) -> Conditions:
        def seen(session, message):
            with self._alone:
                self.seen.setdefault(name, []).append((session, message))

        store = self.stores.setdefault(name, MemoryStore())
        return Conditions(
            address="127.0.0.1",
            port=0,
            store=store,
            **({"one_machine": True} | more),
            say=lambda text: self.lines.append(f"{name}: {text}"),
            broken=self.broken.append,
            seen=seen,
            rng=None if rng is None else rng(role),
        )


@contextlib.contextmanager
def houses(
    folder: Path,
    backend,
    partners: dict[str, str],
    *,
    clients=("clinic",),
    graph=GRAPH,
    limits: Limits | None = None,
    quota=None,
    stock: int = 8,
    absent=(),
    **more,
) -> Iterator[Houses]:
    """Run a server and its partners (name by role), but for those who are absent, until the block ends."""
    members = {**dict.fromkeys(clients, "client"), **{name: role for role, name in partners.items()}}
    found = Houses(folder)
    found.partners = partners
    folder.mkdir(exist_ok=True)
    home = founded(folder, members)
    limits = limits or Limits(batch_rows=64)
    served: list[Prepared] = prepared(model(backend, graph=graph), limits, SystemRandomness())
    with contextlib.ExitStack() as stack:
        server, port = stack.enter_context(
            serving(home, served, partners, found.conditions("server", "server", **more), limits=limits, quota=quota)
        )
        found.url = f"wss://127.0.0.1:{port}"
        found.servers["server"] = server
        for role, name in partners.items():
            if name in absent:
                continue
            partner, _ = stack.enter_context(
                partnering(
                    folder / name,
                    found.conditions(name, role, **more),
                    stock=stock if role == "dealer" else 0,
                    load=lambda _: backend,
                    coordinator=found.url,
                )
            )
            found.servers[name] = partner
        yield found
