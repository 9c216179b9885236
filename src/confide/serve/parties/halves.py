"""A model of which server and helper have a half each, from a training on shares: nobody sends a part of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from confide.errors import ModelError
from confide.ideal import Backend
from confide.mpc.halves import read_half
from confide.mpc.outsourced import Outsourced
from confide.serve import load_backend
from confide.serve.served import Model


def model_of_half(name: str, place: Path) -> Model:
    """Return the model of a server's folder of shares; its graph is zeros.

    Raises:
        ModelError: the folder does not hold, or has the helper's half too.
    """
    half = read_half(place, "server")
    public = half.public
    return Model(
        name=name,
        graph=public.skeleton,
        label=public.label,
        backends=(Outsourced(half=half),),
        preprocess=public.preprocess.encode(),
    )


def backends_with(shares: Path | None) -> Callable[[str], Backend]:
    """Return how a partner loads a backend by name: with its own half of the model, if it has a folder of shares.

    Raises:
        ModelError: the folder does not hold, or has the server's half too.
    """
    if shares is None:
        return load_backend
    half = read_half(shares, "helper")

    def load(name: str) -> Backend:
        if name != Outsourced.name:
            raise ModelError(f"Expected backend={Outsourced.name!r} with --shares, the server serves under {name!r}")
        return Outsourced(half=half)

    return load
