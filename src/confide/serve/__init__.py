"""Serving a model: the server (ASGI), the client, key stores, limits; and the registry of backends.

`BACKENDS` names classes instead of importing them, so that the light client loads only what it asks with.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from confide.errors import MissingExtra, ModelError, nearest
from confide.ideal import Backend, names

if TYPE_CHECKING:
    from confide.mpc.ranges import Ranges

#: What realises `predict`: "module:class" by name.
BACKENDS: Mapping[str, str] = MappingProxyType(
    {
        "plain": "confide.ideal:PlainPredict",
        "he": "confide.he.backend:Homomorphic",
        "paillier": "confide.he.paillier:Paillier",
        "mpc-dealer": "confide.mpc.two_party:WithDealer",
        "mpc-outsourced": "confide.mpc.outsourced:Outsourced",
        "mpc-3pc": "confide.mpc.replicated:Replicated",
        "tee": "confide.tee.backend:Enclaved",
    }
)

#: Those whose parties are processes of several organisations (`confide.serve.parties`); others answer over HTTP.
JOINT: tuple[str, ...] = ("mpc-dealer", "mpc-outsourced", "mpc-3pc")

#: The extra that brings a package which a backend imports; everything else is in the light client.
_EXTRAS: Mapping[str, str] = MappingProxyType({"paillier": "paillier"})


def load_backend(name: str, *, ranges: Ranges | None = None) -> Backend:
    """Return the backend called `name`, with its default settings.

    Args:
        ranges: of those on shares, how large values become before each layer; others take none.

    Raises:
        ModelError: no backend has that name.
        MissingExtra: it needs a package that is not installed.
    """
    if name not in BACKENDS:
        raise ModelError(f"Expected backend={name!r} to be one of {names(BACKENDS)}{nearest(name, BACKENDS)}")
    module, _, kind = BACKENDS[name].partition(":")
    try:
        made = getattr(import_module(module), kind)
        return made(ranges=ranges) if ranges is not None and name in JOINT else made()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        raise MissingExtra(package, _EXTRAS[package]) from None
