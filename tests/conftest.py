"""How many inputs the property tests draw: always the same few in `make test`, many new ones in `make fuzz`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("fuzz", max_examples=2000, deadline=None)
settings.load_profile("same")
