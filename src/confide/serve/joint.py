"""Whether a URL leads to one server or to several organisations, without loading what only the latter need."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import MissingExtra
from confide.serve.steps import Progress, Wanted
from confide.wire import MemoryStore, Store

if TYPE_CHECKING:
    from confide.serve.parties.asking import JointAsking


def is_joint(url: str) -> bool:
    """Return whether several organisations answer at `url`."""
    return url.startswith("wss://")


def joint_asking(
    url: str,
    wanted: Wanted,
    *,
    identity: str | Path | None,
    store: Store | None,
    rng: Randomness | None,
    progress: Progress | None,
    timeout_seconds: float,
    one_machine: bool,
    ahead: int,
) -> JointAsking:
    """Return the steps of a client whose questions several organisations answer; see `Client` for the arguments.

    Raises:
        UsageError: no identity, or a folder that is none.
        MissingExtra: websockets is not installed.
    """
    try:
        module = import_module("confide.serve.parties.asking")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "websockets":
            raise
        raise MissingExtra("websockets", "federate") from None
    return module.joint(
        url,
        wanted,
        identity=identity,
        store=MemoryStore() if store is None else store,
        rng=SystemRandomness() if rng is None else rng,
        progress=progress,
        timeout_seconds=timeout_seconds,
        one_machine=one_machine,
        ahead=ahead,
    )
