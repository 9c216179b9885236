"""What a backend promises once a server has the model and makes the shares of it."""

from __future__ import annotations

from dataclasses import replace

from confide.guarantee import Guarantee


def as_served(guarantee: Guarantee) -> Guarantee:
    """Return what holds where the server has the model: it makes the shares of it, so they hide nothing from it."""
    kept = frozenset(claim for claim in guarantee.claims if (claim.asset, claim.hidden_from) != ("weights", "server"))
    if kept == guarantee.claims:
        return guarantee
    return replace(guarantee, claims=kept, leaks=f"{guarantee.leaks} The server has the model: it makes its shares.")
