"""How many inputs the property tests draw: always the same few in `make test`, many new ones in `make fuzz`.

And the one draw that no seed reaches, made to come from one; and a database server for those who ask.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings

from confide.crypto.random import SeededRandomness
from confide.secagg import amortised_chains
from crypto import mlkem
from postgres import PostgresServer, programs

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("fuzz", max_examples=2000, deadline=None)
settings.load_profile("same")

# A shell lets what it starts in the background ignore Ctrl-C, and what ignores it here ignores it in every process that
# a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def seeded_encapsulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the oracle encapsulate, from a seed: OpenSSL draws by itself, and then no two runs of a test are the same."""
    coins = SeededRandomness("encapsulation")
    monkeypatch.setattr(amortised_chains, "encapsulate", lambda public: mlkem.encapsulate(public, coins.bytes(32)))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Start a PostgreSQL server of this test process; whoever stops it starts it again."""
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    server = PostgresServer(found)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """Return the URL of an empty database."""
    name = f"test_{uuid.uuid4().hex}"
    yield postgres.create(name)
    postgres.drop(name)
