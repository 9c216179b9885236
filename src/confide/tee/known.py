"""What is known of the vendors, as data: roots that are pinned, least security versions, published breaks.

All of it stands in `known.toml`; a new break, or a new version that mends one, is a change of that file.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

import msgspec

from confide.structs import known
from confide.tee.evidence import Provider
from confide.tee.policy import Product, TcbFloor


class Break(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published way around the hardware.

    Args:
        name: as its authors call it.
        year: of publication.
        providers: whose evidence or guests it concerns.
        products: generations, in AMD's case; () all of them.
        needs: who must be able to do what.
        effect: what they then have.
        answer: what confide or a policy does about it; "" nothing.
        source: where it is described.
        forges_evidence: True if evidence itself can be made up, so that no check here would show it.
    """

    name: str
    year: int
    providers: tuple[Provider, ...]
    products: tuple[str, ...] = ()
    needs: str
    effect: str
    answer: str = ""
    source: str
    forges_evidence: bool = False

    def sentence(self) -> str:
        """Return it as one sentence for a guarantee."""
        return f"{self.name} ({self.year}): needs {self.needs}; {self.effect} [{self.source}]"


class Roots(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hex SHA-256 of the DER of each vendor's root certificate, AMD's by product; of Intel's public point, SHA-384."""

    intel: str
    nitro: str
    snp: dict[Product, str]


class Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of `known.toml`.

    Args:
        as_of: the day on which it was last compared with the vendors.
        roots: see `Roots`.
        snp_floor: least versions by product; a product that is absent has none that we know.
        intel_min_tcb_evaluation: least number of Intel's evaluation of levels.
        breaks: see `Break`.
    """

    as_of: str
    roots: Roots
    intel_min_tcb_evaluation: int
    snp_floor: dict[Product, TcbFloor]
    breaks: tuple[Break, ...]


@cache
def load() -> Known:
    """Return what is known, as it was shipped."""
    text = files("confide.tee").joinpath("known.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), type=known(Known), strict=True)


def breaks(provider: Provider, product: str = "") -> tuple[Break, ...]:
    """Return the published breaks of `provider`'s hardware, of one generation where `product` names it."""
    return tuple(
        one
        for one in load().breaks
        if provider in one.providers and (not product or not one.products or product in one.products)
    )
