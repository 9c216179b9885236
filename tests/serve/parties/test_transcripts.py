"""The driver carries what the parties say: over TLS the same bytes as in one process, message by message."""

from __future__ import annotations

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.mpc.outsourced import Outsourced
from confide.mpc.replicated import Replicated
from confide.mpc.two_party import WithDealer
from confide.serve.client import Client
from confide.store import Prefixed
from confide.wire import MemoryStore, run
from serve.parties.houses import houses
from serve.parties.networks import NETWORK

X = np.random.default_rng(8).uniform(-1, 1, (2, NETWORK.features))


def drawn(role: str) -> SeededRandomness:
    return SeededRandomness(f"transcript of {role}")


class Fixed:
    """A backend whose kits are drawn from a seed, so that two runs have the same shares."""

    def __init__(self, backend) -> None:
        self._backend = backend

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def prepare(self, graph, rng):
        return self._backend.prepare(graph, drawn("prepare"))


def in_one_process(backend):
    """Return (src, dst, tag, body) of a set-up, and of a prediction with what it needs dealt on demand."""
    kits, rngs = backend.prepare(NETWORK, drawn("prepare")), {role: drawn(role) for role in backend.roles}
    stores = {role: MemoryStore() for role in backend.roles}
    views = {role: Prefixed(store, "p/") for role, store in stores.items()}
    said = []
    for kind in ("setup", "predict"):
        parties = {}
        for role in backend.roles:
            kit, store, rng = kits[role], views[role], rngs[role]
            if kind == "setup":
                parties[role] = backend.setup(role, kit, store, rng)
            else:
                parties[role] = backend.predict(role, kit, X if role == "client" else None, store, rng)
        transcript = run(parties, stores=views)
        assert not transcript.failures
        said.append({(one.src, one.dst, one.tag, bytes(one.body)) for one in transcript.messages})
    return said, transcript.output("client")


@pytest.mark.parametrize(
    ("kind", "partners"),
    [
        (WithDealer, {"dealer": "broker"}),
        (Outsourced, {"dealer": "broker", "helper": "second"}),
        (Replicated, {"helper": "second", "third": "last"}),
    ],
)
def test_transcripts_are_the_same_byte_for_byte(kind, partners, tmp_path):
    expected, y = in_one_process(kind())
    backend = Fixed(kind())
    with houses(tmp_path, backend, partners, graph=NETWORK, rng=drawn) as found:
        identity = found.folder / "clinic"
        with Client(found.url, identity=identity, insecure_colocated_dealer=True, rng=drawn("client")) as client:
            client.setup()
            assert np.array_equal(client.predict(X), y)
    names = {"server": "server", **{name: role for role, name in partners.items()}}
    for name, role in names.items():
        for kind_of_session, messages in zip(("setup", "predict"), expected, strict=True):
            seen = {
                (one.src, one.dst, one.tag, bytes(one.body))
                for session, one in found.seen[name]
                if f"/{kind_of_session}/" in session
            }
            assert seen == {one for one in messages if role in one[:2]}, (name, kind_of_session)
