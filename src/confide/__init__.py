"""confide: train on data that nobody may see, serve on inputs that nobody may see, and measure the choice.

`Client` (or `AsyncClient`) asks a served model, `KeyStore` keeps its keys: they need the base installation only.
Training is `confide.train`, serving `confide.serve`, the comparison `confide.compare`; each brings its extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from confide.errors import ConfideError
    from confide.guarantee import Claim, Guarantee, PrivacyLabel
    from confide.serve.async_client import AsyncClient
    from confide.serve.client import Client
    from confide.serve.key_store import KeyStore

__all__ = ["AsyncClient", "Claim", "Client", "ConfideError", "Guarantee", "KeyStore", "PrivacyLabel"]

_HOMES: Mapping[str, str] = {
    "AsyncClient": "confide.serve.async_client",
    "Claim": "confide.guarantee",
    "Client": "confide.serve.client",
    "ConfideError": "confide.errors",
    "Guarantee": "confide.guarantee",
    "KeyStore": "confide.serve.key_store",
    "PrivacyLabel": "confide.guarantee",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import confide` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'confide' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
