"""How many inputs the property tests draw: always the same few in `make test`, many new ones in `make fuzz`.

And the one draw that no seed reaches, made to come from one.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

from confide.crypto.random import SeededRandomness
from confide.secagg import amortised_chains
from crypto import mlkem

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("fuzz", max_examples=2000, deadline=None)
settings.load_profile("same")


@pytest.fixture
def seeded_encapsulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the oracle encapsulate, from a seed: OpenSSL draws by itself, and then no two runs of a test are the same."""
    coins = SeededRandomness("encapsulation")
    monkeypatch.setattr(amortised_chains, "encapsulate", lambda public: mlkem.encapsulate(public, coins.bytes(32)))
