"""Weights that stay shares: a folder with one file for each server, and what is public beside them.

    server-0.npz, server-1.npz    arrays of uint64 by name: w1, b1, w2 ...; a server gets its own file and no other
    model.json                    layers, scales, classes and label: no number of the model

Either file alone is uniform. Both together are the model, so a folder with both is for simulations alone.
"""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.guarantee import PrivacyLabel
from confide.ideal import Kit
from confide.model.graph import Graph, Linear, Relu, Sigmoid
from confide.model.unfinished import begin
from confide.mpc import lowering
from confide.mpc.kits import ModelKit, PublicKit
from confide.mpc.operations import SCALE
from confide.mpc.recipe import GraphRecipe
from confide.structs import known
from confide.train.shares.course import SERVERS

Words = NDArray[np.uint64]

_MODEL = "model.json"
_LARGEST_BYTES = 1 << 30


class Public(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is public of a model whose weights are shares.

    Args:
        widths: columns before the first layer and after each; ReLU between layers.
        loss: what the outputs were trained by; "logistic": above 0 speaks for a class, "squared": above 1/2.
        classes: names of the outcomes.
        weight_scale, bias_scale: of the shares.
        servers: who holds which file, in order.
        label: what the training promised.
        training: of a training over machines: which one; shares of two trainings make no model.
    """

    widths: tuple[int, ...]
    loss: str
    classes: tuple[str, ...]
    servers: tuple[str, ...]
    label: PrivacyLabel
    training: str = ""
    weight_scale: int = SCALE
    bias_scale: int = 2 * SCALE


def write_folder(place: Path, public: Public, parts: Mapping[int, Mapping[str, Words]]) -> None:
    """Write a folder of shares, all of it or nothing; it and its files are readable by their owner alone.

    Args:
        place: absent, or an empty folder: shares of two trainings side by side would be a wrong model.
        parts: of server 0 or 1 or of both, by name.

    Raises:
        OSError: as the system says, also where the folder is not empty; what was there stays as it was.
    """
    begun, held = begin(place)
    try:
        _write(begun / _MODEL, msgspec.json.format(msgspec.json.encode(public), indent=2) + b"\n")
        for server, arrays in parts.items():
            body = io.BytesIO()
            np.savez(body, allow_pickle=False, **{key: np.asarray(words, "<u8") for key, words in arrays.items()})
            _write(begun / f"{SERVERS[server]}.npz", body.getvalue())
        begun.rename(place)
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise
    finally:
        os.close(held)


def _write(file: Path, body: bytes) -> None:
    """Write a file of a folder that nobody else has seen yet, so that it outlives a power cut."""
    file.touch(mode=0o600)
    with file.open("wb") as opened:
        opened.write(body)
        opened.flush()
        os.fsync(opened.fileno())


def read_public(place: Path) -> Public:
    """Return what is public of a folder of shares. Raises ModelError if it is none."""
    try:
        return msgspec.json.decode((place / _MODEL).read_bytes(), type=known(Public))
    except (OSError, msgspec.DecodeError):
        raise ModelError(f"Expected a folder of shares at {place}; `confide train` writes one") from None


def read_shares(place: Path, public: Public, server: int) -> dict[str, Words]:
    """Return one server's shares: w1, b1 ... with the shapes that `public` says.

    Raises:
        ModelError: the file is absent, or holds anything else.
    """
    file = place / f"{SERVERS[server]}.npz"
    layers = range(1, len(public.widths))
    wanted = {f"w{layer}": (public.widths[layer - 1], public.widths[layer]) for layer in layers}
    wanted |= {f"b{layer}": (public.widths[layer],) for layer in layers}
    try:
        body = file.read_bytes() if file.stat().st_size <= _LARGEST_BYTES else b""
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name]) for name in arrays.files if name in wanted}
    except (OSError, ValueError, zipfile.BadZipFile, KeyError, EOFError):
        raise ModelError(f"Expected a server's shares at {file}") from None
    if {name: (array.shape, array.dtype.str) for name, array in found.items()} != {
        name: (shape, "<u8") for name, shape in wanted.items()
    }:
        raise ModelError(f"Expected shares of the layers {public.widths} at {file}")
    return {name: array.astype(np.uint64, copy=False) for name, array in found.items()}


def kits(place: Path) -> dict[str, Kit]:
    """Return what the roles of "mpc-outsourced" need to serve a folder's model, which nobody puts together.

    Server 0 is "server", server 1 is "helper". In a deployment each makes its own kit, from its own file.

    Raises:
        ModelError: the folder does not hold, or no program on shares computes its model.
    """
    return public_kits(place) | {role: own_kit(place, server) for server, role in enumerate(("server", "helper"))}


def public_kits(place: Path) -> dict[str, Kit]:
    """Return what client and dealer need, without a number of the model. Raises ModelError as `kits`."""
    told = PublicKit(_recipe(read_public(place)), owned=False)
    return {"client": told, "dealer": told}


def own_kit(place: Path, server: int) -> Kit:
    """Return what one server, 0 or 1, needs, from its own file alone. Raises ModelError as `kits`."""
    public = read_public(place)
    return ModelKit(_recipe(public), owned=False, model=_named(public, read_shares(place, public, server), server))


def _recipe(public: Public) -> GraphRecipe:
    return GraphRecipe(lowering.architecture_of(_skeleton(public)))


def _skeleton(public: Public) -> Graph:
    """Return the layers that serve, without a number of the model."""
    layers: list[Linear | Relu | Sigmoid] = []
    for inner, outer in pairwise(public.widths):
        layers += [Linear(np.zeros((outer, inner)), np.zeros(outer)), Relu()]
    return Graph((*layers[:-1], Sigmoid()), public.classes)


def _named(public: Public, parts: Mapping[str, Words], server: int) -> dict[str, Words]:
    """Return a server's shares as the program of the layers names them: what `graph_of` does to weights, on a share."""
    found: dict[str, Words] = {}
    last = len(public.widths) - 1
    for layer in range(1, last + 1):
        weight, bias = parts[f"w{layer}"].T, parts[f"b{layer}"]
        if layer == last and public.loss == "squared" and server == 0:
            bias = bias - np.uint64(1 << (public.bias_scale - 1))
        factor = np.uint64(slope_of(public.loss) if layer == last else 1)
        place = 2 * (layer - 1)  # a ReLU stands between two layers
        found[f"{place}.weight"] = np.ascontiguousarray(weight * factor)
        found[f"{place}.bias"] = bias * factor
    return found


def slope_of(loss: str) -> int:
    """Return the factor of the last layer that serves: sigmoid(4 z) has the slope of the line it was trained with."""
    return 4 if loss in ("logistic", "squared") else 1
